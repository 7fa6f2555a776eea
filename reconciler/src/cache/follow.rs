//! Following the stream: list or go on, apply each batch whole, begin again when it ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use reconciler_api::{ObjectRef, ResourceVersion};

use crate::backoff::Backoff;
use crate::controller::planted::Planted;
use crate::objects::{Change, Epoch, Error, Event, Start, Stored};
use crate::seams::Purpose;

use super::table::{AnyTable, Delta};
use super::{SILENCE, Shared, Snapshot};

/// client-go's reflector waits 0.8 s, doubled up to 30 s. Ours begins sooner, so that a restarted manager is back in
/// milliseconds; the cap is the same.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));

pub(super) async fn follow(shared: &Shared) {
    let mut failures: u32 = 0;
    let mut list_anew = false;
    let mut answered = 0;
    loop {
        let start = match shared.lock().current.as_ref().filter(|_| !list_anew) {
            Some(seen) => Start::After { epoch: seen.epoch.clone(), resource_version: seen.resource_version },
            None => Start::Now,
        };
        // A listing answers everybody who asked before it began, and is not given up for who asks meanwhile: a cache
        // that is asked more often than it can list would never be done.
        let listing = (start == Start::Now).then(|| {
            answered = shared.relists_wanted.load(Ordering::Acquire);
            Listing::new(shared)
        });
        let mut follower = Follower { shared, listing, answered, progressed: false };
        let ended = follower.run(start).await;
        failures = if follower.progressed { 0 } else { failures.saturating_add(1) };
        list_anew = ended.relist || follower.listing.is_some();
        tracing::debug!(reason = ended.reason, failures, list_anew, "the stream of objects ended");
        {
            let mut state = shared.lock();
            state.health.connected = false;
            state.health.failures = failures;
            state.health.last_error = Some(ended.reason);
        }
        // That a version expired is an answer, not a failure: the first listing follows at once.
        if failures > u32::from(ended.relist) {
            let delay = RECONNECT.delay(failures, shared.seams.random.next(Purpose::Jitter));
            shared.seams.sleep(delay).await;
        }
    }
}

/// Why a stream is no longer followed, and whether going on after the last version is out of the question.
struct Ended {
    reason: String,
    relist: bool,
}

impl Ended {
    fn broken(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), relist: false }
    }

    fn relist(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), relist: true }
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self { relist: matches!(error, Error::Expired { .. }), reason: error.to_string() }
    }
}

struct Follower<'a> {
    shared: &'a Shared,
    /// What was listed so far; `None` once the stream tells of changes only.
    listing: Option<Listing>,
    /// How many requests to list anew the last listing has answered.
    answered: u64,
    /// Something new was learned.
    progressed: bool,
}

impl Follower<'_> {
    async fn run(&mut self, start: Start) -> Ended {
        let seams = &self.shared.seams;
        let mut heard = seams.monotonic();
        let mut silence = seams.sleep(SILENCE);
        // Opening may hang as well as following may.
        let mut stream = {
            let open = self.shared.objects.stream(self.shared.selections.clone(), start);
            tokio::select! {
                biased;
                opened = open => match opened {
                    Ok(stream) => stream,
                    Err(error) => return error.into(),
                },
                () = &mut silence => return Ended::broken(format!("no stream within {SILENCE:?}")),
            }
        };
        loop {
            tokio::select! {
                biased;
                event = stream.next() => {
                    heard = seams.monotonic();
                    let taken = match event {
                        Some(Ok(event)) => self.take(event),
                        Some(Err(error)) => Err(error.into()),
                        None => Err(Ended::broken("the stream ended")),
                    };
                    if let Err(ended) = taken {
                        return ended;
                    }
                    let mut state = self.shared.lock();
                    state.health.connected = true;
                    state.health.heard = heard;
                }
                () = self.relist_wanted() => return Ended::relist("asked to list anew"),
                () = &mut silence => {
                    let quiet = seams.monotonic().since(heard);
                    if quiet >= SILENCE {
                        return Ended::broken(format!("nothing heard for {SILENCE:?}"));
                    }
                    silence = seams.sleep(SILENCE - quiet);
                }
            }
        }
    }

    async fn relist_wanted(&self) {
        let listing = self.listing.is_some();
        loop {
            let told = self.shared.relist.notified();
            let mut told = std::pin::pin!(told);
            told.as_mut().enable();
            if !listing && self.shared.relists_wanted.load(Ordering::Acquire) != self.answered {
                return;
            }
            told.await;
        }
    }

    fn take(&mut self, event: Event) -> Result<(), Ended> {
        match (event, self.listing.as_mut()) {
            (Event::Initial(page), Some(listing)) => {
                page.iter().for_each(|stored| listing.put(stored));
                if self.shared.bugs.has(Planted::PartialListing) {
                    self.publish_partly(&page);
                }
                Ok(())
            }
            (Event::InitialDone { epoch, resource_version }, Some(_)) => self.listed(epoch, resource_version),
            (Event::Batch { epoch, resource_version, changes }, None) => self.apply(epoch, resource_version, &changes),
            (Event::Batch { .. }, Some(_)) => Err(Ended::relist("changes came before the listing was complete")),
            (Event::Initial(_) | Event::InitialDone { .. }, None) => {
                Err(Ended::relist("a listing that nobody asked for"))
            }
        }
    }

    fn listed(&mut self, epoch: Epoch, resource_version: ResourceVersion) -> Result<(), Ended> {
        let Some(mut listing) = self.listing.take() else { return Ok(()) };
        let behind = self
            .shared
            .lock()
            .current
            .as_ref()
            .is_some_and(|seen| seen.epoch == epoch && seen.resource_version > resource_version);
        if behind {
            // A replica that lags: what was seen must not be unseen.
            self.listing = Some(Listing::new(self.shared));
            return Err(Ended::relist(format!("a listing of {resource_version}, which was passed already")));
        }
        if !self.shared.bugs.has(Planted::NothingVanishes) {
            listing.finish();
        }
        let tables = listing.tables.into_iter().map(|listed| Arc::from(listed.table)).collect();
        self.progressed = true;
        self.shared.publish(self.shared.next_snapshot(epoch, resource_version, tables), &listing.deltas);
        Ok(())
    }

    /// The bug that is never there: it is taken to be as new as the newest object in it.
    fn publish_partly(&self, page: &[Stored]) {
        let Some(listing) = &self.listing else { return };
        let tables = listing.tables.iter().map(|listed| Arc::from(listed.table.clone_box())).collect();
        let newest = page.iter().map(|stored| stored.resource_version).max().unwrap_or_default();
        let next = self.shared.next_snapshot(Epoch::default(), newest, tables);
        self.shared.publish(next, &listing.deltas);
    }

    /// One commit, whole.
    fn apply(&mut self, epoch: Epoch, resource_version: ResourceVersion, changes: &[Change]) -> Result<(), Ended> {
        let Some(seen) = self.shared.lock().current.clone() else {
            return Err(Ended::relist("changes came before a listing"));
        };
        if seen.epoch != epoch {
            return Err(Ended::relist("the store's history began anew"));
        }
        if resource_version <= seen.resource_version {
            return Ok(());
        }
        let (next, deltas) = seen.after(epoch, resource_version, changes);
        self.progressed = true;
        self.shared.publish(next, &deltas);
        Ok(())
    }
}

/// A listing in progress: the last tables, brought up to date page by page. What did not change keeps its memory.
struct Listing {
    tables: Vec<Listed>,
    deltas: Vec<Delta>,
}

struct Listed {
    table: Box<dyn AnyTable>,
    seen: BTreeSet<ObjectRef>,
}

impl Listing {
    fn new(shared: &Shared) -> Self {
        let state = shared.lock();
        let tables = state.current.as_ref().map_or(&shared.blank.tables, |current| &current.tables);
        let listed = |table: &Arc<dyn AnyTable>| Listed { table: table.clone_box(), seen: BTreeSet::new() };
        Self { tables: tables.iter().map(listed).collect(), deltas: Vec::new() }
    }

    fn put(&mut self, stored: &Stored) {
        for listed in self.tables.iter_mut().filter(|listed| is_same_kind(listed.table.kind(), &stored.kind)) {
            // Versions are never used twice, not even after a restore, which raises the base: the same is the same.
            if listed.table.version_of(&stored.reference) != Some(stored.resource_version) {
                listed.table.put(stored, &mut self.deltas);
            }
            listed.seen.insert(stored.reference.clone());
        }
    }

    fn finish(&mut self) {
        for listed in &mut self.tables {
            listed.table.retain(&listed.seen, &mut self.deltas);
        }
    }
}

fn is_same_kind(a: &reconciler_api::Kind, b: &reconciler_api::Kind) -> bool {
    a.plural == b.plural && a.group == b.group
}

impl Snapshot {
    /// What is known after one more commit, and what that changed.
    pub(crate) fn after(
        &self,
        epoch: Epoch,
        resource_version: ResourceVersion,
        changes: &[Change],
    ) -> (Snapshot, Vec<Delta>) {
        let mut tables = self.tables.clone();
        let mut deltas = Vec::new();
        for (position, known) in self.tables.iter().enumerate() {
            let kind = known.kind();
            let mut changes = changes.iter().filter(|change| change.is_of(kind)).peekable();
            if changes.peek().is_none() {
                continue;
            }
            let mut table = known.clone_box();
            for change in changes {
                match change {
                    Change::Put { object, .. } => table.put(object, &mut deltas),
                    Change::Gone { reference, .. } => table.remove(reference, &mut deltas),
                }
            }
            tables[position] = Arc::from(table);
        }
        (Snapshot { epoch, resource_version, tables, ..self.clone() }, deltas)
    }
}

impl Change {
    fn is_of(&self, kind: &reconciler_api::Kind) -> bool {
        match self {
            Self::Put { object, .. } => is_same_kind(kind, &object.kind),
            Self::Gone { kind: changed, .. } => is_same_kind(kind, changed),
        }
    }
}
