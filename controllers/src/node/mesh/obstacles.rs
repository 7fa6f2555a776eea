//! What on this machine is in the mesh's way and is not ours to change: other firewalls, taken ports.
//!
//! A base chain that drops wins over every accept of ours. A process that listens on a published port is not reached
//! any more, as packets are translated before they come to it. Neither shows in our own table, so both are looked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    net::{IpAddr, Ipv6Addr},
};

use super::state::{Protocol, PublishedPort};
use crate::node::links::{GATEWAY, GATEWAY6, LinkPrefix};
use crate::node::sys::{
    netlink::{Attributes, NetlinkError, Socket, attributes, read_be32, read_text},
    netns,
    nft::header,
    xtables::{self, Hook as XtablesHook},
};

/// Something in the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// A chain of somebody else drops by its policy, and has no rule that lets tasks' links through.
    ForeignDrop {
        what: Dropped,
        /// As in `nft list`: `ip filter`, `inet firewalld`; for iptables-legacy `iptables-legacy filter`.
        table: String,
        chain: String,
    },
    /// A process listens on a published port: clients that mean it reach the service.
    PortTaken {
        port: PublishedPort,
        /// Where it listens.
        address: IpAddr,
        /// Name and pid, if it could be found.
        process: Option<String>,
    },
}

/// Which packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// All that tasks send and get.
    Forwarded,
    /// What tasks send to their machine: questions to its name server, and published ports that nobody answers for.
    Incoming,
}

impl Dropped {
    const ALL: [Dropped; 2] = [Dropped::Forwarded, Dropped::Incoming];

    fn hook(self) -> XtablesHook {
        match self {
            Dropped::Forwarded => XtablesHook::Forward,
            Dropped::Incoming => XtablesHook::Input,
        }
    }

    fn chain_of_iptables(self) -> &'static str {
        match self {
            Dropped::Forwarded => "FORWARD",
            Dropped::Incoming => "INPUT",
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::ForeignDrop { what: Dropped::Forwarded, table, chain } => {
                write!(out, "chain {chain} of {table} drops what is forwarded, the tasks' packets among it")
            }
            Obstacle::ForeignDrop { what: Dropped::Incoming, table, chain } => {
                let what = "what comes to this machine, what tasks ask its name server among it";
                write!(out, "chain {chain} of {table} drops {what}")
            }
            Obstacle::PortTaken { port, address, process } => {
                let process = process.as_deref().unwrap_or("a process");
                write!(out, "{process} listens on published port {port} at {address}")
            }
        }
    }
}

/// The verdict.
const DROP: u32 = 0;

/// Chains of others that drop what tasks send or get.
pub(super) fn foreign_drops(
    socket: &mut Socket,
    own_table: &str,
    links: &LinkPrefix,
) -> Result<BTreeSet<Obstacle>, NetlinkError> {
    let mut found = BTreeSet::new();
    for (family, name) in [(1, "inet"), (2, "ip"), (10, "ip6")] {
        for (what, table, chain) in dropping_chains(socket, family)? {
            let ours = family == 1 && table == own_table;
            if !ours && !lets_tasks_through(socket, family, [&table, &chain], &links.tasks())? {
                found.insert(Obstacle::ForeignDrop { what, table: format!("{name} {table}"), chain });
            }
        }
    }
    for (family, tool) in [(xtables::Family::V4, "iptables-legacy"), (xtables::Family::V6, "ip6tables-legacy")] {
        for what in Dropped::ALL {
            // No such table, or no leave to ask for it: then nobody uses it here.
            if xtables::filter_drops(family, what.hook(), &links.tasks()).unwrap_or(false) {
                let (table, chain) = (format!("{tool} filter"), what.chain_of_iptables().to_owned());
                found.insert(Obstacle::ForeignDrop { what, table, chain });
            }
        }
    }
    Ok(found)
}

fn dropping_chains(socket: &mut Socket, family: u8) -> Result<Vec<(Dropped, String, String)>, NetlinkError> {
    /// `NFT_MSG_GETCHAIN`.
    const GET_CHAIN: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | 4;
    let mut found = Vec::new();
    socket.dump(GET_CHAIN, &header(family), |_, payload| {
        if payload.first() != Some(&family) {
            return;
        }
        let hook = body(payload).find(4).and_then(|hook| attributes(hook).find(1)).and_then(read_be32);
        let policy = body(payload).find(5).and_then(read_be32);
        let what = Dropped::ALL.into_iter().find(|what| Some(what.hook() as u32) == hook);
        if let (Some(what), Some(DROP), Some(table), Some(chain)) =
            (what, policy, body(payload).find(1), body(payload).find(3))
        {
            found.push((what, read_text(table), read_text(chain)));
        }
    })?;
    Ok(found)
}

/// Whether a rule of that chain accepts what comes from the tasks' links, by the beginning of their names: the way out
/// that people are told (`iptables -I FORWARD -i aplt+ -j ACCEPT`). Whether they also let the answers and the clients
/// in cannot be read off reliably; one such rule is taken as their being aware of it.
fn lets_tasks_through(
    socket: &mut Socket,
    family: u8,
    [table, chain]: [&str; 2],
    links: &str,
) -> Result<bool, NetlinkError> {
    /// `NFT_MSG_GETRULE`.
    const GET_RULE: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | 7;
    let mut query = header(family);
    query.put_text(1, table);
    query.put_text(2, chain);
    let mut found = false;
    socket.dump(GET_RULE, &query, |_, payload| {
        let expressions = body(payload).find(4).unwrap_or_default();
        found |= accepts_links(expressions, links);
    })?;
    Ok(found)
}

fn accepts_links(expressions: &[u8], links: &str) -> bool {
    let (mut names, mut accepts) = (false, false);
    for (_, expression) in attributes(expressions) {
        let kind = attributes(expression).find(1).map(read_text).unwrap_or_default();
        let data = attributes(expression).find(2).unwrap_or_default();
        let constant = |kind: u16| attributes(attributes(data).find(kind)?).find(1);
        match kind.as_str() {
            "cmp" => names |= constant(3).is_some_and(|name| name.starts_with(links.as_bytes())),
            "immediate" => {
                let verdict = attributes(data).find(2).and_then(|value| attributes(value).find(2));
                accepts |= verdict.and_then(|it| attributes(it).find(1)).and_then(read_be32) == Some(1);
            }
            _ => {}
        }
    }
    names && accepts
}

fn body(payload: &[u8]) -> Attributes<'_> {
    attributes(payload.get(4..).unwrap_or_default())
}

impl Obstacle {
    /// Who is in the way, for people who know which port or firewall is meant.
    pub fn who(&self) -> String {
        match self {
            Obstacle::ForeignDrop { .. } => self.to_string(),
            Obstacle::PortTaken { address, process, .. } => {
                format!("{} listens at {address}", process.as_deref().unwrap_or("a process"))
            }
        }
    }
}

/// Which of these ports a process of this network namespace listens on. Left out are those of `applyd keep`: `[::1]` and the
/// machine's other IPv6 addresses, and the address of the name server, which only tasks reach.
///
/// Must run on a thread of that namespace.
pub(super) fn taken_ports(ports: &BTreeSet<PublishedPort>) -> io::Result<BTreeSet<Obstacle>> {
    if ports.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut listeners = Vec::new();
    for (file, protocol) in
        [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)]
    {
        match netns::sockets(file) {
            Ok(text) => listeners.extend(text.lines().skip(1).filter_map(|line| listener(line, protocol))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // a kernel without IPv6
            Err(error) => return Err(error),
        }
    }
    let ours: [IpAddr; 3] = [Ipv6Addr::LOCALHOST.into(), GATEWAY.into(), GATEWAY6.into()];
    listeners.retain(|it| ports.contains(&it.port) && !ours.contains(&it.address));
    let names = if listeners.is_empty() { BTreeMap::new() } else { processes(&listeners) };
    let is_ours = |it: &Listener| names.get(&it.inode).is_some_and(|name| name.starts_with(KEEP));
    // At all addresses are the API and the tunnel, whose port is nobody's to publish.
    listeners.retain(|it| it.address.is_ipv4() || it.address.is_unspecified() || !is_ours(it));
    let obstacle = |Listener { port, address, inode }: Listener| {
        let process = names.get(&inode).cloned();
        Obstacle::PortTaken { port, address, process }
    };
    Ok(listeners.into_iter().map(obstacle).collect())
}

/// As `processes` has our own companion.
const KEEP: &str = "applyd (pid ";

struct Listener {
    port: PublishedPort,
    address: IpAddr,
    inode: u64,
}

/// One line of /proc/net/{tcp,udp}: `sl local_address rem_address st ... inode`.
fn listener(line: &str, protocol: Protocol) -> Option<Listener> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
    // TCP_LISTEN; a UDP socket that is open to all stands as TCP_CLOSE without a remote end.
    let listens = match protocol {
        Protocol::Tcp => state == "0A",
        Protocol::Udp => state == "07" && remote.ends_with(":0000"),
    };
    let inode = words.nth(5)?.parse().ok()?;
    let (address, port) = local.split_once(':')?;
    let port = PublishedPort { protocol, port: u16::from_str_radix(port, 16).ok()? };
    listens.then_some(Listener { port, address: address_of(address)?, inode })
}

/// Words of four bytes, each printed as a number of this machine.
fn address_of(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for start in (0..hex.len()).step_by(8) {
        let word = u32::from_str_radix(hex.get(start..start + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    crate::node::sys::netlink::read_address(&bytes)
}

/// Name and pid of whoever holds these sockets. Best effort: processes come and go while we look.
fn processes(listeners: &[Listener]) -> BTreeMap<u64, String> {
    let wanted: BTreeMap<String, u64> =
        listeners.iter().map(|it| (format!("socket:[{}]", it.inode), it.inode)).collect();
    let mut found = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|it| it.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())) {
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            if let Some(inode) = wanted.get(target.to_string_lossy().as_ref()) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.insert(*inode, format!("{} (pid {})", name.trim_end(), process.file_name().to_string_lossy()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_from_proc() {
        let tcp = "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        let seen = listener(tcp, Protocol::Tcp).expect("a listener");
        assert_eq!((seen.port.port, seen.address, seen.inode), (8080, "127.0.0.1".parse().unwrap(), 4711));
        let connected = tcp.replace(" 0A ", " 01 ");
        assert!(listener(&connected, Protocol::Tcp).is_none());
        let udp6 = "  74: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 5 2 0 0";
        let seen = listener(udp6, Protocol::Udp).expect("a UDP socket");
        assert_eq!((seen.port.port, seen.address), (53, "::1".parse().unwrap()));
        assert!(listener("sl local_address", Protocol::Tcp).is_none());
    }
}
