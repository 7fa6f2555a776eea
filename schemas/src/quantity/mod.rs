//! Quantities as people write them: times in Go's grammar, sizes and CPUs as Docker reads them. In memory they are
//! exact integers; in JSON they are the shortest text that means the same, so that two spellings of one value are one
//! value.

mod cpus;
mod period;
mod size;

pub use cpus::Cpus;
pub use period::Period;
pub use size::Size;

/// Why a text is no quantity: a fragment that reads after `"<text>" is not …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct QuantityError {
    /// The text as it was given.
    pub text: String,
    /// What it should have been, with an example: `a duration, such as 10s, 500ms or 1h30m`.
    pub expected: &'static str,
}

/// JSON of a quantity: written as its `Display`, read from a string, or from a bare number where the quantity has one.
macro_rules! quantity_json {
    ($type:ident, $format:literal, $expected:expr, $example:literal, $number:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$type, E> {
                        self.visit_str(&number.to_string())
                    }

                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$type, E> {
                        self.visit_str(&number.to_string())
                    }

                    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<$type, E> {
                        let read: fn(f64) -> Option<$type> = $number;
                        read(number).ok_or_else(|| E::custom(format!("{number} is not {}", $expected)))
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "format": $format, "examples": [$example]})
            }

            fn inline_schema() -> bool {
                true
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    };
}
use quantity_json;
