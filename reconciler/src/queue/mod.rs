//! Keys that want a run: each once, by one worker at a time, in an order in which nothing starves.
//!
//! Keys, not objects: who takes a key reads what is true then. A key that is added while it is being worked on runs
//! once more afterwards. A delay is one slot a key: the earliest wins, and a plain add, which makes it run now, disarms
//! it. Failures back off per key, and one counts only when its delay was served, so that a noisy key does not reach the
//! longest delay in moments (kubernetes/kubernetes#132805).
//!
//! `book` is the whole logic as plain data that is told the time; this module adds waiting.

mod book;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use reconciler_api::{ObjectRef, ResourceVersion};

use crate::backoff::Backoff;
use crate::seams::{Monotonic, Purpose, Seams};

use book::Book;
pub use book::{Depth, Verdict, Work};

/// What a queue can hold.
pub trait Key: Ord + Clone + fmt::Debug + fmt::Display + Send + Sync + 'static {}

impl<K: Ord + Clone + fmt::Debug + fmt::Display + Send + Sync + 'static> Key for K {}

/// How urgent an add is. Urgency is a head start, not a rank: a key that has waited longer by [`HEAD_START`] a step
/// goes first all the same, so the lowest cannot starve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Nobody waits for it: the first listing, resyncs.
    Background,
    /// Somebody may be waiting for it: a change.
    #[default]
    Normal,
}

/// How much earlier each step of [`Priority`] counts as having come. Long enough that the first listing of a large
/// cluster does not delay what changes meanwhile, short enough that no key waits noticeably longer for it.
pub const HEAD_START: Duration = Duration::from_secs(10);

/// Why a key was added: for logs and traces, never for decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Where it came from (`Page`, `retry`, `first listing`). Keys from different sources are taken in turn.
    pub source: &'static str,
    /// The object that changed, if one did.
    pub object: Option<Arc<ObjectRef>>,
    /// The version at which it was seen to change: that of the commit that changed it, or of the first listing.
    pub revision: Option<ResourceVersion>,
}

impl Reason {
    /// Something else than an object.
    pub const fn new(source: &'static str) -> Self {
        Self { source, object: None, revision: None }
    }

    /// A change of an object.
    pub fn of(source: &'static str, object: Arc<ObjectRef>, revision: ResourceVersion) -> Self {
        Self { source, object: Some(object), revision: Some(revision) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.source)?;
        if let Some(object) = &self.object {
            write!(f, " {object}")?;
        }
        match self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// The queue of one controller. Clones share it.
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    book: Mutex<Book<K>>,
    seams: Seams,
    backoff: Backoff,
    /// One permit a key that became ready.
    ready: Notify,
    /// The earliest delay may have changed.
    rearm: Notify,
    /// Something ended: for who drains.
    ended: Notify,
}

impl<K: Key> Queue<K> {
    /// An empty queue. `backoff` is for keys that fail.
    pub fn new(seams: Seams, backoff: Backoff) -> Self {
        let shared = Shared {
            book: Mutex::new(Book::new()),
            seams,
            backoff,
            ready: Notify::new(),
            rearm: Notify::new(),
            ended: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Wants a run now.
    pub fn add(&self, key: K, priority: Priority, reason: Reason) {
        let now = self.shared.seams.monotonic();
        let mut book = self.lock();
        let armed = book.next_due();
        let ready = book.add(key, priority, reason, now);
        let rearm = book.next_due() != armed;
        drop(book);
        self.tell(usize::from(ready), rearm);
    }

    /// Wants a run after a while.
    pub fn add_after(&self, key: K, delay: Duration, reason: Reason) {
        let now = self.shared.seams.monotonic();
        let ready = self.lock().add_after(key, now + delay, reason, now);
        self.tell(usize::from(ready), true);
    }

    /// The next key; `None` once the queue is shut. Whoever takes one must call [`Queue::done`]. Cancel-safe.
    pub async fn take(&self) -> Option<Work<K>> {
        loop {
            let ready = self.shared.ready.notified();
            let mut ready = std::pin::pin!(ready);
            ready.as_mut().enable();
            {
                let now = self.shared.seams.monotonic();
                let mut book = self.lock();
                if book.is_shut() {
                    return None;
                }
                if let Some(work) = book.take(now) {
                    return Some(work);
                }
            }
            ready.await;
        }
    }

    /// Work on a key has ended. It is not handed out again before `seen`, the version that its own writes reached, was
    /// reported by [`Queue::advance`].
    pub fn done(&self, key: &K, verdict: Verdict, seen: Option<ResourceVersion>) {
        let now = self.shared.seams.monotonic();
        let random = self.shared.seams.random.next(Purpose::Jitter);
        let ready = self.lock().done(key, verdict, seen, now, |failures| self.shared.backoff.delay(failures, random));
        self.tell(usize::from(ready), true);
        self.shared.ended.notify_waiters();
    }

    /// What is known has reached this version: keys that waited to see their own writes go on. `anew`: it is another
    /// line of history, in which earlier versions mean nothing.
    pub fn advance(&self, version: ResourceVersion, anew: bool) {
        let now = self.shared.seams.monotonic();
        let mut book = self.lock();
        let armed = book.next_due();
        let ready = book.advance(version, anew, now);
        let rearm = book.next_due() != armed;
        drop(book);
        self.tell(ready, rearm);
    }

    /// What made keys fail may be over: those that back off run now, and nothing is held against any.
    pub fn hurry(&self) {
        let now = self.shared.seams.monotonic();
        let ready = self.lock().hurry(now);
        self.tell(ready, true);
    }

    /// Forgets what was remembered of a key: it stands for something else from now on.
    pub fn forget(&self, key: &K) {
        self.lock().forget(key);
    }

    /// Moves keys whose time has come. Runs as long as the queue is used; calls `overdue` when a key has waited for its
    /// own writes for longer than `patience`.
    pub async fn keep_time(&self, patience: Duration, overdue: impl Fn()) {
        let mut warned: Option<Monotonic> = None;
        loop {
            let rearm = self.shared.rearm.notified();
            let mut rearm = std::pin::pin!(rearm);
            rearm.as_mut().enable();
            let now = self.shared.seams.monotonic();
            let (ready, due, held_since) = {
                let mut book = self.lock();
                (book.promote(now), book.next_due(), book.held_since())
            };
            self.tell(ready, false);
            let complain = held_since.map(|since| since.max(warned.unwrap_or(since)) + patience);
            if complain.is_some_and(|at| at <= now) {
                warned = Some(now);
                overdue();
                continue;
            }
            match due.into_iter().chain(complain).min() {
                Some(at) => tokio::select! {
                    biased;
                    () = rearm => {}
                    () = self.shared.seams.clock.sleep_until(at) => {}
                },
                None => rearm.await,
            }
        }
    }

    /// Hands out nothing more. What is being worked on goes on.
    pub fn shut(&self) {
        self.lock().shut();
        self.shared.ready.notify_waiters();
        self.shared.ended.notify_waiters();
    }

    /// Waits until nothing is being worked on.
    pub async fn drained(&self) {
        loop {
            let ended = self.shared.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            if self.lock().depth().working == 0 {
                return;
            }
            ended.await;
        }
    }

    /// How many keys are where.
    pub fn depth(&self) -> Depth {
        self.lock().depth()
    }

    /// How often a key became wanted that was not wanted already.
    pub fn wanted_total(&self) -> u64 {
        self.lock().wanted_total()
    }

    /// Nothing is ready, being worked on, or waiting to see its own writes; delays may be armed.
    pub fn is_idle(&self) -> bool {
        let depth = self.depth();
        depth.ready == 0 && depth.working == 0 && depth.held == 0
    }

    fn tell(&self, ready: usize, rearm: bool) {
        for _ in 0..ready {
            self.shared.ready.notify_one();
        }
        if rearm {
            self.shared.rearm.notify_one();
        }
    }

    /// The book is consistent between calls, and none of its methods panics half-way.
    fn lock(&self) -> MutexGuard<'_, Book<K>> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Key> fmt::Debug for Queue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("depth", &self.depth()).finish_non_exhaustive()
    }
}
