//! Chance that can be had again: xorshift, from a seed that is printed.

use std::time::{SystemTime, UNIX_EPOCH};

/// Where it comes from next.
pub struct Chance(u64);

impl Chance {
    /// From `FAULTS_SEED`, or a new seed.
    #[expect(clippy::disallowed_methods, reason = "a seed for which nothing depends on the clock afterwards")]
    pub fn new() -> (Chance, u64) {
        let given = std::env::var("FAULTS_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_micros() as u64);
        let seed = given.unwrap_or_else(now).max(1);
        (Chance(seed), seed)
    }

    /// One of 0 to `below - 1`.
    pub fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below.max(1)
    }
}
