//! The store as the processes of a simulation see it: the real objects layer over a real store in memory, behind
//! everything that a network and a cluster can do to a request, an answer or a stream.
//!
//! Every commit is written down with the state that it left. Streams are served from these notes, so that a process
//! can be shown an earlier state, a later one, or several steps as one: all that a real, lagging replica may show, and
//! nothing that it may not.

use std::collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use imbl::OrdMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use reconciler_api::{Kind, ObjectRef, ResourceVersion};

use crate::cache::{Declarations, Snapshot};
use crate::objects::stored::selects;
use crate::objects::{
    Change, Committed, Epoch, Error, Event, Kinds, List, Objects, PageRequest, Part, Patch, Precondition, Selection,
    Start, StoreObjects, Stored, Stream, Write, Writer,
};
use crate::store::memory::Memory;

use super::choices::Point;
use super::executor::{Lane, lock};
use super::faults::Fault;
use super::story;
use super::universe::{NOBODY, Universe, give_way};

/// What an invariant is shown: one step, from what stood before it to what stands now.
#[derive(Debug)]
pub struct View<'a> {
    /// Everything as it stood before the write.
    pub before: &'a Snapshot,
    /// Everything as it stands now.
    pub now: &'a Snapshot,
    /// Who committed; `None` for an effect outside the store.
    pub writer: Option<&'a Writer>,
}

pub(super) type Invariant = Box<dyn Fn(&View<'_>) -> Result<(), String> + Send + Sync>;

pub(super) struct Server {
    universe: Universe,
    objects: Arc<StoreObjects>,
    invariants: Vec<(String, Invariant)>,
    /// Field managers whose writes are no sign of unrest.
    may_write: Vec<String>,
    state: Mutex<State>,
}

struct State {
    /// Tells of every commit.
    master: Stream,
    epoch: Epoch,
    log: Vec<Logged>,
    snapshot: Snapshot,
    /// Streams that have delivered everything.
    waiting: Vec<Waker>,
    /// Of what stands now, without what differs from run to run.
    content: u64,
    contents: BTreeSet<u64>,
    writes: u64,
    /// How many of them by whom, since last asked to forget.
    writers: BTreeMap<String, u64>,
    last_write: Option<LastWrite>,
}

/// Told only where a promise breaks: a story takes longer than the commit.
struct LastWrite {
    name: String,
    writer: Writer,
    version: ResourceVersion,
    changes: Arc<Vec<Change>>,
}

/// Every object, with its digest.
type Raw = OrdMap<(String, ObjectRef), (Stored, u64)>;

/// One commit, and what stood after it.
struct Logged {
    version: ResourceVersion,
    changes: Arc<Vec<Change>>,
    after: Raw,
}

/// How far a stale view lags, and how long until it catches up.
const LAG: Duration = Duration::from_secs(2);

impl Server {
    pub(super) fn new(
        universe: Universe,
        kinds: Kinds,
        declarations: &Declarations,
        invariants: Vec<(String, Invariant)>,
        may_write: Vec<String>,
    ) -> Arc<Self> {
        let seams = universe.machine.seams(NOBODY, 0x5e12_7e12, Arc::default());
        let selections: Vec<Selection> = kinds.all().into_iter().map(|entry| Selection::all_of(entry.kind)).collect();
        let opened = now(StoreObjects::open(Arc::new(Memory::new()), "/sim", kinds, seams));
        let objects = Arc::new(opened.expect("an empty store in memory opens"));
        let master = now(objects.stream(selections, Start::Now)).expect("a store in memory streams");
        let state = State {
            master,
            epoch: objects.epoch(),
            log: Vec::new(),
            snapshot: Snapshot::empty(declarations),
            waiting: Vec::new(),
            content: 0,
            contents: BTreeSet::new(),
            writes: 0,
            writers: BTreeMap::new(),
            last_write: None,
        };
        let server = Arc::new(Self { universe, objects, invariants, may_write, state: Mutex::new(state) });
        server.take_notes(None);
        server
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        lock(&self.state).snapshot.clone()
    }

    pub(super) fn last_write(&self) -> String {
        let state = lock(&self.state);
        let told = |last: &LastWrite| story::commit(&last.name, &last.writer, last.version, &last.changes);
        state.last_write.as_ref().map(told).unwrap_or_default()
    }

    /// Commits that changed something.
    pub(super) fn writes(&self) -> u64 {
        lock(&self.state).writes
    }

    /// Who has written since [`Self::forget_writers`], and how often.
    pub(super) fn writers(&self) -> BTreeMap<String, u64> {
        lock(&self.state).writers.clone()
    }

    pub(super) fn forget_writers(&self) {
        lock(&self.state).writers.clear();
    }

    pub(super) fn contents(&self) -> BTreeSet<u64> {
        lock(&self.state).contents.clone()
    }

    /// An effect outside the store has happened.
    pub(super) fn inspect_effect(&self) {
        let snapshot = self.snapshot();
        self.inspect(&View { before: &snapshot, now: &snapshot, writer: None });
    }

    pub(super) fn forget_wakers(&self) {
        lock(&self.state).waiting.clear();
    }

    fn inspect(&self, view: &View<'_>) {
        for (name, invariant) in &self.invariants {
            if let Err(detail) = invariant(view) {
                self.universe.broke(name, detail);
            }
        }
    }

    /// Does what is asked, now, and judges what came of it.
    fn apply(&self, lane: Lane, writer: &Writer, writes: Vec<Write>) -> Result<Committed, Error> {
        let result = now(self.objects.commit(writer, writes));
        let name = self.universe.name(lane);
        if let Err(error) = &result {
            self.universe.tell(|| format!("{name} is refused: {error}"));
        }
        self.take_notes(Some((name, writer)));
        result
    }

    /// Writes down what has been committed since last time.
    fn take_notes(&self, who: Option<(&str, &Writer)>) {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let event = {
                let mut state = lock(&self.state);
                state.master.poll_next_unpin(&mut context)
            };
            match event {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(Event::InitialDone { epoch, resource_version }))) => {
                    let mut state = lock(&self.state);
                    state.epoch = epoch;
                    state.note(resource_version, Arc::default());
                }
                Poll::Ready(Some(Ok(Event::Initial(_)))) => {}
                Poll::Ready(Some(Ok(Event::Batch { resource_version, mut changes, .. }))) => {
                    // All processes together decode an object once.
                    for change in &mut changes {
                        if let Change::Put { object, .. } = change {
                            object.share_decoded();
                        }
                    }
                    let changes = Arc::new(changes);
                    if changes.is_empty() {
                        lock(&self.state).note(resource_version, changes);
                        continue;
                    }
                    if let Some((name, writer)) = who {
                        self.universe.tell(|| story::commit(name, writer, resource_version, &changes));
                    }
                    let (before, after) = {
                        let mut state = lock(&self.state);
                        let before = state.snapshot.clone();
                        if who.is_none_or(|(_, writer)| !self.may_write.contains(&writer.manager)) {
                            state.writes += 1;
                            let manager = who.map_or("somebody", |(_, writer)| &writer.manager);
                            *state.writers.entry(manager.to_owned()).or_default() += 1;
                            state.last_write = who.map(|(name, writer)| LastWrite {
                                name: name.to_owned(),
                                writer: writer.clone(),
                                version: resource_version,
                                changes: changes.clone(),
                            });
                        }
                        state.note(resource_version, changes);
                        (before, state.snapshot.clone())
                    };
                    self.inspect(&View { before: &before, now: &after, writer: who.map(|(_, writer)| writer) });
                }
                Poll::Ready(ended) => panic!("the simulated store's own stream ended: {ended:?}"),
            }
        }
    }

    /// The objects as one process reaches them.
    pub(super) fn client_of(self: &Arc<Self>, lane: Lane, trouble: Trouble) -> Arc<dyn Objects> {
        Arc::new(SimObjects { server: self.clone(), lane, trouble })
    }
}

impl State {
    fn note(&mut self, version: ResourceVersion, changes: Arc<Vec<Change>>) {
        let mut after = self.log.last().map(|logged| logged.after.clone()).unwrap_or_default();
        for change in &*changes {
            let (kind, reference, object) = match change {
                Change::Put { object, .. } => (&object.kind, &object.reference, Some(object)),
                Change::Gone { kind, reference, .. } => (kind, reference, None),
            };
            let key = (kind.qualified(), reference.clone());
            let before = match object {
                Some(object) => {
                    let digest = digest(object);
                    self.content ^= digest;
                    after.insert(key, (object.clone(), digest))
                }
                None => after.remove(&key),
            };
            self.content ^= before.map_or(0, |(_, digest)| digest);
        }
        self.contents.insert(self.content);
        let (snapshot, _) = self.snapshot.after(self.epoch.clone(), version, &changes);
        self.snapshot = snapshot;
        self.log.push(Logged { version, changes, after });
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }
}

/// What an object says, without identities and times.
fn digest(stored: &Stored) -> u64 {
    #[derive(Deserialize)]
    struct Said<'a> {
        #[serde(borrow)]
        metadata: Metadata<'a>,
        #[serde(borrow)]
        spec: Option<&'a RawValue>,
        #[serde(borrow)]
        status: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata<'a> {
        deletion_timestamp: Option<IgnoredAny>,
        #[serde(borrow)]
        finalizers: Option<&'a RawValue>,
        #[serde(borrow)]
        labels: Option<&'a RawValue>,
    }
    let mut hasher = DefaultHasher::new();
    (&stored.kind.kind, &stored.reference).hash(&mut hasher);
    if let Ok(Said { metadata, spec, status }) = serde_json::from_slice(&stored.json) {
        metadata.deletion_timestamp.is_none().hash(&mut hasher);
        for part in [spec, status, metadata.finalizers, metadata.labels] {
            part.map(RawValue::get).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// Whether a process's requests meet with faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Expected,
    Never,
}

struct SimObjects {
    server: Arc<Server>,
    lane: Lane,
    trouble: Trouble,
}

impl SimObjects {
    fn fault(&self, point: Point) -> Option<Fault> {
        match self.trouble {
            Trouble::Expected => self.server.universe.fault(point, self.lane),
            Trouble::Never => None,
        }
    }

    fn tell(&self, what: &str) {
        let universe = &self.server.universe;
        universe.tell(|| format!("{}: {what}", universe.name(self.lane)));
    }

    async fn sleep(&self, duration: Duration) {
        self.server.universe.sleep(self.lane, duration).await;
    }

    async fn crash(&self) -> ! {
        self.server.universe.crash(self.lane);
        std::future::pending().await
    }

    async fn troubled_commit(&self, writer: &Writer, writes: Vec<Write>) -> Result<Committed, Error> {
        give_way().await;
        let apply = |writes| self.server.apply(self.lane, writer, writes);
        let lost = || Error::UnknownOutcome { detail: "no answer".into() };
        match self.fault(Point::Commit) {
            Some(Fault::CrashBeforeCommit) => {
                self.tell("dies before it could commit");
                self.crash().await
            }
            Some(Fault::CrashAfterCommit) => {
                let _ = apply(writes);
                self.tell("dies before it hears of its commit");
                self.crash().await
            }
            Some(Fault::ReplyLost) => {
                let _ = apply(writes);
                self.tell("never hears of its commit");
                Err(lost())
            }
            Some(Fault::RequestLost) => {
                self.tell("a commit is lost, nobody knows");
                Err(lost())
            }
            Some(Fault::CommitLate) => {
                self.tell("a commit is on its way, nobody knows");
                self.apply_later(writer.clone(), writes);
                Err(lost())
            }
            Some(Fault::StoreUnavailable) => {
                self.tell("cannot reach the store to commit");
                Err(Error::Unavailable { detail: "connection refused".into() })
            }
            Some(Fault::CommitSlow) => {
                self.tell("a commit takes 5 s");
                self.apply_slowly(writer.clone(), writes).await.unwrap_or_else(|_| Err(lost()))
            }
            Some(Fault::OtherWriter) => {
                self.touch(&writes);
                apply(writes)
            }
            _ => apply(writes),
        }
    }

    /// The request is under way, and goes on whether or not its sender still waits for the answer.
    fn apply_slowly(&self, writer: Writer, writes: Vec<Write>) -> oneshot::Receiver<Result<Committed, Error>> {
        let (answer, answered) = oneshot::channel();
        let (server, lane) = (self.server.clone(), self.lane);
        let slow = Box::pin(async move {
            server.universe.sleep(NOBODY, Duration::from_secs(5)).await;
            let _ = answer.send(server.apply(lane, &writer, writes));
        });
        // As below.
        std::mem::forget(self.server.universe.machine.spawn(NOBODY, "slow commit", slow));
        answered
    }

    /// The request is still under way when its sender has given up. It belongs to nobody any more.
    fn apply_later(&self, writer: Writer, writes: Vec<Write>) {
        let (server, lane) = (self.server.clone(), self.lane);
        let late = Box::pin(async move {
            server.universe.sleep(NOBODY, Duration::from_secs(1)).await;
            let _ = server.apply(lane, &writer, writes);
        });
        // Nobody joins it, and nothing but the end of the simulation ends it.
        std::mem::forget(self.server.universe.machine.spawn(NOBODY, "late commit", late));
    }

    /// Somebody else puts an annotation on the first object that exists and is about to be written.
    fn touch(&self, writes: &[Write]) {
        let target = writes.iter().find_map(|write| match write {
            Write::Update { kind, reference, .. } | Write::Delete { kind, reference, .. } => Some((kind, reference)),
            Write::Create { .. } | Write::Check { .. } => None,
        });
        let checked = || {
            writes.iter().find_map(|write| match write {
                Write::Check { kind, reference, precondition: Some(_) } => Some((kind, reference)),
                _ => None,
            })
        };
        let Some((kind, reference)) = target.or_else(checked) else { return };
        let count = self.server.writes();
        let touch = Write::Update {
            kind: kind.clone(),
            reference: reference.clone(),
            part: Part::Main,
            patch: Patch::Merge(serde_json::json!({"metadata": {"annotations": {"touched": count.to_string()}}})),
            precondition: Precondition::default(),
        };
        let _ = self.server.apply(NOBODY, &Writer::new("user:other", "other"), vec![touch]);
    }

    async fn troubled_read(&self) -> Result<(), Error> {
        give_way().await;
        match self.fault(Point::Read) {
            Some(Fault::ReadUnavailable) => {
                self.tell("cannot reach the store to read");
                Err(Error::Unavailable { detail: "connection refused".into() })
            }
            Some(Fault::ReadSlow) => {
                self.sleep(Duration::from_secs(5)).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn troubled_stream(&self, selections: Vec<Selection>, start: Start) -> Result<Stream, Error> {
        give_way().await;
        let (universe, server) = (&self.server.universe, &self.server);
        // Every earlier state is a choice of its own: 3 is one step back, 4 is two.
        let steps = lock(&server.state).log.len();
        let options = u32::try_from(steps).unwrap_or(u32::MAX).saturating_add(2);
        let choice = match self.trouble {
            Trouble::Expected => universe.choose(Point::Open, self.lane, options),
            Trouble::Never => 0,
        };
        let mut behind = 0;
        match (Point::Open.fault(choice), &start) {
            (Some(Fault::StreamRefused), _) => {
                self.tell("cannot open a stream");
                return Err(Error::Unavailable { detail: "connection refused".into() });
            }
            (Some(Fault::Compacted), Start::After { .. }) => {
                self.tell("history does not reach back that far");
                return Err(Error::Expired { detail: "compacted".into() });
            }
            (Some(Fault::StaleView), Start::Now) => {
                behind = (choice - 2) as usize;
                self.tell(&format!("sees the state of {behind} commits ago"));
            }
            _ => {}
        }
        server.serve(self.lane, self.trouble, selections, start, behind)
    }
}

impl Server {
    fn serve(
        self: &Arc<Self>,
        lane: Lane,
        trouble: Trouble,
        selections: Vec<Selection>,
        start: Start,
        behind: usize,
    ) -> Result<Stream, Error> {
        let state = lock(&self.state);
        let newest = state.log.len().saturating_sub(1);
        let (initial, next) = match start {
            Start::Now => {
                let at = newest.saturating_sub(behind);
                let Some(logged) = state.log.get(at) else {
                    return Err(Error::Unavailable { detail: "the store has no history yet".into() });
                };
                let page = |selection: &Selection| {
                    let objects = logged.after.iter().map(|(_, (stored, _))| stored);
                    Event::Initial(objects.filter(|stored| selects(selection, stored)).cloned().collect())
                };
                let mut events: Vec<_> = selections.iter().map(page).collect();
                events.push(Event::InitialDone { epoch: state.epoch.clone(), resource_version: logged.version });
                (events, at + 1)
            }
            Start::After { epoch, .. } if epoch != state.epoch => {
                return Err(Error::Expired { detail: "another line of history began".into() });
            }
            Start::After { resource_version, .. } => {
                (Vec::new(), state.log.iter().take_while(|logged| logged.version <= resource_version).count())
            }
        };
        drop(state);
        let courier = Courier { server: self.clone(), lane, trouble };
        let delivery = Delivery { courier: courier.clone(), selections, next, lagging: behind > 0 };
        let changes = stream::unfold(Some(delivery), |delivery| async move {
            let mut delivery = delivery?;
            let item = delivery.next().await;
            let rest = item.is_ok().then_some(delivery);
            Some((item, rest))
        });
        // Page by page, with room for others in between; a listing may take long, and end half-way.
        let initial = stream::iter(initial).then(move |event| {
            let courier = courier.clone();
            async move {
                give_way().await;
                courier.troubles().await.map(|_| event)
            }
        });
        Ok(initial.chain(changes).boxed())
    }
}

/// What brings one process its streams.
#[derive(Clone)]
struct Courier {
    server: Arc<Server>,
    lane: Lane,
    trouble: Trouble,
}

/// How much of what there is arrives at once.
enum Brings {
    One,
    All,
}

impl Courier {
    /// What befalls the next delivery.
    async fn troubles(&self) -> Result<Brings, Error> {
        let universe = &self.server.universe;
        let fault = match self.trouble {
            Trouble::Expected => universe.fault(Point::Batch, self.lane),
            Trouble::Never => None,
        };
        let tell = |what: &str| universe.tell(|| format!("{}: {what}", universe.name(self.lane)));
        match fault {
            Some(Fault::BatchDelayed) => {
                tell("hears of what changes 100 ms late");
                universe.sleep(self.lane, Duration::from_millis(100)).await;
            }
            Some(Fault::BatchVeryLate) => {
                tell("hears of what changes 5 s late");
                universe.sleep(self.lane, Duration::from_secs(5)).await;
            }
            Some(Fault::BatchMerged) => {
                tell("hears of several commits as one");
                universe.sleep(self.lane, Duration::from_millis(500)).await;
                return Ok(Brings::All);
            }
            Some(Fault::StreamBroken) => {
                tell("loses its stream");
                return Err(Error::Unavailable { detail: "connection reset".into() });
            }
            Some(Fault::Compacted) => {
                tell("loses its stream, and history with it");
                return Err(Error::Expired { detail: "compacted".into() });
            }
            _ => {}
        }
        Ok(Brings::One)
    }
}

/// A stream's place in the log.
struct Delivery {
    courier: Courier,
    selections: Vec<Selection>,
    next: usize,
    lagging: bool,
}

impl Delivery {
    async fn next(&mut self) -> Result<Event, Error> {
        self.available(self.next).await;
        give_way().await;
        let universe = &self.courier.server.universe;
        if std::mem::take(&mut self.lagging) && !universe.is_calm() {
            universe.sleep(self.courier.lane, LAG).await;
        }
        Ok(match self.courier.troubles().await? {
            Brings::One => self.take(1),
            Brings::All => self.take(usize::MAX),
        })
    }

    /// Waits until there is a commit at this place of the log.
    async fn available(&self, place: usize) {
        std::future::poll_fn(|context| {
            let mut state = lock(&self.courier.server.state);
            if state.log.len() > place {
                return Poll::Ready(());
            }
            state.waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The next commits, at most so many, as one.
    fn take(&mut self, at_most: usize) -> Event {
        let state = lock(&self.courier.server.state);
        let until = self.next.saturating_add(at_most).min(state.log.len());
        let mut merged: Vec<Change> = Vec::new();
        let mut version = ResourceVersion::default();
        for logged in &state.log[self.next..until] {
            version = logged.version;
            for change in logged.changes.iter().filter_map(|change| selected(change, &self.selections)) {
                merge(&mut merged, change);
            }
        }
        self.next = until;
        Event::Batch { epoch: state.epoch.clone(), resource_version: version, changes: merged }
    }
}

/// A change as it looks through selections.
fn selected(change: &Change, selections: &[Selection]) -> Option<Change> {
    let chosen = |stored: &Stored| selections.iter().any(|selection| selects(selection, stored));
    match change {
        Change::Put { object, .. } if chosen(object) => Some(change.clone()),
        Change::Put { object, previous } => previous.as_ref().filter(|previous| chosen(previous)).map(|previous| {
            let (kind, reference) = (object.kind.clone(), object.reference.clone());
            Change::Gone { kind, reference, last: Some(previous.clone()) }
        }),
        Change::Gone { last, .. } => last.as_ref().is_none_or(chosen).then(|| change.clone()),
    }
}

/// Of several changes to one object the last one counts.
fn merge(merged: &mut Vec<Change>, change: Change) {
    let target = |change: &Change| match change {
        Change::Put { object, .. } => (object.kind.qualified(), object.reference.clone()),
        Change::Gone { kind, reference, .. } => (kind.qualified(), reference.clone()),
    };
    let wanted = target(&change);
    merged.retain(|earlier| target(earlier) != wanted);
    merged.push(change);
}

impl Objects for SimObjects {
    fn get<'a>(&'a self, kind: &'a Kind, reference: &'a ObjectRef) -> BoxFuture<'a, Result<Stored, Error>> {
        Box::pin(async move {
            self.troubled_read().await?;
            self.server.objects.get(kind, reference).await
        })
    }

    fn list<'a>(&'a self, selection: &'a Selection, page: PageRequest) -> BoxFuture<'a, Result<List, Error>> {
        Box::pin(async move {
            self.troubled_read().await?;
            self.server.objects.list(selection, page).await
        })
    }

    fn stream(&self, selections: Vec<Selection>, start: Start) -> BoxFuture<'_, Result<Stream, Error>> {
        Box::pin(self.troubled_stream(selections, start))
    }

    fn commit<'a>(&'a self, writer: &'a Writer, writes: Vec<Write>) -> BoxFuture<'a, Result<Committed, Error>> {
        Box::pin(self.troubled_commit(writer, writes))
    }
}

impl fmt::Debug for SimObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimObjects")
    }
}

/// The answer of a future that does not wait: the store in memory never does.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("a store in memory waited for something"),
    }
}
