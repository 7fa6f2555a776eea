//! A task that has this machine's name becomes a container, attempt after attempt, and goes away again.
//!
//! **Owns** the containers that carry our labels, what stands around them ([`Surroundings`]), and the status of tasks
//! from Assigned on.
//! **Relies on** the scheduler for `nodeName`, the network controller for blocks of addresses, the service controller
//! for `desired`.
//! **Promises** at most one attempt of a task exists at a time; a container without a task is stopped and removed; a
//! task is gone from the store only after everything of it is gone from the machine; a task that has run here is started
//! again by its policy whether the store answers or not.
//! **Woken by** Tasks of this machine, Revisions, Networks and Volumes that they name, containers, images as they arrive, health
//! checks as they turn.
//!
//! Nothing is remembered that matters: attempts are labels on containers, addresses are in the status. What this process
//! keeps in memory (who was signalled, which checks run, which images are being pulled) is begun again by a successor.
//!
//! Reading order: `observe`, `plan` (all the logic), `restart` (when the next attempt begins), `act`; `translate` (from
//! a template to a container), `containers` and `background` (what is watched), `health`, `addresses`, `logins`, `files`.

mod act;
mod addresses;
mod background;
mod containers;
mod files;
mod health;
mod logins;
mod observe;
mod plan;
#[doc(hidden)]
pub mod planted;
mod restart;
mod surroundings;
#[cfg(test)]
mod tests;
mod translate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reconciler::api::{ObjectRef, Resource, Uid};
use reconciler::cache::{Index, Snapshot};
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler};
use reconciler::external::{External, Moment};
use reconciler::objects::Writer;
use reconciler::seams::{Monotonic, Seams};
use schemas::kinds::network::Network;
use schemas::kinds::registry_login::RegistryLogin;
use schemas::kinds::revision::Revision;
use schemas::kinds::service::Service;
use schemas::kinds::task::{DesiredState, Task, TaskStatus};
use schemas::kinds::volume::Volume;

use crate::mounted::{self, Mounting, OfRevision};
use crate::node::containerd::{Runtime, State};
use crate::node::images::Images;

pub(in crate::node) use containers::attempt_of;
pub use containers::{Containers, LABEL_ATTEMPT, LABEL_NAME, LABEL_NAMESPACE, LABEL_UID, container_id};
pub use files::{Files, NoFiles};
pub use logins::{Logins, NoLogins, pulls_with};
pub use surroundings::{Around, File, Place, PrepareError, Prepared, Surroundings, VolumeMount};

use addresses::Addresses;
use background::{Background, Stage};
use health::Checks;
use planted::Bugs;
#[cfg(feature = "planted")]
use planted::Planted;

/// What the controller acts through.
#[derive(Clone)]
pub struct Parts {
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn Images>,
    pub surroundings: Arc<dyn Surroundings>,
    pub logins: Arc<dyn Logins>,
    pub files: Arc<dyn Files>,
}

/// Everything that is looked at beside the store, to be given to the manager.
pub struct Tasks {
    node: String,
    parts: Parts,
    seams: Seams,
    containers: External<Containers>,
    around: External<Around>,
    images: External<Background<observe::ImageOutcome>>,
    checks: External<Checks>,
    memory: Mutex<Memory>,
    bugs: Bugs,
}

/// What a successor can do without.
#[derive(Default)]
struct Memory {
    addresses: Addresses,
    /// When this process asked an attempt to end.
    signalled: BTreeMap<(Uid, u32), Monotonic>,
    /// What this process has made of an attempt, or that it has removed it, until that is seen: it is in no look before.
    made: BTreeMap<(Uid, u32), Made>,
    /// What this process has prepared places for, and not released.
    prepared: BTreeSet<Uid>,
    /// Since when the creation of an attempt finds another one in its way.
    busy: BTreeMap<(Uid, u32), Monotonic>,
    /// How tasks are that the store knows otherwise, as it did not answer.
    unsaid: BTreeMap<Uid, TaskStatus>,
    /// When the store last did not.
    silent: Option<Monotonic>,
}

/// When this process was at an attempt, and how far it was then.
#[derive(Clone, Copy)]
struct Made {
    moment: Moment,
    at: Monotonic,
    /// [`State::Unknown`] while nobody has said that anything of it is there; `None` once it is removed.
    reached: Option<State>,
}

/// Tasks by uid: containers know nothing else.
struct ByUid;

impl Index for ByUid {
    type Of = Task;
    type Key = Uid;

    fn keys(task: &Task) -> Vec<Uid> {
        vec![task.metadata.uid.clone()]
    }
}

/// Tasks by the machine that they are on.
pub(crate) struct OnNode;

impl Index for OnNode {
    type Of = Task;
    type Key = String;

    fn keys(task: &Task) -> Vec<String> {
        task.spec.node_name.clone().into_iter().collect()
    }
}

/// The tasks of a machine that are meant to run, or come up, and have not ended.
pub(crate) fn live_on<'a>(snapshot: &'a Snapshot, node: &String) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
    let live = |task: &&Arc<Task>| {
        let ended = task.status.as_ref().is_some_and(|status| status.state.is_terminal());
        task.spec.desired <= DesiredState::Running && !ended
    };
    let tasks: Vec<ObjectRef> = snapshot.by::<OnNode>(node).filter(live).map(|task| task.object_ref()).collect();
    tasks.into_iter().filter_map(|task| snapshot.get::<Task>(&task))
}

impl Tasks {
    /// The tasks controller of the machine `node`.
    pub fn controller(node: &str, parts: Parts, seams: &Seams) -> Controller<Uid> {
        Self::new(node, parts, seams).into_controller()
    }

    /// One with bugs, for tests of the simulator.
    #[doc(hidden)]
    #[cfg(feature = "planted")]
    pub fn planted(node: &str, parts: Parts, seams: &Seams, planted: &'static [Planted]) -> Controller<Uid> {
        Tasks { bugs: Bugs::of(planted), ..Tasks::new(node, parts, seams) }.into_controller()
    }

    fn into_controller(self) -> Controller<Uid> {
        let node = self.node.clone();
        let (containers, around) = (self.containers.clone(), self.around.clone());
        let (images, checks) = (self.images.clone(), self.checks.clone());
        let mine = node.clone();
        let attached = node.clone();
        let mounting = node.clone();
        let writer = Writer::new(format!("node:{node}"), "tasks");
        Controller::keyed("tasks", self)
            .index::<ByUid>()
            .index::<OnNode>()
            .index::<logins::AtRegistry>()
            .index::<Mounting>()
            .index::<OfRevision>()
            .reads::<Revision>()
            .reads::<RegistryLogin>()
            .reads::<Service>()
            .watches::<Task, _>(move |task, _| {
                (task.spec.node_name.as_deref() == Some(&mine)).then(|| task.metadata.uid.clone())
            })
            .watches::<Network, _>(move |network, snapshot| {
                let reference = network.object_ref();
                let here = snapshot.by::<OnNode>(&attached);
                here.filter(|task| observe::is_attached(task, &reference))
                    .map(|task| task.metadata.uid.clone())
                    .collect::<Vec<_>>()
            })
            .watches::<Volume, _>(move |volume, snapshot| {
                let placed = mounted::placed(&volume.object_ref(), snapshot).into_iter();
                let here = placed.filter(|(task, _)| task.spec.node_name.as_ref() == Some(&mounting));
                here.map(|(task, _)| task.metadata.uid.clone()).collect::<Vec<_>>()
            })
            .watches_external(&containers, |id, _| containers::task_of(id))
            .watches_external(&around, |uid, ()| [uid.clone()])
            .watches_external(&images, |uid, stage| matches!(stage, Stage::Done(_)).then(|| uid.clone()))
            .watches_external(&checks, |id, _| containers::task_of(id))
            .goes_on_uncertain()
            .concurrency(32)
            .timeout(Duration::from_secs(120))
            .writer(writer)
    }

    fn new(node: &str, parts: Parts, seams: &Seams) -> Self {
        let containers = Containers::new(parts.runtime.clone(), seams);
        let around = Around::new(parts.surroundings.clone());
        Tasks {
            node: node.to_owned(),
            containers: External::new("containers", containers, seams.clone()),
            around: External::new("surroundings", around, seams.clone()),
            images: External::new("images", Background::new(), seams.clone()),
            checks: External::new("checks", Checks::new(), seams.clone()),
            parts,
            seams: seams.clone(),
            memory: Mutex::default(),
            bugs: Bugs::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyReconciler for Tasks {
    type Key = Uid;

    async fn reconcile(&self, uid: &Uid, cx: &Ctx) -> Result<Action, Error> {
        let Some(seen) = self.observe(uid, cx) else { return Ok(Action::Await) };
        let plan = plan::plan(&seen);
        self.act(&seen, plan, cx).await
    }
}
