//! applyd whose objects are in an etcd: the same application, through the end of the daemon and of etcd.

use std::fs;

use conformance::parts::etcd::{Etcd, Version};
use conformance::parts::machine::{Machine, Options, PATIENCE, Part};
use conformance::parts::process::wait_until;
use serde_json::Value;

use super::fails;

/// Uid and state of the one task, and when its container was started.
fn task(machine: &Machine) -> Option<(String, String, Value)> {
    let tasks = machine.person().list("task").ok()?;
    let [task] = &tasks[..] else { return None };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some((text(&task["metadata"]["uid"]), text(&task["status"]["state"]), task["status"]["attempts"].clone()))
}

fn wait_for_running(machine: &Machine) -> (String, String, Value) {
    let mut seen = None;
    wait_until("the task to run", PATIENCE, || {
        seen = task(machine);
        seen.as_ref().is_some_and(|(_, state, _)| state == "Running")
    })
    .unwrap_or_else(|error| panic!("{error}: {seen:?}\n{}", machine.log_end("applyd")));
    seen.unwrap()
}

/// What applyd says when it ends at once.
fn refusal(machine: &Machine, besides: &[&str]) -> String {
    let words = machine.installation().applyd().unwrap();
    let own: Vec<&String> = words.iter().take_while(|word| *word != "--store").collect();
    let mut command = machine.inside(own[0]);
    let output = command.args(&own[1..]).args(besides).output().unwrap();
    assert!(!output.status.success(), "it started");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn objects_may_be_in_an_etcd() {
    let mut machine = Machine::new("inetcd", &Options::default()).unwrap();
    machine.boot().unwrap();
    machine.start_containerd().unwrap();
    let mut etcd = machine.on_network(|| Etcd::start("daemon", Version::V3_4, 1)).unwrap().unwrap();
    let store = format!("etcd={}", etcd.endpoints().join(","));
    machine.tell_applyd(&["--store", &store]);
    machine.start_applyd().unwrap();
    machine.load("test").unwrap();
    machine.ctl(&["service", "create", "--name", "web", "test/box:1"]).unwrap();
    let before = wait_for_running(&machine);
    let data = machine.installation().disk.join("apply");
    assert!(!data.join("store.redb").exists(), "nothing is stored beside etcd");

    // One acts for the cluster, with its term in every commit.
    let lease = machine.json(&["get", "lease", "controllers", "-n", "apply-system"]).unwrap();
    assert!(lease["spec"]["holder"].as_str().is_some_and(|holder| holder.starts_with("n1/")), "{lease}");

    // Copies are etcd's, and so is the way back.
    let file = machine.folder().join("copy").display().to_string();
    let said = fails(&machine, &["backup", &file], 5);
    assert!(said.contains("etcdctl snapshot save"), "{said}");
    fs::write(&file, b"no backup").unwrap();
    let restore = [&["restore", "--data", data.to_str().unwrap()][..], &[&file]].concat();
    let said = fails(&machine, &restore, 5);
    assert!(said.contains("etcdctl snapshot restore"), "{said}");

    // Neither twice on one directory, nor with another store than it had.
    let said = refusal(&machine, &["--store", &store]);
    assert!(said.contains("another applyd runs on this data directory"), "{said}");
    assert!(machine.kill(Part::Applyd).unwrap());
    let said = refusal(&machine, &[]);
    assert!(said.contains("--store etcd=") && said.contains("rm "), "{said}");
    let other = machine.on_network(|| Etcd::start("other", Version::V3_4, 1)).unwrap().unwrap();
    let said = refusal(&machine, &["--store", &format!("etcd={}", other.endpoints()[0])]);
    assert!(said.contains("another etcd"), "{said}");
    drop(other);
    let said = refusal(&machine, &["--store", "etcd=127.0.0.1:2379"]);
    assert!(said.contains("etcd=https://HOST:2379"), "{said}");

    // A successor finds what its predecessor knew, and leaves what runs alone.
    machine.start_applyd().unwrap();
    assert_eq!(wait_for_running(&machine), before);

    // etcd gone: the daemon stays, says so, and goes on when it is back; the container noticed nothing.
    machine.on_network(|| etcd.kill(0)).unwrap().unwrap();
    let said = fails(&machine, &["get", "service"], 7);
    assert!(said.contains("cannot reach the cluster"), "{said}");
    machine.on_network(|| etcd.restart(0)).unwrap().unwrap();
    machine.ctl(&["service", "scale", "web=2"]).unwrap();
    wait_until("two tasks to run", PATIENCE, || {
        let tasks = machine.person().list("task").unwrap_or_default();
        tasks.iter().filter(|task| task["status"]["state"] == "Running").count() == 2
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", machine.log_end("applyd")));
    let tasks = machine.person().list("task").unwrap();
    assert!(tasks.iter().any(|task| task["metadata"]["uid"] == *before.0 && task["status"]["attempts"] == before.2));

    // Started before its etcd, it waits.
    assert!(machine.kill(Part::Applyd).unwrap());
    machine.on_network(|| etcd.kill(0)).unwrap().unwrap();
    machine.begin_applyd().unwrap();
    wait_until("applyd to say that it waits", PATIENCE, || machine.log_end("applyd").contains("applyd waits for it"))
        .unwrap();
    machine.on_network(|| etcd.restart(0)).unwrap().unwrap();
    let person = machine.person();
    wait_until("applyd to be ready", PATIENCE, || person.is_ready("n1")).unwrap();
}
