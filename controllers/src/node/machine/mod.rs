//! This machine as it describes itself: its Node object, `status.machine` and `status.load`.
//!
//! **Owns** the `status.machine` of the Node of this machine's name, how busy it is, and its condition `Runtime`.
//! **Relies on** the user for labels, availability and role.
//! **Promises** the description is that of the machine as it runs: another boot id after each boot; the condition says
//! whether its container runtime answers.
//! **Woken by** its Node, by the runtime that answers again or no more, and every ten seconds.

mod answers;
mod facts;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use reconciler::ObjectRef;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::external::External;
use reconciler::objects::Writer;
use reconciler::seams::Seams;
use schemas::kinds::node::{Load, Machine, Node};

use answers::Answers;
pub use facts::{Facts, addresses};

/// How busy it is may be another thing soon; addresses too.
const AGAIN: Duration = Duration::from_secs(10);

/// The condition of a Node that says whether its container runtime answers.
pub const RUNTIME: &str = "Runtime";

/// Tells what a machine is.
pub trait Describe: Send + Sync + 'static {
    fn machine(&self) -> Machine;

    /// What runs or waits to, over the last minute or so, to the number of processors.
    fn load(&self) -> f64;

    /// The version of the container runtime, or in words why it does not answer. Ends within seconds.
    fn runtime(&self) -> BoxFuture<'_, Result<String, String>>;
}

pub struct Machines {
    node: String,
    describe: Arc<dyn Describe>,
    runtime: External<Answers>,
}

impl Machines {
    pub fn controller(node: &str, describe: Arc<dyn Describe>, seams: &Seams) -> Controller<Singleton> {
        let mine = node.to_owned();
        let runtime = External::new("runtime", Answers::new(describe.clone(), seams), seams.clone());
        Controller::singleton("machine", Self { node: node.to_owned(), describe, runtime: runtime.clone() })
            .watches_external(&runtime, |_, _| [Singleton])
            .watches::<Node, _>(move |node, _| (node.metadata.name == mine).then_some(Singleton))
            .writer(Writer::new(format!("node:{node}"), "machine"))
    }
}

impl KeyReconciler for Machines {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let stored = cx.snapshot().get::<Node>(&ObjectRef::cluster(&self.node)).cloned();
        let node = match stored {
            Some(node) => (*node).clone(),
            // Whoever founds a cluster, or takes a machine in, makes it; without one this machine is no member.
            None => return Ok(Action::Await),
        };
        let Some(runtime) = self.runtime.snapshot().and_then(|known| known.get(&Singleton).cloned()) else {
            return Ok(Action::Await);
        };
        let mut desired = node.clone();
        let generation = node.metadata.generation;
        let status = desired.status.get_or_insert_default();
        let mut machine = self.describe.machine();
        match &*runtime {
            Ok(version) => {
                status.conditions.set(RUNTIME, true, "Answers", "", generation, cx.now());
                machine.versions.containerd.clone_from(version);
            }
            Err(why) => {
                let known = node.status.as_ref().and_then(|status| status.machine.clone()).unwrap_or_default();
                machine.versions.containerd = known.versions.containerd;
                status.conditions.set(RUNTIME, false, "NoAnswer", why, generation, cx.now());
            }
        }
        status.machine = Some(machine);
        status.load = Load::at(self.describe.load(), status.load);
        status.observed_generation = generation;
        if desired.status != node.status {
            let answers = |node: &Node| Some(node.status.as_ref()?.conditions.get(RUNTIME)?.status);
            if answers(&node) != answers(&desired) {
                match &*runtime {
                    Ok(_) => tracing::info!(node = self.node, "the container runtime of this machine answers"),
                    Err(why) => tracing::warn!(node = self.node, why, "this machine can start nothing"),
                }
            }
            cx.client().update_status(&node, &desired).await?;
        }
        Ok(Action::Requeue(AGAIN))
    }
}
