//! How anything converges: read what is wanted, read what is, make one step towards it, be called again.
//!
//! A level-triggered reconciler over objects in a store. It never says "container": the same crate keeps a cluster's
//! tasks, a folder of files or a cloud account in line.
//!
//! It installs no crypto provider, subscriber, metrics registry, panic hook or signal handler, starts no runtime and
//! needs no root. Time, randomness, spawning, the store and external worlds come in through [`seams`], so that
//! the simulator can run real controllers and break them.
//!
//! Reading order: [`seams`], [`store`] (bytes under keys), [`objects`] (what everybody else uses), [`cache`] (what is
//! known of them), [`queue`], [`controller`] (what authors write), [`external`] (worlds that are not the store),
//! [`cascade`] (what goes with its owner), [`leadership`] (one at a time), [`events`], [`metrics`], `server` (the verbs
//! over HTTP).

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
