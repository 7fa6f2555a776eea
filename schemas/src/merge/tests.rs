use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kinds::bundle::ServiceFragment;
use crate::kinds::service::ServiceSpec;
use crate::walk::{self, Strictness};

fn spec_shape() -> &'static Shape {
    &Shape::of_kind("service").unwrap().field("spec").unwrap().shape
}

/// `base | file | live` in YAML, then the result in YAML, then the overrides as `path: file -> live`.
#[track_caller]
fn check(sides: &str, result: &str, overrides: &[&str]) {
    check_reset(sides, &[], result, overrides);
}

#[track_caller]
fn check_reset(sides: &str, reset: &[&str], result: &str, overrides: &[&str]) {
    let parts: Vec<Value> = sides.split(" | ").map(|side| serde_yaml::from_str(side).unwrap()).collect();
    let [base, file, live] = parts.as_slice() else { panic!("three sides") };
    let merged = three_way(spec_shape(), said(base), file, said(live), reset);
    assert_eq!(merged.result, serde_yaml::from_str::<Value>(result).unwrap());
    let plain = |value: &Option<Value>| value.as_ref().map_or("-".into(), Value::to_string);
    let found: Vec<String> =
        merged.overrides.iter().map(|o| format!("{}: {} -> {}", o.path, plain(&o.file), plain(&o.live))).collect();
    assert_eq!(found, overrides);
}

#[test]
fn the_first_deployment_is_the_file() {
    check("~ | {replicas: 2} | ~", "{replicas: 2}", &[]);
}

#[test]
fn what_the_file_changed_is_the_files_whoever_holds_it() {
    check("{replicas: 2} | {replicas: 5} | {replicas: 3}", "{replicas: 5}", &[]);
    check("{replicas: 2} | {} | {replicas: 3}", "{}", &[]);
    check("{} | {replicas: 1} | {replicas: 3}", "{replicas: 1}", &[]);
}

#[test]
fn what_the_file_left_alone_stays_as_it_was_set_by_hand() {
    check("{replicas: 2} | {replicas: 2} | {replicas: 3}", "{replicas: 3}", &["replicas: 2 -> 3"]);
    check("{} | {} | {replicas: 3}", "{replicas: 3}", &["replicas: - -> 3"]);
    check("{} | {} | {replicas: 1}", "{replicas: 1}", &[]);
    check("{replicas: 2} | {replicas: 2} | {}", "{}", &["replicas: 2 -> -"]);
}

#[test]
fn reset_gives_the_file_its_word_back() {
    check_reset(
        "{replicas: 2} | {replicas: 2} | {replicas: 3, drain: 1m}",
        &["replicas"],
        "{replicas: 2, drain: 1m}",
        &[r#"drain: - -> "1m""#],
    );
    check_reset("{replicas: 2} | {replicas: 2} | {replicas: 3, drain: 1m}", &[""], "{replicas: 2}", &[]);
}

#[test]
fn lists_are_merged_by_their_keys() {
    let env = |list: &str| format!("{{template: {{container: {{env: [{list}]}}}}}}");
    check(
        &format!(
            "{} | {} | {}",
            env("{name: A, value: '1'}, {name: B, value: '1'}"),
            env("{name: B, value: '2'}, {name: C, value: '1'}"),
            env("{name: D, value: '9'}, {name: B, value: '7'}, {name: A, value: '8'}")
        ),
        &env("{name: D, value: '9'}, {name: B, value: '2'}, {name: C, value: '1'}"),
        &[r#"template.container.env[D]: - -> {"name":"D","value":"9"}"#],
    );
    check(
        "{endpoint: {ports: [{target: 80}]}} | {endpoint: {ports: [{target: 80, protocol: tcp}]}} | {endpoint: {ports: [{target: 80, published: 8080}]}}",
        "{endpoint: {ports: [{target: 80, published: 8080}, {target: 80, protocol: tcp}]}}",
        &[r#"endpoint.ports[tcp,80,8080]: - -> {"published":8080,"target":80}"#],
    );
    check(
        "{endpoint: {ports: [{target: 80}]}} | {endpoint: {ports: [{target: 80}]}} | {endpoint: {ports: [{target: 80, published: 8080}]}}",
        "{endpoint: {ports: [{target: 80, published: 8080}]}}",
        &[
            r#"endpoint.ports[tcp,80,8080]: - -> {"published":8080,"target":80}"#,
            r#"endpoint.ports[tcp,80]: {"target":80} -> -"#,
        ],
    );
}

#[test]
fn a_file_with_its_lines_sorted_anew_changes_nothing() {
    check(
        "{labels: {a: '1'}, template: {networks: [{name: a}, {name: b}]}} | {labels: {a: '1'}, template: {networks: [{name: b}, {name: a}]}} | {labels: {a: '1'}, template: {networks: [{name: a}, {name: b}]}}",
        "{labels: {a: '1'}, template: {networks: [{name: a}, {name: b}]}}",
        &[],
    );
    check(
        "{template: {placement: {constraints: [a, b]}}} | {template: {placement: {constraints: [b, c]}}} | {template: {placement: {constraints: [x, a, b]}}}",
        "{template: {placement: {constraints: [x, b, c]}}}",
        &[r#"template.placement.constraints[x]: - -> "x""#],
    );
}

#[test]
fn arguments_are_one_value() {
    check(
        "{template: {container: {args: [a, b]}}} | {template: {container: {args: [a, c]}}} | {template: {container: {args: [z]}}}",
        "{template: {container: {args: [a, c]}}}",
        &[],
    );
}

#[test]
fn an_optional_part_comes_and_goes_as_a_whole() {
    let health = |inner: &str| format!("{{template: {{container: {{health: {inner}}}}}}}");
    let exec = "{check: {exec: {command: [x]}, retries: 3}}";
    // By hand the retries were changed; the file drops the check.
    check(&format!("{} | {{}} | {}", health(exec), health("{check: {exec: {command: [x]}, retries: 9}}")), "{}", &[]);
    // By hand the check was taken away, and the file changes its retries.
    check(
        &format!("{} | {} | {{}}", health(exec), health("{check: {exec: {command: [x]}, retries: 4}}")),
        &health("{check: {exec: {command: [x]}, retries: 4}}"),
        &[],
    );
    // By hand it was taken away, and the file says the same as ever.
    check(
        &format!("{} | {} | {{}}", health(exec), health(exec)),
        "{}",
        &[r#"template.container.health: {"check":{"exec":{"command":["x"]},"retries":3}} -> -"#],
    );
    // Both have one: field by field.
    check(
        &format!(
            "{} | {} | {}",
            health(exec),
            health("{check: {exec: {command: [y]}, retries: 3}}"),
            health("{check: {exec: {command: [x]}, retries: 9}}")
        ),
        &health("{check: {exec: {command: [y]}, retries: 9}}"),
        &["template.container.health.check.retries: 3 -> 9"],
    );
    check(
        "{template: {container: {health: {}}}} | {template: {container: {health: {}}}} | ~",
        "{}",
        &["template.container.health: {} -> -"],
    );
}

#[test]
fn two_spellings_of_one_value_are_one_value() {
    check(
        "{template: {resources: {limits: {memory: 64m, cpus: 0.5}}}, drain: 60s} | {template: {resources: {limits: {memory: 67108864, cpus: '0.50'}}}, drain: 1m} | {template: {resources: {limits: {memory: 64Mi, cpus: 500m}}}, drain: 1m0s}",
        "{template: {resources: {limits: {memory: 64Mi, cpus: '0.5'}}}, drain: 1m}",
        &[],
    );
}

#[test]
fn an_overlay_wins_where_it_speaks() {
    let under = json!({
        "labels": {"a": "1", "b": "2"}, "replicas": 1,
        "template": {"container": {"image": "x", "env": [{"name": "A", "value": "1"}], "args": ["a"]}},
        "endpoint": {"ports": [{"target": 80}]},
    });
    let over = json!({
        "labels": {"b": null, "c": "3"}, "replicas": 4,
        "template": {"container": {"env": [{"name": "A", "value": "2"}, {"name": "B"}], "args": ["b"]}},
        "endpoint": {"ports": [{"target": 80, "published": 8080}]},
    });
    assert_eq!(
        overlay(spec_shape(), &under, &over),
        json!({
            "labels": {"a": "1", "c": "3"}, "replicas": 4,
            "template": {"container": {"image": "x", "env": [{"name": "A", "value": "2"}, {"name": "B"}], "args": ["b"]}},
            "endpoint": {"ports": [{"target": 80}, {"target": 80, "published": 8080}]},
        })
    );
}

/// A list as long as an object can hold; looking for each entry in all others would take minutes.
#[test]
fn long_lists_are_merged_in_the_time_that_it_takes_to_read_them() {
    let env = |offset: usize| {
        let list: Vec<Value> = (0..20_000).map(|n| json!({"name": format!("A{}", n + offset), "value": "x"})).collect();
        json!({"template": {"container": {"image": "x", "env": list}}})
    };
    let (base, file, live) = (env(0), env(10), env(20));
    let merged = three_way(spec_shape(), Some(&base), &file, Some(&live), &[]);
    let merged = merged.result["template"]["container"]["env"].as_array().unwrap().len();
    let laid = overlay(spec_shape(), &base, &file)["template"]["container"]["env"].as_array().unwrap().len();
    assert_eq!((merged, laid), (20_000, 20_010));
}

/// Specs of services that differ in a few places, so that merges have something to decide.
fn any_spec() -> impl Strategy<Value = Value> {
    let word = || prop::sample::select(vec!["a", "b", "c"]);
    let env = prop::collection::btree_map(word(), prop::option::of(word()), 0..3)
        .prop_map(|map| map.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect::<Vec<_>>())
        .prop_shuffle();
    let ports = prop::collection::btree_set((80..82u16, prop::option::of(8080..8082u16)), 0..3).prop_map(|set| {
        set.into_iter().map(|(target, published)| json!({"target": target, "published": published})).collect::<Vec<_>>()
    });
    let health = prop::option::of(
        (word(), prop::option::of(1..3u32))
            .prop_map(|(word, retries)| json!({"check": {"exec": {"command": [word]}, "retries": retries}})),
    );
    let labels = prop::collection::btree_map(word(), word(), 0..3);
    let constraints =
        prop::collection::btree_set(word(), 0..3).prop_map(|set| set.into_iter().collect::<Vec<_>>()).prop_shuffle();
    let few = (
        prop::option::of(0..3u32),
        prop::option::of(prop::sample::select(vec!["1s", "1000ms", "2s"])),
        prop::collection::vec(word(), 0..3),
    );
    (few, env, ports, health, labels, constraints).prop_map(
        |((replicas, drain, args), env, ports, health, labels, constraints)| {
            json!({
                "replicas": replicas, "drain": drain, "labels": labels, "endpoint": {"ports": ports},
                "template": {
                    "container": {"image": "x", "args": args, "env": env, "health": health},
                    "placement": {"constraints": constraints},
                },
            })
        },
    )
}

/// Equal but for the order of lists that have keys.
fn sorted(shape: &Shape, value: &Value) -> Value {
    fn sort(shape: &Shape, value: &mut Value) {
        match (&shape.form, value) {
            (Form::Object(fields), Value::Object(object)) => {
                for (name, value) in object {
                    if let Some(field) = fields.get(name) {
                        sort(&field.shape, value);
                    }
                }
            }
            (Form::List(items, kind), Value::Array(list)) if *kind != ListKind::Atomic => {
                list.sort_by_key(|item| list_key(items, kind, item));
            }
            _ => {}
        }
    }
    let mut value = canonical(shape, value);
    sort(shape, &mut value);
    value
}

proptest! {
    #[test]
    fn the_same_file_twice_changes_nothing(base in any_spec(), file in any_spec(), live in any_spec(), has: (bool, bool)) {
        let shape = spec_shape();
        let first = three_way(shape, has.0.then_some(&base), &file, has.1.then_some(&live), &[]);
        let second = three_way(shape, Some(&file), &file, Some(&first.result), &[]);
        prop_assert_eq!(&second.result, &first.result);
        let third = three_way(shape, Some(&file), &file, Some(&second.result), &[]);
        prop_assert_eq!(third, second);
    }

    #[test]
    fn a_file_that_says_the_same_keeps_what_is_live(file in any_spec(), live in any_spec()) {
        let merged = three_way(spec_shape(), Some(&file), &file, Some(&live), &[]);
        prop_assert_eq!(&merged.result, &canonical(spec_shape(), &live));
        let differs = sorted(spec_shape(), &file) != sorted(spec_shape(), &live);
        prop_assert!(differs || merged.overrides.is_empty());
    }

    #[test]
    fn an_object_that_nobody_touched_becomes_the_file(base in any_spec(), file in any_spec()) {
        let merged = three_way(spec_shape(), Some(&base), &file, Some(&base), &[]);
        prop_assert_eq!(sorted(spec_shape(), &merged.result), sorted(spec_shape(), &file));
        prop_assert_eq!(merged.overrides, vec![]);
    }

    #[test]
    fn with_everything_reset_the_result_is_the_file(base in any_spec(), file in any_spec(), live in any_spec()) {
        let merged = three_way(spec_shape(), Some(&base), &file, Some(&live), &[""]);
        prop_assert_eq!(sorted(spec_shape(), &merged.result), sorted(spec_shape(), &file));
        prop_assert_eq!(merged.overrides, vec![]);
    }

    /// Without overrides the result means what the file says; with them, exactly there it does not.
    #[test]
    fn overrides_name_every_difference_from_the_file(base in any_spec(), file in any_spec(), live in any_spec()) {
        let merged = three_way(spec_shape(), Some(&base), &file, Some(&live), &[]);
        let paths: Vec<&str> = merged.overrides.iter().map(|o| o.path.as_str()).collect();
        let again = three_way(spec_shape(), Some(&base), &file, Some(&live), &paths);
        let meant = |value: &Value| {
            let read = ServiceFragment(sorted(spec_shape(), value).as_object().cloned().unwrap()).to_spec();
            let mut spec = read.unwrap();
            (spec.replicas, spec.drain) = (Some(spec.replicas()), Some(spec.drain()));
            spec
        };
        prop_assert_eq!(meant(&again.result), meant(&file));
        prop_assert_eq!(again.overrides, vec![]);
    }

    #[test]
    fn the_result_has_the_shape_and_can_be_read(base in any_spec(), file in any_spec(), live in any_spec()) {
        let merged = three_way(spec_shape(), Some(&base), &file, Some(&live), &[]);
        let mut result = merged.result.clone();
        prop_assert_eq!(walk::walk(spec_shape(), &mut result, Strictness::File), vec![]);
        let read: Result<ServiceSpec, _> = serde_json::from_value(merged.result);
        prop_assert!(read.is_ok());
    }

    #[test]
    fn merging_never_panics_on_what_has_no_shape(base in any_odd(), file in any_odd(), live in any_odd()) {
        let _ = three_way(spec_shape(), Some(&base), &file, Some(&live), &[]);
        let _ = overlay(spec_shape(), &base, &file);
    }
}

fn any_odd() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "replicas",
        "template",
        "container",
        "env",
        "name",
        "endpoint",
        "ports",
        "labels",
        "x",
    ]);
    let leaf = prop_oneof![Just(Value::Null), any::<i8>().prop_map(Value::from), "[a-c]{0,2}".prop_map(Value::from)];
    leaf.prop_recursive(6, 32, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::vec((names.clone(), inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}
