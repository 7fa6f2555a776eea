//! Work that takes long, one piece a task, whose outcome is looked at like a world.
//!
//! A reconcile never waits for it: it sees that it is not begun, under way, or done. The work lives in this process
//! alone; whoever comes after begins it again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream;
use reconciler::api::Uid;
use reconciler::external::{Announced, Announcements, World};
use reconciler::seams::{Monotonic, Seams, TaskHandle};
use tokio::sync::Notify;

/// Outcomes by task.
pub(super) struct Background<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    work: Mutex<BTreeMap<Uid, Work<T>>>,
    changed: Notify,
}

struct Work<T> {
    /// And when it was known.
    outcome: Option<(T, Monotonic)>,
    _running: TaskHandle,
}

/// How far a piece of work is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stage<T> {
    UnderWay,
    Done(T),
}

impl<T: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static> Background<T> {
    pub fn new() -> Self {
        Background { shared: Arc::new(Shared { work: Mutex::default(), changed: Notify::new() }) }
    }

    /// Begins the work for `key`, unless it is under way or done.
    pub fn begin(&self, seams: &Seams, key: &Uid, work: impl Future<Output = T> + Send + 'static) {
        let mut all = self.shared.lock();
        if all.contains_key(key) {
            return;
        }
        let (shared, of) = (self.shared.clone(), key.clone());
        let clock = seams.clone();
        let running = seams.spawn("background", async move {
            let outcome = work.await;
            if let Some(work) = shared.lock().get_mut(&of) {
                work.outcome = Some((outcome, clock.monotonic()));
            }
            shared.changed.notify_one();
        });
        all.insert(key.clone(), Work { outcome: None, _running: running });
        drop(all);
        self.shared.changed.notify_one();
    }

    /// Ends the work for `key` if it is under way, and forgets its outcome.
    pub fn forget(&self, key: &Uid) {
        let forgotten = self.shared.lock().remove(key);
        if forgotten.is_some() {
            self.shared.changed.notify_one();
        }
    }

    /// As it is now, not as it was last looked at.
    pub fn stage(&self, key: &Uid) -> Option<Stage<T>> {
        self.shared.lock().get(key).map(Work::stage)
    }

    /// Since when the outcome is known; `None` while it is not.
    pub fn done_at(&self, key: &Uid) -> Option<Monotonic> {
        self.shared.lock().get(key)?.outcome.as_ref().map(|(_, at)| *at)
    }
}

impl<T: Clone> Work<T> {
    fn stage(&self) -> Stage<T> {
        self.outcome.clone().map_or(Stage::UnderWay, |(outcome, _)| Stage::Done(outcome))
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uid, Work<T>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static> World for Background<T> {
    type Key = Uid;
    type Item = Stage<T>;
    type Error = Infallible;

    async fn list(&self) -> Result<Vec<(Uid, Stage<T>)>, Infallible> {
        Ok(self.shared.lock().iter().map(|(key, work)| (key.clone(), work.stage())).collect())
    }

    fn changes(&self) -> Option<Announcements<Self>> {
        let announced = stream::unfold(self.shared.clone(), |shared| async move {
            shared.changed.notified().await;
            Some((Ok(Announced::LookAgain), shared))
        });
        Some(announced.boxed())
    }
}
