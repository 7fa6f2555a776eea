//! Who somebody is for a registry: asked of the registry before a login is kept, and told to the machines that pull with it.
//!
//! | call | body | answer |
//! | --- | --- | --- |
//! | `POST /apis/apply/v1/logins/check` | `{registry, username, password}` | `{"open": true}` where the registry lets everybody in; 422 when it does not know them, 503 when it could not be asked |
//! | `GET …/namespaces/NAMESPACE/registrylogins/NAME/data` | | to a machine with a live task whose image is pulled with it: `{username, password}`; 403 to all others |

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use controllers::node::images::{Credentials, Door, LoginError, check_login};
use controllers::node::tasks::{Logins, pulls_with};
use futures::FutureExt;
use futures::future::BoxFuture;
use reconciler::cache::Cache;
use reconciler::objects::{Error, Remote};
use reconciler::server::Peer;
use reconciler::{ObjectRef, Resource};
use schemas::kinds::registry_login::{RegistryLogin, RegistryLoginSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answer::Refusal;
use super::rights::member;
use super::routes::Parts;

pub fn routes() -> Router<Parts> {
    Router::new().route("/apis/apply/v1/logins/check", post(check))
}

async fn check(State(parts): State<Parts>, Json(login): Json<RegistryLoginSpec>) -> Result<Json<Value>, Refusal> {
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

/// What a manager tells machines.
pub struct Teller {
    /// Keeps Nodes, Tasks, Revisions and RegistryLogins.
    pub cache: Cache,
    pub logins: Arc<dyn Logins>,
}

/// What a machine needs for a pull. It is never kept there.
#[derive(Serialize, Deserialize)]
struct Told {
    username: String,
    password: String,
}

pub fn told(teller: Teller) -> Router {
    let path = "/apis/apply/v1/namespaces/{namespace}/registrylogins/{name}/data";
    Router::new().route(path, get(tell)).with_state(Arc::new(teller))
}

async fn tell(
    State(teller): State<Arc<Teller>>,
    Extension(peer): Extension<Peer>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Told>, Refusal> {
    let login = ObjectRef::new(namespace, name);
    let known = teller.cache.snapshot();
    let known = known.ok_or_else(|| Refusal(StatusCode::SERVICE_UNAVAILABLE, "only just begun".to_owned()))?;
    let node = member(&peer, &known).map_err(|why| Refusal(StatusCode::FORBIDDEN, why))?;
    let node = node.name();
    if !pulls_with(&known, node, &login) {
        let why = format!("no task on {node} is of an image that is pulled with the login {login}");
        return Err(Refusal(StatusCode::FORBIDDEN, why));
    }
    match teller.logins.open(&login).await {
        Ok(Some(Credentials { username, password })) => Ok(Json(Told { username, password })),
        Ok(None) => Err(Refusal(StatusCode::NOT_FOUND, format!("there is no login {login}"))),
        Err(why) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why)),
    }
}

/// The logins that a manager tells this machine, each for one pull.
pub struct FromManager(pub Remote);

impl Logins for FromManager {
    fn open<'a>(&'a self, login: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Credentials>, String>> {
        async move {
            let path = format!("/apis/apply/v1/namespaces/{}/registrylogins/{}/data", login.namespace, login.name);
            let asked = async { self.0.call(Method::GET, &path, Bytes::new()).await?.bytes().await };
            let bytes = match asked.await {
                Ok(bytes) => bytes,
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(format!("the login {login} is not told to this machine: {error}")),
            };
            // Its own words are left out: serde quotes what it cannot read.
            let Ok(Told { username, password }) = serde_json::from_slice(&bytes) else {
                return Err(format!("the login {login} was told in words that this version does not know"));
            };
            Ok(Some(Credentials { username, password }))
        }
        .boxed()
    }
}
