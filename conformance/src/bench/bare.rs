//! The bare work of a deployment: the containers that applyd has made, made again from the identical documents by a plain
//! loop of calls to the same containerd and runtime, with namespaces and pipes made beforehand.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest, KillRequest,
    ListContainersRequest, StartRequest, WaitRequest,
};
use controllers::node::containerd::{Connection, DEFAULT_NAMESPACE};
use futures::StreamExt;
use futures::stream;
use serde_json::Value;

use super::deploy::until_alive;
use crate::parts::machine::Machine;

const NAMESPACES: &str = "/run/bare";

/// What applyd told containerd of its containers, and the layer that theirs lie on.
pub(super) fn records(machine: &Machine) -> Result<(Vec<Container>, String)> {
    on_containerd(machine, async |connection| {
        let answer = connection.containers().list(ListContainersRequest::default()).await.map_err(said)?;
        let containers = answer.into_inner().containers;
        let first = containers.first().context("containerd has no container")?;
        let request = StatSnapshotRequest { snapshotter: first.snapshotter.clone(), key: first.snapshot_key.clone() };
        let layer = connection.snapshots().stat(request).await.map_err(said)?.into_inner();
        Ok((containers, layer.info.context("a layer")?.parent))
    })
}

/// The same containers again, made by nothing but calls of containerd, so many at once; how long until all are started.
pub(super) fn bare(machine: &Machine, mut records: Vec<Container>, parent: &str, at_once: usize) -> Result<Duration> {
    let made = "for name in \"$@\"; do : > $0/$name; unshare --net=$0/$name ip link set lo up; done";
    let names: Vec<String> = (0..records.len()).map(|number| number.to_string()).collect();
    let files = machine.folder().join("bare");
    fs::create_dir_all(&files)?;
    ensure!(machine.inside("mkdir").args(["-p", NAMESPACES]).status()?.success(), "no folder for namespaces");
    ensure!(machine.inside("sh").args(["-c", made, NAMESPACES]).args(&names).status()?.success(), "no namespaces");
    let pipes = Path::new("/run/bare-pipes");
    let made = "mkdir -p $0; for name in \"$@\"; do mkfifo $0/$name; done";
    ensure!(machine.inside("sh").args(["-c", made]).arg(pipes).args(&names).status()?.success(), "no pipes");
    for (record, name) in records.iter_mut().zip(&names) {
        same_but_here(record, name, &files, &machine.installation().group)?;
    }
    // Somebody reads what they print, as our companion process does.
    let readers: Vec<fs::File> = names
        .iter()
        .map(|name| fs::File::options().read(true).write(true).open(machine.seen(&pipes.join(name))))
        .collect::<Result<_, _>>()?;
    // Somebody looks who is alive, as at ours.
    let looking = AtomicBool::new(true);
    let took = thread::scope(|scope| {
        scope.spawn(|| until_alive(machine, names.len(), &looking));
        let took = on_containerd(machine, async |connection| {
            let begun = Instant::now();
            let made: Vec<Result<()>> = stream::iter(records.iter().zip(&names))
                .map(|(record, name)| make(connection, record, parent, pipes.join(name)))
                .buffer_unordered(at_once)
                .collect()
                .await;
            made.into_iter().collect::<Result<()>>()?;
            let took = begun.elapsed();
            let ended: Vec<Result<()>> =
                stream::iter(&records).map(|record| end(connection, record)).buffer_unordered(at_once).collect().await;
            ended.into_iter().collect::<Result<()>>()?;
            Ok(took)
        });
        looking.store(false, Ordering::Relaxed);
        took
    })?;
    drop(readers);
    let gone = "for name in \"$@\"; do umount $0/$name; done; rm -r $0 /run/bare-pipes";
    ensure!(machine.inside("sh").args(["-c", gone, NAMESPACES]).args(&names).status()?.success(), "namespaces stay");
    Ok(took)
}

/// The document as it was, with another namespace and with files that are still there.
fn same_but_here(record: &mut Container, name: &str, files: &Path, group: &str) -> Result<()> {
    record.id = format!("bare-{name}");
    record.snapshot_key = record.id.clone();
    let spec = record.spec.as_mut().context("a container has a document")?;
    let mut document: Value = serde_json::from_slice(&spec.value)?;
    document["linux"]["cgroupsPath"] = format!("/{group}/{}", record.id).into();
    for namespace in document["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        if namespace["type"] == "network" {
            namespace["path"] = format!("{NAMESPACES}/{name}").into();
        }
    }
    for mount in document["mounts"].as_array_mut().into_iter().flatten() {
        if mount["type"] == "bind" {
            let file = files
                .join(Path::new(mount["destination"].as_str().unwrap_or_default()).file_name().unwrap_or_default());
            fs::write(&file, "127.0.0.1 localhost\n")?;
            mount["source"] = file.display().to_string().into();
        }
    }
    spec.value = serde_json::to_vec(&document)?;
    Ok(())
}

async fn make(connection: &Connection, record: &Container, parent: &str, pipe: PathBuf) -> Result<()> {
    connection.containers().create(CreateContainerRequest { container: Some(record.clone()) }).await.map_err(said)?;
    let request = PrepareSnapshotRequest {
        snapshotter: record.snapshotter.clone(),
        key: record.snapshot_key.clone(),
        parent: parent.to_owned(),
        labels: HashMap::new(),
    };
    let rootfs = connection.snapshots().prepare(request).await.map_err(said)?.into_inner().mounts;
    let stdout = pipe.display().to_string();
    let request = CreateTaskRequest {
        container_id: record.id.clone(),
        rootfs,
        stderr: stdout.clone(),
        stdout,
        ..CreateTaskRequest::default()
    };
    connection.tasks().create(request).await.map_err(said)?;
    let request = StartRequest { container_id: record.id.clone(), exec_id: String::new() };
    connection.tasks().start(request).await.map_err(said)?;
    Ok(())
}

async fn end(connection: &Connection, record: &Container) -> Result<()> {
    let id = record.id.clone();
    let kill = KillRequest { container_id: id.clone(), signal: 9, all: true, ..KillRequest::default() };
    connection.tasks().kill(kill).await.map_err(said)?;
    connection.tasks().wait(WaitRequest { container_id: id.clone(), exec_id: String::new() }).await.map_err(said)?;
    connection.tasks().delete(DeleteTaskRequest { container_id: id.clone() }).await.map_err(said)?;
    connection.containers().delete(DeleteContainerRequest { id: id.clone() }).await.map_err(said)?;
    let request = RemoveSnapshotRequest { snapshotter: record.snapshotter.clone(), key: id };
    // The collector may have been faster.
    let _ = connection.snapshots().remove(request).await;
    Ok(())
}

fn on_containerd<T>(machine: &Machine, work: impl AsyncFnOnce(&Connection) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let socket = machine.seen(&machine.installation().containerd_socket());
    runtime.block_on(async { work(&Connection::new(socket, DEFAULT_NAMESPACE)?).await })
}

fn said(status: tonic::Status) -> anyhow::Error {
    anyhow!("containerd: {status}")
}
