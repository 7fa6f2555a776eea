//! ResourceDefinition: a kind of somebody else's, served as soon as this exists.

use reconciler_api::{Conditions, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::is_default;

/// A kind of another author's. Named `plural.group`.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", validate = crate::validate::resource_definition, kind = "ResourceDefinition", status = ResourceDefinitionStatus, scope = "Cluster",
    short("rd", "crd"), column("KIND", "/spec/kind"), column("GROUP", "/spec/group"), column("VERSION", "/spec/version")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct ResourceDefinitionSpec {
    /// A DNS name of the author's own.
    #[schemars(extend("x-required" = true))]
    pub group: String,
    /// `v1`, `v1beta2`, …
    #[schemars(extend("x-required" = true))]
    pub version: String,
    /// Singular, CamelCase.
    #[schemars(extend("x-required" = true))]
    pub kind: String,
    /// Lower case, as in URLs.
    #[schemars(extend("x-required" = true))]
    pub plural: String,
    /// Absent: the kind in lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub singular: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub short_names: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub scope: DefinitionScope,
    /// JSON Schema of a whole object.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub schema: Value,
    /// What tables show after the name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub columns: Vec<DefinitionColumn>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Namespaced"))]
pub enum DefinitionScope {
    #[default]
    Namespaced,
    Cluster,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct DefinitionColumn {
    #[schemars(extend("x-required" = true))]
    pub name: String,
    /// JSON pointer into the object: `/status/state`.
    #[schemars(extend("x-required" = true))]
    pub pointer: String,
    /// Only shown by `-o wide`.
    #[serde(skip_serializing_if = "is_default")]
    pub wide: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceDefinitionStatus {
    pub observed_generation: i64,
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}
