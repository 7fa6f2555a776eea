//! Events do not stay for ever.
//!
//! Revisions and ended tasks are their service's to forget ([`super::service`]), by the limits of the Cluster object.
//!
//! **Owns** the end of Events.
//! **Relies on** whoever records an Event to say when it last happened.
//! **Promises** no Event stays longer than its lifetime after it last happened, and no more than the limit stay: the
//! oldest go first.
//! **Woken by** the clock, and by Events that are too many.

use std::sync::Arc;
use std::time::Duration;

use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::objects::{Precondition, Propagation, Write};
use reconciler::{Resource, Timestamp};
use schemas::defaults::{EVENT_LIFETIME, EVENTS_MAX};
use schemas::kinds::event::Event;

/// How long and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Counted from the last time that the event happened. Default 24 h.
    pub lifetime: Duration,
    /// Default 10,000.
    pub events_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { lifetime: EVENT_LIFETIME.value.get(), events_max: EVENTS_MAX.value }
    }
}

/// A clock that jumps ahead is noticed within this.
const LOOK: Duration = Duration::from_secs(60);
/// What a burst brings is let go of together.
const GATHER: Duration = Duration::from_millis(500);
const DELETIONS_PER_COMMIT: usize = 50;

pub struct History {
    limits: Limits,
}

impl History {
    pub fn controller(limits: Limits) -> Controller<Singleton> {
        let most = limits.events_max;
        Controller::singleton("history", History { limits })
            .watches::<Event, _>(move |_, snapshot| (snapshot.count::<Event>() > most).then_some(Singleton))
    }
}

/// What shall go, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    go: Vec<Arc<Event>>,
    /// When the next one has had its time.
    look_again: Option<Timestamp>,
}

impl KeyReconciler for History {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let events: Vec<Arc<Event>> = cx.snapshot().all::<Event>().cloned().collect();
        let plan = plan(events, &self.limits, cx.now());
        for batch in plan.go.chunks(DELETIONS_PER_COMMIT) {
            // One that happened again meanwhile is another than was seen, and is looked at anew.
            let deletion =
                |event: &Arc<Event>| Write::delete(&**event, Precondition::seen(&**event), Propagation::Background);
            cx.client().commit(batch.iter().map(deletion).collect()).await?;
        }
        let wait = plan.look_again.map_or(LOOK, |at| at.since(cx.now()).min(LOOK));
        Ok(Action::Requeue(wait.max(GATHER)))
    }
}

/// Pure.
fn plan(mut events: Vec<Arc<Event>>, limits: &Limits, now: Timestamp) -> Plan {
    events.retain(|event| !event.is_deleting());
    events.sort_by_key(|event| (last(event), event.object_ref()));
    let surplus = events.len().saturating_sub(limits.events_max);
    let over = events.iter().filter(|event| last(event) + limits.lifetime <= now).count();
    let kept = events.split_off(surplus.max(over));
    Plan { go: events, look_again: kept.first().map(|event| last(event) + limits.lifetime) }
}

/// When it last happened; one that does not say happened when it was made.
fn last(event: &Event) -> Timestamp {
    let spec = &event.spec;
    spec.last_time.or(spec.first_time).or(event.metadata.creation_timestamp).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use schemas::kinds::event::EventSpec;

    use super::*;

    fn events(seconds: &[i64]) -> Vec<Arc<Event>> {
        let event = |at: &i64| {
            let last_time = Some(Timestamp::from_seconds(*at));
            Arc::new(Event::new(format!("e{at}"), EventSpec { last_time, ..EventSpec::default() }))
        };
        seconds.iter().map(event).collect()
    }

    fn gone(seconds: &[i64], now: i64) -> (Vec<String>, Option<Timestamp>) {
        let limits = Limits { lifetime: Duration::from_secs(100), events_max: 3 };
        let plan = plan(events(seconds), &limits, Timestamp::from_seconds(now));
        (plan.go.iter().map(|event| event.metadata.name.clone()).collect(), plan.look_again)
    }

    #[test]
    fn the_oldest_go_by_age_and_by_number() {
        let at = |seconds| Some(Timestamp::from_seconds(seconds));
        assert_eq!(gone(&[30, 10, 20], 50), (vec![], at(110)));
        assert_eq!(gone(&[30, 10, 20], 110), (vec!["e10".into()], at(120)));
        assert_eq!(gone(&[40, 30, 10, 20, 50], 60), (vec!["e10".into(), "e20".into()], at(130)), "two too many");
        assert_eq!(gone(&[40, 30, 10, 20, 50], 140).0, ["e10", "e20", "e30", "e40"]);
        assert_eq!(gone(&[], 140), (vec![], None));
    }
}
