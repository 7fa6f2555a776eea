//! The kinds of apply as the objects layer and the API serve them.

use reconciler::api::Fault;
use reconciler::objects::{Defined, Entry, Kinds, Part, Scale};
use reconciler::{Kind, Resource};
use schemas::definition::{self, Definition};
use schemas::kinds::ALL;
use schemas::kinds::Lease;
use schemas::kinds::resource_definition::ResourceDefinition;
use serde_json::Value;

pub use client::Leases;

/// Every kind, with its checks and its schema; leases have terms, and ResourceDefinitions define further kinds.
pub fn kinds() -> Kinds {
    let kinds = ALL.iter().fold(Kinds::new(), |kinds, registered| {
        let kind = (registered.kind)();
        let (check, others, defines) = (registered.check, kinds.defined(), kind == ResourceDefinition::kind());
        let kinds = kinds.with_check(kind.clone(), move |object, previous| {
            let mut faults = check(object, previous);
            if defines && faults.is_empty() {
                faults.extend(taken(object, previous, &others));
            }
            faults
        });
        kinds.with_schema(kind, (registered.schema)().to_value())
    });
    kinds.with_terms(Lease::kind(), "/spec/holder").defined_by(ResourceDefinition::kind(), defined)
}

/// The kind that a stored definition defines.
fn defined(object: &Value) -> Option<Entry> {
    let definition = serde_json::from_value::<ResourceDefinition>(object.clone()).ok()?;
    let definition = std::sync::Arc::new(Definition::of(&definition.spec));
    let (checks, fills) = (definition.clone(), definition.clone());
    let entry = Entry::new(definition.kind.clone(), move |object, previous| checks.check(object, previous));
    let mut entry = entry.filled_in_by(move |object, part| {
        let part = match part {
            Part::Main => definition::Part::Main,
            Part::Status => definition::Part::Status,
        };
        fills.fill_in(object, part);
    });
    entry.schema = Some(std::sync::Arc::new(definition.schema.clone()));
    entry.status = definition.status;
    entry.scale = definition.scale.as_ref().map(|scale| {
        std::sync::Arc::new(Scale {
            wanted: scale.spec_replicas.clone(),
            found: scale.status_replicas.clone(),
            selector: scale.label_selector.clone().unwrap_or_default(),
        })
    });
    Some(entry)
}

/// Names that another definition has: one word means one thing to whoever types it. Two that are made at the same moment on
/// two managers may both get theirs, which harms nobody: each is served under its own group, and whoever types the word is
/// asked which.
fn taken(object: &Value, previous: Option<&Value>, others: &Defined) -> Vec<Fault> {
    let Ok(definition) = serde_json::from_value::<ResourceDefinition>(object.clone()) else { return Vec::new() };
    let spec = &definition.spec;
    let names = |object: &Value| [&object["spec"]["singular"], &object["spec"]["shortNames"]].map(Value::clone);
    if previous.is_some_and(|previous| names(previous) == names(object)) {
        return Vec::new();
    }
    let short = spec.short_names.iter().enumerate();
    let short = short.map(|(index, name)| (format!("spec.shortNames[{index}]"), name.clone()));
    let singular = match &spec.singular {
        Some(singular) => ("spec.singular".to_owned(), singular.clone()),
        None => ("spec.kind".to_owned(), spec.singular().into_owned()),
    };
    let words = [("spec.plural".to_owned(), spec.plural.clone()), singular].into_iter().chain(short);
    let words = words.chain([("spec.kind".to_owned(), spec.kind.clone())]);
    let of_others: Vec<_> = others.all().into_iter().filter(|kind| kind.qualified() != definition.name()).collect();
    let mut faults: Vec<Fault> = words
        .filter_map(|(path, word)| {
            let other = of_others.iter().find(|kind| answers_to(kind, &word))?;
            Some(Fault::new(path, format!("{word:?} is what {} are called already", other.qualified())))
        })
        .collect();
    faults.sort();
    faults.dedup_by(|a, b| a.path == b.path);
    faults
}

fn answers_to(kind: &Kind, word: &str) -> bool {
    let names = [&kind.kind, &kind.plural, &kind.singular].into_iter().chain(&kind.short_names);
    names.into_iter().any(|name| name.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reconciler::leadership::{LeaseKind, Record};

    use super::*;

    #[test]
    fn a_definition_takes_nobodys_names() {
        let kinds = kinds();
        let definition = |plural: &str, kind: &str, short: &[&str]| {
            serde_json::json!({
                "apiVersion": "apply/v1", "kind": "ResourceDefinition", "metadata": {"name": format!("{plural}.example.com")},
                "spec": {"group": "example.com", "version": "v1", "kind": kind, "plural": plural, "shortNames": short},
            })
        };
        let faults = |object: &Value, previous: Option<&Value>| -> Vec<String> {
            let entry = kinds.get("resourcedefinitions.apply").unwrap();
            entry.check(object, previous).into_iter().map(|fault| fault.to_string()).collect()
        };
        assert_eq!(faults(&definition("widgets", "Widget", &["wi"]), None), [""; 0]);
        assert_eq!(
            faults(&definition("services", "Tasks", &["wid", "SVC"]), None),
            [
                "spec.kind: \"Tasks\" is what tasks are called",
                "spec.plural: \"services\" is what services are called",
                "spec.shortNames[1]: \"SVC\" is not a name (lower case letters, digits and '-', 63 at most, a letter or digit at both ends); did you mean svc?",
                "spec.shortNames[1]: \"SVC\" is what services are called",
            ]
        );
        let entry = defined(&definition("widgets", "Widget", &["wi"])).unwrap();
        assert_eq!(entry.kind.qualified(), "widgets.example.com");
        assert!(answers_to(&entry.kind, "WI") && answers_to(&entry.kind, "widget") && !answers_to(&entry.kind, "w"));
    }

    #[tokio::test]
    async fn nor_those_of_another_definition() {
        use reconciler::objects::{Client, Error, StoreObjects, Writer};
        use reconciler::seams::Seams;
        use reconciler::store::Memory;
        use schemas::kinds::resource_definition::ResourceDefinitionSpec;
        let objects = StoreObjects::open(std::sync::Arc::new(Memory::new()), "/apply", kinds(), Seams::real()).await;
        let ann = Client::new(std::sync::Arc::new(objects.unwrap()), Writer::new("user:ann", "tests"));
        let definition = |plural: &str, group: &str, kind: &str, short: &[&str]| {
            ResourceDefinition::new(
                format!("{plural}.{group}"),
                ResourceDefinitionSpec {
                    group: group.into(),
                    version: "v1".into(),
                    kind: kind.into(),
                    plural: plural.into(),
                    short_names: short.iter().map(|name| (*name).to_owned()).collect(),
                    ..Default::default()
                },
            )
        };
        let made = ann.create(&definition("widgets", "example.com", "Widget", &["wi"])).await.unwrap();
        for (other, path) in [
            (definition("widgets", "example.org", "Gadget", &[]), "spec.plural"),
            (definition("gadgets", "example.org", "Gadget", &["wi"]), "spec.shortNames[0]"),
            (definition("gadgets", "example.org", "Widget", &[]), "spec.kind"),
        ] {
            let refused = ann.create(&other).await.unwrap_err();
            let Error::Invalid { faults, .. } = &refused else { panic!("{refused}") };
            assert_eq!(faults.iter().map(|fault| fault.path.as_str()).collect::<Vec<_>>(), [path], "{refused}");
        }
        // Its own names are its own, and it may have others.
        let mut more = made.clone();
        more.spec.short_names.push("wid".into());
        ann.update(&made, &more).await.unwrap();
        ann.create(&definition("gadgets", "example.org", "Gadget", &["ga"])).await.unwrap();
    }

    #[test]
    fn a_lease_says_what_it_was_told() {
        let record = Record { holder: "m1/7".into(), ttl: Duration::from_secs(3), renewals: 4 };
        let mut lease = Leases::blank("controllers");
        Leases::write(&mut lease, &record);
        assert_eq!(Leases::read(&lease), record);
        lease.metadata.namespace = "apply-system".into();
        let object = serde_json::to_value(&lease).unwrap();
        assert_eq!(kinds().get("leases.apply").unwrap().check(&object, None), []);
    }
}
