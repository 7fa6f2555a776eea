//! Controllers: what an author writes, and what runs it.
//!
//! An author writes a [`Reconciler`]: given one object and a snapshot of everything declared, make one step towards
//! what the object says, and be called again. The framework does the rest: it calls on every change of the object, of
//! what it owns and of what it watches; one worker a key; failures back off; nothing runs before the cache is complete
//! or before it has seen what the last run of the same key wrote; a panic or a run that takes too long is one failed
//! run; every write demands that the object is still the one that was read.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use reconciler::api::Resource;
//! # use reconciler::controller::{Action, Controller, Ctx, Error, Manager, Reconciler};
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
//! # #[resource(group = "example.dev", version = "v1", kind = "Site", crate = reconciler::api)]
//! # pub struct SiteSpec { pub pages: u32 }
//! # #[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
//! # #[resource(group = "example.dev", version = "v1", kind = "Page", crate = reconciler::api)]
//! # pub struct PageSpec {}
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
//!         Ok(Action::Await)
//!     }
//! }
//!
//! # async fn run(objects: Arc<dyn reconciler::objects::Objects>) {
//! let sites = Controller::new("sites", Sites).owns::<Page>();
//! Manager::builder(objects, reconciler::seams::Seams::real()).controller(sites).build().run(std::future::pending()).await;
//! # }
//! ```
//!
//! Reading order: `mod` (what authors implement), `error` (what they answer), `ctx` (what they are given),
//! `builder` (what wakes them), `runner` (one controller running), `manager` (all of a process).

mod builder;
mod ctx;
mod error;
mod handler;
mod manager;
#[doc(hidden)]
pub mod planted;
mod recording;
mod runner;
mod signal;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reconciler_api::Resource;

use crate::queue::Key;

pub use builder::Controller;
pub use ctx::{Ctx, Subject};
pub use error::{Class, Error};
pub use manager::{Manager, ManagerBuilder};
pub use signal::Signal;

/// What brings objects of one kind about.
///
/// *Guarantees*: called with an object that was there in the snapshot of `cx`, never twice at once for one object.
/// *Assumptions*: every step is safe to repeat, and to be cut off at any await.
pub trait Reconciler: Send + Sync + 'static {
    /// The kind whose objects it brings about.
    type Object: Resource;

    /// Makes one step towards what `object` says. Not called for objects that are being deleted.
    fn reconcile(&self, object: Arc<Self::Object>, cx: &Ctx) -> impl Future<Output = Result<Action, Error>> + Send;

    /// Makes one step towards being rid of `object`, which is being deleted. Called only when the controller has a
    /// [`finalizer`](Controller::finalizer); it must bear that what it removes never came to be.
    fn cleanup(&self, object: Arc<Self::Object>, cx: &Ctx) -> impl Future<Output = Result<Cleanup, Error>> + Send {
        let _ = (object, cx);
        async { Ok(Cleanup::Done) }
    }
}

/// What brings about something that is not one object: a machine's whole mesh, a folder, a name in somebody's cloud.
pub trait KeyReconciler: Send + Sync + 'static {
    /// What it is called for.
    type Key: Key;

    /// Makes one step towards what everything that is known says of `key`.
    fn reconcile(&self, key: &Self::Key, cx: &Ctx) -> impl Future<Output = Result<Action, Error>> + Send;
}

/// The key of a controller that has only one thing to bring about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Singleton;

impl fmt::Display for Singleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all")
    }
}

/// What shall happen after a run that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until something changes.
    Await,
    /// The same again after this, if nothing changes before.
    Requeue(Duration),
}

/// How far a clean-up has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// Nothing is left: the finalizer goes, and the object with its last one.
    Done,
    /// Something is left.
    Pending(Action),
}
