//! The objects as one run sees them: every commit demands that the run's own object is still the observed one, and is
//! remembered, so that the next run of the same key waits until it is seen.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use tracing::Instrument;

use reconciler_api::{Kind, ObjectRef, ResourceVersion, Uid};

use crate::objects::{
    Committed, Error, List, Objects, PageRequest, Precondition, Selection, Start, Stored, Stream, Write, Writer,
};

/// The object that every write of a run depends on.
#[derive(Clone)]
pub(super) struct Guard {
    pub kind: Arc<Kind>,
    pub reference: ObjectRef,
    pub uid: Uid,
    pub resource_version: ResourceVersion,
}

impl Guard {
    fn is_target(&self, write: &Write) -> bool {
        let (kind, reference) = match write {
            Write::Create { kind, object } => {
                let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
                return self.is_kind(kind)
                    && text("name") == self.reference.name
                    && text("namespace") == self.reference.namespace;
            }
            Write::Update { kind, reference, .. }
            | Write::Delete { kind, reference, .. }
            | Write::Check { kind, reference, .. } => (kind, reference),
        };
        self.is_kind(kind) && *reference == self.reference
    }

    fn is_kind(&self, kind: &Kind) -> bool {
        kind.plural == self.kind.plural && kind.group == self.kind.group
    }

    fn check(&self) -> Write {
        Write::Check {
            kind: self.kind.clone(),
            reference: self.reference.clone(),
            precondition: Some(Precondition {
                uid: Some(self.uid.clone()),
                resource_version: Some(self.resource_version),
            }),
        }
    }
}

/// What a run has written.
#[derive(Default)]
struct Record {
    guard: Option<Guard>,
    seen: Option<ResourceVersion>,
    in_flight: u32,
    uncertain: bool,
    commits: u32,
    wrote_own: bool,
}

pub(super) struct Recording {
    inner: Arc<dyn Objects>,
    record: Mutex<Record>,
}

/// What a run left behind.
pub(super) struct Written {
    /// The version at which all acknowledged commits of the run are visible.
    pub seen: Option<ResourceVersion>,
    /// A commit may have happened without anybody having been told.
    pub uncertain: bool,
    pub commits: u32,
}

impl Recording {
    pub(super) fn new(inner: Arc<dyn Objects>, guard: Option<Guard>) -> Self {
        Self { inner, record: Mutex::new(Record { guard, ..Record::default() }) }
    }

    pub(super) fn written(&self) -> Written {
        let record = self.lock();
        Written { seen: record.seen, uncertain: record.uncertain || record.in_flight > 0, commits: record.commits }
    }

    /// The version of the run's own object is not the observed one any more.
    pub(super) fn wrote_own_object(&self) -> bool {
        self.lock().wrote_own
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn guarded_commit(&self, writer: &Writer, mut writes: Vec<Write>) -> Result<Committed, Error> {
        let asked = writes.len();
        let mut own = None;
        {
            let mut record = self.lock();
            record.in_flight += 1;
            if let Some(guard) = &record.guard {
                own = writes.iter().rposition(|write| guard.is_target(write));
                if own.is_none() && !writes.is_empty() {
                    writes.push(guard.check());
                }
            }
        }
        // Cut off here, the commit counts as in flight for ever: the run's end finds it so.
        let result = self.inner.commit(writer, writes).await;
        let mut record = self.lock();
        record.in_flight -= 1;
        match result {
            Ok(mut committed) => {
                committed.outcomes.truncate(asked);
                record.commits += 1;
                if committed.outcomes.iter().any(|outcome| outcome.changed) {
                    record.seen = record.seen.max(Some(committed.resource_version));
                }
                record.wrote_own |= own.is_some();
                if let Some(outcome) = own.and_then(|own| committed.outcomes.get(own)) {
                    let version = outcome.object.as_ref().map(|object| object.resource_version);
                    if let (Some(guard), Some(version)) = (&mut record.guard, version) {
                        guard.resource_version = version;
                    }
                }
                Ok(committed)
            }
            Err(error) => {
                record.uncertain |= matches!(error, Error::UnknownOutcome { .. });
                Err(error)
            }
        }
    }
}

impl Objects for Recording {
    fn get<'a>(&'a self, kind: &'a Kind, reference: &'a ObjectRef) -> BoxFuture<'a, Result<Stored, Error>> {
        self.inner.get(kind, reference)
    }

    fn list<'a>(&'a self, selection: &'a Selection, page: PageRequest) -> BoxFuture<'a, Result<List, Error>> {
        self.inner.list(selection, page)
    }

    fn stream(&self, selections: Vec<Selection>, start: Start) -> BoxFuture<'_, Result<Stream, Error>> {
        self.inner.stream(selections, start)
    }

    fn commit<'a>(&'a self, writer: &'a Writer, writes: Vec<Write>) -> BoxFuture<'a, Result<Committed, Error>> {
        let span = tracing::debug_span!(
            "commit",
            writes = writes.len(),
            changed = tracing::field::Empty,
            revision = tracing::field::Empty,
            error = tracing::field::Empty,
        );
        let told = span.clone();
        let commit = async move {
            let result = self.guarded_commit(writer, writes).await;
            match &result {
                Ok(committed) => {
                    let changed = committed.outcomes.iter().filter(|outcome| outcome.changed).count();
                    told.record("changed", changed);
                    if changed > 0 {
                        told.record("revision", tracing::field::display(committed.resource_version));
                    }
                }
                Err(error) => drop(told.record("error", tracing::field::display(error))),
            }
            result
        };
        Box::pin(commit.instrument(span))
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.inner, f)
    }
}
