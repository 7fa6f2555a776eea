//! What registries and archives say an image is made of: descriptors, manifests, indexes. Pure: bytes in, data or the
//! reason out.
//!
//! Two dialects name the same things, Docker's and OCI's. They are told apart by what the document holds, with the
//! media type only as a witness, since both registries and `docker save` leave it out or get it wrong.

use std::collections::BTreeMap;

use schemas::image::{Algorithm, Digest};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use super::platform::Platform;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
];

/// What to ask a registry for: everything we read, and schema 1, so that an old registry names it instead of saying
/// that there is nothing.
pub(super) const ACCEPTED: [&str; 6] =
    [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST, DOCKER_SCHEMA_1[0], DOCKER_SCHEMA_1[1]];

/// Largest manifest, index or configuration that is read into memory, in bytes. Registries refuse manifests above 4 MiB.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// Most layers of an image. The kernel stacks at most 500; Docker makes at most 127.
const LAYERS_MAX: usize = 500;

/// Most entries of an index.
const INDEX_ENTRIES_MAX: usize = 1000;

/// A promise about some content: where it is, how long it is, what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<IndexPlatform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IndexPlatform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// The manifest of an image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// A list of manifests, one a platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// Why a document is not an image that can be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnImage {
    #[error("its manifest is of schema 1, which no tool has written since 2017: push it again with a current one")]
    Schema1,
    #[error("its manifest is not understood: {0}")]
    Unreadable(String),
    #[error("it holds {0}, not a file system: it is not an image of a container")]
    Artifact(String),
    #[error("a layer of it is of the kind {0}, which cannot be unpacked here")]
    Layer(String),
    #[error("it has {layers} layers and its configuration names {named}")]
    Layers { layers: usize, named: usize },
    #[error("its {what} is {bytes} bytes long, {max} at most")]
    TooLarge { what: &'static str, bytes: u64, max: u64 },
    #[error("it is an index in an index in an index")]
    Nested,
    #[error("it has {0}, more than anything real has")]
    TooMany(String),
}

impl Document {
    /// Reads a manifest or an index. `media_type` is what the sender called it, empty if it did not say.
    pub(super) fn parse(bytes: &[u8], media_type: &str) -> Result<Document, NotAnImage> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            #[serde(default)]
            schema_version: u32,
            #[serde(default)]
            media_type: String,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            config: Option<serde::de::IgnoredAny>,
        }
        let unreadable = |why: serde_json::Error| NotAnImage::Unreadable(why.to_string());
        let shape: Shape = serde_json::from_slice(bytes).map_err(unreadable)?;
        let is_schema_1 = |media_type: &str| DOCKER_SCHEMA_1.contains(&media_type);
        if shape.schema_version == 1 || is_schema_1(media_type) || is_schema_1(&shape.media_type) {
            return Err(NotAnImage::Schema1);
        }
        match (shape.manifests, shape.config) {
            // One that reads as both would be an index to one reader and a manifest to another (CVE-2021-41190).
            (Some(_), Some(_)) => Err(NotAnImage::Unreadable("it has both manifests and a config".to_owned())),
            (Some(_), None) => {
                let index: Index = serde_json::from_slice(bytes).map_err(unreadable)?;
                if index.manifests.len() > INDEX_ENTRIES_MAX {
                    return Err(NotAnImage::TooMany(format!("{} builds", index.manifests.len())));
                }
                Ok(Document::Index(index))
            }
            (None, Some(_)) => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(unreadable)?;
                manifest.check()?;
                Ok(Document::Manifest(manifest))
            }
            (None, None) => Err(NotAnImage::Unreadable("it has neither manifests nor a config".to_owned())),
        }
    }

    /// The media type that the document states, or the one of its shape.
    pub(super) fn media_type(&self) -> &str {
        match self {
            Document::Index(index) if index.media_type == DOCKER_LIST => DOCKER_LIST,
            Document::Index(_) => OCI_INDEX,
            Document::Manifest(manifest) if manifest.media_type == OCI_MANIFEST => OCI_MANIFEST,
            Document::Manifest(manifest) if manifest.media_type == DOCKER_MANIFEST => DOCKER_MANIFEST,
            // Only OCI allows the field to be absent.
            Document::Manifest(_) => OCI_MANIFEST,
        }
    }

    /// What this document keeps from containerd's collector: label and digest of each child. Of an index, `chosen` only.
    pub(super) fn references(&self, chosen: Option<&Digest>) -> Vec<(String, String)> {
        const LABEL: &str = "containerd.io/gc.ref.content";
        match self {
            Document::Manifest(manifest) => std::iter::once((format!("{LABEL}.config"), &manifest.config))
                .chain(manifest.layers.iter().enumerate().map(|(at, layer)| (format!("{LABEL}.l.{at}"), layer)))
                .map(|(label, child)| (label, child.digest.to_string()))
                .collect(),
            Document::Index(index) => (index.manifests.iter().enumerate())
                .filter(|(_, child)| chosen.is_none_or(|chosen| *chosen == child.digest))
                .map(|(at, child)| (format!("{LABEL}.m.{at}"), child.digest.to_string()))
                .collect(),
        }
    }
}

impl Manifest {
    fn check(&self) -> Result<(), NotAnImage> {
        if self.layers.len() > LAYERS_MAX {
            return Err(NotAnImage::TooMany(format!("{} layers", self.layers.len())));
        }
        let is_config = |kind: &str| {
            matches!(
                kind,
                "" | OCI_CONFIG | "application/vnd.docker.container.image.v1+json" | "application/octet-stream"
            )
        };
        if !is_config(&self.config.media_type) {
            return Err(NotAnImage::Artifact(self.config.media_type.clone()));
        }
        if self.config.size > DOCUMENT_BYTES_MAX {
            let (what, max) = ("configuration", DOCUMENT_BYTES_MAX);
            return Err(NotAnImage::TooLarge { what, bytes: self.config.size, max });
        }
        match self.layers.iter().find(|layer| layer_media_type(&layer.media_type).is_none()) {
            Some(layer) => Err(NotAnImage::Layer(layer.media_type.clone())),
            None => Ok(()),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).fold(self.config.size, u64::saturating_add)
    }
}

impl Index {
    /// The builds in it that are images, each with its platform. Attestations and signatures are entries too, for the
    /// platform `unknown/unknown`; they are left out.
    pub(super) fn builds(&self) -> Vec<(Platform, &Descriptor)> {
        let is_attestation = |entry: &Descriptor| {
            let unknown = (entry.platform.as_ref()).is_some_and(|p| p.os == "unknown" || p.architecture == "unknown");
            unknown || entry.annotations.contains_key("vnd.docker.reference.type")
        };
        let readable = |kind: &str| {
            matches!(kind, "" | OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST)
                || DOCKER_SCHEMA_1.contains(&kind)
        };
        (self.manifests.iter())
            .filter(|entry| !is_attestation(entry) && readable(&entry.media_type))
            .map(|entry| {
                let stated = entry.platform.as_ref();
                // An index with one entry often leaves its platform out; the configuration is looked at later.
                let platform = stated.map_or_else(Platform::of_this_machine, |platform| {
                    Platform::new(&platform.os, &platform.architecture, &platform.variant)
                });
                (platform, entry)
            })
            .collect()
    }
}

/// The media type by which containerd's diff service unpacks a layer of this kind, none for what is no layer.
///
/// Docker's names for foreign layers and for zstd are translated: containerd 1.6 does not know them.
pub(super) fn layer_media_type(stated: &str) -> Option<String> {
    let compression = match stated {
        // Whoever left it out: containerd looks at the first bytes.
        "" => return Some("application/vnd.docker.image.rootfs.diff.tar".to_owned()),
        "application/vnd.docker.image.rootfs.diff.tar" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            return Some(stated.to_owned());
        }
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => "+zstd",
        other => other
            .strip_prefix(OCI_LAYER)
            .or_else(|| other.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar"))?,
    };
    matches!(compression, "" | "+gzip" | "+zstd").then(|| format!("{OCI_LAYER}{compression}"))
}

/// The names that containerd's snapshots have: of the first layer, of the first two, and so on. The last is the image's.
pub(super) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for layer in diff_ids {
        let next = match chain.last() {
            None => layer.clone(),
            Some(below) => digest_of(Algorithm::Sha256, format!("{below} {layer}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

pub(super) fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    match algorithm {
        Algorithm::Sha256 => Digest::new(algorithm, &Sha256::digest(bytes)),
        Algorithm::Sha512 => Digest::new(algorithm, &Sha512::digest(bytes)),
    }
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn parse(document: serde_json::Value) -> Result<Document, NotAnImage> {
        Document::parse(document.to_string().as_bytes(), "")
    }

    #[test]
    fn schema_1_is_refused_with_these_words() {
        for (document, media_type) in [
            (json!({"schemaVersion": 1, "name": "x", "fsLayers": []}), ""),
            (json!({"schemaVersion": 2}), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        ] {
            let refused = Document::parse(document.to_string().as_bytes(), media_type).unwrap_err();
            assert!(refused.to_string().contains("schema 1"), "{refused}");
            assert!(refused.to_string().contains("push it again"), "{refused}");
        }
    }

    #[test]
    fn attestations_are_not_platforms() {
        let index = parse(json!({"schemaVersion": 2, "manifests": [
            {"mediaType": OCI_MANIFEST, "digest": A, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
            {"mediaType": OCI_MANIFEST, "digest": B, "size": 1, "platform": {"os": "unknown", "architecture": "unknown"},
             "annotations": {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": A}},
        ]}));
        let Ok(Document::Index(index)) = index else { panic!("{index:?}") };
        let builds: Vec<String> = index.builds().iter().map(|(platform, _)| platform.to_string()).collect();
        assert_eq!(builds, ["linux/amd64"]);
    }

    #[test]
    fn what_is_no_image_is_refused_by_what_it_is() {
        let config = |kind: &str| json!({"mediaType": kind, "digest": A, "size": 2});
        let layer = |kind: &str| json!([{"mediaType": kind, "digest": B, "size": 2}]);
        for (document, said) in [
            (
                json!({"schemaVersion": 2, "config": config("application/vnd.cncf.helm.config.v1+json"), "layers": []}),
                "helm",
            ),
            (
                json!({"schemaVersion": 2, "config": config(OCI_CONFIG), "layers": layer("application/x+encrypted")}),
                "x+encrypted",
            ),
            (
                json!({"schemaVersion": 2, "config": config(OCI_CONFIG), "layers": [], "manifests": []}),
                "both manifests and a config",
            ),
            (json!({"schemaVersion": 2}), "neither"),
            (json!([]), "not understood"),
            (
                json!({"schemaVersion": 2, "config": {"digest": "sha256:zz", "size": 1}, "layers": []}),
                "is not a digest",
            ),
            (json!({"schemaVersion": 2, "config": {"digest": A, "size": -1}, "layers": []}), "not understood"),
            (json!({"schemaVersion": 2, "config": {"digest": A, "size": 1_u64 << 40}, "layers": []}), "at most"),
            (
                json!({"schemaVersion": 2, "config": config(""), "layers": vec![json!({"digest": A, "size": 1}); 501]}),
                "501 layers",
            ),
        ] {
            let refused = parse(document.clone()).unwrap_err().to_string();
            assert!(refused.contains(said), "{document}: {refused}");
        }
    }

    #[test]
    fn layers_of_either_dialect_get_a_media_type_that_containerd_unpacks() {
        for (stated, used) in [
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                Some("application/vnd.docker.image.rootfs.diff.tar.gzip"),
            ),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Some("application/vnd.oci.image.layer.v1.tar+zstd")),
            ("application/vnd.oci.image.layer.v1.tar", Some("application/vnd.oci.image.layer.v1.tar")),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some("application/vnd.oci.image.layer.v1.tar+zstd")),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                Some("application/vnd.oci.image.layer.v1.tar+gzip"),
            ),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", None),
            ("text/plain", None),
        ] {
            assert_eq!(layer_media_type(stated).as_deref(), used, "{stated}");
        }
    }

    #[test]
    fn chain_ids_are_containerds() {
        // From the OCI image specification's definition, computed by hand with sha256sum.
        let (a, b): (Digest, Digest) = (A.parse().unwrap(), B.parse().unwrap());
        let chain = chain_ids(&[a.clone(), b]);
        assert_eq!(chain[0], a);
        assert_eq!(chain[1].as_str(), "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c");
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn an_index_keeps_only_the_chosen_build() {
        let document = parse(json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [
            {"digest": A, "size": 1}, {"digest": B, "size": 1}]}))
        .unwrap();
        assert_eq!(document.media_type(), DOCKER_LIST);
        let kept = document.references(Some(&B.parse().unwrap()));
        assert_eq!(kept, [("containerd.io/gc.ref.content.m.1".to_owned(), B.to_owned())]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in ".{0,40}") {
            let _ = Document::parse(&bytes, &kind);
        }
    }
}
