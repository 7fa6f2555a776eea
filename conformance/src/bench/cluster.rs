//! How long a cluster takes to form, to deploy and to scale, and to be whole again when a machine goes, and what it uses: three
//! machines of a lab.
//!
//! Beside it, in the same run, another orchestrator may be measured by the same rules: the power cut kills everything of a
//! machine at once, a cut takes its network, *alive* is what the control groups of the machines show.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::usage::{memory, memory_of, processor};
use super::{Row, report};
use crate::images::workspace;
use crate::lab::Lab;
use crate::observer::alive;
use crate::parts::machine::{Machine, PATIENCE, Part};
use crate::parts::process::wait_until;

const MACHINES: u8 = 3;
const REPLICAS: usize = 6;
/// Of one service, for the time until all are alive.
const DEPLOYED: [usize; 3] = [6, 30, 100];
/// Before something is taken away: what the formation has begun is over.
const CALM: Duration = Duration::from_secs(3);
/// For which nothing happens while the processor is looked at.
const IDLE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);

/// Our figure, what it is called, and what the peer calls its own: the first of them with its defaults, others tuned.
struct Figure {
    name: String,
    unit: &'static str,
    ours: Vec<f64>,
    peers: &'static [&'static str],
}

/// All of it, so many times each. `beside`: a program that measures another orchestrator (`NODES --runs N --only A,B --out
/// FILE`, whose file has `metrics` with `median`, `min` and `max`).
pub fn run(rounds: usize, beside: Option<&Path>) -> Result<()> {
    let figures = ours(rounds)?;
    let theirs = beside.map(|program| measured(program, rounds)).transpose()?;
    let mut rows = Vec::new();
    for figure in &figures {
        let mut ours = figure.ours.clone();
        ours.sort_unstable_by(f64::total_cmp);
        let (middle, worst) = (ours[ours.len() / 2], ours[ours.len() - 1]);
        rows.push(Row::new(&figure.name, middle, figure.unit));
        rows.push(Row::new(format!("{}, at the worst", figure.name), worst, figure.unit));
        let Some(theirs) = &theirs else { continue };
        for (index, key) in figure.peers.iter().enumerate() {
            let how = if index == 0 { "the other's" } else { "the other's, tuned" };
            // One that never succeeded has no figure.
            let Some((best, median)) = sum(theirs, key) else {
                println!("  {}: {how} never came about", figure.name);
                continue;
            };
            rows.push(Row::new(format!("{}, {how}", figure.name), median, figure.unit));
            rows.push(Row::new(format!("{}, {how} to ours", figure.name), median / middle, "ratio"));
            rows.push(Row::new(
                format!("{}, {how} at its best to ours at its worst", figure.name),
                best / worst,
                "ratio",
            ));
        }
    }
    report("cluster", &rows)?;
    Ok(())
}

/// The best and the median of the sum of some of the other's figures (`a+b`).
fn sum(metrics: &BTreeMap<String, (f64, f64)>, keys: &str) -> Option<(f64, f64)> {
    keys.split('+').try_fold((0.0, 0.0), |(best, median), key| {
        let (min, middle) = metrics.get(key)?;
        Some((best + min, median + middle))
    })
}

/// What the other's program measures, by its own names: best and median.
fn measured(program: &Path, rounds: usize) -> Result<BTreeMap<String, (f64, f64)>> {
    let out = workspace().join("target/bench/beside.json");
    let status = Command::new(program)
        .args([&MACHINES.to_string(), "--runs", &rounds.to_string()])
        .args(["--only", "form,deploy,scale,loss,footprint,failover", "--out"])
        .arg(&out)
        .status()
        .with_context(|| format!("could not run {}", program.display()))?;
    // It fails when one of its runs did, which is a figure as well.
    println!("{}: {status}; all of it: {}", program.display(), out.display());
    let found: Value = serde_json::from_slice(&std::fs::read(&out)?)?;
    let metrics = found["metrics"].as_object().context("metrics")?;
    let figure = |of: &Value| Some((of["min"].as_f64()?, of["median"].as_f64()?));
    Ok(metrics.iter().filter_map(|(name, of)| Some((name.clone(), figure(of)?))).collect())
}

fn ours(rounds: usize) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut figure = |name: &str, unit, peers, ours: Vec<f64>| {
        println!("  {name}: {} {unit}", ours.iter().map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(" "));
        figures.push(Figure { name: name.to_owned(), unit, ours, peers });
    };
    let formed = |role| repeat(rounds, || Ok(self::formed(role)?.1));
    figure("a manager and two workers, formed", "s", &["form.ready_s"], formed("worker")?);
    figure("three managers, formed", "s", &["form3managers.ready_s"], formed("manager")?);
    let deployed: [(&str, &[&str], &[&str], &[&str]); 3] = [
        ("6 tasks", &["deploy6.alive_s"], &["deploy6.running_s"], &["deploy6.remove_s"]),
        ("30 tasks", &["deploy30.alive_s"], &["deploy30.running_s"], &["deploy30.remove_s"]),
        ("100 tasks", &["deploy100.alive_s"], &["deploy100.running_s"], &["deploy100.remove_s"]),
    ];
    let lab = with_images("worker")?;
    for (replicas, (name, alive, running, removed)) in DEPLOYED.into_iter().zip(deployed) {
        let times = repeat(rounds, || deploy(&lab, replicas))?;
        let of = |part: usize| times.iter().map(|parts| parts[part]).collect::<Vec<f64>>();
        figure(&format!("{name}, alive"), "s", alive, of(0));
        figure(&format!("{name}, running and said so"), "s", running, of(1));
        figure(&format!("{name}, removed"), "s", removed, of(2));
    }
    let times = repeat(rounds, || scale(&lab))?;
    figure("from 6 tasks to 30, alive", "s", &["scale6to30.alive_s"], times.iter().map(|(alive, _)| *alive).collect());
    figure(
        "from 6 tasks to 30, said so",
        "s",
        &["scale6to30.running_s"],
        times.iter().map(|(_, said)| *said).collect(),
    );
    drop(lab);
    let cut = repeat(rounds, || lost(|lab| lab.power_off(MACHINES)))?;
    figure("a worker's power cut, six alive", "s", &["loss.kill.default.alive_s", "loss.kill.tuned.alive_s"], cut);
    let cut = repeat(rounds, || lost(|lab| lab.connect(MACHINES, false)))?;
    figure("a worker cut off, six alive elsewhere", "s", &["loss.cut.default.alive_s", "loss.cut.tuned.alive_s"], cut);
    let (writes, alive): (Vec<f64>, Vec<f64>) = repeat(rounds, failover)?.into_iter().unzip();
    let accepted = &["failover3.default.scale_accepted_s", "failover3.tuned.scale_accepted_s"];
    figure("the leading manager's power cut, first write", "s", accepted, writes);
    let whole = &["failover3.default.six_alive_s", "failover3.tuned.six_alive_s"];
    figure("the leading manager's power cut, six alive", "s", whole, alive);
    let used = repeat(rounds.min(3), footprint)?;
    let of = |part: usize| used.iter().map(|parts| parts[part]).collect::<Vec<f64>>();
    let [manager, worker, of_manager, of_worker, full, of_full] = [0, 1, 2, 3, 4, 5].map(of);
    figure(
        "memory of an idle manager with its containerd",
        "MiB",
        &["footprint.idle.manager.dockerd.pss_mib+footprint.idle.manager.containerd.pss_mib"],
        manager,
    );
    figure(
        "memory of an idle worker with its containerd",
        "MiB",
        &["footprint.idle.worker.dockerd.pss_mib+footprint.idle.worker.containerd.pss_mib"],
        worker,
    );
    figure(
        "an idle manager's processor",
        "%",
        &["footprint.idle.manager.dockerd.cpu_pct+footprint.idle.manager.containerd.cpu_pct"],
        of_manager,
    );
    figure(
        "an idle worker's processor",
        "%",
        &["footprint.idle.worker.dockerd.cpu_pct+footprint.idle.worker.containerd.cpu_pct"],
        of_worker,
    );
    figure(
        "memory of a manager, 100 tasks in the cluster",
        "MiB",
        &["footprint.tasks100.manager.dockerd.pss_mib+footprint.tasks100.manager.containerd.pss_mib"],
        full,
    );
    figure(
        "a manager's processor, 100 tasks in the cluster",
        "%",
        &["footprint.tasks100.manager.dockerd.cpu_pct+footprint.tasks100.manager.containerd.cpu_pct"],
        of_full,
    );
    Ok(figures)
}

fn repeat<T>(rounds: usize, mut measure: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    (0..rounds).map(|_| measure()).collect()
}

fn with_images(role: &str) -> Result<Lab> {
    let (lab, _) = formed(role)?;
    for machine in lab.machines() {
        machine.load("test")?;
    }
    Ok(lab)
}

/// So many tasks of a new service: until all are alive, until whoever made it is told so, and until none is alive once it is
/// removed.
fn deploy(lab: &Lab, replicas: usize) -> Result<[f64; 3]> {
    let (first, count) = (lab.machine(1)?, replicas.to_string());
    let create = ["service", "create", "--name", "web", "--replicas", &count, "test/box:1", "sleep"];
    let (alive, said) = until(lab, replicas, || first.ctl(&create))?;
    let (gone, _) = until(lab, 0, || first.ctl(&["service", "rm", "web"]))?;
    Ok([alive, said, gone])
}

/// A service of 6 tasks becomes one of 30: until all are alive, and until whoever asked is told so.
fn scale(lab: &Lab) -> Result<(f64, f64)> {
    let (first, few) = (lab.machine(1)?, REPLICAS.to_string());
    until(lab, REPLICAS, || {
        first.ctl(&["service", "create", "--name", "web", "--replicas", &few, "test/box:1", "sleep"])
    })?;
    thread::sleep(Duration::from_secs(1));
    let times = until(lab, 30, || first.ctl(&["scale", "web=30"]))?;
    until(lab, 0, || first.ctl(&["service", "rm", "web"]))?;
    Ok(times)
}

/// From the beginning of a command until so many containers are alive, and until it has ended.
fn until(lab: &Lab, count: usize, command: impl FnOnce() -> Result<String> + Send) -> Result<(f64, f64)> {
    let begun = Instant::now();
    thread::scope(|scope| {
        let told = scope.spawn(|| command().map(|_| begun.elapsed().as_secs_f64()));
        while contained(lab.machines()) != count {
            ensure!(begun.elapsed() < PATIENCE, "there never were {count} containers");
            thread::sleep(LOOK);
        }
        let alive = begun.elapsed().as_secs_f64();
        Ok((alive, told.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?))
    })
}

/// Containers with a living process.
fn contained<'a>(machines: impl IntoIterator<Item = &'a Machine>) -> usize {
    let groups = machines.into_iter().filter_map(|machine| machine.groups().into_iter().next());
    groups.map(|group| alive(&group).containers().count()).sum()
}

/// Of a manager and a worker with their containerds: memory and processor while nothing happens, and the manager's again with
/// 100 tasks.
fn footprint() -> Result<[f64; 6]> {
    let lab = with_images("worker")?;
    let (manager, worker) = (lab.machine(1)?, lab.machine(MACHINES)?);
    let held = |machine: &Machine| -> Result<f64> {
        Ok((memory(machine)? + memory_of(&machine.pids(Part::Containerd))?) * 1e6 / 1_048_576.0)
    };
    // What was needed to begin is given back by then.
    thread::sleep(IDLE);
    let idle = [held(manager)?, held(worker)?, processor(manager, IDLE)?, processor(worker, IDLE)?];
    until(&lab, 100, || {
        manager.ctl(&["service", "create", "--name", "web", "--replicas", "100", "test/box:1", "sleep"])
    })?;
    thread::sleep(IDLE);
    let [a, b, c, d] = idle;
    Ok([a, b, c, d, held(manager)?, processor(manager, IDLE)?])
}

/// From `init` until all are ready, as commands are typed one after the other.
fn formed(role: &str) -> Result<(Lab, f64)> {
    let lab = Lab::start("bench", MACHINES)?;
    let first = lab.machine(1)?;
    let address = first.address().context("an address")?;
    let begun = Instant::now();
    first.ctl(&["init"])?;
    let token = first.ctl(&["token", "create", "--role", role, "-q"])?;
    for machine in &lab.machines()[1..] {
        machine.ctl(&["join", &address, token.trim()])?;
    }
    let ready = || lab.machines().iter().all(|machine| first.person().is_ready(&machine.installation().node));
    wait_until("all to be ready", PATIENCE, ready)?;
    let took = begun.elapsed().as_secs_f64();
    Ok((lab, took))
}

fn with_six(role: &str) -> Result<Lab> {
    let lab = with_images(role)?;
    let replicas = REPLICAS.to_string();
    lab.machine(1)?.ctl(&["service", "create", "--name", "web", "--replicas", &replicas, "test/box:1", "sleep"])?;
    thread::sleep(CALM);
    Ok(lab)
}

/// From the loss of a worker until six are alive on the two others.
fn lost(lose: impl FnOnce(&mut Lab) -> Result<()>) -> Result<f64> {
    let mut lab = with_six("worker")?;
    let begun = Instant::now();
    lose(&mut lab)?;
    six_alive(&lab, MACHINES)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// From the loss of the manager that leads until another one takes a write, and until six are alive on the two others.
fn failover() -> Result<(f64, f64)> {
    let mut lab = with_six("manager")?;
    let leads = leader(lab.machine(1)?)?;
    let begun = Instant::now();
    lab.power_off(leads)?;
    let lab = &lab;
    thread::scope(|scope| {
        let write = scope.spawn(move || {
            let survivor = lab.machine(if leads == 1 { 2 } else { 1 })?;
            let mut tries = 0;
            let written = wait_until("a write to be taken", PATIENCE, || {
                tries += 1;
                survivor.ctl(&["network", "create", &format!("after-{tries}")]).is_ok()
            });
            written.map(|()| begun.elapsed().as_secs_f64())
        });
        six_alive(lab, leads)?;
        let alive = begun.elapsed().as_secs_f64();
        let write = write.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((write, alive))
    })
}

fn leader(manager: &Machine) -> Result<u8> {
    let status = manager.json(&["system", "status"])?;
    let name = status["leader"].as_str().context("somebody leads")?;
    Ok(name.trim_start_matches('n').parse()?)
}

/// Until the machines but one have six containers between them.
fn six_alive(lab: &Lab, but: u8) -> Result<()> {
    let begun = Instant::now();
    let survivors = || lab.machines().iter().filter(|machine| machine.installation().node != format!("n{but}"));
    while contained(survivors()) < REPLICAS {
        ensure!(begun.elapsed() < PATIENCE, "six never were alive again");
        thread::sleep(LOOK);
    }
    Ok(())
}
