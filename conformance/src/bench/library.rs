//! The library by itself, without a disk and without containers: its queue, its cache, its runs, its lists.
//!
//! Everything is over the store in memory, so that what is measured is the library. Objects are small ones of a kind made
//! for this: two labels and a spec of 64 bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use reconciler::api::{Kind, ObjectRef, Resource, ResourceVersion};
use reconciler::backoff::Backoff;
use reconciler::cache::{Cache, Declarations, Delta, Snapshot, Subscriber};
use reconciler::controller::{Action, Controller, Ctx, Error, Manager, Reconciler};
use reconciler::objects::{
    self, Client, Committed, Event, Kinds, List, Objects, PageRequest, Remote, Selection, Start, StoreObjects, Stored,
    Stream, Write, Writer,
};
use reconciler::queue::{Priority, Queue, Reason, Verdict};
use reconciler::seams::Seams;
use reconciler::server::{Server, UnixSocket};
use reconciler::store::Memory;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::usage::resident;
use super::{Row, report};
use crate::parts::process::{clear, fresh_folder};

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "bench.apply", version = "v1", kind = "Thing", status = ThingStatus, crate = reconciler::api)]
struct ThingSpec {
    text: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
struct ThingStatus {
    seen: u64,
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Keys in the queue.
    pub keys: u32,
    /// Objects in lists and caches.
    pub objects: usize,
    /// Changes whose way to the reconciler is timed.
    pub told: usize,
}

impl Size {
    /// What `make bench` takes.
    pub const FULL: Size = Size { keys: 100_000, objects: 10_000, told: 2_000 };
}

/// What has not happened by then never will.
const OVERDUE: Duration = Duration::from_secs(300);
/// Objects in one commit.
const TOGETHER: usize = 50;

/// Measures, prints and writes `target/bench/library.json`.
pub fn run() -> Result<()> {
    report("library", &rows(Size::FULL)?)?;
    Ok(())
}

/// All figures.
pub fn rows(size: Size) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut rows = Vec::new();
    runtime.block_on(async {
        // First: what others have let go would be used again, and not be seen.
        cache(size, &mut rows).await?;
        queue(size, &mut rows).await?;
        latency(size, &mut rows).await?;
        for workers in [1, 8] {
            rows.push(reconciles(size, workers, Does::Nothing).await?);
            rows.push(reconciles(size, workers, Does::Status).await?);
        }
        lists(size, &mut rows).await
    })?;
    Ok(rows)
}

async fn objects() -> Result<Arc<dyn Objects>> {
    let kinds = Kinds::new().with::<Thing>();
    Ok(Arc::new(StoreObjects::open(Arc::new(Memory::new()), "/bench", kinds, Seams::real()).await?))
}

fn thing(number: usize) -> Thing {
    let mut thing = Thing::new(format!("thing-{number:06}"), ThingSpec { text: "x".repeat(64) });
    thing.metadata.namespace = "bench".into();
    let labels = [("app", "bench".to_owned()), ("shard", (number % 16).to_string())];
    thing.metadata.labels = labels.into_iter().map(|(key, value)| (key.into(), value)).collect::<BTreeMap<_, _>>();
    thing
}

async fn fill(objects: &Arc<dyn Objects>, count: usize) -> Result<Client> {
    let client = Client::new(objects.clone(), Writer::new("user:bench", "bench"));
    for first in (0..count).step_by(TOGETHER) {
        let writes = (first..count.min(first + TOGETHER)).map(|number| Write::create(&thing(number)));
        client.commit(writes.collect()).await?;
    }
    Ok(client)
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// One worker: every key is added, taken and done.
async fn queue(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    let queue: Queue<u32> = Queue::new(Seams::real(), Backoff::new(Duration::from_millis(5), Duration::from_secs(60)));
    let reason = || Reason::new("bench");
    let begun = Instant::now();
    for key in 0..size.keys {
        queue.add(key, Priority::Normal, reason());
    }
    let added = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..size.keys {
        queue.add(7, Priority::Normal, reason());
    }
    let again = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..size.keys {
        let work = queue.take().await.context("the queue is open")?;
        queue.done(&work.key, Verdict::Rest, None);
    }
    let taken = begun.elapsed();
    ensure!(queue.is_idle(), "keys are left: {queue:?}");
    let keys = size.keys as usize;
    rows.push(Row::new(format!("queue: adds of {keys} keys"), rate(keys, added), "1/s"));
    rows.push(Row::new("queue: adds of a key that is ready already", rate(keys, again), "1/s"));
    rows.push(Row::new(format!("queue: takes and dones of {keys} ready keys, one worker"), rate(keys, taken), "1/s"));
    Ok(())
}

/// Tells when its runs begin.
struct Clocked(mpsc::UnboundedSender<Instant>);

impl Reconciler for Clocked {
    type Object = Thing;

    async fn reconcile(&self, _: Arc<Thing>, _: &Ctx) -> Result<Action, Error> {
        let _ = self.0.send(Instant::now());
        Ok(Action::Await)
    }
}

/// One change after the other, so that nothing queues: from the answer of the commit, which the watch may even
/// overtake, to the first line of the run.
async fn latency(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    let objects = objects().await?;
    let client = fill(&objects, 1).await?;
    let (tell, mut told) = mpsc::unbounded_channel();
    let manager =
        Manager::builder(objects, Seams::real()).controller(Controller::new("clocked", Clocked(tell))).build();
    let measure = async {
        told.recv().await.context("a first run")?;
        let mut latencies = Vec::new();
        let mut current = client.get::<Thing>(&thing(0).object_ref()).await?;
        for number in 0..size.told {
            let mut next = current.clone();
            next.spec.text = number.to_string();
            let called = Instant::now();
            current = client.update(&current, &next).await?;
            let ran = tokio::time::timeout(OVERDUE, told.recv()).await.context("no run followed")?;
            latencies.push(ran.context("the controller ended")?.saturating_duration_since(called));
        }
        latencies.sort_unstable();
        anyhow::Ok(latencies)
    };
    let latencies = tokio::select! {
        latencies = measure => latencies?,
        () = manager.run(std::future::pending()) => anyhow::bail!("the manager ended"),
    };
    for (share, at) in [("p50", size.told / 2), ("p99", size.told * 99 / 100)] {
        let value = latencies[at].as_secs_f64() * 1e6;
        rows.push(Row::new(format!("latency: from the call of commit to the run that it wakes, {share}"), value, "us"));
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Nothing,
    /// Writes a status that changes, as a controller does once for each new object.
    Status,
}

struct Counted {
    does: Does,
    left: AtomicU32,
    done: mpsc::UnboundedSender<Instant>,
    begun: std::sync::OnceLock<Instant>,
}

/// A type of this crate, which an `Arc` of one is not.
struct Counts(Arc<Counted>);

impl Reconciler for Counts {
    type Object = Thing;

    async fn reconcile(&self, thing: Arc<Thing>, cx: &Ctx) -> Result<Action, Error> {
        let counted = &self.0;
        counted.begun.get_or_init(Instant::now);
        if counted.does == Does::Status {
            if thing.status.is_some() {
                return Ok(Action::Await);
            }
            let mut said = (*thing).clone();
            said.status = Some(ThingStatus { seen: 1 });
            cx.client().update_status(&*thing, &said).await?;
        }
        if counted.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = counted.done.send(Instant::now());
        }
        Ok(Action::Await)
    }
}

/// From the first run to the last, all objects being there before.
async fn reconciles(size: Size, workers: usize, does: Does) -> Result<Row> {
    let objects = objects().await?;
    fill(&objects, size.objects).await?;
    let (done, mut ended) = mpsc::unbounded_channel();
    let left = AtomicU32::new(u32::try_from(size.objects)?);
    let counted = Arc::new(Counted { does, left, done, begun: std::sync::OnceLock::new() });
    let controller = Controller::new("counted", Counts(counted.clone())).concurrency(workers);
    let manager = Manager::builder(objects, Seams::real()).controller(controller).build();
    let last = tokio::select! {
        last = tokio::time::timeout(OVERDUE, ended.recv()) => last.context("not all objects had a run")?,
        () = manager.run(std::future::pending()) => None,
    };
    let begun = counted.begun.get().context("a first run")?;
    let took = last.context("the manager ended")?.duration_since(*begun);
    let what = if does == Does::Nothing { "that do nothing" } else { "that write a status" };
    let plural = if workers == 1 { "worker" } else { "workers" };
    let name = format!("reconciles {what}, {workers} {plural}, of {} objects", size.objects);
    Ok(Row::new(name, rate(size.objects, took), "1/s"))
}

/// What a stream told, told again as fast as it is read.
struct Canned(std::sync::Mutex<Vec<Event>>);

impl fmt::Debug for Canned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Canned")
    }
}

fn not_here<T: Send + 'static>() -> BoxFuture<'static, Result<T, objects::Error>> {
    Box::pin(async { Err(objects::Error::Unavailable { detail: "only a stream is here".into() }) })
}

impl Objects for Canned {
    fn get<'a>(&'a self, _: &'a Kind, _: &'a ObjectRef) -> BoxFuture<'a, Result<Stored, objects::Error>> {
        not_here()
    }

    fn list<'a>(&'a self, _: &'a Selection, _: PageRequest) -> BoxFuture<'a, Result<List, objects::Error>> {
        not_here()
    }

    fn stream(&self, _: Vec<Selection>, _: Start) -> BoxFuture<'_, Result<Stream, objects::Error>> {
        let events = std::mem::take(&mut *self.0.lock().expect("nobody panics here"));
        let events = stream::iter(events.into_iter().map(Ok)).chain(stream::pending());
        Box::pin(async move { Ok(events.boxed()) })
    }

    fn commit<'a>(&'a self, _: &'a Writer, _: Vec<Write>) -> BoxFuture<'a, Result<Committed, objects::Error>> {
        not_here()
    }
}

/// A listing, then one change of each object in a commit of its own; decoding, indexes and snapshots included.
async fn cache(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    let objects = objects().await?;
    let client = fill(&objects, size.objects).await?;
    let mut follow = objects.stream(vec![Selection::of::<Thing>()], Start::Now).await?;
    let (mut listing, mut changes) = (Vec::new(), Vec::new());
    while let Some(event) = follow.next().await {
        let event = event?;
        let last = matches!(event, Event::InitialDone { .. });
        listing.push(event);
        if last {
            break;
        }
    }
    let mut last = ResourceVersion::default();
    for number in 0..size.objects {
        let current = client.get::<Thing>(&thing(number).object_ref()).await?;
        let mut next = current.clone();
        next.spec.text = format!("{number:064}");
        last = client.update(&current, &next).await?.metadata.resource_version;
    }
    let mut version = ResourceVersion::default();
    while version < last {
        let event = tokio::time::timeout(OVERDUE, follow.next()).await.context("the stream fell silent")?;
        let event = event.context("the stream ended")??;
        if let Event::Batch { resource_version, .. } = &event {
            version = *resource_version;
        }
        changes.push(event);
    }
    let listed = match listing.last() {
        Some(Event::InitialDone { resource_version, .. }) => *resource_version,
        _ => anyhow::bail!("no listing"),
    };
    // Nothing is let go before memory is looked at again: the cache would use it, and seem to need none.
    let events = [&*listing, &*changes].concat();
    let canned = Arc::new(Canned(std::sync::Mutex::new(events)));
    let before = resident()?;
    let cache = Cache::new(canned, Seams::real(), &Declarations::new().kind::<Thing>());
    // Stamped where snapshots are made: whoever waits may be woken for the last one only.
    let stamps = Arc::new(std::sync::Mutex::new(Vec::new()));
    let stamped = stamps.clone();
    let subscriber: Arc<Subscriber> = Arc::new(move |seen: &Snapshot, _: &[Delta]| {
        if seen.resource_version() == listed || seen.resource_version() == last {
            stamped.lock().expect("nobody panics here").push(Instant::now());
        }
    });
    cache.subscribe(&subscriber);
    let begun = Instant::now();
    tokio::select! {
        () = cache.run() => anyhow::bail!("the cache ended"),
        _ = cache.at_least(last) => {}
    }
    let stamps = stamps.lock().expect("nobody panics here").clone();
    let [first, whole] = stamps[..] else { anyhow::bail!("{} stamps, not 2", stamps.len()) };
    let (first, whole) = (first.duration_since(begun), whole.duration_since(begun));
    let seen = cache.snapshot().context("a snapshot")?;
    ensure!(seen.count::<Thing>() == size.objects, "not all objects are known");
    let after = resident()?;
    drop((listing, changes, follow, client, objects));
    rows.push(Row::new(format!("cache: objects listed, of {}", size.objects), rate(size.objects, first), "1/s"));
    let changes = rate(size.objects, whole.saturating_sub(first).max(Duration::from_nanos(1)));
    rows.push(Row::new(format!("cache: changes, one a commit, of {} objects", size.objects), changes, "1/s"));
    let bytes = after.saturating_sub(before) as f64 / size.objects as f64;
    let stored = serde_json::to_vec(&thing(0))?.len();
    rows.push(Row::new(format!("cache: resident memory an object ({stored} bytes of JSON)"), bytes, "B"));
    Ok(())
}

/// All objects in one list: as stored, decoded, and over HTTP on a unix socket.
async fn lists(size: Size, rows: &mut Vec<Row>) -> Result<()> {
    let objects = objects().await?;
    fill(&objects, size.objects).await?;
    let folder = fresh_folder("bench-library")?;
    let path = folder.join("api.sock");
    let server = Server::new(objects.clone(), Kinds::new().with::<Thing>(), Seams::real());
    let socket = UnixSocket::bind(&path).await?;
    let remote: Arc<dyn Objects> = Arc::new(Remote::unix(&path, Seams::real()));
    let measure = async {
        let mut row = |name: &str, times: Vec<Duration>| {
            let name = format!("list of {} objects, {name}, p50 of {}", size.objects, times.len());
            rows.push(Row::new(name, times[times.len() / 2].as_secs_f64() * 1e3, "ms"));
        };
        row("in process, as stored", listed(&objects, size, |_| Ok(())).await?);
        let decode = |list: List| {
            let all: Result<Vec<Thing>, _> = list.items.iter().map(Stored::decode).collect();
            ensure!(all?.len() == list.items.len(), "all were decoded");
            Ok(())
        };
        row("in process, decoded", listed(&objects, size, decode).await?);
        row("over HTTP, decoded", listed(&remote, size, decode).await?);
        anyhow::Ok(())
    };
    tokio::select! {
        measured = measure => measured?,
        () = server.serve(socket) => anyhow::bail!("the server ended"),
    }
    clear(&folder)
}

/// Sorted.
async fn listed(objects: &Arc<dyn Objects>, size: Size, read: impl Fn(List) -> Result<()>) -> Result<Vec<Duration>> {
    const TIMES: usize = 5;
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let begun = Instant::now();
        let list = objects.list(&Selection::of::<Thing>(), PageRequest::default()).await?;
        ensure!(list.items.len() == size.objects, "{} objects were listed", list.items.len());
        read(list)?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The benchmark itself, small: every figure comes about, and none is nothing.
    #[test]
    fn every_row_comes_about() {
        let rows = rows(Size { keys: 100, objects: 120, told: 20 }).unwrap();
        assert_eq!(rows.len(), 15, "{rows:#?}");
        // Memory is what the allocator asked for: as few objects as here may fit into what it had.
        let timed = rows.iter().filter(|row| row.unit != "B");
        for row in timed {
            assert!(row.value.is_finite() && row.value > 0.0, "{row:?}");
        }
    }
}
