//! What is said: every kind of `apply`, its defaults, what is refused and why, and the readers of the files that people
//! write. Pure data: nothing here waits, reads a clock, opens a file or knows that a network exists, so that the same
//! code checks an input in the command, in the API and in a test.
//!
//! ```
//! use schemas::kinds::service::{ContainerSpec, Service, ServiceSpec, TaskTemplate};
//! use schemas::Resource;
//!
//! let container = ContainerSpec { image: "example/vote:1".into(), ..ContainerSpec::default() };
//! let spec = ServiceSpec { template: TaskTemplate { container, ..TaskTemplate::default() }, ..ServiceSpec::default() };
//! let service = Service::new("vote", spec);
//! assert_eq!(service.spec.replicas(), 1);
//! assert_eq!(Service::kind().api_version(), "apply/v1");
//! ```
//!
//! Reading order: [`kinds`] (what can be said), [`quantity`] (times, sizes, CPUs as people write them), [`image`]
//! (references to images), [`names`], [`constraint`] (where tasks may run), [`defaults`] (what is meant by saying
//! nothing, with its source), [`read`] (from JSON to a [`Valid`] object, or every fault), on top of [`shape`], [`walk`],
//! `validate` and [`acting`] (which fields act); [`definition`] (kinds of other authors); [`merge`] (what comes of several who speak of one object); [`explain`].
//! Files, by way of [`source`] (values that know their line): [`dab`], [`deploy`] (a `.dab`, overlays and flags as one
//! bundle), [`objects`] (YAML and JSON with objects of any kind).

#![warn(missing_docs)]

pub mod acting;
pub mod advice;
pub mod constraint;
pub mod dab;
pub mod defaults;
pub mod definition;
pub mod deploy;
pub mod explain;
pub mod host;
pub mod image;
pub mod kinds;
pub mod level;
pub mod merge;
pub mod names;
pub mod objects;
pub mod quantity;
pub mod read;
pub mod sensitive;
pub mod shape;
pub mod source;
mod validate;
pub mod walk;

pub use reconciler_api::{
    Condition, Conditions, Fault, Kind, ObjectMeta, ObjectRef, OwnerReference, Resource, Timestamp, Truth, Uid,
};

pub use quantity::{Cpus, Period, Size};
pub use read::{Valid, read_object};
pub use sensitive::Sensitive;
pub use validate::ULIMITS;
