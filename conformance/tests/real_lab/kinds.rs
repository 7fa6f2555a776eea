//! Kinds of other authors where there are several managers.

use std::fs;

use conformance::lab::Lab;
use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;
use serde_json::{Value, json};

use crate::state_of;

fn definition(most: u32) -> Value {
    json!({
        "apiVersion": "apply/v1", "kind": "ResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "version": "v1", "kind": "Widget", "plural": "widgets",
            "schema": {"properties": {"spec": {"type": "object", "properties": {
                "size": {"type": "integer", "maximum": most, "default": 1},
            }}}},
        },
    })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

fn apply(machine: &Machine, object: &Value) -> anyhow::Result<String> {
    let path = machine.folder().join("object.json");
    fs::write(&path, object.to_string())?;
    machine.ctl(&["apply", "-f", &path.to_string_lossy()])
}

#[test]
fn every_manager_serves_a_kind_and_its_newest_rules_and_any_may_be_lost() {
    let mut lab = Lab::start("kinds", 3).unwrap();
    let first = lab.machine(1).unwrap();
    first.ctl(&["init"]).unwrap();
    let token = first.ctl(&["token", "create", "--role", "manager", "-q"]).unwrap();
    for number in [2, 3] {
        lab.machine(number).unwrap().ctl(&["join", "10.99.0.1", token.trim()]).unwrap();
    }
    for machine in lab.machines() {
        wait_until("all to be ready", PATIENCE, || {
            ["n1", "n2", "n3"].iter().all(|node| state_of(machine, node) == "Ready")
        })
        .unwrap();
    }
    let machines = || lab.machines().iter();
    // With its acknowledgement where it was asked for, a moment later on the others.
    apply(lab.machine(2).unwrap(), &definition(5)).unwrap();
    apply(lab.machine(2).unwrap(), &widget("a", json!({}))).unwrap();
    for machine in machines() {
        wait_until("all to serve it", PATIENCE, || {
            machine.json(&["get", "widget/a"]).is_ok_and(|found| found["spec"]["size"] == 1)
        })
        .unwrap();
    }
    // Other rules hold everywhere too.
    apply(lab.machine(3).unwrap(), &definition(9)).unwrap();
    for (number, machine) in machines().enumerate() {
        wait_until("all to have heard of it", PATIENCE, || {
            apply(machine, &widget(&format!("b{number}"), json!({"size": 8}))).is_ok()
        })
        .unwrap();
        let refused = apply(machine, &widget("c", json!({"size": 10}))).unwrap_err().to_string();
        assert!(refused.contains("spec.size: 10 is more than 9"), "{refused}");
        let kept =
            machine.ctl(&["delete", "resourcedefinition", "widgets.example.com", "--yes"]).unwrap_err().to_string();
        assert!(kept.contains("4 objects of its kind exist") || number < 2, "{kept}");
    }
    lab.power_off(1).unwrap();
    let survivor = lab.machine(2).unwrap();
    wait_until("a write to be taken", PATIENCE, || apply(survivor, &widget("d", json!({}))).is_ok()).unwrap();
    // Gone everywhere, and back where power comes again to what had not heard of it.
    survivor.ctl(&["delete", "widgets", "--all", "--yes"]).unwrap();
    survivor.ctl(&["delete", "resourcedefinition", "widgets.example.com", "--yes"]).unwrap();
    let other = lab.machine(3).unwrap();
    wait_until("the other to serve it no more", PATIENCE, || other.ctl(&["get", "widgets"]).is_err()).unwrap();
    lab.power_on(1).unwrap();
    let first = lab.machine(1).unwrap();
    wait_until("the first to be back", PATIENCE, || first.ctl(&["get", "nodes"]).is_ok()).unwrap();
    wait_until("it to serve it no more", PATIENCE, || {
        first.ctl(&["get", "widgets"]).is_err_and(|why| why.to_string().contains("not a kind"))
    })
    .unwrap();
}
