//! A service becomes tasks: one in each slot, of the revision that is wanted.
//!
//! **Owns** the service's Revisions, the existence of its Tasks and their `desired`; the service's status.
//! **Relies on** the scheduler for `nodeName`, on the node for a task's state, on the endpoints controller for ports.
//! **Promises** a task that serves is told to stop only when no machine sends it connections any more, or one lags behind
//! for a second; every slot has one task of the wanted revision, and never two live ones.
//! **Woken by** its Revisions and Tasks (as their owner), its Endpoints (by name), Nodes (global services, and
//! those that publish ports).

mod act;
mod observe;
mod plan;
mod published;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reconciler::controller::{Action, Controller, Ctx, Error, Reconciler};
use reconciler::seams::Monotonic;
use reconciler::{ObjectRef, Resource, Uid};
use schemas::kinds::cluster::Cluster;
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::network::Network;
use schemas::kinds::node::Node;
use schemas::kinds::revision::Revision;
use schemas::kinds::service::{Mode, Service};
use schemas::kinds::task::{DesiredState, Task};

use crate::applied::Applied;

pub struct Services {
    applied: Applied,
    /// A cache: since when each task that leaves is out of its Endpoints, by service.
    left: Mutex<BTreeMap<ObjectRef, Left>>,
}

type Left = BTreeMap<Uid, Monotonic>;

impl Services {
    /// Where no machine says how far its mesh is, and none is waited for.
    pub fn controller() -> Controller<ObjectRef> {
        Self::following(Applied::default())
    }

    /// A task that leaves is told to stop once these have it out of their meshes and names.
    pub fn following(applied: Applied) -> Controller<ObjectRef> {
        Controller::new("service", Self { applied, left: Mutex::default() })
            .reads::<Cluster>()
            .reads::<Network>()
            .owns::<Revision>()
            .owns::<Task>()
            .watches::<Endpoints, _>(|endpoints, _| [endpoints.object_ref()])
            .watches::<Node, _>(|_, snapshot| {
                let concerns = |service: &&Arc<Service>| {
                    service.spec.mode == Mode::Global || !service.spec.endpoint.ports.is_empty()
                };
                snapshot.all::<Service>().filter(concerns).map(|service| service.object_ref()).collect::<Vec<_>>()
            })
    }
}

impl Services {
    /// How long each task that leaves has been out of the Endpoints, as far as this process has seen.
    fn left(&self, service: &Service, cx: &Ctx) -> BTreeMap<String, Duration> {
        let (key, now) = (service.object_ref(), cx.seams().monotonic());
        let backends = observe::backends(cx.snapshot(), service);
        let tasks = cx.snapshot().owned_by::<Task>(&service.metadata.uid);
        let out: Vec<&Arc<Task>> = tasks
            .filter(|task| task.spec.desired == DesiredState::Leaving && !backends.contains(task.name()))
            .collect();
        let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.remove(&key).unwrap_or_default();
        let since = |task: &Arc<Task>| before.get(&task.metadata.uid).copied().unwrap_or(now);
        let waited = out.iter().map(|task| (task.name().to_owned(), now.since(since(task)))).collect();
        if !out.is_empty() {
            // Of services that went in the middle of it nobody asks any more.
            all.retain(|other, _| cx.snapshot().get::<Service>(other).is_some());
            all.insert(key, out.iter().map(|task| (task.metadata.uid.clone(), since(task))).collect());
        }
        waited
    }
}

impl Reconciler for Services {
    type Object = Service;

    async fn reconcile(&self, service: Arc<Service>, cx: &Ctx) -> Result<Action, Error> {
        let left = self.left(&service, cx);
        let seen = observe::observe(cx.snapshot(), &service, &self.applied, &left);
        let plan = plan::plan(&seen, cx.now());
        act::act(cx, &seen, plan).await
    }
}
