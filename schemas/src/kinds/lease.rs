//! Lease: who leads, for now.

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults;
use crate::quantity::Period;

/// Who leads, for now. A candidate takes over when the record has not changed for `ttl` on its own clock.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply",
    version = "v1", validate = crate::validate::lease,
    kind = "Lease",
    unmanaged,
    column("HOLDER", "/spec/holder"),
    column("RENEWALS", "/spec/renewals")
)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    /// Who leads, by the name of its process; empty: nobody.
    pub holder: String,
    /// How long the record may stand still before a candidate takes over; at least 100ms.
    pub ttl: Period,
    /// Counted up by each renewal, so that a renewal is a change.
    pub renewals: u64,
}

impl Default for LeaseSpec {
    fn default() -> Self {
        Self { holder: String::new(), ttl: defaults::LEASE_TTL.value, renewals: 0 }
    }
}
