//! What an object looks like: the envelope that every kind shares, and nothing else.
//!
//! This crate is data. It never waits, reads no clock and does no I/O, so that a crate that only *says* what is wanted
//! (`schemas`, or an author's own kinds) needs serde and schemars and not the library that makes it so.
//!
//! ```
//! use reconciler_api::{ObjectMeta, Resource};
//! use serde::{Deserialize, Serialize};
//!
//! /// A web site that somebody wants served.
//! #[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
//! #[resource(group = "example.dev", version = "v1", kind = "Site", status = SiteStatus, crate = reconciler_api)]
//! pub struct SiteSpec {
//!     pub host: String,
//! }
//!
//! #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
//! pub struct SiteStatus {
//!     pub pages: u32,
//! }
//!
//! let site = Site::new("blog", SiteSpec { host: "blog.example.dev".into() });
//! assert_eq!(Site::kind().api_version(), "example.dev/v1");
//! let json = serde_json::to_value(&site).unwrap();
//! assert_eq!(json["kind"], "Site");
//! ```
//!
//! Reading order: [`meta`] (the envelope), [`kind`] (what is known of a kind before any object of it exists),
//! [`condition`], [`time`], [`fault`].

#![warn(missing_docs)]

pub mod condition;
pub mod fault;
pub mod kind;
pub mod meta;
pub mod time;

#[doc(hidden)]
pub mod derive_support;

pub use condition::{Condition, Conditions, Truth};
pub use fault::Fault;
pub use kind::{Column, ColumnType, Kind, ObjectRef, Resource, Scope};
pub use meta::{ManagedFieldsEntry, ObjectMeta, OwnerReference, ResourceVersion, Uid};
pub use reconciler_derive::Resource;
pub use time::Timestamp;
