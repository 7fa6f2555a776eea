//! Whether a value is as its schema says, and what the schema fills in.

use std::collections::BTreeMap;

use reconciler_api::Fault;
use serde_json::{Map, Value, json};

use super::{DEPTH_MAX, OPEN, below, target};
use crate::advice;
use crate::shape::Shape;
use crate::walk::{self, FAULTS_MAX, Strictness};

/// Steps of one check. An object of the largest size takes a tenth of it; a schema of choices within choices could take for
/// ever.
const STEPS_MAX: usize = 1_000_000;

/// Checks a value by a schema, and fills values in.
pub(super) struct Checker<'s> {
    root: &'s Value,
    path: String,
    pub(super) faults: Vec<Fault>,
    steps: usize,
    depth: usize,
    /// Inside of a status.
    unknown_pass: bool,
}

impl<'s> Checker<'s> {
    pub(super) fn new(root: &'s Value) -> Self {
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

    pub(super) fn value(&mut self, schema: &'s Value, value: &Value) {
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

    pub(super) fn fill_field(&mut self, name: &str, schema: &'s Value, fields: &mut Map<String, Value>) {
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
