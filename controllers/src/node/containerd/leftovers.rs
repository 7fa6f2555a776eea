//! What containerd has lost sight of: a shim that serves nobody, a directory that blocks its name, processes in a group.
//!
//! containerd 1.6 leaves them when it is killed while it makes a task (the shim runs, but nothing says so), or when two
//! deletions of one task overlap (neither ends the shim). They are found by name: the shim by its command line, its
//! directory below containerd's state, the processes by the container's cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::ListTasksRequest;
use rustix::process::Signal;

use super::container_spec::ContainerId;
use super::runtime::Error;
use super::{Shared, failure};
use crate::node::sys::cgroup::{Cgroups, pause, signal_if};

/// How many looks, 2 ms apart, a shim gets to end by itself, and again after SIGTERM, on which it removes its socket.
const LOOKS: u32 = 250;
/// Below containerd's state directory; the same in 1.4 to 2.1.
pub(super) const BUNDLES: &str = "io.containerd.runtime.v2.task";

/// All that may be left of one container.
#[derive(Clone, Debug)]
struct Leftovers {
    id: ContainerId,
    namespace: String,
    socket: PathBuf,
    /// containerd's directory for the task, and what it renames it to before it removes it.
    bundles: [PathBuf; 2],
    /// The OCI runtime's.
    runtime_state: PathBuf,
    cgroup: String,
    cgroups: Cgroups,
}

impl Shared {
    /// Ends what is left of a container that containerd has no task of.
    pub(super) async fn end_leftovers(&self, id: &ContainerId) -> Result<(), Error> {
        let namespace = self.connection.namespace().to_owned();
        let leftovers = Leftovers {
            id: id.clone(),
            socket: self.connection.socket().to_owned(),
            bundles: self.bundles(id),
            runtime_state: self.config.oci_runtime_root.join(&namespace).join(id.as_str()),
            namespace,
            cgroup: self.cgroup(id),
            cgroups: self.cgroups.clone(),
        };
        let ended = tokio::task::spawn_blocking(move || leftovers.end()).await;
        ended.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(|error| Error::Failed {
            doing: format!("remove what is left of container {id}"),
            message: error.to_string(),
        })
    }

    /// Whether containerd still has a directory for the task. It removes it before a deletion returns.
    pub(super) fn has_bundle(&self, id: &ContainerId) -> bool {
        self.bundles(id).iter().any(|bundle| bundle.exists())
    }

    fn bundles(&self, id: &ContainerId) -> [PathBuf; 2] {
        let all = self.config.state_dir.join(BUNDLES).join(self.connection.namespace());
        [all.join(id.as_str()), all.join(format!(".{id}"))]
    }

    /// Groups of ours that neither a record nor a task belongs to. Only while nothing is being created.
    pub(super) async fn reap_strays(&self) -> Result<(), Error> {
        let groups = self.cgroups.below(&self.config.cgroup_parent);
        if groups.is_empty() {
            return Ok(());
        }
        let failed = |status| failure::error("list containers", status);
        let tasks = self.slow().tasks().list(ListTasksRequest::default()).await.map_err(failed)?.into_inner().tasks;
        for name in groups {
            let Ok(id) = ContainerId::new(name) else { continue };
            let known = tasks.iter().any(|task| task.id == id.as_str()) || self.has_record(&id).await?;
            if !known {
                tracing::warn!(container = %id, "ending processes that containerd knows nothing of");
                self.end_leftovers(&id).await?;
            }
        }
        Ok(())
    }
}

impl Leftovers {
    fn end(&self) -> io::Result<()> {
        // It may be about to end by itself, being asked to by a call that goes on.
        if !self.wait_for_shims() {
            self.signal_shims(Signal::TERM);
            if !self.wait_for_shims() {
                self.signal_shims(Signal::KILL);
            }
        }
        self.cgroups.kill(&self.cgroup)?;
        self.cgroups.remove(&self.cgroup)?;
        self.bundles.iter().try_for_each(|bundle| self.remove_bundle(bundle))?;
        remove_all(&self.runtime_state)
    }

    /// Whether they are gone.
    fn wait_for_shims(&self) -> bool {
        for _ in 0..LOOKS {
            if self.shims().is_empty() {
                return true;
            }
            pause();
        }
        false
    }

    fn signal_shims(&self, signal: Signal) {
        for pid in self.shims() {
            tracing::warn!(container = %self.id, pid, ?signal, "ending a shim that containerd has lost sight of");
            signal_if(pid, signal, || self.is_shim(pid));
        }
    }

    fn shims(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| self.is_shim(*pid)).collect()
    }

    /// By the command line that containerd gives to every shim.
    fn is_shim(&self, pid: i32) -> bool {
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let follows = |flag: &[u8], value: &[u8]| words.windows(2).any(|pair| pair[0] == flag && pair[1] == value);
        words.first().is_some_and(|name| String::from_utf8_lossy(name).contains("containerd-shim"))
            && follows(b"-id", self.id.as_str().as_bytes())
            && follows(b"-namespace", self.namespace.as_bytes())
            && follows(b"-address", self.socket.as_os_str().as_encoded_bytes())
    }

    fn remove_bundle(&self, bundle: &Path) -> io::Result<()> {
        if !bundle.try_exists()? {
            return Ok(());
        }
        let rootfs = bundle.join("rootfs");
        while is_mount_point(&rootfs) {
            rustix::mount::unmount(&rootfs, rustix::mount::UnmountFlags::DETACH)?;
        }
        // Its counterpart below containerd's root.
        if let Ok(work) = fs::read_link(bundle.join("work")) {
            remove_all(&work)?;
        }
        remove_all(bundle)
    }
}

fn is_mount_point(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path))
}

fn remove_all(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
