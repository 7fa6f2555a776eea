//! What every key held at every revision that is still remembered: the machinery that `Memory` and `Embedded` share.
//!
//! A [`History`] is changed by one writer at a time, in two steps: [`History::evaluate`] decides what a commit would
//! do (nothing is changed, so it may be thrown away when a disk refuses it), [`History::apply`] does it and wakes
//! whoever watches. Between the two the writer may stage further commits on top, see [`Staged`].
//!
//! A watcher has no buffer: it is a position in the shared log, so a slow one costs nothing, and is cut off only when
//! what it has not read yet is compacted away.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::Stream;

use super::{
    Batch, Change, CommitError, Effect, Expect, Fence, Key, Line, Listing, Page, Revision, StoreError, Txn, Versioned,
};

/// How much of the past is remembered without being asked for; what is older is compacted away by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The last so many revisions; default 10,000.
    pub revisions: usize,
    /// Bytes of values that have been replaced or deleted; default 4 MiB. The last 100 revisions are kept even when
    /// they are over it, or a burst of large writes would cut off watchers that are only a moment behind.
    pub bytes: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { revisions: 10_000, bytes: 4 << 20 }
    }
}

const REVISIONS_KEPT_ALWAYS: usize = 100;

/// One commit to look through is a microsecond or less; a watcher far behind yields the lock after so many.
const COMMITS_PER_POLL: u64 = 1_000;

/// One value of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub created: Revision,
    pub modified: Revision,
    /// `None`: it was deleted.
    pub value: Option<Bytes>,
}

impl Version {
    fn to_versioned(&self, key: &Key) -> Option<Versioned> {
        let value = self.value.clone()?;
        Some(Versioned { key: key.clone(), value, created: self.created, modified: self.modified })
    }

    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// Everything that one commit changed, in key order.
pub(super) type Commit = Vec<(Key, Version)>;

/// What commits that were evaluated, and not yet applied, would do.
///
/// Later ones are evaluated as if the earlier ones had happened, so that a group of commits can be made durable at
/// once and none of it is seen before.
#[derive(Debug)]
pub(super) struct Staged {
    /// The revision after all of them.
    revision: Revision,
    newest: BTreeMap<Key, Version>,
    /// One for each revision that the staged commits take.
    pub commits: Vec<Commit>,
}

impl Staged {
    /// Commits that are known to have happened, right after `revision`.
    #[cfg(feature = "embedded")]
    pub fn of(revision: Revision, commits: Vec<Commit>) -> Self {
        Self { revision: Revision(revision.0 + commits.len() as u64), newest: BTreeMap::new(), commits }
    }

    pub fn is_empty(&self) -> bool {
        self.commits.is_empty()
    }

    #[cfg(feature = "embedded")]
    pub fn revision(&self) -> Revision {
        self.revision
    }
}

#[derive(Debug)]
pub(super) struct History {
    state: RwLock<State>,
    /// Whoever waits for the next commit, by watcher: in order, so that a simulation replays.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next_id: u64,
    wakers: BTreeMap<u64, Waker>,
}

/// INVARIANT (kept by `apply` and `forget`): `log` has one entry for each revision in `(oldest, revision]`, and each
/// key named there has the version written at that revision and the one before in its chain.
#[derive(Debug, Default)]
struct State {
    revision: Revision,
    /// The oldest revision that can be read at; watches may begin after it.
    oldest: Revision,
    keys: BTreeMap<Key, Chain>,
    /// The keys that each commit changed, in key order.
    log: VecDeque<Box<[Key]>>,
    bytes_superseded: usize,
}

/// All remembered versions of one key.
#[derive(Debug)]
struct Chain {
    newest: Version,
    /// Ascending. Empty for nearly all keys, and then takes no allocation.
    older: Vec<Version>,
}

impl Chain {
    fn at(&self, revision: Revision) -> Option<&Version> {
        if self.newest.modified <= revision {
            return Some(&self.newest);
        }
        self.older.iter().rev().find(|version| version.modified <= revision)
    }

    fn before(&self, revision: Revision) -> Option<&Version> {
        self.at(Revision(revision.0.checked_sub(1)?))
    }
}

impl History {
    pub fn new() -> Self {
        Self::restored(Revision(0), Revision(0))
    }

    /// An empty history in which everything up to `oldest` is forgotten; fill it with [`History::restore`].
    pub fn restored(revision: Revision, oldest: Revision) -> Self {
        let mut state = State { revision, oldest, ..State::default() };
        state.log = (oldest.0..revision.0).map(|_| Box::default()).collect();
        Self { state: RwLock::new(state), waiting: Mutex::default() }
    }

    /// Puts back one version as it was; in ascending order of revisions.
    #[cfg(feature = "embedded")]
    pub fn restore(&mut self, key: Key, version: Version) {
        let state = self.state.get_mut().expect(UNPOISONED);
        if version.modified > state.oldest {
            let at = (version.modified.0 - state.oldest.0 - 1) as usize;
            let mut keys = std::mem::take(&mut state.log[at]).into_vec();
            keys.push(key.clone());
            state.log[at] = keys.into();
        }
        state.push(key, version);
    }

    pub fn revision(&self) -> Revision {
        self.read().revision
    }

    pub fn oldest(&self) -> Revision {
        self.read().oldest
    }

    pub fn get(&self, key: &Key) -> (Revision, Option<Versioned>) {
        let state = self.read();
        (state.revision, state.current(key).and_then(|version| version.to_versioned(key)))
    }

    pub fn list(&self, prefix: &Key, page: &Page) -> Result<Listing, StoreError> {
        let state = self.read();
        let revision = page.at.unwrap_or(state.revision);
        state.check_remembered(revision)?;
        let from = match &page.after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let limit = if page.limit == 0 { usize::MAX } else { page.limit };
        let mut found = state
            .keys
            .range((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(|(key, chain)| chain.at(revision)?.to_versioned(key));
        let entries = found.by_ref().take(limit).collect();
        let more = found.next().is_some();
        Ok(Listing { revision, entries, more })
    }

    pub fn watch(self: &Arc<Self>, prefix: &Key, after: Revision) -> Result<Watcher, StoreError> {
        self.read().check_remembered(after)?;
        let mut waiting = self.waiting.lock().expect(UNPOISONED);
        waiting.next_id += 1;
        let (history, prefix, id) = (self.clone(), prefix.clone(), waiting.next_id);
        Ok(Watcher { history, prefix, told: after, id, ended: false })
    }

    /// Nothing staged, on top of what has been applied.
    pub fn stage(&self) -> Staged {
        Staged { revision: self.revision(), newest: BTreeMap::new(), commits: Vec::new() }
    }

    /// Decides `txn` as if `staged` had happened, and adds what it does. Answers the revision after it.
    ///
    /// For the only writer: nothing may be applied between staging and applying.
    pub fn evaluate(&self, staged: &mut Staged, txn: &Txn) -> Result<Revision, CommitError> {
        txn.check()?;
        let state = self.read();
        let current =
            |key: &Key| staged.newest.get(key).or_else(|| state.current(key)).filter(|version| version.value.is_some());
        if let Some(fence) = &txn.fence {
            check_fence(fence, current(&fence.key))?;
        }
        for line in &txn.lines {
            check_line(line, current(&line.key))?;
        }
        let revision = Revision(staged.revision.0 + 1);
        let mut commit: Commit = txn
            .lines
            .iter()
            .filter_map(|Line { key, effect, .. }| {
                let before = current(key);
                let created = before.map_or(revision, |version| version.created);
                let value = match effect {
                    Effect::Check => return None,
                    Effect::Put(value) => Some(value.clone()),
                    Effect::Delete => before.map(|_| None)?,
                };
                Some((key.clone(), Version { created, modified: revision, value }))
            })
            .collect();
        if commit.is_empty() {
            return Ok(staged.revision);
        }
        commit.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        staged.newest.extend(commit.iter().cloned());
        staged.commits.push(commit);
        staged.revision = revision;
        Ok(revision)
    }

    /// Makes what was staged visible, all of it at once, and wakes whoever watches.
    pub fn apply(&self, staged: Staged) {
        if staged.is_empty() {
            return;
        }
        let mut state = self.write();
        assert_eq!(
            state.revision.0 + staged.commits.len() as u64,
            staged.revision.0,
            "something was applied after these commits were staged"
        );
        for commit in staged.commits {
            state.log.push_back(commit.iter().map(|(key, _)| key.clone()).collect());
            for (key, version) in commit {
                state.push(key, version);
            }
        }
        state.revision = staged.revision;
        drop(state);
        self.wake();
    }

    /// How far `retention` would forget; the oldest revision when nothing is to be forgotten.
    pub fn excess(&self, retention: Retention) -> Revision {
        let state = self.read();
        let by_count = state.log.len().saturating_sub(retention.revisions.max(1));
        let mut excess = by_count;
        // Over the bytes: go on as far as it takes. What each step frees is only known by looking.
        let mut bytes = state.bytes_superseded;
        for (at, keys) in state.log.iter().enumerate().take(state.log.len().saturating_sub(REVISIONS_KEPT_ALWAYS)) {
            if at >= by_count && bytes <= retention.bytes {
                break;
            }
            let revision = Revision(state.oldest.0 + at as u64 + 1);
            bytes -= keys
                .iter()
                .filter_map(|key| state.keys.get(key)?.before(revision))
                .map(|version| version.bytes())
                .sum::<usize>();
            excess = excess.max(at + 1);
        }
        Revision(state.oldest.0 + excess as u64)
    }

    /// The records that nothing needs any more once history before `before` is forgotten: at most about `limit` of
    /// them, with the revision up to which they make it possible to forget.
    #[cfg(feature = "embedded")]
    pub fn superseded(&self, before: Revision, limit: usize) -> (Revision, Vec<(Revision, Key)>) {
        let state = self.read();
        let (mut reached, mut records) = (state.oldest, Vec::new());
        for keys in &state.log {
            if reached >= before || records.len() >= limit {
                break;
            }
            reached.0 += 1;
            for key in keys {
                let Some(chain) = state.keys.get(key) else { continue };
                records.extend(chain.before(reached).filter(|v| v.value.is_some()).map(|v| (v.modified, key.clone())));
                records.extend(chain.at(reached).filter(|v| v.value.is_none()).map(|v| (v.modified, key.clone())));
            }
        }
        (reached, records)
    }

    /// Forgets history before `before`; what stood then can still be listed.
    pub fn forget(&self, before: Revision) -> Result<(), StoreError> {
        let mut state = self.write();
        if before > state.revision {
            return Err(StoreError::Future { asked: before, current: state.revision });
        }
        while state.oldest < before {
            state.forget_one();
        }
        drop(state);
        // Whoever has not read that far learns it now, and not at the next commit.
        self.wake();
        Ok(())
    }

    /// Every remembered version, ascending by revision and key.
    #[cfg(feature = "embedded")]
    pub fn versions(&self) -> (Revision, Revision, Vec<(Key, Version)>) {
        let state = self.read();
        let versions = state
            .keys
            .iter()
            .flat_map(|(key, chain)| {
                chain.older.iter().chain([&chain.newest]).map(|version| (key.clone(), version.clone()))
            })
            .collect();
        (state.revision, state.oldest, in_order(versions))
    }

    /// What stands now, ascending by revision and key.
    #[cfg(feature = "embedded")]
    pub fn live(&self) -> (Revision, Vec<(Key, Version)>) {
        let state = self.read();
        let newest = state.keys.iter().map(|(key, chain)| (key, &chain.newest));
        let live = newest.filter(|(_, version)| version.value.is_some());
        (state.revision, in_order(live.map(|(key, version)| (key.clone(), version.clone())).collect()))
    }

    fn wake(&self) {
        // Woken outside the lock: a waker may poll at once.
        let wakers = std::mem::take(&mut self.waiting.lock().expect(UNPOISONED).wakers);
        wakers.into_values().for_each(Waker::wake);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect(UNPOISONED)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect(UNPOISONED)
    }
}

#[cfg(feature = "embedded")]
pub(super) fn in_order(mut versions: Vec<(Key, Version)>) -> Vec<(Key, Version)> {
    versions.sort_unstable_by(|(a_key, a), (b_key, b)| (a.modified, a_key).cmp(&(b.modified, b_key)));
    versions
}

fn check_fence(fence: &Fence, current: Option<&Version>) -> Result<(), CommitError> {
    match current {
        Some(version) if version.modified == fence.revision => Ok(()),
        _ => Err(CommitError::Fenced { fence: fence.clone() }),
    }
}

fn check_line(line: &Line, current: Option<&Version>) -> Result<(), CommitError> {
    let holds = match line.expect {
        None => true,
        Some(Expect::Absent) => current.is_none(),
        Some(Expect::Version(revision)) => current.is_some_and(|version| version.modified == revision),
    };
    if holds { Ok(()) } else { Err(CommitError::Conflict { key: line.key.clone() }) }
}

impl State {
    fn current(&self, key: &Key) -> Option<&Version> {
        self.keys.get(key).map(|chain| &chain.newest)
    }

    fn check_remembered(&self, asked: Revision) -> Result<(), StoreError> {
        if asked < self.oldest {
            return Err(StoreError::Compacted { asked, oldest: Some(self.oldest) });
        }
        if asked > self.revision {
            return Err(StoreError::Future { asked, current: self.revision });
        }
        Ok(())
    }

    fn push(&mut self, key: Key, version: Version) {
        match self.keys.entry(key) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Chain { newest: version, older: Vec::new() });
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let before = std::mem::replace(&mut entry.get_mut().newest, version);
                self.bytes_superseded += before.bytes();
                entry.get_mut().older.push(before);
            }
        }
    }

    fn forget_one(&mut self) {
        let keys = self.log.pop_front().expect("the log reaches from the oldest revision to the current one");
        self.oldest.0 += 1;
        for key in keys {
            let chain = self.keys.get_mut(&key).expect("a key in the log has a chain");
            while chain
                .older
                .first()
                .is_some_and(|_| chain.older.get(1).map_or(chain.newest.modified, |next| next.modified) <= self.oldest)
            {
                self.bytes_superseded -= chain.older.remove(0).bytes();
            }
            if chain.older.is_empty() {
                chain.older = Vec::new();
                if chain.newest.value.is_none() && chain.newest.modified <= self.oldest {
                    self.keys.remove(&key);
                }
            } else if chain.older[0].value.is_none() && chain.older[0].modified <= self.oldest {
                chain.older.remove(0);
            }
        }
    }

    /// What the commit at `revision` did under `prefix`.
    fn changes(&self, revision: Revision, prefix: &Key) -> Vec<Change> {
        let keys = &self.log[(revision.0 - self.oldest.0 - 1) as usize];
        keys.iter()
            .filter(|key| key.starts_with(prefix))
            .map(|key| {
                let chain = &self.keys[key];
                let of = |version: Option<&Version>| version.and_then(|version| version.to_versioned(key));
                Change { key: key.clone(), value: of(chain.at(revision)), previous: of(chain.before(revision)) }
            })
            .collect()
    }
}

/// A place in the history from which a stream goes on.
pub(super) struct Watcher {
    history: Arc<History>,
    prefix: Key,
    /// Everything up to here has been told.
    told: Revision,
    id: u64,
    ended: bool,
}

impl Watcher {
    /// What comes after `told`; `None` when nothing has happened since.
    fn next(&mut self) -> Option<Result<Batch, StoreError>> {
        let state = self.history.read();
        if let Err(error) = state.check_remembered(self.told) {
            self.ended = true;
            return Some(Err(error));
        }
        if self.told == state.revision {
            return None;
        }
        let until = state.revision.0.min(self.told.0 + COMMITS_PER_POLL);
        for revision in (self.told.0 + 1..=until).map(Revision) {
            let changes = state.changes(revision, &self.prefix);
            if !changes.is_empty() {
                self.told = revision;
                return Some(Ok(Batch { revision, changes }));
            }
        }
        self.told = Revision(until);
        Some(Ok(Batch { revision: self.told, changes: Vec::new() }))
    }
}

impl Stream for Watcher {
    type Item = Result<Batch, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(item) = self.next() {
            return Poll::Ready(Some(item));
        }
        // First the waker, then another look: a commit in between would wake nobody otherwise.
        self.history.waiting.lock().expect(UNPOISONED).wakers.insert(self.id, context.waker().clone());
        match self.next() {
            Some(item) => Poll::Ready(Some(item)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Ok(mut waiting) = self.history.waiting.lock() {
            waiting.wakers.remove(&self.id);
        }
    }
}

const UNPOISONED: &str = "nothing panics while it holds this lock";
