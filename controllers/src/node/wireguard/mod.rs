//! What machines say to each other's tasks, encrypted: WireGuard below the overlay.
//!
//! The overlay ([`super::links`]) sends its packets to the machines' overlay addresses by a link of their own; what comes
//! out of that link is encrypted here for the machine whose address it is for, and sent to where that one is reached.
//! Nothing is sent in the clear to a machine whose key is not known.
//!
//! This is the part in userspace, for kernels without WireGuard: a TUN link and one UDP socket, which the companion process
//! holds ([`super::keep`]). The noise itself is boringtun's ([`defguard_boringtun::noise`]).
//!
//! A machine may have several keys at a time, and each of its peers too: so a new key is known everywhere before an old one
//! is let go, and no packet is lost between them. Each pair of keys has sessions of its own, of two minutes.
//!
//! - **Owns**: the sessions; the reading side of the TUN link.
//! - **Relies on**: links for the TUN link itself, the store for the keys of peers.
//! - **Promises**: a packet that it delivers was sent by the machine whose address it bears.

pub mod controller;
mod engine;
mod keys;
mod ring;
mod run;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use keys::{NotAKey, PrivateKey, PublicKey};
pub use ring::RingFile;
pub(in crate::node) use run::{Part, Told, Tunnel};

/// UDP port where a machine is sent what is encrypted, unless told otherwise: the number of the API's port.
pub const PORT: u16 = 7677;

/// What WireGuard adds to a packet: outer IP (the larger, IPv6's) and UDP headers, its own, and the seal.
pub(in crate::node) const ADDED_BYTES: u32 = 40 + 8 + 16 + 16;

/// So many keys of one machine are used; a change of keys needs two.
pub const KEYS_MAX: usize = 4;

/// All that the tunnel of a machine is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// The TUN link, which is there.
    pub device: String,
    /// The UDP port to listen at, on all addresses.
    pub port: u16,
    /// This machine's keys, the preferred one first.
    pub keys: Vec<PrivateKey>,
    pub peers: Vec<Peer>,
}

/// Another machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its address inside: what it is sent, and all that it may speak from.
    pub address: Ipv4Addr,
    /// Where it is reached, until it speaks from somewhere else.
    pub endpoint: SocketAddr,
    /// The preferred one first.
    pub keys: Vec<PublicKey>,
}

/// Who is spoken with now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sessions {
    /// Peers with whom there is a session.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub with: BTreeSet<Ipv4Addr>,
    /// This machine's keys by which it speaks with them.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub by: BTreeSet<PublicKey>,
}
