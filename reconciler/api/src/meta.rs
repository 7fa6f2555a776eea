//! The envelope: what every object says about itself. The conventions are Kubernetes' (API conventions, "Metadata").

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// `metadata` of an object. Everything but names, labels, annotations, finalizers and owner references is written by
/// the objects layer alone; what a writer puts there is ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// Lower case letters, digits and `-`, 1 to 63 characters; never changes.
    pub name: String,
    /// Empty for cluster-scoped kinds.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Never used twice: two objects of one name are told apart by it.
    #[serde(skip_serializing_if = "Uid::is_empty")]
    pub uid: Uid,
    /// What selectors find the object by, such as `tier: front`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whatever else is worth keeping with the object; nothing is found by it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Starts at 1, grows with every change outside metadata and status.
    #[serde(skip_serializing_if = "is_zero")]
    pub generation: i64,
    /// The version of this value; opaque to people, ordered for programs (it is the store's revision, raised by a base
    /// at each restore).
    #[serde(skip_serializing_if = "ResourceVersion::is_unset")]
    pub resource_version: ResourceVersion,
    /// When it was stored first, by the clock of the objects layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// Set once, never unset: the object goes when its last finalizer does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Timestamp>,
    /// A set, in order of arrival; each entry is removed by its owner only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// Whom the object belongs to; it goes when the last of them has gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// Who last said which fields; kept for those that people write, absent for kinds that only controllers write.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub managed_fields: Vec<ManagedFieldsEntry>,
}

impl ObjectMeta {
    /// For an object that is about to be created: nothing but a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// The owner whose controller manages this object, if one does.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }

    /// Whether one of its owners is this incarnation.
    pub fn is_owned_by(&self, uid: &Uid) -> bool {
        self.owner_references.iter().any(|owner| owner.uid == *uid)
    }
}

/// Who an object belongs to. Resolved by UID: a namesake of a deleted owner owns nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Group and version of the owner's kind: `apply/v1`.
    pub api_version: String,
    /// Kind of the owner, in CamelCase: `Service`.
    pub kind: String,
    /// Name of the owner, for people; in the object's own namespace, or in none.
    pub name: String,
    /// Which owner of that name.
    pub uid: Uid,
    /// At most one reference of an object has it.
    #[serde(skip_serializing_if = "is_false")]
    pub controller: bool,
    /// A foreground deletion of the owner waits for this object.
    #[serde(skip_serializing_if = "is_false")]
    pub block_owner_deletion: bool,
}

/// Who last said which fields (server-side apply's bookkeeping).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagedFieldsEntry {
    /// Who wrote: the field manager that the writer named, such as `applyctl`.
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: String,
    /// Group and version in whose form the fields are said: `apply/v1`.
    pub api_version: String,
    /// When they were last written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// `FieldsV1`, the only form there is.
    pub fields_type: String,
    /// The fields, as Kubernetes writes them down: `{"f:spec": {"f:replicas": {}}}`.
    pub fields_v1: serde_json::Value,
    /// `status` for what was written there; empty for the rest.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

/// Identity of one incarnation of an object.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Uid(String);

impl Uid {
    /// Takes the text as it is; empty stands for "not stored yet".
    pub fn new(uid: impl Into<String>) -> Self {
        Self(uid.into())
    }

    /// The text, for keys, labels and names.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is none yet: the object was never stored.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first `n` characters: for names derived from a UID, and for people.
    pub fn short(&self, n: usize) -> &str {
        self.0.get(..n).unwrap_or(&self.0)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A version of an object, or of a whole list. A decimal string in JSON, as Kubernetes' clients expect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceVersion(pub u64);

impl ResourceVersion {
    /// Zero stands for "not stored yet".
    pub fn is_unset(&self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ResourceVersion {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl Serialize for ResourceVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResourceVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self(0));
        }
        text.parse().map_err(|_| {
            serde::de::Error::custom(format!("resourceVersion {text:?} is not a decimal number in quotes"))
        })
    }
}

impl JsonSchema for ResourceVersion {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ResourceVersion".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "description": "A decimal number in quotes; opaque to people."})
    }

    fn inline_schema() -> bool {
        true
    }
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// The status of a kind that has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoStatus {}
