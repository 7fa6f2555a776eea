//! Execution: containers through containerd's gRPC API.

pub mod connection;

pub use connection::{Connection, DEFAULT_NAMESPACE};
