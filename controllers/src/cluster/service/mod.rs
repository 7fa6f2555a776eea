//! A service becomes tasks: one in each slot, of the revision that is wanted.
//!
//! **Owns** the service's Revisions, the existence of its Tasks and their `desired`; the service's status.
//! **Relies on** the scheduler for `nodeName`, on the node for a task's state, on the endpoints controller for ports.
//! **Promises** every slot has one task of the wanted revision, and never two live ones.
//! **Woken by** its Revisions and Tasks (as their owner), its Endpoints (by name), Nodes (global services).

mod act;
mod observe;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use reconciler::controller::{Action, Controller, Ctx, Error, Reconciler};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::Cluster;
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::network::Network;
use schemas::kinds::node::Node;
use schemas::kinds::revision::Revision;
use schemas::kinds::service::{Mode, Service};
use schemas::kinds::task::Task;

pub struct Services;

impl Services {
    pub fn controller() -> Controller<ObjectRef> {
        Controller::new("service", Self)
            .reads::<Cluster>()
            .reads::<Network>()
            .owns::<Revision>()
            .owns::<Task>()
            .watches::<Endpoints, _>(|endpoints, _| [endpoints.object_ref()])
            .watches::<Node, _>(|_, snapshot| {
                let global = snapshot.all::<Service>().filter(|service| service.spec.mode == Mode::Global);
                global.map(|service| service.object_ref()).collect::<Vec<_>>()
            })
    }
}

impl Reconciler for Services {
    type Object = Service;

    async fn reconcile(&self, service: Arc<Service>, cx: &Ctx) -> Result<Action, Error> {
        let seen = observe::observe(cx.snapshot(), &service);
        let plan = plan::plan(&seen, cx.now());
        act::act(cx, &seen, plan).await
    }
}
