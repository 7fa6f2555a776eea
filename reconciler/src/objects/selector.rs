//! Label and field selectors, in Kubernetes' syntax (`a=b,c!=d,e in (f,g),!h`).

use std::fmt;
use std::str::FromStr;

/// All requirements must hold; none holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

/// What has to hold of one label or field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Name of the label, or path of the field: `metadata.name`.
    pub key: String,
    /// What has to hold of its value.
    pub operator: Operator,
}

/// What has to hold of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It is there and one of these.
    In(Vec<String>),
    /// Also matches where the key is absent.
    NotIn(Vec<String>),
    /// It is there, whatever it is.
    Exists,
    /// It is not there.
    Absent,
}

impl Selector {
    /// Holds where `key` has this value.
    pub fn equals(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self(vec![Requirement { key: key.into(), operator: Operator::In(vec![value.into()]) }])
    }

    /// Holds where both do.
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Whether nothing is required.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// What must hold, in the order in which it was written.
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// `lookup` answers with the value under a key, if there is one.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = lookup(&requirement.key);
            match &requirement.operator {
                Operator::In(wanted) => value.is_some_and(|value| wanted.iter().any(|w| w == value)),
                Operator::NotIn(unwanted) => value.is_none_or(|value| unwanted.iter().all(|u| u != value)),
                Operator::Exists => value.is_some(),
                Operator::Absent => value.is_none(),
            }
        })
    }
}

/// A text that is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a selector at {at:?}: expected key=value, key!=value, key in (a,b), key notin (a,b), key or !key"
)]
pub struct ParseSelectorError {
    text: String,
    at: String,
}

impl FromStr for Selector {
    type Err = ParseSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        split_outside_parentheses(text)
            .into_iter()
            .filter(|part| !part.trim().is_empty())
            .map(|part| {
                requirement(part.trim()).ok_or_else(|| ParseSelectorError { text: text.into(), at: part.trim().into() })
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Self)
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(text: &str) -> Option<Requirement> {
    let of = |key: &str, operator: Operator| {
        let key = key.trim();
        let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        plain.then(|| Requirement { key: key.to_owned(), operator })
    };
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some(key) = text.strip_prefix('!') {
        return of(key, Operator::Absent);
    }
    if let Some((head, list)) = text.split_once('(') {
        let values = list.strip_suffix(')')?.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, word) = head.trim().rsplit_once(char::is_whitespace)?;
        return match word {
            "in" => of(key, Operator::In(values)),
            "notin" => of(key, Operator::NotIn(values)),
            _ => None,
        };
    }
    if let Some((key, value)) = text.split_once("!=") {
        return of(key, Operator::NotIn(one(value)));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return of(key, Operator::In(one(value)));
    }
    of(text, Operator::Exists)
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Requirement { key, operator }) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) => match values.as_slice() {
                    [value] => write!(f, "{key}={value}")?,
                    values => write!(f, "{key} in ({})", values.join(","))?,
                },
                Operator::NotIn(values) => match values.as_slice() {
                    [value] => write!(f, "{key}!={value}")?,
                    values => write!(f, "{key} notin ({})", values.join(","))?,
                },
                Operator::Exists => f.write_str(key)?,
                Operator::Absent => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(key: &str) -> Option<&'static str> {
        match key {
            "tier" => Some("front"),
            "empty" => Some(""),
            _ => None,
        }
    }

    #[test]
    fn requirements_match_as_kubernetes_does() {
        for (text, expected) in [
            ("", true),
            ("tier=front", true),
            ("tier==front,empty=", true),
            ("tier!=front", false),
            ("absent!=x", true),
            ("tier in (back, front)", true),
            ("tier notin (back,front)", false),
            ("absent notin (a)", true),
            ("tier", true),
            ("!tier", false),
            ("!absent,empty", true),
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().matches(lookup), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in ["=x", "a b", "a in b", "a in (b", "a within (b)", "!"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_selector_is_written_as_it_is_read() {
        for text in ["a=b,c!=d", "a in (x,y),!z", "q"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }
}
