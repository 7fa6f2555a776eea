//! What there is of a service.

use std::collections::BTreeSet;
use std::sync::Arc;

use reconciler::cache::Snapshot;
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster, History};
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::network::{DEFAULT_NETWORK, Network};
use schemas::kinds::node::{Availability, Node, NodeState};
use schemas::kinds::revision::Revision;
use schemas::kinds::service::{PublishedPort, Service};
use schemas::kinds::task::Task;

/// Everything that the plan may know.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub service: Arc<Service>,
    pub revisions: Vec<Arc<Revision>>,
    /// Of this incarnation of the service.
    pub tasks: Vec<Arc<Task>>,
    /// Nodes that may take tasks, in order of name.
    pub nodes: Vec<Arc<Node>>,
    /// Tasks that new connections may still be sent to.
    pub backends: BTreeSet<String>,
    /// As they were allocated.
    pub ports: Vec<PublishedPort>,
    pub history: History,
    /// It wants the network of those that name none, and that is not there yet.
    pub wants_default_network: bool,
}

pub(super) fn observe(snapshot: &Snapshot, service: &Arc<Service>) -> Seen {
    let endpoints = snapshot.get::<Endpoints>(&service.object_ref());
    let uid = &service.metadata.uid;
    Seen {
        service: service.clone(),
        revisions: snapshot.owned_by::<Revision>(uid).cloned().collect(),
        tasks: snapshot.owned_by::<Task>(uid).cloned().collect(),
        nodes: snapshot.all::<Node>().filter(|node| takes_tasks(node)).cloned().collect(),
        backends: endpoints
            .map(|endpoints| endpoints.spec.backends.iter().map(|backend| backend.task.clone()).collect())
            .unwrap_or_default(),
        ports: endpoints.map(|endpoints| endpoints.spec.ports.clone()).unwrap_or_default(),
        history: snapshot
            .get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME))
            .map(|cluster| cluster.spec.history.clone())
            .unwrap_or_default(),
        wants_default_network: service.spec.template.networks.is_empty()
            && snapshot.get::<Network>(&ObjectRef::new(&service.metadata.namespace, DEFAULT_NETWORK)).is_none(),
    }
}

/// A node that is Unknown keeps what it has: only one that is lost is given up (a global service's task then goes with
/// its node).
fn takes_tasks(node: &Node) -> bool {
    let state = node.status.as_ref().map(|status| status.state).unwrap_or_default();
    node.spec.availability == Availability::Active && state != NodeState::Lost && !node.is_deleting()
}
