//! All controllers of one process, over one cache.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::cache::{Cache, Declarations};
use crate::events::{EventKind, Recorder};
use crate::external::{AnyExternal, External, World};
use crate::leadership::{Election, LeaseKind};
use crate::metrics::Metrics;
use crate::objects::{Client, Objects, Term, Writer};
use crate::queue::Key;
use crate::seams::{Seams, TaskHandle};

use super::builder::Controller;
use super::planted::Bugs;
#[cfg(feature = "sim")]
use super::planted::Planted;
use super::runner::{AnyController, Surroundings};
use super::signal::Signal;

/// What runs once everything may go on after a shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(30);

/// Puts together what one process runs.
pub struct ManagerBuilder {
    objects: Arc<dyn Objects>,
    seams: Seams,
    declarations: Declarations,
    controllers: Vec<Run>,
    externals: Vec<Arc<dyn AnyExternal>>,
    events: Option<Box<dyn FnOnce(&Metrics) -> Recorder + Send>>,
    metrics: Metrics,
    drain: Duration,
    bugs: Bugs,
}

/// A controller, and where it runs under [`Manager::run_elected`].
struct Run {
    controller: Box<dyn AnyController>,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the process that leads.
    Leader,
    /// In every process.
    Everywhere,
}

impl ManagerBuilder {
    /// Adds a controller. Under [`Manager::run_elected`] it runs while this process leads.
    pub fn controller<K: Key>(self, controller: Controller<K>) -> Self {
        self.add_controller(controller, Place::Leader)
    }

    /// Adds a controller that runs in every process, whether it leads or not, and whose commits carry no term: what a
    /// process does for the machine that it runs on. Without an election there is no difference.
    pub fn everywhere<K: Key>(self, controller: Controller<K>) -> Self {
        self.add_controller(controller, Place::Everywhere)
    }

    fn add_controller<K: Key>(mut self, controller: Controller<K>, place: Place) -> Self {
        let controller = Arc::new(controller);
        self.declarations.merge(&controller.declarations);
        for external in controller.externals() {
            self = self.add_external(external);
        }
        self.controllers.push(Run { controller: Box::new(controller), place });
        self
    }

    /// Keeps more in the cache than the controllers ask for.
    pub fn declares(mut self, declarations: &Declarations) -> Self {
        self.declarations.merge(declarations);
        self
    }

    /// Looks at a world that no controller watches.
    pub fn external<W: World>(self, external: &External<W>) -> Self {
        self.add_external(Arc::new(external.clone()))
    }

    /// Writes the events of all controllers as objects of kind `E`. Without this they are dropped.
    pub fn events<E: EventKind>(mut self, writer: Writer) -> Self {
        let (objects, seams) = (self.objects.clone(), self.seams.clone());
        self.events = Some(Box::new(move |metrics| {
            Recorder::new::<E>(Client::new(objects, writer), seams, metrics.events_dropped())
        }));
        self
    }

    /// Counts into these numbers instead of own ones.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// How long running work may go on after a shutdown was asked for. Default 30 s.
    pub fn drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    #[doc(hidden)]
    #[cfg(feature = "sim")]
    pub fn planted(mut self, bugs: &[Planted]) -> Self {
        self.bugs.plant(bugs);
        self
    }

    /// The manager, at rest until it is run.
    pub fn build(self) -> Manager {
        let cache = Cache::new(self.objects.clone(), self.seams.clone(), &self.declarations);
        let cache = cache.with_bugs(&self.bugs);
        let events = self.events.map(|make| make(&self.metrics));
        let (sampled, metrics) = (cache.clone(), self.metrics.of_cache());
        self.metrics.sample(move || {
            let version = sampled.snapshot().map_or(0, |snapshot| snapshot.resource_version().0);
            metrics.set(&sampled.health(), version);
        });
        for external in &self.externals {
            let (external, metrics) = (external.clone(), self.metrics.of_world(external.name()));
            self.metrics.sample(move || metrics.set(&external.health()));
        }
        Manager {
            objects: self.objects,
            seams: self.seams,
            controllers: self.controllers,
            externals: self.externals,
            events,
            metrics: self.metrics,
            drain: self.drain,
            bugs: self.bugs,
            cache,
        }
    }

    fn add_external(mut self, external: Arc<dyn AnyExternal>) -> Self {
        if !self.externals.iter().any(|known| known.identity() == external.identity()) {
            self.externals.push(external);
        }
        self
    }
}

/// The controllers of one process with everything that they share.
pub struct Manager {
    objects: Arc<dyn Objects>,
    seams: Seams,
    controllers: Vec<Run>,
    externals: Vec<Arc<dyn AnyExternal>>,
    events: Option<Recorder>,
    metrics: Metrics,
    drain: Duration,
    cache: Cache,
    bugs: Bugs,
}

impl Manager {
    /// Begins with no controller. `objects` is what all of them read and write.
    pub fn builder(objects: Arc<dyn Objects>, seams: Seams) -> ManagerBuilder {
        ManagerBuilder {
            objects,
            seams,
            declarations: Declarations::new(),
            controllers: Vec::new(),
            externals: Vec::new(),
            events: None,
            metrics: Metrics::new(),
            drain: DRAIN,
            bugs: Bugs::default(),
        }
    }

    /// The cache that all controllers read.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The numbers that are counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The same, with controllers that run only while this process leads, and whose every commit happens only while it
    /// does, [those apart](ManagerBuilder::everywhere) that run everywhere. What the controllers know is kept up to date
    /// all the time, so that a successor begins at once.
    pub async fn run_elected<L: LeaseKind>(&self, election: &Election<L>, shutdown: impl Future<Output = ()>) {
        let _shared = self.shared_tasks();
        let mut shutdown = std::pin::pin!(shutdown);
        self.metrics.leading(election.name(), false);
        let always = self.surroundings(None);
        let everywhere = self.start(&always, |place| place == Place::Everywhere);
        loop {
            let leading = tokio::select! {
                biased;
                () = shutdown.as_mut() => {
                    always.shutdown.raise();
                    join_all(everywhere.into_iter().map(TaskHandle::join)).await;
                    return;
                }
                leading = election.campaign() => leading,
            };
            self.metrics.leading(election.name(), true);
            let surroundings = self.surroundings(Some(leading.term().clone()));
            let controllers = self.start(&surroundings, |place| place == Place::Leader);
            tokio::select! {
                biased;
                () = shutdown.as_mut() => {
                    surroundings.shutdown.raise();
                    always.shutdown.raise();
                    join_all(controllers.into_iter().chain(everywhere).map(TaskHandle::join)).await;
                    leading.resign().await;
                    self.metrics.leading(election.name(), false);
                    return;
                }
                () = surroundings.fenced.raised() => {}
                () = leading.lost() => {}
            }
            // Dropped, not drained: what still runs could write nothing any more.
            drop(controllers);
            self.metrics.leading(election.name(), false);
        }
    }

    /// Runs [what runs everywhere](ManagerBuilder::everywhere), and nothing that only a leader does, until `shutdown` resolves:
    /// for a process that may not lead, among others that may.
    pub async fn run_everywhere(&self, shutdown: impl Future<Output = ()>) {
        self.run_those(|place| place == Place::Everywhere, shutdown).await;
    }

    /// Runs everything until `shutdown` resolves and what was running has ended, at most the drain time later.
    /// Dropping the future ends everything at once, which is as safe as a crash.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        self.run_those(|_| true, shutdown).await;
    }

    async fn run_those(&self, which: impl Fn(Place) -> bool, shutdown: impl Future<Output = ()>) {
        let _shared = self.shared_tasks();
        let surroundings = self.surroundings(None);
        let controllers = self.start(&surroundings, which);
        shutdown.await;
        surroundings.shutdown.raise();
        join_all(controllers.into_iter().map(TaskHandle::join)).await;
    }

    fn surroundings(&self, fence: Option<Term>) -> Surroundings {
        Surroundings {
            objects: self.objects.clone(),
            seams: self.seams.clone(),
            cache: self.cache.clone(),
            metrics: self.metrics.clone(),
            events: self.events.clone(),
            fence,
            fenced: Signal::new(),
            shutdown: Signal::new(),
            drain: self.drain,
            bugs: self.bugs.clone(),
        }
    }

    /// What runs whether this process leads or not.
    fn shared_tasks(&self) -> Vec<TaskHandle> {
        let mut tasks = Vec::new();
        let cache = self.cache.clone();
        tasks.push(self.seams.spawn("cache", async move { cache.run().await }));
        for external in &self.externals {
            let external = external.clone();
            tasks.push(self.seams.spawn(external.name(), async move { external.look().await }));
        }
        if let Some(events) = self.events.clone() {
            tasks.push(self.seams.spawn("events", async move { events.run().await }));
        }
        tasks
    }

    fn start(&self, surroundings: &Surroundings, runs: impl Fn(Place) -> bool) -> Vec<TaskHandle> {
        let start = |run: &Run| self.seams.spawn(run.controller.name(), run.controller.run(surroundings.clone()));
        self.controllers.iter().filter(|run| runs(run.place)).map(start).collect()
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.controllers.iter().map(|run| run.controller.name());
        f.debug_struct("Manager").field("controllers", &names.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}
