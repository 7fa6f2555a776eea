//! The power goes and comes back.

use std::time::Instant;

use conformance::images::workspace;
use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;
use serde_json::Value;

const VOTE: &str = "http://127.0.0.1:5000/";
const RESULT: &str = "http://127.0.0.1:5001/api/result";

fn counts(machine: &Machine) -> Option<(u64, u64)> {
    let result: Value = serde_json::from_str(&machine.fetch(&[RESULT]).ok()?).ok()?;
    Some((result["a"].as_u64()?, result["b"].as_u64()?))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the time is reported")]
fn after_a_power_cut_the_application_is_back_with_its_votes() {
    let mut machine = Machine::start("reboot").unwrap();
    machine.load("voting-app").unwrap();
    let example = workspace().join("examples/voting-app");
    let (file, with) = (example.join("voting-app.dab"), example.join("voting-app.yaml"));
    let words = ["deploy", "voting-app", &file.to_string_lossy(), "--with", &with.to_string_lossy()];
    machine.ctl(&words).unwrap();
    for vote in ["vote=a", "vote=a", "vote=b"] {
        let cast = || machine.fetch(&["-o", "/dev/null", "-d", vote, VOTE]).is_ok();
        wait_until("a vote to be taken", PATIENCE, cast).unwrap();
    }
    wait_until("the votes to be counted", PATIENCE, || counts(&machine) == Some((2, 1))).unwrap();

    machine.power_cut().unwrap();
    let cut = Instant::now();
    machine.boot().unwrap();
    machine.start_containerd().unwrap();
    machine.begin_applyd().unwrap();
    // Not a word to applyd: the application answers by itself.
    wait_until("the votes to be shown again", PATIENCE, || counts(&machine) == Some((2, 1))).unwrap();
    println!("the votes are shown {:.1} s after the power came back", cut.elapsed().as_secs_f64());
    wait_until("a vote to be taken again", PATIENCE, || {
        machine.fetch(&["-o", "/dev/null", "-d", "vote=b", VOTE]).is_ok()
    })
    .unwrap();
    wait_until("it to be counted", PATIENCE, || counts(&machine) == Some((2, 2))).unwrap();
}
