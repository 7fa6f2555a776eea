//! The controllers that run beside the store, simulated: each with a workload of its own, in hundreds of schedules with
//! crashes, lost answers, late commits, stale views, broken streams and jumping clocks. `cast` plays the machines and the
//! cascade, `promises` says what must hold at every commit and in the end.
//!
//! Every suite runs in schedules that have at least twenty reconciles and a fault; a fault kind that could strike and
//! never did fails the suite.

mod authority;
mod bundle;
mod cast;
mod endpoints;
mod history;
mod managers;
mod network;
mod node;
mod promises;
mod removed;
mod scheduler;
mod service;
mod whole;

use reconciler::sim::{Scene, check};

const SCHEDULES: usize = 500;

/// So many of each suite; `make night` says more.
fn schedules() -> usize {
    std::env::var("SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(SCHEDULES)
}

/// Runs a suite and prints what it has shown. `contents` is how many different contents of the store it must have
/// reached: fewer would mean that the schedules are all alike.
fn suite(name: &str, contents: usize, build: impl Fn(Scene) -> Scene) {
    let report = check(name, build).schedules(schedules());
    println!("{report}");
    assert!(report.schedules >= schedules() && report.contents >= contents, "{report}");
}
