//! What the companion process of this machine shall do, from the tasks that are here.
//!
//! **Owns** the companion's table; pipes whose output has been taken.
//! **Relies on** the tasks controller for pipes, on the endpoints controller for names and ports.
//! **Promises** a companion process runs, and does what the table says, at once after it was killed.
//! **Woken by** pipes that come and end, Tasks of this machine, Endpoints, Networks, Services, Nodes; by the companion's
//! [`Life`](super::Life), where that is given to it; and every five seconds all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use reconciler::api::Uid;
use reconciler::cache::Snapshot;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::external::{External, Known, World};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::Cluster;
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::network::Network;
use schemas::kinds::node::Node;
use schemas::kinds::revision::Revision;
use schemas::kinds::service::{Protocol, Service};
use schemas::kinds::task::Task;
use schemas::kinds::template::TaskTemplate;
use tokio::sync::Mutex;

use super::{Client, ClientError, Listener, Status, Table};
use crate::applied::{self, Applied, Follower};
use crate::node::links::{GATEWAY, LinkName};
use crate::node::logs::{self, Log};
use crate::node::mesh::controller::loopback6;
use crate::node::mesh::follow;
use crate::node::mesh::{Protocol as Transport, PublishedPort};
use crate::node::names;
use crate::node::surroundings::{Output, Outputs, Paths};
use crate::node::tasks::OnNode;
use crate::node::wireguard;
use crate::node::wireguard::controller::{Kept, Ring, Speaking};

/// How soon a companion process is missed where nobody watches its life.
const LOOK: Duration = Duration::from_secs(5);
/// How long after it has begun whoever watches its life knows of a companion process: three of its looks.
const SEEN: Duration = Duration::from_millis(300);
/// What changes in the next moment goes with the next round, which writes and reads the whole table.
const GATHER: Duration = Duration::from_millis(50);
const DNS_PORT: u16 = 53;

/// Has a table put into effect.
pub trait Companion: Send + Sync + 'static {
    fn apply<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<Status, ClientError>>;
}

impl Companion for Mutex<Client> {
    fn apply<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<Status, ClientError>> {
        Box::pin(async move { self.lock().await.apply(table).await })
    }
}

/// Whose output is there to be collected: the pipes of attempts, by the names of their containers.
pub trait Pipes: World<Key = String, Item = Output> {
    fn paths(&self) -> &Paths;

    /// Takes away the pipes of an attempt whose output has been taken. What is not there is success.
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, io::Result<()>>;
}

impl Pipes for Outputs {
    fn paths(&self) -> &Paths {
        Outputs::paths(self)
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { Outputs::remove(self, id) })
    }
}

/// What the encrypted way to other machines is made with, on this machine.
#[derive(Clone)]
pub struct Tunnelling {
    /// The link that it comes by.
    pub device: LinkName,
    /// Where it is listened for what other machines send.
    pub port: u16,
    pub ring: Arc<dyn Ring>,
    pub speaking: Speaking,
}

pub struct Keeps<P: Pipes> {
    node: String,
    companion: Arc<dyn Companion>,
    outputs: External<P>,
    applied: Applied,
    tunnelling: Tunnelling,
    /// The process that had the table last.
    worked: AtomicU32,
}

impl<P: Pipes> Keeps<P> {
    pub fn controller(
        node: &str,
        companion: Arc<dyn Companion>,
        outputs: &External<P>,
        tunnelling: Tunnelling,
    ) -> Controller<Singleton> {
        Self::telling(node, companion, outputs, tunnelling, Applied::default())
    }

    /// The same, that says how far its names have come.
    pub fn telling(
        node: &str,
        companion: Arc<dyn Companion>,
        outputs: &External<P>,
        tunnelling: Tunnelling,
        applied: Applied,
    ) -> Controller<Singleton> {
        let mine = node.to_owned();
        let keeps = Self {
            node: node.to_owned(),
            companion,
            outputs: outputs.clone(),
            applied,
            tunnelling,
            worked: AtomicU32::new(0),
        };
        Controller::singleton("keep", keeps)
            .index::<OnNode>()
            .reads::<Revision>()
            .watches_all::<Endpoints>()
            .watches_all::<Network>()
            .watches_all::<Service>()
            .watches_all::<Node>()
            .reads::<Cluster>()
            .watches::<Task, _>(move |task, _| (task.spec.node_name.as_ref() == Some(&mine)).then_some(Singleton))
            .watches_external(outputs, |_, _| [Singleton])
    }
}

impl<P: Pipes> KeyReconciler for Keeps<P> {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let Some(outputs) = self.outputs.snapshot() else { return Ok(Action::Requeue(LOOK)) };
        let kept = self.tunnelling.ring.read().map_err(Error::retry)?;
        let tunnel = tunnel(cx.snapshot(), &self.node, &self.tunnelling, &kept);
        let table = plan(cx.snapshot(), &self.node, &outputs, self.outputs.world().paths(), tunnel);
        let status = self.companion.apply(&table).await.map_err(Error::retry)?;
        self.tunnelling.speaking.set(&status.sessions.by, cx.seams().monotonic());
        self.applied.reached(&self.node, Follower::Names, applied::newest(cx.snapshot()));
        if !status.faults.is_empty() {
            tracing::warn!(faults = ?status.faults, "the companion process cannot do all that it shall");
        }
        // One that cannot be removed does not hold up the others.
        let taken = outputs.iter().filter(|(id, output)| output.finished && !status.faults.logs.contains_key(*id));
        let mut removed = Ok(());
        for (id, _) in taken {
            removed = removed.and(self.outputs.world().remove(id).await);
        }
        removed.map_err(Error::retry)?;
        cx.seams().sleep(GATHER).await;
        // Whoever watches its life finds a new one within a moment. One that dies sooner nobody has seen.
        let is_new = self.worked.swap(status.pid, Ordering::Relaxed) != status.pid;
        Ok(Action::Requeue(if is_new { SEEN } else { LOOK }))
    }
}

/// The table. Pure.
fn plan<P: Pipes>(
    snapshot: &Snapshot,
    node: &String,
    outputs: &Known<P>,
    paths: &Paths,
    tunnel: Option<wireguard::Table>,
) -> Table {
    let here: Vec<&Arc<Task>> = snapshot.by::<OnNode>(node).collect();
    let by_uid: BTreeMap<&Uid, &Arc<Task>> = here.iter().map(|task| (&task.metadata.uid, *task)).collect();
    let template = |uid: &Uid| {
        let task = by_uid.get(uid)?;
        let revision = ObjectRef::new(&task.metadata.namespace, &task.spec.revision);
        snapshot.get::<Revision>(&revision)?.spec.content.template()
    };
    Table {
        logs: outputs.iter().map(|(id, output)| log(id, output, template(&output.uid), paths)).collect(),
        names: name_table(snapshot, &here, &template),
        listeners: listeners(snapshot, node),
        tunnel,
    }
}

/// None where nothing goes to other machines, or goes in the clear. A machine whose keys are not known is sent nothing.
fn tunnel(snapshot: &Snapshot, node: &str, with: &Tunnelling, kept: &[Kept]) -> Option<wireguard::Table> {
    let mut others = follow::peers(snapshot, node).peekable();
    if !follow::is_encrypted(snapshot) || kept.is_empty() || others.peek().is_none() {
        return None;
    }
    let own = snapshot.get::<Node>(&ObjectRef::cluster(node)).and_then(|node| follow::addresses(node).first().copied());
    let peer = |(other, address): (&Node, Ipv4Addr)| {
        let tunnel = other.status.as_ref()?.tunnel.as_ref()?;
        let reached = follow::addresses(other);
        // By the family that this machine prefers itself, if it may choose.
        let alike = |at: &&IpAddr| own.is_none_or(|own| own.is_ipv4() == at.is_ipv4());
        let at = reached.iter().find(alike).or(reached.first())?;
        let keys = tunnel.keys.iter().filter_map(|key| key.parse().ok()).collect();
        Some(wireguard::Peer { address, endpoint: SocketAddr::new(*at, tunnel.port), keys })
    };
    Some(wireguard::Table {
        device: with.device.to_string(),
        port: with.port,
        keys: kept.iter().map(|kept| kept.key.clone()).collect(),
        peers: others.filter_map(peer).collect(),
    })
}

fn log(id: &str, output: &Output, template: Option<&TaskTemplate>, paths: &Paths) -> Log {
    let options = template.map(|template| template.log.options.clone()).unwrap_or_default();
    Log {
        id: id.to_owned(),
        pipes: paths.pipes(),
        dir: logs::attempt_dir(&paths.logs(&output.uid), output.attempt),
        max_size_bytes: options.max_size().bytes(),
        max_files: options.max_file(),
        finished: output.finished,
    }
}

fn name_table<'a>(
    snapshot: &Snapshot,
    here: &[&Arc<Task>],
    template: &impl Fn(&Uid) -> Option<&'a TaskTemplate>,
) -> names::Table {
    let live = here.iter().filter(|task| task.status.as_ref().is_some_and(|status| !status.state.is_terminal()));
    let tasks: Vec<names::Task> = live
        .map(|task| names::Task {
            namespace: task.metadata.namespace.clone(),
            name: task.metadata.name.clone(),
            bundle: task.metadata.labels.get(BUNDLE).cloned(),
            addresses: task.status.as_ref().map(|status| status.addresses.clone()).unwrap_or_default(),
            resolvers: template(&task.metadata.uid).map(|t| t.container.dns.servers.clone()).unwrap_or_default(),
        })
        .collect();
    if tasks.is_empty() {
        return names::Table::default();
    }
    let attached: BTreeSet<ObjectRef> = tasks
        .iter()
        .flat_map(|task| task.addresses.iter().map(|at| ObjectRef::new(&task.namespace, &at.network)))
        .collect();
    let networks: Vec<names::Network> = attached
        .iter()
        .filter_map(|reference| snapshot.get::<Network>(reference))
        .map(|network| {
            let status = network.status.clone().unwrap_or_default();
            names::Network {
                namespace: network.metadata.namespace.clone(),
                name: network.metadata.name.clone(),
                subnets: status.subnet.into_iter().chain(status.subnet6).collect(),
            }
        })
        .collect();
    let concerns = |endpoints: &&Arc<Endpoints>| {
        let namespace = &endpoints.metadata.namespace;
        endpoints.spec.networks.iter().any(|at| attached.contains(&ObjectRef::new(namespace, &at.network)))
    };
    let services: Vec<names::Service> = snapshot
        .all::<Endpoints>()
        .filter(concerns)
        .map(|endpoints| {
            let service = snapshot.get::<Service>(&endpoints.object_ref());
            names::Service {
                namespace: endpoints.metadata.namespace.clone(),
                bundle: service.and_then(|service| service.metadata.labels.get(BUNDLE).cloned()),
                endpoints: endpoints.spec.clone(),
            }
        })
        .collect();
    names::compile(&[SocketAddr::from((GATEWAY, DNS_PORT))], &networks, &services, &tasks)
}

const BUNDLE: &str = "apply/bundle";

/// The kernel translates what is sent to an IPv4 address, but nothing that is sent to `[::1]`, nor what is sent to another
/// IPv6 address of the machine where tasks have IPv4 addresses only.
fn listeners(snapshot: &Snapshot, node: &str) -> Vec<Listener> {
    let listener = |port: PublishedPort, address: Ipv6Addr, target: SocketAddr| Listener {
        protocol: match port.protocol {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
        },
        listen: SocketAddr::from((address, port.port)),
        target,
    };
    let status = snapshot.get::<Node>(&ObjectRef::cluster(node)).and_then(|node| node.status.as_ref());
    let machine = status.and_then(|status| status.machine.as_ref());
    let told = machine.map(|machine| machine.addresses.as_slice()).unwrap_or_default();
    let known = told.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    });
    let addresses: BTreeSet<Ipv6Addr> = known.chain([Ipv6Addr::LOCALHOST]).collect();
    let passed = loopback6(snapshot, node).into_iter();
    passed
        .flat_map(|(port, target)| {
            let here = move |address: &Ipv6Addr| target.is_ipv4() || address.is_loopback();
            addresses.iter().filter(move |address| here(address)).map(move |address| listener(port, *address, target))
        })
        .collect()
}
