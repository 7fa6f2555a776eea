//! How far the cluster has come: a pure function of what is known of it and the time.

use std::collections::BTreeSet;
use std::time::Duration;

use reconciler::{Timestamp, Truth};
use schemas::kinds::bundle::{Bundle, BundleState};
use schemas::kinds::service::{Mode, Service};
use schemas::kinds::task::{Attempt, DesiredState, IMAGE_UNAVAILABLE, LOST, Task, TaskState, WAITING_FOR_ADDRESS};
use schemas::names;

use super::Goal;
use super::world::World;
use crate::applyctl::words;

/// A container that ends at once has run for a moment: only what still runs after this long counts as up.
const SETTLED: Duration = Duration::from_secs(1);
/// The same for tasks that had to be started again before. Docker watches every task for so long.
const SETTLED_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// So many starts in a row that did not last are no accident.
const CRASHES: usize = 3;
/// What ran for longer before it ended did start.
const LASTED: Duration = Duration::from_secs(30);
/// What is so for less is no trouble yet.
const MOMENT: Duration = Duration::from_secs(1);
/// Nodes that are just coming up, and ports that are just given back, are no reason to give up.
const TRANSIENT: Duration = Duration::from_secs(3);
/// A registry that does not answer is asked again every five seconds: two tries more.
const REGISTRY: Duration = Duration::from_secs(10);

/// How far everything has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub lines: Vec<Line>,
    /// What stands in the way of the whole.
    pub problem: Option<Trouble>,
    pub up: bool,
    /// Up, as soon as it has been so until then.
    pub settles_at: Option<Timestamp>,
    pub networks: usize,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// As people call it here: its name in the file.
    pub name: String,
    pub service: String,
    pub running: u32,
    pub desired: u32,
    pub up: bool,
    /// A word: `running`, `pulling`.
    pub state: String,
    pub nodes: Vec<String>,
    pub detail: String,
    pub trouble: Option<Trouble>,
}

impl Line {
    /// Why it is not up, as far as that is known; what it is at otherwise. Empty once it is up.
    pub fn why(&self) -> &str {
        match &self.trouble {
            _ if self.up => "",
            Some(trouble) => &trouble.message,
            None => &self.detail,
        }
    }
}

/// Why something does not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub kind: TroubleKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    /// Its image, or what it asks of the machine, cannot be had.
    Rejected,
    Crashes,
    Unhealthy,
    /// It ended for good.
    Ended,
    NoNode,
    /// Its registry does not answer; it is asked again and again.
    NoImage,
    /// A condition of the service or bundle says so: a port that is taken, a name that belongs to another. Or a network is
    /// not there.
    Refused,
    /// It may pass.
    Passing,
}

impl TroubleKind {
    /// How long it has to last before waiting for its end is given up; absent: for ever.
    pub fn patience(self) -> Option<Duration> {
        match self {
            Self::Rejected | Self::Crashes | Self::Unhealthy | Self::Ended => Some(Duration::ZERO),
            Self::NoNode | Self::Refused => Some(TRANSIENT),
            Self::NoImage => Some(REGISTRY),
            Self::Passing => None,
        }
    }
}

pub fn look(world: &World, goal: &Goal, now: Timestamp) -> Progress {
    let mut progress = Progress::default();
    let mut settles: Option<Timestamp> = None;
    let mut note = |at: Option<Timestamp>| settles = settles.max(at);
    match goal {
        Goal::Bundle { name, generation } => {
            let Some(bundle) = &world.bundle else { return progress };
            let status = bundle.status.clone().unwrap_or_default();
            let seen = status.observed_generation >= *generation;
            progress.networks = networks(bundle);
            for (short, fragment) in &bundle.spec.services {
                let service = names::bundle_object_name(name, short).unwrap_or_else(|_| short.clone());
                let (mut line, at) = line(world, short, &service, None, now);
                if !seen {
                    // What is wrong now is wrong with what is being replaced.
                    line.trouble = None;
                    line.up = false;
                    (line.state, line.detail) = ("waiting".into(), String::new());
                }
                if !world.services.contains_key(&service) {
                    line.desired = fragment.to_spec().map_or(1, |spec| spec.replicas());
                }
                note(at);
                progress.lines.push(line);
            }
            if seen && status.state == BundleState::Degraded {
                let ready = status.conditions.get("Ready");
                let message = ready.map(|ready| ready.message.clone()).unwrap_or_default();
                progress.problem = Some(Trouble { kind: TroubleKind::Refused, message });
            }
            let dropped =
                world.services.keys().filter(|name| !progress.lines.iter().any(|line| line.service == **name));
            let dropped: Vec<String> = if bundle.spec.keep_dropped { Vec::new() } else { dropped.cloned().collect() };
            progress.up = seen
                && status.state == BundleState::Up
                && dropped.is_empty()
                && progress.lines.iter().all(|line| line.up);
            for service in dropped {
                let left = world.tasks_of(&service).iter().filter(|task| !ended(task)).count();
                progress.lines.push(Line {
                    name: service.strip_prefix(&format!("{name}-")).unwrap_or(&service).to_owned(),
                    running: u32::try_from(left).unwrap_or(u32::MAX),
                    service,
                    state: "leaving".into(),
                    detail: "no longer in the file".into(),
                    ..Line::default()
                });
            }
        }
        Goal::Services(services) => {
            for (service, generation) in services {
                let (line, at) = line(world, service, service, Some(*generation), now);
                note(at);
                progress.lines.push(line);
            }
            progress.up = progress.lines.iter().all(|line| line.up);
        }
    }
    if progress.up {
        progress.settles_at = settles.filter(|at| *at > now);
    }
    progress
}

fn networks(bundle: &Bundle) -> usize {
    let attached = bundle.spec.services.values().filter_map(|fragment| fragment.to_spec().ok());
    let attached = attached.flat_map(|spec| spec.template.networks).map(|network| network.name);
    let all: BTreeSet<String> = attached.chain(bundle.spec.networks.keys().cloned()).collect();
    all.len()
}

/// One service, and when it will have been up for long enough.
fn line(
    world: &World,
    name: &str,
    service: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> (Line, Option<Timestamp>) {
    let mut line = Line { name: name.to_owned(), service: service.to_owned(), ..Line::default() };
    let Some(live) = world.services.get(service) else {
        line.state = "waiting".into();
        line.desired = 1;
        return (line, None);
    };
    let status = live.status.clone().unwrap_or_default();
    let seen = status.observed_generation >= generation.unwrap_or(0).max(live.metadata.generation);
    line.desired = match live.spec.mode {
        Mode::Replicated => live.spec.replicas(),
        _ => status.desired,
    };
    let tasks = world.tasks_of(service);
    let wanted: Vec<&Task> =
        tasks.iter().copied().filter(|task| status.revision.as_deref() == Some(task.spec.revision.as_str())).collect();
    let live_tasks: Vec<&Task> =
        wanted.iter().copied().filter(|task| task.spec.desired <= DesiredState::Running).collect();
    // Of whatever revision: this is how many serve meanwhile. How many are new is said beside it.
    // Slots: while one takes the place of another, both may run.
    let serving = tasks.iter().filter(|task| task.spec.desired <= DesiredState::Running);
    let slots: BTreeSet<_> =
        serving.filter(|task| state(task) == TaskState::Running).map(|task| &task.spec.slot).collect();
    line.running = slots.len().try_into().unwrap_or(u32::MAX);
    line.nodes = nodes(&live_tasks);
    let refused = refused(live);
    // What the service has counted may be older than what its tasks say of themselves.
    let new_running: BTreeSet<_> =
        live_tasks.iter().filter(|task| state(task) == TaskState::Running).map(|task| &task.spec.slot).collect();
    let counted = status.updated >= status.desired && status.running >= status.desired;
    line.up = seen && counted && new_running.len() >= line.desired as usize && refused.is_none();
    if line.up {
        line.state = "running".into();
        let settles = live_tasks.iter().filter_map(|task| settles(task)).max();
        return (line, settles);
    }
    if !seen {
        line.state = "waiting".into();
        return (line, None);
    }
    line.trouble = refused.or_else(|| trouble(&wanted, now));
    let behind = live_tasks.iter().filter(|task| state(task) != TaskState::Running).min_by_key(|task| state(task));
    let replaces = tasks.iter().any(|task| Some(&task.spec.revision) != status.revision.as_ref() && !ended(task));
    let replaced = format!("{} of {} are new", status.updated, status.desired);
    (line.state, line.detail) = match behind {
        Some(task) => doing(task),
        None if replaces => ("replacing".into(), replaced.clone()),
        None if live_tasks.len() < line.desired as usize => ("waiting".into(), String::new()),
        None => ("starting".into(), String::new()),
    };
    if replaces && line.detail.is_empty() {
        line.detail = replaced;
    }
    if let Some(trouble) = &line.trouble {
        line.detail.clone_from(&trouble.message);
    }
    (line, None)
}

fn state(task: &Task) -> TaskState {
    task.status.as_ref().map(|status| status.state).unwrap_or_default()
}

fn ended(task: &Task) -> bool {
    state(task).is_terminal()
}

/// Where they run; the busiest first is of no use, so by name.
fn nodes(tasks: &[&Task]) -> Vec<String> {
    let names: BTreeSet<&String> = tasks.iter().filter_map(|task| task.spec.node_name.as_ref()).collect();
    names.into_iter().cloned().collect()
}

fn settles(task: &Task) -> Option<Timestamp> {
    let status = task.status.as_ref()?;
    let started = status.attempts.last().and_then(|attempt| attempt.started_at).or(status.since)?;
    let failed = status.restarts > 0 || status.attempts.iter().any(|attempt| attempt.finished_at.is_some());
    Some(started + if failed { SETTLED_AFTER_FAILURE } else { SETTLED })
}

/// What a task is at, in a word, and more about it.
fn doing(task: &Task) -> (String, String) {
    let status = task.status.clone().unwrap_or_default();
    match (status.state, status.pull, status.health) {
        (TaskState::Preparing, Some(pull), _) if pull.total_bytes > 0 => {
            ("pulling".into(), words::progress(pull.done_bytes, pull.total_bytes))
        }
        (TaskState::New | TaskState::Pending | TaskState::Assigned, ..) => ("pending".into(), status.message),
        (TaskState::Starting, _, Some(health)) if status.message.is_empty() => {
            let failures = words::count(health.failures as usize, "check");
            (
                "starting".into(),
                if health.failures == 0 { "health: not yet".into() } else { format!("health: {failures} failed") },
            )
        }
        (state, ..) => (state.as_str().to_lowercase(), status.message),
    }
}

/// What of a service's conditions says that something was refused.
fn refused(service: &Service) -> Option<Trouble> {
    let conditions = service.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    let said = conditions.iter().find(|condition| {
        condition.r#type != "Ready" && condition.status == Truth::False && !condition.message.is_empty()
    })?;
    Some(Trouble { kind: TroubleKind::Refused, message: said.message.clone() })
}

/// Why the tasks of the wanted revision do not all run: of all reasons the one that is hardest to get over.
fn trouble(wanted: &[&Task], now: Timestamp) -> Option<Trouble> {
    let rank = |kind: TroubleKind| kind.patience().map_or(usize::MAX, |patience| patience.as_millis() as usize);
    wanted.iter().filter_map(|task| task_trouble(task, now)).min_by_key(|trouble| rank(trouble.kind))
}

fn task_trouble(task: &Task, now: Timestamp) -> Option<Trouble> {
    let status = task.status.as_ref()?;
    let live = task.spec.desired <= DesiredState::Running;
    let of = |kind: TroubleKind, message: String| Some(Trouble { kind, message });
    match status.state {
        // A rejected task is told to stop and another one tries in its place: the reason stays.
        TaskState::Rejected => return of(TroubleKind::Rejected, or(&status.message, "it cannot be started")),
        _ if !live => return None,
        TaskState::Failed | TaskState::Complete => return of(TroubleKind::Ended, or(&status.message, "it has ended")),
        TaskState::Pending if !status.message.is_empty() => return of(TroubleKind::NoNode, status.message.clone()),
        TaskState::Running => return None,
        // A network that is new on the machine gets its addresses there within a moment.
        _ if status.reason == WAITING_FOR_ADDRESS => {
            let is_new = status.since.is_some_and(|since| now.since(since) < MOMENT);
            let kind = if is_new { TroubleKind::Passing } else { TroubleKind::Refused };
            return of(kind, status.message.clone());
        }
        _ if status.reason == IMAGE_UNAVAILABLE => return of(TroubleKind::NoImage, status.message.clone()),
        _ => {}
    }
    // What went with its machine says nothing of the application.
    let ended = || status.attempts.iter().rev().filter(|it| it.finished_at.is_some() && it.reason != LOST);
    let last = ended().next()?;
    let message = or(&last.message, &ending(last.exit_code));
    // Whatever the container said when it was asked to go.
    if last.reason == "Unhealthy" {
        return of(TroubleKind::Unhealthy, message);
    }
    let in_a_row = ended().take_while(|attempt| !lasted(attempt)).count();
    let times = words::count((status.restarts as usize).max(in_a_row), "time");
    match (in_a_row, last.exit_code) {
        (CRASHES.., Some(0)) => of(TroubleKind::Crashes, format!("{message}; it has ended {times}")),
        (CRASHES.., _) => of(TroubleKind::Crashes, format!("{message}; it has failed {times}")),
        _ => of(TroubleKind::Passing, message),
    }
}

fn lasted(attempt: &Attempt) -> bool {
    attempt.started_at.zip(attempt.finished_at).is_some_and(|(from, to)| to.since(from) >= LASTED)
}

fn ending(code: Option<i32>) -> String {
    code.map_or_else(|| "it ended".to_owned(), |code| format!("it ended with exit code {code}"))
}

fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text.to_owned() }
}
