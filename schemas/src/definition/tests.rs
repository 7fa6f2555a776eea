use proptest::prelude::*;
use reconciler_api::Resource;

use super::*;

fn definition(schema: Value) -> Definition {
    Definition::of(&ResourceDefinitionSpec {
        group: "example.dev".into(),
        version: "v1".into(),
        kind: "Site".into(),
        plural: "sites".into(),
        schema,
        ..Default::default()
    })
}

fn site_schema() -> Value {
    json!({
        "type": "object", "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object", "required": ["host"],
                "properties": {
                    "host": {"type": "string", "minLength": 1, "maxLength": 10},
                    "pages": {"type": "integer", "minimum": 0, "maximum": 9, "default": 1},
                    "mode": {"enum": ["fast", "safe"], "default": "safe"},
                    "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                    "limits": {"type": "object", "additionalProperties": {"type": "string", "format": "size"}},
                    "deep": {"type": "object", "properties": {"on": {"type": "boolean", "default": true}}},
                    "note": {"type": ["string", "null"]},
                    "any": {"type": "object"},
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/Kid"}},
                },
            },
            "status": {"type": "object", "properties": {"pages": {"type": "integer"}}},
        },
        "$defs": {"Kid": {
            "type": "object", "properties": {
                "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/Kid"}},
            },
        }},
    })
}

fn said(spec: Value) -> Vec<String> {
    let object = json!({"apiVersion": "example.dev/v1", "kind": "Site", "metadata": {"name": "a"}, "spec": spec});
    definition(site_schema()).check(&object, None).iter().map(ToString::to_string).collect()
}

#[test]
fn every_fault_is_told_by_its_path() {
    assert_eq!(
        said(json!({"host": "a", "note": null, "any": {"x": [1]}, "kids": [{"age": null, "kids": [{}]}]})),
        [""; 0]
    );
    assert_eq!(
        said(json!({
            "host": "", "pages": 10, "mode": "fats", "tags": ["a", "a", 1], "limits": {"memory": "lots"},
            "deep": {"off": true}, "kids": [{"kids": [{"age": "x"}]}], "pagess": 1,
        })),
        [
            "spec.deep.off: unknown field; known here: on",
            "spec.host: has 0 characters; at least 1",
            "spec.kids[0].kids[0].age: expected a whole number, not the string \"x\"",
            "spec.limits.memory: \"lots\" is not a size, such as 64Mi, 64m, 1.5g or a number of bytes",
            "spec.mode: \"fats\" is not one of \"fast\", \"safe\"; did you mean fast?",
            "spec.pages: 10 is more than 9",
            "spec.pagess: unknown field; did you mean pages?",
            "spec.tags[1]: is given twice; the first is [0]",
            "spec.tags[2]: expected a string, not 1; put it in quotes",
        ]
    );
    assert_eq!(
        said(json!({"pages": "3", "host": null})),
        [
            "spec.host: is needed",
            "spec.host: is null; leave the field out instead",
            "spec.pages: expected a whole number, not the string \"3\"; take the quotes away",
        ]
    );
    let object =
        json!({"metadata": {"name": "a", "lables": {}}, "spec": {"host": "a"}, "more": 1, "status": {"future": 1}});
    let faults: Vec<String> = definition(site_schema()).check(&object, None).iter().map(ToString::to_string).collect();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("metadata.lables: unknown field; did you mean labels?"), "{faults:?}");
    assert!(faults[1].starts_with("more: unknown field"), "{faults:?}");
}

#[test]
fn what_was_at_fault_before_is_not_held_against_other_changes() {
    let definition = definition(site_schema());
    let before = json!({"metadata": {"name": "a"}, "spec": {"host": "a", "old": 1}});
    let mut after = before.clone();
    after["spec"]["pages"] = 2.into();
    assert_eq!(definition.check(&after, Some(&before)), []);
    after["spec"]["pages"] = 20.into();
    assert_eq!(definition.check(&after, Some(&before)).len(), 1);
}

#[test]
fn what_is_left_out_is_filled_in_where_its_object_is() {
    let definition = definition(site_schema());
    let filled = |spec: Value| {
        let mut object = json!({"metadata": {"name": "a"}, "spec": spec});
        definition.fill_in(&mut object, Part::Main);
        object["spec"].clone()
    };
    assert_eq!(filled(json!({"host": "a"})), json!({"host": "a", "pages": 1, "mode": "safe"}));
    let said = json!({"host": "a", "pages": 3, "mode": "fast", "deep": {}});
    assert_eq!(filled(said)["deep"], json!({"on": true}));
    let mut status = json!({"spec": {}, "status": {}});
    definition.fill_in(&mut status, Part::Status);
    assert_eq!(status["spec"], json!({}));
}

#[test]
fn schemas_are_judged_by_name() {
    let said = |schema: Value| schema_faults(&schema).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(said(site_schema()), [""; 0]);
    assert_eq!(said(json!(true)), [""; 0]);
    let faults = said(json!({
        "type": "array",
        "properties": {
            "a": {"type": "strng"}, "b": {"pattern": "x"}, "c": {"requierd": []}, "d": {"$ref": "#/$defs/No"},
            "e": {"type": "integer", "default": "x"}, "f": {"minimum": "1"}, "g": 3, "h": {"enum": []},
        },
        "required": ["z"],
    }));
    let expected = [
        "properties.a.type: \"strng\" is not one of object, array, string, integer, number, boolean, null; did you mean string?",
        "properties.b.pattern: not served; served are type,",
        "properties.c.requierd: not served; did you mean required?",
        "properties.d.$ref: \"#/$defs/No\" is none of #/$defs/NAME that there are",
        "properties.e.default: is refused by its own schema: expected a whole number",
        "properties.f.minimum: expected a number",
        "properties.g: expected a schema, not 3",
        "properties.h.enum: expected a list of values",
        "required[0]: \"z\" is none of the properties",
        "type: is object",
    ];
    let mut sorted = faults.clone();
    sorted.sort();
    assert_eq!(sorted.len(), expected.len(), "{sorted:#?}");
    for (said, expected) in sorted.iter().zip(expected) {
        assert!(said.starts_with(expected), "{said}");
    }
}

#[test]
fn schemas_of_rust_types_are_understood() {
    for registered in crate::kinds::ALL {
        let schema = (registered.schema)().to_value();
        let mut faults = schema_faults(&schema);
        // Of one field of ours, for people.
        faults.retain(|fault| !fault.path.ends_with(".pattern"));
        assert_eq!(faults, [], "{}", (registered.kind)().kind);
    }
    // And mean the same: what the type takes, its schema takes.
    let schema = crate::kinds::Service::schema().to_value();
    let service: Value = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 2, "template": {"container": {"image": "x", "env": [{"name": "A", "value": "1"}]}}},
    });
    assert_eq!(definition(schema.clone()).check(&service, None), []);
    let wrong =
        json!({"metadata": {"name": "web"}, "spec": {"replicas": "2", "template": {"container": {"imge": "x"}}}});
    let paths: Vec<String> = definition(schema).check(&wrong, None).into_iter().map(|fault| fault.path).collect();
    assert_eq!(paths, ["spec.replicas", "spec.template.container.image", "spec.template.container.imge"]);
}

#[test]
fn choices_within_choices_end() {
    let mut choice = json!({"type": "integer"});
    for _ in 0..40 {
        choice =
            json!({"anyOf": [choice.clone(), {"type": "object", "properties": {"a": choice}}, {"type": "boolean"}]});
        if choice.to_string().len() > 100_000 {
            break;
        }
    }
    let looped = json!({"$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}, {"type": "null"}]}}, "properties": {"spec": {"$ref": "#/$defs/A"}}});
    // It ends: nothing else is asked.
    for schema in [json!({"properties": {"spec": choice}}), looped] {
        let _ = schema_faults(&schema);
        let _ = definition(schema).check(&json!({"spec": "x"}), None);
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..12i64).prop_map(Value::from),
        "[a-z]{0,3}".prop_map(Value::from),
        Just(json!("object")),
        Just(json!("string")),
        Just(json!("#/$defs/a")),
    ];
    let name = prop_oneof![
        "[a-c]",
        proptest::sample::select(KEYWORDS.to_vec()).prop_map(str::to_owned),
        Just("spec".to_owned()),
    ];
    leaf.prop_recursive(4, 40, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(name.clone(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// What stands in the store may be anything; so may what is sent.
    #[test]
    fn any_schema_and_any_object_are_judged(schema in json_value(), object in json_value()) {
        let _ = schema_faults(&schema);
        let definition = definition(schema);
        let _ = definition.check(&object, None);
        let mut filled = object;
        definition.fill_in(&mut filled, Part::Main);
        let once = filled.clone();
        definition.fill_in(&mut filled, Part::Main);
        prop_assert_eq!(once, filled, "filled in twice is filled in once");
    }
}
