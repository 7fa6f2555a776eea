//! What a task is: the container, what it may use, where it may run. A Revision holds one of these, and its name is the
//! hash of it, so nothing here may come out differently after a round trip.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use reconciler_api::{Kind, Resource};

use super::config::Config;
use super::is_default;
use super::network::DEFAULT_NETWORK;
use super::secret::Secret;
use crate::defaults;
use crate::quantity::{Cpus, Period, Size};

/// What each task of a service is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskTemplate {
    /// The container that the task runs.
    pub container: ContainerSpec,
    /// What the task may use at most, and what is kept for it on its node.
    #[serde(skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// When a task that ended is started again.
    #[serde(skip_serializing_if = "is_default")]
    pub restart: RestartPolicy,
    /// Where tasks may run.
    #[serde(skip_serializing_if = "is_default")]
    pub placement: Placement,
    /// Networks that the tasks are attached to. In a Bundle, names of the bundle's own networks come first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub networks: Vec<NetworkAttachment>,
    /// Where the output of the tasks goes.
    #[serde(skip_serializing_if = "is_default")]
    pub log: Log,
    /// Means nothing; any change replaces every task.
    #[serde(skip_serializing_if = "is_default")]
    pub force_update: u64,
}

impl TaskTemplate {
    /// The networks that its tasks are attached to: those that it names, else the namespace's default network.
    pub fn attachments(&self) -> Cow<'_, [NetworkAttachment]> {
        match self.networks.is_empty() {
            false => Cow::Borrowed(&self.networks),
            true => Cow::Owned(vec![NetworkAttachment { name: DEFAULT_NETWORK.to_owned(), aliases: Vec::new() }]),
        }
    }
}

/// The container of a task. What is absent comes from the image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct ContainerSpec {
    /// `[registry/]repository[:tag][@digest]`; no tag means `latest`, no registry means docker.io.
    #[schemars(extend("x-required" = true))]
    pub image: String,
    /// Replaces the image's entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
    /// Replaces the image's command: the arguments of the entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub args: Vec<String>,
    /// Added to the image's environment, or instead of its values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    /// Labels of the containers, as the runtime knows them. A change replaces the tasks.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Working directory; absent: the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// `user[:group]`, by name or number; absent: the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// More groups of the process, by name or number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub groups: Vec<String>,
    /// Host name inside; absent: the task's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Give the process a terminal; its output is then one stream.
    #[serde(skip_serializing_if = "is_default")]
    pub tty: bool,
    /// Keep the standard input open, for whoever attaches to it.
    #[serde(skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// The root file system cannot be written; mounts still can.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Run a small init as process 1 that passes signals on and reaps children.
    #[serde(skip_serializing_if = "is_default")]
    pub init: bool,
    /// Signal that asks the process to end, by name or number; absent: the image's, else SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::STOP_SIGNAL.value, "x-source" = defaults::STOP_SIGNAL.source))]
    pub stop_signal: Option<String>,
    /// How long a task may take to stop before it is killed, counted from the signal. 0 s to 1 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::STOP_GRACE.text(), "x-source" = defaults::STOP_GRACE.source))]
    pub stop_grace: Option<Period>,
    /// How it is known that the process does its work; absent: the image's check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Lines added to /etc/hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub hosts: Vec<HostEntry>,
    /// Name servers instead of the cluster's own for names outside.
    #[serde(skip_serializing_if = "is_default")]
    pub dns: Dns,
    /// Volumes, directories of the host and memory, by the path where they are seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["target"]))]
    pub mounts: Vec<Mount>,
    /// Secrets, as files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["target"]))]
    pub secrets: Vec<FileReference>,
    /// Configs, as files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["target"]))]
    pub configs: Vec<FileReference>,
    /// What the process is kept from.
    #[serde(skip_serializing_if = "is_default")]
    pub privileges: Privileges,
    /// Kernel parameters of the container's namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Changes to the usual fourteen capabilities.
    #[serde(skip_serializing_if = "is_default")]
    pub capabilities: Capabilities,
    /// Limits of the process beside those of the machine (`ulimit`); what is not named is the runtime's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ulimits: Vec<Ulimit>,
    /// Who goes first when memory runs out: -1000 (last) to 1000 (first).
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(range(min = -1000, max = 1000))]
    pub oom_score_adj: i32,
    /// Devices of the host that the container may use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["target"]))]
    pub devices: Vec<Device>,
    /// How a container is kept apart on Windows (`process`, `hyperv`); means nothing on Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
}

impl ContainerSpec {
    /// How long the process may take to stop: what is said, else the default.
    pub fn stop_grace(&self) -> Period {
        self.stop_grace.unwrap_or(defaults::STOP_GRACE.value)
    }
}

/// One variable of the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct EnvVar {
    /// Name of the variable; any characters but `=` and NUL.
    #[schemars(extend("x-required" = true))]
    pub name: String,
    /// Value of the variable; empty is a value. Absent: the variable is removed, also if the image sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// How it is known that a process does its work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// No check at all, not even the image's.
    #[serde(skip_serializing_if = "is_default")]
    pub disabled: bool,
    /// Docker's one check: until it first passes the task is Starting, and once it has failed `retries` times in a row
    /// the task is stopped and has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<Probe>,
    /// Until it first passes the task is Starting and the other two rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// While it fails the task is out of the mesh, and goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
    /// Once it has failed the task is stopped and has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
}

/// One check: exactly one of `exec`, `http`, `tcp`, `grpc`, and how often.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Probe {
    /// A command inside the container; exit code 0 is healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecProbe>,
    /// A GET; 200 to 399 is healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// A connection that is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// The standard health service of gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcProbe>,
    /// Time from the end of one run to the start of the next, 1ms to 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::PROBE_INTERVAL.text(), "x-source" = defaults::PROBE_INTERVAL.source))]
    pub interval: Option<Period>,
    /// How long a run may take before it has failed, 1ms to 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::PROBE_TIMEOUT.text(), "x-source" = defaults::PROBE_TIMEOUT.source))]
    pub timeout: Option<Period>,
    /// Failures in a row that make it unhealthy. At least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("default" = defaults::PROBE_RETRIES.value, "x-source" = defaults::PROBE_RETRIES.source))]
    pub retries: Option<u32>,
    /// Failures within this time of the start do not count, until the first success; at most 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::PROBE_START_PERIOD.text(), "x-source" = defaults::PROBE_START_PERIOD.source))]
    pub start_period: Option<Period>,
    /// What stands for `interval` within `startPeriod`, 1ms to 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::PROBE_START_INTERVAL.text(), "x-source" = defaults::PROBE_START_INTERVAL.source))]
    pub start_interval: Option<Period>,
}

impl Probe {
    /// Pause between two runs: what is said, else the default.
    pub fn interval(&self) -> Period {
        self.interval.unwrap_or(defaults::PROBE_INTERVAL.value)
    }

    /// How long one run may take: what is said, else the default.
    pub fn timeout(&self) -> Period {
        self.timeout.unwrap_or(defaults::PROBE_TIMEOUT.value)
    }

    /// Failures in a row that make it unhealthy: what is said, else the default.
    pub fn retries(&self) -> u32 {
        self.retries.unwrap_or(defaults::PROBE_RETRIES.value)
    }

    /// How long after the start failures do not count: what is said, else the default.
    pub fn start_period(&self) -> Period {
        self.start_period.unwrap_or(defaults::PROBE_START_PERIOD.value)
    }

    /// Pause between two runs within the start period: what is said, else the default.
    pub fn start_interval(&self) -> Period {
        self.start_interval.unwrap_or(defaults::PROBE_START_INTERVAL.value)
    }
}

/// A command inside the container, run as its user; exit code 0 is healthy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct ExecProbe {
    /// The program and its arguments; for a shell line write `["/bin/sh", "-c", "…"]`.
    #[schemars(extend("x-required" = true), extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
}

/// A GET to the task's own address; 200 to 399 is healthy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct HttpProbe {
    /// Port that the container listens on.
    #[schemars(extend("x-required" = true), range(min = 1, max = 65535), extend("format" = "port"))]
    pub port: u16,
    /// Path and query of the request, beginning with `/`; absent: `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Speak TLS, without looking at the certificate.
    #[serde(skip_serializing_if = "is_default")]
    pub tls: bool,
    /// Headers of the request, such as `Host`, beside those that HTTP needs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// A connection to the task's own address; healthy once it is accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct TcpProbe {
    /// Port that the container listens on.
    #[schemars(extend("x-required" = true), range(min = 1, max = 65535), extend("format" = "port"))]
    pub port: u16,
}

/// A call of gRPC's standard health service (`grpc.health.v1`); `SERVING` is healthy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct GrpcProbe {
    /// Port that the container listens on.
    #[schemars(extend("x-required" = true), range(min = 1, max = 65535), extend("format" = "port"))]
    pub port: u16,
    /// Name of the service that is asked about; absent: the server as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// One name of /etc/hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostEntry {
    /// Host name, as processes will ask for it.
    pub name: String,
    /// What the name resolves to.
    pub ip: IpAddr,
}

/// Name resolution inside the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Dns {
    /// Servers that are asked for names which the cluster does not know; empty: those of the machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub servers: Vec<IpAddr>,
    /// Domains that are tried behind a name that is not found as it is; one `.`: none; empty: those of the machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub search: Vec<String>,
    /// Options of resolv.conf(5), such as `timeout:1`; empty: those of the machine. `ndots` is 0 unless said here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub options: Vec<String>,
}

/// Something that is seen at a path of the container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct Mount {
    /// What is mounted.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: MountType,
    /// A volume's name (absent: one for each task, gone with it), or for `bind` an absolute path of the host. Not for
    /// `tmpfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Absolute path in the container.
    #[schemars(extend("x-required" = true))]
    pub target: String,
    /// The container cannot write there.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Options of a path of the host; only for type `bind`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<BindOptions>,
    /// Options of a volume; only for type `volume`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeOptions>,
    /// Options of memory; only for type `tmpfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<TmpfsOptions>,
}

/// What is mounted at a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "volume"))]
pub enum MountType {
    /// A named volume of the node, or one of the task's own.
    #[default]
    Volume,
    /// A path of the host.
    Bind,
    /// Memory.
    Tmpfs,
    /// A volume that follows the task to other nodes.
    Cluster,
    /// The files of another image.
    Image,
    /// A named pipe of Windows; means nothing on Linux.
    Npipe,
}

/// How a path of the host is mounted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BindOptions {
    /// Whether later mounts are seen on the other side; absent: rprivate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Propagation>,
    /// Leave out what is mounted below the source.
    #[serde(skip_serializing_if = "is_default")]
    pub non_recursive: bool,
    /// Make the source directory if it is not there.
    #[serde(skip_serializing_if = "is_default")]
    pub create: bool,
    /// Whether mounts below the source are read-only too; only with `readOnly`. Absent: they stay writable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only_below: Option<ReadOnlyBelow>,
}

/// Whether mounts that are made later are seen on the other side too (mount_namespaces(7)). Those that begin with `r`
/// hold for everything mounted below as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// Neither side sees what the other mounts.
    Private,
    /// As `private`, and below.
    Rprivate,
    /// Each side sees what the other mounts.
    Shared,
    /// As `shared`, and below.
    Rshared,
    /// The container sees what the host mounts, not the other way round.
    Slave,
    /// As `slave`, and below.
    Rslave,
}

/// What `readOnly` means for mounts below the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReadOnlyBelow {
    /// They stay writable.
    Writable,
    /// They are read-only, or the task does not start.
    Force,
}

/// How a volume is mounted, and what one that is made for the mount is like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeOptions {
    /// Do not fill an empty volume with what the image has at the target.
    #[serde(skip_serializing_if = "is_default")]
    pub no_copy: bool,
    /// Labels of a volume that is made for this mount.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What makes a volume that is made for this mount; absent: a directory of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// A directory inside the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
}

/// A driver and its options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct Driver {
    /// Name of the driver, such as `local`.
    #[schemars(extend("x-required" = true))]
    pub name: String,
    /// What the driver is told; their names and values are its own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// How memory is mounted as a file system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TmpfsOptions {
    /// Most bytes in it, such as `64Mi`; absent: no limit but the task's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Permission bits of its root as an octal string, such as "1777"; absent: the runtime's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// More mount options of tmpfs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub options: Vec<String>,
}

/// A Secret or Config as a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct FileReference {
    /// Name of the Secret or Config.
    #[schemars(extend("x-required" = true))]
    pub source: String,
    /// Path in the container; relative ones are below /run/secrets for secrets and below / for configs; absent: the
    /// name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default-from" = "source"))]
    pub target: Option<String>,
    /// Number of the user that the file belongs to; absent: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Number of the group that the file belongs to; absent: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Permission bits as an octal string; absent: "0444".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// Of which kind an object is that tasks see as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum FileKind {
    /// A Secret.
    Secret,
    /// A Config.
    Config,
}

impl FileKind {
    /// The kind itself.
    pub fn kind(self) -> &'static Kind {
        match self {
            Self::Secret => Secret::kind(),
            Self::Config => Config::kind(),
        }
    }

    /// The word for it, and the one for several in URLs.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Secret => ("secret", "secrets"),
            Self::Config => ("config", "configs"),
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Secret => "/run/secrets",
            Self::Config => "",
        }
    }
}

impl FileReference {
    /// Where it is in the container, as an absolute path.
    pub fn path(&self, kind: FileKind) -> String {
        let target = self.target.as_deref().unwrap_or(&self.source);
        match target.starts_with('/') {
            true => target.to_owned(),
            false => format!("{}/{target}", kind.folder()),
        }
    }

    /// Permission bits: what is said, else 0444.
    pub fn mode(&self) -> u32 {
        let said = self.mode.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok());
        said.unwrap_or(0o444)
    }
}

impl ContainerSpec {
    /// The Secrets and Configs that it sees as files, in the order in which they are said.
    pub fn files(&self) -> impl Iterator<Item = (FileKind, &FileReference)> {
        let secrets = self.secrets.iter().map(|file| (FileKind::Secret, file));
        secrets.chain(self.configs.iter().map(|file| (FileKind::Config, file)))
    }
}

/// What a process is kept from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Privileges {
    /// The process cannot gain privileges by executing a file.
    #[serde(skip_serializing_if = "is_default")]
    pub no_new_privileges: bool,
    /// Which system calls are let through; absent: the usual profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// Which profile of AppArmor holds; absent: the default one where the host has AppArmor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apparmor: Option<AppArmor>,
    /// Label of the process where the host has SELinux; absent: the runtime's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux: Option<SeLinux>,
    /// Windows account that the container runs as; means nothing on Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_spec: Option<CredentialSpec>,
}

/// Which system calls are let through.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Seccomp {
    /// Which list of system calls holds.
    pub mode: SeccompMode,
    /// The profile, in Docker's JSON format, as text; only with mode `custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// Which list of system calls holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "default"))]
pub enum SeccompMode {
    /// The usual profile: what containers need, and none that is known to lead out of them.
    #[default]
    Default,
    /// Every system call is let through.
    Unconfined,
    /// The list that `profile` has.
    Custom,
}

/// Which profile of AppArmor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AppArmor {
    /// The runtime's profile for containers.
    Default,
    /// No profile: the process is not confined by AppArmor.
    Disabled,
}

/// Label of the process under SELinux, part by part; what is absent is the runtime's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SeLinux {
    /// The process is not confined by SELinux at all.
    #[serde(skip_serializing_if = "is_default")]
    pub disabled: bool,
    /// User of the label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Role of the label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Type of the label.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Level of the label, such as `s0:c1,c2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
}

/// Where the specification of a Windows account is: exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CredentialSpec {
    /// Name of a Config that holds the specification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Name of a file in the host's directory of credential specifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Name of a value in the host's registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
}

/// Changes to the usual capabilities: names such as `NET_ADMIN`, with or without `CAP_`; `ALL` means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// Capabilities beside the usual ones. `ALL` is every one but those that `drop` names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub add: Vec<String>,
    /// Capabilities taken from the usual ones. `ALL` leaves only those that `add` names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub drop: Vec<String>,
}

/// A limit of setrlimit(2); -1 is unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct Ulimit {
    /// Which limit, as `docker run --ulimit` names it: `nofile`, `nproc`, `memlock` and others of getrlimit(2).
    #[schemars(extend("x-required" = true))]
    pub name: String,
    /// The limit that holds; the process may raise it up to `hard`. In the unit of setrlimit(2): files, processes,
    /// bytes or seconds.
    #[schemars(extend("x-required" = true), range(min = -1))]
    pub soft: i64,
    /// How far the process may raise `soft` by itself; absent: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub hard: Option<i64>,
}

/// A device of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct Device {
    /// Path on the host.
    #[schemars(extend("x-required" = true))]
    pub source: String,
    /// Path in the container; absent: as source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What the container may do with it: letters of r (read), w (write), m (make nodes); absent: all three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
}

/// What tasks may use, and what is kept for them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What a task may use at most.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// What is kept for a task on its node: a node without so much left is not chosen.
    #[serde(skip_serializing_if = "is_default")]
    pub reservations: Reservations,
}

/// What a task may use at most; the kernel holds it to that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Processor time as a number of CPUs, such as `0.5` or `500m`; at least 0.001. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Memory in bytes, such as `64Mi`; a process that needs more is killed. At least 4Mi. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Swap beside memory, in bytes; absent: as much again as `memory`. Only with `memory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Size>,
    /// How readily memory is swapped, 0 to 100; absent: the kernel's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub swappiness: Option<u8>,
    /// Processes and threads at one time, at least 1; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub pids: Option<u32>,
}

/// What is kept for a task on its node. The scheduler counts it; the kernel is told of memory,
/// which it then takes from others first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Reservations {
    /// Processors that are kept, such as `0.5` or `500m`; at least 0.001. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Memory that is kept, in bytes, such as `64Mi`; at least 4Mi. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Countable things that nodes declare, such as `gpu: 1`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub generic: BTreeMap<String, u64>,
}

/// When a task that ended is started again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestartPolicy {
    /// After which ends the task is started again.
    #[serde(skip_serializing_if = "is_default")]
    pub condition: RestartCondition,
    /// Time between the end and the next start, at most 24h. Absent: at once, then 0.5 s, doubling up to 60 s, while the
    /// task ends within 10 s of its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Period>,
    /// Restarts for a slot and template, inside `window`; then the slot stays Failed until the spec changes. 0 = no
    /// limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::RESTART_MAX_ATTEMPTS.value, "x-source" = defaults::RESTART_MAX_ATTEMPTS.source))]
    pub max_attempts: Option<u32>,
    /// Only restarts within this time count for `maxAttempts`; 0s = since ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::RESTART_WINDOW.text(), "x-source" = defaults::RESTART_WINDOW.source))]
    pub window: Option<Period>,
}

impl RestartPolicy {
    /// Restarts within the window before the task has failed for good: what is said, else the default. Zero: no limit.
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(defaults::RESTART_MAX_ATTEMPTS.value)
    }

    /// How far back restarts count: what is said, else the default. Zero: since ever.
    pub fn window(&self) -> Period {
        self.window.unwrap_or(defaults::RESTART_WINDOW.value)
    }
}

/// After which ends a task is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "any"))]
pub enum RestartCondition {
    /// After none.
    None,
    /// After every end but one with exit code 0.
    OnFailure,
    /// After every end, whatever the exit code.
    #[default]
    Any,
}

/// Where tasks may run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// All have to hold: `node.hostname == n1`, `node.labels.disk != slow`. Keys: node.id, node.hostname, node.ip,
    /// node.role, node.platform.os, node.platform.arch, node.labels.X, engine.labels.X.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub constraints: Vec<String>,
    /// Spread tasks evenly over the values of labels, the first preference first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub preferences: Vec<PlacementPreference>,
    /// Platforms that the image is for, any of which suffices; empty: any at all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub platforms: Vec<Platform>,
    /// Tasks of the service on one node; absent or 0: no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub max_replicas_per_node: u32,
}

/// One label over whose values tasks are spread evenly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct PlacementPreference {
    /// Which label: `node.labels.X` or `engine.labels.X`.
    #[schemars(extend("x-required" = true))]
    pub spread: String,
}

/// A platform; an empty field is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Platform {
    /// Operating system, as in image manifests: `linux`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub os: String,
    /// Architecture, as in image manifests: `amd64`, `arm64`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub arch: String,
}

impl Platform {
    /// Whether a machine of this platform is one of those that are meant: `amd64` and `x86_64` are one, as are `arm64` and
    /// `aarch64`.
    pub fn is(&self, machine: &Platform) -> bool {
        let arch = |arch: &str| crate::constraint::canonical_arch(arch).to_ascii_lowercase();
        (self.os.is_empty() || self.os.eq_ignore_ascii_case(&machine.os))
            && (self.arch.is_empty() || arch(&self.arch) == arch(&machine.arch))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or_any = |text: &str| if text.is_empty() { "any".to_owned() } else { text.to_owned() };
        write!(f, "{}/{}", or_any(&self.os), or_any(&self.arch))
    }
}

/// One network that tasks are attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct NetworkAttachment {
    /// Name of a Network in the same namespace.
    #[schemars(extend("x-required" = true))]
    pub name: String,
    /// More names under which the service is found in this network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub aliases: Vec<String>,
}

/// What takes the output of the tasks, and how much of it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Log {
    /// What takes the output; absent: files on the node, which `logs` reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// What the driver is told.
    #[serde(skip_serializing_if = "is_default")]
    pub options: LogOptions,
}

/// Bounds of a task's log, in the names of Docker's `json-file` driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct LogOptions {
    /// Size at which a file is closed and the next begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::LOG_MAX_SIZE.text(), "x-source" = defaults::LOG_MAX_SIZE.source))]
    pub max_size: Option<Size>,
    /// Files kept, the one being written included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("default" = defaults::LOG_MAX_FILE.value, "x-source" = defaults::LOG_MAX_FILE.source))]
    pub max_file: Option<u32>,
}

impl LogOptions {
    /// Size at which the next file is begun: what is said, else the default.
    pub fn max_size(&self) -> Size {
        self.max_size.unwrap_or(defaults::LOG_MAX_SIZE.value)
    }

    /// Files kept: what is said, else the default.
    pub fn max_file(&self) -> u32 {
        self.max_file.unwrap_or(defaults::LOG_MAX_FILE.value)
    }
}
