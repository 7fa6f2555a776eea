//! A site owns its pages, and a record in a name service outside the store. The controller is right unless a [`Bug`] is
//! planted in it.

pub mod leaders;
pub mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use reconciler::api::{ObjectMeta, ObjectRef, Resource, Uid};
use reconciler::cache::Snapshot;
use reconciler::controller::planted::Planted;
use reconciler::controller::{Action, Cleanup, Controller, Ctx, Error, KeyReconciler, Manager, Reconciler, Singleton};
use reconciler::objects::Propagation;
use reconciler::seams::Purpose;
use reconciler::sim::{Calls, Env, Fault, Scene, User, View};
use serde::{Deserialize, Serialize};

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Site", status = SiteStatus, crate = reconciler::api)]
pub struct SiteSpec {
    pub pages: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SiteStatus {
    pub ready: u32,
}

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Page", crate = reconciler::api)]
pub struct PageSpec {
    pub number: u32,
}

/// One line that is wrong. The numbers are those of the kinds of published bugs that the project keeps a list of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// 1: takes the first of several writes for all of them.
    HalfDone,
    /// 4: a new name for every try.
    NewNames,
    /// 16: remembers by name what it did for another object of that name.
    RemembersNames,
    /// 25: the effect first, the finalizer afterwards.
    FinalizerLate,
    /// 30: the status tells the time.
    TellsTime,
    /// 31: the order of a hash map reaches the store.
    HashOrder,
    /// 37: an error is taken for success.
    SwallowsErrors,
    /// 13: takes a record away only where it sees a site going.
    WaitsToSeeItGo,
    /// 33: two controllers write one field, each its own way.
    TwoWriters,
    /// 7 and 9: cleans up by name, on behalf of whoever was called so.
    CleansByName,
}

/// Outside the store: names by the site that they stand for.
pub type Records = Arc<Mutex<BTreeMap<Uid, String>>>;

pub struct Sites {
    pub calls: Calls,
    pub records: Records,
    pub bug: Option<Bug>,
    memory: Mutex<BTreeSet<ObjectRef>>,
}

const FINALIZER: &str = "example.dev/sites";

impl Sites {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    async fn publish(&self, site: &Site) -> Result<(), Error> {
        let (uid, name) = (site.metadata.uid.clone(), site.name().to_owned());
        if self.records.lock().unwrap().contains_key(&uid) {
            return Ok(());
        }
        let records = self.records.clone();
        Ok(self.calls.effect("publish", move || drop(records.lock().unwrap().insert(uid, name))).await?)
    }

    async fn withdraw(&self, uid: &Uid) -> Result<(), Error> {
        let (records, uid) = (self.records.clone(), uid.clone());
        Ok(self.calls.effect("withdraw", move || drop(records.lock().unwrap().remove(&uid))).await?)
    }

    async fn add_pages(&self, site: &Site, pages: &[Arc<Page>], cx: &Ctx) -> Result<(), Error> {
        if (self.has(Bug::HalfDone) && !pages.is_empty() && site.metadata.generation == 1)
            || (self.has(Bug::RemembersNames) && !self.memory.lock().unwrap().insert(site.object_ref()))
        {
            return Ok(());
        }
        for number in (0..site.spec.pages).filter(|number| !pages.iter().any(|page| page.spec.number == *number)) {
            let name = match self.has(Bug::NewNames) {
                true => format!("{}-{number}-{:x}", site.name(), cx.seams().random.next(Purpose::Identity)),
                false => format!("{}-{number}", site.name()),
            };
            cx.client().create(&cx.own(Page::new(name, PageSpec { number }))).await?;
        }
        Ok(())
    }
}

impl Reconciler for Sites {
    type Object = Site;

    async fn reconcile(&self, site: Arc<Site>, cx: &Ctx) -> Result<Action, Error> {
        let pages = cx.owned::<Page>();
        if self.has(Bug::FinalizerLate) {
            let ours = site.metadata.finalizers.iter().any(|name| name == FINALIZER);
            let mut desired = (*site).clone();
            if site.is_deleting() {
                if self.cleanup(site.clone(), cx).await? == Cleanup::Done && ours {
                    desired.metadata.finalizers.retain(|name| name != FINALIZER);
                    cx.client().update(&*site, &desired).await?;
                }
                return Ok(Action::Await);
            }
            if !ours {
                self.publish(&site).await?;
                desired.metadata.finalizers.push(FINALIZER.into());
                cx.client().update(&*site, &desired).await?;
                return Ok(Action::Await);
            }
        }
        if self.has(Bug::WaitsToSeeItGo) && site.is_deleting() {
            self.cleanup(site, cx).await?;
            return Ok(Action::Await);
        }
        self.publish(&site).await?;
        for page in pages.iter().filter(|page| page.spec.number >= site.spec.pages) {
            let deleted = cx.client().delete(&**page, Propagation::Background).await;
            if !self.has(Bug::SwallowsErrors) {
                deleted?;
            }
        }
        let added = self.add_pages(&site, &pages, cx).await;
        if !self.has(Bug::SwallowsErrors) {
            added?;
        }
        let mut desired = (*site).clone();
        desired.status = Some(SiteStatus { ready: pages.len() as u32 });
        if self.has(Bug::TellsTime) {
            let told = cx.client().update_status(&*site, &desired).await?;
            let mut desired = told.clone();
            desired.metadata.annotations.insert("seen".into(), cx.now().to_string());
            cx.client().update(&told, &desired).await?;
        } else if self.has(Bug::HashOrder) {
            let names: std::collections::HashSet<_> = pages.iter().map(|page| page.name().to_owned()).collect();
            let names = names.into_iter().collect::<Vec<_>>().join(",");
            let told = cx.client().update_status(&*site, &desired).await?;
            let mut desired = told.clone();
            desired.metadata.annotations.insert("pages".into(), names);
            cx.client().update(&told, &desired).await?;
        } else {
            cx.client().update_status(&*site, &desired).await?;
        }
        Ok(Action::Await)
    }

    async fn cleanup(&self, site: Arc<Site>, cx: &Ctx) -> Result<Cleanup, Error> {
        let pages: Vec<Arc<Page>> = match self.has(Bug::CleansByName) {
            false => cx.owned::<Page>(),
            true => {
                let prefix = format!("{}-", site.name());
                cx.snapshot().all::<Page>().filter(|page| page.name().starts_with(&prefix)).cloned().collect()
            }
        };
        for page in &pages {
            cx.client().delete(&**page, Propagation::Background).await?;
        }
        self.withdraw(&site.metadata.uid).await?;
        Ok(if pages.is_empty() { Cleanup::Done } else { Cleanup::Pending(Action::Await) })
    }
}

/// Says of every site what somebody else says differently.
struct Painter(&'static str);

impl Reconciler for Painter {
    type Object = Site;

    async fn reconcile(&self, site: Arc<Site>, cx: &Ctx) -> Result<Action, Error> {
        let mut desired = (*site).clone();
        desired.metadata.annotations.insert("colour".into(), self.0.into());
        cx.client().update(&*site, &desired).await?;
        Ok(Action::Await)
    }
}

/// What is run, and what is wrong with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    pub bug: Option<Bug>,
    /// Lines of the library that do not do their work.
    pub planted: &'static [Planted],
    /// Commits do not demand that the site is still the observed one.
    pub unguarded: bool,
    /// Also runs the controller that removes what belongs to nobody.
    pub sweeper: bool,
    /// Sites have somebody else's finalizer for a while.
    pub held: bool,
    /// No commit happens after its sender was told that nobody knows, or is gone.
    pub in_time: bool,
}

/// Removes pages whose site is not there.
struct Sweeper;

impl KeyReconciler for Sweeper {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        for page in cx.snapshot().all::<Page>().filter(|page| site_of(page, cx.snapshot()).is_none()) {
            cx.client().delete(&**page, Propagation::Background).await?;
        }
        Ok(Action::Await)
    }
}

fn controller(env: &Env, records: &Records, bug: Option<Bug>) -> Controller {
    let sites = Sites { calls: env.calls.clone(), records: records.clone(), bug, memory: Mutex::default() };
    Controller::new("sites", sites).owns::<Page>().concurrency(2)
}

pub fn scene(scene: Scene, setup: Setup) -> Scene {
    let records = Records::default();
    let (made, kept) = (records.clone(), records);
    let scene = if setup.in_time { scene.without(Fault::CommitLate).without(Fault::CommitSlow) } else { scene };
    scene
        .kind::<Site>()
        .kind::<Page>()
        .process("sites", move |env| {
            let controller = controller(&env, &made, setup.bug);
            let controller = match setup.bug {
                Some(Bug::FinalizerLate | Bug::WaitsToSeeItGo) => controller.reconciles_deleting(),
                _ => controller.finalizer(FINALIZER),
            };
            let controller = if setup.unguarded { controller.unguarded() } else { controller };
            let manager = Manager::builder(env.objects, env.seams).planted(setup.planted);
            let manager = match setup.sweeper {
                true => manager
                    .controller(Controller::singleton("sweeper", Sweeper).watches_all::<Page>().watches_all::<Site>()),
                false => manager,
            };
            let manager = match setup.bug {
                Some(Bug::TwoWriters) => manager
                    .controller(Controller::new("red", Painter("red")))
                    .controller(Controller::new("blue", Painter("blue"))),
                _ => manager,
            };
            let manager = manager.controller(controller).build();
            async move { manager.run(std::future::pending()).await }
        })
        .workload(move |user| workload(user, setup.held))
        .invariant("no page twice", no_page_twice)
        .invariant("no page is deleted that is wanted", no_wanted_page_deleted)
        .invariant("no page for a site that is gone", no_page_for_nobody)
        .settles("every site has its pages, and says so", pages_as_wanted)
        .settles("a record for every site, and no other", move |seen| {
            let sites: BTreeSet<Uid> = seen.all::<Site>().map(|site| site.metadata.uid.clone()).collect();
            let records: BTreeSet<Uid> = kept.lock().unwrap().keys().cloned().collect();
            if sites == records { Ok(()) } else { Err(format!("records {records:?}, sites {sites:?}")) }
        })
}

async fn workload(user: User, held: bool) {
    let site = |name: &str, pages| site(name, pages, held);
    let blog = ObjectRef::new("default", "blog");
    let shop = ObjectRef::new("default", "shop");
    user.create(&site("blog", 2)).await;
    user.pause().await;
    user.create(&site("shop", 1)).await;
    user.pause().await;
    // It stays as it is: no later change mends what was left undone.
    user.create(&site("wiki", 3)).await;
    user.pause().await;
    user.update::<Site>(&blog, |site| site.spec.pages = 3).await;
    user.pause().await;
    user.update::<Site>(&blog, |site| site.spec.pages = 1).await;
    user.pause().await;
    user.update::<Site>(&blog, |site| site.spec.pages = 2).await;
    user.pause().await;
    user.delete::<Page>(&ObjectRef::new("default", "blog-0")).await;
    user.pause().await;
    user.create(&site("brief", 1)).await;
    user.pause().await;
    remove(&user, &ObjectRef::new("default", "brief"), held).await;
    user.pause().await;
    remove(&user, &shop, held).await;
    user.pause().await;
    // A namesake: what was known of the first must not be held against it.
    while user.client().find::<Site>(&shop).await.unwrap().is_some() {
        user.pause().await;
    }
    user.create(&site("shop", 2)).await;
    user.pause().await;
    user.update::<Site>(&shop, |site| site.spec.pages = 4).await;
    user.pause().await;
}

/// Somebody's finalizer on a site, who lets go of it a moment after its deletion.
const KEEPER: &str = "example.dev/keeper";

async fn remove(user: &User, reference: &ObjectRef, held: bool) {
    user.delete::<Site>(reference).await;
    if held {
        user.pause().await;
        user.update::<Site>(reference, |site| site.metadata.finalizers.retain(|name| name != KEEPER)).await;
    }
}

fn site(name: &str, pages: u32, held: bool) -> Site {
    let finalizers = if held { vec![KEEPER.to_owned()] } else { Vec::new() };
    let metadata = ObjectMeta { namespace: "default".into(), finalizers, ..ObjectMeta::named(name) };
    Site { metadata, ..Site::new(name, SiteSpec { pages }) }
}

fn owner(page: &Page) -> Option<&Uid> {
    page.metadata.controller().map(|owner| &owner.uid)
}

fn site_of<'a>(page: &Page, seen: &'a Snapshot) -> Option<&'a Arc<Site>> {
    seen.all::<Site>().find(|site| owner(page) == Some(&site.metadata.uid))
}

fn no_page_twice(view: &View<'_>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match view.now.all::<Page>().find(|page| !seen.insert((owner(page), page.spec.number))) {
        Some(page) => Err(format!("{} is a second page {}", page.name(), page.spec.number)),
        None => Ok(()),
    }
}

fn no_wanted_page_deleted(view: &View<'_>) -> Result<(), String> {
    // People may.
    if view.writer.is_none_or(|writer| writer.identity.starts_with("user:")) {
        return Ok(());
    }
    let gone = view.before.all::<Page>().filter(|page| {
        view.now.get::<Page>(&page.object_ref()).is_none_or(|now| now.metadata.uid != page.metadata.uid)
    });
    for page in gone {
        if let Some(site) = site_of(page, view.before)
            && !site.is_deleting()
            && page.spec.number < site.spec.pages
        {
            return Err(format!("{} is gone, and {} wants {} pages", page.name(), site.name(), site.spec.pages));
        }
    }
    Ok(())
}

fn no_page_for_nobody(view: &View<'_>) -> Result<(), String> {
    let new = view.now.all::<Page>().filter(|page| view.before.get::<Page>(&page.object_ref()).is_none());
    for page in new {
        if site_of(page, view.now).is_none_or(|site| site.is_deleting()) {
            return Err(format!("{} was made for a site that is gone or going", page.name()));
        }
    }
    Ok(())
}

fn pages_as_wanted(seen: &Snapshot) -> Result<(), String> {
    for site in seen.all::<Site>() {
        let mut numbers: Vec<u32> = seen.owned_by::<Page>(&site.metadata.uid).map(|page| page.spec.number).collect();
        numbers.sort_unstable();
        if numbers != (0..site.spec.pages).collect::<Vec<_>>() {
            return Err(format!("{} wants {} pages and has {numbers:?}", site.name(), site.spec.pages));
        }
        if site.status.as_ref().map(|status| status.ready) != Some(site.spec.pages) {
            return Err(format!("{} says {:?} of {} pages", site.name(), site.status, site.spec.pages));
        }
    }
    match seen.all::<Page>().find(|page| site_of(page, seen).is_none()) {
        Some(page) => Err(format!("{} belongs to nobody", page.name())),
        None => Ok(()),
    }
}
