//! Several machines: how they become a cluster, how they reach each other's tasks, and what happens when one is lost.
#![allow(clippy::disallowed_methods, reason = "tests of the real world wait in real time")]

mod alone;
mod busy;
mod ca;
mod encrypted;
mod evening;
mod faults;
mod joining;
mod kinds;
mod leaving;
mod load;
mod lock;
mod losing;
mod managers;
mod people;
mod reaching;
mod secrets;
mod steady;
mod upgrade;

use std::collections::BTreeSet;

use conformance::observer::alive;
use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;

/// What a Node says of itself, as its manager tells it.
fn state_of(manager: &Machine, node: &str) -> String {
    let found = manager.json(&["get", "node", node]).unwrap_or_default();
    let found = found["items"].get(0).cloned().unwrap_or(found);
    found["status"]["state"].as_str().unwrap_or_default().to_owned()
}

/// The nodes of a service's tasks that run.
fn running(manager: &Machine, service: &str) -> Vec<String> {
    manager.person().nodes_of(service).unwrap_or_default()
}

/// The containers of these machines, which are so many, or will be in a moment: each by its name and its first process.
#[track_caller]
fn contained<'a>(machines: impl IntoIterator<Item = &'a Machine>, count: usize) -> BTreeSet<(String, u32)> {
    let machines: Vec<&Machine> = machines.into_iter().collect();
    let look = || -> BTreeSet<(String, u32)> {
        let groups = machines.iter().filter_map(|machine| machine.groups().into_iter().next());
        groups
            .flat_map(|group| alive(&group).containers().map(|one| (one.name.clone(), one.pid)).collect::<Vec<_>>())
            .collect()
    };
    wait_until(&format!("{count} containers"), PATIENCE, || look().len() == count)
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", look()));
    look()
}

/// The lines of a manager's audit log: `writes` or `refusals`.
fn audited(manager: &Machine, of: &str) -> Vec<serde_json::Value> {
    let path = manager.folder().join(format!("apply/audit/{of}.jsonl"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last one may be on its way.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
