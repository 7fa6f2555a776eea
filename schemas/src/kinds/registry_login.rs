//! RegistryLogin: who we are for one registry.

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sensitive::Sensitive;

/// Credentials for one registry, used by the nodes that pull from it. Sealed in the store.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", kind = "RegistryLogin", short("login"), sensitive("/spec/password"), validate = crate::validate::registry_login,
    column("REGISTRY", "/spec/registry"), column("USERNAME", "/spec/username")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct RegistryLoginSpec {
    /// Host and port as in image references: `registry.example.com:5000`; `docker.io` for Docker Hub.
    #[schemars(extend("x-required" = true))]
    pub registry: String,
    /// Name of the account; without `:`, for it is sent as `name:password`.
    #[schemars(extend("x-required" = true))]
    pub username: String,
    /// Password or access token of the account. Stored sealed; read back as a digest that tells two passwords apart.
    #[schemars(extend("x-required" = true))]
    pub password: Sensitive,
}
