//! What objects look like, as OpenAPI v3 documents: one for each group and version, made of the kinds' own schemas.
//! `kubectl explain` reads them, and `kubectl apply` finds in them that the server checks fields by itself.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use reconciler_api::{Kind, Scope};

use crate::objects::{Entry, Kinds};

/// `core`: kinds that `/api/v1` serves as well.
pub(super) fn index(kinds: &Kinds, core: &[Arc<Kind>]) -> Value {
    let all = kinds.all();
    let of_groups = all.iter().map(|entry| format!("apis/{}/{}", entry.kind.group, entry.kind.version));
    let of_core = core.first().map(|_| "api/v1".to_owned());
    let paths: Map<String, Value> = of_groups
        .chain(of_core)
        .map(|at| {
            let url = format!("/openapi/v3/{at}");
            (at, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `None` when no kind is of that group and version. The group without a name is that of `core`.
pub(super) fn document(kinds: &Kinds, core: &[Arc<Kind>], group: &str, version: &str) -> Option<Value> {
    let mut served: Vec<(Kind, Entry)> = Vec::new();
    for entry in kinds.all() {
        if entry.kind.group == group && entry.kind.version == version {
            served.push(((*entry.kind).clone(), entry));
        } else if group.is_empty() && version == "v1" && core.contains(&entry.kind) {
            let kind = Kind { group: "".into(), version: "v1".into(), ..(*entry.kind).clone() };
            served.push((kind, entry));
        }
    }
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for (kind, entry) in &served {
        let name = schema_name(kind);
        let schema = match &entry.schema {
            Some(schema) => component(&name, schema, &mut schemas),
            None => json!({"type": "object"}),
        };
        schemas.insert(name.clone(), typed(kind, schema));
        add_paths(kind, entry, &name, &mut paths);
    }
    (!schemas.is_empty()).then(|| {
        json!({
            "openapi": "3.0.0", "info": {"title": group, "version": version},
            "paths": paths, "components": {"schemas": schemas},
        })
    })
}

/// Kubernetes writes the group backwards; clients go by the `x-kubernetes-group-version-kind`.
fn schema_name(kind: &Kind) -> String {
    let group = if kind.group.is_empty() { "core" } else { &kind.group };
    let backwards: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{}.{}", backwards.join("."), kind.version, kind.kind)
}

fn group_version_kind(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn typed(kind: &Kind, mut schema: Value) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        schema.entry("type").or_insert_with(|| "object".into());
        schema.insert("x-kubernetes-group-version-kind".into(), json!([group_version_kind(kind)]));
    }
    schema
}

/// The schema with its own definitions moved beside it, each under the name of the kind, since two kinds may mean
/// different things by one word.
fn component(owner: &str, schema: &Value, schemas: &mut Map<String, Value>) -> Value {
    let mut schema = schema.clone();
    let definitions = schema.as_object_mut().and_then(|fields| {
        fields.remove("$schema");
        fields.remove("$defs")
    });
    for (name, mut definition) in definitions.and_then(|all| all.as_object().cloned()).unwrap_or_default() {
        to_openapi(owner, &mut definition);
        schemas.insert(format!("{owner}.{name}"), definition);
    }
    to_openapi(owner, &mut schema);
    schema
}

/// From JSON Schema 2020-12 to the dialect of OpenAPI 3.0: references, `const`, and `null` among types.
fn to_openapi(owner: &str, schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| to_openapi(owner, item)),
        Value::Object(fields) => {
            if let Some(name) = fields.get("$ref").and_then(Value::as_str).and_then(|at| at.strip_prefix("#/$defs/")) {
                let at = format!("#/components/schemas/{owner}.{name}");
                fields.insert("$ref".into(), at.into());
            }
            if let Some(only) = fields.remove("const") {
                fields.insert("enum".into(), json!([only]));
            }
            if let Some(types) = fields.get("type").and_then(Value::as_array).cloned() {
                let mut rest = types.iter().filter(|name| *name != "null");
                match (rest.next(), rest.next()) {
                    (Some(one), None) => fields.insert("type".into(), one.clone()),
                    _ => fields.remove("type"),
                };
                if types.iter().any(|name| name == "null") {
                    fields.insert("nullable".into(), true.into());
                }
            }
            for list in ["anyOf", "oneOf"] {
                let Some(choices) = fields.get_mut(list).and_then(Value::as_array_mut) else { continue };
                let before = choices.len();
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
                if choices.len() != before {
                    fields.insert("nullable".into(), true.into());
                }
            }
            // `true` as a schema is JSON Schema's "anything".
            for (name, value) in fields.iter_mut() {
                if name == "properties" {
                    for property in value.as_object_mut().into_iter().flat_map(Map::values_mut) {
                        if property.is_boolean() {
                            *property = json!({"x-kubernetes-preserve-unknown-fields": true});
                        }
                        to_openapi(owner, property);
                    }
                } else if !matches!(name.as_str(), "default" | "enum" | "example" | "examples") {
                    to_openapi(owner, value);
                }
            }
        }
        _ => {}
    }
}

fn add_paths(kind: &Kind, entry: &Entry, schema: &str, paths: &mut Map<String, Value>) {
    let root = match &*kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    };
    let at = match kind.scope {
        Scope::Namespaced => format!("{root}/namespaces/{{namespace}}/{}", kind.plural),
        Scope::Cluster => format!("{root}/{}", kind.plural),
    };
    let reference = json!({"$ref": format!("#/components/schemas/{schema}")});
    let parameter = |name: &str, description: &str| {
        json!({
            "name": name, "in": "query", "description": description,
            "schema": {"type": "string", "uniqueItems": true},
        })
    };
    let options = json!([
        parameter("dryRun", "All: everything is checked and nothing is written"),
        parameter("fieldManager", "who writes"),
        parameter("fieldValidation", "fields are always checked by the server"),
    ]);
    let operation = |action: &str, body: Option<&[&str]>| {
        let mut operation = json!({
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": group_version_kind(kind),
            "parameters": options,
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
        });
        if let Some(types) = body {
            let content: Map<String, Value> =
                types.iter().map(|name| ((*name).to_owned(), json!({"schema": reference}))).collect();
            operation["requestBody"] = json!({"content": content, "required": true});
        }
        operation
    };
    const JSON: &[&str] = &["application/json"];
    const PATCHES: &[&str] = &["application/merge-patch+json", "application/json-patch+json"];
    let whole = json!({
        "get": operation("get", None), "put": operation("put", Some(JSON)),
        "patch": operation("patch", Some(PATCHES)), "delete": operation("delete", None),
    });
    let part = json!({
        "get": operation("get", None), "put": operation("put", Some(JSON)), "patch": operation("patch", Some(PATCHES)),
    });
    paths.insert(at.clone(), json!({"get": operation("list", None), "post": operation("post", Some(JSON))}));
    paths.insert(format!("{at}/{{name}}"), whole);
    for (subresource, _) in [("status", entry.status), ("scale", entry.scale.is_some())].iter().filter(|(_, is)| *is) {
        paths.insert(format!("{at}/{{name}}/{subresource}"), part.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_rewritten_to_openapis_dialect() {
        let mut schema = json!({
            "properties": {
                "a": {"type": ["string", "null"]}, "b": {"anyOf": [{"$ref": "#/$defs/B"}, {"type": "null"}]},
                "c": true, "d": {"const": "x"}, "const": {"type": "string", "default": {"const": 1}},
            }
        });
        to_openapi("o", &mut schema);
        assert_eq!(
            schema["properties"],
            json!({
                "a": {"type": "string", "nullable": true},
                "b": {"anyOf": [{"$ref": "#/components/schemas/o.B"}], "nullable": true},
                "c": {"x-kubernetes-preserve-unknown-fields": true}, "d": {"enum": ["x"]},
                "const": {"type": "string", "default": {"const": 1}},
            })
        );
    }
}
