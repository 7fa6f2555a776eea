//! One thread that runs everything: tasks, timers and their time. Which runnable task goes next is a choice; time
//! jumps to the next timer when nothing is runnable.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use reconciler_api::Timestamp;

use crate::seams::{Clock, Monotonic, Note, Purpose, Random, Seams, Spawn, TaskHandle};

use super::choices::Stream;

/// Which process a task belongs to: its lane.
pub(super) type Lane = u16;

/// What one step takes: time never stands still while something happens, or a loop that writes the time would find
/// nothing new to write.
const STEP: Duration = Duration::from_micros(1);

/// A simulated wall clock starts here: any fixed moment would do.
const EPOCH: Timestamp = Timestamp::from_seconds(1_767_225_600);

/// The machine on which all processes of a simulation run. Clones share it.
#[derive(Clone)]
pub(super) struct Machine {
    shared: Arc<Shared>,
}

struct Shared {
    core: Mutex<Core>,
    /// Apart from the core: wakers fire while the core is borrowed.
    ready: Arc<Ready>,
    notes: AtomicU64,
    /// The first panic that a task reported.
    panic: Mutex<Option<String>>,
}

#[derive(Default)]
struct Core {
    now: Duration,
    tasks: BTreeMap<u64, Task>,
    next_task: u64,
    timers: BTreeMap<(Duration, u64), Timer>,
    next_timer: u64,
    /// Tasks whose handles were dropped: taken down between polls, as a real runtime does.
    ending: Vec<u64>,
}

struct Task {
    lane: Lane,
    name: &'static str,
    future: Option<BoxFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
    /// Dropped with the task, which tells whoever joins it.
    _done: oneshot::Sender<()>,
}

enum Timer {
    Wake(Waker),
    /// The process in this lane starts.
    Boot(Lane),
}

#[derive(Default)]
struct Ready {
    queue: Mutex<VecDeque<u64>>,
}

struct TaskWaker {
    id: u64,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            lock(&self.ready.queue).push_back(self.id);
        }
    }
}

/// What the machine can do next.
pub(super) enum Step {
    /// A task was polled.
    Ran,
    /// Nothing is runnable before that time.
    Waits,
    /// A process is due to start.
    Boots(Lane),
    /// Nothing will ever happen again by itself.
    Still,
}

impl Machine {
    pub(super) fn new() -> Self {
        let shared =
            Shared { core: Mutex::default(), ready: Arc::default(), notes: AtomicU64::new(0), panic: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    pub(super) fn now(&self) -> Duration {
        self.core().now
    }

    pub(super) fn spawn(&self, lane: Lane, name: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle {
        let (tell, done) = oneshot::channel();
        let mut core = self.core();
        let id = core.next_task;
        core.next_task += 1;
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready: self.shared.ready.clone() });
        core.tasks.insert(id, Task { lane, name, future: Some(future), waker: waker.clone(), _done: tell });
        drop(core);
        waker.wake();
        let machine = Arc::downgrade(&self.shared);
        TaskHandle::new(
            move || {
                if let Some(shared) = machine.upgrade() {
                    lock(&shared.core).ending.push(id);
                }
            },
            done,
        )
    }

    /// Starts the process in this lane after a while.
    pub(super) fn boot_after(&self, lane: Lane, delay: Duration) {
        let mut core = self.core();
        let at = core.now + delay;
        core.add_timer(at, Timer::Boot(lane));
    }

    /// Ends all tasks of a process at once, wherever they are.
    pub(super) fn kill(&self, lane: Lane) {
        let dead: Vec<Task> = {
            let mut core = self.core();
            let ids: Vec<u64> = core.tasks.iter().filter(|(_, task)| task.lane == lane).map(|(id, _)| *id).collect();
            ids.iter().filter_map(|id| core.tasks.remove(id)).collect()
        };
        // Outside the lock: what they hold may reach for the machine as it goes.
        drop(dead);
    }

    /// Ends everything, so that nothing outlives the simulation in a cycle of references.
    pub(super) fn clear(&self) {
        loop {
            let (tasks, timers) = {
                let mut core = self.core();
                (std::mem::take(&mut core.tasks), std::mem::take(&mut core.timers))
            };
            if tasks.is_empty() && timers.is_empty() {
                return;
            }
        }
    }

    /// Makes one step, if one can be made before `until`. `pick` chooses among so many runnable tasks.
    pub(super) fn step(&self, until: Duration, pick: impl FnOnce(u32) -> u32) -> Step {
        self.end_dropped();
        let id = {
            let mut ready = lock(&self.shared.ready.queue);
            match ready.len() {
                0 => None,
                1 => ready.pop_front(),
                len => {
                    let picked = pick(u32::try_from(len).unwrap_or(u32::MAX)) as usize;
                    ready.remove(picked.min(len - 1))
                }
            }
        };
        if let Some(id) = id {
            self.poll(id);
            return Step::Ran;
        }
        let mut core = self.core();
        let Some((&(at, _), _)) = core.timers.first_key_value() else { return Step::Still };
        if at > until {
            return Step::Waits;
        }
        core.now = core.now.max(at);
        let Some((_, timer)) = core.timers.pop_first() else { return Step::Still };
        drop(core);
        match timer {
            Timer::Wake(waker) => {
                waker.wake();
                Step::Ran
            }
            Timer::Boot(lane) => Step::Boots(lane),
        }
    }

    /// Time passes without anything happening.
    pub(super) fn pass_to(&self, at: Duration) {
        let mut core = self.core();
        core.now = core.now.max(at);
    }

    /// Runs of reconcilers so far.
    pub(super) fn reconciles(&self) -> u64 {
        self.shared.notes.load(Ordering::Relaxed)
    }

    pub(super) fn take_panic(&self) -> Option<String> {
        lock(&self.shared.panic).take()
    }

    fn poll(&self, id: u64) {
        let taken = {
            let mut core = self.core();
            core.now += STEP;
            core.tasks.get_mut(&id).and_then(|task| Some((task.future.take()?, task.waker.clone(), task.name)))
        };
        // It ended meanwhile: a late waker.
        let Some((mut future, waker, name)) = taken else { return };
        waker.queued.store(false, Ordering::Release);
        let handle = Waker::from(waker);
        let mut context = Context::from_waker(&handle);
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        let mut core = self.core();
        match polled {
            Ok(Poll::Pending) => match core.tasks.get_mut(&id) {
                Some(task) => task.future = Some(future),
                // It was killed while it ran, by its own hand.
                None => {
                    drop(core);
                    drop(future);
                }
            },
            ended => {
                let task = core.tasks.remove(&id);
                drop(core);
                if ended.is_err() {
                    lock(&self.shared.panic).get_or_insert_with(|| format!("the task {name:?} panicked"));
                }
                drop((task, future));
            }
        }
    }

    fn end_dropped(&self) {
        loop {
            let ended: Vec<Task> = {
                let mut core = self.core();
                let ids = std::mem::take(&mut core.ending);
                ids.iter().filter_map(|id| core.tasks.remove(id)).collect()
            };
            if ended.is_empty() {
                return;
            }
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.shared.core)
    }

    /// Time, chance and concurrency as a process sees them. `seed` is its own; `skew` moves its wall clock.
    pub(super) fn seams(&self, lane: Lane, seed: u64, skew: Arc<AtomicI64>) -> Seams {
        let started = self.now();
        let streams = [Purpose::Identity, Purpose::Jitter, Purpose::Choice].map(|purpose| {
            Mutex::new(Stream::new(seed.wrapping_mul(0x2545_F491_4F6C_DD1D).wrapping_add(purpose as u64)))
        });
        Seams {
            clock: Arc::new(SimClock { machine: self.clone(), started, skew }),
            random: Arc::new(SimRandom { streams }),
            spawner: Arc::new(SimSpawner { machine: self.clone(), lane }),
        }
    }
}

impl Core {
    fn add_timer(&mut self, at: Duration, timer: Timer) -> (Duration, u64) {
        let key = (at, self.next_timer);
        self.next_timer += 1;
        self.timers.insert(key, timer);
        key
    }
}

struct SimClock {
    machine: Machine,
    /// Monotonic time is each process's own.
    started: Duration,
    skew: Arc<AtomicI64>,
}

impl Clock for SimClock {
    fn wall(&self) -> Timestamp {
        let skew = self.skew.load(Ordering::Relaxed);
        let now = EPOCH + self.machine.now();
        Timestamp::from_micros(now.as_micros().saturating_add(skew))
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.machine.now().saturating_sub(self.started))
    }

    fn sleep_until(&self, at: Monotonic) -> BoxFuture<'static, ()> {
        let at = self.started.saturating_add(at.0);
        Box::pin(Sleep { machine: self.machine.clone(), at, armed: None })
    }
}

/// Forgets its timer when it is dropped: time jumps only to where something happens.
struct Sleep {
    machine: Machine,
    at: Duration,
    armed: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut core = lock(&this.machine.shared.core);
        if core.now >= this.at {
            return Poll::Ready(());
        }
        if let Some(key) = this.armed.take() {
            core.timers.remove(&key);
        }
        this.armed = Some(core.add_timer(this.at, Timer::Wake(context.waker().clone())));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.armed.take() {
            lock(&self.machine.shared.core).timers.remove(&key);
        }
    }
}

struct SimRandom {
    streams: [Mutex<Stream>; 3],
}

impl Random for SimRandom {
    fn next(&self, purpose: Purpose) -> u64 {
        lock(&self.streams[purpose as usize]).next()
    }
}

struct SimSpawner {
    machine: Machine,
    lane: Lane,
}

impl Spawn for SimSpawner {
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle {
        self.machine.spawn(self.lane, name, future)
    }

    fn note(&self, note: Note<'_>) {
        match note {
            Note::Reconciled => {
                self.machine.shared.notes.fetch_add(1, Ordering::Relaxed);
            }
            Note::Panicked { name, message } => {
                lock(&self.machine.shared.panic).get_or_insert_with(|| format!("{name} panicked: {message}"));
            }
        }
    }
}

/// One thread, and nothing panics while it holds a lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

macro_rules! debug_as_name {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($type))
            }
        }
    )*};
}

debug_as_name!(Machine, SimClock, SimRandom, SimSpawner);

#[cfg(test)]
mod tests {
    use super::*;

    fn seams(machine: &Machine) -> Seams {
        machine.seams(1, 7, Arc::default())
    }

    fn run(machine: &Machine) {
        while !matches!(machine.step(Duration::MAX, |_| 0), Step::Still) {}
    }

    #[test]
    fn time_jumps_to_the_next_timer() {
        let machine = Machine::new();
        let seams = seams(&machine);
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut handles = Vec::new();
        for hours in [5, 1, 3] {
            let (seams, log) = (seams.clone(), log.clone());
            handles.push(machine.spawn(
                1,
                "sleeper",
                Box::pin(async move {
                    seams.sleep(Duration::from_secs(hours * 3600)).await;
                    lock(&log).push((hours, seams.monotonic().0.as_secs() / 3600));
                }),
            ));
        }
        run(&machine);
        assert_eq!(*lock(&log), [(1, 1), (3, 3), (5, 5)]);
    }

    #[test]
    fn dropping_a_handle_ends_the_task_and_a_timer_with_it() {
        let machine = Machine::new();
        let seams = seams(&machine);
        let sleeper = seams.clone();
        let handle = seams.spawn("sleeper", async move { sleeper.sleep(Duration::from_secs(3600)).await });
        machine.step(Duration::ZERO, |_| 0);
        drop(handle);
        run(&machine);
        assert!(machine.now() < Duration::from_secs(1));
    }

    #[test]
    fn a_killed_process_takes_its_tasks_along_and_joins_end() {
        let machine = Machine::new();
        let one = machine.seams(1, 1, Arc::default());
        let two = machine.seams(2, 2, Arc::default());
        let handle = one.spawn("forever", std::future::pending());
        let joined = Arc::new(AtomicBool::new(false));
        let seen = joined.clone();
        let _watcher = two.spawn("watcher", async move {
            handle.join().await;
            seen.store(true, Ordering::Relaxed);
        });
        run(&machine);
        assert!(!joined.load(Ordering::Relaxed));
        machine.kill(1);
        run(&machine);
        assert!(joined.load(Ordering::Relaxed));
    }
}
