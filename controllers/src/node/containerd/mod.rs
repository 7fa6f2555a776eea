//! Execution: containers through containerd's gRPC API.

pub mod connection;
pub mod container_spec;

pub use connection::{Connection, DEFAULT_NAMESPACE};
