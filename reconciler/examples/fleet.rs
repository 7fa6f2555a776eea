//! A controller for a kind of one's own: a `Fleet` that wants so many `Boat`s has so many, whatever happens to them.
use std::sync::Arc;

use reconciler::api::Resource;
use reconciler::cache::Cache;
use reconciler::controller::{Action, Controller, Ctx, Error, Manager, Reconciler};
use reconciler::objects::{Client, Kinds, Propagation, StoreObjects, Writer};
use reconciler::{seams::Seams, store::Memory};
use serde::{Deserialize, Serialize};

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Fleet", status = FleetStatus, crate = reconciler::api)]
struct FleetSpec {
    boats: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
struct FleetStatus {
    afloat: u32,
}

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Boat", crate = reconciler::api)]
struct BoatSpec {
    number: u32,
}

struct Fleets;

impl Reconciler for Fleets {
    type Object = Fleet;

    async fn reconcile(&self, fleet: Arc<Fleet>, cx: &Ctx) -> Result<Action, Error> {
        let boats = cx.owned::<Boat>();
        for sold in boats.iter().filter(|boat| boat.spec.number >= fleet.spec.boats) {
            cx.client().delete(&**sold, Propagation::Background).await?;
        }
        for number in (0..fleet.spec.boats).filter(|number| boats.iter().all(|boat| boat.spec.number != *number)) {
            cx.client().create(&cx.own(Boat::new(format!("{}-{number}", fleet.name()), BoatSpec { number }))).await?;
        }
        let mut said = (*fleet).clone();
        said.status = Some(FleetStatus { afloat: boats.len() as u32 });
        cx.client().update_status(&*fleet, &said).await?;
        Ok(Action::Await) // a change of the fleet, or of a boat of it, brings us back
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kinds = Kinds::new().with::<Fleet>().with::<Boat>();
    let objects = Arc::new(StoreObjects::open(Arc::new(Memory::new()), "/fleets", kinds, Seams::real()).await?);
    let fleets = Controller::new("fleets", Fleets).owns::<Boat>();
    let manager = Manager::builder(objects.clone(), Seams::real()).controller(fleets).build();
    let ann = Client::new(objects, Writer::new("user:ann", "example"));
    tokio::select! {
        () = manager.run(std::future::pending()) => Ok(()),
        done = order(&ann, manager.cache()) => done,
    }
}

async fn order(ann: &Client, cache: &Cache) -> Result<(), Box<dyn std::error::Error>> {
    let mut fleet = Fleet::new("north", FleetSpec { boats: 3 });
    fleet.metadata.namespace = "default".into();
    ann.create(&fleet).await?;
    let seen = cache.wait_for(|seen| seen.count::<Boat>() == 3).await;
    println!("3 boats are afloat");

    let lost = seen.all::<Boat>().next().expect("there are three").clone();
    ann.delete(&*lost, Propagation::Background).await?;
    let is_new = |boat: &Arc<Boat>| boat.metadata.uid != lost.metadata.uid;
    cache.wait_for(|seen| seen.count::<Boat>() == 3 && seen.all::<Boat>().all(is_new)).await;
    println!("one sank, and 3 are afloat again");
    Ok(())
}
