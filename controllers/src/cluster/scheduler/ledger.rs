//! What each node has given away: kept up to date while tasks are placed, since each decision sees all that were made before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use reconciler::Timestamp;
use schemas::Size;
use schemas::kinds::node::{Load, Node};
use schemas::kinds::service::Protocol;
use schemas::kinds::task::{Attempt, DesiredState, Task, TaskState};
use schemas::kinds::template::TaskTemplate;

/// A node on which so many attempts of a revision have failed within so long is the last to get another (as in Swarm).
const FAILURES: usize = 5;
const FAILURES_WITHIN: Duration = Duration::from_secs(5 * 60);
/// By how much the clock of a machine may be ahead of ours.
const AHEAD: Duration = Duration::from_secs(60);

/// A service, by namespace and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Service<'a>(&'a str, &'a str);

impl<'a> Service<'a> {
    pub fn of(task: &'a Task) -> Self {
        Self(&task.metadata.namespace, &task.spec.service)
    }
}

pub(super) struct Ledger<'a> {
    nodes: HashMap<&'a str, Account<'a>>,
    /// Failed attempts of a service's revision, by node.
    failures: HashMap<(Service<'a>, &'a str, &'a str), usize>,
    now: Timestamp,
}

#[derive(Default)]
struct Account<'a> {
    nano_cpus: u64,
    memory_bytes: u64,
    load: Load,
    given: Holding,
    by_service: HashMap<Service<'a>, usize>,
    /// Who has each of the machine's own ports, by how many tasks.
    ports: HashMap<HostPort, HashMap<Service<'a>, usize>>,
}

/// A port of one machine (`mode: host`).
pub(super) type HostPort = (Protocol, u16);

/// Tasks, and what they have reserved.
#[derive(Clone, Copy, Default)]
pub(super) struct Holding {
    pub tasks: usize,
    pub nano_cpus: u64,
    pub memory_bytes: u64,
}

impl Holding {
    pub fn of(template: Option<&TaskTemplate>) -> Self {
        let held = template.map(|template| &template.resources.reservations);
        let nano_cpus = held.and_then(|held| held.cpus).map_or(0, |cpus| cpus.nano());
        let memory_bytes = held.and_then(|held| held.memory).map_or(0, Size::bytes);
        Self { tasks: 1, nano_cpus, memory_bytes }
    }

    pub fn add(&mut self, other: Self) {
        self.tasks += other.tasks;
        self.nano_cpus += other.nano_cpus;
        self.memory_bytes += other.memory_bytes;
    }
}

/// Which of two nodes is the better one; the lesser is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// The service's own tasks fail there.
    pub is_failing: bool,
    of_service: usize,
    load: Load,
    tasks: usize,
    /// Its place in the order of names.
    pub node: usize,
}

impl<'a> Ledger<'a> {
    pub fn of(nodes: &[&'a Arc<Node>], now: Timestamp) -> Self {
        let account = |node: &&'a Arc<Node>| {
            let status = node.status.as_ref();
            let machine = status.and_then(|status| status.machine.as_ref());
            let (nano_cpus, memory_bytes) =
                machine.map_or((0, 0), |it| (it.resources.cpus.nano(), it.resources.memory.bytes()));
            let load = status.map_or(Load::Low, |status| status.load);
            (&*node.metadata.name, Account { nano_cpus, memory_bytes, load, ..Account::default() })
        };
        Self { nodes: nodes.iter().map(account).collect(), failures: HashMap::new(), now }
    }

    /// A task is on a node, or will be.
    pub fn enter(&mut self, task: &'a Task, template: Option<&TaskTemplate>, ports: &[HostPort], node: &str) {
        let Some(account) = self.nodes.get_mut(node) else { return };
        account.given.add(Holding::of(template));
        *account.by_service.entry(Service::of(task)).or_default() += 1;
        for port in ports {
            *account.ports.entry(*port).or_default().entry(Service::of(task)).or_default() += 1;
        }
    }

    /// Who has a port of that machine, once so many tasks of the same service have gone.
    pub fn holder(&self, task: &Task, port: HostPort, node: &str, without: usize) -> Option<String> {
        let holders = self.nodes.get(node)?.ports.get(&port)?;
        let own = Service::of(task);
        let holds = |(of, tasks): &(&Service<'a>, &usize)| **of != own || **tasks > without;
        holders.iter().filter(holds).map(|(of, _)| of.1.to_owned()).min()
    }

    /// What ended by itself counts, and what could not be started; not what was told to, nor what its machine took with it.
    pub fn count_failures(&mut self, task: &'a Task) {
        let (Some(node), Some(status)) = (task.spec.node_name.as_deref(), &task.status) else { return };
        // Clocks of machines may be ahead: what is to come has not failed yet.
        let recent =
            |at: Option<Timestamp>| at.is_some_and(|at| at <= self.now + AHEAD && self.now.since(at) < FAILURES_WITHIN);
        let by_itself = task.spec.desired <= DesiredState::Running || status.state == TaskState::Failed;
        let failed = |attempt: &&Attempt| attempt.exit_code != Some(0) && attempt.reason != "Lost";
        let attempts = status.attempts.iter().filter(failed).filter(|attempt| recent(attempt.finished_at));
        let rejected = status.state == TaskState::Rejected && recent(status.since);
        let failed = if by_itself { attempts.count() } else { 0 } + usize::from(rejected);
        if failed > 0 {
            *self.failures.entry((Service::of(task), &task.spec.revision, node)).or_default() += failed;
        }
    }

    /// How good a node is for another task of a service; without so many that it has, which go.
    pub fn rank(&self, task: &Task, node: &str, place: usize, without: usize) -> Rank {
        let service = Service::of(task);
        let account = self.nodes.get(node);
        let failed = self.failures.get(&(service, task.spec.revision.as_str(), node)).copied().unwrap_or(0);
        Rank {
            is_failing: failed >= FAILURES,
            of_service: self.of_service(task, node).saturating_sub(without),
            load: account.map_or(Load::Low, |account| account.load),
            tasks: account.map_or(0, |account| account.given.tasks).saturating_sub(without),
            node: place,
        }
    }

    /// Tasks of the same service there.
    pub fn of_service(&self, task: &Task, node: &str) -> usize {
        let account = self.nodes.get(node);
        account.and_then(|account| account.by_service.get(&Service::of(task))).copied().unwrap_or(0)
    }

    /// Processors and memory that nobody has reserved, once those that go have gone.
    pub fn free(&self, node: &str, without: Holding) -> (u64, u64) {
        let Some(account) = self.nodes.get(node) else { return (0, 0) };
        let left = |all: u64, given: u64, going: u64| all.saturating_sub(given.saturating_sub(going));
        (
            left(account.nano_cpus, account.given.nano_cpus, without.nano_cpus),
            left(account.memory_bytes, account.given.memory_bytes, without.memory_bytes),
        )
    }
}
