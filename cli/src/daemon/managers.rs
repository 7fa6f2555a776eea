//! How a machine that has joined becomes one more manager: it asks one that is for what only managers have (the key of
//! secrets, the authority, its place among etcd's members), and asks again until it has a vote.
//!
//! And how a manager becomes a worker: when its Node says so, it waits until it has no vote any more, and lets go of all that
//! only managers have.
//!
//! The first that joins finds the objects in a file of the only manager, which moves them to etcd meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
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
use controllers::cluster::managers::{Voter, Votes, VotesError};
use controllers::identity::Authority;
use futures::future::BoxFuture;
use hyper::Method;
use reconciler::ObjectRef;
use reconciler::cache::{Cache, Snapshot};
use reconciler::controller::Signal;
use reconciler::objects::encoding::Sealer;
use reconciler::objects::{Error, Remote};
use reconciler::seams::Seams;
use reconciler::server::Peer;
use reconciler::store::StoreError;
use reconciler::store::etcd::{Etcd, Member as EtcdMember, MemberId};
use schemas::kinds::node::{Node, Role};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::answer::{Refusal, Short, refused_with};
use super::authorities::Held;
use super::backup::Places;
use super::etcd::{self, Handed, Managed};
use super::membership::{Member, Membership};
use super::note::Note;
use super::restore::free_name;
use super::rights::member;
use super::seal::KeyFile;
use super::store::Opened;
use super::{agent, joining, lock};
use crate::tls::{Credentials, Keyring, Managers};

const MANAGERS: &str = "/apis/apply/v1/managers";
/// Between two times of asking.
const AGAIN: Duration = Duration::from_millis(100);
/// The same, where others have to do something first.
const SOON: Duration = Duration::from_millis(500);
/// Where somebody has to do something first.
const LATER: Duration = Duration::from_secs(1);
const NO_ETCD: &str =
    "etcd is missing, which managers beside others run: apt-get install etcd-server; it goes on by itself then";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ask {
    /// Where the others will reach its etcd.
    peer: String,
    /// It was told before, and etcd may have begun there.
    has_begun: bool,
    /// The last line of history that it has seen.
    #[serde(default)]
    line: u64,
}

/// What only managers have.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// The key of secrets, in base64.
    key: String,
    /// As it lies on disks, where it is locked there; in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    locked_key: Option<String>,
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
    pub to_etcd: Note,
    /// The line of history that this manager's store is in.
    pub line: u64,
    /// This machine's Node.
    pub name: String,
    pub authorities: Held,
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
    Short(ask): Short<Ask>,
) -> Result<Json<Answer>, Refusal> {
    let known = door.cache.snapshot().ok_or_else(|| later("this manager has only just begun"))?;
    let node = member(&peer, &known).map_err(|why| Refusal(StatusCode::FORBIDDEN, why))?.clone();
    if node.spec.role != Role::Manager {
        return Err(Refusal(StatusCode::FORBIDDEN, format!("{} is a worker, which may not", node.metadata.name)));
    }
    if ask.line > door.line {
        return Err(later(format!(
            "{}'s store is of before {}'s, which is not to begin anew by its word",
            door.name, node.metadata.name
        )));
    }
    let failed = |error: anyhow::Error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"));
    let etcd = match &door.opened {
        Opened::Embedded(_) if !etcd::is_here() => {
            return Err(later(format!("on this cluster's manager {NO_ETCD}")));
        }
        Opened::Embedded(_) => {
            // Once it is noted there is no way back but by etcd.
            door.managed.could_begin().await.map_err(|error| later(format!("on {}: {error:#}", door.name)))?;
            door.to_etcd.leave().context("cannot note that the store shall be etcd").map_err(failed)?;
            tracing::info!(node = node.metadata.name, "a second manager joins: the objects move from the file to etcd");
            door.again.raise();
            return Err(later("the objects are moved from this manager's file to etcd"));
        }
        Opened::Etcd { .. } => None,
        Opened::Managed { store, .. } => {
            let managers = known.all::<Node>().filter(|node| node.spec.role == Role::Manager);
            let managers: BTreeSet<String> = managers.map(|node| node.metadata.name.clone()).collect();
            let members = place(store, &ask, &node.metadata.name, &managers).await?;
            Some(door.managed.handed(&members, &ask.peer, &*door.sealer).map_err(failed)?)
        }
    };
    let (key, locked) = lock::handed(&door.places).map_err(failed)?;
    let signing = door.authorities.signing();
    Ok(Json(Answer {
        key: STANDARD.encode(key),
        locked_key: locked.map(|locked| STANDARD.encode(locked)),
        authority: signing.certificate().to_owned(),
        authority_key: signing.key(),
        etcd,
    }))
}

/// One step towards a vote for the machine `name`, which asks. The members as they are then.
async fn place(store: &Etcd, ask: &Ask, name: &str, managers: &BTreeSet<String>) -> Result<Vec<EtcdMember>, Refusal> {
    let unreached = |error: StoreError| later(error);
    let members = store.members().await.map_err(unreached)?;
    let of_it = members.iter().find(|member| member.name == name);
    let there = members.iter().find(|member| member.peers.contains(&ask.peer));
    match (of_it, there) {
        // Another machine's, which says that it is at the same address.
        (_, Some(other)) if !other.name.is_empty() && other.name != name => {
            if managers.contains(&other.name) || members.len() == 1 {
                return Err(later(format!(
                    "{} is at {} already: say --advertise where {name} is reached, if that is another machine",
                    other.name, ask.peer
                )));
            }
            store.remove(other.id).await.map_err(unreached)?;
            store.add_learner(&ask.peer).await.map_err(unreached)
        }
        // It has lost its disk.
        (Some(lost), _) if !ask.has_begun => {
            if members.len() == 1 {
                return Err(later(format!("{name} is the only member of etcd")));
            }
            store.remove(lost.id).await.map_err(unreached)?;
            store.add_learner(&ask.peer).await.map_err(unreached)
        }
        (Some(moved), None) => {
            store.moved(moved.id, &ask.peer).await.map_err(unreached)?;
            store.members().await.map_err(unreached)
        }
        (Some(learner), Some(_)) if learner.is_learner => match store.promote(learner.id).await {
            Ok(()) => store.members().await.map_err(unreached),
            // It has not caught up yet: it is told what it is.
            Err(_) => Ok(members),
        },
        (Some(_), Some(_)) => Ok(members),
        // Let in, and not begun.
        (None, Some(_)) => Ok(members),
        (None, None) if ask.has_begun => Err(Refusal(
            StatusCode::CONFLICT,
            "etcd knows no member of this machine: it was taken out, and has to begin anew".to_owned(),
        )),
        (None, None) => store.add_learner(&ask.peer).await.map_err(unreached),
    }
}

/// Has on this machine's disk what managers have, and etcd with a vote. False: it is a worker again.
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
) -> Result<bool> {
    let ring = Keyring::new(membership.credentials()?, seams)?;
    let remote = Remote::new(Arc::new(Managers::new(member.managers.clone(), ring)), seams.clone());
    let (mut said, mut has_begun) = (String::new(), false);
    loop {
        if !is_elsewhere && !etcd::is_here() {
            tell(&mut said, NO_ETCD.to_owned());
            seams.sleep(LATER).await;
            continue;
        }
        let ask = Ask { peer: managed.peer()?, has_begun: managed.place()?.is_some(), line: places.line_seen()? };
        // One that was told of its place before and was then cut off: the others may wait for its vote.
        if let (true, Some(key)) = (ask.has_begun, lock::key(places)?) {
            begin(managed, &key, &mut has_begun, seams).await?;
        }
        match asked(&remote, &ask).await {
            Ok(answer) => {
                let decoded = |text: &String| STANDARD.decode(text).context("the key of secrets cannot be read");
                let locked = answer.locked_key.as_ref().map(decoded).transpose()?;
                let key = lock::keep(places, &decoded(&answer.key)?, locked.as_deref())?;
                let authority = Authority::open(&answer.authority, &answer.authority_key)?;
                match &answer.etcd {
                    None if is_elsewhere => {}
                    None => {
                        bail!("the cluster's objects are in an etcd of yours: start applyd with the same --store here")
                    }
                    Some(_) if is_elsewhere => bail!("the cluster runs its etcd itself: start applyd without --store"),
                    Some(handed) => {
                        managed.join(&member.node, handed, &key)?;
                        begin(managed, &key, &mut has_begun, seams).await?;
                    }
                }
                if answer.etcd.is_none_or(|handed| handed.votes) {
                    // Last: who holds the authority has all of it.
                    return membership.hold(&authority, &key).map(|()| true);
                }
            }
            // It may be a worker again before it was a manager.
            Err(Error::Forbidden { .. }) => match joining::next_certificate(&remote).await {
                Ok((now, credentials)) if now.role == Role::Worker => {
                    return retire(membership, &now, &credentials).map(|()| false);
                }
                Err(Error::Forbidden { .. }) => return removed(membership, member).map(|()| false),
                Ok(_) | Err(_) => {}
            },
            Err(error) if refused_with(&error, StatusCode::CONFLICT).is_some() => {
                tracing::warn!(%error, "etcd begins anew on this machine");
                put_aside(managed, places)?;
                has_begun = false;
            }
            Err(error) => tell(&mut said, error.to_string()),
        }
        seams.sleep(AGAIN).await;
    }
}

/// Has etcd run, with certificates that are made once.
async fn begin(managed: &Managed, key: &KeyFile, has_begun: &mut bool, seams: &Seams) -> Result<()> {
    match std::mem::replace(has_begun, true) {
        true => managed.ensure(),
        false => managed.begin(key, seams).await.map(drop),
    }
}

/// Once for each reason.
fn tell(said: &mut String, why: String) {
    if why != *said {
        tracing::info!(why, "this machine is not yet what it shall be");
        *said = why;
    }
}

/// The members of the store, for the controller that takes out who manages no more.
pub struct StoreVotes(pub Arc<Etcd>);

impl Votes for StoreVotes {
    fn members(&self) -> BoxFuture<'_, Result<BTreeMap<String, Voter>, VotesError>> {
        Box::pin(async move {
            let members = self.0.members().await.map_err(|error| VotesError(error.to_string()))?;
            let voter = |member: EtcdMember| Voter { node: member.name, votes: !member.is_learner };
            Ok(members.into_iter().map(|member| (member.id.to_string(), voter(member))).collect())
        })
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), VotesError>> {
        Box::pin(async move {
            let failed = |error: &dyn std::fmt::Display| VotesError(error.to_string());
            let id: MemberId = id.parse().map_err(|error| failed(&error))?;
            match self.0.remove(id).await {
                Ok(()) => Ok(()),
                // The answer to an earlier call may have been lost.
                Err(error) => match self.0.members().await {
                    Ok(members) if members.iter().all(|member| member.id != id) => Ok(()),
                    _ => Err(failed(&error)),
                },
            }
        })
    }
}

/// What a machine is now, as other managers say.
pub enum Now {
    /// As its disk says, for all that is known.
    TheSame,
    /// No manager any more, or one whose etcd begins anew: its disk says which.
    Another,
}

/// Asks other managers what has become of this one whose etcd does not answer.
///
/// # Errors
/// In words: the disk does not do as it shall.
pub async fn what_now(
    membership: &Membership,
    managed: &Managed,
    places: &Places,
    member: &Member,
    seams: &Seams,
) -> Result<Now> {
    let ring = Keyring::new(membership.credentials()?, seams)?;
    let remote = Remote::new(Arc::new(Managers::new(member.managers.clone(), ring)), seams.clone());
    match joining::next_certificate(&remote).await {
        Ok((now, credentials)) if now.role == Role::Worker => {
            retire(membership, &now, &credentials)?;
            return Ok(Now::Another);
        }
        Err(Error::Forbidden { .. }) => {
            removed(membership, member)?;
            return Ok(Now::Another);
        }
        Ok(_) | Err(_) => {}
    }
    match asked(&remote, &Ask { peer: managed.peer()?, has_begun: true, line: places.line_seen()? }).await {
        Err(error) if refused_with(&error, StatusCode::CONFLICT).is_some() => {
            tracing::warn!(%error, "etcd begins anew on this machine");
            begins_anew(membership, managed, places).map(|()| Now::Another)
        }
        _ => Ok(Now::TheSame),
    }
}

/// Until another manager's store is in a later line of history than this one's, and this machine is on its disk what that one
/// says. It went on without this one, or has a backup in the place of what this one has.
pub async fn is_outlived(
    by: &mut mpsc::Receiver<Vec<SocketAddr>>,
    member: &Member,
    membership: &Membership,
    opened: &Opened,
    places: &Places,
    ring: &Keyring,
    seams: &Seams,
) {
    let mut said = String::new();
    while let Some(by) = by.recv().await {
        let managed = match opened {
            Opened::Managed { managed, .. } => managed,
            // Somebody has brought it back; it is read anew.
            Opened::Etcd { .. } => return,
            Opened::Embedded(_) => {
                if std::mem::replace(&mut said, ALONE.to_owned()) != ALONE {
                    tracing::error!(?by, "{ALONE}");
                }
                continue;
            }
        };
        let remote = Remote::new(Arc::new(Managers::new(by, ring.clone())), seams.clone());
        match outlived(&remote, member, membership, managed, places).await {
            Ok(()) => return tracing::warn!("the cluster has gone on without this manager, which begins anew"),
            Err(error) => tell(&mut said, format!("{error:#}")),
        }
    }
}

const ALONE: &str = "another manager has a store of its own as well, and both act for this cluster: take one of them away, on it \
                     (applyctl system reset)";

async fn outlived(
    remote: &Remote,
    member: &Member,
    membership: &Membership,
    managed: &Managed,
    places: &Places,
) -> Result<()> {
    match joining::next_certificate(remote).await {
        Ok((now, credentials)) if now.role == Role::Worker => retire(membership, &now, &credentials),
        Ok((now, credentials)) => {
            retire(membership, &now, &credentials)?;
            begins_anew(membership, managed, places)
        }
        Err(Error::Forbidden { .. }) => removed(membership, member),
        Err(error) => Err(error.into()),
    }
}

/// First what says that it has all that managers have: killed in between, it asks for that anew.
fn begins_anew(membership: &Membership, managed: &Managed, places: &Places) -> Result<()> {
    membership.let_go()?;
    put_aside(managed, places)
}

/// What another manager says to be of the past is kept, should it be the only copy in the end.
fn put_aside(managed: &Managed, places: &Places) -> Result<()> {
    managed.end().context("cannot end etcd")?;
    let aside = free_name(&places.member());
    match std::fs::rename(places.member(), &aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot put the etcd aside"),
        Err(_) => Ok(()),
        Ok(()) => {
            tracing::info!(aside = %aside.display(), "what this machine's etcd had is kept there");
            Ok(())
        }
    }
}

/// On the disk of a machine that is no member of its cluster any more: it is told so whenever it asks for anything, says it
/// itself, keeps no keys of a manager, and can be reset.
fn removed(membership: &Membership, member: &Member) -> Result<()> {
    tracing::warn!("this machine was removed from its cluster; `applyctl system reset` on it ends what runs here");
    membership.remember(&Member { role: Role::Worker, ..member.clone() })
}

/// What is on the disk of a machine that is another than it was, a worker for the most part.
fn retire(membership: &Membership, member: &Member, credentials: &Credentials) -> Result<()> {
    membership.renew(credentials)?;
    membership.remember(member)
}

/// What a worker must not have; to be called whenever one begins.
///
/// # Errors
/// It cannot be removed.
pub fn tidy_worker(membership: &Membership, managed: &Managed, places: &Places) -> Result<()> {
    managed.forget().context("cannot remove the etcd of a manager")?;
    membership.let_go()?;
    lock::forget(places)
}

/// Until this machine is to be another than it is: a manager that may lead, or one on its way to be a worker, which does not
/// lead and waits until it has no vote any more.
pub async fn changes(
    member: &Member,
    is_now: Role,
    membership: &Membership,
    opened: &Opened,
    ring: &Keyring,
    cache: &Cache,
    seams: &Seams,
) {
    let me = ObjectRef::cluster(&member.node);
    let role = |known: &Snapshot| known.get::<Node>(&me).map(|node| node.spec.role);
    let changed = async { drop(cache.wait_for(|known| role(known) != Some(is_now)).await) };
    if matches!(opened, Opened::Embedded(_)) {
        changed.await;
        tracing::warn!("this machine shall be a worker, and is the only manager: it goes on as one");
        return std::future::pending().await;
    }
    if is_now == Role::Manager {
        return changed.await;
    }
    tracing::info!("this machine becomes a worker when it has no vote any more");
    tokio::select! {
        () = changed => {}
        () = without_vote(member, membership, ring, Some(cache), seams) => {}
    }
}

/// Until another manager says that this machine is a worker, which it does once it has no vote, and the disk says so too. The
/// own etcd is no witness: one that does not answer may be a majority's other half.
pub async fn without_vote(
    member: &Member,
    membership: &Membership,
    ring: &Keyring,
    cache: Option<&Cache>,
    seams: &Seams,
) {
    let mut said = String::new();
    loop {
        let known = cache.and_then(Cache::snapshot).map(|known| agent::managers_but(&known, &member.node));
        // It may have had its last word before this process had listed anything.
        let others = known.filter(|others| !others.is_empty()).unwrap_or_else(|| member.managers.clone());
        let remote = Remote::new(Arc::new(Managers::new(others, ring.clone())), seams.clone());
        let became = match joining::next_certificate(&remote).await {
            Ok((now, credentials)) if now.role == Role::Worker => retire(membership, &now, &credentials).map(|()| true),
            Err(Error::Forbidden { .. }) => removed(membership, member).map(|()| true),
            Ok(_) => Ok(false),
            Err(error) => Err(error.into()),
        };
        match became {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tell(&mut said, format!("{error:#}")),
        }
        seams.sleep(SOON).await;
    }
}

async fn asked(remote: &Remote, ask: &Ask) -> Result<Answer, Error> {
    let body = serde_json::to_vec(ask).unwrap_or_default();
    let answer = remote.call(Method::POST, MANAGERS, Bytes::from(body)).await?.bytes().await?;
    serde_json::from_slice(&answer).map_err(|error| Error::Unavailable { detail: error.to_string() })
}
