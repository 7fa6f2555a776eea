//! What the node's controllers need of whatever runs containers: [`Runtime`].
//!
//! [`Containerd`](super::Containerd) is the real one; the simulator has another, which loses replies and crashes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use reconciler_api::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};

use super::container_spec::{ContainerId, ContainerSpec, Resources};
use crate::node::spec::{Refused, Signal};

/// Containers on this machine.
///
/// *Guarantees*: every call may be repeated, by the same process or a successor, after a crash or a lost reply at any
/// point, and then ends where an undisturbed call would have; what is already so is success. Two calls for one
/// container at once do no harm: one of them may fail with [`Error::Busy`] or [`Error::Unavailable`].
/// Dropping a call's future is such a lost reply.
///
/// *Assumptions*: what callers name by one [`ContainerId`] is one attempt of one task; an attempt that has ended is
/// removed, and the next one has another id.
pub trait Runtime: Send + Sync {
    /// Every container of ours, in no order. A container that appears or goes meanwhile may or may not be listed.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>>;

    /// One container as it is now; `None` if there is none, nor anything that runs under its name.
    fn inspect<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<Option<Container>, Error>>;

    /// Which containers may have changed, for as long as the stream is polled. Never ends and never fails: it says
    /// [`Change::All`] first and whenever something may have been missed. Changes that nobody takes may be lost, and
    /// are then announced by a `Change::All`.
    fn changes(&self) -> BoxStream<'static, Change>;

    /// Makes the container with a fresh writable layer of its own, up to the point where only its first instruction
    /// is missing. Adopts what a predecessor has made of it.
    ///
    /// *Errors*: [`Error::Spent`] if the attempt has run before and what is left must be removed.
    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> BoxFuture<'a, Result<(), Error>>;

    /// Lets a created container run. One that runs, or has already ended, is left alone. Says how it is then.
    fn start<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<State, Error>>;

    /// Sends a signal. To a container that has ended or is not there: success.
    fn signal<'a>(&'a self, id: &'a ContainerId, signal: Signal, to: Recipients) -> BoxFuture<'a, Result<(), Error>>;

    /// Everything of the container is gone when this returns: its processes (killed if they still run), its record,
    /// its writable layer, its cgroup, its mounts.
    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), Error>>;

    /// Runs one more program in a running container and waits for it, for health checks.
    ///
    /// At the deadline every process of it is killed, those that it has put into the background too.
    fn exec<'a>(
        &'a self,
        id: &'a ContainerId,
        exec: &'a Exec,
        bounds: ExecBounds,
    ) -> BoxFuture<'a, Result<ExecOutcome, Error>>;

    /// Runs one more program in a running container, for a person: its streams are handed out.
    fn attach_exec<'a>(&'a self, id: &'a ContainerId, exec: &'a Exec) -> BoxFuture<'a, Result<Session, Error>>;

    /// What the container uses now; `None` if it does not run.
    fn stats<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<Option<Stats>, Error>>;

    /// Changes the limits of a running container. They are not remembered: the next attempt has those of its spec.
    fn update<'a>(&'a self, id: &'a ContainerId, resources: &'a Resources) -> BoxFuture<'a, Result<(), Error>>;
}

/// A container as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: ContainerId,
    /// Those that it was created with. Empty for a container without a record (see [`Container::orphan`]).
    pub labels: BTreeMap<String, String>,
    pub state: State,
    /// Something runs, or its remains are there, under a name that nothing is recorded of: somebody has removed the
    /// record behind our back. Good for nothing but `remove`.
    pub orphan: bool,
}

/// How far a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Begun, never completed: `create` it again, or `remove` it.
    Incomplete,
    Created,
    Running {
        /// In the process namespace of this machine.
        pid: u32,
    },
    Stopped {
        /// 0 to 255; 128 + n for one that signal n has ended.
        exit_code: u32,
        exited_at: Timestamp,
        /// The kernel has killed a process of it for want of memory.
        out_of_memory: bool,
    },
    /// It was complete and may have run; nobody watches over it any more (the machine was restarted, or the shim died).
    /// How it ended, or is about to end, is unknown. `remove` it, which ends what may still run, before anything takes
    /// its place.
    Gone,
    /// Whoever knows did not answer. Neither running nor stopped may be concluded from this; ask again.
    Unknown,
}

/// What [`Runtime::changes`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Look at everything.
    All,
    /// Look at this one.
    One(ContainerId),
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipients {
    FirstProcess,
    EveryProcess,
}

/// A further program in a container. What is not said is as for the container's own process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    pub args: Vec<String>,
    /// `NAME=value` sets, `NAME` alone removes.
    pub env: Vec<String>,
    pub working_dir: Option<String>,
    /// `user[:group]`, names from the image or numbers.
    pub user: Option<String>,
    pub tty: bool,
}

/// How long an exec may take and how much it may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecBounds {
    pub deadline: Duration,
    /// The first so many bytes are kept; what is said beyond is read and dropped, so that nothing blocks.
    pub output_bytes_max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutcome {
    pub end: ExecEnd,
    /// Standard output and error together; in what order the two were written is not known.
    pub output: Vec<u8>,
    /// There was more than `output_bytes_max`.
    pub truncated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// 0 to 255; 128 + n for one that signal n has ended.
    Exited { code: u32 },
    /// The deadline passed and everything of it was killed.
    TimedOut,
}

/// A running exec and its streams. Dropping it kills everything of the exec.
pub struct Session {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// `None` with a tty, where both arrive as one.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub control: Box<dyn SessionControl>,
}

/// What else can be done to a running exec.
pub trait SessionControl: Send + Sync {
    /// Without a tty: success.
    fn resize(&self, columns: u32, rows: u32) -> BoxFuture<'_, Result<(), Error>>;
    /// The program's input ends here. Drop [`Session::stdin`] first.
    fn close_stdin(&self) -> BoxFuture<'_, Result<(), Error>>;
    fn signal(&self, signal: Signal) -> BoxFuture<'_, Result<(), Error>>;
    /// Resolves to the exit code once the program has ended. Read the streams to their ends as well.
    fn wait(&self) -> BoxFuture<'_, Result<u32, Error>>;
}

/// Use of the machine, as the kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Without the part of the page cache that could go at once, as `docker stats` has it.
    pub memory_bytes: u64,
    /// `None`: no limit.
    pub memory_bytes_max: Option<u64>,
    /// Since the start.
    pub cpu_time: Duration,
    /// How long it was held back by its CPU limit.
    pub cpu_throttled: Duration,
    pub pids: u64,
}

/// Why a call did not do what it says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answered, or not in time, or could not do it just now for reasons of its own. Try again later.
    #[error("containerd cannot {doing} now")]
    Unavailable { doing: String, source: Cause },
    /// Another call is at the same container, or has died while it was: try again soon. If it stays so for some
    /// seconds, `remove` what it has left.
    #[error("cannot {doing} now: another call is at it")]
    Busy { doing: String },
    /// The same request will be refused again: the spec is at fault.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nothing that can be done to this container, as it is not there or not in the state for it.
    #[error("cannot {doing}: not there")]
    Absent { doing: String },
    /// The image is not unpacked on this machine, or no longer: pull it again.
    #[error("the layers of image {image} are not there")]
    NoImage { image: String },
    /// The attempt has run; remove it and make another.
    #[error("container {id} has run before")]
    Spent { id: ContainerId },
    /// The name is taken by a container that is not ours.
    #[error("a container named {id} is there, but was not made by us")]
    Foreign { id: ContainerId },
    /// The runtime tried and failed; the message is its own, in its words.
    #[error("cannot {doing}: {message}")]
    Failed { doing: String, message: String },
}

/// What lies under an [`Error`], whatever the runtime is made of.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;
