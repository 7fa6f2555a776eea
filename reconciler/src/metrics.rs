//! Numbers for Prometheus. One registry a [`Metrics`], none global; the names are controller-runtime's and client-go's
//! where the meaning is the same, so that existing dashboards work.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Seconds = Family<Labels<1>, Histogram, fn() -> Histogram>;
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
#[derive(Clone)]
pub(crate) struct CacheMetrics {
    connected: Gauge,
    failures: Gauge,
    version: Gauge,
    unreadable: Gauge,
}

type Sampler = Box<dyn Fn() + Send + Sync>;

struct Families {
    depth: Family<Labels<1>, Gauge>,
    adds: Family<Labels<1>, Counter>,
    retries: Family<Labels<1>, Counter>,
    queue_seconds: Seconds,
    work_seconds: Seconds,
    unfinished_seconds: Family<Labels<1>, FloatGauge>,
    longest_seconds: Family<Labels<1>, FloatGauge>,
    reconciles: Family<Labels<2>, Counter>,
    errors: Family<Labels<1>, Counter>,
    terminal_errors: Family<Labels<1>, Counter>,
    panics: Family<Labels<1>, Counter>,
    timeouts: Family<Labels<1>, Counter>,
    reconcile_seconds: Seconds,
    max_concurrent: Family<Labels<1>, Gauge>,
    active: Family<Labels<1>, Gauge>,
    leading: Family<Labels<1>, Gauge>,
    cache: CacheMetrics,
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
    pub fn new() -> Self {
        let seconds: fn() -> Histogram = seconds;
        let seconds = || Seconds::new_with_constructor(seconds);
        let families = Families {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            queue_seconds: seconds(),
            work_seconds: seconds(),
            unfinished_seconds: Family::default(),
            longest_seconds: Family::default(),
            reconciles: Family::default(),
            errors: Family::default(),
            terminal_errors: Family::default(),
            panics: Family::default(),
            timeouts: Family::default(),
            reconcile_seconds: seconds(),
            max_concurrent: Family::default(),
            active: Family::default(),
            leading: Family::default(),
            cache: CacheMetrics {
                connected: Gauge::default(),
                failures: Gauge::default(),
                version: Gauge::default(),
                unreadable: Gauge::default(),
            },
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
        lock(&self.shared.samplers).push(Box::new(sample));
    }

    /// Everything, in Prometheus' text format (`text/plain; version=0.0.4`).
    pub fn text(&self) -> String {
        for sample in lock(&self.shared.samplers).iter() {
            sample();
        }
        let mut text = String::new();
        prometheus_text::encode(&mut text, &lock(&self.shared.registry)).expect("a string takes any text");
        text
    }

    pub(crate) fn of_controller(&self, name: &'static str) -> ControllerMetrics {
        let families = &self.shared.families;
        let labels = [("name", name)];
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

    /// Whether this process leads where only one may act: 1 or 0.
    pub fn leading(&self, name: &'static str, leading: bool) {
        self.shared.families.leading.get_or_create_owned(&[("name", name)]).set(i64::from(leading));
    }

    pub(crate) fn events_dropped(&self) -> Counter {
        self.shared.families.events_dropped.clone()
    }
}

impl Families {
    fn register(&self, registry: &mut Registry) {
        let workqueue = registry.sub_registry_with_prefix("workqueue");
        workqueue.register("depth", "Keys that are ready", self.depth.clone());
        workqueue.register("adds", "Keys that became wanted", self.adds.clone());
        workqueue.register("retries", "Runs that failed and are tried again", self.retries.clone());
        workqueue.register("queue_duration_seconds", "From ready to taken", self.queue_seconds.clone());
        workqueue.register("work_duration_seconds", "From taken to done", self.work_seconds.clone());
        workqueue.register("unfinished_work_seconds", "Sum over running work", self.unfinished_seconds.clone());
        workqueue.register(
            "longest_running_processor_seconds",
            "The longest running work",
            self.longest_seconds.clone(),
        );
        let runtime = registry.sub_registry_with_prefix("controller_runtime");
        runtime.register("reconcile", "Runs by result", self.reconciles.clone());
        runtime.register("reconcile_errors", "Runs that failed", self.errors.clone());
        runtime.register("terminal_reconcile_errors", "Runs that failed for good", self.terminal_errors.clone());
        runtime.register("reconcile_panics", "Runs that panicked", self.panics.clone());
        runtime.register("reconcile_timeouts", "Runs that took too long", self.timeouts.clone());
        runtime.register("reconcile_time_seconds", "Duration of a run", self.reconcile_seconds.clone());
        runtime.register("max_concurrent_reconciles", "Workers", self.max_concurrent.clone());
        runtime.register("active_workers", "Workers that are running something", self.active.clone());
        registry.register("leader_election_master_status", "1 while this process leads", self.leading.clone());
        let cache = registry.sub_registry_with_prefix("reconciler_cache");
        cache.register("connected", "1 while the stream of objects is followed", self.cache.connected.clone());
        cache.register("failures", "Attempts in a row without progress", self.cache.failures.clone());
        cache.register("resource_version", "Up to where objects are known", self.cache.version.clone());
        cache.register("unreadable_objects", "Objects that this version cannot read", self.cache.unreadable.clone());
        registry.register("reconciler_events_dropped", "Events that were too many", self.events_dropped.clone());
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

/// The numbers of one controller.
#[derive(Clone)]
pub(crate) struct ControllerMetrics {
    pub depth: Gauge,
    pub adds: Counter,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_field() {
        let metrics = Metrics::new();
        let controller = metrics.of_controller("sites");
        controller.success.inc();
        controller.adds.inc();
        controller.taken(Duration::from_millis(3));
        controller.ended(Duration::from_millis(5));
        let text = metrics.text();
        for line in [
            "controller_runtime_reconcile_total{controller=\"sites\",result=\"success\"} 1",
            "workqueue_adds_total{name=\"sites\"} 1",
            "workqueue_depth{name=\"sites\"} 0",
            "workqueue_queue_duration_seconds_count{name=\"sites\"} 1",
            "controller_runtime_active_workers{controller=\"sites\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
