//! A store that lives and dies with the process: for tests, for the simulator, and for tools that keep nothing.
//!
//! The semantics are those of the other two, history and compaction included. It reads no clock, starts no task and
//! takes no step by itself, so that a simulation replays.

use std::sync::Arc;

use futures::future::{BoxFuture, ready};

use super::history::{History, Retention};
use super::{CommitError, Identity, Key, Listing, Page, Revision, Store, StoreError, Txn, Versioned, Watch};

/// Clones share one content.
#[derive(Clone, Debug)]
pub struct Memory {
    identity: Identity,
    history: Arc<History>,
    retention: Retention,
    /// Commits are decided and done one at a time.
    writing: Arc<std::sync::Mutex<()>>,
}

impl Memory {
    /// Empty, at revision 0, with the identity `memory`.
    pub fn new() -> Self {
        Self::with("memory", Retention::default())
    }

    /// Two stores that a test takes for different ones need different identities.
    pub fn with(identity: impl Into<String>, retention: Retention) -> Self {
        Self {
            identity: Identity(identity.into()),
            history: Arc::new(History::new()),
            retention,
            writing: Arc::default(),
        }
    }

    fn commit_now(&self, txn: &Txn) -> Result<Revision, CommitError> {
        let _writing = self.writing.lock().expect("nothing panics while it holds this lock");
        let mut staged = self.history.stage();
        let revision = self.history.evaluate(&mut staged, txn)?;
        self.history.apply(staged);
        let excess = self.history.excess(self.retention);
        if excess > self.history.oldest() {
            self.history.forget(excess).expect("what is in excess lies in the past");
        }
        Ok(revision)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for Memory {
    fn identity(&self) -> BoxFuture<'_, Result<Identity, StoreError>> {
        Box::pin(ready(Ok(self.identity.clone())))
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(Revision, Option<Versioned>), StoreError>> {
        Box::pin(async move { Ok(self.history.get(key)) })
    }

    fn list<'a>(&'a self, prefix: &'a Key, page: Page) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move { self.history.list(prefix, &page) })
    }

    fn watch<'a>(&'a self, prefix: &'a Key, after: Revision) -> BoxFuture<'a, Result<Watch, StoreError>> {
        Box::pin(async move { Ok(Box::pin(self.history.watch(prefix, after)?) as Watch) })
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        Box::pin(async move { self.commit_now(&txn) })
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.history.forget(before) })
    }
}
