//! Cluster: what holds for all machines. One object, named `cluster`.

use reconciler_api::{Conditions, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::network::Cidr;
use crate::defaults;
use crate::quantity::Period;

/// The name of the one Cluster object.
pub const CLUSTER_NAME: &str = "cluster";

/// What holds for all machines: pools of addresses, lifetimes, periods, ports.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", validate = crate::validate::cluster, kind = "Cluster", status = ClusterStatus, scope = "Cluster",
    column("TITLE", "/spec/title"), column("ID", "/status/id")
)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterSpec {
    /// A name for people: `brave-otter`.
    pub title: String,
    pub addresses: AddressPools,
    pub ports: ClusterPorts,
    pub periods: ClusterPeriods,
    pub history: History,
}

/// Where addresses come from. Changing a pool concerns only what is given from then on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressPools {
    /// Networks get their subnets from here.
    pub tasks: Cidr,
    /// Virtual addresses of services.
    pub virtuals: Cidr,
    /// One address a machine, for what machines say to tasks.
    pub nodes: Cidr,
    /// Length of the prefix of the block that a machine gets in a network.
    pub node_block_prefix: u8,
}

impl Default for AddressPools {
    fn default() -> Self {
        let cidr = |text: &str| text.parse().unwrap_or_else(|_| unreachable!("a constant of defaults.rs"));
        Self {
            tasks: cidr(defaults::TASK_ADDRESSES.value),
            virtuals: cidr(defaults::VIRTUAL_ADDRESSES.value),
            nodes: cidr(defaults::NODE_ADDRESSES.value),
            node_block_prefix: defaults::NODE_BLOCK_PREFIX.value,
        }
    }
}

/// Published ports that nobody named are given from `allocatedFirst` to `allocatedLast`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPorts {
    #[schemars(range(min = 1, max = 65535), extend("format" = "port"))]
    pub allocated_first: u16,
    #[schemars(range(min = 1, max = 65535), extend("format" = "port"))]
    pub allocated_last: u16,
}

impl Default for ClusterPorts {
    fn default() -> Self {
        let (allocated_first, allocated_last) = defaults::ALLOCATED_PORTS.value;
        Self { allocated_first, allocated_last }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPeriods {
    /// Between two heartbeats of a node.
    pub heartbeat: Period,
    /// So many missed ones, and the node is lost.
    pub heartbeats_missed: u32,
    /// Life of a node's certificate.
    pub node_certificate: Period,
    /// Life of a join token.
    pub join_token: Period,
}

impl Default for ClusterPeriods {
    fn default() -> Self {
        Self {
            heartbeat: defaults::HEARTBEAT.value,
            heartbeats_missed: defaults::HEARTBEATS_MISSED.value,
            node_certificate: defaults::NODE_CERTIFICATE.value,
            join_token: defaults::JOIN_TOKEN.value,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    /// Tasks kept for each slot, the live one included.
    pub tasks_per_slot: u32,
    /// Revisions kept for each service and bundle.
    pub revisions: u32,
}

impl Default for History {
    fn default() -> Self {
        Self { tasks_per_slot: defaults::TASK_HISTORY.value, revisions: defaults::REVISION_HISTORY.value }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    pub observed_generation: i64,
    /// Made once, by `init`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}
