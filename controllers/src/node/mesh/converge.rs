//! Rounds of observe, plan, act over a picture of the table that is kept as long as nobody else changes rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use reconciler::seams::Seams;

use super::{
    effects::{Mesh, MeshError, Observed},
    plan::{Fault, Plan, SETTLE, plan, plan_frontends},
    state::{Family, Frontend, MeshState, Protocol, PublishedPort},
    table::{Op, Table},
};
use crate::node::sys::conntrack::Stale;

/// What may differ from the last time.
#[derive(Debug, Clone, Copy)]
pub enum Changed<'a> {
    /// Anything. What differs is found by comparing; cost: a comparison of all that is wanted with what was.
    Anything,
    /// Only which tasks answer for these. Cost: theirs.
    Frontends(&'a BTreeSet<Frontend>),
}

/// What a round did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Converged {
    /// How many changes were made; 0 when all was as wanted.
    pub changes: usize,
    /// What is asked for and cannot be, in this round or since an earlier one.
    pub faults: Vec<Fault>,
}

/// Makes the table what is wanted.
pub struct Converger {
    mesh: Arc<dyn Mesh>,
    seams: Seams,
    /// A cache: taken out while it may be wrong, so that being dropped half-way only costs another listing.
    picture: Option<Picture>,
}

/// The table, and what it was made for.
struct Picture {
    observed: Observed,
    state: MeshState,
    faults: BTreeSet<Fault>,
}

impl Converger {
    pub fn new(mesh: Arc<dyn Mesh>, seams: Seams) -> Converger {
        Converger { mesh, seams, picture: None }
    }

    /// One round. When it returns `Ok`, new connections go where they are wanted.
    ///
    /// Cancel-safe: the next round finds what this one left. On `Conflict` somebody changes rules all the time.
    pub async fn converge(&mut self, desired: &MeshState, changed: Changed<'_>) -> Result<Converged, MeshError> {
        /// Each try is lost only if somebody else commits within its few milliseconds.
        const TRIES: usize = 5;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.round(desired, changed).await {
                Err(MeshError::Conflict { .. }) if tries < TRIES => {}
                outcome => return outcome,
            }
        }
    }

    /// Published ports that packets are sent on for now, whoever made it so.
    pub async fn open_ports(&self) -> Result<BTreeSet<PublishedPort>, MeshError> {
        let port = |frontend: &Frontend| match frontend {
            Frontend::Port(_, port) => Some(*port),
            Frontend::Vip(_) => None,
        };
        let of = |table: &Table| table.frontends().iter().filter_map(port).collect();
        match &self.picture {
            Some(picture) => Ok(of(&picture.observed.table)),
            None => Ok(of(&self.mesh.observe().await?.table)),
        }
    }

    async fn round(&mut self, desired: &MeshState, changed: Changed<'_>) -> Result<Converged, MeshError> {
        let kept = match self.picture.take() {
            Some(picture) if self.mesh.generation().await? == picture.observed.generation => Some(picture),
            _ => None,
        };
        let changed = kept.as_ref().and_then(|picture| match changed {
            Changed::Anything => picture.state.frontends_that_differ(desired),
            Changed::Frontends(frontends) => Some(frontends.clone()),
        });
        let (mut picture, plan) = match (kept, changed) {
            (Some(picture), Some(frontends)) => {
                let plan = plan_frontends(desired, &picture.observed.table, &frontends);
                (picture.for_frontends(desired, &frontends, &plan), plan)
            }
            (kept, _) => {
                let observed = match kept {
                    Some(picture) => picture.observed,
                    None => self.mesh.observe().await?,
                };
                let plan = plan(desired, &observed.table);
                let faults = plan.faults.iter().cloned().collect();
                (Picture { observed, state: desired.clone(), faults }, plan)
            }
        };
        let changes = plan.changes.len() + plan.later.len();
        let stale = stale(&plan.changes);
        self.commit(&mut picture.observed, plan.changes).await?;
        if !stale.is_empty() {
            self.mesh.forget(stale).await?;
        }
        if !plan.later.is_empty() {
            self.seams.sleep(SETTLE).await;
            self.commit(&mut picture.observed, plan.later).await?;
        }
        let faults = picture.faults.iter().cloned().collect();
        self.picture = Some(picture);
        Ok(Converged { changes, faults })
    }

    async fn commit(&self, observed: &mut Observed, ops: Vec<Op>) -> Result<(), MeshError> {
        if ops.is_empty() {
            return Ok(());
        }
        let ops: Arc<[Op]> = ops.into();
        self.mesh.commit(observed.generation, ops.clone()).await?;
        observed.generation = observed.generation.next();
        for op in ops.iter() {
            // The kernel has just done it to a table that was the same.
            observed.table.apply(op).map_err(|_| MeshError::Conflict { source: None })?;
        }
        Ok(())
    }
}

impl Picture {
    /// The same, but for these frontends.
    fn for_frontends(mut self, desired: &MeshState, frontends: &BTreeSet<Frontend>, plan: &Plan) -> Picture {
        self.faults.retain(|fault| match fault {
            Fault::FamiliesDiffer { frontend, .. } => !frontends.contains(frontend),
            _ => true,
        });
        self.faults.extend(plan.faults.iter().cloned());
        for frontend in frontends {
            match frontend {
                Frontend::Vip(vip) => copy(&desired.vips, &mut self.state.vips, vip),
                Frontend::Port(_, port) => copy(&desired.ports, &mut self.state.ports, port),
            }
        }
        self
    }
}

fn copy<K: Ord + Copy, V: Clone>(from: &BTreeMap<K, V>, to: &mut BTreeMap<K, V>, key: &K) {
    match from.get(key) {
        Some(value) => to.insert(*key, value.clone()),
        None => to.remove(key),
    };
}

impl MeshState {
    /// Frontends with other tasks than in `other`; `None` when more than that differs.
    fn frontends_that_differ(&self, other: &MeshState) -> Option<BTreeSet<Frontend>> {
        let of_all = (&self.machine, &self.nodes, &self.networks, &self.tasks);
        if of_all != (&other.machine, &other.nodes, &other.networks, &other.tasks) {
            return None;
        }
        let ports = differing(&self.ports, &other.ports);
        let of_both = |port: PublishedPort| [Family::V4, Family::V6].map(|family| Frontend::Port(family, port));
        let vips = differing(&self.vips, &other.vips).into_iter().map(Frontend::Vip);
        Some(vips.chain(ports.into_iter().flat_map(of_both)).collect())
    }
}

fn differing<K: Ord + Copy, V: PartialEq>(one: &BTreeMap<K, V>, other: &BTreeMap<K, V>) -> Vec<K> {
    let changed = one.iter().filter(|(key, value)| other.get(key) != Some(value)).map(|(key, _)| *key);
    let new = other.keys().filter(|key| !one.contains_key(key)).copied();
    changed.chain(new).collect()
}

/// Flows that were told so far that nobody is there.
fn stale(changes: &[Op]) -> BTreeSet<Stale> {
    let opened = changes.iter().filter_map(|op| match op {
        Op::PutRoute { frontend: Frontend::Port(_, port), replaces: None, .. } => Some(port),
        _ => None,
    });
    let udp = opened.filter(|port| port.protocol == Protocol::Udp);
    udp.map(|port| Stale::UntranslatedUdp(port.port)).collect()
}
