//! Scenes for the plan: what is seen, and what shall be done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reconciler::Resource;
use reconciler::api::{Timestamp, Uid};
use schemas::Period;
use schemas::kinds::endpoints::TaskAddress;
use schemas::kinds::revision::{Revision, RevisionContent, RevisionSpec};
use schemas::kinds::task::{Attempt, DesiredState, NODE_FINALIZER, Slot, Task, TaskSpec, TaskState, TaskStatus};
use schemas::kinds::template::{ExecProbe, Health as WantedHealth, Probe, RestartCondition, TaskTemplate};

use super::background::Stage;
use super::health::Health;
use super::observe::{Addressing, ImageFailure, ImageHere, ImageOutcome, Seen, Volumes};
use super::plan::{Plan, Step, plan};
use super::planted::Bugs;
use crate::node::containerd::{Container, State};
use crate::node::images::Progress;

const NOW: Timestamp = Timestamp::from_seconds(1_000);

fn seen() -> Seen {
    let spec = TaskSpec {
        service: "web".into(),
        revision: "web-1".into(),
        slot: Slot::Number(1),
        node_name: Some("n1".into()),
        desired: DesiredState::Running,
        networks: vec![],
        in_place_of: None,
    };
    let mut task = Task::new("web-1", spec);
    task.metadata.finalizers = vec![NODE_FINALIZER.to_owned()];
    task.status = Some(TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() });
    let mut seen = Seen {
        uid: Uid::new("u1"),
        now: NOW,
        stored: None,
        task: Some(Arc::new(task)),
        revision: None,
        containers: BTreeMap::new(),
        unseen: false,
        prepared: false,
        image: None,
        image_age: Duration::ZERO,
        pull: None,
        login: None,
        addresses: Addressing::Given(vec![TaskAddress {
            network: "default".into(),
            address: "10.192.0.1".parse().unwrap(),
        }]),
        volumes: Volumes::There(vec![]),
        mtu: None,
        health: BTreeMap::new(),
        signalled: BTreeMap::new(),
        drain: Duration::ZERO,
        jitter: 0,
        bugs: Bugs::default(),
    };
    template(&mut seen, |template| template.container.image = "example/web:1".into());
    seen
}

fn template(seen: &mut Seen, change: impl FnOnce(&mut TaskTemplate)) {
    let mut template = seen.template().cloned().unwrap_or_default();
    change(&mut template);
    let content = RevisionContent::Template(Box::new(template));
    seen.revision = Some(Arc::new(Revision::new("web-1", RevisionSpec::new("web", content))));
}

fn task(seen: &mut Seen, change: impl FnOnce(&mut Task)) {
    let mut task = (**seen.task.as_ref().unwrap()).clone();
    change(&mut task);
    seen.task = Some(Arc::new(task));
}

fn desire(seen: &mut Seen, desired: DesiredState) {
    task(seen, |task| task.spec.desired = desired);
}

fn delete(seen: &mut Seen) {
    task(seen, |task| task.metadata.deletion_timestamp = Some(NOW));
}

fn status(seen: &mut Seen, change: impl FnOnce(&mut TaskStatus)) {
    task(seen, |task| change(task.status.get_or_insert_default()));
}

fn container(seen: &mut Seen, attempt: u32, state: State) {
    let id = super::container_id(&seen.uid, attempt).unwrap();
    let container = Container { id, labels: BTreeMap::new(), state, orphan: false };
    seen.containers.insert(attempt, Arc::new(container));
}

fn with_image(seen: &mut Seen) {
    let here = ImageHere {
        image: "example/web:1".parse().unwrap(),
        digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
        config: Default::default(),
        healthcheck: None,
        layers: String::new(),
    };
    seen.image = Some(Stage::Done(ImageOutcome::Here(Arc::new(here))));
}

/// As it is after a while of running well.
fn up() -> Seen {
    let mut seen = seen();
    with_image(&mut seen);
    let preparing = written(&seen, &plan(&seen));
    status(&mut seen, |status| *status = preparing);
    seen.prepared = true;
    container(&mut seen, 1, State::Running { pid: 7 });
    let running = written(&seen, &plan(&seen));
    status(&mut seen, |status| *status = running);
    seen
}

fn exited(seen: &mut Seen, attempt: u32, exit_code: u32) {
    container(seen, attempt, State::Stopped { exit_code, exited_at: NOW, out_of_memory: false });
}

/// The steps in words, with the state that a status says.
fn words(plan: &Plan) -> Vec<String> {
    let word = |step: &Step| match step {
        Step::Status(status) => format!("{} {}", status.state, status.reason),
        Step::HaveImage => "have image".into(),
        Step::ForgetImage => "forget image".into(),
        Step::Prepare(n) => format!("prepare {n}"),
        Step::Create(n) => format!("create {n}"),
        Step::Start(n) => format!("start {n}"),
        Step::Check { attempt, .. } => format!("check {attempt}"),
        Step::Drain => "drain".into(),
        Step::AskToEnd(n) => format!("ask {n}"),
        Step::Remove(n) => format!("remove {n}"),
        Step::Release => "release".into(),
        Step::ForgetLogs => "forget logs".into(),
        Step::LetGo => "let go".into(),
    };
    plan.steps.iter().map(word).collect()
}

/// The status that a plan writes, or the one that is there.
fn written(seen: &Seen, plan: &Plan) -> TaskStatus {
    let of_step = |step: &Step| match step {
        Step::Status(status) => Some((**status).clone()),
        _ => None,
    };
    plan.steps.iter().rev().find_map(of_step).or_else(|| seen.task.as_ref()?.status.clone()).unwrap_or_default()
}

#[test]
fn an_assigned_task_gets_its_image_then_its_container() {
    let mut seen = seen();
    assert_eq!(words(&plan(&seen)), ["have image"], "mostly it is here at once, and then nobody waits for it");
    assert!(plan(&seen).look_again.is_some());
    seen.image = Some(Stage::UnderWay);
    assert_eq!(words(&plan(&seen)), ["Preparing Preparing"]);
    let looking = written(&seen, &plan(&seen));
    status(&mut seen, |status| *status = looking);
    assert_eq!(words(&plan(&seen)), Vec::<String>::new(), "an image that is here is not pulled");
    seen.pull = Some(Progress { done_bytes: 3, total_bytes: 9, ..Progress::default() });
    let made = plan(&seen);
    assert_eq!(words(&made), ["Preparing Pulling"]);
    assert_eq!(written(&seen, &made).pull.map(|pull| pull.done_bytes), Some(3));
    seen.pull = None;
    with_image(&mut seen);
    let made = plan(&seen);
    assert_eq!(words(&made), ["Preparing Preparing", "prepare 1", "create 1", "start 1"]);
    let status = written(&seen, &made);
    assert_eq!(status.pull, None);
    assert_eq!(status.addresses.len(), 1, "its address is in the store before anything has it");
    assert!(status.image_digest.is_some());
}

#[test]
fn nothing_is_made_before_it_has_an_address_or_is_wanted_to_run() {
    let mut waits = seen();
    with_image(&mut waits);
    waits.addresses = Addressing::Waiting("network back has no addresses for this machine yet".into());
    let made = plan(&waits);
    assert_eq!(words(&made), ["Preparing WaitingForAddress"]);
    assert!(written(&waits, &made).message.contains("network back"));

    let mut ready = seen();
    with_image(&mut ready);
    desire(&mut ready, DesiredState::Ready);
    assert_eq!(words(&plan(&ready)), ["Ready Ready", "prepare 1"]);
}

#[test]
fn a_task_waits_for_its_volumes_until_it_has_run() {
    let mut waits = seen();
    with_image(&mut waits);
    waits.volumes = Volumes::Waiting("volume data is being removed".into());
    let made = plan(&waits);
    assert_eq!(words(&made), ["Preparing WaitingForVolume"]);
    let waiting = written(&waits, &made);
    status(&mut waits, |status| *status = waiting);
    waits.volumes = Volumes::There(vec![]);
    // It says that it waits no more before it has its hands on anything.
    assert_eq!(words(&plan(&waits)), ["Preparing Preparing", "prepare 1", "create 1", "start 1"]);

    let mut again = up();
    exited(&mut again, 1, 3);
    let after = written(&again, &plan(&again));
    status(&mut again, |status| *status = after);
    again.containers.clear();
    again.volumes = Volumes::Waiting("volume data is being removed".into());
    assert_eq!(words(&plan(&again)), ["prepare 2", "create 2", "start 2"], "what it has, it keeps");

    let mut elsewhere = seen();
    with_image(&mut elsewhere);
    elsewhere.volumes = Volumes::Elsewhere("volume data is on machine n2, and this is n1".into());
    assert_eq!(words(&plan(&elsewhere)), ["Rejected VolumeElsewhere"]);
}

#[test]
fn a_running_container_is_a_running_task_and_then_nothing_more() {
    let seen = up();
    let status = seen.task.as_ref().unwrap().status.clone().unwrap();
    assert_eq!((status.state, status.pid, status.attempts.len()), (TaskState::Running, Some(7), 1));
    assert_eq!(status.container_id.as_deref(), Some("u1.1"));
    assert_eq!(plan(&seen), Plan::default());
}

#[test]
fn what_ends_is_recorded_before_it_is_removed_and_started_again() {
    let mut seen = up();
    exited(&mut seen, 1, 3);
    let made = plan(&seen);
    assert_eq!(words(&made), ["Starting Restarting", "remove 1"]);
    let after = written(&seen, &made);
    assert_eq!(after.attempts[0].exit_code, Some(3));
    assert!(after.message.starts_with("ended with exit code 3"), "{}", after.message);
    status(&mut seen, |status| *status = after);
    // Killed between the two: the record is there, the container too.
    assert_eq!(words(&plan(&seen)), ["remove 1"]);
    seen.containers.clear();
    assert_eq!(words(&plan(&seen)), ["prepare 2", "create 2", "start 2"]);
}

#[test]
fn a_wait_is_waited_for() {
    let mut seen = up();
    seen.containers.clear();
    let later = NOW + Duration::from_secs(4);
    status(&mut seen, |status| {
        status.state = TaskState::Starting;
        status.attempts[0].finished_at = Some(NOW);
        status.next_attempt_at = Some(later);
    });
    let made = plan(&seen);
    assert_eq!((words(&made), made.look_again), (vec![], Some(Duration::from_secs(4))));
}

#[test]
fn what_was_lost_while_nobody_looked_is_the_end_of_an_attempt() {
    for lose in [|seen: &mut Seen| seen.containers.clear(), |seen: &mut Seen| container(seen, 1, State::Gone)] {
        let mut seen = up();
        lose(&mut seen);
        let made = plan(&seen);
        let status = written(&seen, &made);
        assert_eq!((status.state, status.attempts[0].reason.as_str()), (TaskState::Starting, "Lost"), "{made:?}");
        assert!(!words(&made).iter().any(|word| word.starts_with("create")), "first it is in the store: {made:?}");
    }
}

#[test]
fn a_container_whose_state_nobody_knows_is_left_alone() {
    let mut seen = up();
    container(&mut seen, 1, State::Unknown);
    let made = plan(&seen);
    assert_eq!((words(&made), made.look_again), (vec![], Some(Duration::from_secs(1))));
    desire(&mut seen, DesiredState::Stopped);
    assert!(!words(&plan(&seen)).contains(&"release".to_owned()));
}

#[test]
fn a_policy_that_wants_no_more_ends_the_task() {
    for (code, state) in [(0, TaskState::Complete), (2, TaskState::Failed)] {
        let mut seen = up();
        template(&mut seen, |template| template.restart.condition = RestartCondition::None);
        exited(&mut seen, 1, code);
        let made = plan(&seen);
        let status_written = written(&seen, &made);
        assert_eq!(status_written.state, state);
        assert!(status_written.addresses.is_empty(), "an ended task holds no address");
        status(&mut seen, |status| *status = status_written);
        assert_eq!(words(&plan(&seen)), ["remove 1"]);
        seen.containers.clear();
        assert_eq!(words(&plan(&seen)), ["forget image", "release"]);
        (seen.image, seen.prepared) = (None, false);
        assert_eq!(plan(&seen), Plan::default());
    }
}

#[test]
fn stopping_asks_then_kills_then_leaves_nothing() {
    let mut seen = up();
    template(&mut seen, |template| template.container.stop_grace = Some(Period::from_secs(3)));
    desire(&mut seen, DesiredState::Stopped);
    let made = plan(&seen);
    assert_eq!(
        (words(&made), made.look_again),
        (vec!["Stopping Stopping".into(), "ask 1".into()], Some(Duration::from_secs(3)))
    );
    let stopping = written(&seen, &made);
    status(&mut seen, |status| *status = stopping);
    seen.signalled.insert(1, Duration::from_secs(1));
    assert_eq!(plan(&seen).look_again, Some(Duration::from_secs(2)));
    seen.signalled.insert(1, Duration::from_secs(3));
    assert_eq!(words(&plan(&seen)), ["remove 1"]);

    // It obeyed instead.
    exited(&mut seen, 1, 143);
    let made = plan(&seen);
    assert_eq!(words(&made), ["Stopping Stopping", "remove 1"]);
    let recorded = written(&seen, &made);
    assert_eq!(recorded.attempts[0].exit_code, Some(143));
    status(&mut seen, |status| *status = recorded);
    seen.containers.clear();
    assert_eq!(words(&plan(&seen)), ["forget image", "release", "Complete Stopped"]);
}

#[test]
fn connections_may_end_before_it_is_asked_to() {
    let mut seen = up();
    desire(&mut seen, DesiredState::Stopped);
    seen.drain = Duration::from_secs(5);
    let made = plan(&seen);
    assert_eq!(words(&made), ["drain", "Stopping Stopping", "ask 1"]);
    // Somebody was connected.
    let before = seen.task.as_ref().unwrap().status.clone().unwrap();
    let waits = super::plan::draining(&seen, &before);
    status(&mut seen, |status| *status = waits);
    seen.now = NOW + Duration::from_secs(4);
    assert_eq!(words(&plan(&seen)), ["drain", "Stopping Stopping", "ask 1"]);
    seen.now = NOW + Duration::from_secs(5);
    assert_eq!(words(&plan(&seen)), ["Stopping Stopping", "ask 1"], "not for ever");
    let long_ago = Timestamp::from_micros(NOW.as_micros() - 3_600_000_000);
    seen.now = long_ago;
    assert_eq!(words(&plan(&seen)), ["Stopping Stopping", "ask 1"], "nor because the clock was set back");
    seen.now = NOW;
    seen.signalled.insert(1, Duration::ZERO);
    assert!(!words(&plan(&seen)).contains(&"drain".to_owned()), "it was asked already");
    seen.signalled.clear();
    delete(&mut seen);
    assert!(!words(&plan(&seen)).contains(&"drain".to_owned()), "a deleted one is not waited for");
}

#[test]
fn a_deleted_task_goes_from_the_store_last() {
    let mut seen = up();
    delete(&mut seen);
    assert_eq!(words(&plan(&seen)), ["Stopping Stopping", "ask 1"]);
    seen.containers.clear();
    let made = plan(&seen);
    let ended = written(&seen, &made);
    status(&mut seen, |status| *status = ended);
    (seen.image, seen.prepared) = (None, false);
    assert_eq!(words(&plan(&seen)), ["forget logs", "let go"]);
}

#[test]
fn a_container_without_a_task_is_stopped_and_removed() {
    let mut seen = up();
    seen.task = None;
    assert_eq!(words(&plan(&seen)), ["ask 1"]);
    seen.signalled.insert(1, Duration::from_secs(11));
    assert_eq!(words(&plan(&seen)), ["remove 1"]);
    seen.containers.clear();
    assert_eq!(words(&plan(&seen)), ["release", "forget logs"]);
}

#[test]
fn an_image_that_cannot_be_had_rejects_the_task_or_is_tried_again() {
    let mut seen = seen();
    let failed = |failure| Stage::Done(ImageOutcome::Failed { failure, message: "no such tag".into() });
    seen.image = Some(failed(ImageFailure::Lasting));
    let made = plan(&seen);
    assert_eq!(words(&made), ["Rejected ImageUnavailable"]);
    assert_eq!(written(&seen, &made).message, "no such tag");
    // Of the machine's own containerd, that was killed: it is back in a moment.
    seen.image = Some(failed(ImageFailure::Runtime));
    let soon = Some(Duration::from_millis(250));
    assert_eq!(plan(&seen).look_again, soon);
    seen.image_age = Duration::from_millis(250);
    assert!(words(&plan(&seen)).contains(&"have image".to_owned()) && plan(&seen).look_again == soon);
    seen.image_age = Duration::ZERO;
    seen.image = Some(failed(ImageFailure::Registry));
    let made = plan(&seen);
    // At once would be a storm: what was tried a moment ago is left alone, and then it is tried once.
    assert_eq!(words(&made), ["Preparing ImageUnavailable"]);
    assert_eq!(made.look_again, Some(Duration::from_secs(5)));
    let waiting = written(&seen, &made);
    status(&mut seen, |status| *status = waiting);
    seen.image_age = Duration::from_secs(5);
    let made = plan(&seen);
    assert_eq!(words(&made), ["forget image", "have image"]);
    assert_eq!(made.look_again, Some(Duration::from_secs(5)), "it may fail again before anybody has seen it begin");
    seen.image = Some(Stage::UnderWay);
    assert_eq!(plan(&seen), Plan::default(), "why it failed stays to be read");
}

#[test]
fn who_runs_is_not_held_up_by_an_image_that_cannot_be_looked_at() {
    let mut seen = up();
    status(&mut seen, |status| status.state = TaskState::Starting);
    let failed = |failure| Stage::Done(ImageOutcome::Failed { failure, message: "no answer".into() });
    // A successor that knows nothing of the image asks, and asks again: its health check is to be known.
    seen.image = None;
    assert_eq!(words(&plan(&seen)), ["have image"]);
    seen.image = Some(failed(ImageFailure::Registry));
    assert_eq!(plan(&seen).look_again, Some(Duration::from_secs(5)));
    seen.image_age = Duration::from_secs(5);
    assert_eq!(words(&plan(&seen)), ["forget image", "have image"]);
    // It is to be had no more: it brings no check.
    seen.image = Some(failed(ImageFailure::Lasting));
    assert_eq!(words(&plan(&seen)), ["Running Running"]);
}

#[test]
fn a_clock_that_was_set_back_holds_up_no_attempt() {
    let mut seen = up();
    seen.containers.clear();
    status(&mut seen, |status| {
        status.state = TaskState::Starting;
        status.attempts[0].finished_at = Some(NOW + Duration::from_secs(3600));
        status.next_attempt_at = Some(NOW + Duration::from_secs(3601));
    });
    assert!(words(&plan(&seen)).contains(&"create 2".to_owned()));
}

#[test]
fn health_decides_what_runs() {
    let mut seen = up();
    status(&mut seen, |status| status.state = TaskState::Starting);
    let exec = Some(ExecProbe { command: vec!["true".into()] });
    let check = Some(Probe { exec, retries: Some(2), ..Probe::default() });
    template(&mut seen, |template| {
        template.container.health = Some(WantedHealth { check, ..WantedHealth::default() });
    });
    assert_eq!(words(&plan(&seen)), ["Starting Starting", "check 1"]);
    seen.health.insert(1, Health::default());
    assert_eq!(written(&seen, &plan(&seen)).state, TaskState::Starting);
    seen.health.insert(1, Health { healthy: true, ..Health::default() });
    assert_eq!(words(&plan(&seen)), ["Running Running"]);
    seen.health.insert(1, Health { failed: true, failures: 2, output: "refused".into(), healthy: false });
    let made = plan(&seen);
    assert_eq!(words(&made), ["Starting Unhealthy", "ask 1"]);
    assert!(written(&seen, &made).message.contains("2 times in a row: refused"));
    exited(&mut seen, 1, 143);
    assert_eq!(written(&seen, &plan(&seen)).attempts[0].reason, "Unhealthy");
}

#[test]
fn older_attempts_and_remains_are_removed() {
    let mut seen = up();
    status(&mut seen, |status| {
        status.attempts = vec![
            Attempt { number: 1, finished_at: Some(NOW), ..Attempt::default() },
            Attempt { number: 2, started_at: Some(NOW), ..Attempt::default() },
        ];
    });
    container(&mut seen, 2, State::Running { pid: 9 });
    assert!(words(&plan(&seen)).contains(&"remove 1".to_owned()));
    let mut orphan = up();
    let mut remains = (**orphan.containers.get(&1).unwrap()).clone();
    remains.orphan = true;
    orphan.containers.insert(1, Arc::new(remains));
    assert_eq!(words(&plan(&orphan)), ["remove 1"]);
}
