//! Bytes under keys: the lower of the two layers. Only the objects layer holds a [`Store`].
//!
//! One interface, three backends, one suite: `Memory`, `Embedded` (one file) and `Etcd`. The limits
//! are the smallest of the three (etcd's: 128 operations and 1.5 MiB a transaction, less what the protocol adds), and
//! every backend refuses more, so that the simulator meets them.
//!
//! Reading order: `mod` (the interface), `history` (revisions, versions and watches in memory), [`memory`],
//! [`embedded`], `etcd`.

#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(any(feature = "memory", feature = "embedded"))]
pub(crate) mod history;
#[cfg(feature = "memory")]
pub mod memory;

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

#[cfg(feature = "embedded")]
pub use embedded::Embedded;
#[cfg(feature = "etcd")]
pub use etcd::Etcd;
#[cfg(any(feature = "memory", feature = "embedded"))]
pub use history::Retention;
#[cfg(feature = "memory")]
pub use memory::Memory;

/// Keys that one commit may touch, checks included.
pub const KEYS_PER_COMMIT: usize = 100;
/// Bytes of one value, and of all keys and values of one commit.
pub const BYTES_PER_COMMIT: usize = 1_310_720;

/// A key: `/`-separated text, compared bytewise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(std::sync::Arc<str>);

impl Key {
    /// Takes the text as it is; nothing is checked.
    pub fn new(key: impl AsRef<str>) -> Self {
        Self(key.as_ref().into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the key's text begins with the prefix's. `/a` is a prefix of `/ab`: end prefixes with `/`.
    pub fn starts_with(&self, prefix: &Key) -> bool {
        self.0.starts_with(&*prefix.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A point in the store's one line of history. Every commit that changes something takes the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value with where it stands in history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// What it stands under.
    pub key: Key,
    /// The bytes, as they were put.
    pub value: Bytes,
    /// When the key came to be; a key that was deleted and made again has another one.
    pub created: Revision,
    /// When this value was written; what [`Expect::Version`] compares with.
    pub modified: Revision,
}

/// Which part of a listing is wanted.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// At most so many; 0 for all.
    pub limit: usize,
    /// Only keys after this one.
    pub after: Option<Key>,
    /// As things stood then, so that all pages of a listing tell of one moment; `None` for now.
    pub at: Option<Revision>,
}

/// One page, in key order.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The moment that the page tells of.
    pub revision: Revision,
    /// What stands there, in key order.
    pub entries: Vec<Versioned>,
    /// There are more keys after the last entry.
    pub more: bool,
}

/// What must hold for a commit to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing under this key.
    Absent,
    /// The value that was written at this revision is still the one.
    Version(Revision),
}

/// One line of a commit: an expectation, an effect, or both. At most one line a key.
#[derive(Clone, Debug)]
pub struct Line {
    /// Which key it is about.
    pub key: Key,
    /// `None`: whatever is there.
    pub expect: Option<Expect>,
    /// What happens to it when every expectation of the commit holds.
    pub effect: Effect,
}

/// What a line of a commit does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Only the expectation counts.
    Check,
    /// The key holds this from then on.
    Put(Bytes),
    /// Deleting what is absent is no change.
    Delete,
}

/// A leader's right to write: the term key and the revision at which it was written. A commit that carries it happens
/// only while nobody else has been elected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The term key: written by the election that began the term.
    pub key: Key,
    /// When it was written. While the key still has this version, nobody else was elected.
    pub revision: Revision,
}

/// All or nothing.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// Under whose leadership; `None` for writers that nobody elects.
    pub fence: Option<Fence>,
    /// What is expected and done, in any order; at most [`KEYS_PER_COMMIT`] keys.
    pub lines: Vec<Line>,
}

impl Txn {
    /// What every backend checks first: the limits, and one line a key.
    pub fn check(&self) -> Result<(), CommitError> {
        let keys = self.lines.len() + usize::from(self.fence.is_some());
        if keys > KEYS_PER_COMMIT {
            return Err(CommitError::TooLarge { what: "keys", asked: keys, limit: KEYS_PER_COMMIT });
        }
        let bytes: usize = self
            .lines
            .iter()
            .map(|line| line.key.as_str().len() + if let Effect::Put(value) = &line.effect { value.len() } else { 0 })
            .sum();
        if bytes > BYTES_PER_COMMIT {
            return Err(CommitError::TooLarge { what: "bytes", asked: bytes, limit: BYTES_PER_COMMIT });
        }
        let mut seen: Vec<&Key> = self.lines.iter().map(|line| &line.key).collect();
        seen.sort_unstable();
        match seen.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(CommitError::Repeated { key: pair[0].clone() }),
            None => Ok(()),
        }
    }
}

/// Why a commit did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// An expectation did not hold; nothing was changed. Read again, decide again.
    #[error("{key} has changed")]
    Conflict {
        /// The first key of which it did not hold.
        key: Key,
    },
    /// Somebody else was elected; nothing was changed. Stop leading.
    #[error("the term {key} at revision {revision} has ended", key = fence.key, revision = fence.revision)]
    Fenced {
        /// The term that has ended.
        fence: Fence,
    },
    /// Nothing was changed, and the same will be refused again.
    #[error("a commit of {asked} {what} is over the limit of {limit}")]
    TooLarge {
        /// What there is too much of: `keys` or `bytes`.
        what: &'static str,
        /// How many the commit has.
        asked: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// Nothing was changed, and the same will be refused again.
    #[error("{key} stands in a commit twice")]
    Repeated {
        /// Which key.
        key: Key,
    },
    /// The disk or the quota is used up: only deletions are taken until there is room. Nothing was changed.
    #[error("the store is full ({detail}); deletions still work")]
    Full {
        /// What the backend said.
        detail: String,
    },
    /// Nobody answered in time: the commit may have happened. Read before repeating it.
    #[error("the store did not say whether the commit happened: {detail}")]
    Unknown {
        /// What the backend said, or how long was waited.
        detail: String,
    },
    /// The store could not be reached; nothing was changed. Try again later.
    #[error("the store cannot be reached: {detail}")]
    Unavailable {
        /// What the backend said.
        detail: String,
    },
}

/// Why a read did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// That part of history is gone. List anew.
    #[error("revision {asked} is compacted away{}", oldest.map_or(String::new(), |oldest| format!(" (the oldest is {oldest})")))]
    Compacted {
        /// The revision that was asked for.
        asked: Revision,
        /// The oldest that is still there, where the backend says so.
        oldest: Option<Revision>,
    },
    /// A revision that this store has not reached: it was restored, or it is another store. List anew.
    #[error("revision {asked} lies ahead of the store, which is at {current}")]
    Future {
        /// The revision that was asked for.
        asked: Revision,
        /// The one at which the store stands.
        current: Revision,
    },
    /// Try again later.
    #[error("the store cannot be reached: {detail}")]
    Unavailable {
        /// What the backend said.
        detail: String,
    },
    /// A record does not match its checksum. Nothing repairs this but a restore.
    #[error("the store is damaged: {detail}")]
    Damaged {
        /// Which record.
        detail: String,
    },
}

/// Everything that one commit changed under the watched prefix, in key order, or, when empty, word that `revision` was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The revision of the commit, or the one that was passed.
    pub revision: Revision,
    /// Empty when nothing under the prefix changed.
    pub changes: Vec<Change>,
}

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which key.
    pub key: Key,
    /// `None`: it was deleted.
    pub value: Option<Versioned>,
    /// What stood there before; `None` when nothing did, or when that part of history is compacted away.
    pub previous: Option<Versioned>,
}

/// A watch ends with its first error; whoever watches opens a new one after the last revision seen, or lists anew.
pub type Watch = BoxStream<'static, Result<Batch, StoreError>>;

/// Which store this is: another value means that revisions of before say nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(pub String);

/// Keys and values with one line of history.
///
/// *Guarantees*: commits are atomic, durable when acknowledged, and totally ordered; `get` and `list` (without `at`)
/// see every commit acknowledged before the call; a watch delivers each commit after its start once, in order, whole,
/// and tells of passed revisions when nothing under its prefix changes (at the latest a second later). A change to
/// several keys arrives as one batch. A commit that changes nothing (checks only, deletion of absent keys) takes no
/// revision and answers the current one.
///
/// *Assumptions*: none about the caller; every call is cancel-safe, though a cancelled commit may have happened.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Which store this is: a restored one is another, though it has the same content.
    fn identity(&self) -> BoxFuture<'_, Result<Identity, StoreError>>;
    /// The current revision and what stands under `key`.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(Revision, Option<Versioned>), StoreError>>;
    /// One page of what stands under `prefix`, in key order.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] or [`StoreError::Future`] for a page at a revision that is not there.
    fn list<'a>(&'a self, prefix: &'a Key, page: Page) -> BoxFuture<'a, Result<Listing, StoreError>>;
    /// Everything under `prefix` that happens after `after`. Compacted or future revisions are an error here or as the
    /// stream's first item.
    fn watch<'a>(&'a self, prefix: &'a Key, after: Revision) -> BoxFuture<'a, Result<Watch, StoreError>>;
    /// All of it or nothing, and only if every expectation and the fence hold. Answers the revision of the commit, or
    /// the current one if nothing was to change.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>>;
    /// Forgets history before `before`: what stood then can still be listed, and watches may begin after it. Not called for an etcd that is somebody else's.
    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), StoreError>>;
}
