//! What a machine does when its parts are killed, and when its power is cut. Needs root.

use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;

#[test]
fn a_machine_starts_is_cut_off_and_starts_again() {
    let mut machine = Machine::start("power").unwrap();
    machine.load("test").unwrap();
    machine.ctl(&["service", "create", "--replicas", "2", "--name", "web", "test/box:1"]).unwrap();
    let running = |machine: &Machine| {
        let tasks = machine.person().list("task").unwrap_or_default();
        tasks.iter().filter(|task| task["status"]["state"] == "Running").count()
    };
    wait_until("two tasks to run", PATIENCE, || running(&machine) == 2).unwrap();
    for part in [Part::Keep, Part::Applyd, Part::Containerd] {
        assert!(machine.kill(part).unwrap(), "{part:?} does not run");
    }
    machine.power_cut().unwrap();
    assert_eq!(machine.groups(), Vec::<std::path::PathBuf>::new());
    machine.boot().unwrap();
    machine.start_containerd().unwrap();
    machine.start_applyd().unwrap();
    wait_until("two tasks to run again", PATIENCE, || running(&machine) == 2).unwrap();
}
