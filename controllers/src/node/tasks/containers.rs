//! The containers of this machine, as a world that is watched.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream;
use reconciler::api::Uid;
use reconciler::external::{Announced, Announcements, World};
use reconciler::seams::{Seams, TaskHandle};
use tokio::sync::Notify;

use crate::node::containerd::{Change, Container, ContainerId, Error, Runtime};

/// On every container of a task: whose it is, and which attempt.
pub const LABEL_UID: &str = "apply/task.uid";
pub const LABEL_NAMESPACE: &str = "apply/task.namespace";
pub const LABEL_NAME: &str = "apply/task.name";
pub const LABEL_ATTEMPT: &str = "apply/task.attempt";

/// The name of an attempt's container: `<uid of the task>.<attempt>`.
pub fn container_id(uid: &Uid, attempt: u32) -> Option<ContainerId> {
    ContainerId::new(format!("{uid}.{attempt}")).ok()
}

/// Whose attempt a container is, and which; `None` for one that is none of ours.
pub(in crate::node) fn attempt_of(id: &str) -> Option<(Uid, u32)> {
    let (uid, attempt) = id.rsplit_once('.')?;
    Some((Uid::new(uid), attempt.parse().ok()?))
}

pub(super) fn task_of(id: &ContainerId) -> Option<Uid> {
    attempt_of(id.as_str()).map(|(uid, _)| uid)
}

/// What a [`Runtime`] has.
pub struct Containers {
    runtime: Arc<dyn Runtime>,
    pending: Arc<Pending>,
    _listener: TaskHandle,
}

/// Changes that were heard of and not looked at yet. They are taken in by a task of their own that never rests, so that
/// what happens while everything is being listed is looked at afterwards.
#[derive(Default)]
struct Pending {
    changes: Mutex<Heard>,
    heard: Notify,
}

#[derive(Default)]
struct Heard {
    all: bool,
    some: BTreeSet<ContainerId>,
    /// Somebody here is at these: they are looked at once, when that is over, and not at each of its steps.
    in_hand: BTreeSet<ContainerId>,
}

/// While it lives, its container is not looked at by itself.
pub(super) struct InHand {
    id: ContainerId,
    pending: Arc<Pending>,
}

impl Containers {
    pub(super) fn new(runtime: Arc<dyn Runtime>, seams: &Seams) -> Self {
        let pending = Arc::<Pending>::default();
        let (listening, hearing) = (runtime.clone(), pending.clone());
        let listener = seams.spawn("container-changes", async move {
            let mut changes = listening.changes();
            while let Some(change) = changes.next().await {
                hearing.hear(change);
            }
        });
        Containers { runtime, pending, _listener: listener }
    }

    /// To be held by whoever changes a container step by step; one at a time.
    pub(super) fn take_in_hand(&self, id: &ContainerId) -> InHand {
        self.pending.lock().in_hand.insert(id.clone());
        InHand { id: id.clone(), pending: self.pending.clone() }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.pending.lock().in_hand.remove(&self.id);
        self.pending.heard.notify_one();
    }
}

impl Pending {
    fn hear(&self, change: Change) {
        let mut heard = self.lock();
        match change {
            Change::All => heard.all = true,
            Change::One(id) => drop(heard.some.insert(id)),
        }
        drop(heard);
        self.heard.notify_one();
    }

    async fn next(&self) -> Option<ContainerId> {
        loop {
            let heard = self.heard.notified();
            {
                let mut pending = self.lock();
                if std::mem::take(&mut pending.all) {
                    return None;
                }
                let next = pending.some.iter().find(|id| !pending.in_hand.contains(*id)).cloned();
                if let Some(id) = next {
                    pending.some.remove(&id);
                    return Some(id);
                }
            }
            heard.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World for Containers {
    type Key = ContainerId;
    type Item = Container;
    type Error = Error;

    async fn list(&self) -> Result<Vec<(ContainerId, Container)>, Error> {
        let found = self.runtime.list().await?;
        Ok(found.into_iter().map(|container| (container.id.clone(), container)).collect())
    }

    /// Each is looked at when it is taken, so what is announced is never older than the listing before.
    fn changes(&self) -> Option<Announcements<Self>> {
        let (pending, runtime) = (self.pending.clone(), self.runtime.clone());
        let announced = stream::unfold((pending, runtime), |(pending, runtime)| async move {
            let announced = match pending.next().await {
                None => Ok(Announced::LookAgain),
                Some(id) => match runtime.inspect(&id).await {
                    Ok(Some(container)) => Ok(Announced::Put(id, container)),
                    Ok(None) => Ok(Announced::Gone(id)),
                    // What was to be looked at is forgotten with this, so everything has to be.
                    Err(error) => Err(error),
                },
            };
            Some((announced, (pending, runtime)))
        });
        Some(announced.boxed())
    }
}
