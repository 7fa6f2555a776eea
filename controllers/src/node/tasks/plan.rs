//! What to do next for one task: a pure function of what is seen.
//!
//! Each reconcile makes all steps that need no waiting, in order, and ends when something has to happen by itself: an
//! image arrives, a container ends, a check passes, a time comes.

use std::time::Duration;

use reconciler::api::Timestamp;
use schemas::kinds::task::{
    Attempt, DesiredState, HealthStatus, IMAGE_UNAVAILABLE, LOST, NODE_FINALIZER, PullProgress, Task, TaskState,
    TaskStatus, WAITING_FOR_ADDRESS, WAITING_FOR_VOLUME,
};

use super::background::Stage;
use super::health::{self, Check};
use super::observe::{Addressing, ImageFailure, ImageOutcome, LOOKED_AT_WITHIN, Seen, Volumes};
use super::planted::Planted;
use super::restart::{self, Next};
use crate::node::containerd::{Container, State};

/// One step. Each may be repeated.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Says so in the store.
    Status(Box<TaskStatus>),
    /// Begins to have the image.
    HaveImage,
    ForgetImage,
    /// Network, volumes, files and pipes for the attempt.
    Prepare(u32),
    Create(u32),
    Start(u32),
    /// Checks the health of the attempt from now on.
    Check {
        attempt: u32,
        check: Check,
        was_healthy: bool,
    },
    /// Goes on only when nobody is connected to the task any more, and says meanwhile that this is waited for.
    Drain,
    /// Asks the attempt to end, in the way that its image or service says.
    AskToEnd(u32),
    /// Whatever is left of the attempt goes.
    Remove(u32),
    /// What is beside containers goes.
    Release,
    /// The logs go, and with them the last that is here.
    ForgetLogs,
    /// The store may let go of the task.
    LetGo,
}

impl Step {
    /// The attempt whose container becomes another by it.
    pub(super) fn changes(&self) -> Option<u32> {
        match self {
            Step::Create(attempt) | Step::Start(attempt) | Step::Remove(attempt) => Some(*attempt),
            _ => None,
        }
    }
}

/// What shall be done, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub steps: Vec<Step>,
    /// Again after this, if nothing happens before.
    pub look_again: Option<Duration>,
}

/// A container whose shim does not answer is asked again so often.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// An image that could not be had for a reason that may pass is tried again so often: a registry's reason, or one of this
/// machine's own containerd, which is back a moment after it was killed.
const TRY_IMAGE_AGAIN: Duration = Duration::from_secs(5);
const TRY_RUNTIME_AGAIN: Duration = Duration::from_millis(250);
/// How soon it is seen that an image has to be pulled, and how far that has come.
const LOOK_AT_PULL: Duration = Duration::from_millis(500);
/// How long something may take to end that nobody states a time for any more.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

pub(super) fn plan(seen: &Seen) -> Plan {
    let mut plan = Plan::default();
    if seen.unseen {
        look_again(&mut plan, LOOKED_AT_WITHIN);
    }
    let Some(task) = &seen.task else {
        if end_containers(seen, ORPHAN_GRACE, &mut plan) && seen.prepared {
            plan.steps.extend([Step::Release, Step::ForgetLogs]);
        }
        return plan;
    };
    let status = task.status.clone().unwrap_or_default();
    let deleting = task.metadata.deletion_timestamp.is_some();
    if status.state.is_terminal() {
        rest(seen, deleting, &mut plan);
    } else if deleting || task.spec.desired == DesiredState::Stopped {
        stop(seen, task, status, &mut plan);
    } else {
        bring_up(seen, task, status, &mut plan);
    }
    plan
}

/// Nothing of a task that has ended stays but its logs, and those go with the task.
fn rest(seen: &Seen, deleting: bool, plan: &mut Plan) {
    if !end_containers(seen, Duration::ZERO, plan) {
        return;
    }
    if seen.image.is_some() {
        plan.steps.push(Step::ForgetImage);
    }
    if seen.prepared {
        plan.steps.push(Step::Release);
    }
    let holds =
        seen.task.as_ref().is_some_and(|task| task.metadata.finalizers.iter().any(|name| name == NODE_FINALIZER));
    if deleting && holds {
        plan.steps.extend([Step::ForgetLogs, Step::LetGo]);
    }
}

/// Asks what runs to end, kills it after `grace`, removes what has ended. True once there is nothing.
fn end_containers(seen: &Seen, grace: Duration, plan: &mut Plan) -> bool {
    for (attempt, container) in &seen.containers {
        match container.state {
            State::Running { .. } if !container.orphan && !grace.is_zero() => match seen.signalled.get(attempt) {
                None => {
                    plan.steps.push(Step::AskToEnd(*attempt));
                    look_again(plan, grace);
                }
                Some(ago) if *ago < grace => look_again(plan, grace - *ago),
                Some(_) => plan.steps.push(Step::Remove(*attempt)),
            },
            State::Unknown => look_again(plan, ASK_AGAIN),
            _ => plan.steps.push(Step::Remove(*attempt)),
        }
    }
    seen.containers.is_empty()
}

fn stop(seen: &Seen, task: &Task, mut status: TaskStatus, plan: &mut Plan) {
    let before = status.clone();
    let mut ending = None;
    for (attempt, container) in &seen.containers {
        if let Some(end) = end_of(&container.state) {
            finish(&mut status, *attempt, end, seen.now, usize::MAX);
            ending = Some(*attempt);
        }
    }
    let grace = seen.template().map_or(ORPHAN_GRACE, |template| template.container.stop_grace().get());
    let mut steps = Plan::default();
    if drains(seen, task, &status) {
        plan.steps.push(Step::Drain);
    }
    if end_containers(seen, grace, &mut steps) {
        if let Some(last) = status.attempts.last().filter(|last| last.finished_at.is_none()).map(|last| last.number) {
            finish(&mut status, last, End::lost(), seen.now, usize::MAX);
        }
        if seen.image.is_some() {
            plan.steps.push(Step::ForgetImage);
        }
        if seen.prepared {
            plan.steps.push(Step::Release);
        }
        let message = match task.metadata.deletion_timestamp {
            Some(_) => "the task was deleted",
            None => "stopped, as it was no longer wanted",
        };
        to(&mut status, TaskState::Complete, "Stopped", message, seen.now);
        clear(&mut status);
    } else if ending.is_none() {
        to(&mut status, TaskState::Stopping, "Stopping", "asked to end", seen.now);
    }
    if status != before {
        plan.steps.push(Step::Status(Box::new(status)));
    }
    plan.steps.append(&mut steps.steps);
    plan.look_again = steps.look_again;
}

/// Whether connections to the task may still go on. Nobody waits for those to one that is deleted.
fn drains(seen: &Seen, task: &Task, status: &TaskStatus) -> bool {
    let runs = |container: &Container| matches!(container.state, State::Running { .. }) && !container.orphan;
    let serves = seen.containers.iter().any(|(n, container)| runs(container) && !seen.signalled.contains_key(n));
    // The state says since when: a successor waits no longer than the rest, and nobody when the clock was set back.
    let waited = match (status.state, status.reason.as_str(), status.since) {
        (TaskState::Stopping, DRAINING, Some(since)) if since > seen.now => Duration::MAX,
        (TaskState::Stopping, DRAINING, Some(since)) => seen.now.since(since),
        (TaskState::Stopping, ..) => Duration::MAX,
        _ => Duration::ZERO,
    };
    serves && task.metadata.deletion_timestamp.is_none() && waited < seen.drain
}

const DRAINING: &str = "Draining";

/// Somebody is connected to the task, which shall stop.
pub(super) fn draining(seen: &Seen, status: &TaskStatus) -> TaskStatus {
    let mut status = status.clone();
    to(&mut status, TaskState::Stopping, DRAINING, "out of the mesh; waits for its connections to end", seen.now);
    status
}

fn bring_up(seen: &Seen, task: &Task, mut status: TaskStatus, plan: &mut Plan) {
    let before = status.clone();
    let current = seen.containers.last_key_value();
    for older in seen.containers.keys().rev().skip(1) {
        plan.steps.push(Step::Remove(*older));
    }
    match current {
        Some((attempt, container)) if container.orphan || is_finished(&status, *attempt) => {
            plan.steps.push(Step::Remove(*attempt));
        }
        Some((attempt, container)) => match container.state {
            State::Unknown if seen.bugs.has(Planted::SilentIsLost) => plan.steps.push(Step::Remove(*attempt)),
            State::Unknown => look_again(plan, ASK_AGAIN),
            State::Running { pid } => running(seen, &mut status, *attempt, pid, plan),
            State::Created if task.spec.desired >= DesiredState::Running => plan.steps.push(Step::Start(*attempt)),
            State::Created | State::Incomplete => begin(seen, task, &mut status, *attempt, plan),
            State::Stopped { .. } | State::Gone => {
                let mut end = end_of(&container.state).unwrap_or_else(End::lost);
                if let Some(health) = seen.health.get(attempt).filter(|health| health.failed) {
                    end = End::unhealthy(health, end.exit_code);
                }
                ended(seen, &mut status, *attempt, end);
                plan.steps.push(Step::Status(Box::new(status.clone())));
                plan.steps.push(Step::Remove(*attempt));
                return;
            }
        },
        None => match status.attempts.last().filter(|last| last.finished_at.is_none()).map(|last| last.number) {
            Some(lost) => ended(seen, &mut status, lost, End::lost()),
            None => {
                let attempt = status.attempts.last().map_or(1, |last| last.number + 1);
                let policy = seen.template().map(|template| template.restart.clone()).unwrap_or_default();
                let wait = status.next_attempt_at.map_or(Duration::ZERO, |at| at.since(seen.now));
                // Longer than any wait: the clock was set back.
                let wait = if wait > restart::longest_wait(&policy) { Duration::ZERO } else { wait };
                if wait.is_zero() {
                    begin(seen, task, &mut status, attempt, plan);
                } else {
                    look_again(plan, wait);
                }
            }
        },
    }
    status.observed_generation = task.metadata.generation;
    if status != before {
        plan.steps.insert(0, Step::Status(Box::new(status)));
    }
}

/// Towards a running attempt: image, addresses, surroundings, container.
fn begin(seen: &Seen, task: &Task, status: &mut TaskStatus, attempt: u32, plan: &mut Plan) {
    let again = attempt > 1;
    let preparing = if again { TaskState::Starting } else { TaskState::Preparing };
    let Some(template) = seen.template() else {
        to(
            status,
            preparing,
            "WaitingForRevision",
            format!("revision {} is not there yet", task.spec.revision),
            seen.now,
        );
        return;
    };
    // Mostly it is here, which is known in a moment: nobody is told until it has to be waited for.
    if seen.image.is_none() {
        plan.steps.push(Step::HaveImage);
        return look_again(plan, LOOK_AT_PULL);
    }
    match &seen.addresses {
        Addressing::Given(addresses) => status.addresses.clone_from(addresses),
        Addressing::Waiting(why) => to(status, preparing, WAITING_FOR_ADDRESS, why.clone(), seen.now),
    }
    let image = match &seen.image {
        // While it is tried again, why it failed is still what a person wants to know.
        Some(Stage::UnderWay) if status.reason == IMAGE_UNAVAILABLE => return,
        None | Some(Stage::UnderWay) => {
            look_again(plan, LOOK_AT_PULL);
            // Of an image that is here nothing is pulled.
            let Some(pull) = seen.pull.filter(|pull| pull.total_bytes > 0) else {
                if status.reason != "Pulling" {
                    let message = format!("looking for image {}", template.container.image);
                    to(status, preparing, "Preparing", message, seen.now);
                }
                return;
            };
            status.pull = Some(PullProgress { done_bytes: pull.done_bytes, total_bytes: pull.total_bytes });
            let message = format!("pulling image {}", template.container.image);
            return to(status, preparing, "Pulling", message, seen.now);
        }
        Some(Stage::Done(ImageOutcome::Failed {
            failure: ImageFailure::Registry | ImageFailure::Runtime,
            message,
        })) => {
            try_image_again(seen, plan);
            return to(status, preparing, IMAGE_UNAVAILABLE, message.clone(), seen.now);
        }
        Some(Stage::Done(ImageOutcome::Failed { failure: ImageFailure::Lasting, message })) => {
            to(status, TaskState::Rejected, IMAGE_UNAVAILABLE, message.clone(), seen.now);
            return clear(status);
        }
        Some(Stage::Done(ImageOutcome::Here(image))) => image,
    };
    if let Addressing::Waiting(_) = seen.addresses {
        return;
    }
    // A task that has run has its volumes, and keeps them until it ends.
    if !again {
        match &seen.volumes {
            Volumes::There(_) => {}
            Volumes::Waiting(why) => return to(status, preparing, WAITING_FOR_VOLUME, why.clone(), seen.now),
            Volumes::Elsewhere(why) => {
                to(status, TaskState::Rejected, "VolumeElsewhere", why.clone(), seen.now);
                return clear(status);
            }
        }
    }
    status.pull = None;
    status.image_digest = Some(image.digest.to_string());
    plan.steps.push(Step::Prepare(attempt));
    if task.spec.desired < DesiredState::Running {
        return to(status, TaskState::Ready, "Ready", "could start", seen.now);
    }
    plan.steps.extend([Step::Create(attempt), Step::Start(attempt)]);
    // While it is tried again, why it failed stays: said anew at each try it would wake us at once each time.
    if !again && status.state <= TaskState::Preparing && status.reason != TRIED_AGAIN {
        to(status, TaskState::Preparing, "Preparing", "the container is being made", seen.now);
    }
}

/// The outcome stays for a while: forgetting it would begin the next try at once. One that fails at once and in the same
/// words is no news to anybody, so it is looked for.
fn try_image_again(seen: &Seen, plan: &mut Plan) {
    let pause = match &seen.image {
        Some(Stage::Done(ImageOutcome::Failed { failure: ImageFailure::Runtime, .. })) => TRY_RUNTIME_AGAIN,
        _ => TRY_IMAGE_AGAIN,
    };
    match pause.checked_sub(seen.image_age) {
        Some(rest) if !rest.is_zero() => look_again(plan, rest),
        _ => {
            plan.steps.extend([Step::ForgetImage, Step::HaveImage]);
            look_again(plan, pause);
        }
    }
}

fn is_lost(image: &Option<Stage<ImageOutcome>>) -> bool {
    matches!(image, Some(Stage::Done(ImageOutcome::Failed { failure: ImageFailure::Lasting, .. })))
}

/// An attempt that runs: is it healthy?
fn running(seen: &Seen, status: &mut TaskStatus, attempt: u32, pid: u32, plan: &mut Plan) {
    let was_running = status.state == TaskState::Running;
    let known = status.attempts.iter().any(|known| known.number == attempt);
    if !known {
        let begun = Attempt { number: attempt, started_at: Some(seen.now), ..Attempt::default() };
        status.attempts.push(begun);
        keep(status, seen);
    }
    status.restarts = attempt.saturating_sub(1);
    status.next_attempt_at = None;
    status.pid = Some(pid);
    status.container_id = super::container_id(&seen.uid, attempt).map(String::from);
    if let Addressing::Given(addresses) = &seen.addresses {
        status.addresses.clone_from(addresses);
    }
    let check = match (seen.template(), seen.image_here()) {
        // Whether the image brings a check is not known before the image is; one that is to be had no more brings none.
        (Some(template), None) if template.container.health.is_none() && !is_lost(&seen.image) => {
            match &seen.image {
                None => plan.steps.push(Step::HaveImage),
                Some(Stage::Done(ImageOutcome::Failed { .. })) => try_image_again(seen, plan),
                Some(_) => {}
            }
            if known {
                return;
            }
            return to(status, TaskState::Starting, "Starting", "started", seen.now);
        }
        (Some(template), image) => {
            health::check_for(&template.container, image.and_then(|image| image.healthcheck.as_ref()))
        }
        (None, _) => None,
    };
    let Some(check) = check else {
        status.health = None;
        return to(status, TaskState::Running, "Running", "", seen.now);
    };
    let Some(health) = seen.health.get(&attempt) else {
        plan.steps.push(Step::Check { attempt, check, was_healthy: was_running && known });
        if !was_running {
            to(status, TaskState::Starting, "Starting", "waits for its health check to pass", seen.now);
        }
        return;
    };
    let output = health.output.clone();
    status.health = Some(HealthStatus { healthy: health.healthy, failures: health.failures, output });
    if health.failed {
        let grace = seen.template().map_or(ORPHAN_GRACE, |template| template.container.stop_grace().get());
        match seen.signalled.get(&attempt) {
            None => {
                plan.steps.push(Step::AskToEnd(attempt));
                look_again(plan, grace);
            }
            Some(ago) if *ago < grace => look_again(plan, grace - *ago),
            Some(_) => {
                ended(seen, status, attempt, End::unhealthy(health, None));
                plan.steps.push(Step::Remove(attempt));
                return;
            }
        }
        let message = format!("its health check failed {} times in a row: {}", health.failures, health.output);
        return to(status, TaskState::Starting, "Unhealthy", message, seen.now);
    }
    match health.healthy {
        true => to(status, TaskState::Running, "Running", "", seen.now),
        false => {
            let message = match health.output.as_str() {
                "" => "waits for its health check to pass".to_owned(),
                said => format!("waits for its health check to pass, which says: {said}"),
            };
            to(status, TaskState::Starting, "Starting", message, seen.now);
        }
    }
}

/// An attempt could not be started: one that failed at once.
pub(super) fn could_not_start(seen: &Seen, status: &TaskStatus, attempt: u32, message: &str) -> TaskStatus {
    let mut status = status.clone();
    let end = End { exit_code: None, at: None, reason: "CannotStart", message: message.to_owned() };
    ended(seen, &mut status, attempt, end);
    status
}

const TRIED_AGAIN: &str = "CannotPrepare";

/// It could not be made ready, and is tried again.
pub(super) fn tried_again(seen: &Seen, status: &TaskStatus, message: &str) -> TaskStatus {
    let mut status = status.clone();
    let state = status.state.max(TaskState::Preparing);
    to(&mut status, state, TRIED_AGAIN, format!("{message}; it is tried again"), seen.now);
    status
}

/// Nothing can be started of this.
pub(super) fn rejected(seen: &Seen, status: &TaskStatus, reason: &str, message: &str) -> TaskStatus {
    let mut status = status.clone();
    to(&mut status, TaskState::Rejected, reason, message, seen.now);
    clear(&mut status);
    status
}

/// How an attempt ended.
struct End {
    exit_code: Option<u32>,
    at: Option<Timestamp>,
    reason: &'static str,
    message: String,
}

impl End {
    fn lost() -> Self {
        let message = "lost: it ended while nobody watched (the machine was restarted, or its record was removed)";
        End { exit_code: None, at: None, reason: LOST, message: message.to_owned() }
    }

    fn unhealthy(health: &health::Health, exit_code: Option<u32>) -> Self {
        let message = format!("its health check failed {} times in a row: {}", health.failures, health.output);
        End { exit_code, at: None, reason: "Unhealthy", message }
    }
}

fn end_of(state: &State) -> Option<End> {
    match state {
        State::Stopped { exit_code, exited_at, out_of_memory } => {
            let (reason, message) = match (out_of_memory, exit_code) {
                (true, _) => ("OutOfMemory", "killed: it used more memory than its limit".to_owned()),
                (false, code @ 129..=192) => ("Exited", format!("ended by signal {} (exit code {code})", code - 128)),
                (false, code) => ("Exited", format!("ended with exit code {code}")),
            };
            Some(End { exit_code: Some(*exit_code), at: Some(*exited_at), reason, message })
        }
        State::Gone => Some(End::lost()),
        _ => None,
    }
}

/// The attempt has ended; what comes next is said as well.
fn ended(seen: &Seen, status: &mut TaskStatus, attempt: u32, end: End) {
    let policy = seen.template().map(|template| template.restart.clone()).unwrap_or_default();
    finish(status, attempt, end, seen.now, restart::attempts_kept(&policy));
    status.pid = None;
    status.container_id = None;
    status.health = None;
    match restart::next(&policy, status, seen.now, seen.jitter) {
        Next::At(at) => {
            status.next_attempt_at = Some(at);
            status.restarts = attempt;
            let last = status.attempts.last().map(|last| last.message.clone()).unwrap_or_default();
            let message = match at.since(seen.now) {
                wait if wait.is_zero() => format!("{last}; starting again"),
                wait => format!("{last}; starting again in {:.1} s", wait.as_secs_f64()),
            };
            to(status, TaskState::Starting, "Restarting", message, seen.now);
        }
        Next::End { state, reason, message } => {
            to(status, state, reason, message, seen.now);
            clear(status);
        }
    }
}

fn finish(status: &mut TaskStatus, attempt: u32, end: End, now: Timestamp, kept: usize) {
    if !status.attempts.iter().any(|known| known.number == attempt) {
        let started_at = end.at.or(Some(now));
        status.attempts.push(Attempt { number: attempt, started_at, ..Attempt::default() });
    }
    for known in status.attempts.iter_mut().filter(|known| known.number == attempt && known.finished_at.is_none()) {
        known.finished_at = Some(end.at.unwrap_or(now));
        known.exit_code = end.exit_code.and_then(|code| i32::try_from(code).ok());
        known.reason = end.reason.to_owned();
        known.message.clone_from(&end.message);
    }
    let surplus = status.attempts.len().saturating_sub(kept);
    status.attempts.drain(..surplus);
}

fn keep(status: &mut TaskStatus, seen: &Seen) {
    let kept = seen.template().map_or(restart::ATTEMPTS_KEPT, |template| restart::attempts_kept(&template.restart));
    let surplus = status.attempts.len().saturating_sub(kept);
    status.attempts.drain(..surplus);
}

fn is_finished(status: &TaskStatus, attempt: u32) -> bool {
    let last = status.attempts.last().map_or(0, |last| last.number);
    attempt < last || status.attempts.iter().any(|known| known.number == attempt && known.finished_at.is_some())
}

fn to(status: &mut TaskStatus, state: TaskState, reason: &str, message: impl Into<String>, now: Timestamp) {
    if status.state != state {
        status.state = state;
        status.since = Some(now);
    }
    status.reason = reason.to_owned();
    status.message = message.into();
}

/// A task that has ended holds nothing any more.
fn clear(status: &mut TaskStatus) {
    status.addresses.clear();
    status.ports.clear();
    status.container_id = None;
    status.pid = None;
    status.health = None;
    status.pull = None;
    status.next_attempt_at = None;
}

fn look_again(plan: &mut Plan, after: Duration) {
    plan.look_again = Some(plan.look_again.map_or(after, |before| before.min(after)));
}
