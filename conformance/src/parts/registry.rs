//! A registry of one's own: Debian's docker-registry on a loopback port, with or without a password, and what is needed
//! to fill it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, LOCATION};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::process::{Process, clear, fresh_folder, wait_until};

/// The only user of a registry with a password.
pub const USER: &str = "anna";
pub const PASSWORD: &str = "correct horse";

/// A running registry. Dropped, it is killed and what it stored is removed.
pub struct Registry {
    folder: PathBuf,
    port: u16,
    has_password: bool,
    authority: Option<CertificateDer<'static>>,
    process: Option<Process>,
    client: reqwest::Client,
}

/// Whether a registry lets everyone in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Open,
    /// [`USER`] and [`PASSWORD`], for pulls too.
    Password,
    /// The same behind TLS, with a certificate that [`Registry::authority`] vouches for.
    Tls,
}

impl Registry {
    pub fn start(name: &str, door: Door) -> Result<Registry> {
        let folder = fresh_folder(&format!("registry-{name}"))?;
        let auth = match door {
            Door::Open => String::new(),
            Door::Password | Door::Tls => {
                let made = Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output();
                let made = made.context("could not run htpasswd (package apache2-utils)")?;
                ensure!(made.status.success(), "htpasswd failed: {}", String::from_utf8_lossy(&made.stderr));
                let users = folder.join("htpasswd");
                fs::write(&users, made.stdout)?;
                format!("auth:\n  htpasswd:\n    realm: conformance\n    path: {}\n", users.display())
            }
        };
        // The port is free now; should somebody take it meanwhile, the registry says so and the test fails.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (listener, authority) = match door {
            Door::Tls => {
                let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
                let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
                fs::write(&certificate, made.cert.pem())?;
                fs::write(&key, made.signing_key.serialize_pem())?;
                let (certificate, key) = (certificate.display(), key.display());
                (format!("  tls:\n    certificate: {certificate}\n    key: {key}\n"), Some(made.cert.der().clone()))
            }
            Door::Open | Door::Password => (String::new(), None),
        };
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
             http:\n  addr: 127.0.0.1:{port}\n{listener}{auth}",
            folder.join("storage").display()
        );
        fs::write(folder.join("config.yml"), config)?;
        let client =
            reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls(authority.clone())?).build()?;
        let has_password = door != Door::Open;
        let mut registry = Registry { folder, port, has_password, authority, process: None, client };
        registry.restart()?;
        Ok(registry)
    }

    /// Starts it again on the same port, with what it had.
    pub fn restart(&mut self) -> Result<()> {
        let config = self.folder.join("config.yml");
        let mut process = Process::start(&self.folder, Command::new("docker-registry").arg("serve").arg(config))?;
        let mut ended = Ok(());
        wait_until("the registry to listen", Duration::from_secs(20), || {
            ended = process.check();
            ended.is_err() || TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        })?;
        ended.context("the registry does not run")?;
        self.process = Some(process);
        Ok(())
    }

    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Who vouches for it, if it speaks TLS.
    pub fn authority(&self) -> Option<CertificateDer<'static>> {
        self.authority.clone()
    }

    /// As image references name it: `localhost:PORT`.
    pub fn name(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Pushes the blobs of an image, then its documents, the last of which gets the tag.
    pub async fn push(&self, repository: &str, tag: &str, image: &Pushed) -> Result<()> {
        for blob in image.blobs.values() {
            self.push_blob(repository, blob).await?;
        }
        for (at, (media_type, document)) in image.documents.iter().enumerate() {
            let is_last = at + 1 == image.documents.len();
            let reference = if is_last { tag.to_owned() } else { digest_of(document) };
            self.push_document(repository, &reference, media_type, document).await?;
        }
        Ok(())
    }

    async fn push_blob(&self, repository: &str, blob: &[u8]) -> Result<()> {
        let begun = self.send(self.client.post(format!("{}/{repository}/blobs/uploads/", self.base()))).await?;
        let place = begun.headers().get(LOCATION).context("an upload has a place")?.to_str()?;
        let separator = if place.contains('?') { '&' } else { '?' };
        let place = format!("{place}{separator}digest={}", digest_of(blob));
        let answer = self.send(self.client.put(place).body(blob.to_vec())).await?;
        ensure!(answer.status() == StatusCode::CREATED, "a blob was answered {}", answer.status());
        Ok(())
    }

    pub async fn push_document(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let url = format!("{}/{repository}/manifests/{reference}", self.base());
        let answer = self.send(self.client.put(url).header(CONTENT_TYPE, media_type).body(bytes.to_vec())).await?;
        let status = answer.status();
        ensure!(status == StatusCode::CREATED, "a manifest was answered {status}: {}", answer.text().await?);
        Ok(())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
        let request = if self.has_password { request.basic_auth(USER, Some(PASSWORD)) } else { request };
        Ok(request.send().await?)
    }

    fn base(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}/v2", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process = None;
        if !std::thread::panicking()
            && let Err(error) = clear(&self.folder)
        {
            eprintln!("{error:#}");
        }
    }
}

/// An image made in memory, to be pushed or archived.
#[derive(Clone, Debug, Default)]
pub struct Pushed {
    /// By digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// Manifests and indexes with their media types; the last one is what a tag names.
    pub documents: Vec<(String, Vec<u8>)>,
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How a layer of a made image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Pushed {
    /// An image of these layers (tar archives) for `os/architecture`; `config` is the `config` object of its
    /// configuration.
    pub fn image(platform: &str, layers: &[(Packing, Vec<u8>)], config: Value) -> Result<Pushed> {
        let (os, architecture) = platform.split_once('/').context("a platform is os/architecture")?;
        let mut image = Pushed::default();
        let diff_ids: Vec<String> = layers.iter().map(|(_, tar)| digest_of(tar)).collect();
        let mut descriptors = Vec::new();
        for (packing, tar) in layers {
            let (suffix, blob) = match packing {
                Packing::Plain => ("", tar.clone()),
                Packing::Gzip => ("+gzip", gzip(tar)?),
                Packing::Zstd => ("+zstd", zstd::encode_all(&tar[..], 1)?),
            };
            descriptors.push(image.blob(&format!("{OCI_LAYER}{suffix}"), blob));
        }
        let config = json!({"os": os, "architecture": architecture, "config": config,
                            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = image.blob("application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config)?);
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": descriptors});
        image.documents.push((OCI_MANIFEST.to_owned(), serde_json::to_vec(&manifest)?));
        Ok(image)
    }

    /// An index of several images, each with the platform that the index states for it, and extra fields.
    pub fn index(images: Vec<(Pushed, Value)>) -> Result<Pushed> {
        let mut whole = Pushed::default();
        let mut entries = Vec::new();
        for (image, extra) in images {
            let (media_type, document) = image.documents.last().context("an image has a manifest")?;
            let mut entry = json!({"mediaType": media_type, "digest": digest_of(document), "size": document.len()});
            for (key, value) in extra.as_object().into_iter().flatten() {
                entry[key] = value.clone();
            }
            entries.push(entry);
            whole.blobs.extend(image.blobs);
            whole.documents.extend(image.documents);
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        whole.documents.push((OCI_INDEX.to_owned(), serde_json::to_vec(&index)?));
        Ok(whole)
    }

    pub fn blob(&mut self, media_type: &str, blob: Vec<u8>) -> Value {
        let descriptor = json!({"mediaType": media_type, "digest": digest_of(&blob), "size": blob.len()});
        self.blobs.insert(digest_of(&blob), blob);
        descriptor
    }

    /// The digest of what a tag names.
    pub fn digest(&self) -> String {
        self.documents.last().map(|(_, document)| digest_of(document)).unwrap_or_default()
    }

    /// The blobs that are layers of the last manifest, in order.
    pub fn layers(&self) -> Vec<String> {
        let manifest = self.documents.last().and_then(|(_, document)| serde_json::from_slice::<Value>(document).ok());
        let layers = manifest.and_then(|manifest| manifest["layers"].as_array().cloned()).unwrap_or_default();
        layers.iter().filter_map(|layer| layer["digest"].as_str().map(str::to_owned)).collect()
    }

    /// An OCI layout as a tar archive, with a name for what the last document is.
    pub fn oci_archive(&self, name: &str) -> Result<Vec<u8>> {
        let (media_type, document) = self.documents.last().context("an image has a manifest")?;
        let index = json!({"schemaVersion": 2, "manifests": [
            {"mediaType": media_type, "digest": digest_of(document), "size": document.len(),
             "annotations": {"org.opencontainers.image.ref.name": name}}]});
        let documents = self.documents.iter().map(|(_, document)| (digest_of(document), document.clone()));
        let blobs = self.blobs.clone().into_iter().chain(documents);
        let mut files: Vec<(String, Vec<u8>)> =
            blobs.map(|(digest, bytes)| (format!("blobs/{}", digest.replace(':', "/")), bytes)).collect();
        files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        files.push(("index.json".to_owned(), serde_json::to_vec(&index)?));
        archive(&files)
    }
}

/// A tar archive of these files.
pub fn archive(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, &content[..])?;
    }
    Ok(tar.into_inner()?)
}

pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes)?;
    Ok(encoder.finish()?)
}

pub fn digest_of(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// By ring; without this the client would look for a crypto provider of the process.
fn tls(authority: Option<CertificateDer<'static>>) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(authority);
    let builder = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
}
