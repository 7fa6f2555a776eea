//! How routes beside objects refuse: in Kubernetes' form, as the routes of objects do.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use futures::StreamExt;
use reconciler::objects::Error;
use reconciler::seams::Seams;
use reconciler::server::{Access, Ask, CountedAs, Peer, Reason, Tally, Ticket};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::task::Task;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::rights::Rights;

/// A Status as Kubernetes has it.
#[derive(Debug)]
pub struct Refusal(pub StatusCode, pub String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal(code, message) = self;
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "message": message,
            "reason": code.canonical_reason().unwrap_or("Unknown").replace(' ', ""),
        });
        let mut response = (code, Json(body)).into_response();
        if code == StatusCode::FORBIDDEN {
            response.extensions_mut().insert(Reason(message.into()));
        }
        response
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        refusal.into_response()
    }
}

impl Refusal {
    /// Counted under another word than its code's.
    pub fn counted_as(self, word: &'static str) -> Response {
        let mut response = self.into_response();
        response.extensions_mut().insert(CountedAs(word));
        response
    }
}

/// What a request says in JSON, where that is short and comes at once: whoever asks is let in without having shown who it is,
/// or is held to it by nothing else.
pub struct Short<T>(pub T);

/// A request for a certificate has a thousand.
const SHORT_BYTES: usize = 64 << 10;
const SHORT_TIME: Duration = Duration::from_secs(10);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Short<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let read = axum::body::to_bytes(request.into_body(), SHORT_BYTES);
        let read = tokio::select! {
            read = read => read,
            () = Seams::real().sleep(SHORT_TIME) => {
                let why = format!("the body did not come within {SHORT_TIME:?}");
                return Err(Refusal(StatusCode::REQUEST_TIMEOUT, why));
            }
        };
        let bytes = read.map_err(|error| {
            let why = format!("the body, of at most {SHORT_BYTES} bytes here, cannot be read: {error}");
            Refusal(StatusCode::PAYLOAD_TOO_LARGE, why)
        })?;
        serde_json::from_slice(&bytes)
            .map(Short)
            .map_err(|error| bad(format!("the body cannot be understood: {error}")))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let code = if error.is_not_found() { StatusCode::NOT_FOUND } else { StatusCode::SERVICE_UNAVAILABLE };
        Refusal(code, error.to_string())
    }
}

/// What another machine has said with a [`Refusal`] of this code: its own words come with the number of the answer.
pub fn refused_with(error: &Error, code: StatusCode) -> Option<&str> {
    let Error::Unavailable { detail } = error else { return None };
    detail.strip_prefix(code.as_str())?.strip_prefix(": ")
}

pub fn bad(error: impl ToString) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, error.to_string())
}

/// Routes that are there to say why they are not.
pub fn refused<S: Clone + Send + Sync + 'static>(paths: &[&str], why: String) -> Router<S> {
    paths.iter().fold(Router::new(), |router, path| {
        let why = why.clone();
        router.route(path, any(async move || Refusal(StatusCode::FORBIDDEN, why.clone())))
    })
}

/// A layer around all of a manager's routes beside objects, so that none can be added without it. What tasks print and
/// commands in them are by who has the right to, and only as long as they have; the rest stands for no object's verb, and
/// is for administrators.
pub async fn permitted(State(gate): State<Gate>, mut request: Request, next: Next) -> Result<Response, Refusal> {
    let rights = gate.rights;
    let nobody = || Refusal(StatusCode::FORBIDDEN, "who asks is not known".to_owned());
    let peer = request.extensions().get::<Peer>().cloned().ok_or_else(nobody)?;
    let (of_task, trusted, identity) = (of_task(request.uri().path()), peer.trusted, peer.identity.clone());
    let is_of_task = of_task.is_some();
    let may = move |rights: &Rights| match &of_task {
        // Machines read tasks, and not what these print.
        _ if !peer.trusted && !peer.identity.starts_with("user:") => {
            Err("only administrators and people may".to_owned())
        }
        Some((reference, subresource, verb)) => {
            rights.allow(&peer, &Ask { verb, kind: Task::kind(), reference, subresource })
        }
        None => rights.is_administrator(&peer),
    };
    may(&rights).map_err(|why| Refusal(StatusCode::FORBIDDEN, why))?;
    // Nobody takes anything from root.
    if trusted {
        return Ok(next.run(request).await);
    }
    // They go on for as long as whoever asked likes, here and on the task's machine.
    let ticket = match is_of_task {
        true => match gate.open.enter(&identity, OPEN_MAX) {
            Some(ticket) => Some(ticket),
            None => return Ok(too_many(&identity).counted_as("logs_and_exec")),
        },
        false => None,
    };
    let while_allowed = WhileAllowed::begin(rights, ticket, move |rights| may(rights).is_ok());
    request.extensions_mut().insert(while_allowed.clone());
    let response = next.run(request).await;
    // A connection that became something else minds it itself.
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    Ok(response.map(|body| {
        let over = while_allowed.over.clone();
        let data = body.into_data_stream().take_until(over.cancelled_owned());
        Body::from_stream(data.inspect(move |_| _ = &while_allowed))
    }))
}

/// Logs and commands of one person at once: of as many tasks as anybody looks at, and less than their connections.
const OPEN_MAX: usize = 64;

fn too_many(identity: &str) -> Refusal {
    let why = format!(
        "{identity} has {OPEN_MAX} logs and commands open already: end some of them (applyctl logs -f, applyctl exec), and try again"
    );
    Refusal(StatusCode::TOO_MANY_REQUESTS, why)
}

/// Who may, and what each has open of what goes on.
#[derive(Clone)]
pub struct Gate {
    rights: Rights,
    open: Tally,
}

impl Gate {
    pub fn new(rights: Rights) -> Self {
        Self { rights, open: Tally::default() }
    }
}

/// Goes with what was allowed for as long as it goes on: the right to it is asked for again and again.
#[derive(Clone)]
pub struct WhileAllowed {
    over: CancellationToken,
    /// Gone with the last of these.
    _held: Arc<(DropGuard, Option<Ticket>)>,
}

/// How long somebody goes on who may no longer.
const ASKED_AGAIN: Duration = Duration::from_secs(1);

impl WhileAllowed {
    fn begin(rights: Rights, ticket: Option<Ticket>, may: impl Fn(&Rights) -> bool + Send + 'static) -> Self {
        let (over, unused) = (CancellationToken::new(), CancellationToken::new());
        let (ends, seams) = (over.clone(), rights.seams().clone());
        let held = Arc::new((unused.clone().drop_guard(), ticket));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = unused.cancelled() => return,
                    () = seams.sleep(ASKED_AGAIN) => {}
                }
                if !may(&rights) {
                    return ends.cancel();
                }
            }
        });
        Self { over, _held: held }
    }

    /// Does the work, or leaves off once it is no longer allowed. Where nobody was asked for leave, all of it.
    pub async fn of<T>(this: Option<Self>, work: impl Future<Output = T>) -> Option<T> {
        match this {
            Some(this) => this.over.run_until_cancelled(work).await,
            None => Some(work.await),
        }
    }
}

fn of_task(path: &str) -> Option<(ObjectRef, &'static str, &'static str)> {
    let rest = path.strip_prefix("/apis/apply/v1/namespaces/")?;
    let [namespace, "tasks", name, what] = rest.split('/').collect::<Vec<_>>()[..] else { return None };
    let (subresource, verb) = match what {
        "log" => ("log", "get"),
        "exec" => ("exec", "exec"),
        _ => return None,
    };
    Some((ObjectRef::new(namespace, name), subresource, verb))
}

/// The same on a machine that knows no people: for its administrator.
pub async fn trusted(request: Request, next: Next) -> Result<Response, Refusal> {
    match request.extensions().get::<Peer>() {
        Some(peer) if peer.trusted => Ok(next.run(request).await),
        _ => Err(Refusal(StatusCode::FORBIDDEN, "only the administrator of this machine may".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;

    #[test]
    fn a_path_is_a_tasks_only_if_it_is_one_whole() {
        let base = "/apis/apply/v1/namespaces/shop/tasks/web-1";
        assert_eq!(of_task(&format!("{base}/log")), Some((ObjectRef::new("shop", "web-1"), "log", "get")));
        assert_eq!(of_task(&format!("{base}/exec")), Some((ObjectRef::new("shop", "web-1"), "exec", "exec")));
        for other in
            [base.to_owned(), format!("{base}/log/x"), format!("{base}/status"), "/apis/apply/v1/backup".into()]
        {
            assert_eq!(of_task(&other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn whoever_is_not_known_to_be_trusted_is_refused() {
        let routes = Router::new().route("/x", get(async || "done")).layer(axum::middleware::from_fn(trusted));
        let service = TowerToHyperService::new(routes);
        for (peer, code) in [(None, 403), (Some(Peer::new("user:ann")), 403), (Some(Peer::trusted("root")), 200)] {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = "/x".parse().unwrap();
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            assert_eq!(service.call(request).await.unwrap().status(), code);
        }
    }
}
