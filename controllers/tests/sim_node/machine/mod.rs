//! A machine that is not there: what containerd, the kernel and the disk would hold, with a time of its own.
//!
//! It outlives applyd, whose every incarnation reaches it by new adapters (`runtime`, `images`, `around`). Each step of a
//! call is one effect: the simulator may refuse it, lose its answer, or have applyd die before or after it. Of what is
//! refused, the machine does a part all the same, later: nobody answered in time, and the request was under way.
//!
//! Nothing runs by itself here: whoever looks first lets the machine catch up with the time, so that what was due
//! happens in its order, to the microsecond.
//!
//! Reading order: this page (time, requests, what others do), `containers`, `place`, then the adapters.

mod around;
mod containers;
mod images;
mod place;
mod runtime;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controllers::node::containerd::ContainerId;
use controllers::node::tasks::{NoFiles, NoLogins, Parts};
use controllers::node::volumes::{VolumeId, Volumes};
use reconciler::api::{Timestamp, Uid};
use reconciler::seams::Seams;
use reconciler::sim::{CallError, Env};
use tokio::sync::Notify;

use super::power::Power;
use super::tally::{Happened, Tally};

pub use containers::{Container, uid_of};
pub use images::Pulled;
pub use place::Place;

/// How long containerd stays away when it was killed.
const CONTAINERD_AWAY: Duration = Duration::from_secs(4);
/// How late a request may be done that nobody answered in time.
const LATE: Duration = Duration::from_millis(1500);
/// How long a shim may be silent.
const SILENCE: Duration = Duration::from_secs(5);
/// When containerd's collector comes by after something was let go.
const COLLECTED: Duration = Duration::from_secs(10);

/// The machine. Clones share it.
#[derive(Clone)]
pub struct Machine {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Something happened, or will happen at another time than was thought.
    changed: Notify,
    power: Power,
}

/// All of it.
pub struct State {
    pub now: Duration,
    /// Of the first applyd: its time began with the machine's, and its wall clock is the machine's.
    clock: Option<Seams>,
    agenda: BTreeMap<(Duration, u64), Due>,
    scheduled: u64,
    /// containerd is away.
    pub away: bool,
    /// It will be, once it is asked to make a task.
    dies_at_work: bool,
    pub containers: BTreeMap<ContainerId, Container>,
    /// What containerd has told of containers since it began to run.
    events: Vec<ContainerId>,
    containerd_run: u64,
    made: u64,
    pub images: BTreeMap<String, Pulled>,
    pub leases: BTreeSet<String>,
    pub places: BTreeMap<Uid, Place>,
    /// The named volumes on the disk: which one of its name it is.
    pub volumes: BTreeMap<VolumeId, u64>,
    /// Those that were removed, until somebody has judged it.
    pub removed: Vec<VolumeId>,
    /// Containers that ran well and that a request of ours has ended or asked to end, until somebody has judged it.
    /// Unhealthy ones, and those whose record somebody took away, are not here.
    pub ended: Vec<ContainerId>,
    /// The first thing that must never be.
    pub broken: Option<String>,
    tally: Tally,
}

/// Something that will happen by itself.
struct Due {
    nature: Nature,
    act: Box<dyn FnOnce(&mut State) + Send>,
}

/// What takes it away before its time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// A process of a container does it: goes with the power.
    Process,
    /// containerd has been asked to: goes with it.
    Request,
    /// Nothing does.
    Sure,
}

impl Machine {
    pub fn new(tally: &Tally) -> Self {
        let state = State {
            now: Duration::ZERO,
            clock: None,
            agenda: BTreeMap::new(),
            scheduled: 0,
            away: false,
            dies_at_work: false,
            containers: BTreeMap::new(),
            events: Vec::new(),
            containerd_run: 0,
            made: 0,
            images: BTreeMap::new(),
            leases: BTreeSet::new(),
            places: BTreeMap::new(),
            volumes: BTreeMap::new(),
            removed: Vec::new(),
            ended: Vec::new(),
            broken: None,
            tally: tally.clone(),
        };
        Machine {
            shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new(), power: Power::default() }),
        }
    }

    /// The machine as it is now.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.shared.state);
        if state.catch_up() {
            self.shared.changed.notify_waiters();
        }
        state
    }

    /// Does something to the machine.
    fn act<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let answer = act(&mut self.lock());
        self.shared.changed.notify_waiters();
        answer
    }

    /// What this incarnation of applyd acts through.
    pub fn parts(&self, env: &Env) -> Parts {
        lock(&self.shared.state).clock.get_or_insert_with(|| env.seams.clone());
        let hand = Hand { machine: self.clone(), env: env.clone() };
        Parts {
            runtime: Arc::new(hand.clone()),
            images: Arc::new(hand.clone()),
            surroundings: Arc::new(hand),
            logins: Arc::new(NoLogins),
            files: Arc::new(NoFiles),
        }
    }

    /// The named volumes, as this incarnation reaches them.
    pub fn volumes(&self, env: &Env) -> Arc<dyn Volumes> {
        Arc::new(Hand { machine: self.clone(), env: env.clone() })
    }

    pub fn power(&self) -> &Power {
        &self.shared.power
    }

    /// Everything but the disks is gone.
    pub fn cut_power(&self) {
        self.act(|state| {
            state.tally.count(Happened::PowerCut);
            state.agenda.retain(|_, due| due.nature == Nature::Sure);
            state.lose_processes();
            state.places.values_mut().for_each(Place::boot);
            state.containerd_goes();
        });
        self.shared.power.cut();
    }

    /// containerd will die while it makes the next task.
    pub fn kill_containerd_at_work(&self) {
        self.act(|state| state.dies_at_work = true);
    }

    pub fn kill_containerd(&self) {
        self.act(|state| {
            state.tally.count(Happened::ContainerdKilled);
            state.containerd_goes();
        });
    }

    /// Somebody kills the container that was made last.
    pub fn kill_container(&self) {
        self.act(|state| {
            if let Some(id) = state.newest_running() {
                state.tally.count(Happened::ContainerKilled);
                state.exits(&id, 137, false);
            }
        });
    }

    /// Somebody takes away the record of a running container, which runs on.
    pub fn remove_record(&self) {
        self.act(|state| {
            if let Some(id) = state.newest_running() {
                state.tally.count(Happened::RecordRemoved);
                state.tamper(&id);
            }
        });
    }

    /// The shim of a running container does not answer for a while.
    pub fn silence_shim(&self) {
        self.act(|state| {
            if let Some(id) = state.newest_running() {
                state.tally.count(Happened::ShimSilent);
                state.silence(&id, SILENCE);
            }
        });
    }

    /// Somebody removes all images.
    pub fn prune_images(&self) {
        self.act(|state| {
            if !state.images.is_empty() {
                state.tally.count(Happened::ImagesPruned);
                state.images.clear();
            }
        });
    }
}

impl State {
    /// Lets everything happen that is due. True if anything was.
    fn catch_up(&mut self) -> bool {
        let Some(clock) = &self.clock else { return false };
        let now = clock.monotonic().0;
        let mut happened = false;
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((at, _), due) = entry.remove_entry();
            self.now = self.now.max(at);
            (due.act)(self);
            happened = true;
        }
        self.now = self.now.max(now);
        happened
    }

    /// What the machine's clock on the wall says.
    pub fn wall(&self) -> Timestamp {
        self.clock.as_ref().map(Seams::now).unwrap_or_default()
    }

    fn after(&mut self, wait: Duration, nature: Nature, act: impl FnOnce(&mut State) + Send + 'static) {
        self.scheduled += 1;
        self.agenda.insert((self.now + wait, self.scheduled), Due { nature, act: Box::new(act) });
    }

    /// How long until something happens by itself.
    fn idle(&self) -> Option<Duration> {
        self.agenda.first_key_value().map(|((at, _), _)| at.saturating_sub(self.now))
    }

    /// Who dies takes the requests along that it was at, and comes back.
    fn containerd_goes(&mut self) {
        self.agenda.retain(|_, due| due.nature != Nature::Request);
        self.creations_get_stuck();
        self.containerd_run += 1;
        self.events.clear();
        if !self.away {
            self.away = true;
            self.after(CONTAINERD_AWAY, Nature::Sure, |state| {
                state.away = false;
                state.collect();
            });
        }
    }

    fn breaks(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }
}

/// A machine as one incarnation of applyd reaches it.
#[derive(Clone)]
struct Hand {
    machine: Machine,
    env: Env,
}

/// A step is one request: it happens or not, and one hears of it or not.
type Step<T> = Box<dyn FnOnce(&mut State) -> T + Send>;

impl Hand {
    /// Asks containerd for one step. `Err`: nobody answered.
    async fn request<T: Send + 'static>(
        &self,
        what: impl Into<String>,
        step: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let what = what.into();
        let slot: Mutex<Option<Step<Option<T>>>> = Mutex::new(Some(Box::new(move |state: &mut State| {
            if state.away {
                state.tally.count(Happened::ContainerdAway);
                return None;
            }
            Some(step(state))
        })));
        let take = || lock(&slot).take().expect("it is done once");
        let answer = self.env.calls.effect(&what, || self.machine.act(take()));
        match answer.await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(CallError::Refused),
            Err(CallError::Refused) => {
                let step = take();
                let late = self.env.calls.is_late();
                self.machine.act(|state| {
                    if late && !state.away {
                        state.after(LATE, Nature::Request, move |state| {
                            if step(state).is_some() {
                                state.tally.count(Happened::DoneLate);
                            }
                        });
                    }
                });
                Err(CallError::NoAnswer)
            }
            Err(lost) => Err(lost),
        }
    }

    /// One step in the kernel or on the disk: done by applyd itself, so never later than that.
    async fn step<T>(&self, what: String, step: impl FnOnce(&mut State) -> T) -> Result<T, CallError> {
        self.env.calls.effect(&what, || self.machine.act(step)).await
    }

    /// Asks containerd for something that changes nothing.
    async fn ask<T>(&self, what: &str, look: impl FnOnce(&mut State) -> T) -> Result<T, CallError> {
        let looked = self.env.calls.look(what, || {
            let mut state = self.machine.lock();
            match state.away {
                true => {
                    state.tally.count(Happened::ContainerdAway);
                    None
                }
                false => Some(look(&mut state)),
            }
        });
        looked.await?.ok_or(CallError::Refused)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Machine")
    }
}
