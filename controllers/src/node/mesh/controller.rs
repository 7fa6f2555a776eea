//! The mesh of this machine, from Endpoints, Networks, Tasks and Nodes.
//!
//! **Owns** the machine's own link and the mesh's table; `status.obstacles` of its Node.
//! **Relies on** the tasks controller for links of tasks, on the endpoints controller for who answers.
//! **Promises** what [`super`] does; and that a port on which somebody else listened first stays theirs, until it is
//! free: who would reach their sshd must not end up in a container.
//! **Woken by** Endpoints, Networks, Nodes, the Tasks of this machine, the Cluster; and from time to time, as others may
//! have been at the rules, or come and go at ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reconciler::ObjectRef;
use reconciler::cache::Snapshot;
use reconciler::causes::chain;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::events::Level;
use reconciler::external::External;
use reconciler::objects::Writer;
use reconciler::seams::{Monotonic, Seams};
use schemas::kinds::cluster::Cluster;
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::network::Network as NetworkObject;
use schemas::kinds::node::{Node, Obstacle as Told, ObstacleKind};
use schemas::kinds::service::Protocol as Said;
use schemas::kinds::service::reasons::FIREWALL;
use schemas::kinds::task::Task;
use tokio::sync::Mutex;

use super::follow::{self, Differs, Followed, Lacks};
use super::{Changed, Converger, Mesh, Obstacle, Protocol, PublishedPort, Rules, Stale};
use crate::applied::{self, Applied, Follower};
use crate::node::links::{LinkPrefix, Links, MachineLink};
use crate::node::tasks::OnNode;

/// Nobody tells when another program listens somewhere or bars the way.
const AGAIN: Duration = Duration::from_secs(10);
/// Nor when what is in the way has gone; somebody waits for it.
const LOOK: Duration = Duration::from_secs(1);

pub struct Meshes {
    node: String,
    prefix: LinkPrefix,
    links: Arc<dyn Links>,
    mesh: Arc<dyn Mesh>,
    seams: Seams,
    applied: Applied,
    state: Mutex<State>,
}

/// Caches.
struct State {
    converger: Converger,
    looked: Option<Looked>,
    /// What the last round was for; none while it may not have come about.
    followed: Option<Followed>,
    /// Ports that were left to somebody else in it.
    closed: BTreeSet<PublishedPort>,
    /// What is still tracked of tasks elsewhere that are gone.
    stale: BTreeSet<Stale>,
    /// The machine's own link as it was last seen to, and when.
    link: Option<(MachineLink, Monotonic)>,
}

/// A look at what is in the way.
struct Looked {
    at: Monotonic,
    /// The published ports that were looked for.
    ports: BTreeSet<PublishedPort>,
    found: BTreeSet<Obstacle>,
}

impl Meshes {
    pub fn controller(
        node: &str,
        prefix: LinkPrefix,
        links: Arc<dyn Links>,
        mesh: Arc<dyn Mesh>,
        seams: &Seams,
    ) -> Controller<Singleton> {
        Self::telling(node, prefix, links, mesh, Applied::default(), seams)
    }

    /// The same, that says how far it has come.
    pub fn telling(
        node: &str,
        prefix: LinkPrefix,
        links: Arc<dyn Links>,
        mesh: Arc<dyn Mesh>,
        applied: Applied,
        seams: &Seams,
    ) -> Controller<Singleton> {
        let rules = External::new("rules", Rules::new(mesh.clone()), seams.clone());
        let state = State {
            converger: Converger::new(mesh.clone(), seams.clone()),
            looked: None,
            followed: None,
            closed: BTreeSet::new(),
            stale: BTreeSet::new(),
            link: None,
        };
        let (seams, state) = (seams.clone(), Mutex::new(state));
        let mine = node.to_owned();
        Controller::singleton("mesh", Self { node: node.to_owned(), prefix, links, mesh, seams, applied, state })
            .index::<OnNode>()
            .watches_all::<Endpoints>()
            .watches_all::<NetworkObject>()
            .watches_all::<Node>()
            .watches_all::<Cluster>()
            .watches_external(&rules, |_, _| [Singleton])
            .watches::<Task, _>(move |task, _| (task.spec.node_name.as_ref() == Some(&mine)).then_some(Singleton))
            .writer(Writer::new(format!("node:{node}"), "mesh"))
    }

    /// Now and then also when it is the same as before: somebody may have taken it away.
    async fn ensure_link(
        &self,
        ensured: &mut Option<(MachineLink, Monotonic)>,
        link: MachineLink,
    ) -> Result<(), Error> {
        let now = self.seams.monotonic();
        if ensured.as_ref().is_some_and(|(known, at)| *known == link && now.since(*at) < AGAIN) {
            return Ok(());
        }
        *ensured = None;
        self.links.ensure_machine(&link).await.map_err(Error::retry)?;
        *ensured = Some((link, now));
        Ok(())
    }

    /// What is in the way of these ports, as of a moment ago.
    async fn look(&self, looked: &mut Option<Looked>, ports: BTreeSet<PublishedPort>) -> BTreeSet<Obstacle> {
        let now = self.seams.monotonic();
        if let Some(last) = looked.as_ref().filter(|last| last.ports.is_superset(&ports)) {
            let fresh = if last.found.is_empty() { AGAIN } else { LOOK };
            if now.since(last.at) < fresh {
                return last.found.clone();
            }
        }
        match self.mesh.obstacles(ports.clone()).await {
            Ok(found) => {
                *looked = Some(Looked { at: now, ports, found: found.clone() });
                found
            }
            // The mesh is worth more than knowing why somebody might not reach it.
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot look for what is in the mesh's way");
                looked.as_ref().map(|last| last.found.clone()).unwrap_or_default()
            }
        }
    }

    /// Says what is in the way where everybody can read it.
    async fn report(&self, found: &BTreeSet<Obstacle>, cx: &Ctx) -> Result<(), Error> {
        let Some(node) = cx.snapshot().get::<Node>(&ObjectRef::cluster(&self.node)) else { return Ok(()) };
        let mut desired = (**node).clone();
        let status = desired.status.get_or_insert_default();
        let before = std::mem::replace(&mut status.obstacles, found.iter().map(told).collect());
        if status.obstacles == before {
            return Ok(());
        }
        for firewall in status.obstacles.iter().filter(|it| it.kind == ObstacleKind::Firewall && !before.contains(it)) {
            cx.event_about(&**node, Level::Warning, FIREWALL, firewall.message.clone());
        }
        cx.client().update_status(&**node, &desired).await?;
        Ok(())
    }
}

fn told(obstacle: &Obstacle) -> Told {
    let message = obstacle.who();
    match obstacle {
        Obstacle::ForeignDrop { .. } => Told { kind: ObstacleKind::Firewall, message, ..Told::default() },
        Obstacle::PortTaken { port, .. } => {
            let protocol = match port.protocol {
                Protocol::Tcp => Said::Tcp,
                Protocol::Udp => Said::Udp,
            };
            Told { kind: ObstacleKind::PortTaken, port: Some(port.port), protocol, message }
        }
    }
}

/// The ports on which somebody else listens.
fn taken(found: &BTreeSet<Obstacle>) -> BTreeSet<PublishedPort> {
    let port = |obstacle: &Obstacle| match obstacle {
        Obstacle::PortTaken { port, .. } => Some(*port),
        Obstacle::ForeignDrop { .. } => None,
    };
    found.iter().filter_map(port).collect()
}

impl KeyReconciler for Meshes {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        let followed = match state.followed.take() {
            Some(before) => before.advance(cx.snapshot(), &self.node, &self.prefix),
            None => Followed::new(cx.snapshot(), &self.node, &self.prefix).map(|anew| (anew, Differs::Anything)),
        };
        let (mut followed, differs) = match followed {
            Ok(followed) => followed,
            Err(Lacks::Address) => return Ok(Action::Await),
            Err(lacks @ Lacks::Pools) => return Err(Error::terminal(lacks.to_string())),
        };
        state.stale.extend(std::mem::take(&mut followed.gone).into_iter().map(Stale::Address));
        let desired = &mut followed.state;
        let found = self.look(&mut state.looked, desired.ports.keys().copied().collect()).await;
        let mut closed = taken(&found);
        if !closed.is_empty() {
            // What is open already stays open: connections hang on it.
            let open = state.converger.open_ports().await.map_err(Error::retry)?;
            closed.retain(|port| !open.contains(port));
        }
        let left_out: Vec<_> = closed.iter().filter_map(|port| desired.ports.remove_entry(port)).collect();
        let touched = match differs {
            Differs::Anything => None,
            Differs::Frontends(mut frontends) => {
                let turned = closed.symmetric_difference(&state.closed);
                frontends.extend(turned.flat_map(|port| follow::frontends_of(*port)));
                Some(frontends)
            }
        };
        let changed = touched.as_ref().map_or(Changed::Anything, Changed::Frontends);
        let converged = state.converger.converge(desired, changed).await.map_err(Error::retry)?;
        if !state.stale.is_empty() {
            self.mesh.forget(state.stale.clone()).await.map_err(Error::retry)?;
            state.stale.clear();
        }
        desired.ports.extend(left_out);
        // After the rules, which say who may use it; and whatever it lacks, they hold.
        let link = self.ensure_link(&mut state.link, followed.link.clone()).await;
        let apart = followed.apart.clone();
        (state.followed, state.closed) = (Some(followed), closed);
        self.applied.reached(&self.node, Follower::Mesh, applied::newest(cx.snapshot()));
        if converged.changes > 0 {
            tracing::debug!(changes = converged.changes, "mesh");
        }
        if let Some(node) = cx.snapshot().get::<Node>(&ObjectRef::cluster(&self.node)) {
            for fault in &converged.faults {
                cx.event_about(&**node, Level::Warning, "MeshFault", fault.to_string());
            }
            for other in &apart {
                let message =
                    format!("there is no way to the tasks of {other}: its addresses are of another IP version");
                cx.event_about(&**node, Level::Warning, "MeshFault", message);
            }
        }
        self.report(&found, cx).await?;
        link?;
        Ok(Action::Requeue(if found.is_empty() { AGAIN } else { LOOK }))
    }
}

/// Published ports that clients on this machine reach at `[::1]` only with somebody's help, each with where to pass
/// connections on to; but for those that somebody else has.
pub(in crate::node) fn loopback6(snapshot: &Snapshot, node: &str) -> BTreeMap<PublishedPort, SocketAddr> {
    let Some(mut state) = follow::ports(snapshot, node) else { return BTreeMap::new() };
    let node = snapshot.get::<Node>(&ObjectRef::cluster(node));
    let obstacles = node.and_then(|node| node.status.as_ref()).map(|status| status.obstacles.as_slice());
    for taken in obstacles.unwrap_or_default().iter().filter(|it| it.kind == ObstacleKind::PortTaken) {
        if let (Some(protocol), Some(port)) = (follow::protocol(taken.protocol), taken.port) {
            state.ports.remove(&PublishedPort { protocol, port });
        }
    }
    state.loopback6_ports()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reconciler::Resource;
    use std::net::IpAddr;

    use schemas::kinds::endpoints::{Backend, EndpointNetwork, EndpointsSpec, TaskAddress};
    use schemas::kinds::network::{NetworkSpec, NetworkStatus};
    use schemas::kinds::node::{NodeSpec, NodeStatus};
    use schemas::kinds::service::PublishedPort as Port;
    use schemas::kinds::task::{DesiredState, Slot, TaskSpec, TaskState, TaskStatus};

    fn snapshot() -> Snapshot {
        let empty = Snapshot::empty(&follow::declarations());
        let mut network = NetworkObject::new("back", NetworkSpec::default());
        network.metadata.namespace = "default".into();
        network.status = Some(NetworkStatus { subnet: Some("10.192.0.0/18".parse().unwrap()), ..Default::default() });
        let backend = |task: &str, address: &str, ready| Backend {
            task: task.into(),
            node: "n1".into(),
            ready,
            addresses: vec![TaskAddress { network: "back".into(), address: address.parse().unwrap() }],
        };
        let spec = EndpointsSpec {
            service: "web".into(),
            networks: vec![EndpointNetwork {
                network: "back".into(),
                vip: Some("10.129.0.1".parse().unwrap()),
                ..EndpointNetwork::default()
            }],
            ports: vec![Port { target: 80, published: Some(5000), ..Port::default() }],
            backends: vec![backend("a", "10.192.0.1", true), backend("b", "10.192.0.2", false)],
            ..EndpointsSpec::default()
        };
        let mut endpoints = Endpoints::new("web", spec);
        endpoints.metadata.namespace = "default".into();
        let task = |name: &str, node: &str, state| {
            let spec = TaskSpec {
                service: "web".into(),
                revision: "r".into(),
                slot: Slot::Number(1),
                node_name: Some(node.into()),
                desired: DesiredState::Running,
                networks: vec![],
                in_place_of: None,
            };
            let mut task = Task::new(name, spec);
            task.metadata.namespace = "default".into();
            task.metadata.uid = reconciler::api::Uid::new(name);
            let addresses = vec![TaskAddress { network: "back".into(), address: "10.192.0.1".parse().unwrap() }];
            task.status = Some(TaskStatus { state, addresses, ..TaskStatus::default() });
            task
        };
        let mut n1 = Node::new("n1", NodeSpec::default());
        n1.status = Some(NodeStatus { overlay_address: Some([10, 128, 0, 7].into()), ..NodeStatus::default() });
        empty
            .with(n1)
            .with(network)
            .with(endpoints)
            .with(task("a", "n1", TaskState::Running))
            .with(task("elsewhere", "n2", TaskState::Running))
            .with(task("ended", "n1", TaskState::Complete))
    }

    #[test]
    fn only_ready_tasks_answer_and_only_live_ones_here_are_attached() {
        let prefix = LinkPrefix::new("ap").unwrap();
        let state = Followed::new(&snapshot(), "n1", &prefix).unwrap().state;
        assert_eq!(state.machine.address4.to_string(), "10.128.0.7");
        let port = PublishedPort { protocol: Protocol::Tcp, port: 5000 };
        assert_eq!(state.ports[&port], BTreeSet::from(["10.192.0.1:80".parse().unwrap()]));
        assert_eq!(state.vips[&"10.129.0.1".parse::<IpAddr>().unwrap()].len(), 1);
        assert_eq!(state.tasks.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(state.networks["default/back"].subnets.len(), 1);
        let help: Vec<_> = loopback6(&snapshot(), "n1").into_iter().collect();
        assert_eq!(help, [(port, "127.0.0.1:5000".parse().unwrap())]);
        let mut node = Node::new("n1", NodeSpec::default());
        let taken = Told { port: Some(5000), ..Told::default() };
        node.status = Some(NodeStatus { obstacles: vec![taken], ..NodeStatus::default() });
        assert!(loopback6(&snapshot().with(node), "n1").is_empty(), "it is somebody else's");
    }
}
