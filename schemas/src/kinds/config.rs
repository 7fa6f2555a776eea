//! Config: a file for tasks that is no secret.

use std::collections::BTreeMap;

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A file for tasks that is no secret.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(group = "apply", version = "v1", kind = "Config", validate = crate::validate::config)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct ConfigSpec {
    /// Labels of the config, for selectors; tasks do not see them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The file's content: base64 of 1 to 960,000 bytes.
    #[schemars(extend("x-required" = true))]
    pub data: String,
}
