//! What wakes a controller, and how it is run.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reconciler_api::{ObjectRef, Resource, Scope};

use crate::backoff::Backoff;
use crate::cache::{Declarations, Delta, Index, Snapshot};
use crate::external::{AnyExternal, Difference, External, Known, World};
use crate::objects::{Selection, Writer};
use crate::queue::{Key, Priority, Queue, Reason};

use super::handler::{Handler, KeyHandler, ObjectHandler};
use super::{KeyReconciler, Reconciler, Singleton};

/// A reconciler with what it needs to run. `K` is what it is called for: an object's reference, unless it was made by
/// [`Controller::keyed`] or [`Controller::singleton`].
pub struct Controller<K: Key = ObjectRef> {
    pub(super) name: &'static str,
    pub(super) declarations: Declarations,
    pub(super) handler: Arc<dyn Handler<K>>,
    pub(super) triggers: Vec<Trigger<K>>,
    pub(super) externals: Vec<Arc<dyn Watched<K>>>,
    /// Keys that are wanted from the start.
    pub(super) first: Vec<K>,
    pub(super) options: Options,
    object: Option<ObjectOptions<K>>,
}

/// Which keys a change concerns.
pub(super) struct Trigger<K> {
    pub source: &'static str,
    /// The controller's own objects: one that is gone is forgotten.
    pub primary: bool,
    pub map: Arc<Map<K>>,
}

type Map<K> = dyn Fn(&Delta, &Snapshot, &mut dyn FnMut(K)) + Send + Sync;

#[derive(Clone)]
pub(super) struct Options {
    pub concurrency: usize,
    pub timeout: Duration,
    pub backoff: Backoff,
    pub patience: Duration,
    pub certain: bool,
    pub writer: Writer,
}

/// What is known of the objects behind the keys.
struct ObjectOptions<K> {
    kind: &'static reconciler_api::Kind,
    finalizer: Option<Arc<str>>,
    while_deleting: bool,
    guarded: bool,
    handler: Box<dyn Fn(Option<Arc<str>>, bool, bool) -> Arc<dyn Handler<K>> + Send + Sync>,
}

/// Runs at once, unless said otherwise.
const CONCURRENCY: usize = 8;
/// A run that takes longer is cut off.
const TIMEOUT: Duration = Duration::from_secs(30);
/// client-go's first delay; the longest is a minute, because a person waits for it.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(60));
/// After this, a cache that has not seen a key's own writes lists everything anew.
const PATIENCE: Duration = Duration::from_secs(10);

impl Controller<ObjectRef> {
    /// A controller of the reconciler's objects. `name` is the field manager of its writes and its name in logs and
    /// metrics.
    pub fn new<R: Reconciler>(name: &'static str, reconciler: R) -> Self {
        let reconciler = Arc::new(reconciler);
        let handler = move |finalizer, while_deleting, guarded| -> Arc<dyn Handler<ObjectRef>> {
            Arc::new(ObjectHandler { reconciler: reconciler.clone(), finalizer, while_deleting, guarded })
        };
        let own = Trigger {
            source: &R::Object::kind().kind,
            primary: true,
            map: Arc::new(|delta: &Delta, _: &Snapshot, wake: &mut dyn FnMut(ObjectRef)| {
                if delta.is_of::<R::Object>() {
                    wake((*delta.reference).clone());
                }
            }),
        };
        Self {
            name,
            declarations: Declarations::new().kind::<R::Object>(),
            handler: handler(None, false, true),
            triggers: vec![own],
            externals: Vec::new(),
            first: Vec::new(),
            options: Options::new(name),
            object: Some(ObjectOptions {
                kind: R::Object::kind(),
                finalizer: None,
                while_deleting: false,
                guarded: true,
                handler: Box::new(handler),
            }),
        }
    }

    /// Woken for the owner by every change of a `C` that names it as an owner.
    pub fn owns<C: Resource>(self) -> Self {
        let Some(owner) = self.object.as_ref().map(|object| object.kind) else { return self };
        let map = move |delta: &Delta, _: &Snapshot, wake: &mut dyn FnMut(ObjectRef)| {
            for object in [delta.old::<C>(), delta.new::<C>()].into_iter().flatten() {
                let meta = object.meta();
                for reference in meta.owner_references.iter().filter(|reference| is_kind(reference, owner)) {
                    let namespace = if owner.scope == Scope::Cluster { "" } else { &meta.namespace };
                    wake(ObjectRef::new(namespace, &reference.name));
                }
            }
        };
        self.trigger::<C>(map)
    }

    /// Puts this name among the finalizers of every object before anything is done for it, calls
    /// [`Reconciler::cleanup`] when the object is being deleted, and takes the name away once that is done.
    pub fn finalizer(mut self, name: &str) -> Self {
        if let Some(object) = &mut self.object {
            object.finalizer = Some(name.into());
        }
        self.with_handler()
    }

    /// Also calls [`Reconciler::reconcile`] for objects that are being deleted and have no finalizer of this
    /// controller (any more).
    pub fn reconciles_deleting(mut self) -> Self {
        if let Some(object) = &mut self.object {
            object.while_deleting = true;
        }
        self.with_handler()
    }

    /// Commits do not demand that the run's own object is still the observed one. For objects that change faster than
    /// a run takes, by a controller whose every write is safe on behalf of an older version of its object.
    pub fn unguarded(mut self) -> Self {
        if let Some(object) = &mut self.object {
            object.guarded = false;
        }
        self.with_handler()
    }

    /// Only those objects of the controller's own kind that are selected.
    pub fn selected<R: Reconciler>(mut self, selection: Selection) -> Self {
        self.declarations = Declarations::new().selection::<R::Object>(selection);
        self
    }

    fn with_handler(mut self) -> Self {
        if let Some(object) = &self.object {
            self.handler = (object.handler)(object.finalizer.clone(), object.while_deleting, object.guarded);
        }
        self
    }
}

fn is_kind(reference: &reconciler_api::OwnerReference, kind: &reconciler_api::Kind) -> bool {
    reference.kind == kind.kind && reference.api_version.split('/').next() == Some(&*kind.group)
}

impl Controller<Singleton> {
    /// A controller of one thing. It runs once at the start, and whenever what it watches changes.
    pub fn singleton<R: KeyReconciler<Key = Singleton>>(name: &'static str, reconciler: R) -> Self {
        let mut controller = Self::keyed(name, reconciler);
        controller.first.push(Singleton);
        controller
    }

    /// Woken by every change of a kind.
    pub fn watches_all<O: Resource>(self) -> Self {
        self.watches::<O, _>(|_, _| [Singleton])
    }
}

impl<K: Key> Controller<K> {
    /// A controller whose keys are not objects: what it is called for is what its watches map changes to.
    pub fn keyed<R: KeyReconciler<Key = K>>(name: &'static str, reconciler: R) -> Self {
        Self {
            name,
            declarations: Declarations::new(),
            handler: Arc::new(KeyHandler { reconciler: Arc::new(reconciler) }),
            triggers: Vec::new(),
            externals: Vec::new(),
            first: Vec::new(),
            options: Options::new(name),
            object: None,
        }
    }

    /// Woken by every change of an `O`, for the keys that `map` names. It is asked about what stood before and what
    /// stands now, so that a thing that moves wakes both places; it may look things up in the snapshot.
    pub fn watches<O: Resource, I: IntoIterator<Item = K>>(
        self,
        map: impl Fn(&O, &Snapshot) -> I + Send + Sync + 'static,
    ) -> Self {
        self.trigger::<O>(move |delta, snapshot, wake| {
            for object in [delta.old::<O>(), delta.new::<O>()].into_iter().flatten() {
                map(&object, snapshot).into_iter().for_each(&mut *wake);
            }
        })
    }

    /// Reads a kind without being woken by it.
    pub fn reads<O: Resource>(mut self) -> Self {
        self.declarations = self.declarations.kind::<O>();
        self
    }

    /// Reads (and watches, where that was or is asked for) only the selected objects of a kind.
    pub fn reads_selected<O: Resource>(mut self, selection: Selection) -> Self {
        self.declarations = self.declarations.selection::<O>(selection);
        self
    }

    /// Keeps an index in the snapshots, and reads its kind.
    pub fn index<I: Index>(mut self) -> Self {
        self.declarations = self.declarations.index::<I>();
        self
    }

    /// Woken by every change of a world, for the keys that `map` names; asked like in [`Controller::watches`]. Nothing
    /// runs before the world is known.
    pub fn watches_external<W: World, I: IntoIterator<Item = K>>(
        mut self,
        external: &External<W>,
        map: impl Fn(&W::Key, &W::Item) -> I + Send + Sync + 'static,
    ) -> Self {
        let map =
            move |key: &W::Key, item: &W::Item, wake: &mut dyn FnMut(K)| map(key, item).into_iter().for_each(wake);
        self.externals.push(Arc::new(WatchedExternal { external: external.clone(), map: Arc::new(map) }));
        self
    }

    /// How many keys are worked on at once. Default 8.
    pub fn concurrency(mut self, workers: usize) -> Self {
        self.options.concurrency = workers.max(1);
        self
    }

    /// How long one run may take before it is cut off and counted as failed. Default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// A key runs again although it is not known whether a commit of its last run happened, because nobody answered. By
    /// default it waits until that is known. For a node that must go on while nobody can be reached: all that it writes
    /// demands what it saw, and what it does elsewhere does not follow from what it has written.
    pub fn goes_on_uncertain(mut self) -> Self {
        self.options.certain = false;
        self
    }

    /// How failing keys are repeated. Default 5 ms, doubled up to a minute.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.options.backoff = backoff;
        self
    }

    /// In whose name the controller writes. Default `controller:<name>`.
    pub fn writer(mut self, writer: Writer) -> Self {
        self.options.writer = writer;
        self
    }

    /// The kind is declared as a whole, unless a selection of it was declared before.
    fn trigger<O: Resource>(
        mut self,
        map: impl Fn(&Delta, &Snapshot, &mut dyn FnMut(K)) + Send + Sync + 'static,
    ) -> Self {
        self.declarations = self.declarations.kind_or_selection::<O>();
        self.triggers.push(Trigger { source: &O::kind().kind, primary: false, map: Arc::new(map) });
        self
    }
}

impl Options {
    fn new(name: &str) -> Self {
        Self {
            concurrency: CONCURRENCY,
            timeout: TIMEOUT,
            backoff: BACKOFF,
            patience: PATIENCE,
            certain: true,
            writer: Writer::controller(name),
        }
    }
}

/// A world that wakes a controller, whose type only the map knows.
pub(super) trait Watched<K>: Send + Sync {
    fn external(&self) -> Arc<dyn AnyExternal>;
    /// Wakes for everything that is known now and all that changes later, until the answer is dropped.
    fn connect(&self, queue: &Queue<K>) -> Box<dyn Send + Sync>;
}

struct WatchedExternal<W: World, K> {
    external: External<W>,
    map: Arc<ExternalMap<W, K>>,
}

type ExternalMap<W, K> = dyn Fn(&<W as World>::Key, &<W as World>::Item, &mut dyn FnMut(K)) + Send + Sync;

impl<W: World, K: Key> Watched<K> for WatchedExternal<W, K> {
    fn external(&self) -> Arc<dyn AnyExternal> {
        Arc::new(self.external.clone())
    }

    fn connect(&self, queue: &Queue<K>) -> Box<dyn Send + Sync> {
        let hurried = queue.clone();
        let (queue, map, source) = (queue.clone(), self.map.clone(), self.external.name());
        let wake = move |key: &W::Key, item: &W::Item, priority| {
            map(key, item, &mut |key| queue.add(key, priority, Reason::new(source)));
        };
        let on_change = wake.clone();
        let subscriber: Arc<dyn Fn(&Known<W>, &[Difference<'_, W::Key, W::Item>]) + Send + Sync> =
            Arc::new(move |_, differences| {
                for difference in differences {
                    for item in [difference.old, difference.new].into_iter().flatten() {
                        on_change(difference.key, item, Priority::Normal);
                    }
                }
            });
        if let Some(known) = self.external.subscribe(&subscriber) {
            known.iter().for_each(|(key, item)| wake(key, item, Priority::Background));
        }
        // What failed while the world was away differs in nothing that could be told once it is back.
        let recovery: Arc<dyn Fn() + Send + Sync> = Arc::new(move || hurried.hurry());
        self.external.on_recovery(&recovery);
        Box::new((subscriber, recovery))
    }
}

impl<K: Key> fmt::Debug for Controller<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Controller {}", self.name)
    }
}
