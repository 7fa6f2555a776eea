//! Text that must not be seen.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A password, a key, the data of a secret. It cannot be printed: `Debug` shows only that there is one, and there is no
/// `Display`. JSON carries the content, for the store seals whole values; whoever serves or logs an object first
/// replaces the fields that its [`Kind`](crate::Kind) names as sensitive.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sensitive(String);

impl Sensitive {
    /// Takes the content in the clear; an empty one stands for none.
    pub fn new(content: impl Into<String>) -> Self {
        Self(content.into())
    }

    /// The content itself. Every call is a place that a reviewer looks at.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Sensitive {
    fn from(content: String) -> Self {
        Self(content)
    }
}

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { "(sealed)" })
    }
}

impl JsonSchema for Sensitive {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Sensitive".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "x-sensitive": true})
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_content() {
        let text = format!("{:?} {:#?}", Sensitive::new("hunter2"), Some(Sensitive::new("hunter2")));
        assert!(!text.contains("hunter2"), "{text}");
    }
}
