//! From a kind in Rust to the object that has it served.

use std::any::TypeId;
use std::collections::BTreeSet;

use reconciler::Resource;
use reconciler::api::meta::NoStatus;
use schemas::kinds::resource_definition::{DefinitionColumn, ResourceDefinition, ResourceDefinitionSpec};
use serde_json::Value;

/// The ResourceDefinition of a kind: what `#[resource(…)]` says of it, and the schema that its fields make.
///
/// What the type's own `validate` says is not in it: a controller that is given what it cannot mean says so in the status.
pub fn definition<T: Resource>() -> ResourceDefinition {
    let kind = T::kind();
    let mut schema = T::schema().to_value();
    let has_status = TypeId::of::<T::Status>() != TypeId::of::<NoStatus>();
    if let Some(properties) = schema["properties"].as_object_mut() {
        // What every object has is nobody's to say.
        properties.retain(|name, _| name == "spec" || (name == "status" && has_status));
    }
    if let Some(fields) = schema.as_object_mut() {
        fields.remove("$schema");
        let mut used = BTreeSet::new();
        fields.iter().filter(|(name, _)| *name != "$defs").for_each(|(_, value)| references(value, &mut used));
        let mut all = fields.remove("$defs").unwrap_or_default();
        let mut kept = serde_json::Map::new();
        while let Some(name) = used.pop_first() {
            if let Some(definition) = all.as_object_mut().and_then(|all| all.remove(&name)) {
                references(&definition, &mut used);
                kept.insert(name, definition);
            }
        }
        if !kept.is_empty() {
            fields.insert("$defs".into(), kept.into());
        }
    }
    let column = |column: &reconciler::api::Column| DefinitionColumn {
        name: column.name.to_string(),
        pointer: column.pointer.to_string(),
        kind: column.r#type,
        wide: column.wide,
    };
    let mut spec = ResourceDefinitionSpec {
        group: kind.group.to_string(),
        version: kind.version.to_string(),
        kind: kind.kind.to_string(),
        plural: kind.plural.to_string(),
        singular: (kind.singular != kind.kind.to_lowercase()).then(|| kind.singular.to_string()),
        short_names: kind.short_names.iter().map(ToString::to_string).collect(),
        scope: kind.scope,
        schema,
        columns: kind.columns.iter().map(column).collect(),
        ..ResourceDefinitionSpec::default()
    };
    spec.subresources.status = has_status;
    ResourceDefinition::new(kind.qualified(), spec)
}

/// Names of the definitions that a schema refers to.
fn references(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str).and_then(|at| at.strip_prefix("#/$defs/"));
            found.extend(name.map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use schemas::definition::Definition;
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;

    #[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[resource(
        group = "example.com",
        version = "v1",
        kind = "Alarm",
        status = AlarmStatus,
        short("al"),
        column("SERVICE", "/spec/service"),
        crate = reconciler::api
    )]
    struct AlarmSpec {
        service: String,
        #[serde(default)]
        least: u32,
        when: Option<When>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum When {
        /// By night.
        Night,
        /// By day.
        Day,
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    struct AlarmStatus {
        running: u32,
    }

    #[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[resource(group = "example.com", version = "v1", kind = "Mark", scope = "Cluster", crate = reconciler::api)]
    struct MarkSpec {}

    #[test]
    fn a_type_defines_a_kind_that_takes_what_the_type_takes() {
        let defined = definition::<Alarm>();
        let object = serde_json::to_value(&defined).unwrap();
        let registered = schemas::kinds::find("resourcedefinition").unwrap();
        assert_eq!((registered.check)(&object, None), []);
        assert!(!object.to_string().contains("ownerReferences"), "what every object has is not said: {object}");
        let kind = Definition::of(&defined.spec);
        assert_eq!(&kind.kind, Alarm::kind());
        let alarm = |spec: Value| json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec});
        for (spec, paths) in [
            (json!({"service": "web", "least": 2, "when": "night"}), vec![]),
            (json!({"service": "web", "when": null}), vec![]),
            (json!({"service": "web", "least": -1}), vec!["spec.least"]),
            (json!({"least": "2", "when": "dusk"}), vec!["spec.least", "spec.service", "spec.when"]),
        ] {
            let faults: Vec<String> =
                kind.check(&alarm(spec.clone()), None).into_iter().map(|fault| fault.path).collect();
            assert_eq!(faults, paths, "{spec}");
            assert_eq!(serde_json::from_value::<Alarm>(alarm(spec.clone())).is_ok(), paths.is_empty(), "{spec}");
        }
        let mut filled = alarm(json!({"service": "web"}));
        kind.fill_in(&mut filled, schemas::definition::Part::Main);
        assert_eq!(filled["spec"], json!({"service": "web", "least": 0}));
    }

    #[test]
    fn a_kind_without_a_status_has_none() {
        let defined = definition::<Mark>();
        assert!(!defined.spec.subresources.status);
        assert_eq!((registered().check)(&serde_json::to_value(&defined).unwrap(), None), []);
        assert_eq!(&Definition::of(&defined.spec).kind, Mark::kind());
    }

    fn registered() -> &'static schemas::kinds::Registered {
        schemas::kinds::find("resourcedefinition").unwrap()
    }
}
