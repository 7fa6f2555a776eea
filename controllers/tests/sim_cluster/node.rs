//! Machines that beat, fall silent, come back and are removed, before a manager that dies and forgets whom it has heard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use controllers::cluster::node::{HEARD, Hearts, Nodes};
use controllers::node::machine::RUNTIME;
use reconciler::cache::Snapshot;
use reconciler::controller::Manager;
use reconciler::external::External;
use reconciler::seams::Seams;
use reconciler::sim::{Env, Scene, User};
use reconciler::{ObjectRef, Resource, Truth};
use schemas::kinds::node::{Node, NodeSpec, NodeState};

use super::cast::{kinds, set_status};
use super::{promises, suite};

/// The manager's own machine, and two that it hears of.
const OWN: &str = "n1";
const OTHERS: [&str; 2] = ["n2", "n3"];
const BEAT: Duration = Duration::from_millis(500);

/// What machines and manager share outside of the store: who is alive, and the ears of the manager that runs now.
#[derive(Clone, Default)]
struct Air(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    silent: BTreeMap<&'static str, bool>,
    /// What it has heard, and its clock.
    ears: Option<(Hearts, Seams)>,
}

impl Air {
    fn inside<T>(&self, look: impl FnOnce(&mut Inside) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_silent(&self, name: &str) -> bool {
        self.inside(|inside| inside.silent.get(name).copied().unwrap_or_default())
    }
}

fn scene(scene: Scene) -> Scene {
    let air = Air::default();
    let (ears, settled) = (air.clone(), air.clone());
    let mut scene = kinds(scene).process("manager", move |env: Env| {
        // Whoever begins has heard of nobody.
        let hearts = Hearts::default();
        ears.inside(|inside| inside.ears = Some((hearts.clone(), env.seams.clone())));
        let hearts = External::new("heartbeats", hearts, env.seams.clone());
        let manager = Manager::builder(env.objects, env.seams.clone())
            .controller(Nodes::controller(OWN, &hearts, &env.seams))
            .build();
        async move { manager.run(std::future::pending()).await }
    });
    for name in OTHERS {
        let (beats, turns) = (air.clone(), air.clone());
        scene = scene
            .process(name, move |env: Env| {
                let air = beats.clone();
                async move {
                    loop {
                        let ears = air.inside(|inside| inside.ears.clone());
                        if let Some((hearts, seams)) = ears.filter(|_| !air.is_silent(name)) {
                            hearts.heard(name, "boot", seams.monotonic());
                        }
                        env.seams.sleep(BEAT).await;
                    }
                }
            })
            .drift(if name == "n2" { "n2 falls silent or speaks again" } else { "n3 falls silent or speaks again" }, {
                move || turns.inside(|inside| *inside.silent.entry(name).or_default() ^= true)
            });
    }
    scene
        .workload(workload)
        .settles("every machine is what is heard of it", move |snapshot| as_heard(snapshot, &settled))
}

async fn workload(user: User) {
    for name in [OWN, "n2", "n3"] {
        user.create(&Node::new(name, NodeSpec::default())).await;
        user.pause().await;
    }
    for round in 0..6 {
        for name in [OWN, "n2", "n3"] {
            let answers = (round + name.len()) % 3 != 0;
            set_status::<Node>(&user, &ObjectRef::cluster(name), |node| {
                let status = node.status.get_or_insert_default();
                status.conditions.set(RUNTIME, answers, "Said", "", 1, reconciler::Timestamp::default());
            })
            .await;
            user.pause().await;
        }
        if round == 3 {
            user.delete::<Node>(&ObjectRef::cluster("n3")).await;
            user.pause().await;
            user.create(&Node::new("n3", NodeSpec::default())).await;
            user.pause().await;
        }
    }
}

fn as_heard(snapshot: &Snapshot, air: &Air) -> promises::Held {
    for node in snapshot.all::<Node>() {
        let status = node.status.clone().unwrap_or_default();
        let runtime = status.conditions.get(RUNTIME).map(|runtime| runtime.status);
        let (state, heard) = match (air.is_silent(node.name()), runtime) {
            (true, _) => (NodeState::Lost, Truth::False),
            (false, Some(Truth::True)) => (NodeState::Ready, Truth::True),
            (false, Some(_)) => (NodeState::NotReady, Truth::True),
            (false, None) => (NodeState::Unknown, Truth::Unknown),
        };
        let said = status.conditions.get(HEARD).map(|heard| heard.status);
        if status.state != state || said != Some(heard) {
            return Err(format!("{} is {:?} ({said:?}) and shall be {state:?}", node.name(), status.state));
        }
    }
    Ok(())
}

#[test]
fn node() {
    suite("node", 20, scene);
}
