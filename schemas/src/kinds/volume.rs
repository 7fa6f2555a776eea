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
    /// Labels of the volume, for selectors.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What makes the volume; absent: a directory of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// Name of the Node where its data is; absent until the first task that mounts it has a node. Never changes after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// What is observed of a volume. Written by its node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeStatus {
    /// The `metadata.generation` that this status speaks of.
    pub observed_generation: i64,
    /// Whether tasks can mount it.
    pub state: VolumeState,
    /// Where its data is on its node; absent until it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bytes in it when it was last measured; told anew when they differ enough to matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Tasks of its node that have it mounted or are about to.
    #[serde(skip_serializing_if = "is_default")]
    pub in_use: u32,
    /// `Removed` while it is being deleted: what it waits for, or what failed.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}

/// Whether a volume can be mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Pending"))]
pub enum VolumeState {
    /// Not made yet.
    #[default]
    Pending,
    /// Its directory is there, and tasks may mount it.
    Ready,
    /// Its data is being removed.
    Removing,
    /// Its data could not be removed; the condition `Removed` says why, and it is tried again.
    Failed,
}
