//! What can go wrong, and how often it did.

use std::collections::BTreeMap;

use super::choices::Point;

/// Everything that a simulation does to the processes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The process dies just before a commit.
    CrashBeforeCommit,
    /// The process dies after a commit has happened, before it is told.
    CrashAfterCommit,
    /// The commit happened, and the answer is that nobody knows.
    ReplyLost,
    /// The commit did not happen, and the answer is that nobody knows.
    RequestLost,
    /// Nobody knows; the commit happens a second later.
    CommitLate,
    /// The store does not answer a commit; it did not happen.
    StoreUnavailable,
    /// A commit takes long.
    CommitSlow,
    /// Somebody else writes the same object just before.
    OtherWriter,
    /// The store does not answer a read.
    ReadUnavailable,
    /// A read takes long.
    ReadSlow,
    /// A stream cannot be opened.
    StreamRefused,
    /// History does not reach back to where a stream would go on.
    Compacted,
    /// A process sees an earlier state first, and what followed only later.
    StaleView,
    /// What changed arrives late.
    BatchDelayed,
    /// What changed arrives very late.
    BatchVeryLate,
    /// Several commits arrive as one.
    BatchMerged,
    /// A stream ends.
    StreamBroken,
    /// A call on an external world is refused, and nothing happened.
    CallRefused,
    /// The effect happened, and the answer was lost.
    CallReplyLost,
    /// The process dies just before a call.
    CrashBeforeCall,
    /// The process dies after a call has had its effect, before it is told.
    CrashAfterCall,
    /// A call takes long.
    CallSlow,
    /// The call was refused, and done later all the same.
    CallLate,
    /// A process that died starts again at once.
    RestartAtOnce,
    /// A process that died starts again late.
    RestartLate,
    /// A process's wall clock jumps forward.
    ClockForward,
    /// A process's wall clock jumps back.
    ClockBack,
    /// Runnable tasks went in another order than their own.
    Reordered,
    /// The workload did not wait for things to settle between its steps, or waited long.
    Hurried,
    /// The workload waited long between two steps.
    Lingered,
    /// The outside world changed by itself.
    Drifted,
}

impl Fault {
    /// Something went wrong, rather than in another order or at another pace.
    pub fn is_disturbance(self) -> bool {
        !matches!(self, Self::Reordered | Self::Hurried | Self::Lingered | Self::RestartAtOnce | Self::RestartLate)
    }
}

impl Point {
    /// What the unusual answers mean, from 1 on. Points whose answers have no limit repeat their last one.
    pub(super) fn faults(self) -> &'static [Fault] {
        match self {
            Self::Run => &[Fault::Reordered],
            Self::Commit => &[
                Fault::CrashBeforeCommit,
                Fault::CrashAfterCommit,
                Fault::ReplyLost,
                Fault::RequestLost,
                Fault::CommitLate,
                Fault::StoreUnavailable,
                Fault::CommitSlow,
                Fault::OtherWriter,
            ],
            Self::Read => &[Fault::ReadUnavailable, Fault::ReadSlow],
            Self::Open => &[Fault::StreamRefused, Fault::Compacted, Fault::StaleView],
            Self::Batch => {
                &[Fault::BatchDelayed, Fault::BatchVeryLate, Fault::BatchMerged, Fault::StreamBroken, Fault::Compacted]
            }
            Self::Call => &[
                Fault::CallRefused,
                Fault::CallReplyLost,
                Fault::CrashBeforeCall,
                Fault::CrashAfterCall,
                Fault::CallSlow,
            ],
            Self::Late => &[Fault::CallLate],
            Self::Restart => &[Fault::RestartAtOnce, Fault::RestartLate],
            Self::Clock => &[Fault::ClockForward, Fault::ClockBack],
            Self::Pause => &[Fault::Hurried, Fault::Lingered],
            Self::Drift => &[Fault::Drifted],
        }
    }

    /// The answer that a fault is; the usual one where it cannot be.
    pub(super) fn answer(self, fault: Fault) -> u32 {
        (1..).zip(self.faults()).find(|(_, known)| **known == fault).map_or(0, |(answer, _)| answer)
    }

    /// The fault that an answer stands for; `None` for the usual one.
    pub(super) fn fault(self, value: u32) -> Option<Fault> {
        let faults = self.faults();
        let position = usize::try_from(value).ok()?.checked_sub(1)?;
        faults.get(position).or(faults.last()).copied()
    }
}

/// How often each fault fired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fired(pub BTreeMap<Fault, u64>);

impl Fired {
    pub(super) fn count(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (fault, count) in &other.0 {
            *self.0.entry(*fault).or_default() += count;
        }
    }

    /// Something went wrong, rather than in another order or at another pace.
    pub fn disturbed(&self) -> bool {
        self.0.iter().any(|(fault, count)| fault.is_disturbance() && *count > 0)
    }

    /// How often it fired.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }
}
