//! Event: something that happened to an object, for people.

use reconciler_api::{Resource, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;

/// Something that happened to an object. Kept for 24 hours, 10,000 at most.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply",
    version = "v1",
    kind = "Event",
    short("ev"),
    unmanaged,
    column("TYPE", "/spec/type"),
    column("REASON", "/spec/reason"),
    column("OBJECT", "/spec/regarding/name"),
    column("NOTE", "/spec/note"),
    wide_column("COUNT", "/spec/count")
)]
#[serde(rename_all = "camelCase", default)]
pub struct EventSpec {
    pub regarding: EventObject,
    /// One CamelCase word, past tense: `Replaced`.
    pub reason: String,
    /// A sentence for people.
    pub note: String,
    #[serde(rename = "type")]
    pub kind: EventType,
    /// How many times it was seen.
    pub count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Timestamp>,
    /// The controller that saw it.
    pub reporter: String,
    /// The machine that it was seen on.
    #[serde(skip_serializing_if = "is_default")]
    pub node: Option<String>,
}

/// Which object an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EventObject {
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
    #[serde(skip_serializing_if = "reconciler_api::Uid::is_empty")]
    pub uid: reconciler_api::Uid,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Normal"))]
pub enum EventType {
    #[default]
    Normal,
    Warning,
}
