//! Where time, randomness and concurrency come in. Nothing else in this crate reads a clock, draws a number or starts
//! a task, and neither does a controller that wants to be simulated.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use reconciler_api::Timestamp;

/// The three seams, passed down by value; clones share them.
#[derive(Clone, Debug)]
pub struct Seams {
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where random numbers come from.
    pub random: Arc<dyn Random>,
    /// Where tasks are started.
    pub spawner: Arc<dyn Spawn>,
}

impl Seams {
    /// The real world: the machine's clocks, the process's random source, the tokio runtime that is current when a
    /// task is spawned.
    pub fn real() -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(ProcessRandom::new()),
            spawner: Arc::new(TokioSpawner),
        }
    }

    /// The wall clock: for what people and other machines read, never for how long something took.
    pub fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    /// The clock that never goes back: for how long something took, and for deadlines.
    pub fn monotonic(&self) -> Monotonic {
        self.clock.monotonic()
    }

    /// Cancel-safe.
    pub fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep_until(self.clock.monotonic() + duration)
    }

    /// Starts a task. `name` is for people who watch.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> TaskHandle {
        self.spawner.spawn(name, Box::pin(future))
    }
}

/// Time since some start that this process alone knows; never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(pub Duration);

impl Monotonic {
    /// Zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Monotonic {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Where the time comes from.
///
/// *Guarantees*: `monotonic` never goes back; `wall` may jump either way.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time that people go by.
    fn wall(&self) -> Timestamp;
    /// The time since some start of its own.
    fn monotonic(&self) -> Monotonic;
    /// Resolves at or soon after `at`; at once when it has passed.
    fn sleep_until(&self, at: Monotonic) -> BoxFuture<'static, ()>;
}

/// What a random number is for. Each purpose draws from a stream of its own, so that one more draw here does not shift
/// the numbers there when a simulation is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Names and ids, which nobody shall draw twice.
    Identity,
    /// How much earlier or later something happens than it would.
    Jitter,
    /// Which of several that are as good as each other.
    Choice,
}

/// Where random numbers come from.
///
/// *Guarantees*: uniform 64 bits; not for keys.
pub trait Random: fmt::Debug + Send + Sync {
    /// Another number of the stream of `purpose`.
    fn next(&self, purpose: Purpose) -> u64;
}

/// Starts tasks that belong to the caller: dropping the handle ends the task.
pub trait Spawn: fmt::Debug + Send + Sync {
    /// Starts a task at once; it runs to its end, or until the handle is dropped. `name` is for people who watch.
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle;

    /// Told of what a task did that is otherwise only counted: for whoever watches, as the simulator does.
    fn note(&self, note: Note<'_>) {
        let _ = note;
    }
}

/// See [`Spawn::note`].
#[derive(Clone, Copy, Debug)]
pub enum Note<'a> {
    /// A reconciler ran.
    Reconciled,
    /// A panic was caught, and work goes on.
    Panicked {
        /// The task or controller that panicked.
        name: &'a str,
        /// What it said, or `panic` without words.
        message: &'a str,
    },
}

/// A running task. Dropping it aborts the task at its next await; [`TaskHandle::join`] waits for its end instead.
#[must_use = "dropping the handle ends the task"]
pub struct TaskHandle {
    abort: Option<Box<dyn FnOnce() + Send + Sync>>,
    done: oneshot::Receiver<()>,
}

impl TaskHandle {
    /// For implementors of [`Spawn`]: `done` must resolve (or be dropped) when the task has ended for any reason.
    pub fn new(abort: impl FnOnce() + Send + Sync + 'static, done: oneshot::Receiver<()>) -> Self {
        Self { abort: Some(Box::new(abort)), done }
    }

    /// Waits until the task has ended, by itself, by a panic or by an abort.
    pub async fn join(mut self) {
        // An error means that the sender went with the task: it has ended as well.
        let _ = (&mut self.done).await;
        self.abort = None;
    }

    /// Whether the task has ended, in whichever way. Does not wait.
    pub fn is_finished(&mut self) -> bool {
        !matches!(self.done.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        if let Some(abort) = self.abort.take() {
            abort();
        }
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaskHandle")
    }
}

#[derive(Debug)]
struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the seam")]
    fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the seam")]
    fn wall(&self) -> Timestamp {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::default() + since_epoch
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.start.elapsed())
    }

    fn sleep_until(&self, at: Monotonic) -> BoxFuture<'static, ()> {
        // A deadline that no clock can hold is never reached.
        match self.start.checked_add(at.0) {
            Some(deadline) => Box::pin(tokio::time::sleep_until(deadline.into())),
            None => Box::pin(std::future::pending()),
        }
    }
}

/// A clock whose wall time is off by as much as it is told: a machine whose clock is wrong. Durations are right.
#[derive(Debug)]
pub struct Shifted {
    clock: Arc<dyn Clock>,
    micros: AtomicI64,
}

impl Shifted {
    /// As right as `clock` until it is told otherwise.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, micros: AtomicI64::new(0) }
    }

    /// From now on the wall time is off by so many microseconds; negative: behind.
    pub fn shift(&self, micros: i64) {
        self.micros.store(micros, Ordering::Relaxed);
    }
}

impl Clock for Shifted {
    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.wall().as_micros().saturating_add(self.micros.load(Ordering::Relaxed)))
    }

    fn monotonic(&self) -> Monotonic {
        self.clock.monotonic()
    }

    fn sleep_until(&self, at: Monotonic) -> BoxFuture<'static, ()> {
        self.clock.sleep_until(at)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014) seeded by the standard library's per-process random keys.
#[derive(Debug)]
struct ProcessRandom {
    state: AtomicU64,
}

impl ProcessRandom {
    fn new() -> Self {
        use std::hash::{BuildHasher, Hasher};
        let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self { state: AtomicU64::new(seed) }
    }
}

impl Random for ProcessRandom {
    fn next(&self, _: Purpose) -> u64 {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.state.fetch_add(GOLDEN, Ordering::Relaxed).wrapping_add(GOLDEN);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[derive(Debug)]
struct TokioSpawner;

impl Spawn for TokioSpawner {
    fn spawn(&self, _: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle {
        let (tell, done) = oneshot::channel();
        let task = tokio::spawn(async move {
            // Dropped with the task when it panics or is aborted, which wakes the one who joins.
            let _tell = tell;
            future.await;
        });
        let abort = task.abort_handle();
        TaskHandle::new(move || abort.abort(), done)
    }
}
