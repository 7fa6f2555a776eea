//! What all parts of one run share: the machine, the choices, the story, and the first thing that went wrong.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::choices::{Chooser, Point};
use super::executor::{Lane, Machine, lock};
use super::faults::{Fault, Fired};

/// The lane of what belongs to no process.
pub(super) const NOBODY: Lane = 0;
/// The lane of the workload.
pub(super) const USER: Lane = 1;

/// A safe or lively thing that was promised and did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which promise, as it was named.
    pub promise: String,
    /// What was seen instead.
    pub detail: String,
}

#[derive(Clone)]
pub(super) struct Universe {
    pub machine: Machine,
    shared: Arc<Shared>,
}

struct Shared {
    chooser: Mutex<Chooser>,
    without: BTreeSet<Fault>,
    names: Vec<String>,
    fired: Mutex<Fired>,
    broken: Mutex<Option<Broken>>,
    /// `None` when nobody will read it.
    story: Option<Mutex<Vec<String>>>,
}

impl Universe {
    pub(super) fn new(chooser: Chooser, without: BTreeSet<Fault>, names: Vec<String>, told: bool) -> Self {
        let shared = Shared {
            chooser: Mutex::new(chooser),
            without,
            names,
            fired: Mutex::default(),
            broken: Mutex::default(),
            story: told.then(Mutex::default),
        };
        Self { machine: Machine::new(), shared: Arc::new(shared) }
    }

    /// One of `options`; faults that the simulation goes without are never chosen.
    pub(super) fn choose(&self, point: Point, lane: Lane, options: u32) -> u32 {
        let value = lock(&self.shared.chooser).choose(point, lane, options);
        match point.fault(value) {
            Some(fault) if self.shared.without.contains(&fault) => 0,
            Some(fault) => {
                lock(&self.shared.fired).count(fault);
                value
            }
            None => 0,
        }
    }

    /// Whether the fault at this point happens, for points whose every answer is one fault.
    pub(super) fn fault(&self, point: Point, lane: Lane) -> Option<Fault> {
        let options = u32::try_from(point.faults().len()).unwrap_or(u32::MAX).saturating_add(1);
        point.fault(self.choose(point, lane, options))
    }

    pub(super) fn is_calm(&self) -> bool {
        lock(&self.shared.chooser).is_calm()
    }

    pub(super) fn calm_down(&self) {
        lock(&self.shared.chooser).calm_down();
    }

    pub(super) fn with_chooser<T>(&self, read: impl FnOnce(&Chooser) -> T) -> T {
        read(&lock(&self.shared.chooser))
    }

    pub(super) fn fired(&self) -> Fired {
        lock(&self.shared.fired).clone()
    }

    /// The first broken promise is the one that counts: the rest follows from it.
    pub(super) fn broke(&self, promise: &str, detail: String) {
        let mut broken = lock(&self.shared.broken);
        if broken.is_none() {
            drop(broken);
            self.tell(|| format!("BROKEN: {promise}: {detail}"));
            broken = lock(&self.shared.broken);
            *broken = Some(Broken { promise: promise.to_owned(), detail });
        }
    }

    pub(super) fn broken(&self) -> Option<Broken> {
        lock(&self.shared.broken).clone()
    }

    pub(super) fn is_broken(&self) -> bool {
        lock(&self.shared.broken).is_some()
    }

    pub(super) fn name(&self, lane: Lane) -> &str {
        self.shared.names.get(usize::from(lane)).map_or("?", String::as_str)
    }

    pub(super) fn tell(&self, line: impl FnOnce() -> String) {
        if let Some(story) = &self.shared.story {
            let now = self.machine.now();
            lock(story).push(format!("{:>9} {}", clock(now), line()));
        }
    }

    pub(super) fn story(&self) -> Vec<String> {
        self.shared.story.as_ref().map(|story| std::mem::take(&mut *lock(story))).unwrap_or_default()
    }

    /// The process dies now, and comes back after a while.
    pub(super) fn crash(&self, lane: Lane) {
        let delay = match self.fault(Point::Restart, lane) {
            Some(Fault::RestartAtOnce) => Duration::ZERO,
            Some(Fault::RestartLate) => Duration::from_secs(30),
            _ => Duration::from_millis(100),
        };
        self.tell(|| format!("{} dies, to be started again after {delay:?}", self.name(lane)));
        self.machine.boot_after(lane, delay);
        self.machine.kill(lane);
    }

    pub(super) async fn sleep(&self, lane: Lane, duration: Duration) {
        self.machine.seams(lane, 0, Arc::default()).sleep(duration).await;
    }
}

fn clock(now: Duration) -> String {
    format!("{}.{:03}s", now.as_secs(), now.subsec_millis())
}

/// Lets everybody else that is runnable go first.
pub(super) async fn give_way() {
    let mut gave = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut gave, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
