//! What a process tells about itself: spans by which cause and effect can be followed through revisions, and numbers
//! under the names that `docs/metrics.md` lists.

#[allow(dead_code, reason = "only its folder is used here")]
mod objects_suite;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reconciler::api::Resource;
use reconciler::controller::{Action, Controller, Ctx, Error, Manager, Reconciler, Signal};
use reconciler::external::{External, World};
use reconciler::leadership::{Election, LeaseKind, Record};
use reconciler::metrics::{ALL, After, Described, Shape};
use reconciler::objects::{Client, Kinds, Objects, Precondition, Propagation, Remote, StoreObjects, Write, Writer};
use reconciler::seams::Seams;
use reconciler::server::{Server, UnixSocket};
use reconciler::store::Memory;
use reconciler::{ObjectRef, ResourceVersion};
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use objects_suite::Directory;

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Site", status = SiteStatus, crate = reconciler::api)]
pub struct SiteSpec {
    pages: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SiteStatus {
    ready: u32,
}

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Page", crate = reconciler::api)]
pub struct PageSpec {}

#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Baton", crate = reconciler::api)]
pub struct BatonSpec {
    holder: String,
    renewals: u64,
}

struct Batons;

const TTL: Duration = Duration::from_secs(10);

impl LeaseKind for Batons {
    type Object = Baton;

    fn read(lease: &Baton) -> Record {
        Record { holder: lease.spec.holder.clone(), ttl: TTL, renewals: lease.spec.renewals }
    }

    fn write(lease: &mut Baton, record: &Record) {
        lease.spec = BatonSpec { holder: record.holder.clone(), renewals: record.renewals };
    }

    fn blank(name: &str) -> Baton {
        Baton::new(name, BatonSpec::default())
    }
}

/// Brings pages about; its first runs fail.
struct Sites {
    failures_left: AtomicU32,
}

impl Reconciler for Sites {
    type Object = Site;

    async fn reconcile(&self, site: Arc<Site>, cx: &Ctx) -> Result<Action, Error> {
        if self.failures_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(Error::retry("not today"));
        }
        let pages = cx.owned::<Page>();
        for number in 0..site.spec.pages {
            let name = format!("{}-{number}", site.name());
            if !pages.iter().any(|page| page.name() == name) {
                cx.client().create(&cx.own(Page::new(name, PageSpec {}))).await?;
            }
        }
        let mut said = (*site).clone();
        said.status = Some(SiteStatus { ready: pages.len() as u32 });
        cx.client().update_status(&*site, &said).await?;
        Ok(Action::Await)
    }
}

/// An external world with one thing in it.
struct Stone;

impl World for Stone {
    type Key = u8;
    type Item = ();
    type Error = fmt::Error;

    async fn list(&self) -> Result<Vec<(u8, ())>, fmt::Error> {
        Ok(vec![(1, ())])
    }
}

async fn objects() -> (Arc<dyn Objects>, Kinds) {
    let kinds = Kinds::new().with::<Site>().with::<Page>().with::<Baton>().with_terms(Baton::kind(), "/spec/holder");
    let objects = StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds.clone(), Seams::real()).await.unwrap();
    (Arc::new(objects), kinds)
}

fn site(pages: u32) -> Site {
    let mut site = Site::new("blog", SiteSpec { pages });
    site.metadata.namespace = "default".into();
    site
}

async fn within<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), wanted).await.unwrap_or_else(|_| panic!("{what} did not come true"))
}

/// A closed span with all that was recorded in it.
#[derive(Clone, Debug, Default)]
struct Told {
    name: &'static str,
    parent: Option<u64>,
    id: u64,
    fields: BTreeMap<&'static str, String>,
}

impl Told {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    fn revision(&self, name: &str) -> Option<u64> {
        self.field(name).parse().ok()
    }
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<Told>>>);

impl Collected {
    fn spans(&self) -> Vec<Told> {
        self.0.lock().unwrap().clone()
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collected {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map(|parent| parent.id().into_u64());
        let mut told = Told { name: span.name(), parent, id: id.into_u64(), ..Told::default() };
        attributes.record(&mut told);
        span.extensions_mut().insert(told);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(told) = context.span(id).unwrap().extensions_mut().get_mut::<Told>() {
            values.record(told);
        }
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        if let Some(told) = context.span(&id).unwrap().extensions_mut().remove::<Told>() {
            self.0.lock().unwrap().push(told);
        }
    }
}

#[tokio::test]
async fn a_change_can_be_followed_from_its_trigger_to_what_was_committed_for_it() {
    let collected = Collected::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(collected.clone()));
    let (objects, _) = objects().await;
    let controller = Controller::new("sites", Sites { failures_left: AtomicU32::new(1) }).owns::<Page>();
    let manager = Arc::new(Manager::builder(objects.clone(), Seams::real()).controller(controller).build());
    let stop = Signal::new();
    let running = tokio::spawn({
        let (manager, stop) = (manager.clone(), stop.clone());
        async move { manager.run(stop.raised()).await }
    });
    within("an empty picture", manager.cache().synced()).await;

    let ann = Client::new(objects, Writer::new("user:ann", "tests"));
    let made = ann.create(&site(2)).await.unwrap();
    let ready = |seen: &reconciler::cache::Snapshot| {
        let site = seen.get::<Site>(&made.object_ref());
        seen.count::<Page>() == 2 && site.and_then(|site| site.status.as_ref()).is_some_and(|status| status.ready == 2)
    };
    let seen = within("two pages", manager.cache().wait_for(ready)).await;
    let page = seen.all::<Page>().next().unwrap().clone();
    let deleted = ann.commit(vec![Write::delete(&*page, Precondition::same(&*page), Propagation::Background)]).await;
    let deleted = deleted.unwrap().resource_version;
    // A page that somebody took away woke its site, whose run put it back, and that in turn woke the next run: cause
    // and effect by revisions.
    let cause = format!("Page default/{}@{deleted}", page.name());
    let told = async {
        let seams = Seams::real();
        while followed(&collected.spans(), &cause, page.name()).is_none() {
            seams.sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), told).await.is_err() {
        panic!("no run was woken by {cause}, or none by what it committed: {:#?}", collected.spans());
    }
    stop.raise();
    within("the end", running).await.unwrap();

    let spans = collected.spans();
    let runs: Vec<&Told> = spans.iter().filter(|span| span.name == "reconcile").collect();
    assert!(runs.iter().all(|run| run.field("controller") == "sites" && run.field("object") == "default/blog"));

    // The first run names the commit that woke it, and fails; the second is the same attempt again, and commits.
    let woken = format!("Site default/blog@{}", made.metadata.resource_version);
    assert_eq!((runs[0].field("reasons"), runs[0].field("attempt")), (woken.as_str(), "0"), "{runs:#?}");
    assert_eq!((runs[0].field("result"), runs[0].field("commits")), ("error", "0"), "{runs:#?}");
    assert_eq!(runs[0].field("committed"), "", "nothing was: {runs:#?}");
    assert_eq!((runs[1].field("reasons"), runs[1].field("attempt")), ("retry", "1"), "{runs:#?}");
    assert_eq!((runs[1].field("result"), runs[1].field("commits")), ("success", "3"), "{runs:#?}");
    assert!(runs.iter().all(|run| run.fields.contains_key("waited_us")), "{runs:#?}");

    // What a run committed is told by spans inside it, and its last revision by itself.
    for run in &runs {
        let inside = spans.iter().filter(|span| span.name == "commit" && span.parent == Some(run.id));
        let last = inside.filter_map(|commit| commit.revision("revision")).max();
        assert_eq!(run.revision("committed"), last, "{run:#?} of {spans:#?}");
    }
}

/// The run that was woken by a commit of the run that `cause` woke.
fn followed(spans: &[Told], cause: &str, page: &str) -> Option<Told> {
    let runs = || spans.iter().filter(|span| span.name == "reconcile");
    let mended = runs().find(|run| run.field("reasons").contains(cause))?;
    let commits = spans.iter().filter(|span| span.name == "commit" && span.parent == Some(mended.id));
    let first = commits.filter_map(|commit| commit.revision("revision")).min()?;
    let effect = format!("Page default/{page}@{first}");
    runs().find(|run| run.field("reasons").contains(&effect)).cloned()
}

/// Everything that there is is set to work once, so that every family has something to say.
async fn served() -> String {
    let (objects, kinds) = objects().await;
    let directory = Directory::new();
    let path = directory.path().join("apply.sock");
    let controller = Controller::new("sites", Sites { failures_left: AtomicU32::new(1) }).owns::<Page>();
    let manager = Manager::builder(objects.clone(), Seams::real())
        .controller(controller)
        .external(&External::new("stone", Stone, Seams::real()))
        .build();
    let server = Server::new(objects.clone(), kinds, Seams::real()).metrics(manager.metrics().clone());
    let socket = UnixSocket::bind(&path).await.unwrap();
    let remote = Remote::unix(&path, Seams::real());
    remote.count_in(manager.metrics());
    let remote: Arc<dyn Objects> = Arc::new(remote);
    let ann = Client::new(remote.clone(), Writer::new("user:ann", "tests"));
    let baton = ObjectRef::new("default", "leader");
    let election = Election::<Batons>::new(objects, Seams::real(), "managers", baton, "m1", TTL);
    let work = async {
        let made = ann.create(&site(1)).await.unwrap();
        let seen = manager.cache().wait_for(|seen| seen.count::<Page>() == 1);
        within("a page", seen).await;
        ann.get::<Site>(&made.object_ref()).await.unwrap();
        ann.get::<Site>(&ObjectRef::new("default", "none")).await.unwrap_err();
        manager.metrics().refused("crowded");
        metrics_of(&path).await
    };
    tokio::select! {
        () = server.serve(socket) => panic!("the server ended"),
        () = manager.run_elected(&election, std::future::pending()) => panic!("the manager ended"),
        text = work => text,
    }
}

/// `/metrics` as Prometheus reads it.
async fn metrics_of(path: &Path) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::UnixStream::connect(path).await.unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    body.to_owned()
}

/// Name, shape and labels of every family in the text.
fn families(text: &str) -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let mut words = line.split(' ').skip(2);
        let (name, shape) = (words.next().unwrap(), words.next().unwrap());
        let sample = match shape {
            "histogram" => format!("{name}_count"),
            _ => name.to_owned(),
        };
        let is_sample =
            |line: &&str| line.strip_prefix(&sample).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '));
        let first = text.lines().find(is_sample).unwrap_or_else(|| panic!("{name} has no sample in\n{text}"));
        let labels = match first[sample.len()..].split_once('}') {
            Some((labels, _)) => labels.trim_start_matches('{').split(',').map(label).collect::<Vec<_>>().join(","),
            None => String::new(),
        };
        found.insert((name.to_owned(), shape.to_owned(), labels));
    }
    found
}

fn label(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

#[tokio::test]
async fn what_is_served_is_what_is_listed() {
    let text = served().await;
    let row = |one: &Described| (one.name.to_owned(), one.shape.to_string(), one.labels.join(","));
    let listed: BTreeSet<_> = ALL.iter().map(row).collect();
    assert_eq!(listed.len(), ALL.len(), "a name is listed once");
    assert_eq!(families(&text), listed, "served, and listed\n{text}");
    for line in [
        "controller_runtime_reconcile_total{controller=\"sites\",result=\"error\"} 1",
        "controller_runtime_reconcile_errors_total{controller=\"sites\"} 1",
        "workqueue_retries_total{name=\"sites\",controller=\"sites\"} 1",
        "controller_runtime_max_concurrent_reconciles{controller=\"sites\"} 8",
        "leader_election_master_status{name=\"managers\"} 1",
        "reconciler_world_known{world=\"stone\"} 1",
        "reconciler_cache_connected 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let asked = |code: &str, method: &str| {
        format!("rest_client_requests_total{{code=\"{code}\",method=\"{method}\",host=\"unix:")
    };
    for wanted in [asked("200", "GET"), asked("404", "GET"), asked("200", "POST")] {
        assert!(text.contains(&wanted), "{wanted} is not in\n{text}");
    }
}

#[test]
fn the_page_of_metrics_is_the_list() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let wanted = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        found, wanted,
        "rewrite it with: UPDATE=1 cargo nextest run -p reconciler -E 'test(the_page_of_metrics)'"
    );
}

fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n<!-- Generated from reconciler/src/metrics.rs; a test keeps the two equal. -->\n\n\
         `curl --unix-socket /run/apply/apply.sock http://x/metrics` asks applyd; `Metrics::text` is the same of a program\n\
         that embeds the library. The answer is in Prometheus' text format. A family appears with its first sample: no\n\
         election, no `leader_election_master_status`. Histograms of the library have buckets from 10 µs to 168 s, four\n\
         times as long each.\n",
    );
    for (after, title) in [
        (
            After::ControllerRuntime,
            "Named as in controller-runtime and client-go\n\nThe meaning is theirs, so their dashboards and alerts work. Two differences: `workqueue_depth` has no label\n`priority` (priorities age here, so a key has none for long), and `result` can be `conflict`, which they count as\n`error`.",
        ),
        (
            After::ApiServer,
            "Named as in the Kubernetes API server\n\nThe meaning is theirs; labels that say nothing here are left out.",
        ),
        (After::Ours, "Our own"),
    ] {
        write!(page, "\n## {title}\n\n| name | type | labels | what |\n| --- | --- | --- | --- |\n").unwrap();
        for one in ALL.iter().filter(|one| one.after == after) {
            let labels = one.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            let shape = match one.shape {
                Shape::Histogram => "histogram, seconds".to_owned(),
                other => other.to_string(),
            };
            writeln!(page, "| `{}` | {shape} | {labels} | {} |", one.name, one.help).unwrap();
        }
    }
    page
}

/// The revision of a [`Reason`](reconciler::queue::Reason) is for people and traces.
#[test]
fn a_reason_reads_like_a_sentence() {
    use reconciler::queue::Reason;
    let page = Arc::new(ObjectRef::new("default", "blog-0"));
    assert_eq!(Reason::of("Page", page, ResourceVersion(7)).to_string(), "Page default/blog-0@7");
    assert_eq!(Reason::new("timer").to_string(), "timer");
}
