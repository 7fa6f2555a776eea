//! Service: so many tasks of one template, kept alive, updated with care and reachable under one name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use reconciler_api::{Conditions, Resource, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;
use crate::defaults;
use crate::quantity::Period;

pub use super::template::*;

/// A condition of every Service that publishes ports: whether clients reach it there. `False` says in its message which
/// port or firewall is in the way and who holds it, and one of [`reasons`]; it is `True` again when that is gone. Absent
/// while the service publishes nothing. A deploy that meets it `False` cannot come to its end as things are.
pub const PUBLISHED: &str = "Published";

/// A condition of every Service whose tasks see Secrets or Configs: whether these are there. While it is `False` the
/// service stays as it was, and its message says what is missing. Absent where nothing is seen.
pub const FILES_THERE: &str = "FilesThere";

/// Reasons of the conditions [`PUBLISHED`] and [`FILES_THERE`].
pub mod reasons {
    /// Every Secret and Config is there.
    pub const ALL_THERE: &str = "AllThere";
    /// One or more are not.
    pub const MISSING: &str = "Missing";
    /// Every port is open on every machine.
    pub const OPEN: &str = "Open";
    /// A process of a machine listens on the port. There the port stays the process's.
    pub const PORT_TAKEN: &str = "PortTaken";
    /// Another service publishes the port; the message names it. Whoever had it first keeps it.
    pub const PORT_OF_ANOTHER_SERVICE: &str = "PortOfAnotherService";
    /// A firewall that is not ours drops what comes to tasks.
    pub const FIREWALL: &str = "FirewallInTheWay";
}

/// A service: tasks of one template, kept alive and reachable under one name.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", kind = "Service", status = ServiceStatus, short("svc"), validate = crate::validate::service,
    column("MODE", "/spec/mode"), column("RUNNING", "/status/running"), column("DESIRED", "/status/desired"),
    column("IMAGE", "/spec/template/container/image"), wide_column("REVISION", "/status/revision")
)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Labels of the service. Changing them replaces no task; those of the containers are
    /// `template.container.labels`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What each task is. A change of it replaces the tasks.
    pub template: TaskTemplate,
    /// How the number of tasks is found. Never changes.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// How many tasks there are; only in mode `replicated`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::REPLICAS.value, "x-source" = defaults::REPLICAS.source))]
    pub replicas: Option<u32>,
    /// What runs to its end; only in the modes `replicated-job` and `global-job`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// How tasks of the old template give way to those of the new one.
    #[serde(skip_serializing_if = "is_default")]
    pub update: UpdatePolicy,
    /// The same for going back to the template before.
    #[serde(skip_serializing_if = "is_default")]
    pub rollback: UpdatePolicy,
    /// Under which address and ports the service is reached.
    #[serde(skip_serializing_if = "is_default")]
    pub endpoint: Endpoint,
    /// What becomes of tasks whose node is lost: `replace`, `keep`, or how long the node is waited for (`10m`). A node that
    /// was lost is waited for anew when another manager begins to lead.
    #[cfg_attr(not(feature = "previous"), serde(skip_serializing_if = "is_default"))]
    #[cfg_attr(feature = "previous", serde(skip))]
    pub on_disconnect: OnDisconnect,
    /// How long a task that leaves goes on serving connections that it has, after it is out of the mesh and before it
    /// is told to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::DRAIN.text(), "x-source" = defaults::DRAIN.source))]
    pub drain: Option<Period>,
}

impl ServiceSpec {
    /// Tasks wanted in mode `replicated`.
    pub fn replicas(&self) -> u32 {
        self.replicas.unwrap_or(defaults::REPLICAS.value)
    }

    /// How long a leaving task goes on serving: what is said, else the default.
    pub fn drain(&self) -> Period {
        self.drain.unwrap_or(defaults::DRAIN.value)
    }

    /// Names of the volumes that its tasks mount; one that is mounted twice comes twice.
    pub fn named_volumes(&self) -> impl Iterator<Item = &str> {
        let mounts = self.template.container.mounts.iter().filter(|mount| mount.kind == MountType::Volume);
        mounts.filter_map(|mount| mount.source.as_deref())
    }
}

/// How the number of tasks is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "replicated"))]
pub enum Mode {
    /// As many as `replicas` says, wherever they fit.
    #[default]
    Replicated,
    /// One on each node that fits.
    Global,
    /// As many completed runs as `job.completions` says.
    ReplicatedJob,
    /// One completed run on each node that fits.
    GlobalJob,
}

impl Mode {
    /// Whether tasks run to their end, and a new one follows only when the job asks for it.
    pub fn is_job(self) -> bool {
        matches!(self, Self::ReplicatedJob | Self::GlobalJob)
    }
}

/// What runs to its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Job {
    /// Runs that have to end well; absent: as many as `concurrent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completions: Option<u32>,
    /// Runs at one time, at least 1; absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
    /// When to start anew, in cron's five fields, in UTC (`0 3 * * *`); absent: once for each change of the template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// What happens when it is time and the run before still goes on.
    #[serde(skip_serializing_if = "is_default")]
    pub overlap: JobOverlap,
}

/// What happens when a run is due and the one before still goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "skip"))]
pub enum JobOverlap {
    /// The new run is left out.
    #[default]
    Skip,
    /// Both run.
    Allow,
    /// The old run is stopped.
    Replace,
}

/// How tasks of one template give way to those of another. Each field has its own default: naming one changes no other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdatePolicy {
    /// Tasks in a batch; 0 = all at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::UPDATE_PARALLELISM.value, "x-source" = defaults::UPDATE_PARALLELISM.source))]
    pub parallelism: Option<u32>,
    /// Pause between a batch that is healthy and in the mesh, and the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::UPDATE_DELAY.text(), "x-source" = defaults::UPDATE_DELAY.source))]
    pub delay: Option<Period>,
    /// What happens when more tasks fail than `maxFailureRatio` allows.
    #[serde(skip_serializing_if = "is_default")]
    pub failure_action: FailureAction,
    /// How long each new task is watched after it runs; a failure meanwhile counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::UPDATE_MONITOR.text(), "x-source" = defaults::UPDATE_MONITOR.source))]
    pub monitor: Option<Period>,
    /// The part of the tasks, 0 to 1, that may fail without `failureAction`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1), extend("default" = defaults::UPDATE_MAX_FAILURE_RATIO.value, "x-source" = defaults::UPDATE_MAX_FAILURE_RATIO.source))]
    pub max_failure_ratio: Option<f64>,
    /// Whether the old task stops before the new one starts, or after.
    #[serde(skip_serializing_if = "is_default")]
    pub order: UpdateOrder,
    /// How long a batch has to have been healthy before the next begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = defaults::UPDATE_MIN_READY.text(), "x-source" = defaults::UPDATE_MIN_READY.source))]
    pub min_ready: Option<Period>,
}

impl UpdatePolicy {
    /// Tasks in a batch: what is said, else the default. Zero: all at once.
    pub fn parallelism(&self) -> u32 {
        self.parallelism.unwrap_or(defaults::UPDATE_PARALLELISM.value)
    }

    /// Pause between two batches: what is said, else the default.
    pub fn delay(&self) -> Period {
        self.delay.unwrap_or(defaults::UPDATE_DELAY.value)
    }

    /// How long each new task is watched: what is said, else the default.
    pub fn monitor(&self) -> Period {
        self.monitor.unwrap_or(defaults::UPDATE_MONITOR.value)
    }

    /// The part of the tasks, 0 to 1, that may fail: what is said, else the default.
    pub fn max_failure_ratio(&self) -> f64 {
        self.max_failure_ratio.unwrap_or(defaults::UPDATE_MAX_FAILURE_RATIO.value)
    }

    /// How long a batch has to have been healthy: what is said, else the default.
    pub fn min_ready(&self) -> Period {
        self.min_ready.unwrap_or(defaults::UPDATE_MIN_READY.value)
    }
}

/// What happens when more tasks of an update fail than are allowed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "pause"))]
pub enum FailureAction {
    /// Stop here and say so.
    #[default]
    Pause,
    /// Go on.
    Continue,
    /// Go back to the template before.
    Rollback,
}

/// Which of the two tasks of a slot is there first while one replaces the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "stop-first"))]
pub enum UpdateOrder {
    /// The old task stops, then the new one starts: never two at once, and a moment with none.
    #[default]
    StopFirst,
    /// The new task starts, and once it runs the old one stops: never none, and a moment with two.
    StartFirst,
}

/// Under which address and ports a service is reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// What the service's name resolves to.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: EndpointMode,
    /// Ports that are open to the outside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["protocol", "target", "published"]))]
    pub ports: Vec<PublishedPort>,
}

/// What the name of a service resolves to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "vip"))]
pub enum EndpointMode {
    /// One virtual address, shared out among the tasks.
    #[default]
    Vip,
    /// The addresses of all tasks.
    Dnsrr,
}

/// One port that is open to the outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = super::require)]
pub struct PublishedPort {
    /// A word for people who read the list; nothing goes by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is spoken on the port.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// The port that the container listens on.
    #[schemars(extend("x-required" = true), range(min = 1, max = 65535), extend("format" = "port"))]
    pub target: u16,
    /// The port on the machines; absent: one is allocated from 30000 to 32767 and kept while the entry stays. Mode
    /// `host` without it takes any free one on each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535), extend("format" = "port"))]
    pub published: Option<u16>,
    /// Whether every machine answers on the port, or only those that run a task.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: PublishMode,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "tcp"))]
pub enum Protocol {
    /// A stream of bytes (RFC 9293).
    #[default]
    Tcp,
    /// Datagrams (RFC 768).
    Udp,
    /// Streams of messages (RFC 9260).
    Sctp,
}

impl Protocol {
    /// As in JSON and in nftables: `tcp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which machines answer on a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "ingress"))]
pub enum PublishMode {
    /// Every machine answers and passes on to some task.
    #[default]
    Ingress,
    /// Only machines with a task answer, with that task.
    Host,
}

/// What becomes of tasks whose node is lost: a word, or how long it is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDisconnect {
    /// `replace`: they are replaced on other nodes as soon as the node counts as lost.
    #[default]
    Replace,
    /// `keep`: they stay what they are until the node is back or removed: for what must not run twice.
    Keep,
    /// `10m`: they stay so for that long, and are replaced then: for machines with bad links. One that is to be updated is
    /// not waited for.
    After(Period),
}

impl OnDisconnect {
    /// Whether tasks still wait for a node that has been lost for so long.
    pub fn waits(self, lost_for: Duration) -> bool {
        match self {
            Self::Replace => false,
            Self::Keep => true,
            Self::After(period) => lost_for < period.get(),
        }
    }
}

impl FromStr for OnDisconnect {
    type Err = BadOnDisconnect;

    fn from_str(text: &str) -> Result<Self, BadOnDisconnect> {
        match text {
            "replace" => Ok(Self::Replace),
            "keep" => Ok(Self::Keep),
            _ => text.parse().map(Self::After).map_err(|_| BadOnDisconnect(text.chars().take(100).collect())),
        }
    }
}

/// A text that says nothing of the kind; reads after its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not replace, keep or a duration, such as 10m")]
pub struct BadOnDisconnect(String);

impl fmt::Display for OnDisconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace => f.write_str("replace"),
            Self::Keep => f.write_str("keep"),
            Self::After(period) => period.fmt(f),
        }
    }
}

impl Serialize for OnDisconnect {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OnDisconnect {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for OnDisconnect {
    fn schema_name() -> Cow<'static, str> {
        "OnDisconnect".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let pattern = "^(replace|keep|[0-9.]+(h|m|s|ms|us|ns)([0-9.]+(h|m|s|ms|us|ns))*|0)$";
        schemars::json_schema!({"type": "string", "pattern": pattern, "default": "replace", "examples": ["10m"]})
    }

    fn inline_schema() -> bool {
        true
    }
}

/// What is observed of a service. Written by the service controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// The generation of the spec that this status speaks of.
    pub observed_generation: i64,
    /// Tasks that there should be.
    pub desired: u32,
    /// Tasks that run (and are healthy, where there is a check).
    pub running: u32,
    /// Running tasks of the wanted revision.
    pub updated: u32,
    /// Runs of a job that ended well.
    #[serde(skip_serializing_if = "is_default")]
    pub completed: u32,
    /// The Revision that is wanted now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The Revision wanted before, which `rollback` goes back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_revision: Option<String>,
    /// The wish to have tasks spread evenly (annotation `apply/rebalance`) that was fulfilled last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebalanced: Option<String>,
    /// The update that goes on, or the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateStatus>,
    /// Ports as they are open, allocated ones included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// `Ready`, `Published` and others, with their reasons; absent means Unknown.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}

/// How far an update has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateStatus {
    /// Where the update stands.
    pub state: UpdateState,
    /// When its first task was replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it came to its end; absent while it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// What it waits for, or why it stopped.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Docker's states of an update, in our spelling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Updating"))]
pub enum UpdateState {
    /// Tasks are being replaced.
    #[default]
    Updating,
    /// Too many tasks failed: nothing more is replaced until the spec changes.
    Paused,
    /// Every task is of the wanted revision.
    Completed,
    /// Too many tasks failed: the tasks before are coming back.
    RollbackStarted,
    /// Too many tasks failed on the way back too: nothing more is replaced.
    RollbackPaused,
    /// The tasks before are back.
    RollbackCompleted,
}
