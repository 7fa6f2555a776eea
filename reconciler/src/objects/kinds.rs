//! Which kinds there are, and how an object of each is checked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use reconciler_api::{Fault, Kind, Resource};

use super::Error;

/// Checks a whole object (and what stood before) and answers every fault.
type Check = Arc<dyn Fn(&Value, Option<&Value>) -> Vec<Fault> + Send + Sync>;

/// All kinds that an [`Objects`](super::Objects) serves.
#[derive(Clone, Default)]
pub struct Kinds {
    by_name: BTreeMap<String, Entry>,
}

/// A kind that is served, and how its objects are checked.
#[derive(Clone)]
pub struct Entry {
    /// The kind itself.
    pub kind: Arc<Kind>,
    /// JSON Schema of a whole object, where it is known.
    pub schema: Option<Arc<Value>>,
    /// Where a lease says who holds it.
    holder: Option<&'static str>,
    check: Check,
}

impl Kinds {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
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
        self.by_name.insert(
            kind.qualified(),
            Entry { kind: Arc::new(kind), schema: None, holder: None, check: Arc::new(check) },
        );
        self
    }

    /// By qualified name (`services.apply`).
    pub fn get(&self, qualified: &str) -> Result<&Entry, Error> {
        self.by_name.get(qualified).ok_or_else(|| Error::UnknownKind { name: qualified.to_owned() })
    }

    /// Every kind, by qualified name.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.by_name.values()
    }
}

impl Entry {
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
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.by_name.keys()).finish()
    }
}
