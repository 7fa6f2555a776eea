//! Task: one attempt after another to keep one slot of a service alive, on one node.

use std::fmt;

use reconciler_api::{Conditions, Resource, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::endpoints::TaskAddress;
use super::is_default;
use super::template::NetworkAttachment;

/// On every task that has a node: it stays in the store until that node is rid of it.
pub const NODE_FINALIZER: &str = "apply/node";

/// The reason of a task whose image cannot be had: for good when it is Rejected, else it is tried again and again.
pub const IMAGE_UNAVAILABLE: &str = "ImageUnavailable";

/// The reason of an attempt that ended while nobody watched: with its machine, for the most part.
pub const LOST: &str = "Lost";

/// The reason of a task that does not start before a volume of its is there, or gone. Such a task holds no volume.
pub const WAITING_FOR_VOLUME: &str = "WaitingForVolume";

/// The reason of a task that does not start before its network is there and has an address for it.
pub const WAITING_FOR_ADDRESS: &str = "WaitingForAddress";

/// One task of a service. The service controller writes its spec, the scheduler `nodeName` once, its node the status.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", kind = "Task", status = TaskStatus, unmanaged,
    column("SERVICE", "/spec/service"), column("SLOT", "/spec/slot"), column("NODE", "/spec/nodeName"),
    column("DESIRED", "/spec/desired"), column("STATE", "/status/state"), column("WHY", "/status/message"),
    wide_column("REVISION", "/spec/revision"), wide_column("CONTAINER", "/status/containerId")
)]
#[serde(rename_all = "camelCase")]
pub struct TaskSpec {
    /// Name of the Service that the task belongs to, in the same namespace.
    pub service: String,
    /// Name of the Revision that holds the template.
    pub revision: String,
    /// Number of the slot, from 1; for global services the name of the node.
    pub slot: Slot,
    /// Name of the Node that it runs on; set once by the scheduler, and never again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// How far the task should be, written by the service controller; its node does the rest.
    #[serde(default)]
    pub desired: DesiredState,
    /// Networks, by the names of their objects, with the names that the task answers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkAttachment>,
    /// Name of the Task of its slot that it takes the place of once it serves; until then both are there. Absent: its slot
    /// was empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_place_of: Option<String>,
}

/// Which of a service's places a task fills.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Slot {
    /// Of a replicated service: from 1 to the number of replicas.
    Number(u32),
    /// Of a global service: the name of the node, one task on each.
    Node(String),
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Node(node) => f.write_str(node),
        }
    }
}

/// What a task should be. Ordered: it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Running"))]
pub enum DesiredState {
    /// Image and network there, not started.
    Ready,
    /// Started, healthy and in the mesh.
    #[default]
    Running,
    /// Out of the mesh, still serving.
    Leaving,
    /// Ended, and its container gone.
    Stopped,
}

/// What a task is. Ordered: within one attempt it only grows; a restart in place goes back to `Starting`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "New"))]
pub enum TaskState {
    /// Made, and not seen by the scheduler yet.
    #[default]
    New,
    /// Waits for a node that fits.
    Pending,
    /// Has a node, which has not begun.
    Assigned,
    /// Image, volumes, network.
    Preparing,
    /// Could start.
    Ready,
    /// Started, not yet healthy; or waiting to be started again.
    Starting,
    /// Started; and healthy, where there is a check.
    Running,
    /// Was asked to end and has not yet.
    Stopping,
    /// Ended well.
    Complete,
    /// Ended by itself with another exit code than 0, or was ended because its check failed, and is not started again.
    Failed,
    /// Could not be started at all.
    Rejected,
    /// Its node was removed.
    Orphaned,
}

impl TaskState {
    /// Nothing of it runs any more, and nothing will.
    pub fn is_terminal(self) -> bool {
        self >= Self::Complete
    }

    /// As in JSON: `Running`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "New",
            Self::Pending => "Pending",
            Self::Assigned => "Assigned",
            Self::Preparing => "Preparing",
            Self::Ready => "Ready",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
            Self::Rejected => "Rejected",
            Self::Orphaned => "Orphaned",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is observed of a task. Written by the scheduler up to `Assigned`, then by its node alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskStatus {
    /// The `metadata.generation` that this status speaks of.
    pub observed_generation: i64,
    /// What the task is now.
    pub state: TaskState,
    /// One CamelCase word for programs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A sentence for people: what it waits for, or why it ended.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When `state` last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The last five attempts, oldest first; the running one is the last. Up to 50 where `restart.window` has to count
    /// that many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["number"]))]
    pub attempts: Vec<Attempt>,
    /// Starts in place after the first one, over the whole life of the task.
    #[serde(skip_serializing_if = "is_default")]
    pub restarts: u32,
    /// When the next attempt starts, while one waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// Addresses in its networks, given by its node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<TaskAddress>,
    /// Ports of mode `host` as they are open on the node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<super::service::PublishedPort>,
    /// The running container's, in containerd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// Process id of the container's first process, as the node sees it; absent while none runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Digest of the image that it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// The last answer of the health check; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// How much of the image is there, while it is pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullProgress>,
    /// What is true of the task beside its state; absent means Unknown.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}

/// One start of a container and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Attempt {
    /// Counted over the life of the task, from 1.
    pub number: u32,
    /// When its container was started, by the node's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When its container ended; absent while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// 128 + n for the signal n; absent while it runs, or when it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// One CamelCase word: `Exited`, `OutOfMemory`, `Unhealthy`, …; empty while it runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A sentence for people: how it ended; empty while it runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What a health check last said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthStatus {
    /// False until the first success, and after too many failures in a row.
    pub healthy: bool,
    /// Failures in a row.
    #[serde(skip_serializing_if = "is_default")]
    pub failures: u32,
    /// The end of the last run's output.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// How much of an image is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PullProgress {
    /// Bytes of compressed layers that are there.
    pub done_bytes: u64,
    /// Bytes of all layers; 0 until the manifest is known.
    pub total_bytes: u64,
}
