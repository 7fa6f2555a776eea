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
    /// The object that it happened to.
    pub regarding: EventObject,
    /// One CamelCase word, past tense: `Replaced`.
    pub reason: String,
    /// A sentence for people.
    pub note: String,
    /// Whether people should look: `Warning` if so.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// How many times it was seen.
    pub count: u32,
    /// When it was first seen; the same event seen again is counted, not written anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_time: Option<Timestamp>,
    /// When it was last seen.
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
    /// Kind of the object, in CamelCase: `Task`.
    pub kind: String,
    /// Namespace of the object; empty for kinds without one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the object; it may be gone by now.
    pub name: String,
    /// Which object of that name; empty when the writer did not know.
    #[serde(skip_serializing_if = "reconciler_api::Uid::is_empty")]
    pub uid: reconciler_api::Uid,
}

/// Whether an event needs a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Normal"))]
pub enum EventType {
    /// As it should go.
    #[default]
    Normal,
    /// Something that a person may have to do something about.
    Warning,
}
