//! RegistryLogin: who we are for one registry.

use reconciler_api::{Fault, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sensitive::Sensitive;

/// Credentials for one registry, used by the nodes that pull from it. Sealed in the store.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", kind = "RegistryLogin", short("login"), validate = validate,
    column("REGISTRY", "/spec/registry"), column("USERNAME", "/spec/username")
)]
#[serde(rename_all = "camelCase", default)]
pub struct RegistryLoginSpec {
    /// Host and port as in image references: `registry.example.com:5000`; `docker.io` for Docker Hub.
    #[schemars(required)]
    pub registry: String,
    #[schemars(required)]
    pub username: String,
    #[schemars(required)]
    pub password: Sensitive,
}

fn validate(_login: &RegistryLogin, _previous: Option<&RegistryLogin>) -> Vec<Fault> {
    Vec::new()
}
