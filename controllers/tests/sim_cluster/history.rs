//! Events come one by one and in bursts, happen again, and grow old; join tokens expire, or do not.

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

const LIMITS: Limits = Limits {
    lifetime: Duration::from_secs(30 * DAY as u64),
    events_max: 6,
    tokens_kept: Duration::from_secs(30 * DAY as u64),
};

/// In seconds. Clocks jump in simulations, and not by weeks.
const DAY: i64 = 24 * 3600;
/// When simulations begin, by the wall.
const BEGIN: i64 = 1_767_225_600;

fn scene(scene: Scene) -> Scene {
    let scene = scene.kind::<Event>().kind::<JoinToken>();
    process(scene, "history", |manager| manager.controller(History::controller(LIMITS)))
        .workload(workload)
        .invariant("what may stay goes only when there are too many", too_many)
        .invariant("a token that may be taken stays", tokens_stay)
        .settles("what is left may stay", may_stay)
}

async fn workload(user: User) {
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
        // Long expired, not yet, and never.
        let end = |days: i64| Some(Timestamp::from_seconds(BEGIN + days * DAY));
        for (word, expires_at) in [("old", end(-60)), ("young", end(60)), ("for-ever", None)] {
            let spec = JoinTokenSpec { expires_at, ..JoinTokenSpec::default() };
            user.create(&JoinToken::new(format!("{word}-{number}"), spec)).await;
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

fn tokens_stay(view: &View<'_>) -> Held {
    let is_left = |token: &JoinToken| view.now.get::<JoinToken>(&token.object_ref()).is_some();
    let mut gone = view.before.all::<JoinToken>().filter(|token| !is_left(token));
    match gone.find(|token| !token.name().starts_with("old-")) {
        Some(token) => Err(format!("{} went", token.name())),
        None => Ok(()),
    }
}

/// No more than may stay, and none that was too old from the start.
fn may_stay(snapshot: &Snapshot) -> Held {
    let old = snapshot.all::<Event>().filter(|event| last(event) < Timestamp::from_seconds(BEGIN)).count();
    if let Some(token) = snapshot.all::<JoinToken>().find(|token| token.name().starts_with("old-")) {
        return Err(format!("{} is left", token.name()));
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
