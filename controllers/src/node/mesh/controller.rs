//! The mesh of this machine, from Endpoints, Networks, Tasks and Nodes.
//!
//! **Owns** the machine's own link and the mesh's table; `status.obstacles` of its Node.
//! **Relies on** the tasks controller for links of tasks, on the endpoints controller for who answers.
//! **Promises** what [`super`] does; and that a port on which somebody else listened first stays theirs, until it is
//! free: who would reach their sshd must not end up in a container.
//! **Woken by** Endpoints, Networks, Nodes, the Tasks of this machine, the Cluster; and from time to time, as others may
//! have been at the rules, or come and go at ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use reconciler::ObjectRef;
use reconciler::cache::Snapshot;
use reconciler::causes::chain;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::events::Level;
use reconciler::external::External;
use reconciler::objects::Writer;
use reconciler::seams::{Monotonic, Seams};
use schemas::kinds::cluster::{AddressPools, CLUSTER_NAME, Cluster};
use schemas::kinds::endpoints::{Backend, Endpoints};
use schemas::kinds::network::{Cidr, Network as NetworkObject};
use schemas::kinds::node::{Node, Obstacle as Told, ObstacleKind};
use schemas::kinds::service::reasons::FIREWALL;
use schemas::kinds::service::{Protocol as Said, PublishMode};
use schemas::kinds::task::Task;
use tokio::sync::Mutex;

use crate::applied::{Applied, Follower};

use super::{
    Changed, Converger, LocalTask, Machine, Mesh, MeshState, Network, Obstacle, Protocol, PublishedPort, Rules,
};
use crate::node::links::{LinkPrefix, Links, MachineLink};

/// Nobody tells when another program has changed rules.
const AGAIN: Duration = Duration::from_secs(30);
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
        applied.expect(node, Follower::Mesh);
        let rules = External::new("rules", Rules::new(mesh.clone()), seams.clone());
        let state = State { converger: Converger::new(mesh.clone(), seams.clone()), looked: None };
        let (seams, state) = (seams.clone(), Mutex::new(state));
        let mine = node.to_owned();
        Controller::singleton("mesh", Self { node: node.to_owned(), prefix, links, mesh, seams, applied, state })
            .watches_all::<Endpoints>()
            .watches_all::<NetworkObject>()
            .watches_all::<Node>()
            .watches_all::<Cluster>()
            .watches_external(&rules, |_, _| [Singleton])
            .watches::<Task, _>(move |task, _| (task.spec.node_name.as_ref() == Some(&mine)).then_some(Singleton))
            .writer(Writer::new(format!("node:{node}"), "mesh"))
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
        let (link, mut desired) = observe(cx.snapshot(), &self.node, &self.prefix)
            .ok_or_else(|| Error::terminal("the cluster's address pools are not all of IPv4"))?;
        self.links.ensure_machine(&link).await.map_err(Error::retry)?;
        let mut state = self.state.lock().await;
        let State { converger, looked } = &mut *state;
        let found = self.look(looked, desired.ports.keys().copied().collect()).await;
        let taken = taken(&found);
        if !taken.is_empty() {
            // What is open already stays open: connections hang on it.
            let open = converger.open_ports().await.map_err(Error::retry)?;
            desired.ports.retain(|port, _| open.contains(port) || !taken.contains(port));
        }
        let converged = converger.converge(&desired, Changed::Anything).await.map_err(Error::retry)?;
        self.applied.reached(&self.node, Follower::Mesh, cx.snapshot().resource_version());
        if converged.changes > 0 {
            tracing::debug!(changes = converged.changes, "mesh");
        }
        if let Some(node) = cx.snapshot().get::<Node>(&ObjectRef::cluster(&self.node)) {
            for fault in &converged.faults {
                cx.event_about(&**node, Level::Warning, "MeshFault", fault.to_string());
            }
        }
        self.report(&found, cx).await?;
        Ok(Action::Requeue(if found.is_empty() { AGAIN } else { LOOK }))
    }
}

/// What the mesh of a machine should be. Pure. `None` when the pools are of no use.
fn observe(snapshot: &Snapshot, node: &str, prefix: &LinkPrefix) -> Option<(MachineLink, MeshState)> {
    let machine = machine(&pools(snapshot), prefix)?;
    let address4 = machine.address4;
    let mut state = MeshState::new(machine);
    for network in snapshot.all::<NetworkObject>() {
        let status = network.status.clone().unwrap_or_default();
        let subnets = status.subnet.into_iter().chain(status.subnet6).filter_map(ip_net).collect();
        let id = network_id(&network.metadata.namespace, &network.metadata.name);
        state.networks.insert(id, Network { subnets, internal: network.spec.internal });
    }
    for endpoints in snapshot.all::<Endpoints>() {
        add_endpoints(&mut state, endpoints);
    }
    let here = snapshot.all::<Task>().filter(|task| task.spec.node_name.as_deref() == Some(node));
    for task in here {
        let Some(status) = task.status.as_ref().filter(|status| !status.state.is_terminal()) else { continue };
        let addresses: BTreeSet<IpAddr> = status.addresses.iter().map(|address| address.address).collect();
        if !addresses.is_empty() {
            let uid = task.metadata.uid.to_string();
            state.tasks.insert(uid.clone(), LocalTask { link: prefix.task(&uid), addresses });
        }
    }
    let machines = snapshot.all::<Node>().filter_map(|node| node.status.as_ref()?.machine.as_ref());
    state.nodes = machines.flat_map(|machine| machine.addresses.iter().copied()).collect();
    let link = MachineLink { address4, address6: None, ranges: state.overlay() };
    Some((link, state))
}

fn add_endpoints(state: &mut MeshState, endpoints: &Endpoints) {
    let ready = || endpoints.spec.backends.iter().filter(|backend| backend.ready);
    let in_network = |backend: &Backend, network: &str| {
        backend.addresses.iter().find(|address| address.network == network).map(|address| address.address)
    };
    for attached in &endpoints.spec.networks {
        for vip in attached.vip.into_iter().chain(attached.vip6) {
            let answers = ready().filter_map(|backend| in_network(backend, &attached.network));
            state.vips.entry(vip).or_default().extend(answers.filter(|address| address.is_ipv4() == vip.is_ipv4()));
        }
    }
    for port in endpoints.spec.ports.iter().filter(|port| port.mode == PublishMode::Ingress) {
        let (Some(protocol), Some(published)) = (protocol(port.protocol), port.published) else { continue };
        // Any of a task's networks will do: clients from outside are in none.
        let targets =
            ready().filter_map(|backend| Some(SocketAddr::new(backend.addresses.first()?.address, port.target)));
        state.ports.entry(PublishedPort { protocol, port: published }).or_default().extend(targets);
    }
}

fn protocol(said: Said) -> Option<Protocol> {
    match said {
        Said::Tcp => Some(Protocol::Tcp),
        Said::Udp => Some(Protocol::Udp),
        Said::Sctp => None,
    }
}

fn machine(pools: &AddressPools, prefix: &LinkPrefix) -> Option<Machine> {
    // The one machine of a cluster has the first address of the pool.
    let IpAddr::V4(address4) = pools.nodes.nth(1)? else { return None };
    let all = [pools.tasks, pools.virtuals, pools.nodes].map(ip_net).into_iter().collect::<Option<_>>()?;
    let machines = BTreeSet::from([ip_net(pools.nodes)?]);
    Some(Machine { links: prefix.clone(), pools: all, address4, address6: None, machines })
}

fn ip_net(cidr: Cidr) -> Option<IpNet> {
    IpNet::new(cidr.address(), cidr.prefix()).ok()
}

fn network_id(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Published ports that clients on this machine reach at `[::1]` only with somebody's help, each with where to pass
/// connections on to; but for those that somebody else has.
pub(in crate::node) fn loopback6(snapshot: &Snapshot, node: &str) -> BTreeMap<PublishedPort, SocketAddr> {
    let Some(machine) = machine(&pools(snapshot), &LinkPrefix::default()) else { return BTreeMap::new() };
    let mut state = MeshState::new(machine);
    snapshot.all::<Endpoints>().for_each(|endpoints| add_endpoints(&mut state, endpoints));
    let node = snapshot.get::<Node>(&ObjectRef::cluster(node));
    let obstacles = node.and_then(|node| node.status.as_ref()).map(|status| status.obstacles.as_slice());
    for taken in obstacles.unwrap_or_default().iter().filter(|it| it.kind == ObstacleKind::PortTaken) {
        if let (Some(protocol), Some(port)) = (protocol(taken.protocol), taken.port) {
            state.ports.remove(&PublishedPort { protocol, port });
        }
    }
    state.loopback6_ports()
}

fn pools(snapshot: &Snapshot) -> AddressPools {
    let cluster = snapshot.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME));
    cluster.map(|cluster| cluster.spec.addresses.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reconciler::Resource;
    use reconciler::cache::Declarations;
    use schemas::kinds::endpoints::{EndpointNetwork, EndpointsSpec, TaskAddress};
    use schemas::kinds::network::{NetworkSpec, NetworkStatus};
    use schemas::kinds::node::{NodeSpec, NodeStatus};
    use schemas::kinds::service::PublishedPort as Port;
    use schemas::kinds::task::{DesiredState, Slot, TaskSpec, TaskState, TaskStatus};

    fn snapshot() -> Snapshot {
        let declared = Declarations::new().kind::<Cluster>().kind::<NetworkObject>().kind::<Endpoints>();
        let empty = Snapshot::empty(&declared.kind::<Task>().kind::<Node>());
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
            };
            let mut task = Task::new(name, spec);
            task.metadata.namespace = "default".into();
            task.metadata.uid = reconciler::api::Uid::new(name);
            let addresses = vec![TaskAddress { network: "back".into(), address: "10.192.0.1".parse().unwrap() }];
            task.status = Some(TaskStatus { state, addresses, ..TaskStatus::default() });
            task
        };
        empty
            .with(network)
            .with(endpoints)
            .with(task("a", "n1", TaskState::Running))
            .with(task("elsewhere", "n2", TaskState::Running))
            .with(task("ended", "n1", TaskState::Complete))
    }

    #[test]
    fn only_ready_tasks_answer_and_only_live_ones_here_are_attached() {
        let prefix = LinkPrefix::new("ap").unwrap();
        let (link, state) = observe(&snapshot(), "n1", &prefix).unwrap();
        assert_eq!(link.address4.to_string(), "10.128.0.1");
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
