//! What this machine shows to others and whom it believes follows the cluster's authorities.
//!
//! **Owns** what this machine believes, as a manager the keys of authorities, and `status.identity` of its Node.
//! **Relies on** the authority controller for the order: nobody shows what others do not believe yet.
//! **Promises** it believes what the Cluster lists, and never less than what it shows itself: what was brought back from before
//! does not cut it off. As a manager it has the keys of what is coming and signs with what signs; it
//! asks for a certificate of the one that signs.
//! **Woken by** the Cluster, its Node, and now and then.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use reconciler::ObjectRef;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::objects::Writer;
use schemas::kinds::cluster::{AuthorityState, AuthorityStatus, CLUSTER_NAME, Cluster};
use schemas::kinds::node::{Node, NodeIdentity, Role};

/// While something is under way, and otherwise: a certificate may have been renewed.
const SOON: Duration = Duration::from_millis(500);
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// What a machine has on its disk and in use. Each call may be repeated, and does all or nothing.
pub trait Identity: Send + Sync + 'static {
    /// What is in use now.
    ///
    /// # Errors
    /// It cannot be read.
    fn now(&self) -> io::Result<NodeIdentity>;

    /// Believes these, certificates in PEM, whose certificate it shows, and what it signs with; nobody else, from the next
    /// connection on.
    ///
    /// # Errors
    /// It cannot be written, or is none.
    fn believe(&self, certificates: &[&str]) -> io::Result<()>;

    /// On a manager: has the key of the authority with this fingerprint, which another manager has, as its next one.
    fn obtain<'a>(&'a self, fingerprint: &'a str) -> BoxFuture<'a, io::Result<()>>;

    /// On a manager: signs with the next one from now on.
    ///
    /// # Errors
    /// It cannot be written, or is not here.
    fn sign_with(&self, fingerprint: &str) -> io::Result<()>;

    /// Asks for the next certificate now, before its time.
    fn renew(&self);
}

pub struct Identities {
    node: String,
    identity: Arc<dyn Identity>,
}

impl Identities {
    pub fn controller(node: &str, identity: Arc<dyn Identity>) -> Controller<Singleton> {
        let mine = node.to_owned();
        Controller::singleton("identity", Self { node: node.to_owned(), identity })
            .watches_all::<Cluster>()
            .watches::<Node, _>(move |node, _| (node.metadata.name == mine).then_some(Singleton))
            .writer(Writer::new(format!("node:{node}"), "identity"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// Exactly these, of the Cluster's.
    Believe,
    Obtain(String),
    SignWith(String),
    Renew,
}

impl KeyReconciler for Identities {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let node = cx.snapshot().get::<Node>(&ObjectRef::cluster(&self.node)).cloned();
        let cluster = cx.snapshot().get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).cloned();
        let (Some(node), Some(cluster)) = (node, cluster) else { return Ok(Action::Await) };
        let authorities = cluster.status.as_ref().map(|status| status.authorities.as_slice()).unwrap_or_default();
        let changes = plan(authorities, node.spec.role, &self.identity.now().map_err(Error::retry)?);
        let mut failed = None;
        for change in &changes {
            let done = match change {
                Change::Believe => {
                    let certificates: Vec<&str> = authorities.iter().map(|it| it.certificate.as_str()).collect();
                    self.identity.believe(&certificates)
                }
                Change::Obtain(fingerprint) => self.identity.obtain(fingerprint).await,
                Change::SignWith(fingerprint) => self.identity.sign_with(fingerprint),
                Change::Renew => {
                    self.identity.renew();
                    Ok(())
                }
            };
            if let Err(error) = done {
                failed = Some(error);
                break;
            }
        }
        // What was reached is told, also when more was not.
        let told = self.identity.now().map_err(Error::retry)?;
        let mut desired = (*node).clone();
        desired.status.get_or_insert_default().identity = Some(told);
        if desired.status != node.status {
            cx.client().update_status(&*node, &desired).await?;
        }
        match failed {
            Some(error) => Err(Error::retry(error)),
            None => Ok(Action::Requeue(if changes.is_empty() { NOW_AND_THEN } else { SOON })),
        }
    }
}

/// In the order in which it may be done. Where no authority is listed there was never another than the first.
fn plan(authorities: &[AuthorityStatus], role: Role, now: &NodeIdentity) -> Vec<Change> {
    let mut changes = Vec::new();
    if authorities.is_empty() {
        return changes;
    }
    let listed = authorities.iter().map(|authority| authority.fingerprint.as_str());
    let signs = now.holds.first().filter(|_| role == Role::Manager).map(String::as_str);
    let own = [now.signed_by.as_str()].into_iter().chain(signs);
    let wanted: BTreeSet<&str> = listed.chain(own.filter(|name| !name.is_empty())).collect();
    if wanted != now.believes.iter().map(String::as_str).collect() {
        changes.push(Change::Believe);
    }
    let of = |state| authorities.iter().find(move |authority| authority.state == state);
    let (coming, signing) = (of(AuthorityState::Coming), of(AuthorityState::Signing));
    if role == Role::Manager {
        let missing = signing.into_iter().chain(coming).find(|it| !now.holds.contains(&it.fingerprint));
        changes.extend(missing.map(|authority| Change::Obtain(authority.fingerprint.clone())));
        if let Some(signing) = signing.filter(|signing| now.holds.first() != Some(&signing.fingerprint)) {
            changes.push(Change::SignWith(signing.fingerprint.clone()));
        }
    }
    if signing.is_some_and(|signing| signing.fingerprint != now.signed_by) {
        changes.push(Change::Renew);
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Vec<AuthorityStatus> {
        let one = |word: &str| {
            let (state, name) = match word.split_at(1) {
                ("+", name) => (AuthorityState::Coming, name),
                ("-", name) => (AuthorityState::Going, name),
                _ => (AuthorityState::Signing, word),
            };
            AuthorityStatus { fingerprint: name.to_owned(), state, ..AuthorityStatus::default() }
        };
        text.split_whitespace().map(one).collect()
    }

    /// `A:AB:A`: shows a certificate of A, believes A and B, has the key of A.
    fn check(list: &str, role: Role, now: &str, does: &[Change]) {
        let mut parts = now.split(':');
        let mut letters = || parts.next().unwrap_or_default().chars().map(String::from).collect::<Vec<_>>();
        let signed_by = letters().concat();
        let now = NodeIdentity { signed_by, until: None, believes: letters(), holds: letters() };
        assert_eq!(plan(&listed(list), role, &now), does, "{list} | {now:?}");
    }

    #[test]
    fn a_machine_follows_what_is_listed() {
        use Change::{Believe, Obtain, Renew, SignWith};
        let (worker, manager) = (Role::Worker, Role::Manager);
        check("", worker, "A:A", &[]);
        check("A +B", worker, "A:A", &[Believe]);
        check("A +B", worker, "A:BA", &[]);
        check("-A B", worker, "A:AB", &[Renew]);
        check("-A B", worker, "B:AB", &[]);
        check("B", worker, "B:AB", &[Believe]);
        check("A +B", manager, "A:A:A", &[Believe, Obtain("B".into())]);
        check("A +B", manager, "A:AB:AB", &[]);
        check("-A B", manager, "A:AB:AB", &[SignWith("B".into()), Renew]);
        check("-A B", manager, "A:AB:A", &[Obtain("B".into()), SignWith("B".into()), Renew]);
        check("B", manager, "B:AB:B", &[Believe]);
        // Brought back from before: nobody is cut off.
        check("B", worker, "C:C", &[Believe, Renew]);
        check("B", worker, "C:BC", &[Renew]);
        check("B", manager, "C:BC:C", &[Obtain("B".into()), SignWith("B".into()), Renew]);
    }
}
