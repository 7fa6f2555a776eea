//! Whether a schema is one that can be served: each keyword known, and what stands at it of its form.

use reconciler_api::Fault;
use serde_json::{Map, Value};

use super::check::Checker;
use super::{DEPTH_MAX, below, target};
use crate::advice;
use crate::walk::{self, FAULTS_MAX};

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
