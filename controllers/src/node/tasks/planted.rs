//! Bugs on purpose, one line each, which the simulator proves its worth by finding.

/// What the controller gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// What this process has just made and no look has seen yet is known once, and counts as absent from then on.
    UnseenIsAbsent,
    /// A container whose shim does not answer counts as lost.
    SilentIsLost,
}

/// Those that are planted. In a build without the feature `planted` there are none, and asking costs nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bugs {
    #[cfg(feature = "planted")]
    planted: &'static [Planted],
}

impl Bugs {
    #[cfg(feature = "planted")]
    pub const fn of(planted: &'static [Planted]) -> Self {
        Self { planted }
    }

    #[cfg(feature = "planted")]
    pub fn has(&self, bug: Planted) -> bool {
        self.planted.contains(&bug)
    }

    #[cfg(not(feature = "planted"))]
    pub const fn has(&self, _: Planted) -> bool {
        false
    }
}
