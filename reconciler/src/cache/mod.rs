//! What is known of the objects: one stream over all declared kinds, kept as immutable snapshots at one revision.
//!
//! Everything a controller reads comes from here, so reading never waits and costs what it returns. After a lost
//! connection the stream goes on after the last revision seen; when history does not reach back that far, everything
//! is listed anew and compared, so that what vanished meanwhile is told like any other change. A snapshot never goes
//! back below a revision seen before in the same epoch.
//!
//! Reading order: `snapshot` (what readers hold), `declare` (what a cache holds), `index`, `table` (one kind),
//! `follow` (the stream).

mod declare;
mod follow;
mod index;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use reconciler_api::ResourceVersion;

use crate::controller::planted::Bugs;
use crate::objects::{Epoch, Objects, Selection};
use crate::seams::{Monotonic, Seams};

use table::AnyTable;

pub use declare::Declarations;
pub use index::Index;
pub use snapshot::Snapshot;
pub use table::{AnyObject, Delta, Unreadable};

/// Snapshots of all declared kinds, kept up to date by [`Cache::run`]. Clones share it.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

struct Shared {
    objects: Arc<dyn Objects>,
    seams: Seams,
    blank: Snapshot,
    selections: Vec<Selection>,
    state: Mutex<State>,
    /// Told when there is a new snapshot.
    advanced: Notify,
    /// Told when somebody wants everything listed anew.
    relist: Notify,
    relists_wanted: AtomicU64,
    bugs: Bugs,
}

#[derive(Default)]
struct State {
    current: Option<Snapshot>,
    health: Health,
    subscribers: Vec<Weak<Subscriber>>,
}

/// Called in order with each new snapshot and what it changed; must not wait.
pub type Subscriber = dyn Fn(&Snapshot, &[Delta]) + Send + Sync;

/// How the cache's stream is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether a stream is open and has told everything that stood at its beginning.
    pub connected: bool,
    /// When word last came.
    pub heard: Monotonic,
    /// Attempts in a row that ended without progress.
    pub failures: u32,
    /// Why the last stream ended.
    pub last_error: Option<String>,
    /// Objects that this version cannot read.
    pub unreadable: usize,
}

impl Cache {
    /// A cache of what is declared. It knows nothing until [`Cache::run`] runs.
    pub fn new(objects: Arc<dyn Objects>, seams: Seams, declarations: &Declarations) -> Self {
        let shared = Shared {
            objects,
            seams,
            blank: Snapshot::empty(declarations),
            selections: declarations.selections(),
            state: Mutex::default(),
            advanced: Notify::new(),
            relist: Notify::new(),
            relists_wanted: AtomicU64::new(0),
            bugs: Bugs::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// For a cache that nobody shares yet.
    pub(crate) fn with_bugs(mut self, bugs: &Bugs) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.bugs = bugs.clone();
        }
        self
    }

    /// Follows the stream for ever. Dropping the future stops it; running it again goes on where it stopped. One at a
    /// time.
    pub async fn run(&self) {
        follow::follow(&self.shared).await;
    }

    /// What is known now; `None` while nothing is known yet.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.shared.lock().current.clone()
    }

    /// Waits until something is known.
    pub async fn synced(&self) -> Snapshot {
        self.at_least(ResourceVersion::default()).await
    }

    /// Waits for a snapshot that shows everything up to this version. Waits for ever if that version is never reached
    /// (it is of an epoch that ended, or the store is gone): callers bring a deadline. Cancel-safe.
    pub async fn at_least(&self, version: ResourceVersion) -> Snapshot {
        self.wait_for(|snapshot| snapshot.resource_version() >= version).await
    }

    /// Waits for a snapshot of which this is true. Cancel-safe.
    pub async fn wait_for(&self, mut condition: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        loop {
            let advanced = self.shared.advanced.notified();
            let mut advanced = std::pin::pin!(advanced);
            advanced.as_mut().enable();
            if let Some(snapshot) = self.snapshot().filter(|snapshot| condition(snapshot)) {
                return snapshot;
            }
            advanced.await;
        }
    }

    /// From now on `subscriber` hears of every change, until it is dropped. The answer is what came before: together
    /// there is no gap and nothing twice.
    pub fn subscribe(&self, subscriber: &Arc<Subscriber>) -> Option<Snapshot> {
        let mut state = self.shared.lock();
        state.subscribers.push(Arc::downgrade(subscriber));
        state.current.clone()
    }

    /// Lists everything anew, for who suspects that the stream has fallen silent.
    pub fn relist(&self) {
        self.shared.relists_wanted.fetch_add(1, Ordering::AcqRel);
        self.shared.relist.notify_waiters();
    }

    /// Some kind that the cache follows, for a cheap read past it.
    pub(crate) fn any_selection(&self) -> Option<Selection> {
        self.shared.selections.first().cloned()
    }

    /// How the stream is doing now.
    pub fn health(&self) -> Health {
        self.shared.lock().health.clone()
    }
}

impl Shared {
    /// The state is replaced whole under the lock, so a panic elsewhere leaves it sound.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a new snapshot known to everybody.
    fn publish(&self, snapshot: Snapshot, deltas: &[Delta]) {
        let subscribers: Vec<_> = {
            let mut state = self.lock();
            state.health.unreadable = snapshot.tables.iter().map(|table| table.unreadable_len()).sum();
            state.current = Some(snapshot.clone());
            state.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
            state.subscribers.iter().filter_map(Weak::upgrade).collect()
        };
        for subscriber in subscribers {
            subscriber(&snapshot, deltas);
        }
        self.advanced.notify_waiters();
    }

    fn next_snapshot(
        &self,
        epoch: Epoch,
        resource_version: ResourceVersion,
        tables: Vec<Arc<dyn AnyTable>>,
    ) -> Snapshot {
        Snapshot { epoch, resource_version, tables, ..self.blank.clone() }
    }
}

/// A stream that says nothing for so long is opened anew. The store tells of passed revisions within a second, but
/// says nothing at all while nothing happens; going on after the last revision costs one request.
const SILENCE: Duration = Duration::from_secs(60);

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}
