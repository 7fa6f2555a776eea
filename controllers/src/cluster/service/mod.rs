//! A service becomes tasks: one in each slot, of the revision that is wanted.
//!
//! **Owns** the service's Revisions, the existence of its Tasks and their `desired`; the service's status.
//! **Relies on** the scheduler for `nodeName`, on the node for a task's state, on the endpoints controller for ports.
//! **Promises** a task that serves is told to stop only when no machine sends it connections any more, or one lags behind
//! for a second; every slot has one task of the wanted revision, and never two live ones on nodes that are heard of, unless the
//! one is to take the place of the other; what was on a lost node is made anew elsewhere, once it is no longer waited for.
//! **Woken by** its Revisions and Tasks (as their owner), the Secrets and Configs that its tasks see, its Endpoints (by name), Nodes (those of its tasks; global services,
//! and those that publish ports: all).

mod act;
mod changes;
mod observe;
mod plan;
mod published;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reconciler::cache::Snapshot;
use reconciler::controller::{Action, Controller, Ctx, Error, Reconciler};
use reconciler::seams::Monotonic;
use reconciler::{ObjectRef, Resource, Uid};
use schemas::kinds::cluster::Cluster;
use schemas::kinds::config::Config;
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::network::Network;
use schemas::kinds::node::Node;
use schemas::kinds::revision::Revision;
use schemas::kinds::secret::Secret;
use schemas::kinds::service::{Mode, OnDisconnect, Service, ServiceStatus};
use schemas::kinds::task::{DesiredState, Task, TaskState};
use schemas::kinds::template::FileKind;
use schemas::kinds::volume::Volume;

use crate::applied::Applied;
use crate::cluster::scheduler::OnMachines;
use crate::files::Seeing;
use crate::node::tasks::OnNode;
pub(in crate::cluster) use observe::lost;

pub struct Services {
    applied: Option<Applied>,
    /// A cache, by service.
    marks: Mutex<BTreeMap<ObjectRef, Marks>>,
}

/// Since when this process has seen what it then waits after, by its own clock: those of other machines may be hours off.
#[derive(Default)]
struct Marks {
    /// Tasks that leave and are out of their Endpoints.
    left: Since,
    /// Tasks that their node has rejected.
    rejected: Since,
    /// Nodes that are lost; looked at where the service may wait for them.
    lost: Since,
    /// A status that says how far it is by now, and is not written yet.
    unsaid: Option<Monotonic>,
}

/// How long the next steps of many are gathered before a status says how far a service is: written one by one, a hundred
/// tasks that come up would cost a hundred commits of the service and as many of its bundle, while the machines have
/// better to do. Less than anybody sees.
const GATHER: Duration = Duration::from_millis(50);

type Since = BTreeMap<Uid, Monotonic>;

/// How long that is, by name of the task or the node.
#[derive(Clone, Debug, Default)]
struct Waited {
    left: BTreeMap<String, Duration>,
    rejected: BTreeMap<String, Duration>,
    lost: BTreeMap<String, Duration>,
}

impl Services {
    /// Where no machine says how far its mesh is, and none is waited for.
    pub fn controller() -> Controller<ObjectRef> {
        Self::with(None)
    }

    /// A task that leaves is told to stop once these have it out of their meshes and names.
    pub fn following(applied: Applied) -> Controller<ObjectRef> {
        Self::with(Some(applied))
    }

    fn with(applied: Option<Applied>) -> Controller<ObjectRef> {
        Controller::new("service", Self { applied, marks: Mutex::default() })
            .reads::<Cluster>()
            .reads::<Network>()
            .reads::<Volume>()
            .owns::<Revision>()
            .owns::<Task>()
            .index::<OnMachines>()
            .watches::<Endpoints, _>(|endpoints, _| [endpoints.object_ref()])
            .index::<Seeing>()
            .watches::<Secret, _>(|secret, snapshot| seeing(FileKind::Secret, secret.object_ref(), snapshot))
            .watches::<Config, _>(|config, snapshot| seeing(FileKind::Config, config.object_ref(), snapshot))
            .index::<OnNode>()
            .watches::<Node, _>(|node, snapshot| {
                let there: BTreeSet<ObjectRef> = snapshot
                    .by::<OnNode>(&node.metadata.name)
                    .map(|task| ObjectRef::new(&task.metadata.namespace, &task.spec.service))
                    .collect();
                let concerns = |service: &&Arc<Service>| {
                    service.spec.mode == Mode::Global
                        || !service.spec.endpoint.ports.is_empty()
                        || there.contains(&service.object_ref())
                };
                snapshot.all::<Service>().filter(concerns).map(|service| service.object_ref()).collect::<Vec<_>>()
            })
    }
}

fn seeing(kind: FileKind, file: ObjectRef, snapshot: &Snapshot) -> Vec<ObjectRef> {
    snapshot.by::<Seeing>(&(kind, file)).map(|service| service.object_ref()).collect()
}

impl Services {
    /// How long tasks have been as they are, as far as this process has seen.
    fn waited(&self, service: &Service, cx: &Ctx) -> Waited {
        let (key, now) = (service.object_ref(), cx.seams().monotonic());
        let backends = observe::backends(cx.snapshot(), service);
        let tasks: Vec<&Arc<Task>> = cx.snapshot().owned_by::<Task>(&service.metadata.uid).collect();
        let left = |task: &Task| task.spec.desired == DesiredState::Leaving && !backends.contains(task.name());
        let rejected = |task: &Task| task.status.as_ref().is_some_and(|status| status.state == TaskState::Rejected);
        let waits = service.spec.on_disconnect != OnDisconnect::Replace;
        let nodes: Vec<&Arc<Node>> = cx.snapshot().all::<Node>().filter(|node| waits && node.is_lost()).collect();
        let mut all = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut marks = all.remove(&key).unwrap_or_default();
        let waited = Waited {
            left: mark(&mut marks.left, &tasks, left, now),
            rejected: mark(&mut marks.rejected, &tasks, rejected, now),
            lost: mark(&mut marks.lost, &nodes, |_| true, now),
        };
        keep(&mut all, key, marks, cx);
        waited
    }

    /// How much longer a status is held back that says no more than how far the service is; `None`: no longer.
    fn holds_back(&self, service: &Service, status: &ServiceStatus, cx: &Ctx) -> Option<Duration> {
        let (key, now) = (service.object_ref(), cx.seams().monotonic());
        let before = service.status.as_ref();
        let mut all = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut marks = all.remove(&key).unwrap_or_default();
        let rest = match before.is_some_and(|before| plan::is_progress(before, status)) {
            true => GATHER.checked_sub(now.since(*marks.unsaid.get_or_insert(now))).filter(|rest| !rest.is_zero()),
            false => None,
        };
        if rest.is_none() {
            marks.unsaid = None;
        }
        keep(&mut all, key, marks, cx);
        rest
    }
}

fn keep(all: &mut BTreeMap<ObjectRef, Marks>, key: ObjectRef, marks: Marks, cx: &Ctx) {
    if !(marks.left.is_empty() && marks.rejected.is_empty() && marks.lost.is_empty() && marks.unsaid.is_none()) {
        // Of services that went in the middle of it nobody asks any more.
        all.retain(|other, _| cx.snapshot().get::<Service>(other).is_some());
        all.insert(key, marks);
    }
}

/// Keeps the marks of those objects, makes those that are missing, and says how old each is.
fn mark<T: Resource>(
    marks: &mut Since,
    objects: &[&Arc<T>],
    which: impl Fn(&T) -> bool,
    now: Monotonic,
) -> BTreeMap<String, Duration> {
    let before = std::mem::take(marks);
    let mut waited = BTreeMap::new();
    for object in objects.iter().filter(|object| which(object)) {
        let uid = &object.meta().uid;
        let since = before.get(uid).copied().unwrap_or(now);
        waited.insert(object.name().to_owned(), now.since(since));
        marks.insert(uid.clone(), since);
    }
    waited
}

impl Reconciler for Services {
    type Object = Service;

    async fn reconcile(&self, service: Arc<Service>, cx: &Ctx) -> Result<Action, Error> {
        let waited = self.waited(&service, cx);
        let seen = observe::observe(cx.snapshot(), &service, self.applied.as_ref(), waited, cx.now());
        let mut plan = plan::plan(&seen, cx.now());
        if let Some(rest) = self.holds_back(&service, &plan.status, cx) {
            plan.status = service.status.clone().unwrap_or_default();
            plan.look_at(cx.now() + rest);
        }
        act::act(cx, &seen, plan).await
    }
}
