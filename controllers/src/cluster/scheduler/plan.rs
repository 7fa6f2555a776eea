//! Where each task goes: filters, then the emptiest. A pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reconciler::Truth;
use schemas::Size;
use schemas::constraint::Constraint;
use schemas::kinds::node::{Availability, Node, NodeState};
use schemas::kinds::revision::Revision;
use schemas::kinds::service::{Placement, Reservations};
use schemas::kinds::task::{DesiredState, Slot, Task, TaskState};

use super::facts;
use crate::mounted;

pub(super) struct Seen {
    pub tasks: Vec<Arc<Task>>,
    pub nodes: Vec<Arc<Node>>,
    pub revisions: BTreeMap<(String, String), Arc<Revision>>,
    /// Where the data of each volume is, by namespace and name.
    pub volumes: BTreeMap<(String, String), String>,
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

/// What one node has given away.
#[derive(Default)]
struct Books {
    nano_cpus: u64,
    memory_bytes: u64,
    tasks: usize,
    by_service: BTreeMap<(String, String), usize>,
}

/// Why a node is turned down. Nodes turned down for one reason are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    /// And why, where the node says so.
    NotReady(String),
    NotActive(&'static str),
    Constraint(String),
    /// Its data is on that node.
    Volume(String, String),
    OtherNode,
    Cpus,
    Memory,
    MaxReplicas(u32),
}

pub(super) fn plan(seen: &Seen) -> Vec<Decision> {
    let mut waiting: Vec<&Arc<Task>> = seen.tasks.iter().filter(|task| wants_node(task)).collect();
    waiting.sort_by_key(|task| (task.metadata.creation_timestamp, &task.metadata.namespace, &task.metadata.name));
    let mut nodes: Vec<&Arc<Node>> = seen.nodes.iter().collect();
    nodes.sort_by_key(|node| &node.metadata.name);
    let mut placed: Vec<(Arc<Task>, String)> = seen
        .tasks
        .iter()
        .filter(|task| holds(task))
        .filter_map(|task| task.spec.node_name.clone().map(|node| (task.clone(), node)))
        .collect();
    let slots = slots(seen);
    let mut volumes = volumes(seen, &placed);
    let mut decisions = Vec::with_capacity(waiting.len());
    for task in waiting {
        let mates = slots.get(&slot_of(task)).map(Vec::as_slice).unwrap_or_default();
        // Its node came back before another was found: whoever made this one takes it back.
        if mates.iter().any(|mate| !mate.is_lost && is_twin(&mate.task, task)) {
            continue;
        }
        // Without its revision nothing is known of what it needs: it waits, and the revision wakes us.
        let Some(revision) = seen.revisions.get(&(task.metadata.namespace.clone(), task.spec.revision.clone())) else {
            continue;
        };
        let Some(template) = revision.spec.content.template() else { continue };
        let mounted: Vec<(String, String)> =
            mounted::mounts(template).map(|(volume, _)| (task.metadata.namespace.clone(), volume.to_owned())).collect();
        let (placement, reservations) = (&template.placement, &template.resources.reservations);
        let data = mounted.iter().filter_map(|volume| Some((volume.1.clone(), volumes.get(volume)?.clone()))).collect();
        let want = Want { task, placement, reservations, data };
        let verdict = place(seen, &want, &nodes, &placed);
        if let Verdict::On(node) = &verdict {
            placed.push((task.clone(), node.clone()));
            for volume in mounted {
                volumes.entry(volume).or_insert_with(|| node.clone());
            }
        }
        let lost = mates.iter().filter(|mate| mate.is_lost && mate.task.spec.desired < DesiredState::Stopped);
        let instead_of = match &verdict {
            Verdict::On(_) => lost.map(|mate| mate.task.clone()).collect(),
            Verdict::Nowhere(_) => Vec::new(),
        };
        decisions.push(Decision { task: task.clone(), verdict, instead_of });
    }
    decisions
}

/// Where the data of each volume is, or will be: with the first task that mounts it.
fn volumes(seen: &Seen, placed: &[(Arc<Task>, String)]) -> BTreeMap<(String, String), String> {
    let mut volumes = seen.volumes.clone();
    let mut oldest_first: Vec<&(Arc<Task>, String)> = placed.iter().collect();
    oldest_first.sort_by_key(|(task, _)| (task.metadata.creation_timestamp, &task.metadata.name));
    for (task, node) in oldest_first {
        let namespace = &task.metadata.namespace;
        let revision = seen.revisions.get(&(namespace.clone(), task.spec.revision.clone()));
        let template = revision.and_then(|revision| revision.spec.content.template());
        for (volume, _) in template.into_iter().flat_map(mounted::mounts) {
            volumes.entry((namespace.clone(), volume.to_owned())).or_insert_with(|| node.clone());
        }
    }
    volumes
}

/// A task that has a node, and whether that is lost.
struct Placed {
    task: Arc<Task>,
    is_lost: bool,
}

fn slot_of(task: &Task) -> (&str, &str, &Slot) {
    (&task.metadata.namespace, &task.spec.service, &task.spec.slot)
}

/// Who has a node, by slot.
fn slots(seen: &Seen) -> BTreeMap<(&str, &str, &Slot), Vec<Placed>> {
    let lost: BTreeSet<&String> =
        seen.nodes.iter().filter(|node| node.is_lost()).map(|node| &node.metadata.name).collect();
    let mut slots: BTreeMap<_, Vec<Placed>> = BTreeMap::new();
    for task in &seen.tasks {
        if let Some(node) = &task.spec.node_name {
            slots.entry(slot_of(task)).or_default().push(Placed { task: task.clone(), is_lost: lost.contains(node) });
        }
    }
    slots
}

/// Whether one runs, or comes up, that is all that another would be.
fn is_twin(placed: &Task, task: &Task) -> bool {
    placed.spec.revision == task.spec.revision
        && placed.spec.desired <= DesiredState::Running
        && !placed.status.as_ref().is_some_and(|status| status.state.is_terminal())
}

struct Want<'a> {
    task: &'a Arc<Task>,
    placement: &'a Placement,
    reservations: &'a Reservations,
    /// Volumes that it mounts and that have their place already: name and node.
    data: Vec<(String, String)>,
}

fn place(seen: &Seen, want: &Want<'_>, nodes: &[&Arc<Node>], placed: &[(Arc<Task>, String)]) -> Verdict {
    if nodes.is_empty() {
        return Verdict::Nowhere("there is no node yet".into());
    }
    let mut refusals: BTreeMap<Refusal, Vec<String>> = BTreeMap::new();
    let mut best: Option<((usize, usize, &str), String)> = None;
    // Only of nodes that are turned down for want of it: what is free on a drained node is no help.
    let mut free_most = (0_u64, 0_u64);
    for node in nodes {
        let name = &node.metadata.name;
        let books = books(seen, want.task, name, placed);
        match fits(want, node, &books) {
            Ok(()) => {
                let service = (want.task.metadata.namespace.clone(), want.task.spec.service.clone());
                let of_service = books.by_service.get(&service).copied().unwrap_or(0);
                let rank = (of_service, books.tasks, name.as_str());
                if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                    best = Some((rank, name.clone()));
                }
            }
            Err(refusal) => {
                let (cpus, memory) = free(node, &books);
                match refusal {
                    Refusal::Cpus => free_most.0 = free_most.0.max(cpus),
                    Refusal::Memory => free_most.1 = free_most.1.max(memory),
                    _ => {}
                }
                refusals.entry(refusal).or_default().push(name.clone());
            }
        }
    }
    match best {
        Some((_, node)) => Verdict::On(node),
        None => Verdict::Nowhere(explain(want, &refusals, free_most, nodes.len())),
    }
}

fn fits(want: &Want<'_>, node: &Node, books: &Books) -> Result<(), Refusal> {
    let status = node.status.as_ref();
    if status.is_none_or(|status| status.state != NodeState::Ready || status.machine.is_none()) {
        let conditions = status.map(|status| status.conditions.clone()).unwrap_or_default();
        let said = conditions.iter().find(|condition| condition.status == Truth::False);
        return Err(Refusal::NotReady(said.map(|said| said.message.clone()).unwrap_or_default()));
    }
    match node.spec.availability {
        Availability::Active => {}
        Availability::Pause => return Err(Refusal::NotActive("paused")),
        Availability::Drain => return Err(Refusal::NotActive("drained")),
    }
    if let Slot::Node(wanted) = &want.task.spec.slot
        && *wanted != node.metadata.name
    {
        return Err(Refusal::OtherNode);
    }
    for text in &want.placement.constraints {
        if !text.parse::<Constraint>().is_ok_and(|constraint| constraint.is_met(&facts(node))) {
            return Err(Refusal::Constraint(text.clone()));
        }
    }
    if let Some((volume, on)) = want.data.iter().find(|(_, on)| *on != node.metadata.name) {
        return Err(Refusal::Volume(volume.clone(), on.clone()));
    }
    let service = (want.task.metadata.namespace.clone(), want.task.spec.service.clone());
    let limit = want.placement.max_replicas_per_node;
    if limit > 0 && books.by_service.get(&service).is_some_and(|count| *count >= limit as usize) {
        return Err(Refusal::MaxReplicas(limit));
    }
    let (cpus, memory) = free(node, books);
    if want.reservations.cpus.is_some_and(|asked| asked.nano() > cpus) {
        return Err(Refusal::Cpus);
    }
    if want.reservations.memory.is_some_and(|asked| asked.bytes() > memory) {
        return Err(Refusal::Memory);
    }
    Ok(())
}

/// What the tasks on a node hold. A task's slot-mate hands over what it holds, since it stops before this one starts.
fn books(seen: &Seen, task: &Task, node: &str, placed: &[(Arc<Task>, String)]) -> Books {
    let mut books = Books::default();
    let mates = |other: &Task| {
        other.metadata.namespace == task.metadata.namespace
            && other.spec.service == task.spec.service
            && other.spec.slot == task.spec.slot
    };
    for (other, on) in placed {
        if on != node || mates(other) {
            continue;
        }
        books.tasks += 1;
        *books.by_service.entry((other.metadata.namespace.clone(), other.spec.service.clone())).or_default() += 1;
        let revision = seen.revisions.get(&(other.metadata.namespace.clone(), other.spec.revision.clone()));
        if let Some(template) = revision.and_then(|revision| revision.spec.content.template()) {
            let held = &template.resources.reservations;
            books.nano_cpus += held.cpus.map_or(0, |cpus| cpus.nano());
            books.memory_bytes += held.memory.map_or(0, Size::bytes);
        }
    }
    books
}

fn free(node: &Node, books: &Books) -> (u64, u64) {
    let machine = node.status.as_ref().and_then(|status| status.machine.as_ref());
    let (cpus, memory) = machine.map_or((0, 0), |m| (m.resources.cpus.nano(), m.resources.memory.bytes()));
    (cpus.saturating_sub(books.nano_cpus), memory.saturating_sub(books.memory_bytes))
}

fn explain(want: &Want<'_>, refusals: &BTreeMap<Refusal, Vec<String>>, free: (u64, u64), nodes: usize) -> String {
    let reasons: Vec<String> = refusals
        .iter()
        .map(|(refusal, names)| {
            let who = names.join(", ");
            match refusal {
                Refusal::NotReady(why) if why.is_empty() => format!("not ready: {who}"),
                Refusal::NotReady(why) => format!("not ready: {who} ({why})"),
                Refusal::NotActive(word) => format!("{word}: {who}"),
                Refusal::Constraint(text) => format!("{text} is not met by {who}"),
                Refusal::Volume(volume, on) => format!("the data of volume {volume} is on {on}, not on {who}"),
                Refusal::OtherNode => format!("it belongs to another node than {who}"),
                Refusal::MaxReplicas(limit) => format!("{limit} of the service already on {who}"),
                Refusal::Cpus => {
                    let asked = want.reservations.cpus.map(|cpus| cpus.to_string()).unwrap_or_default();
                    format!("{asked} CPUs asked, most free is {} ({who})", schemas::Cpus::from_nano(free.0))
                }
                Refusal::Memory => {
                    let asked = want.reservations.memory.map(Size::near).unwrap_or_default();
                    format!("memory {asked} asked, most free is {} ({who})", Size::from_bytes(free.1).near())
                }
            }
        })
        .collect();
    format!("no node fits ({nodes}): {}", reasons.join("; "))
}

fn wants_node(task: &Task) -> bool {
    task.spec.node_name.is_none()
        && task.spec.desired <= DesiredState::Running
        && task.metadata.deletion_timestamp.is_none()
}

/// It holds its place until nothing of it runs.
fn holds(task: &Task) -> bool {
    let state = task.status.as_ref().map(|status| status.state).unwrap_or_default();
    let over = state.is_terminal() && (task.spec.desired >= DesiredState::Leaving || state >= TaskState::Rejected);
    !over
}
