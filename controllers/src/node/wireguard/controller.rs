//! The keys of this machine's tunnel: made, told, changed and let go.
//!
//! **Owns** the ring of private keys, which does not outlive the machine's run, and `status.tunnel` of this machine's Node.
//! **Relies on** the companion process to use what is in the ring, and to say by which keys it speaks.
//! **Promises** a key is let go only when the next one has been told, and nobody has spoken by it for a while; a new one is made when
//! one has lived as long as a certificate does.
//! **Woken by** its Node, by the Cluster, and by time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reconciler::ObjectRef;
use reconciler::api::Timestamp;
use reconciler::cache::Snapshot;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::objects::Writer;
use reconciler::seams::Monotonic;
use schemas::defaults::NODE_CERTIFICATE;
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster};
use schemas::kinds::node::{Node, NodeTunnel};
use serde::{Deserialize, Serialize};

use super::{KEYS_MAX, PrivateKey, PublicKey};
use crate::node::mesh::follow;

/// How long two keys are known beside each other, at most; and a quarter of a key's life.
const OVERLAP: Duration = Duration::from_secs(600);
/// When to look again whether anybody still speaks by an old key.
const LOOK: Duration = Duration::from_secs(30);
/// When to look at the clock again: it may have been set, and then a long sleep is the wrong one.
const CLOCK: Duration = Duration::from_secs(600);

/// A key in the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    pub key: PrivateKey,
    pub since: Timestamp,
    /// When it was first seen where everybody can read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub told: Option<Timestamp>,
}

/// Where keys are kept, the newest first. Each call may be repeated, and does all or nothing.
pub trait Ring: Send + Sync + 'static {
    fn read(&self) -> io::Result<Vec<Kept>>;

    fn write(&self, kept: &[Kept]) -> io::Result<()>;

    fn random(&self) -> io::Result<PrivateKey>;
}

/// When there was last a session by each key, as the companion process says. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Speaking(Arc<Mutex<Spoken>>);

#[derive(Debug, Default)]
struct Spoken {
    last: BTreeMap<PublicKey, Monotonic>,
    /// What was before is not known.
    since: Option<Monotonic>,
}

impl Speaking {
    /// There are sessions by these now.
    pub fn set(&self, by: &BTreeSet<PublicKey>, now: Monotonic) {
        let mut spoken = self.lock();
        spoken.since.get_or_insert(now);
        spoken.last.extend(by.iter().map(|key| (*key, now)));
    }

    /// For how long nobody has spoken by a key, for all that is known; not at all while nothing is.
    fn silent_for(&self, key: &PublicKey, now: Monotonic) -> Option<Duration> {
        let spoken = self.lock();
        let last = spoken.last.get(key).copied().or(spoken.since)?;
        Some(now.since(last))
    }

    fn lock(&self) -> MutexGuard<'_, Spoken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Keys {
    node: String,
    port: u16,
    ring: Arc<dyn Ring>,
    speaking: Speaking,
}

impl Keys {
    /// `port`: where the companion process listens.
    pub fn controller(node: &str, port: u16, ring: Arc<dyn Ring>, speaking: Speaking) -> Controller<Singleton> {
        let mine = node.to_owned();
        Controller::singleton("tunnel-keys", Self { node: node.to_owned(), port, ring, speaking })
            .watches_all::<Cluster>()
            .watches::<Node, _>(move |node, _| (node.metadata.name == mine).then_some(Singleton))
            .writer(Writer::new(format!("node:{node}"), "tunnel-keys"))
    }
}

impl KeyReconciler for Keys {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let Some(node) = cx.snapshot().get::<Node>(&ObjectRef::cluster(&self.node)).cloned() else {
            return Ok(Action::Await);
        };
        let mut kept = self.ring.read().map_err(Error::retry)?;
        let encrypted = follow::is_encrypted(cx.snapshot());
        let told = node.status.as_ref().and_then(|status| status.tunnel.clone());
        let (now, instant, life) = (cx.now(), cx.seams().monotonic(), life(cx.snapshot()));
        let silent = |key: &PublicKey| self.speaking.silent_for(key, instant);
        let plan = plan(&kept, told.as_ref(), &silent, now, life);
        if plan.kept != kept {
            kept = plan.kept;
            self.ring.write(&kept).map_err(Error::retry)?;
        }
        if plan.make && encrypted {
            kept.insert(0, Kept { key: self.ring.random().map_err(Error::retry)?, since: now, told: None });
            self.ring.write(&kept).map_err(Error::retry)?;
        }
        let keys = kept.iter().map(|kept| kept.key.public().to_string()).collect();
        let wanted = encrypted.then_some(NodeTunnel { port: self.port, keys });
        if wanted != told {
            let mut desired = (*node).clone();
            desired.status.get_or_insert_default().tunnel = wanted;
            cx.client().update_status(&*node, &desired).await?;
        }
        Ok(Action::Requeue(plan.again))
    }
}

/// A key lives as long as a certificate.
fn life(snapshot: &Snapshot) -> Duration {
    let cluster = snapshot.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME));
    cluster.map_or(NODE_CERTIFICATE.value, |cluster| cluster.spec.periods.node_certificate).get()
}

/// What becomes of the keys.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Of those that are there.
    kept: Vec<Kept>,
    /// There is to be a new one.
    make: bool,
    again: Duration,
}

fn plan(
    kept: &[Kept],
    told: Option<&NodeTunnel>,
    silent: &dyn Fn(&PublicKey) -> Option<Duration>,
    now: Timestamp,
    life: Duration,
) -> Plan {
    let mut kept = kept.to_vec();
    for key in &mut kept {
        // What the clock says of a time to come was said by another clock: it counts from here.
        key.since = key.since.min(now);
        key.told = key.told.map(|told| told.min(now));
    }
    let Some(newest) = kept.first_mut() else { return Plan { kept, make: true, again: LOOK } };
    let is_told = told.and_then(|told| told.keys.first()) == Some(&newest.key.public().to_string());
    if is_told && newest.told.is_none() {
        newest.told = Some(now);
    }
    let overlap = OVERLAP.min(life / 4);
    let known_for = newest.told.map(|told| now.since(told));
    let age = now.since(newest.since);
    let is_spoken_by = |old: &Kept| silent(&old.key.public()).is_none_or(|silent| silent < overlap);
    if known_for.is_some_and(|known_for| known_for >= overlap) {
        let newest = newest.key.public();
        kept.retain(|old| old.key.public() == newest || is_spoken_by(old));
    }
    let make = age >= life && kept.len() < KEYS_MAX;
    let again = match (kept.len(), known_for) {
        (1, _) => life.saturating_sub(age),
        (_, Some(known_for)) => overlap.saturating_sub(known_for).max(LOOK),
        (_, None) => LOOK,
    };
    Plan { kept, make, again: if make { LOOK } else { again.clamp(Duration::from_secs(1), CLOCK) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(86_400);

    fn key(number: u8) -> PrivateKey {
        PrivateKey::new([number; 32])
    }

    fn kept(number: u8, since: i64, told: Option<i64>) -> Kept {
        Kept { key: key(number), since: Timestamp::from_seconds(since), told: told.map(Timestamp::from_seconds) }
    }

    fn said(numbers: &[u8]) -> NodeTunnel {
        NodeTunnel { port: 7677, keys: numbers.iter().map(|it| key(*it).public().to_string()).collect() }
    }

    fn nothing_known(_: &PublicKey) -> Option<Duration> {
        None
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn a_key_is_made_told_and_made_anew_in_time() {
        assert!(plan(&[], None, &nothing_known, at(0), LIFE).make);
        let first = [kept(1, 0, None)];
        assert_eq!(plan(&first, None, &nothing_known, at(5), LIFE).kept, first, "nobody knows it yet");
        assert_eq!(plan(&first, Some(&said(&[1])), &nothing_known, at(5), LIFE).kept, [kept(1, 0, Some(5))]);
        let known = [kept(1, 0, Some(5))];
        let young = plan(&known, Some(&said(&[1])), &nothing_known, at(80_000), LIFE);
        assert_eq!((young.make, young.again), (false, CLOCK));
        let almost = plan(&known, Some(&said(&[1])), &nothing_known, at(86_390), LIFE);
        assert_eq!((almost.make, almost.again), (false, Duration::from_secs(10)));
        assert!(plan(&known, Some(&said(&[1])), &nothing_known, at(86_400), LIFE).make);
        let set_back = plan(&[kept(1, 90_000, Some(90_000))], None, &nothing_known, at(80_000), LIFE);
        assert_eq!((set_back.make, set_back.kept), (false, vec![kept(1, 80_000, Some(80_000))]));
    }

    #[test]
    fn an_old_key_goes_when_the_new_one_is_known_and_nobody_speaks_by_the_old() {
        let both = |told| [kept(2, 100, told), kept(1, 0, Some(5))];
        let told = said(&[2, 1]);
        let stays = |kept: &[Kept], silent: Option<u64>, now| {
            let silent = move |_: &PublicKey| silent.map(Duration::from_secs);
            plan(kept, Some(&told), &silent, at(now), LIFE).kept.len() == 2
        };
        assert!(stays(&both(None), Some(9_000), 10_000), "not seen to be told until now");
        assert!(stays(&both(Some(110)), Some(9_000), 110 + 599), "known for too short a time");
        assert!(stays(&both(Some(110)), Some(0), 110 + 600), "somebody has not heard of the new one");
        assert!(stays(&both(Some(110)), Some(599), 110 + 600), "or may only be away for a moment");
        assert!(stays(&both(Some(110)), None, 110 + 600), "not known whether anybody speaks by it");
        assert!(!stays(&both(Some(110)), Some(600), 110 + 600));
    }

    #[test]
    fn silence_counts_from_the_last_word_or_from_when_anything_was_known() {
        let (speaking, now) = (Speaking::default(), |seconds| Monotonic::default() + Duration::from_secs(seconds));
        let (old, new) = (key(1).public(), key(2).public());
        assert_eq!(speaking.silent_for(&old, now(5)), None);
        speaking.set(&BTreeSet::new(), now(10));
        assert_eq!(speaking.silent_for(&old, now(15)), Some(Duration::from_secs(5)));
        speaking.set(&BTreeSet::from([old]), now(20));
        speaking.set(&BTreeSet::from([new]), now(30));
        assert_eq!(speaking.silent_for(&old, now(31)), Some(Duration::from_secs(11)));
        assert_eq!(speaking.silent_for(&new, now(31)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_ring_does_not_grow_without_bound() {
        let full: Vec<Kept> = (1..=4).rev().map(|it| kept(it, i64::from(it) * 90_000, None)).collect();
        assert!(!plan(&full, None, &nothing_known, at(10_000_000), LIFE).make);
    }
}
