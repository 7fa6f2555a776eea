//! Bugs on purpose. The simulator proves its worth by finding them; each switches off one line of this library, the
//! line that makes a kind of bug impossible for authors.

/// Which line does not do its work. For tests of the simulator only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A process acts on whatever view it is given first.
    NoBarrier,
    /// The next run of a key does not wait until the cache has seen what the last one wrote.
    NoReadYourWrites,
    /// What was listed so far is taken for all there is.
    PartialListing,
    /// Listing anew adds and changes, and does not notice what is gone.
    NothingVanishes,
    /// A leader's commits do not demand that it still leads.
    NoFence,
}

/// Those that are planted. In a build without the simulator there are none, and asking costs nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bugs {
    #[cfg(feature = "sim")]
    planted: Vec<Planted>,
}

impl Bugs {
    #[cfg(feature = "sim")]
    pub fn plant(&mut self, bugs: &[Planted]) {
        self.planted.extend(bugs);
    }

    #[cfg(feature = "sim")]
    pub fn has(&self, bug: Planted) -> bool {
        self.planted.contains(&bug)
    }

    #[cfg(not(feature = "sim"))]
    pub const fn has(&self, _: Planted) -> bool {
        false
    }
}
