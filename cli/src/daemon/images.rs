//! What applyd answers about images of its machine.
//!
//! | call | query | answer |
//! | --- | --- | --- |
//! | `GET /apis/apply/v1/images` | | `{"images": [{image, digest, sizeBytes, created, imported, usedBy}]}` |
//! | `POST …/images/import` | `name=` for an archive that names none | the same, of what was in the body: an OCI layout or what `docker save` writes |
//! | `POST …/images/pull` | `image=`, `namespace=` whose login for the registry is used | lines of JSON: `{phase, doneBytes, totalBytes}`, at the end `{image, digest, sizeBytes}` or `{error}` |
//! | `POST …/images/prune` | `imported=true` takes those that came from archives too | `{"images": […]}`: what went |
//! | `DELETE …/images` | `image=`, `force=true` | `{"images": […]}` |
//!
//! An image is in use while a service of any namespace, or a task that still runs, names it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use controllers::node::images::{
    Credentials, Error as Failed, Images, Phase, Prune, PruneImported, Pull, Pulls, Record, Wanted,
};
use futures::{Stream, TryStreamExt};
use reconciler::causes::chain;
use reconciler::objects::{Client, Error};
use reconciler::{ObjectRef, Resource};
use schemas::image::ImageRef;
use schemas::kinds::DEFAULT_NAMESPACE;
use schemas::kinds::revision::Revision;
use schemas::kinds::service::Service;
use schemas::kinds::task::{Task, TaskState};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::io::StreamReader;

use super::answer::{Refusal, bad};
use super::routes::Parts;

pub fn routes() -> Router<Parts> {
    Router::new()
        .route("/apis/apply/v1/images", get(list).delete(remove))
        .route("/apis/apply/v1/images/import", post(import))
        .route("/apis/apply/v1/images/pull", post(pull))
        .route("/apis/apply/v1/images/prune", post(prune))
}

/// What a call may say; each takes what it knows.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Said {
    image: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
    force: bool,
    imported: bool,
}

impl Said {
    fn image(&self) -> Result<ImageRef, Refusal> {
        let image = self.image.as_deref().ok_or_else(|| bad("image: is needed"))?;
        image.parse().map_err(|error| bad(format!("{image}: {error}")))
    }
}

/// Who uses an image, as `namespace/service`.
type Users = BTreeMap<ImageRef, BTreeSet<String>>;

async fn users(client: &Client) -> Result<Users, Error> {
    let mut users = Users::new();
    let mut add = |image: &str, user: String| {
        if let Ok(image) = image.parse::<ImageRef>() {
            users.entry(image).or_default().insert(user);
        }
    };
    let revisions = client.list::<Revision>(None).await?;
    let images: BTreeMap<ObjectRef, &str> = revisions
        .iter()
        .filter_map(|revision| {
            Some((revision.object_ref(), revision.spec.content.template()?.container.image.as_str()))
        })
        .collect();
    for service in client.list::<Service>(None).await? {
        add(&service.spec.template.container.image, format!("{}/{}", service.metadata.namespace, service.name()));
    }
    for task in client.list::<Task>(None).await? {
        let over = task.status.as_ref().is_some_and(|status| status.state >= TaskState::Complete);
        let revision = ObjectRef::new(&task.metadata.namespace, &task.spec.revision);
        if let (Some(image), false) = (images.get(&revision), over) {
            add(image, format!("{}/{}", task.metadata.namespace, task.spec.service));
        }
    }
    Ok(users)
}

fn used_by<'a>(record: &Record, users: &'a Users) -> BTreeSet<&'a str> {
    let digest = record.image.pinned(record.digest.clone()).by_digest();
    let uses =
        |user: &ImageRef| *user == record.image || user.by_digest().is_some_and(|by| Some(&by) == digest.as_ref());
    users.iter().filter(|(image, _)| uses(image)).flat_map(|(_, users)| users).map(String::as_str).collect()
}

fn said(record: &Record, users: &Users) -> Value {
    json!({
        "image": record.image.familiar(), "digest": record.digest.as_str(), "sizeBytes": record.size_bytes,
        "created": record.created, "imported": record.imported, "usedBy": used_by(record, users),
    })
}

fn answer(records: &[Record], users: &Users) -> Response {
    let images: Vec<Value> = records.iter().map(|record| said(record, users)).collect();
    Json(json!({ "images": images })).into_response()
}

fn failed(error: Failed) -> Refusal {
    let code = match &error {
        // containerd is not there; nothing is wrong with what was asked.
        Failed::Containerd { .. } | Failed::Store { .. } => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    Refusal(code, chain(&error))
}

async fn list(State(parts): State<Parts>) -> Result<Response, Refusal> {
    let users = users(&parts.client).await?;
    Ok(answer(&parts.images.list().await.map_err(failed)?, &users))
}

async fn import(State(parts): State<Parts>, Query(query): Query<Said>, request: Request) -> Result<Response, Refusal> {
    let named = |name: &String| name.parse::<ImageRef>().map_err(|error| bad(format!("{name}: {error}")));
    let name = query.name.as_ref().map(named).transpose()?;
    let body = request.into_body().into_data_stream().map_err(std::io::Error::other);
    let records = parts.images.import(Box::new(StreamReader::new(Box::pin(body))), name.as_ref()).await;
    Ok(answer(&records.map_err(failed)?, &users(&parts.client).await?))
}

async fn remove(State(parts): State<Parts>, Query(query): Query<Said>) -> Result<Response, Refusal> {
    let image = query.image()?;
    let users = users(&parts.client).await?;
    let records = parts.images.list().await.map_err(failed)?;
    let Some(record) = records.into_iter().find(|record| record.image == image) else {
        return Err(Refusal(StatusCode::NOT_FOUND, format!("there is no image {} here", image.familiar())));
    };
    let used = used_by(&record, &users);
    if !used.is_empty() && !query.force {
        let names: Vec<&str> = used.into_iter().collect();
        return Err(Refusal(StatusCode::CONFLICT, format!("{} is in use by {}", image.familiar(), names.join(", "))));
    }
    parts.images.remove(&image).await.map_err(failed)?;
    Ok(answer(&[record], &users))
}

async fn prune(State(parts): State<Parts>, Query(query): Query<Said>) -> Result<Response, Refusal> {
    let users = users(&parts.client).await?;
    let imported = if query.imported { PruneImported::Take } else { PruneImported::Keep };
    let prune = Prune { in_use: users.keys().cloned().collect(), imported };
    Ok(answer(&parts.images.prune(&prune).await.map_err(failed)?, &Users::new()))
}

async fn pull(State(parts): State<Parts>, Query(query): Query<Said>) -> Result<Response, Refusal> {
    let image = query.image()?;
    let namespace = query.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let credentials = super::logins::of(&parts, namespace, image.registry()).await?;
    let lines = Body::from_stream(pulling(parts.images.clone(), image, credentials));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

/// A pull, told in lines. Whoever stops reading gives it up; what it has fetched stays for the next.
fn pulling(
    images: Arc<dyn Images>,
    image: ImageRef,
    credentials: Option<Credentials>,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let board = images.progress();
    let work = {
        let image = image.clone();
        Box::pin(async move {
            let wanted = Wanted { pull: Pull::Newest, credentials, ..Wanted::new(image.clone()) };
            match images.ensure(&wanted).await {
                Ok(info) => {
                    let stale = info.stale_because.as_ref().map(|error| chain(error));
                    json!({"image": image.familiar(), "digest": info.digest.as_str(), "sizeBytes": info.size_bytes, "stale": stale})
                }
                Err(error) => json!({"error": chain(&error)}),
            }
        })
    };
    futures::stream::unfold(Some((work, board)), move |state| {
        let image = image.clone();
        async move {
            let (mut work, mut board) = state?;
            tokio::select! {
                biased;
                done = &mut work => Some((Ok(line(&done)), None)),
                step = next(&mut board, &image) => Some((Ok(line(&step)), Some((work, board)))),
            }
        }
    })
}

/// The next thing to tell of a pull, at its own pace.
async fn next(board: &mut watch::Receiver<Pulls>, image: &ImageRef) -> Value {
    loop {
        if board.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Some(step) = board.borrow_and_update().get(image) {
            let phase = match step.phase {
                Phase::Resolving => "resolving",
                Phase::Downloading => "downloading",
                Phase::Unpacking => "unpacking",
            };
            return json!({"phase": phase, "doneBytes": step.done_bytes, "totalBytes": step.total_bytes});
        }
    }
}

fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}
