//! Kinds that a ResourceDefinition defines: what their objects must look like, and what is filled in.
//!
//! The schema is a part of JSON Schema that can be told in words and is checked in a bounded time: types, fields, lists,
//! words, ranges, references, defaults. What is not among it ([`KEYWORDS`]) is refused by name in a definition, and passed
//! over in one that is stored already: a newer version has written it, and knew what it meant. `pattern` is refused because
//! whoever writes objects could keep a manager busy with it.
//!
//! Fields that a schema does not name are refused, as in the kinds of this crate, so that a typing error does not go
//! unnoticed; `additionalProperties` says otherwise. Below `status` they pass.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use reconciler_api::{Column, ColumnType, Fault, Kind, ObjectMeta, Scope};
use serde_json::{Map, Value, json};

use crate::advice;
use crate::kinds::resource_definition::{DefinitionColumnType, DefinitionScope, ResourceDefinitionSpec, ScalePointers};
use crate::shape::Shape;
use crate::walk::{self, FAULTS_MAX, Strictness};

/// What of JSON Schema is served, beside annotations.
pub const KEYWORDS: [&str; 21] = [
    "type",
    "nullable",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "$ref",
    "$defs",
    "default",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
];
/// The same, of lists.
const OF_LISTS: [&str; 2] = ["maxItems", "uniqueItems"];
/// What says something to people alone.
const ANNOTATIONS: [&str; 9] =
    ["$schema", "$comment", "title", "description", "example", "examples", "deprecated", "readOnly", "writeOnly"];
const TYPES: [&str; 7] = ["object", "array", "string", "integer", "number", "boolean", "null"];
/// Kubernetes' way to say that an object may have other fields than those that are named.
const OPEN: &str = "x-kubernetes-preserve-unknown-fields";

/// Deeper schemas and objects are not looked into: ours are ten deep.
const DEPTH_MAX: usize = 64;
/// Steps of one check. An object of the largest size takes a tenth of it; a schema of choices within choices could take for
/// ever.
const STEPS_MAX: usize = 1_000_000;

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
            r#type: match column.kind {
                DefinitionColumnType::String => ColumnType::String,
                DefinitionColumnType::Integer => ColumnType::Integer,
                DefinitionColumnType::Number => ColumnType::Number,
                DefinitionColumnType::Boolean => ColumnType::Boolean,
                DefinitionColumnType::Date => ColumnType::Date,
            },
            wide: column.wide,
        };
        let kind = Kind {
            group: spec.group.clone().into(),
            version: spec.version.clone().into(),
            kind: spec.kind.clone().into(),
            plural: spec.plural.clone().into(),
            singular: spec.singular().into_owned().into(),
            short_names: spec.short_names.iter().cloned().map(Into::into).collect(),
            scope: match spec.scope {
                DefinitionScope::Namespaced => Scope::Namespaced,
                DefinitionScope::Cluster => Scope::Cluster,
            },
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

/// Every fault of a schema that is about to be stored, with paths below it.
pub fn schema_faults(schema: &Value) -> Vec<Fault> {
    let mut judge = Judge { root: schema, path: String::new(), faults: Vec::new(), schemas: 0 };
    judge.schema(schema, 0);
    if schema.get("type").is_some_and(|name| name != "object") {
        judge.at("type", |judge| judge.fault("is object: the schema is that of a whole object"));
    }
    judge.faults
}

/// More schemas than these in one are not looked at.
const SCHEMAS_MAX: usize = 10_000;

/// Judges a schema itself.
struct Judge<'a> {
    root: &'a Value,
    path: String,
    faults: Vec<Fault>,
    schemas: usize,
}

impl Judge<'_> {
    fn fault(&mut self, message: impl Into<String>) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault::new(self.path.clone(), message));
        }
    }

    fn at(&mut self, name: &str, judge: impl FnOnce(&mut Self)) {
        let path = below(&self.path, name);
        let outer = std::mem::replace(&mut self.path, path);
        judge(self);
        self.path = outer;
    }

    fn schema(&mut self, schema: &Value, depth: usize) {
        self.schemas += 1;
        if self.schemas > SCHEMAS_MAX || depth > DEPTH_MAX {
            return self.fault(format!("is too large: at most {SCHEMAS_MAX} schemas, {DEPTH_MAX} within each other"));
        }
        let Some(fields) = schema.as_object() else {
            // `true` is JSON Schema's "anything".
            if schema != &Value::Bool(true) {
                self.fault(format!("expected a schema, not {}", walk::show(schema)));
            }
            return;
        };
        let before = self.faults.len();
        for (name, value) in fields {
            self.at(name, |judge| judge.keyword(name, value, fields, depth));
        }
        if let (Some(default), true) = (fields.get("default").filter(|it| !it.is_null()), self.faults.len() == before) {
            let mut checker = Checker::new(self.root);
            checker.value(schema, default);
            if let Some(fault) = checker.faults.first() {
                let message = fault.to_string();
                self.at("default", |judge| judge.fault(format!("is refused by its own schema: {message}")));
            }
        }
    }

    fn keyword(&mut self, name: &str, value: &Value, beside: &Map<String, Value>, depth: usize) {
        let count = |judge: &mut Self| {
            if value.as_u64().is_none() {
                judge.fault(format!("expected a whole number from 0 on, not {}", walk::show(value)));
            }
        };
        match name {
            "type" => self.types(value),
            "properties" | "$defs" => match value.as_object() {
                Some(all) => {
                    for (name, schema) in all {
                        self.at(name, |judge| judge.schema(schema, depth + 1));
                    }
                }
                None => self.fault(format!("expected schemas by name, not {}", walk::show(value))),
            },
            "required" => {
                let known = beside.get("properties").and_then(Value::as_object);
                let Some(names) = value.as_array() else {
                    return self.fault(format!("expected a list of fields, not {}", walk::show(value)));
                };
                for (index, name) in names.iter().enumerate() {
                    let is_known = name.as_str().is_some_and(|name| known.is_some_and(|all| all.contains_key(name)));
                    if !is_known {
                        self.at(&format!("[{index}]"), |judge| {
                            judge.fault(format!("{} is none of the properties", walk::show_plain(name)));
                        });
                    }
                }
            }
            "additionalProperties" if value.is_boolean() => {}
            "additionalProperties" | "items" => self.schema(value, depth + 1),
            "anyOf" | "oneOf" => match value.as_array().filter(|all| !all.is_empty()) {
                Some(all) => {
                    for (index, schema) in all.iter().enumerate() {
                        self.at(&format!("[{index}]"), |judge| judge.schema(schema, depth + 1));
                    }
                }
                None => self.fault(format!("expected a list of schemas, not {}", walk::show(value))),
            },
            "enum" if value.as_array().is_none_or(Vec::is_empty) => {
                self.fault(format!("expected a list of values, not {}", walk::show(value)));
            }
            "$ref" => {
                if target(self.root, value).is_none() {
                    self.fault(format!("{} is none of #/$defs/NAME that there are", walk::show_plain(value)));
                }
            }
            "nullable" | "uniqueItems" if !value.is_boolean() => {
                self.fault(format!("expected true or false, not {}", walk::show(value)));
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" if !value.is_number() => {
                self.fault(format!("expected a number, not {}", walk::show(value)));
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" => count(self),
            _ if KEYWORDS.contains(&name) || OF_LISTS.contains(&name) || ANNOTATIONS.contains(&name) => {}
            _ if name.starts_with("x-") => {}
            _ => {
                let all: Vec<&str> = KEYWORDS.iter().chain(&OF_LISTS).copied().collect();
                match advice::nearest(name, all.iter().copied()) {
                    Some(near) => self.fault(format!("not served; did you mean {near}?")),
                    None => self.fault(format!("not served; served are {}", all.join(", "))),
                }
            }
        }
    }

    fn types(&mut self, value: &Value) {
        let named: Vec<&Value> = match value {
            Value::Array(all) if !all.is_empty() => all.iter().collect(),
            one => vec![one],
        };
        for one in named {
            match one.as_str() {
                Some(name) if TYPES.contains(&name) => {}
                name => {
                    let near = name.and_then(|name| advice::nearest(name, TYPES));
                    let advice = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                    let message = format!("{} is not one of {}{advice}", walk::show_plain(one), TYPES.join(", "));
                    self.fault(message);
                }
            }
        }
    }
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

/// Checks a value by a schema, and fills values in.
struct Checker<'s> {
    root: &'s Value,
    path: String,
    faults: Vec<Fault>,
    steps: usize,
    depth: usize,
    /// Inside of a status.
    unknown_pass: bool,
}

impl<'s> Checker<'s> {
    fn new(root: &'s Value) -> Self {
        Self { root, path: String::new(), faults: Vec::new(), steps: 0, depth: 0, unknown_pass: false }
    }

    fn fault(&mut self, message: impl Into<String>) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault::new(self.path.clone(), message));
        }
    }

    fn at(&mut self, name: &str, check: impl FnOnce(&mut Self)) {
        let path = below(&self.path, name);
        let outer = std::mem::replace(&mut self.path, path);
        check(self);
        self.path = outer;
    }

    /// Whether there is time for another step.
    fn goes_on(&mut self) -> bool {
        self.steps += 1;
        if self.steps == STEPS_MAX {
            self.fault("takes too long to check; its kind's schema has choices within choices");
        }
        self.steps < STEPS_MAX && self.depth < DEPTH_MAX && self.faults.len() < FAULTS_MAX
    }

    /// The schema that is meant: behind references, and behind the one choice that is not null.
    fn meant(&self, mut schema: &'s Value) -> (&'s Value, bool) {
        let mut nullable = false;
        for _ in 0..DEPTH_MAX {
            nullable |= is_nullable(schema);
            if let Some(reference) = schema.get("$ref") {
                match target(self.root, reference) {
                    Some(target) => schema = target,
                    None => break,
                }
                continue;
            }
            let Some(options) = options(schema) else { break };
            let mut others = options.iter().filter(|option| !is_null(option));
            nullable |= options.iter().any(is_null);
            match (others.next(), others.next()) {
                (Some(only), None) => schema = only,
                _ => break,
            }
        }
        (schema, nullable)
    }

    fn value(&mut self, schema: &'s Value, value: &Value) {
        if !self.goes_on() {
            return;
        }
        let (schema, nullable) = self.meant(schema);
        if value.is_null() && nullable {
            return;
        }
        self.depth += 1;
        self.by(schema, value);
        self.depth -= 1;
    }

    fn by(&mut self, schema: &'s Value, value: &Value) {
        if let Some(options) = options(schema) {
            self.either(options, value);
        }
        if let Some(only) = schema.get("const").filter(|only| *only != value) {
            self.fault(format!("{} is not {}", walk::show_plain(value), walk::show_plain(only)));
            return;
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array).filter(|words| !words.contains(value)) {
            self.none_of(words.iter(), value);
            return;
        }
        let types = types(schema);
        if !types.is_empty() && !types.iter().any(|name| is_of(name, value)) {
            self.mistyped(&types, value);
            return;
        }
        match value {
            Value::Object(fields) => self.object(schema, fields),
            Value::Array(items) => self.list(schema, items),
            Value::String(text) => self.text(schema, text, value),
            Value::Number(number) => self.number(schema, number),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn mistyped(&mut self, types: &[&str], value: &Value) {
        let words: Vec<&str> = types
            .iter()
            .map(|name| match *name {
                "object" => "an object",
                "array" => "a list",
                "string" => "a string",
                "integer" => "a whole number",
                "number" => "a number",
                "boolean" => "true or false",
                other => other,
            })
            .collect();
        let advice = match value {
            Value::String(text) if types.iter().any(|name| ["integer", "number"].contains(name)) => {
                text.parse::<f64>().map_or("", |_| "; take the quotes away")
            }
            Value::Number(_) | Value::Bool(_) if types == ["string"] => "; put it in quotes",
            Value::Null => "; leave the field out instead",
            _ => "",
        };
        self.fault(format!("expected {}, not {}{advice}", words.join(" or "), walk::show(value)));
    }

    fn none_of<'v>(&mut self, words: impl Iterator<Item = &'v Value> + Clone, value: &Value) {
        let all = words.clone().map(walk::show_plain).collect::<Vec<_>>().join(", ");
        let near = value.as_str().and_then(|text| advice::nearest(text, words.filter_map(Value::as_str)));
        let advice = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        self.fault(format!("{} is not one of {all}{advice}", walk::show_plain(value)));
    }

    fn either(&mut self, options: &'s [Value], value: &Value) {
        let before = self.faults.len();
        for option in options {
            self.value(option, value);
            if self.faults.len() == before {
                return;
            }
            if self.steps < STEPS_MAX {
                self.faults.truncate(before);
            }
        }
        if self.steps >= STEPS_MAX {
            return;
        }
        let words = options.iter().map(|option| option.get("const"));
        match words.collect::<Option<Vec<&Value>>>() {
            Some(words) => self.none_of(words.into_iter(), value),
            None => {
                self.fault(format!("{} is none of the {} forms that may stand here", walk::show(value), options.len()))
            }
        }
    }

    fn object(&mut self, schema: &'s Value, fields: &Map<String, Value>) {
        let known = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties");
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        for name in required.filter(|name| fields.get(*name).is_none_or(Value::is_null)) {
            self.at(name, |checker| checker.fault("is needed"));
        }
        // An object of which nothing is said may be any.
        let is_open = others == Some(&Value::Bool(true))
            || schema.get(OPEN) == Some(&Value::Bool(true))
            || (known.is_none() && others.is_none());
        for (name, value) in fields {
            match known.and_then(|known| known.get(name)) {
                Some(of) => self.at(name, |checker| checker.field(name, of, value)),
                None if matches!(others, Some(Value::Object(_))) => {
                    let of = others.unwrap_or(&Value::Null);
                    self.at(name, |checker| checker.value(of, value));
                }
                None if is_open || self.unknown_pass => {}
                None => {
                    let names: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                    let advice = match advice::nearest(name, names.iter().copied()) {
                        Some(near) => format!("; did you mean {near}?"),
                        None if names.len() <= 12 => format!("; known here: {}", names.join(", ")),
                        None => String::new(),
                    };
                    self.at(name, |checker| checker.fault(format!("unknown field{advice}")));
                }
            }
        }
    }

    fn field(&mut self, name: &str, schema: &'s Value, value: &Value) {
        // What is missing is told by whoever needs it.
        if value.is_null() && !self.meant(schema).1 {
            return self.fault("is null; leave the field out instead");
        }
        let outer = self.unknown_pass;
        self.unknown_pass |= name == "status" && self.path == name;
        self.value(schema, value);
        self.unknown_pass = outer;
    }

    fn list(&mut self, schema: &'s Value, items: &[Value]) {
        let (least, most) = (count(schema, "minItems"), count(schema, "maxItems"));
        self.length(items.len(), least, most, "entries");
        if let Some(of) = schema.get("items") {
            for (index, item) in items.iter().enumerate() {
                self.at(&format!("[{index}]"), |checker| checker.value(of, item));
            }
        }
        let keys: Vec<&str> = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("map") => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                keys.into_iter().flatten().filter_map(Value::as_str).collect()
            }
            Some("set") => Vec::new(),
            _ if schema.get("uniqueItems") == Some(&Value::Bool(true)) => Vec::new(),
            _ => return,
        };
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            let key = match keys.as_slice() {
                [] => item.to_string(),
                keys => keys.iter().map(|key| format!("{}\n", item.get(*key).unwrap_or(&Value::Null))).collect(),
            };
            if let Some(first) = seen.insert(key, index) {
                self.at(&format!("[{index}]"), |checker| {
                    checker.fault(format!("is given twice; the first is [{first}]"))
                });
            }
        }
    }

    fn text(&mut self, schema: &'s Value, text: &str, value: &Value) {
        let (least, most) = (count(schema, "minLength"), count(schema, "maxLength"));
        if least.is_some() || most.is_some() {
            self.length(text.chars().count(), least, most, "characters");
        }
        // Our own grammars; of others a schema only says what they are.
        let Some(format) = schema.get("format").and_then(Value::as_str) else { return };
        let shape = Shape::read(&json!({"type": "string", "format": format}));
        let found = walk::walk(&shape, &mut value.clone(), Strictness::Object);
        found.into_iter().for_each(|fault| self.fault(fault.message));
    }

    fn number(&mut self, schema: &'s Value, number: &serde_json::Number) {
        let is = number.as_f64().unwrap_or_default();
        let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
        let most = match schema.get("format").and_then(Value::as_str) {
            Some("int32") => Some(f64::from(i32::MAX)),
            Some("uint32") => Some(f64::from(u32::MAX)),
            _ => None,
        };
        if let Some(least) = bound("minimum").filter(|least| is < *least) {
            self.fault(format!("{number} is less than {least}"));
        } else if let Some(most) = bound("maximum").or(most).filter(|most| is > *most) {
            self.fault(format!("{number} is more than {most}"));
        } else if let Some(least) = bound("exclusiveMinimum").filter(|least| is <= *least) {
            self.fault(format!("{number} is not more than {least}"));
        } else if let Some(most) = bound("exclusiveMaximum").filter(|most| is >= *most) {
            self.fault(format!("{number} is not less than {most}"));
        }
    }

    fn length(&mut self, is: usize, least: Option<usize>, most: Option<usize>, of: &str) {
        if let Some(least) = least.filter(|least| is < *least) {
            self.fault(format!("has {is} {of}; at least {least}"));
        } else if let Some(most) = most.filter(|most| is > *most) {
            self.fault(format!("has {is} {of}; at most {most}"));
        }
    }

    fn fill(&mut self, schema: &'s Value, value: &mut Value) {
        if !self.goes_on() {
            return;
        }
        let (schema, _) = self.meant(schema);
        self.depth += 1;
        match value {
            Value::Object(fields) => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (name, of) in known.into_iter().flatten() {
                    self.fill_field(name, of, fields);
                }
                if let (Some(of @ Value::Object(_)), None) = (schema.get("additionalProperties"), known) {
                    fields.values_mut().for_each(|value| self.fill(of, value));
                }
            }
            Value::Array(items) => {
                if let Some(of) = schema.get("items") {
                    items.iter_mut().for_each(|item| self.fill(of, item));
                }
            }
            _ => {}
        }
        self.depth -= 1;
    }

    fn fill_field(&mut self, name: &str, schema: &'s Value, fields: &mut Map<String, Value>) {
        // What is said of a field goes before what is said of its type.
        let default = schema.get("default").or_else(|| self.meant(schema).0.get("default"));
        if let (Some(default), None) = (default.filter(|default| !default.is_null()), fields.get(name)) {
            fields.insert(name.to_owned(), default.clone());
        }
        if let Some(value) = fields.get_mut(name) {
            self.fill(schema, value);
        }
    }
}

fn options(schema: &Value) -> Option<&[Value]> {
    schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array).map(Vec::as_slice)
}

/// The types that a schema names, all of them allowed.
fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn is_null(schema: &Value) -> bool {
    types(schema) == ["null"]
}

/// Nothing is said of its type, or that null is one.
fn is_nullable(schema: &Value) -> bool {
    let says_nothing =
        ["type", "$ref", "anyOf", "oneOf", "enum", "const"].iter().all(|name| schema.get(name).is_none());
    says_nothing || schema.get("nullable") == Some(&Value::Bool(true)) || types(schema).contains(&"null")
}

fn is_of(name: &str, value: &Value) -> bool {
    match (name, value) {
        ("object", Value::Object(_))
        | ("array", Value::Array(_))
        | ("string", Value::String(_))
        | ("number", Value::Number(_))
        | ("boolean", Value::Bool(_))
        | ("null", Value::Null) => true,
        ("integer", Value::Number(number)) => {
            number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        _ => false,
    }
}

fn count(schema: &Value, name: &str) -> Option<usize> {
    schema.get(name).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok())
}

#[cfg(test)]
mod tests;
