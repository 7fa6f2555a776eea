//! A cluster on its way from one version to the next: what came with the next is used only once every machine runs it.

use std::path::Path;

use conformance::lab::Lab;
use conformance::parts::installation;
use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;
use rustix::process::Signal;

use crate::joining::{token, typed};
use crate::reaching::serve;
use crate::steady::begins_again;
use crate::{contained, state_of};

fn wants(manager: &Machine, service: &str) -> serde_json::Value {
    let found = manager.json(&["get", "service", service]).unwrap();
    found["items"].get(0).cloned().unwrap_or(found)["spec"].clone()
}

#[test]
fn what_came_with_a_version_is_refused_until_every_machine_runs_it_and_kept_by_those_that_do_not() {
    let lab = Lab::start("level", 4).unwrap();
    let (before, now) = (installation::previous().unwrap(), installation::program("applyd").unwrap());
    let [first, second, third, fourth] = [1, 2, 3, 4].map(|number| lab.machine(number).unwrap());
    for machine in lab.machines() {
        machine.end(Part::Applyd, Signal::TERM).unwrap();
        machine.begin_applyd_of(Some(&before)).unwrap();
        wait_until("applyd to answer", PATIENCE, || machine.json(&["version"]).is_ok()).unwrap();
    }
    first.ctl(&["init"]).unwrap();
    second.ctl(&["join", "10.99.0.1", &token(first, &["--role", "manager"])]).unwrap();
    third.ctl(&["join", "10.99.0.1", &token(first, &[])]).unwrap();
    for node in ["n1", "n2", "n3"] {
        wait_until("all to be ready", PATIENCE, || state_of(first, node) == "Ready").unwrap();
    }
    for machine in [first, second, third] {
        machine.load("test").unwrap();
    }
    serve(first, &["--name", "web", "--replicas", "3", "test/box:1", "serve", "80"]);
    let keep = |manager: &Machine, service: &str| {
        typed(&manager.person(), &["service", "update", service, "--on-disconnect", "keep", "--detach"])
    };
    let refused = |manager: &Machine, told: &str| {
        let (code, said) = keep(manager, "web");
        assert!(code == 5 && said.contains(told), "{code} {said}");
        assert_eq!(wants(manager, "web")["onDisconnect"], serde_json::Value::Null);
    };
    refused(first, "onDisconnect: unknown field");
    let containers = contained(lab.machines(), 3);

    let runs = |number: u8, program: &Path| begins_again(&lab, number, Signal::TERM, Some(program));
    runs(1, &now);
    wait_until("n1 to say what it runs", PATIENCE, || first.ctl(&["node", "ls"]).unwrap().contains("0.2.0")).unwrap();
    refused(first, "onDisconnect: came with 0.2, and n2 runs 0.1.0, n3 runs 0.1.0: upgrade first");
    refused(second, "onDisconnect: unknown field");
    let status = first.ctl(&["system", "status"]).unwrap();
    assert!(status.contains("versions: 0.2 on n1, 0.1 on n2, n3: what came with 0.2 is refused"), "{status}");
    runs(2, &now);
    wait_until("n2 to have said so", PATIENCE, || !keep(first, "web").1.contains("n2 runs")).unwrap();
    refused(second, "and n3 runs 0.1.0: upgrade first");
    runs(3, &now);
    wait_until("all to have it", PATIENCE, || keep(first, "web").0 == 0).unwrap();
    assert_eq!(wants(second, "web")["onDisconnect"], "keep");
    assert!(!first.ctl(&["system", "status"]).unwrap().contains("versions:"));
    assert_eq!(contained(lab.machines(), 3), containers, "no container was stopped or started");

    // Nobody comes who would ignore it.
    let (code, said) = typed(&fourth.person(), &["join", "10.99.0.1", &token(first, &[])]);
    assert!(code == 8 && said.contains("applyd there is 0.1.0") && said.contains("install 0.2 first"), "{code} {said}");

    // One goes back: what is there stays, whoever writes beside it, and nothing is added.
    runs(2, &before);
    wait_until("n2 to say so", PATIENCE, || first.ctl(&["system", "status"]).unwrap().contains("0.1 on n2")).unwrap();
    serve(first, &["--name", "other", "--replicas", "1", "test/box:1", "serve", "80"]);
    let (code, said) = keep(first, "other");
    assert!(code == 5 && said.contains("and n2 runs 0.1.0: upgrade first"), "{code} {said}");
    for (manager, replicas) in [(second, 4), (first, 5)] {
        manager.ctl(&["scale", &format!("web={replicas}")]).unwrap();
        let spec = wants(first, "web");
        assert_eq!((&spec["onDisconnect"], &spec["replicas"]), (&"keep".into(), &replicas.into()));
    }
}
