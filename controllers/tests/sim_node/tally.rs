//! What happened to machines beside what the simulator itself counts, over all runs of a suite.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What happened to the machine beside what the simulator counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happened {
    /// A request that nobody answered was done later.
    DoneLate,
    ContainerdKilled,
    /// A call found nobody.
    ContainerdAway,
    /// containerd died while it made a task, and what it left is in the way.
    CreationStuck,
    PowerCut,
    ContainerKilled,
    RecordRemoved,
    ShimSilent,
    ImagesPruned,
    RulesFlushed,
    /// Somebody took something out of the mesh's own table.
    RulesTampered,
    /// Somebody changed rules that are not the mesh's.
    OtherRules,
    /// A transaction came too late: the rules were others by then.
    Conflict,
    CompanionKilled,
    /// The table that the companion reads was removed.
    TableRemoved,
}

type Counts = (BTreeMap<Happened, u64>, BTreeSet<u64>);

/// How often what happened, over all runs of a suite, and in how many states the machine was.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<Counts>>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self, what: Happened) {
        *self.lock().0.entry(what).or_default() += 1;
    }

    pub fn of(&self, what: Happened) -> u64 {
        self.lock().0.get(&what).copied().unwrap_or(0)
    }

    pub fn saw(&self, state: &impl Hash) {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        self.lock().1.insert(hasher.finish());
    }

    pub fn states(&self) -> usize {
        self.lock().1.len()
    }

    pub fn report(&self) -> String {
        let counts = self.lock().0.clone();
        let lines = counts.iter().map(|(what, count)| format!("    {count:>8} {what:?}\n"));
        format!(
            "  {} different states of the machine; to which happened:\n{}",
            self.states(),
            lines.collect::<String>()
        )
    }
}
