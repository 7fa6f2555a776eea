//! Another authority signs, while everything goes on.

use std::fs::File;
use std::process::Stdio;

use conformance::lab::Lab;
use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;
use serde_json::Value;

use crate::load::{Asked, under_load};
use crate::people::let_in;
use crate::reaching::serve_checked;
use crate::{contained, running, state_of};

/// What each machine shows, by the authorities that are believed: `(fingerprint, state, machines)`.
fn authorities(manager: &Machine) -> Vec<(String, String, u64)> {
    let found = manager.json(&["ca", "ls"]).unwrap();
    let one = |it: &Value| {
        let text = |field: &str| it[field].as_str().unwrap_or_default().to_owned();
        (text("fingerprint"), text("state"), it["machinesSigned"].as_u64().unwrap_or_default())
    };
    found.as_array().unwrap().iter().map(one).collect()
}

#[test]
fn another_authority_signs_and_nothing_is_dropped() {
    let lab = Lab::start("rotate", 4).unwrap();
    let first = lab.machine(1).unwrap();
    first.ctl(&["init"]).unwrap();
    let token = |role: &str| first.ctl(&["token", "create", "--role", role, "-q"]).unwrap();
    let before = token("worker");
    for (number, token) in [(2, token("manager")), (3, before.clone())] {
        lab.machine(number).unwrap().ctl(&["join", "10.99.0.1", token.trim()]).unwrap();
    }
    for machine in &lab.machines()[..3] {
        machine.load("test").unwrap();
        let node = &machine.installation().node;
        wait_until("it to be ready", PATIENCE, || state_of(lab.machine(2).unwrap(), node) == "Ready").unwrap();
    }
    serve_checked(&lab, 3, "start-first");
    let containers = contained(&lab.machines()[..3], 3);
    let ann = let_in(&lab, "ann", &["--role", "admin"]);
    let seen = first.folder().join("seen");
    let mut watching = ann.command(&["get", "networks", "-w"]);
    let mut watching = watching.stdout(File::create(&seen).unwrap()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("she to watch", PATIENCE, || std::fs::read_to_string(&seen).is_ok_and(|text| !text.is_empty())).unwrap();
    let [(first_one, state, 3)] = &authorities(first)[..] else { panic!("{:?}", authorities(first)) };
    assert_eq!(state, "Signing");

    let asked = under_load(&lab, |_| {
        let said = first.ctl(&["ca", "rotate", "--overlap", "1h"]).unwrap();
        assert!(said.contains("3 machines have certificates of it"), "{said}");
        let both = authorities(first);
        let [(gone, going, 0), (next, signing, 3)] = &both[..] else { panic!("{both:?}") };
        assert_eq!((gone, going.as_str(), signing.as_str()), (first_one, "Going", "Signing"));
        assert!(next != first_one);
        // What was signed before is good beside it.
        ann.does(&["get", "nodes"]);
        // By the other manager, which has the key as well; and without a wait.
        let second = lab.machine(2).unwrap();
        let said = second.ctl(&["ca", "rotate", "--overlap", "0s"]).unwrap();
        assert!(said.contains("is good no more"), "{said}");
        let [(last, _, 3)] = &authorities(first)[..] else { panic!("{:?}", authorities(first)) };
        assert!(last != next && last != first_one);
        first.ctl(&["network", "create", "later"]).unwrap();
        wait_until("her connection of before to tell it", PATIENCE, || {
            std::fs::read_to_string(&seen).is_ok_and(|text| text.contains("later"))
        })
        .unwrap();
        // Both managers' applyd, and a worker's, begin anew with what is on their disks.
        for number in [1, 2, 3] {
            let machine = lab.machine(number).unwrap();
            machine.kill(Part::Applyd).unwrap();
            machine.begin_applyd().unwrap();
            let other = lab.machine(if number == 1 { 2 } else { 1 }).unwrap();
            let node = format!("n{number}");
            wait_until(&format!("{node} to be ready"), PATIENCE, || state_of(other, &node) == "Ready")
                .unwrap_or_else(|error| panic!("{error:#}: {}", machine.log_end("applyd")));
        }
    });
    for (machine, Asked { answers, failed }) in (1..).zip(asked) {
        assert_eq!(failed, [], "n{machine}: of {} requests", answers.len());
    }
    assert_eq!(contained(&lab.machines()[..3], 3), containers, "nothing was stopped or started");
    assert_eq!(running(first, "web"), ["n1", "n2", "n3"]);

    // What is of before is good no more.
    watching.kill().unwrap();
    watching.wait().unwrap();
    let output = ann.command(&["get", "nodes"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("applyctl user credentials"), "{said}");
    let fourth = lab.machine(4).unwrap();
    let said = format!("{:#}", fourth.ctl(&["join", "10.99.0.1", before.trim()]).unwrap_err());
    assert!(said.contains("applyctl token create"), "{said}");
    let token = first.ctl(&["token", "create", "-q"]).unwrap();
    fourth.ctl(&["join", "10.99.0.2", token.trim()]).unwrap();
    wait_until("n4 to be ready", PATIENCE, || state_of(first, "n4") == "Ready").unwrap();

    // A machine that is away is waited for, and named.
    lab.connect(3, false).unwrap();
    wait_until("n3 to be lost", PATIENCE, || state_of(first, "n3") == "Lost").unwrap();
    let said = format!("{:#}", first.ctl(&["ca", "rotate", "--timeout", "3s"]).unwrap_err());
    assert!(said.contains("lost: n3"), "{said}");
    lab.connect(3, true).unwrap();
    let said = first.ctl(&["ca", "rotate"]).unwrap();
    assert!(said.contains("4 machines have certificates of it"), "{said}");
}
