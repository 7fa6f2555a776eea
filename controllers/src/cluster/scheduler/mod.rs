//! A task gets its node.
//!
//! **Owns** a task's `nodeName`, and its state up to Assigned.
//! **Relies on** nodes for what their machines have; on the service controller for what shall run at all.
//! **Promises** every task that can be placed is; for every other one its status says why not.
//! **Woken by** Tasks, Nodes, Revisions, and Services that have ports of their machines. One key: every decision sees all that were made before it. While nobody waits, it
//! looks no further.

mod explain;
mod ledger;
mod place;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use reconciler::Timestamp;
use reconciler::cache::{Index, Snapshot};
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::events::Level;
use reconciler::objects::Write;
use schemas::constraint::NodeFacts;
use schemas::kinds::node::{Node, Role};
use schemas::kinds::revision::Revision;
use schemas::kinds::service::{PublishMode, Service};
use schemas::kinds::task::{DesiredState, NODE_FINALIZER, Task, TaskState};
use schemas::kinds::volume::Volume;

use ledger::HostPort;
use plan::{Decision, Seen, Verdict};

/// Tasks a commit: each is two objects at the most (itself, and one on a lost node), and a plan is cut at prefixes.
const TASKS_PER_COMMIT: usize = 40;
/// Commits under way at once. Any of them may fail: a part of what was decided is as good a beginning as none of it.
const COMMITS: usize = 4;

/// Tasks that have no node.
struct Waiting;

impl Index for Waiting {
    type Of = Task;
    type Key = ();

    fn keys(task: &Task) -> Vec<()> {
        if plan::wants_node(task) { vec![()] } else { Vec::new() }
    }
}

/// Services that have ports of their machines (`mode: host`).
pub(in crate::cluster) struct OnMachines;

impl Index for OnMachines {
    type Of = Service;
    type Key = ();

    fn keys(service: &Service) -> Vec<()> {
        if host_ports(service).is_empty() { Vec::new() } else { vec![()] }
    }
}

fn host_ports(service: &Service) -> Vec<HostPort> {
    let ports = service.spec.endpoint.ports.iter().filter(|port| port.mode == PublishMode::Host);
    ports.filter_map(|port| Some((port.protocol, port.published?))).collect()
}

/// The reason of a task that waits for a node.
pub(in crate::cluster) const NO_NODE_FITS: &str = "NoNodeFits";

pub struct Scheduler;

impl Scheduler {
    pub fn controller() -> Controller<Singleton> {
        Controller::singleton("scheduler", Self)
            .index::<Waiting>()
            .watches_all::<Task>()
            .watches_all::<Node>()
            .watches_all::<Revision>()
            .watches_all::<Volume>()
            .index::<OnMachines>()
            .watches::<Service, _>(|service, _| (!host_ports(service).is_empty()).then_some(Singleton))
    }
}

/// A node as constraints see it.
pub(super) fn facts(node: &Node) -> NodeFacts<'_> {
    let machine = node.status.as_ref().and_then(|status| status.machine.as_ref());
    NodeFacts {
        id: &node.metadata.name,
        hostname: machine.map_or(&node.metadata.name, |machine| &machine.hostname),
        addresses: machine.map_or(&[], |machine| &machine.addresses),
        role: if node.spec.role == Role::Manager { "manager" } else { "worker" },
        os: machine.map_or("", |machine| &machine.platform.os),
        arch: machine.map_or("", |machine| &machine.platform.arch),
        node_labels: Some(&node.spec.labels),
        engine_labels: machine.map(|machine| &machine.labels),
    }
}

impl KeyReconciler for Scheduler {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        if cx.snapshot().by::<Waiting>(&()).next().is_none() {
            return Ok(Action::Await);
        }
        let decisions = plan::plan(&observe(cx.snapshot(), cx.now()));
        for together in decisions.chunks(TASKS_PER_COMMIT * COMMITS) {
            let commits: Vec<_> = together.chunks(TASKS_PER_COMMIT).map(|batch| commit(batch, cx)).collect();
            // Each to its end: what was sent is not left in the dark.
            join_all(commits).await.into_iter().collect::<Result<(), Error>>()?;
        }
        Ok(Action::Await)
    }
}

async fn commit(batch: &[Decision], cx: &Ctx) -> Result<(), Error> {
    let writes: Vec<Write> = batch.iter().flat_map(|decision| writes(decision, cx)).collect();
    if writes.is_empty() {
        return Ok(());
    }
    cx.client().commit(writes).await?;
    for decision in batch {
        if let Verdict::Nowhere(why) = &decision.verdict {
            cx.event_about(&*decision.task, Level::Warning, NO_NODE_FITS, why.clone());
        }
    }
    Ok(())
}

/// Of the tasks of a service that run, the one that is to move first for them to be spread evenly: from the node that has the
/// most of them. The controller that asks declares [`OnMachines`].
pub(in crate::cluster) fn next_to_move(snapshot: &Snapshot, tasks: &[Arc<Task>], now: Timestamp) -> Option<Arc<Task>> {
    let mut by_node: BTreeMap<&str, Vec<&Arc<Task>>> = BTreeMap::new();
    for task in tasks.iter().filter(|task| task.spec.desired == DesiredState::Running && !plan::is_over(task)) {
        by_node.entry(task.spec.node_name.as_deref()?).or_default().push(task);
    }
    let mut fullest: Vec<Vec<&Arc<Task>>> = by_node.into_values().collect();
    fullest.sort_by_key(|tasks| std::cmp::Reverse(tasks.len()));
    let seen = observe(snapshot, now);
    let newest = |tasks: Vec<&Arc<Task>>| {
        tasks.into_iter().max_by_key(|task| (task.metadata.creation_timestamp, &task.metadata.name)).cloned()
    };
    fullest.into_iter().filter_map(newest).find(|task| plan::is_uneven(&seen, task))
}

fn observe(snapshot: &Snapshot, now: Timestamp) -> Seen {
    Seen {
        now,
        tasks: snapshot.all::<Task>().cloned().collect(),
        nodes: snapshot.all::<Node>().cloned().collect(),
        revisions: snapshot
            .all::<Revision>()
            .map(|revision| ((revision.metadata.namespace.clone(), revision.metadata.name.clone()), revision.clone()))
            .collect(),
        volumes: snapshot
            .all::<Volume>()
            .filter_map(|volume| {
                let node = volume.spec.node.clone()?;
                Some(((volume.metadata.namespace.clone(), volume.metadata.name.clone()), node))
            })
            .collect(),
        ports: snapshot
            .by::<OnMachines>(&())
            .map(|service| ((service.metadata.namespace.clone(), service.metadata.name.clone()), host_ports(service)))
            .collect(),
    }
}

/// Only what differs: a verdict that a task's status has already is no write.
fn writes(decision: &Decision, cx: &Ctx) -> Vec<Write> {
    let task: &Arc<Task> = &decision.task;
    let mut desired = (**task).clone();
    let mut status = desired.status.take().unwrap_or_default();
    let (state, reason, message) = match &decision.verdict {
        Verdict::On(node) => {
            desired.spec.node_name = Some(node.clone());
            // From here on the node decides when nothing of it is left.
            desired.metadata.finalizers.push(NODE_FINALIZER.to_owned());
            (TaskState::Assigned, "Assigned", String::new())
        }
        Verdict::Nowhere(why) => (TaskState::Pending, NO_NODE_FITS, why.clone()),
    };
    if status.state != state {
        status.since = Some(cx.now());
    }
    (status.state, status.reason, status.message) = (state, reason.to_owned(), message);
    status.observed_generation = task.metadata.generation + i64::from(desired.spec != task.spec);
    desired.status = Some(status);
    let mut writes = Vec::new();
    for other in &decision.instead_of {
        let mut stopped = (**other).clone();
        stopped.spec.desired = DesiredState::Stopped;
        writes.push(Write::update(&**other, &stopped));
    }
    if desired.spec != task.spec {
        writes.push(Write::update(&**task, &desired));
    }
    if desired.status != task.status {
        writes.push(Write::update_status(&**task, &desired));
    }
    writes
}
