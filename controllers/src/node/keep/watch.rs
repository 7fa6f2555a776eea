//! Wakes up when one of the files that matter may have changed.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::super::sys::readiness;

/// Hints only: whoever waits also looks by itself now and then, since inotify may be used up on the machine, and sees
/// nothing of what another kernel does to a shared file system.
pub(super) struct Watch {
    inotify: Option<AsyncFd<OwnedFd>>,
    names: Vec<Vec<u8>>,
}

impl Watch {
    /// The files need not exist; their directories must.
    pub fn new(files: &[&Path]) -> Self {
        let names = files.iter().filter_map(|file| file.file_name()).map(|name| name.as_bytes().to_vec()).collect();
        let inotify =
            start(files).inspect_err(|error| tracing::warn!(%error, "no inotify; files are looked at in turn"));
        Watch { inotify: inotify.ok(), names }
    }

    /// Cancel-safe. Without inotify it never returns.
    pub async fn changed(&self) {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
            let mut hit = false;
            let mut buffer = [MaybeUninit::uninit(); 1024];
            let mut events = inotify::Reader::new(inotify.get_ref(), &mut buffer);
            while let Ok(event) = events.next() {
                // No name: events were lost, or the directory itself went.
                hit |= event.file_name().is_none_or(|name| self.names.iter().any(|ours| ours == name.to_bytes()));
            }
            ready.clear_ready();
            if hit {
                return;
            }
        }
    }
}

fn start(files: &[&Path]) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    for file in files {
        let dir = file.parent().unwrap_or(Path::new(OsStr::new("/")));
        inotify::add_watch(&inotify, dir, WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::CREATE)?;
    }
    readiness::watched(inotify)
}
