//! How a run is told: one line a step, who did what to which object.

use serde_json::Value;

use reconciler_api::ResourceVersion;

use crate::objects::{Change, Stored, Writer};

/// One commit: each object that it changed, field by field.
pub(super) fn commit(name: &str, writer: &Writer, version: ResourceVersion, changes: &[Change]) -> String {
    let who = if writer.manager == name { name.to_owned() } else { format!("{name} ({})", writer.manager) };
    let told: Vec<String> = changes.iter().map(change).collect();
    format!("{who} commits @{version}: {}", told.join("; "))
}

fn change(change: &Change) -> String {
    match change {
        Change::Put { object, previous: None } => {
            format!("new {} {} {}", object.kind.kind, object.reference, brief(&spec(object)))
        }
        Change::Put { object, previous: Some(previous) } => {
            let fields = differences(previous, object);
            format!("{} {}: {fields}", object.kind.kind, object.reference)
        }
        Change::Gone { kind, reference, .. } => format!("{} {reference} is gone", kind.kind),
    }
}

fn value(stored: &Stored) -> Value {
    serde_json::from_slice(&stored.json).unwrap_or(Value::Null)
}

fn spec(stored: &Stored) -> Value {
    value(stored)["spec"].take()
}

fn differences(before: &Stored, after: &Stored) -> String {
    let (before, after) = (value(before), value(after));
    let patch = json_patch::diff(&before, &after);
    let at = |value: &Value, path: &str| value.pointer(path).map_or_else(|| "nothing".to_owned(), brief);
    let lines = patch.iter().map(|operation| {
        let path = operation.path().to_string();
        let name = path.trim_start_matches('/').replace('/', ".");
        format!("{name} {} -> {}", at(&before, &path), at(&after, &path))
    });
    lines.collect::<Vec<_>>().join(", ")
}

fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
