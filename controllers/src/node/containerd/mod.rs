//! Execution: containers through containerd's gRPC API.
