//! User: a person or program that the API knows.

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A person or program that the API knows, by the common name of its certificate or the digest of its token.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(group = "apply", version = "v1", kind = "User", scope = "Cluster", column("TITLE", "/spec/title"))]
#[serde(rename_all = "camelCase", default)]
pub struct UserSpec {
    /// The name that people know it by; nothing goes by it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// Groups of the user, as Grants name them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub groups: Vec<String>,
    /// SHA-256 digests, in hex, of tokens that stand for this user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub token_digests: Vec<String>,
}
