//! One write against one stored value: pure functions that say what shall stand there afterwards.
//!
//! The rules are Kubernetes' (API conventions, "Metadata" and "Deletion"): system fields are the layer's own, a change
//! outside metadata and status raises the generation, a deletion with finalizers marks, the last finalizer removed
//! deletes, and nothing but finalizers leaves while an object is being deleted.

use serde_json::{Map, Value, json};

use reconciler_api::{Fault, Kind, Scope, Timestamp, Uid};

use super::{Entry, Part, Patch, Propagation};

/// Finalizer of a foreground deletion; the cascade controller removes it.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion that keeps the dependents; the cascade controller removes it.
pub const ORPHAN: &str = "orphan";

/// Written by this layer alone.
const SYSTEM_FIELDS: [&str; 6] =
    ["uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "managedFields"];
const NAME_LENGTH_MAX: usize = 253;

/// What shall stand under the key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    Put(Value),
    Gone,
    /// Everything is as the write wants it already.
    Unchanged,
}

/// The object as it is first stored. What it says of its status and of system fields is left out.
pub(super) fn create(entry: &Entry, mut object: Value, uid: Uid, now: Timestamp) -> Result<Value, Vec<Fault>> {
    let kind = &*entry.kind;
    let faults = check_envelope(kind, &object);
    if !faults.is_empty() {
        return Err(faults);
    }
    let fields = object.as_object_mut().expect("checked above");
    fields.insert("apiVersion".into(), kind.api_version().into());
    fields.insert("kind".into(), kind.kind.as_ref().into());
    fields.remove("status");
    entry.fill_in(&mut object, Part::Main);
    let metadata = metadata_mut(&mut object);
    for field in SYSTEM_FIELDS {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), uid.as_str().into());
    metadata.insert("creationTimestamp".into(), now.truncated().to_string().into());
    metadata.insert("generation".into(), 1.into());
    tidy_finalizers(metadata);
    Ok(object)
}

/// What `patch` makes of `current`.
pub(super) fn update(entry: &Entry, current: &Value, part: Part, patch: &Patch) -> Result<Next, Vec<Fault>> {
    let mut patched = apply(current, part, patch)?;
    if part == Part::Status && !entry.status {
        return Err(vec![Fault::new("status", format!("{} objects have none", entry.kind.kind))]);
    }
    entry.fill_in(&mut patched, part);
    let desired = match part {
        Part::Status => with_status(current.clone(), patched.get("status").cloned()),
        Part::Main => main_of(current, patched)?,
    };
    if desired == *current {
        return Ok(Next::Unchanged);
    }
    let done = is_deleting(&desired) && finalizers(&desired).is_empty();
    Ok(if done { Next::Gone } else { Next::Put(desired) })
}

/// What a deletion makes of `current`.
pub(super) fn delete(current: &Value, propagation: Propagation, now: Timestamp) -> Next {
    let mut desired = current.clone();
    let metadata = metadata_mut(&mut desired);
    let marker = match propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Orphan => Some(ORPHAN),
    };
    if let Some(marker) = marker {
        let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(marker.into());
        }
        tidy_finalizers(metadata);
    }
    if !metadata.contains_key("deletionTimestamp") {
        metadata.insert("deletionTimestamp".into(), now.truncated().to_string().into());
        let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or(0);
        metadata.insert("generation".into(), (generation + 1).into());
    }
    match (finalizers(&desired).is_empty(), desired == *current) {
        (true, _) => Next::Gone,
        (false, true) => Next::Unchanged,
        (false, false) => Next::Put(desired),
    }
}

fn apply(current: &Value, part: Part, patch: &Patch) -> Result<Value, Vec<Fault>> {
    let mut patched = current.clone();
    match patch {
        Patch::Json(patch) => json_patch::patch(&mut patched, patch)
            .map_err(|error| vec![Fault::new("", format!("the patch does not apply: {error}"))])?,
        Patch::Merge(patch) => json_patch::merge(&mut patched, patch),
        Patch::Replace(whole) => match part {
            Part::Main => patched = whole.clone(),
            Part::Status => patched = with_status(patched, whole.get("status").cloned()),
        },
    }
    if patched.is_object() { Ok(patched) } else { Err(vec![Fault::new("", "an object is a JSON object")]) }
}

fn main_of(current: &Value, patched: Value) -> Result<Value, Vec<Fault>> {
    let mut desired = with_status(patched, current.get("status").cloned());
    for field in ["apiVersion", "kind"] {
        desired[field] = current[field].clone();
    }
    if !desired.get("metadata").is_some_and(Value::is_object) {
        desired["metadata"] = json!({});
    }
    let stored = current["metadata"].as_object().cloned().unwrap_or_default();
    let metadata = metadata_mut(&mut desired);
    let mut faults = Vec::new();
    for field in ["name", "namespace"] {
        match (metadata.get(field), stored.get(field)) {
            (Some(desired), stored) if Some(desired) != stored && desired != "" => {
                faults.push(Fault::new(format!("metadata.{field}"), "never changes; make another object instead"));
            }
            _ => restore(metadata, &stored, field),
        }
    }
    for field in SYSTEM_FIELDS {
        restore(metadata, &stored, field);
    }
    tidy_finalizers(metadata);
    if is_deleting(current) {
        let kept = finalizers(current);
        if let Some(added) = finalizers(&desired).iter().find(|added| !kept.contains(added)) {
            faults.push(Fault::new(
                "metadata.finalizers",
                format!("{added:?} comes too late: the object is being deleted"),
            ));
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    if wanted_part(&desired) != wanted_part(current) {
        let generation = stored.get("generation").and_then(Value::as_i64).unwrap_or(0);
        metadata_mut(&mut desired).insert("generation".into(), (generation + 1).into());
    }
    Ok(desired)
}

/// Everything outside metadata and status: what the generation counts the changes of.
fn wanted_part(object: &Value) -> Map<String, Value> {
    let mut fields = object.as_object().cloned().unwrap_or_default();
    fields.remove("metadata");
    fields.remove("status");
    fields
}

fn with_status(mut object: Value, status: Option<Value>) -> Value {
    if let Some(fields) = object.as_object_mut() {
        match status {
            Some(status) if !status.is_null() => drop(fields.insert("status".into(), status)),
            _ => drop(fields.remove("status")),
        }
    }
    object
}

fn restore(metadata: &mut Map<String, Value>, stored: &Map<String, Value>, field: &str) {
    match stored.get(field) {
        Some(value) => drop(metadata.insert(field.into(), value.clone())),
        None => drop(metadata.remove(field)),
    }
}

/// Finalizers are a set in order of arrival: two who add the same at once make one entry (kube-rs/kube#964).
fn tidy_finalizers(metadata: &mut Map<String, Value>) {
    if let Some(list) = metadata.get_mut("finalizers").and_then(Value::as_array_mut) {
        let mut seen: Vec<Value> = Vec::with_capacity(list.len());
        for entry in list.drain(..) {
            if !seen.contains(&entry) {
                seen.push(entry);
            }
        }
        *list = seen;
    }
    if metadata.get("finalizers").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        metadata.remove("finalizers");
    }
}

fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    object["metadata"].as_object_mut().expect("every stored object has metadata")
}

pub(super) fn is_deleting(object: &Value) -> bool {
    object["metadata"].get("deletionTimestamp").is_some()
}

fn finalizers(object: &Value) -> Vec<String> {
    let list = object["metadata"].get("finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn check_envelope(kind: &Kind, object: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    if !object.is_object() {
        return vec![Fault::new("", "an object is a JSON object")];
    }
    for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_string())] {
        match object.get(field).and_then(Value::as_str) {
            Some(said) if said != expected => {
                faults.push(Fault::new(field, format!("{said:?} is not {expected:?}")));
            }
            _ => {}
        }
    }
    let Some(metadata) = object.get("metadata").and_then(Value::as_object) else {
        faults.push(Fault::new("metadata", "is needed, with at least a name"));
        return faults;
    };
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or("");
    faults.extend(name_fault("metadata.name", text("name")));
    match (kind.scope, text("namespace")) {
        (Scope::Cluster, "") => {}
        (Scope::Cluster, _) => {
            faults.push(Fault::new("metadata.namespace", format!("{} objects have no namespace", kind.kind)));
        }
        (Scope::Namespaced, namespace) => faults.extend(name_fault("metadata.namespace", namespace)),
    }
    let owners = metadata.get("ownerReferences").and_then(Value::as_array);
    if owners.into_iter().flatten().filter(|owner| owner["controller"] == true).count() > 1 {
        faults.push(Fault::new("metadata.ownerReferences", "only one owner can be the controller"));
    }
    faults
}

/// Names are DNS names, since they become part of host names and paths.
fn name_fault(path: &str, name: &str) -> Option<Fault> {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let plain = name.chars().all(|c| alphanumeric(Some(c)) || c == '-' || c == '.');
    let good = plain && alphanumeric(name.chars().next()) && alphanumeric(name.chars().last());
    match (name, good && name.len() <= NAME_LENGTH_MAX) {
        ("", _) => Some(Fault::new(path, "is needed")),
        (_, true) => None,
        _ => Some(Fault::new(
            path,
            format!(
                "{name:?} is not a name (lower case letters, digits, '-' and '.', at most {NAME_LENGTH_MAX}, a letter or digit at both ends)"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000);

    fn entry() -> Entry {
        let kind = Kind {
            group: "example.dev".into(),
            version: "v1".into(),
            kind: "Site".into(),
            plural: "sites".into(),
            singular: "site".into(),
            short_names: vec![],
            scope: Scope::Namespaced,
            managed_fields: true,
            sensitive: vec![],
            columns: vec![],
        };
        Entry::new(kind, |_, _| Vec::new())
    }

    fn site(extra: Value) -> Value {
        let mut object = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"host": "x"}});
        json_patch::merge(&mut object, &extra);
        create(&entry(), object, Uid::new("u1"), NOW).unwrap()
    }

    fn merged(current: &Value, part: Part, patch: Value) -> Next {
        update(&entry(), current, part, &Patch::Merge(patch)).unwrap()
    }

    fn put(next: Next) -> Value {
        match next {
            Next::Put(value) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_object_gets_its_system_fields_and_loses_what_it_says_of_them() {
        let made = site(json!({"metadata": {"uid": "forged", "generation": 7}, "status": {"pages": 3}}));
        assert_eq!(made["metadata"]["uid"], "u1");
        assert_eq!(made["metadata"]["generation"], 1);
        assert_eq!(made["apiVersion"], "example.dev/v1");
        assert!(made.get("status").is_none());
    }

    #[test]
    fn every_fault_of_an_envelope_is_told_at_once() {
        let object = json!({"kind": "Page", "metadata": {"name": "Bad_", "namespace": ""}});
        let paths: Vec<_> =
            create(&entry(), object, Uid::new("u"), NOW).unwrap_err().into_iter().map(|f| f.path).collect();
        assert_eq!(paths, ["kind", "metadata.name", "metadata.namespace"]);
    }

    #[test]
    fn the_generation_counts_changes_of_what_is_wanted_only() {
        let made = site(json!({}));
        let labelled = put(merged(&made, Part::Main, json!({"metadata": {"labels": {"a": "b"}}})));
        assert_eq!(labelled["metadata"]["generation"], 1);
        let observed =
            put(merged(&labelled, Part::Status, json!({"status": {"pages": 1}, "spec": {"host": "ignored"}})));
        assert_eq!((&observed["metadata"]["generation"], &observed["spec"]["host"]), (&json!(1), &json!("x")));
        let moved = put(merged(&observed, Part::Main, json!({"spec": {"host": "y"}, "status": {"pages": 9}})));
        assert_eq!((&moved["metadata"]["generation"], &moved["status"]["pages"]), (&json!(2), &json!(1)));
    }

    #[test]
    fn a_write_that_changes_nothing_is_seen_as_such() {
        let made = site(json!({}));
        assert_eq!(merged(&made, Part::Main, json!({"spec": {"host": "x"}})), Next::Unchanged);
        assert_eq!(merged(&made, Part::Main, json!({"metadata": {"uid": "forged", "generation": 9}})), Next::Unchanged);
    }

    #[test]
    fn unknown_fields_survive_a_patch_of_known_ones() {
        let made = site(json!({"spec": {"future": {"deep": [1, 2]}}}));
        let patch: json_patch::Patch =
            serde_json::from_value(json!([{"op": "replace", "path": "/spec/host", "value": "z"}])).unwrap();
        let changed = put(update(&entry(), &made, Part::Main, &Patch::Json(patch)).unwrap());
        assert_eq!(changed["spec"], json!({"host": "z", "future": {"deep": [1, 2]}}));
    }

    #[test]
    fn a_deletion_waits_for_finalizers_and_the_last_one_removed_deletes() {
        assert_eq!(delete(&site(json!({})), Propagation::Background, NOW), Next::Gone);
        let held = site(json!({"metadata": {"finalizers": ["a/x", "a/x", "b/y"]}}));
        assert_eq!(finalizers(&held), ["a/x", "b/y"]);
        let marked = put(delete(&held, Propagation::Background, NOW));
        assert_eq!(marked["metadata"]["generation"], 2);
        assert_eq!(delete(&marked, Propagation::Background, NOW + std::time::Duration::from_secs(9)), Next::Unchanged);
        assert!(
            update(&entry(), &marked, Part::Main, &Patch::Merge(json!({"metadata": {"finalizers": ["c/z"]}}))).is_err()
        );
        let one = put(merged(&marked, Part::Main, json!({"metadata": {"finalizers": ["b/y"]}})));
        assert_eq!(merged(&one, Part::Main, json!({"metadata": {"finalizers": null}})), Next::Gone);
    }

    #[test]
    fn a_deletion_in_the_foreground_marks_even_without_finalizers() {
        let marked = put(delete(&site(json!({})), Propagation::Foreground, NOW));
        assert_eq!(finalizers(&marked), [FOREGROUND]);
    }

    #[test]
    fn names_never_change() {
        let faults = update(&entry(), &site(json!({})), Part::Main, &Patch::Merge(json!({"metadata": {"name": "b"}})))
            .unwrap_err();
        assert_eq!(faults[0].path, "metadata.name");
    }
}
