//! What is to be done next for a service: a pure function.
//!
//! Every task gets a class; every slot is then looked at by itself. A slot that has a live or stopping task never gets
//! another, so two of a slot are never alive at once, but where one is to take the place of the other once it serves (the
//! order start-first, a move to another node): the newer one says whose. A name is derived from slot and number, so a
//! creation that is repeated finds its predecessor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use reconciler::api::Conditions;
use reconciler::{Resource, Timestamp, Truth};
use schemas::constraint::Constraint;
use schemas::kinds::node::{Availability, Node};
use schemas::kinds::revision::{FileVersion, RevisionContent, RevisionSpec};
use schemas::kinds::service::{FILES_THERE, Mode, OnDisconnect, ServiceStatus, UpdateOrder, reasons};
use schemas::kinds::task::{DesiredState, Slot, Task, TaskState};
use sha2::{Digest, Sha256};

use super::changes::{Change, CreateReason, StopReason};
use super::observe::Seen;
use super::published;
use crate::cluster::scheduler::NO_NODE_FITS;
use crate::cluster::{revisions, scheduler};

/// How long a slot waits after its task was rejected: 1 s, doubled each time, up to a minute. Nothing on the machine
/// will have changed much sooner.
const REJECTED_DELAY: Duration = Duration::from_secs(1);
const REJECTED_DELAY_MAX: Duration = Duration::from_secs(60);

/// A mesh that is dead must not keep tasks from stopping. It takes milliseconds; one that lags so long is left out (the
/// design's).
const LAG_MAX: Duration = Duration::from_secs(1);
/// What meshes say wakes nobody.
const LOOK_AT_MESH: Duration = Duration::from_millis(10);

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// In the order in which they may happen; every prefix is a safe place to die.
    pub changes: Vec<Change>,
    pub status: ServiceStatus,
    /// Why no more is done now, in words for people.
    pub waiting: Vec<String>,
    /// Which wish for evenness is fulfilled.
    pub evened_out: Option<String>,
    pub look_again: Option<Timestamp>,
}

impl Plan {
    /// Not later than `due`.
    pub fn look_at(&mut self, due: Timestamp) {
        self.look_again = Some(self.look_again.map_or(due, |at| at.min(due)));
    }
}

/// What a task is to its slot. The first line that fits is the one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Nothing of it runs and nothing shall.
    Done,
    /// It shall stop, and has not yet.
    Stopping,
    /// Out of the mesh, or on its way out.
    Leaving,
    /// Its node is lost: for all that is known it may run still, and nobody can tell it anything.
    Lost,
    /// The same, and it is waited for.
    Away,
    /// It ended for good although it should run: its node will not try again.
    Ended,
    /// It runs or comes up, of a revision that is no longer wanted.
    Outdated,
    /// It runs or comes up, of the wanted revision.
    Current,
}

fn classify(task: &Task, wanted: &str, seen: &Seen) -> Class {
    let state = state(task);
    let is_among = |nodes: &BTreeSet<String>| task.spec.node_name.as_ref().is_some_and(|node| nodes.contains(node));
    match task.spec.desired {
        DesiredState::Stopped if state.is_terminal() || task.spec.node_name.is_none() => Class::Done,
        // What must not run twice is waited for whatever is wanted of it; of others, what is no longer wanted is not.
        _ if !state.is_terminal() && is_among(&seen.away) && seen.service.spec.on_disconnect == OnDisconnect::Keep => {
            Class::Away
        }
        DesiredState::Ready | DesiredState::Running
            if !state.is_terminal() && task.spec.revision == wanted && is_among(&seen.away) =>
        {
            Class::Away
        }
        _ if !state.is_terminal() && (is_among(&seen.lost) || is_among(&seen.away)) => Class::Lost,
        _ if task.metadata.deletion_timestamp.is_some() => Class::Stopping,
        DesiredState::Stopped => Class::Stopping,
        DesiredState::Leaving => Class::Leaving,
        _ if state.is_terminal() => Class::Ended,
        _ if task.spec.revision != wanted => Class::Outdated,
        _ => Class::Current,
    }
}

pub(super) fn plan(seen: &Seen, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(files) = &seen.files else {
        plan.status = status(seen, None, &wanted_slots(seen), &BTreeMap::new(), &plan, now);
        return plan;
    };
    let wanted = wanted_revision(seen, files.clone(), &mut plan);

    let mut by_slot: BTreeMap<Slot, Vec<(Class, Arc<Task>)>> = BTreeMap::new();
    for task in &seen.tasks {
        by_slot.entry(task.spec.slot.clone()).or_default().push((classify(task, &wanted, seen), task.clone()));
    }
    // The order of the input does not matter: newest first, then by name.
    for tasks in by_slot.values_mut() {
        tasks.sort_by(|a, b| {
            (b.1.metadata.creation_timestamp, &b.1.metadata.name)
                .cmp(&(a.1.metadata.creation_timestamp, &a.1.metadata.name))
        });
    }
    let slots = wanted_slots(seen);
    for slot in &slots {
        by_slot.entry(slot.clone()).or_default();
    }
    if let Some(rest) = seen.away.iter().filter_map(|node| patience(seen, node)).min() {
        plan.look_at(now + rest);
    }
    let mut updating = 0_usize;
    let mut outdated: Vec<(SlotView<'_>, Arc<Task>)> = Vec::new();
    for (slot, tasks) in &by_slot {
        if slots.contains(slot) {
            let view = SlotView { seen, wanted: &wanted, slot, tasks, now };
            if let Some(task) = view.keep_filled(&mut plan, &mut updating) {
                outdated.push((view, task));
            }
        } else {
            empty_slot(seen, tasks, now, &mut plan);
        }
    }
    let settled = outdated.is_empty() && updating == 0;
    let room = replace_outdated(seen, outdated, updating, &mut plan);
    even_out(seen, &by_slot, &wanted, (settled, room), now, &mut plan);
    plan.status = status(seen, Some(&wanted), &slots, &by_slot, &plan, now);
    plan
}

/// How much longer a node is waited for; `None`: for ever.
fn patience(seen: &Seen, node: &str) -> Option<Duration> {
    let OnDisconnect::After(period) = seen.service.spec.on_disconnect else { return None };
    Some(period.get().saturating_sub(seen.waited.lost.get(node).copied().unwrap_or_default()))
}

fn wanted_revision(seen: &Seen, files: Vec<FileVersion>, plan: &mut Plan) -> String {
    let content = RevisionContent::Template(Box::new(seen.service.spec.template.clone()));
    let spec = RevisionSpec { files, ..RevisionSpec::new(seen.service.name(), content) };
    let wanted = spec.name();
    let named = seen.tasks.iter().map(|task| task.spec.revision.as_str()).collect();
    let (changes, _) = revisions::plan(&seen.revisions, &wanted, spec, &named, seen.history.revisions);
    plan.changes.extend(changes.into_iter().map(Change::Revision));
    wanted
}

fn wanted_slots(seen: &Seen) -> BTreeSet<Slot> {
    let spec = &seen.service.spec;
    match spec.mode {
        Mode::Replicated => (1..=spec.replicas()).map(Slot::Number).collect(),
        Mode::Global => {
            // An expression that does not parse was refused at the write; one that got through matches no node.
            let constraints: Option<Vec<Constraint>> =
                spec.template.placement.constraints.iter().map(|text| text.parse().ok()).collect();
            let fits = |node: &Node| {
                let facts = scheduler::facts(node);
                constraints.as_ref().is_some_and(|all| all.iter().all(|constraint| constraint.is_met(&facts)))
            };
            let has_one = |slot: &Slot| {
                let live = |task: &&Arc<Task>| task.spec.desired <= DesiredState::Running && !state(task).is_terminal();
                seen.tasks.iter().filter(live).any(|task| task.spec.slot == *slot)
            };
            let slots = seen
                .nodes
                .iter()
                .filter(|node| fits(node))
                .map(|node| (Slot::Node(node.metadata.name.clone()), node.spec.availability));
            slots.filter(|(slot, it)| *it == Availability::Active || has_one(slot)).map(|(slot, _)| slot).collect()
        }
        // Refused at the write so far; if one is stored all the same, nothing is run for it.
        Mode::ReplicatedJob | Mode::GlobalJob => BTreeSet::new(),
    }
}

struct SlotView<'a> {
    seen: &'a Seen,
    wanted: &'a str,
    slot: &'a Slot,
    tasks: &'a [(Class, Arc<Task>)],
    now: Timestamp,
}

impl SlotView<'_> {
    fn of(&self, class: Class) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(move |(of, _)| *of == class).map(|(_, task)| task)
    }

    fn has(&self, class: Class) -> bool {
        self.of(class).next().is_some()
    }

    /// Has it filled; returns the task that another is to take the place of, when its turn comes.
    fn keep_filled(&self, plan: &mut Plan, updating: &mut usize) -> Option<Arc<Task>> {
        advance_leaving(self.seen, self.tasks, self.now, plan);
        self.forget_history(plan);
        let mut live: Vec<_> = self.of(Class::Current).chain(self.of(Class::Outdated)).cloned().collect();
        live.sort_by_key(|task| (task.metadata.creation_timestamp, task.metadata.name.clone()));
        let goes = |task: &Task| task.spec.revision != self.wanted || is_displaced(self.seen, task);
        if let Some((old, new)) = pair(&live) {
            // Of one that fits nowhere nobody knows when it will: others need not wait for that.
            *updating += usize::from(!fits_nowhere(&new));
            self.hand_over(&old, &new, goes(&old), plan);
            live.retain(|task| task.name() != old.name() && task.name() != new.name());
            stop_duplicates(&live, plan);
            return None;
        }
        // If another hand made one more, the older one stays.
        stop_duplicates(live.get(1..).unwrap_or_default(), plan);
        let going = self.has(Class::Stopping) || self.has(Class::Leaving);
        match live.first() {
            // Nothing can be put there now, so what is there stays.
            Some(task) if goes(task) && self.is_paused() => {
                plan.waiting.push(format!("slot {}: its node is paused", task.spec.slot));
            }
            Some(task) if goes(task) && !going && !self.ended(plan) && !self.has(Class::Ended) => {
                return Some(task.clone());
            }
            Some(task) if goes(task) => *updating += 1,
            Some(task) => {
                // What was to take its place and has ended, or was in its slot by another hand.
                stop_duplicates(&self.of(Class::Ended).cloned().collect::<Vec<_>>(), plan);
                *updating += usize::from(going || state(task) != TaskState::Running);
            }
            None if self.has(Class::Away) => self.wait_for_the_node(plan),
            None => {
                *updating += 1;
                if !self.ended(plan) && !going {
                    self.fill(None, plan);
                }
            }
        }
        None
    }

    /// The older one goes once the newer one serves in its place.
    fn hand_over(&self, old: &Arc<Task>, new: &Arc<Task>, goes: bool, plan: &mut Plan) {
        let addresses = |task: &Task| task.status.as_ref().is_some_and(|status| !status.addresses.is_empty());
        // Who has no address is in no mesh.
        let is_reached = self.seen.backends.contains(new.name()) || !addresses(new);
        if new.spec.revision != self.wanted {
            end(new, StopReason::NewRevision, plan);
        } else if is_displaced(self.seen, new) {
            end(new, StopReason::NodeDrained, plan);
        } else if goes && fits_nowhere(new) && self.seen.service.spec.update.order == UpdateOrder::StopFirst {
            // It was begun while the order was another one, and there is no room for both.
            end(new, StopReason::Duplicate, plan);
        } else if state(new) == TaskState::Running && is_reached {
            let because = match () {
                () if is_displaced(self.seen, old) => StopReason::NodeDrained,
                () if old.spec.revision != self.wanted => StopReason::NewRevision,
                () => StopReason::Moved,
            };
            end(old, because, plan);
        } else {
            let why = Some(reason(new)).filter(|why| !why.is_empty()).map(|why| format!(": {why}")).unwrap_or_default();
            plan.waiting.push(format!("slot {}: the next one comes up beside the one that serves{why}", self.slot));
        }
    }

    /// Whether its slot is a node's that is given nothing new.
    fn is_paused(&self) -> bool {
        let Slot::Node(name) = self.slot else { return false };
        let node = self.seen.nodes.iter().find(|node| node.metadata.name == *name);
        node.is_some_and(|node| node.spec.availability == Availability::Pause)
    }

    fn wait_for_the_node(&self, plan: &mut Plan) {
        let nodes = self.of(Class::Away).filter_map(|task| task.spec.node_name.clone());
        for node in nodes {
            plan.waiting.push(format!("slot {} is on {node}, which is lost, and waits for it to be back", self.slot));
        }
    }

    /// Tasks that ended for good; says whether the slot is to stay as it is.
    fn ended(&self, plan: &mut Plan) -> bool {
        let mut stays = false;
        for task in self.of(Class::Ended) {
            match state(task) {
                _ if task.spec.revision != self.wanted => {
                    plan.changes.push(Change::Stop { task: task.clone(), because: StopReason::NewRevision });
                }
                TaskState::Complete | TaskState::Failed => {
                    stays = true;
                    plan.waiting.push(format!("slot {} has ended: {}", self.slot, reason(task)));
                }
                TaskState::Orphaned => {
                    plan.changes.push(Change::Stop { task: task.clone(), because: StopReason::NodeRemoved });
                }
                _ => plan.changes.push(Change::Stop { task: task.clone(), because: StopReason::Rejected }),
            }
        }
        stays
    }

    /// A new task, in place of one that is there until it serves or of none.
    fn fill(&self, in_place_of: Option<(&Task, CreateReason)>, plan: &mut Plan) {
        let rejected: Vec<_> = self
            .tasks
            .iter()
            .map(|(_, task)| task)
            .filter(|task| task.spec.revision == self.wanted && state(task) == TaskState::Rejected)
            .collect();
        let waited =
            |task: &&Arc<Task>| self.seen.waited.rejected.get(&task.metadata.name).copied().unwrap_or_default();
        if let Some(waited) = rejected.iter().map(waited).min() {
            let doublings = u32::try_from(rejected.len() - 1).unwrap_or(u32::MAX).min(16);
            let delay = REJECTED_DELAY.saturating_mul(1 << doublings).min(REJECTED_DELAY_MAX);
            if waited < delay {
                let due = self.now + (delay - waited);
                plan.look_at(due);
                let why = rejected.first().map(|task| reason(task)).unwrap_or_default();
                plan.waiting.push(format!("slot {} is tried again soon: {why}", self.slot));
                return;
            }
        }
        let because = match (rejected.is_empty(), self.tasks.is_empty()) {
            _ if let Some((_, because)) = in_place_of => because,
            _ if self.of(Class::Lost).next().is_some() => CreateReason::NodeLost,
            (false, _) => CreateReason::Rejected,
            (true, true) => CreateReason::EmptySlot,
            (true, false) => CreateReason::Replaced,
        };
        let service = &self.seen.service;
        let taken: BTreeSet<&str> = self.seen.tasks.iter().map(|task| task.metadata.name.as_str()).collect();
        let name = (0_u32..)
            .map(|number| {
                task_name(&service.metadata.name, service.metadata.uid.as_str(), self.slot, self.wanted, number)
            })
            .find(|name| !taken.contains(name.as_str()))
            .expect("there are more numbers than tasks");
        plan.changes.push(Change::CreateTask {
            slot: self.slot.clone(),
            name,
            revision: self.wanted.to_owned(),
            because,
            in_place_of: in_place_of.map(|(task, _)| task.name().to_owned()),
        });
    }

    fn forget_history(&self, plan: &mut Plan) {
        // The live task is one of those that are kept.
        let kept = self.seen.history.tasks_per_slot.saturating_sub(1) as usize;
        for task in self.of(Class::Done).skip(kept) {
            plan.changes.push(Change::Forget { task: task.clone() });
        }
    }
}

fn fits_nowhere(task: &Task) -> bool {
    task.spec.node_name.is_none() && task.status.as_ref().is_some_and(|status| status.reason == NO_NODE_FITS)
}

/// The two of a slot of which the newer is to take the place of the older.
fn pair(live: &[Arc<Task>]) -> Option<(Arc<Task>, Arc<Task>)> {
    let find = |name: &str| live.iter().find(|task| task.name() == name);
    live.iter().find_map(|new| Some((find(new.spec.in_place_of.as_deref()?)?.clone(), new.clone())))
}

fn stop_duplicates(tasks: &[Arc<Task>], plan: &mut Plan) {
    for extra in tasks {
        plan.changes.push(Change::Stop { task: extra.clone(), because: StopReason::Duplicate });
    }
}

/// Out of the mesh first, if anybody may be sent to it.
fn end(task: &Arc<Task>, because: StopReason, plan: &mut Plan) {
    let task = task.clone();
    plan.changes.push(if serves(&task) { Change::Leave { task, because } } else { Change::Stop { task, because } });
}

/// A slot that is no longer wanted.
fn empty_slot(seen: &Seen, tasks: &[(Class, Arc<Task>)], now: Timestamp, plan: &mut Plan) {
    advance_leaving(seen, tasks, now, plan);
    for (class, task) in tasks {
        let because = StopReason::ScaledDown;
        match class {
            Class::Done => plan.changes.push(Change::Forget { task: task.clone() }),
            Class::Current | Class::Outdated | Class::Ended => end(task, because, plan),
            // A global service's task stays its node's, which may come back.
            Class::Lost | Class::Away
                if matches!(task.spec.slot, Slot::Number(_)) && task.spec.desired < DesiredState::Stopped =>
            {
                plan.changes.push(Change::Stop { task: task.clone(), because });
            }
            Class::Stopping | Class::Leaving | Class::Lost | Class::Away => {}
        }
    }
}

/// Whoever has left the mesh may stop.
fn advance_leaving(seen: &Seen, tasks: &[(Class, Arc<Task>)], now: Timestamp, plan: &mut Plan) {
    for (class, task) in tasks {
        if *class != Class::Leaving {
            continue;
        }
        if seen.backends.contains(&task.metadata.name) {
            plan.waiting.push(format!("slot {} is leaving the mesh", task.spec.slot));
            continue;
        }
        let waited = seen.waited.left.get(&task.metadata.name).copied().unwrap_or_default();
        if !seen.lagging.is_empty() && waited < LAG_MAX {
            plan.waiting.push(format!("slot {} is leaving {}", task.spec.slot, seen.lagging.join(", ")));
            let soon = now + LOOK_AT_MESH;
            plan.look_at(soon);
            continue;
        }
        let because = if seen.lagging.is_empty() { StopReason::OutOfMesh } else { StopReason::MeshLags };
        plan.changes.push(Change::Stop { task: task.clone(), because });
    }
}

/// Its node shall be emptied.
fn is_displaced(seen: &Seen, task: &Task) -> bool {
    task.spec.node_name.as_ref().is_some_and(|node| seen.drained.contains(node))
}

/// One by one: the next is taken when nothing is on its way. Tasks that do not serve are replaced at once, since
/// nothing is lost by it. Returns how many more may be.
fn replace_outdated(seen: &Seen, outdated: Vec<(SlotView<'_>, Arc<Task>)>, updating: usize, plan: &mut Plan) -> usize {
    let because = |task: &Task| match is_displaced(seen, task) {
        true => StopReason::NodeDrained,
        false => StopReason::NewRevision,
    };
    let (serving, idle): (Vec<_>, Vec<_>) = outdated.into_iter().partition(|(_, task)| serves(task));
    let parallelism = match seen.service.spec.update.parallelism() {
        0 => usize::MAX,
        parallelism => parallelism as usize,
    };
    let mut room = parallelism.saturating_sub(updating + idle.len());
    for (_, task) in idle {
        plan.changes.push(Change::Stop { because: because(&task), task });
    }
    for (view, task) in serving {
        if room == 0 {
            plan.waiting.push(format!("slot {} waits for its turn to be replaced", task.spec.slot));
            continue;
        }
        room -= 1;
        match seen.service.spec.update.order {
            UpdateOrder::StopFirst => plan.changes.push(Change::Leave { because: because(&task), task }),
            UpdateOrder::StartFirst => view.fill(Some((&task, CreateReason::Beside)), plan),
        }
    }
    room
}

/// As far as somebody asked for it, and nothing else is going on: one after the other moves to a node that has less of the
/// service.
fn even_out(
    seen: &Seen,
    by_slot: &BTreeMap<Slot, Vec<(Class, Arc<Task>)>>,
    wanted: &str,
    (settled, room): (bool, usize),
    now: Timestamp,
    plan: &mut Plan,
) {
    let Some(evening) = seen.evening.as_ref().filter(|_| room > 0) else { return };
    match &evening.next {
        Some(task) => {
            let slot = &task.spec.slot;
            let Some(tasks) = by_slot.get(slot) else { return };
            let view = SlotView { seen, wanted, slot, tasks, now };
            let is_still = view.of(Class::Current).any(|current| current.name() == task.name());
            let is_alone = view.tasks.iter().filter(|(class, _)| *class != Class::Done).count() == 1;
            let tried = |(_, other): &(Class, Arc<Task>)| other.spec.in_place_of.as_deref() == Some(task.name());
            match is_still && is_alone && state(task) == TaskState::Running {
                // It did not come up there: it is as even as it gets.
                true if tasks.iter().any(tried) => plan.evened_out = Some(evening.asked.clone()),
                true => view.fill(Some((task, CreateReason::Moved)), plan),
                false => {}
            }
        }
        None if settled => plan.evened_out = Some(evening.asked.clone()),
        None => {}
    }
}

fn status(
    seen: &Seen,
    wanted: Option<&str>,
    slots: &BTreeSet<Slot>,
    by_slot: &BTreeMap<Slot, Vec<(Class, Arc<Task>)>>,
    plan: &Plan,
    now: Timestamp,
) -> ServiceStatus {
    let service = &seen.service;
    let generation = service.metadata.generation;
    let mut status = service.status.clone().unwrap_or_default();
    let running = |only_wanted: bool| {
        // Slots: while one takes the place of another, both may run.
        let counts = |(class, task): &(Class, Arc<Task>)| {
            let live = matches!(class, Class::Current | Class::Outdated);
            live && state(task) == TaskState::Running && (!only_wanted || *class == Class::Current)
        };
        let counted = by_slot.iter().filter(|(slot, tasks)| slots.contains(slot) && tasks.iter().any(counts));
        u32::try_from(counted.count()).unwrap_or(u32::MAX)
    };
    status.observed_generation = generation;
    status.desired = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    status.running = running(false);
    status.updated = running(true);
    if let Some(wanted) = wanted
        && status.revision.as_deref() != Some(wanted)
    {
        status.previous_revision = status.revision.replace(wanted.to_owned());
    }
    if let Some(asked) = &plan.evened_out {
        status.rebalanced = Some(asked.clone());
    }
    status.ports.clone_from(&seen.ports);
    let ready = status.updated == status.desired && seen.missing.is_empty();
    let why_not = seen
        .tasks
        .iter()
        .filter(|task| Some(task.spec.revision.as_str()) == wanted && task.spec.desired <= DesiredState::Running)
        .filter(|task| state(task) != TaskState::Running)
        .map(|task| reason(task))
        .find(|why| !why.is_empty())
        .or_else(|| plan.waiting.first().cloned())
        .unwrap_or_default();
    let reason = match (ready, status.running >= status.desired) {
        _ if !seen.missing.is_empty() => reasons::MISSING,
        (true, _) => "AllRunning",
        (false, true) => "Updating",
        (false, false) => "TasksMissing",
    };
    let missing = (!seen.missing.is_empty()).then(|| seen.missing.join("; "));
    let message = if ready { String::new() } else { missing.clone().unwrap_or(why_not) };
    status.conditions.set("Ready", ready, reason, message, generation, now);
    published::condition(seen, &mut status, now);
    match missing {
        Some(why) => drop(status.conditions.set(FILES_THERE, false, reasons::MISSING, why, generation, now)),
        None if service.spec.template.container.files().next().is_none() => drop(status.conditions.remove(FILES_THERE)),
        None => drop(status.conditions.set(FILES_THERE, true, reasons::ALL_THERE, "", generation, now)),
    }
    status
}

/// Whether a status says nothing that the one before did not but how far a service is that is not ready yet.
pub(super) fn is_progress(before: &ServiceStatus, after: &ServiceStatus) -> bool {
    let not_ready = |status: &ServiceStatus| status.conditions.get("Ready").is_some_and(|it| it.status == Truth::False);
    let others = |status: &ServiceStatus| {
        let others = status.conditions.iter().filter(|condition| condition.r#type != "Ready");
        others.cloned().collect::<Vec<_>>()
    };
    let rest = |status: &ServiceStatus| ServiceStatus {
        running: 0,
        updated: 0,
        conditions: Conditions::default(),
        ..status.clone()
    };
    not_ready(before) && not_ready(after) && others(before) == others(after) && rest(before) == rest(after)
}

pub(super) fn state(task: &Task) -> TaskState {
    task.status.as_ref().map(|status| status.state).unwrap_or_default()
}

/// Clients may be talking to it.
fn serves(task: &Task) -> bool {
    matches!(state(task), TaskState::Running | TaskState::Starting)
}

fn reason(task: &Task) -> String {
    task.status.as_ref().map(|status| status.message.clone()).unwrap_or_default()
}

/// Derived from what it is for, so that whoever begins the creation again after a crash finds what the dead one made.
fn task_name(service: &str, uid: &str, slot: &Slot, revision: &str, number: u32) -> String {
    let digest = Sha256::digest(format!("{uid}/{slot}/{revision}/{number}"));
    let suffix: String = digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    format!("{service}-{slot}-{suffix}")
}
