//! A machine tells what it is, through boots and through whatever users do to its Node.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use controllers::node::machine::{Describe, Machines, RUNTIME};
use futures::FutureExt;
use futures::future::BoxFuture;
use reconciler::cache::Snapshot;
use reconciler::sim::{Scene, User};
use reconciler::{ObjectRef, Resource, Truth};
use schemas::kinds::node::{Availability, Load, Machine, Node, NodeSpec};

use super::cast::{NODE, applyd};
use super::power::Power;
use super::promises::Held;
use super::suite;
use super::tally::{Happened, Tally};

/// What a machine would say of itself. Clones share it.
#[derive(Clone, Default)]
struct Facts(Arc<Mutex<Machine>>, Arc<AtomicBool>, Arc<AtomicBool>);

impl Describe for Facts {
    fn machine(&self) -> Machine {
        self.0.lock().unwrap().clone()
    }

    fn load(&self) -> f64 {
        if self.2.load(Ordering::Relaxed) { 3.0 } else { 0.1 }
    }

    fn runtime(&self) -> BoxFuture<'_, Result<String, String>> {
        async { if self.is_silent() { Err("nobody listens".to_owned()) } else { Ok(String::new()) } }.boxed()
    }
}

impl Facts {
    /// Whether the container runtime does not answer.
    fn is_silent(&self) -> bool {
        self.1.load(Ordering::Relaxed)
    }
}

fn scene(scene: Scene, tally: &Tally) -> Scene {
    let (facts, power, tally) = (Facts::default(), Power::default(), tally.clone());
    let (told, boots, grows, right, cut) = (facts.clone(), facts.clone(), facts.clone(), facts.clone(), power.clone());
    let (counted, seen) = (tally.clone(), facts.clone());
    let (mutes, muted, busy) = (facts.clone(), tally.clone(), facts.clone());
    applyd(scene.kind::<Node>(), &power, move |manager, env| {
        manager.controller(Machines::controller(NODE, Arc::new(told.clone()), &env.seams))
    })
    .drift("containerd goes or comes", move || {
        muted.count(Happened::ContainerdAway);
        mutes.1.fetch_xor(true, Ordering::Relaxed);
    })
    .drift("work comes or goes", move || {
        busy.2.fetch_xor(true, Ordering::Relaxed);
    })
    .drift("the machine boots", move || {
        counted.count(Happened::PowerCut);
        boots.0.lock().unwrap().boot_id.push('b');
        cut.cut();
    })
    .drift("the machine boots with more memory", move || {
        let mut facts = grows.0.lock().unwrap();
        facts.boot_id.push('b');
        facts.resources.memory = schemas::Size::from_mib(facts.resources.memory.bytes() / (1 << 20) + 512);
        drop(facts);
        power.cut();
    })
    .workload(workload)
    .invariant("one node", |view| match view.now.all::<Node>().count() {
        0 | 1 => Ok(()),
        more => Err(format!("{more} nodes")),
    })
    .invariant("nothing is told that never was", move |view| {
        tally.saw(&seen.machine().boot_id);
        let said = view.now.all::<Node>().find_map(|node| node.status.as_ref()?.machine.clone());
        match said {
            Some(said) if !seen.machine().boot_id.starts_with(&said.boot_id) => Err(format!("it says {said:?}")),
            _ => Ok(()),
        }
    })
    .settles("the node is as the machine is", move |snapshot| as_it_is(snapshot, &right))
}

async fn workload(user: User) {
    let node = ObjectRef::cluster(NODE);
    user.create(&Node::new(NODE, NodeSpec::default())).await;
    for round in 0..8 {
        user.pause().await;
        user.update::<Node>(&node, |node| {
            node.metadata.labels = BTreeMap::from([("round".to_owned(), round.to_string())]);
        })
        .await;
        user.pause().await;
        user.update::<Node>(&node, |node| {
            node.spec.availability = if round % 2 == 0 { Availability::Pause } else { Availability::Active };
        })
        .await;
        user.pause().await;
        if round % 3 == 1 {
            user.delete::<Node>(&node).await;
        }
        if user.client().find::<Node>(&node).await.expect("no faults").is_none() {
            // It is taken in again.
            user.create(&Node::new(NODE, NodeSpec::default())).await;
        }
    }
    user.pause().await;
}

fn as_it_is(snapshot: &Snapshot, facts: &Facts) -> Held {
    let Some(node) = snapshot.get::<Node>(&ObjectRef::cluster(NODE)) else { return Err("there is no node".into()) };
    let status = node.status.clone().unwrap_or_default();
    let generation = node.metadata.generation;
    let told = status.conditions.get(RUNTIME).map(|runtime| runtime.status);
    let answers = Some(if facts.is_silent() { Truth::False } else { Truth::True });
    let load = Load::at(facts.load(), Load::Low);
    if status.load != load {
        return Err(format!("{} is said to be at {:?}", node.name(), status.load));
    }
    if status.machine != Some(facts.machine()) || told != answers || status.observed_generation != generation {
        return Err(format!("{} says {status:?} at generation {generation}", node.name()));
    }
    Ok(())
}

#[test]
fn facts_of_the_machine() {
    suite("machine", 20, 5, &[Happened::ContainerdAway, Happened::PowerCut], scene);
}
