//! What is secret, told to the machine that needs it and to nobody else. It is never kept there on a disk.
//!
//! | call | to whom | answer |
//! | --- | --- | --- |
//! | `GET …/namespaces/NAMESPACE/registrylogins/NAME/data` | a machine with a live task whose image is pulled with it | `{username, password}` |
//! | `GET …/namespaces/NAMESPACE/secrets/NAME/data`, `…/configs/NAME/data` | a machine with a live task that sees it | the bytes |
//!
//! To everybody else: 403.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode};
use axum::routing::get;
use axum::{Extension, Json, Router};
use controllers::files::sees;
use controllers::node::images::Credentials;
use controllers::node::tasks::{Files, Logins, pulls_with};
use futures::FutureExt;
use futures::future::BoxFuture;
use reconciler::ObjectRef;
use reconciler::cache::{Cache, Snapshot};
use reconciler::objects::Remote;
use reconciler::server::Peer;
use schemas::kinds::template::FileKind;
use serde::{Deserialize, Serialize};

use super::answer::Refusal;
use super::rights::member;

/// What a manager tells machines.
pub struct Teller {
    /// Keeps Nodes, Tasks, Revisions and RegistryLogins.
    pub cache: Cache,
    pub logins: Arc<dyn Logins>,
    pub files: Arc<dyn Files>,
}

/// A login as it is told.
#[derive(Serialize, Deserialize)]
struct Told {
    username: String,
    password: String,
}

type Named = Path<(String, String)>;

pub fn told(teller: Teller) -> Router {
    let secret =
        async |teller: State<_>, peer: Extension<_>, named: Named| file(FileKind::Secret, teller, peer, named).await;
    let config =
        async |teller: State<_>, peer: Extension<_>, named: Named| file(FileKind::Config, teller, peer, named).await;
    let path = |kind: &str| format!("/apis/apply/v1/namespaces/{{namespace}}/{kind}/{{name}}/data");
    Router::new()
        .route(&path("registrylogins"), get(login))
        .route(&path("secrets"), get(secret))
        .route(&path("configs"), get(config))
        .with_state(Arc::new(teller))
}

impl Teller {
    /// Refuses whoever is no machine that may have this, by what is known.
    fn only_if(&self, peer: &Peer, may: impl FnOnce(&Snapshot, &str) -> Result<(), String>) -> Result<(), Refusal> {
        let known = self.cache.snapshot();
        let known = known.ok_or_else(|| Refusal(StatusCode::SERVICE_UNAVAILABLE, "only just begun".to_owned()))?;
        let asked = member(peer, &known).and_then(|node| may(&known, node.metadata.name.as_str()));
        asked.map_err(|why| Refusal(StatusCode::FORBIDDEN, why))
    }
}

async fn login(
    State(teller): State<Arc<Teller>>,
    Extension(peer): Extension<Peer>,
    Path((namespace, name)): Named,
) -> Result<Json<Told>, Refusal> {
    let login = ObjectRef::new(namespace, name);
    teller.only_if(&peer, |known, node| match pulls_with(known, node, &login) {
        true => Ok(()),
        false => Err(format!("no task on {node} is of an image that is pulled with the login {login}")),
    })?;
    match teller.logins.open(&login).await {
        Ok(Some(Credentials { username, password })) => Ok(Json(Told { username, password })),
        Ok(None) => Err(Refusal(StatusCode::NOT_FOUND, format!("there is no login {login}"))),
        Err(why) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why)),
    }
}

async fn file(
    kind: FileKind,
    State(teller): State<Arc<Teller>>,
    Extension(peer): Extension<Peer>,
    Path((namespace, name)): Named,
) -> Result<Bytes, Refusal> {
    let (of, (word, _)) = (ObjectRef::new(namespace, name), kind.words());
    teller.only_if(&peer, |known, node| match sees(known, node, kind, &of) {
        true => Ok(()),
        false => Err(format!("no task on {node} sees the {word} {of}")),
    })?;
    match teller.files.open(kind, &of).await {
        Ok(Some(data)) => Ok(data.into()),
        Ok(None) => Err(Refusal(StatusCode::NOT_FOUND, format!("there is no {word} {of}"))),
        Err(why) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why)),
    }
}

/// What a manager tells this machine: a login for one pull, a file for one task.
pub struct FromManager(pub Remote);

impl FromManager {
    async fn ask(&self, kind: &str, of: &ObjectRef) -> Result<Option<Bytes>, String> {
        let path = format!("/apis/apply/v1/namespaces/{}/{kind}/{}/data", of.namespace, of.name);
        match async { self.0.call(Method::GET, &path, Bytes::new()).await?.bytes().await }.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Logins for FromManager {
    fn open<'a>(&'a self, login: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Credentials>, String>> {
        async move {
            let asked = self.ask("registrylogins", login).await;
            let asked = asked.map_err(|why| format!("the login {login} is not told to this machine: {why}"))?;
            let Some(bytes) = asked else { return Ok(None) };
            // Its own words are left out: serde quotes what it cannot read.
            let Ok(Told { username, password }) = serde_json::from_slice(&bytes) else {
                return Err(format!("the login {login} was told in words that this version does not know"));
            };
            Ok(Some(Credentials { username, password }))
        }
        .boxed()
    }
}

impl Files for FromManager {
    fn open<'a>(&'a self, kind: FileKind, of: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Vec<u8>>, String>> {
        async move {
            let (word, plural) = kind.words();
            let asked = self.ask(plural, of).await;
            let asked = asked.map_err(|why| format!("the {word} {of} is not told to this machine: {why}"))?;
            Ok(asked.map(|bytes| bytes.to_vec()))
        }
        .boxed()
    }
}
