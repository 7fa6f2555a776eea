//! Messages of containerd that its client crate does not have: runc's options and the metrics of cgroups. Only the
//! fields that are used; protobuf passes over the others. Names and numbers: containerd's
//! `api/types/runc/options/oci.proto`, containerd/cgroups' `cgroup1/stats/metrics.proto` and `cgroup2/stats/metrics.proto`.

use prost::Message;
use prost_types::Any;

/// `containerd.runc.v1.Options`: how the shim calls the runtime.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RuncOptions {
    /// The runtime's executable; empty is `runc`.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// Where the runtime keeps its state; empty is `/run/containerd/runc`.
    #[prost(string, tag = "7")]
    pub root: String,
}

pub(super) const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
/// A whole runtime spec, in JSON; under this name since containerd 1.0.
pub(super) const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The process of an exec, in JSON.
pub(super) const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// New limits, in JSON.
pub(super) const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

pub(super) fn json(type_url: &str, value: &serde_json::Value) -> Any {
    Any { type_url: type_url.to_owned(), value: value.to_string().into_bytes() }
}

pub(super) const METRICS_V1: &str = "io.containerd.cgroups.v1.Metrics";
pub(super) const METRICS_V2: &str = "io.containerd.cgroups.v2.Metrics";

#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricsV1 {
    #[prost(message, optional, tag = "2")]
    pub pids: Option<Pids>,
    #[prost(message, optional, tag = "3")]
    pub cpu: Option<CpuV1>,
    #[prost(message, optional, tag = "4")]
    pub memory: Option<MemoryV1>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Pids {
    #[prost(uint64, tag = "1")]
    pub current: u64,
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CpuV1 {
    #[prost(message, optional, tag = "1")]
    pub usage: Option<CpuUsageV1>,
    #[prost(message, optional, tag = "2")]
    pub throttling: Option<ThrottlingV1>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CpuUsageV1 {
    /// Nanoseconds.
    #[prost(uint64, tag = "1")]
    pub total: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ThrottlingV1 {
    /// Nanoseconds.
    #[prost(uint64, tag = "3")]
    pub throttled_time: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MemoryV1 {
    #[prost(uint64, tag = "29")]
    pub total_inactive_file: u64,
    #[prost(message, optional, tag = "33")]
    pub usage: Option<MemoryEntryV1>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MemoryEntryV1 {
    #[prost(uint64, tag = "1")]
    pub limit: u64,
    #[prost(uint64, tag = "2")]
    pub usage: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricsV2 {
    #[prost(message, optional, tag = "1")]
    pub pids: Option<Pids>,
    #[prost(message, optional, tag = "2")]
    pub cpu: Option<CpuV2>,
    #[prost(message, optional, tag = "4")]
    pub memory: Option<MemoryV2>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CpuV2 {
    /// Microseconds.
    #[prost(uint64, tag = "1")]
    pub usage_usec: u64,
    #[prost(uint64, tag = "6")]
    pub throttled_usec: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MemoryV2 {
    #[prost(uint64, tag = "13")]
    pub inactive_file: u64,
    #[prost(uint64, tag = "32")]
    pub usage: u64,
    #[prost(uint64, tag = "33")]
    pub usage_limit: u64,
}
