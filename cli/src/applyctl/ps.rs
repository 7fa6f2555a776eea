//! `ps`: tasks, of services, of bundles, or all of the namespace; the living ones unless all are wanted.

use reconciler::objects::{PageRequest, Selection, Selector, Stored};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::labels;
use schemas::kinds::service::Service;
use schemas::kinds::task::{DesiredState, Task};

use super::args::Ps;
use super::failure::Failure;
use super::session::Session;
use super::{find, get};

pub async fn run(session: &mut Session, ps: &Ps) -> Result<(), Failure> {
    let mut selectors = Vec::new();
    for name in &ps.names {
        selectors.push(of(session, name).await?);
    }
    if selectors.is_empty() {
        selectors.push(Selector::default());
    }
    show(session, selectors, ps.all).await
}

/// What the name of a service or bundle selects.
async fn of(session: &Session, name: &str) -> Result<Selector, Failure> {
    let reference = ObjectRef::new(&session.namespace, name);
    if session.client.find::<Service>(&reference).await?.is_some() {
        return Ok(Selector::equals(labels::SERVICE, name));
    }
    let kind = find::kind("bundle")?;
    let bundle = find::meant(&kind, name);
    if session.client.find::<Bundle>(&ObjectRef::new(&session.namespace, &bundle)).await?.is_some() {
        return Ok(Selector::equals(labels::BUNDLE, bundle));
    }
    let service = find::object(session, &find::kind("service")?, name).await?;
    Ok(Selector::equals(labels::SERVICE, service.reference.name))
}

/// The tasks that any of the selectors names, by service and slot.
pub async fn show(session: &mut Session, selectors: Vec<Selector>, all: bool) -> Result<(), Failure> {
    let mut found: Vec<(Task, Stored)> = Vec::new();
    for labels in selectors {
        let selection = Selection { namespace: Some(session.namespace.clone()), labels, ..Selection::of::<Task>() };
        for stored in session.client.objects().list(&selection, PageRequest::default()).await?.items {
            let task: Task = stored.decode()?;
            let known = found.iter().any(|(_, other)| other.reference == stored.reference);
            if !known && (all || task.spec.desired <= DesiredState::Running) {
                found.push((task, stored));
            }
        }
    }
    found.sort_by_key(|(task, _)| {
        (task.spec.service.clone(), task.spec.slot.clone(), std::cmp::Reverse(task.metadata.creation_timestamp))
    });
    let kind = std::sync::Arc::new(Task::kind().clone());
    let items = found.into_iter().map(|(_, stored)| stored).collect();
    get::print(session, vec![(kind, items)], false, true).await
}
