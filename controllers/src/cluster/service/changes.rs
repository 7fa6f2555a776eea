//! What a plan may ask for, and why, in words.

use std::fmt;
use std::sync::Arc;

use schemas::kinds::task::{Slot, Task};

use crate::cluster::revisions;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    Revision(revisions::Change),
    CreateTask {
        slot: Slot,
        name: String,
        revision: String,
        because: CreateReason,
        in_place_of: Option<String>,
    },
    /// Out of the mesh, still serving.
    Leave {
        task: Arc<Task>,
        because: StopReason,
    },
    Stop {
        task: Arc<Task>,
        because: StopReason,
    },
    /// Its record is no longer of use.
    Forget {
        task: Arc<Task>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CreateReason {
    EmptySlot,
    Replaced,
    Rejected,
    NodeLost,
    /// It takes the place of one that serves until then.
    Beside,
    Moved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopReason {
    ScaledDown,
    NewRevision,
    NodeDrained,
    NodeRemoved,
    Rejected,
    OutOfMesh,
    /// Some machine did not say in time that it is.
    MeshLags,
    Duplicate,
    /// Another one on another node serves in its place.
    Moved,
}

impl CreateReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmptySlot => "EmptySlot",
            Self::Replaced => "Replaced",
            Self::Rejected => "RetryAfterRejection",
            Self::NodeLost => "NodeLost",
            Self::Beside => "StartFirst",
            Self::Moved => "Moved",
        }
    }

    /// Behind the slot, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::EmptySlot => "",
            Self::Replaced => ": in place of the one before",
            Self::Rejected => ": the one before could not be started",
            Self::NodeLost => ": the node of the one before is lost",
            Self::Beside => ": beside the one that it is to replace",
            Self::Moved => ": on another node, beside the one that it is to replace",
        }
    }
}

impl StopReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ScaledDown => "ScaledDown",
            Self::NewRevision => "NewRevision",
            Self::Rejected => "Rejected",
            Self::OutOfMesh => "OutOfMesh",
            Self::NodeDrained => "NodeDrained",
            Self::NodeRemoved => "NodeRemoved",
            Self::MeshLags => "MeshLags",
            Self::Duplicate => "Duplicate",
            Self::Moved => "Moved",
        }
    }

    /// The same for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::ScaledDown => "no longer wanted",
            Self::NewRevision => "a new revision takes its place",
            Self::NodeDrained => "its node is drained",
            Self::NodeRemoved => "its node was removed",
            Self::Rejected => "it could not be started",
            Self::OutOfMesh => "nobody is sent to it any more",
            Self::MeshLags => "some machine may still send to it, and is not waited for any longer",
            Self::Duplicate => "another task is in its slot",
            Self::Moved => "another one serves in its place",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revision(change) => change.fmt(f),
            Self::CreateTask { slot, because, .. } => write!(f, "create {slot} ({})", because.as_str()),
            Self::Leave { task, because } => write!(f, "leave {} ({})", task.spec.slot, because.as_str()),
            Self::Stop { task, because } => write!(f, "stop {} ({})", task.spec.slot, because.as_str()),
            Self::Forget { task } => write!(f, "forget {}", task.spec.slot),
        }
    }
}
