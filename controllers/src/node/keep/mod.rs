//! The companion process, `applyd keep`: one per machine, from the same binary as applyd, which it outlives.
//!
//! It has what must not stop when applyd does: it collects what containers print ([`super::logs`]), answers their name
//! queries ([`super::names`]), and relays for listeners that the kernel cannot forward itself (`relay`: a published port
//! at IPv6 addresses of the machine). It decides nothing. It reads one file, the [`Table`], which applyd replaces
//! atomically, and says in another, the [`Status`], which version of the table it has put into effect and what of it
//! failed.
//!
//! It may be killed at any instruction. What it had open is opened again by the next one, from the same table: output
//! waits in pipes that applyd and the runtime's shim hold open, and the index of a log says where to go on. Replacing it
//! by another build loses not even a query: the old one passes its sockets, pipes and lock on (`handover`), and goes once
//! the connections that it relays have ended.
//!
//! In its directory: `table.json`, `status.json`, `lock` (flock(2) of the one that works; passed on with the rest, so
//! there is no moment in which nobody has it), `handover.sock`.
//!
//! applyd's side of it is a [`Client`]; [`Life`] tells when it has ended.
//!
//! - **Owns**: the reading side of all log pipes, the sockets of the name server, listeners of the table; `status.json`.
//! - **Relies on**: one writer of `table.json` ([`Client`]), which also starts it when it is gone.
//! - **Promises**: once `status.json` names a version, what its table says is in effect, but for the faults listed.

mod client;
pub mod controller;
mod handover;
mod life;
mod relay;
mod run;
mod table;
mod watch;

use std::path::PathBuf;

pub use client::{Client, ClientError};
pub use life::Life;
pub use run::{KeepError, run};
pub use table::{Faults, Listener, Status, Table};

/// How a companion process is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its directory (0700), such as `/run/apply/keep`; the same for all that shall exclude or succeed each other. Best
    /// on a file system that does not outlive the machine's run.
    pub dir: PathBuf,
    /// Names what is running: a version, a digest. Where it differs from the running one's, [`Client`] replaces that.
    pub build: String,
    /// Take over from the one that works now, if any. Otherwise, where one works already, [`run`] returns at once.
    pub replace: bool,
    /// A cgroup to move to, as a path below the root of each hierarchy, made if missing: so that a service manager that
    /// stops applyd by its cgroup does not stop this. None: stay.
    pub cgroup: Option<String>,
}
