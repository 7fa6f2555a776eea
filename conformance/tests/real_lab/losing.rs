use conformance::lab::Lab;
use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;

use crate::{contained, running, state_of};

#[test]
fn what_ran_on_a_machine_without_power_runs_elsewhere_and_not_twice_when_it_is_back() {
    let mut lab = Lab::start("lose", 3).unwrap();
    lab.form().unwrap();
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    let first = lab.machine(1).unwrap();
    first.ctl(&["service", "create", "--name", "web", "--replicas", "6", "test/box:1", "sleep"]).unwrap();
    assert_eq!(running(first, "web"), ["n1", "n1", "n2", "n2", "n3", "n3"]);

    lab.power_off(3).unwrap();
    let first = lab.machine(1).unwrap();
    wait_until("six to run on two machines", PATIENCE, || {
        running(first, "web") == ["n1", "n1", "n1", "n2", "n2", "n2"]
    })
    .unwrap();
    assert_eq!(state_of(first, "n3"), "Lost");
    lab.power_on(3).unwrap();
    let first = lab.machine(1).unwrap();
    wait_until("n3 to be ready again", PATIENCE, || state_of(first, "n3") == "Ready").unwrap();
    wait_until("the old tasks of n3 to have ended", PATIENCE, || {
        let tasks = first.person().list("task").unwrap_or_default();
        tasks.iter().filter(|task| task["spec"]["nodeName"] == "n3").all(|task| {
            let state = task["status"]["state"].as_str().unwrap_or_default();
            ["Complete", "Failed", "Rejected", "Orphaned"].contains(&state)
        })
    })
    .unwrap();
    assert_eq!(running(first, "web"), ["n1", "n1", "n1", "n2", "n2", "n2"], "nothing moves back by itself");
}

#[test]
fn a_machine_that_is_cut_off_for_a_moment_keeps_what_it_has() {
    let lab = Lab::start("cut", 2).unwrap();
    lab.form().unwrap();
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    let first = lab.machine(1).unwrap();
    // No other machine can take it, so that it is waited for.
    let only = ["service", "create", "--name", "web", "--constraint", "node.hostname==n2", "test/box:1", "sleep"];
    first.ctl(&only).unwrap();
    let uid = |name: &str| {
        let tasks = first.person().list("task").unwrap();
        let is_it = |task: &&serde_json::Value| {
            let spec = &task["spec"];
            spec["service"] == name && spec["nodeName"] == "n2" && spec["desired"] != "Stopped"
        };
        let found = tasks.iter().find(is_it);
        found.map(|task| task["metadata"]["uid"].as_str().unwrap().to_owned())
    };
    let before = uid("web");
    assert!(before.is_some());
    lab.connect(2, false).unwrap();
    wait_until("n2 to be lost", PATIENCE, || state_of(first, "n2") == "Lost").unwrap();
    lab.connect(2, true).unwrap();
    wait_until("n2 to be ready again", PATIENCE, || state_of(first, "n2") == "Ready").unwrap();
    wait_until("web to run on n2", PATIENCE, || running(first, "web") == ["n2"]).unwrap();
    assert_eq!(uid("web"), before, "the same task");
}

/// Nobody says goodbye: connections that only listen must notice by themselves.
#[test]
fn a_worker_hears_its_manager_again_after_the_manager_lost_power_and_after_a_long_cut() {
    let mut lab = Lab::start("deaf", 2).unwrap();
    lab.form().unwrap();
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    let create = ["service", "create", "--name", "web", "--constraint", "node.hostname==n2", "test/box:1", "sleep"];
    lab.machine(1).unwrap().ctl(&create).unwrap();
    let containers = contained(lab.machines(), 1);
    lab.power_off(1).unwrap();
    let second = lab.machine(2).unwrap();
    assert_eq!(contained([second], 1), containers, "what runs runs on");
    lab.power_on(1).unwrap();
    let grows = |lab: &Lab, replicas: usize| {
        let first = lab.machine(1).unwrap();
        wait_until("n2 to be ready", PATIENCE, || state_of(first, "n2") == "Ready").unwrap();
        first.ctl(&["scale", &format!("web={replicas}")]).unwrap();
        wait_until("web to grow on n2", PATIENCE, || running(first, "web") == vec!["n2"; replicas]).unwrap();
    };
    let first = lab.machine(1).unwrap();
    wait_until("applyd to answer", PATIENCE, || first.person().has_cluster().unwrap_or(false)).unwrap();
    grows(&lab, 2);
    // Longer than any connection lives without an answer.
    lab.connect(2, false).unwrap();
    let first = lab.machine(1).unwrap();
    wait_until("n2 to be lost", PATIENCE, || state_of(first, "n2") == "Lost").unwrap();
    let open = || second_connections(&lab);
    wait_until("the connections of n2 to be given up", PATIENCE, || open() == 0).unwrap();
    lab.connect(2, true).unwrap();
    grows(&lab, 3);
}

/// Established connections of the manager's port with n2, as the manager's kernel has them.
fn second_connections(lab: &Lab) -> usize {
    let first = lab.machine(1).unwrap();
    let output = first.inside("ss").args(["-Htn", "state", "established", "dst", "10.99.0.2"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().count()
}

#[test]
fn a_machine_that_was_removed_is_no_member_and_nothing_waits_for_it() {
    let mut lab = Lab::start("gone", 3).unwrap();
    lab.form().unwrap();
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    let first = lab.machine(1).unwrap();
    first.ctl(&["service", "create", "--name", "web", "--replicas", "6", "test/box:1", "sleep"]).unwrap();
    // Its data is on n3.
    let stays = ["service", "create", "--name", "data", "--constraint", "node.hostname==n3", "--mount"];
    first.ctl(&[&stays[..], &["type=volume,source=data,target=/data", "test/box:1", "sleep"]].concat()).unwrap();
    assert_eq!((running(first, "web").len(), running(first, "data")), (6, vec!["n3".to_owned()]));
    let early = format!("{:#}", first.ctl(&["node", "rm", "n3", "--yes"]).unwrap_err());
    assert!(early.contains("still heard of") && early.contains("--force"), "{early}");
    let manager = format!("{:#}", first.ctl(&["node", "rm", "n1", "--yes", "--force"]).unwrap_err());
    assert!(manager.contains("n1 is a manager") && manager.contains("node demote n1"), "{manager}");

    lab.power_off(3).unwrap();
    let first = lab.machine(1).unwrap();
    wait_until("n3 to be lost", PATIENCE, || state_of(first, "n3") == "Lost").unwrap();
    first.ctl(&["node", "rm", "n3", "--yes"]).unwrap();
    let six = ["n1", "n1", "n1", "n2", "n2", "n2"];
    wait_until("six to run on two machines", PATIENCE, || running(first, "web") == six).unwrap();
    first.ctl(&["service", "rm", "web", "data", "--yes"]).unwrap();
    first.ctl(&["volume", "rm", "data", "--yes"]).unwrap();
    let left = || first.person().list("task").unwrap_or_default().len() + first.person().list("volume").unwrap().len();
    wait_until("nothing to be left of either", PATIENCE, || left() == 0).unwrap();

    // It does not know yet, and is told.
    lab.power_on(3).unwrap();
    let (first, third) = (lab.machine(1).unwrap(), lab.machine(3).unwrap());
    let told = || third.log_end("applyd").contains("this machine was removed from the cluster");
    wait_until("n3 to be told that it was removed", PATIENCE, told).unwrap();
    assert_eq!(first.person().list("node").unwrap().len(), 2);
    // And while it runs: what it hears ends at once.
    first.ctl(&["node", "rm", "n2", "--yes", "--force"]).unwrap();
    let second = lab.machine(2).unwrap();
    let told = || second.log_end("applyd").contains("this machine was removed from the cluster");
    wait_until("n2 to be told that it was removed", PATIENCE, told).unwrap();
}

#[test]
fn a_task_stays_with_its_data_and_waits_for_it_rather_than_run_without() {
    let mut lab = Lab::start("data", 2).unwrap();
    lab.form().unwrap();
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    let first = lab.machine(1).unwrap();
    // So that the other machine is the emptier one, for each that comes.
    first
        .ctl(&["service", "create", "--name", "web", "--constraint", "node.hostname==n1", "test/box:1", "sleep"])
        .unwrap();
    let mount = ["--mount", "type=volume,source=data,target=/data"];
    first.ctl(&[&["service", "create", "--name", "db"], &mount[..], &["test/box:1", "sleep"]].concat()).unwrap();
    assert_eq!(running(first, "db"), ["n2"]);
    first.ctl(&["service", "scale", "web=4"]).unwrap();
    first.ctl(&["service", "create", "--name", "more", "--replicas", "2", "test/box:1", "sleep"]).unwrap();
    first.ctl(&["service", "rm", "web", "--yes"]).unwrap();
    first.ctl(&["service", "update", "db", "--image", "test/box:2"]).unwrap();
    assert_eq!(running(first, "db"), ["n2"], "its data is there");

    lab.power_off(2).unwrap();
    let first = lab.machine(1).unwrap();
    let says_why = |first: &Machine| {
        let tasks = first.person().list("task").unwrap_or_default();
        let wanted = tasks.iter().filter(|task| task["spec"]["desired"] != "Stopped");
        let said = |task: &serde_json::Value| task["status"]["message"].as_str().unwrap_or_default().to_owned();
        wanted.map(said).any(|said| said.contains("the data of volume data is on n2, not on n1"))
    };
    wait_until("it to say that it waits for its data", PATIENCE, || says_why(first)).unwrap();
    assert_eq!(running(first, "db"), ["n2"], "nobody runs it elsewhere, and for all that is known it runs there");
    lab.power_on(2).unwrap();
    let first = lab.machine(1).unwrap();
    wait_until("n2 to be ready again", PATIENCE, || state_of(first, "n2") == "Ready").unwrap();
    wait_until("it to run where its data is", PATIENCE, || running(first, "db") == ["n2"] && !says_why(first)).unwrap();
}
