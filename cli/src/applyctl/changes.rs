//! What a deployment would change, told field by field: the file that is deployed against the one that would be.

use schemas::kinds::bundle::{BundleSpec, Override};
use serde_json::{Map, Value};

use super::words;

/// One line for each thing that would be made, changed or removed, and below it its fields.
pub fn lines(before: &BundleSpec, after: &BundleSpec, overrides: &[Override]) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, fragment) in &after.services {
        match before.services.get(name) {
            None => lines.push(format!("+ service {name}")),
            Some(old) if old == fragment => {}
            Some(old) => {
                lines.push(format!("~ service {name}"));
                lines.extend(fields(&Value::Object(old.0.clone()), &Value::Object(fragment.0.clone())));
            }
        }
    }
    let stays = if after.keep_dropped { "   stays: --no-prune" } else { "" };
    let dropped = before.services.keys().filter(|name| !after.services.contains_key(*name));
    lines.extend(dropped.map(|name| format!("- service {name}{stays}")));
    let json = |network| serde_json::to_value(network).unwrap_or_default();
    for (name, network) in &after.networks {
        match before.networks.get(name) {
            None => lines.push(format!("+ network {name}")),
            Some(old) if old == network => {}
            Some(old) => {
                lines.push(format!("~ network {name}"));
                lines.extend(fields(&json(old), &json(network)));
            }
        }
    }
    let dropped = before.networks.keys().filter(|name| !after.networks.contains_key(*name));
    lines.extend(dropped.map(|name| format!("- network {name}{stays}")));
    if after.reset.is_empty() {
        lines.extend(overrides.iter().map(|one| {
            let live = one.live.as_ref().map_or_else(|| "nothing".to_owned(), show);
            format!("= {} {}  stays {live}, as set by hand   (--reset takes the file's word)", one.object, one.path)
        }));
    }
    lines
}

/// Fields that differ, each with what it means for the tasks.
fn fields(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    differences("", Some(old), Some(new), &mut found);
    let told: Vec<(String, &str)> = found
        .iter()
        .map(|(path, text)| match path.strip_prefix("template.") {
            Some(short) => (format!("{}  {text}", short.trim_start_matches("container.")), "replaces its tasks"),
            None => (format!("{path}  {text}"), "no task is replaced"),
        })
        .collect();
    let width = told.iter().map(|(text, _)| text.chars().count()).max().unwrap_or(0);
    told.iter().map(|(text, means)| format!("    {text:width$}   {means}")).collect()
}

fn differences(path: &str, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<(String, String)>) {
    if old == new {
        return;
    }
    let empty = Map::new();
    let fields = |value: Option<&Value>| match value {
        None => Some(empty.clone()),
        Some(Value::Object(fields)) => Some(fields.clone()),
        Some(_) => None,
    };
    if let (Some(before), Some(after)) = (fields(old), fields(new)) {
        let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            differences(&path, before.get(key), after.get(key), found);
        }
        return;
    }
    let text = |value: Option<&Value>| value.map_or_else(|| "–".to_owned(), show);
    found.push((path.to_owned(), format!("{} → {}", text(old), text(new))));
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => words::image(text),
        // `[{"name": "A", "value": "1"}]` is longer than it is clear.
        Value::Array(items) => {
            let one = |item: &Value| match (item["name"].as_str(), item["value"].as_str()) {
                (Some(name), Some(value)) => format!("{name}={value}"),
                (Some(name), None) => name.to_owned(),
                _ => show(item),
            };
            format!("[{}]", items.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use schemas::kinds::bundle::ServiceFragment;
    use serde_json::json;

    use super::*;

    fn bundle(services: &[(&str, Value)]) -> BundleSpec {
        let fragment = |value: &Value| ServiceFragment(value.as_object().cloned().unwrap_or_default());
        let services = services.iter().map(|(name, value)| ((*name).to_owned(), fragment(value)));
        BundleSpec { services: services.collect(), ..BundleSpec::default() }
    }

    #[test]
    fn every_field_that_differs_is_told_with_what_it_means() {
        let before = bundle(&[
            ("db", json!({"template": {"container": {"image": "example/db:1"}}})),
            (
                "vote",
                json!({"template": {"container": {"image": "example/vote:1", "env": [{"name": "A", "value": "1"}]}}}),
            ),
        ]);
        let after = bundle(&[
            ("vote", json!({"labels": {"tier": "web"}, "template": {"container": {"image": "example/vote:2"}}})),
            ("worker", json!({})),
        ]);
        let by_hand = Override {
            object: "service/shop-vote".into(),
            path: "spec.replicas".into(),
            file: None,
            live: Some(json!(3)),
        };
        assert_eq!(
            lines(&before, &after, &[by_hand]),
            [
                "~ service vote",
                "    labels.tier  – → web                     no task is replaced",
                "    env  [A=1] → –                           replaces its tasks",
                "    image  example/vote:1 → example/vote:2   replaces its tasks",
                "+ service worker",
                "- service db",
                "= service/shop-vote spec.replicas  stays 3, as set by hand   (--reset takes the file's word)",
            ]
        );
        assert_eq!(lines(&after, &after, &[]), Vec::<String>::new());
    }
}
