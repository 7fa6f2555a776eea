//! Tracked connections of addresses that are gone (ctnetlink; linux/netfilter/nfnetlink_conntrack.h).
//!
//! An entry outlives the task that it leads to. While its client goes on talking (UDP) or trying (SYN), the kernel
//! follows the entry instead of asking the rules again; without it, the next packet finds another task.

use std::{collections::BTreeSet, net::IpAddr};

use super::netlink::{NetlinkError, Socket, Writer, attributes, read_address, read_be16, read_be32};

const fn conntrack(number: u16) -> u16 {
    (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | number
}

const GET: u16 = conntrack(1);
const DELETE: u16 = conntrack(2);

/// Entries that lead astray.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stale {
    /// All that this address takes part in: whoever had it is gone.
    Address(IpAddr),
    /// Flows to this port that were begun before anybody was behind it: while the client goes on, the kernel goes on
    /// telling it that nobody is there.
    UntranslatedUdp(u16),
}

/// Deletes entries. Cost: all that is tracked, 80 ms for 14,000.
pub fn forget(socket: &mut Socket, stale: &BTreeSet<Stale>) -> Result<(), NetlinkError> {
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let concerned = |it: &Stale| match it {
            Stale::Address(address) => address.is_ipv4() == (i32::from(family) == libc::AF_INET),
            Stale::UntranslatedUdp(_) => true,
        };
        if !stale.iter().any(concerned) {
            continue;
        }
        let mut found = Vec::new();
        let dumped = socket.dump(GET, &Writer::with_header(&[family, 0, 0, 0]), |_, payload| {
            found.extend(deletion(payload.get(4..).unwrap_or_default(), family, stale));
        });
        match dumped {
            // Connections come and go while they are listed; those of a dead address only go.
            Ok(()) | Err(NetlinkError::Interrupted) => {}
            Err(error) => return Err(error),
        }
        for body in found {
            match socket.request(DELETE, 0, &body) {
                Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => {} // gone by itself
                outcome => outcome?,
            }
        }
    }
    Ok(())
}

/// The request that deletes this entry, if it is stale.
fn deletion(entry: &[u8], family: u8, stale: &BTreeSet<Stale>) -> Option<Writer> {
    const ORIGINAL: u16 = 1;
    const ID: u16 = 12;
    const ZONE: u16 = 18;
    if !is_stale(entry, stale) {
        return None;
    }
    let mut body = Writer::with_header(&[family, 0, 0, 0]);
    /// "This value is a list."
    const LIST: u16 = 1 << 15;
    body.put(ORIGINAL | LIST, attributes(entry).find(ORIGINAL)?);
    for kind in [ID, ZONE] {
        if let Some(value) = attributes(entry).find(kind) {
            body.put(kind, value);
        }
    }
    Some(body)
}

fn is_stale(entry: &[u8], stale: &BTreeSet<Stale>) -> bool {
    const ORIGINAL: u16 = 1;
    const REPLY: u16 = 2;
    const STATUS: u16 = 3;
    /// `IPS_DST_NAT`.
    const TRANSLATED: u32 = 1 << 5;
    // Source address of a direction: `CTA_TUPLE_IP`, then one of either family.
    let source = |direction| {
        let ip = attributes(attributes(entry).find(direction)?).find(1)?;
        attributes(ip).find(1).or_else(|| attributes(ip).find(3)).and_then(read_address)
    };
    let ends = [source(ORIGINAL), source(REPLY)];
    if ends.into_iter().flatten().any(|address| stale.contains(&Stale::Address(address))) {
        return true;
    }
    // `CTA_TUPLE_PROTO`: number, source port, destination port.
    let protocol = attributes(entry).find(ORIGINAL).and_then(|tuple| attributes(tuple).find(2)).unwrap_or_default();
    let is_udp = attributes(protocol).find(1).and_then(|number| number.first()) == Some(&17);
    let translated = attributes(entry).find(STATUS).and_then(read_be32).unwrap_or_default() & TRANSLATED != 0;
    let port = attributes(protocol).find(3).and_then(read_be16);
    is_udp && !translated && port.is_some_and(|port| stale.contains(&Stale::UntranslatedUdp(port)))
}
