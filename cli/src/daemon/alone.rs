//! A manager without the others: where they are gone for good, it goes on alone with what it has (`init --force-new-cluster`).
//!
//! Its etcd begins once as the only member, reached by nobody else; the objects move to a file, and the etcd is put aside. The
//! store is another one then: a new line of history begins, above all versions that were given out, and whoever watched lists
//! anew. A manager of before that comes back is told of the later line (`agent`), forgets its etcd and asks for a place anew.
//!
//! | call | at | answer |
//! | --- | --- | --- |
//! | `POST /apis/apply/v1/init/alone` | a manager's own socket | 202, and this applyd begins anew |

use std::fs::{self, File};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use reconciler::causes::chain;
use reconciler::controller::Signal;
use reconciler::seams::Seams;
use reconciler::store::embedded::{Embedded, Options};
use reconciler::store::etcd::Etcd;
use reconciler::store::{Key, Store};
use schemas::level::VERSION;
use serde_json::json;

use super::answer::{self, Refusal};
use super::backup::Places;
use super::etcd::{Managed, copy};
use super::membership::Member;
use super::note::Note;
use super::options::MachineOptions;
use super::restore::free_name;
use super::store::Opened;
use super::{NO_MAJORITY, ROOT, lock, waiting};

/// Where a manager is told so.
pub const ALONE: &str = "/apis/apply/v1/init/alone";

/// How long one that has just begun is not yet said to be silent: others may be beginning too.
const SILENT: Duration = Duration::from_secs(1);
/// For an etcd of one member to answer, which reads all that it has before.
const BEGINNING: Duration = Duration::from_secs(60);
/// Between two looks for it.
const SOON: Duration = Duration::from_millis(50);

#[derive(Clone)]
struct Door {
    /// Absent while the store is not open.
    opened: Option<Opened>,
    note: Note,
    again: Signal,
    seams: Seams,
}

/// For a majority to answer, which may be about to agree on another leader.
const MAJORITY: Duration = Duration::from_secs(10);

async fn has_majority(store: &Etcd, seams: &Seams) -> bool {
    let (key, begun) = (Key::new(format!("{ROOT}/meta")), seams.monotonic());
    while seams.monotonic().since(begun) < MAJORITY {
        if store.get(&key).await.is_ok() {
            return true;
        }
        seams.sleep(SOON).await;
    }
    false
}

fn routes_of(door: Door) -> Router {
    Router::new().route(ALONE, post(asked)).with_state(Arc::new(door)).layer(axum::middleware::from_fn(answer::trusted))
}

/// Of a manager whose store is open; `again`: this applyd shall begin anew.
pub fn routes(opened: Opened, note: Note, again: Signal, seams: &Seams) -> Router {
    routes_of(Door { opened: Some(opened), note, again, seams: seams.clone() })
}

async fn asked(State(door): State<Arc<Door>>) -> Result<StatusCode, Refusal> {
    let refused = |code, why: &str| Err(Refusal(code, why.to_owned()));
    match &door.opened {
        Some(Opened::Embedded(_)) => {
            return refused(StatusCode::CONFLICT, "this manager has the objects in a file, and needs no other manager");
        }
        Some(Opened::Etcd { place, .. }) => {
            let why =
                format!("the objects are in an etcd of yours ({place}): it is forced by its own --force-new-cluster");
            return Err(Refusal(StatusCode::NOT_IMPLEMENTED, why));
        }
        Some(Opened::Managed { store, .. }) if has_majority(store, &door.seams).await => {
            return refused(
                StatusCode::CONFLICT,
                "the managers have a majority, and nothing is to be forced; who is gone for good is taken out by: applyctl \
                 node demote NAME, then applyctl node rm NAME",
            );
        }
        Some(Opened::Managed { .. }) | None => {}
    }
    let failed = |error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot note it: {error}"));
    door.note.leave().map_err(failed)?;
    tracing::warn!("this manager goes on without the others, as was asked for");
    door.again.raise();
    Ok(StatusCode::ACCEPTED)
}

/// Answers at the socket while the store does not: what is the matter, and what can be done. Returns when it is told that the
/// others are gone for good.
///
/// # Errors
/// The socket cannot be had.
pub async fn while_silent(options: &MachineOptions, member: Option<&Member>, seams: &Seams) -> Result<()> {
    seams.sleep(SILENT).await;
    let others = member.map(|member| member.managers.iter().map(ToString::to_string).collect::<Vec<_>>());
    let others =
        others.filter(|others| !others.is_empty()).map_or_else(String::new, |all| format!(" ({})", all.join(", ")));
    let why = format!(
        "{NO_MAJORITY}: it waits until enough of the other managers{others} are there; what runs runs on. If they are gone for \
         good: applyctl init --force-new-cluster"
    );
    let told = Signal::new();
    let routes =
        routes_of(Door { opened: None, note: Note::alone(&options.data), again: told.clone(), seams: seams.clone() });
    let version = json!({
        "gitVersion": VERSION, "platform": "linux", "store": "silent", "role": "manager",
        "cluster": member.map(|member| &member.cluster), "node": member.map(|member| &member.node),
    });
    let (server, listener) = waiting::refusing(options, seams, why, version, routes).await?;
    let ended = async {
        told.raised().await;
        server.stop().raise();
    };
    tokio::join!(server.serve(listener), ended);
    Ok(())
}

/// Has in a file what this machine's etcd has, without the other members, and the etcd aside.
///
/// # Errors
/// In words; once the note says that it is begun, it is to be called again.
pub async fn to_file(managed: &Managed, note: &Note, places: &Places, seams: &Seams) -> Result<()> {
    let folder = places.store().parent().map(ToOwned::to_owned).unwrap_or_default();
    let sync = || File::open(&folder)?.sync_all();
    if !places.store().exists() {
        let key = lock::key(places)?;
        let key = key.with_context(|| format!("the key of secrets is gone from {}", places.key().display()))?;
        note.begin().context("cannot note that it is begun")?;
        managed.end().context("cannot end etcd")?;
        let etcd = managed.begin_alone(&key, seams).await?;
        answers(&etcd, managed, seams).await?;
        places.tidy().context("cannot make room for the file")?;
        let half = places.passing().join("alone.redb");
        let file = Embedded::open(&half, &*seams.random, &Options::default())?;
        let keys = copy(&etcd, &file).await?;
        drop((file, etcd));
        fs::rename(&half, places.store()).and_then(|()| sync()).context("cannot put the file in place")?;
        tracing::info!(keys, "the objects are in a file again");
    }
    managed.end().context("cannot end etcd")?;
    let aside = free_name(&places.member());
    fs::rename(places.member(), &aside).and_then(|()| sync()).context("cannot put the etcd aside")?;
    tracing::info!(aside = %aside.display(), "this manager is alone; what the etcd had is kept");
    Ok(())
}

async fn answers(etcd: &Etcd, managed: &Managed, seams: &Seams) -> Result<()> {
    let begun = seams.monotonic();
    while let Err(error) = etcd.identity().await {
        if seams.monotonic().since(begun) > BEGINNING {
            bail!("etcd does not begin alone: {}; its last words: {}", chain(&error), managed.last_words());
        }
        seams.sleep(SOON).await;
    }
    Ok(())
}
