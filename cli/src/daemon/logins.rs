//! Who somebody is for a registry, asked of the registry before a login is kept.
//!
//! | call | body | answer |
//! | --- | --- | --- |
//! | `POST /apis/apply/v1/logins/check` | `{registry, username, password}` | `{"open": true}` where the registry lets everybody in; 422 when it does not know them, 503 when it could not be asked |

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use controllers::node::images::{Credentials, Door, LoginError, check_login};
use reconciler::objects::Error;
use reconciler::{ObjectRef, Resource};
use schemas::kinds::registry_login::{RegistryLogin, RegistryLoginSpec};
use serde_json::{Value, json};

use super::answer::{Refusal, Short};
use super::routes::Parts;

pub fn routes() -> Router<Parts> {
    Router::new().route("/apis/apply/v1/logins/check", post(check))
}

async fn check(State(parts): State<Parts>, Short(login): Short<RegistryLoginSpec>) -> Result<Json<Value>, Refusal> {
    let credentials = Credentials { username: login.username, password: login.password.expose().to_owned() };
    match check_login(parts.registries, &login.registry, &credentials).await {
        Ok(door) => Ok(Json(json!({"open": door == Door::Open}))),
        Err(error @ LoginError::Unasked { .. }) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
        Err(error) => Err(Refusal(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())),
    }
}

/// Who pulls from a registry in a namespace: the first login by name, as for tasks; nobody where there is none.
pub async fn of(parts: &Parts, namespace: &str, registry: &str) -> Result<Option<Credentials>, Refusal> {
    let logins = match parts.client.list::<RegistryLogin>(Some(namespace)).await {
        Ok(logins) => logins,
        Err(Error::UnknownKind { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found: Option<ObjectRef> = logins
        .iter()
        .filter(|login| login.spec.registry == registry && !login.is_deleting())
        .map(Resource::object_ref)
        .min_by(|a, b| a.name.cmp(&b.name));
    match found {
        Some(login) => parts.logins.open(&login).await.map_err(|why| Refusal(StatusCode::SERVICE_UNAVAILABLE, why)),
        None => Ok(None),
    }
}
