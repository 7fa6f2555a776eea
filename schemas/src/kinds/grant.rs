//! Grant: who may do what where.

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may do what where. What no Grant allows is refused.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(group = "apply", version = "v1", validate = crate::validate::grant, kind = "Grant", scope = "Cluster", column("NAMESPACE", "/spec/namespace"))]
#[serde(rename_all = "camelCase", default)]
pub struct GrantSpec {
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub subjects: Vec<Subject>,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, or `*`.
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub verbs: Vec<String>,
    /// Plural names, as in URLs (`services`, `sites.example.dev`), or `*`.
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub kinds: Vec<String>,
    /// Absent: all namespaces, and kinds without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    pub kind: SubjectKind,
    pub name: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "User"))]
pub enum SubjectKind {
    #[default]
    User,
    Group,
}
