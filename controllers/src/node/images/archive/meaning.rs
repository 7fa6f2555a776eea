//! Which images the files of an archive make: by `index.json` (OCI layouts, and `docker save` since version 25) or by
//! `manifest.json` (`docker save` of any age).

use std::collections::BTreeMap;

use schemas::image::{Algorithm, Digest, ImageRef};
use serde::Deserialize;

use super::super::manifest::{DOCKER_MANIFEST, Descriptor, Document, Manifest, digest_of};
use super::super::platform::Platform;
use super::BadArchive;

const INDEX: &str = "index.json";
const MANIFEST: &str = "manifest.json";

/// A file that is now in the content store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node::images) struct Stored {
    pub digest: Digest,
    pub bytes: u64,
}

/// What an archive held.
#[derive(Clone, Debug, Default)]
pub(in crate::node::images) struct Contents {
    pub files: BTreeMap<String, Stored>,
    pub links: BTreeMap<String, String>,
    /// The documents that say what the files are.
    pub documents: BTreeMap<String, Vec<u8>>,
}

/// One name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node::images) struct Found {
    pub image: ImageRef,
    pub digest: Digest,
    pub media_type: String,
    /// A manifest that is made up from the archive's, and is to be stored.
    pub made: Option<Vec<u8>>,
}

/// What to do with a file of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node::images) enum Keep {
    InMemory,
    InStore,
    No,
}

/// What to do with a file, by its name alone: the documents that give the others a meaning may come last.
pub(in crate::node::images) fn keep(path: &str) -> Keep {
    match path.rsplit('/').next() {
        _ if matches!(path, INDEX | MANIFEST) => Keep::InMemory,
        _ if matches!(path, "oci-layout" | "repositories") => Keep::No,
        // Beside each layer, from before 2016.
        Some("VERSION" | "json") => Keep::No,
        _ => Keep::InStore,
    }
}

impl Contents {
    /// The images. `name` is for one that has none; `platform` decides between builds of one name.
    pub fn images(&self, name: Option<&ImageRef>, platform: &Platform) -> Result<Vec<Found>, BadArchive> {
        let mut found = match (self.documents.get(INDEX), self.documents.get(MANIFEST)) {
            (Some(index), saved) => {
                let images = self.of_index(index, platform)?;
                match saved {
                    // `docker save` of old images and some tools leave the names out of the index only.
                    Some(saved) if images.iter().all(|(name, _)| name.is_none()) => self.of_manifest(saved)?,
                    _ => images,
                }
            }
            (None, Some(saved)) => self.of_manifest(saved)?,
            (None, None) => return Err(BadArchive::NoImages),
        };
        if found.is_empty() {
            return Err(BadArchive::NoImages);
        }
        let unnamed = found.iter().filter(|(name, _)| name.is_none()).count();
        match (unnamed, name) {
            (0, _) => {}
            (1, Some(name)) => {
                for (slot, _) in found.iter_mut().filter(|(slot, _)| slot.is_none()) {
                    *slot = Some(name.clone());
                }
            }
            (1, None) => return Err(BadArchive::Unnamed),
            (many, _) => return Err(BadArchive::ManyUnnamed(many)),
        }
        let named = found.into_iter().filter_map(|(name, found)| Some(Found { image: name?, ..found }));
        Ok(named.collect())
    }

    fn of_index(&self, bytes: &[u8], platform: &Platform) -> Result<Vec<Unnamed>, BadArchive> {
        let document = Document::parse(bytes, "");
        let index = match document.map_err(|why| document_error(INDEX, why.to_string()))? {
            Document::Index(index) => index,
            Document::Manifest(_) => return Err(document_error(INDEX, "it is a manifest".to_owned())),
        };
        // Builds of one name for several platforms may lie side by side.
        let mut by_name: BTreeMap<Option<ImageRef>, Vec<(Platform, &Descriptor)>> = BTreeMap::new();
        let mut nameless = Vec::new();
        for (built_for, entry) in index.builds() {
            match name_of(entry)? {
                Some(name) => by_name.entry(Some(name)).or_default().push((built_for, entry)),
                None => nameless.push((None, entry)),
            }
        }
        let chosen = by_name.into_iter().filter_map(|(name, builds)| {
            let platforms: Vec<Platform> = builds.iter().map(|(platform, _)| platform.clone()).collect();
            // None that runs here: the first one then says so, with the platform that it is for.
            let at = platform.choose(&platforms).unwrap_or(0);
            builds.get(at).map(|(_, entry)| (name, *entry))
        });
        let mut images = Vec::new();
        for (name, entry) in chosen.chain(nameless) {
            let path = format!("blobs/{}", entry.digest.as_str().replacen(':', "/", 1));
            let stored = self.file(&path)?;
            if stored.bytes != entry.size {
                return Err(BadArchive::Corrupt {
                    path,
                    found: format!("{} bytes instead of {}", stored.bytes, entry.size),
                });
            }
            images.push(unnamed(name, entry.digest.clone(), entry.media_type.clone(), None));
        }
        Ok(images)
    }

    fn of_manifest(&self, bytes: &[u8]) -> Result<Vec<Unnamed>, BadArchive> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
            #[serde(default)]
            layers: Option<Vec<String>>,
        }
        let saved: Vec<Saved> =
            serde_json::from_slice(bytes).map_err(|why| document_error(MANIFEST, why.to_string()))?;
        let mut images = Vec::new();
        for image in saved {
            let descriptor = |media_type: &str, stored: &Stored| Descriptor {
                media_type: media_type.to_owned(),
                digest: stored.digest.clone(),
                size: stored.bytes,
                platform: None,
                annotations: BTreeMap::new(),
            };
            let config = self.file(&image.config)?;
            let layers: Result<Vec<&Stored>, BadArchive> =
                image.layers.iter().flatten().map(|layer| self.file(layer)).collect();
            let manifest = Manifest {
                schema_version: 2,
                media_type: DOCKER_MANIFEST.to_owned(),
                config: descriptor("application/vnd.docker.container.image.v1+json", config),
                // Compressed or not: containerd looks at the first bytes of what has this type.
                layers: layers?
                    .into_iter()
                    .map(|layer| descriptor("application/vnd.docker.image.rootfs.diff.tar", layer))
                    .collect(),
            };
            let made = serde_json::to_vec(&manifest).expect("a manifest is JSON");
            let digest = digest_of(Algorithm::Sha256, &made);
            let what = |name| unnamed(name, digest.clone(), DOCKER_MANIFEST.to_owned(), Some(made.clone()));
            let tags = image.repo_tags.unwrap_or_default();
            if tags.is_empty() {
                images.push(what(None));
                continue;
            }
            for tag in tags {
                let name = tag.parse().map_err(|why| BadArchive::BadName { text: tag.clone(), why })?;
                images.push(what(Some(name)));
            }
        }
        Ok(images)
    }

    /// The file at a path, or where the links from it lead.
    fn file(&self, path: &str) -> Result<&Stored, BadArchive> {
        /// Links in a row; real archives have one.
        const LINKS_MAX: usize = 8;
        let mut at = path.trim_start_matches("./");
        for _ in 0..LINKS_MAX {
            match (self.files.get(at), self.links.get(at)) {
                (Some(stored), _) => return Ok(stored),
                (None, Some(target)) => at = target,
                (None, None) => break,
            }
        }
        Err(BadArchive::Missing(path.chars().take(200).collect()))
    }
}

/// A found image, whose `image` means nothing yet, beside its name if it has one.
type Unnamed = (Option<ImageRef>, Found);

fn unnamed(name: Option<ImageRef>, digest: Digest, media_type: String, made: Option<Vec<u8>>) -> Unnamed {
    let placeholder = name.clone().unwrap_or_else(|| "unnamed".parse().expect("it is a repository"));
    (name, Found { image: placeholder, digest, media_type, made })
}

/// The name that an entry of an index has. The one that containerd and Docker write is whole; OCI's own is often only a
/// tag, which says nothing without a repository.
fn name_of(entry: &Descriptor) -> Result<Option<ImageRef>, BadArchive> {
    let whole = entry.annotations.get("io.containerd.image.name");
    let text = whole.or_else(|| {
        let name = entry.annotations.get("org.opencontainers.image.ref.name")?;
        name.contains(['/', ':']).then_some(name)
    });
    match text {
        None => Ok(None),
        Some(text) => {
            text.parse().map(Some).map_err(|why| BadArchive::BadName { text: text.chars().take(200).collect(), why })
        }
    }
}

fn document_error(path: &'static str, why: String) -> BadArchive {
    BadArchive::Document { path, why }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(of: char) -> String {
        format!("sha256:{}", of.to_string().repeat(64))
    }

    fn contents(files: &[(&str, char)], documents: &[(&str, serde_json::Value)]) -> Contents {
        let stored = |of: &char| Stored { digest: digest(*of).parse().unwrap(), bytes: 1 };
        Contents {
            files: files.iter().map(|(path, of)| ((*path).to_owned(), stored(of))).collect(),
            links: BTreeMap::new(),
            documents: documents.iter().map(|(path, d)| ((*path).to_owned(), d.to_string().into_bytes())).collect(),
        }
    }

    fn images(contents: &Contents, name: Option<&str>) -> Result<Vec<String>, BadArchive> {
        let name = name.map(|name| name.parse().unwrap());
        let found = contents.images(name.as_ref(), &Platform::new("linux", "amd64", ""))?;
        Ok(found.iter().map(|found| format!("{} {}", found.image.familiar(), &found.digest.hex()[..4])).collect())
    }

    fn entry(of: char, annotations: serde_json::Value, architecture: &str) -> serde_json::Value {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(of), "size": 1,
               "annotations": annotations, "platform": {"os": "linux", "architecture": architecture}})
    }

    #[test]
    fn an_oci_layout_names_its_images_in_several_ways() {
        let blobs: Vec<(String, char)> =
            "abcd".chars().map(|of| (format!("blobs/{}", digest(of).replace(':', "/")), of)).collect();
        let blobs: Vec<(&str, char)> = blobs.iter().map(|(path, of)| (path.as_str(), *of)).collect();
        let index = json!({"schemaVersion": 2, "manifests": [
            entry('a', json!({"io.containerd.image.name": "docker.io/library/redis:7", "org.opencontainers.image.ref.name": "7"}), "amd64"),
            entry('b', json!({"org.opencontainers.image.ref.name": "localhost:5000/x:1"}), "arm64"),
            entry('c', json!({"org.opencontainers.image.ref.name": "localhost:5000/x:1"}), "amd64"),
            entry('d', json!({"org.opencontainers.image.ref.name": "latest"}), "amd64"),
        ]});
        let contents = contents(&blobs, &[(INDEX, index)]);
        assert_eq!(
            images(&contents, Some("mine:1")).unwrap(),
            ["redis:7 aaaa", "localhost:5000/x:1 cccc", "mine:1 dddd"]
        );
        assert_eq!(images(&contents, None).unwrap_err(), BadArchive::Unnamed);
    }

    #[test]
    fn what_docker_saves_becomes_manifests() {
        let saved = json!([
            {"Config": "c.json", "RepoTags": ["a:1", "b/c:2"], "Layers": ["x/layer.tar", "y/layer.tar"]},
            {"Config": "c.json", "RepoTags": null, "Layers": null},
        ]);
        let mut contents = contents(&[("c.json", 'a'), ("x/layer.tar", 'b')], &[(MANIFEST, saved)]);
        contents.links.insert("y/layer.tar".into(), "x/layer.tar".into());
        let platform = Platform::new("linux", "amd64", "");
        let found = contents.images(Some(&"z".parse().unwrap()), &platform).unwrap();
        let names: Vec<String> = found.iter().map(|found| found.image.familiar()).collect();
        assert_eq!(names, ["a:1", "b/c:2", "z:latest"]);
        assert_eq!(found[0].digest, found[1].digest);
        let made = Document::parse(found[0].made.as_ref().unwrap(), "").unwrap();
        let Document::Manifest(made) = made else { panic!("{made:?}") };
        assert_eq!(made.layers.len(), 2);
        assert_eq!(made.layers[1].digest.as_str(), digest('b'));
        assert_eq!(images(&contents, None).unwrap_err(), BadArchive::Unnamed);
    }

    #[test]
    fn names_come_from_the_saved_manifest_when_the_index_has_none() {
        let blob = format!("blobs/{}", digest('a').replace(':', "/"));
        let index = json!({"schemaVersion": 2, "manifests": [entry('a', json!({}), "amd64")]});
        let saved = json!([{"Config": blob, "RepoTags": ["a:1"], "Layers": []}]);
        let contents = contents(&[(&blob, 'a')], &[(INDEX, index), (MANIFEST, saved)]);
        assert_eq!(images(&contents, None).unwrap().len(), 1);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let saved = |config: &str, tag: &str| json!([{"Config": config, "RepoTags": [tag], "Layers": []}]);
        let refused = |contents: &Contents| images(contents, None).unwrap_err().to_string();
        assert_eq!(refused(&contents(&[], &[(MANIFEST, saved("c.json", "a"))])), "it names c.json, which is not in it");
        let bad_name = refused(&contents(&[("c.json", 'a')], &[(MANIFEST, saved("c.json", "A B"))]));
        assert!(bad_name.contains("\"A B\""), "{bad_name}");
        assert_eq!(refused(&contents(&[], &[])), BadArchive::NoImages.to_string());
        assert_eq!(refused(&contents(&[], &[(MANIFEST, json!([]))])), BadArchive::NoImages.to_string());
        assert!(refused(&contents(&[], &[(INDEX, json!({}))])).starts_with("index.json: "));
        let mut circle = contents(&[], &[(MANIFEST, saved("a", "x"))]);
        circle.links = BTreeMap::from([("a".into(), "b".into()), ("b".into(), "a".into())]);
        assert_eq!(refused(&circle), "it names a, which is not in it");
    }
}
