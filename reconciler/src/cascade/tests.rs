//! Scenes for the plan, random graphs for its properties, and stories over a real store in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use reconciler_api::Resource;

use crate::controller::{Manager, Signal};
use crate::objects::{Client, StoreObjects, Writer};
use crate::store::memory::Memory;

use super::*;

#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Thing", crate = reconciler_api)]
pub struct ThingSpec {}

type World = BTreeMap<Uid, Owned>;

impl Graph for World {
    fn get(&self, uid: &Uid) -> Option<&Owned> {
        BTreeMap::get(self, uid)
    }

    fn all(&self) -> Box<dyn Iterator<Item = (&Uid, &Owned)> + '_> {
        Box::new(self.iter())
    }

    fn is_served(&self, _: &str, kind: &str) -> bool {
        kind == "Thing"
    }
}

/// `name[!][+finalizer…][<owner[*][?]…]`: `!` it is being deleted, `*` it blocks that owner's deletion, `?` the owner is
/// of a kind that is not served.
fn world(text: &str) -> World {
    text.split_whitespace()
        .map(|word| {
            let (head, owners) = word.split_once('<').unwrap_or((word, ""));
            let mut parts = head.split('+');
            let name = parts.next().unwrap();
            let uid = Uid::new(name.trim_end_matches('!'));
            let owner = |owner: &str| OwnerReference {
                api_version: "example.dev/v1".into(),
                kind: if owner.contains('?') { "Alien".into() } else { "Thing".into() },
                name: "any".into(),
                uid: Uid::new(owner.trim_end_matches(['*', '?'])),
                controller: false,
                block_owner_deletion: owner.contains('*'),
            };
            let object = Owned {
                kind: Arc::new(Thing::kind().clone()),
                reference: ObjectRef::new("default", uid.as_str()),
                owners: owners.split(',').filter(|owner| !owner.is_empty()).map(owner).collect(),
                deleting: name.ends_with('!'),
                finalizers: parts
                    .map(|finalizer| match finalizer {
                        "fg" => FOREGROUND.to_owned(),
                        "orphan" => ORPHAN.to_owned(),
                        other => other.to_owned(),
                    })
                    .collect(),
            };
            (uid, object)
        })
        .collect()
}

fn said(steps: &[Step]) -> String {
    let said = steps.iter().map(|step| match step {
        Step::Delete { uid, propagation: Propagation::Background, .. } => format!("delete {uid}"),
        Step::Delete { uid, propagation, .. } => format!("delete {uid} {propagation:?}"),
        Step::Disown { uid, of, .. } => {
            format!("disown {uid} of {}", of.iter().map(Uid::as_str).collect::<Vec<_>>().join(","))
        }
        Step::Finish { uid, .. } => format!("finish {uid}"),
    });
    said.collect::<Vec<_>>().join("; ")
}

#[test]
fn what_follows_from_who_owns_whom() {
    for (objects, uid, expected) in [
        ("a b<a", "a", ""),
        ("b<a c<a", "a", "delete b; delete c"),
        ("b<a", "b", "delete b"),
        ("b<a,x x", "a", "disown b of a"),
        ("b<a,x", "b", "delete b"),
        ("b!+other<a", "a", ""),
        // Not found is not gone where the kind is not known here, or no UID is said.
        ("b<a?", "a", ""),
        ("b<,a? c", "b", ""),
        ("a!+fg", "a", "finish a"),
        ("a!+fg b<a* c<b*", "a", "delete b Foreground"),
        ("a!+fg b<a*", "a", "delete b"),
        ("a!+fg b<a", "a", "delete b; finish a"),
        ("a!+fg b!+other<a*", "a", ""),
        ("a!+fg b<a*,x x", "a", "disown b of a; finish a"),
        ("a!+fg b<a*,x! x!+fg", "a", "delete b"),
        ("b<gone,a a!+fg", "b", "delete b Foreground"),
        ("a!+orphan b<a c<a", "a", "disown b of a; disown c of a"),
        ("a!+orphan+fg", "a", "finish a"),
        ("a+fg b<a", "a", ""),
        ("", "a", ""),
    ] {
        let world = world(objects);
        assert_eq!(said(&plan(&world, &Uid::new(uid))), expected, "{objects} | {uid}");
    }
}

/// The effect of a step, as the objects layer would have it.
fn carry_out(world: &mut World, step: &Step) {
    let uid = step.uid().clone();
    let Some(object) = world.get_mut(&uid) else { return };
    match step {
        Step::Delete { propagation, .. } => {
            object.deleting = true;
            if *propagation == Propagation::Foreground && !object.finalizers.iter().any(|name| name == FOREGROUND) {
                object.finalizers.push(FOREGROUND.into());
            }
        }
        Step::Disown { of, .. } => object.owners.retain(|owner| !of.contains(&owner.uid)),
        Step::Finish { finalizer, .. } => object.finalizers.retain(|name| name != finalizer),
    }
    if object.deleting && object.finalizers.is_empty() {
        world.remove(&uid);
    }
}

fn all_uids(world: &World) -> Vec<Uid> {
    let owners = world.values().flat_map(|object| object.owners.iter().map(|owner| owner.uid.clone()));
    world.keys().cloned().chain(owners).collect()
}

proptest! {
    /// Any graph, loops included, any order of steps, death after any of them: it comes to rest, and then nothing is
    /// left that only has owners that are gone, and nothing of ours holds what could go.
    #[test]
    fn every_graph_comes_to_rest(
        edges in prop::collection::vec((0..8_usize, 0..10_usize, any::<bool>()), 0..16),
        marks in prop::collection::vec((0..8_usize, 0..4_u8), 0..6),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 300),
    ) {
        let mut text: Vec<(String, String)> = (0..8).map(|n| (format!("u{n}"), String::new())).collect();
        for (n, mark) in marks {
            let name = &mut text[n].0;
            if !name.contains('+') {
                *name += ["!+fg", "!+orphan", "+other", "!+fg+orphan"][mark as usize];
            }
        }
        for (n, owner, blocks) in edges {
            // 8 and 9 never existed.
            text[n].1 += &format!(",u{owner}{}", if blocks { "*" } else { "" });
        }
        let words: Vec<String> = text.into_iter().map(|(head, owners)| format!("{head}<{owners}")).collect();
        let mut world = world(&words.join(" "));
        let innocent: Vec<Uid> = world
            .iter()
            .filter(|(_, object)| object.owners.is_empty() && !object.deleting)
            .map(|(uid, _)| uid.clone())
            .collect();
        for choice in choices {
            let steps: Vec<Step> = all_uids(&world).iter().flat_map(|uid| plan(&world, uid)).collect();
            if steps.is_empty() {
                break;
            }
            carry_out(&mut world, choice.get(&steps));
        }
        for uid in all_uids(&world) {
            prop_assert_eq!(said(&plan(&world, &uid)), "", "it did not come to rest: {:?}", world);
        }
        for uid in innocent {
            prop_assert!(world.contains_key(&uid), "{uid} belonged to nobody");
        }
        for object in world.values().filter(|object| !object.deleting && !object.owners.is_empty()) {
            let stays = object.owners.iter().any(|owner| world.contains_key(&owner.uid));
            prop_assert!(stays, "{object:?} is owned by nobody that is there");
        }
    }
}

struct Story {
    client: Client,
    stop: Signal,
    manager: Arc<Manager>,
    task: tokio::task::JoinHandle<()>,
}

async fn story() -> Story {
    let kinds = Kinds::new().with::<Thing>();
    let objects: Arc<dyn Objects> =
        Arc::new(StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds.clone(), Seams::real()).await.unwrap());
    let cascade = controller(objects.clone(), &kinds, Seams::real());
    let manager = Arc::new(Manager::builder(objects.clone(), Seams::real()).controller(cascade).build());
    let stop = Signal::new();
    let (running, until) = (manager.clone(), stop.clone());
    let task = tokio::spawn(async move { running.run(until.raised()).await });
    Story { client: Client::new(objects, Writer::new("user:ann", "tests")), stop, manager, task }
}

impl Story {
    async fn make(&self, name: &str, owners: &[&Thing]) -> Thing {
        let mut thing = Thing::new(name, ThingSpec {});
        thing.metadata.namespace = "default".into();
        thing.metadata.owner_references = owners
            .iter()
            .map(|owner| OwnerReference {
                api_version: Thing::kind().api_version(),
                kind: "Thing".into(),
                name: owner.name().to_owned(),
                uid: owner.metadata.uid.clone(),
                controller: false,
                block_owner_deletion: true,
            })
            .collect();
        self.client.create(&thing).await.unwrap()
    }

    /// Waits until exactly these are left.
    async fn left(&self, expected: &[&str]) -> Vec<Thing> {
        let mut seen = Vec::new();
        let poll = async {
            loop {
                let things: Vec<Thing> = self.client.list(None).await.unwrap();
                seen = things.iter().map(|thing| thing.name().to_owned()).collect();
                if seen == expected {
                    return things;
                }
                Seams::real().sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(10), poll).await {
            Ok(things) => things,
            Err(_) => panic!("{seen:?} are left, not {expected:?}\n{}", self.manager.metrics().text()),
        }
    }

    async fn end(self) {
        self.stop.raise();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn dependents_go_with_their_owner_however_deep() {
    let story = story().await;
    let a = story.make("a", &[]).await;
    let b = story.make("b", &[&a]).await;
    let c = story.make("c", &[&b]).await;
    let other = story.make("other", &[]).await;
    story.make("d", &[&c, &other]).await;
    story.client.delete(&a, Propagation::Background).await.unwrap();
    let left = story.left(&["d", "other"]).await;
    story.end().await;
    let owners: Vec<_> = left[0].metadata.owner_references.iter().map(|owner| owner.name.as_str()).collect();
    assert_eq!(owners, ["other"]);
}

#[tokio::test]
async fn a_namesake_of_a_deleted_owner_owns_nothing() {
    let story = story().await;
    let old = story.make("a", &[]).await;
    story.client.delete(&old, Propagation::Background).await.unwrap();
    let new = story.make("a", &[]).await;
    story.make("b", &[&old]).await;
    story.make("c", &[&new]).await;
    story.left(&["a", "c"]).await;
    story.end().await;
}

#[tokio::test]
async fn a_deletion_in_the_foreground_ends_with_the_owner() {
    let story = story().await;
    let a = story.make("a", &[]).await;
    let b = story.make("b", &[&a]).await;
    let mut held = story.make("c", &[&b]).await;
    let free = held.clone();
    held.metadata.finalizers = vec!["example.dev/held".into()];
    let held = story.client.update(&free, &held).await.unwrap();
    story.client.delete(&a, Propagation::Foreground).await.unwrap();
    let poll = async {
        while !story.client.get::<Thing>(&held.object_ref()).await.unwrap().is_deleting() {
            Seams::real().sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), poll).await.expect("the deletion reaches what is deepest");
    story.left(&["a", "b", "c"]).await;
    let seen = story.client.get::<Thing>(&held.object_ref()).await.unwrap();
    let mut freed = seen.clone();
    freed.metadata.finalizers.clear();
    story.client.update(&seen, &freed).await.unwrap();
    story.left(&[]).await;
    story.end().await;
}

#[tokio::test]
async fn dependents_may_be_left_behind() {
    let story = story().await;
    let a = story.make("a", &[]).await;
    story.make("b", &[&a]).await;
    story.make("c", &[&a]).await;
    story.client.delete(&a, Propagation::Orphan).await.unwrap();
    let left = story.left(&["b", "c"]).await;
    assert!(left.iter().all(|thing| thing.metadata.owner_references.is_empty()));
    story.end().await;
}
