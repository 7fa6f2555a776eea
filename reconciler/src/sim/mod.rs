//! The simulator: real controllers on one thread, with a clock, a store and worlds that can do everything that real
//! ones do at the worst moment.
//!
//! A run is a list of choices: which runnable task goes next, whether this commit's answer is lost, how late that
//! batch arrives. A promise that breaks is shrunk to the few unusual choices that matter, told as a story of one line
//! a step, and replayed from its script.
//!
//! ```
//! # use std::sync::Arc;
//! # use reconciler::api::{ObjectRef, Resource};
//! # use reconciler::controller::{Action, Controller, Ctx, Error, Reconciler};
//! # use serde::{Deserialize, Serialize};
//! use reconciler::sim;
//! # #[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
//! # #[resource(group = "example.dev", version = "v1", kind = "Light", status = LightStatus, crate = reconciler::api)]
//! # pub struct LightSpec { pub on: bool }
//! # #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
//! # pub struct LightStatus { pub on: bool }
//! # struct Lights;
//! # impl Reconciler for Lights {
//! #     type Object = Light;
//! #     async fn reconcile(&self, light: Arc<Light>, cx: &Ctx) -> Result<Action, Error> {
//! #         let mut lit = (*light).clone();
//! #         lit.status = Some(LightStatus { on: light.spec.on });
//! #         cx.client().update_status(&*light, &lit).await?;
//! #         Ok(Action::Await)
//! #     }
//! # }
//!
//! let report = sim::check("lights follow their switches", |scene| {
//!     scene
//!         .kind::<Light>()
//!         .controller(|_| Controller::new("lights", Lights))
//!         .workload(|user| async move {
//!             let mut hall = Light::new("hall", LightSpec { on: true });
//!             hall.metadata.namespace = "home".into();
//!             user.create(&hall).await;
//!             for on in [false, true, false, true, false, true, false, true, false, true] {
//!                 user.pause().await;
//!                 user.update::<Light>(&ObjectRef::new("home", "hall"), move |light| light.spec.on = on).await;
//!             }
//!         })
//!         .settles("every light is as its switch", |seen| {
//!             match seen.all::<Light>().find(|light| light.status.as_ref().is_none_or(|status| status.on != light.spec.on)) {
//!                 Some(light) => Err(format!("{} is not", light.name())),
//!                 None => Ok(()),
//!             }
//!         })
//! })
//! .schedules(200);
//! assert!(report.contents > 3);
//! ```
//!
//! Search order: a run without faults; then every single fault at every place where it can strike (a crash after each
//! commit, each event dropped or merged, each restart with an older view); then random mixes, each of which turns some
//! faults off altogether (TigerBeetle calls it swarm testing).
//!
//! Reading order: `scene` (what is simulated), `process` (what runs in it), `choices`, `faults`, `executor`
//! (tasks and time), `server` (the store), `run` (one run), `search` (many, and the way from a failure to a story).

mod choices;
mod executor;
mod faults;
mod process;
mod run;
mod scene;
mod search;
mod server;
mod shrink;
mod story;
mod universe;

pub use choices::{Mix, Occasion, ParseScriptError, Point, Script};
pub use faults::{Fault, Fired};
pub use process::{CallError, Calls, Env, User};
pub use scene::Scene;
pub use search::{Check, Failure, Report, check};
pub use server::View;
pub use universe::Broken;
