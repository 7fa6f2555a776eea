//! Carries a plan out.

use std::collections::BTreeMap;

use reconciler::Resource;
use reconciler::controller::{Action, Ctx, Error};
use reconciler::objects::{Precondition, Propagation, Write};
use schemas::kinds::labels::{AUTHOR, BUNDLE, LAST_APPLIED, MESSAGE};
use schemas::kinds::network::Network;
use schemas::kinds::service::Service;

use super::plan::{Change, Plan, Seen};
use crate::cluster::revisions;

const WRITES_PER_COMMIT: usize = 50;

pub(super) async fn act(cx: &Ctx, seen: &Seen, plan: Plan) -> Result<Action, Error> {
    for changes in plan.changes.chunks(WRITES_PER_COMMIT) {
        cx.client().commit(changes.iter().map(|change| write(cx, seen, change)).collect()).await?;
    }
    let of_history: Vec<Write> = plan.revisions.iter().filter_map(|change| revisions::write(cx, change)).collect();
    for writes in of_history.chunks(WRITES_PER_COMMIT) {
        cx.client().commit(writes.to_vec()).await?;
    }
    revisions::note_uses(cx, &*seen.bundle, plan.revisions.iter()).await?;
    let mut desired = (*seen.bundle).clone();
    desired.status = Some(plan.status);
    if desired.status != seen.bundle.status {
        cx.client().update_status(&*seen.bundle, &desired).await?;
    }
    Ok(Action::Await)
}

fn write(cx: &Ctx, seen: &Seen, change: &Change) -> Write {
    let labels = || BTreeMap::from([(BUNDLE.to_owned(), seen.bundle.metadata.name.clone())]);
    match change {
        Change::CreateNetwork { name, spec, applied } => {
            let mut network = cx.own(Network::new(name.clone(), spec.clone()));
            network.metadata.labels = labels();
            network.metadata.annotations.insert(LAST_APPLIED.to_owned(), applied.clone());
            Write::create(&network)
        }
        Change::UpdateNetwork { live, spec, applied } => {
            let mut desired = (**live).clone();
            desired.spec = spec.clone();
            desired.metadata.annotations.insert(LAST_APPLIED.to_owned(), applied.clone());
            Write::update(&**live, &desired)
        }
        Change::CreateService { name, spec, applied } => {
            let mut service = cx.own(Service::new(name.clone(), spec.clone()));
            service.metadata.labels = labels();
            service.metadata.annotations.insert(LAST_APPLIED.to_owned(), applied.clone());
            pass_on(seen, &mut service);
            Write::create(&service)
        }
        Change::UpdateService { live, spec, applied } => {
            let mut desired = (**live).clone();
            desired.spec = spec.clone();
            desired.metadata.annotations.insert(LAST_APPLIED.to_owned(), applied.clone());
            pass_on(seen, &mut desired);
            Write::update(&**live, &desired)
        }
        Change::RemoveService { live } => Write::delete(&**live, Precondition::seen(&**live), Propagation::Foreground),
        Change::RemoveNetwork { live } => Write::delete(&**live, Precondition::seen(&**live), Propagation::Foreground),
    }
}

/// Whoever changed the bundle changed its services, for the same reason.
fn pass_on(seen: &Seen, service: &mut Service) {
    for key in [AUTHOR, MESSAGE] {
        match seen.bundle.metadata.annotations.get(key) {
            Some(said) => drop(service.metadata.annotations.insert(key.to_owned(), said.clone())),
            None => drop(service.metadata.annotations.remove(key)),
        }
    }
}
