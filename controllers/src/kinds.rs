//! The kinds of apply as the objects layer and the API serve them.

use std::time::Duration;

use reconciler::Resource;
use reconciler::leadership::{LeaseKind, Record};
use reconciler::objects::Kinds;
use schemas::Period;
use schemas::kinds::ALL;
use schemas::kinds::lease::{Lease, LeaseSpec};

/// Every kind, with its checks and its schema; leases have terms.
pub fn kinds() -> Kinds {
    let kinds = ALL.iter().fold(Kinds::new(), |kinds, registered| {
        let kind = (registered.kind)();
        kinds.with_check(kind.clone(), registered.check).with_schema(kind, (registered.schema)().to_value())
    });
    kinds.with_terms(Lease::kind(), "/spec/holder")
}

/// Leases of apply.
#[derive(Debug)]
pub struct Leases;

impl LeaseKind for Leases {
    type Object = Lease;

    fn read(lease: &Lease) -> Record {
        let LeaseSpec { holder, ttl, renewals } = lease.spec.clone();
        Record { holder, ttl: ttl.get(), renewals }
    }

    fn write(lease: &mut Lease, record: &Record) {
        let ttl = Period::new(record.ttl.max(Duration::from_millis(1)));
        lease.spec = LeaseSpec { holder: record.holder.clone(), ttl, renewals: record.renewals };
    }

    fn blank(name: &str) -> Lease {
        Lease::new(name, LeaseSpec::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_says_what_it_was_told() {
        let record = Record { holder: "m1/7".into(), ttl: Duration::from_secs(3), renewals: 4 };
        let mut lease = Leases::blank("controllers");
        Leases::write(&mut lease, &record);
        assert_eq!(Leases::read(&lease), record);
        lease.metadata.namespace = "apply-system".into();
        let object = serde_json::to_value(&lease).unwrap();
        assert_eq!(kinds().get("leases.apply").unwrap().check(&object, None), []);
    }
}
