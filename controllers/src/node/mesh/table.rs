//! The table as data: what the kernel has, what can be done to it, and what each deed does.
//!
//! `Table::apply` is the model of the kernel, and as strict: it refuses what the kernel would refuse. The controller
//! keeps its picture of the kernel up to date with it, and the simulator uses it in the kernel's stead.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    ruleset::{Balancer, COUNTERS_MAX, Chain, Ruleset, Turn},
    state::{Backend, Family, Frontend, Kind},
};
use crate::node::links::LinkName;

/// What is in the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Sets and hooks in words; empty when there is no table, odd when somebody else has been at it.
    pub(super) foundation: String,
    /// Chains of the fixed part and what their rules are.
    pub(super) fixed: BTreeMap<String, u64>,
    pub(super) balancers: BTreeMap<Balancer, u64>,
    /// INVARIANT: of each of `balancers`, how many routes lead to it; `idle` are those without any. Kept by
    /// `insert_balancer`, `insert_route`, `remove_route` and `apply`.
    users: BTreeMap<Balancer, u32>,
    pub(super) idle: BTreeSet<Balancer>,
    pub(super) slots: BTreeMap<(Frontend, u32), Backend>,
    pub(super) routes: BTreeMap<Frontend, Balancer>,
    pub(super) members: BTreeSet<Member>,
}

/// An element of a plain set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// The task behind this link may speak from this address.
    Owner(LinkName, IpAddr),
    /// The task behind this link is in the network with this subnet, where it is known by that address.
    Reach(LinkName, IpNet, IpAddr),
    /// From the first to the second is inside one network. Both are of one family.
    Same(IpNet, IpNet),
    /// From the first to the second is barred, when the second is outside the overlay.
    Closed(IpNet, IpNet),
    /// A machine of the cluster.
    Node(IpAddr),
}

impl Member {
    pub fn family(&self) -> Family {
        match self {
            Member::Owner(_, address) | Member::Reach(_, _, address) | Member::Node(address) => Family::of(*address),
            Member::Same(subnet, _) | Member::Closed(subnet, _) => Family::of(subnet.addr()),
        }
    }
}

/// One change. A list of them is one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Away with the table, if there is one; the fixed part anew. Elements follow.
    Rebuild(Arc<Ruleset>),
    /// The chain has exactly these rules.
    WriteChain(Arc<Chain>),
    WriteBalancer(Balancer, Arc<Chain>),
    DeleteBalancer(Balancer),
    PutSlot {
        frontend: Frontend,
        slot: u32,
        backend: Backend,
        replaces: Option<Backend>,
    },
    DeleteSlot {
        frontend: Frontend,
        slot: u32,
    },
    PutRoute {
        frontend: Frontend,
        to: Balancer,
        replaces: Option<Balancer>,
    },
    DeleteRoute {
        frontend: Frontend,
    },
    Add(Member),
    Remove(Member),
}

impl fmt::Display for Op {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Rebuild(_) => write!(out, "make the table anew"),
            Op::WriteChain(chain) => write!(out, "write chain {}", chain.name),
            Op::WriteBalancer(balancer, _) => write!(out, "write chain {}", balancer.name()),
            Op::DeleteBalancer(balancer) => write!(out, "delete chain {}", balancer.name()),
            Op::PutSlot { frontend, slot, backend, .. } => {
                write!(out, "put {}:{} into slot {slot} of {frontend}", backend.address, backend.port)
            }
            Op::DeleteSlot { frontend, slot } => write!(out, "delete slot {slot} of {frontend}"),
            Op::PutRoute { frontend, to, .. } => write!(out, "send {frontend} to chain {}", to.name()),
            Op::DeleteRoute { frontend } => write!(out, "delete the route of {frontend}"),
            Op::Add(member) => write!(out, "add {member:?}"),
            Op::Remove(member) => write!(out, "remove {member:?}"),
        }
    }
}

/// The table is not what the change took it for: observe again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the table is not as it was observed: could not {op}")]
pub struct Conflict {
    pub op: String,
}

impl Table {
    /// No table at all.
    pub fn absent() -> Table {
        Table::default()
    }

    pub fn is_absent(&self) -> bool {
        self.foundation.is_empty()
    }

    /// All or nothing, as the kernel.
    pub fn commit(&mut self, ops: &[Op]) -> Result<(), Conflict> {
        let mut next = self.clone();
        for op in ops {
            next.apply(op)?;
        }
        *self = next;
        Ok(())
    }

    /// Does one thing. On an error nothing was done.
    pub(super) fn apply(&mut self, op: &Op) -> Result<(), Conflict> {
        let done = match op {
            Op::Rebuild(ruleset) => {
                *self = Table {
                    foundation: ruleset.foundation(),
                    fixed: ruleset.chains.iter().map(|(name, chain)| (name.clone(), chain.fingerprint())).collect(),
                    ..Table::default()
                };
                true
            }
            _ if self.is_absent() => false,
            Op::WriteChain(chain) => self.fixed.insert(chain.name.clone(), chain.fingerprint()).is_some(),
            Op::WriteBalancer(balancer, chain) => {
                self.insert_balancer(*balancer, chain.fingerprint());
                true
            }
            Op::DeleteBalancer(balancer) => {
                self.users.remove(balancer);
                self.idle.remove(balancer) && self.balancers.remove(balancer).is_some()
            }
            Op::PutSlot { frontend, slot, backend, replaces } => {
                let fits = self.slots.get(&(*frontend, *slot)) == replaces.as_ref();
                if fits {
                    self.slots.insert((*frontend, *slot), *backend);
                }
                fits
            }
            Op::DeleteSlot { frontend, slot } => self.slots.remove(&(*frontend, *slot)).is_some(),
            Op::PutRoute { frontend, to, replaces } => {
                let fits = self.routes.get(frontend) == replaces.as_ref() && self.balancers.contains_key(to);
                if fits {
                    self.remove_route(frontend);
                    self.insert_route(*frontend, *to);
                }
                fits
            }
            Op::DeleteRoute { frontend } => self.remove_route(frontend),
            Op::Add(member) => self.members.insert(member.clone()),
            Op::Remove(member) => self.members.remove(member),
        };
        if done { Ok(()) } else { Err(Conflict { op: op.to_string() }) }
    }

    pub fn route(&self, frontend: Frontend) -> Option<Balancer> {
        self.routes.get(&frontend).copied()
    }

    /// The slots of a frontend, in order. More than its chain counts to are left-overs.
    pub fn slots(&self, frontend: Frontend) -> impl Iterator<Item = (u32, Backend)> {
        self.slots.range((frontend, 0)..=(frontend, u32::MAX)).map(|((_, slot), backend)| (*slot, *backend))
    }

    /// The first chain of that shape that nobody uses, behind `after`: so they stay few.
    pub(super) fn idle_counter(&self, kind: Kind, slots: u32, after: Option<&Balancer>) -> Option<Balancer> {
        let at = |counter| Balancer { kind, slots, turn: Turn::Counter(counter) };
        let from = after.map_or(Bound::Included(at(0)), |last| Bound::Excluded(*last));
        self.idle.range((from, Bound::Included(at(u32::MAX)))).next().copied()
    }

    /// The first counter of that shape, from `from` on, that there is none of yet.
    pub(super) fn fresh_counter(&self, kind: Kind, slots: u32, from: u32) -> Option<u32> {
        let is_free = |counter: &u32| {
            let balancer = Balancer { kind, slots, turn: Turn::Counter(*counter) };
            !self.balancers.contains_key(&balancer)
        };
        (from..COUNTERS_MAX).find(is_free)
    }

    /// All that packets are sent on for.
    pub fn frontends(&self) -> BTreeSet<Frontend> {
        self.routes.keys().copied().collect()
    }

    /// What a packet to this frontend would meet, slot by slot; `None` where a slot is empty. For checks.
    pub fn answers(&self, frontend: Frontend) -> Vec<Option<Backend>> {
        let count = self.route(frontend).map_or(0, |balancer| balancer.slots);
        (0..count).map(|slot| self.slots.get(&(frontend, slot)).copied()).collect()
    }

    /// Whether several frontends use this chain.
    pub(super) fn is_shared(&self, balancer: Balancer) -> bool {
        self.users.get(&balancer).is_some_and(|users| *users > 1)
    }

    pub(super) fn insert_balancer(&mut self, balancer: Balancer, fingerprint: u64) {
        if self.balancers.insert(balancer, fingerprint).is_none() {
            self.idle.insert(balancer);
        }
    }

    pub(super) fn insert_route(&mut self, frontend: Frontend, to: Balancer) {
        self.routes.insert(frontend, to);
        *self.users.entry(to).or_default() += 1;
        self.idle.remove(&to);
    }

    fn remove_route(&mut self, frontend: &Frontend) -> bool {
        let Some(was) = self.routes.remove(frontend) else { return false };
        if let Some(users) = self.users.get_mut(&was) {
            *users -= 1;
            if *users == 0 {
                self.users.remove(&was);
                self.idle.insert(was);
            }
        }
        true
    }
}
