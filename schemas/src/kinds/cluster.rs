//! Cluster: what holds for all machines. One object, named `cluster`.

use reconciler_api::{Conditions, Resource, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;
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
    /// Pools that networks, services and machines get their addresses from.
    pub addresses: AddressPools,
    /// Whether what tasks say to tasks on other machines is encrypted. While it changes, some of it is lost.
    #[serde(skip_serializing_if = "is_default")]
    pub data_plane: DataPlane,
    /// Range of the ports that are given to published ports without a number.
    pub ports: ClusterPorts,
    /// Heartbeats of nodes, lives of certificates and tokens.
    pub periods: ClusterPeriods,
    /// How much of the past is kept.
    pub history: History,
    /// When the authority that signs the certificates of machines and people is another one.
    #[serde(skip_serializing_if = "is_default")]
    pub authority: ClusterAuthority,
}

/// How machines send each other what their tasks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "encrypted"))]
pub enum DataPlane {
    /// By WireGuard.
    #[default]
    Encrypted,
    /// As it is: for a network where nobody else is, and where speed is worth more.
    Plain,
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
    /// Lowest port that is given, 1 to 65535; at most `allocatedLast`.
    #[schemars(range(min = 1, max = 65535), extend("format" = "port"))]
    pub allocated_first: u16,
    /// Highest port that is given, 1 to 65535.
    #[schemars(range(min = 1, max = 65535), extend("format" = "port"))]
    pub allocated_last: u16,
}

impl Default for ClusterPorts {
    fn default() -> Self {
        let (allocated_first, allocated_last) = defaults::ALLOCATED_PORTS.value;
        Self { allocated_first, allocated_last }
    }
}

/// Heartbeats of nodes, lives of certificates and tokens, each a duration such as `500ms`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPeriods {
    /// Between two heartbeats of a node; at least 100ms.
    pub heartbeat: Period,
    /// Heartbeats in a row that may be missed before the node is lost; at least 2.
    pub heartbeats_missed: u32,
    /// Life of a node's certificate; at least 5m.
    pub node_certificate: Period,
    /// Life of a join token; at least 1m.
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

/// How much of the past is kept. Older entries go as soon as a newer one is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    /// Tasks kept for each slot of a service, the live one included; at least 1.
    pub tasks_per_slot: u32,
    /// Revisions kept for each service and bundle, the wanted one included; at least 2, or nothing could be undone.
    pub revisions: u32,
}

impl Default for History {
    fn default() -> Self {
        Self { tasks_per_slot: defaults::TASK_HISTORY.value, revisions: defaults::REVISION_HISTORY.value }
    }
}

/// When the authority that signs certificates is another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterAuthority {
    /// Counted up, the cluster gets its next authority (`applyctl ca rotate`).
    pub rotation: u32,
    /// For how long the one before is believed after the next one has begun to sign, at least: credentials of people that it
    /// signed are good until then. `0s`: no longer than machines need.
    pub overlap: Period,
}

impl Default for ClusterAuthority {
    fn default() -> Self {
        Self { rotation: 0, overlap: defaults::AUTHORITY_OVERLAP.value }
    }
}

/// What is observed of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    /// The `metadata.generation` that this status speaks of.
    pub observed_generation: i64,
    /// Identity of the cluster, made once by `init` and never again.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The authorities that are believed, once there was another than the first. Written by the authority controller.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<AuthorityStatus>,
    /// What is true of the cluster as a whole; absent means Unknown. `AuthorityIsLatest`: what a change of the authority waits for.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}

/// An authority that is believed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorityStatus {
    /// Of its public key, as join tokens have it.
    pub fingerprint: String,
    /// Its certificate, in PEM.
    pub certificate: String,
    /// The same as the one before has signed it, for who believes only that one; from when it signs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bridge: String,
    /// What it does.
    pub state: AuthorityState,
    /// Since when it does that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The `spec.authority.rotation` that it was made for; 0 for the first.
    pub rotation: u32,
}

/// What an authority does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Coming"))]
pub enum AuthorityState {
    /// Machines learn to believe it, and managers get its key.
    #[default]
    Coming,
    /// It signs.
    Signing,
    /// It signs no more, and what it has signed is believed for a while.
    Going,
}
