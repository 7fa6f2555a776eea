//! The controllers that run on every machine, simulated: each with a workload of its own, in hundreds of schedules, with
//! everything that can happen to applyd (crashes, lost answers, late commits, stale views, jumping clocks) and to the
//! machine around it (requests done late or never, containerd killed, power cut, others at the same things).
//!
//! `machine` is the simulated machine: containerd with its records, layers, tasks, images and leases, and what stands
//! around containers. `cast` has the processes and what users do; `promises` says what must hold at every step and in
//! the end.
//!
//! Every suite runs in schedules that have at least twenty reconciles and a fault; a kind of fault that could strike and
//! never did fails the suite, those of the machine included.

mod cast;
mod facts;
mod keep;
mod kernel;
mod keys;
mod machine;
mod mesh;
mod power;
mod promises;
mod tally;
mod tasks;
mod volumes;

use controllers::node::tasks::planted::Planted;
use reconciler::sim::{Scene, check};
use tally::{Happened, Tally};

const SCHEDULES: usize = 500;

/// So many of each suite; `make night` says more.
fn schedules() -> usize {
    std::env::var("SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(SCHEDULES)
}

/// Runs a suite and prints what it has shown. `contents` and `states` are how many different contents of the store, and
/// states of the machine, it must have reached: fewer would mean that the schedules are all alike.
fn suite(name: &str, contents: usize, states: usize, must: &[Happened], build: impl Fn(Scene, &Tally) -> Scene) {
    let tally = Tally::default();
    let report = check(name, |scene| build(scene, &tally)).schedules(schedules());
    let machine = tally.report();
    println!("{report}{machine}");
    assert!(report.schedules >= schedules() && report.contents >= contents, "{report}");
    assert!(tally.states() >= states, "the machine was in {} different states, of at least {states}", tally.states());
    let never: Vec<_> = must.iter().filter(|kind| tally.of(**kind) == 0).collect();
    assert!(never.is_empty(), "{never:?} never happened to the machine\n{machine}");
}

/// A bug that is planted in the tasks controller is found and told within 5,000 schedules, all of which it passes without.
fn found(scene: fn(Scene, &Tally, &'static [Planted]) -> Scene, planted: &'static [Planted], promise: &str) {
    let tally = Tally::default();
    let wrong = check("with a bug", |fresh| scene(fresh, &tally, planted));
    let failure = wrong.beside(|fresh| scene(fresh, &tally, &[])).search(5000).expect_err("the bug is found");
    println!("{failure}");
    assert_eq!(failure.broken.promise, promise, "{failure}");
}
