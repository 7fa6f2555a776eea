//! That the demo does what it promises: twice in a row, seen by a browser, its application gone without a trace, killed
//! half-way, and down with nothing left.
//!
//! It runs on an empty machine (namespaces made for it), where whatever is there afterwards and was not before is the
//! demo's.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::browser;
use crate::demo::{BUNDLE, Demo, MACHINES, result_page, vote_page};
use crate::images::workspace;
use crate::observer::{difference, inventory_here};
use crate::parts::installation::program;
use crate::parts::machine::Machine;
use crate::parts::process::wait_until;

const PATIENCE: Duration = Duration::from_secs(60);
/// When the harness is killed, after its start: while parts start, while the application comes up, while it is used.
const KILLED_AFTER: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_millis(2500), Duration::from_millis(9000)];

/// All of it; prints each step and how long it took.
#[expect(clippy::disallowed_methods, reason = "the times are reported")]
pub fn prove(name: &str) -> Result<()> {
    let demo = Demo::named(name);
    demo.down()?;
    let before = inventory(name)?;
    let mut step = Instant::now();
    let mut say = |what: &str| {
        println!("• proved in {:.1} s: {what}", step.elapsed().as_secs_f64());
        step = Instant::now();
    };

    demo.up().context("the first time")?;
    say("up");
    demo.up().context("the second time, on top of the first")?;
    say("up again");
    let lab = demo.lab()?;
    let scratch = lab.machine(1)?.folder().join("browser");
    std::fs::create_dir_all(&scratch)?;
    // Voted on one machine, and seen on another.
    let (vote, result) = (vote_page(lab.machine(1)?)?, result_page(lab.machine(2)?)?);
    let seen = browser::vote_and_see(&vote, &result, &scratch, None)?;
    say(&format!("a browser votes: {:?}, then {:?}, then {:?}", seen.before, seen.after_a, seen.after_b));
    removed_without_a_trace(lab.machines())?;
    lab.leave();
    say("the bundle is removed: nothing left but its volumes and events");
    demo.down()?;
    nothing_left(&before, name).context("after the demo was up twice")?;
    say("down, and nothing left");

    for after in KILLED_AFTER {
        killed_half_way(name, after)?;
        demo.down()?;
        demo.down().context("down, twice")?;
        nothing_left(&before, name).with_context(|| format!("after the harness was killed at {after:?}"))?;
        say(&format!("killed after {after:?}, down, and nothing left"));
    }
    Ok(())
}

/// The bundle goes; its volumes and what is told about it stay.
fn removed_without_a_trace(machines: &[Machine]) -> Result<()> {
    let first = machines.first().context("a machine")?;
    first.ctl(&["bundle", "rm", BUNDLE, "--yes"])?;
    let mut left = Vec::new();
    let gone = wait_until("everything of the bundle to go", PATIENCE, || {
        let looked: Result<Vec<_>> = machines.iter().map(remains_on).collect();
        let remains = looked.and_then(|on_machines| Ok([remains_in_store(first)?, on_machines.concat()].concat()));
        left = remains.unwrap_or_else(|error| vec![format!("{error:#}")]);
        left.is_empty()
    });
    gone.with_context(|| format!("left: {left:?}"))?;
    let volumes = |machine: &Machine| {
        std::fs::read_dir(machine.folder().join("apply/volumes")).map_or(0, |entries| entries.flatten().count())
    };
    ensure!(machines.iter().map(volumes).sum::<usize>() > 0, "the named volumes went with the bundle");
    ensure!(!first.person().list("event")?.is_empty(), "nothing is told about the bundle any more");
    Ok(())
}

fn remains_in_store(manager: &Machine) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for kind in ["bundle", "service", "task", "endpoints", "revision"] {
        let objects = manager.person().list(kind)?;
        left.extend(objects.iter().map(|object: &Value| format!("{kind} {}", object["metadata"]["name"])));
    }
    for network in manager.person().list("network")? {
        let labels = &network["metadata"]["labels"];
        if labels["apply/bundle"] == BUNDLE {
            left.push(format!("network {}", network["metadata"]["name"]));
        }
    }
    Ok(left)
}

fn remains_on(machine: &Machine) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let installation = machine.installation();
    let (node, socket) = (&installation.node, installation.run.join("containerd.sock"));
    for (what, arguments) in [("container", ["containers", "list", "-q"]), ("task", ["tasks", "list", "-q"])] {
        let output = machine.inside("ctr").arg("-a").arg(&socket).args(["-n", "apply"]).args(arguments).output()?;
        ensure!(output.status.success(), "{node}: ctr: {}", String::from_utf8_lossy(&output.stderr));
        let ids = String::from_utf8_lossy(&output.stdout).into_owned();
        left.extend(ids.lines().map(|id| format!("{node}: {what} {id} in containerd")));
    }
    for folder in ["apply/netns", "apply/pipes", "apply/tasks"] {
        let entries = std::fs::read_dir(machine.seen(&installation.run.join(folder))).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| format!("{node}: {}", entry.path().display())));
    }
    for group in crate::parts::machine::groups(&installation.group) {
        let entries = std::fs::read_dir(&group).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir() && entry.file_name() != "keep");
        left.extend(folders.map(|entry| entry.path().display().to_string()));
    }
    Ok(left)
}

fn killed_half_way(name: &str, after: Duration) -> Result<()> {
    let mut harness = Command::new(program("conformance")?)
        .args(["demo", "--name", name, "up"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    pause(after);
    harness.kill()?;
    harness.wait()?;
    Ok(())
}

fn nothing_left(before: &BTreeSet<String>, name: &str) -> Result<()> {
    let mut left = Vec::new();
    let gone = wait_until("nothing to be left", PATIENCE, || {
        left = inventory(name).map_or_else(|error| vec![format!("{error:#}")], |after| difference(before, &after));
        left.is_empty()
    });
    gone.with_context(|| format!("{left:#?}"))
}

fn inventory(name: &str) -> Result<BTreeSet<String>> {
    let target = workspace().join("target");
    let machines: Vec<String> = (1..=MACHINES).map(|number| format!("{name}-n{number}")).collect();
    let mut folders: Vec<PathBuf> = machines.iter().map(|machine| target.join("machines").join(machine)).collect();
    folders.extend([target.join("labs").join(name), "/run".into(), "/tmp".into(), "/var/lib/apply".into()]);
    let mut found = BTreeSet::new();
    for machine in &machines {
        found.extend(inventory_here(&format!("apply-{machine}"), &folders)?);
    }
    // Who looks.
    found.retain(|line| !(line.starts_with("process") && line.contains(" demo ") && line.contains("prove")));
    Ok(found)
}

/// Not to wait for something: to strike at a chosen moment.
#[expect(clippy::disallowed_methods, reason = "a fault strikes at a chosen moment")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
