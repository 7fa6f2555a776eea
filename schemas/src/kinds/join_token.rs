//! JoinToken: what a machine proves once to become a node.

use reconciler_api::{Resource, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::node::Role;

/// What a machine proves once to become a node. Only the digest is kept.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply",
    version = "v1", validate = crate::validate::join_token,
    kind = "JoinToken",
    scope = "Cluster",
    column("ROLE", "/spec/role"),
    column("EXPIRES", "/spec/expiresAt")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct JoinTokenSpec {
    /// What the machine becomes.
    pub role: Role,
    /// SHA-256 of the secret part, 64 lower-case hexadecimal digits. The secret itself is shown once and not kept.
    #[schemars(extend("x-required" = true))]
    pub digest: String,
    /// When it stops being taken; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// It is no longer taken. Kept until it expires, so that whoever still has it is told so.
    #[serde(skip_serializing_if = "super::is_default")]
    pub revoked: bool,
}
