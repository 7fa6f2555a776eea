//! Sizes in bytes as Docker reads them.

use std::fmt;
use std::str::FromStr;

use super::period::scaled;
use super::{QuantityError, quantity_json};

/// A number of bytes. In JSON a string: a number with b, k, m, g, t or p in either case, each a power of 1024 (Docker's
/// reading, also of `MB` and `MiB`), or a bare number of bytes; written with the largest of Ki, Mi, Gi, Ti that is
/// exact. Kubernetes' `M` is a power of 1000: it is read as Docker does. Source: `RAMInBytes` of docker/go-units.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

const EXPECTED: &str = "a size, such as 64Mi, 64m, 1.5g or a number of bytes";
const UNITS: &str = "kmgtp";

impl Size {
    /// Of single bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In single bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Of units of 1024 x 1024 bytes; for constants.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// For people: as it is where that is short (`512Mi`), else near it (`23.5Gi`).
    pub fn near(self) -> String {
        let exact = self.to_string();
        let unit = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)].into_iter().find(|(_, shift)| self.0 >> shift > 0);
        match unit {
            Some((unit, shift)) if exact.len() > 6 => format!("{:.1}{unit}", self.0 as f64 / (1u64 << shift) as f64),
            _ => exact,
        }
    }
}

impl FromStr for Size {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse_bytes(text).map(Self).ok_or_else(|| QuantityError { text: text.to_owned(), expected: EXPECTED })
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix).to_ascii_lowercase();
    let scale = match suffix.as_str() {
        "" | "b" => 1,
        unit => {
            let (letter, tail) = unit.split_at_checked(1)?;
            if !matches!(tail, "" | "b" | "i" | "ib") {
                return None;
            }
            1u64 << (10 * (UNITS.find(letter)? + 1))
        }
    };
    scaled(number, scale)
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

quantity_json!(Size, "size", EXPECTED, "64Mi", |number| {
    (number >= 0.0 && number.fract() == 0.0 && number < 9_007_199_254_740_992.0).then_some(Size(number as u64))
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dockers_and_kubernetes_spellings_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("64b", 64),
            ("10k", 10 << 10),
            ("64m", 64 << 20),
            ("64M", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("64Mi", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5g", 3 << 29),
            (".5Gi", 1 << 29),
            ("2t", 2 << 40),
        ] {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn people_need_no_more_than_three_digits() {
        for (bytes, near) in
            [(0, "0"), (512, "512"), (8 << 30, "8Gi"), (24_683_656 << 10, "23.5Gi"), (100_000_000, "95.4Mi")]
        {
            assert_eq!(Size(bytes).near(), near);
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "m", "-1", "1e6", "1,5g", "5x", "64mm", "64 m m", "99999999999p", "1.2.3", "\u{b5}"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn bare_numbers_of_json_are_bytes() {
        assert_eq!(serde_json::from_str::<Size>("4096").unwrap(), Size::from_bytes(4096));
        assert!(serde_json::from_str::<Size>("-1").is_err());
        assert!(serde_json::from_str::<Size>("1.5").is_err());
        assert_eq!(serde_json::from_str::<Size>("18446744073709551615").unwrap().bytes(), u64::MAX);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes: u64, shift in 0..50u32) {
            for size in [Size(bytes), Size((bytes >> 14) << shift)] {
                prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}|[0-9. bkmgtpiBKMGTPI]{0,8}") {
            if let Ok(size) = text.parse::<Size>() {
                prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
            }
        }
    }
}
