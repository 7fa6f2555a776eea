//! Signals by name or number, as images (`STOPSIGNAL`) and people write them.

use std::fmt;
use std::str::FromStr;

/// A Linux signal, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

/// Neither a name nor a number of a signal.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a signal")]
pub struct BadSignal {
    pub text: String,
}

impl Signal {
    pub const TERM: Signal = Signal(15);
    pub const KILL: Signal = Signal(9);

    pub fn number(self) -> u32 {
        self.0.into()
    }
}

/// The signals of x86 and ARM by number from 1 (signal(7)); MIPS numbers them otherwise and is not supported.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
const RTMIN: u8 = 34;
const MAX: u8 = 64;

impl FromStr for Signal {
    type Err = BadSignal;

    /// `SIGTERM`, `TERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadSignal { text: text.to_owned() };
        let upper = text.trim().to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<u8>().ok() };
        let number = if let Ok(number) = name.parse::<u8>() {
            Some(number)
        } else if let Some(rest) = name.strip_prefix("RTMIN") {
            offset(rest.strip_prefix('+').unwrap_or(rest)).and_then(|n| RTMIN.checked_add(n)).filter(|n| *n >= RTMIN)
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            offset(rest.strip_prefix('-').unwrap_or(rest)).and_then(|n| MAX.checked_sub(n)).filter(|n| *n >= RTMIN)
        } else {
            let alias = match name {
                "POLL" => "IO",
                "CLD" => "CHLD",
                "IOT" => "ABRT",
                other => other,
            };
            NAMES.iter().position(|known| *known == alias).map(|at| at as u8 + 1)
        };
        number.filter(|number| (1..=MAX).contains(number)).map(Signal).ok_or_else(bad)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0) - 1) {
            Some(name) => write!(f, "SIG{name}"),
            None => write!(f, "SIG{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read() {
        for (text, expected) in [
            ("SIGTERM", 15),
            ("kill", 9),
            ("3", 3),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("SIGRTMAX-1", 63),
            ("SIGPOLL", 29),
            ("64", 64),
        ] {
            assert_eq!(text.parse::<Signal>().unwrap().number(), expected, "{text}");
        }
        for bad in ["", "0", "65", "SIGNAL", "RTMIN+31", "RTMAX-31", "-1", "300"] {
            assert!(bad.parse::<Signal>().is_err(), "{bad}");
        }
        assert_eq!(Signal::TERM.to_string(), "SIGTERM");
    }
}
