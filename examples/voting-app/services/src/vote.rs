//! A vote on its way from `vote` to `worker`: one line of text in a Redis list.

use std::fmt;
use std::str::FromStr;

/// Votes that nobody has taken yet; `vote` pushes on the left, `worker` takes from the right.
pub const QUEUE: &str = "votes";
/// Votes that a worker has taken and not yet stored. What a dead worker left here is taken up by the next one.
pub const IN_HAND: &str = "votes:in-hand";

/// Who voted for what, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vote {
    /// Sixteen hexadecimal digits, from the voter's cookie.
    pub voter: String,
    pub choice: Choice,
    /// Milliseconds since 1970 on the clock of the `vote` that took it. Of two votes of one voter the later counts,
    /// also when the earlier one is delivered again after it.
    pub cast_at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    A,
    B,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Choice::A => "a",
            Choice::B => "b",
        })
    }
}

impl FromStr for Choice {
    type Err = ();

    fn from_str(word: &str) -> Result<Choice, ()> {
        match word {
            "a" => Ok(Choice::A),
            "b" => Ok(Choice::B),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.voter, self.choice, self.cast_at)
    }
}

impl FromStr for Vote {
    type Err = ();

    fn from_str(line: &str) -> Result<Vote, ()> {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [voter, choice, cast_at] if is_voter(voter) => {
                Ok(Vote { voter: voter.to_owned(), choice: choice.parse()?, cast_at: cast_at.parse().map_err(drop)? })
            }
            _ => Err(()),
        }
    }
}

/// Whether this may be a voter's id: cookies come from outside.
pub fn is_voter(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_survives_the_queue() {
        let vote = Vote { voter: "0123456789abcdef".into(), choice: Choice::B, cast_at: 1_764_000_000_000 };
        assert_eq!(vote.to_string().parse(), Ok(vote));
    }

    #[test]
    fn what_is_not_a_vote_is_refused() {
        for line in [
            "",
            "a b c",
            "0123456789abcdef c 1",
            "0123456789abcdef a",
            "0123456789abcdef a 1 2",
            "0123456789abcdeg a 1",
        ] {
            assert_eq!(line.parse::<Vote>(), Err(()), "{line:?}");
        }
    }
}
