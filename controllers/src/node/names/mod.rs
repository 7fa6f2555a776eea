//! Name resolution: what each network's tasks may ask for, and the answers.
//!
//! applyd compiles the Endpoints of the networks that this machine has tasks on into a [`Table`] ([`compile()`], pure);
//! the companion process answers from it (`answer`, pure; `serve`, the sockets), and passes what it does not know on to
//! the resolvers of the host (`forward`, [`resolv`]).
//!
//! Who asks is known by the source address, which anti-spoofing in the mesh makes true; it decides what is seen. In the
//! order of a task's networks, the first one that has the name answers. A name that exists is never NXDOMAIN, whatever
//! type is asked for; one that nobody here has is asked outside. Names that several services share in one network (an
//! alias, or two bundles on one network that both have a `vote`) give all of them, but a task of one of these bundles
//! gets its own bundle's.
//!
//! - **Owns**: the answers at [`SERVER`].
//! - **Relies on**: [`SERVER`] being an address of the machine on each task's veth; sources that cannot be forged.
//! - **Promises**: what the table says is what is answered, from the moment that the table is acknowledged.

mod answer;
mod compile;
mod forward;
pub mod resolv;
mod serve;
mod table;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub use compile::{Network, Service, Task, compile};
pub(crate) use serve::{Server, Socket};
pub use table::{Answer, Client, Scope, Table};

/// Where every task finds its machine's name server, whatever its networks.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), 53);
