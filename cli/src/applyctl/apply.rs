//! `apply -f`: the objects of files become so, all of them or none.

use std::sync::Arc;

use reconciler::objects::{Error, Part, Patch, Precondition, Write};
use reconciler::{Kind, ObjectRef};
use schemas::source::Located;
use serde_json::{Map, Value, json};

use super::args::Apply;
use super::failure::{Exit, Failure};
use super::served;
use super::session::{Session, namespace_of, read_file};

/// How often everything is decided anew when objects were changed meanwhile.
const TRIES: usize = 10;

/// What `applyctl apply` said last about an object: what it no longer says is taken away.
const LAST_APPLIED: &str = "apply/applied";

struct Wanted {
    kind: Arc<Kind>,
    reference: ObjectRef,
    value: Value,
}

pub async fn run(session: &mut Session, apply: &Apply) -> Result<(), Failure> {
    session.because(&apply.reason);
    let wanted = read(session, apply).await?;
    for attempt in 1.. {
        let (mut writes, mut words) = (Vec::new(), Vec::new());
        for one in &wanted {
            let (write, word) = decide(session, one).await?;
            writes.push(write);
            words.push(word);
        }
        let client = if apply.dry_run { session.trying() } else { session.client.clone() };
        match client.commit(writes).await {
            Ok(committed) => {
                for ((one, word), outcome) in wanted.iter().zip(words).zip(committed.outcomes) {
                    let word = if outcome.changed { word } else { "unchanged" };
                    let note = if apply.dry_run { " (nothing was changed: --dry-run)" } else { "" };
                    session.screen.data(&format!("{}/{} {word}{note}\n", one.kind.singular, one.reference.name))?;
                }
                return Ok(());
            }
            Err(error) if attempt < TRIES && (error.is_conflict() || error.is_not_found()) => {}
            Err(Error::UnknownOutcome { .. }) if attempt < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn read(session: &mut Session, apply: &Apply) -> Result<Vec<Wanted>, Failure> {
    let mut others = None;
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut refusals: Vec<String> = Vec::new();
    for path in &apply.files {
        let shown = path.display().to_string();
        match schemas::objects::read(&read_file(path)?) {
            Err(faults) => refusals.extend(lines(&shown, &faults)),
            Ok(found) => {
                for from_file in found {
                    let at = from_file.at;
                    let object = from_file.object.into_inner();
                    let kind = match object.kind {
                        Some(kind) => Ok(Arc::new(kind.clone())),
                        None => others_kind(session, &mut others, &object.value).await?,
                    };
                    match kind.and_then(|kind| resolve(session, kind, object.value)) {
                        Err(message) => refusals.push(format!("{shown}:{at}  {message}")),
                        Ok(one) => {
                            if wanted.iter().any(|other| other.kind == one.kind && other.reference == one.reference) {
                                refusals.push(format!(
                                    "{shown}:{at}  {} {} is given twice",
                                    one.kind.singular, one.reference.name
                                ));
                            }
                            wanted.push(one);
                        }
                    }
                }
            }
        }
    }
    if wanted.len() > reconciler::store::KEYS_PER_COMMIT {
        refusals.push(format!("{} objects are more than go at once (100); split the files", wanted.len()));
    }
    if refusals.is_empty() {
        return Ok(wanted);
    }
    for refusal in &refusals {
        session.screen.fail(refusal)?;
    }
    Err(Failure::new(Exit::Refused, "nothing was changed"))
}

fn lines(file: &str, faults: &[Located]) -> Vec<String> {
    faults.iter().map(|fault| format!("{file}:{fault}")).collect()
}

/// A file whose faults are told, a line each.
pub fn refused(file: &str, faults: &[Located]) -> Failure {
    Failure::new(Exit::Refused, format!("{} cannot be read\n  {}", file, lines(file, faults).join("\n  ")))
}

/// The kind of another author that an object says it is of, if the cluster serves it; `others` are asked for once.
pub async fn others_kind(
    session: &Session,
    others: &mut Option<Vec<Arc<Kind>>>,
    object: &Value,
) -> Result<Result<Arc<Kind>, String>, Failure> {
    if others.is_none() {
        *others = Some(served::others(session).await?);
    }
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (version, word) = (text("apiVersion"), text("kind"));
    let mut served = others.iter().flatten();
    let found = served.find(|kind| kind.kind == word && kind.api_version() == version);
    Ok(found.cloned().ok_or_else(|| {
        format!("kind: no {word} of {version} is served; its ResourceDefinition goes before it, in a file of its own")
    }))
}

fn resolve(session: &Session, kind: Arc<Kind>, mut value: Value) -> Result<Wanted, String> {
    let kind = &*kind;
    let given = value["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let namespace = namespace_of(kind, if given.is_empty() { &session.namespace } else { &given });
    if let Some(metadata) = value["metadata"].as_object_mut() {
        // What an answer of the API has and a writer does not decide.
        for field in ["uid", "generation", "creationTimestamp", "managedFields", "deletionTimestamp"] {
            metadata.remove(field);
        }
        if namespace.is_empty() {
            metadata.remove("namespace");
        } else {
            metadata.insert("namespace".into(), namespace.clone().into());
        }
    }
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(Wanted { kind: Arc::new(kind.clone()), reference: ObjectRef::new(namespace, name), value })
}

async fn decide(session: &Session, wanted: &Wanted) -> Result<(Write, &'static str), Failure> {
    let mut said = wanted.value.clone();
    let version = said["metadata"].as_object_mut().and_then(|metadata| metadata.remove("resourceVersion"));
    let record = record(&said);
    let stored = match session.client.objects().get(&wanted.kind, &wanted.reference).await {
        Ok(stored) => stored,
        Err(error) if error.is_not_found() => {
            note(&mut said, &record);
            return Ok((Write::Create { kind: wanted.kind.clone(), object: said }, "created"));
        }
        Err(error) => return Err(error.into()),
    };
    let live = stored.to_value()?;
    let base = live["metadata"]["annotations"][LAST_APPLIED].as_str().and_then(|text| serde_json::from_str(text).ok());
    note(&mut said, &record);
    let patch = merge_patch(base.as_ref().unwrap_or(&Value::Null), &said);
    let resource_version = match version.as_ref().and_then(Value::as_str) {
        // Whoever names a version wants to change that one and no other.
        Some(text) => text.parse().ok(),
        None => None,
    };
    let uid = live["metadata"]["uid"].as_str().map(schemas::Uid::new);
    let write = Write::Update {
        kind: wanted.kind.clone(),
        reference: wanted.reference.clone(),
        part: Part::Main,
        patch: Patch::Merge(patch),
        precondition: Precondition { uid, resource_version },
    };
    Ok((write, "changed"))
}

/// What the file says, without the record itself. Values of sensitive fields are never repeated in it.
fn record(said: &Value) -> String {
    let kind = said["kind"].as_str().and_then(schemas::kinds::find).map(|registered| (registered.kind)());
    let mut record = json!({"metadata": {"labels": said["metadata"]["labels"]}, "spec": said["spec"]});
    for pointer in kind.iter().flat_map(|kind| &kind.sensitive) {
        if let Some(value) = record.pointer_mut(pointer) {
            *value = Value::Null;
        }
    }
    record.to_string()
}

fn note(said: &mut Value, record: &str) {
    said["metadata"]["annotations"][LAST_APPLIED] = record.into();
}

/// RFC 7396: what is said now, and null for what was said before and is not any more.
fn merge_patch(before: &Value, now: &Value) -> Value {
    let (Some(new), before) = (now.as_object(), before.as_object()) else { return now.clone() };
    let empty = Map::new();
    let before = before.unwrap_or(&empty);
    let mut patch: Map<String, Value> =
        before.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null)).collect();
    for (key, value) in new {
        patch.insert(key.clone(), merge_patch(before.get(key).unwrap_or(&Value::Null), value));
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_longer_said_is_taken_away_and_the_rest_is_left() {
        let before = json!({"spec": {"a": 1, "b": {"c": 1, "d": [1]}}});
        let now = json!({"spec": {"a": 2, "b": {"d": [1, 2]}}});
        assert_eq!(merge_patch(&before, &now), json!({"spec": {"a": 2, "b": {"c": null, "d": [1, 2]}}}));
        assert_eq!(merge_patch(&Value::Null, &now), now);
    }

    #[test]
    fn a_password_is_not_repeated_in_the_record() {
        let login =
            json!({"kind": "RegistryLogin", "metadata": {"name": "x"}, "spec": {"username": "ann", "password": "pw"}});
        assert!(!record(&login).contains("pw"));
        assert!(record(&login).contains("ann"));
    }
}
