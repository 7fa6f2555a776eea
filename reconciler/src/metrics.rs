//! Numbers for Prometheus. One registry a [`Metrics`], none global; the names are controller-runtime's and client-go's
//! where the meaning is the same, so that existing dashboards work.
//!
//! [`ALL`] is the list of what is served; `docs/metrics.md` is written from it, and a test compares it with what
//! `/metrics` answers.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

/// One family of numbers, as it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// As it stands in the text; a counter's ends in `_total`.
    pub name: &'static str,
    /// What can be done with it.
    pub shape: Shape,
    /// In the order in which they are written.
    pub labels: &'static [&'static str],
    /// What is counted, for people.
    pub help: &'static str,
    /// Whose name it is, and whose meaning.
    pub after: After,
}

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Only grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of what was at most so much, their sum and their number.
    Histogram,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// Where a name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// controller-runtime's and client-go's.
    ControllerRuntime,
    /// The Kubernetes API server's.
    ApiServer,
    /// Nobody else's.
    Ours,
}

/// client-go's labels of a queue; both are the controller's name.
const QUEUE: &[&str] = &["name", "controller"];
const CONTROLLER: &[&str] = &["controller"];

macro_rules! described {
    ($($constant:ident = $after:ident $shape:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(pub(crate) const $constant: Described = Described {
            name: $name, shape: Shape::$shape, labels: $labels, help: $help, after: After::$after,
        };)*
        /// Everything that this crate counts, by name of who counts it: queues, controllers, leadership, the client,
        /// the server, the cache, worlds, events.
        pub const ALL: &[Described] = &[$($constant),*];
    };
}

described! {
    DEPTH = ControllerRuntime Gauge "workqueue_depth" QUEUE, "Keys that are ready";
    ADDS = ControllerRuntime Counter "workqueue_adds_total" QUEUE, "Keys that became wanted; one that is wanted already is not counted again";
    RETRIES = ControllerRuntime Counter "workqueue_retries_total" QUEUE, "Runs that failed and are tried again";
    QUEUE_SECONDS = ControllerRuntime Histogram "workqueue_queue_duration_seconds" QUEUE, "From ready to taken";
    WORK_SECONDS = ControllerRuntime Histogram "workqueue_work_duration_seconds" QUEUE, "From taken to done";
    UNFINISHED_SECONDS = ControllerRuntime Gauge "workqueue_unfinished_work_seconds" QUEUE, "How long what runs now has been running, summed up";
    LONGEST_SECONDS = ControllerRuntime Gauge "workqueue_longest_running_processor_seconds" QUEUE, "How long the longest of what runs now has been running";
    RECONCILES = ControllerRuntime Counter "controller_runtime_reconcile_total" &["controller", "result"], "Runs by result: success, requeue_after, error, and conflict, which is ours: somebody else was faster";
    ERRORS = ControllerRuntime Counter "controller_runtime_reconcile_errors_total" CONTROLLER, "Runs that failed, conflicts not among them";
    TERMINAL_ERRORS = ControllerRuntime Counter "controller_runtime_terminal_reconcile_errors_total" CONTROLLER, "Runs that failed and are not tried again until something changes";
    PANICS = ControllerRuntime Counter "controller_runtime_reconcile_panics_total" CONTROLLER, "Runs and watch maps that panicked";
    TIMEOUTS = ControllerRuntime Counter "controller_runtime_reconcile_timeouts_total" CONTROLLER, "Runs that were cut off because they took too long";
    RECONCILE_SECONDS = ControllerRuntime Histogram "controller_runtime_reconcile_time_seconds" CONTROLLER, "Duration of a run";
    MAX_CONCURRENT = ControllerRuntime Gauge "controller_runtime_max_concurrent_reconciles" CONTROLLER, "Workers";
    ACTIVE = ControllerRuntime Gauge "controller_runtime_active_workers" CONTROLLER, "Workers that are running something";
    LEADING = ControllerRuntime Gauge "leader_election_master_status" &["name"], "1 while this process leads, 0 while it waits";
    CLIENT_REQUESTS = ControllerRuntime Counter "rest_client_requests_total" &["code", "method", "host"], "Requests to a server elsewhere by code of the answer; <error> where none came";
    SERVED = ApiServer Counter "apiserver_request_total" &["verb", "resource", "code"], "Requests answered by this process";
    SERVED_SECONDS = ApiServer Histogram "apiserver_request_duration_seconds" &["verb", "resource"], "Until the head of the answer";
    CONNECTED = Ours Gauge "reconciler_cache_connected" &[], "1 while the stream of objects is followed";
    FAILURES = Ours Gauge "reconciler_cache_failures" &[], "Attempts in a row to follow it without progress";
    VERSION = Ours Gauge "reconciler_cache_resource_version" &[], "Up to where objects are known";
    UNREADABLE = Ours Gauge "reconciler_cache_unreadable_objects" &[], "Objects that this version cannot read";
    WORLD_KNOWN = Ours Gauge "reconciler_world_known" &["world"], "1 once an external world was listed";
    WORLD_FAILURES = Ours Gauge "reconciler_world_failures" &["world"], "Looks at an external world in a row that failed";
    REFUSED = Ours Counter "reconciler_refused_total" &["reason"], "Connections and requests that this process turned away, by why: connections, requests, watches, bytes (one peer has too many), slow_head, large_head, slow_body, large_body, slow_reader, no_http, http2 (its rules broken, floods among that), unauthorized, forbidden, and what a host adds";
    EVENTS_DROPPED = Ours Counter "reconciler_events_dropped_total" &[], "Events that were too many, or could not be written";
}

impl Described {
    /// Has `metric` served under this name.
    pub(crate) fn register(&self, registry: &mut Registry, metric: impl Metric) {
        // The encoder appends it.
        let name = if self.shape == Shape::Counter { self.name.trim_end_matches("_total") } else { self.name };
        registry.register(name, self.help, metric);
    }
}

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Seconds<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;
type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

/// All numbers of one process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Mutex<Registry>,
    families: Families,
    /// Called before the numbers are written down: gauges of what has a size rather than a history.
    samplers: Mutex<Vec<Sampler>>,
}

/// The gauges of a cache.
#[derive(Clone, Default)]
pub(crate) struct CacheMetrics {
    connected: Gauge,
    failures: Gauge,
    version: Gauge,
    unreadable: Gauge,
}

/// The gauges of an external world.
pub(crate) struct WorldMetrics {
    known: Gauge,
    failures: Gauge,
}

/// Requests to servers elsewhere.
#[cfg(feature = "client")]
#[derive(Clone, Debug)]
pub(crate) struct ClientMetrics(Family<Vec<(&'static str, String)>, Counter>);

/// Says whether it shall be called again.
type Sampler = Box<dyn Fn() -> bool + Send + Sync>;

struct Families {
    depth: Family<Labels<2>, Gauge>,
    adds: Family<Labels<2>, Counter>,
    retries: Family<Labels<2>, Counter>,
    queue_seconds: Seconds<2>,
    work_seconds: Seconds<2>,
    unfinished_seconds: Family<Labels<2>, FloatGauge>,
    longest_seconds: Family<Labels<2>, FloatGauge>,
    reconciles: Family<Labels<2>, Counter>,
    errors: Family<Labels<1>, Counter>,
    terminal_errors: Family<Labels<1>, Counter>,
    panics: Family<Labels<1>, Counter>,
    timeouts: Family<Labels<1>, Counter>,
    reconcile_seconds: Seconds<1>,
    max_concurrent: Family<Labels<1>, Gauge>,
    active: Family<Labels<1>, Gauge>,
    leading: Family<Labels<1>, Gauge>,
    client_requests: Family<Vec<(&'static str, String)>, Counter>,
    cache: CacheMetrics,
    world_known: Family<Labels<1>, Gauge>,
    world_failures: Family<Labels<1>, Gauge>,
    refused: Family<Labels<1>, Counter>,
    events_dropped: Counter,
}

/// 10 µs to 167 s, four times as long each: a queue that is idle hands over in microseconds, a clean-up may take
/// minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_01, 4.0, 13))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Numbers that begin at nothing.
    pub fn new() -> Self {
        fn timed<const N: usize>() -> Seconds<N> {
            Seconds::new_with_constructor(seconds as fn() -> Histogram)
        }
        let families = Families {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            queue_seconds: timed(),
            work_seconds: timed(),
            unfinished_seconds: Family::default(),
            longest_seconds: Family::default(),
            reconciles: Family::default(),
            errors: Family::default(),
            terminal_errors: Family::default(),
            panics: Family::default(),
            timeouts: Family::default(),
            reconcile_seconds: timed(),
            max_concurrent: Family::default(),
            active: Family::default(),
            leading: Family::default(),
            client_requests: Family::default(),
            cache: CacheMetrics::default(),
            world_known: Family::default(),
            world_failures: Family::default(),
            refused: Family::default(),
            events_dropped: Counter::default(),
        };
        let mut registry = Registry::default();
        families.register(&mut registry);
        let samplers = Mutex::new(Vec::new());
        Self { shared: Arc::new(Shared { registry: Mutex::new(registry), families, samplers }) }
    }

    /// Adds metrics of one's own to what [`Metrics::text`] writes.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut lock(&self.shared.registry));
    }

    /// `sample` is called before the numbers are written down.
    pub fn sample(&self, sample: impl Fn() + Send + Sync + 'static) {
        self.sample_while(move || {
            sample();
            true
        });
    }

    /// The same until it answers `false`.
    pub(crate) fn sample_while(&self, sample: impl Fn() -> bool + Send + Sync + 'static) {
        lock(&self.shared.samplers).push(Box::new(sample));
    }

    /// Everything, in Prometheus' text format (`text/plain; version=0.0.4`).
    pub fn text(&self) -> String {
        lock(&self.shared.samplers).retain(|sample| sample());
        let mut text = String::new();
        prometheus_text::encode(&mut text, &lock(&self.shared.registry)).expect("a string takes any text");
        text
    }

    pub(crate) fn of_controller(&self, name: &'static str) -> ControllerMetrics {
        let families = &self.shared.families;
        let labels = [("name", name), ("controller", name)];
        let controller = [("controller", name)];
        let reconciles = |result| families.reconciles.get_or_create_owned(&[("controller", name), ("result", result)]);
        ControllerMetrics {
            depth: families.depth.get_or_create_owned(&labels),
            adds: families.adds.get_or_create_owned(&labels),
            retries: families.retries.get_or_create_owned(&labels),
            queue_seconds: families.queue_seconds.get_or_create_owned(&labels),
            work_seconds: families.work_seconds.get_or_create_owned(&labels),
            unfinished_seconds: families.unfinished_seconds.get_or_create_owned(&labels),
            longest_seconds: families.longest_seconds.get_or_create_owned(&labels),
            success: reconciles("success"),
            requeue_after: reconciles("requeue_after"),
            error: reconciles("error"),
            conflict: reconciles("conflict"),
            errors: families.errors.get_or_create_owned(&controller),
            terminal_errors: families.terminal_errors.get_or_create_owned(&controller),
            panics: families.panics.get_or_create_owned(&controller),
            timeouts: families.timeouts.get_or_create_owned(&controller),
            reconcile_seconds: families.reconcile_seconds.get_or_create_owned(&controller),
            max_concurrent: families.max_concurrent.get_or_create_owned(&controller),
            active: families.active.get_or_create_owned(&controller),
        }
    }

    pub(crate) fn of_cache(&self) -> CacheMetrics {
        self.shared.families.cache.clone()
    }

    pub(crate) fn of_world(&self, name: &'static str) -> WorldMetrics {
        let labels = [("world", name)];
        WorldMetrics {
            known: self.shared.families.world_known.get_or_create_owned(&labels),
            failures: self.shared.families.world_failures.get_or_create_owned(&labels),
        }
    }

    #[cfg(feature = "client")]
    pub(crate) fn of_client(&self) -> ClientMetrics {
        ClientMetrics(self.shared.families.client_requests.clone())
    }

    /// Whether this process leads where only one may act: 1 or 0.
    pub fn leading(&self, name: &'static str, leading: bool) {
        self.shared.families.leading.get_or_create_owned(&[("name", name)]).set(i64::from(leading));
    }

    /// Somebody was turned away; a host says so of what it turns away itself. `reason`: one of few words.
    pub fn refused(&self, reason: &'static str) {
        self.shared.families.refused.get_or_create_owned(&[("reason", reason)]).inc();
    }

    pub(crate) fn events_dropped(&self) -> Counter {
        self.shared.families.events_dropped.clone()
    }
}

impl Families {
    fn register(&self, registry: &mut Registry) {
        DEPTH.register(registry, self.depth.clone());
        ADDS.register(registry, self.adds.clone());
        RETRIES.register(registry, self.retries.clone());
        QUEUE_SECONDS.register(registry, self.queue_seconds.clone());
        WORK_SECONDS.register(registry, self.work_seconds.clone());
        UNFINISHED_SECONDS.register(registry, self.unfinished_seconds.clone());
        LONGEST_SECONDS.register(registry, self.longest_seconds.clone());
        RECONCILES.register(registry, self.reconciles.clone());
        ERRORS.register(registry, self.errors.clone());
        TERMINAL_ERRORS.register(registry, self.terminal_errors.clone());
        PANICS.register(registry, self.panics.clone());
        TIMEOUTS.register(registry, self.timeouts.clone());
        RECONCILE_SECONDS.register(registry, self.reconcile_seconds.clone());
        MAX_CONCURRENT.register(registry, self.max_concurrent.clone());
        ACTIVE.register(registry, self.active.clone());
        LEADING.register(registry, self.leading.clone());
        CLIENT_REQUESTS.register(registry, self.client_requests.clone());
        CONNECTED.register(registry, self.cache.connected.clone());
        FAILURES.register(registry, self.cache.failures.clone());
        VERSION.register(registry, self.cache.version.clone());
        UNREADABLE.register(registry, self.cache.unreadable.clone());
        WORLD_KNOWN.register(registry, self.world_known.clone());
        WORLD_FAILURES.register(registry, self.world_failures.clone());
        REFUSED.register(registry, self.refused.clone());
        EVENTS_DROPPED.register(registry, self.events_dropped.clone());
    }
}

impl CacheMetrics {
    pub(crate) fn set(&self, health: &crate::cache::Health, version: u64) {
        self.connected.set(i64::from(health.connected));
        self.failures.set(i64::from(health.failures));
        self.version.set(i64::try_from(version).unwrap_or(i64::MAX));
        self.unreadable.set(i64::try_from(health.unreadable).unwrap_or(i64::MAX));
    }
}

impl WorldMetrics {
    pub(crate) fn set(&self, health: &crate::external::Health) {
        self.known.set(i64::from(health.known));
        self.failures.set(i64::from(health.failures));
    }
}

#[cfg(feature = "client")]
impl ClientMetrics {
    /// `code`: of the answer; nothing where none came.
    pub(crate) fn asked(&self, code: Option<u16>, method: &str, host: String) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        let labels = vec![("code", code), ("method", method.to_owned()), ("host", host)];
        self.0.get_or_create_owned(&labels).inc();
    }
}

/// The numbers of one controller.
#[derive(Clone)]
pub(crate) struct ControllerMetrics {
    pub depth: Gauge,
    adds: Counter,
    pub retries: Counter,
    queue_seconds: Histogram,
    work_seconds: Histogram,
    pub unfinished_seconds: FloatGauge,
    pub longest_seconds: FloatGauge,
    pub success: Counter,
    pub requeue_after: Counter,
    pub error: Counter,
    pub conflict: Counter,
    pub errors: Counter,
    pub terminal_errors: Counter,
    pub panics: Counter,
    pub timeouts: Counter,
    reconcile_seconds: Histogram,
    pub max_concurrent: Gauge,
    pub active: Gauge,
}

impl ControllerMetrics {
    /// `more` keys became wanted.
    pub(crate) fn added(&self, more: u64) {
        self.adds.inc_by(more);
    }

    pub(crate) fn taken(&self, waited: Duration) {
        self.queue_seconds.observe(waited.as_secs_f64());
        self.active.inc();
    }

    pub(crate) fn ended(&self, took: Duration) {
        self.work_seconds.observe(took.as_secs_f64());
        self.reconcile_seconds.observe(took.as_secs_f64());
        self.active.dec();
    }
}

/// Numbers are whole after every call, so a panic elsewhere does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
