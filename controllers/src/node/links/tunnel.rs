//! The overlay in the kernel: the VXLAN link, its permanent entries, and the way back for answers.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

use super::{
    LinkName, LinkPrefix, LinksError, Overlay, TUNNEL_PORT,
    kernel::{Doing, existing},
    overlay::{self, BACK, GOES_BACK},
    route::{self, Neighbour, Route, Settings, Vxlan},
    settings,
};
use crate::node::sys::{
    netlink::{Batch, NetlinkError, Socket, Writer, attributes, flag, read_text},
    nft::{self, Compare, Header, Meta, Program, Register, Rule, message},
    tun,
};
use crate::node::wireguard;

/// What a link is taken for whose MTU is not known.
const USUAL_MTU: u32 = 1500;
/// Where answers go whose machine their mark says. Nobody has this address: it is a name for [`BACK`].
const BACK_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);

pub(super) fn ensure(
    doing: &Doing<'_>,
    host: &mut Socket,
    rules: &mut Socket,
    prefix: &LinkPrefix,
    own: Ipv4Addr,
    wanted: &Overlay,
) -> Result<(), LinksError> {
    let name = &prefix.overlay();
    let known = doing.kernel("look at the link to the other machines", route::mtu_at(host, wanted.at))?;
    let (mtu, vxlan) = if wanted.encrypted {
        // Before anything can fail: what goes in the clear goes no more.
        let seen = doing.kernel("look at the tunnel", route::vxlan(host, name.as_str()))?;
        if seen.is_some_and(|(_, vxlan)| vxlan.is_none_or(|vxlan| vxlan.below.is_none())) {
            doing.kernel("delete the tunnel", route::delete_link(host, name.as_str()))?;
        }
        let mtu = known.unwrap_or(USUAL_MTU).saturating_sub(wireguard::ADDED_BYTES);
        let below = ensure_wireguard(doing, host, &prefix.wireguard(), mtu)?;
        let inside = IpAddr::from(own);
        let vxlan = Vxlan { id: wanted.id, port: TUNNEL_PORT, local: Some(inside), below: Some(below) };
        (mtu.saturating_sub(overlay::added_bytes(inside)), vxlan)
    } else {
        // An address of which the machine itself knows nothing is what others see of it: the kernel chooses its own.
        let vxlan = Vxlan { id: wanted.id, port: TUNNEL_PORT, local: known.map(|_| wanted.at), below: None };
        (known.unwrap_or(USUAL_MTU).saturating_sub(overlay::added_bytes(wanted.at)), vxlan)
    };
    let mac = overlay::mac(own);
    match doing.kernel("look at the tunnel", route::vxlan(host, name.as_str()))? {
        Some((link, Some(seen))) if seen == vxlan && link.mac == mac => {}
        other => {
            if other.is_some() {
                doing.kernel("delete the tunnel", route::delete_link(host, name.as_str()))?;
            }
            doing.kernel("make the tunnel", route::new_vxlan(host, name.as_str(), mac, mtu, vxlan))?;
        }
    }
    if !wanted.encrypted {
        doing.kernel("delete the encrypted link", route::delete_link(host, prefix.wireguard().as_str()))?;
    }
    doing.system("set up the tunnel", settings::tunnel(name))?;
    let link = existing(doing, host, name)?;
    doing.kernel("set up the tunnel", route::set_up(host, &link, &Settings { mtu, alias: None }))?;
    doing.kernel("set the machines of the tunnel", neighbours(host, link.index, vxlan.below, wanted))?;
    doing.kernel("set routes to the other machines", routes(host, link.index, own, wanted))?;
    doing.kernel("set the way back", way_back(host, link.index))?;
    doing.kernel("set the rule of the way back", ensure_rule(rules, name))
}

/// Its index. What it carries is for the companion process, which opens it.
fn ensure_wireguard(doing: &Doing<'_>, host: &mut Socket, name: &LinkName, mtu: u32) -> Result<u32, LinksError> {
    if doing.kernel("look at the encrypted link", route::link(host, name.as_str()))?.is_none() {
        doing.system("make the encrypted link", tun::ensure(name.as_str()))?;
    }
    doing.system("set up the encrypted link", settings::wireguard(name))?;
    let link = existing(doing, host, name)?;
    doing.kernel("set up the encrypted link", route::set_up(host, &link, &Settings { mtu, alias: None }))?;
    Ok(link.index)
}

pub(super) fn remove(
    doing: &Doing<'_>,
    host: &mut Socket,
    rules: &mut Socket,
    prefix: &LinkPrefix,
) -> Result<(), LinksError> {
    let name = &prefix.overlay();
    if doing.kernel("look at the tunnel", route::link(host, name.as_str()))?.is_some() {
        doing.kernel("delete the way back", route::delete_back_rule(host))?;
        doing.kernel("delete the rule of the way back", remove_rule(rules, name))?;
        // Last: while it is there, the rest may be.
        doing.kernel("delete the tunnel", route::delete_link(host, name.as_str()))?;
    }
    doing.kernel("delete the encrypted link", route::delete_link(host, prefix.wireguard().as_str()))
}

fn neighbours(host: &mut Socket, link: u32, by: Option<u32>, wanted: &Overlay) -> Result<(), NetlinkError> {
    let of_peers = wanted.peers.iter().flat_map(|(address, peer)| {
        let mac = overlay::mac(*address);
        let at = if wanted.encrypted { IpAddr::from(*address) } else { peer.at };
        [Neighbour::Machine(mac, at, by), Neighbour::Address((*address).into(), mac)]
    });
    let wanted: BTreeSet<Neighbour> = of_peers.chain([Neighbour::Address(BACK_GATEWAY.into(), BACK)]).collect();
    let seen: BTreeSet<Neighbour> = route::neighbours(host, link)?.into_iter().collect();
    for gone in seen.difference(&wanted) {
        route::delete_neighbour(host, link, *gone)?;
    }
    for new in wanted.difference(&seen) {
        route::put(host, link, *new)?;
    }
    Ok(())
}

fn routes(host: &mut Socket, link: u32, own: Ipv4Addr, wanted: &Overlay) -> Result<(), NetlinkError> {
    let seen = route::routes(host)?;
    let source = Some(IpAddr::from(own));
    let mut all = Vec::new();
    for (address, peer) in &wanted.peers {
        let gateway = IpAddr::from(*address);
        all.push(Route { to: IpNet::from(gateway), link, gateway: None, source });
        let blocks = peer.blocks.iter().filter(|block| block.addr().is_ipv4());
        all.extend(blocks.map(|block| Route { to: *block, link, gateway: Some(gateway), source }));
    }
    for gone in seen.iter().filter(|it| it.link == link && all.iter().all(|wanted| wanted.to != it.to)) {
        route::delete_route(host, link, gone.to)?;
    }
    for new in all.iter().filter(|it| !seen.contains(it)) {
        route::put_route(host, new)?;
    }
    Ok(())
}

fn way_back(host: &mut Socket, link: u32) -> Result<(), NetlinkError> {
    let to = IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0).expect("0 fits");
    let gateway = Some(BACK_GATEWAY.into());
    route::put_back_route(host, &Route { to, link, gateway, source: None }, GOES_BACK)
}

/// `NFPROTO_NETDEV`.
const NETDEV: u8 = 5;
const CHAIN: &str = "back";

/// In the last moment before the tunnel: the number of the machine that an answer goes to becomes its address.
fn rule() -> Rule {
    let (mac, mark, none) = (Register(0), Register(2), Register(3));
    let program = Program::new().payload(Header::Link, 0, 6, mac).compare(mac, Compare::Equal, &BACK);
    let addressed = program.meta(Meta::Mark, mark).swap16(mark).write(Header::Link, 4, 2, mark);
    // The tunnel's own packet would otherwise be sent where the mark says: into the tunnel.
    addressed.load(&[0; 4], none).set_meta(Meta::Mark, none).rule("to the machine that it came in by")
}

fn ensure_rule(socket: &mut Socket, link: &LinkName) -> Result<(), NetlinkError> {
    let wanted = rule();
    if seen_rule(socket, link)?.as_deref() == Some(wanted.comment.as_str()) {
        return Ok(());
    }
    let mut batch = Batch::new();
    let mut table = nft::header(NETDEV);
    table.put_text(1, link.as_str());
    batch.push(message::NEW_TABLE, flag::CREATE, &table);
    batch.push(message::DELETE_TABLE, 0, &table);
    batch.push(message::NEW_TABLE, flag::CREATE, &table);
    let mut chain = nft::header(NETDEV);
    chain.put_text(1, link.as_str());
    chain.put_text(3, CHAIN);
    chain.nest(4, |hook| {
        /// `NF_NETDEV_EGRESS`.
        const EGRESS: u32 = 1;
        hook.put_be32(1, EGRESS);
        hook.put_be32(2, 0);
        hook.put_text(3, link.as_str());
    });
    chain.put_text(7, "filter");
    batch.push(message::NEW_CHAIN, flag::CREATE, &chain);
    let mut body = of_chain(link);
    nft::put_expressions(&mut body, &wanted);
    nft::put_comment(&mut body, &wanted);
    batch.push(message::NEW_RULE, flag::CREATE | flag::APPEND, &body);
    socket.commit(batch)
}

fn of_chain(link: &LinkName) -> Writer {
    let mut body = nft::header(NETDEV);
    body.put_text(1, link.as_str());
    body.put_text(2, CHAIN);
    body
}

/// The comment of the rule that is there. The chain, and with it the rule, went if its link did.
fn seen_rule(socket: &mut Socket, link: &LinkName) -> Result<Option<String>, NetlinkError> {
    let mut found = None;
    let dumped = socket.dump(message::GET_RULE, &of_chain(link), |_, payload| {
        let list = payload.get(4..).unwrap_or_default();
        let text = |kind| attributes(list).find(kind).map(read_text);
        if payload.first() == Some(&NETDEV) && text(1).as_deref() == Some(link.as_str()) {
            found = attributes(list).find(7).map(nft::read_comment);
        }
    });
    match dumped {
        Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => Ok(None),
        other => other.map(|()| found),
    }
}

fn remove_rule(socket: &mut Socket, link: &LinkName) -> Result<(), NetlinkError> {
    let mut table = nft::header(NETDEV);
    table.put_text(1, link.as_str());
    let mut batch = Batch::new();
    batch.push(message::DELETE_TABLE, 0, &table);
    match socket.commit(batch) {
        Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => Ok(()),
        other => other,
    }
}
