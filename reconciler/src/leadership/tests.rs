//! Elections over a real store in memory, with candidates that are paused, cut off and killed.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use reconciler_api::Kind;

use crate::controller::{Action, Controller, Ctx, KeyReconciler, Manager, Singleton};
use crate::objects::{
    Change, Committed, Event, Kinds, List, PageRequest, Selection, Start, StoreObjects, Stored, Stream, Write,
};
use crate::store::memory::Memory;

use super::*;

#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Baton", crate = reconciler_api)]
pub struct BatonSpec {
    holder: String,
    ttl_millis: u64,
    renewals: u64,
}

/// What leaders write: who wrote it.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Deed", crate = reconciler_api)]
pub struct DeedSpec {
    term: u64,
}

#[derive(Debug)]
struct Batons;

impl LeaseKind for Batons {
    type Object = Baton;

    fn read(lease: &Baton) -> Record {
        let BatonSpec { holder, ttl_millis, renewals } = lease.spec.clone();
        Record { holder, ttl: Duration::from_millis(ttl_millis), renewals }
    }

    fn write(lease: &mut Baton, record: &Record) {
        let ttl_millis = u64::try_from(record.ttl.as_millis()).unwrap();
        lease.spec = BatonSpec { holder: record.holder.clone(), ttl_millis, renewals: record.renewals };
    }

    fn blank(name: &str) -> Baton {
        Baton::new(name, BatonSpec::default())
    }
}

/// The way to the objects of one process, which can be blocked: a partition, or a process that stands still.
#[derive(Debug)]
struct Way {
    inner: Arc<dyn Objects>,
    blocked: AtomicBool,
}

impl Way {
    async fn open(&self) {
        while self.blocked.load(Ordering::SeqCst) {
            Seams::real().sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Objects for Way {
    fn get<'a>(&'a self, kind: &'a Kind, reference: &'a ObjectRef) -> BoxFuture<'a, Result<Stored, Error>> {
        Box::pin(async move {
            self.open().await;
            self.inner.get(kind, reference).await
        })
    }

    fn list<'a>(&'a self, selection: &'a Selection, page: PageRequest) -> BoxFuture<'a, Result<List, Error>> {
        self.inner.list(selection, page)
    }

    fn stream(&self, selections: Vec<Selection>, start: Start) -> BoxFuture<'_, Result<Stream, Error>> {
        self.inner.stream(selections, start)
    }

    fn commit<'a>(&'a self, writer: &'a Writer, writes: Vec<Write>) -> BoxFuture<'a, Result<Committed, Error>> {
        Box::pin(async move {
            self.open().await;
            self.inner.commit(writer, writes).await
        })
    }
}

const TTL: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);

async fn objects() -> Arc<dyn Objects> {
    let kinds = Kinds::new().with::<Baton>().with::<Deed>().with_terms(Baton::kind(), "/spec/holder");
    Arc::new(StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds, Seams::real()).await.unwrap())
}

fn candidate(objects: &Arc<dyn Objects>, identity: &str) -> (Election<Batons>, Arc<Way>) {
    let way = Arc::new(Way { inner: objects.clone(), blocked: AtomicBool::new(false) });
    let lease = ObjectRef::new("default", "baton");
    (Election::new(way.clone(), Seams::real(), "tests", lease, identity, TTL), way)
}

async fn elected(election: &Election<Batons>) -> Leading<Batons> {
    tokio::time::timeout(PATIENCE, election.campaign()).await.expect("somebody leads in the end")
}

async fn deed(objects: &Arc<dyn Objects>, leading: &Leading<Batons>, name: &str) -> Result<Deed, Error> {
    let writer = Writer::controller("tests").fenced(leading.term().clone());
    let mut deed = Deed::new(name, DeedSpec { term: leading.term().began.0 });
    deed.metadata.namespace = "default".into();
    Client::new(objects.clone(), writer).create(&deed).await
}

#[tokio::test]
async fn a_lease_is_kept_for_as_long_as_it_is_renewed() {
    let objects = objects().await;
    let (first, _) = candidate(&objects, "first");
    let (second, _) = candidate(&objects, "second");
    let leading = elected(&first).await;
    let early = tokio::time::timeout(TTL * 4, second.campaign()).await;
    assert!(early.is_err(), "{early:?}");
    deed(&objects, &leading, "mine").await.unwrap();
    // Resigned, the next need not wait for the lease to run out.
    let asked = Seams::real();
    let began = asked.monotonic();
    leading.resign().await;
    let next = elected(&second).await;
    assert!(asked.monotonic().since(began) < TTL, "{next:?}");
    let lease: Baton = Client::new(objects, Writer::controller("t")).get(&next.term().lease).await.unwrap();
    assert!(lease.spec.holder.starts_with("second/"), "{lease:?}");
}

#[tokio::test]
async fn a_dead_leader_is_succeeded_and_not_before_its_time() {
    let objects = objects().await;
    let (first, _) = candidate(&objects, "first");
    let (second, _) = candidate(&objects, "second");
    let seams = Seams::real();
    let leading = elected(&first).await;
    let died = seams.monotonic();
    drop(leading);
    elected(&second).await;
    let waited = seams.monotonic().since(died);
    assert!(waited >= TTL, "{waited:?}");
}

#[tokio::test]
async fn a_paused_leader_does_no_harm() {
    let objects = objects().await;
    let (first, way) = candidate(&objects, "first");
    let (second, _) = candidate(&objects, "second");
    let paused = elected(&first).await;
    deed(&objects, &paused, "in-time").await.unwrap();
    way.blocked.store(true, Ordering::SeqCst);
    // It steps down by itself before anybody may follow.
    let lost = async {
        tokio::select! {
            () = paused.lost() => "stepped down",
            _ = second.campaign() => "was succeeded",
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, lost).await.unwrap(), "stepped down");
    let leading = elected(&second).await;
    way.blocked.store(false, Ordering::SeqCst);
    let late = deed(&objects, &paused, "late").await;
    assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
    deed(&objects, &leading, "rightful").await.unwrap();
    // Nor does its resignation take the lease from another.
    paused.resign().await;
    deed(&objects, &leading, "still").await.unwrap();
}

#[tokio::test]
async fn a_lease_that_is_deleted_is_another_one() {
    let objects = objects().await;
    let (first, _) = candidate(&objects, "first");
    let leading = elected(&first).await;
    let client = Client::new(objects.clone(), Writer::new("user:ann", "tests"));
    let lease: Baton = client.get(&leading.term().lease).await.unwrap();
    client.delete(&lease, crate::objects::Propagation::Background).await.unwrap();
    assert!(matches!(deed(&objects, &leading, "late").await, Err(Error::Fenced)));
    tokio::time::timeout(PATIENCE, leading.lost()).await.expect("it notices");
    deed(&objects, &elected(&first).await, "again").await.unwrap();
}

/// Five candidates that are paused and killed at random: read from the store's own history, every deed was done in the
/// term that it names while that was the last one begun.
#[tokio::test]
async fn every_deed_is_done_in_its_own_term() {
    let objects = objects().await;
    let selections = vec![Selection::of::<Baton>(), Selection::of::<Deed>()];
    let mut history = objects.stream(selections, Start::Now).await.unwrap();
    let until = Seams::real().monotonic() + Duration::from_secs(3);
    let run = |n: u64| {
        let objects = objects.clone();
        async move {
            let seams = Seams::real();
            let (election, way) = candidate(&objects, &format!("c{n}"));
            let mut done = 0;
            while seams.monotonic() < until {
                let Ok(leading) = tokio::time::timeout(TTL * 4, election.campaign()).await else { continue };
                let pause = Duration::from_millis(seams.random.next(Purpose::Choice) % 500);
                let through: Arc<dyn Objects> = way.clone();
                for step in 0..40 {
                    if step == 20 {
                        way.blocked.store(true, Ordering::SeqCst);
                        seams.sleep(pause).await;
                        way.blocked.store(false, Ordering::SeqCst);
                    }
                    done += u32::from(
                        deed(&through, &leading, &format!("c{n}-{}-{step}", leading.term().began)).await.is_ok(),
                    );
                    seams.sleep(Duration::from_millis(2)).await;
                }
                drop(leading);
            }
            done
        }
    };
    let done: u32 = futures::future::join_all((0..5).map(run)).await.into_iter().sum();
    let (mut deeds, mut terms, mut current, mut holder) = (0, 0, 0, String::new());
    while deeds < done {
        let event = tokio::time::timeout(PATIENCE, history.next()).await.expect("all of history").unwrap().unwrap();
        let Event::Batch { resource_version, changes, .. } = event else { continue };
        for change in changes {
            let Change::Put { object, .. } = change else { continue };
            if object.kind.kind == "Baton" {
                let baton: Baton = object.decode().unwrap();
                if baton.spec.holder != holder {
                    (holder, current, terms) = (baton.spec.holder, resource_version.0, terms + 1);
                }
            } else {
                let deed: Deed = object.decode().unwrap();
                assert_eq!(deed.spec.term, current, "{} was done in the term of {holder}", deed.name());
                deeds += 1;
            }
        }
    }
    assert!(terms >= 3 && deeds > 50, "{terms} terms with {deeds} deeds");
}

struct Scribe(&'static str);

impl KeyReconciler for Scribe {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, crate::controller::Error> {
        let mut deed = Deed::new(self.0, DeedSpec::default());
        deed.metadata.namespace = "default".into();
        match cx.client().create(&deed).await {
            Ok(_) | Err(Error::AlreadyExists { .. }) => Ok(Action::Await),
            Err(error) => Err(error.into()),
        }
    }
}

#[tokio::test]
async fn controllers_run_where_the_leader_is_and_nowhere_else() {
    let objects = objects().await;
    let client = Client::new(objects.clone(), Writer::new("user:ann", "tests"));
    let (first, _) = candidate(&objects, "first");
    let (second, _) = candidate(&objects, "second");
    let (stop_first, stop_second) = (Signal::new(), Signal::new());
    let run = |name, own, election, stop: &Signal| {
        let manager = Manager::builder(objects.clone(), Seams::real())
            .controller(Controller::singleton(name, Scribe(name)).reads::<Deed>())
            .everywhere(Controller::singleton(own, Scribe(own)).reads::<Deed>())
            .build();
        let stop = stop.clone();
        tokio::spawn(async move { manager.run_elected(&election, stop.raised()).await })
    };
    let names = || async {
        let deeds: Vec<Deed> = client.list(None).await.unwrap();
        deeds.iter().map(|deed| deed.name().to_owned()).collect::<Vec<_>>()
    };
    let wait_for = async |expected: &[&str]| {
        let poll = async {
            while names().await != expected {
                Seams::real().sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, poll).await.is_err() {
            panic!("{:?}, not {expected:?}", names().await);
        }
    };
    let one = run("one", "own-1", first, &stop_first);
    wait_for(&["one", "own-1"]).await;
    let two = run("two", "own-2", second, &stop_second);
    // What is done everywhere is done without leading.
    wait_for(&["one", "own-1", "own-2"]).await;
    Seams::real().sleep(TTL * 2).await;
    assert_eq!(names().await, ["one", "own-1", "own-2"]);
    stop_first.raise();
    one.await.unwrap();
    wait_for(&["one", "own-1", "own-2", "two"]).await;
    stop_second.raise();
    two.await.unwrap();
    let lease: Baton = client.get(&ObjectRef::new("default", "baton")).await.unwrap();
    assert_eq!(lease.spec.holder, "", "it resigned");
}
