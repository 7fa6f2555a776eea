//! cgroups as the kernel shows them: which hierarchies are mounted, and what is in one group.
//!
//! A group is named by its path from the root of each hierarchy (`/apply/<container>`). Under v1 it is one directory in
//! each hierarchy, under v2 one directory; on a machine with both, all of them. Read anew each time: it is the truth
//! that survives every crash of ours, of containerd and of its shims.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The hierarchies of this machine (of this mount namespace).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount_point: PathBuf,
    /// v1: the controllers. v2: none.
    controllers: Vec<String>,
    v2: bool,
}

/// How often all processes of a group are looked for and killed before it is called unkillable. Each round kills all
/// that the round before has forked meanwhile; only processes stuck in the kernel survive many.
const KILL_ROUNDS: u32 = 100;

impl Cgroups {
    /// The hierarchies that are mounted now.
    pub fn of_machine() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let hierarchies = mountinfo.lines().filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let mount_point = PathBuf::from(mount.split(' ').nth(4)?);
            let mut kind = kind.split(' ');
            let (file_system, _source, options) = (kind.next()?, kind.next()?, kind.next().unwrap_or_default());
            let controllers = match file_system {
                "cgroup2" => Vec::new(),
                "cgroup" => options.split(',').filter(|o| *o != "rw" && *o != "ro").map(str::to_owned).collect(),
                _ => return None,
            };
            Some(Hierarchy { mount_point, controllers, v2: file_system == "cgroup2" })
        });
        Cgroups { hierarchies: hierarchies.collect() }
    }

    /// v2 and nothing else (systemd's "unified" mode): what decides which files limit a group.
    pub fn unified(&self) -> bool {
        self.hierarchies.iter().all(|h| h.v2) && !self.hierarchies.is_empty()
    }

    /// Whether the kernel can limit swap for a group.
    pub fn accounts_swap(&self) -> bool {
        match self.controller("memory") {
            Some(memory) => memory.mount_point.join("memory.memsw.limit_in_bytes").exists(),
            // The root group has no swap file under v2; the kernel has accounted swap unless booted not to (5.8).
            None => {
                !fs::read_to_string("/proc/cmdline").is_ok_and(|c| c.split_whitespace().any(|w| w == "swapaccount=0"))
            }
        }
    }

    /// Whether the group is there, in any hierarchy.
    pub fn exists(&self, group: &str) -> bool {
        self.directories(group).next().is_some()
    }

    /// The names of the groups directly in this one, of any hierarchy.
    pub fn below(&self, group: &str) -> BTreeSet<String> {
        let name = |path: PathBuf| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        self.directories(group).flat_map(|d| subdirectories(&d).filter_map(name).collect::<Vec<_>>()).collect()
    }

    /// Moves this process to the group in every hierarchy, made if missing. Returns the directories that refused: there
    /// it stays where it was.
    pub fn enter(&self, group: &str) -> Vec<(PathBuf, io::Error)> {
        // A group of `cpuset` takes no process before somebody has given it processors and memory, and keeps them current.
        let hierarchies = self.hierarchies.iter().filter(|h| !h.controllers.iter().any(|c| c == "cpuset"));
        let enter = |hierarchy: &Hierarchy| {
            let directory = hierarchy.directory(group);
            let entered = fs::create_dir_all(&directory)
                .and_then(|()| fs::write(directory.join("cgroup.procs"), std::process::id().to_string()));
            entered.err().map(|error| (directory, error))
        };
        hierarchies.filter_map(enter).collect()
    }

    /// Every process in the group or a group below it, of any hierarchy. Those that have not been waited for yet
    /// (zombies) are not listed by the kernel.
    pub fn processes(&self, group: &str) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        let mut left: Vec<PathBuf> = self.directories(group).collect();
        while let Some(directory) = left.pop() {
            let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|pid| pid.parse::<i32>().ok()));
            left.extend(subdirectories(&directory));
        }
        found
    }

    /// How many processes of the group the kernel has killed for want of memory; zero where it does not count them.
    pub fn oom_kills(&self, group: &str) -> u64 {
        let (hierarchy, file) = match self.controller("memory") {
            Some(memory) => (Some(memory), "memory.oom_control"),
            None => (self.hierarchies.iter().find(|h| h.v2), "memory.events"),
        };
        let counted = hierarchy.and_then(|h| fs::read_to_string(h.directory(group).join(file)).ok());
        let counted = counted.unwrap_or_default();
        let count = counted.lines().filter_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        count.sum()
    }

    /// Kills all that is in the group. Returns once it is empty, or with an error naming how many would not die.
    ///
    /// Waits for the dead to be gone by reading again, a named number of times; blocks the thread meanwhile.
    pub fn kill(&self, group: &str) -> io::Result<()> {
        for _ in 0..KILL_ROUNDS {
            let processes = self.processes(group);
            if processes.is_empty() {
                return Ok(());
            }
            for pid in processes {
                signal_if(pid, Signal::KILL, || self.processes(group).contains(&pid));
            }
            // The kernel needs a moment to take them apart.
            pause();
        }
        match self.processes(group).len() {
            0 => Ok(()),
            left => Err(io::Error::other(format!("{left} processes of cgroup {group} cannot be killed"))),
        }
    }

    /// Removes the group and those below it, if it is empty of processes. One that is not there is success.
    pub fn remove(&self, group: &str) -> io::Result<()> {
        self.directories(group).try_for_each(|directory| remove_tree(&directory))
    }

    fn directories(&self, group: &str) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(move |h| h.directory(group)).filter(|d| d.is_dir())
    }

    fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == name))
    }
}

impl Hierarchy {
    fn directory(&self, group: &str) -> PathBuf {
        self.mount_point.join(group.trim_start_matches('/'))
    }
}

/// Sends a signal to `pid` if `still` says, once the process is held by a descriptor, that it is the one that was meant:
/// the number alone may have gone to another process meanwhile.
pub fn signal_if(pid: i32, signal: Signal, still: impl FnOnce() -> bool) {
    if let Some(pid) = Pid::from_raw(pid)
        && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        && still()
    {
        // Gone meanwhile is what was wanted.
        _ = pidfd_send_signal(&process, signal);
    }
}

#[expect(clippy::disallowed_methods, reason = "waits for the kernel, not for a time; no seam reaches down here")]
pub(crate) fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(2));
}

fn subdirectories(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    subdirectories(directory).try_for_each(|below| remove_tree(&below))?;
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
        30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 30 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        39 30 0:35 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        40 30 0:36 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2: &str = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn hierarchies_are_read_from_the_mount_table() {
        let both = Cgroups::parse(V1);
        assert_eq!(both.hierarchies.len(), 4);
        assert!(!both.unified());
        assert_eq!(
            both.controller("memory").unwrap().directory("/apply/x"),
            Path::new("/sys/fs/cgroup/memory/apply/x")
        );
        assert!(Cgroups::parse(V2).unified());
        assert!(!Cgroups::parse("").unified());
    }
}
