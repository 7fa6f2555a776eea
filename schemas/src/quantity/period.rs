//! Spans of time in Go's grammar, which Docker, Compose and Kubernetes share: `1h30m`, `1.5s`, `500ms`.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use super::{QuantityError, quantity_json};

/// A span of time, not negative, in whole nanoseconds, at most 2^63 - 1 of them (Go's limit, 292 years). In JSON a string
/// such as `"10s"`; a bare `0` is read too. Source of the grammar: Go's `time.ParseDuration`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(Duration);

const EXPECTED: &str = "a duration, such as 10s, 500ms or 1h30m";

/// Units of Go's grammar, longest first, in nanoseconds.
const UNITS: [(&str, u64); 8] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ns", 1),
];

impl Period {
    /// No time: `0s`.
    pub const ZERO: Self = Self(Duration::ZERO);
    /// 2^63 - 1 nanoseconds, Go's limit: some 292 years.
    pub const MAX: Self = Self(Duration::from_nanos(i64::MAX as u64));

    /// Whole seconds, at most [`Period::MAX`]; for constants.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Whole milliseconds, at most [`Period::MAX`]; for constants.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Saturates at [`Period::MAX`].
    pub fn new(duration: Duration) -> Self {
        Self(duration.min(Self::MAX.0))
    }

    /// As the standard library has it.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Period {
    fn from(duration: Duration) -> Self {
        Self::new(duration)
    }
}

impl From<Period> for Duration {
    fn from(period: Period) -> Self {
        period.0
    }
}

impl Deref for Period {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl FromStr for Period {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse_nanos(text)
            .map(|nanos| Self(Duration::from_nanos(nanos)))
            .ok_or_else(|| QuantityError { text: text.to_owned(), expected: EXPECTED })
    }
}

fn parse_nanos(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(scaled(number, *scale)?)?;
        rest = tail;
    }
    (total <= i64::MAX as u64).then_some(total)
}

/// `number * scale`, the fraction cut below one: exact, where floats would lose nanoseconds.
pub(super) fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut parts: u64 = 0;
    let mut divisor: u64 = 1;
    for digit in fraction.bytes().take(18) {
        parts = parts * 10 + u64::from(digit - b'0');
        divisor *= 10;
    }
    let below = u128::from(parts) * u128::from(scale) / u128::from(divisor);
    whole.checked_mul(scale)?.checked_add(u64::try_from(below).ok()?)
}

impl fmt::Display for Period {
    /// The shortest exact form: `1h30m`, `10s`, `1.5s`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < 1_000_000_000 {
            let (unit, scale) = match nanos {
                0..1_000 => ("ns", 1),
                1_000..1_000_000 => ("us", 1_000),
                _ => ("ms", 1_000_000),
            };
            return write_decimal(f, nanos, scale, unit);
        }
        for (unit, scale) in [("h", 3_600_000_000_000), ("m", 60_000_000_000)] {
            if nanos >= scale {
                write!(f, "{}{unit}", nanos / scale)?;
                nanos %= scale;
            }
        }
        if nanos > 0 { write_decimal(f, nanos, 1_000_000_000, "s") } else { Ok(()) }
    }
}

fn write_decimal(f: &mut fmt::Formatter<'_>, value: u128, scale: u128, unit: &str) -> fmt::Result {
    write!(f, "{}", value / scale)?;
    let fraction = value % scale;
    if fraction > 0 {
        let width = scale.ilog10() as usize;
        write!(f, ".{}", format!("{fraction:0width$}").trim_end_matches('0'))?;
    }
    f.write_str(unit)
}

quantity_json!(Period, "duration", EXPECTED, "10s", |number| (number == 0.0).then_some(Period::ZERO));

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_durations_are_read() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("10s", 10_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("100ms", 100_000_000),
            ("1us", 1_000),
            ("1\u{b5}s", 1_000),
            ("7ns", 7),
            ("+1m1s", 61_000_000_000),
            ("1s1s", 2_000_000_000),
        ] {
            assert_eq!(text.parse::<Period>().unwrap().as_nanos(), nanos, "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in
            ["", "10", "s", "1d", "-1s", "1h 2m", "1..s", ".s", "10S", "300000000h", "1e3s", "9999999999999999999h"]
        {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert_eq!("1d".parse::<Period>().unwrap_err().to_string(), format!("\"1d\" is not {EXPECTED}"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in prop_oneof![0..5_000_000_000u64, 0..=i64::MAX as u64]) {
            let period = Period::from(Duration::from_nanos(nanos));
            prop_assert_eq!(period.to_string().parse::<Period>().unwrap(), period);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}|[0-9hmsun.]{0,10}") {
            if let Ok(period) = text.parse::<Period>() {
                prop_assert_eq!(period.to_string().parse::<Period>().unwrap(), period);
            }
        }
    }
}
