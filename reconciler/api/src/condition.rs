//! Conditions: what is true of an object now, one entry a type. The rules are Kubernetes' (API conventions,
//! "Typical status properties"): the transition time moves only when the status does, and absent means Unknown.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Whether something holds: yes, no, or not known, which is not no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not observed yet, or not observable now. A condition that is absent means this as well.
    #[default]
    Unknown,
}

impl From<bool> for Truth {
    fn from(yes: bool) -> Self {
        if yes { Self::True } else { Self::False }
    }
}

/// One observation about an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// An adjective or past participle in CamelCase: `Ready`.
    pub r#type: String,
    /// Whether it holds.
    pub status: Truth,
    /// One CamelCase word for programs.
    pub reason: String,
    /// A sentence for people; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The generation that this speaks of.
    #[serde(default)]
    pub observed_generation: i64,
    /// When `status` last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
}

/// A list of conditions, keyed by type. Only [`Conditions::set`] changes it, so the transition time cannot be set by
/// hand and two entries of a type cannot come to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    /// The condition of this type; absent means Unknown.
    pub fn get(&self, kind: &str) -> Option<&Condition> {
        self.0.iter().find(|condition| condition.r#type == kind)
    }

    /// Whether it holds for certain: false where it is unknown or absent.
    pub fn is_true(&self, kind: &str) -> bool {
        self.get(kind).is_some_and(|condition| condition.status == Truth::True)
    }

    /// Every condition, by type.
    pub fn iter(&self) -> impl Iterator<Item = &Condition> {
        self.0.iter()
    }

    /// Whether nothing has been observed yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Records an observation made at `now` about `generation`; says whether anything changed. Setting the same again
    /// changes nothing, whatever the time.
    pub fn set(
        &mut self,
        kind: &str,
        status: impl Into<Truth>,
        reason: impl Into<String>,
        message: impl Into<String>,
        generation: i64,
        now: Timestamp,
    ) -> bool {
        let mut fresh = Condition {
            r#type: kind.to_owned(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            observed_generation: generation,
            last_transition_time: Some(now),
        };
        match self.0.iter_mut().find(|condition| condition.r#type == kind) {
            None => {
                self.0.push(fresh);
                self.0.sort_by(|a, b| a.r#type.cmp(&b.r#type));
                true
            }
            Some(stored) => {
                if stored.status == fresh.status {
                    fresh.last_transition_time = stored.last_transition_time;
                }
                let changed = *stored != fresh;
                *stored = fresh;
                changed
            }
        }
    }

    /// Forgets a condition that no longer applies; says whether it was there.
    pub fn remove(&mut self, kind: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|condition| condition.r#type != kind);
        self.0.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Conditions::default();
        assert!(conditions.set("Ready", false, "Starting", "", 1, Timestamp::from_seconds(10)));
        assert!(!conditions.set("Ready", false, "Starting", "", 1, Timestamp::from_seconds(20)));
        assert!(conditions.set("Ready", false, "Pulling", "", 1, Timestamp::from_seconds(30)));
        assert_eq!(conditions.get("Ready").unwrap().last_transition_time, Some(Timestamp::from_seconds(10)));
        assert!(conditions.set("Ready", true, "Running", "", 1, Timestamp::from_seconds(40)));
        assert_eq!(conditions.get("Ready").unwrap().last_transition_time, Some(Timestamp::from_seconds(40)));
        assert_eq!(conditions.iter().count(), 1);
    }
}
