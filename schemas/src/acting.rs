//! Which fields nothing acts on yet. One table: a change that makes a field act takes its line out, and the page
//! `docs/fields.md`, which is made from the shapes and this table, changes with it.
//!
//! A field that nothing acts on is refused by name: an update policy, a device or a secret that is silently ignored is
//! found out at the worst moment.

use std::fmt::Write as _;

use reconciler_api::{Fault, Kind};
use serde_json::Value;

use crate::kinds;
use crate::shape::{Field, Form, Shape};

/// A field, or some of its values, that nothing acts on.
struct NotYet {
    kind: &'static str,
    /// `[]` stands for each entry of a list.
    path: &'static str,
    /// Empty: every value but the default.
    values: &'static [&'static str],
}

const fn field(kind: &'static str, path: &'static str) -> NotYet {
    NotYet { kind, path, values: &[] }
}

const fn values(kind: &'static str, path: &'static str, values: &'static [&'static str]) -> NotYet {
    NotYet { kind, path, values }
}

/// What holds for a Service holds for the services of a Bundle, and what for a Network for its networks.
const NOT_YET: &[NotYet] = &[
    values("Service", "spec.mode", &["replicated-job", "global-job"]),
    field("Service", "spec.job"),
    field("Service", "spec.update.delay"),
    field("Service", "spec.update.failureAction"),
    field("Service", "spec.update.monitor"),
    field("Service", "spec.update.maxFailureRatio"),
    field("Service", "spec.update.minReady"),
    field("Service", "spec.rollback.parallelism"),
    field("Service", "spec.rollback.delay"),
    field("Service", "spec.rollback.failureAction"),
    field("Service", "spec.rollback.monitor"),
    field("Service", "spec.rollback.maxFailureRatio"),
    field("Service", "spec.rollback.order"),
    field("Service", "spec.rollback.minReady"),
    values("Service", "spec.endpoint.ports[].protocol", &["sctp"]),
    field("Service", "spec.template.container.stdin"),
    field("Service", "spec.template.container.health.startup"),
    field("Service", "spec.template.container.health.readiness"),
    field("Service", "spec.template.container.health.liveness"),
    field("Service", "spec.template.container.health.check.http"),
    field("Service", "spec.template.container.health.check.tcp"),
    field("Service", "spec.template.container.health.check.grpc"),
    values("Service", "spec.template.container.mounts[].type", &["cluster", "image", "npipe"]),
    field("Service", "spec.template.container.mounts[].volume.driver"),
    field("Service", "spec.template.container.mounts[].tmpfs.options"),
    values("Service", "spec.template.container.privileges.seccomp.mode", &["custom"]),
    field("Service", "spec.template.container.privileges.seccomp.profile"),
    values("Service", "spec.template.container.privileges.apparmor", &["default"]),
    field("Service", "spec.template.container.privileges.selinux"),
    field("Service", "spec.template.container.privileges.credentialSpec"),
    field("Service", "spec.template.container.isolation"),
    field("Service", "spec.template.resources.limits.swappiness"),
    field("Service", "spec.template.resources.reservations.generic"),
    field("Service", "spec.template.log.driver"),
    field("Network", "spec.attachable"),
    field("Network", "spec.ipv6"),
    field("Network", "spec.mtu"),
    field("Volume", "spec.driver"),
    field("User", "spec.tokenDigests"),
];

/// Kinds whose specs a Bundle holds, and where.
const IN_BUNDLES: [(&str, &str); 2] = [("Service", "services"), ("Network", "networks")];

/// Every field of an object that says something that nothing acts on.
pub(crate) fn faults(kind: &Kind, shape: &Shape, object: &Value) -> Vec<Fault> {
    if kind.group != kinds::GROUP {
        return Vec::new();
    }
    let mut found = Vec::new();
    for entry in NOT_YET {
        if entry.path.is_empty() && entry.kind == kind.kind {
            found.push(Fault::new("kind", format!("nothing acts on a {} yet", kind.kind)));
        } else {
            each((entry.kind, entry.path), kind, shape, object, &mut |at, field, value| {
                found.extend(entry.fault(at, field, value));
            });
        }
    }
    found
}

/// Every field of a service's spec, or of a part of one, that says something that nothing acts on; paths below the spec.
pub(crate) fn fragment_faults(shape: &Shape, fragment: &Value) -> Vec<Fault> {
    let mut found = Vec::new();
    for entry in NOT_YET.iter().filter(|entry| entry.kind == "Service") {
        let path = entry.path.trim_start_matches("spec.");
        search(path, shape, fragment, String::new(), &mut |at, field, value| {
            found.extend(entry.fault(at, field, value))
        });
    }
    found
}

impl NotYet {
    fn fault(&self, at: String, field: &Field, value: &Value) -> Option<Fault> {
        let said = value.as_str().unwrap_or_default();
        if self.values.contains(&said) {
            return Some(Fault::new(at, format!("{said} is not acted on yet; remove it")));
        }
        (self.values.is_empty() && says_something(field, value)).then(|| Fault::new(at, "not acted on yet; remove it"))
    }
}

/// Is told a place in an object, what its field is like and what the object says there.
type Look<'a> = &'a mut dyn FnMut(String, &Field, &Value);

/// Every place in an object of `kind` that is meant by a kind and a path, which also mean the places in a Bundle.
pub(crate) fn each(meant: (&str, &str), kind: &Kind, shape: &Shape, object: &Value, look: Look<'_>) {
    let (of, path) = meant;
    if of == kind.kind {
        return search(path, shape, object, String::new(), look);
    }
    let Some((_, map)) = IN_BUNDLES.iter().find(|(inner, _)| kind.kind == "Bundle" && *inner == of) else { return };
    let parts = shape.field("spec").and_then(|field| field.shape.field(map)).map(|field| &field.shape.form);
    let said = object.pointer("/spec").and_then(|spec| spec.get(map)).and_then(Value::as_object);
    let (Some(Form::Map(part)), Some(said)) = (parts, said) else { return };
    for (name, value) in said {
        search(path.trim_start_matches("spec."), part, value, format!("spec.{map}.{name}"), look);
    }
}

fn search(path: &str, shape: &Shape, value: &Value, at: String, look: Look<'_>) {
    let (step, rest) = path.split_once('.').unwrap_or((path, ""));
    let name = step.trim_end_matches("[]");
    let (Some(field), Some(value)) = (shape.field(name), value.get(name)) else { return };
    let at = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    match (&field.shape.form, step.ends_with("[]")) {
        (Form::List(items, _), true) => {
            for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                search(rest, items, item, format!("{at}[{index}]"), look);
            }
        }
        _ if !rest.is_empty() => search(rest, &field.shape, value, at, look),
        _ => look(at, field, value),
    }
}

/// Whether a value differs from leaving the field out.
pub(crate) fn says_something(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Number(number) if field.default.is_none() && !field.shape.nullable => number.as_f64() != Some(0.0),
        Value::String(text) if field.default.is_none() && !field.shape.nullable => !text.is_empty(),
        scalar => field.default.as_ref() != Some(scalar),
    }
}

/// Whether something acts on a field of a kind (its path from the object's root, `[]` for each entry of a list), and
/// which of its values nothing acts on.
pub(crate) fn acts(kind: &str, path: &str) -> (bool, &'static [&'static str]) {
    if kind == "Bundle"
        && let Some((inner, rest)) = IN_BUNDLES
            .iter()
            .find_map(|(inner, map)| Some((inner, path.strip_prefix("spec.")?.strip_prefix(map)?.strip_prefix(".*.")?)))
    {
        return acts(inner, &format!("spec.{rest}"));
    }
    let covers = |entry: &&NotYet| {
        entry.kind == kind
            && (entry.path.is_empty()
                || path.strip_prefix(entry.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])))
    };
    match NOT_YET.iter().find(covers) {
        Some(entry) if entry.values.is_empty() => (false, &[]),
        Some(entry) if entry.path == path => (true, entry.values),
        _ => (true, &[]),
    }
}

/// The page `docs/fields.md`: every field that people write, its default, and whether something acts on it.
pub fn page() -> String {
    let mut page = String::from(
        "# Fields\n\nMade from the types; `APPLY_WRITE=1 cargo test -p schemas fields_page` writes it anew. A field that nothing acts on\nyet is refused by name, unless it says what is so anyway.\n",
    );
    for registered in kinds::ALL {
        let kind = (registered.kind)();
        let Some(shape) = Shape::of_kind(&kind.plural) else { continue };
        if !kind.managed_fields {
            continue;
        }
        let _ = write!(page, "\n## {}\n\n", kind.kind);
        if NOT_YET.iter().any(|entry| entry.kind == kind.kind && entry.path.is_empty()) {
            page.push_str("Nothing acts on this kind yet: objects of it are refused.\n\n");
        }
        page.push_str("| field | value | default | acts |\n| --- | --- | --- | --- |\n");
        if let Some(spec) = shape.field("spec") {
            rows(&kind.kind, "spec", &spec.shape, &mut page);
        }
    }
    page
}

fn rows(kind: &str, path: &str, shape: &Shape, page: &mut String) {
    let (Form::Object(fields) | Form::Tagged(fields)) = &shape.form else { return };
    for (name, field) in fields {
        let path = format!("{path}.{name}");
        let (inner_path, inner) = match &field.shape.form {
            Form::List(items, _) => (format!("{path}[]"), items.as_ref()),
            Form::Map(values) => (format!("{path}.*"), values.as_ref()),
            _ => (path.clone(), &field.shape),
        };
        if field.type_name.is_none() || !matches!(field.shape.form, Form::Object(_)) {
            let (acting, refused) = acts(kind, &path);
            let acts = match (acting, refused) {
                (false, _) => "no".into(),
                (true, []) => "yes".into(),
                (true, refused) => format!("not {}", refused.join(", ")),
            };
            let default = match (&field.default, field.required) {
                (Some(Value::String(text)), _) => format!("`{text}`"),
                (Some(value), _) => format!("`{value}`"),
                (None, true) => "needed".into(),
                (None, false) => String::new(),
            };
            let _ = writeln!(page, "| `{path}` | {} | {default} | {acts} |", crate::explain::type_of(&field.shape));
        }
        // What a Bundle says of a service is the table of Service.
        if kind != "Bundle" || !path.starts_with("spec.services") {
            rows(kind, &inner_path, inner, page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_names_a_field_that_exists() {
        for entry in NOT_YET {
            let shape = Shape::of_kind(entry.kind).unwrap_or_else(|| panic!("{} is no kind", entry.kind));
            let mut at = shape;
            for step in entry.path.split('.').filter(|step| !step.is_empty()) {
                let field =
                    at.field(step.trim_end_matches("[]")).unwrap_or_else(|| panic!("{}: no {step}", entry.path));
                at = match &field.shape.form {
                    Form::List(items, _) if step.ends_with("[]") => items,
                    _ => &field.shape,
                };
            }
            if let Form::Word(choices) = &at.form {
                assert!(
                    entry.values.iter().all(|value| choices.iter().any(|choice| choice.word == *value)),
                    "{}",
                    entry.path
                );
            }
        }
    }

    #[test]
    fn the_fields_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/fields.md");
        let page = page();
        if std::env::var_os("APPLY_WRITE").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
            std::fs::write(path, &page).unwrap();
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            stored == page,
            "docs/fields.md is old: APPLY_WRITE=1 cargo test -p schemas fields_page writes it anew"
        );
    }
}
