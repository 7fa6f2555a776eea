//! What a task needs on its machine beside an image and a container: a network namespace with its addresses, volumes,
//! the small files that name servers and hosts are written in, pipes for its output.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use reconciler::api::{ObjectRef, Uid};
use reconciler::external::{Announced, Announcements, World};
use schemas::kinds::template::{Dns, FileKind, HostEntry};
use tokio::sync::Notify;

use super::Files;
use crate::node::containerd::ContainerId;
use crate::node::containerd::container_spec::Mount;

/// All of that on this machine.
///
/// *Guarantees*: every call may be repeated, by this process or a successor, after a crash or a dropped future at any
/// point, and ends where an undisturbed call would have.
pub trait Surroundings: Send + Sync + 'static {
    /// Tasks of which something is here.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Uid>, PrepareError>>;

    /// Everything that the container needs is there when this returns. Volumes that are not there are made, and filled
    /// with what the image has at their place. Of `files` those are asked for that the task does not have here yet: what it
    /// was given once it keeps, so that it is started again with no manager there.
    fn prepare<'a>(&'a self, place: &'a Place, files: &'a dyn Files) -> BoxFuture<'a, Result<Prepared, PrepareError>>;

    /// Nothing of the task is left but its volumes and its logs.
    fn release<'a>(&'a self, uid: &'a Uid) -> BoxFuture<'a, Result<(), PrepareError>>;

    /// How many connections others have open to the task.
    fn connections<'a>(&'a self, _uid: &'a Uid) -> BoxFuture<'a, Result<usize, PrepareError>> {
        async { Ok(0) }.boxed()
    }

    /// The logs of the task go.
    fn forget_logs<'a>(&'a self, uid: &'a Uid) -> BoxFuture<'a, Result<(), PrepareError>>;
}

/// What is wanted of [`Surroundings::prepare`].
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub uid: Uid,
    pub namespace: String,
    /// The attempt: its pipes are named after it.
    pub container: ContainerId,
    /// One for each network that the task is attached to.
    pub addresses: Vec<IpAddr>,
    /// Bytes; absent: what the links of this machine allow.
    pub mtu: Option<u16>,
    pub hostname: String,
    pub hosts: Vec<HostEntry>,
    pub dns: Dns,
    pub volumes: Vec<VolumeMount>,
    /// Secrets and Configs.
    pub files: Vec<File>,
    /// The committed snapshot that the container's layer lies upon: what volumes are filled from. Empty: no layers.
    pub image_layers: String,
}

/// A volume to be seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMount {
    /// `None`: one of the task's own, gone with it.
    pub name: Option<String>,
    /// Absolute, in the container.
    pub target: String,
    pub read_only: bool,
    /// An empty volume is filled with what the image has at the target.
    pub copy: bool,
    /// A directory inside the volume.
    pub subpath: Option<String>,
}

/// A Secret or Config to be seen in the container, which cannot write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub kind: FileKind,
    pub source: ObjectRef,
    /// Absolute, in the container.
    pub target: String,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// What a container is told about its surroundings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prepared {
    pub network_namespace: Option<PathBuf>,
    /// Volumes and small files.
    pub mounts: Vec<Mount>,
    pub stdout: Option<PathBuf>,
    pub stderr: Option<PathBuf>,
}

/// Why it could not be made so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The same will be refused again until the spec or the machine is another.
    #[error("{0}")]
    Refused(String),
    /// It may go well later.
    #[error("could not {doing}")]
    Failed { doing: String, source: Box<dyn std::error::Error + Send + Sync> },
}

impl PrepareError {
    pub fn failed(doing: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        PrepareError::Failed { doing: doing.into(), source: source.into() }
    }
}

/// Which tasks have something here, as a world that is watched. Who prepares for a task knows that itself.
pub struct Around {
    surroundings: Arc<dyn Surroundings>,
    released: Arc<Released>,
}

/// Of these nothing is here any more, which is yet to be said.
#[derive(Default)]
struct Released {
    tasks: Mutex<BTreeSet<Uid>>,
    more: Notify,
}

impl Around {
    pub(super) fn new(surroundings: Arc<dyn Surroundings>) -> Self {
        Around { surroundings, released: Arc::default() }
    }

    /// Nothing is left of what a task had here.
    pub(super) fn released(&self, uid: &Uid) {
        self.released.lock().insert(uid.clone());
        self.released.more.notify_one();
    }
}

impl Released {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Uid>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn next(&self) -> Uid {
        loop {
            let more = self.more.notified();
            if let Some(uid) = self.lock().pop_first() {
                return uid;
            }
            more.await;
        }
    }
}

impl World for Around {
    type Key = Uid;
    type Item = ();
    type Error = PrepareError;

    async fn list(&self) -> Result<Vec<(Uid, ())>, PrepareError> {
        Ok(self.surroundings.list().await?.into_iter().map(|uid| (uid, ())).collect())
    }

    /// What is released while everything is being listed is said afterwards.
    fn changes(&self) -> Option<Announcements<Self>> {
        let announced = stream::unfold(self.released.clone(), |released| async move {
            let uid = released.next().await;
            Some((Ok(Announced::Gone(uid)), released))
        });
        Some(announced.boxed())
    }
}
