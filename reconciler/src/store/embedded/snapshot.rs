//! Copies of the whole store at one revision, each a store file of its own that was read back before it got its name.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use reconciler_api::Timestamp;

use super::log::{Content, LoadError, Log};
use super::medium::{Disk, FilePath, Medium, beside, sync_folder_of};
use super::{Embedded, OpenError, lock, new_identity, record};
use crate::seams::{Random, Seams};
use crate::store::history::{Version, in_order};
use crate::store::{Identity, Key, Page, Revision, Store, Versioned};

/// How often a copy is taken, and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// Where the copies are; made if it is not there. Files of other names are left alone.
    pub folder: PathBuf,
    /// Default an hour. Nothing is taken when nothing has changed, so that an idle store keeps its older copies.
    pub every: Duration,
    /// Default 24; the oldest go.
    pub kept: usize,
}

impl SnapshotPolicy {
    /// Every hour, 24 kept.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), every: Duration::from_secs(3600), kept: 24 }
    }
}

/// What a restore put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The revision at which the store stands now; beyond every one of the store before.
    pub revision: Revision,
    /// Keys that it holds.
    pub keys: usize,
    /// A new one: revisions seen in the store of before say nothing about this one.
    pub identity: Identity,
    /// Where the file that stood there before is now.
    pub replaced: Option<PathBuf>,
}

const SUFFIX: &str = ".redb";
/// A failed copy is tried again after so long, or after the policy's period if that is shorter.
const RETRY: Duration = Duration::from_secs(60);

/// All that stands in a store at one revision.
struct Moment {
    identity: Identity,
    revision: Revision,
    versions: Vec<(Key, Version)>,
}

impl Moment {
    fn of_file(store: &Embedded) -> Self {
        let (revision, versions) = store.history.live();
        Self { identity: store.identity.clone(), revision, versions }
    }

    async fn of(store: &dyn Store, root: &Key) -> io::Result<Self> {
        let identity = store.identity().await.map_err(io::Error::other)?;
        let listing = store.list(root, Page::default()).await.map_err(io::Error::other)?;
        let version = |entry: Versioned| {
            (entry.key, Version { created: entry.created, modified: entry.modified, value: Some(entry.value) })
        };
        let versions = in_order(listing.entries.into_iter().map(version).collect());
        Ok(Self { identity, revision: listing.revision, versions })
    }

    async fn write(self, path: PathBuf) -> io::Result<Revision> {
        let Self { identity, revision, versions } = self;
        on_a_thread(move || write(&path, identity, revision, &versions).map(|()| revision)).await
    }
}

/// Writes a copy of everything that stands below `root` in any store to `path`, as [`Embedded::snapshot`] does: what
/// [`Embedded::restore`] makes a store of.
///
/// # Errors
/// The store does not answer, or the file cannot be written.
pub async fn snapshot_of(store: &dyn Store, root: &Key, path: impl Into<PathBuf>) -> io::Result<Revision> {
    Moment::of(store, root).await?.write(path.into()).await
}

/// Keeps copies of everything that stands below `root` in any store, as [`Embedded::keep_snapshots`] does.
pub async fn keep_snapshots_of(store: &dyn Store, root: &Key, seams: &Seams, policy: &SnapshotPolicy) {
    keep(seams, policy, async || Moment::of(store, root).await).await;
}

async fn keep(seams: &Seams, policy: &SnapshotPolicy, moment: impl AsyncFn() -> io::Result<Moment>) {
    loop {
        let next = match take_if_due(seams.now(), policy, &moment).await {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(error = %error, folder = %policy.folder.display(), "no snapshot could be taken");
                RETRY.min(policy.every)
            }
        };
        seams.sleep(next).await;
    }
}

/// Answers when to look again.
async fn take_if_due(
    now: Timestamp,
    policy: &SnapshotPolicy,
    moment: &impl AsyncFn() -> io::Result<Moment>,
) -> io::Result<Duration> {
    let folder = policy.folder.clone();
    let taken = on_a_thread(move || std::fs::create_dir_all(&folder).map(|()| list(&folder))).await?;
    if let Some(newest) = taken.last() {
        let age = now.since(newest.taken);
        if age < policy.every && newest.taken <= now {
            return Ok(policy.every - age);
        }
    }
    let moment = moment().await?;
    let identity = short(&moment.identity);
    if taken.last().is_some_and(|newest| newest.revision == moment.revision && newest.identity == identity) {
        return Ok(policy.every);
    }
    let name = format!("{now}-{identity}-{}{SUFFIX}", moment.revision);
    moment.write(policy.folder.join(name)).await?;
    let surplus = (taken.len() + 1).saturating_sub(policy.kept.max(1));
    let old: Vec<PathBuf> = taken.into_iter().take(surplus).map(|snapshot| snapshot.path).collect();
    on_a_thread(move || old.iter().try_for_each(std::fs::remove_file)).await?;
    Ok(policy.every)
}

impl Embedded {
    /// Writes a copy of everything that stands now, without history, to `path`, where nothing may be yet. It is
    /// complete and has been read back when this returns; before that `path` does not exist.
    ///
    /// Works on a thread of its own; commits go on meanwhile. Cancelling leaves it to finish by itself.
    pub async fn snapshot(&self, path: impl Into<PathBuf>) -> io::Result<Revision> {
        Moment::of_file(self).write(path.into()).await
    }

    /// Keeps copies as `policy` says, for ever. The names sort by age.
    pub async fn keep_snapshots(&self, seams: &Seams, policy: &SnapshotPolicy) {
        keep(seams, policy, async || Ok(Moment::of_file(self))).await;
    }

    /// Puts what `snapshot` holds in the place of the store at `path`, which must not be open, under a new identity.
    /// The snapshot is read and checked as a whole first. What stood there before stays beside it as `.replaced`.
    ///
    /// Blocks.
    pub fn restore(
        snapshot: impl AsRef<Path>,
        path: impl AsRef<Path>,
        random: &dyn Random,
    ) -> Result<Restored, OpenError> {
        let (snapshot, path) = (snapshot.as_ref(), path.as_ref());
        let content = read(snapshot)?;
        let _lock = lock(path)?;
        let io = |what: &'static str| move |source| OpenError::Io { what, path: path.to_owned(), source };
        let identity = new_identity(random);
        let replaced = keep_aside(path).map_err(io("could not keep aside"))?;
        let revision = content.head.revision;
        let live = live(content);
        let medium = Arc::new(FilePath::new(path));
        Log::create(medium, CACHE_BYTES, identity.clone(), (revision, revision), &live)
            .map_err(|error| io("could not write")(io::Error::other(error.detail())))?;
        Ok(Restored { revision, keys: live.len(), identity, replaced })
    }

    /// Reads and checks the whole file without opening it as a store: what a restore would find.
    ///
    /// Blocks.
    pub fn verify(snapshot: impl AsRef<Path>) -> Result<(Revision, usize), OpenError> {
        let content = read(snapshot.as_ref())?;
        Ok((content.head.revision, live(content).len()))
    }
}

/// Copies are written and read once.
const CACHE_BYTES: usize = 4 << 20;

fn write(path: &Path, identity: Identity, revision: Revision, versions: &[(Key, Version)]) -> io::Result<()> {
    if path.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // Under a name that no listing shows, until it has been read back.
    let unchecked = beside(path, "unchecked");
    let medium = Arc::new(FilePath::new(&unchecked));
    let written = Log::create(medium, CACHE_BYTES, identity, (revision, revision), versions)
        .map_err(|error| io::Error::other(error.detail()))
        .and_then(|log| {
            drop(log);
            let content = read(&unchecked).map_err(io::Error::other)?;
            let same = content.head.revision == revision && content.versions == versions;
            if same { Ok(()) } else { Err(io::Error::other("what was read back is not what was written")) }
        })
        .and_then(|()| std::fs::rename(&unchecked, path));
    if let Err(error) = written {
        // Whatever is there of it, and it may be nothing.
        let _ = std::fs::remove_file(beside(&unchecked, "fresh"));
        let _ = std::fs::remove_file(&unchecked);
        return Err(error);
    }
    sync_folder_of(path)
}

/// Everything that stands in a file. The file itself is not touched: it is read through a copy in memory, because
/// opening one, even to read, may write to it.
fn read(path: &Path) -> Result<Content, OpenError> {
    let io = |source| OpenError::Io { what: "could not read", path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(io)?;
    let medium = Arc::new(Copy(Arc::new(InMemory(std::sync::Mutex::new(bytes)))));
    match Log::open(medium, CACHE_BYTES) {
        Ok(Some((_, content))) => Ok(content),
        Ok(None) => Err(OpenError::Missing { path: path.to_owned() }),
        Err(LoadError::Io(source)) => Err(io(source)),
        Err(LoadError::Damaged(detail)) => Err(OpenError::Damaged { path: path.to_owned(), detail, snapshot: None }),
        Err(LoadError::Format(found)) => {
            Err(OpenError::Format { path: path.to_owned(), found, known: record::FORMAT_NOW })
        }
    }
}

fn live(content: Content) -> Vec<(Key, Version)> {
    let mut newest: std::collections::BTreeMap<Key, Version> = content.versions.into_iter().collect();
    newest.retain(|_, version| version.value.is_some());
    in_order(newest.into_iter().collect())
}

/// A second name for the file, so that there is a store at every moment: the new one takes the first name in one step.
fn keep_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let aside = beside(path, "replaced");
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match std::fs::hard_link(path, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The newest copy in a folder, by its name.
pub(super) fn newest(folder: &Path) -> Option<PathBuf> {
    list(folder).pop().map(|snapshot| snapshot.path)
}

struct Taken {
    path: PathBuf,
    taken: Timestamp,
    identity: String,
    revision: Revision,
}

/// Ascending by time. What has another kind of name is somebody else's.
fn list(folder: &Path) -> Vec<Taken> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut taken: Vec<Taken> = entries.filter_map(|entry| parse(entry.ok()?.path())).collect();
    taken.sort_unstable_by_key(|a| (a.taken, a.revision));
    taken
}

fn parse(path: PathBuf) -> Option<Taken> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    let mut parts = name.rsplitn(3, '-');
    let revision = Revision(parts.next()?.parse().ok()?);
    let identity = parts.next()?.to_owned();
    let taken = parts.next()?.parse().ok()?;
    Some(Taken { path, taken, identity, revision })
}

fn short(identity: &Identity) -> String {
    identity.0.chars().filter(char::is_ascii_alphanumeric).take(8).collect()
}

async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (tell, done) = oneshot::channel();
    // It ends by itself, and nobody is kept from ending meanwhile.
    std::thread::Builder::new().name("store-snapshot".into()).spawn(move || tell.send(work()).map_err(drop))?;
    done.await.unwrap_or_else(|_| Err(io::Error::other("the thread that took the snapshot panicked")))
}

/// A file's bytes, read through redb without a file.
#[derive(Debug)]
struct Copy(Arc<InMemory>);

struct InMemory(std::sync::Mutex<Vec<u8>>);

impl std::fmt::Debug for InMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InMemory")
    }
}

impl Medium for Copy {
    fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        Ok(Some(self.0.clone()))
    }

    fn fresh(&self) -> io::Result<Arc<dyn Disk>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn adopt_fresh(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn reserve(&self) -> io::Result<()> {
        Ok(())
    }

    fn release(&self) -> io::Result<()> {
        Ok(())
    }
}

impl InMemory {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<u8>) -> io::Result<T>) -> io::Result<T> {
        f(&mut self.0.lock().expect("nothing panics while it holds this lock"))
    }
}

impl Disk for InMemory {
    fn len(&self) -> io::Result<u64> {
        self.with(|bytes| Ok(bytes.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|bytes| {
            let from = bytes.get(offset as usize..).and_then(|rest| rest.get(..out.len()));
            out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|bytes| {
            let end = offset as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[offset as usize..end].copy_from_slice(data);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|bytes| {
            bytes.resize(len as usize, 0);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
