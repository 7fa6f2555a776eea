//! Volume: data that outlives its tasks.

use std::collections::BTreeMap;

use reconciler_api::{Conditions, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;
use super::template::Driver;
use crate::quantity::Size;

/// A condition of a Volume that is being deleted: `False` says in its message who uses it still, or what failed.
pub const REMOVED: &str = "Removed";

/// Data that outlives its tasks. Made by the user or by a service's mount; never removed by itself. Its node writes the
/// status.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", validate = crate::validate::volume, kind = "Volume", status = VolumeStatus, short("vol"),
    column("NODE", "/spec/node"), column("STATE", "/status/state"), column("SIZE", "/status/size"),
    wide_column("PATH", "/status/path")
)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSpec {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Absent: a directory of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// Where its data is; absent until the first task that mounts it has a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeStatus {
    pub observed_generation: i64,
    pub state: VolumeState,
    /// On its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bytes in it when it was last measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Tasks of its node that have it mounted or are about to.
    #[serde(skip_serializing_if = "is_default")]
    pub in_use: u32,
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Pending"))]
pub enum VolumeState {
    /// Not made yet.
    #[default]
    Pending,
    Ready,
    /// Its data is being removed.
    Removing,
    Failed,
}
