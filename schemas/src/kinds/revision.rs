//! Revision: what a service or a bundle once was, under a name that is the hash of it.

use reconciler_api::{Resource, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bundle::BundleSpec;
use super::template::TaskTemplate;

/// What a service's template or a bundle's spec once was. Never changes; written by the service and bundle controllers.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", kind = "Revision", status = RevisionStatus, short("rev"), unmanaged, validate = crate::validate::revision,
    column("OWNER", "/spec/owner")
)]
#[serde(rename_all = "camelCase")]
pub struct RevisionSpec {
    /// The Service or Bundle that it is a revision of.
    pub owner: String,
    /// What the owner was; the name of this object is the hash of it.
    pub content: RevisionContent,
}

/// What a revision holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RevisionContent {
    /// Of a Service: what each task was.
    Template(Box<TaskTemplate>),
    /// Of a Bundle: its whole spec.
    Bundle(Box<BundleSpec>),
}

impl RevisionContent {
    /// The template, if this is of a Service.
    pub fn template(&self) -> Option<&TaskTemplate> {
        match self {
            Self::Template(template) => Some(template),
            Self::Bundle(_) => None,
        }
    }

    /// The spec, if this is of a Bundle.
    pub fn bundle(&self) -> Option<&BundleSpec> {
        match self {
            Self::Bundle(spec) => Some(spec),
            Self::Template(_) => None,
        }
    }
}

/// When a revision was the wanted one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionStatus {
    /// Each time it became the wanted one, oldest first; the last ten are kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["number"]))]
    pub uses: Vec<RevisionUse>,
}

/// One time that a revision became the wanted one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionUse {
    /// Counted over all revisions of the owner, from 1.
    pub number: u64,
    /// Who wanted it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// When it became the wanted one, by the clock of the machine that wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// Why, in the author's words; empty if nothing was said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Longest name of an object: a DNS label.
const NAME_MAX: usize = 63;
/// 48 bits of the hash: two of a hundred revisions of one owner meet once in 10^10 owners.
const HASH_DIGITS: usize = 12;

/// The name of the revision of `owner` that holds `content`: the owner's name, cut where needed, and the hash of the
/// content's JSON. The same content always has the same name; fields with their default take no part in it.
pub fn revision_name(owner: &str, content: &RevisionContent) -> String {
    let json = serde_json::to_vec(content).unwrap_or_else(|_| unreachable!("specs have string keys only"));
    let digest = Sha256::digest(&json);
    let hash: String = digest.iter().take(HASH_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    let owner = owner.get(..NAME_MAX - HASH_DIGITS - 1).unwrap_or(owner).trim_end_matches('-');
    format!("{owner}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::template::ContainerSpec;

    #[test]
    fn the_name_is_the_hash_of_what_is_said() {
        let content = |image: &str| {
            let container = ContainerSpec { image: image.into(), ..ContainerSpec::default() };
            RevisionContent::Template(Box::new(TaskTemplate { container, ..TaskTemplate::default() }))
        };
        assert_eq!(revision_name("vote", &content("a")), revision_name("vote", &content("a")));
        assert_ne!(revision_name("vote", &content("a")), revision_name("vote", &content("b")));
        // The name is stored: when this changes, every task of every user is replaced by the next version.
        assert_eq!(revision_name("vote", &content("example/vote:1")), "vote-88a8c9c5fb79");
        assert!(revision_name(&"x".repeat(63), &content("a")).len() <= NAME_MAX);
    }
}
