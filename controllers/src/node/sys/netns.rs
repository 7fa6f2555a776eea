//! Network namespaces that have a name in the file system.
//!
//! A namespace belongs to a *thread*. So everything here that enters or makes one does it on a plain thread that ends
//! right after: never on a thread of an async runtime, which would go on and run somebody else's future in there.
//! Nothing forks (`rtnetlink`'s `NetworkNamespace::add` and `ip netns` do).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    thread,
};

use rustix::{
    fs::statfs,
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

/// A table of the kernel's sockets (`tcp`, `tcp6`, `udp`, `udp6`) in the calling thread's namespace, as
/// `/proc/net` has it.
///
/// # Errors
/// `NotFound` on a kernel without that protocol.
pub fn sockets(table: &str) -> io::Result<String> {
    // The kernel walks all its hash buckets anew for each read: `fs::read_to_string`, which begins with 32 bytes, has it
    // do so five times for an empty table.
    let mut text = String::with_capacity(16 << 10);
    File::open(format!("/proc/thread-self/net/{table}"))?.read_to_string(&mut text)?;
    Ok(text)
}

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Netns {
    /// Opens the namespace that is mounted at `path`.
    ///
    /// `NotFound` also when the file is there and no namespace is mounted on it (a crash half-way through
    /// [`ensure`], or somebody's `umount`).
    pub fn open(path: &Path) -> io::Result<Netns> {
        if !is_netns(path)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Netns(File::open(path)?.into()))
    }

    /// The same namespace once more.
    pub fn try_clone(&self) -> io::Result<Netns> {
        Ok(Netns(self.0.try_clone()?))
    }

    /// Runs `work` in this namespace, on a thread of its own, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread("netns", || {
            self.enter()?;
            Ok(work())
        })
    }

    /// Moves the calling thread into this namespace, for good. The thread must be a plain one.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes a namespace with nothing in it at `path`, unless there is one, and has `work` done in it. Missing directories are
/// made.
///
/// May be killed at any instruction and called again. Two calls at once for one path are the caller's to prevent: they
/// could mount one namespace over the other.
pub fn ensure<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<(Netns, T)> {
    match Netns::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) => {
            let done = found.run(work)?;
            return Ok((found, done));
        }
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    let done = on_a_thread("netns-new", || {
        unshare_network()?;
        mount_bind("/proc/thread-self/ns/net", path)?;
        Ok(work())
    })?;
    Ok((Netns::open(path)?, done))
}

fn on_a_thread<T: Send>(name: &str, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Takes the name away. The namespace itself goes with its last process, socket and open file.
pub fn remove(path: &Path) -> io::Result<()> {
    // More than one mount on top of each other is nothing that we make; the bound only keeps this loop finite.
    const MOUNTS_MAX: usize = 16;
    for _ in 0..MOUNTS_MAX {
        if !is_netns(path)? {
            break;
        }
        unmount(path, UnmountFlags::DETACH)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a namespace is mounted at `path`. A missing file is a plain no.
pub fn is_netns(path: &Path) -> io::Result<bool> {
    /// `NSFS_MAGIC` of linux/magic.h.
    const NSFS: u64 = 0x6e73_6673;
    match statfs(path) {
        Ok(found) => Ok(found.f_type as u64 == NSFS),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[expect(unsafe_code, reason = "unshare can take descriptors away from other threads; this flag does not")]
fn unshare_network() -> io::Result<()> {
    // SAFETY: the danger that `unshare_unsafe` names comes with `UnshareFlags::FILES`, which is not given. The calling
    // thread is the one that `ensure` has just started for this and that runs nothing else.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}
