//! What there is of a service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reconciler::cache::Snapshot;
use reconciler::{ObjectRef, Resource, Timestamp};
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster, History};
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::labels::REBALANCE;
use schemas::kinds::network::{DEFAULT_NETWORK, Network};
use schemas::kinds::node::{Availability, Node, NodeState, Obstacle};
use schemas::kinds::revision::{FileVersion, Revision};
use schemas::kinds::service::{Mode, Protocol, PublishMode, PublishedPort, Service};
use schemas::kinds::task::Task;

use super::Waited;
use crate::applied::Applied;
use crate::cluster::scheduler::next_to_move;
use crate::files;

/// Everything that the plan may know.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// With the template that its tasks can be made from: while something is missing that they would see, the one before.
    pub service: Arc<Service>,
    pub revisions: Vec<Arc<Revision>>,
    /// Which data the Secrets and Configs have that tasks of that template see; `None` while there is no such template.
    pub files: Option<Vec<FileVersion>>,
    /// Which of those are not there that its own template names, in words.
    pub missing: Vec<String>,
    /// Of this incarnation of the service.
    pub tasks: Vec<Arc<Task>>,
    /// Nodes that may have tasks, in order of name. A paused one keeps what it has.
    pub nodes: Vec<Arc<Node>>,
    /// Nodes that shall be emptied.
    pub drained: BTreeSet<String>,
    /// Nodes that are lost: what they run is nobody's help, and may run on for all that is known.
    pub lost: BTreeSet<String>,
    /// Nodes that are lost and that this service waits for.
    pub away: BTreeSet<String>,
    /// What somebody asked for who wants its tasks spread evenly.
    pub evening: Option<Evening>,
    /// Tasks that new connections may still be sent to.
    pub backends: BTreeSet<String>,
    /// Who may still send connections to tasks that are no longer among them.
    pub lagging: Vec<String>,
    /// How long tasks that leave have been out of `backends`, and those that were rejected are so.
    pub waited: Waited,
    /// As they were allocated.
    pub ports: Vec<PublishedPort>,
    /// Which other service has a port that this one asks for and was not given.
    pub rivals: BTreeMap<(Protocol, u16), String>,
    /// What is in the way of published ports, with the name of the machine that says so.
    pub obstacles: Vec<(String, Obstacle)>,
    pub history: History,
    /// It wants the network of those that name none, and that is not there yet.
    pub wants_default_network: bool,
}

/// A wish to have tasks spread evenly.
#[derive(Clone, Debug)]
pub(super) struct Evening {
    /// As it was said.
    pub asked: String,
    /// The task that is the next to move; `None` where nothing is left to be.
    pub next: Option<Arc<Task>>,
}

pub(super) fn observe(
    snapshot: &Snapshot,
    service: &Arc<Service>,
    applied: Option<&Applied>,
    waited: Waited,
    now: Timestamp,
) -> Seen {
    let tasks: Vec<Arc<Task>> = snapshot.owned_by::<Task>(&service.metadata.uid).cloned().collect();
    let on_disconnect = service.spec.on_disconnect;
    let lost_for = |node: &String| waited.lost.get(node).copied().unwrap_or_default();
    let (away, lost) = lost(snapshot).into_iter().partition(|node| on_disconnect.waits(lost_for(node)));
    let endpoints = snapshot.get::<Endpoints>(&service.object_ref());
    let uid = &service.metadata.uid;
    let machines: Vec<&str> = snapshot.all::<Node>().filter(|node| !node.is_lost()).map(|node| node.name()).collect();
    let (possible, files, missing) = possible(snapshot, service);
    Seen {
        service: possible,
        missing,
        revisions: snapshot.owned_by::<Revision>(uid).cloned().collect(),
        files,
        evening: evening(snapshot, service, &tasks, now),
        tasks,
        nodes: snapshot.all::<Node>().filter(|node| may_have_tasks(node)).cloned().collect(),
        drained: drained(snapshot),
        backends: backends(snapshot, service),
        lagging: match (endpoints, applied) {
            (Some(endpoints), Some(applied)) if !waited.left.is_empty() => {
                applied.behind(endpoints.metadata.resource_version, &machines)
            }
            _ => Vec::new(),
        },
        lost,
        away,
        waited,
        rivals: endpoints.map(|endpoints| rivals(snapshot, service, &endpoints.spec.ports)).unwrap_or_default(),
        ports: endpoints.map(|endpoints| endpoints.spec.ports.clone()).unwrap_or_default(),
        obstacles: match service.spec.endpoint.ports.is_empty() {
            true => Vec::new(),
            false => obstacles(snapshot),
        },
        history: snapshot
            .get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME))
            .map(|cluster| cluster.spec.history.clone())
            .unwrap_or_default(),
        wants_default_network: service.spec.template.networks.is_empty()
            && snapshot.get::<Network>(&ObjectRef::new(&service.metadata.namespace, DEFAULT_NETWORK)).is_none(),
    }
}

fn evening(snapshot: &Snapshot, service: &Service, tasks: &[Arc<Task>], now: Timestamp) -> Option<Evening> {
    let asked = service.metadata.annotations.get(REBALANCE)?;
    let done = service.status.as_ref().and_then(|status| status.rebalanced.as_ref());
    // Of a global service each is where it has to be.
    let next = || if service.spec.mode == Mode::Replicated { next_to_move(snapshot, tasks, now) } else { None };
    (done != Some(asked)).then(|| Evening { asked: asked.clone(), next: next() })
}

fn possible(snapshot: &Snapshot, service: &Arc<Service>) -> (Arc<Service>, Option<Vec<FileVersion>>, Vec<String>) {
    let missing = match files::versions(service, snapshot) {
        Ok(files) => return (service.clone(), Some(files), Vec::new()),
        Err(missing) => missing,
    };
    let before = service.status.as_ref().and_then(|status| status.revision.as_ref());
    let before = before.map(|name| ObjectRef::new(&service.metadata.namespace, name));
    let before = before.and_then(|reference| snapshot.get::<Revision>(&reference));
    let Some((revision, template)) = before.and_then(|it| Some((it, it.spec.content.template()?))) else {
        return (service.clone(), None, missing);
    };
    let mut possible = (**service).clone();
    possible.spec.template = template.clone();
    (Arc::new(possible), Some(revision.spec.files.clone()), missing)
}

/// The tasks that the service's Endpoints name.
pub(super) fn backends(snapshot: &Snapshot, service: &Service) -> BTreeSet<String> {
    let endpoints = snapshot.get::<Endpoints>(&service.object_ref());
    endpoints.into_iter().flat_map(|it| it.spec.backends.iter().map(|backend| backend.task.clone())).collect()
}

fn rivals(snapshot: &Snapshot, service: &Service, given: &[PublishedPort]) -> BTreeMap<(Protocol, u16), String> {
    let missing: BTreeMap<(Protocol, u16), PublishMode> =
        numbers(&service.spec.endpoint.ports).filter(|port| !numbers(given).any(|other| other == *port)).collect();
    // Looked for only where one is missing: it costs a look at everybody's ports.
    if missing.is_empty() {
        return BTreeMap::new();
    }
    // Ports of single machines are kept apart by the scheduler.
    let is_rival = |(port, mode): &((Protocol, u16), PublishMode)| {
        missing.get(port).is_some_and(|own| [*own, *mode].contains(&PublishMode::Ingress))
    };
    let others = snapshot.all::<Endpoints>().filter(|other| other.object_ref() != service.object_ref());
    let held = others.flat_map(|other| {
        numbers(&other.spec.ports).filter(is_rival).map(|(port, _)| (port, other.metadata.name.clone()))
    });
    held.collect()
}

/// Ports by the numbers that they have outside, on every machine or on those that run a task.
pub(super) fn numbers(ports: &[PublishedPort]) -> impl Iterator<Item = ((Protocol, u16), PublishMode)> {
    ports.iter().filter_map(|port| port.published.map(|number| ((port.protocol, number), port.mode)))
}

fn obstacles(snapshot: &Snapshot) -> Vec<(String, Obstacle)> {
    let live = snapshot.all::<Node>().filter(|node| !node.is_deleting());
    let of = |node: &Arc<Node>| {
        let status = node.status.clone().unwrap_or_default();
        let name = node.metadata.name.clone();
        let said = if status.state == NodeState::Ready { status.obstacles } else { Vec::new() };
        said.into_iter().map(move |obstacle| (name.clone(), obstacle)).collect::<Vec<_>>()
    };
    live.flat_map(of).collect()
}

/// The nodes that are lost.
pub(in crate::cluster) fn lost(snapshot: &Snapshot) -> BTreeSet<String> {
    let nodes = snapshot.all::<Node>().filter(|node| node.is_lost());
    nodes.map(|node| node.metadata.name.clone()).collect()
}

/// The nodes that shall be emptied, and are there to be.
fn drained(snapshot: &Snapshot) -> BTreeSet<String> {
    let nodes = snapshot.all::<Node>().filter(|node| node.spec.availability == Availability::Drain && !node.is_lost());
    nodes.map(|node| node.metadata.name.clone()).collect()
}

/// A node that is Unknown keeps what it has: only one that is lost is given up (a global service's task then goes with
/// its node).
fn may_have_tasks(node: &Node) -> bool {
    node.spec.availability != Availability::Drain && !node.is_lost() && !node.is_deleting()
}
