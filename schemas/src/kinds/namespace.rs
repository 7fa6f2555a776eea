//! Namespace: a room for names.

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A room for names.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", validate = crate::validate::namespace, kind = "Namespace", status = NamespaceStatus, scope = "Cluster", short("ns"),
    column("STATUS", "/status/phase")
)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceSpec {}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceStatus {
    pub phase: NamespacePhase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Active"))]
pub enum NamespacePhase {
    #[default]
    Active,
    /// It goes when the last object in it has gone.
    Terminating,
}
