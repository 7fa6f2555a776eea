//! The part of the cluster that a command watches: kept up to date by the stream's events, read at one version.

use std::collections::BTreeMap;

use reconciler::objects::{Change, Selection, Selector, Stored};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::labels;
use schemas::kinds::service::Service;
use schemas::kinds::task::Task;

use super::Goal;

/// Bundle, services and tasks that a goal is about.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub bundle: Option<Bundle>,
    pub services: BTreeMap<String, Service>,
    pub tasks: BTreeMap<String, Task>,
}

impl World {
    /// What has to be watched for a goal.
    pub fn selections(goal: &Goal, namespace: &str) -> Vec<Selection> {
        let here = |mut selection: Selection| {
            selection.namespace = Some(namespace.to_owned());
            selection
        };
        match goal {
            Goal::Bundle { name, .. } => {
                let by_label = || Selector::equals(labels::BUNDLE, name);
                vec![
                    here(Selection { fields: Selector::equals("metadata.name", name), ..Selection::of::<Bundle>() }),
                    here(Selection { labels: by_label(), ..Selection::of::<Service>() }),
                    here(Selection { labels: by_label(), ..Selection::of::<Task>() }),
                ]
            }
            Goal::Services(services) => {
                let any = |key: &str| {
                    let names: Vec<&str> = services.keys().map(String::as_str).collect();
                    let text = format!("{key} in ({})", names.join(","));
                    text.parse::<Selector>().unwrap_or_default()
                };
                vec![
                    here(Selection { fields: any("metadata.name"), ..Selection::of::<Service>() }),
                    here(Selection { labels: any(labels::SERVICE), ..Selection::of::<Task>() }),
                ]
            }
        }
    }

    pub fn put(&mut self, stored: &Stored) {
        // What this version cannot read is as if it were not there yet.
        match stored.kind.kind.as_ref() {
            "Bundle" => self.bundle = stored.decode().ok(),
            "Service" => insert(&mut self.services, stored),
            "Task" => insert(&mut self.tasks, stored),
            _ => {}
        }
    }

    pub fn change(&mut self, change: &Change) {
        match change {
            Change::Put { object, .. } => self.put(object),
            Change::Gone { kind, reference, .. } => self.gone(&kind.kind, reference),
        }
    }

    fn gone(&mut self, kind: &str, reference: &ObjectRef) {
        match kind {
            "Bundle" => self.bundle = None,
            "Service" => drop(self.services.remove(&reference.name)),
            "Task" => drop(self.tasks.remove(&reference.name)),
            _ => {}
        }
    }

    /// The tasks of a service, newest first.
    pub fn tasks_of(&self, service: &str) -> Vec<&Task> {
        let mut tasks: Vec<&Task> = self.tasks.values().filter(|task| task.spec.service == service).collect();
        tasks.sort_by(|a, b| {
            (b.metadata.creation_timestamp, &a.metadata.name).cmp(&(a.metadata.creation_timestamp, &b.metadata.name))
        });
        tasks
    }
}

fn insert<T: Resource>(into: &mut BTreeMap<String, T>, stored: &Stored) {
    match stored.decode::<T>() {
        Ok(object) => drop(into.insert(stored.reference.name.clone(), object)),
        Err(_) => drop(into.remove(&stored.reference.name)),
    }
}
