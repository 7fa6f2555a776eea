//! How much is in a volume.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

/// How much is in a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// On disk: whole blocks, without holes. A file with several names counts once.
    pub bytes: u64,
    /// Names, of files and directories.
    pub entries: u64,
}

/// Deepest nesting that is looked at; what lies deeper is not counted. A program that builds a deeper tree must not
/// take our descriptors and stack.
const DEPTH_MAX: usize = 500;

/// Counts what is below a directory, on its own file system, following no link. What vanishes meanwhile counts nothing.
pub(super) fn measure(root: BorrowedFd<'_>) -> io::Result<Usage> {
    let device = fstat(root)?.st_dev;
    let mut counting = Counting { device, seen: HashSet::new(), usage: Usage::default() };
    counting.directory(root, 0)?;
    Ok(counting.usage)
}

struct Counting {
    device: u64,
    /// Files with several names.
    seen: HashSet<u64>,
    usage: Usage,
}

impl Counting {
    fn directory(&mut self, directory: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            if stat.st_dev != self.device {
                continue;
            }
            self.usage.entries += 1;
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory || stat.st_nlink == 1 || self.seen.insert(stat.st_ino) {
                self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            }
            if is_directory && depth < DEPTH_MAX {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match openat(directory, name, flags, Mode::empty()) {
                    Ok(below) => self.directory(below.as_fd(), depth + 1)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}
