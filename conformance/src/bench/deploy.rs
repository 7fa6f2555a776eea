//! How long a deployment takes, and how long the bare work of it would: the identical documents given to the same
//! containerd and runtime by a plain loop of calls, with namespaces made beforehand.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
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

use super::{Row, report};
use crate::observer::{Census, alive};
use crate::parts::machine::{Machine, Options, PATIENCE, Part};
use crate::parts::process::wait_until;

const COUNTS: [usize; 3] = [6, 30, 100];
/// Containers that the bare loop makes at once; more is no faster on two cores.
const AT_ONCE: usize = 4;
const NAMESPACES: &str = "/run/bare";
/// How long idleness is measured.
const IDLE: Duration = Duration::from_secs(20);
/// Docker Swarm 20.10 with three nodes on two such cores: tasks, seconds from deploy to all Running at its best and
/// worst.
const SWARM: [(usize, f64, f64); 2] = [(30, 3.9, 5.4), (100, 13.0, 16.2)];
const SWARM_REMOVAL: (f64, f64) = (1.4, 1.7);

/// Both runtimes; a table, and `target/bench/deploy.json`.
pub fn run() -> Result<()> {
    let mut rows = Vec::new();
    for runtime in [None, Some("crun")] {
        with_runtime(runtime, &mut rows)?;
    }
    report("deploy", &rows)?;
    Ok(())
}

fn with_runtime(runtime: Option<&str>, rows: &mut Vec<Row>) -> Result<()> {
    let called = runtime.unwrap_or("runc");
    let machine = Machine::start_with(
        &format!("bench-{called}"),
        &Options { runtime: runtime.map(|_| format!("/usr/bin/{called}")) },
    )?;
    machine.load("test")?;
    let mut row = |name: String, value: f64, unit| {
        println!("  {called}: {name}: {value:.2} {unit}");
        rows.push(Row::new(format!("{called}: {name}"), value, unit));
    };
    // What the first of all brings (links of the machine, accounts of the image) is not what is measured.
    deploy(&machine, 1)?;
    remove(&machine)?;
    if runtime.is_none() {
        row("memory idle (PSS of applyd and keep)".into(), memory(&machine)?, "MB");
        row("processor idle (of one core)".into(), processor(&machine)?, "%");
    }
    for count in COUNTS {
        let (all_alive, all_running) = deploy(&machine, count)?;
        row(format!("{count} tasks, all alive"), all_alive.as_secs_f64(), "s");
        row(format!("{count} tasks, all Running"), all_running.as_secs_f64(), "s");
        if runtime.is_none() && count == 100 {
            row("memory with 100 tasks (PSS of applyd and keep)".into(), memory(&machine)?, "MB");
        }
        let (records, layer) = records(&machine)?;
        let removed = remove(&machine)?;
        row(format!("{count} tasks, removed"), removed.as_secs_f64(), "s");
        let bare = bare(&machine, records, &layer)?;
        row(format!("{count} tasks, bare"), bare.as_secs_f64(), "s");
        row(format!("{count} tasks, alive to bare"), all_alive.as_secs_f64() / bare.as_secs_f64(), "ratio");
        row(format!("{count} tasks, Running to bare"), all_running.as_secs_f64() / bare.as_secs_f64(), "ratio");
        for (_, best, worst) in SWARM.iter().filter(|(tasks, _, _)| *tasks == count) {
            row(format!("{count} tasks, Swarm's best to ours"), best / all_running.as_secs_f64(), "ratio");
            row(format!("{count} tasks, Swarm's worst to ours"), worst / all_running.as_secs_f64(), "ratio");
        }
        if count == 30 {
            row("30 tasks removed, Swarm's best to ours".into(), SWARM_REMOVAL.0 / removed.as_secs_f64(), "ratio");
            row("30 tasks removed, Swarm's worst to ours".into(), SWARM_REMOVAL.1 / removed.as_secs_f64(), "ratio");
        }
    }
    Ok(())
}

/// From `applyctl deploy` until all are alive, and until all are said to run.
fn deploy(machine: &Machine, count: usize) -> Result<(Duration, Duration)> {
    let file = machine.folder().join("bench.dab");
    // It leaves at once at SIGTERM, so that a removal is not the time that it takes to leave.
    let dab = r#"{"Version":"0.1","Services":{"web":{"Image":"test/box:1","Args":["sleep"]}}}"#;
    fs::write(&file, dab)?;
    let begun = Instant::now();
    let replicas = format!("web={count}");
    let path = file.to_string_lossy().into_owned();
    let person = machine.person();
    let mut deploying = person.applyctl(&["deploy", "bench", &path, "--replicas", &replicas, "--detach"])?.spawn()?;
    let mut all_alive = None;
    wait_until("all tasks to be alive", PATIENCE, || {
        let groups = machine.groups();
        all_alive = groups.first().filter(|group| alive(group).containers().count() == count).map(|_| begun.elapsed());
        all_alive.is_some()
    })?;
    ensure!(deploying.wait()?.success(), "applyctl deploy failed");
    let mut all_running = Duration::ZERO;
    wait_until("all tasks to run", PATIENCE, || {
        let tasks = person.list("task").unwrap_or_default();
        all_running = begun.elapsed();
        tasks.iter().filter(|task| task["status"]["state"] == "Running").count() == count
    })?;
    Ok((all_alive.context("they were alive")?, all_running))
}

/// Until nothing is left of any of them.
fn remove(machine: &Machine) -> Result<Duration> {
    let begun = Instant::now();
    machine.ctl(&["bundle", "rm", "bench", "--yes", "--detach"])?;
    let mut took = Duration::ZERO;
    wait_until("all tasks to be gone", PATIENCE, || {
        took = begun.elapsed();
        let groups = machine.groups();
        let left = groups.iter().any(|group| fs::read_dir(group).into_iter().flatten().flatten().any(is_container));
        !left && Census::take(machine).is_ok_and(|census| census.other_than(0).is_empty())
    })?;
    Ok(took)
}

fn is_container(entry: fs::DirEntry) -> bool {
    entry.path().is_dir() && entry.file_name() != "keep"
}

/// What applyd told containerd of its containers, and the layer that theirs lie on.
fn records(machine: &Machine) -> Result<(Vec<Container>, String)> {
    on_containerd(machine, async |connection| {
        let answer = connection.containers().list(ListContainersRequest::default()).await.map_err(said)?;
        let containers = answer.into_inner().containers;
        let first = containers.first().context("containerd has no container")?;
        let request = StatSnapshotRequest { snapshotter: first.snapshotter.clone(), key: first.snapshot_key.clone() };
        let layer = connection.snapshots().stat(request).await.map_err(said)?.into_inner();
        Ok((containers, layer.info.context("a layer")?.parent))
    })
}

/// The same containers again, made by nothing but calls of containerd; how long until all are started.
fn bare(machine: &Machine, mut records: Vec<Container>, parent: &str) -> Result<Duration> {
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
    let took = on_containerd(machine, async |connection| {
        let begun = Instant::now();
        let made: Vec<Result<()>> = stream::iter(records.iter().zip(&names))
            .map(|(record, name)| make(connection, record, parent, pipes.join(name)))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        made.into_iter().collect::<Result<()>>()?;
        let took = begun.elapsed();
        let ended: Vec<Result<()>> =
            stream::iter(&records).map(|record| end(connection, record)).buffer_unordered(AT_ONCE).collect().await;
        ended.into_iter().collect::<Result<()>>()?;
        Ok(took)
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

fn ours(machine: &Machine) -> Vec<u32> {
    [Part::Applyd, Part::Keep].into_iter().flat_map(|part| machine.pids(part)).collect()
}

/// Megabytes of 10^6 bytes, pages that are shared counted by share.
fn memory(machine: &Machine) -> Result<f64> {
    let mut kilobytes = 0.0;
    for pid in ours(machine) {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("a Pss")?;
        kilobytes += pss.split_whitespace().next().unwrap_or_default().parse::<f64>()?;
    }
    Ok(kilobytes * 1024.0 / 1e6)
}

/// Per cent of one core while nothing happens.
fn processor(machine: &Machine) -> Result<f64> {
    let used = || -> Result<f64> {
        let mut seconds = 0.0;
        for pid in ours(machine) {
            // Nanoseconds on a processor, of each thread: finer than the clock ticks of `stat`.
            for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                seconds += text.split(' ').next().unwrap_or_default().parse::<f64>().unwrap_or_default() / 1e9;
            }
        }
        Ok(seconds)
    };
    let before = used()?;
    std::thread::sleep(IDLE);
    Ok((used()? - before) / IDLE.as_secs_f64() * 100.0)
}
