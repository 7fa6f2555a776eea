//! What stands between a key and the author's code: the object behind it, its finalizer, its deletion.

use std::any::TypeId;
use std::sync::Arc;

use futures::future::BoxFuture;

use reconciler_api::{ObjectRef, Resource};

use crate::cache::Snapshot;
use crate::queue::Key;

use super::ctx::{Ctx, Subject};
use super::error::Error;
use super::recording::Guard;
use super::{Action, Cleanup, KeyReconciler, Reconciler};

/// What a key stands for in a snapshot.
pub(super) enum Standing {
    /// Something to run for.
    Here { subject: Option<Subject>, guard: Option<Guard> },
    /// Nothing to run for, for now.
    Nothing,
    /// The key stands for nothing.
    Gone,
    /// There is something that this version cannot read: acting on the rest would take it for absent.
    Unreadable(String),
}

pub(super) trait Handler<K>: Send + Sync {
    fn find(&self, key: &K, snapshot: &Snapshot) -> Standing;
    /// Called when `find` has answered [`Standing::Here`], with the same snapshot.
    fn run<'a>(&'a self, key: &'a K, cx: &'a Ctx) -> BoxFuture<'a, Result<Action, Error>>;
}

pub(super) struct ObjectHandler<R> {
    pub reconciler: Arc<R>,
    pub finalizer: Option<Arc<str>>,
    pub while_deleting: bool,
    pub guarded: bool,
}

impl<R: Reconciler> Handler<ObjectRef> for ObjectHandler<R> {
    fn find(&self, key: &ObjectRef, snapshot: &Snapshot) -> Standing {
        let Some(object) = snapshot.get::<R::Object>(key) else { return Standing::Gone };
        let meta = object.meta();
        if let Some(unreadable) = snapshot.unreadable_near(TypeId::of::<R::Object>(), key, &meta.uid) {
            return Standing::Unreadable(format!("{}: {}", unreadable.reference, unreadable.error));
        }
        let ours = self.finalizer.as_ref().is_some_and(|ours| meta.finalizers.iter().any(|name| **name == **ours));
        if object.is_deleting() && !ours && !self.while_deleting {
            return Standing::Nothing;
        }
        let guard = self.guarded.then(|| Guard {
            kind: Arc::new(R::Object::kind().clone()),
            reference: key.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version,
        });
        Standing::Here { subject: Some(Subject::of(&**object)), guard }
    }

    fn run<'a>(&'a self, key: &'a ObjectRef, cx: &'a Ctx) -> BoxFuture<'a, Result<Action, Error>> {
        Box::pin(async move {
            let Some(object) = cx.snapshot().get::<R::Object>(key).cloned() else { return Ok(Action::Await) };
            let Some(finalizer) = &self.finalizer else { return self.reconciler.reconcile(object, cx).await };
            let present = object.meta().finalizers.iter().any(|name| **name == **finalizer);
            match (object.is_deleting(), present) {
                (false, true) => self.reconciler.reconcile(object, cx).await,
                (false, false) => self.add_finalizer(&object, finalizer, cx).await,
                (true, true) => match self.reconciler.cleanup(object.clone(), cx).await? {
                    Cleanup::Pending(action) => Ok(action),
                    Cleanup::Done => self.remove_finalizer(object, finalizer, cx).await,
                },
                // Only a controller that asked for it gets here: its own part of the clean-up is over.
                (true, false) => self.reconciler.reconcile(object, cx).await,
            }
        })
    }
}

impl<R: Reconciler> ObjectHandler<R> {
    /// First the finalizer, then effects: an object that is deleted in between must find somebody who cleans up. The
    /// run ends here; the change that it makes wakes the next.
    async fn add_finalizer(&self, object: &R::Object, finalizer: &str, cx: &Ctx) -> Result<Action, Error> {
        let mut desired = object.clone();
        desired.meta_mut().finalizers.push(finalizer.to_owned());
        cx.client().update(object, &desired).await?;
        Ok(Action::Await)
    }

    async fn remove_finalizer(&self, object: Arc<R::Object>, finalizer: &str, cx: &Ctx) -> Result<Action, Error> {
        // A clean-up that wrote the object (its status) has moved it on.
        let current = if cx.wrote_own_object() {
            cx.client().get::<R::Object>(&object.object_ref()).await?
        } else {
            (*object).clone()
        };
        if current.meta().uid != object.meta().uid {
            return Ok(Action::Await);
        }
        let mut desired = current.clone();
        desired.meta_mut().finalizers.retain(|name| name != finalizer);
        cx.client().update(&current, &desired).await?;
        Ok(Action::Await)
    }
}

pub(super) struct KeyHandler<R> {
    pub reconciler: Arc<R>,
}

impl<R: KeyReconciler> Handler<R::Key> for KeyHandler<R>
where
    R::Key: Key,
{
    fn find(&self, _: &R::Key, _: &Snapshot) -> Standing {
        Standing::Here { subject: None, guard: None }
    }

    fn run<'a>(&'a self, key: &'a R::Key, cx: &'a Ctx) -> BoxFuture<'a, Result<Action, Error>> {
        Box::pin(self.reconciler.reconcile(key, cx))
    }
}
