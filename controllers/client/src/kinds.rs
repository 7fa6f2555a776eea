//! apply's Lease and Event, as the library's elections and recorders ask for them.

use std::time::Duration;

use reconciler::Resource;
use reconciler::events::{EventKind, Level};
use reconciler::leadership::LeaseKind;
use reconciler::{events, leadership};
use schemas::Period;
use schemas::kinds::event::{Event, EventObject, EventSpec, EventType};
use schemas::kinds::lease::{Lease, LeaseSpec};

/// Leases of apply.
#[derive(Debug)]
pub struct Leases;

impl LeaseKind for Leases {
    type Object = Lease;

    fn read(lease: &Lease) -> leadership::Record {
        let LeaseSpec { holder, ttl, renewals } = lease.spec.clone();
        leadership::Record { holder, ttl: ttl.get(), renewals }
    }

    fn write(lease: &mut Lease, record: &leadership::Record) {
        let ttl = Period::new(record.ttl.max(Duration::from_millis(1)));
        lease.spec = LeaseSpec { holder: record.holder.clone(), ttl, renewals: record.renewals };
    }

    fn blank(name: &str) -> Lease {
        Lease::new(name, LeaseSpec::default())
    }
}

/// Events of apply.
#[derive(Debug)]
pub struct Events;

impl EventKind for Events {
    type Object = Event;

    fn from_record(record: &events::Record) -> Event {
        let subject = &record.regarding;
        let spec = EventSpec {
            regarding: EventObject {
                kind: subject.kind.clone(),
                namespace: subject.reference.namespace.clone(),
                name: subject.reference.name.clone(),
                uid: subject.uid.clone(),
            },
            reason: record.reason.clone(),
            note: record.message.clone(),
            kind: match record.level {
                Level::Normal => EventType::Normal,
                Level::Warning => EventType::Warning,
            },
            count: record.count,
            first_time: Some(record.first),
            last_time: Some(record.last),
            reporter: record.source.to_owned(),
            node: None,
        };
        Event::new(record.name.clone(), spec)
    }

    fn repeat(event: &mut Event, record: &events::Record) {
        event.spec.count = event.spec.count.saturating_add(record.count);
        event.spec.last_time = event.spec.last_time.max(Some(record.last));
    }
}
