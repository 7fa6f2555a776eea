//! One controller running: changes become keys, workers take them, runs are guarded, timed and judged.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tracing::Instrument;

use reconciler_api::ResourceVersion;

use crate::cache::{Cache, Delta, Snapshot, Subscriber};
use crate::events::Recorder;
use crate::external::AnyExternal;
use crate::metrics::{ControllerMetrics, Metrics};
use crate::objects::{Client, Objects, PageRequest, Selection, Term, Writer};
use crate::queue::{Key, Priority, Queue, Reason, Verdict, Work};
use crate::seams::{Monotonic, Note, Purpose, Seams};

use super::Action;
use super::builder::{Controller, Trigger};
use super::ctx::Ctx;
use super::error::{Class, Error};
use super::handler::Standing;
use super::planted::{Bugs, Planted};
use super::recording::Recording;
use super::signal::Signal;

/// What a controller runs with.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub objects: Arc<dyn Objects>,
    pub seams: Seams,
    pub cache: Cache,
    pub metrics: Metrics,
    pub events: Option<Recorder>,
    /// The right to write, where it had to be won.
    pub fence: Option<Term>,
    /// Raised when the right was lost.
    pub fenced: Signal,
    /// Raised when nothing new shall begin.
    pub shutdown: Signal,
    /// How long what runs may go on after that.
    pub drain: Duration,
    pub bugs: Bugs,
}

/// A controller whose keys only itself knows.
pub(super) trait AnyController: Send + Sync {
    fn name(&self) -> &'static str;
    fn externals(&self) -> Vec<Arc<dyn AnyExternal>>;
    /// Runs until shut down and drained. Dropping the future ends everything at once.
    fn run(&self, surroundings: Surroundings) -> BoxFuture<'static, ()>;
}

impl<K: Key> AnyController for Arc<Controller<K>> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn externals(&self) -> Vec<Arc<dyn AnyExternal>> {
        self.externals.iter().map(|watched| watched.external()).collect()
    }

    fn run(&self, surroundings: Surroundings) -> BoxFuture<'static, ()> {
        Box::pin(Runner::new(self.clone(), surroundings).run())
    }
}

struct Runner<K: Key> {
    controller: Arc<Controller<K>>,
    around: Surroundings,
    queue: Queue<K>,
    metrics: ControllerMetrics,
    scope: Arc<[std::any::TypeId]>,
    /// Keys of which a commit may have happened without anybody having been told.
    uncertain: Mutex<BTreeSet<K>>,
    /// When what runs now began.
    running: Mutex<BTreeMap<u64, Monotonic>>,
    runs: AtomicU64,
}

impl<K: Key> Runner<K> {
    fn new(controller: Arc<Controller<K>>, around: Surroundings) -> Arc<Self> {
        let queue = Queue::new(around.seams.clone(), controller.options.backoff);
        let metrics = around.metrics.of_controller(controller.name);
        let scope = controller.declarations.types().into();
        metrics.max_concurrent.set(i64::try_from(controller.options.concurrency).unwrap_or(i64::MAX));
        Arc::new(Self {
            controller,
            around,
            queue,
            metrics,
            scope,
            uncertain: Mutex::default(),
            running: Mutex::default(),
            runs: AtomicU64::new(0),
        })
    }

    async fn run(self: Arc<Self>) {
        // What it acts on must be known: an empty picture would read as "nothing is wanted".
        tokio::select! {
            biased;
            () = self.around.shutdown.raised() => return,
            () = self.all_known() => {}
        }
        self.sample_metrics();
        let subscriber = self.subscriber();
        if let Some(snapshot) = self.around.cache.subscribe(&subscriber) {
            self.wake(&snapshot, &snapshot.as_deltas(), Priority::Background);
            self.queue.advance(snapshot.resource_version(), false);
        }
        let _connected: Vec<_> = self.controller.externals.iter().map(|watched| watched.connect(&self.queue)).collect();
        for key in &self.controller.first {
            self.queue.add(key.clone(), Priority::Normal, Reason::new("start"));
        }
        let mut tasks = Vec::new();
        let seams = &self.around.seams;
        let this = self.clone();
        tasks.push(seams.spawn("queue time", async move {
            this.queue.keep_time(this.controller.options.patience, || this.around.cache.relist()).await;
        }));
        for _ in 0..self.controller.options.concurrency {
            let this = self.clone();
            tasks.push(seams.spawn(self.controller.name, async move { this.work().await }));
        }
        self.around.shutdown.raised().await;
        self.queue.shut();
        let drained = tokio::select! {
            biased;
            () = self.queue.drained() => true,
            () = seams.sleep(self.around.drain) => false,
        };
        if !drained {
            let still = self.queue.depth().working;
            tracing::warn!(controller = self.controller.name, still, "runs are cut off: they did not end in time");
        }
    }

    /// The cache shows at least what stood when this process began to act: had it been given an earlier view, what a
    /// predecessor did since would be done again or undone.
    async fn all_known(&self) {
        if !self.around.bugs.has(Planted::NoBarrier) {
            let version = self.fresh_version().await;
            self.around.cache.at_least(version).await;
        }
        self.around.cache.synced().await;
        for watched in &self.controller.externals {
            watched.external().known().await;
        }
    }

    fn subscriber(self: &Arc<Self>) -> Arc<Subscriber> {
        // Weak: the runner owns the subscription, not the other way round.
        let this = Arc::downgrade(self);
        let epoch = Mutex::new(self.around.cache.snapshot().map(|snapshot| snapshot.epoch().clone()));
        Arc::new(move |snapshot: &Snapshot, deltas: &[Delta]| {
            let Some(this) = this.upgrade() else { return };
            this.wake(snapshot, deltas, Priority::Normal);
            let mut epoch = epoch.lock().unwrap_or_else(PoisonError::into_inner);
            let anew = epoch.as_ref() != Some(snapshot.epoch());
            if anew {
                *epoch = Some(snapshot.epoch().clone());
            }
            this.queue.advance(snapshot.resource_version(), anew);
        })
    }

    fn wake(&self, snapshot: &Snapshot, deltas: &[Delta], priority: Priority) {
        for delta in deltas {
            for trigger in &self.controller.triggers {
                if self.wake_by(trigger, snapshot, delta, priority).is_err() {
                    tracing::error!(
                        controller = self.controller.name,
                        source = trigger.source,
                        object = %delta.reference,
                        "a watch map panicked: this change wakes nobody through it"
                    );
                    self.metrics.panics.inc();
                    let note = Note::Panicked { name: self.controller.name, message: "in a watch map" };
                    self.around.seams.spawner.note(note);
                }
            }
        }
    }

    fn wake_by(&self, trigger: &Trigger<K>, snapshot: &Snapshot, delta: &Delta, priority: Priority) -> Result<(), ()> {
        let mut wake = |key: K| {
            if trigger.primary && delta.is_gone() {
                self.queue.forget(&key);
            }
            let reason = Reason::of(trigger.source, delta.reference.clone(), snapshot.resource_version());
            tracing::trace!(controller = self.controller.name, object = %key, %reason, "woken");
            self.queue.add(key, priority, reason);
        };
        std::panic::catch_unwind(AssertUnwindSafe(|| (trigger.map)(delta, snapshot, &mut wake))).map_err(|_| ())
    }

    async fn work(&self) {
        while let Some(work) = self.queue.take().await {
            let began = self.around.seams.monotonic();
            let id = self.runs.fetch_add(1, Ordering::Relaxed);
            self.metrics.taken(work.waited);
            lock(&self.running).insert(id, began);
            let (verdict, seen) = self.run_once(&work, id).await;
            lock(&self.running).remove(&id);
            self.metrics.ended(self.around.seams.monotonic().since(began));
            self.queue.done(&work.key, verdict, seen);
        }
    }

    async fn run_once(&self, work: &Work<K>, id: u64) -> (Verdict, Option<ResourceVersion>) {
        if lock(&self.uncertain).contains(&work.key) {
            return self.make_certain(&work.key).await;
        }
        let Some(snapshot) = self.around.cache.snapshot() else { return (Verdict::Again, None) };
        let (subject, guard) = match self.controller.handler.find(&work.key, &snapshot) {
            Standing::Here { subject, guard } => (subject, guard),
            Standing::Nothing => return (Verdict::Rest, None),
            Standing::Gone => return (Verdict::Gone, None),
            Standing::Unreadable(what) => {
                tracing::error!(controller = self.controller.name, object = %work.key, what, "cannot be read by this version");
                self.metrics.error.inc();
                self.metrics.errors.inc();
                return (Verdict::Failed, None);
            }
        };
        let recording = Arc::new(Recording::new(self.around.objects.clone(), guard));
        let cx = Ctx {
            snapshot: snapshot.scoped(self.scope.clone()),
            client: Client::new(recording.clone(), self.writer()),
            seams: self.around.seams.clone(),
            now: self.around.seams.now(),
            attempt: work.failures,
            subject,
            events: self.around.events.clone(),
            controller: self.controller.name,
            recording: recording.clone(),
        };
        // A reason names the commit that woke this run, and a run the commits that it made: what caused what can be
        // followed by revisions, through controllers and processes.
        let span = tracing::info_span!(
            "reconcile",
            controller = self.controller.name,
            object = %work.key,
            id,
            revision = %snapshot.resource_version(),
            attempt = work.failures,
            waited_us = u64::try_from(work.waited.as_micros()).unwrap_or(u64::MAX),
            reasons = tracing::field::Empty,
            commits = tracing::field::Empty,
            committed = tracing::field::Empty,
            result = tracing::field::Empty,
        );
        if !span.is_disabled() {
            span.record("reasons", reasons(work));
        }
        let ended = self.guarded_run(&work.key, &cx).instrument(span.clone()).await;
        self.around.seams.spawner.note(Note::Reconciled);
        let written = recording.written();
        span.record("commits", written.commits);
        if let Some(revision) = written.seen {
            span.record("committed", tracing::field::display(revision));
        }
        if written.uncertain && self.controller.options.certain {
            lock(&self.uncertain).insert(work.key.clone());
        }
        let (verdict, result) = span.in_scope(|| self.judge(work, ended));
        span.record("result", result);
        let waits = !self.around.bugs.has(Planted::NoReadYourWrites);
        (verdict, written.seen.filter(|_| waits))
    }

    /// One run, which may neither take for ever nor take others with it.
    async fn guarded_run(&self, key: &K, cx: &Ctx) -> Ended {
        let run = AssertUnwindSafe(self.controller.handler.run(key, cx)).catch_unwind();
        tokio::select! {
            biased;
            result = run => match result {
                Ok(Ok(action)) => Ended::Well(action),
                Ok(Err(error)) => Ended::Badly(error),
                Err(panic) => Ended::Panicked(message_of(&*panic)),
            },
            () = self.around.seams.sleep(self.controller.options.timeout) => Ended::TooLong,
        }
    }

    /// A commit whose outcome is not known may have happened. Whatever had happened by now is at or below the version
    /// that a fresh read answers with, so the key waits until that much is known.
    async fn make_certain(&self, key: &K) -> (Verdict, Option<ResourceVersion>) {
        let Some(selection) = self.around.cache.any_selection() else {
            lock(&self.uncertain).remove(key);
            return (Verdict::Again, None);
        };
        match self.read_version(&selection).await {
            Some(version) => {
                lock(&self.uncertain).remove(key);
                (Verdict::Again, Some(version))
            }
            None => (Verdict::Failed, None),
        }
    }

    async fn fresh_version(&self) -> ResourceVersion {
        let Some(selection) = self.around.cache.any_selection() else { return ResourceVersion::default() };
        let mut failures = 0;
        loop {
            if let Some(version) = self.read_version(&selection).await {
                return version;
            }
            failures += 1;
            let seams = &self.around.seams;
            seams.sleep(self.controller.options.backoff.delay(failures, seams.random.next(Purpose::Jitter))).await;
        }
    }

    async fn read_version(&self, selection: &Selection) -> Option<ResourceVersion> {
        let page = PageRequest { limit: 1, from: None };
        tokio::select! {
            biased;
            listed = self.around.objects.list(selection, page) => Some(listed.ok()?.resource_version),
            () = self.around.seams.sleep(self.controller.options.timeout) => None,
        }
    }

    /// What becomes of the key, and the word for how the run ended.
    fn judge(&self, work: &Work<K>, ended: Ended) -> (Verdict, &'static str) {
        let metrics = &self.metrics;
        let mut result = "error";
        let (class, error) = match ended {
            Ended::Well(Action::Await) => {
                metrics.success.inc();
                return (Verdict::Rest, "success");
            }
            Ended::Well(Action::Requeue(delay)) => {
                metrics.requeue_after.inc();
                return (Verdict::After(delay), "requeue_after");
            }
            Ended::Badly(error) => (error.class(), error.to_string()),
            Ended::Panicked(message) => {
                result = "panic";
                metrics.panics.inc();
                let name = self.controller.name;
                self.around.seams.spawner.note(Note::Panicked { name, message: &message });
                (Class::Retry, format!("panicked: {message}"))
            }
            Ended::TooLong => {
                result = "timeout";
                metrics.timeouts.inc();
                (Class::Retry, format!("did not end within {:?}", self.controller.options.timeout))
            }
        };
        let attempt = work.failures;
        match class {
            Class::Conflict => {
                metrics.conflict.inc();
                metrics.retries.inc();
                // Once is life, always is somebody else who writes the same thing.
                if attempt >= CONFLICTS_TO_WARN {
                    tracing::warn!(error, attempt, "keeps conflicting");
                } else {
                    tracing::debug!(error, attempt, "somebody else was faster");
                }
                (Verdict::Failed, "conflict")
            }
            Class::Fenced => {
                metrics.error.inc();
                metrics.errors.inc();
                tracing::warn!(error, "somebody else leads");
                self.around.fenced.raise();
                (Verdict::Failed, "fenced")
            }
            Class::Terminal => {
                metrics.error.inc();
                metrics.errors.inc();
                metrics.terminal_errors.inc();
                tracing::error!(error, attempt, "failed, and will until something changes");
                (Verdict::Rest, "terminal_error")
            }
            Class::Retry | Class::After(_) => {
                metrics.error.inc();
                metrics.errors.inc();
                metrics.retries.inc();
                tracing::warn!(error, attempt, "failed");
                let verdict =
                    if let Class::After(delay) = class { Verdict::FailedAfter(delay) } else { Verdict::Failed };
                (verdict, result)
            }
        }
    }

    fn writer(&self) -> Writer {
        let writer = self.controller.options.writer.clone();
        match &self.around.fence {
            Some(fence) if !self.around.bugs.has(Planted::NoFence) => writer.fenced(fence.clone()),
            _ => writer,
        }
    }

    fn sample_metrics(self: &Arc<Self>) {
        let this = Arc::downgrade(self);
        let counted = Mutex::new(0);
        self.around.metrics.sample_while(move || {
            let Some(this) = this.upgrade() else { return false };
            let wanted = this.queue.wanted_total();
            this.metrics.added(wanted - std::mem::replace(&mut *lock(&counted), wanted));
            let now = this.around.seams.monotonic();
            let running = lock(&this.running);
            let durations = running.values().map(|began| now.since(*began).as_secs_f64());
            this.metrics.unfinished_seconds.set(durations.clone().sum());
            this.metrics.longest_seconds.set(durations.fold(0.0, f64::max));
            this.metrics.depth.set(i64::try_from(this.queue.depth().ready).unwrap_or(i64::MAX));
            true
        });
    }
}

/// So many conflicts in a row are worth a word.
const CONFLICTS_TO_WARN: u32 = 5;

enum Ended {
    Well(Action),
    Badly(Error),
    Panicked(String),
    TooLong,
}

fn reasons<K>(work: &Work<K>) -> String {
    let mut text = work.reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join(", ");
    let more = work.reasons_total as usize - work.reasons.len();
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "(no message)".to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
