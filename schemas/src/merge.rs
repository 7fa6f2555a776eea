//! Merging what is said about one object by several: a file over a file, and the three-way merge of a deployment.
//!
//! Lists are merged by the keys that the schemas state (`x-kubernetes-list-map-keys`): env by name, ports by protocol,
//! target and published, mounts by target, networks by name. Everything here is a function over JSON values and a
//! [`Shape`]; nothing is read or written.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use reconciler_api::{Fault, Resource};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::quantity::{Cpus, Period, Size};
use crate::shape::{Field, Form, ListKind, Shape, TextFormat};
use crate::walk::list_key;

/// What a three-way merge comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// The merged spec, every quantity in its one spelling.
    pub result: Value,
    /// Where the result is not what the file says, because somebody set it by hand. In the order of the shape.
    pub overrides: Vec<Difference>,
}

/// One field in which two values differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// `replicas`, `template.container.env[LOG]`, `endpoint.ports[tcp,80,8080]`.
    pub path: String,
    /// Absent: the file says nothing about it.
    pub file: Option<Value>,
    /// Absent: it was removed by hand.
    pub live: Option<Value>,
}

/// Merges base (what was applied last), file (what is said now) and live (what is), field by field:
///
/// - base and file differ: the file's value, whoever changed it since;
/// - they agree, or neither says anything: the live value; where that is not the file's it is an override.
///
/// `reset` are paths (`replicas`, `template.container`; empty for everything) at and below which the file's word holds
/// whatever the base says. An optional part (a health check), and an entry of a list that has keys, comes and goes as a
/// whole. The order of a list is the live one, with new entries behind, so that a file with its lines sorted anew changes
/// nothing.
pub fn three_way(shape: &Shape, base: Option<&Value>, file: &Value, live: Option<&Value>, reset: &[&str]) -> Merged {
    let mut merge = Merge { reset, overrides: Vec::new() };
    let base = base.map(|base| canonical(shape, base)).unwrap_or(Value::Null);
    let file = canonical(shape, file);
    let live = live.map(|live| canonical(shape, live)).unwrap_or(Value::Null);
    let sides = Sides { base: said(&base), file: said(&file), live: said(&live) };
    let result = merge.value(shape, None, sides, "");
    Merged { result: result.unwrap_or_else(|| Value::Object(Map::new())), overrides: merge.overrides }
}

/// The spec of a live object after a deployment, and where it is not what the file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployed<T: Resource> {
    /// What the live object's spec becomes.
    pub spec: T::Spec,
    /// Where it is not what the file says, because somebody set it by hand; as in [`Merged`].
    pub overrides: Vec<Difference>,
}

/// [`three_way`] of the spec of a live object. Where what was set by hand and what the file says make no good object
/// together (a port published by hand that the file now gives to another), the file alone counts.
///
/// # Errors
/// Every fault of the object as the file alone would have it: something that never changes is said to be another.
pub fn deploy<T: Resource>(
    live: &T,
    base: Option<&Value>,
    file: &Value,
    reset: &[&str],
) -> Result<Deployed<T>, Vec<Fault>> {
    let shape = Shape::of::<T>();
    let anything = Shape { form: Form::Anything, nullable: true };
    let shape = shape.field("spec").map_or(&anything, |field| &field.shape);
    let live_spec = serde_json::to_value(live.spec()).unwrap_or_default();
    let with = |reset: &[&str]| {
        let Merged { result, overrides } = three_way(shape, base, file, Some(&live_spec), reset);
        let spec = T::Spec::deserialize(result).map_err(|error| vec![Fault::new("spec", error.to_string())])?;
        let mut object = live.clone();
        *object.spec_mut() = spec.clone();
        match object.validate(Some(live)) {
            faults if faults.is_empty() => Ok(Deployed { spec, overrides }),
            faults => Err(faults),
        }
    };
    with(reset).or_else(|_| with(&[""]))
}

/// `over` laid over `under`: what it says wins, `null` takes away, lists with keys are merged entry by entry and all
/// others replaced.
pub fn overlay(shape: &Shape, under: &Value, over: &Value) -> Value {
    match (&shape.form, under, over) {
        (Form::Object(fields) | Form::Tagged(fields), Value::Object(below), Value::Object(above)) => {
            let mut merged = below.clone();
            for (name, value) in above {
                let at = fields.get(name).map(|field| &field.shape);
                lay(&mut merged, name, value, at);
            }
            Value::Object(merged)
        }
        (Form::Map(values), Value::Object(below), Value::Object(above)) => {
            let mut merged = below.clone();
            for (name, value) in above {
                lay(&mut merged, name, value, Some(values));
            }
            Value::Object(merged)
        }
        (Form::List(items, kind), Value::Array(below), Value::Array(above)) if *kind != ListKind::Atomic => {
            let mut merged = below.clone();
            let mut places: BTreeMap<String, usize> = BTreeMap::new();
            for (index, item) in below.iter().enumerate() {
                places.entry(entry_key(items, kind, item)).or_insert(index);
            }
            for value in above {
                match places.get(&entry_key(items, kind, value)) {
                    Some(index) => merged[*index] = overlay(items, &merged[*index], value),
                    None => merged.push(value.clone()),
                }
            }
            Value::Array(merged)
        }
        _ => over.clone(),
    }
}

fn lay(merged: &mut Map<String, Value>, name: &str, value: &Value, shape: Option<&Shape>) {
    match (merged.get_mut(name), shape, value) {
        (_, _, Value::Null) => drop(merged.remove(name)),
        (Some(below), Some(shape), value) => *below = overlay(shape, below, value),
        (_, _, value) => drop(merged.insert(name.to_owned(), value.clone())),
    }
}

/// The value with every quantity in its one spelling, and without what says nothing: nulls, and lists and objects that
/// are empty and may as well be absent.
pub fn canonical(shape: &Shape, value: &Value) -> Value {
    match (&shape.form, value) {
        (Form::Object(fields) | Form::Tagged(fields), Value::Object(object)) => {
            let kept = object.iter().filter_map(|(name, value)| {
                let Some(field) = fields.get(name) else { return Some((name.clone(), value.clone())) };
                let value = canonical(&field.shape, value);
                let empty = match &value {
                    Value::Null => true,
                    Value::Array(list) => list.is_empty(),
                    Value::Object(object) => object.is_empty() && !field.shape.nullable,
                    _ => false,
                };
                (!empty || field.required).then_some((name.clone(), value))
            });
            Value::Object(kept.collect())
        }
        (Form::Map(values), Value::Object(object)) => {
            Value::Object(object.iter().map(|(name, value)| (name.clone(), canonical(values, value))).collect())
        }
        (Form::List(items, _), Value::Array(list)) => {
            Value::Array(list.iter().map(|item| canonical(items, item)).collect())
        }
        (Form::Text(format), Value::String(_) | Value::Number(_)) => {
            let spelt = match format {
                TextFormat::Duration => respelt::<Period>(value),
                TextFormat::Size => respelt::<Size>(value),
                TextFormat::Cpus => respelt::<Cpus>(value),
                _ => None,
            };
            spelt.unwrap_or_else(|| value.clone())
        }
        _ => value.clone(),
    }
}

fn respelt<T: serde::de::DeserializeOwned + serde::Serialize>(value: &Value) -> Option<Value> {
    serde_json::to_value(T::deserialize(value).ok()?).ok()
}

fn said(value: &Value) -> Option<&Value> {
    (!value.is_null()).then_some(value)
}

/// One place as the three see it.
#[derive(Clone, Copy)]
struct Sides<'a> {
    base: Option<&'a Value>,
    file: Option<&'a Value>,
    live: Option<&'a Value>,
}

impl<'a> Sides<'a> {
    fn map(self, step: impl Fn(&'a Value) -> Option<&'a Value>) -> Self {
        let step = |side: Option<&'a Value>| side.and_then(&step).and_then(said);
        Self { base: step(self.base), file: step(self.file), live: step(self.live) }
    }

    fn all(self, test: impl Fn(&Value) -> bool) -> bool {
        [self.base, self.file, self.live].into_iter().flatten().all(test)
    }
}

struct Merge<'r> {
    reset: &'r [&'r str],
    overrides: Vec<Difference>,
}

impl Merge<'_> {
    fn value(&mut self, shape: &Shape, field: Option<&Field>, sides: Sides<'_>, path: &str) -> Option<Value> {
        let agreed = sides.base == sides.file && !self.is_reset(path);
        match &shape.form {
            // What nobody touched since, and what only one knows, needs no closer look.
            _ if sides.file == sides.live && agreed => sides.file.cloned(),
            Form::Object(fields) if sides.all(Value::is_object) => self.object(shape, fields, agreed, sides, path),
            Form::Map(values) if sides.all(Value::is_object) => self.map(values, sides, path),
            Form::List(items, kind) if *kind != ListKind::Atomic && sides.all(Value::is_array) => {
                self.list(items, kind, sides, path)
            }
            _ => self.leaf(field, agreed, sides, path),
        }
    }

    /// A value that is taken as a whole.
    fn leaf(&mut self, field: Option<&Field>, agreed: bool, sides: Sides<'_>, path: &str) -> Option<Value> {
        if !agreed {
            return sides.file.cloned();
        }
        let default = field.and_then(|field| field.default.as_ref());
        let meant = |side: Option<&Value>| side.or(default).cloned();
        if meant(sides.file) != meant(sides.live) {
            self.overrides.push(Difference {
                path: path.to_owned(),
                file: sides.file.cloned(),
                live: sides.live.cloned(),
            });
        }
        sides.live.cloned()
    }

    fn object(
        &mut self,
        shape: &Shape,
        fields: &BTreeMap<String, Field>,
        agreed: bool,
        sides: Sides<'_>,
        path: &str,
    ) -> Option<Value> {
        // A part that may be absent is one thing where somebody has none: half a health check is no health check.
        if shape.nullable && (sides.file.is_none() || sides.live.is_none()) {
            return self.leaf(None, agreed, sides, path);
        }
        let mut result = Map::new();
        for name in names(sides) {
            let inner = sides.map(|side| side.get(name));
            let path = join(path, name);
            let merged = match fields.get(name) {
                Some(field) => self.value(&field.shape, Some(field), inner, &path),
                None => self.leaf(None, inner.base == inner.file && !self.is_reset(&path), inner, &path),
            };
            if let Some(value) = merged {
                result.insert(name.to_owned(), value);
            }
        }
        let empty = result.is_empty() && !shape.nullable && !path.is_empty();
        (!empty).then_some(Value::Object(result))
    }

    fn map(&mut self, values: &Shape, sides: Sides<'_>, path: &str) -> Option<Value> {
        let mut result = Map::new();
        for name in names(sides) {
            let inner = sides.map(|side| side.get(name));
            if let Some(value) = self.entry(values, inner, &join(path, name)) {
                result.insert(name.to_owned(), value);
            }
        }
        (!result.is_empty()).then_some(Value::Object(result))
    }

    fn list<'v>(&mut self, items: &Shape, kind: &ListKind, sides: Sides<'v>, path: &str) -> Option<Value> {
        let by_key = |side: Option<&'v Value>| -> BTreeMap<String, &'v Value> {
            let mut found = BTreeMap::new();
            for item in side.and_then(Value::as_array).into_iter().flatten() {
                found.entry(entry_key(items, kind, item)).or_insert(item);
            }
            found
        };
        let (base, file, live) = (by_key(sides.base), by_key(sides.file), by_key(sides.live));
        let mut seen = BTreeSet::new();
        let mut result = Vec::new();
        for side in [sides.live, sides.file, sides.base] {
            for item in side.and_then(Value::as_array).into_iter().flatten() {
                let key = entry_key(items, kind, item);
                if !seen.insert(key.clone()) {
                    continue;
                }
                let of = |side: &BTreeMap<String, &'v Value>| side.get(&key).copied();
                let inner = Sides { base: of(&base), file: of(&file), live: of(&live) };
                result.extend(self.entry(items, inner, &format!("{path}[{}]", shown(&key))));
            }
        }
        (!result.is_empty()).then_some(Value::Array(result))
    }

    /// An entry of a map or list: there or not as a whole, and looked into where the file and the live object have it.
    fn entry(&mut self, shape: &Shape, sides: Sides<'_>, path: &str) -> Option<Value> {
        match (sides.file, sides.live) {
            (Some(_), Some(_)) => self.value(shape, None, sides, path),
            _ => self.leaf(None, sides.base == sides.file && !self.is_reset(path), sides, path),
        }
    }

    fn is_reset(&self, path: &str) -> bool {
        self.reset.iter().any(|reset| {
            path.strip_prefix(reset)
                .is_some_and(|rest| reset.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }
}

fn names<'a>(sides: Sides<'a>) -> Vec<&'a str> {
    let all = [sides.base, sides.file, sides.live].into_iter().flatten().filter_map(Value::as_object);
    let names: BTreeSet<&'a str> = all.flat_map(|object| object.keys().map(String::as_str)).collect();
    names.into_iter().collect()
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What tells an entry from the others; one that does not say is told apart by all that it is.
fn entry_key(items: &Shape, kind: &ListKind, item: &Value) -> String {
    list_key(items, kind, item).unwrap_or_else(|| item.to_string())
}

/// A list's key as people read it: `["tcp",80,null]` is `tcp,80`.
fn shown(key: &str) -> Cow<'_, str> {
    let Ok(value) = serde_json::from_str::<Value>(key) else { return Cow::Borrowed(key) };
    let plain = |part: &Value| match part {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match &value {
        Value::Array(parts) => {
            Cow::Owned(parts.iter().filter(|part| !part.is_null()).map(plain).collect::<Vec<_>>().join(","))
        }
        other => Cow::Owned(plain(other)),
    }
}

#[cfg(test)]
mod tests;
