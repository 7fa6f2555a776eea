//! What a machine shows and whom it believes, on its disk and in use; on a manager also what it signs with. The controllers of
//! the cluster's authority ([`controllers::cluster::authority`], [`controllers::node::identity`]) act through this.
//!
//! | call | at | answer |
//! | --- | --- | --- |
//! | `POST /apis/apply/v1/managers/authorities/FINGERPRINT` | a manager's port, for managers | `{certificate, key}` |

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use anyhow::{Context, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use controllers::cluster::authority::{Authorities, Known};
use controllers::identity::{Authority, authorities_in};
use controllers::node::identity::Identity;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::Method;
use reconciler::cache::Cache;
use reconciler::objects::encoding::Sealer;
use reconciler::objects::{Client, Remote};
use reconciler::seams::Seams;
use reconciler::server::Peer;
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::{AuthorityState, AuthorityStatus, CLUSTER_NAME, Cluster};
use schemas::kinds::node::{Node, NodeIdentity, Role};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::answer::Refusal;
use super::membership::{Member, Membership};
use super::rights::member;
use crate::tls::{Credentials, Keyring, Managers};

const AUTHORITIES: &str = "/apis/apply/v1/managers/authorities";

/// Of this machine. Clones share it.
#[derive(Clone)]
pub struct Own {
    membership: Membership,
    ring: Keyring,
    /// The next certificate is wanted before its time.
    hurry: Arc<Notify>,
    /// What is read, changed and written is one step.
    changing: Arc<Mutex<()>>,
}

impl Own {
    pub fn new(membership: Membership, ring: Keyring) -> Self {
        Self { membership, ring, hurry: Arc::default(), changing: Arc::default() }
    }

    /// Until the next certificate is wanted before its time.
    pub async fn hurried(&self) {
        self.hurry.notified().await;
    }

    /// What the machine shows now.
    pub fn ring(&self) -> &Keyring {
        &self.ring
    }

    /// Shows another certificate. Who answered may not know yet of an authority that this machine believes, and the other way
    /// round: all of them are, until the controller says otherwise.
    ///
    /// # Errors
    /// In words, when it cannot be written; the one before stands.
    pub fn show(&self, next: Credentials) -> Result<()> {
        let _changing = self.changing();
        let believed = joined(&[&self.ring.credentials().authorities, &next.authorities])?;
        self.exchange(Credentials { authorities: believed, ..next })
    }

    fn exchange(&self, next: Credentials) -> Result<()> {
        // What is of no use must not be on the disk, where the next applyd finds it.
        self.ring.check(&next)?;
        self.membership.renew(&next)?;
        Ok(self.ring.exchange(next)?)
    }

    /// These, and whose certificate this machine shows.
    fn believe_with(&self, certificates: &[&str], more: &str) -> Result<()> {
        let _changing = self.changing();
        let shown = self.ring.credentials();
        let own = authorities_in(&shown.chain)?.into_iter().nth(1).map(|signer| signer.pem).unwrap_or_default();
        let authorities = joined(&[certificates, &[own.as_str(), more]].concat())?;
        self.exchange(Credentials { authorities, ..shown })
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity(&self) -> Result<NodeIdentity> {
        let shown = self.ring.credentials();
        let names = |pem: &str| -> Result<Vec<String>> {
            Ok(authorities_in(pem)?.into_iter().map(|known| known.fingerprint.to_string()).collect())
        };
        // Its own, then that of who signed it.
        let signed_by = names(&shown.chain)?.get(1).cloned().unwrap_or_default();
        let (until, believes) = (Some(self.ring.says().until), names(&shown.authorities)?);
        Ok(NodeIdentity { signed_by, until, believes, holds: Vec::new() })
    }
}

/// The certificates of several texts, each once.
fn joined(texts: &[&str]) -> Result<String> {
    let mut all: Vec<(String, String)> = Vec::new();
    for text in texts {
        for known in authorities_in(text)? {
            let name = known.fingerprint.to_string();
            if all.iter().all(|(there, _)| *there != name) {
                all.push((name, known.pem));
            }
        }
    }
    Ok(all.into_iter().map(|(_, pem)| pem).collect())
}

fn failed(error: anyhow::Error) -> io::Error {
    io::Error::other(format!("{error:#}"))
}

/// On a worker.
impl Identity for Own {
    fn now(&self) -> io::Result<NodeIdentity> {
        self.identity().map_err(failed)
    }

    fn believe(&self, certificates: &[&str]) -> io::Result<()> {
        self.believe_with(certificates, "").map_err(failed)
    }

    fn obtain<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<()>> {
        async { Err(io::Error::other("a worker has no keys of authorities")) }.boxed()
    }

    fn sign_with(&self, _: &str) -> io::Result<()> {
        Err(io::Error::other("a worker signs nothing"))
    }

    fn renew(&self) {
        self.hurry.notify_one();
    }
}

/// What a manager has, and what it signs with. Clones share it.
#[derive(Clone)]
pub struct Held {
    own: Own,
    cluster: String,
    node: String,
    sealer: Arc<dyn Sealer>,
    signing: Arc<RwLock<Arc<Authority>>>,
    next: Arc<RwLock<Option<Arc<Authority>>>>,
    /// Where the other managers are; told once it is known.
    cache: Arc<RwLock<Option<Cache>>>,
    seams: Seams,
}

impl Held {
    /// # Errors
    /// In words, when the authorities on the disk do not open.
    pub fn open(own: Own, member: &Member, sealer: Arc<dyn Sealer>, seams: &Seams) -> Result<Self> {
        let signing = own.membership.authority(&*sealer)?;
        let next = own.membership.next_authority(&*sealer)?;
        Ok(Self {
            own,
            cluster: member.cluster.clone(),
            node: member.node.clone(),
            sealer,
            signing: Arc::new(RwLock::new(Arc::new(signing))),
            next: Arc::new(RwLock::new(next.map(Arc::new))),
            cache: Arc::default(),
            seams: seams.clone(),
        })
    }

    /// From here on the other managers are known.
    pub fn follow(&self, cache: Cache) {
        *self.cache.write().unwrap_or_else(PoisonError::into_inner) = Some(cache);
    }

    /// What certificates are signed with now.
    pub fn signing(&self) -> Arc<Authority> {
        self.signing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificates of all that this machine believes, in PEM.
    pub fn believed(&self) -> String {
        self.own.ring.credentials().authorities
    }

    /// The certificate of what signs now, as the one before has signed it; empty where there is none before.
    pub fn bridge(&self) -> String {
        let known = self.cache.read().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Cache::snapshot);
        let cluster = known.as_ref().and_then(|known| known.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)));
        let listed = cluster.and_then(|cluster| cluster.status.as_ref()).map(|status| status.authorities.as_slice());
        let signing = self.signing().fingerprint().to_string();
        let found = listed.unwrap_or_default().iter().find(|authority| authority.fingerprint == signing);
        found.map(|authority| authority.bridge.clone()).unwrap_or_default()
    }

    fn next(&self) -> Option<Arc<Authority>> {
        self.next.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn of(&self, fingerprint: &str) -> Option<Arc<Authority>> {
        [Some(self.signing()), self.next()].into_iter().flatten().find(|it| it.fingerprint().to_string() == fingerprint)
    }

    fn keep_next(&self, authority: Authority) -> Result<Arc<Authority>> {
        self.own.membership.hold_next(&authority, &*self.sealer)?;
        let kept = Arc::new(authority);
        *self.next.write().unwrap_or_else(PoisonError::into_inner) = Some(kept.clone());
        Ok(kept)
    }

    /// From whichever manager has it.
    async fn obtained(&self, fingerprint: &str) -> Result<Authority> {
        let known = self.cache.read().unwrap_or_else(PoisonError::into_inner).clone();
        let known = known.and_then(|cache| cache.snapshot()).context("the other managers are not known yet")?;
        let mut last = anyhow::anyhow!("there is no other manager");
        for manager in known.all::<Node>().filter(|node| *node.name() != *self.node) {
            let addresses = manager.api_addresses().to_vec();
            if addresses.is_empty() {
                continue;
            }
            let way = Managers::new(addresses, self.own.ring.clone());
            let remote = Remote::new(Arc::new(way), self.seams.clone());
            let asked = async {
                let path = format!("{AUTHORITIES}/{fingerprint}");
                let answer = remote.call(Method::POST, &path, Bytes::new()).await?.bytes().await?;
                let handed: Handed = serde_json::from_slice(&answer)?;
                Ok::<Authority, anyhow::Error>(Authority::open(&handed.certificate, &handed.key)?)
            };
            match asked.await {
                Ok(authority) if authority.fingerprint().to_string() == fingerprint => return Ok(authority),
                Ok(_) => last = anyhow::anyhow!("{} has handed over another one", manager.name()),
                Err(error) => last = error.context(format!("{} does not hand it over", manager.name())),
            }
        }
        Err(last.context(format!("cannot get the key of the authority {fingerprint}")))
    }
}

/// The objects were brought back from before this manager's authority began to sign: what they list is of the past, and nobody
/// has its keys. What signs here is the authority then, alone.
///
/// # Errors
/// The store does not answer.
pub async fn settle(client: &Client, held: &Held) -> Result<()> {
    let Some(cluster) = client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await? else { return Ok(()) };
    let listed = cluster.status.as_ref().map(|status| status.authorities.as_slice()).unwrap_or_default();
    let signing = listed.iter().find(|authority| authority.state == AuthorityState::Signing);
    if signing.is_none_or(|signing| held.of(&signing.fingerprint).is_some()) {
        return Ok(());
    }
    let own = held.signing();
    tracing::warn!(
        fingerprint = %own.fingerprint(),
        "the objects are of before this authority signed: it is the one from here on"
    );
    let mut desired = cluster.clone();
    desired.status.get_or_insert_default().authorities = vec![AuthorityStatus {
        fingerprint: own.fingerprint().to_string(),
        certificate: own.certificate().to_owned(),
        state: AuthorityState::Signing,
        rotation: cluster.spec.authority.rotation,
        ..AuthorityStatus::default()
    }];
    client.update_status(&cluster, &desired).await?;
    Ok(())
}

fn known(authority: &Authority) -> Known {
    Known { fingerprint: authority.fingerprint().to_string(), certificate: authority.certificate().to_owned() }
}

impl Authorities for Held {
    fn signing(&self) -> Known {
        known(&Held::signing(self))
    }

    fn next(&self) -> Option<Known> {
        Held::next(self).map(|next| known(&next))
    }

    fn bridge(&self, next: &str) -> io::Result<String> {
        let held = Held::next(self).filter(|held| held.fingerprint().to_string() == next);
        let held = held.ok_or_else(|| io::Error::other(format!("the key of the authority {next} is not here")))?;
        Held::signing(self).vouch(&held, self.seams.now()).map_err(|error| failed(error.into()))
    }

    fn make(&self) -> io::Result<Known> {
        let made = Authority::make(&self.cluster, self.seams.now()).map_err(|error| failed(error.into()))?;
        self.keep_next(made).map(|made| known(&made)).map_err(failed)
    }
}

impl Identity for Held {
    fn now(&self) -> io::Result<NodeIdentity> {
        let own = self.own.identity().map_err(failed)?;
        let held = [Some(Held::signing(self)), Held::next(self)].into_iter().flatten();
        Ok(NodeIdentity { holds: held.map(|it| it.fingerprint().to_string()).collect(), ..own })
    }

    fn believe(&self, certificates: &[&str]) -> io::Result<()> {
        self.own.believe_with(certificates, Held::signing(self).certificate()).map_err(failed)
    }

    fn obtain<'a>(&'a self, fingerprint: &'a str) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let authority = self.obtained(fingerprint).await.map_err(failed)?;
            self.keep_next(authority).map(drop).map_err(failed)
        }
        .boxed()
    }

    fn sign_with(&self, fingerprint: &str) -> io::Result<()> {
        let next = Held::next(self).filter(|next| next.fingerprint().to_string() == fingerprint);
        let next =
            next.ok_or_else(|| io::Error::other(format!("the key of the authority {fingerprint} is not here")))?;
        self.own.membership.take_next(&next, &*self.sealer).map_err(failed)?;
        *self.signing.write().unwrap_or_else(PoisonError::into_inner) = next;
        *self.next.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    fn renew(&self) {
        self.own.renew();
    }
}

#[derive(Serialize, Deserialize)]
struct Handed {
    certificate: String,
    key: String,
}

#[derive(Clone)]
struct Door {
    held: Held,
    cache: Cache,
}

/// For other managers: who asks is looked at here.
pub fn routes(held: Held, cache: Cache) -> Router {
    let path = format!("{AUTHORITIES}/{{fingerprint}}");
    Router::new().route(&path, post(hand_over)).with_state(Arc::new(Door { held, cache }))
}

async fn hand_over(
    State(door): State<Arc<Door>>,
    Extension(peer): Extension<Peer>,
    Path(fingerprint): Path<String>,
) -> Result<Json<Handed>, Refusal> {
    let known = door.cache.snapshot();
    let known = known.ok_or_else(|| Refusal(StatusCode::SERVICE_UNAVAILABLE, "only just begun".to_owned()))?;
    let node = member(&peer, &known).map_err(|why| Refusal(StatusCode::FORBIDDEN, why))?;
    if node.spec.role != Role::Manager {
        return Err(Refusal(StatusCode::FORBIDDEN, format!("{} is a worker, which may not", node.metadata.name)));
    }
    match door.held.of(&fingerprint) {
        Some(held) => Ok(Json(Handed { certificate: held.certificate().to_owned(), key: held.key() })),
        None => Err(Refusal(StatusCode::NOT_FOUND, format!("the authority {fingerprint} is not here"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_certificate_is_believed_once() {
        let now = Seams::real().now();
        let pem = |cluster| Authority::make(cluster, now).unwrap().certificate().to_owned();
        let (one, two) = (pem("c"), pem("c"));
        let both = joined(&[&one, &format!("{two}{one}")]).unwrap();
        assert_eq!(authorities_in(&both).unwrap().len(), 2);
        assert!(both.starts_with(one.trim_end()));
        assert!(joined(&["hello"]).unwrap().is_empty());
    }
}
