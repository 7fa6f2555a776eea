//! How long a deployment takes, and beside it, in the same run, how long the bare work of it does ([`super::bare`]).
//!
//! Each number of tasks is deployed, removed and made bare several times; the middle one of each figure counts. The bare
//! loop makes a few containers at once, and then all at once. Ratios are taken round by round, so that a machine that is
//! slower for a while is so for both, and the middle one counts; of the two ways, the one that it is larger against.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use reconciler::objects::{Change, Event, Objects, Remote, Selection, Start, Stored};
use reconciler::seams::Seams;
use schemas::kinds::task::{Task, TaskState};

use super::bare::{bare, records};
use super::usage::{memory, processor};
use super::{Row, report};
use crate::observer::{Census, alive, alive_of};
use crate::parts::machine::{Machine, Options, PATIENCE};
use crate::parts::process::wait_until;

const ROUNDS: usize = 5;
/// Of a few tasks, which come and go within tenths of a second, more are needed to say as much.
const ROUNDS_OF_FEW: usize = 15;
const FEW: usize = 10;
/// Containers that the bare loop makes at once in its first way.
const A_FEW: usize = 4;
/// How long idleness is measured, and how long before nothing has happened.
const IDLE: Duration = Duration::from_secs(20);
const CALM: Duration = Duration::from_secs(5);
/// Between two looks who is alive; of a few tasks, where five would be a thirtieth of what is measured.
const LOOK: Duration = Duration::from_millis(5);
const LOOK_AT_FEW: Duration = Duration::from_millis(1);
/// Docker Swarm 20.10 with three nodes on two such cores: tasks, seconds from deploy to all Running at its best and
/// worst.
const SWARM: [(usize, f64, f64); 2] = [(30, 3.9, 5.4), (100, 13.0, 16.2)];
const SWARM_REMOVAL: (f64, f64) = (1.4, 1.7);

/// With each of these runtimes, so many tasks; a table, and `target/bench/deploy.json`.
pub fn run(runtimes: &[String], counts: &[usize]) -> Result<()> {
    let mut rows = Vec::new();
    for runtime in runtimes {
        with_runtime(runtime, counts, &mut rows)?;
    }
    report("deploy", &rows)?;
    Ok(())
}

fn with_runtime(called: &str, counts: &[usize], rows: &mut Vec<Row>) -> Result<()> {
    let runtime = (called != "runc").then(|| format!("/usr/bin/{called}"));
    let machine = Machine::start_with(&format!("bench-{called}"), &Options { runtime, ..Options::default() })?;
    machine.load("test")?;
    let mut row = |name: String, value: f64, unit| {
        println!("  {called}: {name}: {value:.2} {unit}");
        rows.push(Row::new(format!("{called}: {name}"), value, unit));
    };
    // What the first of all brings (links of the machine, accounts of the image) is not what is measured.
    deploy(&machine, 1)?;
    remove(&machine)?;
    thread::sleep(CALM);
    row("idle, of one core".into(), processor(&machine, IDLE)?, "%");
    row("idle, PSS of applyd and keep".into(), memory(&machine)?, "MB");
    for &count in counts {
        let mut rounds = Vec::new();
        for round in 0..if count <= FEW { ROUNDS_OF_FEW } else { ROUNDS } {
            let first = round == 0;
            rounds.push(measure(&machine, count, |machine| {
                if first && count == 100 {
                    thread::sleep(CALM);
                    row("100 tasks that do nothing, of one core".into(), processor(machine, IDLE)?, "%");
                    row("100 tasks, PSS of applyd and keep".into(), memory(machine)?, "MB");
                }
                Ok(())
            })?);
        }
        let middle = |of: &dyn Fn(&Round) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(of).collect();
            values.sort_unstable_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let to_bare = |of: fn(&Round) -> f64| middle(&|it| of(it) / it.few).max(middle(&|it| of(it) / it.all));
        let figures: [fn(&Round) -> f64; 5] =
            [|it| it.alive, |it| it.running, |it| it.removed, |it| it.few, |it| it.all];
        let [alive, running, removed, few, all] = figures.map(|of| middle(&of));
        row(format!("{count} tasks, all alive"), alive, "s");
        row(format!("{count} tasks, all Running"), running, "s");
        row(format!("{count} tasks, removed"), removed, "s");
        row(format!("{count} tasks, bare, {A_FEW} at once"), few, "s");
        row(format!("{count} tasks, bare, all at once"), all, "s");
        row(format!("{count} tasks, alive to bare"), to_bare(|it| it.alive), "ratio");
        row(format!("{count} tasks, Running to bare"), to_bare(|it| it.running), "ratio");
        for (_, best, worst) in SWARM.iter().filter(|(tasks, _, _)| *tasks == count) {
            row(format!("{count} tasks, Swarm's best to ours"), best / running, "ratio");
            row(format!("{count} tasks, Swarm's worst to ours"), worst / running, "ratio");
        }
        if count == 30 {
            row("30 tasks removed, Swarm's best to ours".into(), SWARM_REMOVAL.0 / removed, "ratio");
            row("30 tasks removed, Swarm's worst to ours".into(), SWARM_REMOVAL.1 / removed, "ratio");
        }
    }
    Ok(())
}

/// Seconds.
struct Round {
    alive: f64,
    running: f64,
    removed: f64,
    /// The bare loop, a few at once and all at once.
    few: f64,
    all: f64,
}

fn measure(machine: &Machine, count: usize, mut while_up: impl FnMut(&Machine) -> Result<()>) -> Result<Round> {
    let (alive, running) = deploy(machine, count)?;
    while_up(machine)?;
    let (records, layer) = records(machine)?;
    let removed = remove(machine)?;
    let few = bare(machine, records.clone(), &layer, A_FEW)?;
    let all = bare(machine, records, &layer, count)?;
    let [alive, running, removed, few, all] = [alive, running, removed, few, all].map(|took| took.as_secs_f64());
    println!("    {count}: alive {alive:.3}, running {running:.3}, removed {removed:.3}, bare {few:.3} and {all:.3} s");
    Ok(Round { alive, running, removed, few, all })
}

/// From `applyctl deploy` until all are alive, and until all are said to run.
fn deploy(machine: &Machine, count: usize) -> Result<(Duration, Duration)> {
    let file = machine.folder().join("bench.dab");
    // It leaves at once at SIGTERM, so that a removal is not the time that it takes to leave.
    let dab = r#"{"Version":"0.1","Services":{"web":{"Image":"test/box:1","Args":["sleep"]}}}"#;
    fs::write(&file, dab)?;
    let replicas = format!("web={count}");
    let path = file.to_string_lossy().into_owned();
    let looking = AtomicBool::new(true);
    thread::scope(|scope| {
        let running = scope.spawn(|| until_running(machine, count));
        let begun = Instant::now();
        let deploy = ["deploy", "bench", &path, "--replicas", &replicas, "--detach"];
        let mut deploying = machine.person().applyctl(&deploy)?.spawn()?;
        let alive = until_alive(machine, count, &looking);
        ensure!(deploying.wait()?.success(), "applyctl deploy failed");
        let running = running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let alive = alive.with_context(|| machine.log_end("applyd"))?;
        Ok((alive - begun, running.with_context(|| machine.log_end("applyd"))? - begun))
    })
}

/// When so many containers were alive. Of who was seen alive no more is asked before the end, so that looking costs
/// little and the same for whoever is measured.
pub(super) fn until_alive(machine: &Machine, count: usize, looking: &AtomicBool) -> Result<Instant> {
    let begun = Instant::now();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut group = None;
    while looking.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
        group = group.or_else(|| machine.groups().into_iter().next());
        if let Some(group) = &group {
            let new = alive_of(group, |name| name != "keep" && !seen.contains(name));
            seen.extend(new.containers().map(|container| container.name.clone()));
            if seen.len() >= count {
                let at = Instant::now();
                if alive(group).containers().count() == count {
                    return Ok(at);
                }
                seen.clear();
            }
        }
        thread::sleep(if count <= FEW { LOOK_AT_FEW } else { LOOK });
    }
    bail!("{} of {count} containers were alive", seen.len())
}

/// When so many tasks were said to run, as whoever watches hears it.
fn until_running(machine: &Machine, count: usize) -> Result<Instant> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let objects = Remote::unix(machine.person().socket, Seams::real());
        let mut events = objects.stream(vec![Selection::of::<Task>()], Start::Now).await?;
        let mut running: BTreeSet<String> = BTreeSet::new();
        let followed = async {
            while let Some(event) = events.next().await {
                match event? {
                    Event::Initial(objects) => objects.iter().try_for_each(|object| note(&mut running, object))?,
                    Event::InitialDone { .. } => {}
                    Event::Batch { changes, .. } => {
                        for change in &changes {
                            match change {
                                Change::Put { object, .. } => note(&mut running, object)?,
                                Change::Gone { .. } => {}
                            }
                        }
                    }
                }
                if running.len() == count {
                    return Ok(Instant::now());
                }
            }
            bail!("nothing more is said of tasks")
        };
        tokio::time::timeout(PATIENCE, followed).await.context("not all tasks are said to run")?
    })
}

fn note(running: &mut BTreeSet<String>, stored: &Stored) -> Result<()> {
    let task: Task = stored.decode()?;
    match task.status.is_some_and(|status| status.state == TaskState::Running) {
        true => running.insert(task.metadata.name),
        false => running.remove(&task.metadata.name),
    };
    Ok(())
}

/// Until nothing is left of any of them.
fn remove(machine: &Machine) -> Result<Duration> {
    let begun = Instant::now();
    machine.ctl(&["bundle", "rm", "bench", "--yes", "--detach"])?;
    let mut took = Duration::ZERO;
    let mut left = Vec::new();
    let gone = wait_until("all tasks to be gone", PATIENCE, || {
        took = begun.elapsed();
        let groups = machine.groups();
        let entries = groups.iter().flat_map(|group| fs::read_dir(group).into_iter().flatten().flatten());
        left = entries.filter(is_container).map(|entry| entry.path().display().to_string()).collect();
        if left.is_empty() {
            left = Census::take(machine).map_or_else(|error| vec![format!("{error:#}")], |census| census.other_than(0));
        }
        left.is_empty()
    });
    gone.with_context(|| format!("left: {left:#?}\n{}", machine.log_end("applyd")))?;
    Ok(took)
}

fn is_container(entry: &fs::DirEntry) -> bool {
    entry.path().is_dir() && entry.file_name() != "keep"
}
