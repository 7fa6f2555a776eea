//! What controllers say happened, as objects of kind Event.

use reconciler::Resource;
use reconciler::events::{EventKind, Level, Record};
use schemas::kinds::event::{Event, EventObject, EventSpec, EventType};

/// Events of apply.
pub struct Events;

impl EventKind for Events {
    type Object = Event;

    fn from_record(record: &Record) -> Event {
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

    fn repeat(event: &mut Event, record: &Record) {
        event.spec.count = event.spec.count.saturating_add(record.count);
        event.spec.last_time = event.spec.last_time.max(Some(record.last));
    }
}
