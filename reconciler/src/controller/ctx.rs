//! What a run is given.

use std::sync::Arc;

use reconciler_api::{ObjectRef, OwnerReference, Resource, Scope, Timestamp, Uid};

use crate::cache::Snapshot;
use crate::events::{Level, Recorder};
use crate::objects::Client;
use crate::seams::Seams;

use super::recording::Recording;

/// The object that a run, or an event, is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Group and version of its kind: `apply/v1`.
    pub api_version: String,
    /// Its kind, in CamelCase: `Service`.
    pub kind: String,
    /// Its namespace and name.
    pub reference: ObjectRef,
    /// Which one of that name.
    pub uid: Uid,
}

impl Subject {
    /// The object that is meant, as it is now.
    pub fn of<T: Resource>(object: &T) -> Self {
        Self {
            api_version: T::kind().api_version(),
            kind: T::kind().kind.to_string(),
            reference: object.object_ref(),
            uid: object.meta().uid.clone(),
        }
    }

    /// A reference by which the subject owns and manages something, and by which a foreground deletion waits for it.
    pub fn owner_reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.clone(),
            kind: self.kind.clone(),
            name: self.reference.name.clone(),
            uid: self.uid.clone(),
            controller: true,
            block_owner_deletion: true,
        }
    }
}

/// Everything that one run may know and use. Time, randomness and concurrency come from [`Ctx::seams`], so that the
/// same code runs in the simulator.
#[derive(Debug)]
pub struct Ctx {
    pub(super) snapshot: Snapshot,
    pub(super) client: Client,
    pub(super) seams: Seams,
    pub(super) now: Timestamp,
    pub(super) attempt: u32,
    pub(super) subject: Option<Subject>,
    pub(super) events: Option<Recorder>,
    pub(super) controller: &'static str,
    pub(super) recording: Arc<Recording>,
}

impl Ctx {
    /// Everything that the controller declared, at one revision: the one at which this run began.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Reads past the cache, and writes. A commit happens only while the run's own object is the observed one (or the
    /// one that this run made of it), so nothing is ever done on behalf of what has changed meanwhile; the check takes
    /// one of a commit's keys. The next run of this key waits until the cache has seen the commits of this one.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// When this run began.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// How many runs of this key failed in a row before this one.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    pub(super) fn wrote_own_object(&self) -> bool {
        self.recording.wrote_own_object()
    }

    /// Where time, randomness and concurrency come from, for whatever the run does beside writing.
    pub fn seams(&self) -> &Seams {
        &self.seams
    }

    /// The object of this run; `None` for controllers whose keys are not objects.
    pub fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref()
    }

    /// The objects of a kind that name this run's object as their owner, by UID, ordered by namespace and name.
    pub fn owned<C: Resource>(&self) -> Vec<Arc<C>> {
        match &self.subject {
            Some(subject) => self.snapshot.owned_by::<C>(&subject.uid).cloned().collect(),
            None => Vec::new(),
        }
    }

    /// Makes `child` belong to this run's object: its owner reference, and its namespace where it has none.
    pub fn own<C: Resource>(&self, mut child: C) -> C {
        if let Some(subject) = &self.subject {
            let meta = child.meta_mut();
            if meta.namespace.is_empty() && C::kind().scope == Scope::Namespaced {
                meta.namespace.clone_from(&subject.reference.namespace);
            }
            if !meta.is_owned_by(&subject.uid) {
                meta.owner_references.push(subject.owner_reference());
            }
        }
        child
    }

    /// Tells people that something happened to this run's object. Never waits, never fails: repeats are counted, and
    /// what is too much is dropped and counted.
    pub fn event(&self, level: Level, reason: &str, message: impl Into<String>) {
        if let (Some(events), Some(subject)) = (&self.events, &self.subject) {
            events.record(subject.clone(), level, reason, message.into(), self.controller);
        }
    }

    /// The same about another object.
    pub fn event_about<T: Resource>(&self, object: &T, level: Level, reason: &str, message: impl Into<String>) {
        if let Some(events) = &self.events {
            events.record(Subject::of(object), level, reason, message.into(), self.controller);
        }
    }
}
