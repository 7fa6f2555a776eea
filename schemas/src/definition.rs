//! Kinds that a ResourceDefinition defines: what their objects must look like, and what is filled in.
//!
//! The schema is a part of JSON Schema that can be told in words and is checked in a bounded time: types, fields, lists,
//! words, ranges, references, defaults. What is not among it ([`KEYWORDS`]) is refused by name in a definition, and passed
//! over in one that is stored already: a newer version has written it, and knew what it meant. `pattern` is refused because
//! whoever writes objects could keep a manager busy with it.
//!
//! Fields that a schema does not name are refused, as in the kinds of this crate, so that a typing error does not go
//! unnoticed; `additionalProperties` says otherwise. Below `status` they pass.

mod check;
mod judge;

use std::sync::OnceLock;

use reconciler_api::{Column, Fault, Kind, ObjectMeta};
use serde_json::{Value, json};

use crate::kinds::resource_definition::{ResourceDefinitionSpec, ScalePointers};
use crate::shape::Shape;
use crate::walk::{self, Strictness};

use check::Checker;
pub use judge::{KEYWORDS, schema_faults};

/// Kubernetes' way to say that an object may have other fields than those that are named.
const OPEN: &str = "x-kubernetes-preserve-unknown-fields";

/// Deeper schemas and objects are not looked into: ours are ten deep.
const DEPTH_MAX: usize = 64;
/// A kind as it was defined, ready to be served.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Names, scope and columns.
    pub kind: Kind,
    /// JSON Schema of a whole object, with what every object has.
    pub schema: Value,
    /// Whether objects have a status.
    pub status: bool,
    /// Where objects say how many they are, if they can be scaled.
    pub scale: Option<ScalePointers>,
}

impl Definition {
    /// The kind that this defines. It is not asked whether the definition is right: one that is stored was right to whoever
    /// stored it.
    pub fn of(spec: &ResourceDefinitionSpec) -> Self {
        let column = |column: &crate::kinds::resource_definition::DefinitionColumn| Column {
            name: column.name.clone().into(),
            pointer: column.pointer.clone().into(),
            r#type: column.kind,
            wide: column.wide,
        };
        let kind = Kind {
            group: spec.group.clone().into(),
            version: spec.version.clone().into(),
            kind: spec.kind.clone().into(),
            plural: spec.plural.clone().into(),
            singular: spec.singular().into_owned().into(),
            short_names: spec.short_names.iter().cloned().map(Into::into).collect(),
            scope: spec.scope,
            managed_fields: true,
            sensitive: Vec::new(),
            columns: spec.columns.iter().map(column).collect(),
        };
        let status = spec.subresources.status;
        Self { kind, schema: whole(&spec.schema, status), status, scale: spec.subresources.scale.clone() }
    }

    /// Every fault of an object that is about to be stored. A fault that `previous` has too is not held against whoever
    /// changes something else: the schema may have become another since.
    pub fn check(&self, object: &Value, previous: Option<&Value>) -> Vec<Fault> {
        let mut faults = self.faults(object);
        if let (Some(previous), false) = (previous, faults.is_empty()) {
            let old = self.faults(previous);
            faults.retain(|fault| !old.contains(fault));
        }
        faults.sort();
        faults.dedup();
        faults
    }

    fn faults(&self, object: &Value) -> Vec<Fault> {
        let mut checker = Checker::new(&self.schema);
        checker.value(&self.schema, object);
        let mut faults = checker.faults;
        if let Some(metadata) = object.get("metadata") {
            let mut work = metadata.clone();
            let of_metadata = walk::walk(metadata_shape(), &mut work, Strictness::Object);
            faults.extend(of_metadata.into_iter().map(|fault| {
                let path = if fault.path.is_empty() { "metadata".into() } else { format!("metadata.{}", fault.path) };
                Fault::new(path, fault.message)
            }));
        }
        faults
    }

    /// Fills in what the status, or all but the status, leaves out and the schema has a default for: in objects that are
    /// there, and in no others.
    pub fn fill_in(&self, object: &mut Value, part: Part) {
        let mut checker = Checker::new(&self.schema);
        let (Some(fields), Some(properties)) = (object.as_object_mut(), self.schema["properties"].as_object()) else {
            return;
        };
        for (name, schema) in properties {
            let is_status = name == "status";
            if is_status == (part == Part::Status) && !ENVELOPE.contains(&name.as_str()) {
                checker.fill_field(name, schema, fields);
            }
        }
    }
}

/// Which half of an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status.
    Status,
}

/// What every object has, whatever its kind.
const ENVELOPE: [&str; 3] = ["apiVersion", "kind", "metadata"];

fn metadata_shape() -> &'static Shape {
    static SHAPE: OnceLock<Shape> = OnceLock::new();
    SHAPE.get_or_init(|| Shape::compile(&schemars::schema_for!(ObjectMeta)))
}

/// The author's schema with the envelope that every object has, in the place of what the author says of it.
fn whole(schema: &Value, status: bool) -> Value {
    let mut whole = if schema.is_object() { schema.clone() } else { json!({OPEN: true}) };
    whole["type"] = "object".into();
    if !whole["properties"].is_object() {
        whole["properties"] = json!({});
    }
    let mut settings = schemars::generate::SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    let mut metadata = settings.into_generator().into_root_schema_for::<ObjectMeta>().to_value();
    if let Some(fields) = metadata.as_object_mut() {
        fields.remove("$schema");
        // It is checked by its own shape.
        fields.insert(OPEN.into(), true.into());
    }
    let properties = &mut whole["properties"];
    properties["apiVersion"] = json!({"type": "string", "description": "Group and version of the kind."});
    properties["kind"] = json!({"type": "string", "description": "Name of the kind, in CamelCase."});
    properties["metadata"] = metadata;
    match (status, properties.get("status")) {
        (true, None) => properties["status"] = json!({"type": "object", OPEN: true}),
        (false, Some(_)) => drop(properties.as_object_mut().map(|fields| fields.remove("status"))),
        _ => {}
    }
    whole
}

fn below(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path if name.starts_with('[') => format!("{path}{name}"),
        path => format!("{path}.{name}"),
    }
}

fn target<'s>(root: &'s Value, reference: &Value) -> Option<&'s Value> {
    root.get("$defs")?.get(reference.as_str()?.strip_prefix("#/$defs/")?)
}

#[cfg(test)]
mod tests;
