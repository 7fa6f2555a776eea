//! How long to bear with a registry that stumbles. Pure: setbacks in, pauses out.

use std::time::Duration;

/// Longest wait that a registry may ask for and get, while somebody waits for the image. Docker Hub's limits last up to
/// six hours: then the reason is worth more than the patience, and the queue asks again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Longest pause of our own choosing.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// Setbacks in a row, of one kind, that are borne.
const UNCONNECTED_MAX: u32 = 1;
const BROKEN_MAX: u32 = 5;
const BUSY_MAX: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node::images) enum Setback {
    /// No connection came about: one more try covers a restart; more would only keep the reason from whoever waits.
    Unconnected,
    /// A connection broke, or went silent.
    Broken,
    /// The registry asked for a pause (429), or had a bad moment (5xx).
    Busy { retry_after: Option<Duration> },
}

/// The patience for one request, or for one blob.
#[derive(Clone, Debug)]
pub(in crate::node::images) struct Patience {
    base: Duration,
    unconnected: u32,
    broken: u32,
    busy: u32,
}

impl Patience {
    /// `base` is the first pause; each further one is twice as long.
    pub fn new(base: Duration) -> Self {
        Patience { base, unconnected: 0, broken: 0, busy: 0 }
    }

    /// The pause before the next try, none when patience has ended.
    pub fn after(&mut self, setback: Setback) -> Option<Duration> {
        let (count, max) = match setback {
            Setback::Unconnected => (&mut self.unconnected, UNCONNECTED_MAX),
            Setback::Broken => (&mut self.broken, BROKEN_MAX),
            Setback::Busy { .. } => (&mut self.busy, BUSY_MAX),
        };
        if *count == max {
            return None;
        }
        let pause = (self.base * 2_u32.pow(*count)).min(PAUSE_MAX);
        *count += 1;
        match setback {
            Setback::Busy { retry_after: Some(asked) } if asked > RETRY_AFTER_MAX => None,
            // A second of grace for a registry that counts in whole seconds is not needed: it rounds up itself.
            Setback::Busy { retry_after: Some(asked) } => Some(asked.max(self.base)),
            _ => Some(pause),
        }
    }

    /// Something moved forward: whatever goes wrong next is the first time again.
    pub fn renew(&mut self) {
        *self = Patience::new(self.base);
    }
}

/// The pause that `Retry-After` asks for: seconds, or a date, which is held against the `Date` of the same answer so
/// that no clock but the registry's own matters.
pub(super) fn retry_after(retry_after: Option<&str>, date: Option<&str>) -> Option<Duration> {
    let asked = retry_after?.trim();
    if let Ok(seconds) = asked.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let (until, now) = (httpdate::parse_http_date(asked).ok()?, httpdate::parse_http_date(date?.trim()).ok()?);
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn pauses_double_and_end() {
        let mut patience = Patience::new(MS(500));
        let busy = Setback::Busy { retry_after: None };
        let pauses: Vec<_> = (0..5).map(|_| patience.after(busy)).collect();
        assert_eq!(pauses, [Some(MS(500)), Some(MS(1000)), Some(MS(2000)), Some(MS(4000)), None]);
        assert_eq!(patience.after(Setback::Unconnected), Some(MS(500)));
        assert_eq!(patience.after(Setback::Unconnected), None);
        patience.renew();
        assert_eq!(patience.after(busy), Some(MS(500)));
        assert_eq!((0..9).filter_map(|_| patience.after(Setback::Broken)).max(), Some(PAUSE_MAX));
    }

    #[test]
    fn a_registry_gets_the_pause_that_it_asks_for_unless_it_is_long() {
        let mut patience = Patience::new(MS(500));
        assert_eq!(patience.after(Setback::Busy { retry_after: Some(MS(9000)) }), Some(MS(9000)));
        assert_eq!(patience.after(Setback::Busy { retry_after: Some(MS(0)) }), Some(MS(500)));
        assert_eq!(patience.after(Setback::Busy { retry_after: Some(Duration::from_secs(3600)) }), None);
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let date = Some("Wed, 25 Nov 2026 18:00:00 GMT");
        assert_eq!(retry_after(Some("7"), None), Some(MS(7000)));
        assert_eq!(retry_after(Some("Wed, 25 Nov 2026 18:00:30 GMT"), date), Some(MS(30_000)));
        assert_eq!(retry_after(Some("Wed, 25 Nov 2026 17:00:00 GMT"), date), Some(MS(0)));
        assert_eq!(retry_after(Some("soon"), date), None);
        assert_eq!(retry_after(Some("Wed, 25 Nov 2026 18:00:30 GMT"), None), None);
        assert_eq!(retry_after(None, date), None);
    }
}
