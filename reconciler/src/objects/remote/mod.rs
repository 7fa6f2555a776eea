//! The verbs of a server elsewhere, over a unix socket or whatever else bytes go through.
//!
//! Nothing is kept here but idle connections: what a `Remote` answers is what the server said just now, and its errors
//! are the server's, variant by variant. A stream ends with its first error like any other; whoever follows it (the
//! cache does) begins again after the last version seen.
//!
//! Reading order: `mod` (the verbs), [`connection`] (places, connections and answers).

pub mod connection;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use hyper::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use reconciler_api::{Kind, ObjectRef, ResourceVersion, Scope};

use super::wire::{self, CommitAnswer, CommitRequest, ErrorForm, EventForm, SelectionForm};
use super::{Committed, Epoch, Error, List, Objects, PageRequest, Selection, Start, Stored, Stream, Write, Writer};
use connection::{Answer, Connections};

pub use connection::{Connect, Io, Unix};

use crate::metrics::Metrics;
use crate::seams::Seams;

/// [`Objects`] of a server elsewhere. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Remote {
    connections: Arc<Connections>,
}

/// Everything but what may stand in a path segment or a query value as it is.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Remote {
    /// A server that listens on a unix socket. Nothing is connected before the first call.
    pub fn unix(path: impl Into<std::path::PathBuf>, seams: Seams) -> Self {
        Self::new(Arc::new(Unix::new(path)), seams)
    }

    /// A server behind any kind of connection, encrypted or not.
    pub fn new(connect: Arc<dyn Connect>, seams: Seams) -> Self {
        Self { connections: Arc::new(Connections::new(connect, seams)) }
    }

    /// Counts requests into these numbers (`rest_client_requests_total`), from the first call of this on.
    pub fn count_in(&self, metrics: &Metrics) {
        self.connections.count_in(metrics);
    }

    /// Any other call: logs, metrics, a subresource of one's own. An answer that is a failure is the error.
    ///
    /// # Errors
    /// What the server answered; [`Error::Unavailable`], with the place and what to do, when there is none.
    pub async fn call(&self, method: Method, path_and_query: &str, body: Bytes) -> Result<Answer, Error> {
        let answer = self.connections.call(method, path_and_query, &[], body).await?;
        self.succeeded(answer).await
    }

    /// A call that becomes a connection of its own (`Connection: Upgrade`), in `protocol`: take it with
    /// [`Answer::upgraded`].
    pub async fn upgrade(&self, method: Method, path_and_query: &str, protocol: &str) -> Result<Answer, Error> {
        let headers = [("connection", "upgrade"), ("upgrade", protocol)];
        let answer = self.connections.call(method, path_and_query, &headers, Bytes::new()).await?;
        self.succeeded(answer).await
    }

    /// A connection of one's own, for what is unlike the other calls: bodies that stream, another protocol.
    pub async fn dial(&self) -> Result<Box<dyn Io>, Error> {
        self.connections.dial().await
    }

    /// The error that an answer of this code and body stands for, for who made the call over [`Remote::dial`].
    pub fn failed(code: u16, body: &[u8]) -> Error {
        failure(code, body)
    }

    async fn succeeded(&self, answer: Answer) -> Result<Answer, Error> {
        let code = answer.status();
        if code.is_success() || code.is_informational() {
            return Ok(answer);
        }
        let body = answer.bytes().await?;
        Err(failure(code.as_u16(), &body))
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let body = self.call(Method::GET, path, Bytes::new()).await?.bytes().await?;
        serde_json::from_slice(&body).map_err(|error| self.connections.strange(&error))
    }
}

/// The error that a failed answer stands for.
fn failure(code: u16, body: &[u8]) -> Error {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        message: String,
        details: Details,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Details {
        error: Option<ErrorForm>,
    }
    let status: Status = serde_json::from_slice(body).unwrap_or_default();
    match status.details.error {
        Some(error) => error.into(),
        // Not an answer of the objects layer: a limit of the server, or something between it and us.
        None => {
            let what = if status.message.is_empty() { "no reason was given" } else { &status.message };
            let detail = format!("{code}: {what}");
            match code {
                404 => Error::UnknownKind { name: what.to_owned() },
                413 => Error::TooLarge { detail },
                401 | 403 => Error::Forbidden {
                    identity: "the caller".into(),
                    verb: "call".into(),
                    kind: "server".into(),
                    reference: ObjectRef::default(),
                    detail,
                },
                400 | 405 | 415 | 422 => Error::Invalid {
                    kind: "request".into(),
                    reference: ObjectRef::default(),
                    faults: vec![reconciler_api::Fault::new("", what)],
                },
                _ => Error::Unavailable { detail },
            }
        }
    }
}

/// The path of a kind's objects, of one namespace or of all.
fn collection(kind: &Kind, namespace: Option<&str>) -> String {
    let (group, version, plural) = (escape(&kind.group), escape(&kind.version), escape(&kind.plural));
    match namespace.filter(|_| kind.scope == Scope::Namespaced) {
        Some(namespace) => format!("/apis/{group}/{version}/namespaces/{}/{plural}", escape(namespace)),
        None => format!("/apis/{group}/{version}/{plural}"),
    }
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// The object as [`Stored`] has it: its version beside it, not inside.
fn stored(kind: &Arc<Kind>, mut object: Value) -> Result<Stored, serde_json::Error> {
    let metadata = &mut object["metadata"];
    let version: ResourceVersion = serde_json::from_value(metadata["resourceVersion"].take())?;
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("resourceVersion");
    }
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let reference = ObjectRef { namespace: text("namespace"), name: text("name") };
    Ok(Stored::new(kind.clone(), reference, object.to_string().into(), version))
}

impl Objects for Remote {
    fn get<'a>(&'a self, kind: &'a Kind, reference: &'a ObjectRef) -> BoxFuture<'a, Result<Stored, Error>> {
        Box::pin(async move {
            if reference.name.is_empty() || (kind.scope == Scope::Namespaced && reference.namespace.is_empty()) {
                // Its path would be that of something else.
                return Err(Error::NotFound { kind: kind.kind.to_string(), reference: reference.clone() });
            }
            let path = format!("{}/{}", collection(kind, Some(&reference.namespace)), escape(&reference.name));
            let object = self.read(&path).await?;
            stored(&Arc::new(kind.clone()), object).map_err(|error| self.connections.strange(&error))
        })
    }

    fn list<'a>(&'a self, selection: &'a Selection, page: PageRequest) -> BoxFuture<'a, Result<List, Error>> {
        #[derive(Deserialize)]
        struct Page {
            metadata: PageMeta,
            items: Vec<Value>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct PageMeta {
            epoch: String,
            resource_version: ResourceVersion,
            #[serde(default)]
            r#continue: String,
        }
        Box::pin(async move {
            let mut path =
                format!("{}?limit={}", collection(&selection.kind, selection.namespace.as_deref()), page.limit);
            for (name, selector) in [("labelSelector", &selection.labels), ("fieldSelector", &selection.fields)] {
                if !selector.is_everything() {
                    path += &format!("&{name}={}", escape(&selector.to_string()));
                }
            }
            if let Some(from) = &page.from {
                path += &format!("&continue={}", escape(&wire::write_continue(from)));
            }
            let page: Page = self.read(&path).await?;
            let items = page.items.into_iter().map(|object| stored(&selection.kind, object));
            Ok(List {
                epoch: Epoch(page.metadata.epoch),
                resource_version: page.metadata.resource_version,
                items: items.collect::<Result<_, _>>().map_err(|error| self.connections.strange(&error))?,
                next: wire::read_continue(&page.metadata.r#continue),
            })
        })
    }

    fn stream(&self, selections: Vec<Selection>, start: Start) -> BoxFuture<'_, Result<Stream, Error>> {
        Box::pin(async move {
            let forms: Vec<_> = selections.iter().map(SelectionForm::new).collect();
            let forms = serde_json::to_string(&forms).expect("strings only");
            let mut path = format!("{}?selections={}", wire::STREAM, escape(&forms));
            if let Start::After { epoch, resource_version } = start {
                path += &format!("&epoch={}&resourceVersion={resource_version}", escape(&epoch.0));
            }
            let lines = self.call(Method::GET, &path, Bytes::new()).await?.lines();
            let kinds: Vec<Arc<Kind>> = selections.into_iter().map(|selection| selection.kind).collect();
            let connections = self.connections.clone();
            let events = stream::unfold(Some(lines), move |lines| {
                let (kinds, connections) = (kinds.clone(), connections.clone());
                async move {
                    let mut lines = lines?;
                    let event = match lines.next().await {
                        Ok(Some(line)) => match serde_json::from_slice::<EventForm>(&line) {
                            Ok(event) => event.open(&|name| find(&kinds, name)),
                            Err(error) => Err(connections.strange(&error)),
                        },
                        Ok(None) => Err(connections.unavailable("the stream was closed: the server is stopping")),
                        Err(error) => Err(error),
                    };
                    let rest = event.is_ok().then_some(lines);
                    Some((event, rest))
                }
            });
            Ok(events.boxed())
        })
    }

    fn commit<'a>(&'a self, writer: &'a Writer, writes: Vec<Write>) -> BoxFuture<'a, Result<Committed, Error>> {
        Box::pin(async move {
            let kinds: Vec<Arc<Kind>> = writes.iter().map(|write| write.kind().clone()).collect();
            let request = CommitRequest::new(writer, writes);
            let body = serde_json::to_vec(&request).expect("an object is JSON: string keys, no fallible serializers");
            let answer = self.connections.call(Method::POST, wire::COMMITS, &[], body.into()).await?;
            let code = answer.status();
            // It was committed, or not: who cannot read which must not say either.
            let unknown = |error: &dyn std::fmt::Display| Error::UnknownOutcome { detail: error.to_string() };
            let body = answer.bytes().await.map_err(|error| unknown(&error))?;
            if !code.is_success() {
                return Err(failure(code.as_u16(), &body));
            }
            let answer: CommitAnswer = serde_json::from_slice(&body).map_err(|error| unknown(&error))?;
            answer.open(&|name| find(&kinds, name)).map_err(|error| unknown(&error))
        })
    }
}

/// Answers speak only of kinds that were asked about.
fn find(kinds: &[Arc<Kind>], name: &str) -> Result<Arc<Kind>, Error> {
    let kind = kinds.iter().find(|kind| kind.qualified() == name);
    kind.cloned().ok_or_else(|| Error::UnknownKind { name: name.to_owned() })
}
