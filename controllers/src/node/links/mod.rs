//! How a task is attached to its machine: a network namespace with a name, and one veth pair into it.
//!
//! Routed, not bridged: every address of a task is a /32 (or /128) behind its own link, and every packet passes the
//! machine's IP layer, where the mesh is. One link carries the addresses of all networks of the task. The namespace is
//! whole before the task's first instruction and outlives its restarts.
//!
//! **Owns** the namespaces in its directory and the links of its prefix. **Relies on** nobody else using either.
//! **Promises** that what was asked for is there when `ensure` has returned, whatever a dead predecessor left.

mod kernel;
mod names;
mod overlay;
mod route;
mod settings;
mod tunnel;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use futures::future::BoxFuture;
use ipnet::IpNet;

pub use kernel::KernelLinks;
pub use names::{LinkName, LinkPrefix};
pub(in crate::node) use overlay::GOES_BACK;
pub use overlay::{Overlay, Peer, TUNNEL_PORT, is_free};

use super::sys::netlink::NetlinkError;

/// What every task reaches its own machine at, whatever its networks: its gateway, and a good place for a name server.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same in IPv6.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// How a task is to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Names the namespace and, hashed, the link. 1 to 128 of `a-z A-Z 0-9 - _ .`, not beginning with a dot.
    pub id: String,
    /// One for each of its networks and families. None: it has its loopback and its gateway only.
    pub addresses: BTreeSet<IpAddr>,
    /// Bytes of an IP packet; 1500 without an overlay.
    pub mtu: u32,
}

/// An attachment that is there, perhaps half-made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    pub id: String,
    /// Where the namespace is mounted, for the runtime.
    pub netns: PathBuf,
    /// The machine's end of the link.
    pub link: LinkName,
    /// Those that the machine has routes to.
    pub addresses: BTreeSet<IpAddr>,
}

/// What the machine itself needs so that tasks, virtual addresses and it can speak with each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineLink {
    pub address4: Ipv4Addr,
    /// Without it, nothing is said about IPv6.
    pub address6: Option<Ipv6Addr>,
    /// All that is the overlay's: what no task has is routed to the machine's own link, where the mesh answers for it.
    pub ranges: BTreeSet<IpNet>,
    /// The way to the other machines; none while there are none.
    pub overlay: Option<Overlay>,
}

/// Effects on namespaces and links, as the daemon needs them and as a simulator can play them.
///
/// *Guarantees*: each call may be repeated, also after it was cut off at any instruction; when it has returned `Ok`, it
/// is as asked. *Assumptions*: one instance for a directory and prefix at a time.
pub trait Links: Send + Sync {
    /// Makes the machine's own link, its addresses and routes, the link to the other machines, and has the kernel
    /// forward.
    fn ensure_machine<'a>(&'a self, wanted: &'a MachineLink) -> BoxFuture<'a, Result<(), LinksError>>;

    /// Makes namespace, link, addresses and routes of a task what is wanted; addresses that are no longer wanted go, with
    /// the connections that were tracked for them.
    fn ensure<'a>(&'a self, wanted: &'a Attachment) -> BoxFuture<'a, Result<Attached, LinksError>>;

    /// Takes link and namespace of a task away. Processes that are still in there lose their network.
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), LinksError>>;

    /// All attachments, in the order of their ids.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Attached>, LinksError>>;

    /// Takes the machine's own link away, and the one to the other machines. What the kernel was told to forward stays so: others may rely on it by now.
    fn remove_machine(&self) -> BoxFuture<'_, Result<(), LinksError>>;
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinksError {
    /// It can name neither file nor link. Nothing was done.
    #[error("{id:?} cannot name a network namespace")]
    BadId { id: String },
    /// Try again later; a person should see it if it lasts.
    #[error("could not {doing} for {subject}")]
    Kernel { doing: &'static str, subject: String, source: NetlinkError },
    /// As `Kernel`.
    #[error("could not {doing} for {subject}")]
    System { doing: &'static str, subject: String, source: io::Error },
}
