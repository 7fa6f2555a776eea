//! What every [`Objects`] must do. Each function is one promise, told over whatever [`World`] it is given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use reconciler::api::{Fault, Kind, ObjectRef, Resource, ResourceVersion};
use reconciler::objects::encoding::{SealError, Sealer};
use reconciler::objects::write::FOREGROUND;
use reconciler::objects::{
    Change, Client, Error, Event, Objects, PageRequest, Part, Patch, Precondition, Propagation, Selection, Start,
    Stream, Term, Write, Writer,
};
use reconciler::store::memory::Memory;
use reconciler::store::{Key, Store};

#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Site", status = SiteStatus, validate = check_site, crate = reconciler::api, column("HOST", "/spec/host"))]
#[serde(default)]
pub struct SiteSpec {
    pub host: String,
    pub pages: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct SiteStatus {
    pub ready: u32,
}

#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Page", crate = reconciler::api, sensitive("/spec/key"))]
#[serde(default)]
pub struct PageSpec {
    pub title: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
}

/// Of no namespace.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Shelf", plural = "shelves", scope = "Cluster", crate = reconciler::api)]
#[serde(default)]
pub struct ShelfSpec {
    pub place: u32,
}

fn check_site(site: &Site, _: Option<&Site>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if site.spec.host.is_empty() {
        faults.push(Fault::new("spec.host", "is needed"));
    }
    if site.spec.pages > 100 {
        faults.push(Fault::new("spec.pages", format!("{} is more than 100", site.spec.pages)));
    }
    faults
}

/// Turns every byte round; enough to see whether a secret went anywhere in the clear.
#[derive(Debug)]
pub struct TestSealer;

impl Sealer for TestSealer {
    fn seal(&self, _: &str, plain: &[u8]) -> (u32, Vec<u8>) {
        (7, plain.iter().map(|byte| !byte).collect())
    }

    fn open(&self, _: &str, key: u32, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        if key == 7 { Ok(sealed.iter().map(|byte| !byte).collect()) } else { Err(SealError::NoKey { key }) }
    }

    fn digest(&self, secret: &[u8]) -> String {
        format!("hmac-sha256:{}", secret.iter().map(|byte| u64::from(*byte)).sum::<u64>())
    }
}

/// Objects somewhere, and the store that they end up in.
pub struct World {
    pub objects: Arc<dyn Objects>,
    pub store: Arc<Memory>,
    pub _held: Box<dyn std::any::Any>,
}

impl World {
    fn client(&self) -> Client {
        Client::new(self.objects.clone(), Writer::new("user:ann", "suite"))
    }

    async fn version(&self) -> ResourceVersion {
        self.objects.list(&Selection::of::<Site>(), PageRequest::default()).await.unwrap().resource_version
    }

    async fn raw(&self, site: &Site) -> Value {
        self.objects.get(Site::kind(), &site.object_ref()).await.unwrap().to_value().unwrap()
    }

    async fn merge(&self, reference: &ObjectRef, part: Part, patch: Value) -> Result<Site, Error> {
        let write = update::<Site>(reference, part, Patch::Merge(patch), Precondition::default());
        let committed = self.client().commit(vec![write]).await?;
        committed.outcomes[0].object.as_ref().unwrap().decode()
    }
}

/// A directory that goes with its test, however that ends.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("o{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct AbortOnDrop(pub tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn site(name: &str, host: &str) -> Site {
    let mut site = Site::new(name, SiteSpec { host: host.into(), pages: 1 });
    site.metadata.namespace = "default".into();
    site
}

fn page(name: &str, key: &str) -> Page {
    let mut page = Page::new(name, PageSpec { title: name.into(), key: key.into() });
    page.metadata.namespace = "default".into();
    page
}

fn kind<T: Resource>() -> Arc<Kind> {
    Arc::new(T::kind().clone())
}

fn update<T: Resource>(reference: &ObjectRef, part: Part, patch: Patch, precondition: Precondition) -> Write {
    Write::Update { kind: kind::<T>(), reference: reference.clone(), part, patch, precondition }
}

fn names(list: &reconciler::objects::List) -> Vec<String> {
    list.items.iter().map(|stored| stored.reference.to_string()).collect()
}

/// The next event that says something.
async fn next(stream: &mut Stream) -> Result<Event, Error> {
    let told = async {
        loop {
            match stream.next().await.expect("it ends with an error") {
                Ok(Event::Batch { changes, .. }) if changes.is_empty() => {}
                event => return event,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.expect("an event within ten seconds")
}

fn told(event: Event) -> Vec<String> {
    match event {
        Event::Initial(objects) => objects.iter().map(|object| format!("has {}", object.reference)).collect(),
        Event::InitialDone { .. } => vec!["that was all".into()],
        Event::Batch { changes, .. } => changes
            .into_iter()
            .map(|change| match change {
                Change::Put { object, previous: None } => format!("new {}", object.reference),
                Change::Put { object, previous: Some(_) } => format!("put {}", object.reference),
                Change::Gone { reference, last, .. } => {
                    format!("gone {reference}{}", if last.is_some() { "" } else { "?" })
                }
            })
            .collect(),
    }
}

pub async fn what_is_created_is_read_and_deleted(world: World) {
    let client = world.client();
    let made = client.create(&site("blog", "a.dev")).await.unwrap();
    assert!(!made.metadata.uid.is_empty() && !made.metadata.resource_version.is_unset());
    assert_eq!(client.get::<Site>(&made.object_ref()).await.unwrap(), made);
    let shelf = client.create(&Shelf::new("top", ShelfSpec { place: 3 })).await.unwrap();
    assert_eq!(client.get::<Shelf>(&ObjectRef::cluster("top")).await.unwrap(), shelf);
    assert!(matches!(client.create(&site("blog", "b.dev")).await, Err(Error::AlreadyExists { .. })));
    client.delete(&made, Propagation::Background).await.unwrap();
    assert_eq!(client.find::<Site>(&made.object_ref()).await.unwrap(), None);
    // Gone already is what was wanted.
    client.delete(&made, Propagation::Background).await.unwrap();
    let nobody = ObjectRef::new("default", "nobody");
    assert!(matches!(client.get::<Site>(&nobody).await, Err(Error::NotFound { reference, .. }) if reference == nobody));
    assert!(matches!(client.get::<Site>(&ObjectRef::new("", "")).await, Err(Error::NotFound { .. })));
}

pub async fn a_namesake_is_another_object(world: World) {
    let client = world.client();
    let first = client.create(&site("blog", "a.dev")).await.unwrap();
    client.delete(&first, Propagation::Background).await.unwrap();
    let second = client.create(&site("blog", "b.dev")).await.unwrap();
    assert_ne!(first.metadata.uid, second.metadata.uid);
    let write = Write::delete(&first, Precondition::same(&first), Propagation::Background);
    let Err(Error::Conflict { detail, .. }) = client.commit(vec![write]).await else { panic!("it deleted a namesake") };
    assert!(detail.contains(first.metadata.uid.as_str()), "{detail}");
    assert_eq!(client.get::<Site>(&second.object_ref()).await.unwrap(), second);
}

pub async fn a_write_that_changes_nothing_takes_no_version(world: World) {
    let client = world.client();
    let made = client.create(&site("blog", "a.dev")).await.unwrap();
    let before = world.version().await;
    assert_eq!(client.update(&made, &made.clone()).await.unwrap(), made);
    let same = world.merge(&made.object_ref(), Part::Main, json!({"spec": {"host": "a.dev"}})).await.unwrap();
    assert_eq!(same, made);
    let whole = update::<Site>(
        &made.object_ref(),
        Part::Main,
        Patch::Replace(serde_json::to_value(&made).unwrap()),
        Precondition::seen(&made),
    );
    let committed = client.commit(vec![whole]).await.unwrap();
    assert!(!committed.outcomes[0].changed);
    assert_eq!(world.version().await, before);
}

pub async fn the_generation_counts_what_is_wanted(world: World) {
    let made = world.client().create(&site("blog", "a.dev")).await.unwrap();
    let at = made.object_ref();
    assert_eq!(made.metadata.generation, 1);
    let labelled = world.merge(&at, Part::Main, json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    assert_eq!(labelled.metadata.generation, 1);
    let observed =
        world.merge(&at, Part::Status, json!({"status": {"ready": 2}, "spec": {"host": "no"}})).await.unwrap();
    assert_eq!((observed.metadata.generation, observed.spec.host.as_str()), (1, "a.dev"));
    let moved = world.merge(&at, Part::Main, json!({"spec": {"host": "b.dev"}, "status": {"ready": 9}})).await.unwrap();
    assert_eq!((moved.metadata.generation, moved.status.unwrap().ready), (2, 2));
}

pub async fn finalizers_hold_what_is_deleted(world: World) {
    let client = world.client();
    let mut held = site("blog", "a.dev");
    held.metadata.finalizers = vec!["example.dev/a".into(), "example.dev/b".into()];
    let held = client.create(&held).await.unwrap();
    let at = held.object_ref();
    client.delete(&held, Propagation::Background).await.unwrap();
    let deleting = client.get::<Site>(&at).await.unwrap();
    assert!(deleting.is_deleting());
    let before = world.version().await;
    client.delete(&held, Propagation::Background).await.unwrap();
    assert_eq!(world.version().await, before, "twice is once");
    let late = world.merge(&at, Part::Main, json!({"metadata": {"finalizers": ["example.dev/late"]}})).await;
    assert!(matches!(late, Err(Error::Invalid { .. })), "{late:?}");
    world.merge(&at, Part::Main, json!({"metadata": {"finalizers": ["example.dev/b"]}})).await.unwrap();
    assert!(client.find::<Site>(&at).await.unwrap().is_some());
    world.merge(&at, Part::Main, json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert_eq!(client.find::<Site>(&at).await.unwrap(), None);
}

pub async fn a_deletion_in_the_foreground_waits(world: World) {
    let client = world.client();
    let made = client.create(&site("blog", "a.dev")).await.unwrap();
    client.delete(&made, Propagation::Foreground).await.unwrap();
    let deleting = client.get::<Site>(&made.object_ref()).await.unwrap();
    assert_eq!(deleting.metadata.finalizers, [FOREGROUND]);
    assert!(deleting.is_deleting());
}

pub async fn unknown_fields_survive_every_write(world: World) {
    let client = world.client();
    let object = json!({
        "apiVersion": "example.dev/v1", "kind": "Site", "metadata": {"name": "blog", "namespace": "default"},
        "spec": {"host": "a.dev", "future": {"deep": [1, {"x": null}]}},
    });
    client.commit(vec![Write::Create { kind: kind::<Site>(), object }]).await.unwrap();
    let seen = client.get::<Site>(&ObjectRef::new("default", "blog")).await.unwrap();
    let mut wanted = seen.clone();
    wanted.spec.host = "b.dev".into();
    let updated = client.update(&seen, &wanted).await.unwrap();
    let mut observed = updated.clone();
    observed.status = Some(SiteStatus { ready: 1 });
    client.update_status(&updated, &observed).await.unwrap();
    world.merge(&seen.object_ref(), Part::Main, json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    let raw = world.raw(&seen).await;
    assert_eq!(raw["spec"], json!({"host": "b.dev", "future": {"deep": [1, {"x": null}]}}));
    assert_eq!((&raw["status"]["ready"], &raw["metadata"]["labels"]["a"]), (&json!(1), &json!("b")));
}

pub async fn a_commit_is_all_or_nothing(world: World) {
    let client = world.client();
    let made = client.create(&site("blog", "a.dev")).await.unwrap();
    let before = world.version().await;
    let mut bad = site("bad", "");
    bad.spec.pages = 1_000;
    let writes = |last: Write| {
        vec![
            Write::create(&site("one", "one.dev")),
            Write::delete(&made, Precondition::seen(&made), Propagation::Background),
            last,
        ]
    };
    assert!(matches!(client.commit(writes(Write::create(&bad))).await, Err(Error::Invalid { .. })));
    let gone = site("gone", "gone.dev");
    assert!(client.commit(writes(Write::unchanged(&gone))).await.is_err());
    assert_eq!(world.version().await, before);
    assert_eq!(client.list::<Site>(None).await.unwrap(), std::slice::from_ref(&made));
    let committed = client.commit(writes(Write::create(&page("two", "")))).await.unwrap();
    assert_eq!(committed.outcomes.len(), 3);
    assert!(committed.outcomes.iter().all(|outcome| outcome.changed));
    let after: Vec<Site> = client.list(None).await.unwrap();
    assert_eq!(after.iter().map(|site| site.name()).collect::<Vec<_>>(), ["one"]);
    assert_eq!(after[0].metadata.resource_version, committed.resource_version);
    // More than a commit may hold is refused as a whole.
    let many = (0..=reconciler::store::KEYS_PER_COMMIT).map(|n| Write::create(&site(&format!("s{n}"), "x.dev")));
    assert!(matches!(client.commit(many.collect()).await, Err(Error::TooLarge { .. })));
    assert_eq!(client.list::<Site>(None).await.unwrap().len(), 1);
}

pub async fn a_commit_may_only_check(world: World) {
    let client = world.client();
    let made = client.create(&site("blog", "a.dev")).await.unwrap();
    let absent = |name: &str| Write::Check {
        kind: kind::<Site>(),
        reference: ObjectRef::new("default", name),
        precondition: None,
    };
    let before = world.version().await;
    let committed = client.commit(vec![Write::unchanged(&made), absent("nobody")]).await.unwrap();
    assert!(committed.outcomes.iter().all(|outcome| !outcome.changed));
    assert_eq!(world.version().await, before);
    assert!(matches!(client.commit(vec![absent("blog")]).await, Err(Error::AlreadyExists { .. })));
    world.merge(&made.object_ref(), Part::Main, json!({"spec": {"pages": 2}})).await.unwrap();
    assert!(matches!(client.commit(vec![Write::unchanged(&made)]).await, Err(Error::Conflict { .. })));
}

pub async fn every_fault_is_told(world: World) {
    let mut bad = site("Bad_Name", "");
    assert!(
        matches!(world.client().create(&bad).await, Err(Error::Invalid { faults, .. }) if faults[0].path == "metadata.name")
    );
    bad.metadata.name = "bad".into();
    bad.spec.pages = 101;
    let Err(Error::Invalid { kind, reference, faults }) = world.client().create(&bad).await else { panic!() };
    assert_eq!((kind.as_str(), reference), ("Site", ObjectRef::new("default", "bad")));
    assert_eq!(
        faults,
        [Fault::new("spec.host", "is needed"), Fault::new("spec.pages", "101 is more than 100")],
        "as they were said"
    );
}

pub async fn errors_name_what_they_are_about(world: World) {
    let client = world.client();
    let unknown = Kind { plural: "cows".into(), kind: "Cow".into(), ..Site::kind().clone() };
    let at = ObjectRef::new("default", "bella");
    assert!(
        matches!(world.objects.get(&unknown, &at).await, Err(Error::UnknownKind { name }) if name == "cows.example.dev")
    );
    let selection = Selection::all_of(Arc::new(unknown.clone()));
    assert!(matches!(world.objects.list(&selection, PageRequest::default()).await, Err(Error::UnknownKind { .. })));
    assert!(matches!(world.objects.stream(vec![selection], Start::Now).await, Err(Error::UnknownKind { .. })));
    let write = Write::Create { kind: Arc::new(unknown), object: json!({"metadata": {"name": "bella"}}) };
    assert!(matches!(client.commit(vec![write]).await, Err(Error::UnknownKind { .. })));
    let missing = update::<Site>(&at, Part::Main, Patch::Merge(json!({})), Precondition::default());
    assert!(
        matches!(client.commit(vec![missing]).await, Err(Error::NotFound { kind, reference }) if kind == "Site" && reference == at)
    );
    let missing = Write::Delete {
        kind: kind::<Site>(),
        reference: at,
        precondition: Precondition::default(),
        propagation: Propagation::Background,
    };
    assert!(matches!(client.commit(vec![missing]).await, Err(Error::NotFound { .. })));
}

pub async fn a_merge_without_a_version_never_conflicts(world: World) {
    let made = world.client().create(&site("blog", "a.dev")).await.unwrap();
    let writes = (0..8).map(|n| {
        let (world, at) = (&world, made.object_ref());
        async move { world.merge(&at, Part::Main, json!({"metadata": {"labels": {format!("l{n}"): "x"}}})).await }
    });
    for written in join_all(writes).await {
        written.unwrap();
    }
    let labels = world.client().get::<Site>(&made.object_ref()).await.unwrap().metadata.labels;
    assert_eq!(labels.len(), 8, "{labels:?}");
}

pub async fn an_update_of_what_was_seen_before_conflicts(world: World) {
    let client = world.client();
    let seen = client.create(&site("blog", "a.dev")).await.unwrap();
    world.merge(&seen.object_ref(), Part::Main, json!({"spec": {"pages": 2}})).await.unwrap();
    let mut wanted = seen.clone();
    wanted.spec.host = "b.dev".into();
    let Err(error) = client.update(&seen, &wanted).await else { panic!("it overwrote what it had not seen") };
    assert!(error.is_conflict(), "{error:?}");
    assert!(error.to_string().contains(&seen.metadata.resource_version.to_string()), "{error}");
}

pub async fn pages_tell_of_one_moment(world: World) {
    let client = world.client();
    for n in 0..7 {
        client.create(&site(&format!("s{n}"), "x.dev")).await.unwrap();
    }
    let selection = Selection { namespace: Some("default".into()), ..Selection::of::<Site>() };
    let first = world.objects.list(&selection, PageRequest { limit: 3, from: None }).await.unwrap();
    assert_eq!(names(&first), ["default/s0", "default/s1", "default/s2"]);
    client.create(&site("s11", "new.dev")).await.unwrap();
    let last = client.get::<Site>(&ObjectRef::new("default", "s6")).await.unwrap();
    client.delete(&last, Propagation::Background).await.unwrap();
    let (mut seen, mut from) = (Vec::new(), first.next.clone());
    while let Some(place) = from {
        let page = world.objects.list(&selection, PageRequest { limit: 3, from: Some(place) }).await.unwrap();
        assert_eq!(page.resource_version, first.resource_version);
        seen.extend(names(&page));
        from = page.next;
    }
    assert_eq!(seen, ["default/s3", "default/s4", "default/s5", "default/s6"]);
    let mut stale = first.next.unwrap();
    stale.epoch.0 = "of-before".into();
    let stale = world.objects.list(&selection, PageRequest { limit: 3, from: Some(stale) }).await;
    assert!(matches!(stale, Err(Error::Expired { .. })), "{stale:?}");
}

pub async fn selectors_choose_in_lists_and_streams(world: World) {
    let client = world.client();
    for (name, host, tier) in [("a", "x.dev", "front"), ("b", "y.dev", "front"), ("c", "x.dev", "back")] {
        let mut site = site(name, host);
        site.metadata.labels = BTreeMap::from([("tier".into(), tier.into())]);
        client.create(&site).await.unwrap();
    }
    let mut elsewhere = site("a", "x.dev");
    elsewhere.metadata.namespace = "other".into();
    client.create(&elsewhere).await.unwrap();
    let select = |namespace: Option<&str>, labels: &str, fields: &str| Selection {
        namespace: namespace.map(str::to_owned),
        labels: labels.parse().unwrap(),
        fields: fields.parse().unwrap(),
        ..Selection::of::<Site>()
    };
    for (selection, expected) in [
        (select(None, "", ""), vec!["default/a", "default/b", "default/c", "other/a"]),
        (select(Some("default"), "tier in (front, x)", ""), vec!["default/a", "default/b"]),
        (select(None, "!tier", ""), vec!["other/a"]),
        (select(None, "", "spec.host=x.dev,metadata.namespace!=other"), vec!["default/a", "default/c"]),
        (select(None, "", "metadata.name=b"), vec!["default/b"]),
    ] {
        let list = world.objects.list(&selection, PageRequest::default()).await.unwrap();
        assert_eq!(names(&list), expected, "{selection:?}");
    }
    let front = select(Some("default"), "tier=front", "");
    let mut stream = world.objects.stream(vec![front], Start::Now).await.unwrap();
    assert_eq!(told(next(&mut stream).await.unwrap()), ["has default/a", "has default/b"]);
    assert_eq!(told(next(&mut stream).await.unwrap()), ["that was all"]);
    let relabel = |name: &str, tier: &str| {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"tier": tier}}}));
        update::<Site>(&ObjectRef::new("default", name), Part::Main, patch, Precondition::default())
    };
    client.commit(vec![relabel("c", "front"), relabel("a", "back")]).await.unwrap();
    assert_eq!(told(next(&mut stream).await.unwrap()), ["gone default/a", "put default/c"]);
    client.commit(vec![relabel("a", "side")]).await.unwrap();
    client.commit(vec![relabel("b", "front"), relabel("b", "back")]).await.unwrap();
    assert_eq!(told(next(&mut stream).await.unwrap()), ["gone default/b"]);
}

pub async fn a_stream_tells_of_each_commit_whole(world: World) {
    let client = world.client();
    client.create(&site("old", "x.dev")).await.unwrap();
    let selections = vec![Selection::of::<Site>(), Selection::of::<Page>()];
    let mut stream = world.objects.stream(selections, Start::Now).await.unwrap();
    let mut initial = Vec::new();
    let begun = loop {
        match next(&mut stream).await.unwrap() {
            Event::InitialDone { resource_version, .. } => break resource_version,
            event => initial.extend(told(event)),
        }
    };
    assert_eq!(initial, ["has default/old"]);
    let writes =
        vec![Write::create(&site("new", "x.dev")), Write::create(&page("p", "")), Write::create(&site("q", "q"))];
    let committed = client.commit(writes).await.unwrap();
    let event = next(&mut stream).await.unwrap();
    let Event::Batch { resource_version, ref changes, .. } = event else { panic!("{event:?}") };
    assert!(resource_version == committed.resource_version && resource_version > begun);
    for change in changes {
        let Change::Put { object, .. } = change else { panic!("{change:?}") };
        assert_eq!(object.resource_version, resource_version);
        assert!(!object.to_value().unwrap()["metadata"]["resourceVersion"].is_null());
    }
    let mut changes = told(event);
    changes.sort();
    assert_eq!(changes, ["new default/new", "new default/p", "new default/q"]);
    let old = client.get::<Site>(&ObjectRef::new("default", "old")).await.unwrap();
    client.delete(&old, Propagation::Background).await.unwrap();
    assert_eq!(told(next(&mut stream).await.unwrap()), ["gone default/old"]);
    // Where nothing is selected, a stream still says how far it is.
    client.create(&Shelf::new("top", ShelfSpec::default())).await.unwrap();
    let now = world.version().await;
    let passed = async {
        loop {
            if let Event::Batch { resource_version, .. } = stream.next().await.unwrap().unwrap()
                && resource_version >= now
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), passed).await.expect("word that the version was passed");
}

pub async fn a_stream_goes_on_where_another_ended(world: World) {
    let client = world.client();
    let mut stream = world.objects.stream(vec![Selection::of::<Site>()], Start::Now).await.unwrap();
    let epoch = loop {
        if let Event::InitialDone { epoch, .. } = next(&mut stream).await.unwrap() {
            break epoch;
        }
    };
    let a = client.create(&site("a", "x.dev")).await.unwrap();
    client.create(&site("b", "x.dev")).await.unwrap();
    drop(stream);
    client.delete(&a, Propagation::Background).await.unwrap();
    let after = Start::After { epoch: epoch.clone(), resource_version: a.metadata.resource_version };
    let mut stream = world.objects.stream(vec![Selection::of::<Site>()], after).await.unwrap();
    assert_eq!(told(next(&mut stream).await.unwrap()), ["new default/b"]);
    assert_eq!(told(next(&mut stream).await.unwrap()), ["gone default/a"]);
    let other =
        Start::After { epoch: reconciler::objects::Epoch("other".into()), resource_version: ResourceVersion(1) };
    let other = world.objects.stream(vec![Selection::of::<Site>()], other).await.map(drop);
    assert!(matches!(other, Err(Error::Expired { .. })), "{other:?}");
    let ahead = ResourceVersion(world.version().await.0 + 1_000);
    assert_expires(&world, Start::After { epoch, resource_version: ahead }).await;
}

/// At once, or as the first thing that the stream says.
async fn assert_expires(world: &World, start: Start) {
    let ended = match world.objects.stream(vec![Selection::of::<Site>()], start).await {
        Ok(mut stream) => {
            let ended = next(&mut stream).await;
            assert!(stream.next().await.is_none(), "an error is the last word");
            ended.map(drop)
        }
        Err(error) => Err(error),
    };
    assert!(matches!(ended, Err(Error::Expired { .. })), "{ended:?}");
}

pub async fn a_stream_of_forgotten_history_expires(world: World) {
    let client = world.client();
    let list = world.objects.list(&Selection::of::<Site>(), PageRequest::default()).await.unwrap();
    for n in 0..5 {
        client.create(&site(&format!("s{n}"), "x.dev")).await.unwrap();
    }
    let key = Key::new("/");
    let now = world.store.get(&key).await.unwrap().0;
    world.store.compact(now).await.unwrap();
    assert_expires(&world, Start::After { epoch: list.epoch, resource_version: list.resource_version }).await;
}

pub async fn secrets_are_read_as_digests(world: World) {
    const SECRET: &str = "open-sesame";
    let client = world.client();
    let mut stream = world.objects.stream(vec![Selection::of::<Page>()], Start::Now).await.unwrap();
    let made = client.create(&page("p", SECRET)).await.unwrap();
    assert!(made.spec.key.starts_with("hmac-sha256:"), "{}", made.spec.key);
    let at = made.object_ref();
    let read = client.get::<Page>(&at).await.unwrap();
    assert_eq!(read, made);
    // The digest written back means the secret itself.
    let mut titled = read.clone();
    titled.spec.title = "new".into();
    let titled = client.update(&read, &titled).await.unwrap();
    let whole = serde_json::to_value(&titled).unwrap();
    let put = update::<Page>(&at, Part::Main, Patch::Replace(whole), Precondition::default());
    client.commit(vec![put]).await.unwrap();
    assert_eq!(client.get::<Page>(&at).await.unwrap().spec.key, made.spec.key);
    let mut forged = titled.clone();
    forged.spec.key = "hmac-sha256:123".into();
    let forged = client.update(&titled, &forged).await;
    assert!(matches!(&forged, Err(Error::Invalid { faults, .. }) if faults[0].path == "spec.key"), "{forged:?}");
    let mut changed = titled.clone();
    changed.spec.key = "another".into();
    let changed = client.update(&titled, &changed).await.unwrap();
    assert!(changed.spec.key.starts_with("hmac-sha256:") && changed.spec.key != made.spec.key);
    // The secret said again is no news.
    let mut again = changed.clone();
    again.spec.key = "another".into();
    let again = client.update(&changed, &again).await.unwrap();
    assert_eq!(again, changed);
    // A tool keeps what it was given beside it, as kubectl does.
    let mut copied = changed.clone();
    copied.spec.key = SECRET.into();
    let whole = serde_json::to_value(&copied).unwrap();
    copied.metadata.annotations.insert("kubectl.kubernetes.io/last-applied-configuration".into(), whole.to_string());
    copied.metadata.annotations.insert("note".into(), format!("[{:?}]", "no object"));
    let copied = client.update(&changed, &copied).await.unwrap();
    assert_eq!(copied.metadata.annotations["note"], "[\"no object\"]");
    client.delete(&copied, Propagation::Background).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("Gone") {
        let event = next(&mut stream).await.unwrap();
        if let Event::Batch { changes, .. } = &event {
            for change in changes {
                let (Change::Put { object, .. } | Change::Gone { last: Some(object), .. }) = change else { continue };
                seen += std::str::from_utf8(&object.json).unwrap();
            }
        }
        seen += &format!("{event:?}");
    }
    assert!(seen.contains("hmac-sha256:") && !seen.contains(SECRET) && !seen.contains("another"), "{seen}");
    let listing = world.store.list(&Key::new("/"), Default::default()).await.unwrap();
    let stored: Vec<u8> = listing.entries.iter().flat_map(|entry| entry.value.to_vec()).collect();
    assert!(!String::from_utf8_lossy(&stored).contains(SECRET));
}

pub async fn writers_have_names(world: World) {
    let client = Client::new(world.objects.clone(), Writer::new("", "suite"));
    let refused = client.create(&site("blog", "a.dev")).await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
    assert_eq!(client.list::<Site>(None).await.unwrap(), []);
}

pub async fn a_dry_run_answers_and_writes_nothing(world: World) {
    let trying = Client::new(world.objects.clone(), Writer::new("user:ann", "suite").trying());
    let before = world.version().await;
    let made = trying.create(&site("blog", "a.dev")).await.unwrap();
    assert_eq!((made.spec.host.as_str(), made.metadata.generation), ("a.dev", 1));
    assert!(matches!(trying.create(&site("bad", "")).await, Err(Error::Invalid { .. })));
    assert_eq!(world.version().await, before);
    assert_eq!(world.client().list::<Site>(None).await.unwrap(), []);
    let real = world.client().create(&site("blog", "a.dev")).await.unwrap();
    trying.delete(&real, Propagation::Background).await.unwrap();
    assert_eq!(world.client().get::<Site>(&real.object_ref()).await.unwrap(), real);
}

pub async fn a_leader_that_was_replaced_writes_nothing(world: World) {
    let client = world.client();
    // The suite's leases are shelves whose holder is their label.
    let mut shelf = Shelf::new("top", ShelfSpec::default());
    shelf.metadata.labels = BTreeMap::from([("holder".into(), "first".into())]);
    let shelf = client.create(&shelf).await.unwrap();
    let reign = |began| Term { kind: Shelf::kind().qualified(), lease: shelf.object_ref(), began };
    let leader = |began| Client::new(world.objects.clone(), Writer::controller("suite").fenced(reign(began)));
    let first = leader(shelf.metadata.resource_version);
    let made = first.create(&site("blog", "a.dev")).await.unwrap();
    let relabel = async |name: &str, value: &str| {
        let patch = Patch::Merge(json!({"metadata": {"labels": {name: value}}}));
        let write = update::<Shelf>(&shelf.object_ref(), Part::Main, patch, Precondition::default());
        client.commit(vec![write]).await.unwrap().resource_version
    };
    relabel("renewed", "1").await;
    first.create(&site("renewed", "a.dev")).await.unwrap();
    let began = relabel("holder", "second").await;
    assert!(matches!(first.create(&site("late", "a.dev")).await, Err(Error::Fenced)));
    assert!(matches!(first.delete(&made, Propagation::Background).await, Err(Error::Fenced)));
    assert!(matches!(first.commit(vec![Write::unchanged(&made)]).await, Err(Error::Fenced)));
    assert!(matches!(leader(ResourceVersion(0)).create(&site("late", "a.dev")).await, Err(Error::Fenced)));
    leader(began).delete(&made, Propagation::Background).await.unwrap();
}

/// The same random writes against the objects and against a map of what should come of them.
pub async fn random_histories_end_alike(world: World) {
    let client = world.client();
    let mut model: BTreeMap<String, u32> = BTreeMap::new();
    // SplitMix64's increments: any fixed sequence does, as long as it is the same in every run.
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..200_u32 {
        let mut writes = Vec::new();
        let mut after = model.clone();
        let mut valid = true;
        for _ in 0..=random(3) {
            let name = format!("s{}", random(5));
            let at = ObjectRef::new("default", &name);
            match random(4) {
                0 => {
                    let mut site = site(&name, "x.dev");
                    site.spec.pages = step % 120;
                    writes.push(Write::create(&site));
                    valid &= step % 120 <= 100 && after.insert(name, step % 120).is_none();
                }
                1 => {
                    let patch = Patch::Merge(json!({"spec": {"pages": step % 120}}));
                    writes.push(update::<Site>(&at, Part::Main, patch, Precondition::default()));
                    valid &= step % 120 <= 100 && after.insert(name, step % 120).is_some();
                }
                2 => {
                    writes.push(Write::Delete {
                        kind: kind::<Site>(),
                        reference: at,
                        precondition: Precondition::default(),
                        propagation: Propagation::Background,
                    });
                    valid &= after.remove(&name).is_some();
                }
                _ => {
                    writes.push(Write::Check { kind: kind::<Site>(), reference: at, precondition: None });
                    valid &= !after.contains_key(&name);
                }
            }
        }
        let happened = client.commit(writes.clone()).await;
        assert_eq!(happened.is_ok(), valid, "step {step}: {writes:?}: {happened:?}");
        if valid {
            model = after;
        }
        let found: BTreeMap<String, u32> = client
            .list::<Site>(None)
            .await
            .unwrap()
            .into_iter()
            .map(|site| (site.metadata.name.clone(), site.spec.pages))
            .collect();
        assert_eq!(found, model, "step {step}");
    }
    assert!(world.version().await.0 > 50, "enough of it happened");
}
