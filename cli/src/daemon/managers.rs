//! How a machine that has joined becomes one more manager: it asks one that is for what only managers have (the key of
//! secrets, the authority, its place among etcd's members), and asks again until it has a vote.
//!
//! The first that joins finds the objects in a file of the only manager, which moves them to etcd meanwhile.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use controllers::identity::Authority;
use hyper::Method;
use reconciler::cache::Cache;
use reconciler::controller::Signal;
use reconciler::objects::encoding::Sealer;
use reconciler::objects::{Error, Remote};
use reconciler::seams::Seams;
use reconciler::server::Peer;
use reconciler::store::StoreError;
use reconciler::store::etcd::{Etcd, Member as EtcdMember};
use schemas::kinds::node::Role;
use serde::{Deserialize, Serialize};

use super::answer::Refusal;
use super::backup::Places;
use super::etcd::{Handed, Managed};
use super::membership::{Member, Membership, write};
use super::rights::member;
use super::seal::KeyFile;
use super::store::Opened;
use crate::tls::{Keyring, Managers};

const MANAGERS: &str = "/apis/apply/v1/managers";
/// Between two times of asking.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ask {
    /// Where the others will reach its etcd.
    peer: String,
    /// It was told before, and etcd may have begun there.
    has_begun: bool,
}

/// What only managers have.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// The key of secrets, in base64.
    key: String,
    /// Certificate and key of the cluster's authority, in PEM.
    authority: String,
    authority_key: String,
    /// Absent where the objects are in an etcd that somebody else runs.
    etcd: Option<Handed>,
}

/// What a manager needs to take in others.
#[derive(Clone)]
pub struct Door {
    pub opened: Opened,
    pub managed: Managed,
    pub places: Places,
    pub authority: Arc<Authority>,
    pub sealer: Arc<dyn Sealer>,
    /// Keeps Nodes.
    pub cache: Cache,
    /// This applyd shall begin anew.
    pub again: Signal,
}

pub fn routes(door: Door) -> Router {
    Router::new().route(MANAGERS, post(take_in)).with_state(Arc::new(door))
}

fn later(what: impl std::fmt::Display) -> Refusal {
    Refusal(StatusCode::SERVICE_UNAVAILABLE, format!("{what}; ask again"))
}

async fn take_in(
    State(door): State<Arc<Door>>,
    Extension(peer): Extension<Peer>,
    Json(ask): Json<Ask>,
) -> Result<Json<Answer>, Refusal> {
    let known = door.cache.snapshot().ok_or_else(|| later("this manager has only just begun"))?;
    let node = member(&peer, &known).map_err(|why| Refusal(StatusCode::FORBIDDEN, why))?.clone();
    if node.spec.role != Role::Manager {
        return Err(Refusal(StatusCode::FORBIDDEN, format!("{} is a worker, which may not", node.metadata.name)));
    }
    let failed = |error: anyhow::Error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"));
    let etcd = match &door.opened {
        Opened::Embedded(_) => {
            door.managed.want().context("cannot note that the store shall be etcd").map_err(failed)?;
            tracing::info!(node = node.metadata.name, "a second manager joins: the objects move from the file to etcd");
            door.again.raise();
            return Err(later("the objects are moved from this manager's file to etcd"));
        }
        Opened::Etcd { .. } => None,
        Opened::Managed { store, .. } => {
            let members = place(store, &ask).await?;
            Some(door.managed.handed(&members, &ask.peer, &*door.sealer).map_err(failed)?)
        }
    };
    let key = std::fs::read(door.places.key()).context("cannot read the key of secrets").map_err(failed)?;
    Ok(Json(Answer {
        key: STANDARD.encode(key),
        authority: door.authority.certificate().to_owned(),
        authority_key: door.authority.key(),
        etcd,
    }))
}

/// One step towards a vote for who asks. The members as they are then.
async fn place(store: &Etcd, ask: &Ask) -> Result<Vec<EtcdMember>, Refusal> {
    let unreached = |error: StoreError| later(error);
    let members = store.members().await.map_err(unreached)?;
    let found = members.iter().find(|member| member.peers.contains(&ask.peer));
    match found {
        None if ask.has_begun => Err(Refusal(
            StatusCode::CONFLICT,
            "etcd knows no member there: it was taken out, and has to begin anew".to_owned(),
        )),
        None => store.add_learner(&ask.peer).await.map_err(unreached),
        // Whoever it was has lost its disk.
        Some(lost) if !ask.has_begun && !lost.name.is_empty() => {
            store.remove(lost.id).await.map_err(unreached)?;
            store.add_learner(&ask.peer).await.map_err(unreached)
        }
        Some(learner) if learner.is_learner && ask.has_begun => {
            store.promote(learner.id).await.map_err(unreached)?;
            store.members().await.map_err(unreached)
        }
        Some(_) => Ok(members),
    }
}

/// Has on this machine's disk what managers have, and etcd with a vote.
///
/// # Errors
/// In words: this machine is no manager of its cluster any more, or cannot write or start what it has to.
pub async fn take_over(
    member: &Member,
    membership: &Membership,
    managed: &Managed,
    places: &Places,
    is_elsewhere: bool,
    seams: &Seams,
) -> Result<()> {
    let ring = Keyring::new(membership.credentials()?, seams)?;
    let remote = Remote::new(Arc::new(Managers::new(member.managers.clone(), ring)), seams.clone());
    let mut said = String::new();
    loop {
        let ask = Ask { peer: managed.peer()?, has_begun: managed.place()?.is_some() };
        match asked(&remote, &ask).await {
            Ok(answer) => {
                let key = kept_key(&answer.key, places)?;
                let authority = Authority::open(&answer.authority, &answer.authority_key)?;
                match &answer.etcd {
                    None if is_elsewhere => {}
                    None => {
                        bail!("the cluster's objects are in an etcd of yours: start applyd with the same --store here")
                    }
                    Some(_) if is_elsewhere => bail!("the cluster runs its etcd itself: start applyd without --store"),
                    Some(handed) => {
                        managed.join(&member.node, handed, &key)?;
                        managed.begin(&key, seams).await?;
                    }
                }
                if answer.etcd.is_none_or(|handed| handed.votes) {
                    // Last: who holds the authority has all of it.
                    return membership.hold(&authority, &key);
                }
            }
            Err(Error::Forbidden { detail, .. }) => bail!("this machine is no manager of its cluster: {detail}"),
            Err(error) if error.is_conflict() => {
                tracing::warn!(%error, "etcd begins anew on this machine");
                managed.forget()?;
            }
            Err(error) => {
                let words = error.to_string();
                if words != said {
                    tracing::info!(why = words, "this machine becomes a manager");
                    said = words;
                }
            }
        }
        seams.sleep(AGAIN).await;
    }
}

async fn asked(remote: &Remote, ask: &Ask) -> Result<Answer, Error> {
    let body = serde_json::to_vec(ask).unwrap_or_default();
    let answer = remote.call(Method::POST, MANAGERS, Bytes::from(body)).await?.bytes().await?;
    serde_json::from_slice(&answer).map_err(|error| Error::Unavailable { detail: error.to_string() })
}

fn kept_key(key: &str, places: &Places) -> Result<KeyFile> {
    let bytes = STANDARD.decode(key).context("the key of secrets cannot be read")?;
    write(&places.key(), &bytes)?;
    let kept = KeyFile::existing(&places.key())?;
    kept.context("the key of secrets is gone again")
}
