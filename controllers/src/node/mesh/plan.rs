//! From what is wanted and what is there to the changes, in an order in which each can be the last.
//!
//! A packet may stand between two lookups while a transaction is committed. So what it could still be on its way to is
//! taken away later, in a transaction of its own: a frontend that loses a task first counts one slot less, and the slot
//! that is then too many goes afterwards. Growing, and another task in a slot, are safe at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    ruleset::{Balancer, Chain, Ruleset, Turn},
    state::{Backend, Family, Frontend, Kind, MeshState},
    table::{Member, Op, Table},
};
use crate::node::{
    links::{GATEWAY, GATEWAY6},
    sys::nft::Rule,
};

/// How long a packet may stand between two lookups: a few milliseconds were seen to lose none of 213,000.
pub const SETTLE: Duration = Duration::from_millis(20);

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be committed as one transaction. Every prefix leaves all frontends with tasks to go to.
    pub changes: Vec<Op>,
    /// To be committed once packets that were under way during `changes` have gone: [`SETTLE`] later.
    pub later: Vec<Op>,
    /// What was asked for and cannot be; the rest is planned as if it had not been said.
    pub faults: Vec<Fault>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.later.is_empty()
    }
}

/// A contradiction in what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The machines have the addresses (no `other`), or the first network in the order of ids.
    SubnetsOverlap { network: String, subnet: IpNet, other: Option<String>, other_subnet: IpNet },
    /// The addresses of a network are nobody else's: these are a machine's, or every machine's.
    SubnetTaken { network: String, subnet: IpNet, by: IpAddr },
    /// The machine itself has no overlay address of that family.
    NoSuchFamily { network: String, subnet: IpNet },
    /// Isolation and masquerading go by the overlay's ranges.
    TaskOutsideOverlay { task: String, address: IpAddr },
    /// A v4 address cannot answer for a v6 one, nor the other way round.
    FamiliesDiffer { frontend: Frontend, backend: IpAddr },
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::SubnetsOverlap { network, subnet, other: Some(other), other_subnet } => {
                write!(out, "subnet {subnet} of network {network} overlaps {other_subnet} of network {other}")
            }
            Fault::SubnetsOverlap { network, subnet, other: None, other_subnet } => {
                write!(out, "subnet {subnet} of network {network} overlaps {other_subnet} of the machines")
            }
            Fault::SubnetTaken { network, subnet, by } => {
                write!(out, "subnet {subnet} of network {network} has {by} in it, which is not a task's")
            }
            Fault::NoSuchFamily { network, subnet } => {
                write!(out, "subnet {subnet} of network {network} cannot be used: this machine has no IPv6 address")
            }
            Fault::TaskOutsideOverlay { task, address } => {
                write!(out, "address {address} of task {task} is in none of the overlay's ranges")
            }
            Fault::FamiliesDiffer { frontend, backend } => {
                write!(out, "{backend} cannot answer for {frontend}: one is IPv4, the other IPv6")
            }
        }
    }
}

/// Plans for everything. Cost: all that is wanted and all that is there.
pub fn plan(desired: &MeshState, observed: &Table) -> Plan {
    let mut planner = Planner::new(observed);
    let ranges = Ranges::new(desired);
    planner.plan.faults.extend(ranges.faults.iter().cloned());
    planner.fixed(desired, &ranges);
    planner.members(desired, &ranges);
    let mut wanted = frontends(desired, &mut planner.plan.faults);
    let seen = planner.table.routes.keys().chain(planner.table.slots.keys().map(|(frontend, _)| frontend));
    for frontend in seen.copied().collect::<BTreeSet<_>>() {
        wanted.entry(frontend).or_default();
    }
    for (frontend, backends) in &wanted {
        planner.slots(*frontend, backends);
    }
    for (frontend, backends) in &wanted {
        planner.route(*frontend, backends.len());
    }
    for (frontend, backends) in &wanted {
        planner.left_over_slots(*frontend, backends.len());
    }
    planner.idle_balancers();
    planner.finish()
}

/// Plans for these frontends only, as if the rest were as it should be. Cost: theirs.
pub fn plan_frontends(desired: &MeshState, observed: &Table, changed: &BTreeSet<Frontend>) -> Plan {
    let mut planner = Planner::new(observed);
    if planner.table.is_absent() {
        return plan(desired, observed);
    }
    for frontend in changed {
        let backends = backends(desired, *frontend, &mut planner.plan.faults);
        planner.slots(*frontend, &backends);
        planner.route(*frontend, backends.len());
        planner.left_over_slots(*frontend, backends.len());
    }
    planner.finish()
}

/// How many unused chains of one shape stay for the next frontend that grows or shrinks to it.
const IDLE_KEPT: usize = 8;

struct Planner<'a> {
    /// What is there. Stands for the empty new table once that is planned.
    table: std::borrow::Cow<'a, Table>,
    plan: Plan,
    /// Chains that were idle and are taken in this plan; of each shape the lowest ones, up to this one.
    taken: BTreeMap<(Kind, u32), Balancer>,
    /// Chains given back in this plan.
    freed: BTreeSet<Balancer>,
    /// Where to look for the next free number of each shape.
    fresh: BTreeMap<(Kind, u32), u32>,
    /// Shapes whose chain without a counter is made in this plan.
    random: BTreeSet<(Kind, u32)>,
    rules: BTreeMap<(Kind, u32, bool), Arc<[Rule]>>,
}

impl<'a> Planner<'a> {
    fn new(observed: &'a Table) -> Planner<'a> {
        Planner {
            table: std::borrow::Cow::Borrowed(observed),
            plan: Plan::default(),
            taken: BTreeMap::new(),
            freed: BTreeSet::new(),
            fresh: BTreeMap::new(),
            random: BTreeSet::new(),
            rules: BTreeMap::new(),
        }
    }

    fn fixed(&mut self, desired: &MeshState, ranges: &Ranges<'_>) {
        let ruleset = Ruleset::new(&desired.machine, &ranges.overlay);
        if self.table.foundation != ruleset.foundation() {
            let rebuild = Op::Rebuild(Arc::new(ruleset));
            let mut empty = Table::absent();
            empty.apply(&rebuild).expect("a table can always be made anew");
            self.table = std::borrow::Cow::Owned(empty);
            self.plan.changes.push(rebuild);
            return;
        }
        for (name, chain) in &ruleset.chains {
            if self.table.fixed.get(name) != Some(&chain.fingerprint()) {
                self.plan.changes.push(Op::WriteChain(chain.clone()));
            }
        }
        let seen: Vec<(Balancer, u64)> = self.table.balancers.iter().map(|(it, rules)| (*it, *rules)).collect();
        for (balancer, rules) in seen {
            let chain = self.chain(balancer);
            if rules != chain.fingerprint() {
                self.plan.changes.push(Op::WriteBalancer(balancer, chain));
            }
        }
    }

    fn members(&mut self, desired: &MeshState, ranges: &Ranges<'_>) {
        let wanted = members(desired, ranges, &mut self.plan.faults);
        let ranges = |member: &&Member| matches!(member, Member::Reach(..) | Member::Same(..) | Member::Closed(..));
        let gone: Vec<Member> = self.table.members.difference(&wanted).cloned().collect();
        // Ranges go first: a new one may overlap an old one, which the kernel refuses.
        self.plan.changes.extend(gone.iter().filter(ranges).cloned().map(Op::Remove));
        self.plan.changes.extend(wanted.difference(&self.table.members).cloned().map(Op::Add));
        self.plan.later.extend(gone.iter().filter(|member| !ranges(member)).cloned().map(Op::Remove));
    }

    /// A task that is in a slot and stays keeps it; the others fill the gaps.
    fn slots(&mut self, frontend: Frontend, wanted: &BTreeSet<Backend>) {
        let count = wanted.len() as u32;
        let mut missing = wanted.clone();
        let mut seen = BTreeMap::new();
        for (slot, backend) in self.table.slots(frontend).take_while(|(slot, _)| *slot < count) {
            let stays = missing.remove(&backend);
            seen.insert(slot, (backend, stays));
        }
        let mut missing = missing.into_iter();
        for slot in 0..count {
            let replaces = match seen.get(&slot) {
                Some((_, true)) => continue,
                Some((backend, false)) => Some(*backend),
                None => None,
            };
            let backend = missing.next().expect("as many gaps as tasks without a slot");
            self.plan.changes.push(Op::PutSlot { frontend, slot, backend, replaces });
        }
    }

    fn route(&mut self, frontend: Frontend, tasks: usize) {
        let slots = tasks as u32;
        let now = self.table.route(frontend);
        if slots == 0 {
            if now.is_some() {
                self.plan.changes.push(Op::DeleteRoute { frontend });
            }
            self.give_back(now);
            return;
        }
        // A counter that two share, as nobody but a stranger can have made it, is exact for neither.
        let stays = |it: Balancer| it.slots == slots && (it.turn == Turn::Random || !self.table.is_shared(it));
        if now.is_some_and(stays) {
            return;
        }
        self.give_back(now);
        let to = self.take_balancer(frontend.kind(), slots);
        self.plan.changes.push(Op::PutRoute { frontend, to, replaces: now });
    }

    fn give_back(&mut self, balancer: Option<Balancer>) {
        self.freed.extend(balancer.filter(|it| it.turn != Turn::Random && !self.table.is_shared(*it)));
    }

    /// An idle chain, or a new one, or the one for all others.
    fn take_balancer(&mut self, kind: Kind, slots: u32) -> Balancer {
        let shape = (kind, slots);
        if let Some(idle) = self.table.idle_counter(kind, slots, self.taken.get(&shape)) {
            self.taken.insert(shape, idle);
            return idle;
        }
        let from = self.fresh.get(&shape).copied().unwrap_or_default();
        let turn = self.table.fresh_counter(kind, slots, from).map_or(Turn::Random, Turn::Counter);
        let balancer = Balancer { kind, slots, turn };
        let is_there = match turn {
            Turn::Counter(counter) => {
                self.fresh.insert(shape, counter + 1);
                false
            }
            Turn::Random => self.table.balancers.contains_key(&balancer) || !self.random.insert(shape),
        };
        if !is_there {
            let chain = self.chain(balancer);
            self.plan.changes.push(Op::WriteBalancer(balancer, chain));
        }
        balancer
    }

    fn left_over_slots(&mut self, frontend: Frontend, tasks: usize) {
        for (slot, _) in self.table.slots(frontend).skip_while(|(slot, _)| (*slot as usize) < tasks) {
            self.plan.later.push(Op::DeleteSlot { frontend, slot });
        }
    }

    fn idle_balancers(&mut self) {
        let mut kept: BTreeMap<(Kind, u32), usize> = BTreeMap::new();
        let taken = |it: &&Balancer| self.taken.get(&(it.kind, it.slots)).is_some_and(|last| *it <= last);
        let idle = self.table.idle.iter().filter(|it| !taken(it)).chain(&self.freed);
        // Those without a counter are one a shape and stay: whether anybody takes them in this plan needs no books.
        for balancer in idle.filter(|it| it.turn != Turn::Random).copied().collect::<BTreeSet<_>>() {
            let kept = kept.entry((balancer.kind, balancer.slots)).or_default();
            *kept += 1;
            if *kept > IDLE_KEPT {
                self.plan.later.push(Op::DeleteBalancer(balancer));
            }
        }
    }

    fn chain(&mut self, balancer: Balancer) -> Arc<Chain> {
        let shape = (balancer.kind, balancer.slots, balancer.turn == Turn::Random);
        let rules = self.rules.entry(shape).or_insert_with(|| balancer.rules().into());
        Arc::new(Chain::balancer(balancer, rules.clone()))
    }

    fn finish(self) -> Plan {
        self.plan
    }
}

fn frontends(desired: &MeshState, faults: &mut Vec<Fault>) -> BTreeMap<Frontend, BTreeSet<Backend>> {
    let vips = desired.vips.keys().map(|address| Frontend::Vip(*address));
    let ports = desired.ports.keys().flat_map(|port| [Family::V4, Family::V6].map(|it| Frontend::Port(it, *port)));
    vips.chain(ports).map(|frontend| (frontend, backends(desired, frontend, faults))).collect()
}

fn backends(desired: &MeshState, frontend: Frontend, faults: &mut Vec<Fault>) -> BTreeSet<Backend> {
    match frontend {
        Frontend::Vip(vip) => {
            let addresses = desired.vips.get(&vip).into_iter().flatten();
            let (same, other): (Vec<&IpAddr>, Vec<&IpAddr>) =
                addresses.partition(|it: &&IpAddr| Family::of(**it) == Family::of(vip));
            faults.extend(other.into_iter().map(|backend| Fault::FamiliesDiffer { frontend, backend: *backend }));
            same.into_iter().map(|address| Backend { address: *address, port: 0 }).collect()
        }
        Frontend::Port(family, port) => desired
            .ports
            .get(&port)
            .into_iter()
            .flatten()
            .filter(|backend| Family::of(backend.ip()) == family)
            .map(|backend| Backend { address: backend.ip(), port: backend.port() })
            .collect(),
    }
}

/// Which addresses are whose.
pub(super) struct Ranges<'a> {
    /// Disjoint ranges of sources, and the network that has each; the machines' own have none.
    given: BTreeMap<IpNet, Option<&'a str>>,
    /// The pools and all that is given, in as few ranges as can be.
    pub overlay: BTreeSet<IpNet>,
    faults: Vec<Fault>,
}

impl<'a> Ranges<'a> {
    pub fn new(desired: &'a MeshState) -> Ranges<'a> {
        let machine = &desired.machine;
        let usable = |range: &IpNet| machine.address(Family::of(range.addr())).is_some();
        let (mut given, mut faults) = (BTreeMap::new(), Vec::new());
        for range in machine.machines.iter().map(IpNet::trunc).filter(usable) {
            if overlapping(&given, range).is_none() {
                given.insert(range, None);
            }
        }
        for (id, network) in &desired.networks {
            for subnet in network.subnets.iter().map(IpNet::trunc) {
                if !usable(&subnet) {
                    faults.push(Fault::NoSuchFamily { network: id.clone(), subnet });
                } else if let Some(by) = taken(&desired.nodes, subnet) {
                    faults.push(Fault::SubnetTaken { network: id.clone(), subnet, by });
                } else if let Some((other_subnet, other)) = overlapping(&given, subnet) {
                    let (network, other) = (id.clone(), other.map(str::to_owned));
                    faults.push(Fault::SubnetsOverlap { network, subnet, other, other_subnet });
                } else {
                    given.insert(subnet, Some(id.as_str()));
                }
            }
        }
        let pools = machine.pools.iter().map(IpNet::trunc).filter(usable);
        let overlay: Vec<IpNet> = pools.chain(given.keys().copied()).collect();
        let overlay = IpNet::aggregate(&overlay).into_iter().collect();
        Ranges { given, overlay, faults }
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.overlay.iter().any(|range| range.contains(&address))
    }

    /// The subnet, of whichever network, that has this address.
    fn subnet(&self, address: IpAddr) -> Option<IpNet> {
        let (subnet, network) = self.given.range(..=IpNet::from(address)).next_back()?;
        (network.is_some() && subnet.contains(&address)).then_some(*subnet)
    }
}

/// The first address that a task must not have.
fn taken(nodes: &BTreeSet<IpAddr>, subnet: IpNet) -> Option<IpAddr> {
    let everywhere: [IpAddr; 4] =
        [Ipv4Addr::LOCALHOST.into(), GATEWAY.into(), Ipv6Addr::LOCALHOST.into(), GATEWAY6.into()];
    everywhere.iter().chain(nodes).copied().find(|address| subnet.contains(address))
}

fn members(desired: &MeshState, ranges: &Ranges<'_>, faults: &mut Vec<Fault>) -> BTreeSet<Member> {
    let mut wanted = BTreeSet::new();
    for (range, id) in &ranges.given {
        let everywhere = everywhere(Family::of(range.addr()));
        wanted.insert(Member::Same(*range, if id.is_some() { *range } else { everywhere }));
        if id.and_then(|id| desired.networks.get(id)).is_some_and(|network| network.internal) {
            wanted.insert(Member::Closed(*range, everywhere));
        }
    }
    for (id, task) in &desired.tasks {
        let mut known_by = BTreeMap::new();
        for address in task.addresses.iter().copied() {
            if !ranges.contains(address) {
                faults.push(Fault::TaskOutsideOverlay { task: id.clone(), address });
                continue;
            }
            wanted.insert(Member::Owner(task.link.clone(), address));
            // Two in one network: the lower one. The kernel takes one for each.
            if let Some(subnet) = ranges.subnet(address) {
                known_by.entry(subnet).or_insert(address);
            }
        }
        wanted.extend(known_by.into_iter().map(|(subnet, it)| Member::Reach(task.link.clone(), subnet, it)));
    }
    wanted.extend(desired.nodes.iter().map(|address| Member::Node(*address)));
    wanted
}

/// Of disjoint subnets only the neighbours in order can overlap a further one.
fn overlapping<'a>(given: &BTreeMap<IpNet, Option<&'a str>>, subnet: IpNet) -> Option<(IpNet, Option<&'a str>)> {
    let before = given.range(..=subnet).next_back();
    let after = given.range(subnet..).next();
    let overlap = |other: &IpNet| other.contains(&subnet) || subnet.contains(other);
    before.into_iter().chain(after).find(|(other, _)| overlap(other)).map(|(other, id)| (*other, *id))
}

fn everywhere(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).expect("0 fits").into(),
        Family::V6 => Ipv6Net::new(Ipv6Addr::UNSPECIFIED, 0).expect("0 fits").into(),
    }
}
