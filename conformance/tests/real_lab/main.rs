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

use conformance::parts::machine::Machine;

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

/// The lines of a manager's audit log: `writes` or `refusals`.
fn audited(manager: &Machine, of: &str) -> Vec<serde_json::Value> {
    let path = manager.folder().join(format!("apply/audit/{of}.jsonl"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last one may be on its way.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
