//! An error as people read it: a message leaves its source out, and whoever prints it prints the whole chain.

use std::error::Error;

/// An error and all that lies behind it, in one line: `cannot open the store: permission denied`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the store")]
    struct Opening(#[source] std::io::Error);

    #[test]
    fn every_cause_is_told_once_from_the_outside_in() {
        assert_eq!(chain(&Opening(std::io::Error::other("it is wet"))), "cannot open the store: it is wet");
    }
}
