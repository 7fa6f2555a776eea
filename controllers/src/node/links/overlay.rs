//! How machines of a cluster reach each other's tasks: VXLAN, and everything said beforehand about who is where.
//!
//! A machine's number, the last two bytes of its overlay address, is also the end of its MAC address in the overlay. So a
//! packet says by its inner source address which machine it came in by, and an answer is sent back there by writing that
//! number into its destination address, with rules that mention no machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

/// UDP port of the tunnel, on every machine. Not VXLAN's own (4789), which others may use beside us.
pub const TUNNEL_PORT: u16 = 4790;
/// What the tunnel adds to a packet: outer IP and UDP headers, VXLAN's own, and the inner Ethernet header.
pub(super) fn added_bytes(underlay: IpAddr) -> u32 {
    if underlay.is_ipv4() { 20 + 8 + 8 + 14 } else { 40 + 8 + 8 + 14 }
}

/// The machine's part of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// VXLAN's number of the cluster's network: 24 bits.
    pub id: u32,
    /// Where other machines reach this one. Their addresses are of the same family.
    pub at: IpAddr,
    /// Its packets go by the link of [`LinkPrefix::wireguard`](super::LinkPrefix::wireguard), to the machines' overlay
    /// addresses, instead of by the network of the machines, to where they are reached.
    pub encrypted: bool,
    /// The other machines, by their overlay addresses.
    pub peers: BTreeMap<Ipv4Addr, Peer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it is reached.
    pub at: IpAddr,
    /// Addresses of tasks that are there.
    pub blocks: BTreeSet<IpNet>,
}

/// An Ethernet address.
pub(in crate::node) type Mac = [u8; 6];

/// Where answers are sent whose machine is yet to be written into them ([`is_free`] keeps its number free).
pub(in crate::node) const BACK: Mac = [0x02, 0x42, 0x61, 0x70, 0xff, 0xfe];
/// Bit of a packet's mark: an answer for the machine whose number is in the lower 16 bits.
pub(in crate::node) const GOES_BACK: u32 = 0x0010_0000;

/// The MAC address in the overlay of the machine that has this overlay address.
pub(super) fn mac(address: Ipv4Addr) -> Mac {
    let [.., high, low] = address.octets();
    [0x02, 0x42, 0x61, 0x70, high, low]
}

/// Whether a machine can have this overlay address.
pub fn is_free(address: Ipv4Addr) -> bool {
    let [.., high, low] = address.octets();
    // 0 says "not by another machine"; 0xfffe is `BACK`'s; 0xffff would be a broadcast.
    !matches!((high, low), (0, 0) | (0xff, 0xfe | 0xff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_macs_of_their_own_and_none_has_the_way_back() {
        let all = (0..=u16::MAX).map(|number| Ipv4Addr::from_bits(0x0a80_0000 | u32::from(number)));
        let macs: BTreeSet<Mac> = all.filter(|address| is_free(*address)).map(mac).collect();
        assert_eq!(macs.len(), 65_536 - 3);
        assert!(!macs.contains(&BACK));
    }
}
