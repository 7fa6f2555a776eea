//! From JSON to an object that may be stored: every fault at once, or a [`Valid`].

use std::ops::Deref;

use reconciler_api::{Fault, Kind, Resource, Scope};
use serde_json::Value;

use crate::acting;
use crate::advice;
use crate::kinds;
use crate::names;
use crate::shape::Shape;
use crate::walk::{self, Strictness};

/// An object without a fault. Only this crate makes one, and only by checking.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid<T>(T);

impl<T> Valid<T> {
    /// The object itself, which from here on anybody may change.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Valid<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Reads one object of a known kind as a person wrote it: `null` is nothing, and `apiVersion` and `kind` may be left
/// out.
///
/// # Errors
/// Every fault, each with its path and what would be right.
pub fn read_object<T: Resource>(object: Value) -> Result<Valid<T>, Vec<Fault>> {
    let (typed, mut faults) = inspect::<T>(&object, None, Strictness::File);
    let envelope = envelope(T::kind(), &object);
    faults.extend(beside(&faults, envelope));
    match typed {
        Some(typed) if faults.is_empty() => Ok(Valid(typed)),
        _ => Err(tidy(faults)),
    }
}

/// An object of any kind as a person wrote it, checked as far as this version knows its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct AnyObject {
    /// Absent for kinds of other authors, which only their cluster can check.
    pub kind: Option<&'static Kind>,
    /// With what people may leave out filled in, and without nulls.
    pub value: Value,
}

/// Reads one object of any kind, named by its `apiVersion` and `kind`.
///
/// # Errors
/// Every fault, each with its path and what would be right.
pub fn read_any(object: Value) -> Result<Valid<AnyObject>, Vec<Fault>> {
    let text = |field: &str| object.get(field).and_then(Value::as_str);
    if !object.is_object() {
        return Err(vec![Fault::new("", format!("expected an object, not {}", walk::show(&object)))]);
    }
    let (Some(api_version), Some(word)) = (text("apiVersion"), text("kind")) else {
        let missing = ["apiVersion", "kind"].into_iter().filter(|field| text(field).is_none());
        let said = |field| match field {
            "apiVersion" => Fault::new(field, format!("is needed: {}/{}", kinds::GROUP, kinds::VERSION)),
            _ => Fault::new(field, "is needed, such as Service"),
        };
        return Err(missing.map(said).collect());
    };
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    if group != kinds::GROUP {
        return foreign(api_version, &object);
    }
    let all = || kinds::ALL.iter().map(|registered| (registered.kind)());
    let Some(kind) = all().find(|kind| kind.kind == word) else {
        let names: Vec<String> = all().map(|kind| kind.kind.to_string()).collect();
        let message = match advice::nearest(word, names.iter().map(String::as_str)) {
            Some(near) => format!("{word:?} is not a kind; did you mean {near}?"),
            None => format!("{word:?} is not a kind; there are {}", names.join(", ")),
        };
        return Err(vec![Fault::new("kind", message)]);
    };
    let mut faults = Vec::new();
    let mut value = object;
    if let (Some(registered), Some(shape)) = (kinds::find(&kind.plural), Shape::of_kind(&kind.plural)) {
        faults.extend((registered.check_file)(&value));
        let envelope = envelope(kind, &value);
        faults.extend(beside(&faults, envelope));
        if faults.is_empty() {
            walk::walk(shape, &mut value, Strictness::File);
        }
    }
    if faults.is_empty() { Ok(Valid(AnyObject { kind: Some(kind), value })) } else { Err(tidy(faults)) }
}

/// Kinds of other authors are not ours to judge; that there is a name is.
fn foreign(api_version: &str, object: &Value) -> Result<Valid<AnyObject>, Vec<Fault>> {
    if matches!(api_version.split_once('/'), None | Some(("", _))) {
        return Err(vec![Fault::new(
            "apiVersion",
            format!("{api_version:?} is not a group and version, such as {}/{}", kinds::GROUP, kinds::VERSION),
        )]);
    }
    match object.pointer("/metadata/name").and_then(Value::as_str) {
        Some(_) => Ok(Valid(AnyObject { kind: None, value: object.clone() })),
        None => Err(vec![Fault::new("metadata.name", "is needed")]),
    }
}

/// Every fault of an object that is about to be stored. `previous` is what is stored: a fault that it has too is not
/// held against whoever changes something else, since a newer version, or a looser older one, may have written it.
pub fn check<T: Resource>(object: &Value, previous: Option<&Value>) -> Vec<Fault> {
    let typed_previous = previous.and_then(|value| T::deserialize(value).ok());
    let (_, mut faults) = inspect::<T>(object, typed_previous.as_ref(), Strictness::Object);
    if let (Some(previous), false) = (previous, faults.is_empty()) {
        let (_, old) = inspect::<T>(previous, None, Strictness::Object);
        faults.retain(|fault| !old.contains(fault));
    }
    tidy(faults)
}

/// As [`check`] for an object that a person wrote.
pub(crate) fn check_file<T: Resource>(object: &Value) -> Vec<Fault> {
    inspect::<T>(object, None, Strictness::File).1
}

fn inspect<T: Resource>(object: &Value, previous: Option<&T>, strictness: Strictness) -> (Option<T>, Vec<Fault>) {
    let shape = Shape::of::<T>();
    let mut work = object.clone();
    let mut faults = walk::walk(&shape, &mut work, strictness);
    // What it says it is has been judged before, by whoever chose `T` for it.
    for field in ["apiVersion", "kind"] {
        work.as_object_mut().and_then(|object| object.remove(field));
    }
    let typed = T::deserialize(&work);
    let meaning = match &typed {
        Ok(typed) => typed.validate(previous),
        Err(error) if faults.is_empty() => vec![Fault::new("", error.to_string())],
        Err(_) => Vec::new(),
    };
    let meaning = beside(&faults, meaning);
    faults.extend(meaning);
    faults.extend(acting::faults(T::kind(), &shape, &work));
    (typed.ok(), faults)
}

/// Those of `meaning` that are not said already, nor about something that a fault of the shape has already taken out of the object.
pub(crate) fn beside(shape_faults: &[Fault], meaning: Vec<Fault>) -> Vec<Fault> {
    let under = |path: &str, outer: &str| {
        path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let spoilt = |fault: &Fault| {
        shape_faults
            .iter()
            .any(|said| under(&fault.path, &said.path) || (fault.path.ends_with(']') && under(&said.path, &fault.path)))
    };
    meaning.into_iter().filter(|fault| !spoilt(fault)).collect()
}

/// What is wrong with how an object says what it is and what it is called.
fn envelope(kind: &Kind, object: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_string())] {
        match object.get(field) {
            Some(Value::String(said)) if *said != expected => {
                faults.push(Fault::new(field, format!("{said:?} is not {expected:?}")));
            }
            _ => {}
        }
    }
    if object.is_object() {
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        match metadata.get("name") {
            None | Some(Value::Null) => faults.push(Fault::new("metadata.name", "is needed")),
            Some(Value::String(name)) => {
                faults.extend(names::object_name_fault(name).map(|m| Fault::new("metadata.name", m)))
            }
            Some(_) => {}
        }
        match (kind.scope, metadata.get("namespace")) {
            (Scope::Cluster, Some(Value::String(namespace))) if !namespace.is_empty() => {
                faults.push(Fault::new("metadata.namespace", format!("{} objects have no namespace", kind.kind)));
            }
            (Scope::Namespaced, Some(Value::String(namespace))) if !namespace.is_empty() => {
                faults.extend(names::label_fault(namespace).map(|m| Fault::new("metadata.namespace", m)));
            }
            _ => {}
        }
    }
    faults
}

fn tidy(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort();
    faults.dedup();
    faults
}

#[cfg(test)]
mod tests;
