//! What a deployment would change, told field by field: what is live against what it would be, merged as the bundle
//! controller will merge it.

use std::collections::BTreeMap;

use controllers::cluster::bundle::{Foreseen, Preview};
use schemas::kinds::bundle::{BundleSpec, Override};
use schemas::kinds::network::Network;
use schemas::kinds::service::Service;
use schemas::merge::{self, Difference};
use schemas::shape::Shape;
use serde_json::Value;

use super::screen::{Tone, cut};
use super::words;

/// Columns of a value: what is longer is in the file, and what it means for tasks must be seen beside it.
const VALUE: usize = 40;

/// One line, and how it is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub tone: Tone,
    pub text: String,
}

fn line(tone: Tone, text: String) -> Line {
    Line { tone, text }
}

/// One line for each thing that would be made, changed or removed, and below it its fields.
pub fn lines(preview: &Preview, services: &[Service], spec: &BundleSpec) -> Vec<Line> {
    let by_name: BTreeMap<&str, &Service> =
        services.iter().map(|service| (service.metadata.name.as_str(), service)).collect();
    let mut lines: Vec<Line> = preview.problems.iter().map(|problem| line(Tone::Bad, format!("! {problem}"))).collect();
    for change in &preview.changes {
        match change {
            Foreseen::Create { kind, name, spec } => {
                let image = spec.pointer("/template/container/image").and_then(Value::as_str).map(words::image);
                let image = image.map(|image| format!("   {image}")).unwrap_or_default();
                lines.push(line(Tone::Good, format!("+ {kind} {name}{image}")));
            }
            Foreseen::Update { kind, name, live, spec } => {
                lines.push(line(Tone::Busy, format!("~ {kind} {name}")));
                lines.extend(fields(kind, by_name.get(name.as_str()).copied(), live, spec));
            }
            Foreseen::Remove { kind, name } => {
                let stays = if *kind == "service" { "   once the new is up; its volumes stay" } else { "" };
                lines.push(line(Tone::Bad, format!("- {kind} {name}{stays}")));
            }
        }
    }
    if spec.reset.is_empty() {
        lines.extend(preview.overrides.iter().map(overridden));
    }
    lines
}

fn overridden(one: &Override) -> Line {
    let live = one.live.as_ref().map_or_else(|| "gone".to_owned(), show);
    let file = one.file.as_ref().map_or_else(|| "nothing".to_owned(), show);
    let (object, path) = (&one.object, &one.path);
    line(
        Tone::Faint,
        format!("= {object}.{path}  stays {live}, as set by hand; the file says {file}   (--reset={object}.{path})"),
    )
}

/// Fields that differ, each with what it means for the tasks.
fn fields(kind: &str, service: Option<&Service>, live: &Value, spec: &Value) -> Vec<Line> {
    let found = differences(kind, live, spec);
    if found.is_empty() {
        return vec![line(Tone::Faint, "    no field changes; from now on the file says so".to_owned())];
    }
    let told: Vec<(String, String)> = found
        .iter()
        .map(|one| {
            let side =
                |value: &Option<Value>| value.as_ref().map_or_else(|| "–".to_owned(), |it| cut(&show(it), VALUE));
            let short = one.path.strip_prefix("template.").unwrap_or(&one.path);
            let short = short.strip_prefix("container.").unwrap_or(short);
            (format!("{short}  {} → {}", side(&one.live), side(&one.file)), meaning(kind, service, one))
        })
        .collect();
    let width = told.iter().map(|(text, _)| words::width(text)).max().unwrap_or(0);
    told.iter()
        .map(|(text, means)| {
            line(Tone::Plain, format!("    {}   {means}", words::padded(text, width)).trim_end().to_owned())
        })
        .collect()
}

/// Entry by entry, with quantities and defaults taken for what they mean: where both agree on what is wanted, a merge
/// tells of everything that is not so.
fn differences(kind: &str, live: &Value, spec: &Value) -> Vec<Difference> {
    let shape = match kind {
        "network" => Shape::of::<Network>(),
        _ => Shape::of::<Service>(),
    };
    match shape.field("spec") {
        Some(field) => merge::three_way(&field.shape, Some(spec), spec, Some(live), &[]).overrides,
        None => Vec::new(),
    }
}

fn meaning(kind: &str, service: Option<&Service>, one: &Difference) -> String {
    let Some(service) = service.filter(|_| kind == "service") else { return String::new() };
    let count = |value: &Option<Value>| value.as_ref().map_or(Some(1), Value::as_u64);
    match (one.path.as_str(), count(&one.live), count(&one.file)) {
        ("replicas", Some(before), Some(after)) if after > before => {
            format!("starts {} more", words::count((after - before) as usize, "task"))
        }
        ("replicas", Some(before), Some(after)) => {
            format!("stops {}", words::count((before - after) as usize, "task"))
        }
        (path, ..) if path.starts_with("template") => {
            let tasks = service.status.as_ref().map_or(service.spec.replicas(), |status| status.desired);
            let at_a_time = match (tasks, service.spec.update.parallelism()) {
                (0 | 1, _) => String::new(),
                (_, 0) => ", all at once".to_owned(),
                (_, parallelism) => format!(", {parallelism} at a time"),
            };
            format!("replaces {}{at_a_time}", words::count(tasks as usize, "task"))
        }
        _ => "no task is replaced".to_owned(),
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => words::image(text),
        Value::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
        // `{"name": "A", "value": "1"}` is longer than it is clear.
        Value::Object(fields) if fields.keys().all(|key| key == "name" || key == "value") => {
            let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
            if fields.contains_key("value") { text("value") } else { text("name") }
        }
        Value::Object(fields) => {
            let one = |(key, value): (&String, &Value)| format!("{key}: {}", show(value));
            format!("{{{}}}", fields.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use schemas::kinds::service::ServiceSpec;
    use serde_json::json;

    use super::*;

    fn told(change: Foreseen, overrides: Vec<Override>) -> Vec<String> {
        let mut spec = ServiceSpec { replicas: Some(3), ..ServiceSpec::default() };
        spec.template.container.image = "example/vote:1".into();
        let service = <Service as reconciler::Resource>::new("shop-vote", spec);
        let preview = Preview { changes: vec![change], overrides, problems: Vec::new() };
        lines(&preview, &[service], &BundleSpec::default()).into_iter().map(|line| line.text).collect()
    }

    fn update(live: Value, spec: Value) -> Vec<String> {
        told(Foreseen::Update { kind: "service", name: "shop-vote".into(), live, spec }, Vec::new())
    }

    #[test]
    fn every_field_that_differs_is_told_with_what_it_means() {
        let container = |image: &str, env: Value| json!({"container": {"image": image, "env": env}});
        let live = json!({"replicas": 3, "template": container("example/vote:1", json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]))});
        let spec = json!({"replicas": 5, "labels": {"tier": "web"},
                          "template": container("example/vote:2", json!([{"name": "A", "value": "1"}, {"name": "C", "value": "3"}]))});
        assert_eq!(
            update(live, spec),
            [
                "~ service shop-vote",
                "    labels.tier  – → web                     no task is replaced",
                "    replicas  3 → 5                          starts 2 tasks more",
                "    env[B]  2 → –                            replaces 3 tasks, 1 at a time",
                "    env[C]  – → 3                            replaces 3 tasks, 1 at a time",
                "    image  example/vote:1 → example/vote:2   replaces 3 tasks, 1 at a time",
            ]
        );
    }

    #[test]
    fn two_spellings_of_one_thing_do_not_differ() {
        let of = |memory: &str| json!({"template": {"resources": {"limits": {"memory": memory}}}});
        assert_eq!(
            update(of("1Gi"), of("1024Mi")),
            ["~ service shop-vote", "    no field changes; from now on the file says so"]
        );
    }

    #[test]
    fn what_was_set_by_hand_is_told_with_the_way_back() {
        let by_hand =
            Override { object: "vote".into(), path: "replicas".into(), file: Some(json!(2)), live: Some(json!(3)) };
        let create = Foreseen::Create {
            kind: "service",
            name: "shop-db".into(),
            spec: json!({"template": {"container": {"image": "example/db:1"}}}),
        };
        assert_eq!(
            told(create, vec![by_hand]),
            [
                "+ service shop-db   example/db:1",
                "= vote.replicas  stays 3, as set by hand; the file says 2   (--reset=vote.replicas)",
            ]
        );
    }
}
