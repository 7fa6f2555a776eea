//! What is wanted of the mesh, followed from one snapshot to the next, so that one changed task among ten thousand
//! services costs what it touches: what each service's Endpoints say is taken over from the last time where they are the
//! same object.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use reconciler::cache::{Declarations, Snapshot};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::{AddressPools, CLUSTER_NAME, Cluster, DataPlane};
use schemas::kinds::endpoints::{Backend, Endpoints};
use schemas::kinds::network::{Cidr, Network as NetworkObject};
use schemas::kinds::node::Node;
use schemas::kinds::service::{Protocol as Said, PublishMode};
use sha2::{Digest, Sha256};

use super::{Family, Frontend, LocalTask, Machine, MeshState, Network, Protocol, PublishedPort, Way};
use crate::node::links::{self, LinkPrefix, MachineLink, Overlay, Peer};
use crate::node::tasks::OnNode;

/// So many addresses of a machine are believed.
const ADDRESSES_MAX: usize = 16;

/// The mesh that a snapshot asks for.
pub struct Followed {
    pub state: MeshState,
    /// The way from machine to machine.
    pub link: MachineLink,
    /// Machines that have no address of the family that this one is reached at, which the tunnel therefore cannot reach.
    pub apart: BTreeSet<String>,
    /// Addresses of tasks on machines that were lost, or removed, since the last snapshot: what was tracked for them leads
    /// nowhere. Those of tasks that merely leave lead to them until they have gone, and are refused then.
    pub gone: BTreeSet<IpAddr>,
    snapshot: Snapshot,
    /// Whose Endpoints speak of each frontend. One service's, but for a moment when it changes hands.
    speakers: BTreeMap<Spoken, BTreeSet<ObjectRef>>,
}

/// Why nothing can be followed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lacks {
    /// The network controller gives each machine one; it has not come to this one yet.
    #[error("this machine has no address in the overlay yet")]
    Address,
    #[error("the cluster's address pools are not all of IPv4")]
    Pools,
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
    /// From nothing.
    pub fn new(snapshot: &Snapshot, node: &str, prefix: &LinkPrefix) -> Result<Followed, Lacks> {
        let state = rest(snapshot, node, prefix)?;
        let (link, apart) = link(snapshot, node, &state);
        let (gone, speakers) = (BTreeSet::new(), BTreeMap::new());
        let mut followed = Followed { state, link, apart, gone, snapshot: snapshot.clone(), speakers };
        for endpoints in snapshot.all::<Endpoints>() {
            followed.listen(endpoints, node);
            answers(endpoints, node).for_each(|(spoken, answer)| put(&mut followed.state, spoken, answer));
        }
        Ok(followed)
    }

    /// On to another snapshot. Cost: a glance at each Endpoints object, and what has changed.
    pub fn advance(
        mut self,
        snapshot: &Snapshot,
        node: &str,
        prefix: &LinkPrefix,
    ) -> Result<(Followed, Differs), Lacks> {
        let rest = rest(snapshot, node, prefix)?;
        let (mut touched, mut gone) = (BTreeSet::new(), BTreeSet::new());
        let is_away = |backend: &&Backend| {
            let there = snapshot.get::<Node>(&ObjectRef::cluster(&backend.node));
            backend.node != node && there.is_none_or(|there| there.is_lost())
        };
        for (before, now) in differences(&self.snapshot, snapshot) {
            let away = before.iter().flat_map(|endpoints| endpoints.spec.backends.iter().filter(is_away));
            gone.extend(away.flat_map(|backend| backend.addresses.iter().map(|it| it.address)));
            if let Some(endpoints) = &before {
                for spoken in spoken_of(endpoints, node) {
                    touched.insert(spoken);
                    if let Some(speakers) = self.speakers.get_mut(&spoken) {
                        speakers.remove(&endpoints.object_ref());
                    }
                }
            }
            if let Some(endpoints) = &now {
                touched.extend(spoken_of(endpoints, node));
                self.listen(endpoints, node);
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
        let (link, apart) = link(snapshot, node, &rest);
        let state = MeshState { vips, ports, ..rest };
        Ok((Followed { state, link, apart, gone, snapshot: snapshot.clone(), speakers: self.speakers }, differs))
    }

    fn listen(&mut self, endpoints: &Endpoints, node: &str) {
        for spoken in spoken_of(endpoints, node) {
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
            for (_, answer) in answers(endpoints, node).filter(|(of, _)| *of == spoken) {
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
fn rest(snapshot: &Snapshot, node: &str, prefix: &LinkPrefix) -> Result<MeshState, Lacks> {
    let own = snapshot.get::<Node>(&ObjectRef::cluster(node)).and_then(|node| node.status.as_ref()?.overlay_address);
    let machine = machine(&pools(snapshot), prefix, own.ok_or(Lacks::Address)?).ok_or(Lacks::Pools)?;
    let mut state = MeshState::new(machine);
    let way = if is_encrypted(snapshot) { Way::Encrypted } else { Way::Plain };
    state.machine.tunnel = peers(snapshot, node).next().map(|_| way);
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
    // A machine that says it has an address of the overlay takes nobody's.
    let overlay = state.overlay();
    let all = snapshot.all::<Node>().flat_map(|node| addresses(node).iter().take(ADDRESSES_MAX).copied());
    state.nodes = all.filter(|address| !overlay.iter().any(|range| range.contains(address))).collect();
    Ok(state)
}

/// The cluster wants what goes from machine to machine encrypted.
pub(in crate::node) fn is_encrypted(snapshot: &Snapshot) -> bool {
    let cluster = snapshot.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME));
    cluster.is_none_or(|cluster| cluster.spec.data_plane == DataPlane::Encrypted)
}

/// The other machines that have an address in the overlay. What is no such address leads nowhere.
pub(in crate::node) fn peers<'a>(snapshot: &'a Snapshot, node: &'a str) -> impl Iterator<Item = (&'a Node, Ipv4Addr)> {
    let pool = ip_net(pools(snapshot).nodes);
    let others = snapshot.all::<Node>().filter(move |other| other.name() != node);
    let with_address = others.filter_map(|other| Some((&**other, other.status.as_ref()?.overlay_address?)));
    with_address.filter(move |(_, address)| {
        links::is_free(*address) && pool.is_some_and(|pool| pool.contains(&IpAddr::from(*address)))
    })
}

/// The machine's own link, and who is where; and the names of those that the tunnel cannot reach.
fn link(snapshot: &Snapshot, node: &str, state: &MeshState) -> (MachineLink, BTreeSet<String>) {
    let machine = &state.machine;
    let alone = MachineLink { address4: machine.address4, address6: None, ranges: state.overlay(), overlay: None };
    let own = snapshot.get::<Node>(&ObjectRef::cluster(node)).and_then(|node| addresses(node).first().copied());
    let (Some(way), Some(at)) = (machine.tunnel, own) else { return (alone, BTreeSet::new()) };
    let encrypted = way == Way::Encrypted;
    let mut blocks: BTreeMap<&str, BTreeSet<IpNet>> = BTreeMap::new();
    let statuses = snapshot.all::<NetworkObject>().filter_map(|network| network.status.as_ref());
    for given in statuses.flat_map(|status| &status.blocks) {
        blocks.entry(&given.node).or_default().extend(ip_net(given.block));
    }
    let (mut peers, mut apart) = (BTreeMap::new(), BTreeSet::new());
    for (peer, overlay) in self::peers(snapshot, node) {
        // Both ends choose alike: by the address that each is known by first.
        match addresses(peer).first() {
            // What is encrypted goes from either family to either.
            Some(there) if encrypted || there.is_ipv4() == at.is_ipv4() => {
                let blocks = blocks.remove(peer.name()).unwrap_or_default();
                peers.insert(overlay, Peer { at: *there, blocks });
            }
            Some(_) => drop(apart.insert(peer.name().to_owned())),
            None => {}
        }
    }
    let overlay = Overlay { id: overlay_id(snapshot), at, encrypted, peers };
    (MachineLink { overlay: Some(overlay), ..alone }, apart)
}

pub(in crate::node) fn addresses(node: &Node) -> &[IpAddr] {
    node.status.as_ref().and_then(|status| status.machine.as_ref()).map_or(&[], |machine| &machine.addresses)
}

/// Another for each cluster, so that two on the same machines do not hear each other.
fn overlay_id(snapshot: &Snapshot) -> u32 {
    let cluster = snapshot.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME));
    let uid = cluster.map(|cluster| cluster.metadata.uid.to_string()).unwrap_or_default();
    let digest = Sha256::digest(uid.as_bytes());
    u32::from_be_bytes([0, digest[0], digest[1], digest[2]]).max(1)
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

/// The frontends that Endpoints speak of on a machine.
fn spoken_of(endpoints: &Endpoints, node: &str) -> BTreeSet<Spoken> {
    let vips = endpoints.spec.networks.iter().flat_map(|network| network.vip.into_iter().chain(network.vip6));
    vips.map(Spoken::Vip).chain(published(endpoints, node).map(|(port, ..)| Spoken::Port(port))).collect()
}

/// Ports that a machine opens, each with the port of the tasks and for which of them: all there are, or those of the machine
/// itself, which opens such a port while it has one.
fn published(endpoints: &Endpoints, node: &str) -> impl Iterator<Item = (PublishedPort, u16, PublishMode)> {
    let has_own = endpoints.spec.backends.iter().any(|backend| backend.ready && backend.node == node);
    let ports = endpoints.spec.ports.iter().filter(move |port| port.mode == PublishMode::Ingress || has_own);
    ports.filter_map(|port| {
        Some((PublishedPort { protocol: protocol(port.protocol)?, port: port.published? }, port.target, port.mode))
    })
}

/// What Endpoints say of each frontend on a machine: that there is one, and who answers for it, wherever it is.
fn answers<'a>(endpoints: &'a Endpoints, node: &'a str) -> impl Iterator<Item = (Spoken, Answer)> + 'a {
    let ready = || endpoints.spec.backends.iter().filter(|backend| backend.ready);
    let in_network = |backend: &Backend, network: &str| {
        backend.addresses.iter().find(|address| address.network == network).map(|address| address.address)
    };
    let known = spoken_of(endpoints, node).into_iter().map(|spoken| (spoken, Answer::Nobody));
    let vips = endpoints.spec.networks.iter().flat_map(move |attached| {
        attached.vip.into_iter().chain(attached.vip6).flat_map(move |vip| {
            let tasks = ready().filter_map(move |backend| in_network(backend, &attached.network));
            let same_family = tasks.filter(move |task| task.is_ipv4() == vip.is_ipv4());
            same_family.map(move |task| (Spoken::Vip(vip), Answer::Task(task)))
        })
    });
    let ports = published(endpoints, node).flat_map(move |(port, target, mode)| {
        let of_port = ready().filter(move |backend| mode == PublishMode::Ingress || backend.node == node);
        // Any of a task's networks will do: clients from outside are in none.
        let sockets =
            of_port.filter_map(move |backend| Some(SocketAddr::new(backend.addresses.first()?.address, target)));
        sockets.map(move |socket| (Spoken::Port(port), Answer::Socket(socket)))
    });
    known.chain(vips).chain(ports)
}

/// Only what Endpoints say of published ports; for whoever needs nothing else.
pub(super) fn ports(snapshot: &Snapshot, node: &str) -> Option<MeshState> {
    let pools = pools(snapshot);
    let IpAddr::V4(any) = pools.nodes.address() else { return None };
    let mut state = MeshState::new(machine(&pools, &LinkPrefix::default(), any)?);
    for endpoints in snapshot.all::<Endpoints>() {
        let of_ports = answers(endpoints, node).filter(|(spoken, _)| matches!(spoken, Spoken::Port(_)));
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

fn machine(pools: &AddressPools, prefix: &LinkPrefix, address4: Ipv4Addr) -> Option<Machine> {
    let all = [pools.tasks, pools.virtuals, pools.nodes].map(ip_net).into_iter().collect::<Option<_>>()?;
    let machines = BTreeSet::from([ip_net(pools.nodes)?]);
    let of_ipv4 = |nets: &BTreeSet<IpNet>| nets.iter().all(|net| net.addr().is_ipv4());
    let machine = Machine { links: prefix.clone(), pools: all, address4, address6: None, machines, tunnel: None };
    of_ipv4(&machine.pools).then_some(machine)
}

fn ip_net(cidr: Cidr) -> Option<IpNet> {
    IpNet::new(cidr.address(), cidr.prefix()).ok()
}

#[cfg(test)]
mod tests {
    use schemas::kinds::cluster::ClusterSpec;
    use schemas::kinds::endpoints::{EndpointNetwork, EndpointsSpec, TaskAddress};
    use schemas::kinds::network::{NetworkSpec, NetworkStatus, NodeBlock};
    use schemas::kinds::node::{Machine as NodeMachine, NodeSpec, NodeState, NodeStatus};
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
        let mode = if (number / 40).is_multiple_of(2) { PublishMode::Ingress } else { PublishMode::Host };
        let spec = EndpointsSpec {
            service: name.into(),
            networks: vec![EndpointNetwork {
                network: "back".into(),
                vip: Some([10, 129, 0, last].into()),
                ..EndpointNetwork::default()
            }],
            ports: vec![Port { target: 80, published: Some(port), mode, ..Port::default() }],
            backends: (0..number % 10).map(backend).collect(),
            ..EndpointsSpec::default()
        };
        let mut endpoints = Endpoints::new(name, spec);
        endpoints.metadata.namespace = "default".into();
        endpoints
    }

    fn node(name: &str, overlay: &str, at: &str) -> Node {
        let mut node = Node::new(name, NodeSpec::default());
        let machine = NodeMachine { addresses: vec![at.parse().unwrap()], ..NodeMachine::default() };
        let overlay_address = Some(overlay.parse().unwrap());
        node.status = Some(NodeStatus { machine: Some(machine), overlay_address, ..NodeStatus::default() });
        node
    }

    #[test]
    fn the_tunnel_leads_to_every_other_machine_and_its_blocks() {
        let prefix = LinkPrefix::default();
        let mut back = NetworkObject::new("back", NetworkSpec::default());
        let block =
            |node: &str, block: &str| NodeBlock { node: node.to_owned(), block: block.parse().unwrap(), block6: None };
        let blocks = vec![block("n1", "10.192.0.0/24"), block("n2", "10.192.1.0/24"), block("gone", "10.192.2.0/24")];
        back.status = Some(NetworkStatus { blocks, ..NetworkStatus::default() });
        let alone = Snapshot::empty(&declarations()).with(back).with(node("n1", "10.128.0.1", "192.0.2.1"));
        let first = Followed::new(&alone, "n1", &prefix).unwrap();
        assert_eq!((first.link.overlay.as_ref(), first.state.machine.tunnel), (None, None));
        assert_eq!(Followed::new(&alone, "n2", &prefix).err(), Some(Lacks::Address));

        let three = alone.with(node("n2", "10.128.0.2", "192.0.2.2")).with(node("n3", "10.128.0.3", "2001:db8::3"));
        let said = |data_plane| {
            let spec = ClusterSpec { data_plane, ..ClusterSpec::default() };
            three.clone().with(Cluster::new(CLUSTER_NAME, spec))
        };
        let (second, differs) = first.advance(&said(DataPlane::Plain), "n1", &prefix).unwrap();
        assert_eq!(differs, Differs::Anything);
        let overlay = second.link.overlay.clone().unwrap();
        let blocks = BTreeSet::from(["10.192.1.0/24".parse().unwrap()]);
        let peer = Peer { at: "192.0.2.2".parse().unwrap(), blocks };
        assert_eq!(overlay.peers, BTreeMap::from([("10.128.0.2".parse().unwrap(), peer)]));
        assert_eq!(second.apart, BTreeSet::from(["n3".to_owned()]), "another family");
        let (third, _) = second.advance(&said(DataPlane::Encrypted), "n1", &prefix).unwrap();
        assert_eq!((third.link.overlay.unwrap().peers.len(), third.apart.len()), (2, 0), "by way of either");
    }

    #[test]
    fn tasks_of_lost_machines_are_forgotten_and_those_that_leave_are_not() {
        let prefix = LinkPrefix::default();
        let seen = |tasks, state| {
            let mut web = endpoints("web", tasks);
            web.spec.backends.iter_mut().skip(1).for_each(|backend| backend.node = "n2".into());
            let mut second = node("n2", "10.128.0.2", "192.0.2.2");
            second.status.as_mut().unwrap().state = state;
            let own = node("n1", "10.128.0.1", "192.0.2.1");
            Snapshot::empty(&declarations()).with(own).with(second).with(web)
        };
        let three = Followed::new(&seen(3, NodeState::Ready), "n1", &prefix).unwrap();
        let (two, _) = three.advance(&seen(2, NodeState::Ready), "n1", &prefix).unwrap();
        assert_eq!(two.gone, BTreeSet::new(), "it serves on until it is done");
        let (lost, _) = two.advance(&seen(1, NodeState::Lost), "n1", &prefix).unwrap();
        assert_eq!(lost.gone, BTreeSet::from(["10.192.0.2".parse().unwrap()]));
    }

    #[test]
    fn a_port_of_single_machines_is_open_where_a_task_serves_and_leads_to_those_of_the_machine() {
        let prefix = LinkPrefix::default();
        let port = PublishedPort { protocol: Protocol::Tcp, port: 8080 };
        let seen = |first: bool| {
            let mut web = endpoints("web", 2);
            web.spec.ports[0].mode = PublishMode::Host;
            web.spec.backends[0].ready = first;
            web.spec.backends[1].node = "n2".into();
            let nodes = [("n1", "10.128.0.1"), ("n2", "10.128.0.2"), ("n3", "10.128.0.3")];
            let nodes = nodes.into_iter().map(|(name, overlay)| node(name, overlay, "192.0.2.1"));
            nodes.fold(Snapshot::empty(&declarations()).with(web), |snapshot, node| snapshot.with(node))
        };
        let at = |node: &str| Followed::new(&seen(true), node, &prefix).unwrap();
        let opened = |followed: &Followed| followed.state.ports.get(&port).cloned();
        let socket = |text: &str| Some(BTreeSet::from([text.parse().unwrap()]));
        assert_eq!(opened(&at("n1")), socket("10.192.0.1:80"));
        assert_eq!(opened(&at("n2")), socket("10.192.0.2:80"));
        assert_eq!(opened(&at("n3")), None);
        assert!(at("n3").state.vips.len() == 1, "by its virtual address it is reached from everywhere");
        let (leaving, differs) = at("n1").advance(&seen(false), "n1", &prefix).unwrap();
        assert_eq!(opened(&leaving), None);
        let Differs::Frontends(told) = differs else { panic!("{differs:?}") };
        assert!(told.contains(&Frontend::Port(Family::V4, port)));
    }

    #[test]
    fn what_is_followed_is_what_is_seen_anew() {
        let prefix = LinkPrefix::default();
        let mut wanted: BTreeMap<&str, Arc<Endpoints>> = BTreeMap::new();
        let empty = || Snapshot::empty(&declarations()).with(node("n1", "10.128.0.1", "192.0.2.1"));
        let mut followed = Followed::new(&empty(), "n1", &prefix).unwrap();
        let mut number = 7_u32;
        for round in 0..500 {
            number = number.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            let name = ["a", "b", "c", "d"][(number >> 16) as usize % 4];
            match (number >> 20) % 5 {
                0 => drop(wanted.remove(name)),
                _ => drop(wanted.insert(name, Arc::new(endpoints(name, number >> 8)))),
            }
            let snapshot = wanted.values().fold(empty(), |snapshot, endpoints| snapshot.with((**endpoints).clone()));
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
