//! Revision: what a service or a bundle once was, under a name that is the hash of it.

use reconciler_api::{Resource, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bundle::BundleSpec;
use super::template::{FileKind, TaskTemplate};

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
    /// Of a Service: which data the Secrets and Configs had that its tasks see; in the hash as well, so that other data is
    /// another revision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub files: Vec<FileVersion>,
}

/// Which data a Secret or Config had.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileVersion {
    /// Which of the two it is.
    pub kind: FileKind,
    /// Its name.
    pub name: String,
    /// A digest of its data, of a Secret one that only managers can make.
    pub digest: String,
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

impl RevisionSpec {
    /// What `owner` is where no Secret and no Config is seen.
    pub fn new(owner: impl Into<String>, content: RevisionContent) -> Self {
        Self { owner: owner.into(), content, files: Vec::new() }
    }

    /// The name of the revision: the owner's name, cut where needed, and the hash of the JSON of the rest. The same always
    /// has the same name; fields with their default take no part in it.
    pub fn name(&self) -> String {
        let json =
            |part: serde_json::Result<Vec<u8>>| part.unwrap_or_else(|_| unreachable!("specs have string keys only"));
        let mut hashed = json(serde_json::to_vec(&self.content));
        if !self.files.is_empty() {
            hashed.extend(json(serde_json::to_vec(&self.files)));
        }
        let digest = Sha256::digest(&hashed);
        let hash: String = digest.iter().take(HASH_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
        let owner = self.owner.get(..NAME_MAX - HASH_DIGITS - 1).unwrap_or(&self.owner).trim_end_matches('-');
        format!("{owner}-{hash}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::template::ContainerSpec;

    #[test]
    fn the_name_is_the_hash_of_what_is_said() {
        let spec = |owner: &str, image: &str, digest: Option<&str>| {
            let container = ContainerSpec { image: image.into(), ..ContainerSpec::default() };
            let content = RevisionContent::Template(Box::new(TaskTemplate { container, ..TaskTemplate::default() }));
            let file = |digest: &str| FileVersion { kind: FileKind::Secret, name: "key".into(), digest: digest.into() };
            RevisionSpec { files: digest.into_iter().map(file).collect(), ..RevisionSpec::new(owner, content) }.name()
        };
        let vote = |image: &str| spec("vote", image, None);
        assert_eq!(vote("a"), vote("a"));
        assert_ne!(vote("a"), vote("b"));
        // The name is stored: when this changes, every task of every user is replaced by the next version.
        assert_eq!(vote("example/vote:1"), "vote-88a8c9c5fb79");
        assert!(spec(&"x".repeat(63), "a", None).len() <= NAME_MAX);
        let names = [None, Some("1"), Some("2")].map(|digest| spec("vote", "a", digest));
        assert!(names[0] != names[1] && names[1] != names[2], "other data is another revision");
    }
}
