//! Which tasks mount which named volumes: one answer for whoever makes Volume objects, removes their data, or waits for
//! either.

use std::collections::BTreeSet;
use std::sync::Arc;

use reconciler::cache::{Index, Snapshot};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::revision::Revision;
use schemas::kinds::task::{Task, TaskState, WAITING_FOR_VOLUME};
use schemas::kinds::template::{Mount, MountType, TaskTemplate};

/// Revisions by the volumes that their tasks mount.
pub(crate) struct Mounting;

impl Index for Mounting {
    type Of = Revision;
    type Key = ObjectRef;

    fn keys(revision: &Revision) -> Vec<ObjectRef> {
        volumes(revision).into_iter().collect()
    }
}

/// Tasks by their revision.
pub(crate) struct OfRevision;

impl Index for OfRevision {
    type Of = Task;
    type Key = ObjectRef;

    fn keys(task: &Task) -> Vec<ObjectRef> {
        vec![revision_of(task)]
    }
}

/// The mounts of a template that name a volume.
pub(crate) fn mounts(template: &TaskTemplate) -> impl Iterator<Item = (&str, &Mount)> {
    let volumes = template.container.mounts.iter().filter(|mount| mount.kind == MountType::Volume);
    volumes.filter_map(|mount| Some((mount.source.as_deref()?, mount)))
}

/// The volumes that tasks of a revision mount.
pub(crate) fn volumes(revision: &Revision) -> BTreeSet<ObjectRef> {
    let namespace = &revision.metadata.namespace;
    let mounts = revision.spec.content.template().into_iter().flat_map(mounts);
    mounts.map(|(name, _)| ObjectRef::new(namespace, name)).collect()
}

/// The volumes that a task mounts; none while its revision is not known.
pub(crate) fn volumes_of(task: &Task, snapshot: &Snapshot) -> BTreeSet<ObjectRef> {
    snapshot.get::<Revision>(&revision_of(task)).map(|revision| volumes(revision)).unwrap_or_default()
}

/// The tasks that mount a volume and have a machine, oldest first, with the template that says so.
pub(crate) fn placed<'a>(volume: &ObjectRef, snapshot: &'a Snapshot) -> Vec<(&'a Arc<Task>, &'a Arc<Revision>)> {
    let mut found: Vec<(&Arc<Task>, &Arc<Revision>)> = Vec::new();
    // The index lends its entries for as long as the key lives; the objects themselves are the snapshot's.
    let revisions: Vec<ObjectRef> = snapshot.by::<Mounting>(volume).map(|revision| revision.object_ref()).collect();
    for reference in &revisions {
        let Some(revision) = snapshot.get::<Revision>(reference) else { continue };
        let tasks: Vec<ObjectRef> = snapshot.by::<OfRevision>(reference).map(|task| task.object_ref()).collect();
        let tasks = tasks.iter().filter_map(|task| snapshot.get::<Task>(task));
        found.extend(tasks.filter(|task| task.spec.node_name.is_some()).map(|task| (task, revision)));
    }
    found.sort_by_key(|(task, _)| (task.metadata.creation_timestamp, task.metadata.name.clone()));
    found
}

/// Whether a task that mounts a volume may have its hands on it. One that waits for it does not: it says so before it
/// lets go, and takes hold again only in a commit that finds the volume as it saw it.
pub(crate) fn holds(task: &Task) -> bool {
    let status = task.status.as_ref();
    let state = status.map(|status| status.state).unwrap_or_default();
    let waits = state == TaskState::Preparing && status.is_some_and(|status| status.reason == WAITING_FOR_VOLUME);
    !state.is_terminal() && !waits
}

/// The revision that a task is made from.
pub(crate) fn revision_of(task: &Task) -> ObjectRef {
    ObjectRef::new(&task.metadata.namespace, &task.spec.revision)
}
