//! The objects of one kind at one revision, with their indexes. Tables share structure: the next one costs what changed.

use std::any::{Any, TypeId};
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use imbl::OrdMap;

use reconciler_api::{Kind, ObjectMeta, ObjectRef, Resource, ResourceVersion, Uid};

use crate::objects::Stored;

use super::index::{AnyIndex, Index, IndexMap};

/// An object of any kind.
pub type AnyObject = Arc<dyn Any + Send + Sync>;

/// What became of one object between two snapshots.
///
/// An object that was deleted and made again under its name is told as two: one that went, one that came.
#[derive(Clone)]
pub struct Delta {
    /// Of which kind.
    pub kind: &'static Kind,
    /// Which object.
    pub reference: Arc<ObjectRef>,
    old: Option<AnyObject>,
    new: Option<AnyObject>,
}

impl Delta {
    /// What stood before; `None` when it is new or of another type.
    pub fn old<T: Resource>(&self) -> Option<Arc<T>> {
        self.old.clone()?.downcast().ok()
    }

    #[expect(clippy::new_ret_no_self, reason = "the pair is `old` and `new`")]
    /// What stands now; `None` when it is gone or of another type.
    pub fn new<T: Resource>(&self) -> Option<Arc<T>> {
        self.new.clone()?.downcast().ok()
    }

    /// Whether nothing stands there now.
    pub fn is_gone(&self) -> bool {
        self.new.is_none()
    }

    /// Whether it is about an object of this type.
    pub fn is_of<T: Resource>(&self) -> bool {
        self.new.as_ref().or(self.old.as_ref()).is_some_and(|object| (**object).is::<T>())
    }
}

/// An object that is there and that this version cannot read (a newer one wrote it).
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Which object.
    pub reference: Arc<ObjectRef>,
    /// When it was last written.
    pub resource_version: ResourceVersion,
    /// What could not be read.
    pub error: String,
    /// Whom it belongs to, as far as its metadata could be read.
    pub owners: Vec<Uid>,
}

#[derive(Clone)]
pub(super) struct Table<T: Resource> {
    objects: OrdMap<Arc<ObjectRef>, Arc<T>>,
    owners: OrdMap<(Uid, Arc<ObjectRef>), Arc<T>>,
    unreadable: OrdMap<Arc<ObjectRef>, Arc<Unreadable>>,
    indexes: Vec<Box<dyn AnyIndex<T>>>,
}

/// Sorts before every other reference.
static FIRST: LazyLock<Arc<ObjectRef>> = LazyLock::new(|| Arc::new(ObjectRef::default()));

impl<T: Resource> Default for Table<T> {
    fn default() -> Self {
        Self { objects: OrdMap::new(), owners: OrdMap::new(), unreadable: OrdMap::new(), indexes: Vec::new() }
    }
}

impl<T: Resource> Table<T> {
    pub(super) fn declare_index<I: Index<Of = T>>(&mut self) {
        if self.index::<I>().is_none() {
            self.indexes.push(Box::new(IndexMap::<I>::default()));
        }
    }

    pub(super) fn get(&self, reference: &ObjectRef) -> Option<&Arc<T>> {
        self.objects.get(reference)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.objects.iter().map(|(_, object)| object)
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<T>> {
        self.objects
            .range(ObjectRef::new(namespace, "")..)
            .take_while(move |(reference, _)| reference.namespace == namespace)
            .map(|(_, object)| object)
    }

    pub(super) fn owned_by<'a>(&'a self, owner: &'a Uid) -> impl Iterator<Item = &'a Arc<T>> {
        self.owners
            .range((owner.clone(), FIRST.clone())..)
            .take_while(move |((uid, _), _)| uid == owner)
            .map(|(_, object)| object)
    }

    pub(super) fn by<'a, I: Index<Of = T>>(
        &'a self,
        key: &'a I::Key,
    ) -> Option<impl Iterator<Item = &'a Arc<T>> + use<'a, I, T>> {
        let index = self.index::<I>()?;
        Some(
            index
                .entries
                .range((key.clone(), FIRST.clone())..)
                .take_while(move |((found, _), _)| found == key)
                .map(|(_, object)| object),
        )
    }

    fn index<I: Index<Of = T>>(&self) -> Option<&IndexMap<I>> {
        self.indexes.iter().find_map(|index| index.as_any().downcast_ref())
    }

    /// Puts a readable object, tells what changed.
    pub(super) fn insert(&mut self, object: Arc<T>, deltas: &mut Vec<Delta>) {
        let reference = Arc::new(object.object_ref());
        let old = self.take(&reference);
        let delta = |old: Option<&Arc<T>>, new: Option<&Arc<T>>| Delta {
            kind: T::kind(),
            reference: reference.clone(),
            old: old.map(|object| object.clone() as AnyObject),
            new: new.map(|object| object.clone() as AnyObject),
        };
        match &old {
            Some(before) if before.meta().uid != object.meta().uid => {
                deltas.push(delta(Some(before), None));
                deltas.push(delta(None, Some(&object)));
            }
            before => deltas.push(delta(before.as_ref(), Some(&object))),
        }
        self.place(reference, object);
    }

    fn place(&mut self, reference: Arc<ObjectRef>, object: Arc<T>) {
        for owner in &object.meta().owner_references {
            self.owners.insert((owner.uid.clone(), reference.clone()), object.clone());
        }
        for index in &mut self.indexes {
            index.insert(&reference, &object);
        }
        self.objects.insert(reference, object);
    }

    /// Removes an object from everything but the delta, readable or not.
    fn take(&mut self, reference: &Arc<ObjectRef>) -> Option<Arc<T>> {
        self.unreadable.remove(&**reference);
        let object = self.objects.remove(&**reference)?;
        for owner in &object.meta().owner_references {
            self.owners.remove(&(owner.uid.clone(), reference.clone()));
        }
        for index in &mut self.indexes {
            index.remove(reference, &object);
        }
        Some(object)
    }

    fn put_stored(&mut self, stored: &Stored, deltas: &mut Vec<Delta>) {
        match stored.typed::<T>() {
            Ok(object) => self.insert(object, deltas),
            // What was known of it is kept beside the mark: a reader who asks whether it exists hears yes.
            Err(error) => self.mark_unreadable(stored, error.to_string()),
        }
    }

    fn mark_unreadable(&mut self, stored: &Stored, error: String) {
        let reference = Arc::new(stored.reference.clone());
        let unreadable = Unreadable {
            reference: reference.clone(),
            resource_version: stored.resource_version,
            error,
            owners: owners_of(&stored.json),
        };
        self.unreadable.insert(reference, Arc::new(unreadable));
    }

    fn drop_object(&mut self, reference: &ObjectRef, deltas: &mut Vec<Delta>) {
        let reference = Arc::new(reference.clone());
        if let Some(old) = self.take(&reference) {
            deltas.push(Delta { kind: T::kind(), reference, old: Some(old), new: None });
        }
    }

    /// The version that is known under a name, readable or not.
    fn version_of(&self, reference: &ObjectRef) -> Option<ResourceVersion> {
        match self.unreadable.get(reference) {
            Some(unreadable) => Some(unreadable.resource_version),
            None => self.objects.get(reference).map(|object| object.meta().resource_version),
        }
    }
}

/// The owners named in an object's metadata, when at least that can be read.
fn owners_of(json: &[u8]) -> Vec<Uid> {
    #[derive(serde::Deserialize)]
    struct Envelope {
        metadata: ObjectMeta,
    }
    let metadata = serde_json::from_slice::<Envelope>(json).map(|envelope| envelope.metadata).unwrap_or_default();
    metadata.owner_references.into_iter().map(|owner| owner.uid).collect()
}

/// A table whose type only its readers know.
pub(super) trait AnyTable: Any + Send + Sync {
    fn kind(&self) -> &'static Kind;
    fn object_type(&self) -> TypeId;
    fn clone_box(&self) -> Box<dyn AnyTable>;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn put(&mut self, stored: &Stored, deltas: &mut Vec<Delta>);
    fn remove(&mut self, reference: &ObjectRef, deltas: &mut Vec<Delta>);
    fn version_of(&self, reference: &ObjectRef) -> Option<ResourceVersion>;
    /// Everything that is not in `kept` goes.
    fn retain(&mut self, kept: &BTreeSet<ObjectRef>, deltas: &mut Vec<Delta>);
    fn tell_all(&self, deltas: &mut Vec<Delta>);
    fn len(&self) -> usize;
    fn unreadable(&self) -> Vec<Arc<Unreadable>>;
    fn unreadable_len(&self) -> usize;
    /// Takes over the indexes that `other`, a table of the same type, has beyond this one. For empty tables.
    fn adopt_indexes(&mut self, other: &dyn AnyTable);
}

impl<T: Resource> AnyTable for Table<T> {
    fn kind(&self) -> &'static Kind {
        T::kind()
    }

    fn object_type(&self) -> TypeId {
        TypeId::of::<T>()
    }

    fn clone_box(&self) -> Box<dyn AnyTable> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn put(&mut self, stored: &Stored, deltas: &mut Vec<Delta>) {
        self.put_stored(stored, deltas);
    }

    fn remove(&mut self, reference: &ObjectRef, deltas: &mut Vec<Delta>) {
        self.drop_object(reference, deltas);
    }

    fn version_of(&self, reference: &ObjectRef) -> Option<ResourceVersion> {
        self.version_of(reference)
    }

    fn retain(&mut self, kept: &BTreeSet<ObjectRef>, deltas: &mut Vec<Delta>) {
        let vanished: Vec<Arc<ObjectRef>> = self
            .objects
            .keys()
            .chain(self.unreadable.keys())
            .filter(|reference| !kept.contains(&***reference))
            .cloned()
            .collect();
        for reference in vanished {
            self.drop_object(&reference, deltas);
        }
    }

    fn tell_all(&self, deltas: &mut Vec<Delta>) {
        deltas.extend(self.objects.iter().map(|(reference, object)| Delta {
            kind: T::kind(),
            reference: reference.clone(),
            old: None,
            new: Some(object.clone()),
        }));
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn unreadable(&self) -> Vec<Arc<Unreadable>> {
        self.unreadable.values().cloned().collect()
    }

    fn unreadable_len(&self) -> usize {
        self.unreadable.len()
    }

    fn adopt_indexes(&mut self, other: &dyn AnyTable) {
        let Some(other) = other.as_any().downcast_ref::<Self>() else { return };
        for index in &other.indexes {
            if !self.indexes.iter().any(|own| own.index_type() == index.index_type()) {
                self.indexes.push(index.clone_box());
            }
        }
    }
}
