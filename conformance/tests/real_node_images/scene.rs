//! A containerd of one's own, our images on it, and layers to fill them with.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use conformance::parts::containerd::{self, PrivateContainerd};
use conformance::parts::process::wait_until;
use conformance::parts::registry::{Packing, Pushed, digest_of};
use controllers::node::containerd::connection::Connection;
use controllers::node::images::{
    ContainerdImages, Error, ImageInfo, Images, Options, Platform, Record, RegistryOptions, Wanted,
};
use rustls::pki_types::CertificateDer;
use serde_json::json;

const NAMESPACE: &str = "scene";

pub struct Scene {
    pub containerd: PrivateContainerd,
    pub connection: Connection,
    pub images: ContainerdImages,
}

impl Scene {
    pub fn start(name: &str) -> Result<Scene> {
        Scene::on(name, None)
    }

    pub fn start_on_small_disk(name: &str, bytes: u64) -> Result<Scene> {
        Scene::on(name, Some(bytes))
    }

    fn on(name: &str, disk_bytes: Option<u64>) -> Result<Scene> {
        let options = containerd::Options { disk_bytes, eager_collector: true, ..containerd::Options::default() };
        let containerd = PrivateContainerd::start_with(name, options)?;
        let (connection, images) = images_on(&containerd)?;
        Ok(Scene { images, connection, containerd })
    }

    /// Somebody who knows nothing of what was done so far.
    pub fn successor(&self) -> ContainerdImages {
        images_on(&self.containerd).unwrap().1
    }

    pub fn restart_containerd(&mut self) -> Result<()> {
        Ok(self.containerd.restart()?)
    }

    /// Images for which this authority may vouch for registries.
    pub fn trusting(&self, authority: CertificateDer<'static>) -> ContainerdImages {
        images(self.connection.clone(), vec![authority])
    }

    /// What `ctr` prints: a second look by other eyes.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        self.ctr_in(NAMESPACE, arguments)
    }

    pub fn ctr_in(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.containerd.socket())
            .args(["--namespace", namespace])
            .args(arguments)
            .output()
            .context("could not run ctr")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {arguments:?} failed: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub async fn import(&self, archive: Vec<u8>, name: Option<&str>) -> Result<Vec<Record>, Error> {
        let name = name.map(|name| name.parse().expect("test references are right"));
        self.images.import(Box::new(Cursor::new(archive)), name.as_ref()).await
    }

    /// Shows an image's file system, as `ctr` mounts it.
    pub fn look_inside(&self, image: &ImageInfo, look: impl FnOnce(&Path)) {
        let root = self.containerd.directory().join("inside");
        fs::create_dir_all(&root).unwrap();
        let name = image.image.by_digest().unwrap_or_else(|| image.image.clone()).to_string();
        let place = root.to_str().unwrap().to_owned();
        self.ctr(&["images", "mount", &name, &place]).unwrap();
        look(&root);
        self.ctr(&["images", "unmount", "--rm", &place]).unwrap();
    }

    pub fn leases(&self) -> String {
        self.ctr(&["leases", "ls", "-q"]).unwrap().trim().to_owned()
    }

    /// Waits until containerd holds exactly the content of these images, no unfinished content, their snapshots and no
    /// lease.
    pub fn nothing_is_left_over(&self, images: &[&Pushed]) -> Result<()> {
        let mut expected = BTreeSet::new();
        for image in images {
            expected.extend(image.blobs.keys().cloned());
            expected.extend(image.documents.iter().map(|(_, document)| digest_of(document)));
        }
        let has_snapshots = images.iter().any(|image| image.blobs.len() > 1);
        let mut seen = String::new();
        let outcome = wait_until("containerd to hold only what it should", Duration::from_secs(20), || {
            let ctr = |arguments: &[&str]| self.ctr(arguments).unwrap_or_else(|e| format!("{e:#}"));
            let content: BTreeSet<String> = ctr(&["content", "ls", "-q"]).lines().map(str::to_owned).collect();
            let unfinished = ctr(&["content", "active"]);
            let snapshots = ctr(&["snapshots", "ls"]);
            let leases = self.leases();
            let active = snapshots.lines().filter(|line| line.contains("Active")).count();
            let is_right = content == expected
                && unfinished.lines().count() <= 1
                && leases.is_empty()
                && active == 0
                && (snapshots.lines().count() > 1) == has_snapshots;
            seen = format!(
                "too much {:?}\ntoo little {:?}\n{unfinished}\n{snapshots}\nleases {leases}",
                content.difference(&expected).collect::<Vec<_>>(),
                expected.difference(&content).collect::<Vec<_>>(),
            );
            is_right
        });
        ensure!(outcome.is_ok(), "{}\n{seen}", outcome.unwrap_err());
        Ok(())
    }
}

fn images_on(containerd: &PrivateContainerd) -> Result<(Connection, ContainerdImages)> {
    let connection = Connection::new(containerd.socket(), NAMESPACE)?;
    Ok((connection.clone(), images(connection, Vec::new())))
}

fn images(connection: Connection, authorities: Vec<CertificateDer<'static>>) -> ContainerdImages {
    let first_pause = Duration::from_millis(10);
    let registries = RegistryOptions { first_pause, authorities, ..RegistryOptions::default() };
    ContainerdImages::new(connection, Options { registries, ..Options::default() })
}

/// As a controller would: again after every error that is said to be temporary.
pub async fn ensure_in_the_end(images: &ContainerdImages, wanted: &Wanted) -> ImageInfo {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match images.ensure(wanted).await {
            Err(error) if error.is_temporary() && tokio::time::Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            outcome => return outcome.unwrap(),
        }
    }
}

/// An entry of a layer.
pub struct File {
    pub path: String,
    pub content: Vec<u8>,
    pub kind: tar::EntryType,
    pub target: String,
    pub mode: u32,
    pub owner: (u64, u64),
}

impl File {
    pub fn text(path: &str, text: &str) -> File {
        File {
            path: path.into(),
            content: text.into(),
            kind: tar::EntryType::Regular,
            target: String::new(),
            mode: 0o644,
            owner: (0, 0),
        }
    }

    /// A file that does not compress.
    pub fn noise(path: &str, bytes: usize) -> File {
        File { content: noise(bytes, bytes as u64), ..File::text(path, "") }
    }

    pub fn dir(path: &str, mode: u32) -> File {
        File { kind: tar::EntryType::Directory, mode, ..File::text(path, "") }
    }

    pub fn link(path: &str, target: &str) -> File {
        File { kind: tar::EntryType::Link, target: target.into(), ..File::text(path, "") }
    }

    pub fn symlink(path: &str, target: &str) -> File {
        File { kind: tar::EntryType::Symlink, target: target.into(), ..File::text(path, "") }
    }

    pub fn mode(self, mode: u32) -> File {
        File { mode, ..self }
    }

    pub fn owner(self, user: u64, group: u64) -> File {
        File { owner: (user, group), ..self }
    }
}

/// A layer with exactly these entries, and none for their parents.
pub fn layer(files: &[File]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(file.kind);
        header.set_mode(file.mode);
        header.set_uid(file.owner.0);
        header.set_gid(file.owner.1);
        header.set_size(file.content.len() as u64);
        if file.target.is_empty() {
            tar.append_data(&mut header, &file.path, &file.content[..]).unwrap();
        } else {
            tar.append_link(&mut header, &file.path, &file.target).unwrap();
        }
    }
    tar.into_inner().unwrap()
}

/// An image of one gzip layer, for this machine.
pub fn image_of(files: &[File]) -> Pushed {
    Pushed::image(&Platform::of_this_machine().to_string(), &[(Packing::Gzip, layer(files))], json!({})).unwrap()
}

/// Bytes that do not compress, always the same for a seed.
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes.div_ceil(8)).flatten().take(bytes).collect()
}
