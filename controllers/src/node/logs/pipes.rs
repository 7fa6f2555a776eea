//! The two named pipes of an attempt: made before the container, held by applyd, read by the companion process.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Stream;

/// What a container can print while nobody reads: 1 MiB a stream, the most that the kernel gives without being asked to
/// (`fs.pipe-max-size`). A restart of the companion process takes milliseconds; this is seconds of a busy log.
const CAPACITY_BYTES: usize = 1 << 20;

/// Paths to hand to containerd as a task's stdout and stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipes {
    pub stdout: PathBuf,
    pub stderr: PathBuf,
}

impl Pipes {
    fn of(dir: &Path, id: &str) -> Self {
        Pipes { stdout: path(dir, id, Stream::Stdout), stderr: path(dir, id, Stream::Stderr) }
    }
}

/// Both pipes, open for reading and writing but neither read nor written: while this lives, a writer meets no broken
/// pipe and nothing in the pipes is lost, whoever else dies.
#[derive(Debug)]
pub struct Hold {
    _ends: [OwnedFd; 2],
}

/// Makes both pipes of attempt `id` in `dir` (0700; made too). Those already there are kept, with what is in them.
///
/// Errors: as mkdir(2) and mknod(2); `AlreadyExists` when something else than a pipe has the name.
pub fn ensure_pipes(dir: &Path, id: &str) -> io::Result<Pipes> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let pipes = Pipes::of(dir, id);
    for path in [&pipes.stdout, &pipes.stderr] {
        match rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) => {}
            Err(Errno::EXIST) if FileType::from_raw_mode(rustix::fs::lstat(path)?.st_mode) == FileType::Fifo => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(pipes)
}

/// Opens both pipes of attempt `id` to keep them alive, and enlarges them. To be held from before the container's task
/// is created until the companion process has acknowledged that the log is finished.
pub fn hold(dir: &Path, id: &str) -> io::Result<Hold> {
    Ok(Hold { _ends: [open(dir, id, Stream::Stdout)?, open(dir, id, Stream::Stderr)?] })
}

/// Removes both pipes; those already gone are a success.
pub fn remove_pipes(dir: &Path, id: &str) -> io::Result<()> {
    let pipes = Pipes::of(dir, id);
    for path in [&pipes.stdout, &pipes.stderr] {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Opened for both directions, which never waits for the other side and never sees an end: that a log is finished is
/// said by the table, not by whoever closes last.
pub(super) fn open(dir: &Path, id: &str, stream: Stream) -> io::Result<OwnedFd> {
    let path = path(dir, id, stream);
    let fd = rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Fifo {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a pipe", path.display())));
    }
    if rustix::pipe::fcntl_getpipe_size(&fd)? < CAPACITY_BYTES {
        // Refused without CAP_SYS_RESOURCE where an administrator has lowered the maximum: the default (64 KiB) does.
        let _ = rustix::pipe::fcntl_setpipe_size(&fd, CAPACITY_BYTES);
    }
    Ok(fd)
}

fn path(dir: &Path, id: &str, stream: Stream) -> PathBuf {
    dir.join(match stream {
        Stream::Stdout => format!("{id}.stdout"),
        Stream::Stderr => format!("{id}.stderr"),
    })
}
