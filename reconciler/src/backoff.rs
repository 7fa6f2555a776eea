//! How long to wait before the next try: exponential, capped, with jitter.

use std::time::Duration;

/// A curve of delays. The n-th failure in a row waits `base * 2^(n-1)`, at most `cap`, less up to a fifth of it at
/// random, so that what failed together does not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub base: Duration,
    /// The longest wait, however many failures there were.
    pub cap: Duration,
}

impl Backoff {
    /// From `base`, doubled each time, up to `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap }
    }

    /// The wait after `failures` failures in a row (0 counts as 1); `random` is any 64 bits.
    pub fn delay(&self, failures: u32, random: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.base.saturating_mul(1 << doublings).min(self.cap);
        let fifth = u64::try_from(full.as_nanos() / 5).unwrap_or(u64::MAX);
        full.saturating_sub(Duration::from_nanos(random % fifth.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURVE: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(60));

    #[test]
    fn delays_double_up_to_the_cap() {
        assert_eq!(CURVE.delay(0, 0), Duration::from_millis(5));
        assert_eq!(CURVE.delay(1, 0), Duration::from_millis(5));
        assert_eq!(CURVE.delay(4, 0), Duration::from_millis(40));
        assert_eq!(CURVE.delay(u32::MAX, 0), Duration::from_secs(60));
    }

    #[test]
    fn jitter_takes_at_most_a_fifth() {
        for random in [0, 1, u64::MAX / 3, u64::MAX] {
            let delay = CURVE.delay(11, random);
            assert!(delay >= Duration::from_millis(4096) && delay <= Duration::from_millis(5120), "{delay:?}");
        }
    }
}
