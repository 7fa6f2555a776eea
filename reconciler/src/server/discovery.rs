//! What there is: groups, versions, kinds, in the form that Kubernetes' clients discover (`APIGroupList`,
//! `APIResourceList`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use reconciler_api::{Kind, Scope};

use crate::objects::{Kinds, Scale};

pub(super) fn groups(kinds: &Kinds) -> Value {
    let all = kinds.all();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for entry in &all {
        versions.entry(&entry.kind.group).or_default().insert(&entry.kind.version);
    }
    let groups: Vec<Value> = versions.iter().map(|(group, versions)| described(group, versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `None` when no kind is of that group.
pub(super) fn group(kinds: &Kinds, group: &str) -> Option<Value> {
    let all = kinds.all();
    let of_group = all.iter().filter(|entry| entry.kind.group == group);
    let versions: BTreeSet<&str> = of_group.map(|entry| &*entry.kind.version).collect();
    if versions.is_empty() {
        return None;
    }
    let mut described = described(group, &versions);
    described["kind"] = "APIGroup".into();
    described["apiVersion"] = "v1".into();
    Some(described)
}

/// `None` when no kind is of that group and version.
pub(super) fn resources(kinds: &Kinds, group: &str, version: &str) -> Option<Value> {
    let all = kinds.all();
    let of_version = all.iter().filter(|entry| entry.kind.group == group && entry.kind.version == version);
    let resources: Vec<Value> =
        of_version.flat_map(|entry| resource(&entry.kind, entry.status, &entry.scale)).collect();
    (!resources.is_empty()).then(|| resource_list(&format!("{group}/{version}"), resources))
}

/// Clients take a version without kinds for a fault, so it is named only where it has some.
pub(super) fn core(kinds: &[Arc<Kind>]) -> Value {
    let versions: &[&str] = if kinds.is_empty() { &[] } else { &["v1"] };
    json!({"kind": "APIVersions", "versions": versions, "serverAddressByClientCIDRs": []})
}

/// `None` when there are none.
pub(super) fn core_resources(kinds: &[Arc<Kind>]) -> Option<Value> {
    (!kinds.is_empty())
        .then(|| resource_list("v1", kinds.iter().flat_map(|kind| resource(kind, true, &None)).collect()))
}

fn resource_list(group_version: &str, resources: Vec<Value>) -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}

fn described(group: &str, versions: &BTreeSet<&str>) -> Value {
    let version = |version: &&str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let all: Vec<Value> = versions.iter().map(version).collect();
    // Kubernetes prefers the stable one; with one version a kind there is no choice to make.
    json!({"name": group, "versions": all, "preferredVersion": all.last()})
}

/// `columns` is ours: Kubernetes' clients ask for tables instead, and pass over what they do not know.
fn resource(kind: &Kind, status: bool, scale: &Option<Arc<Scale>>) -> Vec<Value> {
    let namespaced = kind.scope == Scope::Namespaced;
    let mut resources = vec![json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": namespaced, "kind": kind.kind,
        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        "shortNames": kind.short_names, "columns": kind.columns,
    })];
    if status {
        resources.push(json!({
            "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": namespaced,
            "kind": kind.kind, "verbs": ["get", "patch", "update"],
        }));
    }
    if scale.is_some() {
        resources.push(json!({
            "name": format!("{}/scale", kind.plural), "singularName": "", "namespaced": namespaced,
            "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"],
        }));
    }
    resources
}
