//! The Secrets and Configs of a task, as files in memory: never on a disk, and gone with the task.

use std::fs::{self, File as OsFile, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::mount::{MountFlags, mount};

use super::io_failed;
use crate::node::containerd::container_spec::{Access, Mount};
use crate::node::tasks::{File, Files, PrepareError};

/// Has all of them in `folder`, which is in memory, and says how the container sees them. What is there is not asked for
/// again.
pub(super) async fn mounts(files: &dyn Files, folder: &Path, wanted: &[File]) -> Result<Vec<Mount>, PrepareError> {
    folder_for_us(folder).map_err(|error| io_failed("make the folder of the task's files", error))?;
    let mut mounts = Vec::new();
    for (number, file) in wanted.iter().enumerate() {
        // A task never sees others than its revision names, in that order.
        let path = folder.join(number.to_string());
        let there = path.try_exists().map_err(|error| io_failed("look for the task's files", error))?;
        if !there {
            let (word, _) = file.kind.words();
            let doing = || format!("give the {word} {} to the task", file.source.name);
            let data = files.open(file.kind, &file.source).await.map_err(|why| PrepareError::failed(doing(), why))?;
            let data = data.ok_or_else(|| PrepareError::failed(doing(), format!("there is no such {word}")))?;
            write(&path, file, &data).map_err(|error| PrepareError::failed(doing(), error))?;
        }
        mounts.push(Mount::bind(path, &file.target, Access::ReadOnly));
    }
    Ok(mounts)
}

/// Whole or not at all.
fn write(path: &Path, file: &File, data: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut opened = OsFile::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    opened.write_all(data)?;
    fchown(&opened, Some(file.uid), Some(file.gid))?;
    // After the owner, whose change takes special bits away.
    opened.set_permissions(Permissions::from_mode(file.mode))?;
    fs::rename(beside, path)
}

fn folder_for_us(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Sees to it that a file system of memory is mounted there, kept from the swap where the kernel can (6.4): the folder that
/// it is in may be on one too, but on one that is not.
pub(super) fn ensure_memory(folder: &Path) -> Result<(), PrepareError> {
    // Two at once would hide each other's files.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let ensured = || -> io::Result<()> {
        folder_for_us(folder)?;
        let device = |path: &Path| Ok::<_, io::Error>(fs::metadata(path)?.dev());
        if device(folder)? != device(folder.parent().unwrap_or(folder))? {
            return Ok(());
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let kept = mount("tmpfs", folder, "tmpfs", flags, c"mode=0700,noswap");
        kept.or_else(|_| mount("tmpfs", folder, "tmpfs", flags, c"mode=0700")).map_err(io::Error::from)
    };
    ensured().map_err(|error| io_failed("have a place in memory for the task's files", error))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;
    use futures::future::BoxFuture;
    use reconciler::api::ObjectRef;
    use schemas::kinds::template::FileKind;

    use super::*;

    /// Knows `key`, and counts how often it is asked.
    #[derive(Default)]
    struct Known(AtomicUsize);

    impl Files for Known {
        fn open<'a>(&'a self, _: FileKind, of: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Vec<u8>>, String>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            async { Ok((of.name == "key").then(|| b"hunter2".to_vec())) }.boxed()
        }
    }

    #[tokio::test]
    async fn a_task_keeps_what_it_was_given_and_is_told_what_is_missing() {
        let memory = std::env::temp_dir().join(format!("apply-data-{}", std::process::id()));
        let folder = memory.join("u1");
        let (known, me) = (Known::default(), rustix::process::getuid().as_raw());
        let file = |name: &str, mode| File {
            kind: FileKind::Secret,
            source: ObjectRef::new("default", name),
            target: format!("/run/secrets/{name}"),
            uid: me,
            gid: rustix::process::getgid().as_raw(),
            mode,
        };
        let wanted = [file("key", 0o400), file("key", 0)];
        for asked in [2, 2] {
            let mounts = mounts(&known, &folder, &wanted).await.unwrap();
            assert_eq!(mounts.len(), 2);
            assert_eq!(known.0.load(Ordering::Relaxed), asked, "what is there is not asked for");
        }
        let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("0"), mode("1")), (0o400, 0), "an explicit 0 is not the default");
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let missing = mounts(&known, &memory.join("u2"), &[file("none", 0o444)]).await.unwrap_err();
        let said = reconciler::causes::chain(&missing);
        assert_eq!(said, "could not give the secret none to the task: there is no such secret");
        fs::remove_dir_all(&memory).unwrap();
    }
}
