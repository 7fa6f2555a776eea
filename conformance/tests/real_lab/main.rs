//! Several machines: how they become a cluster, how they reach each other's tasks, and what happens when one is lost.
#![allow(clippy::disallowed_methods, reason = "tests of the real world wait in real time")]

mod faults;
mod joining;
mod losing;
mod managers;
mod reaching;

use conformance::parts::machine::Machine;
use serde_json::Value;

/// What a Node says of itself, as its manager tells it.
fn state_of(manager: &Machine, node: &str) -> String {
    let found = manager.json(&["get", "node", node]).unwrap_or_default();
    let found = found["items"].get(0).cloned().unwrap_or(found);
    found["status"]["state"].as_str().unwrap_or_default().to_owned()
}

/// Tasks of a service that are said to run, and shall: their nodes, in order.
fn running(manager: &Machine, service: &str) -> Vec<String> {
    let tasks = manager.person().list("task").unwrap_or_default();
    let runs = |task: &&Value| {
        task["spec"]["service"] == service
            && task["spec"]["desired"] != "Stopped"
            && task["status"]["state"] == "Running"
    };
    let mut nodes: Vec<String> = tasks
        .iter()
        .filter(runs)
        .map(|task| task["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
        .collect();
    nodes.sort();
    nodes
}
