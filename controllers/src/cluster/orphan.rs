//! What a machine that was removed can no longer do itself: say what became of its tasks, and let go of what it held.
//!
//! **Owns** the status, and the node's finalizer, of Tasks and Volumes whose Node is gone.
//! **Relies on** a removed machine being refused every write from then on.
//! **Promises** nothing waits for a machine that is no member: its tasks are Orphaned, and what shall go goes. A Volume that
//! nobody deletes stays: its data may lie on a disk yet.
//! **Woken by** Nodes, and by the Tasks and Volumes that name one.

use std::sync::Arc;

use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler};
use reconciler::objects::Write;
use reconciler::{ObjectRef, Resource, Timestamp};
use schemas::kinds::node::Node;
use schemas::kinds::task::{NODE_FINALIZER, Task, TaskState};
use schemas::kinds::volume::Volume;

use crate::node::tasks::OnNode;

const WRITES_PER_COMMIT: usize = 50;

pub struct Orphans;

impl Orphans {
    pub fn controller() -> Controller<String> {
        Controller::keyed("orphan", Self)
            .index::<OnNode>()
            .watches::<Node, _>(|node, _| [node.metadata.name.clone()])
            .watches::<Task, _>(|task, _| task.spec.node_name.clone())
            .watches::<Volume, _>(|volume, _| volume.spec.node.clone())
    }
}

/// What names a machine that is no member.
struct Seen {
    node: String,
    tasks: Vec<Arc<Task>>,
    volumes: Vec<Arc<Volume>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Change {
    Orphan(Arc<Task>),
    ReleaseTask(Arc<Task>),
    /// Who mounted it runs no more.
    Unused(Arc<Volume>),
    ReleaseVolume(Arc<Volume>),
}

impl KeyReconciler for Orphans {
    type Key = String;

    async fn reconcile(&self, name: &String, cx: &Ctx) -> Result<Action, Error> {
        let snapshot = cx.snapshot();
        if snapshot.get::<Node>(&ObjectRef::cluster(name)).is_some() {
            return Ok(Action::Await);
        }
        let on_it = |volume: &&Arc<Volume>| volume.spec.node.as_ref() == Some(name);
        let seen = Seen {
            node: name.clone(),
            tasks: snapshot.by::<OnNode>(name).cloned().collect(),
            volumes: snapshot.all::<Volume>().filter(on_it).cloned().collect(),
        };
        for batch in plan(&seen).chunks(WRITES_PER_COMMIT) {
            let writes = batch.iter().map(|change| write(change, &seen.node, cx.now())).collect();
            cx.client().commit(writes).await?;
        }
        Ok(Action::Await)
    }
}

fn plan(seen: &Seen) -> Vec<Change> {
    let of_tasks = seen.tasks.iter().filter_map(|task| {
        let has_ended = task.status.as_ref().is_some_and(|status| status.state.is_terminal());
        match has_ended {
            // First what became of it, and then its end: the record may stay as history.
            false => Some(Change::Orphan(task.clone())),
            true => is_held(&task.metadata.finalizers).then(|| Change::ReleaseTask(task.clone())),
        }
    });
    let of_volumes = seen.volumes.iter().filter_map(|volume| {
        let goes = volume.is_deleting() && is_held(&volume.metadata.finalizers);
        let is_used = volume.status.as_ref().is_some_and(|status| status.in_use > 0);
        match (goes, is_used) {
            (true, _) => Some(Change::ReleaseVolume(volume.clone())),
            (false, true) => Some(Change::Unused(volume.clone())),
            (false, false) => None,
        }
    });
    of_tasks.chain(of_volumes).collect()
}

fn is_held(finalizers: &[String]) -> bool {
    finalizers.iter().any(|name| name == NODE_FINALIZER)
}

fn write(change: &Change, node: &str, now: Timestamp) -> Write {
    match change {
        Change::Orphan(task) => {
            let mut desired = (**task).clone();
            let status = desired.status.get_or_insert_default();
            status.state = TaskState::Orphaned;
            status.reason = "NodeRemoved".to_owned();
            status.message = format!("its node {node} was removed from the cluster");
            status.since = Some(now);
            Write::update_status(&**task, &desired)
        }
        Change::ReleaseTask(task) => {
            let mut desired = (**task).clone();
            desired.metadata.finalizers.retain(|name| name != NODE_FINALIZER);
            Write::update(&**task, &desired)
        }
        Change::Unused(volume) => {
            let mut desired = (**volume).clone();
            desired.status.get_or_insert_default().in_use = 0;
            Write::update_status(&**volume, &desired)
        }
        Change::ReleaseVolume(volume) => {
            let mut desired = (**volume).clone();
            desired.metadata.finalizers.retain(|name| name != NODE_FINALIZER);
            Write::update(&**volume, &desired)
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::kinds::task::{DesiredState, Slot, TaskSpec, TaskStatus};
    use schemas::kinds::volume::{VolumeSpec, VolumeStatus};

    use super::*;

    fn task(name: &str, state: TaskState, held: bool) -> Arc<Task> {
        let spec = TaskSpec {
            service: "web".into(),
            revision: "r".into(),
            slot: Slot::Number(1),
            node_name: Some("n2".into()),
            desired: DesiredState::Running,
            networks: vec![],
            in_place_of: None,
        };
        let mut task = Task::new(name, spec);
        task.status = Some(TaskStatus { state, ..TaskStatus::default() });
        task.metadata.finalizers = if held { vec![NODE_FINALIZER.to_owned()] } else { vec![] };
        Arc::new(task)
    }

    #[test]
    fn tasks_of_a_removed_node_are_orphaned_and_then_let_go_of() {
        let (runs, ended) = (task("a", TaskState::Running, true), task("b", TaskState::Failed, true));
        let done = task("c", TaskState::Orphaned, false);
        let mut volume = Volume::new("data", VolumeSpec { node: Some("n2".into()), ..VolumeSpec::default() });
        volume.metadata.finalizers = vec![NODE_FINALIZER.to_owned()];
        let stays = Arc::new(volume.clone());
        volume.status = Some(VolumeStatus { in_use: 1, ..VolumeStatus::default() });
        let used = Arc::new(volume.clone());
        volume.metadata.deletion_timestamp = Some(Timestamp::from_seconds(1));
        let goes = Arc::new(volume);
        let tasks = vec![runs.clone(), ended.clone(), done];
        let seen = Seen { node: "n2".into(), tasks, volumes: vec![stays, used.clone(), goes.clone()] };
        let of_tasks = [Change::Orphan(runs), Change::ReleaseTask(ended)];
        let of_volumes = [Change::Unused(used), Change::ReleaseVolume(goes)];
        assert_eq!(plan(&seen), [&of_tasks[..], &of_volumes].concat());
    }
}
