//! A store in one file, for one process on one machine.
//!
//! What is read comes from memory (`History`); the file is where commits go before anybody hears of them. Commits
//! queue for one thread that makes all that wait durable together. The memory taken is about the live values, some
//! 250 bytes a key, and at most the [`Retention`] of replaced ones.
//!
//! | what happens | what follows |
//! | --- | --- |
//! | power cut at any moment | opens with all that was acknowledged, and nothing half |
//! | a byte flipped, the file cut short | refuses to open, and names what is damaged and the newest snapshot |
//! | disk full | [`CommitError::Full`]: deletions go on; writes are taken again once there is room |
//! | a sync fails | the file is written anew from memory; until that succeeds no commit is taken |
//! | opened twice | the second is refused |
//!
//! Beside the file stand `.lock` (whoever has it open), `.reserve` (room for deletions) and, for moments, `.fresh`.
//!
//! Reading order: `mod`, `record` (bytes), `medium` (the file system's side), `log` (the file), `committer`,
//! `snapshot`.

mod committer;
mod log;
mod medium;
mod record;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use futures::future::{BoxFuture, ready};
use tokio::sync::{mpsc, oneshot};

use self::committer::{Committer, Request};
use self::log::{LoadError, Log};
use self::medium::{FilePath, Medium, beside};
use super::history::{History, Retention};
use super::{CommitError, Identity, Key, Listing, Page, Revision, Store, StoreError, Txn, Versioned, Watch};
use crate::seams::{Purpose, Random};

pub use self::committer::Health;
pub use self::snapshot::{Restored, SnapshotPolicy, keep_snapshots_of, snapshot_of};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much of the past is remembered.
    pub retention: Retention,
    /// What redb may keep of the file in memory; default 4 MiB. It serves writing only: a hundred thousand keys have a
    /// few thousand inner pages.
    pub cache_bytes: usize,
    /// Where snapshots are kept, so that a damaged store can name the newest one; default nowhere.
    pub snapshots: Option<PathBuf>,
    /// What to do when there is no such file; default [`Missing::Create`].
    pub missing: Missing,
}

impl Default for Options {
    fn default() -> Self {
        Self { retention: Retention::default(), cache_bytes: 4 << 20, snapshots: None, missing: Missing::Create }
    }
}

/// What to do when there is no such file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// An empty store is made.
    Create,
    /// For who knows that there was one: an empty store in its place would be taken for the truth.
    Refuse,
}

/// Why a store was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open; two would destroy it.
    #[error("{path} is in use by process {holder}", path = path.display())]
    InUse {
        /// The store's file.
        path: PathBuf,
        /// Its process id, as the lock file says.
        holder: String,
    },
    /// There is no such file, and [`Missing::Refuse`] was said.
    #[error("there is no store at {path}", path = path.display())]
    Missing {
        /// The store's file.
        path: PathBuf,
    },
    /// Nothing repairs this but a restore.
    #[error("{path} is damaged: {detail}{}", hint(snapshot.as_deref()), path = path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// Names the record (revision and key), or says what redb found.
        detail: String,
        /// The newest copy, if [`Options::snapshots`] has any.
        snapshot: Option<PathBuf>,
    },
    /// Its format is a later one. Run the version that wrote it.
    #[error("{path} was written by a later version (format {found}, this one knows {known})", path = path.display())]
    Format {
        /// The store's file.
        path: PathBuf,
        /// The format that the file names.
        found: u32,
        /// The highest that this version can read.
        known: u32,
    },
    /// The file system refused.
    #[error("{what} {path}", path = path.display())]
    Io {
        /// What was tried: `could not open`.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn hint(snapshot: Option<&Path>) -> String {
    snapshot
        .map_or_else(|| "; there is no snapshot".into(), |path| format!("; the newest snapshot is {}", path.display()))
}

/// One file. Dropping it waits for what is queued and for the last write.
pub struct Embedded {
    identity: Identity,
    history: Arc<History>,
    health: Arc<Mutex<Health>>,
    /// `None` only while it is being dropped.
    requests: Option<mpsc::Sender<Request>>,
    committer: Option<JoinHandle<()>>,
    /// Held until the committer has closed the file.
    _lock: Option<File>,
}

/// Commits that may queue. A full queue makes callers wait, not fail; it is a few groups deep, so that the disk is
/// never idle for want of work.
const QUEUED_MAX: usize = 1_024;

impl Embedded {
    /// Opens the store at `path`, or creates it. Blocks while everything is read and checked: about 0.2 s for 100,000
    /// objects of 1 KiB.
    pub fn open(path: impl AsRef<Path>, random: &dyn Random, options: &Options) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let lock = lock(path)?;
        let medium = Arc::new(FilePath::new(path));
        Self::open_medium(medium, random, options, Some(lock)).map_err(|error| match error {
            LoadError::Io(source) if source.kind() == io::ErrorKind::NotFound => {
                OpenError::Missing { path: path.to_owned() }
            }
            LoadError::Io(source) => OpenError::Io { what: "could not open", path: path.to_owned(), source },
            LoadError::Damaged(detail) => OpenError::Damaged {
                path: path.to_owned(),
                detail,
                snapshot: options.snapshots.as_deref().and_then(snapshot::newest),
            },
            LoadError::Format(found) => OpenError::Format { path: path.to_owned(), found, known: record::FORMAT_NOW },
        })
    }

    /// Whether nobody has the store at `path` open.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if somebody has.
    pub fn is_free(path: impl AsRef<Path>) -> Result<(), OpenError> {
        lock(path.as_ref()).map(drop)
    }

    fn open_medium(
        medium: Arc<dyn Medium>,
        random: &dyn Random,
        options: &Options,
        lock: Option<File>,
    ) -> Result<Self, LoadError> {
        let (log, identity, history) = match Log::open(medium.clone(), options.cache_bytes)? {
            Some((log, content)) => {
                let mut history = History::restored(content.head.revision, content.head.oldest);
                content.versions.into_iter().for_each(|(key, version)| history.restore(key, version));
                (log, content.identity, history)
            }
            None if options.missing == Missing::Refuse => {
                return Err(LoadError::Io(io::ErrorKind::NotFound.into()));
            }
            None => {
                let (identity, zero) = (new_identity(random), Revision(0));
                let log = Log::create(medium.clone(), options.cache_bytes, identity.clone(), (zero, zero), &[])
                    .map_err(|error| LoadError::Io(io::Error::other(error.detail())))?;
                (log, identity, History::new())
            }
        };
        let health = match medium.reserve() {
            Ok(()) => Health::Writable,
            // The same as later: deletions are taken, and the first write looks for room.
            Err(error) => Health::Full { detail: error.to_string() },
        };
        let (history, health) = (Arc::new(history), Arc::new(Mutex::new(health)));
        let committer = Committer {
            history: history.clone(),
            log,
            retention: options.retention,
            health: health.clone(),
            shrunk: None,
        };
        let (requests, queue) = mpsc::channel(QUEUED_MAX);
        let thread = std::thread::Builder::new()
            .name("store-committer".into())
            .spawn(move || committer.run(queue))
            .map_err(LoadError::Io)?;
        Ok(Self { identity, history, health, requests: Some(requests), committer: Some(thread), _lock: lock })
    }

    /// Whether it takes writes; for `status` and metrics.
    pub fn health(&self) -> Health {
        self.health.lock().expect("nothing panics while it holds this lock").clone()
    }

    async fn ask<T, E>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Request,
        closed: impl FnOnce(&'static str) -> E,
        lost: impl FnOnce(&'static str) -> E,
    ) -> Result<T, E> {
        const ENDED: &str = "the committer has ended";
        let (reply, answer) = oneshot::channel();
        let Some(requests) = &self.requests else { return Err(closed(ENDED)) };
        if requests.send(request(reply)).await.is_err() {
            return Err(closed(ENDED));
        }
        answer.await.unwrap_or_else(|_| Err(lost(ENDED)))
    }
}

fn new_identity(random: &dyn Random) -> Identity {
    Identity(format!("{:016x}{:016x}", random.next(Purpose::Identity), random.next(Purpose::Identity)))
}

/// A lock of its own file: the store's file may be replaced as a whole.
fn lock(path: &Path) -> Result<File, OpenError> {
    use std::io::{Read, Write};
    let io = |source| OpenError::Io { what: "could not lock", path: path.to_owned(), source };
    let mut file = medium::private().create(true).truncate(false).open(beside(path, "lock")).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(io)?;
            Ok(file)
        }
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut holder);
            Err(OpenError::InUse { path: path.to_owned(), holder })
        }
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

impl Store for Embedded {
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
        Box::pin(async move {
            txn.check()?;
            self.ask(
                |reply| Request::Commit(txn, reply),
                |detail| CommitError::Unavailable { detail: detail.into() },
                |detail| CommitError::Unknown { detail: detail.into() },
            )
            .await
        })
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        let ended = |detail: &'static str| StoreError::Unavailable { detail: detail.into() };
        Box::pin(self.ask(move |reply| Request::Compact(before, reply), ended, ended))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(committer) = self.committer.take() {
            // It can only have panicked, which has been told already.
            let _ = committer.join();
        }
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("identity", &self.identity).field("health", &self.health()).finish()
    }
}
