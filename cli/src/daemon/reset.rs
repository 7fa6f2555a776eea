//! Everything of this machine gone: `GET /apis/apply/v1/system/reset` says what that is, `POST` does it and tells of it
//! line by line. `?again=true`: for applyd to begin anew then, instead of ending.
//!
//! The controllers have ended by then, so nobody makes anything anew. A file in the data directory says that it was
//! begun; an applyd that finds it there finishes first. It goes last. Each step is safe to repeat.
//!
//! Objects in an etcd stay: it is somebody else's, and may be another machine's too. Whoever asked is told, and how to
//! remove them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use controllers::node::images::{Prune, PruneImported};
use controllers::node::keep;
use controllers::node::mesh::Mesh;
use controllers::node::sys::cgroup::{Cgroups, signal_if};
use reconciler::causes::chain;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::answer::Refusal;
use super::etcd::Managed;
use super::machine::Made;
use super::options::MachineOptions;

/// Where the steps are told.
pub type Lines = mpsc::Sender<Value>;

/// Somebody wants it.
pub struct Asked {
    pub lines: Lines,
    /// applyd shall begin anew then, in no cluster, instead of ending.
    pub again: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct How {
    again: bool,
}

#[derive(Clone)]
struct Door {
    made: Made,
    data: PathBuf,
    /// Where the objects stay, and what would remove them.
    etcd: Option<(String, String)>,
    ask: mpsc::Sender<Asked>,
}

/// `ask` reaches whoever stops the controllers and then calls [`everything`].
pub(super) fn routes(made: Made, options: &MachineOptions, ask: mpsc::Sender<Asked>) -> Router {
    let door = Door { made, data: options.data.clone(), etcd: options.store.etcd(), ask };
    Router::new().route("/apis/apply/v1/system/reset", get(what).post(reset)).with_state(door)
}

async fn what(State(door): State<Door>) -> Result<Response, Refusal> {
    let failed = |error: &dyn std::error::Error| Refusal(StatusCode::SERVICE_UNAVAILABLE, chain(error));
    let containers = door.made.parts.runtime.list().await.map_err(|error| failed(&error))?.len();
    let images = door.made.parts.images.list().await.map_err(|error| failed(&error))?.len();
    let volumes = door.made.volumes.list().await.map_err(|error| failed(&error))?;
    let mut bytes = 0;
    for volume in &volumes {
        let used = door.made.volumes.measure(volume).await.map_err(|error| failed(&error))?;
        bytes += used.map_or(0, |used| used.bytes);
    }
    let volumes = volumes.len();
    Ok(Json(json!({
        "containers": containers, "images": images, "volumes": volumes, "volumeBytes": bytes, "data": door.data,
        "etcd": door.etcd.as_ref().map(|(place, _)| place), "etcdctl": door.etcd.as_ref().map(|(_, command)| command),
    }))
    .into_response())
}

async fn reset(State(door): State<Door>, Query(How { again }): Query<How>) -> Result<Response, Refusal> {
    let (lines, told) = mpsc::channel(64);
    let busy = || Refusal(StatusCode::CONFLICT, "a reset is under way already".to_owned());
    door.ask.try_send(Asked { lines, again }).map_err(|_| busy())?;
    let body = futures::stream::unfold(told, |mut told| async move {
        let line = told.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(format!("{line}\n"))), told))
    });
    Ok(Body::from_stream(body).into_response())
}

fn marker(data: &Path) -> PathBuf {
    data.join("reset")
}

/// Whether one was begun and not finished; and then, whether applyd shall begin anew when it is.
pub fn begun(data: &Path) -> Option<bool> {
    fs::read(marker(data)).ok().map(|said| said == AGAIN)
}

const AGAIN: &[u8] = b"again";

/// Takes all of it away, the data directory last. Whoever listens may go; it is finished all the same.
pub(super) async fn everything(made: &Made, options: &MachineOptions, asked: &Asked) -> Result<()> {
    let Asked { lines, again } = asked;
    let outcome = steps(made, options, lines, *again).await;
    let last = match &outcome {
        Ok(()) => json!({"done": true}),
        Err(error) => json!({"error": format!("{error:#}")}),
    };
    let _ = lines.send(last).await;
    outcome
}

async fn steps(made: &Made, options: &MachineOptions, lines: &Lines, again: bool) -> Result<()> {
    let paths = options.paths();
    fs::write(marker(&paths.data), if again { AGAIN } else { b"" }).context("cannot note that a reset has begun")?;
    let tell = async |what: String| drop(lines.send(json!({"step": what})).await);

    let containers = made.parts.runtime.list().await.context("cannot list the containers")?;
    for container in &containers {
        made.parts.runtime.remove(&container.id).await.with_context(|| format!("cannot remove {}", container.id))?;
    }
    tell(format!("{} containers", containers.len())).await;
    end_keep(&paths.keep())?;
    Managed::of(options).end().context("cannot end etcd")?;
    let prune = Prune { imported: PruneImported::Take, ..Prune::default() };
    let images = made.parts.images.prune(&prune).await.context("cannot remove the images")?;
    tell(format!("{} images", images.len())).await;

    let links = made.links.list().await.context("cannot list the network links")?;
    for link in &links {
        made.links.remove(&link.id).await.with_context(|| format!("cannot remove the link of {}", link.id))?;
    }
    made.links.remove_machine().await.context("cannot remove the machine's own link")?;
    made.mesh.remove().await.context("cannot remove the table of the firewall")?;
    tell(format!("{} network links, and the firewall's table", links.len())).await;

    let group = options.cgroup.clone();
    let ended = tokio::task::spawn_blocking(move || {
        let groups = Cgroups::of_machine()?;
        groups.kill(&group)?;
        groups.remove(&group)
    });
    ended.await.context("a step panicked")?.context("cannot remove the control groups")?;
    tell("control groups".to_owned()).await;

    for folder in [&paths.run, &paths.data] {
        end_mounts(folder).with_context(|| format!("cannot unmount what is below {}", folder.display()))?;
        empty(folder, &marker(&paths.data)).with_context(|| format!("cannot empty {}", folder.display()))?;
        tell(folder.display().to_string()).await;
    }
    fs::remove_file(marker(&paths.data)).context("cannot note that the reset has ended")?;
    for folder in [&paths.run, &paths.data] {
        // It may be a mount point, or somebody else's.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// The companion process: known by the folder in its command line.
fn end_keep(dir: &Path) -> Result<()> {
    let client = keep::Client::new(
        keep::Options { dir: dir.to_owned(), build: String::new(), replace: false, cgroup: None },
        |_| std::process::Command::new("false"),
    );
    let status = client.status().context("cannot find the companion process")?;
    if let Some(pid) = status.and_then(|status| i32::try_from(status.pid).ok()) {
        let named = || {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == dir.as_os_str().as_encoded_bytes())
        };
        signal_if(pid, Signal::KILL, named);
    }
    Ok(())
}

/// Innermost first.
fn end_mounts(folder: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let below: Vec<&Path> = points.filter(|point| point.starts_with(folder) && *point != folder).collect();
    below.iter().rev().try_for_each(|point| Ok(unmount(*point, UnmountFlags::DETACH)?))
}

fn empty(folder: &Path, but: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if path == but {
            continue;
        }
        let removed = if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
