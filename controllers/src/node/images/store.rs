//! The real [`Images`]: containerd of this machine, and registries.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use schemas::image::{Digest, ImageRef};
use tokio::sync::{Semaphore, watch};
use tonic::Status;

use super::super::containerd::connection::Connection;
use super::build::stated_platform;
use super::content::{self, release_abandoned};
use super::error::Error;
use super::flights::Flights;
use super::import::{self, Imports};
use super::manifest::{DOCUMENT_BYTES_MAX, Document};
use super::platform::Platform;
use super::progress::{Board, Pulls};
use super::pull::{DOWNLOADS, Whole, lease_of};
use super::record::{self, Origin, Target};
use super::registry::{Registries, RegistryOptions};
use super::{Archive, Credentials, ImageInfo, Images, Prune, PruneImported, Record, Resolved, Wanted};

/// How images are kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The containerd plugin that keeps file systems. Default `overlayfs`.
    pub snapshotter: String,
    pub registries: RegistryOptions,
}

impl Default for Options {
    fn default() -> Self {
        Options { snapshotter: "overlayfs".to_owned(), registries: RegistryOptions::default() }
    }
}

/// The images in one namespace of containerd. Cheap to clone; clones share their pulls.
#[derive(Clone)]
pub struct ContainerdImages {
    shared: Arc<Shared>,
}

/// What all pulls share.
pub(super) struct Shared {
    pub connection: Connection,
    pub snapshotter: String,
    pub registries: Registries,
    pub board: Board,
    pub pulls: Flights<Wanted, Result<ImageInfo, Error>>,
    pub completions: Flights<Whole, Result<ImageInfo, Error>>,
    pub blobs: Flights<Digest, Result<(), Error>>,
    pub chains: Flights<Digest, Result<(), Error>>,
    pub imports: Imports,
    /// What documents say that were read: content has the name of its hash, so they say it for ever.
    pub read: Mutex<BTreeMap<(Digest, Platform), ImageInfo>>,
    /// Places for blobs that are being fetched, of all images together.
    pub downloads: Semaphore,
}

impl ContainerdImages {
    pub fn new(connection: Connection, options: Options) -> Self {
        let shared = Shared {
            connection,
            snapshotter: options.snapshotter,
            registries: Registries::new(options.registries),
            board: Board::default(),
            pulls: Flights::default(),
            completions: Flights::default(),
            blobs: Flights::default(),
            chains: Flights::default(),
            imports: Imports::default(),
            read: Mutex::default(),
            downloads: Semaphore::new(DOWNLOADS),
        };
        ContainerdImages { shared: Arc::new(shared) }
    }
}

impl Images for ContainerdImages {
    fn resolve<'a>(
        &'a self,
        image: &'a ImageRef,
        credentials: Option<&'a Credentials>,
    ) -> BoxFuture<'a, Result<Resolved, Error>> {
        self.shared.resolve(image, credentials).boxed()
    }

    fn ensure<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<ImageInfo, Error>> {
        self.shared.pulls.join(wanted, || Arc::clone(&self.shared).pull(wanted.clone())).boxed()
    }

    fn progress(&self) -> watch::Receiver<Pulls> {
        self.shared.board.watch()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Record>, Error>> {
        async {
            let targets = record::list(&self.shared.connection).await.map_err(listing)?;
            self.shared.describe(targets).await
        }
        .boxed()
    }

    fn remove<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<bool, Error>> {
        async move {
            let removed = record::delete(&self.shared.connection, image).await;
            removed.map_err(|status| Error::containerd(image, "remove the image", status))
        }
        .boxed()
    }

    fn prune<'a>(&'a self, prune: &'a Prune) -> BoxFuture<'a, Result<Vec<Record>, Error>> {
        self.shared.prune(prune).boxed()
    }

    fn import<'a>(&'a self, archive: Archive, name: Option<&'a ImageRef>) -> BoxFuture<'a, Result<Vec<Record>, Error>> {
        async move {
            let targets = import::import(&self.shared, archive, name).await?;
            self.shared.describe(targets).await
        }
        .boxed()
    }
}

impl Shared {
    async fn resolve(&self, image: &ImageRef, credentials: Option<&Credentials>) -> Result<Resolved, Error> {
        let known = record::get(&self.connection, image).await;
        let known = known.map_err(|status| Error::containerd(image, "look for its record", status))?;
        if let Some(known) = &known
            && (known.origin == Origin::Archive || image.digest().is_some())
            && let Some(resolved) = self.resolve_here(image, known).await?
        {
            return Ok(resolved);
        }
        let error = match self.resolve_there(image, credentials).await {
            Ok(resolved) => return Ok(resolved),
            Err(error) => error,
        };
        if let Some(known) = &known
            && let Some(resolved) = self.resolve_here(image, known).await?
        {
            return Ok(Resolved { stale_because: Some(error), ..resolved });
        }
        Err(error.with_elsewhere(self.alike(image).await))
    }

    async fn resolve_there(&self, image: &ImageRef, credentials: Option<&Credentials>) -> Result<Resolved, Error> {
        let fetched = self.registries.manifest(image, credentials).await?;
        let document = Document::parse(&fetched.bytes, &fetched.media_type);
        let document = document.map_err(|why| Error::NotAnImage { image: image.clone().into(), why })?;
        let platforms = match &document {
            Document::Index(_) => platforms_of_index(&document),
            Document::Manifest(manifest) => {
                let config = &manifest.config;
                let bytes = self.registries.small_blob(image, credentials, &config.digest, config.size).await?;
                platform_of_config(&bytes).into_iter().collect()
            }
        };
        Ok(Resolved { digest: fetched.digest, platforms, stale_because: None })
    }

    async fn resolve_here(&self, image: &ImageRef, known: &Target) -> Result<Option<Resolved>, Error> {
        let failed = |status| Error::containerd(image, "read the image", status);
        let read = async |digest: &Digest| content::read(&self.connection, digest, DOCUMENT_BYTES_MAX).await;
        let Some(bytes) = read(&known.digest).await.map_err(failed)? else { return Ok(None) };
        let document = Document::parse(&bytes, &known.media_type);
        let document = document.map_err(|why| Error::NotAnImage { image: image.clone().into(), why })?;
        let platforms = match &document {
            Document::Index(_) => platforms_of_index(&document),
            Document::Manifest(manifest) => {
                let Some(bytes) = read(&manifest.config.digest).await.map_err(failed)? else { return Ok(None) };
                platform_of_config(&bytes).into_iter().collect()
            }
        };
        Ok(Some(Resolved { digest: known.digest.clone(), platforms, stale_because: None }))
    }

    async fn prune(&self, prune: &Prune) -> Result<Vec<Record>, Error> {
        let targets = record::list(&self.connection).await.map_err(listing)?;
        let under_way: Vec<ImageRef> = self.pulls.keys().into_iter().map(|wanted| wanted.image).collect();
        let is_used = |target: &Target| {
            prune.in_use.iter().chain(&under_way).any(|used| {
                record::name_of(used) == target.image
                    || used.by_tag().as_ref() == Some(&target.image)
                    || used.digest() == Some(&target.digest)
            })
        };
        let may_go = |target: &Target| prune.imported == PruneImported::Take || target.origin == Origin::Registry;
        let going: Vec<Target> = targets.into_iter().filter(|target| !is_used(target) && may_go(target)).collect();
        let going = self.describe(going).await?;
        for gone in &going {
            let removed = record::delete(&self.connection, &gone.image).await;
            removed.map_err(|status| Error::containerd(&gone.image, "remove the image", status))?;
        }
        let live: Vec<String> = self.completions.keys().iter().map(lease_of).collect();
        let is_live = |lease: &str| live.iter().any(|live| live == lease) || self.imports.holds(lease);
        release_abandoned(&self.connection, is_live).await.map_err(|status| Error::store("end old leases", status))?;
        Ok(going)
    }

    async fn describe(&self, targets: Vec<Target>) -> Result<Vec<Record>, Error> {
        let mut records = Vec::with_capacity(targets.len());
        for target in targets {
            records.push(Record {
                size_bytes: self.size(&target).await.map_err(listing)?,
                image: target.image,
                digest: target.digest,
                created: target.created,
                imported: target.origin == Origin::Archive,
            });
        }
        Ok(records)
    }

    /// The compressed size of the build that is here; what cannot be read counts nothing.
    async fn size(&self, target: &Target) -> Result<u64, Status> {
        let mut candidates = vec![target.digest.clone()];
        let platform = Platform::of_this_machine();
        for _ in 0..3 {
            let Some(digest) = candidates.pop() else { break };
            let Some(bytes) = content::read(&self.connection, &digest, DOCUMENT_BYTES_MAX).await? else { break };
            match Document::parse(&bytes, "") {
                Ok(Document::Manifest(manifest)) => return Ok(manifest.bytes()),
                Ok(Document::Index(index)) => {
                    let (platforms, builds): (Vec<_>, Vec<_>) = index.builds().into_iter().unzip();
                    candidates.extend(platform.choose(&platforms).map(|at| builds[at].digest.clone()));
                }
                Err(_) => break,
            }
        }
        Ok(0)
    }
}

fn platforms_of_index(document: &Document) -> Vec<Platform> {
    match document {
        Document::Index(index) => index.builds().into_iter().map(|(platform, _)| platform).collect(),
        Document::Manifest(_) => Vec::new(),
    }
}

fn platform_of_config(bytes: &[u8]) -> Option<Platform> {
    serde_json::from_slice(bytes).ok().and_then(|config| stated_platform(&config))
}

fn listing(status: Status) -> Error {
    Error::store("list images", status)
}
