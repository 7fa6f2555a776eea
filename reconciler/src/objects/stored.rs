//! The verbs over any store.
//!
//! Keys: `<root>/meta` says which line of history this is, `<root>/objects/<kind>/<namespace>/<name>` are the objects,
//! `<root>/terms/<kind>/<namespace>/<name>` changes whenever the lease of that name gets another holder.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use reconciler_api::{Fault, Kind, ObjectRef, ResourceVersion, Uid};

use super::encoding::{self, Sealer};
use super::sensitive::{self, Secrets};
use super::write::{self, Next};
use super::{
    Change, Committed, Continue, Entry, Epoch, Error, Event, Kinds, List, Objects, Outcome, PageRequest, Precondition,
    Selection, Start, Stored, Stream, Term, Write, Writer,
};
use crate::seams::{Purpose, Seams};
use crate::store::{
    self, CommitError, Effect, Expect, Fence, Key, Line, Page, Revision, Store, StoreError, Txn, Versioned,
};

/// How often a write without a version of its own is tried again when others are faster.
const ATTEMPTS: usize = 16;
/// Objects a page while a stream tells what stands.
const INITIAL_PAGE: usize = 500;
/// More objects than these are not counted for who would take their kind away.
const COUNTED: usize = 1_000;

/// Has a say before a write happens, and hears of each afterwards.
pub trait Admission: std::fmt::Debug + Send + Sync {
    /// May fill in what is missing in `desired`, or refuse. `desired` is `None` for a deletion that is done.
    fn review(
        &self,
        writer: &Writer,
        kind: &Kind,
        current: Option<&Value>,
        desired: Option<&mut Value>,
    ) -> Result<(), Refusal>;
    /// What became of a commit.
    fn record(&self, writer: &Writer, writes: &[Write], result: Result<&Committed, &Error>);
}

/// Why an [`Admission`] refuses.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The object is at fault, and this is how: [`Error::Invalid`].
    Invalid(Vec<Fault>),
    /// The writer has not the right to, and this is why: [`Error::Forbidden`].
    Forbidden(String),
}

/// [`Objects`] over a [`Store`].
#[derive(Debug)]
pub struct StoreObjects {
    store: Arc<dyn Store>,
    kinds: Kinds,
    seams: Seams,
    root: String,
    history: History,
    secrets: Secrets,
    admission: Option<Arc<dyn Admission>>,
}

/// The line of history: resource version = base + revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct History {
    base: u64,
    epoch: String,
    /// The store in which this line was begun.
    store: String,
}

/// The next line's.
fn above(base: u64) -> u64 {
    base + (1 << 32)
}

impl StoreObjects {
    /// Opens the objects under `root`, beginning a line of history in a store that has none, or that is another than
    /// the one in which the line was begun (a restore by other hands).
    pub async fn open(store: Arc<dyn Store>, root: &str, kinds: Kinds, seams: Seams) -> Result<Self, Error> {
        Self::open_above(store, root, kinds, seams, 0).await
    }

    /// The same where lines up to `base` were seen before ([`Self::base`]): one that is begun is above them, also when the
    /// store was brought back from before them.
    pub async fn open_above(
        store: Arc<dyn Store>,
        root: &str,
        kinds: Kinds,
        seams: Seams,
        base: u64,
    ) -> Result<Self, Error> {
        let key = Key::new(format!("{root}/meta"));
        for _ in 0..ATTEMPTS {
            let identity = store.identity().await.map_err(read_error)?.0;
            let (_, stored) = store.get(&key).await.map_err(read_error)?;
            let known: Option<History> = match &stored {
                Some(value) => Some(
                    serde_json::from_slice(&value.value)
                        .map_err(|error| Error::Damaged { detail: format!("{key}: {error}") })?,
                ),
                None => None,
            };
            let history = match known {
                Some(history) if history.store == identity && history.base >= base => {
                    let root = root.to_owned();
                    let secrets = Secrets::default();
                    let opened = Self { store, kinds, seams, root, history, secrets, admission: None };
                    opened.learn_definitions().await?;
                    return Ok(opened);
                }
                Some(old) => History { base: above(old.base.max(base)), epoch: random_id(&seams), store: identity },
                None if base > 0 => History { base: above(base), epoch: random_id(&seams), store: identity },
                None => History { base: 0, epoch: random_id(&seams), store: identity },
            };
            let line = Line {
                key: key.clone(),
                expect: Some(stored.map_or(Expect::Absent, |value| Expect::Version(value.modified))),
                effect: Effect::Put(serde_json::to_vec(&history).expect("strings and a number").into()),
            };
            match store.commit(Txn { fence: None, lines: vec![line] }).await {
                Ok(_) | Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {}
                Err(error) => return Err(commit_error(error, &BTreeMap::new())),
            }
        }
        Err(Error::Unavailable { detail: format!("{key} keeps changing") })
    }

    /// Has the kinds that objects define, as they stand now.
    async fn learn_definitions(&self) -> Result<(), Error> {
        let Some(kind) = self.kinds.definer().cloned() else { return Ok(()) };
        let all = self.list(&Selection::all_of(Arc::new(kind)), PageRequest::default()).await?;
        self.kinds.are(&all.items, all.resource_version);
        Ok(())
    }

    /// Seals the kinds that have sensitive fields.
    pub fn sealed_by(mut self, sealer: Arc<dyn Sealer>) -> Self {
        self.secrets = Secrets::sealed_by(sealer);
        self
    }

    /// Asks `admission` before each write, and tells it afterwards. Default: everything that is valid is admitted.
    pub fn admitted_by(mut self, admission: Arc<dyn Admission>) -> Self {
        self.admission = Some(admission);
        self
    }

    /// The kinds that are served.
    pub fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Which line of history this is. Another one after a restore.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.history.epoch.clone())
    }

    /// What this line of history adds to the store's revisions: the higher, the later the line was begun.
    pub fn base(&self) -> u64 {
        self.history.base
    }

    /// The object as it is stored, sensitive fields in the clear. For whoever is entitled to them; every other read has
    /// digests in their place.
    pub async fn reveal(&self, kind: &Kind, reference: &ObjectRef) -> Result<Value, Error> {
        self.kinds.kind(&kind.qualified())?;
        match self.load(&self.key(kind, reference)).await?.1 {
            Some(current) => Ok(current.value),
            None => Err(not_found(kind, reference)),
        }
    }

    fn key(&self, kind: &Kind, reference: &ObjectRef) -> Key {
        Key::new(format!("{}/objects/{}/{}/{}", self.root, kind.qualified(), reference.namespace, reference.name))
    }

    fn prefix(&self, selection: &Selection) -> Key {
        let kind = selection.kind.qualified();
        Key::new(match &selection.namespace {
            Some(namespace) => format!("{}/objects/{kind}/{namespace}/", self.root),
            None => format!("{}/objects/{kind}/", self.root),
        })
    }

    /// The kind and name that a key stands for; `None` for keys that are no objects, or of kinds not served here.
    fn parse_key(&self, key: &Key) -> Option<(Arc<Kind>, ObjectRef)> {
        let mut parts = key.as_str().strip_prefix(&self.root)?.strip_prefix("/objects/")?.splitn(3, '/');
        let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
        Some((self.kinds.kind(kind).ok()?, ObjectRef::new(namespace, name)))
    }

    fn version(&self, revision: Revision) -> ResourceVersion {
        ResourceVersion(self.history.base + revision.0)
    }

    /// The store's revision at a resource version; 0 for one of before this line of history.
    fn revision(&self, version: ResourceVersion) -> Revision {
        Revision(version.0.saturating_sub(self.history.base))
    }

    async fn load(&self, key: &Key) -> Result<(Revision, Option<Current>), Error> {
        let (revision, stored) = self.store.get(key).await.map_err(read_error)?;
        let Some(stored) = stored else { return Ok((revision, None)) };
        let json = self.open_value(&stored)?;
        let value = serde_json::from_slice(&json).map_err(|error| damaged(key, &error))?;
        Ok((revision, Some(Current { value, modified: stored.modified })))
    }

    fn open_value(&self, stored: &Versioned) -> Result<bytes::Bytes, Error> {
        encoding::decode(&stored.value, stored.key.as_str(), self.secrets.sealer())
            .map_err(|error| damaged(&stored.key, &error))
    }

    /// What readers get: sensitive fields replaced by digests.
    fn expose(&self, kind: &Arc<Kind>, reference: ObjectRef, stored: &Versioned) -> Result<Stored, Error> {
        let mut json = self.open_value(stored)?;
        if !kind.sensitive.is_empty() {
            let mut value = serde_json::from_slice(&json).map_err(|error| damaged(&stored.key, &error))?;
            self.secrets.redact(kind, &mut value);
            json = value.to_string().into();
        }
        Ok(Stored::new(kind.clone(), reference, json, self.version(stored.modified)))
    }

    async fn try_commit(&self, writer: &Writer, writes: &[Write]) -> Result<Committed, Attempt> {
        let mut work = Work::default();
        for write in writes {
            let (kind, reference) = target(write)?;
            let entry = self.kinds.get(&kind.qualified())?;
            let key = self.key(&kind, &reference);
            if !work.slots.contains_key(&key) {
                let (revision, current) = self.load(&key).await?;
                work.revision = work.revision.max(revision);
                work.slots.insert(key.clone(), Slot::new(kind.clone(), reference.clone(), current));
            }
            let slot = work.slots.get_mut(&key).expect("inserted above");
            let before = slot.value().cloned();
            let changed = self.step(writer, write, &entry, slot)?;
            if changed && self.kinds.definer() == Some(&*slot.kind) && slot.goes() {
                self.has_no_objects(writer, &slot.reference).await?;
            }
            work.steps.push((key, changed, before));
        }
        let mut lines: Vec<Line> = work.slots.iter().filter_map(|(key, slot)| self.line(key, slot)).collect();
        for slot in work.slots.values() {
            lines.extend(self.term_line(slot)?);
        }
        let fence = writer.fence.as_ref().map(|term| self.fence(term)).transpose()?;
        let effects = lines.iter().any(|line| line.effect != Effect::Check);
        let revision = if writer.dry_run {
            work.revision
        } else if effects || (!lines.is_empty() && fence.is_some()) {
            let txn = Txn { fence, lines };
            match self.store.commit(txn).await {
                Ok(revision) => revision,
                Err(CommitError::Conflict { key }) if work.slots.get(&key).is_some_and(|slot| !slot.versioned) => {
                    return Err(Attempt::Again);
                }
                Err(error) => return Err(Attempt::Failed(commit_error(error, &work.slots))),
            }
        } else {
            work.revision
        };
        if !writer.dry_run {
            self.learn_written(&work, revision);
        }
        Ok(self.committed(work, revision))
    }

    /// A kind is served before whoever defined it hears that it is.
    fn learn_written(&self, work: &Work, revision: Revision) {
        let Some(definer) = self.kinds.definer() else { return };
        for slot in work.slots.values().filter(|slot| *slot.kind == *definer) {
            match &slot.desired {
                None => {}
                Some(None) => self.kinds.forget(&slot.reference.name, self.version(revision)),
                Some(Some(desired)) => {
                    let json = desired.to_string().into();
                    let version = self.version(revision);
                    self.kinds.learn(&Stored::new(slot.kind.clone(), slot.reference.clone(), json, version));
                }
            }
        }
    }

    /// Objects of a kind that nobody serves would be lost without a word. One that is made at this very moment is not lost
    /// either: it is there again with its definition.
    async fn has_no_objects(&self, writer: &Writer, definition: &ObjectRef) -> Result<(), Error> {
        let prefix = Key::new(format!("{}/objects/{}/", self.root, definition.name));
        let page = Page { limit: COUNTED, after: None, at: None };
        let found = self.store.list(&prefix, page).await.map_err(read_error)?;
        let detail = match (found.entries.len(), found.more) {
            (0, _) => return Ok(()),
            (1, false) => "an object of its kind exists; delete it first".to_owned(),
            (count, false) => format!("{count} objects of its kind exist; delete them first"),
            (count, true) => format!("more than {count} objects of its kind exist; delete them first"),
        };
        Err(Error::Forbidden {
            identity: writer.identity.clone(),
            verb: "delete".into(),
            kind: self.kinds.definer().map(|kind| kind.kind.to_string()).unwrap_or_default(),
            reference: definition.clone(),
            detail,
        })
    }

    /// One write against what the commit has made of the object so far; says whether it changed anything.
    fn step(&self, writer: &Writer, write: &Write, entry: &Entry, slot: &mut Slot) -> Result<bool, Error> {
        let (kind, reference) = (slot.kind.clone(), slot.reference.clone());
        let invalid = |faults| Error::Invalid { kind: kind.kind.to_string(), reference: reference.clone(), faults };
        let next = match write {
            Write::Create { object, .. } => {
                if slot.value().is_some() {
                    return Err(Error::AlreadyExists { kind: kind.kind.to_string(), reference });
                }
                let uid = Uid::new(random_id(&self.seams));
                Next::Put(write::create(entry, object.clone(), uid, self.seams.now()).map_err(invalid)?)
            }
            Write::Update { part, patch, precondition, .. } => {
                self.demand(slot, precondition)?;
                let current = slot.value().ok_or_else(|| not_found(&kind, &reference))?;
                // Readers hold digests where the secrets are, so that is what their patches apply to.
                let mut seen = current.clone();
                self.secrets.redact(&kind, &mut seen);
                write::update(entry, &seen, *part, patch).map_err(invalid)?
            }
            Write::Delete { precondition, propagation, .. } => {
                self.demand(slot, precondition)?;
                let current = slot.value().ok_or_else(|| not_found(&kind, &reference))?;
                write::delete(current, *propagation, self.seams.now())
            }
            Write::Check { precondition: Some(precondition), .. } => {
                self.demand(slot, precondition)?;
                slot.checked = true;
                Next::Unchanged
            }
            Write::Check { precondition: None, .. } => {
                if slot.value().is_some() {
                    return Err(Error::AlreadyExists { kind: kind.kind.to_string(), reference });
                }
                slot.checked = true;
                Next::Unchanged
            }
        };
        let desired = match next {
            Next::Unchanged => return Ok(false),
            Next::Gone => None,
            Next::Put(mut desired) => {
                self.secrets.restore(&kind, slot.value(), &mut desired).map_err(invalid)?;
                self.secrets.redact_copies(&kind, &mut desired);
                if slot.value().is_some_and(|current| sensitive::is_said_again(&kind, current, &desired)) {
                    return Ok(false);
                }
                Some(desired)
            }
        };
        let desired = self.admit(writer, entry, slot, desired)?;
        slot.desired = Some(desired);
        Ok(true)
    }

    /// Asks the admission, then the kind itself.
    fn admit(
        &self,
        writer: &Writer,
        entry: &Entry,
        slot: &Slot,
        mut desired: Option<Value>,
    ) -> Result<Option<Value>, Error> {
        let (kind, reference) = (&slot.kind, &slot.reference);
        if let Some(admission) = &self.admission {
            admission.review(writer, kind, slot.value(), desired.as_mut()).map_err(|refusal| match refusal {
                Refusal::Invalid(faults) => {
                    Error::Invalid { kind: kind.kind.to_string(), reference: reference.clone(), faults }
                }
                Refusal::Forbidden(detail) => Error::Forbidden {
                    identity: writer.identity.clone(),
                    verb: "write".into(),
                    kind: kind.kind.to_string(),
                    reference: reference.clone(),
                    detail,
                },
            })?;
        }
        if let Some(desired) = &desired {
            let faults = entry.check(desired, slot.value());
            if !faults.is_empty() {
                return Err(Error::Invalid { kind: kind.kind.to_string(), reference: reference.clone(), faults });
            }
        }
        Ok(desired)
    }

    fn demand(&self, slot: &mut Slot, precondition: &Precondition) -> Result<(), Error> {
        let current = slot.value().ok_or_else(|| not_found(&slot.kind, &slot.reference))?;
        let conflict = |detail: &str| Error::Conflict {
            kind: slot.kind.kind.to_string(),
            reference: slot.reference.clone(),
            detail: detail.to_owned(),
        };
        if let Some(uid) = precondition.uid.as_ref().filter(|uid| current["metadata"]["uid"] != uid.as_str()) {
            return Err(conflict(&format!("it is another object of the same name, no longer the one with uid {uid}")));
        }
        if let Some(version) = precondition.resource_version {
            if slot.modified.map(|modified| self.version(modified)) != Some(version) {
                return Err(conflict(&format!("it was written after version {version}")));
            }
            slot.versioned = true;
        }
        Ok(())
    }

    fn line(&self, key: &Key, slot: &Slot) -> Option<Line> {
        let expect = Some(slot.modified.map_or(Expect::Absent, Expect::Version));
        let effect = match &slot.desired {
            None if !slot.checked => return None,
            None => Effect::Check,
            Some(None) => Effect::Delete,
            Some(Some(desired)) => {
                let sealer = if slot.kind.sensitive.is_empty() { None } else { self.secrets.sealer() };
                Effect::Put(encoding::encode(desired.to_string().as_bytes(), key.as_str(), sealer))
            }
        };
        Some(Line { key: key.clone(), expect, effect })
    }

    fn term_key(&self, kind: &str, lease: &ObjectRef) -> Key {
        Key::new(format!("{}/terms/{kind}/{}/{}", self.root, lease.namespace, lease.name))
    }

    /// A term begins in the commit that changes the holder, so that the two are never seen apart.
    fn term_line(&self, slot: &Slot) -> Result<Option<Line>, Error> {
        let Some(desired) = &slot.desired else { return Ok(None) };
        let kind = slot.kind.qualified();
        let Some(holder) = self.kinds.get(&kind)?.new_holder(slot.observed.as_ref(), desired.as_ref()) else {
            return Ok(None);
        };
        let effect = Effect::Put(holder.to_owned().into());
        Ok(Some(Line { key: self.term_key(&kind, &slot.reference), expect: None, effect }))
    }

    fn fence(&self, term: &Term) -> Result<Fence, Error> {
        // Of before a restore: revisions of then say nothing about the store of now.
        if term.began.0 <= self.history.base {
            return Err(Error::Fenced);
        }
        Ok(Fence { key: self.term_key(&term.kind, &term.lease), revision: self.revision(term.began) })
    }

    fn committed(&self, work: Work, revision: Revision) -> Committed {
        let outcomes = work
            .steps
            .into_iter()
            .map(|(key, changed, before)| {
                let slot = &work.slots[&key];
                let written = slot.desired.is_some();
                let value = match &slot.desired {
                    Some(Some(desired)) => Some(desired.clone()),
                    Some(None) => before,
                    None => slot.observed.clone(),
                };
                let version = if written { Some(revision) } else { slot.modified };
                let object = value.map(|mut value| {
                    self.secrets.redact(&slot.kind, &mut value);
                    let version = self.version(version.unwrap_or(revision));
                    Stored::new(slot.kind.clone(), slot.reference.clone(), value.to_string().into(), version)
                });
                Outcome { object, changed }
            })
            .collect();
        Committed { resource_version: self.version(revision), outcomes }
    }

    /// What a batch of the store means for these selections.
    fn translate(&self, selections: &[Selection], batch: store::Batch) -> Result<Event, Error> {
        let mut changes = Vec::new();
        for change in batch.changes {
            if change.key.as_str() == format!("{}/meta", self.root) {
                return Err(Error::Expired { detail: "another line of history began".into() });
            }
            let Some((kind, reference)) = self.parse_key(&change.key) else { continue };
            let expose = |stored: Option<&Versioned>| {
                stored.map(|stored| self.expose(&kind, reference.clone(), stored)).transpose()
            };
            let (now, previous) = (expose(change.value.as_ref())?, expose(change.previous.as_ref())?);
            let selected = |object: &Option<Stored>| {
                object.as_ref().is_some_and(|object| selections.iter().any(|selection| selects(selection, object)))
            };
            let is_new = change.value.as_ref().is_some_and(|value| value.created == value.modified);
            let concerned = selections.iter().any(|selection| covers(selection, &kind, &reference));
            match (selected(&now), now) {
                (true, Some(object)) => changes.push(Change::Put { object, previous }),
                // Where nothing is known of what stood before, saying that it is gone is safe and keeping quiet is not.
                _ if selected(&previous) || (previous.is_none() && concerned && !is_new) => {
                    changes.push(Change::Gone { kind, reference, last: previous });
                }
                _ => {}
            }
        }
        Ok(Event::Batch { epoch: self.epoch(), resource_version: self.version(batch.revision), changes })
    }
}

/// What stands under a key.
struct Current {
    value: Value,
    modified: Revision,
}

/// A commit in the making.
#[derive(Default)]
struct Work {
    slots: BTreeMap<Key, Slot>,
    /// Key, whether the write changed anything, and what stood there just before it.
    steps: Vec<(Key, bool, Option<Value>)>,
    revision: Revision,
}

/// One object of a commit in the making; several writes of a commit may speak of it.
struct Slot {
    kind: Arc<Kind>,
    reference: ObjectRef,
    observed: Option<Value>,
    modified: Option<Revision>,
    /// `Some(None)`: it shall be gone.
    desired: Option<Option<Value>>,
    checked: bool,
    /// The writer named the version that it saw, so a conflict is the writer's to resolve.
    versioned: bool,
}

impl Slot {
    fn new(kind: Arc<Kind>, reference: ObjectRef, current: Option<Current>) -> Self {
        let (observed, modified) = current.map(|current| (current.value, current.modified)).unzip();
        Self { kind, reference, observed, modified, desired: None, checked: false, versioned: false }
    }

    /// Whether the commit ends it, or begins to.
    fn goes(&self) -> bool {
        match &self.desired {
            None => false,
            Some(None) => true,
            Some(Some(desired)) => {
                write::is_deleting(desired) && !self.observed.as_ref().is_some_and(write::is_deleting)
            }
        }
    }

    /// As the commit has left it so far.
    fn value(&self) -> Option<&Value> {
        match &self.desired {
            Some(desired) => desired.as_ref(),
            None => self.observed.as_ref(),
        }
    }
}

enum Attempt {
    /// Somebody was faster, and the writer did not say which version it meant.
    Again,
    Failed(Error),
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Objects for StoreObjects {
    fn get<'a>(&'a self, kind: &'a Kind, reference: &'a ObjectRef) -> BoxFuture<'a, Result<Stored, Error>> {
        Box::pin(async move {
            let served = self.kinds.kind(&kind.qualified())?;
            match self.store.get(&self.key(kind, reference)).await.map_err(read_error)?.1 {
                Some(stored) => self.expose(&served, reference.clone(), &stored),
                None => Err(not_found(kind, reference)),
            }
        })
    }

    fn list<'a>(&'a self, selection: &'a Selection, page: PageRequest) -> BoxFuture<'a, Result<List, Error>> {
        Box::pin(async move {
            self.kinds.kind(&selection.kind.qualified())?;
            let prefix = self.prefix(selection);
            let (mut after, mut at) = (None, None);
            if let Some(from) = &page.from {
                if from.epoch != self.epoch() {
                    return Err(Error::Expired { detail: "the list was begun before a restore".into() });
                }
                after = Some(self.key(&selection.kind, &from.after));
                at = Some(self.revision(from.resource_version));
            }
            let mut items = Vec::new();
            loop {
                let wanted = page.limit.saturating_sub(items.len());
                let listing = self
                    .store
                    .list(&prefix, Page { limit: wanted, after: after.clone(), at })
                    .await
                    .map_err(read_error)?;
                at = Some(listing.revision);
                after = listing.entries.last().map(|entry| entry.key.clone());
                for entry in &listing.entries {
                    let Some((kind, reference)) = self.parse_key(&entry.key) else { continue };
                    let object = self.expose(&kind, reference, entry)?;
                    if selects(selection, &object) {
                        items.push(object);
                    }
                }
                let (epoch, resource_version) = (self.epoch(), self.version(listing.revision));
                if !listing.more {
                    return Ok(List { epoch, resource_version, items, next: None });
                }
                if page.limit != 0 && items.len() >= page.limit {
                    let last = after.as_ref().and_then(|key| self.parse_key(key)).map(|(_, reference)| reference);
                    let next = last.map(|after| Continue { epoch: epoch.clone(), resource_version, after });
                    return Ok(List { epoch, resource_version, items, next });
                }
            }
        })
    }

    fn stream(&self, selections: Vec<Selection>, start: Start) -> BoxFuture<'_, Result<Stream, Error>> {
        Box::pin(async move {
            for selection in &selections {
                self.kinds.kind(&selection.kind.qualified())?;
            }
            let this = self.handle();
            let root = Key::new(format!("{}/", self.root));
            let (initial, after): (BoxStream<'static, Result<Event, Error>>, Revision) = match start {
                Start::After { epoch, .. } if epoch != self.epoch() => {
                    return Err(Error::Expired { detail: "another line of history began".into() });
                }
                Start::After { resource_version, .. } => (stream::empty().boxed(), self.revision(resource_version)),
                Start::Now => {
                    let probe = Page { limit: 1, after: None, at: None };
                    let revision = self.store.list(&root, probe).await.map_err(read_error)?.revision;
                    (this.clone().initial(selections.clone(), revision), revision)
                }
            };
            let watch = self.store.watch(&root, after).await.map_err(read_error)?;
            let changes = watch.map(move |batch| match batch {
                Ok(batch) => this.translate(&selections, batch),
                Err(error) => Err(read_error(error)),
            });
            Ok(until_error(initial.chain(changes).boxed()))
        })
    }

    fn commit<'a>(&'a self, writer: &'a Writer, writes: Vec<Write>) -> BoxFuture<'a, Result<Committed, Error>> {
        Box::pin(async move {
            if let (true, Some(write)) = (writer.identity.is_empty(), writes.first()) {
                let (kind, reference) = target(write)?;
                return Err(Error::Forbidden {
                    identity: "nobody".into(),
                    verb: "write".into(),
                    kind: kind.kind.to_string(),
                    reference,
                    detail: "a write says in whose name it happens".into(),
                });
            }
            let mut result = Err(Error::Unavailable { detail: "others kept being faster".into() });
            for _ in 0..ATTEMPTS {
                match self.try_commit(writer, &writes).await {
                    Ok(committed) => result = Ok(committed),
                    Err(Attempt::Failed(error)) => result = Err(error),
                    Err(Attempt::Again) => continue,
                }
                break;
            }
            if let (Some(admission), false) = (&self.admission, writer.dry_run) {
                admission.record(writer, &writes, result.as_ref());
            }
            result
        })
    }
}

impl StoreObjects {
    /// A second handle on the same store, for streams that outlive the borrow.
    fn handle(&self) -> Arc<Self> {
        Arc::new(Self {
            store: self.store.clone(),
            kinds: self.kinds.clone(),
            seams: self.seams.clone(),
            root: self.root.clone(),
            history: self.history.clone(),
            secrets: self.secrets.clone(),
            admission: None,
        })
    }

    /// What stood at `revision`, page by page.
    fn initial(
        self: Arc<Self>,
        selections: Vec<Selection>,
        revision: Revision,
    ) -> BoxStream<'static, Result<Event, Error>> {
        struct Place {
            rest: std::vec::IntoIter<Selection>,
            now: Option<(Selection, Option<Key>)>,
            done: bool,
        }
        let mut rest = selections.into_iter();
        let now = rest.next().map(|selection| (selection, None));
        stream::try_unfold(Place { rest, now, done: false }, move |mut place| {
            let this = self.clone();
            async move {
                if place.done {
                    return Ok(None);
                }
                let Some((selection, after)) = place.now.take() else {
                    place.done = true;
                    let event = Event::InitialDone { epoch: this.epoch(), resource_version: this.version(revision) };
                    return Ok(Some((event, place)));
                };
                let page = Page { limit: INITIAL_PAGE, after, at: Some(revision) };
                let listing = this.store.list(&this.prefix(&selection), page).await.map_err(read_error)?;
                let mut objects = Vec::with_capacity(listing.entries.len());
                for entry in &listing.entries {
                    let Some((kind, reference)) = this.parse_key(&entry.key) else { continue };
                    let object = this.expose(&kind, reference, entry)?;
                    if selects(&selection, &object) {
                        objects.push(object);
                    }
                }
                place.now = match listing.entries.last() {
                    Some(last) if listing.more => Some((selection, Some(last.key.clone()))),
                    _ => place.rest.next().map(|selection| (selection, None)),
                };
                Ok(Some((Event::Initial(objects), place)))
            }
        })
        .boxed()
    }
}

/// Ends after the first error.
fn until_error(stream: Stream) -> Stream {
    stream::unfold(Some(stream), |stream| async move {
        let mut stream = stream?;
        let item = stream.next().await?;
        let rest = item.is_ok().then_some(stream);
        Some((item, rest))
    })
    .boxed()
}

fn target(write: &Write) -> Result<(Arc<Kind>, ObjectRef), Error> {
    match write {
        Write::Create { kind, object } => {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            Ok((kind.clone(), ObjectRef::new(text("namespace"), text("name"))))
        }
        Write::Update { kind, reference, .. }
        | Write::Delete { kind, reference, .. }
        | Write::Check { kind, reference, .. } => Ok((kind.clone(), reference.clone())),
    }
}

fn covers(selection: &Selection, kind: &Kind, reference: &ObjectRef) -> bool {
    selection.kind.plural == kind.plural
        && selection.kind.group == kind.group
        && selection.namespace.as_ref().is_none_or(|namespace| *namespace == reference.namespace)
}

pub(crate) fn selects(selection: &Selection, object: &Stored) -> bool {
    if !covers(selection, &object.kind, &object.reference) {
        return false;
    }
    if selection.labels.is_everything() && selection.fields.is_everything() {
        return true;
    }
    // What cannot be read matches nothing.
    let Ok(value) = serde_json::from_slice::<Value>(&object.json) else { return false };
    selection.labels.matches(|key| value["metadata"]["labels"].get(key).and_then(Value::as_str))
        && selection
            .fields
            .matches(|path| value.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str))
}

fn random_id(seams: &Seams) -> String {
    let (high, low) = (seams.random.next(Purpose::Identity), seams.random.next(Purpose::Identity));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 50 | 0x8000,
        low & 0xffff_ffff_ffff
    )
}

fn not_found(kind: &Kind, reference: &ObjectRef) -> Error {
    Error::NotFound { kind: kind.kind.to_string(), reference: reference.clone() }
}

fn damaged(key: &Key, error: &dyn std::fmt::Display) -> Error {
    Error::Damaged { detail: format!("{key}: {error}") }
}

fn read_error(error: StoreError) -> Error {
    match error {
        StoreError::Compacted { .. } | StoreError::Future { .. } => Error::Expired { detail: error.to_string() },
        StoreError::Unavailable { detail } => Error::Unavailable { detail },
        StoreError::Damaged { detail } => Error::Damaged { detail },
    }
}

fn commit_error(error: CommitError, slots: &BTreeMap<Key, Slot>) -> Error {
    match error {
        CommitError::Conflict { key } => {
            let (kind, reference) = slots
                .get(&key)
                .map(|slot| (slot.kind.kind.to_string(), slot.reference.clone()))
                .unwrap_or_else(|| ("key".into(), ObjectRef::cluster(key.as_str())));
            Error::Conflict { kind, reference, detail: "somebody else wrote it just now".into() }
        }
        CommitError::Fenced { .. } => Error::Fenced,
        CommitError::TooLarge { .. } | CommitError::Repeated { .. } => Error::TooLarge { detail: error.to_string() },
        CommitError::Full { detail } => Error::Full { detail },
        CommitError::Unknown { detail } => Error::UnknownOutcome { detail },
        CommitError::Unavailable { detail } => Error::Unavailable { detail },
    }
}
