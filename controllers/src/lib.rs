//! What converges here: `cluster` runs where the store is, `node` runs on every machine and acts on containerd and the
//! kernel. One module is one controller, with the same three rooms: observe, plan, act (docs/ARCHITECTURE.md).

pub mod admission;
pub mod applied;
pub mod cluster;
pub mod files;
pub mod identity;
pub mod kinds;
pub mod level;
mod mounted;
pub mod node;
