//! Events: what people should know, off the path of reconciling.
//!
//! Recording is a push into a bounded map. One task writes it down in batches; the same about the same object within a
//! minute is one event with a count. Losing an event is harmless, waiting for one is not: what is too much is dropped
//! and counted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;

use reconciler_api::{ObjectRef, Resource, Timestamp};

use crate::controller::Subject;
use crate::objects::{Client, Error, Write};
use crate::seams::{Monotonic, Seams};

/// Different events that wait to be written, or are remembered to be folded.
const REMEMBERED: usize = 1024;
/// Events in one commit.
const BATCH: usize = 50;
/// How long the first event waits for company.
const GATHER: Duration = Duration::from_millis(200);
/// Repeats within this time are folded into one write.
const FOLD: Duration = Duration::from_secs(60);

/// Whether people should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should go.
    Normal,
    /// Something that a person may have to do something about.
    Warning,
}

/// One thing that happened, perhaps several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The same for the same thing about the same object: the name of the event's object.
    pub name: String,
    /// The object that it happened to.
    pub regarding: Subject,
    /// Whether people should look.
    pub level: Level,
    /// One CamelCase word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// The controller that says so.
    pub source: &'static str,
    /// When it happened first, of what is not written yet.
    pub first: Timestamp,
    /// When it happened last.
    pub last: Timestamp,
    /// How often it happened since it was last written.
    pub count: u32,
}

/// How events become objects of a kind. A type of its own, so that the kind may be somebody else's.
pub trait EventKind: Send + Sync + 'static {
    /// The kind of the events.
    type Object: Resource;

    /// The event that tells of a record for the first time.
    fn from_record(record: &Record) -> Self::Object;
    /// Where the event of a record lies: the namespace of what it is about, `default` if that has none.
    fn reference(record: &Record) -> ObjectRef {
        // Events lie in a namespace even where what they are about does not.
        let namespace = match record.regarding.reference.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        ObjectRef::new(namespace, record.name.clone())
    }
    /// It happened again, `record.count` times more.
    fn repeat(event: &mut Self::Object, record: &Record);
}

/// Where controllers put events. Clones share it.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    seams: Seams,
    sink: Box<dyn Sink>,
    book: Mutex<Book>,
    filled: Notify,
    dropped: Counter,
}

#[derive(Default)]
struct Book {
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    record: Record,
    /// Not before this: the last one was written a short while ago.
    write_at: Monotonic,
    /// Count 0: written, remembered for folding.
    written: bool,
}

/// Writes down what happened.
trait Sink: Send + Sync {
    fn write<'a>(&'a self, records: &'a [Record]) -> BoxFuture<'a, Result<(), Error>>;
}

impl Recorder {
    /// Writes events of kind `E` in the name of `client`'s writer.
    pub fn new<E: EventKind>(client: Client, seams: Seams, dropped: Counter) -> Self {
        let sink = Box::new(ObjectSink::<E> { client, kind: std::marker::PhantomData });
        let shared = Shared { seams, sink, book: Mutex::default(), filled: Notify::new(), dropped };
        Self { shared: Arc::new(shared) }
    }

    /// Notes that something happened; it is written soon. Never waits and never fails: what is too much is dropped and
    /// counted.
    pub fn record(&self, regarding: Subject, level: Level, reason: &str, message: String, source: &'static str) {
        let now = self.shared.seams.now();
        let monotonic = self.shared.seams.monotonic();
        let name = name_of(&regarding, level, reason, &message, source);
        let mut book = self.lock();
        if let Some(entry) = book.entries.get_mut(&name) {
            if std::mem::take(&mut entry.written) {
                entry.record.count = 0;
                entry.record.first = now;
            }
            entry.record.count = entry.record.count.saturating_add(1);
            entry.record.last = now;
        } else {
            if book.entries.len() >= REMEMBERED {
                book.forget_written();
            }
            if book.entries.len() >= REMEMBERED {
                self.shared.dropped.inc();
                return;
            }
            let reason = reason.to_owned();
            let record = Record {
                name: name.clone(),
                regarding,
                level,
                reason,
                message,
                source,
                first: now,
                last: now,
                count: 1,
            };
            book.entries.insert(name, Entry { record, write_at: monotonic + GATHER, written: false });
        }
        drop(book);
        self.shared.filled.notify_one();
    }

    /// Writes events down, for ever.
    pub async fn run(&self) {
        loop {
            let next = self.lock().next();
            let now = self.shared.seams.monotonic();
            match next {
                None => self.shared.filled.notified().await,
                Some(at) if at > now => tokio::select! {
                    biased;
                    () = self.shared.filled.notified() => {}
                    () = self.shared.seams.clock.sleep_until(at) => {}
                },
                Some(_) => self.write_batch(now).await,
            }
        }
    }

    async fn write_batch(&self, now: Monotonic) {
        let records = self.lock().take_due(now);
        if let Err(error) = self.shared.sink.write(&records).await {
            self.shared.dropped.inc_by(records.len() as u64);
            tracing::debug!(%error, events = records.len(), "events could not be written");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn next(&self) -> Option<Monotonic> {
        self.entries.values().filter(|entry| !entry.written).map(|entry| entry.write_at).min()
    }

    fn take_due(&mut self, now: Monotonic) -> Vec<Record> {
        let due = self.entries.values_mut().filter(|entry| !entry.written && entry.write_at <= now).take(BATCH);
        let records = due
            .map(|entry| {
                entry.written = true;
                entry.write_at = now + FOLD;
                entry.record.clone()
            })
            .collect();
        // What was written long ago will not be folded into.
        self.entries.retain(|_, entry| !entry.written || entry.write_at > now);
        records
    }

    fn forget_written(&mut self) {
        self.entries.retain(|_, entry| !entry.written);
    }
}

struct ObjectSink<E> {
    client: Client,
    kind: std::marker::PhantomData<fn() -> E>,
}

impl<E: EventKind> ObjectSink<E> {
    async fn write_one(&self, record: &Record) -> Result<Option<Write>, Error> {
        let Some(stored) = self.client.find::<E::Object>(&E::reference(record)).await? else {
            let mut event = E::from_record(record);
            let reference = E::reference(record);
            (event.meta_mut().name, event.meta_mut().namespace) = (reference.name, reference.namespace);
            return Ok(Some(Write::create(&event)));
        };
        let mut repeated = stored.clone();
        E::repeat(&mut repeated, record);
        Ok((repeated != stored).then(|| Write::update(&stored, &repeated)))
    }
}

impl<E: EventKind> Sink for ObjectSink<E> {
    fn write<'a>(&'a self, records: &'a [Record]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut writes = Vec::new();
            for record in records {
                writes.extend(self.write_one(record).await?);
            }
            if writes.is_empty() {
                return Ok(());
            }
            match self.client.commit(writes.clone()).await {
                Ok(_) => Ok(()),
                // One that somebody else wrote meanwhile must not take the others with it.
                Err(error) if error.is_conflict() && writes.len() > 1 => {
                    for write in writes {
                        match self.client.commit(vec![write]).await {
                            Err(error) if !error.is_conflict() => return Err(error),
                            _ => {}
                        }
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
    }
}

/// A name that the same event gets again after a restart. FNV-1a: stable across builds, and not for keys.
fn name_of(regarding: &Subject, level: Level, reason: &str, message: &str, source: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let level = if level == Level::Warning { "w" } else { "n" };
    let ObjectRef { namespace, name } = &regarding.reference;
    for part in [&regarding.kind, namespace, name, regarding.uid.as_str(), level, reason, message, source] {
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    // Names have 63 characters at most.
    let short = name.get(..46).unwrap_or(name);
    format!("{}.{hash:016x}", short.trim_end_matches(['-', '.'])).replace('.', "-")
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}
