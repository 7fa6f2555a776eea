//! An OCI image layout: blobs by their digest, and the documents that tie them together.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layer::Tree;

/// The folder `out`: blobs, and notes on what each layer was made of.
pub struct Store {
    root: PathBuf,
}

/// A blob as other documents name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
}

/// A layer: its blob, and the digest of what is inside the compression.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub blob: Descriptor,
    pub diff_id: String,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Zstd,
    Gzip,
    None,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Built {
    /// As people write it: `example/vote:1`.
    pub name: String,
    pub manifest: Descriptor,
    pub layers: Vec<Layer>,
    pub config: Descriptor,
}

impl Built {
    /// Bytes to pull: layers, configuration and manifest.
    pub fn size(&self) -> u64 {
        self.manifest.size + self.config.size + self.layers.iter().map(|layer| layer.blob.size).sum::<u64>()
    }
}

impl Store {
    pub fn open(root: &Path) -> Result<Store> {
        for folder in ["blobs/sha256", "made-of"] {
            fs::create_dir_all(root.join(folder)).with_context(|| format!("could not create {folder} in the store"))?;
        }
        Ok(Store { root: root.to_owned() })
    }

    /// The layer that was made of these ingredients before, or a new one. `ingredients` must name everything that can
    /// change the tree; the tree is made only when there is no such layer yet.
    pub fn layer(
        &self,
        ingredients: &str,
        compression: Compression,
        tree: impl FnOnce() -> Result<Tree>,
    ) -> Result<Layer> {
        let key = hex(&Sha256::digest(format!("{FORMAT}\n{compression:?}\n{ingredients}")));
        let note = self.root.join("made-of").join(key);
        if let Some(layer) = fs::read(&note).ok().and_then(|note| serde_json::from_slice::<Layer>(&note).ok())
            && fs::metadata(self.blob_path(&layer.blob)).is_ok_and(|blob| blob.len() == layer.blob.size)
        {
            return Ok(layer);
        }
        let mut tar = Vec::new();
        tree()?.write(&mut tar)?;
        let (media_type, bytes) = match compression {
            Compression::Zstd => (ZSTD, zstd::encode_all(&tar[..], 3).context("could not compress a layer")?),
            Compression::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                gzip.write_all(&tar)?;
                (GZIP, gzip.finish()?)
            }
            Compression::None => (TAR, tar.clone()),
        };
        let layer = Layer { blob: self.put(media_type, &bytes)?, diff_id: digest(&tar) };
        self.replace(&note, &serde_json::to_vec(&layer)?)?;
        Ok(layer)
    }

    /// The image of these layers. `config` is the `config` object of the image configuration.
    pub fn image(&self, name: &str, layers: Vec<Layer>, config: &Value) -> Result<Built> {
        let configuration = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>() },
        });
        let config = self.put(CONFIG, &serde_json::to_vec(&configuration)?)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.to_json(),
            "layers": layers.iter().map(|layer| layer.blob.to_json()).collect::<Vec<_>>(),
        });
        let manifest = self.put(MANIFEST, &serde_json::to_vec(&manifest)?)?;
        Ok(Built { name: name.to_owned(), manifest, layers, config })
    }

    /// Writes images and all that they need into one tar archive, over what was there.
    pub fn write_archive(&self, images: &[Built], path: &Path) -> Result<()> {
        let mut manifests = Vec::new();
        let mut blobs: Vec<&Descriptor> = Vec::new();
        for image in images {
            let mut manifest = image.manifest.to_json();
            manifest["annotations"] = json!({
                // The first is what containerd reads, and takes whole; the second is OCI's.
                "io.containerd.image.name": full_name(&image.name),
                "org.opencontainers.image.ref.name": image.name,
            });
            manifest["platform"] = json!({ "architecture": architecture(), "os": "linux" });
            manifests.push(manifest);
            blobs.extend([&image.manifest, &image.config]);
            blobs.extend(image.layers.iter().map(|layer| &layer.blob));
        }
        blobs.sort_by(|one, other| one.digest.cmp(&other.digest));
        blobs.dedup();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });

        let partial = path.with_extension("tar.partial");
        let file = File::create(&partial).with_context(|| format!("could not create {}", partial.display()))?;
        let mut tar = tar::Builder::new(BufWriter::new(file));
        let mut append = |name: &str, size: u64, contents: &mut dyn Read| -> Result<()> {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_size(size);
            tar.append_data(&mut header, name, contents).with_context(|| format!("could not add {name}"))
        };
        append("oci-layout", LAYOUT.len() as u64, &mut LAYOUT.as_bytes())?;
        let index = serde_json::to_vec(&index)?;
        append("index.json", index.len() as u64, &mut &index[..])?;
        for blob in blobs {
            let mut file = File::open(self.blob_path(blob)).with_context(|| format!("{} is gone", blob.digest))?;
            append(&format!("blobs/sha256/{}", blob.hash()), blob.size, &mut file)?;
        }
        tar.into_inner()?.into_inner().context("could not write the archive")?.sync_all()?;
        fs::rename(&partial, path).with_context(|| format!("could not replace {}", path.display()))
    }

    fn put(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor> {
        let blob = Descriptor { media_type: media_type.to_owned(), digest: digest(bytes), size: bytes.len() as u64 };
        let path = self.blob_path(&blob);
        if fs::metadata(&path).map(|found| found.len()).ok() != Some(blob.size) {
            self.replace(&path, bytes)?;
        }
        Ok(blob)
    }

    /// All of the new contents or all of the old: a killed build leaves no half blob under a whole one's name.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let partial = self.root.join("partial");
        fs::write(&partial, bytes)
            .and_then(|()| fs::rename(&partial, path))
            .with_context(|| format!("could not write {}", path.display()))
    }

    fn blob_path(&self, blob: &Descriptor) -> PathBuf {
        self.root.join("blobs/sha256").join(blob.hash())
    }
}

impl Descriptor {
    fn hash(&self) -> &str {
        self.digest.trim_start_matches("sha256:")
    }

    fn to_json(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size })
    }
}

/// As OCI names the architecture of this machine.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A name as containerd knows it: Docker's registry is said.
fn full_name(name: &str) -> String {
    format!("docker.io/{name}")
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").expect("a string takes what is written");
        digits
    })
}

/// Changed when the bytes of a layer are made in another way, so that none of the old ones is taken for a new one.
const FORMAT: u32 = 1;
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
