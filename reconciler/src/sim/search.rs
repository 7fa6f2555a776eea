//! Many runs: in which order faults are tried, what is counted, and what a failure looks like.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::choices::{Mix, Occasion, Point, Script, Stream};
use super::executor::Lane;
use super::faults::{Fault, Fired};
use super::run::{Plan, Ran, run};
use super::scene::Scene;
use super::shrink::shrink;
use super::universe::{Broken, NOBODY, USER};

/// Begins a check: `build` sets the scene, anew for every run.
pub fn check<'a>(name: &'a str, build: impl Fn(Scene) -> Scene + 'a) -> Check<'a> {
    Check { name, build: Box::new(build), beside: None, seed: 1, share: (0, 1), reconciles: RECONCILES }
}

/// A scene that is to be run many times.
pub struct Check<'a> {
    name: &'a str,
    build: Box<dyn Fn(Scene) -> Scene + 'a>,
    beside: Option<Box<dyn Fn(Scene) -> Scene + 'a>>,
    seed: u64,
    share: (usize, usize),
    reconciles: u64,
}

/// A run with fewer reconciles than this shows nothing.
const RECONCILES: u64 = 20;
/// So many lines of a long story are told from its beginning, and as many from its end.
const TOLD: usize = 200;
/// Every so many random runs one is run twice: the same choices must lead to the same run.
const TWICE: usize = 16;

/// What many runs have shown.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The name of the check.
    pub name: String,
    /// Runs that were long enough and in which something went wrong.
    pub schedules: usize,
    /// Runs with one or two chosen faults, and with random ones.
    pub systematic: usize,
    /// Runs with random choices.
    pub random: usize,
    /// Reconciles of all runs.
    pub reconciles: u64,
    /// Commits of all runs.
    pub commits: u64,
    /// Time that passed inside all runs.
    pub simulated: Duration,
    /// How many different contents the store had.
    pub contents: usize,
    /// How often each fault fired, over all runs.
    pub fired: Fired,
}

/// A promise that broke, and how.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The name of the check.
    pub name: String,
    /// Which promise broke, and how.
    pub broken: Broken,
    /// Which run it was.
    pub schedule: usize,
    /// The choices that are needed for it.
    pub script: Script,
    /// How many there were before shrinking.
    pub before: usize,
    /// The shortest run that breaks it, one line a step.
    pub story: Vec<String>,
}

impl<'a> Check<'a> {
    /// What must pass every schedule that is tried: the same without the bug that is looked for.
    pub fn beside(mut self, right: impl Fn(Scene) -> Scene + 'a) -> Self {
        self.beside = Some(Box::new(right));
        self
    }

    /// Only the `nth` of so many shares of the schedules, counted from 0: several tests of one scene run at once, and
    /// together they are the whole.
    pub fn share(mut self, nth: usize, of: usize) -> Self {
        self.share = (nth, of.max(1));
        self
    }

    /// Another seed for the random runs. Default 1.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// A workload that is so small that a run has fewer than 20 reconciles.
    pub fn at_least_reconciles(mut self, reconciles: u64) -> Self {
        self.reconciles = reconciles;
        self
    }

    /// So many runs that count: with at least 20 reconciles ([`Self::at_least_reconciles`]) and a fault. Others, and the
    /// one without faults, come on top.
    ///
    /// # Panics
    /// When a promise breaks, with the story and the script; when a fault that could strike never did; when the
    /// workload is too small to show anything.
    pub fn schedules(&self, schedules: usize) -> Report {
        match self.search(schedules) {
            Ok(report) => report,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// The same, with the failure as a value.
    pub fn search(&self, schedules: usize) -> Result<Report, Box<Failure>> {
        let (nth, of) = self.share;
        let name = if of == 1 { self.name.to_owned() } else { format!("{}, share {} of {of}", self.name, nth + 1) };
        let mut report = Report { name, ..Report::default() };
        let mut contents = BTreeSet::new();
        let reference = self.look(Plan::default(), &mut report, &mut contents)?;
        if reference.reconciles < self.reconciles {
            let detail = format!("{} reconciles without faults, of at least {}", reference.reconciles, self.reconciles);
            return Err(self.failure(&reference, 0, "the workload is long enough", detail));
        }
        // Two thirds for what can be said in order, the rest for what nobody thinks of; in turns, since some bugs take two
        // faults that belong together.
        let scripts = sample(systematic(&reference), schedules * 2 / 3).into_iter().skip(nth).step_by(of);
        let mut plans = scripts.map(|script| Plan { script, ..Plan::default() }).peekable();
        let schedules = schedules.div_ceil(of);
        let mut seeds = Stream::new(self.seed + nth as u64);
        while report.schedules < schedules {
            let turn = (report.systematic + report.random) % 3 < 2;
            if let Some(plan) = plans.next_if(|_| turn) {
                report.systematic += 1;
                self.look(plan, &mut report, &mut contents)?;
                continue;
            }
            if report.random > schedules * 8 {
                let detail = format!("{} of {} do", report.schedules, report.systematic + report.random);
                let promise = "enough schedules have reconciles and a fault";
                return Err(self.failure(&reference, schedules, promise, detail));
            }
            report.random += 1;
            let plan = Plan { swarm: Some((mix(&mut seeds), seeds.next())), ..Plan::default() };
            let ran = self.look(plan.clone(), &mut report, &mut contents)?;
            if report.random % TWICE == 1 && self.run(plan).fingerprint != ran.fingerprint {
                let detail = "two runs of the same choices differ: something depends on the order of a hash map, on a real clock, or on an address";
                let schedule = report.systematic + report.random;
                return Err(self.failure(&ran, schedule, "a run is determined by its choices", detail.into()));
            }
        }
        report.contents = contents.len();
        let never = never_fired(&self.build, &reference, &report.fired);
        if !never.is_empty() {
            let detail = format!("{never:?} never did, in {schedules} runs");
            return Err(self.failure(&reference, schedules, "every fault strikes", detail));
        }
        Ok(report)
    }

    /// Runs a script, such as one that a failure printed.
    ///
    /// # Panics
    /// When the text is not a script.
    pub fn replay(&self, script: &str) -> Result<Vec<String>, Box<Failure>> {
        let script: Script = script.parse().unwrap_or_else(|error| panic!("{error}"));
        let ran = self.run(Plan { script, told: true, ..Plan::default() });
        match &ran.broken {
            None => Ok(ran.story),
            Some(broken) => Err(Box::new(Failure {
                name: self.name.to_owned(),
                broken: broken.clone(),
                schedule: 0,
                before: ran.script.len(),
                script: ran.script,
                story: ran.story,
            })),
        }
    }

    /// One run that is counted and judged.
    fn look(&self, plan: Plan, report: &mut Report, contents: &mut BTreeSet<u64>) -> Result<Ran, Box<Failure>> {
        let schedule = report.systematic + report.random;
        if let Some(right) = &self.beside {
            let ran = run(&**right, plan.clone());
            if let Some(broken) = &ran.broken {
                let promise = format!("{:?}, also without the bug", broken.promise);
                return Err(self.failure(&ran, schedule, &promise, broken.detail.clone()));
            }
        }
        let ran = self.run(plan);
        report.add(&ran, contents);
        self.judge(&ran, schedule)?;
        report.schedules += usize::from(self.counts(&ran));
        Ok(ran)
    }

    /// Whether a run is one of those that were asked for.
    fn counts(&self, ran: &Ran) -> bool {
        ran.reconciles >= self.reconciles && ran.fired.disturbed()
    }

    fn run(&self, plan: Plan) -> Ran {
        run(&*self.build, plan)
    }

    /// A broken promise becomes a failure with the shortest story that was found.
    fn judge(&self, ran: &Ran, schedule: usize) -> Result<(), Box<Failure>> {
        let Some(broken) = &ran.broken else { return Ok(()) };
        let script = shrink(&*self.build, &ran.script, broken);
        if let Some(right) = &self.beside {
            let plan = Plan { script: script.clone(), ..Plan::default() };
            if let Some(broken) = run(&**right, plan).broken {
                let promise = format!("{:?}, also without the bug", broken.promise);
                return Err(self.failure(ran, schedule, &promise, broken.detail));
            }
        }
        let told = self.run(Plan { script: script.clone(), told: true, ..Plan::default() });
        Err(Box::new(Failure {
            name: self.name.to_owned(),
            broken: told.broken.unwrap_or_else(|| broken.clone()),
            schedule,
            before: ran.script.len(),
            script,
            story: told.story,
        }))
    }

    fn failure(&self, ran: &Ran, schedule: usize, promise: &str, detail: String) -> Box<Failure> {
        Box::new(Failure {
            name: self.name.to_owned(),
            broken: Broken { promise: promise.to_owned(), detail },
            schedule,
            before: ran.script.len(),
            script: ran.script.clone(),
            story: Vec::new(),
        })
    }
}

impl Report {
    fn add(&mut self, ran: &Ran, contents: &mut BTreeSet<u64>) {
        self.reconciles += ran.reconciles;
        self.commits += ran.commits;
        self.simulated += ran.simulated;
        self.fired.add(&ran.fired);
        contents.extend(&ran.contents);
    }
}

/// Every single fault at every place, dealt out by kind so that a few of each come early.
fn systematic(reference: &Ran) -> Vec<Script> {
    let mut by_kind: BTreeMap<(Fault, u8), Vec<Script>> = BTreeMap::new();
    let mut add = |fault: Fault, variant: u8, script: Script| by_kind.entry((fault, variant)).or_default().push(script);
    let one = |point, lane, ordinal, value| (Occasion { point, lane, ordinal }, value);
    for (&(point, lane), &count) in &reference.counts {
        let worth =
            matches!(point, Point::Commit | Point::Batch | Point::Call | Point::Read | Point::Pause | Point::Clock);
        for (value, fault) in (1..).zip(point.faults()).filter(|_| worth) {
            for ordinal in 0..count {
                add(*fault, 0, Script::of([one(point, lane, ordinal, value)]));
            }
        }
        match point {
            Point::Commit => {
                stale_restarts(lane, count, &mut add);
                // It dies while a commit of its own is under way, which happens when others have taken over.
                for ordinal in 1..count {
                    let slow = one(point, lane, ordinal - 1, point.answer(Fault::CommitSlow));
                    let dies = one(point, lane, ordinal, point.answer(Fault::CrashBeforeCommit));
                    add(Fault::CommitSlow, 1, Script::of([slow, dies]));
                }
            }
            // Where nothing can be late, this is one more refusal.
            Point::Call => {
                for ordinal in 0..count {
                    let refused = one(point, lane, ordinal, point.answer(Fault::CallRefused));
                    let late = one(Point::Late, lane, 0, Point::Late.answer(Fault::CallLate));
                    add(Fault::CallLate, 0, Script::of([refused, late]));
                }
            }
            Point::Open => {
                for (value, fault) in [(1, Fault::StreamRefused), (2, Fault::Compacted)] {
                    (0..count).for_each(|ordinal| add(fault, 0, Script::of([one(point, lane, ordinal, value)])));
                }
            }
            Point::Drift => {
                for (ordinal, value) in (0..count).flat_map(|ordinal| (1..=DRIFTS).map(move |value| (ordinal, value))) {
                    add(Fault::Drifted, 0, Script::of([one(point, lane, ordinal, value)]));
                }
            }
            Point::Pause => {
                let hurried = (0..count).map(|ordinal| one(point, lane, ordinal, 1));
                add(Fault::Hurried, 1, Script::of(hurried));
            }
            _ => {}
        }
    }
    deal(by_kind.into_values().collect())
}

/// Drifts that are tried one by one; a simulation rarely has more.
const DRIFTS: u32 = 4;

/// Each process, crashed after each of its commits, comes back with each earlier view, nearer ones first.
fn stale_restarts(lane: Lane, commits: u32, add: &mut impl FnMut(Fault, u8, Script)) {
    let dies = Point::Commit.answer(Fault::CrashAfterCommit);
    for back in 1..=commits {
        for ordinal in 0..commits {
            // A view of before the beginning does not exist.
            if ordinal + 2 >= back {
                let crash = (Occasion { point: Point::Commit, lane, ordinal }, dies);
                let stale = (Occasion { point: Point::Open, lane, ordinal: 1 }, 2 + back);
                add(Fault::StaleView, 0, Script::of([crash, stale]));
            }
        }
    }
    // Back before anybody noticed, and back long after.
    for (ordinal, (value, fault)) in
        (0..commits).flat_map(|ordinal| [(ordinal, (1, Fault::RestartAtOnce)), (ordinal, (2, Fault::RestartLate))])
    {
        let restart = (Occasion { point: Point::Restart, lane, ordinal: 0 }, value);
        let crash = (Occasion { point: Point::Commit, lane, ordinal }, dies);
        add(fault, 0, Script::of([crash, restart]));
    }
}

/// One of each, then another of each.
fn deal<T>(mut piles: Vec<Vec<T>>) -> Vec<T> {
    piles.iter_mut().for_each(|pile| pile.reverse());
    let mut dealt = Vec::new();
    while piles.iter().any(|pile| !pile.is_empty()) {
        dealt.extend(piles.iter_mut().filter_map(Vec::pop));
    }
    dealt
}

/// At most so many: the first half as they come, the rest spread over what is left.
fn sample(scripts: Vec<Script>, at_most: usize) -> Vec<Script> {
    if scripts.len() <= at_most {
        return scripts;
    }
    let first = at_most / 2;
    let (left, wanted) = (scripts.len() - first, at_most - first);
    let chosen: BTreeSet<usize> = (0..first).chain((0..wanted).map(|n| first + n * left / wanted.max(1))).collect();
    scripts.into_iter().enumerate().filter(|(n, _)| chosen.contains(n)).map(|(_, script)| script).collect()
}

/// How often what goes wrong in one random run: half of the points not at all.
fn mix(random: &mut Stream) -> Mix {
    let mut mix = Mix::default();
    let points: [(Point, [u32; 4]); 11] = [
        (Point::Run, [64, 128, 512, 900]),
        (Point::Commit, [16, 64, 128, 256]),
        (Point::Read, [16, 64, 256, 512]),
        (Point::Open, [64, 256, 512, 900]),
        (Point::Batch, [8, 32, 128, 256]),
        (Point::Call, [16, 64, 128, 256]),
        (Point::Late, [128, 256, 512, 768]),
        (Point::Restart, [256, 512, 512, 900]),
        (Point::Clock, [32, 64, 128, 256]),
        (Point::Pause, [256, 512, 768, 900]),
        (Point::Drift, [64, 128, 256, 512]),
    ];
    for (point, rates) in points {
        let draw = random.next();
        if draw.is_multiple_of(2) {
            mix = mix.with(point, rates[(draw >> 8) as usize % rates.len()]);
        }
    }
    mix
}

/// Faults that could have struck, judging by the run without any, and did not.
fn never_fired(build: &dyn Fn(Scene) -> Scene, reference: &Ran, fired: &Fired) -> Vec<Fault> {
    let scene = build(Scene::new());
    let points: BTreeSet<Point> = reference
        .counts
        .keys()
        .filter(|(point, lane)| match point {
            Point::Run | Point::Drift => *lane == NOBODY,
            _ => *lane >= USER,
        })
        .map(|(point, _)| *point)
        .chain([Point::Restart])
        .collect();
    let possible = points.iter().flat_map(|point| point.faults()).copied().collect::<BTreeSet<_>>();
    let drifts = !scene.drifts.is_empty();
    possible
        .into_iter()
        .filter(|fault| !scene.without.contains(fault) && fired.of(*fault) == 0)
        .filter(|fault| drifts || *fault != Fault::Drifted)
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, schedules, systematic, random, reconciles, commits, contents, .. } = self;
        writeln!(f, "{name}: {schedules} schedules with a fault, of {systematic} in order and {random} random ones")?;
        writeln!(f, "  {reconciles} reconciles, {commits} commits, {contents} different contents of the store")?;
        writeln!(f, "  {} hours of simulated time; faults that struck:", self.simulated.as_secs() / 3600)?;
        for (fault, count) in &self.fired.0 {
            writeln!(f, "    {count:>8} {fault:?}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, broken, schedule, script, before, story } = self;
        writeln!(f, "{name}: schedule {schedule} breaks \"{}\": {}", broken.promise, broken.detail)?;
        writeln!(f, "\nwhat happens ({} unusual choices, of {before} before shrinking):", script.len())?;
        let cut = story.len().saturating_sub(2 * TOLD);
        for line in story.iter().take(if cut > 0 { TOLD } else { story.len() }) {
            writeln!(f, "  {line}")?;
        }
        if cut > 0 {
            writeln!(f, "  ... {cut} lines ...")?;
            story[TOLD + cut..].iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        writeln!(f, "\nto see it again, .replay() this script:\n{script}")
    }
}

impl fmt::Debug for Check<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Check {}", self.name)
    }
}
