//! Namespace: a room for names.

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A room for names: objects of two namespaces may share a name, and see nothing of one another.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", validate = crate::validate::namespace, kind = "Namespace", status = NamespaceStatus, scope = "Cluster", short("ns"),
    column("STATUS", "/status/phase")
)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceSpec {}

/// What is observed of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceStatus {
    /// Whether new objects may be made in it.
    pub phase: NamespacePhase,
}

/// Whether a namespace is in use or going away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Active"))]
pub enum NamespacePhase {
    /// Objects may be made in it.
    #[default]
    Active,
    /// It goes when the last object in it has gone.
    Terminating,
}
