//! What is known of a kind before any object of it exists.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::meta::ObjectMeta;

/// A typed kind: a spec that somebody wants and a status that somebody observed, in the common envelope.
///
/// Implemented by `#[derive(Resource)]` on the spec; nobody writes it by hand.
///
/// *Guarantees*: `kind()` is the same value for the life of the process. *Assumptions*: the JSON form is
/// `{apiVersion, kind, metadata, spec, status?}`.
pub trait Resource: Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What somebody wants. Written by people and by controllers that own the object, never by the one that brings it
    /// about.
    type Spec: Clone + PartialEq + fmt::Debug + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static;
    /// What is observed. Written through `/status` only, by the controller of the kind;
    /// [`NoStatus`](crate::meta::NoStatus) for kinds that have none.
    type Status: Clone
        + Default
        + PartialEq
        + fmt::Debug
        + Serialize
        + DeserializeOwned
        + JsonSchema
        + Send
        + Sync
        + 'static;

    /// Everything that is known of the kind.
    fn kind() -> &'static Kind;
    /// An object that was never stored: no namespace, no uid, no status. The name is not checked here.
    fn new(name: impl Into<String>, spec: Self::Spec) -> Self;
    /// `metadata` of the object.
    fn meta(&self) -> &ObjectMeta;
    /// The same, to change; the objects layer takes only some of it from a writer, see [`ObjectMeta`].
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// What is wanted.
    fn spec(&self) -> &Self::Spec;
    /// The same, to change.
    fn spec_mut(&mut self) -> &mut Self::Spec;
    /// What was observed; `None` until somebody has.
    fn status(&self) -> Option<&Self::Status>;
    /// The same, to change.
    fn status_mut(&mut self) -> &mut Option<Self::Status>;
    /// JSON Schema of the whole object.
    fn schema() -> schemars::Schema;
    /// Every fault of this object, each with its path; empty when it may be stored. `previous` is the stored object
    /// when this is an update.
    fn validate(&self, previous: Option<&Self>) -> Vec<Fault>;

    /// `metadata.name`.
    fn name(&self) -> &str {
        &self.meta().name
    }

    /// Namespace and name: what to ask for this object by.
    fn object_ref(&self) -> ObjectRef {
        ObjectRef { namespace: self.meta().namespace.clone(), name: self.meta().name.clone() }
    }

    /// Whether its deletion has begun; it is there until its last finalizer goes.
    fn is_deleting(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }
}

/// The names of a kind and how its objects are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// `apply`, or a DNS name for kinds of other authors.
    pub group: Cow<'static, str>,
    /// Version of the kind's form: `v1`, `v1beta2`.
    pub version: Cow<'static, str>,
    /// Singular, CamelCase: `Service`.
    pub kind: Cow<'static, str>,
    /// Lower case, used in URLs and store keys: `services`.
    pub plural: Cow<'static, str>,
    /// Lower case, for people who mean one: `service`.
    pub singular: Cow<'static, str>,
    /// Shorter names that people may type: `svc`. May be empty.
    pub short_names: Vec<Cow<'static, str>>,
    /// Whether objects live in namespaces.
    pub scope: Scope,
    /// False for kinds that only controllers write: they carry no `managedFields`.
    pub managed_fields: bool,
    /// JSON pointers to fields that are sealed at rest and read as digests only.
    pub sensitive: Vec<Cow<'static, str>>,
    /// What a table shows after NAME (and NAMESPACE) and before AGE.
    pub columns: Vec<Column>,
}

impl Kind {
    /// As objects say it of themselves: `apply/v1`.
    pub fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// `services.apply`: unique among all kinds, independent of the version.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }
}

/// Whether objects of a kind live in namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Namespaced"))]
pub enum Scope {
    /// In one each: names are unique inside it.
    #[default]
    Namespaced,
    /// In none: names are unique in the whole store.
    Cluster,
}

/// One column of the table that people see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Upper case, as printed.
    pub name: Cow<'static, str>,
    /// JSON pointer into the object (`/status/state`).
    pub pointer: Cow<'static, str>,
    /// What stands there.
    #[serde(default)]
    pub r#type: ColumnType,
    /// Shown only by `-o wide`.
    pub wide: bool,
}

/// What stands in a column, and so how it is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(extend("default" = "string"))]
pub enum ColumnType {
    /// As it is.
    #[default]
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A time, shown as how long ago it was.
    Date,
}

impl ColumnType {
    /// As in JSON: `integer`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Date => "date",
        }
    }
}

/// Which object of a kind: its namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Unique among the objects of the kind in that namespace.
    pub name: String,
}

impl ObjectRef {
    /// Of an object in a namespace; an empty one for cluster-scoped kinds.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Of an object that lives in no namespace.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}
