//! Changes as they happen: Kubernetes' watch of one kind, and the stream of several kinds in whole commits.
//!
//! A watcher has no buffer here. It is a position in the store's history, and the next line is made when the connection
//! has room for it; whoever falls so far behind that history is gone is told so (410, Expired) and lists anew.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::{Value, json};

use reconciler_api::{Kind, ObjectRef, ResourceVersion};

use crate::objects::wire::{ErrorForm, EventForm, INITIAL_EVENTS_END, SelectionForm};
use crate::objects::{Change, Epoch, Error, Event, PageRequest, Selection, Start, Stored, Stream};
use crate::seams::Monotonic;

use super::answer::Problem;
use super::handle::{Call, api_version, dressed, open, too_much};
use super::table::{self, Form};
use super::{Ask, Shared, Ticket};

/// How long a watch lasts that does not say. Kubernetes ends its own after 30 to 60 minutes.
const WATCH_TIME: Duration = Duration::from_secs(3_600);
/// Between bookmarks of a watch where nothing happens.
const BOOKMARKS: Duration = Duration::from_secs(10);
/// Objects a line of the initial part of a stream: a line is held in memory by both sides.
const OBJECTS_A_LINE: usize = 50;
/// An epoch raises versions by this much, so the upper half tells epochs apart.
const EPOCH_BITS: u32 = 32;

pub(super) async fn watch(call: Call<'_>, selection: Selection) -> Result<Response<Body>, Problem> {
    let ticket = enter(&call)?;
    let objects = &call.shared.objects;
    let start = match call.asked.resource_version {
        None => Start::Now,
        Some(version) => after(&call, &selection, ResourceVersion(version)).await?,
    };
    let events = split_initial(&call, objects.stream(vec![selection.clone()], start).await?);
    let may_still = may_still(&call, std::slice::from_ref(&selection));
    let watcher = Watcher {
        form: call.form(),
        core: call.core,
        bookmarks: call.asked.bookmarks,
        initial_events: call.asked.initial_events,
        told: call.shared.seams.monotonic(),
        seams: call.shared.seams.clone(),
        selection,
    };
    let lines = stream::unfold(Some((events, watcher)), |state| async move {
        let (mut events, mut watcher) = state?;
        let (lines, rest) = match events.next().await? {
            Ok(event) => match watcher.lines(event) {
                Ok(lines) => (lines, true),
                Err(error) => (error_line(error), false),
            },
            Err(error) => (error_line(error), false),
        };
        Some((lines, rest.then_some((events, watcher))))
    });
    let time = call.asked.timeout_seconds.map_or(WATCH_TIME, Duration::from_secs);
    let lines = lines.filter(|lines| std::future::ready(!lines.is_empty())).boxed();
    Ok(respond(call.shared, ticket, Some(time), lines, may_still))
}

pub(super) async fn stream(call: Call<'_>) -> Result<Response<Body>, Problem> {
    let ticket = enter(&call)?;
    let find = |name: &str| call.shared.kinds.kind(name);
    let forms: Vec<SelectionForm> = serde_json::from_str(call.asked.selections.as_deref().unwrap_or_default())
        .map_err(|error| Problem::bad_request(format!("selections: {error}")))?;
    let selections: Vec<Selection> = forms.into_iter().map(|form| form.open(&find)).collect::<Result<_, Error>>()?;
    for selection in &selections {
        call.allow("watch", &selection.kind, &whole(selection), "")?;
    }
    let may_still = may_still(&call, &selections);
    let start = match (&call.asked.epoch, call.asked.resource_version) {
        (Some(epoch), version) => {
            Start::After { epoch: Epoch(epoch.clone()), resource_version: ResourceVersion(version.unwrap_or(0)) }
        }
        (None, None) => Start::Now,
        (None, Some(_)) => return Err(Problem::bad_request("resourceVersion means nothing without its epoch")),
    };
    let events = call.shared.objects.stream(selections, start).await?;
    let lines = split_initial(&call, events).map(|event| {
        let form = match event.and_then(EventForm::new) {
            Ok(form) => form,
            Err(error) => EventForm::Error(ErrorForm::from(&error)),
        };
        let mut line = serde_json::to_vec(&form).expect("strings, numbers and JSON");
        line.push(b'\n');
        Bytes::from(line)
    });
    Ok(respond(call.shared, ticket, None, lines.boxed(), may_still))
}

/// What is watched, as it is asked for.
fn whole(selection: &Selection) -> ObjectRef {
    ObjectRef::new(selection.namespace.as_deref().unwrap_or_default(), "")
}

/// Whether who watches may do so still: asked before each line, as a watch may outlive what its peer may.
fn may_still(call: &Call<'_>, selections: &[Selection]) -> impl Fn() -> bool + Send + use<> {
    let (access, peer) = (call.shared.access.clone(), call.peer.clone());
    let asked: Vec<(Arc<Kind>, ObjectRef)> = selections.iter().map(|it| (it.kind.clone(), whole(it))).collect();
    move || {
        asked.iter().all(|(kind, reference)| {
            access.allow(&peer, &Ask { verb: "watch", kind, reference, subresource: "" }).is_ok()
        })
    }
}

fn enter(call: &Call<'_>) -> Result<Ticket, Problem> {
    let limit = call.shared.limits.watches_per_peer;
    call.shared.watches.enter(&call.peer.account(), limit).ok_or_else(|| {
        call.shared.metrics.refused("watches");
        Problem::too_many(format!("{} has {limit} watches open already: end some of them", call.peer.identity))
    })
}

/// Where a watch goes on. Kubernetes' watch says no epoch, but every version tells which one it belongs to.
async fn after(call: &Call<'_>, selection: &Selection, version: ResourceVersion) -> Result<Start, Problem> {
    let page = PageRequest { limit: 1, from: None };
    let now = call.shared.objects.list(selection, page).await?;
    if version.0 >> EPOCH_BITS != now.resource_version.0 >> EPOCH_BITS {
        let detail = format!("version {version} is of before a restore; list again");
        return Err(Error::Expired { detail }.into());
    }
    Ok(Start::After { epoch: now.epoch, resource_version: version })
}

/// What the body is made of, until the end of the watch, of the peer's right to it, the connection or the server.
fn respond(
    shared: &Shared,
    ticket: Ticket,
    time: Option<Duration>,
    lines: BoxStream<'static, Bytes>,
    may_still: impl Fn() -> bool + Send + 'static,
) -> Response<Body> {
    let stop = shared.stop.clone();
    let over = time.map(|time| shared.seams.sleep(time));
    let end = async move {
        match over {
            None => stop.raised().await,
            Some(over) => tokio::select! {
                () = stop.raised() => {}
                () = over => {}
            },
        }
    };
    let lines = lines.take_while(move |_| std::future::ready(may_still()));
    let lines = lines.take_until(Box::pin(end)).map(move |line| {
        // Held until the body is dropped.
        let _ = &ticket;
        Ok::<_, Infallible>(line)
    });
    let mut response = Response::new(Body::from_stream(lines));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// What stood at the beginning comes from the store some hundred objects at a time. They count as their peer's until all of them
/// are told, and are told in smaller lines.
fn split_initial(call: &Call<'_>, events: Stream) -> Stream {
    let (shared, peer) = (call.shared.clone(), call.peer.clone());
    let split = move |event: Result<Event, Error>| {
        let mut ticket = open(&shared, &peer);
        let pieces: Vec<Result<Event, Error>> = match event {
            Ok(Event::Initial(objects)) => {
                let bytes = objects.iter().map(|object| object.json.len()).sum();
                match ticket.grow(bytes, shared.limits.bytes_per_peer) {
                    true => objects.chunks(OBJECTS_A_LINE).map(|some| Ok(Event::Initial(some.to_vec()))).collect(),
                    false => vec![Err(Error::Unavailable { detail: too_much(&shared, &peer).to_string() })],
                }
            }
            other => vec![other],
        };
        stream::iter(pieces.into_iter().inspect(move |_| _ = &ticket))
    };
    until_error(events.flat_map(split).boxed())
}

/// Ends after the first error.
fn until_error(events: Stream) -> Stream {
    let after = |over: &mut bool, event: Result<Event, Error>| {
        let next = (!*over).then_some(event);
        *over |= matches!(next, Some(Err(_)));
        std::future::ready(next)
    };
    events.scan(false, after).boxed()
}

fn error_line(error: Error) -> Bytes {
    line("ERROR", &Problem::from(error).status())
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    line.into()
}

/// What a watch has been told so far.
struct Watcher {
    selection: Selection,
    form: Form,
    core: bool,
    bookmarks: bool,
    initial_events: bool,
    /// When the last line was made.
    told: Monotonic,
    seams: crate::seams::Seams,
}

impl Watcher {
    /// An event in Kubernetes' words; empty when there is nothing to tell.
    fn lines(&mut self, event: Event) -> Result<Bytes, Error> {
        let mut lines = Vec::new();
        match event {
            Event::Initial(objects) => {
                for object in objects {
                    lines.extend(self.object("ADDED", &object)?);
                }
            }
            Event::InitialDone { resource_version, .. } => {
                if self.bookmarks {
                    let annotations = match self.initial_events {
                        true => json!({INITIAL_EVENTS_END: "true"}),
                        false => json!({}),
                    };
                    lines.extend(self.bookmark(resource_version, annotations));
                }
            }
            Event::Batch { resource_version, changes, .. } if changes.is_empty() => {
                let now = self.seams.monotonic();
                if self.bookmarks && now.since(self.told) >= BOOKMARKS {
                    lines.extend(self.bookmark(resource_version, json!({})));
                }
            }
            Event::Batch { resource_version, changes, .. } => {
                for change in changes {
                    lines.extend(self.change(change, resource_version)?);
                }
            }
        }
        if !lines.is_empty() {
            self.told = self.seams.monotonic();
        }
        Ok(lines.into())
    }

    fn change(&self, change: Change, version: ResourceVersion) -> Result<Bytes, Error> {
        match change {
            Change::Put { object, previous } => {
                let known = previous.is_some_and(|previous| self.selection.matches(&previous));
                self.object(if known { "MODIFIED" } else { "ADDED" }, &object)
            }
            // The version is that of the deletion, so that a watch that goes on after it does not hear of it again.
            Change::Gone { last: Some(mut last), .. } => {
                last.resource_version = version;
                self.object("DELETED", &last)
            }
            Change::Gone { kind, reference, last: None } => {
                let mut object = self.envelope(&kind, version);
                object["metadata"]["name"] = reference.name.into();
                if !reference.namespace.is_empty() {
                    object["metadata"]["namespace"] = reference.namespace.into();
                }
                Ok(line("DELETED", &self.formed(object, version)))
            }
        }
    }

    fn object(&self, kind: &str, stored: &Stored) -> Result<Bytes, Error> {
        Ok(line(kind, &self.formed(dressed(stored, self.core)?, stored.resource_version)))
    }

    fn formed(&self, object: Value, version: ResourceVersion) -> Value {
        match self.form {
            Form::Objects => object,
            Form::Table => {
                let meta = json!({"resourceVersion": version});
                table::table(&self.selection.kind, &[object], meta, self.seams.now())
            }
        }
    }

    fn bookmark(&self, version: ResourceVersion, annotations: Value) -> Bytes {
        let mut object = self.envelope(&self.selection.kind, version);
        object["metadata"]["annotations"] = annotations;
        line("BOOKMARK", &object)
    }

    fn envelope(&self, kind: &Kind, version: ResourceVersion) -> Value {
        json!({
            "apiVersion": api_version(kind, self.core), "kind": kind.kind,
            "metadata": {"resourceVersion": version, "creationTimestamp": null},
        })
    }
}
