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
    /// A DNS name of the author's own, with a dot in it: `example.dev`.
    #[schemars(extend("x-required" = true))]
    pub group: String,
    /// Version that objects of the kind name: `v1`, `v1beta2`.
    #[schemars(extend("x-required" = true))]
    pub version: String,
    /// Name of the kind: singular, CamelCase, such as `WebSite`. Never changes.
    #[schemars(extend("x-required" = true))]
    pub kind: String,
    /// Plural name, lower case, as in URLs: `websites`.
    #[schemars(extend("x-required" = true))]
    pub plural: String,
    /// Singular name that people may type; absent: the kind in lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub singular: Option<String>,
    /// Shorter names that people may type, lower case: `st`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub short_names: Vec<String>,
    /// Whether objects of the kind live in namespaces. Never changes.
    #[serde(skip_serializing_if = "is_default")]
    pub scope: DefinitionScope,
    /// JSON Schema of a whole object; absent: any object is taken.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub schema: Value,
    /// What tables show after the name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub columns: Vec<DefinitionColumn>,
}

/// Whether objects of a kind live in namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Namespaced"))]
pub enum DefinitionScope {
    /// In one each; names are unique inside it.
    #[default]
    Namespaced,
    /// In none; names are unique in the cluster.
    Cluster,
}

/// One column of the table that people see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct DefinitionColumn {
    /// Head of the column, upper case: `STATE`.
    #[schemars(extend("x-required" = true))]
    pub name: String,
    /// JSON pointer into the object: `/status/state`.
    #[schemars(extend("x-required" = true))]
    pub pointer: String,
    /// Only shown by `-o wide`.
    #[serde(skip_serializing_if = "is_default")]
    pub wide: bool,
}

/// What is observed of a definition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceDefinitionStatus {
    /// The `metadata.generation` that this status speaks of.
    pub observed_generation: i64,
    /// Whether the kind is served, and why not.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}
