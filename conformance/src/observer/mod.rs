//! An outside observer: what a machine does, as `/proc`, control groups, containerd and nftables show it. It never asks
//! applyd.
//!
//! Every 50 ms it looks at who is alive (`alive`). A slot of a service with two containers alive at one moment is a
//! violation, whatever anybody's records say. [`Census`] counts every kind of thing that exists once a container, so that
//! one too many or too few shows; [`inventory()`] lists everything by name, to be compared before and after.

mod alive;
mod census;
mod inventory;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use alive::{Alive, Container, alive, alive_of};
pub use census::Census;
pub use inventory::{difference, inventory, inventory_here};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(50);

/// Looks until it is dropped or ended.
pub struct Observer {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub looks: u64,
    /// The longest time between two looks: what lived shorter may have been missed.
    pub longest_gap: Duration,
    /// Two containers of a slot at once, with when, counted from the first look.
    pub violations: Vec<String>,
    /// Most containers alive at one look, of each service.
    pub most: BTreeMap<String, usize>,
    /// Every container that was ever seen alive.
    pub ever: BTreeSet<String>,
}

impl Observer {
    /// Of the containers in a control group, given in any one hierarchy: [`crate::parts::machine::groups`].
    pub fn watch(group: PathBuf) -> Observer {
        let seen = Arc::<Mutex<Seen>>::default();
        let stop = Arc::<AtomicBool>::default();
        let (writes, stops) = (seen.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let begun = Instant::now();
            let mut last = begun;
            while !stops.load(Ordering::Relaxed) {
                let alive = alive(&group);
                let now = Instant::now();
                lock(&writes).look(&alive, now - begun, now - last);
                last = now;
                thread::sleep(PERIOD.saturating_sub(now.elapsed()));
            }
        });
        Observer { seen, stop, thread: Some(thread) }
    }

    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

impl Seen {
    fn look(&mut self, alive: &Alive, at: Duration, gap: Duration) {
        self.looks += 1;
        self.longest_gap = self.longest_gap.max(gap);
        for double in alive.doubles() {
            self.violations.push(format!("{:.2} s: {double}", at.as_secs_f64()));
        }
        for (service, count) in alive.services() {
            let most = self.most.entry(service).or_default();
            *most = count.max(*most);
        }
        self.ever.extend(alive.containers().map(|container| container.name.clone()));
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
