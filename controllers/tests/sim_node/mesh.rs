//! The rules of a machine follow Endpoints, while tasks come and go, and others are at the same rules.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use controllers::node::links::LinkPrefix;
use controllers::node::mesh::controller::Meshes;
use controllers::node::mesh::{
    self, Backend as Answer, Family, Frontend, LocalTask, MeshState, Protocol, PublishedPort, plan,
};
use ipnet::IpNet;
use reconciler::Resource;
use reconciler::cache::Snapshot;
use reconciler::sim::{Scene, User};
use schemas::kinds::cluster::{AddressPools, Cluster};
use schemas::kinds::endpoints::{Backend, EndpointNetwork, Endpoints, EndpointsSpec, TaskAddress};
use schemas::kinds::network::{Cidr, Network};
use schemas::kinds::node::{Machine, Node, NodeSpec, NodeStatus};
use schemas::kinds::service::PublishedPort as Port;
use schemas::kinds::task::{Task, TaskState};

use super::cast::{NAMESPACE, NODE, applyd, at, network, set_status, state, task};
use super::kernel::Kernel;
use super::promises::Held;
use super::suite;
use super::tally::{Happened, Tally};

/// Of this machine.
const OVERLAY: &str = "10.128.0.1";

fn prefix() -> LinkPrefix {
    LinkPrefix::new("ap").expect("two letters")
}

fn scene(scene: Scene, tally: &Tally) -> Scene {
    let kernel = Kernel::new(tally);
    let (hand, whole, right, tally) = (kernel.clone(), kernel.clone(), kernel.clone(), tally.clone());
    let scene = scene.kind::<Endpoints>().kind::<Network>().kind::<Node>().kind::<Cluster>().kind::<Task>();
    let scene = applyd(scene, &kernel.power, move |manager, env| {
        let hand = hand.hand(&env.calls);
        manager.controller(Meshes::controller(NODE, prefix(), hand.clone(), hand, &env.seams))
    });
    let (flushed, tampered, others, power) = (kernel.clone(), kernel.clone(), kernel.clone(), kernel.clone());
    scene
        .drift("somebody flushes all rules", move || flushed.flush())
        .drift("somebody changes the mesh's table", move || tampered.tamper())
        .drift("the power is cut", move || power.cut_power())
        .drift("somebody changes rules of his own", move || others.change_others())
        .workload(workload)
        .invariant("every frontend leads to somebody", move |_| {
            let rules = whole.lock();
            let leads = |frontend| (frontend, rules.table.answers(frontend));
            tally.saw(&rules.table.frontends().into_iter().map(leads).collect::<Vec<_>>());
            rules.broken.clone().map_or(Ok(()), Err)
        })
        .settles("the kernel has what the store says", move |snapshot| as_said(snapshot, &right))
}

async fn workload(user: User) {
    network(&user, "back", "10.192.0.0/18").await;
    user.create(&Node::new(NODE, NodeSpec::default())).await;
    let machine = Machine { addresses: vec!["192.0.2.1".parse().expect("an address")], ..Machine::default() };
    let overlay_address = Some(OVERLAY.parse().expect("an address"));
    let status = NodeStatus { machine: Some(machine), overlay_address, ..NodeStatus::default() };
    set_status::<Node>(&user, &reconciler::ObjectRef::cluster(NODE), |node| node.status = Some(status.clone())).await;
    running(&user, "a", "10.192.0.1").await;
    endpoints(&user, "web", "10.129.0.1", Some(5000), &[("a", "10.192.0.1")]).await;
    user.pause().await;
    running(&user, "b", "10.192.0.2").await;
    endpoints(&user, "web", "10.129.0.1", Some(5000), &[("a", "10.192.0.1"), ("b", "10.192.0.2")]).await;
    user.pause().await;
    running(&user, "c", "10.192.0.3").await;
    endpoints(&user, "db", "10.129.0.2", None, &[("c", "10.192.0.3")]).await;
    user.pause().await;
    ready(&user, "web", "a", false).await;
    user.pause().await;
    ended(&user, "a").await;
    endpoints(&user, "web", "10.129.0.1", Some(5000), &[("b", "10.192.0.2")]).await;
    user.pause().await;
    running(&user, "d", "10.192.0.4").await;
    running(&user, "e", "10.192.0.5").await;
    let three = [("b", "10.192.0.2"), ("d", "10.192.0.4"), ("e", "10.192.0.5")];
    endpoints(&user, "web", "10.129.0.1", Some(5000), &three).await;
    user.pause().await;
    endpoints(&user, "web", "10.129.0.1", Some(5001), &three).await;
    ready(&user, "db", "c", false).await;
    user.pause().await;
    user.delete::<Endpoints>(&at("web")).await;
    ready(&user, "db", "c", true).await;
    user.pause().await;
    endpoints(&user, "web", "10.129.0.3", Some(5000), &three[..2]).await;
    user.pause().await;
    ended(&user, "c").await;
    user.delete::<Endpoints>(&at("db")).await;
    user.pause().await;
    ready(&user, "web", "b", false).await;
    user.pause().await;
}

async fn running(user: &User, name: &str, address: &str) {
    user.create(&task(name, 1, "web")).await;
    let address = TaskAddress { network: "back".into(), address: address.parse().expect("an address") };
    set_status::<Task>(user, &at(name), |task| {
        let status = task.status.get_or_insert_default();
        (status.state, status.addresses) = (TaskState::Running, vec![address.clone()]);
    })
    .await;
}

async fn ended(user: &User, name: &str) {
    set_status::<Task>(user, &at(name), |task| {
        task.status.get_or_insert_default().state = TaskState::Complete;
    })
    .await;
}

async fn endpoints(user: &User, name: &str, vip: &str, port: Option<u16>, tasks: &[(&str, &str)]) {
    let backend = |(task, address): &(&str, &str)| Backend {
        task: (*task).to_owned(),
        node: NODE.into(),
        ready: true,
        addresses: vec![TaskAddress { network: "back".into(), address: address.parse().expect("an address") }],
    };
    let vip = Some(vip.parse().expect("an address"));
    let spec = EndpointsSpec {
        service: name.into(),
        networks: vec![EndpointNetwork { network: "back".into(), vip, ..EndpointNetwork::default() }],
        ports: port.map(|port| Port { target: 80, published: Some(port), ..Port::default() }).into_iter().collect(),
        backends: tasks.iter().map(backend).collect(),
        ..EndpointsSpec::default()
    };
    if user.client().find::<Endpoints>(&at(name)).await.expect("no faults").is_some() {
        user.update::<Endpoints>(&at(name), |there| there.spec = spec.clone()).await;
    } else {
        let mut fresh = Endpoints::new(name, spec);
        fresh.metadata.namespace = NAMESPACE.into();
        user.create(&fresh).await;
    }
}

async fn ready(user: &User, name: &str, task: &str, ready: bool) {
    user.update::<Endpoints>(&at(name), |endpoints| {
        for backend in endpoints.spec.backends.iter_mut().filter(|backend| backend.task == task) {
            backend.ready = ready;
        }
    })
    .await;
}

/// What the store says, told a second time in plainer words than the controller's.
fn as_said(snapshot: &Snapshot, kernel: &Kernel) -> Held {
    let rules = kernel.lock();
    let mut expected: Vec<(Frontend, BTreeSet<Answer>)> = Vec::new();
    let pools = AddressPools::default();
    let net = |cidr: Cidr| IpNet::new(cidr.address(), cidr.prefix()).expect("a subnet");
    let address4 = OVERLAY.parse().expect("an address");
    let mut state_wanted = MeshState::new(mesh::Machine {
        links: prefix(),
        pools: [pools.tasks, pools.virtuals, pools.nodes].map(net).into_iter().collect(),
        address4,
        address6: None,
        machines: BTreeSet::from([net(pools.nodes)]),
        tunnel: None,
    });
    for endpoints in snapshot.all::<Endpoints>() {
        let answers = endpoints.spec.backends.iter().filter(|backend| backend.ready);
        let answers: Vec<IpAddr> = answers.flat_map(|backend| backend.addresses.iter().map(|it| it.address)).collect();
        let to = |port| answers.iter().map(|address| Answer { address: *address, port }).collect();
        for vip in endpoints.spec.networks.iter().filter_map(|network| network.vip) {
            expected.push((Frontend::Vip(vip), to(0)));
            state_wanted.vips.insert(vip, answers.iter().copied().collect());
        }
        for port in &endpoints.spec.ports {
            let published = PublishedPort { protocol: Protocol::Tcp, port: port.published.unwrap_or_default() };
            expected.push((Frontend::Port(Family::V4, published), to(port.target)));
            let targets = answers.iter().map(|address| SocketAddr::new(*address, port.target));
            state_wanted.ports.insert(published, targets.collect());
        }
    }
    for (frontend, wanted) in &expected {
        let has: Vec<Answer> = rules.table.answers(*frontend).into_iter().flatten().collect();
        if has.len() != wanted.len() || has.iter().copied().collect::<BTreeSet<_>>() != *wanted {
            return Err(format!("{frontend} leads to {has:?}, and shall to {wanted:?}"));
        }
    }
    let wanted: BTreeSet<Frontend> =
        expected.iter().filter(|(_, answers)| !answers.is_empty()).map(|(frontend, _)| *frontend).collect();
    if rules.table.frontends() != wanted {
        return Err(format!("there are {:?}, and shall be {wanted:?}", rules.table.frontends()));
    }
    for network in snapshot.all::<Network>() {
        let subnets = network.status.iter().filter_map(|status| status.subnet).map(net).collect();
        let id = format!("{NAMESPACE}/{}", network.name());
        state_wanted.networks.insert(id, mesh::Network { subnets, internal: false });
    }
    for task in snapshot.all::<Task>().filter(|task| !state(task).is_terminal()) {
        let addresses: BTreeSet<IpAddr> =
            task.status.iter().flat_map(|status| &status.addresses).map(|address| address.address).collect();
        let uid = task.metadata.uid.to_string();
        state_wanted.tasks.insert(uid.clone(), LocalTask { link: prefix().task(&uid), addresses });
    }
    let machines = snapshot.all::<Node>().filter_map(|node| node.status.as_ref()?.machine.as_ref());
    state_wanted.nodes = machines.flat_map(|machine| machine.addresses.iter().copied()).collect();
    let left = plan(&state_wanted, &rules.table);
    if !left.is_empty() {
        return Err(format!("there is still to be done: {left:?}"));
    }
    match &rules.link {
        Some(link) if link.address4 == address4 => Ok(()),
        other => Err(format!("the machine's link is {other:?}")),
    }
}

#[test]
fn mesh_of_rules() {
    use Happened::{Conflict, OtherRules, PowerCut, RulesFlushed, RulesTampered};
    suite("mesh", 20, 20, &[Conflict, OtherRules, PowerCut, RulesFlushed, RulesTampered], scene);
}
