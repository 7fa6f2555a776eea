//! Bugs on purpose, one line each, which the simulator proves its worth by finding.

/// What the controller gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// What no look has seen yet counts as absent, although this process has just made it.
    UnseenIsAbsent,
    /// A task is called ended when its container was asked to end.
    AskedIsEnded,
    /// A container whose shim does not answer counts as lost.
    SilentIsLost,
}
