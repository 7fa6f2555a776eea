//! Tracked connections of addresses that are gone (ctnetlink; linux/netfilter/nfnetlink_conntrack.h).
//!
//! An entry outlives the task that it leads to. While its client goes on talking (UDP) or trying (SYN), the kernel
//! follows the entry instead of asking the rules again; without it, the next packet finds another task.

use std::{collections::BTreeSet, net::IpAddr};

use super::netlink::{NetlinkError, Socket, Writer, attributes, read_address};

const fn conntrack(number: u16) -> u16 {
    (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | number
}

const GET: u16 = conntrack(1);
const DELETE: u16 = conntrack(2);

/// Deletes what is tracked to or from any of these addresses. Cost: all that is tracked, 80 ms for 14,000.
pub fn forget(socket: &mut Socket, addresses: &BTreeSet<IpAddr>) -> Result<(), NetlinkError> {
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let of_family = |address: &&IpAddr| address.is_ipv4() == (i32::from(family) == libc::AF_INET);
        if !addresses.iter().any(|address| of_family(&address)) {
            continue;
        }
        let mut found = Vec::new();
        let dumped = socket.dump(GET, &Writer::with_header(&[family, 0, 0, 0]), |_, payload| {
            found.extend(deletion(payload.get(4..).unwrap_or_default(), family, addresses));
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

/// The request that deletes this entry, if it is one of these addresses'.
fn deletion(entry: &[u8], family: u8, addresses: &BTreeSet<IpAddr>) -> Option<Writer> {
    const ORIGINAL: u16 = 1;
    const REPLY: u16 = 2;
    const ID: u16 = 12;
    const ZONE: u16 = 18;
    let end = |direction: u16, v4: u16, v6: u16| {
        let ip = attributes(attributes(entry).find(direction)?).find(1)?;
        attributes(ip).find(v4).or_else(|| attributes(ip).find(v6)).and_then(read_address)
    };
    let source = |direction| end(direction, 1, 3);
    let ends = [source(ORIGINAL), source(REPLY)];
    ends.into_iter().flatten().find(|address| addresses.contains(address))?;
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
