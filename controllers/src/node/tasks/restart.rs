//! When a task that ended is started again: pure.

use std::time::Duration;

use reconciler::api::Timestamp;
use schemas::defaults;
use schemas::kinds::task::{Attempt, TaskState, TaskStatus};
use schemas::kinds::template::{RestartCondition, RestartPolicy};

/// An attempt that ends sooner than this, well or badly, makes the next one wait longer.
const QUICK: Duration = defaults::RESTART_BACKOFF_QUICK.value.get();
/// The first wait after the one at once.
const FIRST_WAIT: Duration = defaults::RESTART_BACKOFF_FIRST.value.get();
const LONGEST_WAIT: Duration = defaults::RESTART_BACKOFF_MAX.value.get();
/// Attempts that the status keeps.
pub(super) const ATTEMPTS_KEPT: usize = defaults::TASK_ATTEMPTS.value;

/// What comes after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another one, then.
    At(Timestamp),
    /// None.
    End { state: TaskState, reason: &'static str, message: String },
}

/// What follows the last attempt in `status`, which has ended. `jitter` is 0 to 255, the same for one attempt.
pub(super) fn next(policy: &RestartPolicy, status: &TaskStatus, now: Timestamp, jitter: u8) -> Next {
    let Some(last) = status.attempts.last() else { return Next::At(now) };
    let ended_well = last.exit_code == Some(0);
    let wanted = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => !ended_well,
        RestartCondition::None => false,
    };
    if !wanted {
        return match ended_well {
            true => {
                Next::End { state: TaskState::Complete, reason: "Completed", message: "ended with exit code 0".into() }
            }
            false => Next::End { state: TaskState::Failed, reason: "Failed", message: last.message.clone() },
        };
    }
    let most = policy.max_attempts();
    if most > 0 && restarts_that_count(policy, status, now) >= most {
        let times = if most == 1 { "once".to_owned() } else { format!("{most} times") };
        let message =
            format!("{}; it was restarted {times}, which is as often as its restart policy allows", last.message);
        return Next::End { state: TaskState::Failed, reason: "RestartsUsedUp", message };
    }
    let wait = policy.delay.map_or_else(|| usual_wait(&status.attempts, jitter), |delay| delay.get());
    Next::At(last.finished_at.unwrap_or(now) + wait)
}

/// Restarts inside the policy's window; without a window, all of them.
fn restarts_that_count(policy: &RestartPolicy, status: &TaskStatus, now: Timestamp) -> u32 {
    let window = policy.window().get();
    if window.is_zero() {
        return status.restarts;
    }
    let inside = status.attempts.iter().filter(|attempt| attempt.number > 1 && is_inside(attempt, now, window));
    inside.count() as u32
}

fn is_inside(attempt: &Attempt, now: Timestamp, window: Duration) -> bool {
    attempt.started_at.or(attempt.finished_at).is_some_and(|at| now.since(at) < window)
}

/// How many attempts the status must keep to count those inside a window.
pub(super) fn attempts_kept(policy: &RestartPolicy) -> usize {
    match policy.window().get().is_zero() {
        true => ATTEMPTS_KEPT,
        false => ATTEMPTS_KEPT.max(policy.max_attempts() as usize + 1).min(50),
    }
}

/// No attempt waits longer than this for the next.
pub(super) fn longest_wait(policy: &RestartPolicy) -> Duration {
    policy.delay.map_or(LONGEST_WAIT, |delay| delay.get())
}

/// At once after an attempt that had lasted; else 0.5 s, and twice as long as the last wait, up to a minute.
fn usual_wait(attempts: &[Attempt], jitter: u8) -> Duration {
    let Some((last, before)) = attempts.split_last() else { return Duration::ZERO };
    if !is_quick(last) {
        return Duration::ZERO;
    }
    let Some(previous) = before.last().filter(|previous| is_quick(previous)) else { return Duration::ZERO };
    let waited = match (previous.finished_at, last.started_at) {
        (Some(finished), Some(started)) => started.since(finished),
        _ => Duration::ZERO,
    };
    let wait = (waited * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
    // Up to a tenth less, so that what failed together does not start together.
    wait - wait.mul_f64(f64::from(jitter) / 2560.0)
}

fn is_quick(attempt: &Attempt) -> bool {
    let lasted = match (attempt.started_at, attempt.finished_at) {
        (Some(started), Some(finished)) => finished.since(started),
        _ => Duration::ZERO,
    };
    lasted < QUICK
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Period;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_micros((seconds * 1e6) as i64)
    }

    fn attempt(number: u32, started: f64, finished: f64, code: i32) -> Attempt {
        Attempt {
            number,
            started_at: Some(at(started)),
            finished_at: Some(at(finished)),
            exit_code: Some(code),
            message: format!("ended with exit code {code}"),
            ..Attempt::default()
        }
    }

    fn status(attempts: Vec<Attempt>) -> TaskStatus {
        let restarts = attempts.last().map_or(0, |last| last.number - 1);
        TaskStatus { attempts, restarts, ..TaskStatus::default() }
    }

    #[test]
    fn the_first_is_at_once_and_then_each_waits_twice_as_long() {
        let policy = RestartPolicy::default();
        let mut attempts = vec![attempt(1, 0.0, 1.0, 1)];
        let mut waits = Vec::new();
        for number in 2..12 {
            let Next::At(start) = next(&policy, &status(attempts.clone()), at(1e6), 0) else { panic!("it goes on") };
            let finished = attempts.last().unwrap().finished_at.unwrap();
            waits.push(start.since(finished).as_secs_f64());
            let started = start.as_micros() as f64 / 1e6;
            attempts.push(attempt(number, started, started + 1.0, 1));
            attempts = attempts.split_off(attempts.len().saturating_sub(ATTEMPTS_KEPT));
        }
        assert_eq!(waits, [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
    }

    #[test]
    fn what_lasted_starts_at_once_and_what_did_not_waits_however_it_ended() {
        let policy = RestartPolicy::default();
        let after = |finished, code| {
            let attempts = vec![attempt(1, 0.0, 1.0, code), attempt(2, 5.0, finished, code)];
            next(&policy, &status(attempts), at(20.0), 0)
        };
        for code in [0, 1] {
            assert_eq!(after(15.0, code), Next::At(at(15.0)));
            assert_eq!(after(6.0, code), Next::At(at(14.0)));
        }
    }

    #[test]
    fn the_condition_and_a_stated_delay_are_honoured() {
        let policy = |condition| RestartPolicy { condition, delay: Some(Period::from_secs(7)), ..Default::default() };
        let (well, badly) = (status(vec![attempt(1, 0.0, 1.0, 0)]), status(vec![attempt(1, 0.0, 1.0, 3)]));
        let then = Next::At(at(8.0));
        assert_eq!(next(&policy(RestartCondition::Any), &well, at(1.0), 0), then);
        assert_eq!(next(&policy(RestartCondition::OnFailure), &badly, at(1.0), 0), then);
        let state = |next| match next {
            Next::End { state, .. } => state,
            Next::At(at) => panic!("starts again at {at}"),
        };
        assert_eq!(state(next(&policy(RestartCondition::OnFailure), &well, at(1.0), 0)), TaskState::Complete);
        assert_eq!(state(next(&policy(RestartCondition::None), &well, at(1.0), 0)), TaskState::Complete);
        assert_eq!(state(next(&policy(RestartCondition::None), &badly, at(1.0), 0)), TaskState::Failed);
    }

    #[test]
    fn restarts_are_used_up_inside_the_window_only() {
        let three = |now| {
            let attempts = vec![attempt(1, 0.0, 1.0, 1), attempt(2, 1.0, 2.0, 1), attempt(3, 3.0, 4.0, 1)];
            let policy =
                RestartPolicy { max_attempts: Some(2), window: Some(Period::from_secs(60)), ..Default::default() };
            next(&policy, &status(attempts), at(now), 0)
        };
        assert!(matches!(three(5.0), Next::End { state: TaskState::Failed, reason: "RestartsUsedUp", .. }));
        assert!(matches!(three(62.5), Next::At(_)), "the second attempt began more than a minute ago");
        let ever = RestartPolicy { max_attempts: Some(2), ..Default::default() };
        let mut long = status(vec![attempt(3, 0.0, 100.0, 1)]);
        long.restarts = 2;
        assert!(matches!(next(&ever, &long, at(1e5), 0), Next::End { .. }));
    }
}
