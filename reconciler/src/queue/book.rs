//! The queue's books: which key is where. Plain data; time and chance are passed in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use reconciler_api::ResourceVersion;

use crate::seams::Monotonic;

use super::{HEAD_START, Key, Priority, Reason};

/// How many reasons are kept a run; the rest is counted.
const REASONS_KEPT: usize = 4;
/// A failing key that something else wakes runs at most once in this time, or in its own delay where that is shorter:
/// a key that wakes itself by what it writes before it fails would not back off at all otherwise.
const FAILING_PAUSE: Duration = Duration::from_secs(1);

/// One run of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work<K> {
    /// What to run for.
    pub key: K,
    /// Failures in a row so far.
    pub failures: u32,
    /// The first few reasons.
    pub reasons: Vec<Reason>,
    /// How many reasons there were.
    pub reasons_total: u32,
    /// The highest with which it was added.
    pub priority: Priority,
    /// How long it was ready before it was taken.
    pub waited: Duration,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing more to do until something changes.
    Rest,
    /// All is well; run again after this.
    After(Duration),
    /// It failed: back off.
    Failed,
    /// It failed and knows how long to wait.
    FailedAfter(Duration),
    /// It has not run yet: what it needs to see is not known. As it was, at once.
    Again,
    /// The key stands for nothing any more: remember nothing about it.
    Gone,
}

/// How many keys are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Keys that could run now.
    pub ready: usize,
    /// Keys that run later, unless something wakes them.
    pub delayed: usize,
    /// Keys that run now.
    pub working: usize,
    /// Waiting until their own writes are seen.
    pub held: usize,
}

pub(super) struct Book<K> {
    keys: BTreeMap<K, Entry>,
    /// By source, in the order in which they are served next. A source that has nothing ready is not here.
    turns: VecDeque<&'static str>,
    ready: BTreeMap<&'static str, BTreeSet<(Rank, K)>>,
    delayed: BTreeSet<(Monotonic, K)>,
    held: BTreeSet<(ResourceVersion, K)>,
    /// What is known, as last reported.
    version: ResourceVersion,
    working: usize,
    sequence: u64,
    /// How often a key became wanted that was not wanted already.
    wanted_total: u64,
    shut: bool,
}

/// Order among the ready keys of a source: when it came (less its head start), then in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Shifted by the longest head start, so that it cannot be negative.
    came: Monotonic,
    sequence: u64,
}

#[derive(Default)]
struct Entry {
    place: Place,
    /// A delay that is armed, wherever the key is. INVARIANT: in `delayed` exactly while `place` is idle.
    due: Option<Monotonic>,
    /// An add that came while the key was being worked on or held.
    again: Option<Priority>,
    reasons: Vec<Reason>,
    reasons_total: u32,
    failures: u32,
    /// When the delay of the last failure ends; a failure before that does not count.
    served: Monotonic,
    /// Triggers do not run it before this.
    paused: Monotonic,
    /// What is remembered was of something else of that name.
    forgotten: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Neither wanted nor worked on; perhaps delayed.
    #[default]
    Idle,
    Ready {
        source: &'static str,
        rank: Rank,
        priority: Priority,
        since: Monotonic,
    },
    Working,
    /// Worked on, and not to be again before this version is known.
    Held {
        until: ResourceVersion,
        since: Monotonic,
    },
}

impl<K: Key> Book<K> {
    pub(super) fn new() -> Self {
        Self {
            keys: BTreeMap::new(),
            turns: VecDeque::new(),
            ready: BTreeMap::new(),
            delayed: BTreeSet::new(),
            held: BTreeSet::new(),
            version: ResourceVersion::default(),
            working: 0,
            sequence: 0,
            wanted_total: 0,
            shut: false,
        }
    }

    /// Says whether the key became ready.
    pub(super) fn add(&mut self, key: K, priority: Priority, reason: Reason, now: Monotonic) -> bool {
        if self.shut {
            return false;
        }
        let source = reason.source;
        let entry = self.keys.entry(key.clone()).or_default();
        entry.note(reason);
        match entry.place {
            Place::Working | Place::Held { .. } => {
                self.wanted_total += u64::from(entry.again.is_none());
                entry.again = entry.again.max(Some(priority));
                false
            }
            Place::Ready { .. } => {
                self.improve(key, source, priority);
                false
            }
            Place::Idle if entry.paused > now => {
                let at = entry.paused;
                self.arm(key, at);
                false
            }
            Place::Idle => {
                self.disarm(&key);
                self.wanted_total += 1;
                self.make_ready(key, source, priority, now);
                true
            }
        }
    }

    pub(super) fn add_after(&mut self, key: K, at: Monotonic, reason: Reason, now: Monotonic) -> bool {
        if at <= now {
            return self.add(key, Priority::Normal, reason, now);
        }
        if self.shut {
            return false;
        }
        let entry = self.keys.entry(key.clone()).or_default();
        entry.note(reason);
        match entry.place {
            Place::Idle => self.arm(key, at),
            // It runs before that anyway.
            Place::Ready { .. } => {}
            Place::Working | Place::Held { .. } => entry.due = Some(entry.due.map_or(at, |due| due.min(at))),
        }
        false
    }

    pub(super) fn take(&mut self, now: Monotonic) -> Option<Work<K>> {
        self.promote(now);
        let source = self.turns.pop_front()?;
        let ready = self.ready.get_mut(source)?;
        let (_, key) = ready.pop_first()?;
        if ready.is_empty() {
            self.ready.remove(source);
        } else {
            self.turns.push_back(source);
        }
        let entry = self.keys.get_mut(&key)?;
        let Place::Ready { priority, since, .. } = entry.place else { return None };
        entry.place = Place::Working;
        self.working += 1;
        Some(Work {
            failures: entry.failures,
            reasons: std::mem::take(&mut entry.reasons),
            reasons_total: std::mem::take(&mut entry.reasons_total),
            priority,
            waited: now.since(since),
            key,
        })
    }

    /// Says whether the key became ready at once.
    pub(super) fn done(
        &mut self,
        key: &K,
        verdict: Verdict,
        seen: Option<ResourceVersion>,
        now: Monotonic,
        backoff: impl Fn(u32) -> Duration,
    ) -> bool {
        let Some(entry) = self.keys.get_mut(key) else { return false };
        if entry.place != Place::Working {
            return false;
        }
        self.working -= 1;
        if std::mem::take(&mut entry.forgotten) {
            entry.forget_failures();
        }
        entry.judge(verdict, now, backoff);
        match seen {
            Some(until) if until > self.version => {
                entry.place = Place::Held { until, since: now };
                self.held.insert((until, key.clone()));
                false
            }
            _ => self.settle(key, now),
        }
    }

    /// How many keys became ready.
    pub(super) fn advance(&mut self, version: ResourceVersion, anew: bool, now: Monotonic) -> usize {
        self.version = if anew { version } else { self.version.max(version) };
        let mut ready = 0;
        while let Some((until, key)) = self.held.first().cloned() {
            if until > self.version && !anew {
                break;
            }
            self.held.pop_first();
            ready += usize::from(self.settle(&key, now));
        }
        ready
    }

    /// Moves the keys whose time has come; how many.
    pub(super) fn promote(&mut self, now: Monotonic) -> usize {
        let mut ready = 0;
        while let Some((at, key)) = self.delayed.first().cloned() {
            if at > now {
                break;
            }
            self.disarm(&key);
            self.wanted_total += 1;
            if let Some(entry) = self.keys.get_mut(&key).filter(|entry| entry.reasons.is_empty()) {
                entry.note(Reason::new(if entry.failures > 0 { "retry" } else { "timer" }));
            }
            self.make_ready(key, "timer", Priority::Normal, at.min(now));
            ready += 1;
        }
        ready
    }

    /// Failures are forgotten, and whoever waits because of one is ready; how many.
    pub(super) fn hurry(&mut self, now: Monotonic) -> usize {
        let failing = |entry: &Entry| entry.failures > 0;
        let waiting: Vec<K> =
            self.keys.iter().filter(|(_, entry)| failing(entry)).map(|(key, _)| key.clone()).collect();
        let mut ready = 0;
        for key in waiting {
            let Some(entry) = self.keys.get_mut(&key) else { continue };
            entry.forget_failures();
            if entry.place != Place::Idle {
                continue;
            }
            if entry.due.is_none() {
                self.drop_if_blank(&key);
                continue;
            }
            if entry.reasons.is_empty() {
                entry.note(Reason::new("retry"));
            }
            self.disarm(&key);
            self.wanted_total += 1;
            self.make_ready(key, "timer", Priority::Normal, now);
            ready += 1;
        }
        ready
    }

    pub(super) fn forget(&mut self, key: &K) {
        if let Some(entry) = self.keys.get_mut(key) {
            entry.forgotten = entry.place == Place::Working;
            entry.forget_failures();
        }
    }

    pub(super) fn next_due(&self) -> Option<Monotonic> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// Since when the longest-held key is held.
    pub(super) fn held_since(&self) -> Option<Monotonic> {
        let since = |key: &K| match self.keys.get(key)?.place {
            Place::Held { since, .. } => Some(since),
            _ => None,
        };
        self.held.iter().filter_map(|(_, key)| since(key)).min()
    }

    pub(super) fn depth(&self) -> Depth {
        Depth {
            ready: self.ready.values().map(BTreeSet::len).sum(),
            delayed: self.delayed.len(),
            working: self.working,
            held: self.held.len(),
        }
    }

    pub(super) fn wanted_total(&self) -> u64 {
        self.wanted_total
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn shut(&mut self) {
        self.shut = true;
    }

    pub(super) fn is_shut(&self) -> bool {
        self.shut
    }

    /// A key that is worked on no longer: ready again, delayed, or forgotten.
    fn settle(&mut self, key: &K, now: Monotonic) -> bool {
        let Some(entry) = self.keys.get_mut(key) else { return false };
        entry.place = Place::Idle;
        let due = entry.due.take();
        if let Some(priority) = entry.again.take() {
            if entry.paused <= now {
                let source = entry.reasons.first().map_or("again", |reason| reason.source);
                self.make_ready(key.clone(), source, priority, now);
                return true;
            }
            let paused = entry.paused;
            self.arm(key.clone(), paused);
        }
        match due {
            Some(at) => self.arm(key.clone(), at),
            None => self.drop_if_blank(key),
        }
        false
    }

    fn make_ready(&mut self, key: K, source: &'static str, priority: Priority, now: Monotonic) {
        let rank = Rank { came: came(now, priority), sequence: self.next_sequence() };
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.place = Place::Ready { source, rank, priority, since: now };
            self.enlist(source, rank, key);
        }
    }

    /// A key that is ready already was added again: it keeps its place, or takes a better one.
    fn improve(&mut self, key: K, source: &'static str, priority: Priority) {
        let Some(Place::Ready { source: old, rank, priority: had, since }) =
            self.keys.get(&key).map(|entry| entry.place)
        else {
            return;
        };
        let priority = priority.max(had);
        let backlog = |source| self.ready.get(source).map_or(0, BTreeSet::len);
        // A quiet source is served sooner than a noisy one.
        let source = if backlog(source) < backlog(old) { source } else { old };
        if source == old && priority == had {
            return;
        }
        self.delist(old, rank, &key);
        let rank = Rank { came: came(since, priority), ..rank };
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.place = Place::Ready { source, rank, priority, since };
        }
        self.enlist(source, rank, key);
    }

    fn enlist(&mut self, source: &'static str, rank: Rank, key: K) {
        let ready = self.ready.entry(source).or_default();
        if ready.is_empty() {
            self.turns.push_back(source);
        }
        ready.insert((rank, key));
    }

    fn delist(&mut self, source: &'static str, rank: Rank, key: &K) {
        let Some(ready) = self.ready.get_mut(source) else { return };
        ready.remove(&(rank, key.clone()));
        if ready.is_empty() {
            self.ready.remove(source);
            self.turns.retain(|turn| *turn != source);
        }
    }

    /// The earliest wins. For idle keys.
    fn arm(&mut self, key: K, at: Monotonic) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        match entry.due {
            Some(due) if due <= at => return,
            Some(due) => drop(self.delayed.remove(&(due, key.clone()))),
            None => {}
        }
        entry.due = Some(at);
        self.delayed.insert((at, key));
    }

    fn disarm(&mut self, key: &K) {
        if let Some(due) = self.keys.get_mut(key).and_then(|entry| entry.due.take()) {
            self.delayed.remove(&(due, key.clone()));
        }
    }

    /// What says nothing takes no memory.
    fn drop_if_blank(&mut self, key: &K) {
        let blank = |entry: &Entry| entry.place == Place::Idle && entry.due.is_none() && entry.failures == 0;
        if self.keys.get(key).is_some_and(blank) {
            self.keys.remove(key);
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

fn came(at: Monotonic, priority: Priority) -> Monotonic {
    match priority {
        Priority::Background => at + HEAD_START,
        Priority::Normal => at,
    }
}

impl Entry {
    fn note(&mut self, reason: Reason) {
        self.reasons_total = self.reasons_total.saturating_add(1);
        if self.reasons.len() < REASONS_KEPT {
            self.reasons.push(reason);
        }
    }

    fn judge(&mut self, verdict: Verdict, now: Monotonic, backoff: impl Fn(u32) -> Duration) {
        let asked = match verdict {
            Verdict::Rest => {
                self.forget_failures();
                None
            }
            Verdict::Gone => {
                self.forget_failures();
                self.due = None;
                None
            }
            Verdict::Again => Some(now),
            Verdict::After(delay) => {
                self.forget_failures();
                Some(now + delay)
            }
            Verdict::Failed => {
                if now >= self.served {
                    self.failures = self.failures.saturating_add(1);
                    let delay = backoff(self.failures);
                    self.served = now + delay;
                    self.paused = now + delay.min(FAILING_PAUSE);
                } else {
                    self.paused = self.served.min(now + FAILING_PAUSE);
                }
                Some(self.served)
            }
            Verdict::FailedAfter(delay) => {
                self.failures = self.failures.saturating_add(1);
                self.served = now + delay;
                self.paused = now + delay.min(FAILING_PAUSE);
                Some(self.served)
            }
        };
        self.due = self.due.into_iter().chain(asked).min();
    }

    fn forget_failures(&mut self) {
        self.failures = 0;
        self.served = Monotonic::default();
        self.paused = Monotonic::default();
    }
}
