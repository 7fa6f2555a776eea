//! What is simulated: kinds, processes, a workload, and what is promised of them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use reconciler_api::Resource;

use crate::cache::{Declarations, Snapshot};
use crate::controller::{Controller, Manager};
use crate::objects::Kinds;
use crate::queue::Key;

use super::faults::Fault;
use super::process::{Drift, Env, User};
use super::server::{Invariant, View};

/// The setting of a simulation. Built anew for every run, so that what its closures hold begins anew as well.
pub struct Scene {
    pub(super) kinds: Kinds,
    pub(super) declarations: Declarations,
    pub(super) processes: Vec<(String, Boot)>,
    pub(super) workload: Option<Workload>,
    pub(super) invariants: Vec<(String, Invariant)>,
    pub(super) settles: Vec<(String, Settled)>,
    pub(super) drifts: Vec<(String, Drift)>,
    pub(super) without: BTreeSet<Fault>,
    pub(super) within: Duration,
    pub(super) quiet: Duration,
    pub(super) tolerates_panics: bool,
    pub(super) may_write: Vec<String>,
}

pub(super) type Boot = Arc<dyn Fn(Env) -> BoxFuture<'static, ()> + Send + Sync>;
pub(super) type Workload = Box<dyn FnOnce(User) -> BoxFuture<'static, ()> + Send>;
pub(super) type Settled = Box<dyn Fn(&Snapshot) -> Result<(), String> + Send + Sync>;

/// How long things may take to settle once faults have ended: longer than the longest back-off, twice.
const WITHIN: Duration = Duration::from_secs(180);
/// How long there must be no write once things have settled, and again after a restart of everything.
const QUIET: Duration = Duration::from_secs(120);

impl Scene {
    pub(super) fn new() -> Self {
        Self {
            kinds: Kinds::new(),
            declarations: Declarations::new(),
            processes: Vec::new(),
            workload: None,
            invariants: Vec::new(),
            settles: Vec::new(),
            drifts: Vec::new(),
            without: BTreeSet::new(),
            within: WITHIN,
            quiet: QUIET,
            tolerates_panics: false,
            may_write: Vec::new(),
        }
    }

    /// A kind that exists, with its own validation.
    pub fn kind<T: Resource>(mut self) -> Self {
        self.kinds = self.kinds.with_unexplained::<T>();
        self.declarations = self.declarations.kind::<T>();
        self
    }

    /// The same for leases: what stands at the JSON pointer says who holds one.
    pub fn lease<T: Resource>(mut self, holder: &'static str) -> Self {
        self = self.kind::<T>();
        self.kinds = self.kinds.with_terms(T::kind(), holder);
        self
    }

    /// A process. `boot` is called again whenever it was crashed, and its future is all that there is of it.
    pub fn process<F>(mut self, name: &str, boot: impl Fn(Env) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.processes.push((name.to_owned(), Arc::new(move |env| boot(env).boxed())));
        self
    }

    /// A process that runs one controller.
    pub fn controller<K: Key>(self, make: impl Fn(&Env) -> Controller<K> + Send + Sync + 'static) -> Self {
        let name = format!("controller {}", self.processes.len() + 1);
        self.process(&name, move |env: Env| {
            let controller = make(&env);
            let manager = Manager::builder(env.objects, env.seams).controller(controller).build();
            async move { manager.run(std::future::pending()).await }
        })
    }

    /// What the user does, step by step; call [`User::pause`] between the steps.
    pub fn workload<F>(mut self, steps: impl FnOnce(User) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.workload = Some(Box::new(move |user| steps(user).boxed()));
        self
    }

    /// What must hold after every commit and every effect; an error says what is wrong.
    pub fn invariant(
        mut self,
        name: &str,
        holds: impl Fn(&View<'_>) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.invariants.push((name.to_owned(), Box::new(holds)));
        self
    }

    /// What must come true once the workload and the faults have ended, and stay true without a further write.
    pub fn settles(
        mut self,
        name: &str,
        holds: impl Fn(&Snapshot) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.settles.push((name.to_owned(), Box::new(holds)));
        self
    }

    /// How long settling may take, in simulated time. Default 3 min.
    pub fn settles_within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// How long there must be no write after that. Default 2 min.
    pub fn quiet_for(mut self, quiet: Duration) -> Self {
        self.quiet = quiet;
        self
    }

    /// Something that the outside world may do by itself.
    pub fn drift(mut self, name: &str, drift: impl Fn() + Send + Sync + 'static) -> Self {
        self.drifts.push((name.to_owned(), Box::new(drift)));
        self
    }

    /// A fault that cannot happen to what is simulated, or that it does not claim to survive.
    pub fn without(mut self, fault: Fault) -> Self {
        self.without.insert(fault);
        self
    }

    /// A panic in a reconcile is not a failure of the simulation.
    pub fn tolerates_panics(mut self) -> Self {
        self.tolerates_panics = true;
        self
    }

    /// Writes by this field manager are no sign of unrest: it renews something for ever.
    pub fn may_write(mut self, manager: &str) -> Self {
        self.may_write.push(manager.to_owned());
        self
    }
}

impl fmt::Debug for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.processes.iter().map(|(name, _)| name).collect();
        f.debug_struct("Scene").field("processes", &names).finish_non_exhaustive()
    }
}
