//! Everything declared, at one revision.

use std::any::TypeId;
use std::fmt;
use std::sync::Arc;

use reconciler_api::{ObjectRef, Resource, ResourceVersion, Uid};

use crate::objects::{Epoch, Selector};

use super::declare::Declarations;
use super::index::Index;
use super::table::{AnyTable, Delta, Table, Unreadable};

/// All objects of the declared kinds as they stood at one revision. Immutable, complete, cheap to clone.
///
/// Whoever holds one has the proof that the cache was in sync: what it does not contain did not exist at that
/// revision. "Not yet known" is the absence of a snapshot, never an empty one.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) epoch: Epoch,
    pub(super) resource_version: ResourceVersion,
    /// Ordered by kind. Few: a linear search beats a map.
    pub(super) tables: Vec<Arc<dyn AnyTable>>,
    /// Which types may be read; `None` for all. A controller sees the kinds that it declared, so that it never reads
    /// what does not wake it by accident.
    pub(super) scope: Option<Arc<[TypeId]>>,
}

impl Snapshot {
    /// Nothing of what is declared. For a cache that begins, and for scenes; see [`Snapshot::with`].
    pub fn empty(declarations: &Declarations) -> Self {
        Self {
            epoch: Epoch::default(),
            resource_version: ResourceVersion::default(),
            tables: declarations.tables().into_iter().map(Arc::from).collect(),
            scope: None,
        }
    }

    /// The same with one object more, or another in its place. For scenes in tests.
    ///
    /// # Panics
    /// When the kind was not declared.
    pub fn with<T: Resource>(mut self, object: T) -> Self {
        self.resource_version = self.resource_version.max(object.meta().resource_version);
        let position = self.tables.iter().position(|table| table.object_type() == TypeId::of::<T>());
        let position = position.unwrap_or_else(|| panic!("{} is not among the declared kinds", T::kind().kind));
        let mut table = self.tables[position].clone_box();
        if let Some(table) = table.as_any_mut().downcast_mut::<Table<T>>() {
            table.insert(Arc::new(object), &mut Vec::new());
        }
        self.tables[position] = Arc::from(table);
        self
    }

    /// The revision at which everything here stood.
    pub fn resource_version(&self) -> ResourceVersion {
        self.resource_version
    }

    /// Which line of history that revision belongs to.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// One object, by namespace and name; `None`: it did not exist at that revision.
    pub fn get<T: Resource>(&self, reference: &ObjectRef) -> Option<&Arc<T>> {
        self.table::<T>().get(reference)
    }

    /// All of a kind, by namespace and name.
    pub fn all<T: Resource>(&self) -> impl Iterator<Item = &Arc<T>> {
        self.table::<T>().iter()
    }

    /// How many there are of a kind, in all namespaces.
    pub fn count<T: Resource>(&self) -> usize {
        self.table::<T>().len()
    }

    /// By name. Costs what it returns.
    pub fn in_namespace<'a, T: Resource>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<T>> {
        self.table::<T>().in_namespace(namespace)
    }

    /// Whatever names `owner` as an owner, by UID: a namesake of a deleted owner owns nothing. Costs what it returns.
    pub fn owned_by<'a, T: Resource>(&'a self, owner: &'a Uid) -> impl Iterator<Item = &'a Arc<T>> {
        self.table::<T>().owned_by(owner)
    }

    /// By a declared index. Costs what it returns.
    ///
    /// # Panics
    /// When the index was not declared.
    pub fn by<'a, I: Index>(&'a self, key: &'a I::Key) -> impl Iterator<Item = &'a Arc<I::Of>> {
        self.table::<I::Of>().by::<I>(key).unwrap_or_else(|| {
            panic!("index {} is not declared: add .index::<…>() to the controller", std::any::type_name::<I>())
        })
    }

    /// By labels. Looks at every object of the kind (in the namespace, if one is given); what is asked often deserves
    /// an [`Index`].
    pub fn labelled<'a, T: Resource>(
        &'a self,
        namespace: Option<&'a str>,
        labels: &'a Selector,
    ) -> impl Iterator<Item = &'a Arc<T>> {
        let everywhere = namespace.is_none().then(|| self.all::<T>());
        let within = namespace.map(|namespace| self.in_namespace::<T>(namespace));
        everywhere
            .into_iter()
            .flatten()
            .chain(within.into_iter().flatten())
            .filter(|object| labels.matches(|key| object.meta().labels.get(key).map(String::as_str)))
    }

    /// Objects of a kind that are there but that this version cannot read. Those that could be read earlier are also
    /// found under their name, as they last were.
    pub fn unreadable<T: Resource>(&self) -> Vec<Arc<Unreadable>> {
        match self.find_table(TypeId::of::<T>()) {
            Some(table) => table.unreadable(),
            None => Vec::new(),
        }
    }

    /// An unreadable object that is the one asked for, or that it owns: what is known of it is not the whole.
    pub(crate) fn unreadable_near(&self, kind: TypeId, reference: &ObjectRef, uid: &Uid) -> Option<Arc<Unreadable>> {
        let mut found = None;
        for table in self.tables.iter().filter(|table| table.unreadable_len() > 0) {
            found = table.unreadable().into_iter().find(|unreadable| {
                (table.object_type() == kind && *unreadable.reference == *reference) || unreadable.owners.contains(uid)
            });
            if found.is_some() {
                break;
            }
        }
        found
    }

    /// The same objects, with only these types to be seen.
    pub(crate) fn scoped(&self, scope: Arc<[TypeId]>) -> Self {
        Self { scope: Some(scope), ..self.clone() }
    }

    /// Everything as deltas that add it: what a subscriber that comes late has missed.
    pub(crate) fn as_deltas(&self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for table in &self.tables {
            table.tell_all(&mut deltas);
        }
        deltas
    }

    fn table<T: Resource>(&self) -> &Table<T> {
        let wanted = TypeId::of::<T>();
        let visible = self.scope.as_ref().is_none_or(|scope| scope.contains(&wanted));
        self.find_table(wanted)
            .filter(|_| visible)
            .and_then(|table| table.as_any().downcast_ref())
            .unwrap_or_else(|| panic!("{} is not declared: add .reads::<…>() to the controller", T::kind().kind))
    }

    fn find_table(&self, wanted: TypeId) -> Option<&Arc<dyn AnyTable>> {
        self.tables.iter().find(|table| table.object_type() == wanted)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot @{}", self.resource_version)?;
        let counts = self.tables.iter().map(|table| (table.kind().kind.as_ref(), table.len()));
        f.debug_map().entries(counts).finish()
    }
}
