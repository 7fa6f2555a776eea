//! Two processes run the sites, and one at a time leads.

use std::time::Duration;

use reconciler::api::{ObjectRef, Resource};
use reconciler::controller::Manager;
use reconciler::controller::planted::Planted;
use reconciler::leadership::{Election, LeaseKind, Record};
use reconciler::objects::Writer;
use reconciler::sim::{Env, Fault, Scene, User, View};
use serde::{Deserialize, Serialize};

use super::{FINALIZER, Page, Records, Site, controller, no_page_twice, pages_as_wanted, remove, site};

#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Baton", scope = "Cluster", crate = reconciler::api)]
pub struct BatonSpec {
    holder: String,
    ttl_millis: u64,
    renewals: u64,
}

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

/// Shorter than a commit may be on its way.
const TTL: Duration = Duration::from_secs(2);

fn lease() -> ObjectRef {
    ObjectRef::cluster("sites")
}

pub fn scene(scene: Scene, planted: &'static [Planted]) -> Scene {
    let records = Records::default();
    let candidate = |scene: Scene, name: &'static str| {
        let records = records.clone();
        scene.process(name, move |env: Env| {
            let who = format!("{name}.{}", env.incarnation);
            let writer = Writer::new(format!("controller:{who}"), "sites");
            let sites = controller(&env, &records, None).finalizer(FINALIZER).writer(writer);
            let election =
                Election::<Batons>::new(env.objects.clone(), env.seams.clone(), "election", lease(), who, TTL);
            let manager = Manager::builder(env.objects, env.seams).planted(planted).controller(sites).build();
            async move { manager.run_elected(&election, std::future::pending()).await }
        })
    };
    candidate(candidate(scene, "one"), "two")
        .kind::<Site>()
        .kind::<Page>()
        .lease::<Baton>("/spec/holder")
        .may_write("election")
        // A lease that is renewed every second makes long waits long.
        .without(Fault::Lingered)
        .settles_within(Duration::from_secs(60))
        .quiet_for(Duration::from_secs(10))
        .workload(workload)
        .invariant("only who leads writes", only_the_leader)
        .invariant("no page twice", no_page_twice)
        .settles("every site has its pages, and says so", pages_as_wanted)
}

async fn workload(user: User) {
    let blog = ObjectRef::new("default", "blog");
    let shop = ObjectRef::new("default", "shop");
    user.create(&site("blog", 2, false)).await;
    user.create(&site("shop", 1, false)).await;
    user.pause().await;
    for pages in [3, 1, 2, 4] {
        user.update::<Site>(&blog, |site| site.spec.pages = pages).await;
        user.pause().await;
        user.update::<Site>(&shop, |site| site.spec.pages = pages).await;
        user.pause().await;
    }
    remove(&user, &shop, false).await;
    user.pause().await;
}

fn only_the_leader(view: &View<'_>) -> Result<(), String> {
    let Some(writer) = view.writer.filter(|writer| writer.manager == "sites") else { return Ok(()) };
    let holder = view.before.get::<Baton>(&lease()).map(|lease| lease.spec.holder.clone()).unwrap_or_default();
    let who = writer.identity.strip_prefix("controller:").unwrap_or_default();
    match holder.split_once('/') {
        Some((leader, _)) if leader == who => Ok(()),
        _ => Err(format!("{who} writes, and the lease is held by {holder:?}")),
    }
}
