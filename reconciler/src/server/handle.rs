//! One request: what is asked, may the peer, what do the objects say, how is that written down.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use axum::middleware::{self, Next};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use reconciler_api::{Kind, ObjectRef, ResourceVersion, Scope, Uid};

use crate::objects::wire::{self, CommitAnswer, CommitRequest};
use crate::objects::{Error, PageRequest, Part, Patch, Precondition, Propagation, Selection, Stored, Write, Writer};
use crate::seams::Purpose;

use super::answer::{Problem, json_response, success, text_response};
use super::query::{self, Asked};
use super::route::{self, Place, Route};
use super::table::{self, Form};
use super::{Ask, CountedAs, Peer, Reason, Refused, Server, Shared, Ticket, discovery, openapi, watching};

/// How much of what was generated is random, as in Kubernetes.
const GENERATED_LETTERS: usize = 5;

impl Server {
    /// All routes. Requests must have a [`Peer`] among their extensions: [`Server::serve`] puts it there.
    pub fn router(&self) -> Router {
        let routes = Router::new().fallback(handle).with_state(self.shared.clone()).merge(self.extra.clone());
        routes.layer(middleware::from_fn_with_state(self.shared.clone(), around))
    }
}

/// Around every route, so that nobody has too much under way by whatever route, and no refusal goes by unseen.
async fn around(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response<Body> {
    let peer = request.extensions().get::<Peer>().cloned();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let response = bounded(&shared, peer.as_ref(), request, next).await;
    let reason = match response.extensions().get::<CountedAs>() {
        Some(CountedAs(word)) => Some(*word),
        None => word(response.status()),
    };
    if let Some(reason) = reason {
        shared.metrics.refused(reason);
    }
    if [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED].contains(&response.status()) {
        let reason = response.extensions().get::<Reason>().map_or("", |reason| &reason.0);
        (shared.refusals)(&Refused { peer: peer.as_ref(), method: &method, path: uri.path(), reason });
    }
    response
}

/// What a refusal is counted as whose route has no better word for it.
fn word(code: StatusCode) -> Option<&'static str> {
    Some(match code {
        StatusCode::UNAUTHORIZED => "unauthorized",
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::REQUEST_TIMEOUT => "slow_body",
        StatusCode::PAYLOAD_TOO_LARGE => "large_body",
        _ => return None,
    })
}

async fn bounded(shared: &Arc<Shared>, peer: Option<&Peer>, request: Request, next: Next) -> Response<Body> {
    let Some(peer) = peer else { return next.run(request).await };
    let (account, limits) = (peer.account(), &shared.limits);
    let Some(_under_way) = shared.requests.enter(&account, limits.requests_per_peer) else {
        shared.metrics.refused("requests");
        let most = limits.requests_per_peer;
        return Problem::too_many(format!("{account} has {most} requests under way already: wait for some"))
            .into_response();
    };
    let is_read = request.method().is_safe();
    let response = next.run(request).await;
    // What has happened is not told to have been refused.
    if !is_read {
        return response;
    }
    // A body whose size is known is in memory already, and stays there until it is taken.
    let size = response.body().size_hint().exact().and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
    if size < LARGE {
        return response;
    }
    let mut ticket = open(shared, peer);
    if !ticket.grow(size, limits.bytes_per_peer) {
        return too_much(shared, peer).into_response();
    }
    let (head, body) = response.into_parts();
    match axum::body::to_bytes(body, usize::MAX).await {
        Ok(bytes) => Response::from_parts(head, Body::from(Bytes::from_owner(Taken { bytes, ticket }))),
        Err(error) => Problem::bad_request(error.to_string()).into_response(),
    }
}

/// Smaller answers are not worth being counted: there are no more of them than connections and what these may have under way.
const LARGE: usize = 64 << 10;

/// Bytes that count as their peer's for as long as they are there.
pub(super) struct Taken<B> {
    bytes: B,
    ticket: Ticket,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Taken<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

pub(super) fn open(shared: &Shared, peer: &Peer) -> Ticket {
    shared.bytes.enter(&peer.account(), usize::MAX).expect("nobody has so many")
}

pub(super) fn too_much(shared: &Shared, peer: &Peer) -> Problem {
    shared.metrics.refused("bytes");
    let most = shared.limits.bytes_per_peer;
    Problem::too_many(format!(
        "{} has {most} bytes of requests and answers under way already: send less at once, and read what was answered",
        peer.identity
    ))
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let began = shared.seams.monotonic();
    let route = route::parse(request.uri().path());
    let (verb, what) = labels(route.as_ref(), &shared, request.method(), request.uri().query());
    let response = match answer(&shared, route, request).await {
        Ok(response) => response,
        Err(problem) => {
            tracing::debug!(verb, what, code = problem.code().as_u16(), %problem, "refused");
            problem.into_response()
        }
    };
    let took = shared.seams.monotonic().since(began);
    let labels = vec![("verb", verb.to_owned()), ("resource", what.clone())];
    shared.numbers.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    let labels = [labels, vec![("code", response.status().as_str().to_owned())]].concat();
    shared.numbers.requests.get_or_create(&labels).inc();
    response
}

/// What is counted: never what a peer made up, or it could make the numbers grow without end.
fn labels(route: Option<&Route>, shared: &Shared, method: &Method, query: Option<&str>) -> (&'static str, String) {
    let known = |at: &Place| match find_kind(shared, at) {
        Ok(kind) => kind.qualified(),
        Err(_) => "unknown".to_owned(),
    };
    let verb = match *method {
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    match route {
        Some(Route::Collection { at }) if verb == "get" => {
            let watch = query.is_some_and(|query| query.contains("watch=1") || query.contains("watch=true"));
            (if watch { "watch" } else { "list" }, known(at))
        }
        Some(Route::Collection { at } | Route::Object { at, .. }) => (verb, known(at)),
        Some(Route::Commits) => ("commit", "commits".into()),
        Some(Route::Stream) => ("stream", "stream".into()),
        Some(_) => (verb, "other".into()),
        None => (verb, "unknown".into()),
    }
}

async fn answer(shared: &Arc<Shared>, route: Option<Route>, request: Request) -> Result<Response<Body>, Problem> {
    let (parts, body) = request.into_parts();
    let route = route.ok_or_else(|| Problem::not_found(format!("nothing is served at {}", parts.uri.path())))?;
    if let Some(peer) = parts.extensions.get::<Peer>().filter(|_| !matches!(route, Route::Health)) {
        // Before anything of the body is read: who may nothing is not listened to for long.
        if let Err(message) = shared.access.allow_around(peer) {
            return Err(Problem::Request { code: StatusCode::FORBIDDEN, reason: "Forbidden", message });
        }
    }
    if let Some(answer) = open_to_all(shared, &route, &parts) {
        return answer;
    }
    let peer = parts.extensions.get::<Peer>().cloned().ok_or_else(|| Problem::Request {
        code: StatusCode::UNAUTHORIZED,
        reason: "Unauthorized",
        message: "it is not known who asks".into(),
    })?;
    let asked = query::parse(&parts.uri)?;
    let core = matches!(&route, Route::Collection { at } | Route::Object { at, .. } if at.group.is_empty());
    let call = Call { shared, peer, asked, parts, core };
    match route {
        Route::Commits => call.commits(body).await,
        Route::Stream => call.stream().await,
        Route::Collection { at } => call.collection(at, body).await,
        Route::Object { at, name, subresource } => call.object(at, name, &subresource, body).await,
        _ => Err(call.method_not_allowed()),
    }
}

/// What everybody may read whom the access lets. `None` for everything else.
fn open_to_all(shared: &Shared, route: &Route, parts: &Parts) -> Option<Result<Response<Body>, Problem>> {
    if parts.method != Method::GET {
        return None;
    }
    let found = |value: Option<Value>| match value {
        Some(value) => Ok(json_response(StatusCode::OK, &value)),
        None => Err(Problem::not_found(format!("no kind is served at {}", parts.uri.path()))),
    };
    let kinds = &shared.kinds;
    Some(match route {
        Route::Health => Ok(text_response(StatusCode::OK, "text/plain", "ok".into())),
        Route::Ready => Ok(ready(shared)),
        Route::Version => found(Some(shared.version.clone())),
        Route::Core => found(Some(discovery::core(&shared.core))),
        Route::CoreResources => found(discovery::core_resources(&shared.core)),
        Route::Groups => found(Some(discovery::groups(kinds))),
        Route::Group(group) => found(discovery::group(kinds, group)),
        Route::Resources { group, version } => found(discovery::resources(kinds, group, version)),
        Route::OpenApi2 => Ok(openapi2(&parts.headers)),
        Route::OpenApi => found(Some(openapi::index(kinds, &shared.core))),
        Route::OpenApiOf { group, version } => found(openapi::document(kinds, &shared.core, group, version)),
        Route::Metrics => {
            Ok(text_response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", shared.metrics.text()))
        }
        _ => return None,
    })
}

/// A document without content. kubectl asks for it before it sends a `List`, to check the items by it, and leaves to the
/// server what it does not find there.
fn openapi2(headers: &HeaderMap) -> Response<Body> {
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match accept.contains("protobuf") {
        // The message of that type whose fields are all absent.
        true => text_response(StatusCode::OK, PROTOBUF, String::new()),
        false => json_response(
            StatusCode::OK,
            &json!({"swagger": "2.0", "info": {"title": "see /openapi/v3", "version": "1"}, "paths": {}}),
        ),
    }
}

/// Every check by name, the failing ones with the reason.
fn ready(shared: &Shared) -> Response<Body> {
    let mut code = StatusCode::OK;
    let mut text = String::new();
    for (name, check) in &shared.ready {
        match check() {
            Ok(()) => text += &format!("[+]{name} ok\n"),
            Err(reason) => {
                code = StatusCode::SERVICE_UNAVAILABLE;
                text += &format!("[-]{name} failed: {reason}\n");
            }
        }
    }
    text += if code == StatusCode::OK { "ready\n" } else { "not ready\n" };
    text_response(code, "text/plain", text)
}

pub(super) fn find_kind(shared: &Shared, at: &Place) -> Result<Arc<Kind>, Error> {
    if at.group.is_empty() {
        let core = shared.core.iter().find(|kind| kind.plural == at.plural);
        return core.cloned().ok_or_else(|| Error::UnknownKind { name: at.plural.clone() });
    }
    let name = format!("{}.{}", at.plural, at.group);
    let kind = shared.kinds.kind(&name)?;
    match kind.version == at.version {
        true => Ok(kind),
        false => Err(Error::UnknownKind { name: format!("{name} in version {}", at.version) }),
    }
}

const CORE_VERSION: &str = "v1";

/// The `apiVersion` that a client asked for.
pub(super) fn api_version(kind: &Kind, core: bool) -> String {
    if core { CORE_VERSION.to_owned() } else { kind.api_version() }
}

/// The object in the version that a client asked for.
pub(super) fn dressed(stored: &Stored, core: bool) -> Result<Value, Error> {
    let mut object = stored.to_value()?;
    if core {
        object["apiVersion"] = CORE_VERSION.into();
    }
    Ok(object)
}

/// One request by one peer.
pub(super) struct Call<'a> {
    pub shared: &'a Arc<Shared>,
    pub peer: Peer,
    pub asked: Asked,
    pub parts: Parts,
    /// It came by `/api/v1`.
    pub core: bool,
}

impl Call<'_> {
    async fn collection(self, at: Place, body: Body) -> Result<Response<Body>, Problem> {
        let kind = find_kind(self.shared, &at)?;
        if at.namespace.is_some() && kind.scope == Scope::Cluster {
            return Err(Problem::not_found(format!("{} objects have no namespace", kind.kind)));
        }
        match self.parts.method {
            Method::GET => {
                let verb = if self.asked.watch { "watch" } else { "list" };
                self.allow(verb, &kind, &ObjectRef::new(at.namespace.as_deref().unwrap_or_default(), ""), "")?;
                let selection = Selection {
                    kind,
                    namespace: at.namespace,
                    labels: self.asked.labels.clone(),
                    fields: self.asked.fields.clone(),
                };
                if self.asked.watch { watching::watch(self, selection).await } else { self.list(selection).await }
            }
            Method::POST => {
                let body = self.body(body).await?;
                self.create(kind, at.namespace, &body.bytes).await
            }
            _ => Err(self.method_not_allowed()),
        }
    }

    async fn list(self, selection: Selection) -> Result<Response<Body>, Problem> {
        let page = PageRequest { limit: self.asked.limit, from: self.asked.from.clone() };
        let list = self.shared.objects.list(&selection, page).await?;
        let items = list.items.iter().map(|stored| dressed(stored, self.core)).collect::<Result<Vec<_>, _>>()?;
        let mut meta = json!({"resourceVersion": list.resource_version, "epoch": list.epoch.0});
        if let Some(next) = &list.next {
            meta["continue"] = wire::write_continue(next).into();
        }
        let kind = &selection.kind;
        let value = match self.form() {
            Form::Table => table::table(kind, &items, meta, self.shared.seams.now()),
            Form::Objects => json!({
                "kind": format!("{}List", kind.kind), "apiVersion": api_version(kind, self.core), "metadata": meta,
                "items": items,
            }),
        };
        Ok(json_response(StatusCode::OK, &value))
    }

    async fn create(self, kind: Arc<Kind>, namespace: Option<String>, body: &[u8]) -> Result<Response<Body>, Problem> {
        self.expect_json()?;
        let mut object = read_json(body)?;
        self.complete(&kind, namespace.as_deref(), &mut object)?;
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let reference = ObjectRef::new(text("namespace"), text("name"));
        self.allow("create", &kind, &reference, "")?;
        let (stored, _) = self.write(Write::Create { kind: kind.clone(), object }).await?;
        self.one(&kind, &stored, StatusCode::CREATED)
    }

    /// Fills in what the path says, and a generated name.
    fn complete(&self, kind: &Kind, namespace: Option<&str>, object: &mut Value) -> Result<(), Problem> {
        self.undress(kind, object);
        let Some(fields) = object.as_object_mut() else {
            return Err(Problem::bad_request("an object is a JSON object"));
        };
        let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
        let Some(metadata) = metadata.as_object_mut() else {
            return Err(Problem::bad_request("metadata is a JSON object"));
        };
        match (namespace, metadata.get("namespace").and_then(Value::as_str).filter(|said| !said.is_empty())) {
            (Some(path), Some(said)) if path != said => {
                return Err(Problem::bad_request(format!("the object says namespace {said:?}, the path {path:?}")));
            }
            (Some(path), _) => drop(metadata.insert("namespace".into(), path.into())),
            (None, _) => {}
        }
        let unnamed = metadata.get("name").and_then(Value::as_str).is_none_or(str::is_empty);
        if let (true, Some(prefix)) = (unnamed, metadata.remove("generateName")) {
            let prefix = prefix.as_str().unwrap_or_default();
            metadata.insert("name".into(), format!("{prefix}{}", self.random_letters()).into());
        }
        if kind.scope == Scope::Cluster && metadata.get("namespace").is_some_and(|said| said == "") {
            metadata.remove("namespace");
        }
        Ok(())
    }

    /// Takes Kubernetes' name for a kind's version back.
    fn undress(&self, kind: &Kind, object: &mut Value) {
        if self.core && object["apiVersion"] == CORE_VERSION {
            object["apiVersion"] = kind.api_version().into();
        }
    }

    /// No vowels, nor what looks like one: no words come about.
    fn random_letters(&self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let random = self.shared.seams.random.next(Purpose::Identity);
        let letter = |n: usize| char::from(LETTERS[(random >> (8 * n)) as usize % LETTERS.len()]);
        (0..GENERATED_LETTERS).map(letter).collect()
    }

    async fn object(self, at: Place, name: String, subresource: &str, body: Body) -> Result<Response<Body>, Problem> {
        let kind = find_kind(self.shared, &at)?;
        if at.namespace.is_some() != (kind.scope == Scope::Namespaced) {
            let belongs = if at.namespace.is_some() { "have no namespace" } else { "belong to a namespace" };
            return Err(Problem::not_found(format!("{} objects {belongs}", kind.kind)));
        }
        let entry = self.shared.kinds.get(&kind.qualified())?;
        let reference = ObjectRef { namespace: at.namespace.unwrap_or_default(), name };
        let part = match (subresource, &entry.scale) {
            ("", _) => Part::Main,
            ("status", _) if entry.status => Part::Status,
            ("scale", Some(scale)) => return super::scale::scale(self, &kind, scale, reference, body).await,
            (other, _) => return Err(Problem::not_found(format!("{} objects have no {other:?}", kind.kind))),
        };
        let verb = match self.parts.method {
            Method::GET => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if part == Part::Main => "delete",
            _ => return Err(self.method_not_allowed()),
        };
        self.allow(verb, &kind, &reference, subresource)?;
        if verb == "get" {
            let stored = self.shared.objects.get(&kind, &reference).await?;
            return self.one(&kind, &stored, StatusCode::OK);
        }
        let body = self.body(body).await?;
        match verb {
            "delete" => self.delete(kind, reference, &body.bytes).await,
            _ => self.update(kind, reference, part, &body.bytes).await,
        }
    }

    async fn update(
        self,
        kind: Arc<Kind>,
        reference: ObjectRef,
        part: Part,
        body: &[u8],
    ) -> Result<Response<Body>, Problem> {
        let (patch, seen) = if self.parts.method == Method::PUT {
            self.expect_json()?;
            let mut whole = read_json(body)?;
            self.undress(&kind, &mut whole);
            let named = whole["metadata"]["name"].as_str();
            if named.is_some_and(|named| named != reference.name) {
                return Err(Problem::bad_request(format!(
                    "the object is named {named:?}, the path {:?}",
                    reference.name
                )));
            }
            (Patch::Replace(whole.clone()), whole)
        } else {
            match self.content_type() {
                "application/merge-patch+json" => {
                    let patch = read_json(body)?;
                    (Patch::Merge(patch.clone()), patch)
                }
                "application/json-patch+json" => {
                    let patch = serde_json::from_slice(body)
                        .map_err(|error| Problem::bad_request(format!("it is no JSON patch: {error}")))?;
                    (Patch::Json(patch), Value::Null)
                }
                other => return Err(unsupported(other, "application/merge-patch+json or application/json-patch+json")),
            }
        };
        let precondition = seen_in(&seen)?;
        let write = Write::Update { kind: kind.clone(), reference, part, patch, precondition };
        let (stored, _) = self.write(write).await?;
        self.one(&kind, &stored, StatusCode::OK)
    }

    async fn delete(self, kind: Arc<Kind>, reference: ObjectRef, body: &[u8]) -> Result<Response<Body>, Problem> {
        let options = DeleteOptions::read(body)?;
        let propagation = match &options.propagation_policy {
            Some(word) => Some(query::propagation(word).ok_or_else(|| {
                Problem::bad_request(format!("propagationPolicy {word:?}: expected {}", query::PROPAGATIONS))
            })?),
            None if options.orphan_dependents == Some(true) => Some(Propagation::Orphan),
            None => self.asked.propagation,
        };
        let write = Write::Delete {
            kind: kind.clone(),
            reference: reference.clone(),
            precondition: Precondition {
                uid: options.preconditions.uid,
                resource_version: options.preconditions.resource_version,
            },
            propagation: propagation.unwrap_or_default(),
        };
        let dry_run = self.asked.dry_run || options.dry_run.iter().any(|word| word == "All");
        let (stored, value) = self.write_as(write, dry_run).await?;
        // Still there, waiting for its finalizers: Kubernetes answers with the object.
        if value["metadata"].get("deletionTimestamp").is_some() {
            return self.one(&kind, &stored, StatusCode::OK);
        }
        let details = json!({
            "name": reference.name, "group": kind.group, "kind": kind.plural, "uid": value["metadata"]["uid"],
        });
        Ok(json_response(StatusCode::OK, &success(details)))
    }

    pub async fn write(&self, write: Write) -> Result<(Stored, Value), Problem> {
        self.write_as(write, self.asked.dry_run).await
    }

    async fn write_as(&self, write: Write, dry_run: bool) -> Result<(Stored, Value), Problem> {
        let mut writer = Writer::new(&*self.peer.identity, self.manager());
        writer.dry_run = dry_run;
        let committed = self.shared.objects.commit(&writer, vec![write]).await?;
        let stored = committed.outcomes.into_iter().find_map(|outcome| outcome.object);
        let stored = stored.ok_or_else(|| Error::UnknownOutcome { detail: "the answer names no object".into() })?;
        let value = stored.to_value()?;
        Ok((stored, value))
    }

    async fn commits(self, body: Body) -> Result<Response<Body>, Problem> {
        if self.parts.method != Method::POST {
            return Err(self.method_not_allowed());
        }
        let body = self.body(body).await?;
        let request: CommitRequest = serde_json::from_slice(&body.bytes)
            .map_err(|error| Problem::bad_request(format!("it is no list of writes: {error}")))?;
        let identity = match self.peer.trusted {
            true => request.identity.clone(),
            false => self.peer.identity.to_string(),
        };
        let find = |name: &str| self.shared.kinds.kind(name);
        let (writer, writes) = request.open(&identity, &find)?;
        for write in &writes {
            self.allow_write(write)?;
        }
        let committed = self.shared.objects.commit(&writer, writes).await?;
        let answer = serde_json::to_vec(&CommitAnswer::new(committed)?).expect("strings, numbers and JSON");
        let mut response = Response::new(Body::from(answer));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        Ok(response)
    }

    fn allow_write(&self, write: &Write) -> Result<(), Problem> {
        match write {
            Write::Create { kind, object } => {
                let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
                self.allow("create", kind, &ObjectRef::new(text("namespace"), text("name")), "")
            }
            Write::Update { kind, reference, part, patch, .. } => {
                let verb = if matches!(patch, Patch::Replace(_)) { "update" } else { "patch" };
                self.allow(verb, kind, reference, if *part == Part::Status { "status" } else { "" })
            }
            Write::Delete { kind, reference, .. } => self.allow("delete", kind, reference, ""),
            // It tells whether something is there and has changed: no more than reading does.
            Write::Check { kind, reference, .. } => self.allow("get", kind, reference, ""),
        }
    }

    async fn stream(self) -> Result<Response<Body>, Problem> {
        if self.parts.method != Method::GET {
            return Err(self.method_not_allowed());
        }
        watching::stream(self).await
    }

    pub fn allow(&self, verb: &str, kind: &Kind, reference: &ObjectRef, subresource: &str) -> Result<(), Problem> {
        let ask = Ask { verb, kind, reference, subresource };
        self.shared.access.allow(&self.peer, &ask).map_err(|detail| {
            Problem::from(Error::Forbidden {
                identity: self.peer.identity.to_string(),
                verb: verb.to_owned(),
                kind: kind.kind.to_string(),
                reference: reference.clone(),
                detail,
            })
        })
    }

    pub fn form(&self) -> Form {
        table::wanted(&self.parts.headers)
    }

    fn one(&self, kind: &Kind, stored: &Stored, code: StatusCode) -> Result<Response<Body>, Problem> {
        let object = dressed(stored, self.core)?;
        let value = match self.form() {
            Form::Objects => object,
            Form::Table => {
                let meta = json!({"resourceVersion": stored.resource_version});
                table::table(kind, &[object], meta, self.shared.seams.now())
            }
        };
        Ok(json_response(code, &value))
    }

    /// The field manager: as said, or the name of the program.
    fn manager(&self) -> String {
        let program = || {
            let agent = self.parts.headers.get(header::USER_AGENT)?.to_str().ok()?;
            Some(agent.split('/').next().unwrap_or(agent).to_owned())
        };
        self.asked.field_manager.clone().or_else(program).unwrap_or_else(|| "unknown".into())
    }

    pub fn content_type(&self) -> &str {
        content_type(&self.parts.headers)
    }

    pub fn expect_json(&self) -> Result<(), Problem> {
        match self.content_type() {
            "" | "application/json" => Ok(()),
            other => Err(unsupported(other, "application/json")),
        }
    }

    pub async fn body(&self, body: Body) -> Result<Taken<Vec<u8>>, Problem> {
        let limits = &self.shared.limits;
        let mut taken = Taken { bytes: Vec::new(), ticket: open(self.shared, &self.peer) };
        let mut pieces = body.into_data_stream();
        let read = async {
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|error| Problem::bad_request(format!("the body broke off: {error}")))?;
                if taken.bytes.len() + piece.len() > limits.body_bytes {
                    let detail = format!("a body has at most {} bytes", limits.body_bytes);
                    return Err(Problem::from(Error::TooLarge { detail }));
                }
                if !taken.ticket.grow(piece.len(), limits.bytes_per_peer) {
                    return Err(too_much(self.shared, &self.peer));
                }
                taken.bytes.extend_from_slice(&piece);
            }
            Ok(())
        };
        let read = tokio::select! {
            biased;
            read = read => read,
            () = self.shared.seams.sleep(limits.body_time) => Err(Problem::Request {
                code: StatusCode::REQUEST_TIMEOUT,
                reason: "Timeout",
                message: format!("the body did not come within {:?}", limits.body_time),
            }),
        };
        read.map(|()| taken)
    }

    pub fn method_not_allowed(&self) -> Problem {
        Problem::Request {
            code: StatusCode::METHOD_NOT_ALLOWED,
            reason: "MethodNotAllowed",
            message: format!("{} is not served at {}", self.parts.method, self.parts.uri.path()),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeleteOptions {
    propagation_policy: Option<String>,
    orphan_dependents: Option<bool>,
    preconditions: Preconditions,
    dry_run: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<Uid>,
    resource_version: Option<ResourceVersion>,
}

impl DeleteOptions {
    fn read(body: &[u8]) -> Result<Self, Problem> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(body)
            .map_err(|error| Problem::bad_request(format!("these are no DeleteOptions: {error}")))
    }
}

/// The version that the writer says it saw; saying nothing means any.
pub(super) fn seen_in(object: &Value) -> Result<Precondition, Problem> {
    let metadata = &object["metadata"];
    let resource_version = match metadata["resourceVersion"].as_str().filter(|text| !text.is_empty()) {
        Some(text) => Some(text.parse().map_err(|_| {
            Problem::bad_request(format!("metadata.resourceVersion {text:?} is not a decimal number in quotes"))
        })?),
        None => None,
    };
    let uid = metadata["uid"].as_str().filter(|uid| !uid.is_empty()).map(Uid::new);
    Ok(Precondition { uid, resource_version })
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

pub(super) fn unsupported(said: &str, expected: &str) -> Problem {
    Problem::Request {
        code: StatusCode::UNSUPPORTED_MEDIA_TYPE,
        reason: "UnsupportedMediaType",
        message: format!("content type {said:?} is not taken here: expected {expected}"),
    }
}

pub(super) fn read_json(body: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::bad_request(format!("the body is no JSON: {error}")))
}
