//! A `Rota` makes a `Shift` for each of the next days, its members in turn.

use std::sync::Arc;

use reconciler::api::Resource;
use reconciler::controller::{Action, Controller, Ctx, Error, Reconciler};
use reconciler::objects::Propagation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Rota", status = RotaStatus, crate = reconciler::api)]
pub struct RotaSpec {
    pub members: Vec<String>,
    pub days: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RotaStatus {
    pub filled: u32,
}

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Shift", crate = reconciler::api)]
pub struct ShiftSpec {
    pub day: u32,
    pub who: String,
}

#[derive(Debug, PartialEq)]
pub enum Change {
    Add(ShiftSpec),
    Drop(Arc<Shift>),
}

/// What is wanted and what is there in, what to do out: no store, no clock, so a test of it takes microseconds.
pub fn plan(rota: &RotaSpec, shifts: &[Arc<Shift>]) -> Vec<Change> {
    let who = |day: u32| rota.members.get(day as usize % rota.members.len().max(1)).cloned();
    let wanted: Vec<_> = (0..rota.days).filter_map(|day| Some(ShiftSpec { day, who: who(day)? })).collect();
    let dropped = shifts.iter().filter(|shift| !wanted.contains(&shift.spec));
    let added = wanted.iter().filter(|spec| shifts.iter().all(|shift| shift.spec.day != spec.day));
    dropped.cloned().map(Change::Drop).chain(added.cloned().map(Change::Add)).collect()
}

pub struct Rotas;

pub fn controller() -> Controller {
    Controller::new("rotas", Rotas).owns::<Shift>()
}

impl Reconciler for Rotas {
    type Object = Rota;

    async fn reconcile(&self, rota: Arc<Rota>, cx: &Ctx) -> Result<Action, Error> {
        let shifts = cx.owned::<Shift>();
        for change in plan(&rota.spec, &shifts) {
            match change {
                Change::Add(spec) => {
                    let shift = Shift::new(format!("{}-{}", rota.name(), spec.day), spec);
                    cx.client().create(&cx.own(shift)).await?;
                }
                Change::Drop(shift) => cx.client().delete(&*shift, Propagation::Background).await?,
            }
        }
        let mut said = (*rota).clone();
        said.status = Some(RotaStatus { filled: shifts.len() as u32 });
        cx.client().update_status(&*rota, &said).await?;
        Ok(Action::Await) // a change of the rota, or of one of its shifts, brings us back
    }
}
