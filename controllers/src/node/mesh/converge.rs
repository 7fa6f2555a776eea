//! Rounds of observe, plan, act over a picture of the table that is kept as long as nobody else changes rules.

use std::{collections::BTreeSet, sync::Arc};

use reconciler::seams::Seams;

use super::{
    effects::{Mesh, MeshError, Observed},
    plan::{Fault, SETTLE, plan, plan_frontends},
    state::{Frontend, MeshState},
    table::Op,
};

/// What may differ from the last time.
#[derive(Debug, Clone, Copy)]
pub enum Changed<'a> {
    /// Anything. Cost: all of it.
    Anything,
    /// Only which tasks answer for these. Cost: theirs.
    Frontends(&'a BTreeSet<Frontend>),
}

/// What a round did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Converged {
    /// How many changes were made; 0 when all was as wanted.
    pub changes: usize,
    /// What was asked for and cannot be.
    pub faults: Vec<Fault>,
}

/// Makes the table what is wanted.
pub struct Converger {
    mesh: Arc<dyn Mesh>,
    seams: Seams,
    /// A cache: taken out while it may be wrong, so that being dropped half-way only costs another listing.
    picture: Option<Observed>,
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

    async fn round(&mut self, desired: &MeshState, changed: Changed<'_>) -> Result<Converged, MeshError> {
        let kept = match self.picture.take() {
            Some(picture) if self.mesh.generation().await? == picture.generation => Some(picture),
            _ => None,
        };
        let (mut picture, changed) = match kept {
            Some(picture) => (picture, changed),
            None => (self.mesh.observe().await?, Changed::Anything),
        };
        let plan = match changed {
            Changed::Anything => plan(desired, &picture.table),
            Changed::Frontends(frontends) => plan_frontends(desired, &picture.table, frontends),
        };
        let changes = plan.changes.len() + plan.later.len();
        self.commit(&mut picture, plan.changes).await?;
        if !plan.later.is_empty() {
            self.seams.sleep(SETTLE).await;
            self.commit(&mut picture, plan.later).await?;
        }
        self.picture = Some(picture);
        Ok(Converged { changes, faults: plan.faults })
    }

    async fn commit(&self, picture: &mut Observed, ops: Vec<Op>) -> Result<(), MeshError> {
        if ops.is_empty() {
            return Ok(());
        }
        let ops: Arc<[Op]> = ops.into();
        self.mesh.commit(picture.generation, ops.clone()).await?;
        picture.generation = picture.generation.next();
        for op in ops.iter() {
            // The kernel has just done it to a table that was the same.
            picture.table.apply(op).map_err(|_| MeshError::Conflict { source: None })?;
        }
        Ok(())
    }
}
