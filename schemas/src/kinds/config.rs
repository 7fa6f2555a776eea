//! Config: a file for tasks that is no secret.

use std::collections::BTreeMap;

use reconciler_api::{Fault, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A file for tasks that is no secret.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(group = "apply", version = "v1", kind = "Config", validate = validate)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigSpec {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Base64 of 1 to 1,023,999 bytes.
    #[schemars(required)]
    pub data: String,
}

fn validate(_config: &Config, _previous: Option<&Config>) -> Vec<Fault> {
    Vec::new()
}
