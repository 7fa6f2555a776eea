//! Controllers over a real store in memory, on the real clock.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use futures::future::BoxFuture;
use reconciler_api::{Kind, ObjectRef};

use crate::objects::{
    self, Client, Committed, Kinds, List, Objects, PageRequest, Propagation, Selection, Start, StoreObjects, Stored,
    Stream, Write, Writer,
};
use crate::seams::Seams;
use crate::store::memory::Memory;

use super::*;

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Site", status = SiteStatus, crate = reconciler_api)]
pub struct SiteSpec {
    pub pages: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SiteStatus {
    pub ready: u32,
}

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Page", crate = reconciler_api)]
pub struct PageSpec {
    pub number: u32,
}

#[derive(Default)]
struct Sites {
    /// Runs of one site may never overlap.
    inside: Mutex<BTreeSet<ObjectRef>>,
    runs: AtomicU32,
    panics_left: AtomicU32,
}

impl Reconciler for Arc<Sites> {
    type Object = Site;

    async fn reconcile(&self, site: Arc<Site>, cx: &Ctx) -> Result<Action, Error> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        assert!(self.inside.lock().unwrap().insert(site.object_ref()), "two runs of one key");
        let result = converge(&site, cx).await;
        self.inside.lock().unwrap().remove(&site.object_ref());
        if self.panics_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            panic!("planted");
        }
        result
    }

    async fn cleanup(&self, site: Arc<Site>, cx: &Ctx) -> Result<Cleanup, Error> {
        let pages = cx.owned::<Page>();
        for page in &pages {
            cx.client().delete(&**page, Propagation::Background).await?;
        }
        let _ = site;
        Ok(if pages.is_empty() { Cleanup::Done } else { Cleanup::Pending(Action::Await) })
    }
}

async fn converge(site: &Site, cx: &Ctx) -> Result<Action, Error> {
    let pages = cx.owned::<Page>();
    for page in pages.iter().filter(|page| page.spec.number >= site.spec.pages) {
        cx.client().delete(&**page, Propagation::Background).await?;
    }
    for number in 0..site.spec.pages {
        if !pages.iter().any(|page| page.spec.number == number) {
            let page = Page::new(format!("{}-{number}", site.name()), PageSpec { number });
            cx.client().create(&cx.own(page)).await?;
            cx.event(crate::events::Level::Normal, "Created", format!("page {number}"));
        }
    }
    let mut desired = site.clone();
    desired.status = Some(SiteStatus { ready: pages.len() as u32 });
    cx.client().update_status(site, &desired).await?;
    Ok(Action::Await)
}

struct World {
    objects: Arc<dyn Objects>,
    client: Client,
    sites: Arc<Sites>,
    manager: Arc<Manager>,
    stop: Signal,
    task: tokio::task::JoinHandle<()>,
}

async fn start(adjust: impl FnOnce(Controller) -> Controller) -> World {
    let kinds = Kinds::new().with::<Site>().with::<Page>();
    let objects: Arc<dyn Objects> =
        Arc::new(StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds, Seams::real()).await.unwrap());
    let client = Client::new(objects.clone(), Writer::new("user:ann", "tests"));
    let sites = Arc::new(Sites::default());
    let controller = adjust(Controller::new("sites", sites.clone()).owns::<Page>());
    let manager = Arc::new(Manager::builder(objects.clone(), Seams::real()).controller(controller).build());
    let stop = Signal::new();
    let (running, until) = (manager.clone(), stop.clone());
    let task = tokio::spawn(async move { running.run(until.raised()).await });
    World { objects, client, sites, manager, stop, task }
}

/// Waits for a condition, or says what was seen.
async fn eventually(what: &str, manager: &Manager, condition: impl Fn(&crate::cache::Snapshot) -> bool) {
    let seen = manager.cache().wait_for(condition);
    if tokio::time::timeout(Duration::from_secs(10), seen).await.is_err() {
        panic!("{what} did not come true; seen: {:?}\n{}", manager.cache(), manager.metrics().text());
    }
}

fn site(name: &str, pages: u32) -> Site {
    let mut site = Site::new(name, SiteSpec { pages });
    site.metadata.namespace = "default".into();
    site
}

fn ready(snapshot: &crate::cache::Snapshot, name: &str) -> Option<u32> {
    let site = snapshot.get::<Site>(&ObjectRef::new("default", name))?;
    Some(site.status.as_ref()?.ready)
}

#[tokio::test]
async fn what_is_wanted_comes_about_and_goes_away() {
    let world = start(|controller| controller.finalizer("example.dev/sites")).await;
    let made = world.client.create(&site("blog", 3)).await.unwrap();
    eventually("three pages", &world.manager, |seen| ready(seen, "blog") == Some(3)).await;
    let current = world.client.get::<Site>(&made.object_ref()).await.unwrap();
    let mut desired = current.clone();
    desired.spec.pages = 1;
    world.client.update(&current, &desired).await.unwrap();
    eventually("one page", &world.manager, |seen| ready(seen, "blog") == Some(1) && seen.count::<Page>() == 1).await;
    world.client.delete(&made, Propagation::Background).await.unwrap();
    eventually("nothing", &world.manager, |seen| seen.count::<Page>() == 0 && seen.count::<Site>() == 0).await;
    world.stop.raise();
    world.task.await.unwrap();
}

#[tokio::test]
async fn a_panic_is_one_failed_run() {
    let world = start(|controller| controller.concurrency(1)).await;
    world.sites.panics_left.store(2, Ordering::Relaxed);
    for name in ["a", "b", "c"] {
        world.client.create(&site(name, 2)).await.unwrap();
    }
    eventually("all sites", &world.manager, |seen| ["a", "b", "c"].iter().all(|name| ready(seen, name) == Some(2)))
        .await;
    let text = world.manager.metrics().text();
    assert!(text.contains("controller_runtime_reconcile_panics_total{controller=\"sites\"} 2"), "{text}");
}

#[tokio::test]
async fn a_run_sees_what_the_last_run_of_its_key_wrote() {
    // Creating what is there already would conflict: read-your-writes is what keeps these counters at zero.
    let world = start(|controller| controller).await;
    for n in 0..20 {
        world.client.create(&site(&format!("site-{n}"), 5)).await.unwrap();
    }
    eventually("all pages", &world.manager, |seen| {
        seen.count::<Page>() == 100 && (0..20).all(|n| ready(seen, &format!("site-{n}")) == Some(5))
    })
    .await;
    let text = world.manager.metrics().text();
    assert!(text.contains("controller_runtime_reconcile_total{controller=\"sites\",result=\"conflict\"} 0"), "{text}");
    assert_eq!(
        world.objects.list(&crate::objects::Selection::of::<Page>(), Default::default()).await.unwrap().items.len(),
        100
    );
}

/// Runs that end when they are let.
struct Gated {
    begun: AtomicU32,
    ended: AtomicU32,
    gate: Signal,
}

impl Reconciler for Arc<Gated> {
    type Object = Site;

    async fn reconcile(&self, _: Arc<Site>, _: &Ctx) -> Result<Action, Error> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.gate.raised().await;
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(Action::Await)
    }
}

/// Two sites, one worker: one run is under way and one waits when the end is asked for.
async fn drained(drain: Duration, let_go: bool) -> (u32, u32) {
    let kinds = Kinds::new().with::<Site>().with::<Page>();
    let objects: Arc<dyn Objects> =
        Arc::new(StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds, Seams::real()).await.unwrap());
    let client = Client::new(objects.clone(), Writer::new("user:ann", "tests"));
    let gated = Arc::new(Gated { begun: AtomicU32::new(0), ended: AtomicU32::new(0), gate: Signal::new() });
    let controller = Controller::new("gated", gated.clone()).concurrency(1);
    let manager = Manager::builder(objects, Seams::real()).controller(controller).drain(drain).build();
    let stop = Signal::new();
    let until = stop.clone();
    let task = tokio::spawn(async move { manager.run(until.raised()).await });
    client.create(&site("a", 0)).await.unwrap();
    client.create(&site("b", 0)).await.unwrap();
    let begun = async {
        while gated.begun.load(Ordering::SeqCst) == 0 {
            Seams::real().sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), begun).await.expect("a run begins");
    stop.raise();
    if let_go {
        Seams::real().sleep(Duration::from_millis(20)).await;
        assert!(!task.is_finished(), "what runs is waited for");
        gated.gate.raise();
    }
    tokio::time::timeout(Duration::from_secs(10), task).await.expect("it ends").unwrap();
    (gated.begun.load(Ordering::SeqCst), gated.ended.load(Ordering::SeqCst))
}

#[tokio::test]
async fn what_runs_when_the_end_is_asked_for_ends_and_nothing_else_begins() {
    assert_eq!(drained(Duration::from_secs(60), true).await, (1, 1));
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_off() {
    assert_eq!(drained(Duration::from_millis(20), false).await, (1, 0));
}

/// No commit is answered, and after the first no list; who follows is told of everything.
#[derive(Debug)]
struct Silent {
    inner: Arc<dyn Objects>,
    silent: AtomicBool,
}

impl Objects for Silent {
    fn get<'a>(&'a self, kind: &'a Kind, reference: &'a ObjectRef) -> BoxFuture<'a, Result<Stored, objects::Error>> {
        self.inner.get(kind, reference)
    }

    fn list<'a>(&'a self, selection: &'a Selection, page: PageRequest) -> BoxFuture<'a, Result<List, objects::Error>> {
        match self.silent.load(Ordering::SeqCst) {
            true => Box::pin(std::future::pending()),
            false => self.inner.list(selection, page),
        }
    }

    fn stream(&self, selections: Vec<Selection>, start: Start) -> BoxFuture<'_, Result<Stream, objects::Error>> {
        self.inner.stream(selections, start)
    }

    fn commit<'a>(&'a self, _: &'a Writer, _: Vec<Write>) -> BoxFuture<'a, Result<Committed, objects::Error>> {
        self.silent.store(true, Ordering::SeqCst);
        Box::pin(std::future::pending())
    }
}

/// Says how far it is, waits a moment for somebody to hear it, and looks again.
#[derive(Default)]
struct Speaking(AtomicU32);

impl Reconciler for Arc<Speaking> {
    type Object = Site;

    async fn reconcile(&self, site: Arc<Site>, cx: &Ctx) -> Result<Action, Error> {
        let mut desired = (*site).clone();
        desired.status = Some(SiteStatus { ready: self.0.fetch_add(1, Ordering::SeqCst) });
        tokio::select! {
            _ = cx.client().update_status(&*site, &desired) => {}
            () = cx.seams().sleep(Duration::from_millis(1)) => {}
        }
        Ok(Action::Requeue(Duration::ZERO))
    }
}

#[tokio::test]
async fn who_goes_on_uncertain_does_and_others_wait() {
    for goes_on in [true, false] {
        let kinds = Kinds::new().with::<Site>().with::<Page>();
        let objects: Arc<dyn Objects> =
            Arc::new(StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds, Seams::real()).await.unwrap());
        Client::new(objects.clone(), Writer::new("user:ann", "tests")).create(&site("a", 0)).await.unwrap();
        let speaking = Arc::new(Speaking::default());
        let controller = Controller::new("speaking", speaking.clone());
        let controller = if goes_on { controller.goes_on_uncertain() } else { controller };
        let silent = Arc::new(Silent { inner: objects, silent: AtomicBool::new(false) });
        let manager = Manager::builder(silent, Seams::real()).controller(controller).build();
        let runs = async |count: u32| {
            while speaking.0.load(Ordering::SeqCst) < count {
                Seams::real().sleep(Duration::from_millis(1)).await;
            }
        };
        let enough = async {
            tokio::time::timeout(Duration::from_secs(10), runs(1)).await.expect("a first run");
            // The second run is what nobody may have who waits to know about the first: a short while is time for many.
            tokio::time::timeout(Duration::from_millis(if goes_on { 10_000 } else { 100 }), runs(5)).await.is_ok()
        };
        let went_on = tokio::select! {
            () = manager.run(std::future::pending()) => unreachable!("it is not told to end"),
            went_on = enough => went_on,
        };
        assert_eq!(went_on, goes_on, "after {} runs", speaking.0.load(Ordering::SeqCst));
    }
}
