//! The machine that applyd runs on: what it acts through, and the controllers of its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command as Program;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use controllers::applied::Applied;
use controllers::node::containerd::{Config, Connection, Containerd, DEFAULT_NAMESPACE, Runtime};
use controllers::node::identity::{Identities, Identity};
use controllers::node::images::{ContainerdImages, Images, Options as ImageOptions, RegistryOptions};
use controllers::node::keep;
use controllers::node::links::{KernelLinks, LinkPrefix, Links};
use controllers::node::machine::{Facts, Machines};
use controllers::node::mesh::KernelMesh;
use controllers::node::mesh::controller::Meshes;
use controllers::node::surroundings::{Machine, Paths};
use controllers::node::tasks::{NoFiles, NoLogins, Parts, Tasks};
use controllers::node::volumes::controller::VolumeData;
use controllers::node::volumes::{DirectoryVolumes, Volumes};
use controllers::node::wireguard::RingFile;
use controllers::node::wireguard::controller::{Keys, Ring, Speaking};
use reconciler::controller::{ManagerBuilder, Singleton};
use reconciler::external::External;
use reconciler::objects::Objects;
use reconciler::seams::Seams;

use super::calls::Calls;
use super::options::MachineOptions;
use super::routes;
use schemas::level::VERSION;

const SNAPSHOTTER: &str = "overlayfs";

/// What a machine is made of.
#[derive(Clone)]
pub(super) struct Made {
    pub parts: Parts,
    pub registries: RegistryOptions,
    pub volumes: Arc<dyn Volumes>,
    pub surroundings: Arc<Machine>,
    pub links: Arc<dyn Links>,
    pub mesh: Arc<KernelMesh>,
    pub prefix: LinkPrefix,
}

pub(super) fn machine(options: &MachineOptions, seams: &Seams) -> Result<Made> {
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
    let parts = Parts {
        runtime,
        images,
        surroundings: surroundings.clone(),
        logins: Arc::new(NoLogins),
        files: Arc::new(NoFiles),
    };
    Ok(Made { parts, registries, volumes, surroundings, links, mesh, prefix })
}

impl Made {
    /// What routes act through. `others`: the way to other machines, from a manager.
    pub(super) fn parts_of_routes(
        &self,
        objects: &Arc<dyn Objects>,
        paths: Paths,
        node: &str,
        others: Option<Calls>,
        seams: &Seams,
    ) -> routes::Parts {
        routes::Parts {
            client: routes::reader(objects.clone()),
            runtime: self.parts.runtime.clone(),
            images: self.parts.images.clone(),
            logins: self.parts.logins.clone(),
            registries: self.registries.clone(),
            paths,
            node: node.to_owned(),
            others,
            seams: seams.clone(),
        }
    }
}

/// Adds what a process does for its machine, whether its process leads the cluster or not. `answers_at`: where it is
/// reached as a manager; `applied`: which Endpoints the kernel has.
#[expect(clippy::too_many_arguments, reason = "all that a machine's own controllers are made of, once")]
pub(super) fn controllers(
    builder: ManagerBuilder,
    node: &str,
    answers_at: &[SocketAddr],
    options: &MachineOptions,
    machine: &Made,
    identity: Arc<dyn Identity>,
    applied: &Applied,
    seams: &Seams,
) -> Result<ManagerBuilder> {
    let facts = Facts {
        connection: Connection::new(options.containerd.clone(), DEFAULT_NAMESPACE)?,
        labels: options.labels.iter().cloned().collect(),
        apply: VERSION.to_owned(),
        runtime: said_by(options.runtime.as_deref().unwrap_or("runc"), "--version", 2),
        addresses: options.advertise.clone(),
        api_addresses: answers_at.to_vec(),
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
    let ring: Arc<dyn Ring> = Arc::new(RingFile::new(options.paths().tunnel_keys()));
    let speaking = Speaking::default();
    let tunnelling = keep::controller::Tunnelling {
        device: machine.prefix.wireguard(),
        port: options.tunnel_port(),
        ring: ring.clone(),
        speaking: speaking.clone(),
    };
    let life = External::new("companion", keep::Life::new(options.paths().keep()), seams.clone());
    Ok(builder
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
        .everywhere(Identities::controller(node, identity))
        .everywhere(Keys::controller(node, options.tunnel_port(), ring, speaking))
        .everywhere(
            keep::controller::Keeps::telling(node, companion, outputs, tunnelling, applied.clone())
                .watches_external(&life, |_, ()| [Singleton]),
        ))
}

/// The machine's host name, made into an object's.
pub(super) fn node_name(options: &MachineOptions) -> Result<String> {
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
    format!("{}-{seconds}.{nanos}-{size}", VERSION)
}

/// A word of what a program says of itself; empty when it is not there.
fn said_by(program: &str, argument: &str, word: usize) -> String {
    let output = Program::new(program).arg(argument).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    line.split_whitespace().nth(word).unwrap_or_default().to_owned()
}
