//! The real [`Volumes`]: directories of this machine, and images of its containerd.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::super::containerd::connection::Connection;
use super::super::sys::view::look_at_layers;
use super::copy::remove_tree;
use super::fill::{DATA, Folder, make_folder, open_directory};
use super::holders::holders;
use super::usage::{self, Usage};
use super::{Error, Fill, Missing, VolumeId, Volumes, Wanted, image};

/// Volumes below one directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DirectoryVolumes {
    root: Arc<Path>,
    connection: Connection,
    snapshotter: Arc<str>,
}

/// Where volumes wait for the end of their removal. No namespace has such a name.
const REMOVED: &str = ".removed";

/// An empty directory over which images are mounted, each for the eyes of one thread.
const VIEW: &str = ".view";

impl DirectoryVolumes {
    /// Volumes below `root`/volumes, which is made; `connection` and `snapshotter` are those of the images. Blocks
    /// while it removes what a dead predecessor was removing, and fails if that cannot be done.
    pub fn new(root: &Path, connection: Connection, snapshotter: &str) -> io::Result<Self> {
        let root = root.join("volumes");
        for folder in [&root, &root.join(REMOVED), &root.join(VIEW)] {
            make_folder(folder)?;
        }
        // As the kernel's mount tables name it.
        let root = root.canonicalize()?.into();
        let volumes = DirectoryVolumes { root, connection, snapshotter: snapshotter.into() };
        volumes.sweep()?;
        Ok(volumes)
    }

    async fn ensure_volume(&self, wanted: &Wanted) -> Result<PathBuf, Error> {
        let id = &wanted.id;
        let layers = match &wanted.fill {
            Some(fill) if self.blocking(id, "looked at", Self::may_be_filled).await? => self.layers(id, fill).await?,
            _ => Vec::new(),
        };
        let fill = wanted.fill.clone();
        let failed = id.clone();
        let failed = move |path: &Path, source| fill_failed(&failed, path, source);
        self.blocking(id, "made", move |volumes, id| {
            let folder = Folder::make(&volumes.folder(id))?;
            folder.finish()?;
            // Looked at again: now it is held.
            if let Some(fill) = &fill
                && !layers.is_empty()
                && folder.is_empty()?
            {
                let view = volumes.root.join(VIEW);
                let filled = look_at_layers(&layers, &view, |root| folder.fill(root, &fill.path)).flatten();
                if let Err(source) = filled {
                    // So that a copy that filled the disk does not keep it full; whoever comes next does the same.
                    let _ = folder.finish();
                    return Ok(Err(failed(&fill.path, source)));
                }
            }
            folder.make_data()?;
            Ok(Ok(folder.data()))
        })
        .await?
    }

    /// Whether there is any use in asking for the image.
    fn may_be_filled(&self, id: &VolumeId) -> io::Result<bool> {
        let folder = Folder::make(&self.folder(id))?;
        folder.finish()?;
        folder.is_empty()
    }

    async fn layers(&self, id: &VolumeId, fill: &Fill) -> Result<Vec<PathBuf>, Error> {
        let key = format!("apply-volume-{}-{}", id.namespace(), id.name());
        let layers = image::layers(&self.connection, &self.snapshotter, &fill.chain_id, &key).await;
        let failed = |source| Error::Image { volume: id.clone(), chain_id: fill.chain_id.clone(), source };
        let layers = layers.map_err(|status| failed(Box::new(status)))?;
        layers.ok_or_else(|| {
            let why = format!("the snapshotter {} keeps no directories", self.snapshotter);
            fill_failed(id, &fill.path, io::Error::new(io::ErrorKind::Unsupported, why))
        })
    }

    fn remove_volume(&self, id: &VolumeId) -> io::Result<Result<bool, Error>> {
        let Some(folder) = Folder::hold(&self.folder(id))? else {
            self.sweep()?;
            return Ok(Ok(false));
        };
        let by = holders(folder.path())?;
        if !by.is_empty() {
            return Ok(Err(Error::InUse { volume: id.clone(), by }));
        }
        let was_there = open_directory(&folder.data())?.is_some();
        // At once out of sight: a volume of which only a part is left is never found under its name.
        let mut number = 0_u32;
        loop {
            let target = self.root.join(REMOVED).join(format!("{}.{}.{number}", id.namespace(), id.name()));
            match fs::rename(folder.path(), target) {
                // Another one of that name is still being removed.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => number += 1,
                outcome => break outcome?,
            }
        }
        drop(folder);
        match fs::remove_dir(self.root.join(id.namespace())) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
                return Err(error);
            }
            _ => {}
        }
        self.sweep()?;
        Ok(Ok(was_there))
    }

    /// Goes on with every removal. Two may do so side by side: what one of them misses is what the other has removed.
    fn sweep(&self) -> io::Result<()> {
        fs::read_dir(self.root.join(REMOVED))?.try_for_each(|entry| remove_tree(&entry?.path()))
    }

    fn list_volumes(&self) -> io::Result<Vec<VolumeId>> {
        let mut found = Vec::new();
        for namespace in names_in(&self.root)? {
            for name in names_in(&self.root.join(&namespace))? {
                // What is not a volume's name is not ours.
                let Ok(id) = VolumeId::new(&namespace, &name) else { continue };
                if self.folder(&id).join(DATA).is_dir() {
                    found.push(id);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn directory_inside(&self, id: &VolumeId, subpath: &Path) -> io::Result<Option<PathBuf>> {
        let is_plain = subpath.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let data = self.folder(id).join(DATA);
        let Some(root) = open_directory(&data)?.filter(|_| is_plain) else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(root.as_fd(), subpath, flags, Mode::empty(), resolve) {
            Ok(_) => Ok(Some(data.join(subpath))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn folder(&self, id: &VolumeId) -> PathBuf {
        self.root.join(id.namespace()).join(id.name())
    }

    /// Work that the disk may make wait, on a thread where that hurts nobody. Dropped, it goes on to its end; whoever
    /// comes next waits for the lock that it holds.
    async fn blocking<T: Send + 'static>(
        &self,
        id: &VolumeId,
        doing: &'static str,
        work: impl FnOnce(&Self, &VolumeId) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (volumes, volume) = (self.clone(), id.clone());
        let done = tokio::task::spawn_blocking(move || work(&volumes, &volume)).await;
        let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        done.map_err(|source| match is_disk_full(&source) {
            true => Error::DiskFull { volume: id.clone() },
            false => Error::Volume { volume: id.clone(), doing, source },
        })
    }
}

impl Volumes for DirectoryVolumes {
    fn ensure<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<PathBuf, Error>> {
        self.ensure_volume(wanted).boxed()
    }

    fn inside<'a>(&'a self, id: &'a VolumeId, subpath: &'a Path) -> BoxFuture<'a, Result<PathBuf, Error>> {
        let below = subpath.to_owned();
        async move {
            let found = self.blocking(id, "looked at", move |volumes, id| volumes.directory_inside(id, &below)).await?;
            found.ok_or_else(|| Error::NoSubpath { volume: id.clone(), subpath: subpath.to_owned() })
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<VolumeId>, Error>> {
        async {
            let volumes = self.clone();
            let listed = tokio::task::spawn_blocking(move || volumes.list_volumes()).await;
            let listed = listed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            listed.map_err(|source| Error::List { root: self.root.to_path_buf(), source })
        }
        .boxed()
    }

    fn directory(&self, id: &VolumeId) -> PathBuf {
        self.folder(id).join(DATA)
    }

    fn measure<'a>(&'a self, id: &'a VolumeId) -> BoxFuture<'a, Result<Option<Usage>, Error>> {
        let measure = |volumes: &Self, id: &VolumeId| {
            let data = open_directory(&volumes.folder(id).join(DATA))?;
            data.map(|data| usage::measure(data.as_fd())).transpose()
        };
        self.blocking(id, "measured", measure).boxed()
    }

    fn remove<'a>(&'a self, id: &'a VolumeId) -> BoxFuture<'a, Result<bool, Error>> {
        async { self.blocking(id, "removed", Self::remove_volume).await? }.boxed()
    }

    fn bind<'a>(&'a self, source: &'a Path, missing: Missing) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let path = source.to_owned();
            let ready = tokio::task::spawn_blocking(move || prepare_source(path, missing)).await;
            ready.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        }
        .boxed()
    }
}

fn prepare_source(source_path: PathBuf, missing: Missing) -> Result<(), Error> {
    if !source_path.is_absolute() {
        return Err(Error::NotAbsolute { source_path });
    }
    match (fs::metadata(&source_path), missing) {
        (Ok(_), _) => Ok(()),
        (Err(error), Missing::Refuse) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::NoSource { source_path })
        }
        (Err(error), Missing::Make) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(&source_path).map_err(|source| Error::Source { source_path, source })
        }
        (Err(source), _) => Err(Error::Source { source_path, source }),
    }
}

fn fill_failed(volume: &VolumeId, path: &Path, source: io::Error) -> Error {
    match is_disk_full(&source) {
        true => Error::DiskFull { volume: volume.clone() },
        false => Error::Fill { volume: volume.clone(), path: path.to_owned(), source },
    }
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The directories in a folder; none if it is not there.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(Result::transpose).collect()
}
