//! A file system that one thread sees and nobody else: a mount that no crash can leave behind.
//!
//! The thread has a mount namespace of its own, which the kernel takes down with it, whatever it was doing.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::thread;

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Shows `look` the layers of directories, topmost first, as one read-only tree: calls it once, with the tree's root.
///
/// `at` is an existing directory over which the tree is mounted, in a mount namespace of its own. One layer alone is
/// shown as it is. Blocks until `look` is done. Fails if the kernel refuses the mount.
pub fn look_at_layers<T: Send>(
    layers: &[PathBuf],
    at: &Path,
    look: impl FnOnce(BorrowedFd<'_>) -> T + Send,
) -> io::Result<T> {
    if let [only] = layers {
        let root = open(only, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        return Ok(look(root.as_fd()));
    }
    let (folder, options) = relative(layers);
    let options = CString::new(options)?;
    thread::scope(|scope| {
        let looking = thread::Builder::new().name("image-view".to_owned()).spawn_scoped(scope, || {
            // SAFETY: only a change of the table of descriptors (FILES) is unsafe, and that is not asked for. FS gives
            // the thread a working directory of its own, without which it cannot have its own mounts.
            #[expect(unsafe_code, reason = "a mount namespace for one thread; rustix calls it unsafe for other flags")]
            unsafe {
                unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS)?;
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            // The kernel takes one page of options. A hundred layers fit into it by their names below one folder.
            std::env::set_current_dir(&folder)?;
            mount("overlay", at, "overlay", MountFlags::RDONLY, Some(options.as_c_str()))?;
            let root = open(at, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            Ok(look(root.as_fd()))
        })?;
        looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The folder that all layers are below, and overlayfs's options with the layers' names from there.
fn relative(layers: &[PathBuf]) -> (PathBuf, Vec<u8>) {
    let parts = |path: &PathBuf| path.components().map(Component::as_os_str).map(OsStr::to_owned).collect::<Vec<_>>();
    let mut common = layers.first().map(parts).unwrap_or_default();
    for layer in layers {
        let same = parts(layer).iter().zip(&common).take_while(|(a, b)| a == b).count();
        common.truncate(same);
    }
    let folder: PathBuf = common.iter().collect();
    let names = layers.iter().map(|layer| layer.strip_prefix(&folder).unwrap_or(layer).as_os_str().as_bytes());
    let mut options = b"lowerdir=".to_vec();
    options.extend(names.collect::<Vec<_>>().join(&b':'));
    (folder, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_from_the_folder_that_they_share() {
        let layers: Vec<PathBuf> = ["/a/s/12/fs", "/a/s/1/fs", "/a/s/7/fs"].iter().map(PathBuf::from).collect();
        let (folder, options) = relative(&layers);
        assert_eq!(folder, Path::new("/a/s"));
        assert_eq!(options, b"lowerdir=12/fs:1/fs:7/fs");
    }
}
