//! This machine as it describes itself: its Node object and `status.machine`.
//!
//! **Owns** the Node of this machine's name, as far as nobody else has made it, and its `status.machine`.
//! **Relies on** the user for labels, availability and role.
//! **Promises** the description is that of the machine as it runs: another boot id after each boot.
//! **Woken by** its Node, and once an hour.

mod facts;

use std::sync::Arc;
use std::time::Duration;

use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::objects::Writer;
use reconciler::{ObjectRef, Resource};
use schemas::kinds::node::{Machine, Node, NodeSpec, NodeState, Role};

pub use facts::Facts;

/// Facts hardly ever change while the machine is up.
const AGAIN: Duration = Duration::from_secs(3600);

/// Tells what a machine is.
pub trait Describe: Send + Sync + 'static {
    fn machine(&self) -> Machine;
}

pub struct Machines {
    node: String,
    describe: Arc<dyn Describe>,
}

impl Machines {
    pub fn controller(node: &str, describe: Arc<dyn Describe>) -> Controller<Singleton> {
        let mine = node.to_owned();
        Controller::singleton("machine", Self { node: node.to_owned(), describe })
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
            // The first machine of a cluster is its manager.
            None => {
                cx.client()
                    .create(&Node::new(&self.node, NodeSpec { role: Role::Manager, ..NodeSpec::default() }))
                    .await?
            }
        };
        let mut desired = node.clone();
        let status = desired.status.get_or_insert_default();
        status.machine = Some(self.describe.machine());
        // With one machine, whoever writes this is alive.
        status.state = NodeState::Ready;
        status.observed_generation = node.metadata.generation;
        if desired.status != node.status {
            cx.client().update_status(&node, &desired).await?;
        }
        Ok(Action::Requeue(AGAIN))
    }
}
