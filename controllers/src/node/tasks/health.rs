//! Health checks: programs run again and again in running containers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use reconciler::api::Uid;
use reconciler::external::{Announced, Announcements, World};
use reconciler::seams::{Seams, TaskHandle};
use schemas::kinds::template::{ContainerSpec, Probe};
use schemas::{Period, defaults};
use tokio::sync::Notify;

use super::containers::attempt_of;
use crate::node::containerd::runtime::{Exec, ExecBounds, ExecEnd, ExecOutcome};
use crate::node::containerd::{ContainerId, Error, Runtime};
use crate::node::images::Healthcheck;

/// What of a check's output is kept: Docker keeps as much.
const OUTPUT_BYTES_MAX: usize = 4096;

/// The check that holds for a container, with every time filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub retries: u32,
    pub start_period: Duration,
    pub start_interval: Duration,
}

/// What a check has said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// It has passed, and has not failed for good since.
    pub healthy: bool,
    /// Failures in a row that count.
    pub failures: u32,
    /// There were `retries` of them.
    pub failed: bool,
    pub output: String,
}

impl Health {
    fn hear(&mut self, verdict: Result<String, String>, counts: bool, retries: u32) {
        match verdict {
            // A pass after a pass is no news, whatever it prints: each would be a write of the Task.
            Ok(_) if self.healthy && self.failures == 0 => {}
            Ok(output) => *self = Health { healthy: true, failures: 0, failed: false, output },
            Err(output) => {
                self.output = output;
                self.failures += u32::from(counts);
                self.failed = self.failures >= retries;
                self.healthy &= !self.failed;
            }
        }
    }
}

/// Running checks, by container.
pub(super) struct Checks {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    running: Mutex<BTreeMap<ContainerId, Running>>,
    changed: Notify,
}

struct Running {
    health: Health,
    _task: TaskHandle,
}

/// The service's check if it says anything of one, else the image's; `None` when there is none.
pub(super) fn check_for(container: &ContainerSpec, image: Option<&Healthcheck>) -> Option<Check> {
    match &container.health {
        Some(health) if health.disabled => None,
        Some(health) if health.check.is_some() => health.check.as_ref().and_then(of_probe),
        _ => image.and_then(of_image),
    }
}

fn of_probe(probe: &Probe) -> Option<Check> {
    let command = probe.exec.as_ref()?.command.clone();
    Some(Check {
        command,
        interval: probe.interval().get(),
        timeout: probe.timeout().get(),
        retries: probe.retries(),
        start_period: probe.start_period().get(),
        start_interval: probe.start_interval().get(),
    })
}

fn of_image(image: &Healthcheck) -> Option<Check> {
    let command = match image.test.split_first() {
        Some((kind, args)) if kind == "CMD" => args.to_vec(),
        Some((kind, [line])) if kind == "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
        _ => return None,
    };
    let or = |stated: Option<Duration>, default: Period| stated.filter(|d| !d.is_zero()).unwrap_or(default.get());
    Some(Check {
        command,
        interval: or(image.interval, defaults::PROBE_INTERVAL.value),
        timeout: or(image.timeout, defaults::PROBE_TIMEOUT.value),
        retries: image.retries.filter(|retries| *retries > 0).unwrap_or(defaults::PROBE_RETRIES.value),
        start_period: or(image.start_period, defaults::PROBE_START_PERIOD.value),
        start_interval: or(image.start_interval, defaults::PROBE_START_INTERVAL.value),
    })
}

impl Checks {
    pub fn new() -> Self {
        Checks { shared: Arc::default() }
    }

    /// Checks the attempt from now on, unless that is done already. `was_healthy` when a predecessor found it so: then it
    /// is healthy until it has failed often enough.
    pub fn begin(&self, seams: &Seams, runtime: &Arc<dyn Runtime>, id: &ContainerId, check: &Check, was_healthy: bool) {
        let mut running = self.shared.lock();
        if running.contains_key(id) {
            return;
        }
        let checker = Checker {
            shared: self.shared.clone(),
            seams: seams.clone(),
            runtime: runtime.clone(),
            id: id.clone(),
            check: check.clone(),
        };
        let health = Health { healthy: was_healthy, ..Health::default() };
        let task = seams.spawn("health-check", checker.run(health.clone()));
        running.insert(id.clone(), Running { health, _task: task });
        drop(running);
        self.shared.changed.notify_one();
    }

    /// Ends the checks of a task's attempts for which `keep` says no.
    pub fn retain(&self, uid: &Uid, keep: impl Fn(u32) -> bool) {
        let mut ended = Vec::new();
        let mut running = self.shared.lock();
        let goes =
            |id: &&ContainerId| attempt_of(id.as_str()).is_some_and(|(of, attempt)| of == *uid && !keep(attempt));
        let ids: Vec<ContainerId> = running.keys().filter(goes).cloned().collect();
        ended.extend(ids.iter().filter_map(|id| running.remove(id)));
        drop(running);
        if !ended.is_empty() {
            self.shared.changed.notify_one();
        }
    }

    /// As they are now.
    pub fn of(&self, uid: &Uid) -> BTreeMap<u32, Health> {
        let running = self.shared.lock();
        let of_task = running.iter().filter_map(|(id, check)| {
            let (of, attempt) = attempt_of(id.as_str())?;
            (of == *uid).then(|| (attempt, check.health.clone()))
        });
        of_task.collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, id: &ContainerId, health: &Health) {
        if let Some(running) = self.lock().get_mut(id) {
            running.health = health.clone();
        }
        self.changed.notify_one();
    }
}

struct Checker {
    shared: Arc<Shared>,
    seams: Seams,
    runtime: Arc<dyn Runtime>,
    id: ContainerId,
    check: Check,
}

/// Waits before the runs right after the start, so that what starts fast is there fast. That these fail never counts.
const EARLY: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

/// How long to wait before the `runs`th run (from 0), and whether its failure counts. Pure.
fn next_run(check: &Check, runs: usize, passed: bool, since_start: Duration) -> (Duration, bool) {
    let starting = !passed && since_start < check.start_period;
    let usual = if starting { check.start_interval } else { check.interval };
    match EARLY.get(runs).filter(|_| !passed) {
        Some(early) => ((*early).min(usual), false),
        None => (usual, !starting),
    }
}

impl Checker {
    async fn run(self, mut health: Health) {
        let begun = self.seams.monotonic();
        let mut passed = health.healthy;
        for runs in 0.. {
            let (wait, counts) = next_run(&self.check, runs, passed, self.seams.monotonic().since(begun));
            if !wait.is_zero() {
                self.seams.sleep(wait).await;
            }
            let before = health.clone();
            // Nobody answered: that says nothing about the task.
            if let Some(verdict) = self.once().await {
                passed |= verdict.is_ok();
                health.hear(verdict, counts, self.check.retries);
            }
            if health != before {
                self.shared.publish(&self.id, &health);
            }
        }
    }

    async fn once(&self) -> Option<Result<String, String>> {
        let exec = Exec { args: self.check.command.clone(), ..Exec::default() };
        let bounds = ExecBounds { deadline: self.check.timeout, output_bytes_max: OUTPUT_BYTES_MAX };
        match self.runtime.exec(&self.id, &exec, bounds).await {
            Ok(outcome) => Some(verdict(&outcome, self.check.timeout)),
            Err(Error::Failed { message, .. }) => Some(Err(message)),
            Err(Error::Refused(refused)) => Some(Err(refused.to_string())),
            Err(_) => None,
        }
    }
}

fn verdict(outcome: &ExecOutcome, timeout: Duration) -> Result<String, String> {
    let output = String::from_utf8_lossy(&outcome.output).trim_end().to_owned();
    match outcome.end {
        ExecEnd::Exited { code: 0 } => Ok(output),
        ExecEnd::Exited { code } if output.is_empty() => Err(format!("exit code {code}")),
        ExecEnd::Exited { .. } => Err(output),
        ExecEnd::TimedOut => Err(format!("took longer than {}", Period::new(timeout))),
    }
}

impl World for Checks {
    type Key = ContainerId;
    type Item = Health;
    type Error = Infallible;

    async fn list(&self) -> Result<Vec<(ContainerId, Health)>, Infallible> {
        Ok(self.shared.lock().iter().map(|(id, running)| (id.clone(), running.health.clone())).collect())
    }

    fn changes(&self) -> Option<Announcements<Self>> {
        let announced = stream::unfold(self.shared.clone(), |shared| async move {
            shared.changed.notified().await;
            Some((Ok(Announced::LookAgain), shared))
        });
        Some(announced.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(start_period: u64) -> Check {
        Check {
            command: vec!["true".into()],
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            retries: 3,
            start_period: Duration::from_secs(start_period),
            start_interval: Duration::from_secs(5),
        }
    }

    #[test]
    fn what_starts_fast_is_asked_often_and_failures_count_only_later() {
        let mut since = Duration::ZERO;
        let mut counted = Vec::new();
        for runs in 0..9 {
            let (wait, counts) = next_run(&check(10), runs, false, since);
            since += wait;
            counted.push((since.as_millis(), counts));
        }
        let early = [(0, false), (100, false), (300, false), (700, false), (1500, false), (3100, false)];
        let later = [(8100, false), (13100, false), (43100, true)];
        assert_eq!(counted, [&early[..], &later[..]].concat());
    }

    #[test]
    fn once_it_has_passed_every_failure_counts_at_its_interval() {
        assert_eq!(next_run(&check(10), 1, true, Duration::from_secs(1)), (Duration::from_secs(30), true));
        let hasty = Check { interval: Duration::from_millis(50), ..check(0) };
        assert_eq!(next_run(&hasty, 5, false, Duration::ZERO).0, Duration::from_millis(50));
    }

    #[test]
    fn only_what_is_news_changes_what_is_known() {
        let mut health = Health::default();
        let mut hear = |verdict: Result<&str, &str>, counts| {
            health.hear(verdict.map(str::to_owned).map_err(str::to_owned), counts, 2);
            (health.healthy, health.failures, health.failed, health.output.clone())
        };
        assert_eq!(hear(Err("not yet"), false), (false, 0, false, "not yet".into()));
        assert_eq!(hear(Ok("load 1"), true), (true, 0, false, "load 1".into()));
        assert_eq!(hear(Ok("load 2"), true), (true, 0, false, "load 1".into()), "each would be a write");
        assert_eq!(hear(Err("sick"), true), (true, 1, false, "sick".into()));
        assert_eq!(hear(Ok("load 3"), true), (true, 0, false, "load 3".into()));
        assert_eq!(hear(Err("sick"), true), (true, 1, false, "sick".into()));
        assert_eq!(hear(Err("dead"), true), (false, 2, true, "dead".into()));
    }

    #[test]
    fn an_image_may_bring_a_check_and_a_service_may_refuse_it() {
        let image = Healthcheck { test: vec!["CMD-SHELL".into(), "exit 0".into()], ..Healthcheck::default() };
        let found = check_for(&ContainerSpec::default(), Some(&image)).unwrap();
        assert_eq!(found.command, ["/bin/sh", "-c", "exit 0"]);
        assert_eq!(found.interval, defaults::PROBE_INTERVAL.value.get());
        let none = Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() };
        assert_eq!(check_for(&ContainerSpec::default(), Some(&none)), None);
        let disabled = schemas::kinds::template::Health { disabled: true, ..Default::default() };
        let container = ContainerSpec { health: Some(disabled), ..ContainerSpec::default() };
        assert_eq!(check_for(&container, Some(&image)), None);
    }
}
