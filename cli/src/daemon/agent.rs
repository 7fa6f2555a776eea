//! The stream between a machine and a manager: one way heartbeats, each answered with when the next shall come, and which
//! Endpoints are in effect on the machine, said as soon as it is so. One frame a line, JSON. None of it is stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use controllers::applied::{Applied, Follower, Following, Reached};
use controllers::cluster::node::{Hearts, period};
use hyper::Method;
use hyper_util::rt::TokioIo;
use reconciler::ObjectRef;
use reconciler::cache::Cache;
use reconciler::objects::Remote;
use reconciler::seams::Seams;
use reconciler::server::Peer;
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster, ClusterPeriods};
use schemas::kinds::node::Node;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::answer::Refusal;

const AGENT: &str = "/apis/apply/v1/agent";
const PROTOCOL: &str = "apply-agent/1";
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

/// What a manager answers: how long after this one the next is awaited.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rhythm {
    period_ms: u64,
}

/// What machines say, for whoever acts on it.
#[derive(Clone, Default)]
pub struct Said {
    pub hearts: Hearts,
    pub applied: Applied,
}

/// What a manager needs to listen to machines.
#[derive(Clone)]
pub struct Door {
    pub said: Said,
    /// Keeps Nodes and the Cluster object.
    pub cache: Cache,
    pub seams: Seams,
}

/// Who asks is looked at with each frame: a machine that is removed is not heard any more.
pub fn routes(door: Door) -> Router {
    Router::new().route(AGENT, post(listen)).with_state(Arc::new(door))
}

async fn listen(
    State(door): State<Arc<Door>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Refusal> {
    let node = peer.identity.strip_prefix("node:").unwrap_or_default().to_owned();
    if !door.is_member(&node, &peer) {
        return Err(Refusal(StatusCode::FORBIDDEN, format!("{} is no machine of the cluster", peer.identity)));
    }
    let wants = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if wants != Some(PROTOCOL) {
        return Err(Refusal(StatusCode::BAD_REQUEST, format!("ask for an upgrade to {PROTOCOL}")));
    }
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let ended = door.hear(&node, &peer, TokioIo::new(upgraded)).await;
        tracing::debug!(node, ?ended, "a machine's stream has ended");
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

impl Door {
    fn is_member(&self, node: &str, peer: &Peer) -> bool {
        let known = self.cache.snapshot();
        let found = known.as_ref().and_then(|known| known.get::<Node>(&ObjectRef::cluster(node)));
        found.is_some_and(|found| found.metadata.uid.as_str() == &*peer.uid)
    }

    fn rhythm(&self) -> Rhythm {
        let known = self.cache.snapshot();
        let nodes = known.as_ref().map_or(0, |known| known.all::<Node>().count());
        let cluster = known.as_ref().and_then(|known| known.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)));
        let periods = cluster.map_or_else(ClusterPeriods::default, |cluster| cluster.spec.periods.clone());
        Rhythm { period_ms: u64::try_from(period(&periods, nodes).as_millis()).unwrap_or(u64::MAX) }
    }

    /// Until the machine is gone, or is no member any more.
    async fn hear(&self, node: &str, peer: &Peer, io: impl AsyncRead + AsyncWrite) -> std::io::Result<()> {
        let (reader, mut writer) = tokio::io::split(io);
        let mut reader = BufReader::new(reader);
        [Follower::Mesh, Follower::Names].into_iter().for_each(|follower| self.said.applied.expect(node, follower));
        while let Some(frame) = frame::<Frame>(&mut reader).await? {
            if !self.is_member(node, peer) {
                return Ok(());
            }
            match frame {
                Frame::Beat { seq: _, boot_id } => {
                    self.said.hearts.heard(node, &boot_id, self.seams.monotonic());
                    say(&mut writer, &self.rhythm()).await?;
                }
                Frame::Applied(reached) => {
                    for (follower, version) in reached {
                        self.said.applied.reached(node, follower, version);
                    }
                }
            }
        }
        Ok(())
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

/// Gives signs of life for ever, and says which Endpoints are in effect here.
pub async fn beat(remote: &Remote, applied: &Applied, node: &str, seams: &Seams) {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let is_heard = AtomicBool::new(true);
    loop {
        let ended = beat_once(remote, applied.follow(node), &boot_id, &is_heard, seams).await;
        if is_heard.swap(false, Ordering::Relaxed) {
            let why =
                ended.err().map_or_else(|| "the manager has ended the stream".to_owned(), |error| error.to_string());
            tracing::warn!(why, "no manager hears this machine; what runs here runs on");
        }
        seams.sleep(AGAIN).await;
    }
}

/// Until the stream ends, or a heartbeat is not answered in time: another stream may do better then than to wait until this
/// one's lost packets are sent again.
async fn beat_once(
    remote: &Remote,
    mut applied: Following,
    boot_id: &str,
    is_heard: &AtomicBool,
    seams: &Seams,
) -> std::io::Result<()> {
    let opened = remote.upgrade(Method::POST, AGENT, PROTOCOL).await.map_err(std::io::Error::other)?;
    let io = opened.upgraded().await.map_err(std::io::Error::other)?;
    let (reader, mut writer) = tokio::io::split(io);
    let mut reader = BufReader::new(reader);
    let mut patience = ANSWER;
    for seq in 0.. {
        say(&mut writer, &Frame::Beat { seq, boot_id: boot_id.to_owned() }).await?;
        let answer = tokio::select! {
            answer = frame::<Rhythm>(&mut reader) => answer?,
            () = seams.sleep(patience) => return Err(std::io::ErrorKind::TimedOut.into()),
        };
        let Some(Rhythm { period_ms }) = answer else { return Ok(()) };
        if !is_heard.swap(true, Ordering::Relaxed) {
            tracing::info!("a manager hears this machine again");
        }
        let period = Duration::from_millis(period_ms);
        patience = period.max(ANSWER);
        let mut next_beat = std::pin::pin!(seams.sleep(period));
        loop {
            let reached = tokio::select! {
                () = &mut next_beat => break,
                reached = applied.next() => reached,
            };
            say(&mut writer, &Frame::Applied(reached)).await?;
        }
    }
    Ok(())
}

async fn say(writer: &mut (impl AsyncWriteExt + Unpin), frame: &impl Serialize) -> std::io::Result<()> {
    writer.write_all(format!("{}\n", serde_json::to_string(frame)?).as_bytes()).await?;
    writer.flush().await
}
