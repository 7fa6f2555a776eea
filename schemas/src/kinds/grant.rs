//! Grant: who may do what where.

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may do what where. What no Grant allows is refused.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(group = "apply", version = "v1", validate = crate::validate::grant, kind = "Grant", scope = "Cluster", column("NAMESPACE", "/spec/namespace"))]
#[serde(rename_all = "camelCase", default)]
pub struct GrantSpec {
    /// Who is granted something; at least one.
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub subjects: Vec<Subject>,
    /// What they may do: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `exec` (commands in tasks), or `*` for
    /// all of these; at least one. What tasks print is read by who may `get` tasks. `host` is to be said by name, but to who
    /// is granted everything everywhere: to have tasks take of their machines what containers do not get (folders,
    /// devices, capabilities, system calls), which is as good as being root there.
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub verbs: Vec<String>,
    /// With objects of which kinds: plural names, as in URLs (`services`, `sites.example.dev`), or `*` for all; at
    /// least one. Their status is changed by who is granted that (`sites.example.dev/status`), or all kinds.
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub kinds: Vec<String>,
    /// In which namespace; absent: in all, and with kinds that have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A user or a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    /// Which of the two `name` names.
    pub kind: SubjectKind,
    /// A User's name, or a group as in `spec.groups` of Users.
    pub name: String,
}

/// Whom a name names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "User"))]
pub enum SubjectKind {
    /// One User.
    #[default]
    User,
    /// Every User that has the group.
    Group,
}
