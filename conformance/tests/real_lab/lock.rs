//! Managers whose key is locked by a passphrase.

use std::io::Write;
use std::process::Stdio;

use conformance::lab::Lab;
use conformance::parts::installation::program;
use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;

use crate::reaching::task_on;
use crate::{running, state_of};

/// Types something on a machine; its exit code, and what it says.
fn typed(machine: &Machine, words: &[&str], input: &str) -> (Option<i32>, String) {
    let mut command = machine.inside(&program("applyctl").unwrap().to_string_lossy());
    command.env("APPLY_HOST", format!("unix://{}", machine.installation().socket().display()));
    let mut child =
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn a_locked_manager_asks_for_its_passphrase_after_a_boot_and_not_before() {
    let mut lab = Lab::start("lock", 2).unwrap();
    let first = lab.machine(1).unwrap();
    let (code, said) = typed(first, &["init", "--lock", "--passphrase-stdin"], "short\n");
    assert!(code == Some(2) && said.contains("at least 8 characters"), "{said}");
    let (code, said) = typed(first, &["init", "--lock", "--passphrase-stdin"], "correct horse\n");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = typed(first, &["secret", "create", "word", "-"], "swordfish");
    assert_eq!(code, Some(0), "{said}");
    let token = first.ctl(&["token", "create", "--role", "manager", "-q"]).unwrap();
    lab.machine(2).unwrap().ctl(&["join", "10.99.0.1", token.trim()]).unwrap();
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    first
        .ctl(&["service", "create", "--name", "web", "--replicas", "2", "--secret", "word", "test/box:1", "sleep"])
        .unwrap();
    wait_until("both to run", PATIENCE, || running(first, "web") == ["n1", "n2"]).unwrap();

    // Nothing on a disk opens what is sealed.
    for machine in lab.machines() {
        let key = std::fs::read_to_string(machine.folder().join("apply/key")).unwrap();
        assert!(key.contains("apply-locked-key-1"), "{key}");
    }
    // applyd begins again without anybody.
    first.kill(Part::Applyd).unwrap();
    first.start_applyd().unwrap();
    // After a boot it does not.
    lab.power_off(1).unwrap();
    lab.power_off(2).unwrap();
    lab.power_on(1).unwrap();
    lab.power_on(2).unwrap();
    for number in [1, 2] {
        let machine = lab.machine(number).unwrap();
        let mut said = String::new();
        wait_until("it to say that it is locked", PATIENCE, || {
            said = typed(machine, &["get", "nodes"], "").1;
            said.contains("this manager is locked: applyctl unlock")
        })
        .unwrap_or_else(|error| panic!("{error:#}: {said}"));
        let (code, said) = typed(machine, &["unlock", "--passphrase-stdin"], "correct house\n");
        assert!(code == Some(8) && said.contains("that is not the passphrase"), "{code:?} {said}");
        let (code, said) = typed(machine, &["unlock", "--passphrase-stdin"], "correct horse\n");
        assert_eq!(code, Some(0), "{said}");
    }
    let first = lab.machine(1).unwrap();
    for node in ["n1", "n2"] {
        wait_until(&format!("{node} to be ready"), PATIENCE, || state_of(first, node) == "Ready").unwrap();
    }
    // What is known of before the boot is that they ran.
    let sees = |task: &str| {
        let seen = first.ctl(&["exec", task, "/testbox", "cat", "/run/secrets/word"]);
        seen.is_ok_and(|seen| seen.trim() == "swordfish")
    };
    wait_until("both to run again with their secret", PATIENCE, || {
        running(first, "web") == ["n1", "n2"] && ["n1", "n2"].iter().all(|node| sees(&task_on(first, "web", node).0))
    })
    .unwrap();
    assert_eq!(typed(first, &["unlock"], "").1.trim(), "this machine is not locked");
}
