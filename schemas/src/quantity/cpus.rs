//! Shares of processors.

use std::fmt;
use std::str::FromStr;

use super::period::scaled;
use super::{QuantityError, quantity_json};

/// A number of CPUs, in billionths (Docker's NanoCPUs). In JSON a string: decimal CPUs with at most nine digits after
/// the point (`"0.5"`), or thousandths with `m` as in Kubernetes (`"500m"`); bare numbers are read too.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpus(u64);

const EXPECTED: &str = "a number of CPUs, such as 0.5, 2 or 500m";
const NANO: u64 = 1_000_000_000;

impl Cpus {
    /// Of billionths of a CPU, as Docker counts them.
    pub const fn from_nano(nano: u64) -> Self {
        Self(nano)
    }

    /// Of thousandths of a CPU, as Kubernetes counts them.
    pub const fn from_milli(milli: u64) -> Self {
        Self(milli * 1_000_000)
    }

    /// In billionths of a CPU.
    pub const fn nano(self) -> u64 {
        self.0
    }
}

impl FromStr for Cpus {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse_nano(text).map(Self).ok_or_else(|| QuantityError { text: text.to_owned(), expected: EXPECTED })
    }
}

fn parse_nano(text: &str) -> Option<u64> {
    let (number, scale, digits) = match text.strip_suffix('m') {
        Some(milli) => (milli, 1_000_000, 6),
        None => (text, NANO, 9),
    };
    let fraction = number.split_once('.').map_or("", |(_, fraction)| fraction);
    (fraction.len() <= digits).then(|| scaled(number, scale))?
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 / NANO)?;
        match self.0 % NANO {
            0 => Ok(()),
            fraction => write!(f, ".{}", format!("{fraction:09}").trim_end_matches('0')),
        }
    }
}

quantity_json!(Cpus, "cpus", EXPECTED, "0.5", |number| {
    (number.is_finite() && number >= 0.0).then(|| number.to_string().parse().ok())?
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimals_and_thousandths_are_read() {
        for (text, nano) in
            [("0.5", NANO / 2), ("2", 2 * NANO), ("500m", NANO / 2), ("0.000000001", 1), ("1.25", 1_250_000_000)]
        {
            assert_eq!(text.parse::<Cpus>().unwrap().nano(), nano, "{text}");
        }
        assert_eq!(serde_json::from_str::<Cpus>("0.1").unwrap(), Cpus::from_milli(100));
        assert_eq!(serde_json::from_str::<Cpus>("2").unwrap(), Cpus::from_milli(2000));
    }

    #[test]
    fn what_is_no_number_of_cpus_is_refused() {
        for text in ["", "m", "-1", "1e3", "0.0000000001", "two", "1,5"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Cpus>("-0.5").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nano: u64) {
            let cpus = Cpus(nano);
            prop_assert_eq!(cpus.to_string().parse::<Cpus>().unwrap(), cpus);
        }
    }
}
