//! Where each task goes. A pure function.
//!
//! Reading order: this page (which tasks, in what order, and what is decided besides), `place` (the best node for one of
//! them), `ledger` (what each node has given away), `explain` (why there is none).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use reconciler::Timestamp;
use schemas::kinds::node::Node;
use schemas::kinds::revision::Revision;
use schemas::kinds::task::{DesiredState, Slot, Task, TaskState};
use schemas::kinds::template::TaskTemplate;

use super::explain::explain;
use super::ledger::{HostPort, Ledger, Service};
use super::place::{Board, Places, Want};
use crate::mounted;

pub(super) struct Seen {
    pub tasks: Vec<Arc<Task>>,
    pub nodes: Vec<Arc<Node>>,
    /// By namespace and name.
    pub revisions: BTreeMap<(String, String), Arc<Revision>>,
    /// Where the data of each volume is, by namespace and name.
    pub volumes: BTreeMap<(String, String), String>,
    /// What services that have ports of their machines have, by namespace and name.
    pub ports: BTreeMap<(String, String), Vec<HostPort>>,
    pub now: Timestamp,
}

impl Seen {
    fn ports_of(&self, task: &Task) -> &[HostPort] {
        if self.ports.is_empty() {
            return &[];
        }
        let service = (task.metadata.namespace.clone(), task.spec.service.clone());
        self.ports.get(&service).map(Vec::as_slice).unwrap_or_default()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decision {
    pub task: Arc<Task>,
    pub verdict: Verdict,
    /// Tasks of its slot on lost nodes that it takes the place of: told to stop in the commit that gives it its node, so that
    /// a node that comes back before keeps what it has, and one that comes back after ends it.
    pub instead_of: Vec<Arc<Task>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    On(String),
    /// Why, in words for people.
    Nowhere(String),
}

pub(super) fn plan(seen: &Seen) -> Vec<Decision> {
    let mut waiting: Vec<&Arc<Task>> = seen.tasks.iter().filter(|task| wants_node(task)).collect();
    waiting.sort_by_key(|task| (task.metadata.creation_timestamp, &task.metadata.namespace, &task.metadata.name));
    let slots = slots(seen, &waiting);
    let State { revisions, mut ledger, mut volumes, mut board } = State::of(seen, |_| true);
    let mut decisions = Vec::with_capacity(waiting.len());
    for task in waiting {
        let mates = slots.get(&slot_of(task)).map(Vec::as_slice).unwrap_or_default();
        let (lost, live): (Vec<&Arc<Task>>, Vec<_>) = mates.iter().copied().partition(|mate| board.is_lost(mate));
        // Its node came back before another was found: whoever made this one takes it back.
        let takes_its_place = |mate: &Task| task.spec.in_place_of.as_deref() == Some(&mate.metadata.name);
        if live.iter().any(|mate| is_twin(mate, task) && !takes_its_place(mate)) {
            continue;
        }
        // Without its revision nothing is known of what it needs: it waits, and the revision wakes us.
        let Some(template) = revisions.get(&revision_of(task)).copied() else { continue };
        let mates_templates = mates.iter().map(|mate| (*mate, revisions.get(&revision_of(mate)).copied()));
        let (data, ports) = (volumes.of(task, template), seen.ports_of(task));
        let want = Want { task, template, mates: mates_templates.collect(), data, ports };
        let verdict = match board.place(&want, &ledger) {
            Places::On(node) => {
                ledger.enter(task, Some(template), ports, &node);
                volumes.take(task, template, &node);
                Verdict::On(node)
            }
            Places::Nowhere(refusals) => Verdict::Nowhere(explain(&want, &refusals)),
        };
        let instead_of = match &verdict {
            Verdict::On(_) => {
                lost.into_iter().filter(|mate| mate.spec.desired < DesiredState::Stopped).cloned().collect()
            }
            Verdict::Nowhere(_) => Vec::new(),
        };
        decisions.push(Decision { task: task.clone(), verdict, instead_of });
    }
    decisions
}

/// Whether a task would be better placed on another node, for its service's sake: were it not there, another one has fewer of
/// it.
pub(super) fn is_uneven(seen: &Seen, task: &Task) -> bool {
    let State { revisions, ledger, volumes, mut board } =
        State::of(seen, |other| other.metadata.uid != task.metadata.uid);
    let Some(template) = revisions.get(&revision_of(task)).copied() else { return false };
    let Some(node) = &task.spec.node_name else { return false };
    let mut moving = task.clone();
    moving.spec.node_name = None;
    let moving = Arc::new(moving);
    let data = volumes.of(&moving, template);
    let want = Want { task: &moving, template, mates: Vec::new(), data, ports: seen.ports_of(task) };
    match board.place(&want, &ledger) {
        Places::On(other) => board.evenness(&want, &ledger, &other) < board.evenness(&want, &ledger, node),
        Places::Nowhere(_) => false,
    }
}

/// What is known before anything is decided.
struct State<'a> {
    revisions: Templates<'a>,
    ledger: Ledger<'a>,
    volumes: Volumes<'a>,
    board: Board<'a>,
}

impl<'a> State<'a> {
    fn of(seen: &'a Seen, counts: impl Fn(&Task) -> bool) -> Self {
        let mut nodes: Vec<&Arc<Node>> = seen.nodes.iter().collect();
        nodes.sort_by_key(|node| &node.metadata.name);
        let template =
            |it: &'a Arc<Revision>| Some(((&*it.metadata.namespace, &*it.metadata.name), it.spec.content.template()?));
        let revisions: Templates = seen.revisions.values().filter_map(template).collect();
        let mut ledger = Ledger::of(&nodes, seen.now);
        let mut volumes = Volumes { settled: &seen.volumes, taken: HashMap::new() };
        let mut mounting: Vec<(&Arc<Task>, &TaskTemplate)> = Vec::new();
        for task in seen.tasks.iter().filter(|task| holds(task) && counts(task)) {
            let Some(node) = task.spec.node_name.as_deref() else { continue };
            let template = revisions.get(&revision_of(task)).copied();
            ledger.enter(task, template, seen.ports_of(task), node);
            mounting
                .extend(template.filter(|it| mounted::mounts(it).next().is_some()).map(|template| (task, template)));
        }
        mounting.sort_by_key(|(task, _)| (task.metadata.creation_timestamp, &task.metadata.name));
        for (task, template) in mounting {
            volumes.take(task, template, task.spec.node_name.as_deref().unwrap_or_default());
        }
        for task in &seen.tasks {
            ledger.count_failures(task);
        }
        Self { revisions, ledger, volumes, board: Board::new(nodes) }
    }
}

/// What tasks are made of, by namespace and name of the revision.
type Templates<'a> = HashMap<(&'a str, &'a str), &'a TaskTemplate>;

fn revision_of(task: &Task) -> (&str, &str) {
    (&task.metadata.namespace, &task.spec.revision)
}

/// Where the data of each volume is, or will be: with the first task that mounts it.
struct Volumes<'a> {
    settled: &'a BTreeMap<(String, String), String>,
    taken: HashMap<(String, String), String>,
}

impl Volumes<'_> {
    fn take(&mut self, task: &Task, template: &TaskTemplate, node: &str) {
        for (volume, _) in mounted::mounts(template) {
            let volume = (task.metadata.namespace.clone(), volume.to_owned());
            if !self.settled.contains_key(&volume) {
                self.taken.entry(volume).or_insert_with(|| node.to_owned());
            }
        }
    }

    /// The volumes of a task that have their place already, and the node.
    fn of(&self, task: &Task, template: &TaskTemplate) -> Vec<(String, String)> {
        let place = |name: &str| {
            let volume = (task.metadata.namespace.clone(), name.to_owned());
            self.settled.get(&volume).or_else(|| self.taken.get(&volume)).cloned()
        };
        let mounts = mounted::mounts(template).map(|(volume, _)| volume);
        mounts.filter_map(|volume| Some((volume.to_owned(), place(volume)?))).collect()
    }
}

type SlotKey<'a> = (Service<'a>, &'a Slot);

fn slot_of(task: &Task) -> SlotKey<'_> {
    (Service::of(task), &task.spec.slot)
}

/// Who has a node, by slot, of those slots that somebody waits for.
fn slots<'a>(seen: &'a Seen, waiting: &[&'a Arc<Task>]) -> HashMap<SlotKey<'a>, Vec<&'a Arc<Task>>> {
    let asked: HashSet<SlotKey> = waiting.iter().map(|task| slot_of(task)).collect();
    let mut slots: HashMap<SlotKey, Vec<_>> = HashMap::new();
    for task in seen.tasks.iter().filter(|task| task.spec.node_name.is_some()) {
        let slot = slot_of(task);
        if asked.contains(&slot) {
            slots.entry(slot).or_default().push(task);
        }
    }
    slots
}

/// Whether one runs, or comes up, that is all that another would be.
fn is_twin(placed: &Task, task: &Task) -> bool {
    placed.spec.revision == task.spec.revision && placed.spec.desired <= DesiredState::Running && !is_over(placed)
}

pub(super) fn is_over(task: &Task) -> bool {
    task.status.as_ref().is_some_and(|status| status.state.is_terminal())
}

pub(super) fn wants_node(task: &Task) -> bool {
    task.spec.node_name.is_none()
        && task.spec.desired <= DesiredState::Running
        && task.metadata.deletion_timestamp.is_none()
}

/// It holds its place until nothing of it runs.
pub(super) fn holds(task: &Task) -> bool {
    let state = task.status.as_ref().map(|status| status.state).unwrap_or_default();
    let over = state.is_terminal() && (task.spec.desired >= DesiredState::Leaving || state >= TaskState::Rejected);
    !over
}
