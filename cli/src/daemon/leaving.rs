//! How a worker goes of its own accord: it asks a manager, which empties the machine first and then takes its Node away.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use hyper::Method;
use reconciler::ObjectRef;
use reconciler::cache::{Cache, Snapshot};
use reconciler::objects::{Client, Error, Propagation, Remote, Write};
use reconciler::server::Peer;
use schemas::kinds::node::{Availability, Node, Role};
use schemas::kinds::service::Service;
use schemas::kinds::task::{Slot, Task, TaskState};
use schemas::kinds::volume::Volume;
use serde::{Deserialize, Serialize};

use super::answer::{Refusal, Short, refused_with};

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
    Short(leave): Short<Leave>,
) -> Result<Json<Left>, Refusal> {
    // Who comes to renew a certificate that has run out is told nothing, and may ask again with the next one.
    let name = peer.identity.strip_prefix("node:").ok_or_else(|| {
        Refusal(StatusCode::FORBIDDEN, "only a member of the cluster, by a certificate that holds, may".to_owned())
    })?;
    // From the store: whoever is told that it is gone removes all that it has.
    let node = door.client.find::<Node>(&ObjectRef::cluster(name)).await?;
    let Some(node) = node.filter(|node| node.metadata.uid.as_str() == &*peer.uid) else {
        return Ok(Json(Left { tasks: 0, gone: true }));
    };
    if node.spec.role == Role::Manager {
        return Err(Refusal(StatusCode::CONFLICT, format!("{name} is a manager")));
    }
    if !leave.force {
        let begun =
            || Refusal(StatusCode::SERVICE_UNAVAILABLE, "this manager has only just begun; ask again".to_owned());
        let known = door.cache.snapshot().ok_or_else(begun)?;
        let data = data_of(name, &known);
        if !data.is_empty() {
            let why = format!("the data of {} is on {name} alone", data.join(", "));
            return Err(Refusal(StatusCode::CONFLICT, why));
        }
        if node.spec.availability != Availability::Drain {
            let mut desired = node.clone();
            desired.spec.availability = Availability::Drain;
            door.client.commit(vec![Write::update(&node, &desired)]).await?;
        }
        let is_known = known.get::<Node>(&ObjectRef::cluster(name)).map(|node| node.spec.availability);
        let tasks = still_here(name, &known);
        // What was just said has not been acted on by anybody.
        if tasks > 0 || is_known != Some(Availability::Drain) {
            return Ok(Json(Left { tasks, gone: false }));
        }
    }
    door.client.delete(&node, Propagation::Background).await?;
    tracing::info!(node = name, "a machine has left the cluster");
    Ok(Json(Left { tasks: 0, gone: true }))
}

/// Named volumes whose data is there.
fn data_of(node: &str, known: &Snapshot) -> Vec<String> {
    let there = known.all::<Volume>().filter(|volume| volume.spec.node.as_deref() == Some(node));
    there.map(|volume| volume.metadata.name.clone()).collect()
}

/// How many tasks live on the machine, or were there last and run nowhere else yet.
fn still_here(node: &str, known: &Snapshot) -> usize {
    let is_here = |task: &Task| task.spec.node_name.as_deref() == Some(node);
    let state = |task: &Task| task.status.as_ref().map(|status| status.state).unwrap_or_default();
    let slot = |task: &Task| (task.metadata.namespace.clone(), task.spec.service.clone(), task.spec.slot.clone());
    let tasks = || known.all::<Task>();
    let running: BTreeSet<_> =
        tasks().filter(|task| !is_here(task) && state(task) == TaskState::Running).map(|task| slot(task)).collect();
    let is_wanted = |task: &Task| {
        let service = ObjectRef::new(&task.metadata.namespace, &task.spec.service);
        let Some(service) = known.get::<Service>(&service) else { return false };
        match task.spec.slot {
            Slot::Number(number) => number <= service.spec.replicas(),
            // Of a machine that goes, and of no other.
            _ => false,
        }
    };
    let counts = |task: &Task| match state(task).is_terminal() {
        false => true,
        true => is_wanted(task) && !running.contains(&slot(task)),
    };
    let slots: BTreeSet<_> = tasks().filter(|task| is_here(task) && counts(task)).map(|task| slot(task)).collect();
    slots.len()
}

/// At a worker's own socket.
pub fn of_worker(remote: Remote) -> Router {
    Router::new().route(LEAVE, post(pass_on)).with_state(remote)
}

async fn pass_on(State(remote): State<Remote>, Short(leave): Short<Leave>) -> Result<Json<Left>, Refusal> {
    let body = serde_json::to_vec(&leave).unwrap_or_default();
    let answered = match remote.call(Method::POST, LEAVE, Bytes::from(body)).await {
        Ok(answer) => answer.bytes().await,
        Err(error) => Err(error),
    };
    match answered {
        Ok(answer) => Ok(Json(serde_json::from_slice(&answer).map_err(|error| {
            Refusal(StatusCode::BAD_GATEWAY, format!("the manager's answer cannot be read: {error}"))
        })?)),
        Err(Error::Forbidden { detail, .. }) => Err(Refusal(StatusCode::CONFLICT, detail)),
        Err(error) if error.is_conflict() => Err(Refusal(StatusCode::CONFLICT, error.to_string())),
        Err(error) => match refused_with(&error, StatusCode::CONFLICT) {
            Some(why) => Err(Refusal(StatusCode::CONFLICT, why.to_owned())),
            None => Err(error.into()),
        },
    }
}
