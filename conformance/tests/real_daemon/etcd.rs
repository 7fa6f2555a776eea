//! applyd whose objects are in an etcd: the same application, through the end of the daemon and of etcd.

use std::fs;
use std::path::PathBuf;

use conformance::parts::etcd::{Door, Etcd, Version};
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

#[test]
fn an_etcd_may_want_to_know_its_clients_and_keeps_what_is_its_own() {
    let mut machine = Machine::new("etcdtls", &Options::default()).unwrap();
    machine.boot().unwrap();
    machine.start_containerd().unwrap();
    let started = || Etcd::start_with("daemon-tls", Version::V3_4, 1, Door::Certificates);
    let mut etcd = machine.on_network(started).unwrap().unwrap();
    let files = etcd.certificates().unwrap().clone();
    let store = format!("etcd={}", etcd.endpoints()[0]);
    assert!(store.starts_with("etcd=https://127.0.0.1:"), "{store}");
    let told = |authority: PathBuf, who: &str| {
        let (certificate, key) = files.of(who);
        let paths = [("--store-ca", authority), ("--store-cert", certificate), ("--store-key", key)];
        let paths = paths.into_iter().flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()]);
        ["--store".to_owned(), store.clone()].into_iter().chain(paths).collect::<Vec<_>>()
    };
    let as_words = |words: &[String]| words.iter().map(String::as_str).collect::<Vec<_>>().join(" ");

    // Neither a stranger gets in, nor does applyd talk to one; both wait, as a mended certificate is not waited for in vain.
    for (authority, who) in [(files.authority(), "stranger"), (files.other_authority(), "client")] {
        let words = told(authority, who);
        machine.tell_applyd(&words.iter().map(String::as_str).collect::<Vec<_>>());
        machine.begin_applyd().unwrap();
        let log = || fs::read_to_string(machine.installation().disk.join("applyd.log")).unwrap_or_default();
        wait_until("applyd to say why it waits", PATIENCE, || {
            log().lines().any(|line| line.contains("applyd waits for it") && line.contains("is --store-cert signed by"))
        })
        .unwrap_or_else(|error| panic!("{}: {error}\n{}", as_words(&words), machine.log_end("applyd")));
        assert!(machine.kill(Part::Applyd).unwrap());
        fs::remove_file(machine.installation().disk.join("applyd.log")).unwrap();
    }

    machine.tell_applyd(&told(files.authority(), "client").iter().map(String::as_str).collect::<Vec<_>>());
    machine.start_applyd().unwrap();
    machine.ctl(&["init", "--title", "behind-tls"]).unwrap();
    assert_eq!(machine.json(&["init"]).unwrap()["store"], "etcd");
    // A connection that breaks is made anew, as whom it was.
    machine.on_network(|| etcd.kill(0)).unwrap().unwrap();
    machine.on_network(|| etcd.restart(0)).unwrap().unwrap();
    wait_until("the objects to be there again", PATIENCE, || {
        machine.json(&["get", "cluster", "cluster"]).is_ok_and(|cluster| cluster["spec"]["title"] == "behind-tls")
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", machine.log_end("applyd")));

    // The machine is reset; what is in etcd is not this machine's alone, and whoever resets it is told.
    let output = machine.person().applyctl(&["system", "reset", "--yes"]).unwrap().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("its objects are still in the etcd at https://127.0.0.1:"), "{said}");
    let keys = |machine: &Machine| {
        let (certificate, key) = files.of("client");
        let mut etcdctl = machine.inside("etcdctl");
        etcdctl.arg("--endpoints").arg(&etcd.endpoints()[0]).arg("--cacert").arg(files.authority());
        etcdctl.arg("--cert").arg(certificate).arg("--key").arg(key).args([
            "get",
            "--prefix",
            "--keys-only",
            "/apply/",
        ]);
        let output = etcdctl.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(keys(&machine).contains("/cluster"), "{}", keys(&machine));
    let command = said.split_once("to remove them: ").unwrap().1.trim();
    assert!(machine.inside("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    assert_eq!(keys(&machine).trim(), "", "after {command}");
}
