//! What is wanted of one container: plain data, from which everything else is derived.
//!
//! The tasks controller translates a Task and its Revision into this; [`spec`](crate::node::spec) turns it into an OCI
//! runtime spec; [`Runtime::create`](super::Runtime::create) makes it so. Nothing here is an API kind: names and units
//! are those of OCI and the kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a container in containerd, of its snapshot and of its cgroup: one attempt of one task.
///
/// Shape: letters and digits, with single `.`, `_` or `-` between them, 1 to 76 characters (containerd's rule).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// Not a name that containerd takes.
#[derive(Debug, thiserror::Error)]
#[error("{id:?} is not a container id: letters and digits with single . _ - between them, 76 at most")]
pub struct BadContainerId {
    pub id: String,
}

/// All about one container. Start from [`ContainerSpec::new`] and fill in what is not default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub id: ContainerId,
    /// Kept in containerd beside the container and read back by `list`; key and value together at most 4,096 bytes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub image: ImageRoot,
    #[serde(default)]
    pub process: Process,
    #[serde(default)]
    pub isolation: Isolation,
    /// In any order; those nearer to the root are mounted first. One on the target of a default mount replaces it.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub stdio: Stdio,
}

/// The image as it lies unpacked in containerd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRoot {
    /// What a person calls it; written into containerd's record for `ctr` to show, used for nothing.
    pub name: String,
    /// Key of the committed snapshot that the container's own layer lies upon (the chain id). Empty: no layer at all.
    pub parent: String,
    /// Entrypoint, command, environment, directory and user that hold where [`Process`] says nothing.
    #[serde(default)]
    pub config: oci_spec::image::Config,
}

/// What runs. `None` is "as the image says".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Docker's entrypoint. Giving one drops the image's command; `Some([])` and `[""]` clear the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Docker's command: the arguments of the entrypoint.
    pub command: Option<Vec<String>>,
    /// `NAME=value` sets, `NAME` alone removes what the image or a default has set.
    pub env: Vec<String>,
    /// Absolute. Made if it is missing.
    pub working_dir: Option<String>,
    /// `user`, `user:group`, each a name from the image or a number.
    pub user: Option<String>,
    /// Further groups, names from the image or numbers.
    pub groups: Vec<String>,
    pub tty: bool,
    /// A static binary on this machine that becomes PID 1, reaps orphans and passes signals on. Default none.
    pub init: Option<PathBuf>,
}

/// What separates it from the machine. The defaults are Docker's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Isolation {
    /// Also the value of `HOSTNAME`. Default: the first 12 characters of the id.
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// A network namespace made beforehand. Default: an empty one of its own.
    pub network_namespace: Option<PathBuf>,
    pub read_only_rootfs: bool,
    pub no_new_privileges: bool,
    /// `CAP_NET_ADMIN`, `NET_ADMIN`, any case, or `ALL`.
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    pub seccomp: Seccomp,
    /// A profile that the kernel has loaded. Default none.
    pub apparmor_profile: Option<String>,
    pub sysctls: BTreeMap<String, String>,
    pub rlimits: Vec<Rlimit>,
    pub devices: Vec<Device>,
    /// -1000 to 1000, default 0.
    pub oom_score_adj: i32,
    /// Bytes of `/dev/shm`, default 64 MiB (Docker's).
    pub shm_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Docker's allow-list, widened by what the capabilities need.
    #[default]
    Default,
    Unconfined,
}

/// A resource limit of the process. `None` is unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// As `ulimit` files name it: `nofile`, `memlock`, `core`, …
    pub name: String,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// A device node of the machine, shown in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Inside the container.
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    /// Any of `r`, `w`, `m`.
    pub access: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    Char,
    Block,
}

/// Something mounted over the root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, inside the container; made if it is missing.
    pub target: PathBuf,
    pub kind: MountKind,
    pub access: Access,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of this machine (a volume is one too). It must exist.
    Bind { source: PathBuf, recursive: bool, propagation: Propagation },
    /// Memory, gone with the container.
    Tmpfs { bytes_max: Option<u64>, mode: Option<u32>, exec: bool },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    #[default]
    ReadWrite,
    /// Mounts below it keep their own mode.
    ReadOnly,
    /// Mounts below it too (Linux 5.12).
    ReadOnlyRecursive,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    Shared,
    Slave,
}

/// Limits of the cgroup. `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub memory_bytes_max: Option<u64>,
    /// The kernel reclaims from this container first when it holds more than this.
    pub memory_bytes_reserved: Option<u64>,
    /// Swap alone, on top of memory. Default: as much as `memory_bytes_max` (Docker's). Left out where the kernel
    /// does not account swap.
    pub swap_bytes_max: Option<u64>,
    /// Billionths of a CPU: 1,000,000,000 is one.
    pub nano_cpus: Option<u64>,
    /// Relative weight against other containers, 2 to 262,144; a container without one has 1,024.
    pub cpu_shares: Option<u64>,
    /// Like `0-2,7`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids_max: Option<u64>,
}

/// Where the container's output goes and its input comes from: paths of FIFOs made beforehand. Nothing: `/dev/null`.
///
/// Creating never waits for a reader. Without `stderr`, what is said there goes to `stdout`; a tty has no `stderr`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stdio {
    pub stdin: Option<PathBuf>,
    pub stdout: Option<PathBuf>,
    pub stderr: Option<PathBuf>,
}

impl ContainerId {
    pub fn new(id: impl Into<String>) -> Result<Self, BadContainerId> {
        let id = id.into();
        let parts_are_alphanumeric =
            id.split(['.', '_', '-']).all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()));
        if id.len() <= 76 && parts_are_alphanumeric { Ok(ContainerId(id)) } else { Err(BadContainerId { id }) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ContainerSpec {
    /// The container `id` of an image, everything else as Docker has it by default.
    pub fn new(id: ContainerId, image: ImageRoot) -> Self {
        ContainerSpec {
            id,
            labels: BTreeMap::new(),
            image,
            process: Process::default(),
            isolation: Isolation::default(),
            mounts: Vec::new(),
            resources: Resources::default(),
            stdio: Stdio::default(),
        }
    }
}

impl Device {
    /// The device node at `host` on this machine, to appear at `container`.
    pub fn of_machine(host: &Path, container: &Path, access: &str) -> io::Result<Self> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let found = std::fs::metadata(host)?;
        let kind = match found.file_type() {
            t if t.is_char_device() => DeviceKind::Char,
            t if t.is_block_device() => DeviceKind::Block,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a device")),
        };
        let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        Ok(Device { path: container.to_owned(), kind, major, minor, access: access.to_owned() })
    }
}

impl Mount {
    /// A private, recursive bind mount, as `docker run -v source:target` makes it.
    pub fn bind(source: impl Into<PathBuf>, target: impl Into<PathBuf>, access: Access) -> Self {
        let kind = MountKind::Bind { source: source.into(), recursive: true, propagation: Propagation::Private };
        Mount { target: target.into(), kind, access }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = BadContainerId;
    fn from_str(id: &str) -> Result<Self, Self::Err> {
        ContainerId::new(id)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = BadContainerId;
    fn try_from(id: String) -> Result<Self, Self::Error> {
        ContainerId::new(id)
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> String {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_that_containerd_takes() {
        for good in ["a", "voting-app_vote.1", "A9", &"x".repeat(76)] {
            assert!(ContainerId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a--b", "a._b", "a b", "ä", "a/b", &"x".repeat(77)] {
            assert!(ContainerId::new(bad).is_err(), "{bad}");
        }
    }
}
