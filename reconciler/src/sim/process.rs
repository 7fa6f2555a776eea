//! What runs in a simulation: processes, the person who uses them, and the worlds outside the store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reconciler_api::{ObjectRef, Resource};

use crate::cache::Snapshot;
use crate::objects::{Client, Error, Objects, Propagation, Writer};
use crate::seams::Seams;

use super::choices::Point;
use super::executor::Lane;
use super::faults::Fault;
use super::server::Server;
use super::universe::{USER, Universe, give_way};

/// What a process is started with: all that it may touch. A crashed process starts again with nothing else.
#[derive(Clone, Debug)]
pub struct Env {
    /// The store, as this process reaches it.
    pub objects: Arc<dyn Objects>,
    /// Time, randomness and tasks, all the simulation's.
    pub seams: Seams,
    /// The way to external worlds.
    pub calls: Calls,
    /// How often this process was started before.
    pub incarnation: u32,
}

/// How a process reaches external worlds: every call may be refused, lose its answer, take long, or be the last thing
/// that the process did.
#[derive(Clone)]
pub struct Calls {
    pub(super) universe: Universe,
    pub(super) server: Arc<Server>,
    pub(super) lane: Lane,
}

/// Why a call on a simulated world has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nothing happened.
    #[error("the call was refused")]
    Refused,
    /// It happened, or not.
    #[error("no answer came")]
    NoAnswer,
}

impl Calls {
    /// An effect on a world, all at once. `what` names it in the story. Whoever simulates a world of several steps
    /// makes a call of each.
    pub async fn effect<T>(&self, what: &str, effect: impl FnOnce() -> T) -> Result<T, CallError> {
        give_way().await;
        let tell = |end: &str| self.universe.tell(|| format!("{}: {what}{end}", self.universe.name(self.lane)));
        let fault = self.universe.fault(Point::Call, self.lane);
        match fault {
            Some(Fault::CallRefused) => {
                tell(": refused");
                return Err(CallError::Refused);
            }
            Some(Fault::CrashBeforeCall) => {
                tell(": dies before it");
                self.universe.crash(self.lane);
                return std::future::pending().await;
            }
            Some(Fault::CallSlow) => self.universe.sleep(self.lane, Duration::from_secs(3)).await,
            _ => {}
        }
        let answer = effect();
        self.server.inspect_effect();
        match fault {
            Some(Fault::CallReplyLost) => {
                tell(": done, and the answer is lost");
                Err(CallError::NoAnswer)
            }
            Some(Fault::CrashAfterCall) => {
                tell(": done, and dies before the answer");
                self.universe.crash(self.lane);
                std::future::pending().await
            }
            Some(Fault::CallSlow) => {
                tell(": done, after 3 s");
                Ok(answer)
            }
            _ => {
                tell("");
                Ok(answer)
            }
        }
    }

    /// Whether a call that was refused is done all the same, later: nobody answered in time, and the request was under
    /// way. For worlds that are somebody else's; what a process does itself is done by nobody when it was not done.
    pub fn is_late(&self) -> bool {
        self.universe.fault(Point::Late, self.lane).is_some()
    }

    /// A look at a world: may be refused or slow, changes nothing.
    pub async fn look<T>(&self, what: &str, look: impl FnOnce() -> T) -> Result<T, CallError> {
        give_way().await;
        match self.universe.fault(Point::Read, self.lane) {
            Some(Fault::ReadUnavailable) => {
                self.universe.tell(|| format!("{}: {what}: refused", self.universe.name(self.lane)));
                Err(CallError::Refused)
            }
            Some(Fault::ReadSlow) => {
                let seen = look();
                self.universe.sleep(self.lane, Duration::from_secs(3)).await;
                Ok(seen)
            }
            _ => Ok(look()),
        }
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Calls")
    }
}

/// Something that the outside world may do by itself, at any pause of the workload.
pub(super) type Drift = Box<dyn Fn() + Send + Sync>;

/// Whoever uses what is simulated: its steps are the workload. Its own requests meet with no faults.
#[derive(Clone)]
pub struct User {
    pub(super) universe: Universe,
    pub(super) server: Arc<Server>,
    pub(super) client: Client,
    pub(super) drifts: Arc<Vec<(String, Drift)>>,
    pub(super) skews: Arc<Vec<(Lane, Arc<std::sync::atomic::AtomicI64>)>>,
}

impl User {
    pub(super) fn writer() -> Writer {
        Writer::new("user:ann", "workload")
    }

    /// The client that the workload writes with; nothing goes wrong on its way.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Everything as it stands in the store now, whatever any process knows of it.
    pub fn snapshot(&self) -> Snapshot {
        self.server.snapshot()
    }

    /// A good moment for something else to happen. Usually things settle meanwhile; sometimes not at all.
    pub async fn pause(&self) {
        for (lane, skew) in &*self.skews {
            let jump = match self.universe.fault(Point::Clock, *lane) {
                Some(Fault::ClockForward) => 3_600_000_000,
                Some(Fault::ClockBack) => -3_600_000_000,
                _ => continue,
            };
            self.universe
                .tell(|| format!("the clock of {} jumps by {} h", self.universe.name(*lane), jump / 3_600_000_000));
            skew.fetch_add(jump, std::sync::atomic::Ordering::Relaxed);
        }
        let options = u32::try_from(self.drifts.len()).unwrap_or(u32::MAX).saturating_add(1);
        let drift = self.universe.choose(Point::Drift, super::universe::NOBODY, options);
        if let Some((name, drift)) = (drift as usize).checked_sub(1).and_then(|drift| self.drifts.get(drift)) {
            self.universe.tell(|| name.clone());
            drift();
            self.server.inspect_effect();
        }
        match self.universe.fault(Point::Pause, USER) {
            Some(Fault::Hurried) => give_way().await,
            Some(Fault::Lingered) => self.universe.sleep(USER, Duration::from_secs(90)).await,
            _ => self.universe.sleep(USER, Duration::from_secs(1)).await,
        }
    }

    /// Makes an object and answers it as stored.
    pub async fn create<T: Resource>(&self, object: &T) -> T {
        self.client.create(object).await.expect("the workload's own requests are valid and meet with no faults")
    }

    /// Changes an object that may be changing; nothing happens when it is not there.
    pub async fn update<T: Resource>(&self, reference: &ObjectRef, change: impl Fn(&mut T)) {
        loop {
            let Some(observed) = self.client.find::<T>(reference).await.expect("no faults") else { return };
            let mut desired = observed.clone();
            change(&mut desired);
            match self.client.update(&observed, &desired).await {
                Ok(_) => return,
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => panic!("the workload's own request was refused: {error}"),
            }
        }
    }

    /// Deletes an object, in the background; one that is gone already is no trouble.
    pub async fn delete<T: Resource>(&self, reference: &ObjectRef) {
        if let Some(object) = self.client.find::<T>(reference).await.expect("no faults") {
            let deleted: Result<(), Error> = self.client.delete(&object, Propagation::Background).await;
            deleted.or_else(|error| if error.is_conflict() { Ok(()) } else { Err(error) }).expect("no faults");
        }
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("User")
    }
}
