//! Secret: data that only a task that names it may read.

use std::collections::BTreeMap;

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sensitive::Sensitive;

/// Data that only the tasks that name it may read.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(group = "apply", version = "v1", kind = "Secret", sensitive("/spec/data"), validate = crate::validate::secret)]
#[serde(rename_all = "camelCase", default)]
pub struct SecretSpec {
    /// Labels of the secret, for selectors; tasks do not see them, and they are not sealed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The file's content: base64 of 1 to 511,999 bytes. Stored sealed; read back as a digest.
    pub data: Sensitive,
}
