//! One manager of many machines: a real applyd, and of each machine what a manager has of it. It joins with a token of its own
//! asking, describes itself by the controller that does so everywhere, keeps what every worker keeps of the objects, and gives its
//! signs of life: the code of applyd, many times in this process. There are no containers, links or meshes behind it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cli::daemon::agent::{Agents, Of};
use cli::daemon::joining;
use cli::tls::{Keyring, Managers};
use controllers::applied::Applied;
use controllers::identity::{Request, Token};
use controllers::node::machine::{Describe, Machines};
use futures::future::BoxFuture;
use futures::stream::{StreamExt, TryStreamExt};
use reconciler::cache::Declarations;
use reconciler::controller::Manager;
use reconciler::objects::{Objects, Remote};
use reconciler::seams::Seams;
use rustix::process::{Resource, getrlimit, setrlimit};
use schemas::kinds::node::{Machine as Described, Node};
use schemas::kinds::task::Task;
use schemas::kinds::{Cluster, Endpoints, Network, RegistryLogin, Revision, Service, Volume};

use super::usage::{memory_of, processor_of};
use super::{Row, report};
use crate::parts::machine::{Machine, Part};
use crate::parts::process::wait_until;

/// Handshakes of machines that join at once, as somebody who lets in many would do it.
const AT_ONCE: usize = 16;
/// Of a machine whose processors are all taken a handshake may be late.
const JOIN: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(200);
/// Until a burst of work has gone back to the kernel, and as long again.
const CALM: Duration = Duration::from_secs(25);
/// What is looked at while nothing happens.
const IDLE: Duration = Duration::from_secs(20);
/// Between two looks whether all are ready.
const LOOK: Duration = Duration::from_secs(1);
/// For all of them to be ready.
const READY: Duration = Duration::from_secs(600);

/// What came out.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// From the first one that joins until all are ready.
    pub ready: Duration,
    /// Of one core, while nothing happens.
    pub core: f64,
    /// Bytes of the manager, and of it what was there without any machine but its own.
    pub memory: f64,
    pub memory_alone: f64,
}

/// All of it, with so many machines.
pub fn run(agents: usize) -> Result<()> {
    let found = measure(agents, CALM, IDLE)?;
    let of_each = (found.memory - found.memory_alone) / agents as f64;
    report(
        "agents",
        &[
            Row::new(format!("{agents} machines join, until all are ready"), found.ready.as_secs_f64(), "s"),
            Row::new("the manager's processor, of one core, while nothing happens", found.core, "cores"),
            Row::new("the manager's memory without them", found.memory_alone / 1e6, "MB"),
            Row::new("the manager's memory with them", found.memory / 1e6, "MB"),
            Row::new("for each of them", of_each / 1e3, "kB"),
        ],
    )?;
    Ok(())
}

/// On a machine of its own, with so many beside it that are nothing but what they say.
pub fn measure(agents: usize, calm: Duration, idle: Duration) -> Result<Figures> {
    let machine = Machine::start("bench-agents")?;
    machine.on_network(|| {
        let mut files = getrlimit(Resource::Nofile);
        files.current = files.maximum;
        setrlimit(Resource::Nofile, files)?;
        std::thread::sleep(calm);
        let memory_alone = memory_of_applyd(&machine)?;
        // Its threads are of this network, as this one is.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let begun = Instant::now();
        let token: Token = machine.ctl(&["token", "create", "-q"])?.trim().parse()?;
        let _running = runtime.block_on(join(agents, &token))?;
        println!("  {agents} have joined after {:.1} s", begun.elapsed().as_secs_f64());
        // Whoever lists a thousand machines over and over keeps the manager from its work.
        let mut looked: Option<Instant> = None;
        let all = || {
            let is_time = looked.is_none_or(|at| at.elapsed() >= LOOK);
            is_time && {
                looked = Some(Instant::now());
                ready(&machine).is_ok_and(|ready| ready == agents + 1)
            }
        };
        wait_until("all to be ready", READY, all)
            .with_context(|| format!("{:?} are ready; {}", ready(&machine), machine.log_end("applyd")))?;
        let took = begun.elapsed();
        println!("  all are ready after {:.1} s", took.as_secs_f64());
        std::thread::sleep(calm);
        let core = processor_of(&machine.pids(Part::Applyd), idle)? / 100.0;
        let memory = memory_of_applyd(&machine)?;
        ensure!(ready(&machine)? == agents + 1, "they are no longer ready");
        Ok(Figures { ready: took, core, memory, memory_alone })
    })?
}

/// How many are ready.
fn ready(machine: &Machine) -> Result<usize> {
    let nodes = machine.person().list("node")?;
    Ok(nodes.iter().filter(|node| node["status"]["state"] == "Ready").count())
}

fn memory_of_applyd(machine: &Machine) -> Result<f64> {
    Ok(memory_of(&machine.pids(Part::Applyd))? * 1e6)
}

/// Has them join, some at a time; they live for as long as what is returned.
async fn join(agents: usize, token: &Token) -> Result<Vec<tokio::task::JoinHandle<()>>> {
    let joining = futures::stream::iter(0..agents).map(|number| begin(number, token));
    joining.buffer_unordered(AT_ONCE).try_collect().await
}

async fn begin(number: usize, token: &Token) -> Result<tokio::task::JoinHandle<()>> {
    let (name, seams) = (format!("w{number}"), Seams::real());
    let address = SocketAddr::from(([127, 0, 0, 1], joining::PORT));
    // Asked again with the same key, as an answer may have been lost.
    let (key, begun) = (Request::make()?.key, Instant::now());
    let (member, credentials, _) = loop {
        match joining::taken_in(token, address, &name, Request::of(key.clone())?, &seams).await {
            Ok(taken_in) => break taken_in,
            Err(failure) if begun.elapsed() > JOIN => return Err(anyhow!("{name}: {}", failure.message)),
            Err(_) => seams.sleep(AGAIN).await,
        }
    };
    let ring = Keyring::new(credentials, &seams)?;
    let managers = Managers::new(vec![address], ring.clone());
    let objects: Arc<dyn Objects> = Arc::new(Remote::new(Arc::new(managers.clone()), seams.clone()));
    let manager = Manager::builder(objects, seams.clone())
        .controller(Machines::controller(&member.node, Arc::new(Nothing(number)), &seams))
        .declares(&kept())
        .build();
    Ok(tokio::spawn(async move {
        let agents = Agents {
            node: member.node,
            ring,
            of: Of::Worker(managers),
            applied: Applied::default(),
            routes: Default::default(),
            seams,
        };
        let (cache, first) = (manager.cache().clone(), [address]);
        tokio::select! {
            () = agents.run(&cache, &first, |_| {}) => {}
            () = manager.run(std::future::pending()) => {}
        }
    }))
}

/// What every worker keeps: what its controllers declare together.
fn kept() -> Declarations {
    Declarations::new()
        .kind::<Cluster>()
        .kind::<Endpoints>()
        .kind::<Network>()
        .kind::<Node>()
        .kind::<RegistryLogin>()
        .kind::<Revision>()
        .kind::<Service>()
        .kind::<Task>()
        .kind::<Volume>()
}

/// A machine that there is not.
struct Nothing(usize);

impl Describe for Nothing {
    fn machine(&self) -> Described {
        // Addresses for documentation (RFC 2544's are as many as are needed).
        let [_, _, high, low] = u32::try_from(self.0).unwrap_or_default().to_be_bytes();
        Described {
            hostname: format!("w{}", self.0),
            addresses: vec![[198, 18, high, low].into()],
            boot_id: format!("boot-of-{}", self.0),
            ..Described::default()
        }
    }

    fn load(&self) -> f64 {
        0.0
    }

    fn runtime(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(std::future::ready(Ok("none".to_owned())))
    }
}
