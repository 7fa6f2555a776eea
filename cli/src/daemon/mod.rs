//! `applyd`: the store, the API and the controllers of one machine, in one process.
//!
//! Reading order: `options` and `config` (what it can be told), this page (what is put together), `store` (where objects
//! are), `seal` (the key of secrets), `routes` and `images` (what is answered beside objects), `backup` and `restore`, `unit` (systemd).

mod answer;
pub mod backup;
pub mod config;
mod images;
mod logins;
pub mod options;
mod reset;
pub mod restore;
pub mod routes;
pub mod seal;
pub mod store;
pub mod unit;

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::io::IsTerminal;
use std::os::unix::fs::DirBuilderExt;
use std::process::{Command as Program, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{CommandFactory, Parser};
use controllers::admission::Admit;
use controllers::applied::Applied;
use controllers::cluster::{bundle, endpoints, events::Events, history, network, scheduler, service, volume};
use controllers::kinds::{Leases, kinds};
use controllers::node::containerd::{Config, Connection, Containerd, DEFAULT_NAMESPACE, Runtime};
use controllers::node::images::{ContainerdImages, Images, Options as ImageOptions, RegistryOptions};
use controllers::node::keep;
use controllers::node::links::{KernelLinks, LinkPrefix, Links};
use controllers::node::machine::{Facts, Machines};
use controllers::node::mesh::KernelMesh;
use controllers::node::mesh::controller::Meshes;
use controllers::node::surroundings::Machine;
use controllers::node::sys::heap;
use controllers::node::tasks::{NoLogins, Parts, Tasks};
use controllers::node::volumes::controller::VolumeData;
use controllers::node::volumes::{DirectoryVolumes, Volumes};
use reconciler::cache::Cache;
use reconciler::cascade;
use reconciler::controller::{Manager, Singleton};
use reconciler::external::External;
use reconciler::leadership::Election;
use reconciler::objects::encoding::Sealer;
use reconciler::objects::{Client, Objects, StoreObjects, Writer};
use reconciler::seams::Seams;
use reconciler::server::{Server, UnixSocket};
use reconciler::store::{Store, embedded};
use reconciler::{ObjectRef, Resource};
use schemas::defaults::LEASE_TTL;
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster, ClusterSpec};
use schemas::kinds::namespace::Namespace;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

use crate::usage;
use backup::Places;
use config::ConfigError;
use options::{Command, KeepOptions, LogFormat, MachineOptions, Options};
use restore::{Sealed, sealed};
use seal::KeyFile;
use store::Opened;

const ROOT: &str = "/apply";
/// Where the lease of the cluster's controllers lies.
const LEASE_NAMESPACE: &str = "apply-system";
const SNAPSHOTTER: &str = "overlayfs";

pub fn main() -> ExitCode {
    let typed: Vec<_> = std::env::args_os().collect();
    let outcome = if typed.get(1).is_some_and(|word| word == "keep") {
        run_keep(&KeepOptions::parse_from(&typed[1..]))
    } else {
        match config::read(typed.clone()) {
            Err(ConfigError::Typed(error)) => return usage::tell(Options::command(), &typed, error),
            Err(ConfigError::Faults { path, faults }) => {
                eprintln!("{}", ConfigError::Faults { path, faults });
                eprintln!("applyd: nothing was started");
                return ExitCode::from(REFUSED);
            }
            Err(error) => Err(error.into()),
            Ok(options) => match &options.command {
                None => run(&options.machine),
                Some(Command::Restore(wanted)) => run_restore(wanted),
                Some(Command::SystemdUnit) => std::env::current_exe()
                    .context("cannot find this program's own file")
                    .map(|program| print!("{}", unit::unit(&program))),
            },
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("applyd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// As applyctl's: docs/exit-codes.md.
const REFUSED: u8 = 5;

fn run_restore(wanted: &restore::Restore) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(restore::restore(wanted, &Seams::real()))?;
    println!("{done}");
    Ok(())
}

fn run_keep(keep: &KeepOptions) -> Result<()> {
    keep::run(&keep::Options {
        dir: keep.dir.clone(),
        build: keep.build.clone(),
        replace: keep.replace,
        cgroup: keep.cgroup.clone(),
    })
    .context("the companion process ended")
}

fn run(options: &MachineOptions) -> Result<()> {
    heap::one_arena();
    say_in_logs(options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

fn say_in_logs(options: &MachineOptions) -> Result<()> {
    let filter = EnvFilter::try_new(&options.log).with_context(|| format!("--log {:?}", options.log))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for whoever looks, not for files and journals.
    let logs = logs.with_ansi(std::io::stderr().is_terminal());
    match options.log_format {
        LogFormat::Json => logs.json().init(),
        LogFormat::Text => logs.init(),
    }
    Ok(())
}

async fn serve(options: &MachineOptions) -> Result<()> {
    let seams = Seams::real();
    let paths = options.paths();
    for folder in [&paths.data, &paths.run] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make {}", folder.display()))?;
    }
    if reset::begun(&paths.data) {
        tracing::info!("a reset was begun and not finished: it is finished first");
        let (lines, unheard) = mpsc::channel(1);
        drop(unheard);
        reset::everything(&machine(options, &seams)?, options, &lines).await?;
        return Ok(());
    }
    let places = Places::new(&paths.data);
    // First of all: it refuses to be opened twice, and with that everything below.
    let opened = store::open(&options.store, &places, &seams).await?;
    let store = opened.store();
    let sealer = sealer(&places, &*store).await?;
    let kinds = kinds();
    let objects = StoreObjects::open(store, ROOT, kinds.clone(), seams.clone()).await?;
    let stored = Arc::new(objects.sealed_by(sealer).admitted_by(Arc::new(Admit)));
    let objects: Arc<dyn Objects> = stored.clone();
    ensure_cluster(&objects).await?;

    let node = node_name(options)?;
    let mut machine = machine(options, &seams)?;
    machine.parts.logins = stored;
    let fenced = objects.clone();
    let manager = manager(&node, options, &machine, &objects, &kinds, &seams)?;
    let socket = options.socket();
    let listener = UnixSocket::bind(&socket).await.with_context(|| format!("cannot listen at {}", socket.display()))?;
    let extra = routes::routes(routes::Parts {
        client: routes::reader(objects.clone()),
        runtime: machine.parts.runtime.clone(),
        images: machine.parts.images.clone(),
        logins: machine.parts.logins.clone(),
        registries: machine.registries.clone(),
        paths,
    });
    let (ask, mut resets) = mpsc::channel(1);
    let copies = match &opened {
        Opened::Embedded(store) => backup::routes(store.clone(), places.clone()),
        Opened::Etcd { place, .. } => backup::refused(place, &places),
    };
    let extra = extra.merge(copies).merge(reset::routes(machine.clone(), options, ask));
    let extra = extra.layer(axum::middleware::from_fn(answer::trusted));
    let version =
        serde_json::json!({ "gitVersion": env!("CARGO_PKG_VERSION"), "platform": "linux", "store": opened.word() });
    let server =
        Server::new(objects, kinds, seams.clone()).metrics(manager.metrics().clone()).version(version).merge(extra);
    let (health, followed) = (opened.clone(), manager.cache().clone());
    let calmed = followed.clone();
    let server = server.core(Namespace::kind()).ready("store", move || match &health {
        Opened::Embedded(store) => match store.health() {
            embedded::Health::Writable => Ok(()),
            other => Err(format!("{other:?}")),
        },
        Opened::Etcd { .. } => {
            let health = followed.health();
            if health.connected { Ok(()) } else { Err(health.last_error.unwrap_or_else(|| "not reached yet".into())) }
        }
    });
    // In a file nobody else writes; in an etcd somebody may, and then one acts for the cluster, with a fence in every
    // commit.
    let election = matches!(opened, Opened::Etcd { .. }).then(|| {
        let lease = ObjectRef::new(LEASE_NAMESPACE, "controllers");
        Election::<Leases>::new(fenced, seams.clone(), "controllers", lease, &*node, LEASE_TTL.value.get())
    });

    let stop = reconciler::controller::Signal::new();
    tracing::info!(node, socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "applyd is up");
    let ended = reconciler::controller::Signal::new();
    let controllers = {
        let (stop, quiet) = (stop.clone(), ended.clone());
        async move {
            let stopped = async move { stop.raised().await };
            match &election {
                Some(election) => manager.run_elected(election, stopped).await,
                None => manager.run(stopped).await,
            }
            quiet.raise();
        }
    };
    let snapshots = {
        let stop = stop.clone();
        let (seams, policy) = (seams.clone(), places.snapshots());
        async move {
            match &opened {
                Opened::Embedded(store) => tokio::select! {
                    () = store.keep_snapshots(&seams, &policy) => {}
                    () = stop.raised() => {}
                },
                Opened::Etcd { .. } => stop.raised().await,
            }
        }
    };
    let tidied = async {
        tokio::select! {
            () = tidy_memory(&calmed, &seams) => {}
            () = stop.raised() => {}
        }
    };
    let told = async {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let asked = tokio::select! {
            _ = term.recv() => None,
            _ = int.recv() => None,
            lines = resets.recv() => lines,
        };
        if let Some(lines) = asked {
            tracing::warn!("everything of this machine is removed, as was asked for");
            stop.raise();
            ended.raised().await;
            let done = reset::everything(&machine, options, &lines).await;
            drop(lines);
            server.stop().raise();
            return done;
        }
        say_to_systemd("STOPPING=1");
        tracing::info!("told to stop: finishing what is under way; containers go on");
        stop.raise();
        server.stop().raise();
        Ok(())
    };
    say_to_systemd("READY=1");
    let ((), (), (), (), told) = tokio::join!(controllers, snapshots, tidied, server.serve(listener), told);
    told
}

/// How long nothing changes before a burst of work is taken to be over.
const CALM: Duration = Duration::from_secs(10);

/// What a burst of work has left free goes back to the kernel when it is over.
async fn tidy_memory(cache: &Cache, seams: &Seams) {
    let (mut seen, mut tidied) = (None, None);
    loop {
        seams.sleep(CALM).await;
        let now = cache.snapshot().map(|snapshot| snapshot.resource_version());
        if now == seen && now != tidied {
            heap::give_back();
            tidied = now;
        }
        seen = now;
    }
}

fn say_to_systemd(state: &str) {
    if let Err(error) = unit::notify(state) {
        tracing::warn!(%error, state, "systemd was not told");
    }
}

/// The key that opens what is sealed in the store, all of which is tried.
async fn sealer(places: &Places, store: &dyn Store) -> Result<Arc<dyn Sealer>> {
    places.tidy().with_context(|| format!("cannot make {}", places.passing().display()))?;
    let at = places.key();
    let key = KeyFile::existing(&at).with_context(|| format!("cannot read the key of secrets at {}", at.display()))?;
    let key: Option<Arc<dyn Sealer>> = key.map(|key| Arc::new(key) as Arc<dyn Sealer>);
    match (sealed(store, key.clone()).await?, key) {
        (Sealed::Open(_), Some(key)) => Ok(key),
        (Sealed::Open(_), None) => {
            let made =
                KeyFile::open(&at).with_context(|| format!("cannot make a key of secrets at {}", at.display()))?;
            Ok(Arc::new(made))
        }
        (Sealed::NoKey(count), _) => Err(anyhow!(
            "{count} values in the store are sealed, and their key is gone from {}; bring it back",
            at.display()
        )),
        (Sealed::Wrong(what), _) => {
            Err(anyhow!("the key at {} does not open {what}; bring back the right one", at.display()))
        }
    }
}

/// What a machine is made of.
#[derive(Clone)]
struct Made {
    parts: Parts,
    registries: RegistryOptions,
    volumes: Arc<dyn Volumes>,
    surroundings: Arc<Machine>,
    links: Arc<dyn Links>,
    mesh: Arc<KernelMesh>,
    prefix: LinkPrefix,
}

fn machine(options: &MachineOptions, seams: &Seams) -> Result<Made> {
    let paths = options.paths();
    let connection = Connection::new(options.containerd.clone(), DEFAULT_NAMESPACE)?;
    let config = Config {
        snapshotter: SNAPSHOTTER.to_owned(),
        oci_runtime: options.runtime.clone(),
        oci_runtime_root: options.runtime_root.clone(),
        state_dir: options.containerd_state.clone(),
        cgroup_parent: options.cgroup.clone(),
        exec_dir: paths.execs(),
    };
    let runtime: Arc<dyn Runtime> = Arc::new(Containerd::new(connection.clone(), config)?);
    let registries = RegistryOptions {
        insecure: options.insecure_registries.iter().cloned().collect::<BTreeSet<_>>(),
        ..RegistryOptions::default()
    };
    let images: Arc<dyn Images> = Arc::new(ContainerdImages::new(
        connection.clone(),
        ImageOptions { snapshotter: SNAPSHOTTER.to_owned(), registries: registries.clone() },
    ));
    let prefix = LinkPrefix::new(&options.links)
        .ok_or_else(|| anyhow!("--links {:?}: say 1 to 3 lower-case letters", options.links))?;
    let links: Arc<dyn Links> = Arc::new(KernelLinks::open(paths.namespaces(), prefix.clone(), None)?);
    let mesh = Arc::new(KernelMesh::open(&options.table, prefix.clone(), None)?);
    let volumes: Arc<dyn Volumes> = Arc::new(DirectoryVolumes::new(&paths.data, connection, SNAPSHOTTER)?);
    let surroundings = Arc::new(Machine::new(paths, links.clone(), volumes.clone(), seams));
    let parts = Parts { runtime, images, surroundings: surroundings.clone(), logins: Arc::new(NoLogins) };
    Ok(Made { parts, registries, volumes, surroundings, links, mesh, prefix })
}

fn manager(
    node: &str,
    options: &MachineOptions,
    machine: &Made,
    objects: &Arc<dyn Objects>,
    kinds: &reconciler::objects::Kinds,
    seams: &Seams,
) -> Result<Manager> {
    let facts = Facts {
        connection: Connection::new(options.containerd.clone(), DEFAULT_NAMESPACE)?,
        labels: options.labels.iter().cloned().collect(),
        apply: env!("CARGO_PKG_VERSION").to_owned(),
        runtime: said_by(options.runtime.as_deref().unwrap_or("runc"), "--version", 2),
        addresses: options.advertise.clone(),
    };
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let keep_options = keep::Options {
        dir: options.paths().keep(),
        build: build_of(&program),
        replace: false,
        cgroup: Some(format!("{}/keep", options.cgroup.trim_matches('/'))),
    };
    let companion = keep::Client::new(keep_options, move |keep| {
        let mut command = Program::new(&program);
        command.arg("keep").arg("--dir").arg(&keep.dir).arg("--build").arg(&keep.build);
        command.args(keep.replace.then_some("--replace"));
        if let Some(cgroup) = &keep.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        command
    });
    let companion = Arc::new(tokio::sync::Mutex::new(companion));
    let outputs = machine.surroundings.outputs();
    let life = External::new("companion", keep::Life::new(options.paths().keep()), seams.clone());
    let applied = Applied::default();
    Ok(Manager::builder(objects.clone(), seams.clone())
        .controller(bundle::Bundles::controller())
        .controller(service::Services::following(applied.clone()))
        .controller(scheduler::Scheduler::controller())
        .controller(volume::Volumes::controller())
        .controller(history::History::controller(history::Limits::default()))
        .controller(network::Networks::controller())
        .controller(endpoints::EndpointsController::controller())
        .controller(cascade::controller(objects.clone(), kinds, seams.clone()))
        .everywhere(Machines::controller(node, Arc::new(facts), seams))
        .everywhere(Tasks::controller(node, machine.parts.clone(), seams))
        .everywhere(VolumeData::controller(node, machine.volumes.clone(), seams))
        .everywhere(Meshes::telling(
            node,
            machine.prefix.clone(),
            machine.links.clone(),
            machine.mesh.clone(),
            applied.clone(),
            seams,
        ))
        .everywhere(
            keep::controller::Keeps::telling(node, companion, outputs, applied)
                .watches_external(&life, |_, ()| [Singleton]),
        )
        .events::<Events>(Writer::controller("events"))
        .build())
}

/// The one Cluster object, made once.
async fn ensure_cluster(objects: &Arc<dyn Objects>) -> Result<()> {
    let client = Client::new(objects.clone(), Writer::new("applyd", "init"));
    if client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await?.is_none() {
        client.create(&Cluster::new(CLUSTER_NAME, ClusterSpec::default())).await?;
    }
    Ok(())
}

/// The machine's host name, made into an object's.
fn node_name(options: &MachineOptions) -> Result<String> {
    if let Some(name) = &options.node {
        return Ok(name.clone());
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?;
    schemas::names::object_name(name.trim())
        .map_err(|error| anyhow!("the host name is no name for a node: {error}; say --node"))
}

/// Another program is another build, whatever its version says.
fn build_of(program: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let seen = std::fs::metadata(program).map(|found| (found.mtime(), found.mtime_nsec(), found.size()));
    let (seconds, nanos, size) = seen.unwrap_or_default();
    format!("{}-{seconds}.{nanos}-{size}", env!("CARGO_PKG_VERSION"))
}

/// A word of what a program says of itself; empty when it is not there.
fn said_by(program: &str, argument: &str, word: usize) -> String {
    let output = Program::new(program).arg(argument).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    line.split_whitespace().nth(word).unwrap_or_default().to_owned()
}
