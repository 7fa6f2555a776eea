//! The cache over streams that were written down beforehand: what it takes for known, and when.

use std::collections::VecDeque;
use std::sync::Mutex;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use reconciler_api::{Kind, ObjectRef, Resource, ResourceVersion, Uid};
use serde::{Deserialize, Serialize};

use super::*;
use crate::objects::{Change, Committed, Error, Event, List, PageRequest, Start, Stored, Stream, Write, Writer};

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Site", crate = reconciler_api)]
pub struct SiteSpec {
    n: u32,
}

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Page", crate = reconciler_api)]
pub struct PageSpec {
    n: u32,
}

/// One stream after the other; the last one falls silent where it ends, the others break off.
#[derive(Debug)]
struct Told {
    streams: Mutex<VecDeque<Vec<Event>>>,
    starts: Mutex<Vec<Start>>,
}

impl Told {
    fn cache(streams: impl IntoIterator<Item = Vec<Event>>) -> (Cache, Arc<Told>) {
        let told = Told { streams: Mutex::new(streams.into_iter().collect()), starts: Mutex::default() };
        let told = Arc::new(told);
        let declarations = Declarations::new().kind::<Site>().kind::<Page>();
        (Cache::new(told.clone(), Seams::real(), &declarations), told)
    }
}

fn not_told<T: Send + 'static>() -> BoxFuture<'static, Result<T, Error>> {
    Box::pin(async { Err(Error::Unavailable { detail: "only streams are told".into() }) })
}

impl Objects for Told {
    fn get<'a>(&'a self, _: &'a Kind, _: &'a ObjectRef) -> BoxFuture<'a, Result<Stored, Error>> {
        not_told()
    }

    fn list<'a>(&'a self, _: &'a Selection, _: PageRequest) -> BoxFuture<'a, Result<List, Error>> {
        not_told()
    }

    fn stream(&self, _: Vec<Selection>, start: Start) -> BoxFuture<'_, Result<Stream, Error>> {
        self.starts.lock().unwrap().push(start);
        let mut streams = self.streams.lock().unwrap();
        let events = streams.pop_front().unwrap_or_default();
        let told = stream::iter(events.into_iter().map(Ok));
        let stream = if streams.is_empty() { told.chain(stream::pending()).boxed() } else { told.boxed() };
        Box::pin(async move { Ok(stream) })
    }

    fn commit<'a>(&'a self, _: &'a Writer, _: Vec<Write>) -> BoxFuture<'a, Result<Committed, Error>> {
        not_told()
    }
}

fn stored<T: Resource>(mut object: T, uid: &str, version: u64) -> Stored {
    object.meta_mut().namespace = "default".into();
    object.meta_mut().uid = Uid::new(uid);
    let json = serde_json::to_vec(&object).unwrap().into();
    Stored::new(Arc::new(T::kind().clone()), object.object_ref(), json, ResourceVersion(version))
}

fn site(name: &str, uid: &str, version: u64) -> Stored {
    stored(Site::new(name, SiteSpec { n: 1 }), uid, version)
}

fn page(name: &str, version: u64) -> Stored {
    stored(Page::new(name, PageSpec { n: 1 }), name, version)
}

fn epoch() -> Epoch {
    Epoch("e".into())
}

fn done(version: u64) -> Event {
    Event::InitialDone { epoch: epoch(), resource_version: ResourceVersion(version) }
}

fn batch(version: u64, objects: impl IntoIterator<Item = Stored>) -> Event {
    let changes = objects.into_iter().map(|object| Change::Put { object, previous: None }).collect();
    Event::Batch { epoch: epoch(), resource_version: ResourceVersion(version), changes }
}

/// A batch of another history: the cache lists anew.
fn torn() -> Event {
    Event::Batch { epoch: Epoch("f".into()), resource_version: ResourceVersion(9), changes: vec![] }
}

/// What subscribers were told, a line a change.
fn listen(cache: &Cache) -> (Arc<Mutex<Vec<String>>>, Arc<Subscriber>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let told = heard.clone();
    let subscriber: Arc<Subscriber> = Arc::new(move |snapshot: &Snapshot, deltas: &[Delta]| {
        let line = |delta: &Delta| {
            let sign = if delta.is_gone() { '-' } else { '+' };
            format!("{sign}{} {} @{}", delta.kind.kind, delta.reference, snapshot.resource_version())
        };
        told.lock().unwrap().extend(deltas.iter().map(line));
    });
    assert!(cache.subscribe(&subscriber).is_none());
    (heard, subscriber)
}

async fn followed(cache: &Cache, version: u64) -> Snapshot {
    let seen = tokio::time::timeout(Duration::from_secs(10), cache.at_least(ResourceVersion(version)));
    tokio::select! {
        () = cache.run() => panic!("a cache runs for ever"),
        seen = seen => seen.unwrap_or_else(|_| panic!("@{version} was not reached: {cache:?} {:?}", cache.health())),
    }
}

#[tokio::test]
async fn half_a_listing_is_nothing_known() {
    let (cache, _) = Told::cache([vec![Event::Initial(vec![site("a", "1", 3)])]]);
    let early = tokio::time::timeout(Duration::from_millis(50), async {
        tokio::select! {
            () = cache.run() => {}
            _ = cache.synced() => {}
        }
    });
    assert!(early.await.is_err(), "a part was taken for the whole: {cache:?}");
    assert!(cache.snapshot().is_none());
}

#[tokio::test]
async fn one_commit_over_several_kinds_is_seen_whole() {
    let listing = vec![Event::Initial(vec![site("a", "1", 3)]), done(3)];
    let (cache, _) = Told::cache([[listing, vec![batch(4, [site("b", "2", 4), page("b-0", 4)])]].concat()]);
    let halves = Arc::new(Mutex::new(0));
    let counted = halves.clone();
    let subscriber: Arc<Subscriber> = Arc::new(move |seen: &Snapshot, _: &[Delta]| {
        *counted.lock().unwrap() += usize::from(seen.count::<Site>() - 1 != seen.count::<Page>());
    });
    cache.subscribe(&subscriber);
    let seen = followed(&cache, 4).await;
    assert_eq!((seen.count::<Site>(), seen.count::<Page>()), (2, 1));
    assert_eq!(*halves.lock().unwrap(), 0, "a snapshot showed half of a commit");
}

/// kube-runtime's reflector swaps its map here and tells nobody of what vanished.
#[tokio::test]
async fn what_vanished_while_nobody_looked_is_told() {
    let first = vec![Event::Initial(vec![site("a", "1", 3), site("b", "2", 3), page("p", 3)]), done(3)];
    let second = vec![
        Event::Initial(vec![site("a", "9", 8), page("p", 3)]),
        Event::InitialDone { epoch: Epoch("f".into()), resource_version: ResourceVersion(9) },
    ];
    let (cache, told) = Told::cache([[first, vec![torn()]].concat(), second]);
    let (heard, _subscriber) = listen(&cache);
    let seen = followed(&cache, 9).await;
    assert_eq!((seen.count::<Site>(), seen.count::<Page>()), (1, 1));
    assert_eq!(told.starts.lock().unwrap().as_slice(), [Start::Now, Start::Now]);
    let mut heard = heard.lock().unwrap().split_off(3);
    heard.sort();
    // The namesake of another uid is one that went and one that came; the page is the same and is not mentioned.
    assert_eq!(heard, ["+Site default/a @9", "-Site default/a @9", "-Site default/b @9"]);
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_stopped_and_repeats_say_nothing() {
    let first = vec![Event::Initial(vec![site("a", "1", 3)]), done(3), batch(4, [page("p", 4)])];
    let second = vec![batch(3, [site("old", "0", 2)]), batch(4, [page("p", 4)]), batch(5, [page("q", 5)])];
    let (cache, told) = Told::cache([first, second]);
    let (heard, _subscriber) = listen(&cache);
    followed(&cache, 5).await;
    let after = Start::After { epoch: epoch(), resource_version: ResourceVersion(4) };
    assert_eq!(told.starts.lock().unwrap().as_slice(), [Start::Now, after]);
    assert_eq!(*heard.lock().unwrap(), ["+Site default/a @3", "+Page default/p @4", "+Page default/q @5"]);
}

#[tokio::test]
async fn a_replica_that_lags_does_not_undo_what_was_seen() {
    let first = vec![Event::Initial(vec![site("a", "1", 3)]), done(3), batch(7, [site("b", "2", 7)]), torn()];
    let lagging = vec![Event::Initial(vec![site("a", "1", 3)]), done(5)];
    let current = vec![Event::Initial(vec![site("a", "1", 3), site("b", "2", 7)]), done(8)];
    let (cache, told) = Told::cache([first, lagging, current]);
    let lowest = Arc::new(Mutex::new(Vec::new()));
    let seen = lowest.clone();
    let subscriber: Arc<Subscriber> =
        Arc::new(move |snapshot: &Snapshot, _: &[Delta]| seen.lock().unwrap().push(snapshot.resource_version().0));
    cache.subscribe(&subscriber);
    followed(&cache, 8).await;
    assert_eq!(*lowest.lock().unwrap(), [3, 7, 8]);
    assert_eq!(told.starts.lock().unwrap().as_slice(), [Start::Now, Start::Now, Start::Now]);
}
