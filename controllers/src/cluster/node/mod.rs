//! Whether a machine can be relied on: heard of, able to start tasks, or lost.
//!
//! **Owns** `status.state` of Nodes, and their condition `Heard`.
//! **Relies on** the machines for their heartbeats and their condition `Runtime`.
//! **Promises** a machine that is silent for the cluster's patience is Lost, and one that is heard of is not; time in which
//! this manager itself stood still is nobody's silence. Who was not heard of since this manager began to lead is what it was for
//! that long, then Unknown as long again, and only then Lost.
//! **Woken by** its Node and its heartbeats.

mod hearts;
mod plan;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler};
use reconciler::events::Level;
use reconciler::external::External;
use reconciler::seams::{Monotonic, Seams};
use reconciler::{ObjectRef, Truth};
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster, ClusterPeriods};
use schemas::kinds::node::{Node, NodeState};

pub use hearts::{Heard, Hearts, period};
use plan::{Plan, Seen};

/// The condition of a Node that says whether its heartbeats come.
pub const HEARD: &str = "Heard";
/// The condition of a Node, written by its machine, that says whether its container runtime answers.
const RUNTIME: &str = crate::node::machine::RUNTIME;

pub struct Nodes {
    /// The machine that this manager runs on: while this runs, it is heard of.
    own: String,
    hearts: External<Hearts>,
    /// Since when a Node is known to this controller, which begins when its manager begins to lead.
    since: Mutex<BTreeMap<String, Monotonic>>,
    seams: Seams,
}

impl Nodes {
    pub fn controller(own: &str, hearts: &External<Hearts>, seams: &Seams) -> Controller<String> {
        let nodes =
            Nodes { own: own.to_owned(), hearts: hearts.clone(), since: Mutex::default(), seams: seams.clone() };
        Controller::keyed("node", nodes)
            .watches::<Node, _>(|node, _| [node.metadata.name.clone()])
            .reads::<Cluster>()
            .watches_external(hearts, |name, _| [name.clone()])
    }

    /// How long it is known already.
    fn known_for(&self, name: &str) -> std::time::Duration {
        let now = self.seams.monotonic();
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        now.since(*since.entry(name.to_owned()).or_insert(now))
    }

    fn observe(&self, name: &str, node: Arc<Node>, cx: &Ctx) -> Seen {
        let cluster = cx.snapshot().get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME));
        let periods = cluster.map_or_else(ClusterPeriods::default, |cluster| cluster.spec.periods.clone());
        let nodes = cx.snapshot().count::<Node>();
        let heard = self.hearts.snapshot().and_then(|known| known.get(&name.to_owned()).cloned());
        let silent_for = match name == self.own {
            true => Some(std::time::Duration::ZERO),
            false => heard.map(|heard| self.hearts.world().silence(heard.at, self.seams.monotonic())),
        };
        Seen {
            node,
            silent_for,
            known_for: self.known_for(name),
            patience: period(&periods, nodes) * periods.heartbeats_missed,
        }
    }
}

impl KeyReconciler for Nodes {
    type Key = String;

    async fn reconcile(&self, name: &String, cx: &Ctx) -> Result<Action, Error> {
        let Some(node) = cx.snapshot().get::<Node>(&ObjectRef::cluster(name)).cloned() else {
            self.since.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            self.hearts.world().forget(name);
            return Ok(Action::Await);
        };
        let seen = self.observe(name, node.clone(), cx);
        let Plan { state, why, look_again } = plan::plan(&seen);
        let mut desired = (*node).clone();
        let status = desired.status.get_or_insert_default();
        let before = std::mem::replace(&mut status.state, state);
        let (truth, reason) = match state {
            NodeState::Lost => (Truth::False, "Silent"),
            NodeState::Unknown => (Truth::Unknown, "NotYet"),
            NodeState::Ready | NodeState::NotReady => (Truth::True, "Heartbeats"),
        };
        status.conditions.set(HEARD, truth, reason, why.clone(), node.metadata.generation, cx.now());
        if desired.status != node.status {
            cx.client().update_status(&*node, &desired).await?;
            match state {
                NodeState::Lost => cx.event_about(&*node, Level::Warning, "Lost", why),
                NodeState::Ready if before == NodeState::Lost => {
                    cx.event_about(&*node, Level::Normal, "Ready", "it is heard of again");
                }
                _ => {}
            }
        }
        Ok(look_again.map_or(Action::Await, Action::Requeue))
    }
}
