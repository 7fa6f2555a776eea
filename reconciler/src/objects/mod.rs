//! Objects: the upper of the two layers, and the one that everybody uses.
//!
//! [`Objects`] has the verbs; [`Client`] is the typed way to them. [`StoreObjects`] is the implementation over any
//! store: validation, generation, deletion and finalizers, suppression of writes that change nothing, and the writer's
//! identity are decided there, once.
//!
//! Reading order: `mod` (verbs and data), [`client`], [`kinds`] (what kinds there are), [`mod@write`] (one write
//! against one value: a pure function), [`stored`] (the implementation), `remote` (the same verbs of a server
//! elsewhere), `wire` (how the two speak).

pub mod client;
pub mod encoding;
pub mod kinds;
#[cfg(feature = "client")]
pub mod remote;
pub mod selector;
mod sensitive;
pub mod stored;
#[cfg(any(feature = "server", feature = "client"))]
#[cfg_attr(not(all(feature = "server", feature = "client")), allow(dead_code, reason = "each side says half of it"))]
pub(crate) mod wire;
pub mod write;

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde_json::Value;

use reconciler_api::{Fault, Kind, ObjectRef, Resource, ResourceVersion, Uid};

pub use client::Client;
pub use kinds::{Defined, Entry, Kinds, Scale};
#[cfg(feature = "client")]
pub use remote::Remote;
pub use selector::Selector;
pub use stored::{Admission, Refusal, StoreObjects};

/// Which line of history a resource version belongs to: a restore begins another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch(pub String);

/// One stored object: its JSON as it was written, and where it stands.
#[derive(Clone)]
pub struct Stored {
    /// Which kind it is of.
    pub kind: Arc<Kind>,
    /// Its namespace and name.
    pub reference: ObjectRef,
    /// The object's JSON, without `metadata.resourceVersion`.
    pub json: Bytes,
    /// When it was last written.
    pub resource_version: ResourceVersion,
    decoded: Decoded,
}

/// Where the typed object is kept once it was decoded, for all who hold a copy. Nothing is kept unless somebody asked for
/// it: most are decoded once.
#[derive(Clone, Default)]
struct Decoded(Option<Arc<OnceLock<Arc<dyn Any + Send + Sync>>>>);

impl Stored {
    /// An object as a store has it: `json` says everything but the version.
    pub fn new(kind: Arc<Kind>, reference: ObjectRef, json: Bytes, resource_version: ResourceVersion) -> Self {
        Self { kind, reference, json, resource_version, decoded: Decoded::default() }
    }

    /// From here on copies of this share one decoded object.
    #[cfg(feature = "sim")]
    pub(crate) fn share_decoded(&mut self) {
        self.decoded.0.get_or_insert_default();
    }

    /// The typed object, decoded now or earlier.
    pub(crate) fn typed<T: Resource>(&self) -> Result<Arc<T>, Error> {
        let Some(cell) = &self.decoded.0 else { return self.decode().map(Arc::new) };
        if let Some(known) = cell.get().and_then(|known| known.clone().downcast().ok()) {
            return Ok(known);
        }
        let object = Arc::new(self.decode::<T>()?);
        // Read as another type before: that one stays.
        let _ = cell.set(object.clone());
        Ok(object)
    }

    /// The typed object, with its resource version.
    ///
    /// An object that this version cannot read (written by a newer one) is an error, never a panic.
    pub fn decode<T: Resource>(&self) -> Result<T, Error> {
        let mut object: T = serde_json::from_slice(&self.json).map_err(|source| Error::Unreadable {
            kind: self.kind.kind.to_string(),
            reference: self.reference.clone(),
            source,
        })?;
        object.meta_mut().resource_version = self.resource_version;
        Ok(object)
    }

    /// The whole object as JSON, with its resource version.
    pub fn to_value(&self) -> Result<Value, Error> {
        let mut value: Value = serde_json::from_slice(&self.json).map_err(|source| Error::Unreadable {
            kind: self.kind.kind.to_string(),
            reference: self.reference.clone(),
            source,
        })?;
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), Value::String(self.resource_version.to_string()));
        }
        Ok(value)
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} @{}", self.kind.kind, self.reference, self.resource_version)
    }
}

/// Who writes. Required for every write: the audit log and field ownership name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The authenticated identity: `user:ann`, `node:n1`, `controller:service`.
    pub identity: String,
    /// The field manager: a controller's name, or the tool of a person.
    pub manager: String,
    /// A leader's right to write. Part of every commit by a controller that was elected.
    pub fence: Option<Term>,
    /// Everything is checked and answered as if it were written, and nothing is.
    pub dry_run: bool,
    /// Why, in a person's words, for whoever admits the write and may keep it. Empty: nobody said.
    pub message: String,
}

impl Writer {
    /// Whoever `identity` was found to be, writing by the tool or controller `manager`.
    pub fn new(identity: impl Into<String>, manager: impl Into<String>) -> Self {
        Self { identity: identity.into(), manager: manager.into(), fence: None, dry_run: false, message: String::new() }
    }

    /// A controller of this process: `controller:<name>`, with its name as field manager.
    pub fn controller(name: &str) -> Self {
        Self::new(format!("controller:{name}"), name)
    }

    /// The same writer, as a leader: nothing is written once `fence` is over.
    pub fn fenced(mut self, fence: Term) -> Self {
        self.fence = Some(fence);
        self
    }

    /// The same writer, who says why.
    pub fn because(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// The same writer, who only wants to know what would be.
    pub fn trying(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

/// One reign: a lease, and the version at which its holder last became another. Nothing is written in the name of a
/// reign that is over, whatever its leader still believes.
///
/// A kind has reigns when it was added by [`Kinds::with_terms`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The lease's kind, qualified (`leases.apply`).
    pub kind: String,
    /// Which lease.
    pub lease: ObjectRef,
    /// The version at which its holder became the one who leads.
    pub began: ResourceVersion,
}

/// What must be true of the stored object for a write to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Precondition {
    /// It is this incarnation; `None`: any.
    pub uid: Option<Uid>,
    /// It stands at this version; `None`: at any.
    pub resource_version: Option<ResourceVersion>,
}

impl Precondition {
    /// Exactly the incarnation and version that was seen.
    pub fn seen<T: Resource>(object: &T) -> Self {
        let meta = object.meta();
        Self { uid: Some(meta.uid.clone()), resource_version: Some(meta.resource_version) }
    }

    /// The incarnation that was seen, whatever its version.
    pub fn same<T: Resource>(object: &T) -> Self {
        Self { uid: Some(object.meta().uid.clone()), resource_version: None }
    }
}

/// Which half of an object a write may change; what it says of the other half is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status, and nothing else.
    Status,
}

/// How a write says what shall be.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// RFC 6902, against the raw stored object: fields that the writer does not know survive.
    Json(json_patch::Patch),
    /// RFC 7396.
    Merge(Value),
    /// The whole part anew (`PUT`).
    Replace(Value),
}

/// What becomes of the dependents of a deleted object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// The object goes at once, its dependents soon after.
    #[default]
    Background,
    /// The object stays, marked as deleted, until the dependents that block it are gone.
    Foreground,
    /// The dependents stay and lose their reference to the object.
    Orphan,
}

/// One change of one object, or a condition on one.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Fails if an object of that name exists.
    Create {
        /// Of which kind.
        kind: Arc<Kind>,
        /// The whole object; what the objects layer writes in its metadata is ignored.
        object: Value,
    },
    /// Changes part of an object; changing what does not exist is [`Error::NotFound`].
    Update {
        /// Of which kind.
        kind: Arc<Kind>,
        /// Which object.
        reference: ObjectRef,
        /// Which half of it may change.
        part: Part,
        /// What shall be.
        patch: Patch,
        /// What must be true of it before.
        precondition: Precondition,
    },
    /// Deleting what does not exist is [`Error::NotFound`].
    Delete {
        /// Of which kind.
        kind: Arc<Kind>,
        /// Which object.
        reference: ObjectRef,
        /// What must be true of it before.
        precondition: Precondition,
        /// What becomes of its dependents.
        propagation: Propagation,
    },
    /// Changes nothing: the commit happens only if this holds. `None` demands that there is no such object.
    Check {
        /// Of which kind.
        kind: Arc<Kind>,
        /// Which object.
        reference: ObjectRef,
        /// What must be true of it; `None`: that it is not there.
        precondition: Option<Precondition>,
    },
}

impl Write {
    /// The kind of the object that it is about.
    pub fn kind(&self) -> &Arc<Kind> {
        match self {
            Self::Create { kind, .. }
            | Self::Update { kind, .. }
            | Self::Delete { kind, .. }
            | Self::Check { kind, .. } => kind,
        }
    }
}

/// What a commit did.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The version at which all of it is visible; a cache that has seen it has seen these writes.
    pub resource_version: ResourceVersion,
    /// One for each write, in order.
    pub outcomes: Vec<Outcome>,
}

/// What became of one write.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The object as it now stands; the last one for a deletion that is done; `None` for a check.
    pub object: Option<Stored>,
    /// False when everything was as the write wanted it already, and nothing was sent.
    pub changed: bool,
}

/// Which objects of a kind are meant.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Of which kind.
    pub kind: Arc<Kind>,
    /// `None`: all namespaces.
    pub namespace: Option<String>,
    /// What must hold of their labels.
    pub labels: Selector,
    /// What must hold of fields such as `metadata.name` or `spec.nodeName`; what is no string is as if it were absent.
    pub fields: Selector,
}

impl Selection {
    /// Every object of a kind.
    pub fn all_of(kind: Arc<Kind>) -> Self {
        Self { kind, namespace: None, labels: Selector::default(), fields: Selector::default() }
    }

    /// Every object of a typed kind.
    pub fn of<T: Resource>() -> Self {
        Self::all_of(Arc::new(T::kind().clone()))
    }

    /// Whether `object` is among those meant.
    pub fn matches(&self, object: &Stored) -> bool {
        stored::selects(self, object)
    }
}

/// Which page of a listing is wanted; see [`List::next`].
#[derive(Clone, Debug, Default)]
pub struct PageRequest {
    /// At most so many; 0 for all.
    pub limit: usize,
    /// `None`: the first page.
    pub from: Option<Continue>,
}

/// Where the next page begins: after `after`, as things stood at `resource_version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continue {
    /// The line of history that `resource_version` belongs to; in another one the listing begins anew.
    pub epoch: Epoch,
    /// The moment that all pages of the listing tell of.
    pub resource_version: ResourceVersion,
    /// The last object of the page before.
    pub after: ObjectRef,
}

/// One page, ordered by namespace and name.
#[derive(Clone, Debug)]
pub struct List {
    /// The line of history that the version belongs to.
    pub epoch: Epoch,
    /// The moment that the page tells of: what a stream goes on after.
    pub resource_version: ResourceVersion,
    /// The objects of the page.
    pub items: Vec<Stored>,
    /// Where the next page begins; `None`: this is the last.
    pub next: Option<Continue>,
}

/// Where a stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Everything that stands now, as [`Event::Initial`] pages ended by [`Event::InitialDone`]; then what changes.
    Now,
    /// What changed after this point; [`Error::Expired`] when that can no longer be told.
    After {
        /// The line of history that the version belongs to.
        epoch: Epoch,
        /// The last version that is known.
        resource_version: ResourceVersion,
    },
}

/// One item of a stream.
#[derive(Clone, Debug)]
pub enum Event {
    /// Some of what stood at the beginning.
    Initial(Vec<Stored>),
    /// That was all of it, as of this version.
    InitialDone {
        /// The line of history that the version belongs to.
        epoch: Epoch,
        /// The moment that all of it tells of.
        resource_version: ResourceVersion,
    },
    /// What one commit changed among the selected objects. Empty: word that this version was passed.
    Batch {
        /// The line of history that the version belongs to.
        epoch: Epoch,
        /// The version of the commit, or the one that was passed.
        resource_version: ResourceVersion,
        /// At most one of an object.
        changes: Vec<Change>,
    },
}

/// What became of one object, as a selection sees it.
#[derive(Clone, Debug)]
pub enum Change {
    /// It was made, changed, or began to match the selection. `previous` is what stood there before, selected or not.
    Put {
        /// What stands there now.
        object: Stored,
        /// What stood there before.
        previous: Option<Stored>,
    },
    /// It was deleted or no longer matches the selection. `last` is what stood there before; `None` when history does
    /// not reach back that far.
    Gone {
        /// Of which kind.
        kind: Arc<Kind>,
        /// Which object.
        reference: ObjectRef,
        /// What stood there before.
        last: Option<Stored>,
    },
}

/// Ends with its first error.
pub type Stream = BoxStream<'static, Result<Event, Error>>;

/// The verbs, over a store in this process or over HTTPS.
///
/// *Guarantees*: a commit is all or nothing; a write that changes nothing is not sent and takes no version; a read
/// after an acknowledged commit sees it; a stream tells of each commit once, in order and whole.
pub trait Objects: fmt::Debug + Send + Sync + 'static {
    /// One object, as it stands now.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    fn get<'a>(&'a self, kind: &'a Kind, reference: &'a ObjectRef) -> BoxFuture<'a, Result<Stored, Error>>;
    /// One page of a listing. Later pages tell of the same moment as the first.
    ///
    /// # Errors
    /// [`Error::Expired`] for a page of a moment that can no longer be told of.
    fn list<'a>(&'a self, selection: &'a Selection, page: PageRequest) -> BoxFuture<'a, Result<List, Error>>;
    /// All selections at one version: a batch never tells of half a commit.
    fn stream(&self, selections: Vec<Selection>, start: Start) -> BoxFuture<'_, Result<Stream, Error>>;
    /// All of the writes or none of them, in the name of `writer`; at most
    /// [`KEYS_PER_COMMIT`](crate::store::KEYS_PER_COMMIT) objects. A later write of an object sees what an earlier one
    /// of the same commit made of it. Writes without a version of their own are tried again when others are faster.
    ///
    /// # Errors
    /// Of the first write that is refused; [`Error::UnknownOutcome`] when nobody knows.
    fn commit<'a>(&'a self, writer: &'a Writer, writes: Vec<Write>) -> BoxFuture<'a, Result<Committed, Error>>;
}

/// Why a read or a write did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such object.
    #[error("{kind} {reference} does not exist")]
    NotFound {
        /// Kind of the object.
        kind: String,
        /// Which one.
        reference: ObjectRef,
    },
    /// There is such an object, and none was expected.
    #[error("{kind} {reference} exists already")]
    AlreadyExists {
        /// Kind of the object.
        kind: String,
        /// Which one.
        reference: ObjectRef,
    },
    /// Somebody else was faster. Read again, decide again.
    #[error("{kind} {reference} has changed: {detail}")]
    Conflict {
        /// Kind of the object.
        kind: String,
        /// Which one.
        reference: ObjectRef,
        /// What was expected and what stands, for people.
        detail: String,
    },
    /// Somebody else was elected: stop leading.
    #[error("the right to write has passed to another leader")]
    Fenced,
    /// The same will be refused again until the object is mended.
    #[error("{kind} {reference} is not valid: {}", list_faults(faults))]
    Invalid {
        /// Kind of the object.
        kind: String,
        /// Which one; the name may be what is wrong.
        reference: ObjectRef,
        /// Every fault, each with its path; at least one.
        faults: Vec<Fault>,
    },
    /// The writer has not the right to. Nothing was changed.
    #[error("{identity} may not {verb} {kind} {reference}: {detail}")]
    Forbidden {
        /// Who asked.
        identity: String,
        /// For what: `create`.
        verb: String,
        /// On which kind.
        kind: String,
        /// On which object.
        reference: ObjectRef,
        /// Why not, for people.
        detail: String,
    },
    /// No kind of that name is served here.
    #[error("no such kind: {name}")]
    UnknownKind {
        /// The name that was asked for, qualified (`services.apply`).
        name: String,
    },
    /// The version asked for can no longer be told of. List anew.
    #[error("that version is too old: {detail}")]
    Expired {
        /// Which version, for people.
        detail: String,
    },
    /// One object or one commit is over the limits of the store. The same will be refused again.
    #[error("too large: {detail}")]
    TooLarge {
        /// What is too much, and how much is allowed.
        detail: String,
    },
    /// Only deletions are taken until there is room.
    #[error("the store is full: {detail}")]
    Full {
        /// What the store said.
        detail: String,
    },
    /// The commit may have happened. Read before repeating it.
    #[error("it is not known whether the write happened: {detail}")]
    UnknownOutcome {
        /// What the store said.
        detail: String,
    },
    /// Nothing happened. Try again later.
    #[error("the store cannot be reached: {detail}")]
    Unavailable {
        /// What the store, or the way to it, said.
        detail: String,
    },
    /// It is there, and has a form that this version does not know: a newer one wrote it.
    #[error("{kind} {reference} cannot be read by this version")]
    Unreadable {
        /// Kind of the object.
        kind: String,
        /// Which one.
        reference: ObjectRef,
        /// What could not be read.
        source: serde_json::Error,
    },
    /// A record does not match its checksum.
    #[error("the store is damaged: {detail}")]
    Damaged {
        /// Which record.
        detail: String,
    },
}

fn list_faults(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// Nothing is wrong; the world moved on. The fresh object wakes whoever cares.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. } | Self::AlreadyExists { .. })
    }

    /// There is no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
