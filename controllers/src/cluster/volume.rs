//! A named volume that a task mounts is an object: people see it, label it and remove it.
//!
//! **Owns** Volumes that a mount made; of every Volume `spec.node`, and the finalizer of that node.
//! **Relies on** the scheduler for `nodeName`; on the volume's node for its data, its status and letting go of it.
//! **Promises** a volume that a placed task mounts has an object on that task's machine. It belongs to nobody: data
//! outlives the service and the bundle that it was made for, whose labels it carries.
//! **Woken by** Volumes, and by the Tasks and Revisions that mount them.

use std::sync::Arc;

use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler};
use reconciler::objects::{Precondition, Write};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::labels::{BUNDLE, SERVICE};
use schemas::kinds::revision::Revision;
use schemas::kinds::task::{DesiredState, NODE_FINALIZER, Task};
use schemas::kinds::volume::{Volume, VolumeSpec};

use crate::mounted::{self, Mounting, OfRevision};

pub struct Volumes;

impl Volumes {
    pub fn controller() -> Controller<ObjectRef> {
        Controller::keyed("volume", Self)
            .index::<Mounting>()
            .index::<OfRevision>()
            .watches::<Volume, _>(|volume, _| [volume.object_ref()])
            .watches::<Task, _>(mounted::volumes_of)
            .watches::<Revision, _>(|revision, _| mounted::volumes(revision))
    }
}

/// What is known of one volume.
#[derive(Clone, Debug)]
struct Seen {
    volume: Option<Arc<Volume>>,
    /// Who mounts it and shall run, oldest first.
    users: Vec<(Arc<Task>, Arc<Revision>)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Change {
    /// For the first task that mounts it.
    Create { task: Arc<Task>, spec: VolumeSpec },
    /// It gets its place, and whoever is there holds it.
    Place { volume: Arc<Volume>, node: String },
}

impl KeyReconciler for Volumes {
    type Key = ObjectRef;

    async fn reconcile(&self, key: &ObjectRef, cx: &Ctx) -> Result<Action, Error> {
        let snapshot = cx.snapshot();
        let users = mounted::placed(key, snapshot).into_iter().filter(|(task, _)| shall_run(task));
        let seen = Seen {
            volume: snapshot.get::<Volume>(key).cloned(),
            users: users.map(|(task, revision)| (task.clone(), revision.clone())).collect(),
        };
        match plan(key, &seen) {
            None => {}
            Some(Change::Create { task, spec }) => {
                // Nothing is made for a task that went meanwhile.
                let there = Write::Check {
                    kind: Arc::new(Task::kind().clone()),
                    reference: task.object_ref(),
                    precondition: Some(Precondition::same(&*task)),
                };
                cx.client().commit(vec![there, Write::create(&made_for(&task, key, spec))]).await?;
            }
            Some(Change::Place { volume, node }) => {
                let mut desired = (*volume).clone();
                desired.spec.node = Some(node);
                desired.metadata.finalizers.push(NODE_FINALIZER.to_owned());
                cx.client().update(&*volume, &desired).await?;
            }
        }
        Ok(Action::Await)
    }
}

fn shall_run(task: &Task) -> bool {
    let ended = task.status.as_ref().is_some_and(|status| status.state.is_terminal());
    task.spec.desired < DesiredState::Stopped && !task.is_deleting() && !ended
}

fn plan(key: &ObjectRef, seen: &Seen) -> Option<Change> {
    let first = seen.users.first();
    let node = first.and_then(|(task, _)| task.spec.node_name.clone());
    match (&seen.volume, first) {
        (None, Some((task, revision))) => {
            let template = revision.spec.content.template()?;
            let (_, mount) = mounted::mounts(template).find(|(name, _)| *name == key.name)?;
            let labels = mount.volume.as_ref().map(|volume| volume.labels.clone()).unwrap_or_default();
            Some(Change::Create { task: task.clone(), spec: VolumeSpec { labels, driver: None, node } })
        }
        (Some(volume), _) if !volume.is_deleting() => {
            let held = volume.metadata.finalizers.iter().any(|name| name == NODE_FINALIZER);
            let node = volume.spec.node.clone().or(node)?;
            (!held).then(|| Change::Place { volume: volume.clone(), node })
        }
        _ => None,
    }
}

fn made_for(task: &Task, key: &ObjectRef, spec: VolumeSpec) -> Volume {
    let mut volume = Volume::new(&key.name, spec);
    volume.metadata.namespace.clone_from(&key.namespace);
    let labels = task.metadata.labels.iter().filter(|(name, _)| [BUNDLE, SERVICE].contains(&name.as_str()));
    volume.metadata.labels = labels.map(|(name, value)| (name.clone(), value.clone())).collect();
    volume.metadata.finalizers = vec![NODE_FINALIZER.to_owned()];
    volume
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use reconciler::Timestamp;
    use schemas::kinds::revision::{RevisionContent, RevisionSpec};
    use schemas::kinds::task::{Slot, TaskSpec};
    use schemas::kinds::template::{Mount, TaskTemplate, VolumeOptions};

    use super::*;

    fn user(name: &str, node: &str) -> (Arc<Task>, Arc<Revision>) {
        let spec = TaskSpec {
            service: "shop-db".into(),
            revision: "shop-db-1".into(),
            slot: Slot::Number(1),
            node_name: Some(node.into()),
            desired: DesiredState::Running,
            networks: vec![],
            in_place_of: None,
        };
        let mut task = Task::new(name, spec);
        task.metadata.labels = [(BUNDLE, "shop"), (SERVICE, "shop-db"), ("apply/other", "x")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let labels = BTreeMap::from([("tier".to_owned(), "gold".to_owned())]);
        let mut template = TaskTemplate::default();
        template.container.mounts = vec![Mount {
            source: Some("data".into()),
            target: "/data".into(),
            volume: Some(VolumeOptions { labels, ..VolumeOptions::default() }),
            ..Mount::default()
        }];
        let content = RevisionContent::Template(Box::new(template));
        let revision = Revision::new("shop-db-1", RevisionSpec::new("shop-db", content));
        (Arc::new(task), Arc::new(revision))
    }

    fn volume(change: impl FnOnce(&mut Volume)) -> Option<Arc<Volume>> {
        let mut volume = Volume::new("data", VolumeSpec::default());
        change(&mut volume);
        Some(Arc::new(volume))
    }

    fn planned(seen: &Seen) -> Option<Change> {
        plan(&ObjectRef::new("default", "data"), seen)
    }

    #[test]
    fn a_volume_is_made_where_its_first_task_is() {
        let seen = Seen { volume: None, users: vec![user("db-1", "n1"), user("db-2", "n2")] };
        let Some(Change::Create { task, spec }) = planned(&seen) else { panic!("{:?}", planned(&seen)) };
        assert_eq!((task.name(), spec.node.as_deref()), ("db-1", Some("n1")));
        let made = made_for(&task, &ObjectRef::new("default", "data"), spec);
        assert_eq!(made.metadata.labels.len(), 2, "{:?}", made.metadata.labels);
        assert_eq!(made.metadata.labels[BUNDLE], "shop");
        assert_eq!((made.spec.labels["tier"].as_str(), made.metadata.finalizers.len()), ("gold", 1));
        assert!(made.metadata.owner_references.is_empty(), "data belongs to nobody");
        let again = Seen { volume: Some(Arc::new(made)), ..seen };
        assert_eq!(planned(&again), None);
    }

    #[test]
    fn one_that_a_person_made_gets_its_place_once() {
        let alone = Seen { volume: volume(|_| {}), users: vec![] };
        assert_eq!(planned(&alone), None, "nobody knows where it is to be");
        let used = Seen { users: vec![user("db-1", "n1")], ..alone };
        assert!(matches!(planned(&used), Some(Change::Place { node, .. }) if node == "n1"));
        let placed = Seen { volume: volume(|volume| volume.spec.node = Some("n2".into())), ..used.clone() };
        assert!(matches!(planned(&placed), Some(Change::Place { node, .. }) if node == "n2"), "what was said stays");
        let going = volume(|volume| volume.metadata.deletion_timestamp = Some(Timestamp::from_seconds(1)));
        assert_eq!(planned(&Seen { volume: going, ..used }), None, "nobody takes hold of what goes");
    }
}
