//! Carries a plan out. Each write demands what was observed; a conflict ends the round.

use std::collections::BTreeMap;

use reconciler::controller::{Action, Ctx, Error};
use reconciler::events::Level;
use reconciler::objects::{Precondition, Propagation, Write};
use reconciler::{Resource, Truth};
use schemas::kinds::network::{DEFAULT_NETWORK, Network, NetworkSpec};
use schemas::kinds::service::{PUBLISHED, ServiceStatus};
use schemas::kinds::task::{DesiredState, Task, TaskSpec};

use super::changes::{Change, StopReason};
use super::observe::Seen;
use super::plan::Plan;
use crate::cluster::revisions;

/// Writes a commit, less than the store's limit: plans are cut at prefixes, which are safe.
const WRITES_PER_COMMIT: usize = 50;
pub(super) async fn act(cx: &Ctx, seen: &Seen, plan: Plan) -> Result<Action, Error> {
    if seen.wants_default_network {
        let mut network = Network::new(DEFAULT_NETWORK, NetworkSpec::default());
        network.metadata.namespace.clone_from(&seen.service.metadata.namespace);
        cx.client().create(&network).await?;
    }
    for changes in plan.changes.chunks(WRITES_PER_COMMIT) {
        let mut writes = Vec::with_capacity(changes.len());
        for change in changes {
            writes.extend(write(cx, seen, change));
        }
        if !writes.is_empty() {
            cx.client().commit(writes).await?;
        }
        for change in changes {
            tell(cx, change);
        }
    }
    // A revision can be said to be used only once it is there.
    let of_revisions = plan.changes.iter().filter_map(|change| match change {
        Change::Revision(change) => Some(change),
        _ => None,
    });
    revisions::note_uses(cx, &*seen.service, of_revisions).await?;
    let mut desired = (*seen.service).clone();
    desired.status = Some(plan.status);
    tell_of_ports(cx, seen.service.status.as_ref(), desired.status.as_ref());
    if desired.status != seen.service.status {
        cx.client().update_status(&*seen.service, &desired).await?;
    }
    Ok(match plan.look_again {
        Some(at) => Action::Requeue(at.since(cx.now())),
        None => Action::Await,
    })
}

fn write(cx: &Ctx, seen: &Seen, change: &Change) -> Option<Write> {
    let service = &seen.service;
    Some(match change {
        Change::Revision(change) => return revisions::write(cx, change),
        Change::CreateTask { slot, name, revision, in_place_of, .. } => {
            let spec = TaskSpec {
                service: service.metadata.name.clone(),
                revision: revision.clone(),
                slot: slot.clone(),
                node_name: None,
                desired: DesiredState::Running,
                networks: service.spec.template.attachments().into_owned(),
                in_place_of: in_place_of.clone(),
            };
            let mut task = cx.own(Task::new(name.clone(), spec));
            task.metadata.labels = labels(seen);
            Write::create(&task)
        }
        Change::Leave { task, .. } => desire(task, DesiredState::Leaving),
        Change::Stop { task, .. } => desire(task, DesiredState::Stopped),
        Change::Forget { task } => Write::delete(&**task, Precondition::seen(&**task), Propagation::Background),
    })
}

fn desire(task: &Task, desired: DesiredState) -> Write {
    let mut wanted = task.clone();
    wanted.spec.desired = desired;
    Write::update(task, &wanted)
}

fn labels(seen: &Seen) -> BTreeMap<String, String> {
    let service = &seen.service.metadata;
    let mut labels = BTreeMap::from([("apply/service".to_owned(), service.name.clone())]);
    if let Some(bundle) = service.labels.get("apply/bundle") {
        labels.insert("apply/bundle".to_owned(), bundle.clone());
    }
    labels
}

/// A port that cannot be reached, and that it can again.
fn tell_of_ports(cx: &Ctx, before: Option<&ServiceStatus>, after: Option<&ServiceStatus>) {
    let of = |status: Option<&ServiceStatus>| status.and_then(|status| status.conditions.get(PUBLISHED)).cloned();
    let (before, after) = (of(before), of(after));
    let was_closed = before.as_ref().is_some_and(|it| it.status == Truth::False);
    match after {
        Some(now) if now.status == Truth::False && before.is_none_or(|before| before.message != now.message) => {
            cx.event(Level::Warning, &now.reason, now.message);
        }
        Some(now) if now.status == Truth::True && was_closed => {
            cx.event(Level::Normal, "PortsOpen", "nothing is in the way of its ports any more");
        }
        _ => {}
    }
}

fn tell(cx: &Ctx, change: &Change) {
    match change {
        Change::CreateTask { slot, because, .. } => {
            cx.event(Level::Normal, "TaskCreated", format!("slot {slot}{}", because.words()));
        }
        // Why it goes was said when it left.
        Change::Stop { because: StopReason::OutOfMesh, .. } => {}
        Change::Leave { task, because } | Change::Stop { task, because } => {
            cx.event(Level::Normal, "TaskStopped", format!("slot {}: {}", task.spec.slot, because.words()));
        }
        _ => {}
    }
}
