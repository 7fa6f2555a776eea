//! A machine that manages: the store, the API at its socket and at its port, the controllers of the cluster and its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use client::Events;
use controllers::cluster::node::Nodes;
use controllers::cluster::{authority, bundle, endpoints, history, network, orphan, scheduler, service, volume};
use controllers::identity::Authority;
use controllers::kinds::{Leases, kinds};
use reconciler::cache::Declarations;
use reconciler::cascade;
use reconciler::controller::{Manager, Signal};
use reconciler::external::External;
use reconciler::leadership::Election;
use reconciler::objects::encoding::Sealer;
use reconciler::objects::{Client, Kinds, Objects, StoreObjects, Writer};
use reconciler::seams::{Purpose, Seams};
use reconciler::server::{Limits, Server, UnixSocket};
use reconciler::store::embedded::{self, keep_snapshots_of};
use reconciler::store::{Key, Store};
use reconciler::{ObjectRef, Resource};
use rustix::process::{Resource as Rlimit, getrlimit};
use schemas::defaults::LEASE_TTL;
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster, ClusterSpec};
use schemas::kinds::grant::Grant;
use schemas::kinds::namespace::Namespace;
use schemas::kinds::node::{Node, NodeSpec, Role};
use schemas::kinds::user::User;
use schemas::level::VERSION;
use tokio::sync::mpsc;

use super::audit::{Audit, Audited};
use super::authorities::{Held, Own};
use super::backup::Places;
use super::etcd::Managed;
use super::machine::{Made, machine, node_name};
use super::membership::{Member, Membership};
use super::note::Note;
use super::options::MachineOptions;
use super::restore::{Sealed, sealed};
use super::rights::Rights;
use super::store::Opened;
use super::{
    Ended, LEASE_NAMESPACE, ROOT, agent, alone, answer, authorities, backup, data, joining, leaving, lock, managers,
    people, renewal, reset, routes, say_to_systemd, store, tidy_memory, told,
};
use crate::tls::{Credentials, Keyring, TlsPort};

/// Until it is told to stop.
///
/// # Errors
/// In words, when it cannot begin.
pub(super) async fn serve(options: &MachineOptions, seams: &Seams) -> Result<Ended> {
    let paths = options.paths();
    let places = options.places();
    let membership = Membership::new(&paths.data);
    // First of all: it refuses to be opened twice, and with that everything below.
    let Some(opened) = store::open(options, &membership, &places, seams).await? else { return Ok(Ended::Again) };
    let store = opened.store();
    let sealer = sealer(&places, &*store, &membership).await?;
    let kinds = kinds();
    let objects = StoreObjects::open_above(store, ROOT, kinds.clone(), seams.clone(), places.line_seen()?).await?;
    let (line, epoch) = (objects.base(), objects.epoch());
    places.saw_line(line)?;
    let folder = paths.data.join("audit");
    let audit = Audit::open(&folder, seams).with_context(|| format!("cannot write to {}", folder.display()))?;
    let admission = Arc::new(Audited::new(audit.clone()));
    let stored = Arc::new(objects.sealed_by(sealer.clone()).admitted_by(admission.clone()));
    let objects: Arc<dyn Objects> = stored.clone();
    let Some((member, role)) = founded(&objects, &membership, &opened, &*sealer, options, seams).await? else {
        return Ok(Ended::Again);
    };
    let ring = Keyring::new(membership.credentials()?, seams)?;
    let own = Own::new(membership.clone(), ring.clone());
    let authorities = Held::open(own.clone(), &member, sealer.clone(), seams)?;
    authorities::settle(&Client::new(objects.clone(), Writer::new("applyd", "init")), &authorities).await?;
    let node = member.node.clone();
    let mut machine = machine(options, seams)?;
    machine.parts.logins = stored.clone();
    machine.parts.files = stored;
    let (fenced, renewing) = (objects.clone(), objects.clone());
    let said = agent::Said::default();
    let socket = options.socket();
    let listener = UnixSocket::bind(&socket).await.with_context(|| format!("cannot listen at {}", socket.display()))?;
    let port = TlsPort::bind(options.listen, ring.clone()).await;
    let port = port.with_context(|| format!("cannot listen for other machines at {}; say --listen", options.listen))?;
    let reached = reached_at(options, &port)?;
    let manager = manager(&node, &reached, &opened, &authorities, options, &machine, &objects, &kinds, &said, seams)?;
    authorities.follow(manager.cache().clone());
    let (turned_away, counted) = (audit.clone(), manager.metrics().clone());
    let port = port.refusals(move |away| {
        counted.refused(away.counted_as);
        if !away.is_again {
            turned_away.turned_away(away.from, &away.why);
        }
    });
    let parts = machine.parts_of_routes(&objects, paths, &node, Some(said.calls.clone()), seams);
    let called_back = routes::of_tasks(parts.clone());
    let extra = routes::routes(parts);
    let (ask, mut resets) = mpsc::channel(1);
    let copies = match &opened {
        Opened::Embedded(_) | Opened::Managed { .. } => backup::routes(opened.store(), places.clone()),
        Opened::Etcd { place, .. } => backup::refused(place, &places),
    };
    let extra = extra.merge(copies).merge(reset::routes(machine.clone(), options, ask));
    let registrar = joining::Registrar {
        client: Client::new(objects.clone(), Writer::new("applyd", "join")),
        authorities: authorities.clone(),
        addresses: reached.clone(),
        cache: manager.cache().clone(),
        votes: match &opened {
            Opened::Managed { store, .. } => Some(store.clone()),
            Opened::Embedded(_) | Opened::Etcd { .. } => None,
        },
        cluster: member.cluster.clone(),
        seams: seams.clone(),
    };
    let rights = Rights::new(manager.cache().clone(), seams);
    admission.follow(manager.cache(), &rights);
    let permitted = axum::middleware::from_fn_with_state(answer::Gate::new(rights.clone()), answer::permitted);
    let extra = extra.merge(people::routes(registrar.clone())).layer(permitted).merge(joining::routes(registrar));
    let cache = manager.cache().clone();
    let door = agent::Door { said: said.clone(), cache, line, epoch: epoch.0.clone(), seams: seams.clone() };
    let parts = &machine.parts;
    let teller =
        data::Teller { cache: manager.cache().clone(), logins: parts.logins.clone(), files: parts.files.clone() };
    let (stop, ended, again) = (Signal::new(), Signal::new(), Signal::new());
    let entrance = managers::Door {
        opened: opened.clone(),
        managed: Managed::of(options),
        places: places.clone(),
        to_etcd: Note::to_etcd(&options.data),
        line,
        name: node.clone(),
        authorities: authorities.clone(),
        sealer: sealer.clone(),
        cache: manager.cache().clone(),
        again: again.clone(),
    };
    let exit = leaving::Door {
        client: Client::new(renewing.clone(), Writer::new("applyd", "leave")),
        cache: manager.cache().clone(),
    };
    let extra = extra.merge(agent::routes(door)).merge(data::told(teller)).merge(managers::routes(entrance));
    let extra = extra.merge(leaving::routes(exit));
    let extra = extra.merge(authorities::routes(authorities.clone(), manager.cache().clone()));
    let extra = extra.merge(alone::routes(opened.clone(), Note::alone(&options.data), again.clone(), seams));
    let version = serde_json::json!({
        "gitVersion": VERSION, "platform": "linux", "store": opened.word(), "cluster": member.cluster,
        "role": "manager", "node": node, "authority": authorities.signing().fingerprint().to_string(), "addresses": reached,
    });
    let (definitions, defining) = (kinds.clone(), objects.clone());
    let server = Server::new(objects, kinds, seams.clone())
        .access(Arc::new(rights))
        .limits(Limits { connections: connections(), ..Limits::default() })
        .metrics(manager.metrics().clone())
        .version(version)
        .merge(extra);
    let refusals = audit.clone();
    let server = server.refusals(move |refused| refusals.refused(refused));
    let (health, followed) = (opened.clone(), manager.cache().clone());
    let calmed = followed.clone();
    let server = server.core(Namespace::kind()).ready("store", move || match &health {
        Opened::Embedded(store) => match store.health() {
            embedded::Health::Writable => Ok(()),
            other => Err(format!("{other:?}")),
        },
        Opened::Managed { .. } | Opened::Etcd { .. } => {
            let health = followed.health();
            if health.connected { Ok(()) } else { Err(health.last_error.unwrap_or_else(|| "not reached yet".into())) }
        }
    });
    // In a file nobody else writes; in an etcd somebody may, and then one acts for the cluster, with a fence in every
    // commit.
    let election = (!matches!(opened, Opened::Embedded(_))).then(|| {
        let lease = ObjectRef::new(LEASE_NAMESPACE, "controllers");
        Election::<Leases>::new(fenced, seams.clone(), "controllers", lease, &*node, LEASE_TTL.value.get())
    });

    tracing::info!(node, socket = %socket.display(), version = VERSION, "applyd is up");
    let (later, mut by_later) = mpsc::channel(1);
    let (outlived_at, epoch) = (places.clone(), epoch.0);
    // Those of the other managers: this one knows of itself.
    let agents = agent::Agents {
        node: node.clone(),
        ring: ring.clone(),
        of: agent::Of::Manager { line, epoch, later },
        applied: said.applied.clone(),
        routes: called_back,
        seams: seams.clone(),
    };
    let (others, held) = (manager.cache().clone(), opened.clone());
    let alive = async {
        // Whom to ask what this machine is, should its own etcd not answer.
        let are_now = |addresses| membership.managers_are(addresses);
        let becomes_another = async {
            managers::changes(&member, role, &membership, &held, &ring, &others, seams).await;
            again.raise();
        };
        let is_outlived = async {
            managers::is_outlived(&mut by_later, &member, &membership, &held, &outlived_at, &ring, seams).await;
            again.raise();
        };
        tokio::select! {
            () = agents.run(&others, &[], are_now) => {}
            () = becomes_another => {}
            () = is_outlived => {}
            () = stop.raised() => {}
        }
    };
    let controllers = {
        let (stop, quiet) = (stop.clone(), ended.clone());
        async move {
            let stopped = async move { stop.raised().await };
            match &election {
                // On its way to be a worker.
                Some(_) if role == Role::Worker => manager.run_everywhere(stopped).await,
                Some(election) => manager.run_elected(election, stopped).await,
                None => manager.run(stopped).await,
            }
            quiet.raise();
        }
    };
    let snapshots = {
        let stop = stop.clone();
        let (seams, policy, root) = (seams.clone(), places.snapshots(), Key::new(format!("{ROOT}/")));
        async move {
            match &opened {
                Opened::Embedded(store) => tokio::select! {
                    () = store.keep_snapshots(&seams, &policy) => {}
                    () = stop.raised() => {}
                },
                Opened::Managed { store, managed, .. } => tokio::select! {
                    () = keep_snapshots_of(&**store, &root, &seams, &policy) => {}
                    () = managed.keep(&seams) => {}
                    () = stop.raised() => {}
                },
                Opened::Etcd { .. } => stop.raised().await,
            }
        }
    };
    let tidied = async {
        tokio::select! {
            () = tidy_memory(&calmed, seams) => {}
            () = said.hearts.mind_itself(seams) => {}
            // Those that are written by way of other managers.
            () = definitions.follow(&*defining, seams) => {}
            () = stop.raised() => {}
        }
    };
    let told = told(&mut resets, &stop, &ended, &again, &server, &machine, options);
    // A manager makes its own certificates, with nobody's leave.
    let client = Client::new(renewing, Writer::new("applyd", "renew"));
    let next = async || {
        let life = joining::certificate_life(&client).await?;
        let mut next = own_certificate(&authorities.signing(), &member, authorities.believed(), life, seams)?;
        next.chain.push_str(&authorities.bridge());
        Ok(next)
    };
    let renewed = async {
        tokio::select! {
            () = renewal::keep(&own, seams, next) => {}
            () = stop.raised() => {}
        }
    };
    say_to_systemd("READY=1");
    let served = async { tokio::join!(server.serve(listener), server.serve(port)) };
    let ((), (), (), (), (), _, told) = tokio::join!(controllers, snapshots, tidied, renewed, alive, served, told);
    audit.flush();
    told
}

#[expect(clippy::too_many_arguments, reason = "all that a manager is made of, once")]
fn manager(
    node: &str,
    reached: &[SocketAddr],
    opened: &Opened,
    authorities: &Held,
    options: &MachineOptions,
    machine: &Made,
    objects: &Arc<dyn Objects>,
    kinds: &Kinds,
    said: &agent::Said,
    seams: &Seams,
) -> Result<Manager> {
    let hearts = External::new("heartbeats", said.hearts.clone(), seams.clone());
    let builder = Manager::builder(objects.clone(), seams.clone())
        // Asked with each request, what people may do.
        .declares(&Declarations::new().kind::<User>().kind::<Grant>())
        .controller(bundle::Bundles::controller())
        .controller(service::Services::following(said.applied.clone()))
        .controller(scheduler::Scheduler::controller())
        .controller(Nodes::controller(node, &hearts, seams))
        .controller(orphan::Orphans::controller())
        .controller(volume::Volumes::controller())
        .controller(authority::Rotation::controller(Arc::new(authorities.clone())))
        .controller(history::History::controller(history::Limits::default()))
        .controller(network::Networks::controller())
        .controller(endpoints::EndpointsController::controller())
        .controller(cascade::controller(objects.clone(), kinds, seams.clone()))
        .events::<Events>(Writer::controller("events"));
    let builder = match opened {
        Opened::Managed { store, .. } => {
            let votes = Arc::new(managers::StoreVotes(store.clone()));
            builder.controller(controllers::cluster::managers::Managers::controller(votes, seams))
        }
        Opened::Embedded(_) | Opened::Etcd { .. } => builder,
    };
    let identity = Arc::new(authorities.clone());
    Ok(super::machine::controllers(builder, node, reached, options, machine, identity, &said.applied, seams)?.build())
}

/// The one Cluster object and this machine's Node, made once, and what that says it shall be; and with them this machine's
/// membership, its certificate naming that very Node. `None`: it was removed from among others, and its disk says so.
async fn founded(
    objects: &Arc<dyn Objects>,
    membership: &Membership,
    opened: &Opened,
    sealer: &dyn Sealer,
    options: &MachineOptions,
    seams: &Seams,
) -> Result<Option<(Member, Role)>> {
    let client = Client::new(objects.clone(), Writer::new("applyd", "init"));
    let cluster = match client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await? {
        Some(cluster) => cluster,
        None => client.create(&Cluster::new(CLUSTER_NAME, ClusterSpec::default())).await?,
    };
    let known = membership.read()?;
    let mut id = cluster.status.as_ref().map(|status| status.id.clone()).unwrap_or_default();
    if id.is_empty() {
        id = known
            .as_ref()
            .map_or_else(|| format!("{:016x}", seams.random.next(Purpose::Identity)), |member| member.cluster.clone());
        let mut named = cluster.clone();
        named.status.get_or_insert_default().id.clone_from(&id);
        client.update_status(&cluster, &named).await?;
    }
    let name = match &known {
        Some(member) => member.node.clone(),
        None => node_name(options)?,
    };
    if options.node.as_ref().is_some_and(|told| *told != name) {
        tracing::warn!(node = name, told = options.node, "this machine keeps the name that it has in the cluster");
    }
    let reference = ObjectRef::cluster(&name);
    let node = match client.find::<Node>(&reference).await? {
        Some(node) => node,
        None if let (Opened::Managed { .. }, Some(known)) = (opened, &known)
            && !known.managers.is_empty() =>
        {
            let ring = Keyring::new(membership.credentials()?, seams)?;
            managers::without_vote(known, membership, &ring, None, seams).await;
            return Ok(None);
        }
        None => client.create(&Node::new(&name, NodeSpec { role: Role::Manager, ..NodeSpec::default() })).await?,
    };
    let uid = node.metadata.uid.clone();
    let managers = known.as_ref().map(|known| known.managers.clone()).unwrap_or_default();
    let member = Member { cluster: id, node: name, uid, role: Role::Manager, managers };
    let life = cluster.spec.periods.node_certificate.get();
    match known {
        None => membership.found(&member, life, sealer, seams)?,
        // The store is another one, or was restored: the Node that stands there is somebody else by its uid.
        Some(known) if known != member => {
            let authority = membership.authority(sealer)?;
            let believed = membership.credentials()?.authorities;
            membership.renew(&own_certificate(&authority, &member, believed, life, seams)?)?;
            membership.remember(&member)?;
        }
        Some(_) => {}
    }
    Ok(Some((member, node.spec.role)))
}

fn own_certificate(
    authority: &Authority,
    member: &Member,
    authorities: String,
    life: Duration,
    seams: &Seams,
) -> Result<Credentials> {
    let request = controllers::identity::Request::make()?;
    let issued = authority.issue(&member.subject(), &request.request, seams.now(), life)?;
    Ok(Credentials { chain: issued.chain, key: request.key, authorities })
}

/// Where other machines reach this manager: what was said, or what this machine uses towards the world.
fn reached_at(options: &MachineOptions, port: &TlsPort) -> Result<Vec<SocketAddr>> {
    let bound = port.address()?;
    if !bound.ip().is_unspecified() {
        return Ok(vec![bound]);
    }
    let own = match options.advertise.is_empty() {
        true => controllers::node::machine::addresses(),
        false => options.advertise.clone(),
    };
    Ok(own.into_iter().map(|address| SocketAddr::new(address, bound.port())).collect())
}

/// Each machine of the cluster has some. A quarter of the descriptors for those at the port, as many at the socket, and half is
/// left for the store, tasks and whoever has shown no certificate.
const CONNECTIONS_MAX: usize = 16_384;

fn connections() -> usize {
    let files = getrlimit(Rlimit::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files / 4).unwrap_or(usize::MAX).min(CONNECTIONS_MAX)
}

/// The key that opens what is sealed in the store, all of which is tried.
async fn sealer(places: &Places, store: &dyn Store, membership: &Membership) -> Result<Arc<dyn Sealer>> {
    places.tidy().with_context(|| format!("cannot make {}", places.passing().display()))?;
    let at = places.key();
    let key = lock::key(places)?;
    let key: Option<Arc<dyn Sealer>> = key.map(|key| Arc::new(key) as Arc<dyn Sealer>);
    match (sealed(store, key.clone()).await?, key) {
        (Sealed::Open(_), Some(key)) => Ok(key),
        // A new one would make the old one look like the wrong one.
        (Sealed::Open(_), None) if membership.has_authority() => {
            Err(anyhow!("the cluster's authority is sealed, and its key is gone from {}; bring it back", at.display()))
        }
        (Sealed::Open(_), None) => Ok(Arc::new(lock::key_or_new(places)?)),
        (Sealed::NoKey(count), _) => Err(anyhow!(
            "{count} values in the store are sealed, and their key is gone from {}; bring it back",
            at.display()
        )),
        (Sealed::Wrong(what), _) => {
            Err(anyhow!("the key at {} does not open {what}; bring back the right one", at.display()))
        }
    }
}
