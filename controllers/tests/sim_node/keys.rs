//! The keys of a machine's tunnel: whoever could speak with it still can, while keys are made, told and let go.
//!
//! Two other machines learn keys from the store, each in its own time. The companion says now and then by which keys there
//! are sessions: with each machine by the newest that both know.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controllers::node::keep::controller::Tunnelling;
use controllers::node::links::LinkPrefix;
use controllers::node::wireguard::controller::{Kept, Keys, Ring, Speaking};
use controllers::node::wireguard::{PORT, PrivateKey, PublicKey};
use reconciler::api::Timestamp;
use reconciler::cache::Snapshot;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Manager, Singleton};
use reconciler::sim::{Env, Scene, User};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster, ClusterSpec, DataPlane};
use schemas::kinds::node::{Availability, Node, NodeSpec};

use super::cast::{NODE, applyd};
use super::power::Power;
use super::promises::Held;
use super::suite;
use super::tally::{Happened, Tally};

const OTHERS: [&str; 2] = ["n2", "n3"];
/// Between two words of the companion.
const SAYS: Duration = Duration::from_secs(5);

/// What is on the machine, and what others know of it. Clones share it.
#[derive(Clone, Default)]
struct Around(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    ring: Vec<Kept>,
    made: u8,
    full: bool,
    /// Of the applyd that runs.
    speaking: Speaking,
    others: [Other; 2],
}

#[derive(Default)]
struct Other {
    known: BTreeSet<PublicKey>,
    /// It could speak with this machine, and nothing has happened since that would excuse it if it could not.
    could: bool,
}

impl Around {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn spoken_by(&self, other: &Other) -> Option<PublicKey> {
        self.ring.iter().map(|kept| kept.key.public()).find(|key| other.known.contains(key))
    }

    fn sessions(&self) -> BTreeSet<PublicKey> {
        self.others.iter().filter_map(|other| self.spoken_by(other)).collect()
    }

    fn look(&mut self) {
        for place in 0..self.others.len() {
            let can = self.spoken_by(&self.others[place]).is_some();
            self.others[place].could |= can;
        }
    }
}

impl Ring for Around {
    fn read(&self) -> io::Result<Vec<Kept>> {
        Ok(self.lock().ring.clone())
    }

    fn write(&self, kept: &[Kept]) -> io::Result<()> {
        let mut state = self.lock();
        if std::mem::take(&mut state.full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.ring = kept.to_vec();
        Ok(())
    }

    fn random(&self) -> io::Result<PrivateKey> {
        let mut state = self.lock();
        state.made = state.made.wrapping_add(1);
        Ok(PrivateKey::new([state.made; 32]))
    }
}

/// A companion that has nothing to encrypt, for suites about something else.
pub fn tunnelling() -> Tunnelling {
    let device = LinkPrefix::default().wireguard();
    Tunnelling { device, port: PORT, ring: Arc::new(Around::default()), speaking: Speaking::default() }
}

/// Another machine, that learns.
struct Learns {
    place: usize,
    around: Around,
    newest: Mutex<u64>,
}

impl KeyReconciler for Learns {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let Some(node) = cx.snapshot().get::<Node>(&ObjectRef::cluster(NODE)) else { return Ok(Action::Await) };
        let keys = node.status.iter().filter_map(|status| status.tunnel.as_ref()).flat_map(|tunnel| &tunnel.keys);
        let known: BTreeSet<PublicKey> = keys.filter_map(|key| key.parse().ok()).collect();
        let version = node.metadata.resource_version.0;
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.is_empty() && version >= *newest {
            *newest = version;
            let mut state = self.around.lock();
            state.others[self.place].known = known;
            state.look();
        }
        Ok(Action::Await)
    }
}

fn scene(scene: Scene, tally: &Tally) -> Scene {
    let (around, power, tally) = (Around::default(), Power::default(), tally.clone());
    let (acting, says, aging, cutting) = (around.clone(), around.clone(), around.clone(), around.clone());
    let (fills, whole, right, cut) = (around.clone(), around.clone(), around.clone(), power.clone());
    let counted = tally.clone();
    let scene = scene.kind::<Node>().kind::<Cluster>();
    let mut scene = applyd(scene, &power, move |manager, _| {
        let speaking = Speaking::default();
        acting.lock().speaking = speaking.clone();
        manager.controller(Keys::controller(NODE, PORT, Arc::new(acting.clone()), speaking))
    });
    for (place, name) in OTHERS.into_iter().enumerate() {
        let around = around.clone();
        scene = scene.process(name, move |env: Env| {
            let learns = Learns { place, around: around.clone(), newest: Mutex::default() };
            let controller = Controller::singleton("learns", learns).watches_all::<Node>();
            let manager = Manager::builder(env.objects.clone(), env.seams.clone()).controller(controller).build();
            async move { manager.run(std::future::pending()).await }
        });
    }
    scene
        .process("companion", move |env: Env| {
            let around = says.clone();
            async move {
                loop {
                    env.seams.sleep(SAYS).await;
                    let state = around.lock();
                    state.speaking.set(&state.sessions(), env.seams.monotonic());
                }
            }
        })
        .drift("a key grows old", move || {
            let mut state = aging.lock();
            if let Some(newest) = state.ring.first_mut() {
                newest.since = Timestamp::from_seconds(newest.since.as_seconds() - 2 * 86_400);
            }
        })
        .drift("the disk is full for a moment", move || fills.lock().full = true)
        .drift("the power is cut", move || {
            counted.count(Happened::PowerCut);
            let mut state = cutting.lock();
            state.ring.clear();
            state.others.iter_mut().for_each(|other| other.could = false);
            drop(state);
            cut.cut();
        })
        .workload(workload)
        .invariant("who could speak with the machine still can", move |_| {
            let mut state = whole.lock();
            state.look();
            tally.saw(&format!("{:?} {:?}", state.ring, state.sessions()));
            match state.others.iter().find(|other| other.could && state.spoken_by(other).is_none()) {
                Some(other) => Err(format!("{:?} is known, and in the ring are {:?}", other.known, state.ring)),
                None => Ok(()),
            }
        })
        .settles("one key, that everybody knows", move |snapshot| settled(snapshot, &right))
        .settles_within(Duration::from_secs(1800))
}

async fn workload(user: User) {
    let (node, cluster) = (ObjectRef::cluster(NODE), ObjectRef::cluster(CLUSTER_NAME));
    user.create(&Cluster::new(CLUSTER_NAME, ClusterSpec::default())).await;
    user.create(&Node::new(NODE, NodeSpec::default())).await;
    for round in 0..8 {
        user.pause().await;
        user.update::<Node>(&node, |node| {
            node.spec.availability = if round % 2 == 0 { Availability::Pause } else { Availability::Active };
        })
        .await;
        user.pause().await;
        if round == 5 {
            user.update::<Cluster>(&cluster, |cluster| cluster.spec.title = "renamed".into()).await;
        }
    }
    user.pause().await;
}

fn settled(snapshot: &Snapshot, around: &Around) -> Held {
    let state = around.lock();
    let node = snapshot.get::<Node>(&ObjectRef::cluster(NODE)).ok_or("there is no node")?;
    let told = node.status.as_ref().and_then(|status| status.tunnel.clone()).unwrap_or_default();
    let ring: Vec<String> = state.ring.iter().map(|kept| kept.key.public().to_string()).collect();
    let plain = snapshot.all::<Cluster>().any(|cluster| cluster.spec.data_plane == DataPlane::Plain);
    if ring.len() != 1 || told.keys != ring || told.port != PORT || plain {
        return Err(format!("{told:?} is told, and in the ring are {:?}", state.ring));
    }
    match state.others.iter().find(|other| state.spoken_by(other).is_none()) {
        Some(other) => Err(format!("{:?} is known", other.known)),
        None => Ok(()),
    }
}

#[test]
fn keys_of_the_tunnel() {
    suite("keys", 20, 20, &[Happened::PowerCut], scene);
}
