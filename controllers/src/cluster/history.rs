//! Events do not stay for ever, nor do JoinTokens that are taken no more.
//!
//! Revisions and ended tasks are their service's to forget ([`super::service`]), by the limits of the Cluster object.
//!
//! **Owns** the end of Events and of JoinTokens.
//! **Relies on** whoever records an Event to say when it last happened.
//! **Promises** no Event stays longer than its lifetime after it last happened, and no more than the limit stay: the
//! oldest go first. No JoinToken stays longer than a day after it expired.
//! **Woken by** the clock, and by Events that are too many.

use std::sync::Arc;
use std::time::Duration;

use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::objects::{Precondition, Propagation, Write};
use reconciler::{Resource, Timestamp};
use schemas::defaults::{EVENT_LIFETIME, EVENTS_MAX, JOIN_TOKEN_KEPT};
use schemas::kinds::event::Event;
use schemas::kinds::join_token::JoinToken;

/// How long and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Counted from the last time that the event happened. Default 24 h.
    pub lifetime: Duration,
    /// Default 10,000.
    pub events_max: usize,
    /// Counted from when a JoinToken expired. Default 24 h.
    pub tokens_kept: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let (lifetime, tokens_kept) = (EVENT_LIFETIME.value.get(), JOIN_TOKEN_KEPT.value.get());
        Limits { lifetime, events_max: EVENTS_MAX.value, tokens_kept }
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
            .reads::<JoinToken>()
    }
}

/// What shall go, of each kind the oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    events: Vec<Arc<Event>>,
    tokens: Vec<Arc<JoinToken>>,
    /// When the next one has had its time.
    look_again: Option<Timestamp>,
}

impl KeyReconciler for History {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let snapshot = cx.snapshot();
        let events = snapshot.all::<Event>().cloned().collect();
        let tokens = snapshot.all::<JoinToken>().cloned().collect();
        let plan = plan(events, tokens, &self.limits, cx.now());
        // One that happened again meanwhile, or is another, is not what was seen, and is looked at anew.
        let events = plan.events.iter().map(|event| deletion(&**event));
        let deletions: Vec<Write> = events.chain(plan.tokens.iter().map(|token| deletion(&**token))).collect();
        for batch in deletions.chunks(DELETIONS_PER_COMMIT) {
            cx.client().commit(batch.to_vec()).await?;
        }
        let wait = plan.look_again.map_or(LOOK, |at| at.since(cx.now()).min(LOOK));
        Ok(Action::Requeue(wait.max(GATHER)))
    }
}

fn deletion<K: Resource>(object: &K) -> Write {
    Write::delete(object, Precondition::seen(object), Propagation::Background)
}

/// Pure.
fn plan(mut events: Vec<Arc<Event>>, mut tokens: Vec<Arc<JoinToken>>, limits: &Limits, now: Timestamp) -> Plan {
    events.retain(|event| !event.is_deleting());
    events.sort_by_key(|event| (last(event), event.object_ref()));
    let surplus = events.len().saturating_sub(limits.events_max);
    let over = events.iter().filter(|event| last(event) + limits.lifetime <= now).count();
    let kept = events.split_off(surplus.max(over));
    let next_event = kept.first().map(|event| last(event) + limits.lifetime);
    let end = |token: &JoinToken| token.spec.expires_at.map(|end| end + limits.tokens_kept);
    tokens.retain(|token| !token.is_deleting() && end(token).is_some());
    tokens.sort_by_key(|token| (end(token), token.object_ref()));
    let kept = tokens.split_off(tokens.iter().filter(|token| end(token) <= Some(now)).count());
    let next_token = kept.first().and_then(|token| end(token));
    Plan { events, tokens, look_again: next_event.into_iter().chain(next_token).min() }
}

/// When it last happened; one that does not say happened when it was made.
fn last(event: &Event) -> Timestamp {
    let spec = &event.spec;
    spec.last_time.or(spec.first_time).or(event.metadata.creation_timestamp).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use schemas::kinds::event::EventSpec;
    use schemas::kinds::join_token::JoinTokenSpec;

    use super::*;

    const LIMITS: Limits =
        Limits { lifetime: Duration::from_secs(100), events_max: 3, tokens_kept: Duration::from_secs(50) };

    fn events(seconds: &[i64]) -> Vec<Arc<Event>> {
        let event = |at: &i64| {
            let last_time = Some(Timestamp::from_seconds(*at));
            Arc::new(Event::new(format!("e{at}"), EventSpec { last_time, ..EventSpec::default() }))
        };
        seconds.iter().map(event).collect()
    }

    fn gone(seconds: &[i64], now: i64) -> (Vec<String>, Option<Timestamp>) {
        let plan = plan(events(seconds), vec![], &LIMITS, Timestamp::from_seconds(now));
        (plan.events.iter().map(|event| event.metadata.name.clone()).collect(), plan.look_again)
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

    #[test]
    fn tokens_go_some_time_after_they_expired_and_those_without_an_end_stay() {
        let at = |seconds| Some(Timestamp::from_seconds(seconds));
        let token =
            |name: &str, expires_at| Arc::new(JoinToken::new(name, JoinTokenSpec { expires_at, ..Default::default() }));
        let gone = |now| {
            let tokens = vec![token("late", at(40)), token("for-ever", None), token("soon", at(10))];
            let plan = plan(events(&[20]), tokens, &LIMITS, Timestamp::from_seconds(now));
            let names: Vec<String> = plan.tokens.iter().map(|token| token.metadata.name.clone()).collect();
            (names, plan.look_again)
        };
        assert_eq!(gone(30), (vec![], at(60)), "whoever has it is told that it has expired");
        assert_eq!(gone(60), (vec!["soon".into()], at(90)));
        assert_eq!(gone(100), (vec!["soon".into(), "late".into()], at(120)), "the event is next");
        assert_eq!(gone(1_000).1, None);
    }
}
