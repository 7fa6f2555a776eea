//! A load at a fixed rate on every machine's port, while everything is done to the cluster that is done in its life.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use conformance::lab::Lab;
use conformance::load::{Report, at_rate};
use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;

use crate::encrypted::{speaks_with, status};
use crate::reaching::{address, lab, serve_checked};
use crate::{contained, running, state_of};

/// Over all machines.
const PER_SECOND: u32 = 150;
/// At least; `make night` says more.
const REQUESTS: u64 = 6_000;

/// Port 8080 of each machine, while `work` is done, which may look how many requests were begun.
fn steadily(lab: &Lab, work: impl FnOnce(&AtomicU64)) -> Report {
    /// Also when the work panics: whoever waits for the requests would wait for ever.
    struct Enough<'a>(&'a AtomicBool);
    impl Drop for Enough<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (enough, begun) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let targets = [1, 2, 3].map(|machine| address(machine, 8080));
        let (enough, begun) = (&enough, &begun);
        let asking =
            scope.spawn(move || lab.outside(|| at_rate(&targets, PER_SECOND, enough, begun)).unwrap().unwrap());
        {
            let _enough = Enough(enough);
            work(begun);
        }
        asking.join().unwrap()
    })
}

/// applyd of a machine begins again, once it was told to end, or killed; from this program.
pub(crate) fn begins_again(lab: &Lab, number: u8, how: rustix::process::Signal, program: Option<&Path>) {
    let machine = lab.machine(number).unwrap();
    machine.end(Part::Applyd, how).unwrap();
    machine.begin_applyd_of(program).unwrap();
    let (other, node) = (lab.machine(if number == 1 { 2 } else { 1 }).unwrap(), format!("n{number}"));
    let manager = if number == 1 { machine } else { other };
    wait_until(&format!("{node} to be ready"), PATIENCE, || {
        machine.person().has_cluster().unwrap_or(false) && state_of(manager, &node) == "Ready"
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", machine.log_end("applyd")));
}

/// The next build takes over on each machine, companion and all.
fn upgraded(lab: &Lab, program: &Path) {
    for number in 1..=3 {
        let machine = lab.machine(number).unwrap();
        let before = status(machine);
        begins_again(lab, number, rustix::process::Signal::TERM, Some(program));
        let has_taken_over = || {
            let now = status(machine);
            now["pid"] != before["pid"] && now["build"] != before["build"] && speaks_with(machine) == 2
        };
        wait_until("the next companion to speak with both others", PATIENCE, has_taken_over)
            .unwrap_or_else(|error| panic!("{error:#}: {} {}", status(machine), machine.log_end("applyd")));
    }
}

/// Another build, for all that tells them apart.
fn next_build(first: &Machine) -> PathBuf {
    let (own, next) = (conformance::parts::installation::program("applyd").unwrap(), first.folder().join("applyd"));
    std::fs::copy(own, &next).unwrap();
    next
}

#[test]
fn a_steady_load_is_answered_through_all_that_is_done_to_a_cluster() {
    use rustix::process::Signal;
    let lab = lab("steady");
    let first = lab.machine(1).unwrap();
    serve_checked(&lab, 6, "start-first");
    let next = next_build(first);
    let wanted = std::env::var("REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(REQUESTS);
    let mut rounds = 0;
    let begun = Instant::now();
    let report = steadily(&lab, |requests| {
        while requests.load(Ordering::Relaxed) < wanted {
            first.ctl(&["scale", "web=3"]).unwrap();
            first.ctl(&["scale", "web=7"]).unwrap();
            first.ctl(&["node", "drain", "n3"]).unwrap();
            wait_until("n3 to be empty", PATIENCE, || !running(first, "web").contains(&"n3".to_owned())).unwrap();
            first.ctl(&["node", "activate", "n3"]).unwrap();
            first.ctl(&["service", "rebalance", "web"]).unwrap();
            let before = contained(lab.machines(), 7);
            for number in 1..=3 {
                begins_again(&lab, number, Signal::TERM, None);
                begins_again(&lab, number, Signal::KILL, None);
            }
            upgraded(&lab, &next);
            assert_eq!(contained(lab.machines(), 7), before, "no container was stopped or started");
            // And back: that is the next one again.
            upgraded(&lab, &conformance::parts::installation::program("applyd").unwrap());
            rounds += 1;
        }
    });
    println!("{rounds} rounds in {:?}: {report}", begun.elapsed());
    let failed: Vec<String> = report.failed.iter().map(|(_, at, why)| format!("{at}: {why}")).collect();
    assert!(failed.is_empty() && report.requests >= wanted, "{report}: {:?}", &failed[..failed.len().min(10)]);
}
