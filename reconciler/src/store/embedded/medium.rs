//! What the file lies on: a few calls of a file system, so that a test can put a disk there that loses power.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One file of random access.
///
/// *Assumptions*: until `sync` has returned, any part of what was written may be lost at a power cut, in any order.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    fn len(&self) -> io::Result<u64>;
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// Where the store's file has its name, and room can be set aside.
pub(super) trait Medium: fmt::Debug + Send + Sync {
    /// `None`: there is no store here.
    fn open(&self) -> io::Result<Option<Arc<dyn Disk>>>;
    /// An empty file without the store's name.
    fn fresh(&self) -> io::Result<Arc<dyn Disk>>;
    /// Gives the fresh file, synced before, the store's name: from here on, power cut or not, it is the store.
    fn adopt_fresh(&self) -> io::Result<()>;
    /// Sets room aside, so that deletions find some when the disk is full. An error of kind
    /// [`io::ErrorKind::StorageFull`] when there is none.
    fn reserve(&self) -> io::Result<()>;
    /// Gives back what was set aside.
    fn release(&self) -> io::Result<()>;
}

/// Enough for hundreds of transactions of deletions; they are small, and each reuses what the one before freed.
const RESERVED_BYTES: u64 = 4 << 20;

/// A path in a file system. Beside it stand `.reserve` (room set aside) and, for moments, `.fresh`.
#[derive(Debug)]
pub(super) struct FilePath {
    path: PathBuf,
}

impl FilePath {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

/// `store.redb` becomes `store.redb.suffix`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

impl Medium for FilePath {
    fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => Ok(Some(Arc::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn fresh(&self) -> io::Result<Arc<dyn Disk>> {
        Ok(Arc::new(private().create(true).truncate(true).open(beside(&self.path, "fresh"))?))
    }

    fn adopt_fresh(&self) -> io::Result<()> {
        std::fs::rename(beside(&self.path, "fresh"), &self.path)?;
        sync_folder_of(&self.path)
    }

    fn reserve(&self) -> io::Result<()> {
        let path = beside(&self.path, "reserve");
        let file = private().create(true).truncate(false).open(&path)?;
        if file.metadata()?.len() == RESERVED_BYTES {
            return Ok(());
        }
        set_aside(&file).inspect_err(|_| drop(std::fs::remove_file(&path)))
    }

    fn release(&self) -> io::Result<()> {
        match std::fs::remove_file(beside(&self.path, "reserve")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn set_aside(file: &File) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, RESERVED_BYTES) {
        Ok(()) => Ok(()),
        // A file system that cannot promise room still gives it to what is written.
        Err(rustix::io::Errno::OPNOTSUPP) => Disk::write(file, 0, &vec![0; RESERVED_BYTES as usize]),
        Err(error) => Err(error.into()),
    }
}

/// The store holds everybody's secrets: only its owner reads it.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A new name is durable only once its folder is.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

impl Disk for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, out, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A [`Disk`] as redb wants it, which remembers what went wrong.
#[derive(Debug)]
pub(super) struct Backend {
    pub disk: Arc<dyn Disk>,
    pub troubles: Arc<Troubles>,
}

/// What has gone wrong since the file was opened; redb's own error only says that something did.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// A sync failed: what is read back may not be what is on the disk, and no later sync mends that.
    pub sync_failed: AtomicBool,
    pub full: AtomicBool,
}

impl Troubles {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(is_full) {
            self.full.store(true, Ordering::Relaxed);
        }
        result
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.troubles.note(self.disk.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.troubles.note(self.disk.sync());
        synced.inspect_err(|_| self.troubles.sync_failed.store(true, Ordering::Relaxed))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.troubles.note(self.disk.write(offset, data))
    }
}
