//! That the demo does what it promises: twice in a row, seen by a browser, its application gone without a trace, killed
//! half-way, and down with nothing left.
//!
//! It runs on an empty machine (namespaces made for it), where whatever is there afterwards and was not before is the
//! demo's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::browser;
use crate::demo::{BUNDLE, Demo, VOTE};
use crate::observer::{difference, inventory_here};
use crate::parts::installation::program;
use crate::parts::process::wait_until;

const RESULT: &str = "http://127.0.0.1:5001/";
const PATIENCE: Duration = Duration::from_secs(60);
/// When the harness is killed, after its start: while parts start, while the application comes up, while it is used.
const KILLED_AFTER: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_millis(2500), Duration::from_millis(6000)];

/// All of it; prints each step and how long it took.
#[expect(clippy::disallowed_methods, reason = "the times are reported")]
pub fn prove(name: &str) -> Result<()> {
    let demo = Demo::named(name);
    demo.down()?;
    let before = inventory(&demo)?;
    let mut step = Instant::now();
    let mut say = |what: &str| {
        println!("• proved in {:.1} s: {what}", step.elapsed().as_secs_f64());
        step = Instant::now();
    };

    demo.up().context("the first time")?;
    say("up");
    demo.up().context("the second time, on top of the first")?;
    say("up again");
    let scratch = demo.installation().disk.join("browser");
    std::fs::create_dir_all(&scratch)?;
    let seen = browser::vote_and_see(VOTE, RESULT, &scratch, None)?;
    say(&format!("a browser votes: {:?}, then {:?}, then {:?}", seen.before, seen.after_a, seen.after_b));
    removed_without_a_trace(&demo)?;
    say("the bundle is removed: nothing left but its volumes and events");
    demo.down()?;
    nothing_left(&before, &demo).context("after the demo was up twice")?;
    say("down, and nothing left");

    for after in KILLED_AFTER {
        killed_half_way(name, after)?;
        demo.down()?;
        demo.down().context("down, twice")?;
        nothing_left(&before, &demo).with_context(|| format!("after the harness was killed at {after:?}"))?;
        say(&format!("killed after {after:?}, down, and nothing left"));
    }
    Ok(())
}

/// The bundle goes; its volumes and what is told about it stay.
fn removed_without_a_trace(demo: &Demo) -> Result<()> {
    let person = demo.person();
    person.ctl(&["bundle", "rm", BUNDLE, "--yes"])?;
    let mut left = Vec::new();
    let gone = wait_until("everything of the bundle to go", PATIENCE, || {
        left = remains_of_bundle(demo).unwrap_or_else(|error| vec![format!("{error:#}")]);
        left.is_empty()
    });
    gone.with_context(|| format!("left: {left:?}"))?;
    let volumes = demo.installation().disk.join("apply/volumes");
    let kept = std::fs::read_dir(&volumes).map(|entries| entries.flatten().count()).unwrap_or_default();
    ensure!(kept > 0, "the named volumes went with the bundle: {} is empty", volumes.display());
    ensure!(!person.list("event")?.is_empty(), "nothing is told about the bundle any more");
    Ok(())
}

fn remains_of_bundle(demo: &Demo) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for kind in ["bundle", "service", "task", "endpoints", "revision"] {
        let objects = demo.person().list(kind)?;
        left.extend(objects.iter().map(|object: &Value| format!("{kind} {}", object["metadata"]["name"])));
    }
    for network in demo.person().list("network")? {
        let labels = &network["metadata"]["labels"];
        if labels["apply/bundle"] == BUNDLE {
            left.push(format!("network {}", network["metadata"]["name"]));
        }
    }
    let installation = demo.installation();
    let socket = installation.containerd_socket();
    for (what, arguments) in [("container", ["containers", "list", "-q"]), ("task", ["tasks", "list", "-q"])] {
        let output = Command::new("ctr").arg("-a").arg(&socket).args(["-n", "apply"]).args(arguments).output()?;
        left.extend(String::from_utf8_lossy(&output.stdout).lines().map(|id| format!("{what} {id} in containerd")));
    }
    for folder in [
        installation.run.join("apply/netns"),
        installation.run.join("apply/pipes"),
        installation.run.join("apply/tasks"),
    ] {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| entry.path().display().to_string()));
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

fn nothing_left(before: &BTreeSet<String>, demo: &Demo) -> Result<()> {
    let mut left = Vec::new();
    let gone = wait_until("nothing to be left", PATIENCE, || {
        left = inventory(demo).map_or_else(|error| vec![format!("{error:#}")], |after| difference(before, &after));
        left.is_empty()
    });
    gone.with_context(|| format!("{left:#?}"))
}

fn inventory(demo: &Demo) -> Result<BTreeSet<String>> {
    let folders: [PathBuf; 4] = [
        demo.installation().disk,
        Path::new("/run").into(),
        Path::new("/tmp").into(),
        Path::new("/var/lib/apply").into(),
    ];
    let mut found = inventory_here(&demo.group(), &folders)?;
    // Who looks.
    found.retain(|line| !(line.starts_with("process") && line.contains(" demo ") && line.contains("prove")));
    Ok(found)
}

/// Not to wait for something: to strike at a chosen moment.
#[expect(clippy::disallowed_methods, reason = "a fault strikes at a chosen moment")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
