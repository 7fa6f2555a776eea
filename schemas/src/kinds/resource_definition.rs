//! ResourceDefinition: a kind of somebody else's, served as soon as this exists.

use std::borrow::Cow;

use reconciler_api::{ColumnType, Resource, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::is_default;

/// A kind of another author's. Named `plural.group`.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", validate = crate::validate::resource_definition, kind = "ResourceDefinition", scope = "Cluster",
    short("rd", "crd"), column("KIND", "/spec/kind"), column("GROUP", "/spec/group"), column("VERSION", "/spec/version")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct ResourceDefinitionSpec {
    /// A DNS name of the author's own, with a dot in it: `example.dev`.
    #[schemars(extend("x-required" = true))]
    pub group: String,
    /// Version that objects of the kind name: `v1`, `v1beta2`. Never changes.
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
    pub scope: Scope,
    /// JSON Schema of a whole object, of which `apiVersion`, `kind` and `metadata` need not be said; absent: any object is
    /// taken. Fields that it does not name are refused, and what has a `default` in it is filled in. Objects that are
    /// there already stay as they are when it changes.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub schema: Value,
    /// What of an object is written by other paths than its own.
    #[serde(skip_serializing_if = "is_default")]
    pub subresources: Subresources,
    /// What tables show after the name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub columns: Vec<DefinitionColumn>,
}

impl ResourceDefinitionSpec {
    /// The singular name that people may type.
    pub fn singular(&self) -> Cow<'_, str> {
        match &self.singular {
            Some(singular) => singular.into(),
            None => self.kind.to_lowercase().into(),
        }
    }
}

/// What of an object is written by other paths than its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Subresources {
    /// Whether objects have a status, which is written by `/status` alone.
    pub status: bool,
    /// Where objects say how many they are; absent: they cannot be scaled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScalePointers>,
}

impl Default for Subresources {
    fn default() -> Self {
        Self { status: true, scale: None }
    }
}

/// Where objects say how many they are: what `/scale` reads and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct ScalePointers {
    /// JSON pointer to how many are wanted: `/spec/replicas`.
    #[schemars(extend("x-required" = true))]
    pub spec_replicas: String,
    /// JSON pointer to how many there are: `/status/replicas`.
    #[schemars(extend("x-required" = true))]
    pub status_replicas: String,
    /// JSON pointer to a label selector, as text, of what is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<String>,
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
    /// What stands there.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: ColumnType,
    /// Only shown by `-o wide`.
    #[serde(skip_serializing_if = "is_default")]
    pub wide: bool,
}
