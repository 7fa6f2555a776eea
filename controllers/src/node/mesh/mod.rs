//! The nftables ruleset: virtual IPs, published ports, isolation. Docs of its parts in reading order: `state` (what is
//! wanted), `follow` (from the API's objects), `sets` and `ruleset` (the fixed part), `table` (what the kernel has), `plan` (the difference), `kernel` and `effects`
//! (carrying it out).
//!
//! **Owns** one table of family inet. **Relies on** the links of tasks having the names that `links` gives them.
//! **Promises** that new connections go to the tasks that are wanted, in turn, and that established ones stay where they
//! are; and that a start with nothing changed changes nothing. **Woken by** Endpoints, Networks, the Tasks of this
//! machine, Nodes; and from time to time, as others may have been at the table.

pub mod controller;
mod converge;
mod effects;
pub(in crate::node) mod follow;
mod kernel;
mod obstacles;
mod plan;
mod ruleset;
mod sets;
mod state;
mod table;
mod watch;

pub use converge::{Changed, Converged, Converger};
pub use effects::{Generation, KernelMesh, Mesh, MeshError, Observed};
pub use follow::{Differs, Followed, Lacks, declarations};
pub use obstacles::{Dropped, Obstacle};
pub use plan::{Fault, Plan, SETTLE, plan, plan_frontends};
pub use ruleset::{Balancer, COUNTERS_MAX, Chain, Ruleset, Turn};
pub use state::{
    Backend, Family, Frontend, Kind, LocalTask, Machine, MeshState, Network, Protocol, PublishedPort, Way,
};
pub use table::{Conflict, Member, Op, Table};

pub use watch::{AllRules, Rules};

pub use super::sys::conntrack::Stale;

#[cfg(test)]
mod tests;
