//! More than one manager: how they come to be, and that any of them may go.

use conformance::lab::Lab;
use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;

use crate::{contained, running, state_of};

/// Who leads, as a manager knows it.
fn leader(manager: &Machine) -> String {
    let lease = manager.json(&["get", "lease", "controllers", "-n", "apply-system"]).unwrap_or_default();
    let lease = lease["items"].get(0).cloned().unwrap_or(lease);
    let holder = lease["spec"]["holder"].as_str().unwrap_or_default();
    holder.split('/').next().unwrap_or_default().to_owned()
}

#[test]
fn any_of_three_managers_may_lose_power() {
    let mut lab = Lab::start("managers", 3).unwrap();
    let first = lab.machine(1).unwrap();
    first.ctl(&["init"]).unwrap();
    first.load("test").unwrap();
    // What is in the file moves to etcd without a container being stopped.
    first.ctl(&["service", "create", "--name", "web", "--replicas", "2", "test/box:1", "sleep"]).unwrap();
    let containers = contained([first], 2);
    let token = first.ctl(&["token", "create", "--role", "manager", "-q"]).unwrap();
    for number in [2, 3] {
        lab.machine(number).unwrap().ctl(&["join", "10.99.0.1", token.trim()]).unwrap();
        lab.machine(number).unwrap().load("test").unwrap();
    }
    let first = lab.machine(1).unwrap();
    assert_eq!(contained([first], 2), containers, "nothing was stopped or started");
    for machine in lab.machines() {
        wait_until("all to be ready", PATIENCE, || {
            ["n1", "n2", "n3"].iter().all(|node| state_of(machine, node) == "Ready")
        })
        .unwrap();
    }
    let said = lab.machine(2).unwrap().ctl(&["system", "status"]).unwrap();
    assert!(said.contains("n1 leads; 1 manager may be lost"), "{said}");
    lab.machine(3).unwrap().ctl(&["scale", "web=6"]).unwrap();
    let spread = ["n1", "n1", "n2", "n2", "n3", "n3"];
    wait_until("six to run", PATIENCE, || running(lab.machine(2).unwrap(), "web") == spread).unwrap();

    // The one that leads, and then whichever leads next.
    for round in 0..2 {
        let leads = leader(lab.machine(1).unwrap());
        let number: u8 = leads.trim_start_matches('n').parse().unwrap();
        lab.power_off(number).unwrap();
        let other = if number == 1 { 2 } else { 1 };
        let survivor = lab.machine(other).unwrap();
        wait_until("a write to be taken", PATIENCE, || {
            survivor.ctl(&["network", "create", &format!("round-{round}")]).is_ok()
        })
        .unwrap();
        wait_until("another to lead", PATIENCE, || !["", &leads].contains(&leader(survivor).as_str())).unwrap();
        wait_until("six to run on two machines", PATIENCE, || {
            let nodes = running(survivor, "web");
            nodes.len() == 6 && !nodes.contains(&leads)
        })
        .unwrap();
        assert_eq!(state_of(survivor, &leads), "Lost");
        lab.power_on(number).unwrap();
        let back = lab.machine(number).unwrap();
        wait_until("it to be back", PATIENCE, || state_of(back, &leads) == "Ready").unwrap();
        for name in (0..=round).map(|round| format!("round-{round}")) {
            assert!(back.ctl(&["get", "network", &name]).is_ok(), "{name} was acknowledged");
        }
    }
}

#[test]
fn a_worker_goes_on_with_another_manager() {
    let mut lab = Lab::start("another", 4).unwrap();
    let first = lab.machine(1).unwrap();
    first.ctl(&["init"]).unwrap();
    let (manager, worker) = (["token", "create", "--role", "manager", "-q"], ["token", "create", "-q"]);
    let manager = first.ctl(&manager).unwrap();
    let worker = first.ctl(&worker).unwrap();
    for (number, token) in [(2, &manager), (4, &worker), (3, &manager)] {
        lab.machine(number).unwrap().ctl(&["join", "10.99.0.1", token.trim()]).unwrap();
    }
    let fourth = lab.machine(4).unwrap();
    fourth.load("test").unwrap();
    let second = lab.machine(2).unwrap();
    wait_until("n4 to be ready", PATIENCE, || state_of(second, "n4") == "Ready").unwrap();
    lab.power_off(1).unwrap();
    let second = lab.machine(2).unwrap();
    let create = ["service", "create", "--name", "web", "--constraint", "node.hostname==n4", "test/box:1", "sleep"];
    wait_until("a write to be taken", PATIENCE, || second.ctl(&create).is_ok()).unwrap();
    wait_until("n4 to run it", PATIENCE, || running(second, "web") == ["n4"]).unwrap();
    assert_eq!(state_of(second, "n4"), "Ready", "it was never lost");
    let events = second.ctl(&["events", "--for", "node/n4"]).unwrap();
    assert!(!events.contains("Lost"), "{events}");
}

/// Of the cluster's machines, as a manager knows them.
fn role_of(manager: &Machine, node: &str) -> String {
    let found = manager.json(&["get", "node", node]).unwrap_or_default();
    let found = found["items"].get(0).cloned().unwrap_or(found);
    found["spec"]["role"].as_str().unwrap_or("worker").to_owned()
}

#[test]
fn machines_become_managers_and_workers_again() {
    let lab = Lab::start("roles", 3).unwrap();
    lab.form().unwrap();
    let (first, second, third) = (lab.machine(1).unwrap(), lab.machine(2).unwrap(), lab.machine(3).unwrap());
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    first.ctl(&["service", "create", "--name", "web", "test/box:1", "sleep"]).unwrap();
    let containers = contained(lab.machines(), 1);
    first.ctl(&["node", "promote", "n2", "n3"]).unwrap();
    assert_eq!(role_of(third, "n2"), "manager", "n3 answers by itself");
    // The one that leads.
    second.ctl(&["node", "demote", "n1"]).unwrap();
    let kept = |name: &str| first.folder().join("apply").join(name).exists();
    wait_until("n1 to be a worker that keeps nothing of a manager", PATIENCE, || {
        !kept("etcd-member/member.json") && !kept("identity/authority.key") && !kept("key")
    })
    .unwrap();
    wait_until("n1 to be ready as a worker", PATIENCE, || {
        let said = format!("{:?}", first.ctl(&["get", "nodes"]));
        said.contains("is a worker") && state_of(second, "n1") == "Ready"
    })
    .unwrap();
    wait_until("another to lead", PATIENCE, || ["n2", "n3"].contains(&leader(second).as_str())).unwrap();
    assert_eq!(contained(lab.machines(), 1), containers, "nothing was stopped or started");
    third.ctl(&["scale", "web=3"]).unwrap();

    second.ctl(&["node", "demote", "n3"]).unwrap();
    wait_until("n3 to be a worker", PATIENCE, || format!("{:?}", third.ctl(&["get", "nodes"])).contains("is a worker"))
        .unwrap();
    let only = format!("{:#}", second.ctl(&["node", "demote", "n2"]).unwrap_err());
    assert!(only.contains("n2 is the only manager") && only.contains("node promote"), "{only}");
    second.ctl(&["scale", "web=4"]).unwrap();
    // And back again: what it was before is not in its way.
    second.ctl(&["node", "promote", "n1"]).unwrap();
    assert_eq!(role_of(first, "n1"), "manager");
}

#[test]
fn managers_that_go_together_and_one_that_is_removed_at_once_leave_the_others_whole() {
    let lab = Lab::start("goes", 3).unwrap();
    lab.form().unwrap();
    let (first, second, third) = (lab.machine(1).unwrap(), lab.machine(2).unwrap(), lab.machine(3).unwrap());
    first.ctl(&["node", "promote", "n2", "n3"]).unwrap();
    first.ctl(&["node", "demote", "n2", "n3"]).unwrap();
    for machine in [second, third] {
        let node = &machine.installation().node;
        wait_until(&format!("{node} to be a worker"), PATIENCE, || {
            format!("{:?}", machine.ctl(&["get", "nodes"])).contains("is a worker")
        })
        .unwrap();
    }
    first.ctl(&["network", "create", "alone"]).unwrap();
    first.ctl(&["node", "promote", "n2"]).unwrap();
    let reset = format!("{:#}", second.ctl(&["system", "reset", "--yes"]).unwrap_err());
    assert!(reset.contains("one of 2 managers") && reset.contains("node demote n2"), "{reset}");
    // Before it had the time to become a worker.
    first.ctl(&["node", "demote", "n2"]).unwrap();
    first.ctl(&["node", "rm", "n2", "--force", "--yes"]).unwrap();
    wait_until("n2 to know that it was removed", PATIENCE, || second.log_end("applyd").contains("was removed"))
        .unwrap();
    wait_until("n2 to keep nothing of a manager", PATIENCE, || {
        !second.folder().join("apply/etcd-member").exists() && !second.folder().join("apply/key").exists()
    })
    .unwrap();
    first.ctl(&["network", "create", "again"]).unwrap();
    let nodes = first.ctl(&["get", "nodes"]).unwrap();
    assert!(!nodes.contains("n2"), "it makes itself no member again: {nodes}");
    second.ctl(&["system", "reset", "--yes"]).unwrap();
}
