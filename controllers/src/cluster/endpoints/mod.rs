//! Who answers for a service: its virtual IPs, its published ports, and the tasks behind them.
//!
//! **Owns** Endpoints objects.
//! **Relies on** the network controller for subnets, on nodes for the addresses of tasks.
//! **Promises** a port or virtual IP belongs to one service at a time; only tasks that serve get new connections.
//! **Woken by** Services, their Tasks, and Networks. One key: every hand-out sees all before it.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use reconciler::api::OwnerReference;
use reconciler::cache::Snapshot;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::objects::{Precondition, Propagation, Write};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster};
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::network::Network;
use schemas::kinds::node::Node;
use schemas::kinds::service::Service;
use schemas::kinds::task::Task;

use plan::{Change, Seen};

const WRITES_PER_COMMIT: usize = 50;
/// After what was written at once, what changes in the next moment goes into one round: each writes all backends of a
/// service, and has every machine read them.
const GATHER: Duration = Duration::from_millis(20);

pub struct EndpointsController;

impl EndpointsController {
    pub fn controller() -> Controller<Singleton> {
        Controller::singleton("endpoints", Self)
            .watches_all::<Service>()
            .watches_all::<Task>()
            .watches_all::<Network>()
            .watches_all::<Node>()
            .watches_all::<Endpoints>()
            .reads::<Cluster>()
    }
}

impl KeyReconciler for EndpointsController {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let writes: Vec<Write> = plan::plan(&observe(cx.snapshot())).into_iter().flat_map(write).collect();
        for batch in writes.chunks(WRITES_PER_COMMIT) {
            cx.client().commit(batch.to_vec()).await?;
        }
        if !writes.is_empty() {
            cx.seams().sleep(GATHER).await;
        }
        Ok(Action::Await)
    }
}

fn observe(snapshot: &Snapshot) -> Seen {
    let cluster = snapshot.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).map(|cluster| cluster.spec.clone());
    Seen {
        services: snapshot.all::<Service>().cloned().collect(),
        tasks: snapshot.all::<Task>().cloned().collect(),
        networks: snapshot.all::<Network>().map(|network| network.object_ref()).collect(),
        blocks: snapshot
            .all::<Network>()
            .filter_map(|network| Some((network, network.status.as_ref()?)))
            .flat_map(|(network, status)| {
                status.blocks.iter().map(|given| ((network.object_ref(), given.node.clone()), given.block))
            })
            .collect(),
        endpoints: snapshot.all::<Endpoints>().cloned().collect(),
        lost: crate::cluster::service::lost(snapshot),
        cluster: cluster.unwrap_or_default(),
    }
}

fn write(change: Change) -> Vec<Write> {
    match change {
        Change::Create { service, spec } => {
            let mut endpoints = Endpoints::new(service.metadata.name.clone(), spec);
            endpoints.metadata.namespace.clone_from(&service.metadata.namespace);
            endpoints.metadata.owner_references = vec![OwnerReference {
                api_version: Service::kind().api_version(),
                kind: Service::kind().kind.to_string(),
                name: service.metadata.name.clone(),
                uid: service.metadata.uid.clone(),
                controller: true,
                block_owner_deletion: true,
            }];
            // A commit may be long on its way: nothing is made, and no address taken, for a service that went meanwhile.
            let there = Write::Check {
                kind: Arc::new(Service::kind().clone()),
                reference: service.object_ref(),
                precondition: Some(Precondition::same(&*service)),
            };
            vec![there, Write::create(&endpoints)]
        }
        Change::Update { endpoints, spec } => {
            let mut desired = (*endpoints).clone();
            desired.spec = spec;
            vec![Write::update(&*endpoints, &desired)]
        }
        Change::Delete { endpoints } => {
            vec![Write::delete(&*endpoints, Precondition::seen(&*endpoints), Propagation::Background)]
        }
    }
}
