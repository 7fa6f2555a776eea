//! Trying again, less and less often.

use std::time::Duration;

use crate::stop::Stop;

/// Doubling pauses between attempts: 100 ms at first, 1 s at most, so that a database that comes back is noticed
/// soon and one that stays away is not hammered.
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: FIRST }
    }
}

impl Backoff {
    /// Waits for the next attempt; true if the program was asked to stop instead.
    pub fn wait(&mut self, stop: &Stop) -> bool {
        let now = self.next;
        self.next = (self.next * 2).min(LAST);
        stop.wait_for(now)
    }

    /// The last attempt worked.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }
}

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(1);
