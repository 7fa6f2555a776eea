//! How long a cluster takes to form, and to be whole again when a machine goes: three machines of a lab, each round a new one.
//!
//! Beside each figure stands Docker Swarm's, measured with three nodes on two such cores by the same rules: the power cut
//! kills everything of a machine at once, a cut takes its network, *alive* is what the control groups of the machines show.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Row, report};
use crate::lab::Lab;
use crate::observer::alive;
use crate::parts::machine::{Machine, PATIENCE};
use crate::parts::process::wait_until;

const ROUNDS: usize = 5;
const MACHINES: u8 = 3;
const REPLICAS: usize = 6;
/// Before something is taken away: what the formation has begun is over.
const CALM: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(5);

/// Docker Swarm 20.10, seconds, its best and its worst.
const SWARM_FORM: (f64, f64) = (0.76, 0.85);
const SWARM_FORM_MANAGERS: (f64, f64) = (1.7, 1.8);
const SWARM_LOSS: (f64, f64) = (15.0, 20.0);
const SWARM_LOSS_TUNED: (f64, f64) = (2.1, 3.7);
/// Of the two tries of six in which it was whole again at all.
const SWARM_FIRST_WRITE: (f64, f64) = (13.5, 24.3);
const SWARM_FAILOVER: (f64, f64) = (33.0, 47.0);

/// All of it.
pub fn run() -> Result<()> {
    let losses = [("Swarm", SWARM_LOSS), ("tuned Swarm", SWARM_LOSS_TUNED)];
    let mut rows = Vec::new();
    figure(
        &mut rows,
        "a manager and two workers, formed",
        &[("Swarm", SWARM_FORM)],
        rounds(|| Ok(formed("worker")?.1))?,
    );
    figure(
        &mut rows,
        "three managers, formed",
        &[("Swarm", SWARM_FORM_MANAGERS)],
        rounds(|| Ok(formed("manager")?.1))?,
    );
    let cut = rounds(|| lost(|lab| lab.power_off(MACHINES)))?;
    figure(&mut rows, "a worker's power cut, six alive", &losses, cut);
    let cut = rounds(|| lost(|lab| lab.connect(MACHINES, false)))?;
    figure(&mut rows, "a worker cut off, six alive elsewhere", &losses, cut);
    let (writes, alive): (Vec<f64>, Vec<f64>) = rounds(failover)?.into_iter().unzip();
    figure(&mut rows, "the leading manager's power cut, first write", &[("Swarm", SWARM_FIRST_WRITE)], writes);
    figure(&mut rows, "the leading manager's power cut, six alive", &[("Swarm", SWARM_FAILOVER)], alive);
    report("cluster", &rows)?;
    Ok(())
}

fn rounds<T>(mut measure: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    (0..ROUNDS).map(|_| measure()).collect()
}

/// The middle and the worst of some seconds, and beside them others' best and worst.
fn figure(rows: &mut Vec<Row>, name: &str, others: &[(&str, (f64, f64))], mut seconds: Vec<f64>) {
    seconds.sort_unstable_by(f64::total_cmp);
    let (middle, worst) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
    println!("  {name}: {middle:.2} s, at the worst {worst:.2} s");
    rows.push(Row::new(name, middle, "s"));
    rows.push(Row::new(format!("{name}, at the worst"), worst, "s"));
    for (called, (best, worst)) in others {
        rows.push(Row::new(format!("{name}, {called}'s best to ours"), best / middle, "ratio"));
        rows.push(Row::new(format!("{name}, {called}'s worst to ours"), worst / middle, "ratio"));
    }
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
    let (lab, _) = formed(role)?;
    for machine in lab.machines() {
        machine.load("test")?;
    }
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
    let survivors = lab.machines().iter().filter(|machine| machine.installation().node != format!("n{but}"));
    let groups: Vec<_> = survivors.filter_map(|machine| machine.groups().into_iter().next()).collect();
    while groups.iter().map(|group| alive(group).containers().count()).sum::<usize>() < REPLICAS {
        ensure!(begun.elapsed() < PATIENCE, "six never were alive again");
        thread::sleep(LOOK);
    }
    Ok(())
}
