//! What is asked of every write before it happens, by whatever way it comes.
//!
//! Who changed a Bundle or a Service, and why, is noted on the object in the commit that changes its spec, so that the history
//! kept in Revisions can tell; nobody notes it in another's name. The one Cluster object stays, and so do the Nodes of managers.

use reconciler::api::Fault;
use reconciler::objects::{Admission, Committed, Error, Refusal, Write, Writer};
use reconciler::{Kind, Resource};
use schemas::kinds::labels::{AUTHOR, MESSAGE};
use schemas::kinds::task::NODE_FINALIZER;
use schemas::kinds::{Bundle, Cluster, Node, Service, Task, Volume};
use serde_json::{Value, json};

/// A line or two; it is stored with each use of a revision.
const MESSAGE_BYTES_MAX: usize = 1000;

/// The admission of applyd's objects.
#[derive(Debug)]
pub struct Admit;

impl Admission for Admit {
    fn review(
        &self,
        writer: &Writer,
        kind: &Kind,
        current: Option<&Value>,
        desired: Option<&mut Value>,
    ) -> Result<(), Refusal> {
        if writer.message.len() > MESSAGE_BYTES_MAX {
            let fault = Fault::new("message", format!("longer than {MESSAGE_BYTES_MAX} bytes"));
            return Err(Refusal::Invalid(vec![fault]));
        }
        if is_deleted(desired.as_deref())
            && let Some(why) = current.and_then(|current| stays(kind, current))
        {
            return Err(Refusal::Forbidden(why.to_owned()));
        }
        if writer.identity.starts_with("node:")
            && let Some(current) = current
            && !is_a_machines(kind, current, desired.as_deref())
        {
            return Err(Refusal::Forbidden("a machine changes the status, and takes its own finalizer off".to_owned()));
        }
        if let Some(desired) = desired.filter(|_| [Bundle::kind(), Service::kind()].contains(&kind)) {
            note_author(writer, current, desired);
        }
        Ok(())
    }

    fn record(&self, _: &Writer, _: &[Write], _: Result<&Committed, &Error>) {}
}

/// Whether a machine may make that of it. Which objects are its own was asked before.
fn is_a_machines(kind: &Kind, current: &Value, desired: Option<&Value>) -> bool {
    if kind == Node::kind() {
        // Others decide where it is in the overlay, and whether it is to be relied on.
        let others = |object: &Value| {
            let status = &object["status"];
            (status["overlayAddress"].clone(), status["state"].as_str().unwrap_or("Unknown").to_owned())
        };
        return desired.is_some_and(|desired| others(current) == others(desired));
    }
    if ![Task::kind(), Volume::kind()].contains(&kind) {
        return true;
    }
    match desired {
        Some(desired) => only_lets_go(current, desired),
        // It goes with the last finalizer.
        None => finalizers(current).is_empty(),
    }
}

/// But for the node's.
fn finalizers(object: &Value) -> Vec<&Value> {
    let all = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    all.filter(|name| *name != NODE_FINALIZER).collect()
}

/// Whether nothing differs but the status, and the node's finalizer, which may be gone.
fn only_lets_go(current: &Value, desired: &Value) -> bool {
    let count = |object: &Value| object["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
    let same = |field: &str| current["metadata"][field] == desired["metadata"][field];
    current["spec"] == desired["spec"]
        && ["labels", "annotations", "ownerReferences", "deletionTimestamp"].into_iter().all(same)
        && finalizers(current) == finalizers(desired)
        && count(desired) <= count(current)
}

/// Why it cannot be deleted.
fn stays(kind: &Kind, current: &Value) -> Option<&'static str> {
    if kind == Cluster::kind() {
        return Some("it says what holds for all machines, and stays as long as they do");
    }
    let manages = kind == Node::kind() && current["spec"]["role"] == "manager";
    manages.then_some("it is a manager: without it nobody would hold the store")
}

/// Gone, or marked to go once its finalizers are done.
fn is_deleted(desired: Option<&Value>) -> bool {
    desired.is_none_or(|desired| !desired["metadata"]["deletionTimestamp"].is_null())
}

fn note_author(writer: &Writer, current: Option<&Value>, desired: &mut Value) {
    // A controller passes on what it was told.
    if writer.identity.starts_with("controller:") {
        return;
    }
    let is_change = current.is_none_or(|current| current["spec"] != desired["spec"]);
    let noted = |key: &str| match (is_change, key) {
        (true, AUTHOR) => json!(writer.identity),
        (true, _) if writer.message.is_empty() => Value::Null,
        (true, _) => json!(writer.message),
        (false, key) => current.map(|current| current["metadata"]["annotations"][key].clone()).unwrap_or_default(),
    };
    for key in [AUTHOR, MESSAGE] {
        let annotations = &mut desired["metadata"]["annotations"];
        match noted(key) {
            Value::Null => drop(annotations.as_object_mut().and_then(|all| all.remove(key))),
            value => annotations[key] = value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(writer: &Writer, current: Option<&Value>, mut desired: Value) -> Value {
        Admit.review(writer, Service::kind(), current, Some(&mut desired)).unwrap();
        desired
    }

    #[test]
    fn whoever_changes_the_spec_is_the_author_and_nobody_else() {
        let ann = Writer::new("user:ann", "applyctl").because("first");
        let made = noted(&ann, None, json!({"metadata": {}, "spec": {"replicas": 1}}));
        assert_eq!(made["metadata"]["annotations"], json!({AUTHOR: "user:ann", MESSAGE: "first"}));
        let bob = Writer::new("user:bob", "kubectl");
        let labelled = noted(&bob, Some(&made), json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}}));
        assert_eq!(labelled["metadata"]["annotations"], made["metadata"]["annotations"], "the spec is still ann's");
        let claimed = json!({"metadata": {"annotations": {AUTHOR: "user:ann", MESSAGE: "x", "own": "1"}}, "spec": {}});
        let changed = noted(&bob, Some(&made), claimed);
        assert_eq!(changed["metadata"]["annotations"], json!({AUTHOR: "user:bob", "own": "1"}), "and he said nothing");
    }

    #[test]
    fn controllers_pass_on_what_they_were_told_and_other_kinds_have_no_author() {
        let bundle = Writer::controller("bundle");
        let told = json!({"metadata": {"annotations": {AUTHOR: "user:ann"}}, "spec": {}});
        assert_eq!(noted(&bundle, None, told.clone()), told);
        let mut node = json!({"metadata": {}, "spec": {}});
        Admit.review(&Writer::new("user:ann", "x"), Node::kind(), None, Some(&mut node)).unwrap();
        assert_eq!(node, json!({"metadata": {}, "spec": {}}));
        let long = Writer::new("user:ann", "x").because("x".repeat(1001));
        assert!(Admit.review(&long, Service::kind(), None, None).is_err());
    }

    #[test]
    fn the_cluster_object_and_managers_are_changed_and_never_deleted() {
        let ann = Writer::new("user:ann", "x");
        let current = json!({"metadata": {}, "spec": {}});
        let manager = json!({"metadata": {}, "spec": {"role": "manager"}});
        let review = |kind, current: &Value, desired: Option<Value>| {
            Admit.review(&ann, kind, Some(current), desired.clone().as_mut())
        };
        let marked = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
        for deleted in [None, Some(marked)] {
            for (kind, current) in [(Cluster::kind(), &current), (Node::kind(), &manager)] {
                let refused = review(kind, current, deleted.clone());
                assert!(matches!(refused, Err(Refusal::Forbidden(_))), "{deleted:?}");
            }
            for kind in [Volume::kind(), Node::kind()] {
                assert_eq!(review(kind, &current, deleted.clone()), Ok(()));
            }
        }
        let titled = json!({"metadata": {}, "spec": {"title": "otter"}});
        assert_eq!(review(Cluster::kind(), &current, Some(titled)), Ok(()));
    }

    #[test]
    fn a_machine_changes_nothing_of_its_tasks_but_that_it_lets_go() {
        let node = Writer::new("node:n2", "tasks");
        let held = |extra: &[&str]| {
            let finalizers: Vec<&str> = extra.iter().copied().chain([NODE_FINALIZER]).collect();
            json!({"metadata": {"finalizers": finalizers, "labels": {"a": "b"}}, "spec": {"desired": "Running"}})
        };
        let review = |writer: &Writer, kind, desired: Value| {
            Admit.review(writer, kind, Some(&held(&["other"])), Some(&mut desired.clone()))
        };
        let mut let_go = held(&["other"]);
        let_go["metadata"]["finalizers"] = json!(["other"]);
        let mut told = held(&["other"]);
        told["status"] = json!({"state": "Running"});
        let changed = |path: &str, value: Value| {
            let mut changed = held(&["other"]);
            *changed.pointer_mut(path).unwrap() = value;
            changed
        };
        for kind in [Task::kind(), Volume::kind()] {
            assert_eq!(review(&node, kind, let_go.clone()), Ok(()));
            assert_eq!(review(&node, kind, told.clone()), Ok(()));
            let refused = [
                changed("/spec/desired", json!("Stopped")),
                changed("/metadata/labels", json!({})),
                changed("/metadata/finalizers", json!([NODE_FINALIZER])),
                changed("/metadata/finalizers", json!(["other", NODE_FINALIZER, "more"])),
            ];
            for desired in refused {
                assert!(matches!(review(&node, kind, desired.clone()), Err(Refusal::Forbidden(_))), "{desired}");
                assert_eq!(review(&Writer::controller("service"), kind, desired), Ok(()));
            }
            let gone = |extra: &[&str]| Admit.review(&node, kind, Some(&held(extra)), None);
            assert_eq!(gone(&[]), Ok(()), "it was the last that held it");
            assert!(matches!(gone(&["other"]), Err(Refusal::Forbidden(_))), "another holds it");
        }
        let said = |overlay: &str, hostname: &str| json!({"status": {"overlayAddress": overlay, "state": "Ready", "machine": {"hostname": hostname}}});
        let of_node = |desired: Value| {
            Admit.review(&node, Node::kind(), Some(&said("10.128.0.2", "a")), Some(&mut desired.clone()))
        };
        assert_eq!(of_node(said("10.128.0.2", "b")), Ok(()));
        assert!(matches!(of_node(said("10.99.0.1", "a")), Err(Refusal::Forbidden(_))), "its place is given to it");
        let first = |desired: Value| Admit.review(&node, Node::kind(), Some(&json!({})), Some(&mut desired.clone()));
        assert_eq!(first(json!({"status": {"state": "Unknown", "machine": {}}})), Ok(()));
        assert!(matches!(first(said("10.128.0.2", "a")), Err(Refusal::Forbidden(_))), "before it has one, too");
    }
}
