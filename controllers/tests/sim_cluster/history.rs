//! Events come one by one and in bursts, happen again, and grow old; so do JoinTokens.

use std::time::Duration;

use controllers::cluster::history::{History, Limits};
use reconciler::cache::Snapshot;
use reconciler::sim::{Scene, User, View};
use reconciler::{Resource, Timestamp};
use schemas::kinds::event::{Event, EventSpec};
use schemas::kinds::join_token::{JoinToken, JoinTokenSpec};

use super::cast::{NAMESPACE, at, process};
use super::promises::Held;
use super::suite;

const MONTH: Duration = Duration::from_secs(30 * DAY as u64);
const LIMITS: Limits = Limits { lifetime: MONTH, events_max: 6, tokens_kept: MONTH };

/// In seconds. Clocks jump in simulations, and not by weeks.
const DAY: i64 = 24 * 3600;
/// When simulations begin, by the wall.
const BEGIN: i64 = 1_767_225_600;

fn scene(scene: Scene) -> Scene {
    let scene = scene.kind::<Event>().kind::<JoinToken>();
    process(scene, "history", |manager| manager.controller(History::controller(LIMITS)))
        .workload(workload)
        .invariant("what may stay goes only when there are too many", too_many)
        .settles("what is left may stay", may_stay)
}

async fn workload(user: User) {
    for (name, end) in [("old", Some(-60 * DAY)), ("late", Some(60 * DAY)), ("for-ever", None)] {
        let expires_at = end.map(|end| Timestamp::from_seconds(BEGIN + end));
        user.create(&JoinToken::new(name, JoinTokenSpec { expires_at, digest: "0".repeat(64), ..Default::default() }))
            .await;
    }
    let mut number = 0;
    for burst in [2, 9, 1, 7].into_iter().cycle().take(20) {
        for _ in 0..burst {
            number += 1;
            // Every other one is too old from the start.
            let age = if number % 2 == 0 { 60 * DAY } else { 0 };
            let last_time = Some(Timestamp::from_seconds(BEGIN - age + number));
            let mut event = Event::new(format!("e{number}"), EventSpec { last_time, count: 1, ..EventSpec::default() });
            event.metadata.namespace = NAMESPACE.into();
            user.create(&event).await;
        }
        user.pause().await;
        // The newest happens again.
        let newest = at(&format!("e{number}"));
        if user.client().find::<Event>(&newest).await.expect("no faults").is_some() {
            user.update::<Event>(&newest, |event| event.spec.count += 1).await;
        }
        user.pause().await;
    }
}

fn last(event: &Event) -> Timestamp {
    event.spec.last_time.unwrap_or_default()
}

/// One that is not too old goes only when as many as may stay are left.
fn too_many(view: &View<'_>) -> Held {
    let is_left = |event: &Event| view.now.get::<Event>(&event.object_ref()).is_some();
    let left = view.now.count::<Event>();
    for gone in view.before.all::<Event>().filter(|event| !is_left(event)) {
        if last(gone) >= Timestamp::from_seconds(BEGIN) && left < LIMITS.events_max {
            return Err(format!("{} went, and only {left} are left", gone.name()));
        }
    }
    Ok(())
}

/// No more than may stay, and none that was too old from the start.
fn may_stay(snapshot: &Snapshot) -> Held {
    let old = snapshot.all::<Event>().filter(|event| last(event) < Timestamp::from_seconds(BEGIN)).count();
    let tokens: Vec<&str> = snapshot.all::<JoinToken>().map(|token| token.name()).collect();
    if tokens != ["for-ever", "late"] {
        return Err(format!("the tokens that are left are {tokens:?}"));
    }
    match snapshot.count::<Event>() {
        left if left <= LIMITS.events_max && old == 0 => Ok(()),
        left => Err(format!("{left} events are left, {old} of them too old")),
    }
}

#[test]
fn history_of_events() {
    suite("history", 20, scene);
}
