use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use futures::{future::BoxFuture, stream::BoxStream};
use proptest::{collection, prelude::*, sample};
use reconciler::seams::Seams;

use super::*;
use crate::node::links::LinkPrefix;

fn machine() -> Machine {
    Machine {
        links: LinkPrefix::default(),
        pools: ["10.128.0.0/9", "10.96.0.0/16", "fd0a::/16"].map(|it| it.parse().unwrap()).into(),
        address4: "10.128.0.1".parse().unwrap(),
        address6: Some("fd0a:1::1".parse().unwrap()),
        machines: ["10.128.0.0/16", "fd0a:1::/32"].map(|it| it.parse().unwrap()).into(),
        tunnel: None,
    }
}

fn address(v6: bool, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd0a, 2, 1, 0, 0, 0, 0, u16::from(number)).into()
    } else {
        Ipv4Addr::new(10, 192, 1, number).into()
    }
}

/// Few of everything, so that states meet each other's services, tasks and networks again and again.
fn state() -> impl Strategy<Value = MeshState> {
    let backends = || collection::btree_set(1u8..7, 0..5);
    let vips = collection::btree_map((any::<bool>(), 0u8..3), backends(), 0..5);
    let ports = collection::btree_map(
        (any::<bool>(), 8080u16..8083),
        collection::btree_set((any::<bool>(), 1u8..6), 0..5),
        0..5,
    );
    let networks = collection::btree_map(0u8..3, any::<bool>(), 0..3);
    let tasks = collection::btree_map(1u8..6, collection::btree_set((any::<bool>(), 1u8..4), 0..3), 0..5);
    let nodes = collection::btree_set(1u8..5, 0..3);
    (vips, ports, networks, tasks, nodes, any::<bool>()).prop_map(|(vips, ports, networks, tasks, nodes, more)| {
        let mut state = MeshState::new(machine());
        if more {
            state.machine.pools.insert("10.64.0.0/16".parse().unwrap());
        }
        for ((v6, vip), backends) in vips {
            let vip = if v6 { address(true, 200 + vip) } else { Ipv4Addr::new(10, 96, 0, vip).into() };
            state.vips.insert(vip, backends.into_iter().map(|it| address(v6, it)).collect());
        }
        for ((udp, port), backends) in ports {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let backends =
                backends.into_iter().map(|(v6, it)| SocketAddr::new(address(v6, it), 80 + u16::from(it % 2)));
            state.ports.insert(PublishedPort { protocol, port }, backends.collect());
        }
        for (number, internal) in networks {
            let subnets = [format!("10.192.{number}.0/24"), format!("fd0a:2:{number}::/64")];
            let subnets = subnets.map(|it| it.parse().unwrap()).into();
            state.networks.insert(format!("net{number}"), Network { subnets, internal });
        }
        for (number, addresses) in tasks {
            let id = format!("task{number}");
            let link = LinkPrefix::default().task(&id);
            let addresses = addresses.into_iter().map(|(v6, it)| address(v6, it * 10 + number)).collect();
            state.tasks.insert(id, LocalTask { link, addresses });
        }
        state.nodes = nodes.into_iter().map(|it| Ipv4Addr::new(192, 0, 2, it).into()).collect();
        state
    })
}

fn wanted(state: &MeshState) -> BTreeMap<Frontend, BTreeSet<Backend>> {
    let mut wanted: BTreeMap<Frontend, BTreeSet<Backend>> = BTreeMap::new();
    for (vip, backends) in &state.vips {
        let backends = backends.iter().map(|address| Backend { address: *address, port: 0 });
        wanted.insert(Frontend::Vip(*vip), backends.collect());
    }
    for (port, backends) in &state.ports {
        for family in [Family::V4, Family::V6] {
            let backends = backends.iter().filter(|it| Family::of(it.ip()) == family);
            let backends = backends.map(|it| Backend { address: it.ip(), port: it.port() });
            wanted.insert(Frontend::Port(family, *port), backends.collect());
        }
    }
    wanted.retain(|_, backends| !backends.is_empty());
    wanted
}

/// Whom a packet to this frontend could meet, once each.
fn answering(table: &Table, frontend: Frontend) -> BTreeSet<Backend> {
    let answers = table.answers(frontend);
    let found: BTreeSet<Backend> = answers.iter().flatten().copied().collect();
    assert_eq!(found.len(), answers.len(), "{frontend}: an empty slot, or one task twice: {answers:?}");
    found
}

/// The table does what is wanted, and there is nothing more to do.
fn check_settled(state: &MeshState, table: &Table) {
    let wanted = wanted(state);
    let routed: BTreeSet<Frontend> = wanted.keys().copied().collect();
    assert_eq!(table.frontends(), routed);
    for (frontend, backends) in &wanted {
        assert_eq!(answering(table, *frontend), *backends, "{frontend}");
        let balancer = table.route(*frontend).unwrap();
        let alone = routed.iter().filter(|other| table.route(**other) == Some(balancer)).count();
        assert!(alone == 1 || balancer.turn == Turn::Random, "a counter that two share is exact for neither");
    }
    let again = plan(state, table);
    assert!(again.is_empty(), "not at rest: {again:?}");
}

/// Carries the plan out, and looks after each single step.
fn step_by_step(before: &MeshState, after: &MeshState, mut table: Table, plan: &Plan) -> Table {
    let (had, wants) = (wanted(before), wanted(after));
    let survivors: Vec<Frontend> = had.keys().filter(|frontend| wants.contains_key(frontend)).copied().collect();
    let rebuilds = plan.changes.iter().any(|op| matches!(op, Op::Rebuild(_)));
    let mut started = !rebuilds;
    for op in plan.changes.iter().chain(&plan.later) {
        table.commit(std::slice::from_ref(op)).unwrap_or_else(|error| panic!("{error}"));
        started |= !survivors.iter().any(|frontend| table.route(*frontend).is_none());
        if !started {
            continue; // made anew: in one transaction
        }
        for frontend in &survivors {
            let (had, wants) = (&had[frontend], &wants[frontend]);
            let answers = table.answers(*frontend);
            assert!(!answers.is_empty(), "{frontend} has nobody after: {op}");
            for answer in answers {
                let answer = answer.unwrap_or_else(|| panic!("{frontend} has an empty slot after: {op}"));
                assert!(had.contains(&answer) || wants.contains(&answer), "{frontend} goes to a stranger after: {op}");
            }
        }
    }
    table
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_state_is_reached_from_any_other_and_each_step_on_the_way_is_safe(
        states in collection::vec(state(), 1..6),
    ) {
        let mut table = Table::absent();
        let mut before = MeshState::new(machine());
        for after in states {
            table = step_by_step(&before, &after, table.clone(), &plan(&after, &table));
            check_settled(&after, &table);
            before = after;
        }
    }

    #[test]
    fn whoever_starts_after_a_crash_half_way_arrives_too(
        states in collection::vec(state(), 1..4),
        cuts in collection::vec(any::<sample::Index>(), 4),
    ) {
        let mut table = Table::absent();
        let mut last = MeshState::new(machine());
        for (after, cut) in states.into_iter().zip(&cuts) {
            // A transaction is whole or not at all: between the two, or nothing of either.
            let plan = plan(&after, &table);
            let transactions = [plan.changes, plan.later];
            for ops in &transactions[..cut.index(3)] {
                table.commit(ops).unwrap();
            }
            last = after;
        }
        let finish = plan(&last, &table);
        table.commit(&finish.changes).unwrap();
        table.commit(&finish.later).unwrap();
        check_settled(&last, &table);
    }

    #[test]
    fn planning_for_what_changed_does_what_planning_for_everything_does(mut state in state(), next in state()) {
        let mut table = Table::absent();
        let all = plan(&state, &table);
        table.commit(&all.changes).unwrap();
        table.commit(&all.later).unwrap();
        let frontends = |of: &MeshState| {
            let ports = of.ports.keys().flat_map(|port| [Family::V4, Family::V6].map(|it| Frontend::Port(it, *port)));
            of.vips.keys().map(|vip| Frontend::Vip(*vip)).chain(ports).collect::<Vec<_>>()
        };
        let changed: BTreeSet<Frontend> = frontends(&state).into_iter().chain(frontends(&next)).collect();
        (state.vips, state.ports) = (next.vips, next.ports);
        let some = plan_frontends(&state, &table, &changed);
        table.commit(&some.changes).unwrap();
        table.commit(&some.later).unwrap();
        let wanted = wanted(&state);
        prop_assert_eq!(table.frontends(), wanted.keys().copied().collect());
        for (frontend, backends) in wanted {
            prop_assert_eq!(answering(&table, frontend), backends);
        }
        let rest = plan(&state, &table);
        let chains_only = |op: &Op| matches!(op, Op::DeleteBalancer(_));
        prop_assert!(rest.changes.is_empty() && rest.later.iter().all(chains_only), "{:?}", rest);
    }
}

#[test]
fn a_task_that_stays_keeps_its_slot() {
    let mut state = MeshState::new(machine());
    let vip: IpAddr = "10.96.0.5".parse().unwrap();
    let set = |state: &mut MeshState, numbers: &[u8]| {
        state.vips.insert(vip, numbers.iter().map(|it| address(false, *it)).collect());
    };
    set(&mut state, &[1, 2, 3]);
    let mut table = Table::absent();
    let first = plan(&state, &table);
    table.commit(&first.changes).unwrap();
    set(&mut state, &[1, 3, 4]);
    let second = plan(&state, &table);
    let words: Vec<String> = second.changes.iter().map(Op::to_string).collect();
    assert_eq!(words, ["put 10.192.1.4:0 into slot 1 of 10.96.0.5"]);
    table.commit(&second.changes).unwrap();
    set(&mut state, &[4]);
    let third = plan(&state, &table);
    let words = |ops: &[Op]| ops.iter().map(Op::to_string).collect::<Vec<_>>();
    assert_eq!(
        words(&third.changes),
        ["put 10.192.1.4:0 into slot 0 of 10.96.0.5", "write chain v4_1_0", "send 10.96.0.5 to chain v4_1_0"]
    );
    assert_eq!(words(&third.later), ["delete slot 1 of 10.96.0.5", "delete slot 2 of 10.96.0.5"]);
}

#[test]
fn chains_stay_few_however_many_services_there_are() {
    let mut state = MeshState::new(machine());
    let vip = |number: u32| IpAddr::from(Ipv4Addr::from(0x0a60_0000 + number));
    for number in 0..2 * COUNTERS_MAX {
        state.vips.insert(vip(number), [address(false, 1), address(false, 2)].into());
    }
    let mut table = Table::absent();
    table.commit(&plan(&state, &table).changes).unwrap();
    check_settled(&state, &table);
    let by_chance = |table: &Table| {
        let turns = table.frontends().into_iter().filter_map(|it| table.route(it)).map(|it| it.turn);
        turns.filter(|it| *it == Turn::Random).count()
    };
    assert_eq!(by_chance(&table), COUNTERS_MAX as usize);
    // Half of those with a counter go; whoever comes next has one again.
    for number in 0..COUNTERS_MAX / 2 {
        state.vips.remove(&vip(number));
    }
    let plan_of = |state: &MeshState, table: &mut Table| {
        let plan = plan(state, table);
        table.commit(&plan.changes).unwrap();
        table.commit(&plan.later).unwrap();
    };
    plan_of(&state, &mut table);
    state.vips.insert(vip(500), [address(false, 3), address(false, 4)].into());
    plan_of(&state, &mut table);
    check_settled(&state, &table);
    assert!(matches!(table.route(Frontend::Vip(vip(500))).unwrap().turn, Turn::Counter(_)));
    state.vips.clear();
    plan_of(&state, &mut table);
    check_settled(&state, &table);
}

#[test]
fn the_overlay_is_pools_and_what_networks_have_beside_them() {
    let mut state = MeshState::new(machine());
    let subnets = ["172.30.0.0/16", "10.192.1.0/24"].map(|it| it.parse().unwrap()).into();
    state.networks.insert("own".into(), Network { subnets, internal: false });
    let overlay: Vec<String> = state.overlay().iter().map(ToString::to_string).collect();
    assert_eq!(overlay, ["10.96.0.0/16", "10.128.0.0/9", "172.30.0.0/16", "fd0a::/16"]);
    state.machine.address6 = None;
    assert!(state.overlay().iter().all(|range| range.addr().is_ipv4()), "nobody would answer for the others");
}

fn without_faults(state: &MeshState) -> MeshState {
    let mut state = state.clone();
    for (vip, backends) in &mut state.vips {
        backends.retain(|backend| Family::of(*backend) == Family::of(*vip));
    }
    state
}

/// A kernel in memory, with somebody else in it who commits between any two calls of ours.
#[derive(Default)]
struct Crowded {
    inner: Mutex<(Table, u32, u32)>,
}

impl Crowded {
    fn locked<T: Send + 'static>(&self, work: impl FnOnce(&mut (Table, u32, u32)) -> T) -> BoxFuture<'_, T> {
        let done = work(&mut self.inner.lock().unwrap());
        Box::pin(async { done })
    }
}

impl Mesh for Crowded {
    fn generation(&self) -> BoxFuture<'_, Result<Generation, MeshError>> {
        self.locked(|it| Ok(Generation(it.1)))
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        Box::pin(futures::stream::pending())
    }

    fn observe(&self) -> BoxFuture<'_, Result<Observed, MeshError>> {
        self.locked(|it| {
            let seen = Observed { table: it.0.clone(), generation: Generation(it.1) };
            if it.2 > 0 {
                (it.1, it.2) = (it.1 + 1, it.2 - 1);
                it.0 = Table::absent(); // as `nft flush ruleset`
            }
            Ok(seen)
        })
    }

    fn commit(&self, at: Generation, ops: Arc<[Op]>) -> BoxFuture<'_, Result<(), MeshError>> {
        self.locked(|it| {
            if at.0 != it.1 {
                return Err(MeshError::Conflict { source: None });
            }
            it.0.commit(&ops).expect("at the right generation every plan fits");
            it.1 = at.next().0;
            Ok(())
        })
    }

    fn obstacles(&self, _: BTreeSet<PublishedPort>) -> BoxFuture<'_, Result<BTreeSet<Obstacle>, MeshError>> {
        self.locked(|_| Ok(BTreeSet::new()))
    }

    fn forget(&self, _: BTreeSet<Stale>) -> BoxFuture<'_, Result<(), MeshError>> {
        self.locked(|_| Ok(()))
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), MeshError>> {
        self.locked(|it| {
            it.0 = Table::absent();
            Ok(())
        })
    }
}

#[tokio::test]
async fn others_who_commit_meanwhile_cost_a_new_look_and_never_a_wrong_patch() {
    let mesh = Arc::new(Crowded::default());
    let mut state = MeshState::new(machine());
    state.vips.insert("10.96.0.5".parse().unwrap(), [address(false, 1), address(false, 2)].into());
    let mut converger = Converger::new(mesh.clone(), Seams::real());
    mesh.inner.lock().unwrap().2 = 3;
    assert!(converger.converge(&state, Changed::Anything).await.unwrap().changes > 0);
    check_settled(&state, &mesh.inner.lock().unwrap().0);
    assert_eq!(converger.converge(&state, Changed::Anything).await.unwrap(), Converged::default());
    // Only what differs is looked at; what cannot be is said again each time.
    state.networks.insert("bad".into(), Network { subnets: ["127.0.0.0/8".parse().unwrap()].into(), internal: false });
    let first = converger.converge(&state, Changed::Anything).await.unwrap();
    let mixed = [address(true, 1), address(false, 1)];
    state.vips.insert("10.96.0.7".parse().unwrap(), mixed.into());
    state.vips.remove(&"10.96.0.5".parse::<IpAddr>().unwrap());
    let second = converger.converge(&state, Changed::Anything).await.unwrap();
    assert_eq!((first.faults.len(), second.faults.len()), (1, 2), "{:?}", second.faults);
    check_settled(&without_faults(&state), &mesh.inner.lock().unwrap().0);
    state.vips.insert("10.96.0.5".parse().unwrap(), [address(false, 1)].into());
    state.vips.remove(&"10.96.0.7".parse::<IpAddr>().unwrap());
    assert_eq!(converger.converge(&state, Changed::Anything).await.unwrap().faults, first.faults);
    check_settled(&state, &mesh.inner.lock().unwrap().0);
    // Flushed behind our back: asked for one service only, all of it is seen to.
    {
        let mut kernel = mesh.inner.lock().unwrap();
        (kernel.0, kernel.1) = (Table::absent(), kernel.1 + 1);
    }
    converger.converge(&state, Changed::Frontends(&BTreeSet::new())).await.unwrap();
    check_settled(&state, &mesh.inner.lock().unwrap().0);
    // Somebody who never stops is told of, not fought.
    mesh.inner.lock().unwrap().2 = u32::MAX;
    mesh.inner.lock().unwrap().1 += 1;
    state.vips.insert("10.96.0.6".parse().unwrap(), [address(false, 1)].into());
    let refused = converger.converge(&state, Changed::Anything).await;
    assert!(matches!(refused, Err(MeshError::Conflict { .. })), "{refused:?}");
}
