//! How anything converges: read what is wanted, read what is, make one step towards it, be called again.
//!
//! What is wanted is written down as objects in a store. A controller is a function that is given one of them and a
//! snapshot of everything that it asked to see, and makes one step. It is not told what happened, so no event can be
//! lost: first start, failover and the ten-thousandth change take the same path, and every step may be cut off and made
//! again. The same crate keeps a cluster's tasks, a folder of files or a cloud account in line; it never says
//! "container".
//!
//! ```
//! # use std::sync::Arc;
//! # use serde::{Deserialize, Serialize};
//! use reconciler::api::Resource;
//! use reconciler::controller::{Action, Controller, Ctx, Error, Manager, Reconciler};
//! use reconciler::objects::{Client, Kinds, StoreObjects, Writer};
//! use reconciler::{seams::Seams, store::Memory};
//!
//! #[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
//! #[resource(group = "example.dev", version = "v1", kind = "Site", crate = reconciler::api)]
//! struct SiteSpec { pages: u32 }
//!
//! #[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
//! #[resource(group = "example.dev", version = "v1", kind = "Page", crate = reconciler::api)]
//! struct PageSpec {}
//!
//! struct Sites;
//!
//! impl Reconciler for Sites {
//!     type Object = Site;
//!
//!     async fn reconcile(&self, site: Arc<Site>, cx: &Ctx) -> Result<Action, Error> {
//!         let there = cx.owned::<Page>();
//!         let wanted = (0..site.spec.pages).map(|n| format!("{}-{n}", site.name()));
//!         for name in wanted.filter(|name| there.iter().all(|page| page.name() != name)) {
//!             cx.client().create(&cx.own(Page::new(name, PageSpec {}))).await?;
//!         }
//!         Ok(Action::Await) // a change of the site, or of a page that it owns, brings us back
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kinds = Kinds::new().with::<Site>().with::<Page>();
//! let objects = Arc::new(StoreObjects::open(Arc::new(Memory::new()), "/sites", kinds, Seams::real()).await?);
//! let sites = Controller::new("sites", Sites).owns::<Page>();
//! let manager = Manager::builder(objects.clone(), Seams::real()).controller(sites).build();
//!
//! let mut blog = Site::new("blog", SiteSpec { pages: 3 });
//! blog.metadata.namespace = "default".into();
//! Client::new(objects, Writer::new("user:ann", "example")).create(&blog).await?;
//! tokio::select! {
//!     () = manager.run(std::future::pending()) => {}
//!     _ = manager.cache().wait_for(|seen| seen.count::<Page>() == 3) => {}
//! }
//! # Ok(())
//! # }
//! ```
//!
//! It installs no crypto provider, subscriber, metrics registry, panic hook or signal handler, starts no runtime and
//! needs no root. Time, randomness, spawning, the store and external worlds come in through [`seams`], so that the
//! simulator can run real controllers and break them.
//!
//! | to | read |
//! | --- | --- |
//! | say what a kind is | [`api`] |
//! | write a controller | [`controller`], then [`cache`] (what it sees), [`objects`] (how it writes), [`events`] |
//! | keep something in line that is not in the store | [`external`] |
//! | break it before the world does | `sim` |
//! | run it | [`store`] (memory, a file, etcd), [`leadership`] (one at a time), [`cascade`] (what goes with its owner), [`metrics`], `server` (the verbs over HTTP) |
//! | see how it works | [`seams`], [`queue`], [`backoff`], [`causes`] |
//!
//! Features, each of which only adds: `memory`, `embedded`, `sim`, `server` and `client` (the default), `etcd` (needs
//! protoc).

#![warn(missing_docs)]

pub mod backoff;
pub mod cache;
pub mod cascade;
pub mod causes;
pub mod controller;
pub mod events;
pub mod external;
pub mod leadership;
pub mod metrics;
pub mod objects;
pub mod queue;
pub mod seams;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;

pub use reconciler_api as api;
pub use reconciler_api::{
    Condition, Conditions, Fault, Kind, ObjectMeta, ObjectRef, Resource, ResourceVersion, Timestamp, Truth, Uid,
};
