//! The authority that signs certificates becomes another one, and nobody is cut off meanwhile.
//!
//! Each step waits for every machine: the next one is believed everywhere, and managers have its key (`Coming`); it signs, and
//! machines get certificates of it (`Signing`); the one before is believed for a while (`Going`), and then no more.
//!
//! **Owns** `status.authorities` of the Cluster, and its condition `AuthorityIsLatest`.
//! **Relies on** people for `spec.authority`, and on machines for `status.identity` of their Nodes: that is what they do.
//! **Promises** at each moment each machine believes what every other one shows; the next authority signs once every machine that
//! there is has been there.
//! **Woken by** the Cluster, by Nodes, and when the overlap is over.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use reconciler::ObjectRef;
use reconciler::api::Timestamp;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use schemas::kinds::cluster::{AuthorityState, AuthorityStatus, CLUSTER_NAME, Cluster, ClusterAuthority};
use schemas::kinds::node::{Node, NodeIdentity, Role};

/// The condition of the Cluster that says whether its authority is the one that was asked for last, and alone.
pub const LATEST: &str = "AuthorityIsLatest";
/// So many machines are named that are waited for.
const NAMED: usize = 5;

/// An authority, as far as everybody may know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub fingerprint: String,
    /// Its certificate, in PEM.
    pub certificate: String,
}

/// The authorities whose keys this manager has. Each call may be repeated.
pub trait Authorities: Send + Sync + 'static {
    /// The one that signs here.
    fn signing(&self) -> Known;

    /// The next one, if this manager has one.
    fn next(&self) -> Option<Known>;

    /// The certificate of the next one, as the one that signs here has signed it; in PEM.
    ///
    /// # Errors
    /// This manager does not have both, or it cannot be made.
    fn bridge(&self, next: &str) -> io::Result<String>;

    /// Makes the next one, in the place of one that was made before and signs nothing yet.
    ///
    /// # Errors
    /// It cannot be made or kept; then what was there before is still there.
    fn make(&self) -> io::Result<Known>;
}

pub struct Rotation(Arc<dyn Authorities>);

impl Rotation {
    pub fn controller(authorities: Arc<dyn Authorities>) -> Controller<Singleton> {
        Controller::singleton("authority", Self(authorities))
            .watches_all::<Cluster>()
            .watches::<Node, _>(|_, _| [Singleton])
    }
}

/// What is known when it is decided.
#[derive(Clone, Debug)]
struct Seen {
    wanted: ClusterAuthority,
    authorities: Vec<AuthorityStatus>,
    machines: Vec<Machine>,
    /// The next one's fingerprint, where this manager has it.
    next_here: Option<String>,
}

#[derive(Clone, Debug)]
struct Machine {
    name: String,
    manages: bool,
    is_lost: bool,
    /// Nothing is known of one that has not said it.
    identity: Option<NodeIdentity>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Rest,
    /// The next one is made, and the list begins to have it.
    Make,
    /// The one that is coming signs.
    Sign(String),
    /// The one before is believed no more.
    Forget,
}

#[derive(Clone, Debug, PartialEq)]
struct Plan {
    step: Step,
    /// Why what was asked for is not so yet.
    waiting: Option<String>,
    look_again: Option<Timestamp>,
}

impl KeyReconciler for Rotation {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let Some(cluster) = cx.snapshot().get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).cloned() else {
            return Ok(Action::Await);
        };
        let machine = |node: &Arc<Node>| Machine {
            name: node.metadata.name.clone(),
            manages: node.spec.role == Role::Manager,
            is_lost: node.is_lost(),
            identity: node.status.as_ref().and_then(|status| status.identity.clone()),
        };
        let seen = Seen {
            wanted: cluster.spec.authority.clone(),
            authorities: cluster.status.as_ref().map(|status| status.authorities.clone()).unwrap_or_default(),
            machines: cx.snapshot().all::<Node>().map(machine).collect(),
            next_here: self.0.next().map(|next| next.fingerprint),
        };
        let now = cx.now();
        let plan = plan(&seen, now);
        let mut desired = (*cluster).clone();
        let status = desired.status.get_or_insert_default();
        match plan.step {
            Step::Rest => {}
            Step::Sign(next) => {
                let bridge = self.0.bridge(&next).map_err(Error::retry)?;
                status.authorities = signs_now(&seen.authorities, &bridge, now);
            }
            Step::Forget => status.authorities.retain(|authority| authority.state != AuthorityState::Going),
            Step::Make => {
                let made = self.0.make().map_err(Error::retry)?;
                status.authorities = with_next(&seen, &self.0.signing(), made, now);
            }
        }
        let asked = !status.authorities.is_empty();
        if asked {
            let (is_latest, reason) = if plan.waiting.is_none() { (true, "Latest") } else { (false, "Changing") };
            let message = plan.waiting.unwrap_or_default();
            status.conditions.set(LATEST, is_latest, reason, &message, cluster.metadata.generation, now);
        }
        if desired.status != cluster.status {
            cx.client().update_status(&*cluster, &desired).await?;
        }
        Ok(plan.look_again.map_or(Action::Await, |at| Action::Requeue(at.since(now).max(Duration::from_secs(1)))))
    }
}

/// The list, with one that was just made.
fn with_next(seen: &Seen, signing: &Known, made: Known, now: Timestamp) -> Vec<AuthorityStatus> {
    let first = AuthorityStatus {
        fingerprint: signing.fingerprint.clone(),
        certificate: signing.certificate.clone(),
        state: AuthorityState::Signing,
        ..AuthorityStatus::default()
    };
    let next = AuthorityStatus {
        fingerprint: made.fingerprint,
        certificate: made.certificate,
        since: Some(now),
        rotation: seen.wanted.rotation,
        ..AuthorityStatus::default()
    };
    let mut before: Vec<AuthorityStatus> = seen.authorities.clone();
    before.retain(|authority| authority.state != AuthorityState::Coming);
    if before.is_empty() {
        before.push(first);
    }
    before.into_iter().chain([next]).collect()
}

fn plan(seen: &Seen, now: Timestamp) -> Plan {
    let in_state = |state| seen.authorities.iter().find(move |authority| authority.state == state);
    let rest = |waiting| Plan { step: Step::Rest, waiting, look_again: None };
    if let Some(coming) = in_state(AuthorityState::Coming) {
        let fingerprint = &coming.fingerprint;
        let mut managers = seen.machines.iter().filter(|machine| machine.manages);
        // Its only holder was removed before anybody else had it.
        let is_nobodys = seen.next_here.as_ref() != Some(fingerprint)
            && managers.all(|manager| manager.identity.as_ref().is_some_and(|it| !it.holds.contains(fingerprint)));
        if is_nobodys {
            return Plan {
                step: Step::Make,
                waiting: Some("the next authority is made anew".into()),
                look_again: None,
            };
        }
        let ready = |machine: &Machine| {
            let is_ready = |it: &NodeIdentity| {
                it.believes.contains(fingerprint) && (!machine.manages || it.holds.contains(fingerprint))
            };
            machine.identity.as_ref().is_some_and(is_ready)
        };
        return match waits_for(seen, ready) {
            Some(who) => rest(Some(format!("the next authority signs once all machines believe it; {who}"))),
            None => Plan {
                step: Step::Sign(fingerprint.clone()),
                waiting: Some("the next authority signs from now on".into()),
                look_again: None,
            },
        };
    }
    if let (Some(signing), Some(_)) = (in_state(AuthorityState::Signing), in_state(AuthorityState::Going)) {
        let by_it = |machine: &Machine| {
            machine.identity.as_ref().is_some_and(|identity| identity.signed_by == signing.fingerprint)
        };
        if let Some(who) = waits_for(seen, by_it) {
            return rest(Some(format!(
                "the authority before is believed until all have certificates of this one; {who}"
            )));
        }
        let over = signing.since.unwrap_or(now) + seen.wanted.overlap.get();
        // A clock that was set is no reason to wait for longer than what was asked for.
        if over > now && signing.since.is_none_or(|since| since <= now) {
            let waiting = format!("the authority before is believed until {over}");
            return Plan { look_again: Some(over), ..rest(Some(waiting)) };
        }
        let is_latest = signing.rotation >= seen.wanted.rotation;
        let waiting = (!is_latest).then(|| "the next authority is made".to_owned());
        return Plan { step: Step::Forget, waiting, look_again: None };
    }
    let latest = seen.authorities.iter().map(|authority| authority.rotation).max().unwrap_or(0);
    match seen.wanted.rotation > latest {
        true => Plan { step: Step::Make, waiting: Some("the next authority is made".into()), look_again: None },
        false => rest(None),
    }
}

/// The one that was coming signs, and the one that did goes.
fn signs_now(authorities: &[AuthorityStatus], bridge: &str, now: Timestamp) -> Vec<AuthorityStatus> {
    let next = |authority: &AuthorityStatus| match authority.state {
        AuthorityState::Coming => AuthorityStatus {
            state: AuthorityState::Signing,
            since: Some(now),
            bridge: bridge.to_owned(),
            ..authority.clone()
        },
        AuthorityState::Signing => {
            AuthorityStatus { state: AuthorityState::Going, since: Some(now), ..authority.clone() }
        }
        AuthorityState::Going => authority.clone(),
    };
    authorities.iter().map(next).collect()
}

/// Who is not there yet, in words with what to do.
fn waits_for(seen: &Seen, is_there: impl Fn(&Machine) -> bool) -> Option<String> {
    let missing: Vec<&Machine> = seen.machines.iter().filter(|machine| !is_there(machine)).collect();
    let names = |machines: &[&Machine]| {
        let named: Vec<&str> = machines.iter().take(NAMED).map(|machine| machine.name.as_str()).collect();
        let more = machines.len().saturating_sub(NAMED);
        if more == 0 { named.join(", ") } else { format!("{} and {more} more", named.join(", ")) }
    };
    let lost: Vec<&Machine> = missing.iter().copied().filter(|machine| machine.is_lost).collect();
    let advice = match lost[..] {
        [] => String::new(),
        _ => format!(" (lost: {}; bring them back, or: applyctl node rm)", names(&lost)),
    };
    (!missing.is_empty()).then(|| format!("waits for {}{advice}", names(&missing)))
}

#[cfg(test)]
mod tests {
    use schemas::quantity::Period;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    /// `A` signs, `+B` is coming, `-A` goes; the number of a rotation is that of the letter.
    fn authorities(text: &str) -> Vec<AuthorityStatus> {
        let one = |word: &str| {
            let (state, name) = match word.split_at(1) {
                ("+", name) => (AuthorityState::Coming, name),
                ("-", name) => (AuthorityState::Going, name),
                _ => (AuthorityState::Signing, word),
            };
            AuthorityStatus {
                fingerprint: name.to_owned(),
                state,
                since: Some(NOW),
                rotation: u32::from(name.as_bytes()[0] - b'A'),
                ..AuthorityStatus::default()
            }
        };
        text.split_whitespace().map(one).collect()
    }

    /// `m1:A:AB:A`: a machine that shows a certificate of A, believes A and B, and has the key of A; managers begin with an
    /// m, lost ones have a minus before their name. `w9`: it has said nothing.
    fn machine(text: &str) -> Machine {
        let (name, is_lost) = text.strip_prefix('-').map_or((text, false), |name| (name, true));
        let mut parts = name.split(':');
        let letters = |text: Option<&str>| text.unwrap_or_default().chars().map(String::from).collect();
        let name = parts.next().unwrap().to_owned();
        let identity = parts.next().map(|signed_by| NodeIdentity {
            signed_by: signed_by.to_owned(),
            until: None,
            believes: letters(parts.next()),
            holds: letters(parts.next()),
        });
        Machine { manages: name.starts_with('m'), name, is_lost, identity }
    }

    fn seen(rotation: u32, overlap: u64, list: &str, machines: &str) -> Seen {
        Seen {
            wanted: ClusterAuthority { rotation, overlap: Period::from_secs(overlap) },
            authorities: authorities(list),
            machines: machines.split_whitespace().map(machine).collect(),
            next_here: None,
        }
    }

    /// What is done, and what is waited for.
    fn planned(seen: &Seen, now: Timestamp) -> (String, String) {
        let plan = plan(seen, now);
        let word = |authority: &AuthorityStatus| {
            let mark = match authority.state {
                AuthorityState::Coming => "+",
                AuthorityState::Signing => "",
                AuthorityState::Going => "-",
            };
            format!("{mark}{}", authority.fingerprint)
        };
        let step = match plan.step {
            Step::Rest => "rest".to_owned(),
            Step::Make => "make".to_owned(),
            Step::Sign(_) => signs_now(&seen.authorities, "", now).iter().map(word).collect::<Vec<_>>().join(" "),
            Step::Forget => "forget".to_owned(),
        };
        (step, plan.waiting.unwrap_or_default())
    }

    fn check(rotation: u32, list: &str, machines: &str, does: &str, waits: &str) {
        let (step, waiting) = planned(&seen(rotation, 0, list, machines), NOW);
        assert_eq!(step, does, "{rotation} | {list} | {machines}: {waiting}");
        assert!(waiting.contains(waits), "{rotation} | {list} | {machines}: {waiting}");
    }

    #[test]
    fn one_after_the_other_and_each_step_waits_for_all_machines() {
        check(0, "", "m1:A:A:A", "rest", "");
        check(1, "", "m1:A:A:A", "make", "");
        check(1, "A +B", "m1:A:AB:AB w2:A:A", "rest", "waits for w2");
        check(1, "A +B", "m1:A:AB:AB m2:A:AB:A", "rest", "waits for m2");
        check(1, "A +B", "m1:A:AB:AB w2", "rest", "waits for w2");
        check(1, "A +B", "m1:A:AB:AB -w2:A:A", "rest", "lost: w2; bring them back, or: applyctl node rm");
        check(1, "A +B", "m1:A:AB:AB w2:A:AB", "-A B", "");
        check(1, "-A B", "m1:B:AB:B w2:A:AB", "rest", "waits for w2");
        check(1, "-A B", "m1:B:AB:B w2:B:AB", "forget", "");
        check(1, "B", "m1:B:B:B w2:B:B", "rest", "");
        check(2, "B", "m1:B:B:B w2:B:B", "make", "");
        check(2, "-A B", "m1:B:AB:B w2:A:AB", "rest", "waits for w2");
    }

    #[test]
    fn one_that_nobody_has_is_made_anew_and_one_that_somebody_may_have_is_not() {
        check(1, "A +B", "m1:A:AB:A w2:A:A", "make", "anew");
        check(1, "A +B", "m1:A:AB:A m2", "rest", "waits for m1, m2");
        check(1, "A +B", "m1:A:AB:A m2:A:AB:AB", "rest", "waits for m1");
        let mut here = seen(1, 0, "A +B", "m1:A:AB:A w2:A:AB");
        here.next_here = Some("B".into());
        assert_eq!(planned(&here, NOW).0, "rest", "it is only not said yet");
    }

    #[test]
    fn the_one_before_is_believed_for_as_long_as_was_asked_for() {
        let done = seen(1, 3600, "-A B", "m1:B:AB:B w2:B:AB");
        assert_eq!(planned(&done, NOW).0, "rest");
        assert_eq!(plan(&done, NOW).look_again, Some(NOW + Duration::from_secs(3600)));
        assert_eq!(planned(&done, NOW + Duration::from_secs(3599)).0, "rest");
        assert_eq!(planned(&done, NOW + Duration::from_secs(3600)).0, "forget");
    }

    #[test]
    fn what_was_made_takes_the_place_of_one_that_was_coming() {
        let known = |name: &str| Known { fingerprint: name.into(), certificate: format!("of {name}") };
        let names = |list: Vec<AuthorityStatus>| list.into_iter().map(|it| it.fingerprint).collect::<Vec<_>>();
        let first = with_next(&seen(1, 0, "", ""), &known("A"), known("B"), NOW);
        assert_eq!((first[0].rotation, first[1].rotation, first[0].state), (0, 1, AuthorityState::Signing));
        assert_eq!(names(first), ["A", "B"]);
        assert_eq!(names(with_next(&seen(1, 0, "A +B", ""), &known("A"), known("C"), NOW)), ["A", "C"]);
    }
}
