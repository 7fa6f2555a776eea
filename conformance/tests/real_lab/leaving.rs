//! Machines that go of their own accord.

use conformance::lab::Lab;
use conformance::observer::{difference, inventory};
use conformance::parts::machine::PATIENCE;
use conformance::parts::process::wait_until;

use crate::{running, state_of};

#[test]
fn a_machine_leaves_once_its_tasks_are_elsewhere_and_may_come_again() {
    let lab = Lab::start("leave", 3).unwrap();
    let third = lab.machine(3).unwrap();
    let early = format!("{:#}", third.load("test").unwrap_err());
    assert!(early.contains("in no cluster yet. A new one: applyctl init"), "{early}");
    let nowhere = format!("{:#}", third.ctl(&["leave", "--yes"]).unwrap_err());
    assert!(nowhere.contains("in no cluster"), "{nowhere}");
    lab.form().unwrap();
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    let first = lab.machine(1).unwrap();
    let nobody_asked = format!("{:#}", third.ctl(&["leave"]).unwrap_err());
    assert!(nobody_asked.contains("this would take n3 out of its cluster"), "{nobody_asked}");
    let the_last = format!("{:#}", first.ctl(&["leave", "--yes"]).unwrap_err());
    assert!(the_last.contains("n1 is the only manager") && the_last.contains("system reset"), "{the_last}");
    first.ctl(&["service", "create", "--name", "web", "--replicas", "6", "test/box:1", "sleep"]).unwrap();
    assert_eq!(running(first, "web"), ["n1", "n1", "n2", "n2", "n3", "n3"]);

    // Not with data that nobody else has.
    let here = ["service", "create", "--name", "data", "--constraint", "node.hostname==n3", "--mount"];
    first.ctl(&[&here[..], &["type=volume,source=data,target=/data", "test/box:1", "sleep"]].concat()).unwrap();
    let with_data = format!("{:#}", third.ctl(&["leave", "--yes"]).unwrap_err());
    assert!(with_data.contains("the data of data is on n3 alone") && with_data.contains("--force"), "{with_data}");
    assert_eq!(running(first, "web"), ["n1", "n1", "n2", "n2", "n3", "n3"], "nothing was begun");
    first.ctl(&["service", "rm", "data", "--yes"]).unwrap();
    let removed = || first.ctl(&["volume", "rm", "data", "--yes"]).is_ok();
    wait_until("the data to go", PATIENCE, removed).unwrap();
    wait_until("the volume to be gone", PATIENCE, || first.person().list("volume").is_ok_and(|all| all.is_empty()))
        .unwrap();

    third.ctl(&["leave", "--yes"]).unwrap();
    assert_eq!(running(first, "web"), ["n1", "n1", "n1", "n2", "n2", "n2"], "before it went");
    assert_eq!(first.person().list("node").unwrap().len(), 2);
    assert_eq!(third.groups().len(), 0, "nothing runs there");
    let token = first.ctl(&["token", "create", "-q"]).unwrap();
    third.ctl(&["join", "10.99.0.1", token.trim()]).unwrap();
    wait_until("n3 to be ready again", PATIENCE, || state_of(first, "n3") == "Ready").unwrap();
    third.load("test").unwrap();
    first.ctl(&["scale", "web=9"]).unwrap();
    let thrice = ["n1", "n1", "n1", "n2", "n2", "n2", "n3", "n3", "n3"];
    assert_eq!(running(first, "web"), thrice);

    // At once: what ran there runs elsewhere afterwards.
    let second = lab.machine(2).unwrap();
    second.ctl(&["leave", "--yes", "--force"]).unwrap();
    wait_until("nine to run on two machines", PATIENCE, || {
        let nodes = running(first, "web");
        nodes.len() == 9 && !nodes.contains(&"n2".to_owned())
    })
    .unwrap();
    // One that was taken out meanwhile goes as well.
    first.ctl(&["node", "rm", "n3", "--yes", "--force"]).unwrap();
    third.ctl(&["leave", "--yes"]).unwrap();
    assert_eq!(third.groups().len(), 0);
    assert_eq!(first.person().list("node").unwrap().len(), 1);
}

#[test]
fn a_manager_leaves_and_nothing_of_it_stays() {
    let lab = Lab::start("resigns", 2).unwrap();
    let (first, second) = (lab.machine(1).unwrap(), lab.machine(2).unwrap());
    let before = inventory(second).unwrap();
    first.ctl(&["init"]).unwrap();
    let token = first.ctl(&["token", "create", "--role", "manager", "-q"]).unwrap();
    second.ctl(&["join", "10.99.0.1", token.trim()]).unwrap();
    wait_until("n2 to be ready", PATIENCE, || state_of(second, "n2") == "Ready").unwrap();
    second.ctl(&["leave", "--yes"]).unwrap();
    assert_eq!(first.person().list("node").unwrap().len(), 1);
    first.ctl(&["network", "create", "alone"]).unwrap();
    let mut left = Vec::new();
    let gone = wait_until("nothing to be left on n2", PATIENCE, || {
        left = difference(&before, &inventory(second).unwrap_or_default());
        left.is_empty()
    });
    assert!(gone.is_ok(), "{left:#?}");
}
