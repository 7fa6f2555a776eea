//! How a worker goes of its own accord: it asks a manager, which empties the machine first and then takes its Node away.

use std::sync::Arc;

use anyhow::Result;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use hyper::Method;
use reconciler::cache::Cache;
use reconciler::objects::{Client, Error, Propagation, Remote, Write};
use reconciler::server::Peer;
use schemas::kinds::node::{Availability, Role};
use schemas::kinds::task::Task;
use serde::{Deserialize, Serialize};

use super::answer::Refusal;
use super::rights::member;

/// At a worker's own socket, which passes it on. At a manager's port: this machine wants to go.
pub const LEAVE: &str = "/apis/apply/v1/leave";

/// To be said again and again, until the machine is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// At once, whatever runs there.
    pub force: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Tasks that are still to be replaced elsewhere.
    pub tasks: usize,
    /// The machine is none of the cluster's any more.
    pub gone: bool,
}

/// What a manager needs to let machines go.
#[derive(Clone)]
pub struct Door {
    pub client: Client,
    /// Keeps Nodes and Tasks.
    pub cache: Cache,
}

/// At a manager's port.
pub fn routes(door: Door) -> Router {
    Router::new().route(LEAVE, post(let_go)).with_state(Arc::new(door))
}

async fn let_go(
    State(door): State<Arc<Door>>,
    Extension(peer): Extension<Peer>,
    Json(leave): Json<Leave>,
) -> Result<Json<Left>, Refusal> {
    let begun = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "this manager has only just begun; ask again".to_owned());
    let known = door.cache.snapshot().ok_or_else(begun)?;
    let node = member(&peer, &known).map_err(|why| Refusal(StatusCode::FORBIDDEN, why))?.clone();
    let name = node.metadata.name.clone();
    if node.spec.role == Role::Manager {
        return Err(Refusal(StatusCode::CONFLICT, format!("{name} is a manager")));
    }
    if !leave.force {
        if node.spec.availability != Availability::Drain {
            let mut desired = (*node).clone();
            desired.spec.availability = Availability::Drain;
            door.client.commit(vec![Write::update(&*node, &desired)]).await?;
        }
        let here = known.all::<Task>().filter(|task| task.spec.node_name.as_ref() == Some(&name));
        let lives = |task: &&Arc<Task>| task.status.as_ref().is_none_or(|status| !status.state.is_terminal());
        let tasks = here.filter(lives).count();
        // What was just said has not been acted on by anybody.
        if tasks > 0 || node.spec.availability != Availability::Drain {
            return Ok(Json(Left { tasks, gone: false }));
        }
    }
    door.client.delete(&*node, Propagation::Background).await?;
    tracing::info!(node = name, "a machine has left the cluster");
    Ok(Json(Left { tasks: 0, gone: true }))
}

/// At a worker's own socket.
pub fn of_worker(remote: Remote) -> Router {
    Router::new().route(LEAVE, post(pass_on)).with_state(remote)
}

async fn pass_on(State(remote): State<Remote>, Json(leave): Json<Leave>) -> Result<Json<Left>, Refusal> {
    let body = serde_json::to_vec(&leave).unwrap_or_default();
    let answered = match remote.call(Method::POST, LEAVE, Bytes::from(body)).await {
        Ok(answer) => answer.bytes().await,
        Err(error) => Err(error),
    };
    match answered {
        Ok(answer) => Ok(Json(serde_json::from_slice(&answer).map_err(|error| {
            Refusal(StatusCode::BAD_GATEWAY, format!("the manager's answer cannot be read: {error}"))
        })?)),
        // The answer to an earlier call was lost, or somebody else has taken it out: either way it is gone.
        Err(Error::Forbidden { .. }) => Ok(Json(Left { tasks: 0, gone: true })),
        Err(error) if error.is_conflict() => Err(Refusal(StatusCode::CONFLICT, error.to_string())),
        Err(error) => Err(error.into()),
    }
}
