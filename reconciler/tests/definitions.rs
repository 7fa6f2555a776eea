//! Kinds that objects define: served with the acknowledgement, by every process over the store, and never taken away from
//! under their objects.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use reconciler::api::{Fault, Kind, OwnerReference, Resource, Scope};
use reconciler::cascade;
use reconciler::controller::{Manager, Signal};
use reconciler::objects::{
    Change, Client, Entry, Error, Event, Kinds, Objects, PageRequest, Part, Patch, Precondition, Propagation, Remote,
    Scale, Selection, Start, StoreObjects, Write, Writer,
};
use reconciler::seams::Seams;
use reconciler::server::{Server, UnixSocket};
use reconciler::store::memory::Memory;
use reconciler::{ObjectMeta, ObjectRef};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Defines a kind, of which every object has a number, no larger than a limit.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Definition", scope = "Cluster")]
struct DefinitionSpec {
    kind: String,
    most: u64,
}

const GROUP: &str = "made.dev";

fn kind(word: &str) -> Kind {
    Kind {
        group: GROUP.into(),
        version: "v1".into(),
        kind: word.to_owned().into(),
        plural: format!("{}s", word.to_lowercase()).into(),
        singular: word.to_lowercase().into(),
        short_names: vec![],
        scope: Scope::Namespaced,
        managed_fields: true,
        sensitive: vec![],
        columns: vec![],
    }
}

fn read(object: &Value) -> Option<Entry> {
    let definition = serde_json::from_value::<Definition>(object.clone()).ok()?;
    let most = definition.spec.most;
    let mut entry = Entry::new(kind(&definition.spec.kind), move |object, _| match object["spec"]["number"].as_u64() {
        Some(number) if number > most => vec![Fault::new("spec.number", format!("is more than {most}"))],
        _ => vec![],
    })
    .filled_in_by(|object, part| {
        if part == Part::Main && object["spec"]["number"].is_null() {
            object["spec"]["number"] = 1.into();
        }
    });
    entry.scale = Some(Arc::new(Scale {
        wanted: "/spec/number".into(),
        found: "/status/number".into(),
        selector: String::new(),
    }));
    Some(entry)
}

fn kinds() -> Kinds {
    Kinds::new().with::<Definition>().defined_by(Definition::kind(), read)
}

async fn open(store: &Arc<Memory>) -> (Arc<StoreObjects>, Kinds) {
    let kinds = kinds();
    let objects = StoreObjects::open(store.clone(), "/apply", kinds.clone(), Seams::real()).await.unwrap();
    (Arc::new(objects), kinds)
}

fn ann(objects: &Arc<StoreObjects>) -> Client {
    Client::new(objects.clone(), Writer::new("user:ann", "tests"))
}

fn definition(word: &str, most: u64) -> Definition {
    Definition::new(kind(word).qualified(), DefinitionSpec { kind: word.into(), most })
}

fn object(word: &str, name: &str, spec: Value) -> Write {
    let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
    Write::Create { kind: Arc::new(kind(word)), object }
}

fn delete(word: &str, name: &str) -> Write {
    Write::Delete {
        kind: Arc::new(kind(word)),
        reference: ObjectRef::new("default", name),
        precondition: Precondition::default(),
        propagation: Propagation::Background,
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let found = async {
        while !is_so().await {
            Seams::real().sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn a_kind_is_served_with_the_acknowledgement_of_its_definition() {
    let store = Arc::new(Memory::new());
    let (objects, _) = open(&store).await;
    let ann = ann(&objects);
    let early = ann.commit(vec![object("Site", "a", json!({}))]).await.unwrap_err();
    assert!(matches!(early, Error::UnknownKind { ref name } if name == "sites.made.dev"), "{early}");

    let made = ann.create(&definition("Site", 5)).await.unwrap();
    let stored = ann.commit(vec![object("Site", "a", json!({}))]).await.unwrap();
    let stored = stored.outcomes[0].object.clone().unwrap().to_value().unwrap();
    assert_eq!(stored["spec"], json!({"number": 1}), "what it leaves out is filled in");
    assert_eq!((&stored["apiVersion"], &stored["kind"]), (&json!("made.dev/v1"), &json!("Site")));
    let wrong = ann.commit(vec![object("Site", "b", json!({"number": 9}))]).await.unwrap_err();
    assert!(matches!(&wrong, Error::Invalid { faults, .. } if faults[0].path == "spec.number"), "{wrong}");

    // Other rules hold for what is written from then on.
    let mut wider = made.clone();
    wider.spec.most = 20;
    let wider = ann.update(&made, &wider).await.unwrap();
    ann.commit(vec![object("Site", "b", json!({"number": 9}))]).await.unwrap();
    let mut narrower = wider.clone();
    narrower.spec.most = 2;
    ann.update(&wider, &narrower).await.unwrap();
    let b = objects.get(&kind("Site"), &ObjectRef::new("default", "b")).await.unwrap().to_value().unwrap();
    assert_eq!(b["spec"]["number"], 9, "what is there stays readable");
    assert!(ann.commit(vec![object("Site", "c", json!({"number": 9}))]).await.is_err());

    // Who has begun anew, or is another process over the same store, serves it as well.
    let (again, _) = open(&store).await;
    assert!(again.get(&kind("Site"), &ObjectRef::new("default", "a")).await.is_ok());
    assert!(self::ann(&again).commit(vec![object("Site", "c", json!({"number": 9}))]).await.is_err());
}

#[tokio::test]
async fn what_is_written_again_without_its_defaults_is_unchanged() {
    let (objects, _) = open(&Arc::new(Memory::new())).await;
    let ann = ann(&objects);
    ann.create(&definition("Site", 5)).await.unwrap();
    ann.commit(vec![object("Site", "a", json!({}))]).await.unwrap();
    let replace = Write::Update {
        kind: Arc::new(kind("Site")),
        reference: ObjectRef::new("default", "a"),
        part: Part::Main,
        patch: Patch::Replace(json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {}})),
        precondition: Precondition::default(),
    };
    assert!(!ann.commit(vec![replace]).await.unwrap().outcomes[0].changed);
}

#[tokio::test]
async fn a_definition_is_kept_while_there_are_objects_of_its_kind() {
    let store = Arc::new(Memory::new());
    let (objects, kinds) = open(&store).await;
    let ann = ann(&objects);
    let made = ann.create(&definition("Site", 5)).await.unwrap();
    ann.commit(vec![object("Site", "a", json!({})), object("Site", "b", json!({}))]).await.unwrap();
    for propagation in [Propagation::Background, Propagation::Foreground] {
        let kept = ann.delete(&made, propagation).await.unwrap_err();
        assert!(matches!(&kept, Error::Forbidden { detail, .. } if detail.contains("2 objects")), "{kept}");
    }
    let kept: Definition = ann.get(&made.object_ref()).await.unwrap();
    assert!(!kept.is_deleting(), "nothing was half done");
    ann.commit(vec![delete("Site", "a"), delete("Site", "b")]).await.unwrap();
    ann.delete(&made, Propagation::Background).await.unwrap();
    assert!(kinds.get("sites.made.dev").is_err());
    assert!(matches!(ann.commit(vec![object("Site", "a", json!({}))]).await, Err(Error::UnknownKind { .. })));
    // And it may come again, as another one.
    ann.create(&definition("Site", 0)).await.unwrap();
    assert!(ann.commit(vec![object("Site", "a", json!({"number": 1}))]).await.is_err());
}

#[tokio::test]
async fn a_dry_run_defines_nothing_and_a_definition_under_another_name_neither() {
    let (objects, kinds) = open(&Arc::new(Memory::new())).await;
    let trying = Client::new(objects.clone(), Writer::new("user:ann", "tests").trying());
    trying.create(&definition("Site", 5)).await.unwrap();
    assert!(kinds.get("sites.made.dev").is_err());
    let mut misnamed = definition("Site", 5);
    misnamed.metadata = ObjectMeta::named("pages.made.dev");
    ann(&objects).create(&misnamed).await.unwrap();
    assert!(kinds.get("sites.made.dev").is_err() && kinds.get("pages.made.dev").is_err());
}

#[tokio::test]
async fn others_over_the_same_store_follow() {
    let store = Arc::new(Memory::new());
    let (first, _) = open(&store).await;
    let (second, followed) = open(&store).await;
    let seams = Seams::real();
    let work = async {
        let ann = ann(&first);
        for round in 0..20 {
            let made = ann.create(&definition("Site", round)).await.unwrap();
            until("the second serves it", async || followed.get("sites.made.dev").is_ok()).await;
            ann.commit(vec![object("Site", "a", json!({"number": round}))]).await.unwrap();
            let seen = second.get(&kind("Site"), &ObjectRef::new("default", "a")).await.unwrap();
            assert_eq!(seen.to_value().unwrap()["spec"]["number"], round);
            ann.commit(vec![delete("Site", "a")]).await.unwrap();
            ann.delete(&made, Propagation::Background).await.unwrap();
            until("the second serves it no more", async || followed.get("sites.made.dev").is_err()).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = followed.follow(&*second, &seams) => panic!("it follows for ever"),
    }
}

/// Whoever watches sees each commit of a kind that comes and goes, whole and in order, and nobody takes harm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_live_through_kinds_that_come_and_go() {
    const ROUNDS: u64 = 60;
    let store = Arc::new(Memory::new());
    let (objects, kinds) = open(&store).await;
    let ann = ann(&objects);
    // One kind stays, so that its watch is one for all rounds.
    ann.create(&definition("Page", 1_000)).await.unwrap();
    let selections = vec![Selection::all_of(Arc::new(kind("Page"))), Selection::of::<Definition>()];
    let mut watch = objects.stream(selections, Start::Now).await.unwrap();
    let watcher = tokio::spawn(async move {
        let (mut pages, mut definitions) = (Vec::new(), 0);
        while let Some(event) = watch.next().await {
            let Event::Batch { changes, .. } = event.unwrap() else { continue };
            for change in changes {
                match change {
                    Change::Put { object, .. } if object.kind.kind == "Page" => {
                        pages.push(object.reference.name.clone())
                    }
                    Change::Put { .. } => definitions += 1,
                    Change::Gone { .. } => {}
                }
            }
            if pages.len() as u64 == ROUNDS {
                break;
            }
        }
        (pages, definitions)
    });
    let readers = [(); 3].map(|()| {
        let (objects, kinds) = (objects.clone(), kinds.clone());
        tokio::spawn(async move {
            let mut refused = 0;
            while kinds.get("ends.made.dev").is_err() {
                let selection = Selection::all_of(Arc::new(kind("Site")));
                match objects.list(&selection, PageRequest::default()).await {
                    Ok(list) => assert!(list.items.iter().all(|item| item.kind.kind == "Site")),
                    Err(Error::UnknownKind { .. }) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
                tokio::task::yield_now().await;
            }
            refused
        })
    });
    for round in 0..ROUNDS {
        let made = ann.create(&definition("Site", round)).await.unwrap();
        let name = format!("p{round}");
        ann.commit(vec![object("Site", "a", json!({"number": round})), object("Page", &name, json!({}))])
            .await
            .unwrap();
        ann.commit(vec![delete("Site", "a")]).await.unwrap();
        ann.delete(&made, Propagation::Background).await.unwrap();
    }
    ann.create(&definition("End", 1)).await.unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
    let (pages, definitions) = watcher.await.unwrap();
    assert_eq!(pages, (0..ROUNDS).map(|round| format!("p{round}")).collect::<Vec<_>>());
    assert!(definitions >= ROUNDS - 1, "{definitions}");
}

#[tokio::test]
async fn what_a_made_kind_owns_goes_with_it_and_with_no_other() {
    let store = Arc::new(Memory::new());
    let (objects, kinds) = open(&store).await;
    let ann = ann(&objects);
    ann.create(&definition("Page", 5)).await.unwrap();
    let seams = Seams::real();
    let manager = Manager::builder(objects.clone(), seams.clone())
        .controller(cascade::controller(objects.clone(), &kinds, seams.clone()))
        .build();
    let stop = Signal::new();
    let stopped = stop.clone();
    let work = async {
        // An owner of a kind that is not served here: nothing is concluded from not finding it.
        let owned_by = |name: &str, kind: &str, uid: &str| {
            let owner = OwnerReference {
                api_version: "made.dev/v1".into(),
                kind: kind.into(),
                name: "any".into(),
                uid: reconciler::Uid::new(uid),
                controller: true,
                block_owner_deletion: false,
            };
            let object =
                json!({"metadata": {"name": name, "namespace": "default", "ownerReferences": [owner]}, "spec": {}});
            Write::Create { kind: Arc::new(kind_of_page()), object }
        };
        ann.commit(vec![owned_by("stray", "Site", "gone-long-ago")]).await.unwrap();
        // The kind comes while the controller runs.
        ann.create(&definition("Site", 5)).await.unwrap();
        let site = ann.commit(vec![object("Site", "a", json!({}))]).await.unwrap().outcomes[0].object.clone().unwrap();
        let uid = site.to_value().unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        ann.commit(vec![owned_by("its", "Site", &uid)]).await.unwrap();
        let page = |name: &'static str| {
            let objects = objects.clone();
            async move { objects.get(&kind_of_page(), &ObjectRef::new("default", name)).await.is_ok() }
        };
        // Time in which something wrong could happen, told by something right that does.
        ann.commit(vec![object("Site", "b", json!({}))]).await.unwrap();
        ann.commit(vec![delete("Site", "b")]).await.unwrap();
        assert!(page("its").await);
        ann.commit(vec![delete("Site", "a")]).await.unwrap();
        until("what it owned goes", async || !page("its").await).await;
        stop.raise();
    };
    tokio::join!(work, manager.run(async move { stopped.raised().await }));
}

fn kind_of_page() -> Kind {
    kind("Page")
}

#[tokio::test]
async fn a_server_tells_of_the_kind_and_serves_its_parts() {
    let store = Arc::new(Memory::new());
    let (objects, kinds) = open(&store).await;
    let directory = std::env::temp_dir().join(format!("apply-definitions-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("apply.sock");
    let server = Server::new(objects, kinds, Seams::real());
    let socket = UnixSocket::bind(&path).await.unwrap();
    let serving = tokio::spawn(async move { server.serve(socket).await });
    let remote = Remote::unix(&path, Seams::real());
    let ask = async |method: &str, path: &str, body: Value| -> Result<Value, Error> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = remote.call(method.parse().unwrap(), path, body.into()).await?;
        Ok(serde_json::from_slice(&answer.bytes().await?).unwrap())
    };
    let get = async |path: &str| ask("GET", path, Value::Null).await;
    let sites = "/apis/made.dev/v1/namespaces/default/sites";
    assert!(matches!(get(sites).await, Err(Error::UnknownKind { .. })));

    let client = Client::new(Arc::new(remote.clone()), Writer::new("user:ann", "tests"));
    client.create(&definition("Site", 5)).await.unwrap();
    ask("POST", sites, json!({"metadata": {"name": "a"}, "spec": {}})).await.unwrap();
    assert_eq!(get(&format!("{sites}/a")).await.unwrap()["spec"], json!({"number": 1}));
    let groups = get("/apis").await.unwrap();
    assert!(groups.to_string().contains("made.dev"), "{groups}");
    let resources = get("/apis/made.dev/v1").await.unwrap();
    let names: Vec<&str> =
        resources["resources"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["sites", "sites/status", "sites/scale"]);
    assert!(get("/openapi/v3").await.unwrap().to_string().contains("apis/made.dev/v1"));
    get("/openapi/v3/apis/made.dev/v1").await.unwrap();

    let status = json!({"status": {"number": 3}, "metadata": {"name": "a"}});
    ask("PUT", &format!("{sites}/a/status"), status).await.unwrap();
    let scale = get(&format!("{sites}/a/scale")).await.unwrap();
    assert_eq!(
        (&scale["kind"], &scale["spec"], &scale["status"]["replicas"]),
        (&json!("Scale"), &json!({"replicas": 1}), &json!(3))
    );
    let mut wanted = scale.clone();
    wanted["spec"]["replicas"] = 4.into();
    let scaled = ask("PUT", &format!("{sites}/a/scale"), wanted.clone()).await.unwrap();
    assert_eq!(scaled["spec"]["replicas"], 4);
    let stale = ask("PUT", &format!("{sites}/a/scale"), wanted.clone()).await.unwrap_err();
    assert!(matches!(stale, Error::Conflict { .. }), "it names the version before: {stale}");
    for (count, fault) in [(json!(9), "spec.number"), (json!(-1), "spec.replicas"), (json!("4"), "spec.replicas")] {
        let refused = ask("PUT", &format!("{sites}/a/scale"), json!({"spec": {"replicas": count}})).await.unwrap_err();
        assert!(matches!(&refused, Error::Invalid { faults, .. } if faults[0].path == fault), "{refused}");
    }
    assert!(get("/apis/example.dev/v1/definitions/sites.made.dev/scale").await.is_err());
    serving.abort();
    std::fs::remove_dir_all(&directory).unwrap();
}
