//! What is wrong with an input: one entry for each place.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One fault of an input, at its path (`spec.ports[1].target`), saying what would be right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fault {
    /// Where: fields joined by `.`, entries of lists as `[index]`; empty for the input as a whole.
    pub path: String,
    /// A lower-case fragment that reads after "path: ", such as `70000 is not a port (1-65535)`.
    pub message: String,
}

impl Fault {
    /// A fault at `path`, which is as far as the caller knows it: see [`Fault::under`].
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    /// The same fault seen from one level further out.
    pub fn under(mut self, parent: &str) -> Self {
        self.path = match (parent.is_empty(), self.path.is_empty() || self.path.starts_with('[')) {
            (true, _) => self.path,
            (false, true) => format!("{parent}{}", self.path),
            (false, false) => format!("{parent}.{}", self.path),
        };
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_nest_with_dots_and_brackets() {
        assert_eq!(Fault::new("[1].target", "x").under("ports").under("spec").to_string(), "spec.ports[1].target: x");
        assert_eq!(Fault::new("", "x").under("spec").to_string(), "spec: x");
    }
}
