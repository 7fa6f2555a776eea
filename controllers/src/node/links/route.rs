//! The few requests of rtnetlink that links are made with. Numbers are those of linux/rtnetlink.h and linux/if_link.h.

use std::{net::IpAddr, os::fd::AsRawFd};

use ipnet::IpNet;

use super::overlay::Mac;
use crate::node::sys::{
    netlink::{NetlinkError, Socket, Writer, attributes, flag, octets, read_address, read_be16, read_text, read_u32},
    netns::Netns,
};

mod message {
    pub const NEW_LINK: u16 = 16;
    pub const DELETE_LINK: u16 = 17;
    pub const GET_LINK: u16 = 18;
    pub const NEW_ADDRESS: u16 = 20;
    pub const DELETE_ADDRESS: u16 = 21;
    pub const GET_ADDRESS: u16 = 22;
    pub const NEW_ROUTE: u16 = 24;
    pub const DELETE_ROUTE: u16 = 25;
    pub const GET_ROUTE: u16 = 26;
    pub const NEW_NEIGHBOUR: u16 = 28;
    pub const DELETE_NEIGHBOUR: u16 = 29;
    pub const GET_NEIGHBOUR: u16 = 30;
    pub const NEW_RULE: u16 = 32;
    pub const DELETE_RULE: u16 = 33;
    pub const GET_RULE: u16 = 34;
}

/// Marks routes as ours in listings (`ip route show proto 97`): a number that nobody has (iproute2's rt_protos).
const OURS: u8 = 97;
const MAIN_TABLE: u8 = 254;
/// The table of the way back, and the place of the rule that leads there among all rules: before the main table's.
const BACK_TABLE: u8 = OURS;
const BACK_PRIORITY: u32 = 97;
const UP: u32 = 1;
/// The group of links that are about to be deleted: a number that nobody else uses.
pub(super) const DOOMED: u32 = 0x6170_6c79;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub mtu: u32,
    pub mac: Vec<u8>,
    /// Index of the other end, in whatever namespace that is.
    pub peer: u32,
    pub alias: String,
    pub group: u32,
}

fn link_body(index: u32, flags: u32, change: u32) -> Writer {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    Writer::with_header(&header)
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let list = payload.get(16..)?;
    let find = |kind| attributes(list).find(kind);
    Some(Link {
        index: read_u32(payload.get(4..)?)?,
        up: read_u32(payload.get(8..)?)? & UP != 0,
        name: read_text(find(3)?),
        mtu: find(4).and_then(read_u32).unwrap_or_default(),
        mac: find(1).unwrap_or_default().to_vec(),
        peer: find(5).and_then(read_u32).unwrap_or_default(),
        alias: find(20).map(read_text).unwrap_or_default(),
        group: find(27).and_then(read_u32).unwrap_or_default(),
    })
}

pub(super) fn link(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut body = link_body(0, 0, 0);
    body.put_text(3, name);
    socket.get(message::GET_LINK, &body, read_link)
}

pub(super) fn veths(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    let mut body = link_body(0, 0, 0);
    body.nest(18, |info| info.put_text(1, "veth"));
    let mut found = Vec::new();
    socket.dump(message::GET_LINK, &body, |_, payload| found.extend(read_link(payload)))?;
    Ok(found)
}

/// One end of a pair that is to be made.
pub(super) struct End<'a> {
    pub name: &'a str,
    pub mac: Mac,
    /// `None`: where the socket is.
    pub netns: Option<&'a Netns>,
}

/// Makes a pair, both ends down.
pub(super) fn new_veth(socket: &mut Socket, near: &End<'_>, far: &End<'_>, mtu: u32) -> Result<(), NetlinkError> {
    let end = |body: &mut Writer, end: &End<'_>| {
        body.put_text(3, end.name);
        body.put(1, &end.mac);
        body.put_u32(4, mtu);
        if let Some(netns) = end.netns {
            use std::os::fd::AsFd;
            body.put_u32(28, netns.as_fd().as_raw_fd().cast_unsigned());
        }
    };
    let mut body = link_body(0, 0, 0);
    end(&mut body, near);
    body.nest(18, |info| {
        info.put_text(1, "veth");
        info.nest(2, |data| {
            data.nest(1, |peer| {
                peer.raw(&[0; 16]);
                end(peer, far);
            });
        });
    });
    socket.request(message::NEW_LINK, flag::CREATE | flag::EXCLUSIVE, &body)
}

/// Which of a link's settings to change.
pub(super) struct Settings<'a> {
    pub mtu: u32,
    pub alias: Option<&'a str>,
}

/// Sets it up, with these settings.
pub(super) fn set_up(socket: &mut Socket, link: &Link, wanted: &Settings<'_>) -> Result<(), NetlinkError> {
    let alias_differs = wanted.alias.is_some_and(|alias| alias != link.alias);
    if link.up && link.mtu == wanted.mtu && !alias_differs {
        return Ok(());
    }
    let mut body = link_body(link.index, UP, UP);
    if link.mtu != wanted.mtu {
        body.put_u32(4, wanted.mtu);
    }
    if let (Some(alias), true) = (wanted.alias, alias_differs) {
        body.put(20, alias.as_bytes());
    }
    socket.request(message::NEW_LINK, 0, &body)
}

pub(super) fn set_loopback_up(socket: &mut Socket) -> Result<(), NetlinkError> {
    /// The loopback is made with its namespace and is its first link.
    const INDEX: u32 = 1;
    socket.request(message::NEW_LINK, 0, &link_body(INDEX, UP, UP))
}

/// Nothing there is as good.
pub(super) fn delete_link(socket: &mut Socket, name: &str) -> Result<(), NetlinkError> {
    let mut body = link_body(0, 0, 0);
    body.put_text(3, name);
    unless_gone(socket.request(message::DELETE_LINK, 0, &body))
}

/// It goes with the next [`delete_doomed`].
pub(super) fn doom(socket: &mut Socket, link: &Link) -> Result<(), NetlinkError> {
    let mut body = link_body(link.index, 0, 0);
    body.put_u32(27, DOOMED);
    unless_gone(socket.request(message::NEW_LINK, 0, &body))
}

/// Deletes all that are doomed in one go. Nothing there is as good.
pub(super) fn delete_doomed(socket: &mut Socket) -> Result<(), NetlinkError> {
    let mut body = link_body(0, 0, 0);
    body.put_u32(27, DOOMED);
    unless_gone(socket.request(message::DELETE_LINK, 0, &body))
}

fn unless_gone(outcome: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    use rustix::io::Errno;
    match outcome {
        Err(error)
            if matches!(error.errno(), Some(Errno::NODEV | Errno::SRCH | Errno::NOENT | Errno::ADDRNOTAVAIL)) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Everywhere = 0,
    Link = 253,
}

fn address_body(link: u32, address: IpNet, scope: Scope) -> Writer {
    let mut header = [family(address.addr()), address.prefix_len(), 0, scope as u8, 0, 0, 0, 0];
    header[4..].copy_from_slice(&link.to_ne_bytes());
    let mut body = Writer::with_header(&header);
    body.put(2, &octets(address.addr()));
    body.put(1, &octets(address.addr()));
    body
}

/// Adds an address, usable at once: IPv6 does not first ask around whether somebody else has it.
pub(super) fn put_address(socket: &mut Socket, link: u32, address: IpNet, scope: Scope) -> Result<(), NetlinkError> {
    /// `IFA_F_NODAD`.
    const NOT_ASKED_FOR: u32 = 2;
    let mut body = address_body(link, address, scope);
    if address.addr().is_ipv6() {
        body.put_u32(8, NOT_ASKED_FOR);
    }
    socket.request(message::NEW_ADDRESS, flag::CREATE | flag::REPLACE, &body)
}

pub(super) fn delete_address(socket: &mut Socket, link: u32, address: IpNet) -> Result<(), NetlinkError> {
    unless_gone(socket.request(message::DELETE_ADDRESS, 0, &address_body(link, address, Scope::Everywhere)))
}

/// The addresses of a link but for those that concern the link only.
pub(super) fn addresses(socket: &mut Socket, link: u32) -> Result<Vec<IpNet>, NetlinkError> {
    let mut header = [0; 8];
    header[4..].copy_from_slice(&link.to_ne_bytes());
    let mut found = Vec::new();
    socket.dump(message::GET_ADDRESS, &Writer::with_header(&header), |_, payload| {
        let (Some(length), Some(scope)) = (payload.get(1), payload.get(3)) else { return };
        let list = payload.get(8..).unwrap_or_default();
        let address = attributes(list).find(2).or_else(|| attributes(list).find(1)).and_then(read_address);
        if payload.get(4..).and_then(read_u32) == Some(link) && *scope == Scope::Everywhere as u8 {
            found.extend(address.and_then(|address| IpNet::new(address, *length).ok()));
        }
    })?;
    Ok(found)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub to: IpNet,
    pub link: u32,
    pub gateway: Option<IpAddr>,
    /// What this machine speaks from when it goes this way.
    pub source: Option<IpAddr>,
}

fn route_body(route: &Route, table: u8) -> Writer {
    /// The gateway is on that link, whatever the addresses there say.
    const ON_LINK: u32 = 4;
    const UNICAST: u8 = 1;
    let scope = if route.gateway.is_some() || route.to.addr().is_ipv6() { Scope::Everywhere } else { Scope::Link };
    let (length, flags) = (route.to.prefix_len(), if route.gateway.is_some() { ON_LINK } else { 0 });
    let mut header = [family(route.to.addr()), length, 0, 0, table, OURS, scope as u8, UNICAST, 0, 0, 0, 0];
    header[8..].copy_from_slice(&flags.to_ne_bytes());
    let mut body = Writer::with_header(&header);
    if length > 0 {
        body.put(1, &octets(route.to.network()));
    }
    body.put_u32(4, route.link);
    if let Some(gateway) = route.gateway {
        body.put(5, &octets(gateway));
    }
    if let Some(source) = route.source {
        body.put(7, &octets(source));
    }
    body
}

pub(super) fn put_route(socket: &mut Socket, route: &Route) -> Result<(), NetlinkError> {
    socket.request(message::NEW_ROUTE, flag::CREATE | flag::REPLACE, &route_body(route, MAIN_TABLE))
}

/// Sends what is marked with all bits of `mark` by this route, which stands in a table of its own.
pub(super) fn put_back_route(socket: &mut Socket, route: &Route, mark: u32) -> Result<(), NetlinkError> {
    socket.request(message::NEW_ROUTE, flag::CREATE | flag::REPLACE, &route_body(route, BACK_TABLE))?;
    if !has_back_rule(socket)? {
        socket.request(message::NEW_RULE, flag::CREATE | flag::EXCLUSIVE, &back_rule(Some(mark)))?;
    }
    Ok(())
}

/// The rule only: the route has gone with its link.
pub(super) fn delete_back_rule(socket: &mut Socket) -> Result<(), NetlinkError> {
    if has_back_rule(socket)? { unless_gone(socket.request(message::DELETE_RULE, 0, &back_rule(None))) } else { Ok(()) }
}

fn back_rule(mark: Option<u32>) -> Writer {
    const TO_TABLE: u8 = 1;
    let header = [libc::AF_INET as u8, 0, 0, 0, BACK_TABLE, 0, 0, TO_TABLE, 0, 0, 0, 0];
    let mut body = Writer::with_header(&header);
    body.put_u32(6, BACK_PRIORITY);
    if let Some(mark) = mark {
        body.put_u32(10, mark);
        body.put_u32(16, mark);
    }
    body
}

fn has_back_rule(socket: &mut Socket) -> Result<bool, NetlinkError> {
    let mut header = [0; 12];
    header[0] = libc::AF_INET as u8;
    let mut found = false;
    socket.dump(message::GET_RULE, &Writer::with_header(&header), |_, payload| {
        let priority = attributes(payload.get(12..).unwrap_or_default()).find(6).and_then(read_u32);
        found |= payload.get(4) == Some(&BACK_TABLE) && priority == Some(BACK_PRIORITY);
    })?;
    Ok(found)
}

pub(super) fn delete_route(socket: &mut Socket, link: u32, to: IpNet) -> Result<(), NetlinkError> {
    /// `RT_SCOPE_NOWHERE`: of whichever scope it is.
    const ANY: u8 = 255;
    let mut header = [family(to.addr()), to.prefix_len(), 0, 0, MAIN_TABLE, OURS, ANY, 0, 0, 0, 0, 0];
    if to.addr().is_ipv6() {
        header[6] = Scope::Everywhere as u8;
    }
    let mut body = Writer::with_header(&header);
    if to.prefix_len() > 0 {
        body.put(1, &octets(to.network()));
    }
    body.put_u32(4, link);
    unless_gone(socket.request(message::DELETE_ROUTE, 0, &body))
}

/// Our routes.
pub(super) fn routes(socket: &mut Socket) -> Result<Vec<Route>, NetlinkError> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; 12];
        header[0] = family as u8;
        header[4] = MAIN_TABLE;
        header[5] = OURS;
        let query = Writer::with_header(&header);
        socket.dump(message::GET_ROUTE, &query, |_, payload| {
            let [_, length, _, _, MAIN_TABLE, OURS, ..] = *payload else { return };
            let find = |kind| attributes(payload.get(12..).unwrap_or_default()).find(kind);
            let to = find(1).and_then(read_address).and_then(|to| IpNet::new(to, length).ok());
            let (Some(to), Some(link)) = (to, find(4).and_then(read_u32)) else { return };
            found.push(Route {
                to,
                link,
                gateway: find(5).and_then(read_address),
                source: find(7).and_then(read_address),
            });
        })?;
    }
    Ok(found)
}

/// Who is where, said once and for all: nobody is asked, nobody can say otherwise, and no table of the kernel's (1,024
/// entries in all namespaces together) runs full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Neighbour {
    /// Who has this address.
    Address(IpAddr, Mac),
    /// At which machine the tunnel finds this one, and the index of the link that leads there, where routes do not say so.
    Machine(Mac, IpAddr, Option<u32>),
}

/// `NUD_PERMANENT`.
const PERMANENT: u16 = 0x80;
/// An entry of the link itself, not of a bridge above it.
const SELF: u8 = 2;

fn neighbour_body(link: u32, neighbour: Neighbour) -> Writer {
    let mut header = [0; 12];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    match neighbour {
        Neighbour::Address(address, _) => header[0] = family(address),
        Neighbour::Machine(..) => {
            header[0] = libc::AF_BRIDGE as u8;
            header[10] = SELF;
        }
    }
    let (Neighbour::Address(address, mac) | Neighbour::Machine(mac, address, _)) = neighbour;
    let mut body = Writer::with_header(&header);
    body.put(1, &octets(address));
    body.put(2, &mac);
    if let Neighbour::Machine(_, _, Some(by)) = neighbour {
        body.put_u32(8, by);
    }
    body
}

pub(super) fn put_neighbour(socket: &mut Socket, link: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
    put(socket, link, Neighbour::Address(address, mac))
}

pub(super) fn put(socket: &mut Socket, link: u32, neighbour: Neighbour) -> Result<(), NetlinkError> {
    socket.request(message::NEW_NEIGHBOUR, flag::CREATE | flag::REPLACE, &neighbour_body(link, neighbour))
}

pub(super) fn delete_neighbour(socket: &mut Socket, link: u32, neighbour: Neighbour) -> Result<(), NetlinkError> {
    unless_gone(socket.request(message::DELETE_NEIGHBOUR, 0, &neighbour_body(link, neighbour)))
}

/// The permanent ones of a link.
pub(super) fn neighbours(socket: &mut Socket, link: u32) -> Result<Vec<Neighbour>, NetlinkError> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_BRIDGE] {
        let mut header = [0; 12];
        header[0] = family as u8;
        socket.dump(message::GET_NEIGHBOUR, &Writer::with_header(&header), |_, payload| {
            let find = |kind| attributes(payload.get(12..).unwrap_or_default()).find(kind);
            let of = payload.get(4..).and_then(read_u32);
            let (Some(address), Some(mac)) =
                (find(1).and_then(read_address), find(2).and_then(|mac| mac.try_into().ok()))
            else {
                return;
            };
            let by = find(8).and_then(read_u32);
            if of == Some(link) {
                found.push(match payload.first().copied().map(i32::from) {
                    Some(libc::AF_BRIDGE) => Neighbour::Machine(mac, address, by),
                    _ => Neighbour::Address(address, mac),
                });
            }
        })?;
    }
    Ok(found)
}

/// A VXLAN link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vxlan {
    pub id: u32,
    pub port: u16,
    /// What it sends from; `None`: the kernel chooses.
    pub local: Option<IpAddr>,
    /// Index of the link that all it sends goes by; `None`: by where the machine's routes lead.
    pub below: Option<u32>,
}

/// The link of that name, and what kind of VXLAN it is.
pub(super) fn vxlan(socket: &mut Socket, name: &str) -> Result<Option<(Link, Option<Vxlan>)>, NetlinkError> {
    let mut body = link_body(0, 0, 0);
    body.put_text(3, name);
    let read = |payload: &[u8]| {
        let info = attributes(payload.get(16..)?).find(18);
        let data = info.and_then(|info| attributes(info).find(2));
        let vxlan = data.and_then(|data| {
            let find = |kind| attributes(data).find(kind);
            let local = find(4).or_else(|| find(17)).and_then(read_address);
            let below = find(3).and_then(read_u32).filter(|index| *index != 0);
            Some(Vxlan { id: find(1).and_then(read_u32)?, port: find(15).and_then(read_be16)?, local, below })
        });
        Some((read_link(payload)?, vxlan))
    };
    socket.get(message::GET_LINK, &body, read)
}

/// Makes it, down. It learns nothing: who is where is said to it.
pub(super) fn new_vxlan(
    socket: &mut Socket,
    name: &str,
    mac: Mac,
    mtu: u32,
    wanted: Vxlan,
) -> Result<(), NetlinkError> {
    let mut body = link_body(0, 0, 0);
    body.put_text(3, name);
    body.put(1, &mac);
    body.put_u32(4, mtu);
    body.nest(18, |info| {
        info.put_text(1, "vxlan");
        info.nest(2, |data| {
            data.put_u32(1, wanted.id);
            data.put_u8(7, 0);
            data.put(15, &wanted.port.to_be_bytes());
            if let Some(local) = wanted.local {
                data.put(if local.is_ipv4() { 4 } else { 17 }, &octets(local));
            }
            if let Some(below) = wanted.below {
                data.put_u32(3, below);
            }
        });
    });
    socket.request(message::NEW_LINK, flag::CREATE | flag::EXCLUSIVE, &body)
}

/// The MTU of the link that has this address; `None` when no link of the machine has it.
pub(super) fn mtu_at(socket: &mut Socket, address: IpAddr) -> Result<Option<u32>, NetlinkError> {
    let mut holder = None;
    socket.dump(
        message::GET_ADDRESS,
        &Writer::with_header(&[family(address), 0, 0, 0, 0, 0, 0, 0]),
        |_, payload| {
            let list = payload.get(8..).unwrap_or_default();
            // Of a link between two the local one is 2; IPv6 knows 1 only.
            let held = attributes(list).find(2).or_else(|| attributes(list).find(1)).and_then(read_address);
            if held == Some(address) {
                holder = payload.get(4..).and_then(read_u32);
            }
        },
    )?;
    let Some(holder) = holder else { return Ok(None) };
    let link = socket.get(message::GET_LINK, &link_body(holder, 0, 0), read_link)?;
    Ok(link.map(|link| link.mtu))
}
