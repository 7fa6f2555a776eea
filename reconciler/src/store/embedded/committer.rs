//! The one thread that writes. It takes whatever is queued, makes all of it durable with one transaction, and only
//! then lets anybody see it or hear of it.
//!
//! A plain thread: redb blocks, and a write that waits for a disk must not hold up a runtime's thread, nor depend on
//! a runtime at all. It ends when the store is dropped, after what is queued has been done.
//!
//! After a failure memory is the truth, for it holds all that was acknowledged. If no sync failed, the file is opened
//! again and says whether the write happened. If one did, the kernel may have thrown away pages that it still reads
//! back as if they had been written, so the whole file is written anew from memory beside the old one.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};

use super::log::{Log, WriteError};
use crate::store::history::{History, Retention, Staged};
use crate::store::{CommitError, Effect, Key, Revision, StoreError, Txn};

pub(super) enum Request {
    Commit(Txn, oneshot::Sender<Result<Revision, CommitError>>),
    Compact(Revision, oneshot::Sender<Result<(), StoreError>>),
}

/// Whether the store takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It takes every write.
    Writable,
    /// Only deletions are taken, until there is room again.
    Full {
        /// What the file system said.
        detail: String,
    },
    /// No write is taken: the disk fails. Each commit tries to mend it.
    Failing {
        /// What the disk did, for people.
        detail: String,
    },
}

pub(super) struct Committer {
    pub history: Arc<History>,
    pub log: Log,
    pub retention: Retention,
    pub health: Arc<Mutex<Health>>,
    /// When the file was last made as small as it can be: there is nothing to gain before the next commit.
    pub shrunk: Option<Revision>,
}

type Waiting = (Txn, oneshot::Sender<Result<Revision, CommitError>>);

/// Many small commits cost one sync together; beyond this a group only grows the time until its first is answered.
const COMMITS_A_GROUP: usize = 256;
const BYTES_A_GROUP: usize = 8 << 20;
/// Records of the past that a transaction may remove, beside what it writes.
const FORGOTTEN_AT_LEAST: usize = 16;
/// The same for a transaction that does nothing else.
const FORGOTTEN_AT_ONCE: usize = 512;
/// The same when only the room set aside is left: each may need pages of its own.
const FORGOTTEN_WHEN_FULL: usize = 16;

/// Whether a write also removes what the retention no longer covers.
enum Forget {
    Nothing,
    Excess,
}

impl Committer {
    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::new();
        while let Some(request) = requests.blocking_recv() {
            let mut next = Some(request);
            let mut bytes = 0;
            while let Some(request) = next.take() {
                match request {
                    Request::Commit(txn, reply) => {
                        bytes += bytes_of(&txn);
                        group.push((txn, reply));
                    }
                    Request::Compact(before, reply) => {
                        self.commit_group(std::mem::take(&mut group));
                        // Whoever asked may have gone.
                        let _ = reply.send(self.compact(before));
                    }
                }
                if group.len() < COMMITS_A_GROUP && bytes < BYTES_A_GROUP {
                    next = requests.try_recv().ok();
                }
            }
            self.commit_group(std::mem::take(&mut group));
        }
    }

    fn commit_group(&mut self, group: Vec<Waiting>) {
        if group.is_empty() {
            return;
        }
        if let Err(detail) = self.ensure_open() {
            for (_, reply) in group {
                let _ = reply.send(Err(CommitError::Unavailable { detail: detail.clone() }));
            }
            return;
        }
        if matches!(self.health(), Health::Full { .. }) && !(group.iter().any(|(txn, _)| puts(txn)) && self.make_room())
        {
            return self.commit_one_by_one(group);
        }
        let mut staged = self.history.stage();
        let answers: Vec<_> = group.iter().map(|(txn, _)| self.history.evaluate(&mut staged, txn)).collect();
        match self.write(staged, Forget::Excess) {
            Ok(()) => {
                for ((_, reply), answer) in group.into_iter().zip(answers) {
                    let _ = reply.send(answer);
                }
            }
            Err(CommitError::Full { .. }) => {
                // Forgotten history may be room enough; if not, what follows says so.
                self.make_room();
                self.commit_one_by_one(group);
            }
            Err(error) => {
                for ((_, reply), answer) in group.into_iter().zip(answers) {
                    let _ = reply.send(Err(match answer {
                        // The limits, which no retry changes. A conflict may have been with what failed.
                        Err(error @ (CommitError::TooLarge { .. } | CommitError::Repeated { .. })) => error,
                        _ => same(&error),
                    }));
                }
            }
        }
    }

    /// The disk is full: deletions go on, in the room set aside for them, and free what they supersede.
    fn commit_one_by_one(&mut self, group: Vec<Waiting>) {
        for (txn, reply) in group {
            let _ = reply.send(self.commit_when_full(&txn));
        }
    }

    fn commit_when_full(&mut self, txn: &Txn) -> Result<Revision, CommitError> {
        match self.try_when_full(txn) {
            // The room set aside could be taken, so it looked writable, but there is none besides. It is given back now.
            Err(CommitError::Full { .. }) if !puts(txn) => self.try_when_full(txn),
            answer => answer,
        }
    }

    fn try_when_full(&mut self, txn: &Txn) -> Result<Revision, CommitError> {
        self.ensure_open().map_err(|detail| CommitError::Unavailable { detail })?;
        if let Health::Full { detail } = self.health()
            && puts(txn)
        {
            txn.check()?;
            return Err(CommitError::Full { detail });
        }
        let mut staged = self.history.stage();
        let answer = self.history.evaluate(&mut staged, txn)?;
        self.write(staged, Forget::Nothing)?;
        if matches!(self.health(), Health::Full { .. }) {
            // It has been acknowledged in all but name; what goes wrong from here is the next one's trouble.
            let _ = self.forget(self.history.revision(), FORGOTTEN_WHEN_FULL);
        }
        Ok(answer)
    }

    /// Durable, then visible. With it goes what the retention no longer covers, at no further sync.
    fn write(&mut self, staged: Staged, forget: Forget) -> Result<(), CommitError> {
        if staged.is_empty() {
            return Ok(());
        }
        let (oldest, forgotten) = match forget {
            Forget::Nothing => (self.history.oldest(), Vec::new()),
            Forget::Excess => {
                // More than one for each record that is added, or old ones pile up.
                let at_most = FORGOTTEN_AT_LEAST + 2 * staged.commits.iter().map(Vec::len).sum::<usize>();
                self.history.superseded(self.history.excess(self.retention), at_most)
            }
        };
        match self.log.append(&staged.commits, (oldest, &forgotten)) {
            Ok(()) => {
                self.history.apply(staged);
                self.forgotten(oldest);
                Ok(())
            }
            Err(error) => self.settle(error, staged.revision()),
        }
    }

    /// Finds out what became of a failed write.
    fn settle(&mut self, error: WriteError, wanted: Revision) -> Result<(), CommitError> {
        let full = matches!(error, WriteError::Full(_));
        let detail = error.detail();
        tracing::warn!(detail, full, "a write to the store's file failed");
        if full {
            self.set_health(Health::Full { detail: detail.clone() });
            // Without the room this fails as well, and then it is a failing disk.
            let _ = self.log.medium().release();
        }
        match self.mend(&detail) {
            Ok(()) if self.history.revision() >= wanted => Ok(()),
            Ok(()) if full => Err(CommitError::Full { detail }),
            Ok(()) => Err(CommitError::Unavailable { detail }),
            Err(later) => Err(CommitError::Unknown { detail: format!("{detail}; then {later}") }),
        }
    }

    fn ensure_open(&mut self) -> Result<(), String> {
        if self.log.is_open() {
            return Ok(());
        }
        let detail = match self.health() {
            Health::Writable => "the file is closed".to_owned(),
            Health::Full { detail } | Health::Failing { detail } => detail,
        };
        self.mend(&detail)
    }

    /// Brings file and memory together again.
    fn mend(&mut self, trouble: &str) -> Result<(), String> {
        let mended = if self.log.must_be_rewritten() { self.rewrite() } else { self.reopen() };
        match mended {
            Ok(()) => {
                if matches!(self.health(), Health::Failing { .. }) {
                    tracing::info!("the store's file is mended");
                    self.set_health(Health::Writable);
                }
                Ok(())
            }
            Err(error) => {
                let detail = format!("{trouble}; then {}", error.detail());
                self.set_health(Health::Failing { detail: detail.clone() });
                Err(detail)
            }
        }
    }

    fn reopen(&mut self) -> Result<(), WriteError> {
        let known = self.history.revision();
        let commits = self.log.reopen(known)?;
        if self.log.head().revision < known {
            // What was acknowledged is not there any more: nothing of this file can be trusted.
            return self.rewrite();
        }
        self.history.apply(Staged::of(known, commits));
        // The write may have removed records with it.
        self.forgotten(self.log.head().oldest);
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), WriteError> {
        let (revision, oldest, versions) = self.history.versions();
        self.log.rewrite((revision, oldest), &versions)
    }

    /// Whether there is room again. If not, what was forgotten is given back to the file system and asked for anew.
    fn make_room(&mut self) -> bool {
        if self.log.medium().reserve().is_err() && !(self.shrink() && self.log.medium().reserve().is_ok()) {
            return false;
        }
        tracing::info!("the store has room again");
        self.set_health(Health::Writable);
        true
    }

    /// Whether the file may have become smaller.
    fn shrink(&mut self) -> bool {
        let now = self.history.revision();
        if self.shrunk.replace(now) == Some(now) {
            return false;
        }
        self.forget(now, FORGOTTEN_WHEN_FULL).is_ok() && self.log.shrink().is_ok()
    }

    fn compact(&mut self, before: Revision) -> Result<(), StoreError> {
        let current = self.history.revision();
        if before > current {
            return Err(StoreError::Future { asked: before, current });
        }
        self.ensure_open()
            .and_then(|()| self.forget(before, FORGOTTEN_AT_ONCE).map_err(WriteError::detail))
            .map_err(|detail| StoreError::Unavailable { detail })
    }

    /// Forgets history before `before`, in steps, each durable before it is done in memory.
    fn forget(&mut self, before: Revision, at_once: usize) -> Result<(), WriteError> {
        while self.history.oldest() < before {
            let (oldest, records): (Revision, Vec<(Revision, Key)>) = self.history.superseded(before, at_once);
            if let Err(error) = self.log.append(&[], (oldest, &records)) {
                let detail = error.detail();
                return self.mend(&detail).map_err(WriteError::Failed).and(Err(WriteError::Failed(detail)));
            }
            self.forgotten(oldest);
        }
        Ok(())
    }

    fn forgotten(&self, oldest: Revision) {
        if oldest > self.history.oldest() {
            self.history.forget(oldest).expect("what the file has forgotten lies in the past");
        }
    }

    fn health(&self) -> Health {
        self.health.lock().expect("nothing panics while it holds this lock").clone()
    }

    fn set_health(&self, health: Health) {
        *self.health.lock().expect("nothing panics while it holds this lock") = health;
    }
}

fn puts(txn: &Txn) -> bool {
    txn.lines.iter().any(|line| matches!(line.effect, Effect::Put(_)))
}

fn bytes_of(txn: &Txn) -> usize {
    txn.lines.iter().map(|line| if let Effect::Put(value) = &line.effect { value.len() } else { 0 }).sum()
}

/// The one reason of a whole group, for each of it.
fn same(error: &CommitError) -> CommitError {
    match error {
        CommitError::Full { detail } => CommitError::Full { detail: detail.clone() },
        CommitError::Unavailable { detail } => CommitError::Unavailable { detail: detail.clone() },
        other => CommitError::Unknown { detail: other.to_string() },
    }
}
