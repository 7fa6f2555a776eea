//! Which kinds there are, and how an object of each is checked.
//!
//! Most are known when a program begins. Beside them there may be kinds that objects define ([`Kinds::defined_by`]): they
//! come and go with those objects, and every clone of a [`Kinds`] sees the same ones.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tokio::sync::watch;

use reconciler_api::{Fault, Kind, Resource, ResourceVersion};

use super::{Change, Error, Event, Objects, Part, Selection, Start, Stored};
use crate::seams::Seams;

/// Checks a whole object (and what stood before) and answers every fault.
type Check = Arc<dyn Fn(&Value, Option<&Value>) -> Vec<Fault> + Send + Sync>;
/// Fills in what a part of an object leaves out.
type Defaults = Arc<dyn Fn(&mut Value, Part) + Send + Sync>;
/// The kind that an object defines; `None`: this version does not understand it.
type Read = Arc<dyn Fn(&Value) -> Option<Entry> + Send + Sync>;

/// All kinds that an [`Objects`](super::Objects) serves. Clones share those that objects define.
#[derive(Clone)]
pub struct Kinds {
    by_name: BTreeMap<String, Entry>,
    definer: Option<Definer>,
    defined: Defined,
}

/// A kind that is served, and how its objects are checked.
#[derive(Clone)]
pub struct Entry {
    /// The kind itself.
    pub kind: Arc<Kind>,
    /// JSON Schema of a whole object, where it is known.
    pub schema: Option<Arc<Value>>,
    /// Where its objects say how many they are, if they do: what `/scale` reads and writes.
    pub scale: Option<Arc<Scale>>,
    /// Whether its objects have a status at all.
    pub status: bool,
    /// Where a lease says who holds it.
    holder: Option<&'static str>,
    check: Check,
    defaults: Option<Defaults>,
}

/// JSON pointers to the numbers of a kind that can be scaled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// How many are wanted: `/spec/replicas`.
    pub wanted: String,
    /// How many there are: `/status/replicas`.
    pub found: String,
    /// A label selector, as text, of what is counted; empty: it does not say.
    pub selector: String,
}

#[derive(Clone)]
struct Definer {
    kind: Kind,
    read: Read,
}

/// The kinds that objects define, apart from who serves them: for who judges a definition by the others.
#[derive(Clone)]
pub struct Defined(Arc<Shared>);

impl Defined {
    /// As they are now, by qualified name.
    pub fn all(&self) -> Vec<Arc<Kind>> {
        let known = self.0.by_name.read().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(|standing| Some(standing.entry.as_ref()?.kind.clone())).collect()
    }
}

struct Shared {
    /// What is known of each: a kind, or that it is gone while older word of it may still come.
    by_name: RwLock<BTreeMap<String, Standing>>,
    /// Counts up when one comes or goes.
    changes: watch::Sender<u64>,
}

struct Standing {
    version: ResourceVersion,
    entry: Option<Entry>,
}

impl Default for Kinds {
    fn default() -> Self {
        Self::new()
    }
}

impl Kinds {
    /// None yet.
    pub fn new() -> Self {
        let shared = Shared { by_name: RwLock::default(), changes: watch::Sender::new(0) };
        Self { by_name: BTreeMap::new(), definer: None, defined: Defined(Arc::new(shared)) }
    }

    /// Adds a typed kind: objects must decode as `T`, and pass its own validation.
    pub fn with<T: Resource>(self) -> Self {
        self.with_unexplained::<T>().with_schema(T::kind(), T::schema().to_value())
    }

    /// The same for whoever explains nothing to anybody: making a schema takes longer than a short simulation.
    pub(crate) fn with_unexplained<T: Resource>(self) -> Self {
        self.with_check(T::kind().clone(), |object, previous| {
            let typed = match T::deserialize(object) {
                Ok(typed) => typed,
                Err(error) => return vec![Fault::new("", error.to_string())],
            };
            // What stands in the store was valid for the version that wrote it; one that cannot be read is no help.
            let previous = previous.and_then(|value| T::deserialize(value).ok());
            typed.validate(previous.as_ref())
        })
    }

    /// Says what objects of a kind that was added look like.
    pub fn with_schema(mut self, kind: &Kind, schema: Value) -> Self {
        if let Some(entry) = self.by_name.get_mut(&kind.qualified()) {
            entry.schema = Some(Arc::new(schema));
        }
        self
    }

    /// Objects of a kind that was added are leases: whenever what stands at the JSON pointer `holder` becomes another, a
    /// [`Term`](super::Term) begins, and the one before is over.
    pub fn with_terms(mut self, kind: &Kind, holder: &'static str) -> Self {
        if let Some(entry) = self.by_name.get_mut(&kind.qualified()) {
            entry.holder = Some(holder);
        }
        self
    }

    /// Adds a kind with a check of one's own.
    pub fn with_check(
        mut self,
        kind: Kind,
        check: impl Fn(&Value, Option<&Value>) -> Vec<Fault> + Send + Sync + 'static,
    ) -> Self {
        self.by_name.insert(kind.qualified(), Entry::new(kind, check));
        self
    }

    /// Objects of a kind that was added define kinds of their own: the one that is called `sites.example.dev` says, by way
    /// of `read`, what sites are. A kind is served as soon as its definition is stored, and as long; a definition that `read`
    /// does not understand defines nothing. One is not deleted while there are objects of its kind.
    ///
    /// Definitions that are written elsewhere are heard of by [`Kinds::follow`].
    pub fn defined_by(mut self, kind: &Kind, read: impl Fn(&Value) -> Option<Entry> + Send + Sync + 'static) -> Self {
        self.definer = Some(Definer { kind: kind.clone(), read: Arc::new(read) });
        self
    }

    /// The kinds that objects define.
    pub fn defined(&self) -> Defined {
        self.defined.clone()
    }

    /// By qualified name (`services.apply`).
    pub fn get(&self, qualified: &str) -> Result<Entry, Error> {
        self.look_up(qualified, Entry::clone)
    }

    /// The kind alone.
    pub fn kind(&self, qualified: &str) -> Result<Arc<Kind>, Error> {
        self.look_up(qualified, |entry| entry.kind.clone())
    }

    fn look_up<T>(&self, qualified: &str, take: impl FnOnce(&Entry) -> T) -> Result<T, Error> {
        if let Some(entry) = self.by_name.get(qualified) {
            return Ok(take(entry));
        }
        let defined = self.defined.0.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let entry = defined.get(qualified).and_then(|standing| standing.entry.as_ref());
        entry.map(take).ok_or_else(|| Error::UnknownKind { name: qualified.to_owned() })
    }

    /// Every kind that is served now, by qualified name.
    pub fn all(&self) -> Vec<Entry> {
        let defined = self.defined.0.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let defined = defined.iter().filter_map(|(name, standing)| Some((name.clone(), standing.entry.clone()?)));
        let mut all: BTreeMap<String, Entry> = defined.collect();
        all.extend(self.by_name.iter().map(|(name, entry)| (name.clone(), entry.clone())));
        all.into_values().collect()
    }

    /// Told when a kind comes or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.defined.0.changes.subscribe()
    }

    /// The kind whose objects define others.
    pub(super) fn definer(&self) -> Option<&Kind> {
        self.definer.as_ref().map(|definer| &definer.kind)
    }

    /// Has every definition that is written, by whomever, so: for ever, and again after each failure. What this process
    /// writes itself needs none of it, nor what stood when its objects were opened.
    pub async fn follow(&self, objects: &dyn Objects, seams: &Seams) {
        let Some(definer) = &self.definer else { return std::future::pending().await };
        loop {
            if let Err(error) = self.follow_once(&definer.kind, objects).await {
                tracing::debug!(%error, "definitions of kinds are not heard of");
            }
            seams.sleep(AGAIN).await;
        }
    }

    async fn follow_once(&self, kind: &Kind, objects: &dyn Objects) -> Result<(), Error> {
        let selection = Selection::all_of(Arc::new(kind.clone()));
        let mut events = objects.stream(vec![selection], Start::Now).await?;
        let mut standing = Vec::new();
        while let Some(event) = events.next().await {
            match event? {
                Event::Initial(objects) => standing.extend(objects),
                Event::InitialDone { resource_version, .. } => {
                    self.are(&std::mem::take(&mut standing), resource_version)
                }
                Event::Batch { resource_version, changes, .. } => {
                    for change in changes {
                        match change {
                            Change::Put { object, .. } => self.learn(&object),
                            Change::Gone { reference, .. } => self.forget(&reference.name, resource_version),
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// All definitions as of `version`: what is not among them, and not newer, is gone.
    pub(super) fn are(&self, definitions: &[Stored], version: ResourceVersion) {
        let gone: Vec<String> = {
            let mut known = self.defined.0.by_name.write().unwrap_or_else(PoisonError::into_inner);
            // Word of before cannot come any more.
            known.retain(|_, standing| standing.entry.is_some() || standing.version > version);
            let there = |name: &String| definitions.iter().any(|definition| definition.reference.name == *name);
            known.keys().filter(|name| !there(name)).cloned().collect()
        };
        definitions.iter().for_each(|definition| self.learn(definition));
        gone.iter().for_each(|name| self.forget(name, version));
    }

    /// A definition as it stands at its version.
    pub(super) fn learn(&self, definition: &Stored) {
        let Some(definer) = &self.definer else { return };
        let name = &definition.reference.name;
        let entry = definition.to_value().ok().and_then(|value| (definer.read)(&value));
        // Its objects lie under the name of their kind.
        let entry = entry.filter(|entry| entry.kind.qualified() == *name);
        if entry.is_none() {
            tracing::warn!(
                definition = name,
                "this version does not understand the definition; its kind is not served"
            );
        }
        self.stand(name, definition.resource_version, entry);
    }

    /// There is no such definition as of `version`.
    pub(super) fn forget(&self, name: &str, version: ResourceVersion) {
        self.stand(name, version, None);
    }

    /// Word of one definition comes by several ways, and the newest counts.
    fn stand(&self, name: &str, version: ResourceVersion, entry: Option<Entry>) {
        let came_or_went = {
            let mut known = self.defined.0.by_name.write().unwrap_or_else(PoisonError::into_inner);
            let before = known.get(name);
            if before.is_some_and(|before| before.version >= version) {
                return;
            }
            let was = before.is_some_and(|before| before.entry.is_some());
            let is = entry.is_some();
            known.insert(name.to_owned(), Standing { version, entry });
            was != is
        };
        if came_or_went {
            self.defined.0.changes.send_modify(|changes| *changes += 1);
        }
    }
}

/// Between two tries to hear of definitions.
const AGAIN: Duration = Duration::from_millis(500);

impl Entry {
    /// A kind whose objects `check` checks: it is given the whole object and what stood before, and answers every fault.
    pub fn new(kind: Kind, check: impl Fn(&Value, Option<&Value>) -> Vec<Fault> + Send + Sync + 'static) -> Self {
        Self {
            kind: Arc::new(kind),
            schema: None,
            scale: None,
            status: true,
            holder: None,
            check: Arc::new(check),
            defaults: None,
        }
    }

    /// The same, whose objects get what they leave out before they are checked: of the part that is written, and no other.
    pub fn filled_in_by(mut self, defaults: impl Fn(&mut Value, Part) + Send + Sync + 'static) -> Self {
        self.defaults = Some(Arc::new(defaults));
        self
    }

    /// Who comes to hold the lease, when this write makes it another.
    pub(super) fn new_holder<'a>(&self, observed: Option<&Value>, desired: Option<&'a Value>) -> Option<&'a str> {
        let pointer = self.holder?;
        let before = observed.and_then(|lease| lease.pointer(pointer)).and_then(Value::as_str).unwrap_or_default();
        let after = desired.and_then(|lease| lease.pointer(pointer)).and_then(Value::as_str).unwrap_or_default();
        // A lease that is made or deleted is another one, even if nobody holds it.
        (before != after || observed.is_none() != desired.is_none()).then_some(after)
    }

    /// Every fault of `object`; empty when it may be stored.
    pub fn check(&self, object: &Value, previous: Option<&Value>) -> Vec<Fault> {
        (self.check)(object, previous)
    }

    /// Fills in what this part of the object leaves out.
    pub(super) fn fill_in(&self, object: &mut Value, part: Part) {
        if let Some(defaults) = &self.defaults {
            defaults(object, part);
        }
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().iter().map(|entry| entry.kind.qualified())).finish()
    }
}
