//! Execution: containers through containerd's gRPC API, versions 1.6 to 2.1, with runc or crun.
//!
//! [`Runtime`] is what the node's controllers need, [`Containerd`] the real one. What exists is recorded in three
//! places, none of them ours: containerd's database (the container's record with our labels, its snapshot), the shim
//! (the task), and the kernel (the cgroup, the processes). All of it is named by the [`ContainerId`], so that a
//! successor that knows nothing finds what a dead predecessor made.
//!
//! The order of creation keeps every crash harmless: first the record, which keeps containerd's garbage collector from
//! the layer that it names; then the layer; then the task; last a label on the record that the task was complete. So
//! a record without a task is either incomplete (no label: go on) or an attempt that has run (label: never again).
//! Removal goes the other way: task, then layer and record; what the kernel still shows after that is killed.
//!
//! Reading order: [`runtime`] (the interface), [`container_spec`] (what is wanted), [`connection`], `create`, `look`
//! (list and inspect), `changes`, `remove`, `leftovers` (what containerd has lost sight of), `exec`, `stats`.

mod changes;
pub mod connection;
pub mod container_spec;
mod create;
mod exec;
pub(super) mod failure;
mod leftovers;
mod look;
mod messages;
mod remove;
mod rootfs;
pub mod runtime;
mod stats;

pub use connection::{Connection, DEFAULT_NAMESPACE};
pub use container_spec::{ContainerId, ContainerSpec, ImageRoot};
pub use runtime::{Change, Container, Error, Runtime, State};

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::BoxStream;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::task::TaskTracker;

use crate::node::spec::{Accounts, Host, Signal};
use crate::node::sys::cgroup::Cgroups;
use container_spec::Resources;
use runtime::{Exec, ExecBounds, ExecOutcome, Recipients, Session, Stats};

/// How containers are run on this machine; the same for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Default `overlayfs`. The images must have been unpacked with it.
    pub snapshotter: String,
    /// The OCI runtime's executable, by name or path. Default `runc`.
    pub oci_runtime: Option<String>,
    /// Where the OCI runtime keeps its state. Default `/run/containerd/runc`, as containerd has it; a second containerd
    /// on one machine needs another.
    pub oci_runtime_root: PathBuf,
    /// containerd's own state directory. Default `/run/containerd`.
    pub state_dir: PathBuf,
    /// The group that the containers' own groups are made in. Default `/apply`.
    pub cgroup_parent: String,
    /// Where the pipes of execs are made: on a tmpfs, ours alone. Default `/run/apply/exec`.
    pub exec_dir: PathBuf,
}

/// Containers by way of containerd.
#[derive(Clone)]
pub struct Containerd {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    config: Config,
    cgroups: Cgroups,
    host: Host,
    /// Users and groups of images, by the key of their topmost layer, which never changes. A cache.
    accounts: Mutex<HashMap<String, Arc<OnceCell<Arc<Accounts>>>>>,
    /// Turns at having a runtime make a container.
    creations: Semaphore,
    exec_prefix: String,
    exec_count: AtomicU64,
    /// Clean-ups of execs whose caller went away.
    leftovers: TaskTracker,
}

/// On every record of ours: the digest of its spec.
const LABEL_SPEC: &str = "apply/containerd.spec";
/// On a record whose task was complete once.
const LABEL_COMPLETE: &str = "apply/containerd.complete";
/// The shim that runs runc and everything that takes runc's arguments.
const SHIM: &str = "io.containerd.runc.v2";
/// For what containerd answers from its database or from a running shim; measured 0.2 to 5 ms, 150 under load.
const QUICK: Duration = Duration::from_secs(10);
/// For what starts or ends processes; measured 20 to 80 ms alone, 3 s with a hundred at once on two cores.
const SLOW: Duration = Duration::from_secs(60);

/// Containers that are made at once, for each processor: it is work of the processor most of the time, and with many more at
/// once each takes longer than it would in turn. A hundred with runc on two processors, by nothing but calls of
/// containerd: 3.4 s with 4 at once, 3.7 to 4.0 with all.
const CREATIONS_A_CPU: usize = 4;
/// For a turn: some that hang must not keep all others.
const TURN_WITHIN: Duration = Duration::from_secs(5);

impl Default for Config {
    fn default() -> Self {
        Config {
            snapshotter: "overlayfs".to_owned(),
            oci_runtime: None,
            oci_runtime_root: PathBuf::from("/run/containerd/runc"),
            state_dir: PathBuf::from("/run/containerd"),
            cgroup_parent: "/apply".to_owned(),
            exec_dir: PathBuf::from("/run/apply/exec"),
        }
    }
}

impl Containerd {
    /// Looks at the kernel, not at containerd, which need not be there yet. Fails if `/proc` cannot be read.
    pub fn new(connection: Connection, config: Config) -> io::Result<Self> {
        let cgroups = Cgroups::of_machine()?;
        let host = Host {
            unified_cgroups: cgroups.unified(),
            accounts_swap: cgroups.accounts_swap(),
            arch: std::env::consts::ARCH,
        };
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let exec_prefix = random.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let shared = Shared {
            connection,
            config,
            cgroups,
            host,
            accounts: Mutex::default(),
            creations: Semaphore::new(CREATIONS_A_CPU * thread::available_parallelism().map_or(1, NonZero::get)),
            exec_prefix,
            exec_count: AtomicU64::new(0),
            leftovers: TaskTracker::new(),
        };
        Ok(Containerd { shared: Arc::new(shared) })
    }

    /// Ends what a predecessor has left behind beside containers: execs nobody waits for any more, and groups of
    /// processes that containerd knows nothing of. Called once, before anything is created.
    pub async fn sweep(&self) -> Result<(), Error> {
        self.shared.reap_execs().await?;
        self.shared.reap_strays().await
    }

    /// Waits for the clean-ups of execs that are still going on.
    pub async fn drain(&self) {
        self.shared.leftovers.close();
        self.shared.leftovers.wait().await;
        self.shared.leftovers.reopen();
    }

    pub fn connection(&self) -> &Connection {
        &self.shared.connection
    }
}

impl Runtime for Containerd {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>> {
        self.shared.list().boxed()
    }

    fn inspect<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<Option<Container>, Error>> {
        self.shared.inspect(id).boxed()
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        changes::changes(self.shared.connection.clone())
    }

    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> BoxFuture<'a, Result<(), Error>> {
        self.shared.create(spec).boxed()
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<State, Error>> {
        self.shared.start(id).boxed()
    }

    fn signal<'a>(&'a self, id: &'a ContainerId, signal: Signal, to: Recipients) -> BoxFuture<'a, Result<(), Error>> {
        self.shared.signal(id, signal, to).boxed()
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), Error>> {
        self.shared.remove(id).boxed()
    }

    fn exec<'a>(
        &'a self,
        id: &'a ContainerId,
        exec: &'a Exec,
        bounds: ExecBounds,
    ) -> BoxFuture<'a, Result<ExecOutcome, Error>> {
        exec::run(&self.shared, id, exec, bounds).boxed()
    }

    fn attach_exec<'a>(&'a self, id: &'a ContainerId, exec: &'a Exec) -> BoxFuture<'a, Result<Session, Error>> {
        exec::attach(&self.shared, id, exec).boxed()
    }

    fn stats<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<Option<Stats>, Error>> {
        self.shared.stats(id).boxed()
    }

    fn update<'a>(&'a self, id: &'a ContainerId, resources: &'a Resources) -> BoxFuture<'a, Result<(), Error>> {
        self.shared.update(id, resources).boxed()
    }
}

impl Shared {
    fn quick(&self) -> Connection {
        self.connection.within(QUICK)
    }

    fn slow(&self) -> Connection {
        self.connection.within(SLOW)
    }

    /// The container's group, from the root of each hierarchy.
    fn cgroup(&self, id: &ContainerId) -> String {
        format!("{}/{id}", self.config.cgroup_parent.trim_end_matches('/'))
    }
}
