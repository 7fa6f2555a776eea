//! The mesh: what one changed task costs beside 10,000 other services, from what is wanted to the kernel's word that it
//! is so. In a network namespace of its own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use controllers::node::links::LinkPrefix;
use controllers::node::mesh::{
    Changed, Converger, Differs, Followed, Frontend, KernelMesh, Machine, Mesh, MeshState, Network, declarations,
};
use controllers::node::sys::netns;
use reconciler::Resource;
use reconciler::cache::Snapshot;
use reconciler::seams::Seams;
use schemas::kinds::endpoints::{Backend, EndpointNetwork, Endpoints, EndpointsSpec, TaskAddress};
use schemas::kinds::network::{Network as NetworkObject, NetworkSpec, NetworkStatus};
use schemas::kinds::node::{Node, NodeSpec, NodeStatus};
use tokio::runtime::Runtime;

use super::{Row, report};
use crate::images::workspace;
use crate::parts::process::{clear, fresh_folder};

const SERVICES: u32 = 10_000;
const TASKS: u32 = 3;
const ROUNDS: u32 = 400;

struct Bench {
    runtime: Runtime,
    converger: Converger,
    state: MeshState,
    rows: Vec<Row>,
}

/// Measures, prints and writes `target/bench/mesh.json`.
pub fn run() -> Result<()> {
    let place = workspace().join("target/parts/bench-mesh");
    // A run that was killed leaves its namespace mounted there.
    netns::remove(&place.join("machine")).context("could not remove the namespace of a run before")?;
    let folder = fresh_folder("bench-mesh")?;
    let (machine, ()) =
        netns::ensure(&folder.join("machine"), || ()).context("could not make a network namespace: are you root?")?;
    let outcome = KernelMesh::open("apply", LinkPrefix::default(), Some(machine))
        .context("could not open netlink")
        .and_then(|mesh| measure(Arc::new(mesh)));
    netns::remove(&folder.join("machine"))?;
    clear(&folder)?;
    report("mesh", &outcome?).map(drop)
}

fn measure(mesh: Arc<dyn Mesh>) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let converger = Converger::new(mesh.clone(), Seams::real());
    let mut bench = Bench { runtime, converger, state: wanted()?, rows: Vec::new() };
    let all = bench.everything()?;
    bench.row(format!("mesh: {SERVICES} services of {TASKS} tasks, from nothing"), all);
    // As a daemon that starts finds it.
    bench.converger = Converger::new(mesh, Seams::real());
    let restart = bench.everything()?;
    bench.row("mesh: a start, all listed and compared, nothing to do", restart);
    bench.one("one backend replaced", |round, tasks| {
        tasks.pop_first();
        tasks.insert(task(1_000_000 + round));
    })?;
    bench.one("one backend more", |round, tasks| {
        tasks.insert(task(2_000_000 + round));
    })?;
    bench.follow_endpoints()?;
    let compared = bench.everything()?;
    bench.row("mesh: everything compared with what was wanted before, nothing to do", compared);
    Ok(bench.rows)
}

impl Bench {
    fn everything(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.runtime.block_on(self.converger.converge(&self.state, Changed::Anything))?;
        Ok(begun.elapsed())
    }

    /// One service after the other; a kernel transaction each.
    fn one(&mut self, what: &str, change: impl Fn(u32, &mut BTreeSet<IpAddr>)) -> Result<()> {
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            let service = vip(round * 7919 % SERVICES);
            change(round, self.state.vips.get_mut(&service).context("a service")?);
            let changed = BTreeSet::from([Frontend::Vip(service)]);
            let begun = Instant::now();
            let converged = self.converger.converge(&self.state, Changed::Frontends(&changed));
            let done = self.runtime.block_on(converged)?;
            times.push(begun.elapsed());
            ensure!(done.changes > 0, "{what}: nothing was changed");
        }
        self.shares(what, times);
        Ok(())
    }

    /// What the controller does: from a changed Endpoints object on.
    fn follow_endpoints(&mut self) -> Result<()> {
        let (node, prefix) = ("n1", LinkPrefix::default());
        let mut machine = Node::new(node, NodeSpec::default());
        let overlay_address = Some(Ipv4Addr::new(10, 128, 0, 1));
        machine.status = Some(NodeStatus { overlay_address, ..NodeStatus::default() });
        let mut snapshot = Snapshot::empty(&declarations()).with(network()).with(machine);
        for service in 0..SERVICES {
            snapshot = snapshot.with(endpoints(service, service * TASKS));
        }
        let mut followed = Followed::new(&snapshot, node, &prefix)?;
        self.runtime.block_on(self.converger.converge(&followed.state, Changed::Anything))?;
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            let service = round * 7919 % SERVICES;
            snapshot = snapshot.with(endpoints(service, 1_000_000 + round * TASKS));
            let begun = Instant::now();
            let (next, differs) = followed.advance(&snapshot, node, &prefix)?;
            let Differs::Frontends(changed) = differs else { bail!("more than one service differs") };
            let converged = self.converger.converge(&next.state, Changed::Frontends(&changed));
            let done = self.runtime.block_on(converged)?;
            times.push(begun.elapsed());
            ensure!(done.changes > 0, "nothing was changed");
            followed = next;
        }
        self.state = followed.state;
        self.shares("all backends of a service replaced, from its Endpoints on", times);
        Ok(())
    }

    fn shares(&mut self, what: &str, mut times: Vec<Duration>) {
        times.sort_unstable();
        for (share, at) in [("p50", ROUNDS / 2), ("p99", ROUNDS * 99 / 100)] {
            let name = format!("mesh: {what} among {SERVICES} services, planned and in the kernel, {share}");
            self.row(name, times[at as usize]);
        }
    }

    fn row(&mut self, name: impl Into<String>, time: Duration) {
        self.rows.push(Row::new(name, time.as_secs_f64() * 1e3, "ms"));
    }
}

fn wanted() -> Result<MeshState> {
    let mut state = MeshState::new(Machine {
        links: LinkPrefix::default(),
        pools: ["10.128.0.0/9".parse()?, "10.96.0.0/16".parse()?].into(),
        address4: Ipv4Addr::new(10, 128, 0, 1),
        address6: None,
        machines: ["10.128.0.0/16".parse()?].into(),
        tunnel: None,
    });
    let network = Network { subnets: ["10.192.0.0/10".parse()?].into(), internal: false };
    state.networks.insert("one".to_owned(), network);
    for service in 0..SERVICES {
        let tasks = (0..TASKS).map(|number| task(service * TASKS + number)).collect();
        state.vips.insert(vip(service), tasks);
    }
    Ok(state)
}

fn vip(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + number).into()
}

fn task(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 192, 0, 1)) + number).into()
}

fn network() -> NetworkObject {
    let mut network = NetworkObject::new("one", NetworkSpec::default());
    network.metadata.namespace = "default".into();
    network.status = Some(NetworkStatus { subnet: "10.192.0.0/10".parse().ok(), ..NetworkStatus::default() });
    network
}

/// A service whose tasks have addresses from this number on.
fn endpoints(service: u32, first: u32) -> Endpoints {
    let backend = |number: u32| Backend {
        task: format!("s{service}-{number}"),
        node: "n1".into(),
        ready: true,
        addresses: vec![TaskAddress { network: "one".into(), address: task(first + number) }],
    };
    let vip = Some(vip(service));
    let spec = EndpointsSpec {
        service: format!("s{service}"),
        networks: vec![EndpointNetwork { network: "one".into(), vip, ..EndpointNetwork::default() }],
        backends: (0..TASKS).map(backend).collect(),
        ..EndpointsSpec::default()
    };
    let mut endpoints = Endpoints::new(format!("s{service:05}"), spec);
    endpoints.metadata.namespace = "default".into();
    endpoints
}
