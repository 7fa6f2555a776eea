//! The file: one redb table of records in the order of revisions.
//!
//! Everything is read once, at opening, and checked: redb verifies its pages, each record its own checksum, and the
//! head that none is missing. From then on the file is only written; what is read comes from memory. So after a
//! failure the file can always be opened anew, or be written anew as a whole.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{Database, ReadableDatabase, TableDefinition};

use super::medium::{Backend, Disk, Medium, Troubles};
use super::record::{self, FORMAT, FORMAT_NOW, HEAD, Head, IDENTITY};
use crate::store::history::{Commit, Version};
use crate::store::{Identity, Key, Revision};

const LOG: TableDefinition<(u64, &str), &[u8]> = TableDefinition::new("log");

/// Why a file cannot be opened as a store.
#[derive(Debug)]
pub(super) enum LoadError {
    Io(io::Error),
    Damaged(String),
    /// Written by a later version of this program.
    Format(u32),
}

/// What a write came to when it did not succeed. Either way the file is closed, and must be mended before the next.
#[derive(Debug)]
pub(super) enum WriteError {
    Full(String),
    Failed(String),
}

impl WriteError {
    pub fn detail(self) -> String {
        match self {
            Self::Full(detail) | Self::Failed(detail) => detail,
        }
    }
}

/// What the file said when it was opened.
#[derive(Debug)]
pub(super) struct Content {
    pub identity: Identity,
    pub head: Head,
    /// In the order of revisions.
    pub versions: Vec<(Key, Version)>,
}

pub(super) struct Log {
    medium: Arc<dyn Medium>,
    cache_bytes: usize,
    identity: Identity,
    head: Head,
    /// `None` after a failure, until it is mended.
    file: Option<Database>,
    troubles: Arc<Troubles>,
}

impl Log {
    /// `None`: there is no file of that name.
    pub fn open(medium: Arc<dyn Medium>, cache_bytes: usize) -> Result<Option<(Self, Content)>, LoadError> {
        let Some(disk) = medium.open().map_err(LoadError::Io)? else { return Ok(None) };
        let troubles = Arc::<Troubles>::default();
        let file = open_file(disk, &troubles, Check::Everything, cache_bytes)?;
        let content = read(&file)?;
        let (identity, head) = (content.identity.clone(), content.head);
        Ok(Some((Self { medium, cache_bytes, identity, head, file: Some(file), troubles }, content)))
    }

    /// Writes a whole store under a name of its own, and only then gives it the store's name.
    pub fn create(
        medium: Arc<dyn Medium>,
        cache_bytes: usize,
        identity: Identity,
        (revision, oldest): (Revision, Revision),
        versions: &[(Key, Version)],
    ) -> Result<Self, WriteError> {
        let disk = medium.fresh().map_err(|error| failed(&error))?;
        let troubles = Arc::<Troubles>::default();
        let mut log = Self { medium, cache_bytes, identity, head: Head::default(), file: None, troubles };
        let file = open_file(disk.clone(), &log.troubles, Check::Trust, cache_bytes)
            .map_err(|error| log.classify(&format!("{error:?}")))?;
        let head = Head { revision, oldest, ..Head::default() };
        let mut first = Some(log.identity.clone());
        for some in chunks(versions) {
            log.head = transact(&file, first.take().as_ref(), log.head, head, some, &[])
                .map_err(|error| log.classify(&error.to_string()))?;
        }
        log.file = Some(file);
        disk.sync().and_then(|()| log.medium.adopt_fresh()).map_err(|error| failed(&error))?;
        Ok(log)
    }

    /// Makes `commits` durable and removes the records of what is forgotten with `oldest`.
    pub fn append(
        &mut self,
        commits: &[Commit],
        (oldest, forgotten): (Revision, &[(Revision, Key)]),
    ) -> Result<(), WriteError> {
        let Some(file) = &self.file else { return Err(WriteError::Failed("the file is closed".into())) };
        let revision = Revision(self.head.revision.0 + commits.len() as u64);
        let head = Head { revision, oldest, ..self.head };
        match transact(file, None, self.head, head, commits.iter().flatten(), forgotten) {
            Ok(head) => self.head = head,
            Err(error) => {
                let error = self.classify(&error.to_string());
                self.close();
                return Err(error);
            }
        }
        Ok(())
    }

    pub fn is_open(&self) -> bool {
        self.file.is_some()
    }

    pub fn head(&self) -> Head {
        self.head
    }

    pub fn medium(&self) -> &Arc<dyn Medium> {
        &self.medium
    }

    /// What is read back may not be what is on the disk: only a file written anew can be trusted.
    pub fn must_be_rewritten(&self) -> bool {
        self.troubles.sync_failed.load(Ordering::Relaxed)
    }

    /// Opens the file again after a failed write that synced nothing wrongly, and answers the commits that it holds
    /// beyond `known`: the write may have happened after all.
    pub fn reopen(&mut self, known: Revision) -> Result<Vec<Commit>, WriteError> {
        self.close();
        let disk = self.medium.open().map_err(|error| failed(&error))?;
        let disk = disk.ok_or_else(|| WriteError::Failed("the file is gone".into()))?;
        self.troubles = Arc::default();
        let opened = open_file(disk, &self.troubles, Check::Trust, self.cache_bytes)
            .and_then(|file| Ok((read_head(&file)?, read_commits(&file, known)?, file)));
        let (head, commits, file) = opened.map_err(|error| self.classify(&format!("{error:?}")))?;
        (self.head, self.file) = (head, Some(file));
        Ok(commits)
    }

    /// Puts a file with exactly this content in the place of the one that cannot be trusted.
    pub fn rewrite(&mut self, revisions: (Revision, Revision), versions: &[(Key, Version)]) -> Result<(), WriteError> {
        self.close();
        let (medium, identity) = (self.medium.clone(), self.identity.clone());
        *self = Self::create(medium, self.cache_bytes, identity, revisions, versions)?;
        Ok(())
    }

    /// Gives the room of removed records back to the file system.
    pub fn shrink(&mut self) -> Result<(), WriteError> {
        let Some(file) = &mut self.file else { return Err(WriteError::Failed("the file is closed".into())) };
        match guarded(|| file.compact().map_err(|error| error.to_string())) {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = self.classify(&error);
                self.close();
                Err(error)
            }
        }
    }

    fn close(&mut self) {
        if let Some(file) = self.file.take() {
            // After a failure this fails as well, and says nothing new.
            let _ = guarded(|| file.close().map_err(|error| error.to_string()));
        }
    }

    fn classify(&self, detail: &str) -> WriteError {
        if self.troubles.full.load(Ordering::Relaxed) {
            WriteError::Full(detail.to_owned())
        } else {
            WriteError::Failed(detail.to_owned())
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

fn failed(error: &io::Error) -> WriteError {
    if super::medium::is_full(error) {
        WriteError::Full(error.to_string())
    } else {
        WriteError::Failed(error.to_string())
    }
}

/// Parts small enough that writing a large store anew does not hold all of it in redb's buffers.
fn chunks(versions: &[(Key, Version)]) -> impl Iterator<Item = &[(Key, Version)]> {
    const RECORDS: usize = 1_000;
    let empty: &[(Key, Version)] = &[];
    // An empty store is written as well: it has a head.
    versions.chunks(RECORDS).chain(versions.is_empty().then_some(empty))
}

#[derive(Clone, Copy)]
enum Check {
    /// The checksum of every page, whether or not the file was closed well.
    Everything,
    /// What this process wrote itself.
    Trust,
}

fn open_file(
    disk: Arc<dyn Disk>,
    troubles: &Arc<Troubles>,
    check: Check,
    cache_bytes: usize,
) -> Result<Database, LoadError> {
    let backend = Backend { disk, troubles: troubles.clone() };
    if matches!(check, Check::Everything) && backend.disk.len().map_err(LoadError::Io)? == 0 {
        // redb would take it for a new one.
        return Err(LoadError::Damaged("the file is empty".into()));
    }
    let open = || {
        redb::Builder::new()
            .set_cache_size(cache_bytes)
            .set_check_integrity_on_open(matches!(check, Check::Everything))
            .create_with_backend(backend)
    };
    match catch(open)? {
        Ok(file) => Ok(file),
        Err(redb::DatabaseError::Storage(redb::StorageError::Io(error)))
            if error.kind() != io::ErrorKind::InvalidData && error.kind() != io::ErrorKind::UnexpectedEof =>
        {
            Err(LoadError::Io(error))
        }
        Err(error) => Err(LoadError::Damaged(error.to_string())),
    }
}

/// redb promises errors, but a damaged file has made it panic before, and that must not take the process along.
fn catch<T>(f: impl FnOnce() -> T) -> Result<T, LoadError> {
    std::panic::catch_unwind(AssertUnwindSafe(f)).map_err(|_| LoadError::Damaged("redb panicked".into()))
}

fn guarded<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch(f).unwrap_or_else(|_| Err("redb panicked".into()))
}

fn damaged(error: impl std::fmt::Display) -> LoadError {
    LoadError::Damaged(error.to_string())
}

fn read(file: &Database) -> Result<Content, LoadError> {
    catch(|| {
        check_format(file)?;
        let head = read_head(file)?;
        let identity = read_one(file, IDENTITY)?;
        let identity = String::from_utf8(identity).map_err(|_| damaged("the identity is not text"))?;
        let (mut counted, mut versions) = (Head { records: 0, sum: 0, ..head }, Vec::new());
        each(file, Revision(0), |key, version, record| {
            counted.add(record);
            versions.push((key, version));
        })?;
        if counted.records != head.records {
            return Err(damaged(format!("{} records are there of {}", counted.records, head.records)));
        }
        if counted.sum != head.sum {
            return Err(damaged("a record was replaced by another one"));
        }
        if let Some((key, version)) = versions.last().filter(|(_, version)| version.modified > head.revision) {
            return Err(damaged(format!("the record of {key} at revision {} is not in the head", version.modified)));
        }
        Ok(Content { identity: Identity(identity), head, versions })
    })?
}

fn check_format(file: &Database) -> Result<(), LoadError> {
    let format = read_one(file, FORMAT)?;
    let format = <[u8; 4]>::try_from(&*format).map_err(|_| damaged("the format is not a number"))?;
    match u32::from_le_bytes(format) {
        FORMAT_NOW => Ok(()),
        other => Err(LoadError::Format(other)),
    }
}

fn read_head(file: &Database) -> Result<Head, LoadError> {
    let transaction = file.begin_read().map_err(damaged)?;
    let table = transaction.open_table(LOG).map_err(damaged)?;
    let record = table.get(HEAD).map_err(damaged)?.ok_or_else(|| damaged("the head is missing"))?;
    Head::decode(record.value()).map_err(|error| damaged(format!("the head {error}")))
}

fn read_one(file: &Database, place: (u64, &str)) -> Result<Vec<u8>, LoadError> {
    let transaction = file.begin_read().map_err(damaged)?;
    let table = transaction.open_table(LOG).map_err(damaged)?;
    let name = place.1;
    let record = table.get(place).map_err(damaged)?.ok_or_else(|| damaged(format!("the {name} is missing")))?;
    record::open(place, record.value()).map(<[u8]>::to_vec).map_err(|error| damaged(format!("the {name} {error}")))
}

/// Every record after `after`, in the order of revisions.
fn each(file: &Database, after: Revision, mut f: impl FnMut(Key, Version, &[u8])) -> Result<(), LoadError> {
    let transaction = file.begin_read().map_err(damaged)?;
    let table = transaction.open_table(LOG).map_err(damaged)?;
    for entry in table.range((after.0 + 1, "")..HEAD).map_err(damaged)? {
        let (place, record) = entry.map_err(damaged)?;
        let (revision, key) = place.value();
        let version = record::decode(revision, key, record.value())
            .map_err(|error| damaged(format!("the record of {key} at revision {revision} {error}")))?;
        f(Key::new(key), version, record.value());
    }
    Ok(())
}

fn read_commits(file: &Database, after: Revision) -> Result<Vec<Commit>, LoadError> {
    let mut commits: Vec<Commit> = Vec::new();
    each(file, after, |key, version, _| match commits.last_mut() {
        Some(commit) if commit[0].1.modified == version.modified => commit.push((key, version)),
        _ => commits.push(vec![(key, version)]),
    })?;
    Ok(commits)
}

/// One transaction; answers the head that it wrote.
///
/// Two-phase: the new root is written only after everything below it has been synced, so that no torn write can make
/// a half transaction look whole.
fn transact<'a>(
    file: &Database,
    first: Option<&Identity>,
    before: Head,
    after: Head,
    versions: impl IntoIterator<Item = &'a (Key, Version)>,
    forgotten: &[(Revision, Key)],
) -> Result<Head, String> {
    guarded(|| {
        let mut head = Head { records: before.records, sum: before.sum, ..after };
        let mut transaction = file.begin_write().map_err(|error| error.to_string())?;
        transaction.set_two_phase_commit(true);
        {
            let mut table = transaction.open_table(LOG).map_err(|error| error.to_string())?;
            let mut insert = |place: (u64, &str), record: &[u8]| -> Result<(), String> {
                table.insert(place, record).map(drop).map_err(|error| error.to_string())
            };
            if let Some(Identity(identity)) = first {
                insert(FORMAT, &record::seal(FORMAT, &FORMAT_NOW.to_le_bytes()))?;
                insert(IDENTITY, &record::seal(IDENTITY, identity.as_bytes()))?;
            }
            for (key, version) in versions {
                let record = record::encode(key, version);
                head.add(&record);
                insert((version.modified.0, key.as_str()), &record)?;
            }
            for (revision, key) in forgotten {
                let removed = table.remove((revision.0, key.as_str())).map_err(|error| error.to_string())?;
                let removed = removed.ok_or_else(|| format!("{key} at revision {revision} is not in the file"))?;
                head.remove(removed.value());
            }
            table.insert(HEAD, &*head.encode()).map_err(|error| error.to_string())?;
        }
        transaction.commit().map_err(|error| error.to_string())?;
        Ok(head)
    })
}
