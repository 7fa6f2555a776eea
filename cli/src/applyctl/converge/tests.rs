//! What people see while they wait, and when waiting ends: small worlds in, text out.

use std::time::Duration;

use reconciler::{Resource, Timestamp};
use schemas::kinds::bundle::{Bundle, BundleSpec, BundleState, BundleStatus, ServiceFragment};
use schemas::kinds::service::{Service, ServiceSpec, ServiceStatus};
use schemas::kinds::task::{
    Attempt, DesiredState, HealthStatus, IMAGE_UNAVAILABLE, LOST, PullProgress, Slot, Task, TaskSpec, TaskState,
    TaskStatus,
};

use super::progress::{Progress, look};
use super::*;

const NOW: Timestamp = Timestamp::from_seconds(1_000);

fn goal() -> Goal {
    Goal::Bundle { name: "shop".into(), generation: 1 }
}

/// A bundle with these services, which the cluster has taken note of; none of them is up.
fn shop(services: &[&str]) -> World {
    let mut world = World::default();
    let mut spec = BundleSpec::default();
    for name in services {
        spec.services.insert((*name).to_owned(), ServiceFragment::from(&ServiceSpec::default()));
        let mut service = Service::new(format!("shop-{name}"), ServiceSpec::default());
        service.metadata.generation = 1;
        service.status = Some(ServiceStatus {
            observed_generation: 1,
            desired: 1,
            revision: Some("r1".into()),
            ..ServiceStatus::default()
        });
        world.services.insert(service.metadata.name.clone(), service);
    }
    let mut bundle = Bundle::new("shop", spec);
    bundle.metadata.generation = 1;
    bundle.status = Some(BundleStatus { observed_generation: 1, ..BundleStatus::default() });
    world.bundle = Some(bundle);
    world
}

fn task(world: &mut World, service: &str, state: TaskState, more: impl FnOnce(&mut TaskStatus)) {
    let service = format!("shop-{service}");
    let number = world.tasks_of(&service).len() as u32 + 1;
    let spec = TaskSpec {
        service: service.clone(),
        revision: "r1".into(),
        slot: Slot::Number(number),
        node_name: (state > TaskState::Pending).then(|| "n1".to_owned()),
        desired: DesiredState::Running,
        networks: Vec::new(),
        in_place_of: None,
    };
    let mut task = Task::new(format!("{service}-{number}"), spec);
    let mut status = TaskStatus { state, since: Some(Timestamp::from_seconds(900)), ..TaskStatus::default() };
    more(&mut status);
    task.status = Some(status);
    world.tasks.insert(task.metadata.name.clone(), task);
    if state == TaskState::Running {
        let status = world.services.get_mut(&service).unwrap().status.as_mut().unwrap();
        (status.running, status.updated) = (status.running + 1, status.updated + 1);
    }
}

fn attempt(number: u32, code: Option<i32>, reason: &str, message: &str) -> Attempt {
    Attempt {
        number,
        started_at: Some(Timestamp::from_seconds(990)),
        finished_at: code.map(|_| Timestamp::from_seconds(991)),
        exit_code: code,
        reason: reason.into(),
        message: message.into(),
    }
}

fn shown(world: &World) -> String {
    view::block("shop", &look(world, &goal(), NOW), "", false).join("\n")
}

#[track_caller]
fn check(world: &World, expected: &[&str]) {
    let seen = shown(world);
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected, "\n{seen}");
}

#[test]
fn a_deployment_is_seen_to_come_up() {
    let mut world = shop(&["db", "redis", "vote", "worker"]);
    task(&mut world, "db", TaskState::Running, |_| {});
    task(&mut world, "redis", TaskState::Starting, |status| status.health = Some(HealthStatus::default()));
    task(&mut world, "vote", TaskState::Preparing, |status| {
        status.pull = Some(PullProgress { done_bytes: 31_000_000, total_bytes: 47_000_000 });
    });
    world.services.remove("shop-worker");
    check(
        &world,
        &[
            "shop   4 services",
            "  db      ● 1/1  running   n1",
            "  redis   ◐ 0/1  starting  n1  health: not yet",
            "  vote    ◐ 0/1  pulling   n1  31/47 MB",
            "  worker  ◐ 0/1  waiting",
        ],
    );
}

#[test]
fn what_a_machine_cannot_do_now_is_seen_while_it_is_tried_again() {
    let mut world = shop(&["db"]);
    task(&mut world, "db", TaskState::Preparing, |status| {
        status.message = "cannot make its volume: no space left on device; it is tried again".into();
    });
    check(
        &world,
        &[
            "shop   1 service",
            "  db  ◐ 0/1  preparing  n1  cannot make its volume: no space left on device; it is tried again",
        ],
    );
}

#[test]
fn every_reason_not_to_come_up_is_told_in_its_own_words() {
    let mut world = shop(&["crash", "full", "image", "sick"]);
    task(&mut world, "image", TaskState::Rejected, |status| {
        status.message = "image example/shop:latst: the registry has no such tag; it has latest, 1.4".into();
    });
    task(&mut world, "crash", TaskState::Starting, |status| {
        status.restarts = 3;
        status.attempts = (1..=3).map(|n| attempt(n, Some(2), "Exited", "ended with exit code 2")).collect();
    });
    task(&mut world, "sick", TaskState::Starting, |status| {
        status.attempts = vec![attempt(1, Some(137), "Unhealthy", "its health check failed 3 times: no answer")];
    });
    task(&mut world, "full", TaskState::Pending, |status| {
        status.message = "no node fits (1): memory 8Gi asked, most free is 4Gi (n1)".into();
    });
    check(
        &world,
        &[
            "shop   4 services",
            "  crash  ✗ 0/1  starting  n1  ended with exit code 2; it has failed 3 times",
            "  full   ✗ 0/1  pending     no node fits (1): memory 8Gi asked, most free is 4Gi (n1)",
            "  image  ✗ 0/1  rejected  n1  image example/shop:latst: the registry has no such tag; it has latest, 1.4",
            "  sick   ✗ 0/1  starting  n1  its health check failed 3 times: no answer",
        ],
    );
}

fn wait_of(world: World) -> Wait<'static> {
    let goal: &'static Goal = Box::leak(Box::new(goal()));
    let mut wait = Wait::new(goal, Monotonic(Duration::ZERO), Duration::from_secs(60));
    wait.world = world;
    wait.known = true;
    wait
}

fn at(seconds: u64) -> Monotonic {
    Monotonic(Duration::from_secs(seconds))
}

fn progress(wait: &Wait<'_>) -> Progress {
    look(&wait.world, wait.goal, NOW)
}

#[test]
fn waiting_ends_when_nothing_is_left_to_hope_for() {
    let mut world = shop(&["image", "web"]);
    task(&mut world, "image", TaskState::Rejected, |status| status.message = "no such image".into());
    let mut wait = wait_of(world);
    let seen = progress(&wait);
    assert_eq!(wait.judge(&seen, at(1)), Verdict::GoOn, "web may still come up, and that is worth seeing");
    assert_eq!(wait.judge(&seen, at(6)), Verdict::Hopeless);
    let failure = given_up(wait.goal, &seen, Duration::from_secs(6));
    assert_eq!(failure.exit, Exit::NotConverged);
    assert_eq!(
        failure.to_string(),
        "not up after 6.0 s: image, web\n  image: no such image\n  web: waiting\n  see: applyctl describe service shop-image"
    );
}

#[test]
fn what_may_pass_is_given_time() {
    let mut world = shop(&["full"]);
    task(&mut world, "full", TaskState::Pending, |status| status.message = "no node fits (1): not ready: n1".into());
    let mut wait = wait_of(world);
    let seen = progress(&wait);
    assert_eq!(wait.judge(&seen, at(1)), Verdict::GoOn);
    assert_eq!(wait.judge(&seen, at(3)), Verdict::GoOn);
    assert_eq!(wait.judge(&seen, at(4)), Verdict::Hopeless);

    let mut world = shop(&["away"]);
    task(&mut world, "away", TaskState::Preparing, |status| {
        status.reason = IMAGE_UNAVAILABLE.into();
        status.message = "image x:1: could not reach the registry at x".into();
    });
    let mut wait = wait_of(world);
    let seen = progress(&wait);
    assert_eq!(wait.judge(&seen, at(1)), Verdict::GoOn);
    assert_eq!(wait.judge(&seen, at(9)), Verdict::GoOn, "a registry may be back in a moment");
    assert_eq!(wait.judge(&seen, at(11)), Verdict::Hopeless);
    let failure = given_up(wait.goal, &seen, Duration::from_secs(11));
    assert!(failure.to_string().contains("could not reach the registry at x"), "{failure}");

    let mut world = shop(&["once"]);
    task(&mut world, "once", TaskState::Starting, |status| status.attempts = vec![attempt(1, Some(1), "Exited", "")]);
    let mut wait = wait_of(world);
    let seen = progress(&wait);
    assert_eq!(wait.judge(&seen, at(50)), Verdict::GoOn, "one failed start is no pattern");
    assert_eq!(wait.judge(&seen, at(60)), Verdict::TimeOver);
}

#[test]
fn an_end_without_an_error_is_no_start_either() {
    let why = |attempts: Vec<Attempt>| {
        let mut world = shop(&["web"]);
        task(&mut world, "web", TaskState::Starting, |status| {
            status.restarts = 3;
            status.attempts = attempts;
        });
        let trouble = look(&world, &goal(), NOW).lines[0].trouble.clone().unwrap();
        (trouble.kind, trouble.message)
    };
    let well = |n| attempt(n, Some(0), "Exited", "ended with exit code 0");
    let (kind, message) = why((1..=3).map(well).collect());
    assert_eq!((kind, message.as_str()), (TroubleKind::Crashes, "ended with exit code 0; it has ended 3 times"));
    // It left politely when it was told to because of its check.
    let (kind, _) = why(vec![attempt(1, Some(0), "Unhealthy", "its health check failed 2 times in a row: no")]);
    assert_eq!(kind, TroubleKind::Unhealthy);
    // Years of service are no failed start.
    let long = Attempt { started_at: Some(Timestamp::from_seconds(1)), ..attempt(2, Some(1), "Exited", "") };
    let (kind, _) = why(vec![well(1), long, well(3)]);
    assert_eq!(kind, TroubleKind::Passing);
}

#[test]
fn a_first_rollout_replaces_nothing() {
    let mut world = shop(&["web"]);
    task(&mut world, "web", TaskState::Running, |_| {});
    world.services.get_mut("shop-web").unwrap().status.as_mut().unwrap().updated = 0;
    check(&world, &["shop   1 service", "  web  ◐ 1/1  starting  n1"]);
    task(&mut world, "web", TaskState::Running, |_| {});
    world.tasks.get_mut("shop-web-2").unwrap().spec.revision = "r0".into();
    world.services.get_mut("shop-web").unwrap().status.as_mut().unwrap().updated = 0;
    check(&world, &["shop   1 service", "  web  ◐ 2/1  replacing  n1  0 of 1 are new"]);
}

#[test]
fn what_is_wrong_with_the_old_is_no_verdict_on_the_new() {
    let mut world = shop(&["web"]);
    task(&mut world, "web", TaskState::Starting, |status| {
        status.restarts = 3;
        status.attempts = (1..=3).map(|n| attempt(n, Some(3), "Exited", "ended with exit code 3")).collect();
    });
    assert_eq!(look(&world, &goal(), NOW).lines[0].trouble.as_ref().unwrap().kind, TroubleKind::Crashes);
    let Goal::Bundle { name, generation } = goal() else { panic!("a bundle's") };
    let next = look(&world, &Goal::Bundle { name, generation: generation + 1 }, NOW);
    assert_eq!((next.lines[0].trouble.as_ref(), next.lines[0].state.as_str(), next.up), (None, "waiting", false));
}

#[test]
fn up_is_what_has_run_for_a_moment() {
    let mut world = shop(&["web"]);
    task(&mut world, "web", TaskState::Running, |status| {
        status.attempts = vec![Attempt { started_at: Some(NOW), ..attempt(1, None, "", "") }];
    });
    world.bundle.as_mut().unwrap().status.as_mut().unwrap().state = BundleState::Up;
    let mut wait = wait_of(world);
    let seen = progress(&wait);
    assert_eq!(seen.settles_at, Some(NOW + Duration::from_secs(1)));
    assert_eq!(wait.judge(&seen, at(1)), Verdict::GoOn);
    let later = look(&wait.world, wait.goal, NOW + Duration::from_secs(1));
    assert_eq!(wait.judge(&later, at(2)), Verdict::Up);
    assert_eq!(view::done("shop", &later, Duration::from_millis(6_240)), "shop is up: 1 service, 1 task, 6.2 s");
}

#[test]
fn a_plain_output_is_told_only_what_is_new() {
    let mut world = shop(&["vote"]);
    let mut journal = view::Journal::default();
    task(&mut world, "vote", TaskState::Preparing, |status| {
        status.pull = Some(PullProgress { done_bytes: 1_000_000, total_bytes: 47_000_000 });
    });
    assert_eq!(journal.news(&look(&world, &goal(), NOW)), ["vote  ◐ 0/1  pulling  n1"]);
    world.tasks.values_mut().for_each(|task| {
        task.status.as_mut().unwrap().pull = Some(PullProgress { done_bytes: 2_000_000, total_bytes: 47_000_000 });
    });
    assert_eq!(journal.news(&look(&world, &goal(), NOW)), Vec::<String>::new());
}

#[test]
fn what_left_the_file_is_waited_for() {
    let mut world = shop(&["web", "old"]);
    task(&mut world, "web", TaskState::Running, |_| {});
    task(&mut world, "old", TaskState::Running, |_| {});
    let bundle = world.bundle.as_mut().unwrap();
    bundle.spec.services.remove("old");
    bundle.status.as_mut().unwrap().state = BundleState::Up;
    check(
        &world,
        &["shop   2 services", "  web  ● 1/1  running  n1", "  old  ◐ 1/0  leaving    no longer in the file"],
    );
    assert!(!look(&world, &goal(), NOW).up);
    world.services.remove("shop-old");
    assert!(look(&world, &goal(), NOW).up);
}

#[test]
fn a_service_that_has_counted_a_task_which_says_otherwise_is_not_up() {
    let mut world = shop(&["db"]);
    task(&mut world, "db", TaskState::Running, |_| {});
    world.bundle.as_mut().unwrap().status.as_mut().unwrap().state = BundleState::Up;
    assert!(look(&world, &goal(), NOW).up);
    let ends = world.tasks.values_mut().next().unwrap();
    ends.status.as_mut().unwrap().state = TaskState::Starting;
    let progress = look(&world, &goal(), NOW);
    assert!(!progress.up && !progress.lines[0].up, "{progress:?}");
}

#[test]
fn what_went_with_its_machine_is_no_fault_of_the_application() {
    let mut world = shop(&["db"]);
    task(&mut world, "db", TaskState::Starting, |status| {
        status.restarts = 4;
        status.attempts = (1..=4).map(|n| attempt(n, Some(255), LOST, "lost: the machine was restarted")).collect();
    });
    assert_eq!(look(&world, &goal(), NOW).lines[0].trouble, None);
}
