//! Managers that are gone for good, and what takes the place of what they had.

use conformance::lab::Lab;
use conformance::parts::installation::program;
use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;

use crate::{contained, running, state_of};

/// Three managers, and as many workers as there are more machines.
fn managed(name: &str, machines: u8) -> Lab {
    let lab = Lab::start(name, machines).unwrap();
    let first = lab.machine(1).unwrap();
    first.ctl(&["init"]).unwrap();
    let (manager, worker) = (["token", "create", "--role", "manager", "-q"], ["token", "create", "-q"]);
    let (manager, worker) = (first.ctl(&manager).unwrap(), first.ctl(&worker).unwrap());
    for number in 2..=machines {
        let token = if number <= 3 { &manager } else { &worker };
        lab.machine(number).unwrap().ctl(&["join", "10.99.0.1", token.trim()]).unwrap();
    }
    for machine in lab.machines() {
        machine.load("test").unwrap();
        let node = &machine.installation().node;
        wait_until("it to be ready", PATIENCE, || state_of(lab.machine(2).unwrap(), node) == "Ready").unwrap();
    }
    lab
}

/// The version that a manager gives the next write.
fn written(manager: &Machine, network: &str) -> u64 {
    manager.ctl(&["network", "create", network]).unwrap();
    let found = manager.json(&["get", "network", network]).unwrap();
    let found = found["items"].get(0).cloned().unwrap_or(found);
    found["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn three_managers(manager: &Machine) {
    wait_until("three managers again", PATIENCE, || {
        manager.ctl(&["system", "status"]).is_ok_and(|said| said.contains("1 manager may be lost"))
            && ["n1", "n2", "n3"].iter().all(|node| state_of(manager, node) == "Ready")
    })
    .unwrap();
}

#[test]
fn the_last_manager_goes_on_alone_and_those_that_are_back_are_managers_again() {
    let mut lab = managed("alone", 4);
    let (first, fourth) = (lab.machine(1).unwrap(), lab.machine(4).unwrap());
    first.ctl(&["service", "create", "--name", "web", "--replicas", "4", "test/box:1", "sleep"]).unwrap();
    wait_until("four to run", PATIENCE, || running(first, "web") == ["n1", "n2", "n3", "n4"]).unwrap();
    let before = written(first, "before");
    let refused = format!("{:#}", first.ctl(&["init", "--force-new-cluster", "--yes"]).unwrap_err());
    assert!(refused.contains("have a majority") && refused.contains("node rm"), "{refused}");
    let refused = format!("{:#}", fourth.ctl(&["init", "--force-new-cluster", "--yes"]).unwrap_err());
    assert!(refused.contains("is no manager"), "{refused}");
    let containers = contained([first, fourth], 2);

    lab.power_off(2).unwrap();
    lab.power_off(3).unwrap();
    let first = lab.machine(1).unwrap();
    assert!(first.ctl(&["network", "create", "refused"]).is_err(), "there is no majority");
    // Its applyd begins anew, and says what it waits for.
    first.kill(Part::Applyd).unwrap();
    first.begin_applyd().unwrap();
    let mut said = String::new();
    wait_until("it to say what is the matter", PATIENCE, || {
        said = first.ctl(&["get", "services"]).map_or_else(|error| format!("{error:#}"), |_| String::new());
        said.contains("init --force-new-cluster")
    })
    .unwrap_or_else(|error| panic!("{error:#}: {said}"));
    assert!(said.contains("10.99.0.2:"), "{said}");
    let said = first.ctl(&["init", "--force-new-cluster", "--yes"]).unwrap();
    assert!(said.contains("n1 manages the cluster alone"), "{said}");

    let first = lab.machine(1).unwrap();
    let after = written(first, "after");
    assert!(after >> 32 > before >> 32, "{after} is in a later line of history than {before}");
    wait_until("all to run on what is left", PATIENCE, || running(first, "web") == ["n1", "n1", "n4", "n4"]).unwrap();
    assert!(first.ctl(&["get", "network", "before"]).is_ok());
    let now = contained([first, lab.machine(4).unwrap()], 4);
    assert!(containers.is_subset(&now), "something was stopped: {containers:?}, now {now:?}");

    // One after the other; their etcd knows nothing of what was written meanwhile.
    for number in [2, 3] {
        lab.power_on(number).unwrap();
        let node = format!("n{number}");
        wait_until(&format!("{node} to be back"), PATIENCE, || state_of(lab.machine(1).unwrap(), &node) == "Ready")
            .unwrap_or_else(|error| panic!("{error:#}: {}", lab.machine(number).unwrap().log_end("applyd")));
    }
    three_managers(lab.machine(3).unwrap());
    assert!(lab.machine(3).unwrap().ctl(&["get", "network", "after"]).is_ok());
    wait_until("all to run once", PATIENCE, || running(lab.machine(2).unwrap(), "web").len() == 4).unwrap();
}

#[test]
fn a_backup_takes_the_place_of_what_three_managers_have() {
    let lab = managed("backup", 3);
    let first = lab.machine(1).unwrap();
    first.ctl(&["service", "create", "--name", "web", "--replicas", "3", "test/box:1", "sleep"]).unwrap();
    wait_until("three to run", PATIENCE, || running(first, "web") == ["n1", "n2", "n3"]).unwrap();
    let file = first.folder().join("monday.backup").display().to_string();
    first.ctl(&["backup", &file]).unwrap();
    // What the backup lists of authorities is of the past then, and nobody has its keys any more.
    for _ in 0..2 {
        first.ctl(&["ca", "rotate", "--overlap", "0s"]).unwrap();
    }
    let later = written(first, "later");
    let containers = contained(lab.machines(), 3);
    let data = first.folder().join("apply").display().to_string();
    // On the machine itself, whose processes it looks at.
    let restore = |words: &[&str]| {
        let mut command = first.inside(&program("applyctl").unwrap().to_string_lossy());
        let output = command.args(["restore", "--data", &data]).args(words).arg(&file).output().unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (done, said) = restore(&["--force"]);
    assert!(!done && said.contains("stop it first: kill "), "{said}");
    first.kill(Part::Applyd).unwrap();
    let (done, said) = restore(&[]);
    assert!(!done && said.contains("--force puts the backup in its place"), "{said}");
    let (done, said) = restore(&["--force"]);
    assert!(done && said.contains("etcd-member.replaced-1"), "{said}");
    first.begin_applyd().unwrap();
    // The others still have a majority; they see that it is of the past.
    wait_until("n3 to have what the backup has", PATIENCE, || {
        let third = lab.machine(3).unwrap();
        third.ctl(&["get", "services"]).is_ok() && third.ctl(&["get", "network", "later"]).is_err()
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", lab.machine(3).unwrap().log_end("applyd")));
    three_managers(lab.machine(2).unwrap());
    let again = written(lab.machine(2).unwrap(), "again");
    assert!(again >> 32 > later >> 32, "{again} is in a later line of history than {later}");
    assert_eq!(running(first, "web"), ["n1", "n2", "n3"]);
    assert_eq!(contained(lab.machines(), 3), containers, "nothing was stopped or started");
}
