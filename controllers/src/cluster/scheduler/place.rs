//! The best node for a task: filters, then the order of preference.
//!
//! Most tasks that wait are of a few revisions, and what a revision asks of a node does not change while they are placed. So
//! the nodes that suit a revision are looked for once, and kept in order; a node's rank only ever falls as tasks are placed
//! on it, so an order that is out of date is found out by a look at its first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use reconciler::Truth;
use schemas::constraint::{Constraint, Spread};
use schemas::kinds::node::{Availability, Node, NodeState};
use schemas::kinds::task::{DesiredState, Slot, Task};
use schemas::kinds::template::{Placement, TaskTemplate};

use super::facts;
use super::ledger::{Holding, HostPort, Ledger, Rank};
use super::plan::is_over;

/// A task that waits.
pub(super) struct Want<'a> {
    pub task: &'a Arc<Task>,
    pub template: &'a TaskTemplate,
    /// Tasks of its slot that have a node, with what they are made from.
    pub mates: Vec<(&'a Arc<Task>, Option<&'a TaskTemplate>)>,
    /// Volumes that it mounts and that have their place already: name and node.
    pub data: Vec<(String, String)>,
    /// Ports of its machine that it has for itself.
    pub ports: &'a [HostPort],
}

/// Why a node is turned down. Nodes turned down for one reason are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// And why, where the node says so.
    NotReady(String),
    NotActive(&'static str),
    Constraint(String),
    Platform,
    /// Its data is on that node.
    Volume(String, String),
    Cpus,
    Memory,
    MaxReplicas(u32),
    /// And who has it.
    Port(u16, String),
}

/// Who was turned down, and how much is free at the most where that was the reason.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals {
    pub by_reason: BTreeMap<Refusal, Vec<String>>,
    pub nodes: usize,
    pub free_cpus: u64,
    pub free_memory: u64,
}

impl Refusals {
    fn add(&mut self, refusal: Refusal, node: &str, ledger: &Ledger<'_>) {
        // Only of nodes that are turned down for want of it: what is free on a drained node is no help.
        let (cpus, memory) = ledger.free(node, Holding::default());
        match refusal {
            Refusal::Cpus => self.free_cpus = self.free_cpus.max(cpus),
            Refusal::Memory => self.free_memory = self.free_memory.max(memory),
            _ => {}
        }
        self.by_reason.entry(refusal).or_default().push(node.to_owned());
    }
}

pub(super) enum Places {
    On(String),
    Nowhere(Refusals),
}

/// All nodes, in order of name, and those that suit each revision.
pub(super) struct Board<'a> {
    nodes: Vec<&'a Arc<Node>>,
    by_name: HashMap<&'a str, usize>,
    /// By namespace and service, and then by revision.
    suiting: HashMap<(String, String), HashMap<String, Suiting>>,
}

/// The nodes that suit a revision, in order.
struct Suiting {
    /// By the values of the labels that it is to be spread over; one where there are none.
    branches: Vec<Branch>,
    /// The labels' values, of each node.
    values_of: Vec<Vec<String>>,
    /// Tasks of the service below each beginning of a branch.
    counts: HashMap<Vec<String>, usize>,
    refusals: Refusals,
}

#[derive(Default)]
struct Branch {
    values: Vec<String>,
    nodes: BTreeSet<Rank>,
}

impl<'a> Board<'a> {
    /// `nodes` in order of name.
    pub fn new(nodes: Vec<&'a Arc<Node>>) -> Self {
        let by_name = nodes.iter().enumerate().map(|(place, node)| (&*node.metadata.name, place)).collect();
        Self { nodes, by_name, suiting: HashMap::new() }
    }

    /// Whether the node of a task is.
    pub fn is_lost(&self, task: &Task) -> bool {
        let place = task.spec.node_name.as_deref().and_then(|node| self.by_name.get(node));
        place.is_some_and(|place| self.nodes[*place].is_lost())
    }

    /// The node for it. The ledger is told by whoever asked.
    pub fn place(&mut self, want: &Want<'_>, ledger: &Ledger<'_>) -> Places {
        let found = self.find(want, ledger);
        let place = match &found {
            Places::On(node) => self.by_name.get(node.as_str()).copied(),
            Places::Nowhere(_) => None,
        };
        let service = (want.task.metadata.namespace.clone(), want.task.spec.service.clone());
        if let (Some(place), Some(all)) = (place, self.suiting.get_mut(&service)) {
            all.values_mut().for_each(|suiting| suiting.entered(place));
        }
        found
    }

    fn find(&mut self, want: &Want<'_>, ledger: &Ledger<'_>) -> Places {
        if let Slot::Node(name) = &want.task.spec.slot {
            let only = self.by_name.get(name.as_str()).copied();
            return self.among(only.into_iter(), want, ledger);
        }
        if !want.data.is_empty() {
            return self.among(0..self.nodes.len(), want, ledger);
        }
        if let Some(node) = self.before(want, ledger) {
            return Places::On(self.nodes[node].metadata.name.clone());
        }
        let service = (want.task.metadata.namespace.clone(), want.task.spec.service.clone());
        let known = self.suiting.get_mut(&service).and_then(|all| all.remove(&want.task.spec.revision));
        let mut suiting = known.unwrap_or_else(|| self.suiting(want, ledger));
        let found = match suiting.best(want, ledger, &self.nodes) {
            Some(node) => Places::On(self.nodes[node].metadata.name.clone()),
            // What its slot holds there is handed over, which those in order were not asked with.
            None if !want.mates.is_empty() => self.among(0..self.nodes.len(), want, ledger),
            None => Places::Nowhere(suiting.refusals.clone()),
        };
        self.suiting.entry(service).or_default().insert(want.task.spec.revision.clone(), suiting);
        found
    }

    /// How much of the task's service there is where a node is, in the order of its preferences; the lesser is the better.
    pub fn evenness(&self, want: &Want<'_>, ledger: &Ledger<'_>, node: &str) -> (Vec<usize>, usize) {
        let place = self.by_name.get(node).copied();
        let spread = spread(want);
        let of_labels = place.map(|place| values(&spread, self.nodes[place])).unwrap_or_default();
        let count = |values: &[String]| {
            let there = self.nodes.iter().filter(|other| self::values(&spread, other).starts_with(values));
            there.map(|other| ledger.of_service(want.task, &other.metadata.name)).sum()
        };
        let counts = (1..=of_labels.len()).map(|depth| count(&of_labels[..depth])).collect();
        (counts, ledger.of_service(want.task, node))
    }

    /// The best of a few, each looked at by itself.
    fn among(&self, places: impl Iterator<Item = usize>, want: &Want<'_>, ledger: &Ledger<'_>) -> Places {
        let mut refusals = Refusals::default();
        let mut best: Option<Rank> = None;
        for place in places {
            let node = self.nodes[place];
            refusals.nodes += 1;
            match suits(want, node).and_then(|()| has_room(want, node, ledger, handed_over(want, node))) {
                Ok(()) => {
                    let rank =
                        ledger.rank(want.task, node.metadata.name.as_str(), place, handed_over(want, node).tasks);
                    best = Some(best.map_or(rank, |best| best.min(rank)));
                }
                Err(refusal) => refusals.add(refusal, &node.metadata.name, ledger),
            }
        }
        match best {
            Some(rank) => Places::On(self.nodes[rank.node].metadata.name.clone()),
            None => Places::Nowhere(refusals),
        }
    }

    /// Where the one is that it replaces: what that holds is handed over, and its image and data may be there.
    fn before(&self, want: &Want<'_>, ledger: &Ledger<'_>) -> Option<usize> {
        let replaced = |mate: &Task| mate.spec.revision != want.task.spec.revision && !is_over(mate);
        let mates = want.mates.iter().filter(|(mate, _)| replaced(mate));
        let mut places = mates.filter_map(|(mate, _)| self.by_name.get(mate.spec.node_name.as_deref()?).copied());
        places.find(|place| {
            let node = self.nodes[*place];
            let fits = suits(want, node).and_then(|()| has_room(want, node, ledger, handed_over(want, node)));
            fits.is_ok() && !ledger.rank(want.task, &node.metadata.name, *place, 0).is_failing
        })
    }

    fn suiting(&self, want: &Want<'_>, ledger: &Ledger<'_>) -> Suiting {
        let spread = spread(want);
        let mut suiting = Suiting {
            branches: Vec::new(),
            values_of: Vec::with_capacity(self.nodes.len()),
            counts: HashMap::new(),
            refusals: Refusals { nodes: self.nodes.len(), ..Refusals::default() },
        };
        let mut known: HashMap<Vec<String>, usize> = HashMap::new();
        for (place, node) in self.nodes.iter().enumerate() {
            let values = values(&spread, node);
            let there = ledger.of_service(want.task, &node.metadata.name);
            for depth in 1..=values.len() {
                *suiting.counts.entry(values[..depth].to_vec()).or_default() += there;
            }
            suiting.values_of.push(values.clone());
            match suits(want, node) {
                Ok(()) => {
                    let branch = *known.entry(values.clone()).or_insert_with(|| {
                        suiting.branches.push(Branch { values, ..Branch::default() });
                        suiting.branches.len() - 1
                    });
                    suiting.branches[branch].nodes.insert(ledger.rank(want.task, &node.metadata.name, place, 0));
                }
                Err(refusal) => suiting.refusals.add(refusal, &node.metadata.name, ledger),
            }
        }
        suiting
    }
}

fn spread(want: &Want<'_>) -> Vec<Spread> {
    want.template.placement.preferences.iter().filter_map(|it| it.spread.parse().ok()).collect()
}

/// A node's, of the labels that are spread over.
fn values(spread: &[Spread], node: &Node) -> Vec<String> {
    let facts = facts(node);
    spread.iter().map(|over| over.of(&facts).to_owned()).collect()
}

impl Suiting {
    fn best(&mut self, want: &Want<'_>, ledger: &Ledger<'_>, nodes: &[&Arc<Node>]) -> Option<usize> {
        for branch in &mut self.branches {
            while let Some(first) = branch.nodes.first().copied() {
                let node = nodes[first.node];
                let now = ledger.rank(want.task, &node.metadata.name, first.node, 0);
                match has_room(want, node, ledger, Holding::default()) {
                    Ok(()) if now == first => break,
                    // Others were placed there meanwhile.
                    Ok(()) => {
                        branch.nodes.remove(&first);
                        branch.nodes.insert(now);
                    }
                    // Nor will there be for the next of it: nobody gives anything back meanwhile.
                    Err(refusal) => {
                        branch.nodes.remove(&first);
                        self.refusals.add(refusal, &node.metadata.name, ledger);
                    }
                }
            }
        }
        let counts = |branch: &Branch| -> Vec<usize> {
            let depths = 1..=branch.values.len();
            depths.map(|depth| self.counts.get(&branch.values[..depth]).copied().unwrap_or(0)).collect()
        };
        let first = self.branches.iter().filter_map(|branch| {
            let rank = branch.nodes.first()?;
            Some(((rank.is_failing, counts(branch), *rank), rank.node))
        });
        first.min().map(|(_, node)| node)
    }

    fn entered(&mut self, node: usize) {
        let values = &self.values_of[node];
        for depth in 1..=values.len() {
            *self.counts.entry(values[..depth].to_vec()).or_default() += 1;
        }
    }
}

/// What tasks of its slot hold on a node that stop before this one starts.
fn handed_over(want: &Want<'_>, node: &Node) -> Holding {
    let mut held = Holding::default();
    let is_to_wait = want.task.spec.desired < DesiredState::Running;
    for (mate, template) in
        want.mates.iter().filter(|(mate, _)| is_to_wait || mate.spec.desired > DesiredState::Running)
    {
        if mate.spec.node_name.as_ref() == Some(&node.metadata.name) && super::plan::holds(mate) {
            held.add(Holding::of(*template));
        }
    }
    held
}

/// What does not change while tasks are placed.
fn suits(want: &Want<'_>, node: &Node) -> Result<(), Refusal> {
    let status = node.status.as_ref();
    let Some(machine) = status.filter(|it| it.state == NodeState::Ready).and_then(|it| it.machine.as_ref()) else {
        let conditions = status.map(|status| status.conditions.clone()).unwrap_or_default();
        let said = conditions.iter().find(|condition| condition.status == Truth::False);
        return Err(Refusal::NotReady(said.map(|said| said.message.clone()).unwrap_or_default()));
    };
    match node.spec.availability {
        Availability::Active => {}
        Availability::Pause => return Err(Refusal::NotActive("paused")),
        Availability::Drain => return Err(Refusal::NotActive("drained")),
    }
    let Placement { constraints, platforms, .. } = &want.template.placement;
    for text in constraints {
        if !text.parse::<Constraint>().is_ok_and(|constraint| constraint.is_met(&facts(node))) {
            return Err(Refusal::Constraint(text.clone()));
        }
    }
    if !platforms.is_empty() && !platforms.iter().any(|platform| platform.is(&machine.platform)) {
        return Err(Refusal::Platform);
    }
    if let Some((volume, on)) = want.data.iter().find(|(_, on)| *on != node.metadata.name) {
        return Err(Refusal::Volume(volume.clone(), on.clone()));
    }
    Ok(())
}

/// What there is less of with each task.
fn has_room(want: &Want<'_>, node: &Node, ledger: &Ledger<'_>, without: Holding) -> Result<(), Refusal> {
    let name = &node.metadata.name;
    let limit = want.template.placement.max_replicas_per_node;
    if limit > 0 && ledger.of_service(want.task, name).saturating_sub(without.tasks) >= limit as usize {
        return Err(Refusal::MaxReplicas(limit));
    }
    for port in want.ports {
        if let Some(holder) = ledger.holder(want.task, *port, name, without.tasks) {
            return Err(Refusal::Port(port.1, holder));
        }
    }
    let reservations = &want.template.resources.reservations;
    let (cpus, memory) = ledger.free(name, without);
    if reservations.cpus.is_some_and(|asked| asked.nano() > cpus) {
        return Err(Refusal::Cpus);
    }
    if reservations.memory.is_some_and(|asked| asked.bytes() > memory) {
        return Err(Refusal::Memory);
    }
    Ok(())
}
