//! A machine that is in no cluster yet: it listens at its socket alone, says so to whoever asks for anything, and waits to
//! be told to found a cluster or to join one.

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use controllers::kinds::kinds;
use reconciler::objects::StoreObjects;
use reconciler::seams::Seams;
use reconciler::server::{Access, Ask, Peer, Server, UnixSocket};
use reconciler::store::memory::Memory;
use schemas::level::VERSION;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::answer::{self, Refusal, Short, bad};
use super::backup::Places;
use super::joining::{self, Join};
use super::lock::{self, Passphrase};
use super::machine::node_name;
use super::membership::{Member, Membership};
use super::options::MachineOptions;
use super::{NO_CLUSTER, ROOT};

/// What came of waiting.
pub enum Told {
    /// To found a cluster.
    Found,
    /// It has joined one: the membership is on the disk.
    Joined(Member),
    /// To stop.
    Stop,
}

/// What a member answers beside objects.
const BESIDE: [&str; 6] = [
    "/apis/apply/v1/images",
    "/apis/apply/v1/images/{what}",
    "/apis/apply/v1/system/reset",
    "/apis/apply/v1/backup",
    "/apis/apply/v1/logins/check",
    "/apis/apply/v1/leave",
];

/// Nothing is anybody's to do here, for this reason.
#[derive(Debug)]
struct Refuses(String);

/// What every command is told.
fn what_to_do() -> String {
    format!("{NO_CLUSTER}. A new one: applyctl init. One that there is: applyctl join ADDRESS TOKEN")
}

impl Access for Refuses {
    fn allow(&self, _: &Peer, _: &Ask<'_>) -> Result<(), String> {
        Err(self.0.clone())
    }
}

/// The socket of a daemon that can serve no objects, and a server that says `why` whatever is asked for but `routes`.
///
/// # Errors
/// The socket cannot be had.
pub(super) async fn refusing(
    options: &MachineOptions,
    seams: &Seams,
    why: String,
    version: Value,
    routes: Router,
) -> Result<(Server, UnixSocket)> {
    let routes = routes.merge(answer::refused(&BESIDE, why.clone()));
    let objects = StoreObjects::open(Arc::new(Memory::new()), ROOT, kinds(), seams.clone()).await?;
    let server = Server::new(Arc::new(objects), kinds(), seams.clone())
        .access(Arc::new(Refuses(why.clone())))
        .version(version)
        .ready("cluster", move || Err(why.clone()))
        .merge(routes);
    let socket = options.socket();
    let listener = UnixSocket::bind(&socket).await.with_context(|| format!("cannot listen at {}", socket.display()))?;
    Ok((server, listener))
}

/// What `applyctl init` says.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Init {
    /// The key of secrets is locked by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<Passphrase>,
}

#[derive(Clone)]
struct Door {
    node: String,
    places: Places,
    membership: Membership,
    seams: Seams,
    tell: mpsc::Sender<Told>,
}

/// Waits to be told.
///
/// # Errors
/// The socket cannot be had.
pub async fn wait(options: &MachineOptions, seams: &Seams) -> Result<Told> {
    let (tell, mut told) = mpsc::channel(1);
    let membership = Membership::new(&options.data);
    let door = Door { node: node_name(options)?, places: options.places(), membership, seams: seams.clone(), tell };
    let routes = Router::new()
        .route(joining::INIT, post(init))
        .route(joining::JOIN, post(join))
        .layer(axum::middleware::from_fn(answer::trusted))
        .with_state(door);
    let version = json!({ "gitVersion": VERSION, "platform": "linux", "cluster": Value::Null });
    let (server, listener) = refusing(options, seams, what_to_do(), version, routes).await?;
    tracing::info!(socket = %options.socket().display(), version = VERSION, "applyd is up, in no cluster yet");
    let ended = async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let told = tokio::select! {
            _ = term.recv() => Told::Stop,
            _ = int.recv() => Told::Stop,
            told = told.recv() => told.unwrap_or(Told::Stop),
        };
        server.stop().raise();
        Ok(told)
    };
    super::say_to_systemd("READY=1");
    let ((), told) = tokio::join!(server.serve(listener), ended);
    told
}

async fn init(State(door): State<Door>, asked: Option<Json<Init>>) -> Result<(StatusCode, Json<Value>), Refusal> {
    let permit = door.tell.try_reserve().map_err(|_| under_way())?;
    if let Some(passphrase) = asked.and_then(|Json(init)| init.passphrase) {
        let places = door.places.clone();
        let locked = tokio::task::spawn_blocking(move || lock::found(&places, &passphrase)).await;
        locked.map_err(bad)?.map_err(|error| bad(format!("the key cannot be locked: {error:#}")))?;
    }
    permit.send(Told::Found);
    Ok((StatusCode::ACCEPTED, Json(json!({}))))
}

async fn join(State(door): State<Door>, Short(join): Short<Join>) -> Result<Json<Value>, Refusal> {
    let permit = door.tell.try_reserve().map_err(|_| under_way())?;
    let node = join.node.clone().unwrap_or_else(|| door.node.clone());
    let joined = joining::join(&join, &node, &door.membership, &door.seams).await;
    let (member, title) = joined.map_err(|failure| Refusal(failure.code, failure.message))?;
    let said = json!({"node": member.node, "role": member.role, "cluster": member.cluster, "title": title});
    permit.send(Told::Joined(member));
    Ok(Json(said))
}

fn under_way() -> Refusal {
    Refusal(StatusCode::CONFLICT, "this machine is told to found or to join a cluster already".to_owned())
}
