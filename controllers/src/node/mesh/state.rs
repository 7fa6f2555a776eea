//! What the mesh should do, as plain data. No kernel, no API objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;

use crate::node::links::{LinkName, LinkPrefix};

/// Everything that one machine's mesh is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshState {
    pub machine: Machine,
    /// By id. Their subnets are disjoint.
    pub networks: BTreeMap<String, Network>,
    /// Virtual addresses, each with the addresses of the tasks that answer for it now. Without any, it refuses.
    pub vips: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
    /// Published ports, each with the tasks that answer for it now; v4 clients go to v4 addresses, v6 to v6.
    pub ports: BTreeMap<PublishedPort, BTreeSet<SocketAddr>>,
    /// Tasks on this machine, by id.
    pub tasks: BTreeMap<String, LocalTask>,
    /// Under which addresses this cluster's machines are known to clients, this one included.
    pub nodes: BTreeSet<IpAddr>,
}

impl MeshState {
    pub fn new(machine: Machine) -> MeshState {
        MeshState {
            machine,
            networks: BTreeMap::new(),
            vips: BTreeMap::new(),
            ports: BTreeMap::new(),
            tasks: BTreeMap::new(),
            nodes: BTreeSet::new(),
        }
    }

    /// All that is the overlay's, in as few ranges as can be: what the machine's own link needs routes for.
    pub fn overlay(&self) -> BTreeSet<IpNet> {
        super::plan::Ranges::new(self).overlay
    }

    /// Published ports that `[::1]` must be listened on for: the kernel translates no packet to there.
    ///
    /// Each with where to pass connections on to, by which the mesh shares them out.
    pub fn loopback6_ports(&self) -> BTreeMap<PublishedPort, SocketAddr> {
        let towards = |backends: &BTreeSet<SocketAddr>, port: PublishedPort| {
            let host = if backends.iter().any(SocketAddr::is_ipv4) {
                Some(Ipv4Addr::LOCALHOST.into())
            } else {
                self.machine.address6.map(IpAddr::from)
            };
            host.filter(|_| !backends.is_empty()).map(|host| SocketAddr::new(host, port.port))
        };
        self.ports.iter().filter_map(|(port, backends)| Some((*port, towards(backends, *port)?))).collect()
    }
}

/// What stays as it is while the machine is part of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub links: LinkPrefix,
    /// Where addresses of tasks and machines and virtual addresses are given from; no other host of the world has one.
    /// A change rewrites the fixed rules, in place.
    pub pools: BTreeSet<IpNet>,
    /// This machine's overlay address: what tasks see when the machine speaks to them.
    pub address4: Ipv4Addr,
    /// Without it, tasks have no IPv6.
    pub address6: Option<Ipv6Addr>,
    /// Where the machines' overlay addresses come from; they may speak to every task.
    pub machines: BTreeSet<IpNet>,
    /// What leads to the other machines; none while there are none.
    pub tunnel: Option<Way>,
}

/// How the tunnel's packets get to other machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By a link of their own, encrypted.
    Encrypted,
    /// By the network of the machines.
    Plain,
}

impl Machine {
    pub(super) fn families(&self) -> impl Iterator<Item = Family> + use<> {
        [Some(Family::V4), self.address6.map(|_| Family::V6)].into_iter().flatten()
    }

    pub(super) fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.address4.into()),
            Family::V6 => self.address6.map(IpAddr::from),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Tasks' addresses and VIPs are in here.
    pub subnets: BTreeSet<IpNet>,
    /// Nothing of it reaches the world outside the overlay.
    pub internal: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalTask {
    pub link: LinkName,
    /// The only addresses that it may speak from; each makes it a member of the network whose subnet has it.
    pub addresses: BTreeSet<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Its number in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port that every machine of the cluster listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedPort {
    pub protocol: Protocol,
    pub port: u16,
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.port, self.protocol)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

/// What clients connect to. Each has slots of its own and, while it has any, a counter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// A virtual address: all protocols and ports, as Docker's.
    Vip(IpAddr),
    Port(Family, PublishedPort),
}

impl Frontend {
    pub fn kind(self) -> Kind {
        match self {
            Frontend::Vip(IpAddr::V4(_)) => Kind::Vip4,
            Frontend::Vip(IpAddr::V6(_)) => Kind::Vip6,
            Frontend::Port(Family::V4, _) => Kind::Port4,
            Frontend::Port(Family::V6, _) => Kind::Port6,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frontend::Vip(address) => write!(out, "{address}"),
            Frontend::Port(Family::V4, port) => write!(out, "0.0.0.0:{port}"),
            Frontend::Port(Family::V6, port) => write!(out, "[::]:{port}"),
        }
    }
}

/// Frontends of one kind share their maps and the shape of their chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Vip4,
    Vip6,
    Port4,
    Port6,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Vip4, Kind::Vip6, Kind::Port4, Kind::Port6];

    pub fn family(self) -> Family {
        match self {
            Kind::Vip4 | Kind::Port4 => Family::V4,
            Kind::Vip6 | Kind::Port6 => Family::V6,
        }
    }

    pub fn is_port(self) -> bool {
        matches!(self, Kind::Port4 | Kind::Port6)
    }
}

/// Who answers: an address, and for published ports the port there (0 for a VIP: the port stays as it is).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
}
