//! Who may do what at the API. What is not said here is refused.
//!
//! Decided anew for each request, by the objects as they are at that moment: who was removed, or lost a role, is refused
//! with its next request, on whatever connection.

use std::sync::Arc;

use reconciler::api::Kind;
use reconciler::cache::{Cache, Snapshot};
use reconciler::server::{Access, Ask, Peer};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::node::{Node, Role};
use schemas::kinds::task::Task;
use schemas::kinds::{Cluster, Endpoints, Event, Network, RegistryLogin, Revision, Service, Volume};

/// The rights of machines; the administrators of this machine may do everything.
pub struct Rights {
    cache: Cache,
}

impl Rights {
    /// `cache` keeps Nodes and Tasks.
    pub fn new(cache: Cache) -> Self {
        Self { cache }
    }
}

impl Access for Rights {
    fn allow(&self, peer: &Peer, ask: &Ask<'_>) -> Result<(), String> {
        if peer.trusted {
            return Ok(());
        }
        let name = peer.identity.strip_prefix("node:").ok_or("only members of the cluster may")?;
        let known = self.cache.snapshot().ok_or("this manager has only begun and knows nobody yet; try again")?;
        allowed(name, &peer.uid, ask, &known)
    }
}

fn allowed(name: &str, uid: &str, ask: &Ask<'_>, known: &Snapshot) -> Result<(), String> {
    let node = known.get::<Node>(&ObjectRef::cluster(name));
    let Some(node) = node.filter(|node| node.metadata.uid.as_str() == uid) else {
        return Err(format!("{name} is not, or no longer, a machine of the cluster"));
    };
    if node.spec.role == Role::Manager || worker_may(name, ask, known) {
        return Ok(());
    }
    Err(format!("{name} is a worker, which may not"))
}

/// The kinds whose objects tell a worker what concerns it.
fn is_read(kind: &Kind) -> bool {
    let kinds = [
        Cluster::kind(),
        Node::kind(),
        Task::kind(),
        Revision::kind(),
        Service::kind(),
        Volume::kind(),
        Endpoints::kind(),
        Network::kind(),
        // What is secret in it leaves as a digest.
        RegistryLogin::kind(),
    ];
    kinds.contains(&kind)
}

/// As the design says: a worker reads what concerns it, writes the status of its Node, Tasks and Volumes, takes its own
/// finalizer off, and makes Events.
fn worker_may(name: &str, ask: &Ask<'_>, known: &Snapshot) -> bool {
    let is = |kind: &Kind| ask.kind == kind;
    match ask.verb {
        "get" | "list" | "watch" => is_read(ask.kind),
        "create" => is(Event::kind()),
        "update" | "patch" if is(Event::kind()) => true,
        "update" | "patch" if is(Node::kind()) => ask.subresource == "status" && ask.reference.name == name,
        "update" | "patch" if is(Task::kind()) => {
            let task: Option<&Arc<Task>> = known.get(ask.reference);
            task.is_some_and(|task| task.spec.node_name.as_deref() == Some(name))
        }
        "update" | "patch" if is(Volume::kind()) => {
            let volume: Option<&Arc<Volume>> = known.get(ask.reference);
            volume.is_some_and(|volume| volume.spec.node.as_deref() == Some(name))
        }
        _ => false,
    }
}

impl std::fmt::Debug for Rights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rights")
    }
}
