//! A machine that works for a cluster: the controllers of its own, over the objects that a manager serves.
//!
//! Its socket answers what concerns the machine itself (logs, commands in containers, images, reset); for all else it says
//! where the managers are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use client::Events;
use controllers::applied::Applied;
use controllers::kinds::kinds;
use reconciler::ObjectRef;
use reconciler::cache::{Cache, Snapshot};
use reconciler::controller::{Manager, Signal};
use reconciler::objects::{Error, Objects, Remote, Writer};
use reconciler::seams::Seams;
use reconciler::server::{Access, Ask, Peer, Server, UnixSocket};
use schemas::kinds::node::{Node, Role};
use schemas::level::VERSION;
use tokio::sync::mpsc;

use super::agent::{Agents, Of};
use super::authorities::Own;
use super::data::FromManager;
use super::etcd::Managed;
use super::machine::machine;
use super::membership::{Member, Membership};
use super::options::MachineOptions;
use super::renewal::Later;
use super::{
    A_WORKER, Ended, answer, joining, leaving, managers, renewal, reset, routes, say_to_systemd, store, tidy_memory,
    told,
};
use crate::tls::{Credentials, Keyring, Managers};

/// Objects are a manager's to serve.
#[derive(Debug)]
struct Elsewhere {
    node: String,
    managers: Managers,
}

impl Access for Elsewhere {
    fn allow(&self, _: &Peer, _: &Ask<'_>) -> Result<(), String> {
        let managers: Vec<String> = self.managers.addresses().iter().map(|at| at.ip().to_string()).collect();
        Err(format!("{} {A_WORKER}, at {}", self.node, managers.join(" or ")))
    }
}

/// Until it is told to stop.
///
/// # Errors
/// In words, when it cannot begin.
pub(super) async fn serve(options: &MachineOptions, member: Member, seams: &Seams) -> Result<Ended> {
    let paths = options.paths();
    // Held for as long as this runs: a second one would be the same machine twice.
    let places = options.places();
    let _lock = store::locked(&places.lock(), seams).await?;
    let membership = Membership::new(&paths.data);
    managers::tidy_worker(&membership, &Managed::of(options), &places)?;
    let ring = Keyring::new(membership.credentials()?, seams)?;
    let managers = Managers::new(member.managers.clone(), ring.clone());
    let remote = Remote::new(Arc::new(managers.clone()), seams.clone());
    let objects: Arc<dyn Objects> = Arc::new(remote.clone());
    let mut machine = machine(options, seams)?;
    let asking = Arc::new(FromManager(remote.clone()));
    (machine.parts.logins, machine.parts.files) = (asking.clone(), asking);
    let node = member.node.clone();
    let builder = Manager::builder(objects.clone(), seams.clone())
        .events::<Events>(Writer::new(format!("node:{node}"), "events"));
    let applied = Applied::default();
    let own = Own::new(membership.clone(), ring.clone());
    let identity = Arc::new(own.clone());
    let manager =
        super::machine::controllers(builder, &node, &[], options, &machine, identity, &applied, seams)?.build();
    remote.count_in(manager.metrics());

    let socket = options.socket();
    let listener = UnixSocket::bind(&socket).await.with_context(|| format!("cannot listen at {}", socket.display()))?;
    let (ask, mut resets) = mpsc::channel(1);
    let parts = machine.parts_of_routes(&objects, paths, &node, None, seams);
    let called_back = routes::of_tasks(parts.clone());
    let extra = routes::routes(parts);
    let extra = extra.merge(reset::routes(machine.clone(), options, ask)).merge(leaving::of_worker(remote.clone()));
    let of_managers = ["/apis/apply/v1/backup", "/apis/apply/v1/logins/check"];
    let why = format!("{node} {A_WORKER}");
    let extra = extra.merge(answer::refused(&of_managers, why)).layer(axum::middleware::from_fn(answer::trusted));
    let version = serde_json::json!({
        "gitVersion": VERSION, "platform": "linux", "cluster": member.cluster, "role": "worker", "node": node,
        "addresses": managers.addresses(),
    });
    let (followed, known) = (manager.cache().clone(), manager.cache().clone());
    let server = Server::new(objects, kinds(), seams.clone())
        .access(Arc::new(Elsewhere { node: node.clone(), managers: managers.clone() }))
        .metrics(manager.metrics().clone())
        .version(version)
        .ready("manager", move || {
            let health = followed.health();
            if health.connected { Ok(()) } else { Err(health.last_error.unwrap_or_else(|| "not reached yet".into())) }
        })
        .merge(extra);

    tracing::info!(node, cluster = member.cluster, socket = %socket.display(), "applyd is up, a worker");
    let (stop, ended, again) = (Signal::new(), Signal::new(), Signal::new());
    let controllers = {
        let (stop, ended) = (stop.clone(), ended.clone());
        async move {
            manager.run(async move { stop.raised().await }).await;
            ended.raise();
        }
    };
    let next = async || next_certificate(&remote, &membership, &managers).await;
    let renewed = async {
        tokio::select! {
            () = renewal::keep(&own, seams, next) => {}
            () = stop.raised() => {}
        }
    };
    let agents = Agents {
        node: node.clone(),
        ring: ring.clone(),
        of: Of::Worker(managers.clone()),
        applied: applied.clone(),
        routes: called_back,
        seams: seams.clone(),
    };
    let first = managers.addresses();
    let alive = async {
        let are_now = |addresses: Vec<SocketAddr>| remembered(&membership, &managers, &node, addresses);
        let promoted = async {
            promoted(&member, &membership, &remote, &known, seams).await;
            again.raise();
        };
        tokio::select! {
            () = agents.run(&known, &first, are_now) => {}
            () = tidy_memory(&known, seams) => {}
            () = promoted => {}
            () = stop.raised() => {}
        }
    };
    let told = told(&mut resets, &stop, &ended, &again, &server, &machine, options);
    say_to_systemd("READY=1");
    let ((), (), (), (), told) = tokio::join!(controllers, renewed, alive, server.serve(listener), told);
    told
}

/// Where the managers are now: for the next connection, and for the next applyd.
fn remembered(membership: &Membership, managers: &Managers, node: &str, mut addresses: Vec<SocketAddr>) {
    if addresses.is_empty() {
        return;
    }
    // Each machine prefers another one.
    let start = node.bytes().map(usize::from).sum::<usize>() % addresses.len();
    addresses.rotate_left(start);
    managers.are_now(addresses.clone());
    membership.managers_are(addresses);
}

/// Until this worker is to be a manager, and its disk says so.
async fn promoted(member: &Member, membership: &Membership, remote: &Remote, known: &Cache, seams: &Seams) {
    let me = ObjectRef::cluster(&member.node);
    loop {
        let is_manager = |known: &Snapshot| known.get::<Node>(&me).is_some_and(|node| node.spec.role == Role::Manager);
        known.wait_for(is_manager).await;
        let became = async {
            let (now, credentials) = joining::next_certificate(remote).await?;
            if now.role == Role::Manager {
                membership.renew(&credentials)?;
                membership.remember(&now)?;
            }
            Ok::<bool, anyhow::Error>(now.role == Role::Manager)
        };
        match became.await {
            Ok(true) => return tracing::info!("this machine becomes a manager"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "this machine shall be a manager, and cannot yet")
            }
        }
        seams.sleep(renewal::SOON).await;
    }
}

/// For one that is no member any more there is no hurry.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The next certificate, from a manager, which also says where the managers are now.
async fn next_certificate(remote: &Remote, membership: &Membership, managers: &Managers) -> Result<Credentials, Later> {
    match joining::next_certificate(remote).await {
        Ok((member, credentials)) => {
            membership.remember(&member)?;
            managers.are_now(member.managers);
            Ok(credentials)
        }
        Err(Error::Forbidden { detail, .. }) => {
            Err(Later { why: anyhow!("this machine is no member of its cluster any more: {detail}"), again: ASK_AGAIN })
        }
        Err(error) => Err(error.into()),
    }
}
