//! A cluster without machines: the real controllers over a store in memory, and one node that is played. How a task
//! fares is said by the name of its image.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use cli::applyctl::args::{Args, Global};
use cli::applyctl::screen::Screen;
use cli::applyctl::{self, Failure, Session};
use controllers::admission::Admit;
use controllers::cluster::{bundle, endpoints, network, scheduler, service};
use reconciler::controller::{Action, Controller, Ctx, Error, Manager, Reconciler};
use reconciler::objects::{Client, Kinds, StoreObjects, Writer};
use reconciler::seams::Seams;
use reconciler::store::memory::Memory;
use reconciler::{ObjectRef, Resource, Timestamp};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::cluster::Cluster;
use schemas::kinds::config::Config;
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::event::Event;
use schemas::kinds::namespace::Namespace;
use schemas::kinds::network::Network;
use schemas::kinds::node::{Machine, MachineResources, Node, NodeSpec, NodeState, NodeStatus};
use schemas::kinds::registry_login::RegistryLogin;
use schemas::kinds::revision::Revision;
use schemas::kinds::secret::Secret;
use schemas::kinds::service::Service;
use schemas::kinds::task::{Attempt, DesiredState, Task, TaskState, TaskStatus};
use schemas::kinds::volume::Volume;
use schemas::{Cpus, Size};

/// Much longer than anything here takes; a machine under load is slow, not wrong.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The real one acts on containerd; this one only says how it went.
struct PlayedNode;

impl Reconciler for PlayedNode {
    type Object = Task;

    async fn reconcile(&self, task: Arc<Task>, cx: &Ctx) -> Result<Action, Error> {
        let reference = ObjectRef::new(&task.metadata.namespace, &task.spec.revision);
        let revision: Option<Revision> = cx.client().find(&reference).await?;
        let image = revision
            .and_then(|revision| revision.spec.content.template().map(|template| template.container.image.clone()))
            .unwrap_or_default();
        let mut desired = (*task).clone();
        let status = desired.status.get_or_insert_default();
        match (task.spec.desired, status.state) {
            (DesiredState::Stopped, state) if !state.is_terminal() => status.state = TaskState::Complete,
            (DesiredState::Running, TaskState::Assigned) => fare(status, &image, cx.now()),
            _ => return Ok(Action::Await),
        }
        cx.client().update_status(&*task, &desired).await?;
        Ok(Action::Await)
    }
}

fn fare(status: &mut TaskStatus, image: &str, now: Timestamp) {
    let failed = |number: u32, reason: &str, message: &str| Attempt {
        number,
        started_at: Some(now),
        finished_at: Some(now),
        exit_code: Some(2),
        reason: reason.into(),
        message: message.into(),
    };
    match image {
        "example/missing:1" => {
            status.state = TaskState::Rejected;
            status.message = format!("image {image}: the registry at docker.io has no such tag; it has 2, 3");
        }
        "example/crash:1" => {
            status.state = TaskState::Starting;
            status.restarts = 2;
            status.attempts = (1..=3).map(|number| failed(number, "Exited", "ended with exit code 2")).collect();
        }
        "example/sick:1" => {
            status.state = TaskState::Starting;
            status.attempts = vec![failed(1, "Unhealthy", "its health check failed 3 times in a row: no answer")];
        }
        _ => status.state = TaskState::Running,
    }
}

/// A cluster, and what is typed there.
pub struct Scene {
    pub client: Client,
    pub objects: Arc<StoreObjects>,
    pub kinds: Kinds,
    _running: tokio::task::JoinHandle<()>,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub out: String,
    pub talk: String,
    pub end: Result<(), Failure>,
}

impl Said {
    pub fn code(&self) -> u8 {
        self.end.as_ref().map_or_else(|failure| failure.exit.code(), |()| 0)
    }

    #[track_caller]
    pub fn well(self) -> String {
        match &self.end {
            Ok(()) => self.out,
            Err(failure) => panic!("{failure}\n{}", self.talk),
        }
    }

    #[track_caller]
    pub fn failed(self, code: u8) -> String {
        assert_eq!(self.code(), code, "{self:?}");
        self.end.err().map(|failure| failure.to_string()).unwrap_or_default()
    }
}

pub async fn scene() -> Scene {
    let kinds = Kinds::new()
        .with::<Bundle>()
        .with::<Service>()
        .with::<Secret>()
        .with::<Config>()
        .with::<Revision>()
        .with::<Task>()
        .with::<Node>()
        .with::<Network>()
        .with::<Endpoints>()
        .with::<Cluster>()
        .with::<Volume>()
        .with::<Event>()
        .with::<RegistryLogin>()
        .with::<Namespace>();
    let objects = StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds.clone(), Seams::real()).await.unwrap();
    let objects = Arc::new(objects.admitted_by(Arc::new(Admit)));
    let manager = Manager::builder(objects.clone(), Seams::real())
        .controller(bundle::Bundles::controller())
        .controller(service::Services::controller())
        .controller(scheduler::Scheduler::controller())
        .controller(network::Networks::controller())
        .controller(endpoints::EndpointsController::controller())
        .controller(Controller::new("node", PlayedNode))
        .build();
    let running = tokio::spawn(async move { manager.run(std::future::pending()).await });
    let client = Client::new(objects.clone(), Writer::new("user:test", "applyctl"));
    let node = client.create(&Node::new("n1", NodeSpec::default())).await.unwrap();
    let resources =
        MachineResources { cpus: Cpus::from_milli(4000), memory: Size::from_mib(4096), ..Default::default() };
    let machine = Machine {
        hostname: "n1".into(),
        resources,
        addresses: vec!["192.0.2.7".parse().unwrap()],
        ..Machine::default()
    };
    let mut ready = node.clone();
    ready.status = Some(NodeStatus { state: NodeState::Ready, machine: Some(machine), ..NodeStatus::default() });
    client.update_status(&node, &ready).await.unwrap();
    Scene { client, objects, kinds, _running: running }
}

/// Both outputs of a command, kept.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Kept {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Scene {
    /// Runs what was typed behind `applyctl`.
    pub async fn run(&self, line: &str) -> Said {
        let words: Vec<&str> = std::iter::once("applyctl").chain(line.split_whitespace()).collect();
        let args = Args::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        let (out, talk) = (Kept::default(), Kept::default());
        let mut session = self.session(&args.global, &out, &talk);
        let ran = tokio::time::timeout(PATIENCE, applyctl::run(&mut session, &args.command)).await;
        let end = ran.unwrap_or_else(|_| panic!("{line} did not end; it said\n{}{}", out.text(), talk.text()));
        Said { out: out.text(), talk: talk.text(), end }
    }

    fn session(&self, global: &Global, out: &Kept, talk: &Kept) -> Session {
        let screen = Screen::into_writers(Box::new(out.clone()), Box::new(talk.clone()));
        let mut session = Session::new(self.client.clone(), global, screen, Seams::real());
        session.can_ask = false;
        session
    }
}

/// A file of a test, removed with it.
pub struct File(std::path::PathBuf);

impl File {
    pub fn new(name: &str, text: &str) -> Self {
        let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("applyctl-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    pub fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        // Of several the last one takes the folder away.
        let _ = self.0.parent().map(std::fs::remove_dir);
    }
}
