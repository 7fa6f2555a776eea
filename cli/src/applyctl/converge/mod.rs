//! Waiting for what was asked, and saying meanwhile how far it is: `deploy`, `scale`, `service create` and `wait`.
//!
//! One stream tells of the bundle, its services and its tasks at one version; [`progress`] judges, [`view`] draws. It
//! ends when everything is up and has been for a moment, when something cannot come up as things are, or when the
//! time is over. Leaving changes nothing: the cluster goes on by itself.

pub mod progress;
pub mod view;
pub mod world;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use reconciler::objects::{Error, Event, Start, Stored, Stream};
use reconciler::seams::Monotonic;

use super::failure::{Exit, Failure};
use super::session::Session;
use progress::{Progress, TroubleKind, look};
use world::World;

/// What shall come true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The bundle is up, as of this generation of it.
    Bundle { name: String, generation: i64 },
    /// Each of these services is up, as of this generation of it.
    Services(BTreeMap<String, i64>),
}

impl Goal {
    /// What it is called in a line.
    pub fn title(&self) -> String {
        match self {
            Self::Bundle { name, .. } => name.clone(),
            Self::Services(services) => services.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        }
    }
}

/// When one thing cannot come up, the others still get so long to show how they are.
const OTHERS: Duration = Duration::from_secs(5);
/// Between two tries to reach a daemon that went away.
const AGAIN: Duration = Duration::from_millis(500);
/// A terminal is redrawn no faster.
const FRAME: Duration = Duration::from_millis(80);

/// Waits until the goal is reached; answers how far it is then.
///
/// # Errors
/// [`Exit::NotConverged`] with the reasons once it cannot be reached as things are, or the time is over.
pub async fn until_up(session: &mut Session, goal: &Goal, timeout: Duration) -> Result<Progress, Failure> {
    let interrupted = interrupt();
    tokio::pin!(interrupted);
    let start = session.seams.monotonic();
    let mut wait = Wait::new(goal, start, timeout);
    let mut stream: Option<Stream> = None;
    loop {
        if stream.is_none() {
            let selections = World::selections(goal, &session.namespace);
            match session.client.objects().stream(selections, Start::Now).await {
                Ok(opened) => {
                    wait.world = World::default();
                    wait.known = false;
                    stream = Some(opened);
                }
                Err(error) if wait.known_once && passes(&error) => wait.note = "   applyd is away; waiting for it",
                Err(error) => return Err(error.into()),
            }
        }
        let next = wait.next_look(session.seams.monotonic(), session.now());
        let pause = if stream.is_some() { next } else { next.min(AGAIN) };
        let event = async {
            match &mut stream {
                Some(stream) => stream.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = &mut interrupted => {
                session.screen.keep();
                let advice = match goal {
                    Goal::Bundle { name, .. } => format!("see it again: applyctl wait bundle/{name}"),
                    Goal::Services(_) => "see it again: applyctl ps".to_owned(),
                };
                return Err(Failure::new(Exit::Interrupted, "left; it goes on without you").advise(advice));
            }
            event = event => match event {
                Some(Ok(event)) => wait.take(event),
                Some(Err(error)) if !passes(&error) => return Err(error.into()),
                // It ended or broke: begin again with what stands then.
                _ => stream = None,
            },
            () = session.seams.sleep(pause) => {}
        }
        if !wait.known {
            if session.since(start) >= timeout {
                return Err(Failure::new(Exit::Unreachable, format!("applyd has been away for {timeout:?}")));
            }
            continue;
        }
        let progress = look(&wait.world, goal, session.now());
        let verdict = wait.judge(&progress, session.seams.monotonic());
        wait.show(session, &progress, verdict != Verdict::GoOn)?;
        match verdict {
            Verdict::GoOn => {}
            Verdict::Up => return Ok(progress),
            Verdict::Hopeless | Verdict::TimeOver => return Err(given_up(goal, &progress, session.since(start))),
        }
    }
}

/// Whether somebody who waits goes on waiting: the daemon is away, or lost the thread.
pub fn passes(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Expired { .. } | Error::UnknownOutcome { .. })
}

/// Resolves at the first ^C.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler ^C ends the process, which leaves the cluster as alone as we would.
        std::future::pending::<()>().await;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    GoOn,
    Up,
    Hopeless,
    TimeOver,
}

struct Wait<'a> {
    goal: &'a Goal,
    world: World,
    /// All that stood at the beginning is there.
    known: bool,
    known_once: bool,
    deadline: Monotonic,
    /// Since when each service has had the trouble that it has.
    troubled: BTreeMap<String, (TroubleKind, Monotonic)>,
    /// Since when something has been hopeless.
    hopeless: Option<Monotonic>,
    up: Option<Monotonic>,
    journal: view::Journal,
    drawn: Option<Monotonic>,
    note: &'static str,
}

impl<'a> Wait<'a> {
    fn new(goal: &'a Goal, start: Monotonic, timeout: Duration) -> Self {
        Self {
            goal,
            world: World::default(),
            known: false,
            known_once: false,
            deadline: start + timeout,
            troubled: BTreeMap::new(),
            hopeless: None,
            up: None,
            journal: view::Journal::default(),
            drawn: None,
            note: "",
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Initial(items) => items.iter().for_each(|stored| self.world.put(stored)),
            Event::InitialDone { .. } => {
                self.known = true;
                self.known_once = true;
                self.note = "";
            }
            Event::Batch { changes, .. } => changes.iter().for_each(|change| self.world.change(change)),
        }
    }

    /// How long nothing need be looked at, if nothing happens.
    fn next_look(&self, now: Monotonic, wall: reconciler::Timestamp) -> Duration {
        let mut next = self.deadline.since(now).min(Duration::from_secs(1));
        if self.known && self.up.is_some() {
            let progress = look(&self.world, self.goal, wall);
            next = next.min(progress.settles_at.map_or(Duration::ZERO, |at| at.since(wall)));
        }
        next.max(Duration::from_millis(1))
    }

    fn judge(&mut self, progress: &Progress, now: Monotonic) -> Verdict {
        if progress.up {
            let since = *self.up.get_or_insert(now);
            // A clock that goes wrong elsewhere keeps nobody waiting for longer than the longest settling.
            let waited = now.since(since) >= Duration::from_secs(5);
            return match progress.settles_at {
                None => Verdict::Up,
                Some(_) if waited => Verdict::Up,
                Some(_) if now >= self.deadline => Verdict::TimeOver,
                Some(_) => Verdict::GoOn,
            };
        }
        self.up = None;
        let whole = progress.problem.iter().map(|problem| (String::new(), problem.kind));
        let parts = progress.lines.iter().filter_map(|line| Some((line.name.clone(), line.trouble.as_ref()?.kind)));
        let troubles: BTreeMap<String, TroubleKind> = whole.chain(parts).collect();
        self.troubled.retain(|name, (kind, _)| troubles.get(name) == Some(kind));
        let mut hopeless = 0;
        for (name, kind) in &troubles {
            let (_, since) = self.troubled.entry(name.clone()).or_insert((*kind, now));
            if kind.patience().is_some_and(|patience| now.since(*since) >= patience) {
                hopeless += 1;
            }
        }
        if hopeless == 0 {
            self.hopeless = None;
        } else {
            let since = *self.hopeless.get_or_insert(now);
            let others =
                progress.lines.iter().filter(|line| !line.up).count() + usize::from(progress.problem.is_some());
            if hopeless >= others || now.since(since) >= OTHERS {
                return Verdict::Hopeless;
            }
        }
        if now >= self.deadline { Verdict::TimeOver } else { Verdict::GoOn }
    }

    fn show(&mut self, session: &mut Session, progress: &Progress, last: bool) -> Result<(), Failure> {
        if session.screen.quiet {
            return Ok(());
        }
        if session.screen.width.is_none() {
            for line in self.journal.news(progress) {
                session.screen.say(&line)?;
            }
            return Ok(());
        }
        let now = session.seams.monotonic();
        if last || self.drawn.is_none_or(|drawn| now.since(drawn) >= FRAME) {
            self.drawn = Some(now);
            let block = view::block(&self.goal.title(), progress, self.note, session.screen.color);
            session.screen.redraw(&block)?;
            if last {
                session.screen.keep();
            }
        }
        Ok(())
    }
}

/// Why it did not come up, and what to type next.
fn given_up(goal: &Goal, progress: &Progress, took: Duration) -> Failure {
    let mut reasons: Vec<String> = Vec::new();
    reasons.extend(progress.problem.iter().map(|problem| problem.message.clone()));
    let late: Vec<_> = progress.lines.iter().filter(|line| !line.up).collect();
    for line in &late {
        let why = if line.why().is_empty() { line.state.as_str() } else { line.why() };
        let told = reasons.iter().any(|reason| reason.contains(why));
        if !told {
            reasons.push(format!("{}: {why}", line.name));
        }
    }
    let names: Vec<&str> = late.iter().map(|line| line.name.as_str()).collect();
    let names = match names[..] {
        // A container that ends at once has run for a moment, too.
        [] if progress.up => format!("{}, which has only just begun to run", goal.title()),
        [] => goal.title(),
        _ => names.join(", "),
    };
    let mut message = format!("not up after {}: {names}", super::words::fine(took));
    reasons.iter().for_each(|reason| message.push_str(&format!("\n  {reason}")));
    let failure = Failure::new(Exit::NotConverged, message);
    match (late.first(), goal) {
        (Some(line), _) => failure.advise(format!("see: applyctl describe service {}", line.service)),
        (None, Goal::Bundle { name, .. }) => failure.advise(format!("see: applyctl describe bundle {name}")),
        (None, Goal::Services(_)) => failure,
    }
}

/// Waits until none of these incarnations is left.
///
/// # Errors
/// [`Exit::NotConverged`] with those that are left when the time is over.
pub async fn until_gone(session: &mut Session, targets: &[Stored], timeout: Duration) -> Result<(), Failure> {
    let start = session.seams.monotonic();
    let mut left: Vec<&Stored> = targets.iter().collect();
    let mut pause = Duration::from_millis(20);
    let interrupted = interrupt();
    tokio::pin!(interrupted);
    loop {
        let mut still = Vec::new();
        for target in left {
            match session.client.objects().get(&target.kind, &target.reference).await {
                Ok(stored) if uid(&stored) == uid(target) => still.push(target),
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) if passes(&error) => still.push(target),
                Err(error) => return Err(error.into()),
            }
        }
        left = still;
        if left.is_empty() {
            return Ok(());
        }
        let waited = session.since(start);
        let names: Vec<String> =
            left.iter().map(|target| format!("{}/{}", target.kind.singular, target.reference.name)).collect();
        if waited >= timeout {
            let failure = Failure::new(
                Exit::NotConverged,
                format!("still there after {}: {}", super::words::fine(waited), names.join(", ")),
            );
            return Err(failure.advise(format!("see: applyctl describe {}", names[0])));
        }
        tokio::select! {
            biased;
            () = &mut interrupted => {
                return Err(Failure::new(Exit::Interrupted, format!("left; still going: {}", names.join(", "))));
            }
            () = session.seams.sleep(pause.min(timeout.saturating_sub(waited))) => {}
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

fn uid(stored: &Stored) -> Option<String> {
    stored.to_value().ok()?["metadata"]["uid"].as_str().map(str::to_owned)
}
