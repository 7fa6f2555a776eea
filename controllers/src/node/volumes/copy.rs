//! Copying a tree exactly: contents, owners, modes, times, extended attributes, links of both kinds, devices and pipes.
//!
//! Every step is taken from an open directory and follows no link, so neither side can lead out of its tree.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

/// Deepest nesting. Each level holds two descriptors and a frame of the stack; real trees have thirty at most.
const DEPTH_MAX: usize = 500;

/// Longest list of attribute names, and longest value; both are the kernel's own limit.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// What belongs to the file system that shows an image, not to the image.
const NOT_CONTENT: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Copies all that is in `from` into `to`, which is empty, and makes `to` itself like `from`.
pub(super) fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut copy = Copy { root: to, files: HashMap::new(), at: PathBuf::new() };
    copy.directory(from, to, 0).map_err(|error| io::Error::new(error.kind(), Failed { path: copy.at, error }))
}

/// Owner and mode of `from` for `to`, and nothing else of it.
pub(super) fn copy_owner_and_mode(from: &Stat, to: BorrowedFd<'_>) -> io::Result<()> {
    fchown(to, Some(Uid::from_raw(from.st_uid)), Some(Gid::from_raw(from.st_gid)))?;
    // After the owner: a change of owner takes set-id bits away.
    Ok(fchmod(to, mode_of(from))?)
}

struct Copy<'a> {
    root: BorrowedFd<'a>,
    /// Where files with several names were copied to, by the number that the source knows them by.
    files: HashMap<(u64, u64), PathBuf>,
    /// From the root; where the copy is now, or where it failed.
    at: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
struct Failed {
    path: PathBuf,
    error: io::Error,
}

impl Copy<'_> {
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(io::Error::other(format!("more than {DEPTH_MAX} directories deep")));
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.at.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
            self.entry(from, to, name, depth)?;
            self.at.pop();
        }
        attributes(from, to, &fstat(from)?)
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let several_names = stat.st_nlink > 1 && kind != FileType::Directory;
        if several_names {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.files.get(&key) {
                return Ok(linkat(self.root, first, to, name, AtFlags::empty())?);
            }
            self.files.insert(key, self.at.clone());
        }
        match kind {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let (from, to) = (open_directory(from, name)?, open_directory(to, name)?);
                self.directory(from.as_fd(), to.as_fd(), depth + 1)
            }
            FileType::RegularFile => {
                // A file that became a pipe meanwhile must not make us wait for a writer.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let mut source = File::from(openat(from, name, flags, Mode::empty())?);
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut target = File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
                // Inside the kernel where it can be.
                io::copy(&mut source, &mut target)?;
                attributes(source.as_fd(), target.as_fd(), &stat)
            }
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?.as_c_str(), to, name)?;
                named(to, name, &stat)
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                mknodat(to, name, kind, mode_of(&stat), stat.st_rdev)?;
                named(to, name, &stat)?;
                // Making it took the mask of the process off its mode. It was made above, so it is no link.
                Ok(rustix::fs::chmodat(to, name, mode_of(&stat), AtFlags::empty())?)
            }
            // A socket without its process is nothing.
            _ => Ok(()),
        }
    }
}

fn open_directory(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::empty())?)
}

/// Owner, mode, extended attributes, times: in the order in which none undoes another.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    copy_owner_and_mode(stat, to)?;
    extended(from, to)?;
    Ok(futimens(to, &times(stat))?)
}

/// Owner and times of what cannot be opened.
fn named(folder: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(folder, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(utimensat(folder, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn extended(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match flistxattr(from, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if NOT_CONTENT.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let name = CString::new(name)?;
        let mut value = vec![0; XATTR_BYTES_MAX];
        let length = fgetxattr(from, &name, &mut value)?;
        match fsetxattr(to, &name, &value[..length], XattrFlags::empty()) {
            // The disk of the volumes has no such attributes; the content is worth having without them.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn mode_of(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}

/// Empties a directory of a volume's own; nothing if it is not there.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
