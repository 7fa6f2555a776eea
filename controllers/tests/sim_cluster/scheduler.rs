//! Tasks that need room, on machines that come, fill up, are drained and paused.

use controllers::cluster::scheduler::Scheduler;
use reconciler::cache::Snapshot;
use reconciler::sim::{Scene, User, View};
use reconciler::{ObjectRef, Resource};
use schemas::Size;
use schemas::kinds::node::{Availability, Node};
use schemas::kinds::revision::{Revision, RevisionContent, RevisionSpec};
use schemas::kinds::task::{DesiredState, Slot, Task, TaskSpec, TaskState};

use super::cast::{NAMESPACE, at, join, kinds, process, set_status, state, template, template_of, until_gone};
use super::{promises, suite};

fn scene(scene: Scene) -> Scene {
    process(kinds(scene), "scheduler", |manager| manager.controller(Scheduler::controller()))
        .workload(workload)
        .invariant("no machine is overbooked", not_overbooked)
        .invariant("tasks only move on", promises::tasks_only_move_on)
        .settles("every task that can be placed is", placed_or_said)
}

async fn workload(user: User) {
    task(&user, "early", 512).await;
    user.pause().await;
    join(&user, "n1", 1024).await;
    user.pause().await;
    task(&user, "big", 1024).await;
    user.pause().await;
    task(&user, "small", 256).await;
    user.pause().await;
    join(&user, "n2", 1024).await;
    user.pause().await;
    task(&user, "more", 768).await;
    user.pause().await;
    user.update::<Node>(&ObjectRef::cluster("n1"), |node| node.spec.availability = Availability::Pause).await;
    user.pause().await;
    task(&user, "last", 256).await;
    user.pause().await;
    user.update::<Task>(&at("early"), |task| task.spec.desired = DesiredState::Stopped).await;
    set_status::<Task>(&user, &at("early"), |task| task.status.get_or_insert_default().state = TaskState::Complete)
        .await;
    user.pause().await;
    user.update::<Node>(&ObjectRef::cluster("n1"), |node| node.spec.availability = Availability::Active).await;
    user.pause().await;
    remove(&user, "small").await;
    user.pause().await;
    task(&user, "small", 512).await;
    user.pause().await;
    remove(&user, "big").await;
    task(&user, "big", 1024).await;
    user.pause().await;
}

/// A task and the revision that says what it needs: sometimes the one comes first, sometimes the other.
async fn task(user: &User, name: &str, memory_mib: u64) {
    let revision_name = format!("needs-{memory_mib}");
    let spec = TaskSpec {
        service: name.to_owned(),
        revision: revision_name.clone(),
        slot: Slot::Number(1),
        node_name: None,
        desired: DesiredState::Running,
        networks: Vec::new(),
        in_place_of: None,
    };
    let mut task = Task::new(name, spec);
    task.metadata.namespace = NAMESPACE.into();
    user.create(&task).await;
    if user.client().find::<Revision>(&at(&revision_name)).await.unwrap().is_some() {
        return;
    }
    user.pause().await;
    let mut template = template("example/web:1", &[]);
    template.resources.reservations.memory = Some(Size::from_mib(memory_mib));
    let content = RevisionContent::Template(Box::new(template));
    let mut revision = Revision::new(revision_name, RevisionSpec::new(name, content));
    revision.metadata.namespace = NAMESPACE.into();
    user.create(&revision).await;
}

/// A task goes, and its machine lets go of it.
async fn remove(user: &User, name: &str) {
    user.delete::<Task>(&at(name)).await;
    user.update::<Task>(&at(name), |task| task.metadata.finalizers.clear()).await;
    until_gone::<Task>(user, &at(name)).await;
}

fn asked(snapshot: &Snapshot, task: &Task) -> u64 {
    let template = template_of(snapshot, task);
    template.and_then(|template| template.resources.reservations.memory).map_or(0, Size::bytes)
}

fn free(snapshot: &Snapshot, node: &Node) -> i128 {
    let all = node.status.as_ref().and_then(|status| status.machine.as_ref()).map_or(0, |m| m.resources.memory.bytes());
    let on = |task: &&std::sync::Arc<Task>| {
        task.spec.node_name.as_deref() == Some(node.name()) && !(state(task).is_terminal())
    };
    let taken: u64 = snapshot.all::<Task>().filter(on).map(|task| asked(snapshot, task)).sum();
    i128::from(all) - i128::from(taken)
}

fn not_overbooked(view: &View<'_>) -> promises::Held {
    match view.now.all::<Node>().find(|node| free(view.now, node) < 0) {
        Some(node) => Err(format!("{} gave away more than it has", node.name())),
        None => Ok(()),
    }
}

fn placed_or_said(snapshot: &Snapshot) -> promises::Held {
    let waits =
        |task: &&std::sync::Arc<Task>| task.spec.node_name.is_none() && task.spec.desired <= DesiredState::Running;
    for task in snapshot.all::<Task>().filter(waits) {
        let status = task.status.clone().unwrap_or_default();
        if status.reason != "NoNodeFits" || status.message.is_empty() {
            return Err(format!("{} waits and does not say why: {status:?}", task.name()));
        }
        let fits = |node: &&std::sync::Arc<Node>| {
            node.spec.availability == Availability::Active && free(snapshot, node) >= i128::from(asked(snapshot, task))
        };
        if let Some(node) = snapshot.all::<Node>().find(fits) {
            return Err(format!("{} waits, and {} has room", task.name(), node.name()));
        }
    }
    Ok(())
}

#[test]
fn scheduler() {
    suite("scheduler", 100, scene);
}
