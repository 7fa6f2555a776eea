//! Secondary indexes: typed, declared once, kept in every snapshot.

use std::any::{Any, TypeId};
use std::sync::Arc;

use imbl::OrdMap;

use reconciler_api::{ObjectRef, Resource};

/// A way to find objects of a kind by something other than their name.
///
/// ```
/// # use reconciler::cache::Index;
/// # use reconciler_api::Resource;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
/// # #[resource(group = "example.dev", version = "v1", kind = "Job", crate = reconciler_api)]
/// # struct JobSpec { machine: String }
/// /// Jobs by the machine that they are on.
/// struct OnMachine;
///
/// impl Index for OnMachine {
///     type Of = Job;
///     type Key = String;
///
///     fn keys(job: &Job) -> Vec<String> {
///         vec![job.spec.machine.clone()]
///     }
/// }
/// ```
///
/// *Assumptions*: `keys` is a pure function; it is called again with the old object to take its entries out.
pub trait Index: Send + Sync + 'static {
    /// The kind whose objects are found.
    type Of: Resource;
    /// What they are found by.
    type Key: Ord + Clone + Send + Sync + 'static;

    /// Every key that an object is to be found by; none keeps it out of the index.
    fn keys(object: &Self::Of) -> Vec<Self::Key>;
}

pub(super) struct IndexMap<I: Index> {
    pub(super) entries: OrdMap<(I::Key, Arc<ObjectRef>), Arc<I::Of>>,
}

impl<I: Index> Default for IndexMap<I> {
    fn default() -> Self {
        Self { entries: OrdMap::new() }
    }
}

pub(super) trait AnyIndex<T>: Send + Sync {
    fn insert(&mut self, reference: &Arc<ObjectRef>, object: &Arc<T>);
    fn remove(&mut self, reference: &Arc<ObjectRef>, object: &Arc<T>);
    fn clone_box(&self) -> Box<dyn AnyIndex<T>>;
    fn index_type(&self) -> TypeId;
    fn as_any(&self) -> &dyn Any;
}

impl<I: Index> AnyIndex<I::Of> for IndexMap<I> {
    fn insert(&mut self, reference: &Arc<ObjectRef>, object: &Arc<I::Of>) {
        for key in I::keys(object) {
            self.entries.insert((key, reference.clone()), object.clone());
        }
    }

    fn remove(&mut self, reference: &Arc<ObjectRef>, object: &Arc<I::Of>) {
        for key in I::keys(object) {
            self.entries.remove(&(key, reference.clone()));
        }
    }

    fn clone_box(&self) -> Box<dyn AnyIndex<I::Of>> {
        Box::new(Self { entries: self.entries.clone() })
    }

    fn index_type(&self) -> TypeId {
        TypeId::of::<I>()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl<T: Resource> Clone for Box<dyn AnyIndex<T>> {
    fn clone(&self) -> Self {
        (**self).clone_box()
    }
}
