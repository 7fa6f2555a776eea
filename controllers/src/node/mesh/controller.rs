//! The mesh of this machine, from Endpoints, Networks, Tasks and Nodes.
//!
//! **Owns** the machine's own link and the mesh's table.
//! **Relies on** the tasks controller for links of tasks, on the endpoints controller for who answers.
//! **Promises** what [`super`] does.
//! **Woken by** Endpoints, Networks, Nodes, the Tasks of this machine, the Cluster; and every half minute, as others may
//! have been at the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use reconciler::ObjectRef;
use reconciler::cache::Snapshot;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::events::Level;
use reconciler::external::External;
use reconciler::seams::Seams;
use schemas::kinds::cluster::{AddressPools, CLUSTER_NAME, Cluster};
use schemas::kinds::endpoints::{Backend, Endpoints};
use schemas::kinds::network::{Cidr, Network as NetworkObject};
use schemas::kinds::node::Node;
use schemas::kinds::service::{Protocol as Said, PublishMode};
use schemas::kinds::task::Task;
use tokio::sync::Mutex;

use super::{Changed, Converger, LocalTask, Machine, Mesh, MeshState, Network, Protocol, PublishedPort, Rules};
use crate::node::links::{LinkPrefix, Links, MachineLink};

/// Nobody tells when another program has changed rules.
const AGAIN: Duration = Duration::from_secs(30);

pub struct Meshes {
    node: String,
    prefix: LinkPrefix,
    links: Arc<dyn Links>,
    converger: Mutex<Converger>,
}

impl Meshes {
    pub fn controller(
        node: &str,
        prefix: LinkPrefix,
        links: Arc<dyn Links>,
        mesh: Arc<dyn Mesh>,
        seams: &Seams,
    ) -> Controller<Singleton> {
        let rules = External::new("rules", Rules::new(mesh.clone()), seams.clone());
        let converger = Mutex::new(Converger::new(mesh, seams.clone()));
        let mine = node.to_owned();
        Controller::singleton("mesh", Self { node: node.to_owned(), prefix, links, converger })
            .watches_all::<Endpoints>()
            .watches_all::<NetworkObject>()
            .watches_all::<Node>()
            .watches_all::<Cluster>()
            .watches_external(&rules, |_, _| [Singleton])
            .watches::<Task, _>(move |task, _| (task.spec.node_name.as_ref() == Some(&mine)).then_some(Singleton))
    }
}

impl KeyReconciler for Meshes {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let (link, state) = observe(cx.snapshot(), &self.node, &self.prefix)
            .ok_or_else(|| Error::terminal("the cluster's address pools are not all of IPv4"))?;
        self.links.ensure_machine(&link).await.map_err(Error::retry)?;
        let mut converger = self.converger.lock().await;
        let converged = converger.converge(&state, Changed::Anything).await.map_err(Error::retry)?;
        if converged.changes > 0 {
            tracing::debug!(changes = converged.changes, "mesh");
        }
        if let Some(node) = cx.snapshot().get::<Node>(&ObjectRef::cluster(&self.node)) {
            for fault in &converged.faults {
                cx.event_about(&**node, Level::Warning, "MeshFault", fault.to_string());
            }
        }
        Ok(Action::Requeue(AGAIN))
    }
}

/// What the mesh of a machine should be. Pure. `None` when the pools are of no use.
fn observe(snapshot: &Snapshot, node: &str, prefix: &LinkPrefix) -> Option<(MachineLink, MeshState)> {
    let cluster = snapshot.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME));
    let pools = cluster.map(|cluster| cluster.spec.addresses.clone()).unwrap_or_default();
    let machine = machine(&pools, prefix)?;
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

/// Published ports of both protocols that clients on this machine reach at `[::1]` only with somebody's help, by what
/// is in the Endpoints.
pub(in crate::node) fn published(snapshot: &Snapshot) -> BTreeMap<(Said, u16), Ipv4Addr> {
    let ports = snapshot.all::<Endpoints>().flat_map(|endpoints| endpoints.spec.ports.iter());
    let ingress = ports.filter(|port| port.mode == PublishMode::Ingress && protocol(port.protocol).is_some());
    ingress.filter_map(|port| Some(((port.protocol, port.published?), Ipv4Addr::LOCALHOST))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reconciler::Resource;
    use reconciler::cache::Declarations;
    use schemas::kinds::endpoints::{EndpointNetwork, EndpointsSpec, TaskAddress};
    use schemas::kinds::network::{NetworkSpec, NetworkStatus};
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
        assert_eq!(published(&snapshot()).len(), 1);
    }
}
