//! Controllers that run beside the store. Reading order: `service` (a service becomes tasks), `scheduler` (a task gets
//! its node), `node` (which machines can be relied on), `volume` (named data), `network` and `endpoints` (addresses, ports,
//! who answers), `managers` (who has a vote in the store), `authority` (who signs certificates), `bundle` (an application becomes services), `revisions` (what both were before).

pub mod authority;
pub mod bundle;
pub mod endpoints;
pub mod history;
pub mod managers;
pub mod network;
pub mod node;
pub mod orphan;
mod revisions;
pub mod scheduler;
pub mod service;
pub mod volume;
