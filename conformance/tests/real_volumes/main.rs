//! Named volumes as people meet them: made for whoever mounts them, kept when the application goes, refused an end while
//! in use, gone when that is what is asked for. With a real containerd; needs root.

use std::fs;
use std::path::PathBuf;

use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;
use serde_json::{Value, json};

fn fails(machine: &Machine, words: &[&str], code: i32) -> String {
    let output = machine.person().applyctl(words).unwrap().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    said
}

fn volume(machine: &Machine, name: &str) -> Option<Value> {
    let volumes = machine.person().list("volume").unwrap();
    volumes.into_iter().find(|volume| volume["metadata"]["name"] == name)
}

/// Deploys an application of one service that mounts a volume, and returns once it runs.
fn deploy(machine: &Machine) {
    let file = machine.folder().join("shop.yaml");
    let text = "services:\n  db:\n    template:\n      container:\n        image: test/box:1\n        args: [sleep]\n        \
                mounts:\n          - type: volume\n            source: data\n            target: /data\n            volume: \
                {labels: {tier: gold}}\n";
    fs::write(
        &file,
        format!(
            "apiVersion: apply/v1\nkind: Bundle\nmetadata: {{name: shop}}\nspec:\n  {}",
            text.replace('\n', "\n  ")
        ),
    )
    .unwrap();
    machine.ctl(&["apply", "-f", file.to_str().unwrap()]).unwrap();
    let up = || {
        let tasks = machine.person().list("task").unwrap_or_default();
        tasks.iter().any(|task| task["status"]["state"] == "Running")
    };
    wait_until("the task to run", PATIENCE, up).unwrap_or_else(|error| {
        panic!(
            "{error}: {}\n{}",
            machine.ctl(&["get", "task", "-o", "yaml"]).unwrap_or_default(),
            machine.log_end("applyd")
        )
    });
}

/// The volume's directory, once its object says where.
fn directory(machine: &Machine) -> PathBuf {
    let mut path = None;
    wait_until("the volume to say where it is", PATIENCE, || {
        path = volume(machine, "data").and_then(|it| it["status"]["path"].as_str().map(PathBuf::from));
        path.is_some()
    })
    .unwrap();
    path.unwrap()
}

#[test]
fn data_outlives_its_application_until_it_is_told_to_go() {
    let machine = Machine::start("volumes").unwrap();
    machine.load("test").unwrap();
    deploy(&machine);
    let data = directory(&machine);
    let made = volume(&machine, "data").unwrap();
    assert_eq!(made["spec"], json!({"node": "n1", "labels": {"tier": "gold"}}));
    assert_eq!(made["metadata"]["labels"]["apply/bundle"], "shop");
    assert_eq!(made["metadata"].get("ownerReferences"), None);
    assert_eq!((&made["status"]["state"], &made["status"]["inUse"]), (&json!("Ready"), &json!(1)));
    fs::write(data.join("kept"), "as it was").unwrap();

    // Refused in words, and nothing is begun.
    let said = fails(&machine, &["volume", "rm", "data", "--yes"], 6);
    assert!(said.contains("in use by 1 task"), "{said}");
    assert!(volume(&machine, "data").unwrap()["metadata"].get("deletionTimestamp").is_none());

    // It stays, and says so, when its application goes; and is found again by the next one.
    let said = machine.person().applyctl(&["bundle", "rm", "shop"]).unwrap().output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("volumes stay: data"), "{said}");
    wait_until("the volume to be idle", PATIENCE, || {
        volume(&machine, "data").unwrap()["status"].get("inUse").is_none()
    })
    .unwrap();
    assert!(machine.ctl(&["volume", "ls"]).unwrap().contains("data"));
    deploy(&machine);
    assert_eq!(machine.ctl(&["exec", "shop-db", "--", "/testbox", "cat", "/data/kept"]).unwrap().trim(), "as it was");

    // Deleted all the same, it waits for its task and says for whom, through a restart of the daemon too.
    machine.ctl(&["delete", "volume", "data", "--yes", "--detach"]).unwrap();
    let refusal = || {
        let conditions = volume(&machine, "data")?["status"]["conditions"].clone();
        conditions.as_array()?.iter().find(|it| it["type"] == "Removed")?["message"].as_str().map(str::to_owned)
    };
    wait_until("the refusal", PATIENCE, || refusal().is_some()).unwrap();
    assert!(refusal().unwrap().starts_with("in use by shop-db-1-"), "{:?}", refusal());
    machine.kill(Part::Applyd).unwrap();
    machine.start_applyd().unwrap();
    assert!(data.join("kept").exists());

    machine.ctl(&["bundle", "rm", "shop", "--volumes", "--yes"]).unwrap();
    assert_eq!(volume(&machine, "data"), None);
    assert!(!data.exists() && !data.parent().unwrap().exists(), "{} is still there", data.display());

    // The next one begins with nothing.
    deploy(&machine);
    assert!(!directory(&machine).join("kept").exists());
    machine.ctl(&["bundle", "rm", "shop", "--volumes", "--yes"]).unwrap();
    assert_eq!(machine.person().list("volume").unwrap(), Vec::<Value>::new());
}
