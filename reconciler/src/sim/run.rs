//! One run: boot, let the user work while things go wrong, calm down, see whether it settles.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use crate::objects::Client;

use super::choices::{Chooser, Mix, Point, Script};
use super::executor::{Lane, Step};
use super::faults::Fired;
use super::process::{Calls, Env, User};
use super::scene::{Boot, Scene};
use super::server::{Server, Trouble};
use super::universe::{Broken, NOBODY, USER, Universe};

/// What a run is made from.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub script: Script,
    pub swarm: Option<(Mix, u64)>,
    /// Somebody will read the story.
    pub told: bool,
}

/// What a run has shown.
#[derive(Debug)]
pub(super) struct Ran {
    pub broken: Option<Broken>,
    /// Every unusual choice that was made.
    pub script: Script,
    pub counts: BTreeMap<(Point, Lane), u32>,
    pub fired: Fired,
    pub contents: BTreeSet<u64>,
    /// Until faults ended.
    pub reconciles: u64,
    pub commits: u64,
    pub simulated: Duration,
    pub story: Vec<String>,
    /// Differs when anything went differently.
    pub fingerprint: u64,
}

/// Faults go on for so long after the last step of the workload.
const AFTERMATH: Duration = Duration::from_secs(10);
/// A run that takes more steps than this will not come to rest.
const STEPS: u64 = 50_000;
/// Simulated time that a workload may take.
const WORKLOAD: Duration = Duration::from_secs(4 * 3600);

pub(super) fn run(build: &dyn Fn(Scene) -> Scene, plan: Plan) -> Ran {
    let scene = build(Scene::new());
    let names = ["the simulation".to_owned(), "the user".to_owned()];
    let names = names.into_iter().chain(scene.processes.iter().map(|(name, _)| name.clone())).collect();
    let chooser = Chooser::new(plan.script, plan.swarm);
    let universe = Universe::new(chooser, scene.without, names, plan.told);
    let server = Server::new(universe.clone(), scene.kinds, &scene.declarations, scene.invariants, scene.may_write);
    let mut driver = Driver {
        processes: processes(scene.processes),
        server: server.clone(),
        universe: universe.clone(),
        steps: 0,
        reconciles: 0,
        tolerates_panics: scene.tolerates_panics,
        quiet: scene.quiet,
        fingerprint: 0,
    };
    driver.boot_all();
    let done = Arc::new(AtomicBool::new(scene.workload.is_none()));
    if let Some(workload) = scene.workload {
        let user = User {
            universe: universe.clone(),
            server: server.clone(),
            client: Client::new(server.client_of(USER, Trouble::Never), User::writer()),
            drifts: Arc::new(scene.drifts),
            skews: Arc::new(driver.processes.iter().map(|(lane, process)| (*lane, process.skew.clone())).collect()),
        };
        let ended = done.clone();
        let steps = Box::pin(async move {
            workload(user).await;
            ended.store(true, Ordering::Relaxed);
        });
        std::mem::forget(universe.machine.spawn(USER, "workload", steps));
    }
    driver.play(&done);
    driver.settle(&scene.settles, scene.within);
    let ran = driver.report();
    universe.machine.clear();
    server.forget_wakers();
    ran
}

struct Process {
    boot: Boot,
    incarnation: u32,
    skew: Arc<AtomicI64>,
}

fn processes(defined: Vec<(String, Boot)>) -> BTreeMap<Lane, Process> {
    let lanes = USER + 1..;
    lanes.zip(defined).map(|(lane, (_, boot))| (lane, Process { boot, incarnation: 0, skew: Arc::default() })).collect()
}

struct Driver {
    processes: BTreeMap<Lane, Process>,
    server: Arc<Server>,
    universe: Universe,
    steps: u64,
    reconciles: u64,
    tolerates_panics: bool,
    quiet: Duration,
    fingerprint: u64,
}

impl Driver {
    fn boot_all(&mut self) {
        for lane in self.processes.keys().copied().collect::<Vec<_>>() {
            self.boot(lane);
        }
    }

    fn boot(&mut self, lane: Lane) {
        let Some(process) = self.processes.get_mut(&lane) else { return };
        let seed = (u64::from(lane) << 32) | u64::from(process.incarnation);
        let env = Env {
            objects: self.server.client_of(lane, Trouble::Expected),
            seams: self.universe.machine.seams(lane, seed, process.skew.clone()),
            calls: Calls { universe: self.universe.clone(), server: self.server.clone(), lane },
            incarnation: process.incarnation,
        };
        process.incarnation += 1;
        self.universe.tell(|| format!("{} starts", self.universe.name(lane)));
        // The process is its tasks; nobody holds a handle on the first one.
        std::mem::forget(self.universe.machine.spawn(lane, "main", (process.boot)(env)));
    }

    /// The workload, with faults.
    fn play(&mut self, done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) && !self.universe.is_broken() {
            if !self.advance(WORKLOAD) {
                self.universe.broke("the workload ends", format!("it has not after {WORKLOAD:?} of simulated time"));
            }
        }
        let until = self.universe.machine.now() + AFTERMATH;
        while !self.universe.is_broken() && self.advance(until) {}
        self.universe.machine.pass_to(until);
    }

    fn settle(&mut self, settles: &[(String, super::scene::Settled)], within: Duration) {
        if self.universe.is_broken() {
            return;
        }
        self.universe.tell(|| "faults have ended".to_owned());
        self.universe.calm_down();
        self.reconciles = self.universe.machine.reconciles();
        self.run_for(within);
        let snapshot = self.server.snapshot();
        for (name, holds) in settles {
            if let Err(detail) = holds(&snapshot) {
                self.universe.broke(name, format!("{detail} (after {within:?} without faults)"));
            }
        }
        self.server.forget_writers();
        self.run_for(self.quiet);
        self.at_rest("without a cause");
        // What is right needs nothing done, also in the eyes of somebody who knows nothing of how it came about.
        self.universe.tell(|| "everything is started again".to_owned());
        for lane in self.processes.keys().copied().collect::<Vec<_>>() {
            self.universe.machine.kill(lane);
            self.boot(lane);
        }
        self.run_for(self.quiet);
        self.at_rest("after nothing but a restart");
    }

    fn at_rest(&self, when: &str) {
        let (who, last) = (self.last_writers(), self.server.last_write());
        if who.is_empty() {
            return;
        }
        let quiet = self.quiet;
        self.universe.broke("it comes to rest", format!("writes {when}: {who} in {quiet:?}; the last: {last}"));
    }

    fn run_for(&mut self, duration: Duration) {
        let until = self.universe.machine.now() + duration;
        while !self.universe.is_broken() && self.advance(until) {}
        self.universe.machine.pass_to(until);
    }

    /// One step; false when nothing happens before `until`.
    fn advance(&mut self, until: Duration) -> bool {
        self.steps += 1;
        if self.steps > STEPS {
            self.universe
                .broke("it comes to rest", format!("{STEPS} steps, and no end; writes: {}", self.last_writers()));
            return false;
        }
        let step = self.universe.machine.step(until, |ready| self.universe.choose(Point::Run, NOBODY, ready));
        if let Some(panic) = self.universe.machine.take_panic()
            && !self.tolerates_panics
        {
            self.universe.broke("nothing panics", panic);
        }
        match step {
            Step::Ran => true,
            Step::Boots(lane) => {
                self.boot(lane);
                true
            }
            Step::Waits | Step::Still => false,
        }
    }

    fn last_writers(&self) -> String {
        let writers = self.server.writers();
        writers.iter().map(|(manager, count)| format!("{count} by {manager}")).collect::<Vec<_>>().join(", ")
    }

    fn report(&mut self) -> Ran {
        let (script, counts) = self.universe.with_chooser(|chooser| (chooser.made().clone(), chooser.counts().clone()));
        let contents = self.server.contents();
        let reconciles = self.reconciles;
        self.fingerprint = fingerprint(&contents, self.universe.machine.reconciles(), self.steps);
        Ran {
            broken: self.universe.broken(),
            script,
            counts,
            fired: self.universe.fired(),
            contents,
            reconciles,
            commits: self.server.writes(),
            simulated: self.universe.machine.now(),
            story: self.universe.story(),
            fingerprint: self.fingerprint,
        }
    }
}

fn fingerprint(contents: &BTreeSet<u64>, reconciles: u64, steps: u64) -> u64 {
    contents
        .iter()
        .chain([&reconciles, &steps])
        .fold(0xcbf2_9ce4_8422_2325, |hash, part| (hash ^ part).wrapping_mul(0x0000_0100_0000_01b3))
}
