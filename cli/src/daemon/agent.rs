//! The stream between a machine and a manager: one way heartbeats, each answered with when the next shall come, and which
//! Endpoints are in effect on the machine, said as soon as it is so; the other way also that a manager wants to be called
//! back (`calls`). One frame a line, JSON. None of it is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use controllers::applied::{Applied, Reached};
use controllers::cluster::node::{Hearts, period};
use hyper::Method;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use reconciler::cache::{Cache, Snapshot};
use reconciler::objects::{Error, Remote};
use reconciler::seams::{Seams, TaskHandle};
use reconciler::server::Peer;
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster, ClusterPeriods};
use schemas::kinds::node::Node;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use super::answer::Refusal;
use super::calls::Calls;
use super::rights::member;
use crate::tls::{Keyring, Managers};

const AGENT: &str = "/apis/apply/v1/agent";
const CALLS: &str = "/apis/apply/v1/agent/calls";
const PROTOCOL: &str = "apply-agent/1";
/// HTTP, with the ends the other way round.
const CALL_PROTOCOL: &str = "apply-call/1";
/// To whom is removed.
const REMOVED: &str = "this machine was removed from the cluster; `applyctl system reset` ends what runs here, and then it \
    can join again";
/// Frames that may wait to be sent.
const WAITING: usize = 16;
/// A frame is some hundred bytes; a longer one is none.
const FRAME_BYTES: u64 = 4 << 10;
/// Before a stream that broke is begun anew: several of these fit into the patience of a manager.
const AGAIN: Duration = Duration::from_millis(100);
/// For the answer to a heartbeat, where the period is no longer.
const ANSWER: Duration = Duration::from_millis(500);

/// What a machine says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Frame {
    /// It is alive.
    #[serde(rename_all = "camelCase")]
    Beat {
        /// Counted up on each stream.
        seq: u64,
        boot_id: String,
    },
    /// All that Endpoints said at these versions is in effect there.
    Applied(Reached),
}

/// What a manager says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Order {
    /// To a heartbeat: how long after this one the next is awaited, and which line of history the manager's store is in.
    #[serde(rename_all = "camelCase")]
    Heard {
        period_ms: u64,
        #[serde(default)]
        line: u64,
        /// Which one that is: two may have begun theirs at the same place.
        #[serde(default)]
        epoch: String,
    },
    /// It wants to be called, under this number.
    Call(u64),
}

/// What machines say, for whoever acts on it.
#[derive(Clone, Default)]
pub struct Said {
    pub hearts: Hearts,
    pub applied: Applied,
    pub calls: Calls,
}

/// What a manager needs to listen to machines.
#[derive(Clone)]
pub struct Door {
    pub said: Said,
    /// Keeps Nodes and the Cluster object.
    pub cache: Cache,
    /// The store's line of history.
    pub line: u64,
    pub epoch: String,
    pub seams: Seams,
}

/// Who asks is looked at with each frame: a machine that is removed is not heard any more.
pub fn routes(door: Door) -> Router {
    let call = format!("{CALLS}/{{number}}");
    Router::new().route(AGENT, post(listen)).route(&call, post(called)).with_state(Arc::new(door))
}

async fn listen(
    State(door): State<Arc<Door>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Refusal> {
    let node = door.member(&peer)?;
    let (upgrade, response) = upgraded(request, PROTOCOL)?;
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let ended = door.hear(&node, &peer, TokioIo::new(upgraded)).await;
        tracing::debug!(node, ?ended, "a machine's stream has ended");
    });
    Ok(response)
}

async fn called(
    State(door): State<Arc<Door>>,
    Extension(peer): Extension<Peer>,
    Path(number): Path<u64>,
    request: Request,
) -> Result<Response, Refusal> {
    let node = door.member(&peer)?;
    let taken = door.said.calls.answered(&node, number);
    let taken =
        taken.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "nobody waits for this call any more".to_owned()))?;
    let (upgrade, response) = upgraded(request, CALL_PROTOCOL)?;
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            taken(upgraded);
        }
    });
    Ok(response)
}

/// The answer that agrees to another protocol, and the connection once it is sent.
fn upgraded(request: Request, protocol: &'static str) -> Result<(OnUpgrade, Response), Refusal> {
    let wants = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if wants != Some(protocol) {
        return Err(Refusal(StatusCode::BAD_REQUEST, format!("ask for an upgrade to {protocol}")));
    }
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, protocol)];
    Ok((hyper::upgrade::on(request), (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()))
}

impl Door {
    /// The machine's name.
    fn member(&self, peer: &Peer) -> Result<String, Refusal> {
        let known = self.cache.snapshot();
        let known = known.ok_or_else(|| Refusal(StatusCode::SERVICE_UNAVAILABLE, "only just begun".to_owned()))?;
        let node = member(peer, &known).map_err(|why| Refusal(StatusCode::FORBIDDEN, why))?;
        Ok(node.name().to_owned())
    }

    fn heard(&self) -> Order {
        let known = self.cache.snapshot();
        let nodes = known.as_ref().map_or(0, Snapshot::count::<Node>);
        let cluster = known.as_ref().and_then(|known| known.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)));
        let periods = cluster.map_or_else(ClusterPeriods::default, |cluster| cluster.spec.periods.clone());
        let period_ms = u64::try_from(period(&periods, nodes).as_millis()).unwrap_or(u64::MAX);
        Order::Heard { period_ms, line: self.line, epoch: self.epoch.clone() }
    }

    /// Until the machine is gone, or is no member any more.
    async fn hear(&self, node: &str, peer: &Peer, io: impl AsyncRead + AsyncWrite) -> std::io::Result<()> {
        let (reader, mut writer) = tokio::io::split(io);
        let mut reader = BufReader::new(reader);
        let (answer, mut answers) = mpsc::channel(WAITING);
        let (line, mut calls) = mpsc::channel(WAITING);
        self.said.calls.connect(node, line.clone());
        let hearing = async {
            while let Some(frame) = frame::<Frame>(&mut reader).await? {
                if self.member(peer).is_err() {
                    break;
                }
                match frame {
                    Frame::Beat { seq: _, boot_id } => {
                        self.said.hearts.heard(node, &boot_id, self.seams.monotonic());
                        let _ = answer.send(self.heard()).await;
                    }
                    Frame::Applied(reached) => {
                        for (follower, version) in reached {
                            self.said.applied.reached(node, follower, version);
                        }
                    }
                }
            }
            Ok(())
        };
        let saying = async {
            loop {
                let order = tokio::select! {
                    Some(order) = answers.recv() => order,
                    Some(number) = calls.recv() => Order::Call(number),
                    else => return Ok(()),
                };
                say(&mut writer, &order).await?;
            }
        };
        let ended = tokio::select! {
            ended = hearing => ended,
            ended = saying => ended,
        };
        self.said.calls.disconnect(node, &line);
        ended
    }
}

/// The next line; `None` when there will be none.
async fn frame<T: for<'de> Deserialize<'de>>(
    reader: &mut (impl AsyncBufReadExt + Unpin),
) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    let read = reader.take(FRAME_BYTES).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a frame does not end"));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// What a machine does for its managers: one stream to each, so that each knows by itself who is alive, and any may lead.
#[derive(Clone)]
pub struct Agents {
    pub node: String,
    pub ring: Keyring,
    pub of: Of,
    pub applied: Applied,
    /// What a manager may ask it when it is called back.
    pub routes: Router,
    pub seams: Seams,
}

/// What kind of machine it is.
#[derive(Clone)]
pub enum Of {
    /// Its controllers take this way to a manager.
    Worker(Managers),
    /// Its own store is in this line of history; is told of a manager whose is in a later one, or in another that began where
    /// this one did, by where that answers.
    Manager { line: u64, epoch: String, later: mpsc::Sender<Vec<SocketAddr>> },
}

/// A manager's name, and where it answers.
type Way = (String, Vec<SocketAddr>);

/// The managers of the cluster but `node` itself.
fn ways(known: &Snapshot, node: &str) -> BTreeSet<Way> {
    let others = known.all::<Node>().filter(|manager| manager.metadata.name != node);
    let ways = others.map(|manager| (manager.metadata.name.clone(), manager.api_addresses().to_vec()));
    ways.filter(|(_, addresses)| !addresses.is_empty()).collect()
}

/// Where the managers but `node` itself answer.
pub fn managers_but(known: &Snapshot, node: &str) -> Vec<SocketAddr> {
    ways(known, node).into_iter().flat_map(|(_, addresses)| addresses).collect()
}

impl Agents {
    /// Keeps the streams, for ever. `cache` keeps Nodes; until it does, and for as long as no Node says where a manager is,
    /// one stream goes to whichever of the `first` answers. `told` hears where the managers are whenever that changes.
    pub async fn run(&self, cache: &Cache, first: &[SocketAddr], told: impl Fn(Vec<SocketAddr>)) {
        let bootstrap = || (!first.is_empty()).then(|| (String::from("a manager"), first.to_vec()));
        let heard_by = Arc::new(Mutex::new(BTreeSet::new()));
        let mut streams: BTreeMap<Way, TaskHandle> = BTreeMap::new();
        let mut known = cache.snapshot().map(|known| ways(&known, &self.node)).unwrap_or_default();
        loop {
            let wanted: BTreeSet<Way> =
                if known.is_empty() { bootstrap().into_iter().collect() } else { known.clone() };
            streams.retain(|way, _| wanted.contains(way));
            for way in wanted {
                if streams.contains_key(&way) {
                    continue;
                }
                let agent = Agent::new(self, &way, heard_by.clone());
                streams.insert(way, self.seams.spawn("agent", async move { agent.run().await }));
            }
            let changed = cache.wait_for(|snapshot| ways(snapshot, &self.node) != known).await;
            known = ways(&changed, &self.node);
            told(managers_but(&changed, &self.node));
        }
    }
}

/// One of the streams.
struct Agent {
    node: String,
    manager: String,
    addresses: Vec<SocketAddr>,
    of: Of,
    remote: Remote,
    applied: Applied,
    routes: Router,
    seams: Seams,
    /// The managers that hear this machine.
    heard_by: Arc<Mutex<BTreeSet<String>>>,
}

impl Drop for Agent {
    /// It may be a manager no more.
    fn drop(&mut self) {
        self.heard_by().remove(&self.manager);
    }
}

impl Agent {
    fn new(of: &Agents, way: &Way, heard_by: Arc<Mutex<BTreeSet<String>>>) -> Self {
        let (manager, addresses) = way.clone();
        let remote = Remote::new(Arc::new(Managers::new(addresses.clone(), of.ring.clone())), of.seams.clone());
        Self {
            node: of.node.clone(),
            manager,
            addresses,
            of: of.of.clone(),
            remote,
            applied: of.applied.clone(),
            routes: of.routes.clone(),
            seams: of.seams.clone(),
            heard_by,
        }
    }

    fn heard_by(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.heard_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives signs of life for ever, says which Endpoints are in effect here, and calls the manager back.
    async fn run(&self) {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let (mut is_removed, mut said) = (false, false);
        loop {
            let ended = self.stream(boot_id.trim(), &mut said).await;
            let why =
                ended.err().map_or_else(|| "the manager has ended the stream".to_owned(), |error| error.to_string());
            let was_heard = self.heard_by().remove(&self.manager);
            // Only where there is another to go to: a manager that is slow is not made slower by all listing anew.
            if was_heard
                && !self.heard_by().is_empty()
                && let Of::Worker(way) = &self.of
            {
                way.is_silent(&self.addresses);
            }
            let by_others = self.heard_by().len();
            // Said once; and that it is for good when that is known, which may be later.
            let was_removed = std::mem::replace(&mut is_removed, why == REMOVED);
            if !std::mem::replace(&mut said, true) || (is_removed && !was_removed) {
                tracing::warn!(
                    manager = self.manager,
                    why,
                    by_others,
                    "the manager does not hear this machine; what runs here runs on"
                );
            }
            self.seams.sleep(AGAIN).await;
        }
    }

    /// Until the stream ends, or a heartbeat is not answered in time: another stream may do better then than to wait until
    /// this one's lost packets are sent again.
    /// `said`: that this manager does not hear this machine.
    async fn stream(&self, boot_id: &str, said: &mut bool) -> std::io::Result<()> {
        let opened = self.remote.upgrade(Method::POST, AGENT, PROTOCOL).await.map_err(|error| match error {
            Error::Forbidden { .. } => std::io::Error::other(REMOVED),
            other => std::io::Error::other(other),
        })?;
        let io = opened.upgraded().await.map_err(std::io::Error::other)?;
        let (reader, mut writer) = tokio::io::split(io);
        let mut reader = BufReader::new(reader);
        let (heard, mut answers) = mpsc::channel(WAITING);
        let hearing = async {
            while let Some(order) = frame::<Order>(&mut reader).await? {
                match order {
                    Order::Heard { period_ms, line, epoch } => {
                        if let Of::Manager { line: own, epoch: own_epoch, later } = &self.of
                            && (line > *own || line == *own && !epoch.is_empty() && epoch > *own_epoch)
                        {
                            // Told again with the next heartbeat.
                            let _ = later.try_send(self.addresses.clone());
                        }
                        let _ = heard.send(Duration::from_millis(period_ms)).await;
                    }
                    Order::Call(number) => self.call(number),
                }
            }
            Ok(())
        };
        let mut applied = self.applied.follow(&self.node);
        let speaking = async {
            let mut patience = ANSWER;
            for seq in 0.. {
                say(&mut writer, &Frame::Beat { seq, boot_id: boot_id.to_owned() }).await?;
                let period = tokio::select! {
                    period = answers.recv() => period,
                    () = self.seams.sleep(patience) => return Err(std::io::ErrorKind::TimedOut.into()),
                };
                let Some(period) = period else { return Ok(()) };
                if self.heard_by().insert(self.manager.clone()) && std::mem::take(said) {
                    tracing::info!(manager = self.manager, "the manager hears this machine again");
                }
                patience = period.max(ANSWER);
                let mut next_beat = std::pin::pin!(self.seams.sleep(period));
                loop {
                    let reached = tokio::select! {
                        () = &mut next_beat => break,
                        reached = applied.next() => reached,
                    };
                    say(&mut writer, &Frame::Applied(reached)).await?;
                }
            }
            Ok(())
        };
        tokio::select! {
            ended = hearing => ended,
            ended = speaking => ended,
        }
    }

    /// Whoever is called is a manager: [`Remote`] speaks with nobody else.
    fn call(&self, number: u64) {
        let (remote, routes) = (self.remote.clone(), self.routes.clone());
        tokio::spawn(async move {
            let called = async {
                let opened = remote.upgrade(Method::POST, &format!("{CALLS}/{number}"), CALL_PROTOCOL).await?;
                opened.upgraded().await
            };
            match called.await {
                Ok(io) => {
                    let service = TowerToHyperService::new(routes);
                    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service);
                    // A manager may hang up whenever it likes.
                    let _ = served.with_upgrades().await;
                }
                Err(error) => tracing::debug!(%error, "a manager wanted to be called and was not reached"),
            }
        });
    }
}

async fn say(writer: &mut (impl AsyncWriteExt + Unpin), frame: &impl Serialize) -> std::io::Result<()> {
    writer.write_all(format!("{}\n", serde_json::to_string(frame)?).as_bytes()).await?;
    writer.flush().await
}
