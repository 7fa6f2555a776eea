//! What is wanted of the mesh, followed from one snapshot to the next, so that one changed task among ten thousand
//! services costs what it touches: what each service's Endpoints say is taken over from the last time where they are the
//! same object.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use reconciler::cache::{Declarations, Snapshot};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::{AddressPools, CLUSTER_NAME, Cluster};
use schemas::kinds::endpoints::{Backend, Endpoints};
use schemas::kinds::network::{Cidr, Network as NetworkObject};
use schemas::kinds::node::Node;
use schemas::kinds::service::{Protocol as Said, PublishMode};

use super::{Family, Frontend, LocalTask, Machine, MeshState, Network, Protocol, PublishedPort};
use crate::node::links::LinkPrefix;
use crate::node::tasks::OnNode;

/// The mesh that a snapshot asks for.
pub struct Followed {
    pub state: MeshState,
    snapshot: Snapshot,
    /// Whose Endpoints speak of each frontend. One service's, but for a moment when it changes hands.
    speakers: BTreeMap<Spoken, BTreeSet<ObjectRef>>,
}

/// What may differ from the snapshot before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Differs {
    Anything,
    /// Only who answers for these.
    Frontends(BTreeSet<Frontend>),
}

/// A frontend as Endpoints speak of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spoken {
    Vip(IpAddr),
    Port(PublishedPort),
}

/// What has to be declared of the snapshots that are followed.
pub fn declarations() -> Declarations {
    let declared = Declarations::new().kind::<Cluster>().kind::<NetworkObject>().kind::<Endpoints>();
    declared.kind::<Node>().index::<OnNode>()
}

impl Followed {
    /// From nothing. `None` when the address pools are of no use.
    pub fn new(snapshot: &Snapshot, node: &str, prefix: &LinkPrefix) -> Option<Followed> {
        let mut followed =
            Followed { state: rest(snapshot, node, prefix)?, snapshot: snapshot.clone(), speakers: BTreeMap::new() };
        for endpoints in snapshot.all::<Endpoints>() {
            followed.listen(endpoints);
            answers(endpoints, Some(node)).for_each(|(spoken, answer)| put(&mut followed.state, spoken, answer));
        }
        Some(followed)
    }

    /// On to another snapshot. Cost: a glance at each Endpoints object, and what has changed.
    pub fn advance(mut self, snapshot: &Snapshot, node: &str, prefix: &LinkPrefix) -> Option<(Followed, Differs)> {
        let rest = rest(snapshot, node, prefix)?;
        let mut touched = BTreeSet::new();
        for (before, now) in differences(&self.snapshot, snapshot) {
            if let Some(endpoints) = &before {
                for spoken in spoken_of(endpoints) {
                    touched.insert(spoken);
                    if let Some(speakers) = self.speakers.get_mut(&spoken) {
                        speakers.remove(&endpoints.object_ref());
                    }
                }
            }
            if let Some(endpoints) = &now {
                touched.extend(spoken_of(endpoints));
                self.listen(endpoints);
            }
        }
        for spoken in &touched {
            self.say_anew(*spoken, snapshot, node);
        }
        let same = |state: &MeshState| {
            (&state.machine, &state.nodes, &state.networks, &state.tasks)
                == (&rest.machine, &rest.nodes, &rest.networks, &rest.tasks)
        };
        let differs = match same(&self.state) {
            true => Differs::Frontends(touched.iter().flat_map(|spoken| spoken.frontends()).collect()),
            false => Differs::Anything,
        };
        let MeshState { vips, ports, .. } = self.state;
        let state = MeshState { vips, ports, ..rest };
        Some((Followed { state, snapshot: snapshot.clone(), speakers: self.speakers }, differs))
    }

    fn listen(&mut self, endpoints: &Endpoints) {
        for spoken in spoken_of(endpoints) {
            self.speakers.entry(spoken).or_default().insert(endpoints.object_ref());
        }
    }

    /// What everybody who speaks of a frontend says now, together.
    fn say_anew(&mut self, spoken: Spoken, snapshot: &Snapshot, node: &str) {
        match spoken {
            Spoken::Vip(vip) => drop(self.state.vips.remove(&vip)),
            Spoken::Port(port) => drop(self.state.ports.remove(&port)),
        }
        let speakers = self.speakers.get(&spoken).filter(|speakers| !speakers.is_empty());
        let Some(speakers) = speakers else {
            self.speakers.remove(&spoken);
            return;
        };
        for endpoints in speakers.iter().filter_map(|speaker| snapshot.get::<Endpoints>(speaker)) {
            for (_, answer) in answers(endpoints, Some(node)).filter(|(of, _)| *of == spoken) {
                put(&mut self.state, spoken, answer);
            }
        }
    }
}

impl Spoken {
    fn frontends(self) -> Vec<Frontend> {
        match self {
            Spoken::Vip(vip) => vec![Frontend::Vip(vip)],
            Spoken::Port(port) => [Family::V4, Family::V6].map(|family| Frontend::Port(family, port)).into(),
        }
    }
}

/// The frontends of a published port.
pub(super) fn frontends_of(port: PublishedPort) -> Vec<Frontend> {
    Spoken::Port(port).frontends()
}

/// Endpoints that are another object than before, as they were and as they are.
fn differences(before: &Snapshot, now: &Snapshot) -> Vec<(Option<Arc<Endpoints>>, Option<Arc<Endpoints>>)> {
    let (mut old, mut new) = (before.all::<Endpoints>().peekable(), now.all::<Endpoints>().peekable());
    let key = |endpoints: &Arc<Endpoints>| (endpoints.metadata.namespace.clone(), endpoints.metadata.name.clone());
    let mut found = Vec::new();
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return found,
            // The snapshots share what did not change.
            (Some(before), Some(now)) if Arc::ptr_eq(before, now) => {
                old.next();
                new.next();
            }
            (before, now) => {
                let order = match (before, now) {
                    (Some(before), Some(now)) => key(before).cmp(&key(now)),
                    (Some(_), None) => Ordering::Less,
                    _ => Ordering::Greater,
                };
                let gone = (order != Ordering::Greater).then(|| old.next().cloned()).flatten();
                let come = (order != Ordering::Less).then(|| new.next().cloned()).flatten();
                found.push((gone, come));
            }
        }
    }
}

/// Everything but who answers.
fn rest(snapshot: &Snapshot, node: &str, prefix: &LinkPrefix) -> Option<MeshState> {
    let mut state = MeshState::new(machine(&pools(snapshot), prefix)?);
    for network in snapshot.all::<NetworkObject>() {
        let status = network.status.clone().unwrap_or_default();
        let subnets = status.subnet.into_iter().chain(status.subnet6).filter_map(ip_net).collect();
        let id = format!("{}/{}", network.metadata.namespace, network.metadata.name);
        state.networks.insert(id, Network { subnets, internal: network.spec.internal });
    }
    for task in snapshot.by::<OnNode>(&node.to_owned()) {
        let Some(status) = task.status.as_ref().filter(|status| !status.state.is_terminal()) else { continue };
        let addresses: BTreeSet<IpAddr> = status.addresses.iter().map(|address| address.address).collect();
        if !addresses.is_empty() {
            let uid = task.metadata.uid.to_string();
            state.tasks.insert(uid.clone(), LocalTask { link: prefix.task(&uid), addresses });
        }
    }
    let machines = snapshot.all::<Node>().filter_map(|node| node.status.as_ref()?.machine.as_ref());
    state.nodes = machines.flat_map(|machine| machine.addresses.iter().copied()).collect();
    Some(state)
}

/// One that answers, or nobody.
enum Answer {
    Nobody,
    Task(IpAddr),
    Socket(SocketAddr),
}

fn put(state: &mut MeshState, spoken: Spoken, answer: Answer) {
    match spoken {
        Spoken::Vip(vip) => {
            let tasks = state.vips.entry(vip).or_default();
            if let Answer::Task(task) = answer {
                tasks.insert(task);
            }
        }
        Spoken::Port(port) => {
            let sockets = state.ports.entry(port).or_default();
            if let Answer::Socket(socket) = answer {
                sockets.insert(socket);
            }
        }
    }
}

/// The frontends that Endpoints speak of.
fn spoken_of(endpoints: &Endpoints) -> BTreeSet<Spoken> {
    let vips = endpoints.spec.networks.iter().flat_map(|network| network.vip.into_iter().chain(network.vip6));
    vips.map(Spoken::Vip).chain(published(endpoints).map(|(port, _)| Spoken::Port(port))).collect()
}

/// Ports that every machine opens, each with the port of the tasks.
fn published(endpoints: &Endpoints) -> impl Iterator<Item = (PublishedPort, u16)> {
    let ports = endpoints.spec.ports.iter().filter(|port| port.mode == PublishMode::Ingress);
    ports.filter_map(|port| {
        Some((PublishedPort { protocol: protocol(port.protocol)?, port: port.published? }, port.target))
    })
}

/// What Endpoints say of each frontend: that there is one, and who answers for it. `here`: only tasks of that machine, as
/// there is no way to those of others yet; a connection that is refused is better than one that hangs.
fn answers<'a>(endpoints: &'a Endpoints, here: Option<&'a str>) -> impl Iterator<Item = (Spoken, Answer)> + 'a {
    let reached = move |backend: &&Backend| backend.ready && here.is_none_or(|node| backend.node == node);
    let ready = move || endpoints.spec.backends.iter().filter(reached);
    let in_network = move |backend: &Backend, network: &str| {
        backend.addresses.iter().find(|address| address.network == network).map(|address| address.address)
    };
    let known = spoken_of(endpoints).into_iter().map(|spoken| (spoken, Answer::Nobody));
    let vips = endpoints.spec.networks.iter().flat_map(move |attached| {
        attached.vip.into_iter().chain(attached.vip6).flat_map(move |vip| {
            let tasks = ready().filter_map(move |backend| in_network(backend, &attached.network));
            let same_family = tasks.filter(move |task| task.is_ipv4() == vip.is_ipv4());
            same_family.map(move |task| (Spoken::Vip(vip), Answer::Task(task)))
        })
    });
    let ports = published(endpoints).flat_map(move |(port, target)| {
        // Any of a task's networks will do: clients from outside are in none.
        let sockets =
            ready().filter_map(move |backend| Some(SocketAddr::new(backend.addresses.first()?.address, target)));
        sockets.map(move |socket| (Spoken::Port(port), Answer::Socket(socket)))
    });
    known.chain(vips).chain(ports)
}

/// Only what Endpoints say of published ports; for whoever needs nothing else.
pub(super) fn ports(snapshot: &Snapshot) -> Option<MeshState> {
    let mut state = MeshState::new(machine(&pools(snapshot), &LinkPrefix::default())?);
    for endpoints in snapshot.all::<Endpoints>() {
        let of_ports = answers(endpoints, None).filter(|(spoken, _)| matches!(spoken, Spoken::Port(_)));
        of_ports.for_each(|(spoken, answer)| put(&mut state, spoken, answer));
    }
    Some(state)
}

pub(super) fn protocol(said: Said) -> Option<Protocol> {
    match said {
        Said::Tcp => Some(Protocol::Tcp),
        Said::Udp => Some(Protocol::Udp),
        Said::Sctp => None,
    }
}

fn pools(snapshot: &Snapshot) -> AddressPools {
    let cluster = snapshot.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME));
    cluster.map(|cluster| cluster.spec.addresses.clone()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use schemas::kinds::endpoints::{EndpointNetwork, EndpointsSpec, TaskAddress};
    use schemas::kinds::service::PublishedPort as Port;

    use super::*;

    /// Endpoints by a number whose digits say everything: tasks, whether the port is the shared one, another address.
    fn endpoints(name: &str, number: u32) -> Endpoints {
        let backend = |task: u32| Backend {
            task: format!("{name}-{task}"),
            node: "n1".into(),
            ready: true,
            addresses: vec![TaskAddress { network: "back".into(), address: [10, 192, 0, task as u8 + 1].into() }],
        };
        let last = name.as_bytes()[0] + (number / 10 % 2) as u8 * 100;
        let port = if (number / 20).is_multiple_of(2) { 8080 } else { 9000 + u16::from(name.as_bytes()[0]) };
        let spec = EndpointsSpec {
            service: name.into(),
            networks: vec![EndpointNetwork {
                network: "back".into(),
                vip: Some([10, 129, 0, last].into()),
                ..EndpointNetwork::default()
            }],
            ports: vec![Port { target: 80, published: Some(port), ..Port::default() }],
            backends: (0..number % 10).map(backend).collect(),
            ..EndpointsSpec::default()
        };
        let mut endpoints = Endpoints::new(name, spec);
        endpoints.metadata.namespace = "default".into();
        endpoints
    }

    #[test]
    fn what_is_followed_is_what_is_seen_anew() {
        let prefix = LinkPrefix::default();
        let mut wanted: BTreeMap<&str, Arc<Endpoints>> = BTreeMap::new();
        let mut followed = Followed::new(&Snapshot::empty(&declarations()), "n1", &prefix).unwrap();
        let mut number = 7_u32;
        for round in 0..500 {
            number = number.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            let name = ["a", "b", "c", "d"][(number >> 16) as usize % 4];
            match (number >> 20) % 5 {
                0 => drop(wanted.remove(name)),
                _ => drop(wanted.insert(name, Arc::new(endpoints(name, number >> 8)))),
            }
            let empty = Snapshot::empty(&declarations());
            let snapshot = wanted.values().fold(empty, |snapshot, endpoints| snapshot.with((**endpoints).clone()));
            let anew = Followed::new(&snapshot, "n1", &prefix).unwrap();
            let before = followed.state.clone();
            let (next, differs) = followed.advance(&snapshot, "n1", &prefix).unwrap();
            assert_eq!(next.state, anew.state, "round {round}");
            let Differs::Frontends(told) = differs else { panic!("only who answers has changed: {differs:?}") };
            let vips = anew.state.vips.keys().chain(before.vips.keys());
            let untold = vips.filter(|vip| anew.state.vips.get(*vip) != before.vips.get(*vip));
            assert_eq!(untold.copied().find(|vip| !told.contains(&Frontend::Vip(*vip))), None, "round {round}");
            followed = next;
        }
    }
}
