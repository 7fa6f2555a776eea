//! containerd's records and layers, shims' tasks, and what the programs in them do.

use std::collections::BTreeMap;
use std::time::Duration;

use controllers::node::containerd::{ContainerId, State as Seen};
use reconciler::api::{Timestamp, Uid};

use super::super::tally::Happened;
use super::{COLLECTED, LATE, Nature, State};

/// What is left or there of one container. Gone when all three are.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Which one of this name.
    made: u64,
    pub record: Option<Record>,
    pub layer: bool,
    pub task: Option<Task>,
    creation: Creation,
}

#[derive(Clone, Debug, Hash)]
pub struct Record {
    pub labels: BTreeMap<String, String>,
    pub image: String,
    /// The task was complete once.
    pub complete: bool,
}

/// A shim and a process.
#[derive(Clone, Debug)]
pub struct Task {
    pub pid: u32,
    image: String,
    attempt: u32,
    pub status: Status,
    silent_until: Duration,
    /// Somebody took its record away.
    pub tampered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    Created,
    Running,
    Stopped { exit_code: u32, exited_at: Timestamp },
}

/// Whether containerd is at making the task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Creation {
    #[default]
    None,
    UnderWay,
    /// It died while it was.
    Stuck,
}

/// What making a container can meet with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Done,
    /// It was complete before.
    Complete,
    Spent,
    Busy,
    NoLayers,
    Fails(&'static str),
}

/// Whose attempt, and which.
pub fn uid_of(id: &ContainerId) -> (Uid, u32) {
    let (uid, attempt) = id.as_str().rsplit_once('.').expect("a container of ours has two parts in its name");
    (Uid::new(uid), attempt.parse().expect("the second is a number"))
}

/// When a program ends by itself, and how.
fn program(image: &str, attempt: u32) -> Option<(Duration, u32)> {
    match image {
        _ if image.contains("flaky") && attempt <= 2 => Some((Duration::from_secs(1), 3)),
        _ if image.contains("once") => Some((Duration::from_secs(2), 0)),
        _ => None,
    }
}

/// How long it takes to obey SIGTERM; `None`: it never does.
fn obeys(image: &str) -> Option<Duration> {
    (!image.contains("stubborn")).then_some(Duration::from_millis(200))
}

impl Task {
    /// What its health check says.
    pub fn is_healthy(&self) -> bool {
        !(self.image.contains("sick") && self.attempt == 1)
    }

    pub fn runs(&self) -> bool {
        self.status == Status::Running
    }
}

impl Container {
    pub fn runs(&self) -> bool {
        self.task.as_ref().is_some_and(Task::runs)
    }

    fn is_gone(&self) -> bool {
        self.record.is_none() && !self.layer && self.task.is_none() && self.creation == Creation::None
    }

    /// What tells one state of a machine from another.
    pub fn outline(&self) -> (Option<bool>, bool, Option<u8>) {
        let status = self.task.as_ref().map(|task| match task.status {
            Status::Created => 0,
            Status::Running => 1,
            Status::Stopped { .. } => 2,
        });
        (self.record.as_ref().map(|record| record.complete), self.layer, status)
    }
}

impl State {
    pub(super) fn serial(&self, id: &ContainerId) -> u64 {
        self.containers.get(id).map_or(0, |container| container.made)
    }

    fn same(&mut self, id: &ContainerId, serial: u64) -> Option<&mut Container> {
        self.containers.get_mut(id).filter(|container| container.made == serial)
    }

    fn tell(&mut self, id: &ContainerId) {
        if !self.away {
            self.events.push(id.clone());
        }
    }

    fn tidy(&mut self, id: &ContainerId) {
        if self.containers.get(id).is_some_and(Container::is_gone) {
            self.containers.remove(id);
        }
    }

    /// The events from `from` on.
    pub(super) fn events_from(&self, from: usize) -> Option<ContainerId> {
        self.events.get(from).cloned()
    }

    pub(super) fn events_told(&self) -> (u64, usize) {
        (self.containerd_run, self.events.len())
    }

    /// As `list` and `inspect` have it.
    pub(super) fn seen(&self, id: &ContainerId) -> Option<(BTreeMap<String, String>, Seen, bool)> {
        let container = self.containers.get(id)?;
        let labels = container.record.as_ref().map(|record| record.labels.clone()).unwrap_or_default();
        let state = match (&container.task, &container.record) {
            (Some(task), _) if task.silent_until > self.now => Seen::Unknown,
            (Some(task), _) => match task.status {
                Status::Created => Seen::Created,
                Status::Running => Seen::Running { pid: task.pid },
                Status::Stopped { exit_code, exited_at } => {
                    Seen::Stopped { exit_code, exited_at, out_of_memory: false }
                }
            },
            (None, Some(record)) => {
                if record.complete {
                    Seen::Gone
                } else {
                    Seen::Incomplete
                }
            }
            // A layer that waits for the collector.
            (None, None) => return None,
        };
        Some((labels, state, container.record.is_none()))
    }

    pub(super) fn make_record(&mut self, id: &ContainerId, record: Record) -> Met {
        self.made += 1;
        let made = self.made;
        let container = self.containers.entry(id.clone()).or_insert_with(|| Container { made, ..Container::default() });
        match (&container.record, &container.task) {
            (Some(found), Some(_)) if found.complete => return Met::Complete,
            (Some(found), None) if found.complete => return Met::Spent,
            (Some(_), _) => {}
            (None, _) => container.record = Some(record),
        }
        self.tell(id);
        Met::Done
    }

    pub(super) fn make_layer(&mut self, id: &ContainerId, parent: &str) -> Met {
        if !parent.is_empty() && !self.has_layers(parent) {
            return Met::NoLayers;
        }
        match self.containers.get_mut(id).filter(|container| container.record.is_some()) {
            Some(container) => container.layer = true,
            // Nothing holds it.
            None => return Met::Busy,
        }
        Met::Done
    }

    /// Whether containerd is asked to make the task now; it stays at it until [`State::make_task`] or a removal.
    pub(super) fn begin_task(&mut self, id: &ContainerId, pipes: bool) -> Met {
        let (uid, _) = uid_of(id);
        let Some(container) = self.containers.get_mut(id).filter(|it| it.record.is_some() && it.layer) else {
            return Met::Busy;
        };
        if container.task.is_some() {
            return Met::Done;
        }
        if container.creation != Creation::None {
            return Met::Busy;
        }
        let image = container.record.as_ref().map(|record| record.image.clone()).unwrap_or_default();
        if image.contains("broken") && uid_of(id).1 == 1 {
            return Met::Fails("exec: \"nope\": executable file not found in $PATH");
        }
        let place = self.places.get(&uid);
        if place.is_none_or(|place| place.link.is_none()) {
            return Met::Fails("the network namespace is not there");
        }
        if place.is_some_and(|place| place.mounts.iter().any(|volume| !self.volumes.contains_key(volume))) {
            return Met::Fails("the volume's directory is not there");
        }
        if pipes && place.is_none_or(|place| place.pipes.get(id) != Some(&false)) {
            return Met::Fails("the pipes are not there");
        }
        self.containers.get_mut(id).expect("it was there").creation = Creation::UnderWay;
        if std::mem::take(&mut self.dies_at_work) {
            self.containerd_goes();
        }
        Met::Done
    }

    pub(super) fn make_task(&mut self, id: &ContainerId, serial: u64) {
        let pid = 100 + u32::try_from(self.made).unwrap_or(0) * 10;
        let attempt = uid_of(id).1;
        let Some(container) = self.same(id, serial) else { return };
        if container.creation != Creation::UnderWay || container.task.is_some() {
            return;
        }
        container.creation = Creation::None;
        let image = container.record.as_ref().map(|record| record.image.clone()).unwrap_or_default();
        let silent_until = Duration::ZERO;
        let status = Status::Created;
        container.task = Some(Task { pid, image, attempt, status, silent_until, tampered: false });
        self.tell(id);
    }

    /// It was asked to make the task, and nobody will hear how that ends.
    pub(super) fn make_task_later(&mut self, id: &ContainerId, serial: u64) {
        let id = id.clone();
        self.after(LATE, Nature::Request, move |state| {
            if state.same(&id, serial).is_some_and(|container| container.creation == Creation::UnderWay) {
                state.make_task(&id, serial);
                state.tally.count(Happened::DoneLate);
            }
        });
    }

    pub(super) fn mark_complete(&mut self, id: &ContainerId, serial: u64) {
        if let Some(record) = self.same(id, serial).and_then(|container| container.record.as_mut()) {
            record.complete = true;
            self.tell(id);
        }
    }

    pub(super) fn start_task(&mut self, id: &ContainerId, serial: u64) -> Met {
        let (uid, attempt) = uid_of(id);
        let Some(task) = self.same(id, serial).and_then(|container| container.task.as_mut()) else {
            return Met::Fails("no such task");
        };
        if task.status != Status::Created {
            return Met::Done;
        }
        task.status = Status::Running;
        let image = task.image.clone();
        self.tell(id);
        if self.places.get(&uid).is_none_or(|place| place.link.is_none()) {
            self.breaks(format!("{id} starts without a network namespace"));
        }
        let mut others =
            self.containers.iter().filter(|(other, it)| *other != id && it.runs() && uid_of(other).0 == uid);
        if let Some((other, _)) = others.next() {
            let what = format!("{other} and {id} run at the same time");
            self.breaks(what);
        }
        if let Some((lasts, code)) = program(&image, attempt) {
            let id = id.clone();
            self.after(lasts, Nature::Process, move |state| {
                if state.same(&id, serial).is_some() {
                    state.exits(&id, code, false);
                }
            });
        }
        Met::Done
    }

    /// Its first process ends. `ours`: a request of ours has done it.
    pub(super) fn exits(&mut self, id: &ContainerId, exit_code: u32, ours: bool) {
        let exited_at = self.wall();
        let Some(task) = self.containers.get_mut(id).and_then(|container| container.task.as_mut()) else { return };
        if !task.runs() {
            return;
        }
        let well = !task.tampered && task.is_healthy();
        task.status = Status::Stopped { exit_code, exited_at };
        if ours && well {
            self.ended.push(id.clone());
        }
        self.tell(id);
    }

    pub(super) fn ask_to_end(&mut self, id: &ContainerId, serial: u64) {
        let Some(container) = self.same(id, serial).filter(|container| container.runs()) else { return };
        let Some(task) = container.task.as_ref() else { return };
        let (image, well) = (task.image.clone(), !task.tampered && task.is_healthy());
        if well {
            self.ended.push(id.clone());
        }
        if let Some(wait) = obeys(&image) {
            let id = id.clone();
            self.after(wait, Nature::Process, move |state| {
                if state.same(&id, serial).is_some() {
                    state.exits(&id, 143, true);
                }
            });
        }
    }

    /// What runs is killed; a creation that is under way comes to nothing.
    pub(super) fn remove_task(&mut self, id: &ContainerId, serial: u64) {
        if self.same(id, serial).is_none() {
            return;
        }
        self.exits(id, 137, true);
        if let Some(container) = self.containers.get_mut(id) {
            container.task = None;
            container.creation = Creation::None;
        }
        self.tell(id);
        self.tidy(id);
    }

    pub(super) fn remove_record_of(&mut self, id: &ContainerId, serial: u64) {
        if let Some(container) = self.same(id, serial) {
            container.record = None;
            self.tell(id);
            self.tidy(id);
            self.after(COLLECTED, Nature::Sure, State::collect);
        }
    }

    pub(super) fn remove_layer(&mut self, id: &ContainerId, serial: u64) {
        if let Some(container) = self.same(id, serial) {
            container.layer = false;
            self.tidy(id);
        }
    }

    /// What nobody holds goes.
    pub(super) fn collect(&mut self) {
        if self.away {
            return;
        }
        for container in self.containers.values_mut() {
            container.layer &= container.record.is_some();
        }
        self.containers.retain(|_, container| !container.is_gone());
    }

    pub(super) fn creations_get_stuck(&mut self) {
        for container in self.containers.values_mut().filter(|it| it.creation == Creation::UnderWay) {
            container.creation = Creation::Stuck;
            self.tally.count(Happened::CreationStuck);
        }
    }

    pub(super) fn lose_processes(&mut self) {
        for container in self.containers.values_mut() {
            container.task = None;
            container.creation = Creation::None;
        }
        self.containers.retain(|_, container| !container.is_gone());
    }

    pub(super) fn newest_running(&self) -> Option<ContainerId> {
        let running = self.containers.iter().filter(|(_, container)| container.runs());
        running.max_by_key(|(_, container)| container.made).map(|(id, _)| id.clone())
    }

    pub(super) fn tamper(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.record = None;
            if let Some(task) = &mut container.task {
                task.tampered = true;
            }
            self.tell(id);
        }
    }

    pub(super) fn silence(&mut self, id: &ContainerId, how_long: Duration) {
        let until = self.now + how_long;
        if let Some(task) = self.containers.get_mut(id).and_then(|container| container.task.as_mut()) {
            task.silent_until = until;
            self.tell(id);
        }
    }
}
