//! Kinds that are not ours: what the cluster says that it serves beside them.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;
use reconciler::Kind;
use reconciler::api::{Column, Scope};
use reconciler::objects::Remote;
use schemas::kinds::GROUP;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::failure::{Exit, Failure};
use super::session::Session;

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Resources {
    resources: Vec<Served>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Served {
    name: String,
    singular_name: String,
    namespaced: bool,
    kind: String,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    columns: Vec<Column>,
}

/// The kinds of other authors, of all groups. None where nobody is there to ask.
pub async fn others(session: &Session) -> Result<Vec<Arc<Kind>>, Failure> {
    let Ok(remote) = session.remote() else { return Ok(Vec::new()) };
    by(&remote).await
}

/// The same, by a way of one's own.
pub async fn by(remote: &Remote) -> Result<Vec<Arc<Kind>>, Failure> {
    let Groups { groups } = ask(remote, "/apis").await?;
    let mut kinds = Vec::new();
    for group in groups.into_iter().filter(|group| group.name != GROUP) {
        for Version { version } in group.versions {
            // Gone since it was told of.
            let Ok(found) = ask::<Resources>(remote, &format!("/apis/{}/{version}", group.name)).await else {
                continue;
            };
            let whole = found.resources.into_iter().filter(|served| !served.name.contains('/'));
            kinds.extend(whole.map(|served| Arc::new(kind(&group.name, &version, served))));
        }
    }
    Ok(kinds)
}

fn kind(group: &str, version: &str, served: Served) -> Kind {
    Kind {
        group: group.to_owned().into(),
        version: version.to_owned().into(),
        kind: served.kind.into(),
        plural: served.name.into(),
        singular: served.singular_name.into(),
        short_names: served.short_names.into_iter().map(Into::into).collect(),
        scope: if served.namespaced { Scope::Namespaced } else { Scope::Cluster },
        managed_fields: true,
        sensitive: Vec::new(),
        columns: served.columns,
    }
}

/// What people may type for it.
pub fn names(kind: &Kind) -> impl Iterator<Item = &str> {
    [&kind.plural, &kind.singular, &kind.kind].into_iter().chain(&kind.short_names).map(AsRef::as_ref)
}

/// Whether it is meant by a word, in any case; by its whole name too.
pub fn answers_to(kind: &Kind, word: &str) -> bool {
    names(kind).any(|name| name.eq_ignore_ascii_case(word)) || kind.qualified().eq_ignore_ascii_case(word)
}

/// What the cluster answers at a path.
pub async fn ask<T: DeserializeOwned>(remote: &Remote, path: &str) -> Result<T, Failure> {
    let answered = remote.call(Method::GET, path, Bytes::new()).await.map_err(Failure::beside_objects)?;
    let body = answered.bytes().await?;
    serde_json::from_slice(&body)
        .map_err(|error| Failure::new(Exit::Failed, format!("the manager answers strangely at {path}: {error}")))
}
