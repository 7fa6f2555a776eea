//! Bundle: an application as one object. What it names is made, and what it no longer names goes.

use std::collections::BTreeMap;

use reconciler_api::{Conditions, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::is_default;
use super::network::NetworkSpec;
use super::service::ServiceSpec;

/// An application: services and networks that are made, updated and removed together.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", kind = "Bundle", status = BundleStatus, short("app"), validate = crate::validate::bundle,
    column("SERVICES", "/status/summary"), column("STATE", "/status/state"), column("REVISION", "/status/number")
)]
#[serde(rename_all = "camelCase", default)]
pub struct BundleSpec {
    /// Services by their name in the file; the object made of `vote` in the bundle `voting-app` is `voting-app-vote`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, ServiceFragment>,
    /// Networks by their name in the file. One that a service names and that is missing here is made with defaults.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, NetworkSpec>,
    /// Services and networks that left the file stay, and are named in the plan. Else they are removed.
    #[serde(skip_serializing_if = "is_default")]
    pub keep_dropped: bool,
    /// Paths where the file's word outranks what was set by hand: `vote.replicas`, `vote`, or `*` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub reset: Vec<String>,
}

/// What a file says about a service: a Service's spec with only the fields that the file names, kept as it was said, so
/// that "not said" and "said to be the default" stay two things in the three-way merge.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceFragment(pub Map<String, Value>);

impl ServiceFragment {
    /// The spec that the fragment alone amounts to.
    ///
    /// # Errors
    /// The first field that has no Rust form; never after validation.
    pub fn to_spec(&self) -> Result<ServiceSpec, serde_json::Error> {
        ServiceSpec::deserialize(Value::Object(self.0.clone()))
    }
}

impl From<&ServiceSpec> for ServiceFragment {
    fn from(spec: &ServiceSpec) -> Self {
        match serde_json::to_value(spec) {
            Ok(Value::Object(fields)) => Self(fields),
            _ => unreachable!("a spec is an object whose keys are strings"),
        }
    }
}

impl JsonSchema for ServiceFragment {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ServiceFragment".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<ServiceSpec>()
    }

    fn inline_schema() -> bool {
        true
    }
}

/// What is observed of a bundle. Written by the bundle controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BundleStatus {
    /// The `metadata.generation` that this status speaks of; behind it, a newer spec has not been looked at yet.
    pub observed_generation: i64,
    /// Services that are up, of all: `5/5`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// How far the application has come, in one word: what a deploy waits for.
    pub state: BundleState,
    /// Number of the spec that is wanted now, counted up with each change; history and undo go by it.
    #[serde(skip_serializing_if = "is_default")]
    pub number: u64,
    /// Name of the Revision that holds that spec; absent until it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Each service of the file, by its name there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub services: Vec<BundleServiceStatus>,
    /// Where a live object differs from the file, because somebody set it by hand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
    /// `Ready`, and one for each thing in the way, with its reason and message; absent means Unknown.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}

/// Where a bundle stands as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Converging"))]
pub enum BundleState {
    /// Something is still being made, changed or removed.
    #[default]
    Converging,
    /// All services are up.
    Up,
    /// Something cannot be made as asked; the conditions say what.
    Degraded,
}

/// One service of the bundle, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BundleServiceStatus {
    /// The name of the service in the file.
    pub name: String,
    /// Name of the Service made of it.
    pub service: String,
    /// Tasks that the Service wants.
    pub desired: u32,
    /// Tasks that run and are healthy.
    pub running: u32,
    /// What it waits for or why it fails; empty when it is up.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// One field where a live object differs from the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Override {
    /// The name in the file of the service (or `networks.NAME`).
    pub object: String,
    /// Path below its spec: `replicas`, `endpoint.ports[tcp,80,8080]`.
    pub path: String,
    /// What the file says; absent: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Value>,
    /// What the live object says; absent: it was removed by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<Value>,
}
