//! The typed way to the verbs, in the name of one writer.

use std::sync::Arc;

use serde_json::Value;

use reconciler_api::{ObjectRef, Resource};

use super::{
    Committed, Error, Objects, Outcome, PageRequest, Part, Patch, Precondition, Propagation, Selection, Write, Writer,
};

/// Reads and writes typed objects. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    objects: Arc<dyn Objects>,
    writer: Writer,
}

impl Client {
    /// Everything is written in the name of `writer`.
    pub fn new(objects: Arc<dyn Objects>, writer: Writer) -> Self {
        Self { objects, writer }
    }

    /// The untyped verbs behind it.
    pub fn objects(&self) -> &Arc<dyn Objects> {
        &self.objects
    }

    /// In whose name it writes.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// One object, as it stands now.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none; [`Error::Unreadable`] when it has not the form of `T`.
    pub async fn get<T: Resource>(&self, reference: &ObjectRef) -> Result<T, Error> {
        self.objects.get(T::kind(), reference).await?.decode()
    }

    /// `None` when there is no such object.
    pub async fn find<T: Resource>(&self, reference: &ObjectRef) -> Result<Option<T>, Error> {
        match self.get(reference).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind; `namespace` `None` for all namespaces.
    pub async fn list<T: Resource>(&self, namespace: Option<&str>) -> Result<Vec<T>, Error> {
        let mut selection = Selection::of::<T>();
        selection.namespace = namespace.map(str::to_owned);
        let list = self.objects.list(&selection, PageRequest::default()).await?;
        list.items.iter().map(|stored| stored.decode()).collect()
    }

    /// Stores a new object and answers it as stored: with its uid, version and times.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] when the name is taken; [`Error::Invalid`] with every fault.
    pub async fn create<T: Resource>(&self, object: &T) -> Result<T, Error> {
        self.one(Write::create(object)).await
    }

    /// Brings the stored object from `observed` to `desired`: only what differs between the two is written, on the
    /// condition that the stored object is still the observed one. Status changes are left out.
    pub async fn update<T: Resource>(&self, observed: &T, desired: &T) -> Result<T, Error> {
        self.one(Write::update(observed, desired)).await
    }

    /// The same for the status.
    pub async fn update_status<T: Resource>(&self, observed: &T, desired: &T) -> Result<T, Error> {
        self.one(Write::update_status(observed, desired)).await
    }

    /// Deletes the incarnation that was seen, whatever its version; gone already is success.
    pub async fn delete<T: Resource>(&self, object: &T, propagation: Propagation) -> Result<(), Error> {
        match self.commit(vec![Write::delete(object, Precondition::same(object), propagation)]).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Does all of the writes or none of them; at most [`KEYS_PER_COMMIT`](crate::store::KEYS_PER_COMMIT) objects.
    ///
    /// # Errors
    /// Those of [`Objects::commit`].
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Committed, Error> {
        self.objects.commit(&self.writer, writes).await
    }

    async fn one<T: Resource>(&self, write: Write) -> Result<T, Error> {
        let committed = self.commit(vec![write]).await?;
        match committed.outcomes.into_iter().next() {
            Some(Outcome { object: Some(stored), .. }) => stored.decode(),
            _ => Err(Error::Unavailable { detail: "the answer names no object".into() }),
        }
    }
}

impl Write {
    /// A new object; its metadata but names, labels, annotations, finalizers and owners is ignored.
    pub fn create<T: Resource>(object: &T) -> Self {
        Self::Create { kind: Arc::new(T::kind().clone()), object: to_json(object) }
    }

    /// From `observed` to `desired`, everything but the status, if the stored object is still the observed one.
    pub fn update<T: Resource>(observed: &T, desired: &T) -> Self {
        Self::between(observed, desired, Part::Main)
    }

    /// From the status of `observed` to that of `desired`, if the stored object is still the observed one.
    pub fn update_status<T: Resource>(observed: &T, desired: &T) -> Self {
        Self::between(observed, desired, Part::Status)
    }

    /// The end of an object, or its beginning where finalizers or `propagation` make it wait.
    pub fn delete<T: Resource>(object: &T, precondition: Precondition, propagation: Propagation) -> Self {
        Self::Delete { kind: Arc::new(T::kind().clone()), reference: object.object_ref(), precondition, propagation }
    }

    /// The commit happens only while the object is the observed one.
    pub fn unchanged<T: Resource>(object: &T) -> Self {
        Self::Check {
            kind: Arc::new(T::kind().clone()),
            reference: object.object_ref(),
            precondition: Some(Precondition::seen(object)),
        }
    }

    fn between<T: Resource>(observed: &T, desired: &T, part: Part) -> Self {
        Self::Update {
            kind: Arc::new(T::kind().clone()),
            reference: observed.object_ref(),
            part,
            patch: Patch::Json(json_patch::diff(&of_part(observed, part), &of_part(desired, part))),
            precondition: Precondition::seen(observed),
        }
    }
}

fn to_json<T: Resource>(object: &T) -> Value {
    serde_json::to_value(object).expect("an object is JSON: string keys, no fallible serializers")
}

/// Only what a write to this part may change, so that the difference never speaks of the other.
fn of_part<T: Resource>(object: &T, part: Part) -> Value {
    let mut value = to_json(object);
    if let Some(fields) = value.as_object_mut() {
        match part {
            Part::Main => drop(fields.remove("status")),
            Part::Status => fields.retain(|name, _| name == "status"),
        }
    }
    value
}
