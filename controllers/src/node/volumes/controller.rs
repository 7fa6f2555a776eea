//! The data of a Volume object: seen, measured, and removed with it.
//!
//! **Owns** the directories of named volumes on this machine, and the status and this machine's finalizer of their
//! Volumes.
//! **Relies on** the volume controller beside the store for `spec.node` and the finalizer; on tasks for making the
//! directory and filling it, and for saying that they wait before they let go.
//! **Promises** a Volume that was deleted goes once its directory is gone, which happens when no task holds it and
//! nothing has it mounted by the kernel's own word; until then its condition says who is in the way.
//! **Woken by** its Volume, the Tasks of this machine that mount it, and now and then to measure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reconciler::cache::Snapshot;
use reconciler::causes::chain;
use reconciler::controller::{Action, Controller, Ctx, Error, Reconciler};
use reconciler::events::Level;
use reconciler::objects::Writer;
use reconciler::seams::{Monotonic, Seams};
use reconciler::{ObjectRef, Resource, Timestamp, Uid};
use schemas::Size;
use schemas::kinds::revision::Revision;
use schemas::kinds::task::{NODE_FINALIZER, Task};
use schemas::kinds::volume::{REMOVED, Volume, VolumeState, VolumeStatus};

use super::{Error as VolumeError, Usage, VolumeId, Volumes};
use crate::mounted::{self, Mounting, OfRevision};

/// What somebody outside has mounted is looked at again so often: the kernel does not tell.
const LOOK: Duration = Duration::from_secs(1);
/// A volume that came to be used is measured again after this, when whoever uses it has settled in.
const SETTLED: Duration = Duration::from_secs(60);
const MEASURE: Duration = Duration::from_secs(600);
/// Measuring takes at most this part of the time: a look at a million files must not keep a disk busy.
const SHARE: u32 = 200;
/// Other sizes are not worth a write: as a part of the size before, and in any case.
const DIFFERENCE: (u64, u64) = (20, 1 << 20);

pub struct VolumeData {
    node: String,
    volumes: Arc<dyn Volumes>,
    seams: Seams,
    /// A cache: whoever has none measures anew.
    measured: Mutex<BTreeMap<Uid, Measured>>,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    usage: Usage,
    again: Monotonic,
}

/// Everything that the plan may know.
#[derive(Clone, Debug)]
struct Seen {
    status: VolumeStatus,
    generation: i64,
    deleting: bool,
    /// `None`: it is not here.
    usage: Option<Usage>,
    path: String,
    /// Names of the tasks that hold it, in order.
    users: Vec<String>,
}

impl VolumeData {
    pub fn controller(node: &str, volumes: Arc<dyn Volumes>, seams: &Seams) -> Controller<ObjectRef> {
        let data = VolumeData { node: node.to_owned(), volumes, seams: seams.clone(), measured: Mutex::default() };
        let mine = node.to_owned();
        Controller::new("volume-data", data)
            .reconciles_deleting()
            .index::<Mounting>()
            .index::<OfRevision>()
            .reads::<Revision>()
            .watches::<Task, _>(move |task, snapshot| match task.spec.node_name.as_ref() == Some(&mine) {
                true => concerned(task, snapshot),
                false => BTreeSet::new(),
            })
            .timeout(Duration::from_secs(300))
            .writer(Writer::new(format!("node:{node}"), "volume-data"))
    }

    /// Measures if it is time to, and says when it will be again.
    async fn usage(&self, id: &VolumeId, volume: &Volume) -> Result<(Option<Usage>, Duration), VolumeError> {
        let begun = self.seams.monotonic();
        let uid = &volume.metadata.uid;
        let known = self.lock().get(uid).copied();
        if let Some(known) = known.filter(|known| known.again > begun) {
            return Ok((Some(known.usage), known.again.since(begun)));
        }
        let Some(usage) = self.volumes.measure(id).await? else { return Ok((None, MEASURE)) };
        let took = self.seams.monotonic().since(begun);
        let period = if known.is_none() { SETTLED } else { MEASURE };
        let pause = period.max(took.saturating_mul(SHARE));
        self.lock().insert(uid.clone(), Measured { usage, again: self.seams.monotonic() + pause });
        Ok((Some(usage), pause))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uid, Measured>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn say(&self, volume: &Volume, status: VolumeStatus, cx: &Ctx) -> Result<(), Error> {
        let mut desired = volume.clone();
        desired.status = Some(status);
        if desired.status != volume.status {
            cx.client().update_status(volume, &desired).await?;
        }
        Ok(())
    }

    async fn remove(&self, id: &VolumeId, volume: &Volume, seen: &Seen, cx: &Ctx) -> Result<Action, Error> {
        if !seen.users.is_empty() {
            let message = format!("in use by {}", seen.users.join(", "));
            if cx.subject().is_some() {
                cx.event(Level::Warning, "RemovalWaits", format!("the volume is not removed while it is {message}"));
            }
            self.say(volume, refused(seen, "InUse", message, cx.now()), cx).await?;
            // Its tasks wake us.
            return Ok(Action::Await);
        }
        match self.volumes.remove(id).await {
            Ok(_) => {
                self.lock().remove(&volume.metadata.uid);
                let mut released = volume.clone();
                released.metadata.finalizers.retain(|name| name != NODE_FINALIZER);
                cx.client().update(volume, &released).await?;
                Ok(Action::Await)
            }
            Err(VolumeError::InUse { by, .. }) => {
                let message = format!("in use by {}", by.join(", "));
                self.say(volume, refused(seen, "InUse", message, cx.now()), cx).await?;
                Ok(Action::Requeue(LOOK))
            }
            Err(error) => {
                self.say(volume, refused(seen, "Failed", chain(&error), cx.now()), cx).await?;
                Err(Error::retry(error))
            }
        }
    }
}

impl Reconciler for VolumeData {
    type Object = Volume;

    async fn reconcile(&self, volume: Arc<Volume>, cx: &Ctx) -> Result<Action, Error> {
        if volume.spec.node.as_deref() != Some(&self.node) {
            return Ok(Action::Await);
        }
        let reference = volume.object_ref();
        let id = VolumeId::new(&reference.namespace, &reference.name).map_err(Error::terminal)?;
        let placed = mounted::placed(&reference, cx.snapshot()).into_iter();
        let here = placed.filter(|(task, _)| task.spec.node_name.as_ref() == Some(&self.node) && mounted::holds(task));
        let deleting = volume.is_deleting();
        let (usage, again) = match deleting {
            true => (None, MEASURE),
            false => self.usage(&id, &volume).await.map_err(Error::retry)?,
        };
        let seen = Seen {
            status: volume.status.clone().unwrap_or_default(),
            generation: volume.metadata.generation,
            deleting,
            usage,
            path: self.volumes.directory(&id).display().to_string(),
            users: here.map(|(task, _)| task.metadata.name.clone()).collect(),
        };
        if !deleting {
            self.say(&volume, status(&seen), cx).await?;
            return Ok(Action::Requeue(again));
        }
        if !volume.metadata.finalizers.iter().any(|name| name == NODE_FINALIZER) {
            return Ok(Action::Await);
        }
        self.remove(&id, &volume, &seen, cx).await
    }
}

/// The volumes that a task may have let go of. Its revision may go before it does: then any may be meant.
fn concerned(task: &Task, snapshot: &Snapshot) -> BTreeSet<ObjectRef> {
    match snapshot.get::<Revision>(&mounted::revision_of(task)) {
        Some(revision) => mounted::volumes(revision),
        None => snapshot.in_namespace::<Volume>(&task.metadata.namespace).map(|it| it.object_ref()).collect(),
    }
}

/// What the status shall say of a volume that stays. Pure.
fn status(seen: &Seen) -> VolumeStatus {
    let mut status = seen.status.clone();
    status.observed_generation = seen.generation;
    status.in_use = u32::try_from(seen.users.len()).unwrap_or(u32::MAX);
    if let Some(usage) = seen.usage {
        status.state = VolumeState::Ready;
        status.path = Some(seen.path.clone());
        let before = status.size.map(Size::bytes);
        let differs = |before: u64| before.abs_diff(usage.bytes) >= (before / DIFFERENCE.0).max(DIFFERENCE.1);
        if before.is_none_or(differs) {
            status.size = Some(Size::from_bytes(usage.bytes));
        }
    }
    status
}

/// The same for one that is being deleted and cannot go yet.
fn refused(seen: &Seen, reason: &str, message: String, now: Timestamp) -> VolumeStatus {
    debug_assert!(seen.deleting, "what is not deleted is not refused its end");
    let mut status = seen.status.clone();
    status.observed_generation = seen.generation;
    status.in_use = u32::try_from(seen.users.len()).unwrap_or(u32::MAX);
    status.state = if reason == "Failed" { VolumeState::Failed } else { VolumeState::Removing };
    status.conditions.set(REMOVED, false, reason, message, seen.generation, now);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(bytes: Option<u64>, users: &[&str]) -> Seen {
        Seen {
            status: VolumeStatus::default(),
            generation: 2,
            deleting: false,
            usage: bytes.map(|bytes| Usage { bytes, entries: 1 }),
            path: "/v/default/data/_data".into(),
            users: users.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_volume_is_ready_when_it_is_there() {
        let not_yet = status(&seen(None, &["db-1"]));
        assert_eq!((not_yet.state, not_yet.in_use, not_yet.path), (VolumeState::Pending, 1, None));
        let there = status(&seen(Some(7), &[]));
        assert_eq!((there.state, there.in_use, there.size), (VolumeState::Ready, 0, Some(Size::from_bytes(7))));
    }

    #[test]
    fn a_size_that_hardly_differs_is_no_write() {
        let large = Seen { status: status(&seen(Some(100 << 20), &[])), ..seen(Some(104 << 20), &[]) };
        assert_eq!(status(&large).size, Some(Size::from_bytes(100 << 20)));
        let grown = Seen { usage: Some(Usage { bytes: 106 << 20, entries: 1 }), ..large };
        assert_eq!(status(&grown).size, Some(Size::from_bytes(106 << 20)));
        let small = Seen { status: status(&seen(Some(4096), &[])), ..seen(Some(8192), &[]) };
        assert_eq!(status(&small).size, Some(Size::from_bytes(4096)));
    }

    #[test]
    fn a_refusal_says_who() {
        let going = Seen { deleting: true, ..seen(None, &["db-1", "db-2"]) };
        let told = refused(&going, "InUse", "in use by db-1, db-2".into(), Timestamp::from_seconds(1));
        let condition = told.conditions.get(REMOVED).unwrap();
        assert_eq!((told.state, condition.message.as_str()), (VolumeState::Removing, "in use by db-1, db-2"));
    }
}
