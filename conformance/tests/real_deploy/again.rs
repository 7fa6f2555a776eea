//! The same file again, and the file no more.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use conformance::observer::{difference, inventory};
use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;
use controllers::node::mesh::Balancer;
use serde_json::Value;

use super::file;

const DAB: &str = r#"{
  "Version": "0.1",
  "Services": {
    "vote": {"Image": "test/box:1", "Env": ["A=1", "B=2"], "Labels": {"tier": "front"},
             "Ports": [{"Protocol": "tcp", "Port": 80}], "Networks": ["front-tier", "back-tier"]},
    "result": {"Image": "test/box:2", "Ports": [{"Protocol": "tcp", "Port": 80}], "Networks": ["front-tier", "back-tier"]},
    "worker": {"Image": "test/box:1", "Args": ["sleep"], "Networks": ["back-tier"]},
    "redis": {"Image": "test/shell:1", "Args": ["sh", "-c", "echo kept > /data/here; exec testbox sleep"],
              "Networks": ["back-tier"]},
    "db": {"Image": "test/box:1", "Env": ["PASSWORD=x"], "Networks": ["back-tier"]}
  }
}
"#;

const OVERLAY: &str = "
services:
  vote:
    replicas: 2
    endpoint: {ports: [{target: 80, published: 5000}]}
    template:
      container:
        health: {check: {exec: {command: [/testbox, exit, '0']}, interval: 1s, timeout: 5s, retries: 20}}
  redis:
    template: {container: {mounts: [{type: volume, source: waiting, target: /data}]}}
";

/// What has a version, with it; without what changes as time goes by.
fn versions(machine: &Machine) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    for registered in schemas::kinds::ALL {
        let kind = (registered.kind)();
        if ["Lease", "Node", "Event"].contains(&kind.kind.as_ref()) {
            continue;
        }
        // A cluster need not have every kind, but what it has is all looked at.
        let Ok(list) = machine.json(&["get", kind.plural.as_ref(), "-A"]) else { continue };
        for object in list["items"].as_array().unwrap() {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            versions.insert(format!("{} {}/{}", kind.kind, text("namespace"), text("name")), text("resourceVersion"));
        }
    }
    versions
}

/// The versions once nothing has been written for a while.
#[expect(clippy::disallowed_methods, reason = "that nothing happens shows only in time")]
fn at_rest(machine: &Machine) -> BTreeMap<String, String> {
    const REST: Duration = Duration::from_secs(3);
    let (mut last, mut since, mut changed) = (versions(machine), Instant::now(), Vec::new());
    let rest = wait_until("the store to come to rest", PATIENCE, || {
        let now = versions(machine);
        if now != last {
            changed = difference_of(&last, &now);
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > REST
    });
    assert!(rest.is_ok(), "{rest:?}; the last that changed: {changed:#?}");
    last
}

fn deploy(machine: &Machine, dab: &Path, overlay: &Path) {
    machine.ctl(&["deploy", "shop", dab.to_str().unwrap(), "--with", overlay.to_str().unwrap()]).unwrap();
}

#[test]
fn the_same_file_again_writes_nothing_and_without_it_nothing_is_left() {
    let machine = Machine::start("again").unwrap();
    machine.load("test").unwrap();
    let (dab, overlay) = (file(&machine, "shop.dab", DAB), file(&machine, "shop.yaml", OVERLAY));
    // What is the machine's own is made with its first task and stays: folders, the group of all containers.
    let warm = file(&machine, "warm.dab", DAB);
    machine.ctl(&["deploy", "warm", warm.to_str().unwrap(), "--with", overlay.to_str().unwrap()]).unwrap();
    machine.ctl(&["bundle", "rm", "warm", "--yes"]).unwrap();
    let (before, stored) = (everything(&machine), at_rest(&machine));

    deploy(&machine, &dab, &overlay);
    let first = at_rest(&machine);
    assert!(first.len() > stored.len() + 15, "the bundle made objects: {first:?}");
    deploy(&machine, &dab, &overlay);
    assert_eq!(difference_of(&first, &versions(&machine)), Vec::<String>::new(), "at once");
    assert_eq!(difference_of(&first, &at_rest(&machine)), Vec::<String>::new(), "and a while later");
    let words = ["diff", "shop", dab.to_str().unwrap(), "--with", overlay.to_str().unwrap()];
    assert_eq!(machine.ctl(&words).unwrap(), "", "and diff says so beforehand");
    // What was compared is what a write changes.
    machine.ctl(&["scale", "shop-worker=2"]).unwrap();
    let scaled = difference_of(&first, &versions(&machine));
    assert!(scaled.iter().any(|line| line.contains("Service default/shop-worker")), "{scaled:?}");
    // And what a person did by hand is left alone by the same file, without a write.
    let scaled = at_rest(&machine);
    deploy(&machine, &dab, &overlay);
    assert_eq!(difference_of(&scaled, &at_rest(&machine)), Vec::<String>::new(), "after a change by hand");

    machine.ctl(&["bundle", "rm", "shop", "--yes"]).unwrap();
    let mut left = Vec::new();
    let gone = wait_until("everything of the bundle to go", PATIENCE, || {
        left = difference(&before, &everything(&machine));
        left.retain(|line| !line.contains("volume"));
        left.extend(
            difference_of(&stored, &versions(&machine)).into_iter().filter(|line| !line[1..].starts_with(" Volume ")),
        );
        left.is_empty()
    });
    assert!(gone.is_ok(), "left: {left:#?}");
    let volumes = machine.folder().join("apply/volumes");
    let kept = fs::read_dir(&volumes).unwrap().flatten().any(|volume| has(&volume.path(), "here"));
    assert!(kept, "the data of the volume is kept below {}", volumes.display());
}

#[test]
fn an_application_becomes_what_it_was_and_its_history_tells_who_and_why() {
    let machine = Machine::start("undone").unwrap();
    machine.load("test").unwrap();
    let (dab, overlay) = (file(&machine, "shop.dab", DAB), file(&machine, "shop.yaml", OVERLAY));
    let changed = file(&machine, "new.dab", &DAB.replace("\"A=1\"", "\"A=2\"").replace("test/box:2", "test/box:1"));
    let deploy = |dab: &Path, why: &str| {
        machine
            .ctl(&["deploy", "shop", dab.to_str().unwrap(), "--with", overlay.to_str().unwrap(), "-m", why])
            .unwrap();
    };
    deploy(&dab, "the first");
    machine.ctl(&["scale", "shop-worker=2"]).unwrap();
    deploy(&changed, "A is 2");
    let first = at_rest(&machine);
    deploy(&changed, "said again, and not written");
    assert_eq!(difference_of(&first, &at_rest(&machine)), Vec::<String>::new());

    machine.ctl(&["rollout", "undo", "bundle/shop"]).unwrap();
    let said = machine.ctl(&["exec", "shop-vote", "/testbox", "env"]).unwrap();
    assert!(said.contains("A=1\n"), "{said}");
    // Without -i whoever reads meets the end.
    assert_eq!(machine.ctl(&["exec", "shop-vote", "/testbox", "cat", "/dev/stdin"]).unwrap(), "");
    let worker = machine.json(&["get", "service", "shop-worker"]).unwrap();
    assert_eq!(worker["spec"]["replicas"], 2, "what was set by hand stays, as after any deploy");
    let told = |of: &str| {
        let history = machine.json(&["rollout", "history", of]).unwrap();
        let line = |one: &Value| format!("{} {} {}", one["number"], one["author"], one["message"]);
        history.as_array().unwrap().iter().map(line).collect::<Vec<_>>()
    };
    let by_root = |why: [&str; 3]| -> Vec<String> {
        why.iter().zip(1..).map(|(why, number)| format!("{number} \"user:root\" \"{why}\"")).collect()
    };
    assert_eq!(told("bundle/shop"), by_root(["the first", "A is 2", "back to 1"]));
    assert_eq!(told("service/shop-vote"), by_root(["the first", "A is 2", "back to 1"]));
    assert_eq!(told("service/shop-db").len(), 1, "nobody changed that one");
    // What stands in the store survives whoever wrote it.
    machine.ctl(&["rollout", "undo", "bundle/shop", "--to", "2", "-m", "after all"]).unwrap();
    assert_eq!(told("bundle/shop").last().unwrap(), "4 \"user:root\" \"after all\"");
}

fn difference_of(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let all = before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>();
    all.into_iter()
        .filter_map(|key| match (before.get(key), after.get(key)) {
            (Some(before), Some(after)) if before == after => None,
            (Some(before), Some(after)) => Some(format!("~ {key}: {before} -> {after}")),
            (None, _) => Some(format!("+ {key}")),
            (_, None) => Some(format!("- {key}")),
        })
        .collect()
}

fn has(folder: &Path, name: &str) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        entry.file_name() == name || entry.file_type().is_ok_and(|kind| kind.is_dir()) && has(&entry.path(), name)
    })
}

/// What an outsider finds on the machine, and what containerd and the firewall know: all but images.
fn everything(machine: &Machine) -> std::collections::BTreeSet<String> {
    let mut found = inventory(machine).unwrap();
    let socket = machine.installation().containerd_socket();
    for what in ["containers", "tasks", "leases", "snapshots"] {
        let output =
            machine.inside("ctr").args(["-a", socket.to_str().unwrap(), "-n", "apply", what, "list"]).output().unwrap();
        assert!(output.status.success(), "ctr {what}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        // Committed ones are the images'.
        let lines = text.lines().skip(1).filter(|line| !line.contains("Committed"));
        found.extend(lines.map(|line| format!("{what} {}", line.split_whitespace().next().unwrap_or_default())));
    }
    let output = machine.inside("nft").args(["-j", "list", "ruleset"]).output().unwrap();
    let rules: Value = serde_json::from_slice(&output.stdout).unwrap();
    for object in rules["nftables"].as_array().unwrap() {
        // Handles are given anew, and counters count.
        let kind = object.as_object().and_then(|object| object.keys().next().cloned()).unwrap_or_default();
        let name = object[&kind]["name"].as_str().or(object[&kind]["chain"].as_str()).unwrap_or_default();
        for element in object[&kind]["elem"].as_array().into_iter().flatten() {
            found.insert(format!("element of {name}: {element}"));
        }
        // Chains that nobody uses are kept for the next service with as many tasks, a few of a shape. One that somebody
        // still used would show as an element that leads to it.
        if Balancer::parse(name).is_none() {
            found.insert(format!("rule {kind} {name}"));
        }
    }
    found
}
