//! Having an image whole: documents, configuration, layers, snapshots, labels, and last its record.
//!
//! The order makes every prefix a safe place to die. Everything is made under the lease of the image's digest; a record
//! appears when all is there, and only then does the lease go. Whoever comes after a crash finds the lease, the blobs
//! and the half-written blob by their names and goes on.
//!
//! Layers are fetched a few at a time and unpacked in order as they come. A blob that two images share is fetched once,
//! a chain of snapshots that they share is unpacked once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use futures::stream::{StreamExt, TryStreamExt};
use schemas::image::{Algorithm, Digest, ImageRef};
use tokio::sync::mpsc;
use tonic::Status;

use super::build::Build;
use super::content::{self, Content};
use super::error::Error;
use super::fetch::Counted;
use super::manifest::{DOCUMENT_BYTES_MAX, Descriptor, Document, NotAnImage, digest_of};
use super::platform::Platform;
use super::progress::Entry;
use super::record::{self, Origin, Target};
use super::store::Shared;
use super::unpack::{self, Failed, Layer};
use super::{Credentials, ImageInfo, Pull, Wanted};

/// Layers of one image that are fetched side by side, as Docker does; all images together have the same number of
/// connections.
pub(super) const DOWNLOADS: usize = 3;

/// How many images' documents are kept once they were read. Beyond it all are forgotten; they are read again.
const READ_MAX: usize = 256;

/// Indexes that may lie between a reference and a manifest.
const INDEX_DEPTH_MAX: usize = 2;

/// Where what is missing comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Registry(Option<Credentials>),
    /// Only what is here: an import, or pulling is not allowed.
    Nowhere,
}

/// The work on one image, shared by all that is done for it.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) image: ImageRef,
    pub(super) source: Source,
    pub(super) content: Content,
    pub(super) entry: Arc<Entry>,
}

/// The root document of an image, as far as it is known.
#[derive(Clone, Debug)]
pub(super) struct Root {
    pub digest: Digest,
    pub media_type: String,
    /// If it has just been fetched.
    pub bytes: Option<Vec<u8>>,
}

impl Shared {
    /// Has the image, by whatever way is shortest.
    pub(super) async fn pull(self: Arc<Self>, wanted: Wanted) -> Result<ImageInfo, Error> {
        let image = &wanted.image;
        let known = record::get(&self.connection, image).await;
        let known = known.map_err(|status| Error::containerd(image, "look for its record", status))?;
        if let Some(known) = &known
            && (image.digest().is_some() || wanted.pull != Pull::Newest)
            && let Some(info) = self.whole(&wanted, known).await?
        {
            return Ok(info);
        }
        let entry = Arc::new(self.board.enter(image));
        let source = match wanted.pull {
            Pull::Never => Source::Nowhere,
            _ => Source::Registry(wanted.credentials.clone()),
        };
        let (root, stale_because, origin) = match self.root(&wanted, known.as_ref()).await {
            Ok(root) => {
                let same = known.as_ref().filter(|known| known.digest == root.digest);
                (root, None, same.map_or(Origin::Registry, |same| same.origin))
            }
            Err(error) => match known {
                Some(known) => (Root::of(&known), Some(error), known.origin),
                None => return Err(error.with_elsewhere(self.alike(image).await)),
            },
        };
        let whole = Whole::new(image, &root.digest, &wanted.platform);
        match self.complete(whole, root, source, entry, origin).await {
            Ok(info) => Ok(ImageInfo { image: image.clone(), stale_because, ..info }),
            Err(error) => Err(error.with_elsewhere(self.alike(image).await)),
        }
    }

    /// What the reference means: by its digest, by what is here, or by asking.
    async fn root(&self, wanted: &Wanted, known: Option<&Target>) -> Result<Root, Error> {
        let (image, credentials) = (&wanted.image, wanted.credentials.as_ref());
        if let Some(digest) = image.digest() {
            return Ok(Root { digest: digest.clone(), media_type: String::new(), bytes: None });
        }
        match (wanted.pull, known) {
            (Pull::Missing | Pull::Never, Some(known)) => Ok(Root::of(known)),
            (Pull::Never, None) => Err(Error::NotHere { image: image.clone().into(), elsewhere: Default::default() }),
            // A HEAD is cheap, and Docker Hub does not count it against its limits.
            (Pull::Newest, Some(known))
                if self.registries.digest(image, credentials).await?.as_ref() == Some(&known.digest) =>
            {
                Ok(Root::of(known))
            }
            _ => {
                let fetched = self.registries.manifest(image, credentials).await?;
                let (digest, media_type) = (fetched.digest, fetched.media_type);
                Ok(Root { digest, media_type, bytes: Some(fetched.bytes.to_vec()) })
            }
        }
    }

    /// The image, if everything that a container of it needs is here; nothing is made or changed.
    async fn whole(&self, wanted: &Wanted, known: &Target) -> Result<Option<ImageInfo>, Error> {
        let failed = |status| Error::containerd(&wanted.image, "read the image", status);
        let key = (known.digest.clone(), wanted.platform.clone());
        let read_before = self.read().get(&key).cloned();
        let info = match read_before {
            Some(info) => ImageInfo { image: wanted.image.clone(), ..info },
            None => match self.read_build(wanted, known).await? {
                Some(build) => build.info(&wanted.image),
                None => return Ok(None),
            },
        };
        if let Some(top) = &info.chain_id
            && !unpack::is_there(&self.connection, &self.snapshotter, top).await.map_err(failed)?
        {
            return Ok(None);
        }
        let mut read = self.read();
        if read.len() >= READ_MAX && !read.contains_key(&key) {
            read.clear();
        }
        read.entry(key).or_insert_with(|| info.clone());
        Ok(Some(info))
    }

    fn read(&self) -> MutexGuard<'_, BTreeMap<(Digest, Platform), ImageInfo>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_build(&self, wanted: &Wanted, known: &Target) -> Result<Option<Build>, Error> {
        let image = &wanted.image;
        let read = |digest: Digest| async move {
            let bytes = content::read(&self.connection, &digest, DOCUMENT_BYTES_MAX).await;
            bytes.map_err(|status| Error::containerd(image, "read the image", status))
        };
        let Some(mut bytes) = read(known.digest.clone()).await? else { return Ok(None) };
        let (root_bytes, mut digest, mut media_type) =
            (bytes.len() as u64, known.digest.clone(), known.media_type.clone());
        for _ in 0..=INDEX_DEPTH_MAX {
            match parse(image, &bytes, &media_type)? {
                Document::Index(index) => {
                    let chosen = choose(image, &wanted.platform, index.builds())?;
                    (digest, media_type) = (chosen.digest.clone(), chosen.media_type.clone());
                    let Some(next) = read(digest.clone()).await? else { return Ok(None) };
                    bytes = next;
                }
                Document::Manifest(manifest) => {
                    let Some(config) = read(manifest.config.digest.clone()).await? else { return Ok(None) };
                    let root = Root { digest: known.digest.clone(), media_type: known.media_type.clone(), bytes: None };
                    return Build::new(image, &wanted.platform, (root, root_bytes), (digest, manifest), &config)
                        .map(Some);
                }
            }
        }
        Err(Error::NotAnImage { image: image.clone().into(), why: NotAnImage::Nested })
    }

    /// Makes an image whole and gives it its name. One at a time for each name and content, as the lease is theirs.
    pub(super) async fn complete(
        self: &Arc<Self>,
        whole: Whole,
        root: Root,
        source: Source,
        entry: Arc<Entry>,
        origin: Origin,
    ) -> Result<ImageInfo, Error> {
        let mut outcome = None;
        for _ in 0..FLIGHTS_MAX {
            let began = Arc::new(AtomicBool::new(false));
            let flight = self.completions.join(&whole, || {
                began.store(true, Ordering::Relaxed);
                let (shared, whole, root) = (Arc::clone(self), whole.clone(), root.clone());
                shared.complete_alone(whole, root, source.clone(), Arc::clone(&entry), origin)
            });
            let landed = flight.await;
            // Somebody else's failure may come from their credentials, so it is tried with our own.
            if landed.is_ok() || began.load(Ordering::Relaxed) {
                return landed;
            }
            outcome = Some(landed);
        }
        outcome.expect("at least one flight was waited for")
    }

    async fn complete_alone(
        self: Arc<Self>,
        whole: Whole,
        root: Root,
        source: Source,
        entry: Arc<Entry>,
        origin: Origin,
    ) -> Result<ImageInfo, Error> {
        let image = whole.image.clone();
        let content = Content::under_lease(&self.connection, &lease_of(&whole)).await;
        let content = content.map_err(|status| Error::containerd(&image, "make a lease", status))?;
        let job = Arc::new(Job { shared: self, image, source, content, entry });
        let outcome = Arc::clone(&job).run(root, &whole.platform, origin).await;
        // What may succeed later goes on from what is there; what will not leaves nothing behind.
        if outcome.as_ref().err().is_none_or(|error| !error.is_temporary()) {
            let released = job.content.clone().release().await;
            if outcome.is_ok() {
                released.map_err(|status| Error::containerd(&job.image, "end a lease", status))?;
            }
        }
        outcome
    }

    /// Names here that end like this one.
    pub(super) async fn alike(&self, image: &ImageRef) -> Vec<ImageRef> {
        // Only a hint beside another error: without it the error is still right.
        let targets = record::list(&self.connection).await.unwrap_or_default();
        record::alike(targets.iter().map(|target| &target.image), image)
    }
}

/// What is made whole, by one at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Whole {
    /// As its record is called: references that mean one record mean one piece of work, under one lease.
    image: ImageRef,
    digest: Digest,
    platform: Platform,
}

impl Whole {
    pub fn new(image: &ImageRef, digest: &Digest, platform: &Platform) -> Self {
        Self { image: record::name_of(image), digest: digest.clone(), platform: platform.clone() }
    }
}

/// The lease of that work, which a successor finds again.
pub(super) fn lease_of(whole: &Whole) -> String {
    let names = format!("{} {} {}", whole.image, whole.digest, whole.platform);
    format!("apply-pull-{}", digest_of(Algorithm::Sha256, names.as_bytes()).hex())
}

impl Root {
    fn of(known: &Target) -> Root {
        Root { digest: known.digest.clone(), media_type: known.media_type.clone(), bytes: None }
    }
}

impl Job {
    async fn run(self: Arc<Self>, root: Root, platform: &Platform, origin: Origin) -> Result<ImageInfo, Error> {
        let build = self.documents(root, platform).await?;
        self.entry.total(build.manifest.bytes());
        self.entry.advance(build.manifest.config.size);
        self.layers(&build).await?;

        if let Some(top) = build.layers.last() {
            let label = format!("containerd.io/gc.ref.snapshot.{}", self.shared.snapshotter);
            let labels = vec![(label, top.chain_id.to_string())];
            let labelled = self.content.label(&build.manifest.config.digest, labels).await;
            labelled.map_err(|status| self.failed("label the configuration", status))?;
        }
        let target = Target {
            image: self.image.clone(),
            digest: build.root.clone(),
            media_type: build.root_media_type.clone(),
            size: build.root_bytes,
            origin,
            created: Default::default(),
        };
        let recorded = record::put(&self.shared.connection, &target).await;
        recorded.map_err(|status| self.failed("write its record", status))?;
        Ok(build.info(&self.image))
    }

    /// Index, manifest and configuration, here and labelled with what they keep.
    async fn documents(self: &Arc<Self>, root: Root, platform: &Platform) -> Result<Build, Error> {
        let (mut digest, mut media_type, mut fetched) = (root.digest.clone(), root.media_type.clone(), root.bytes);
        let mut root_document = None;
        for _ in 0..=INDEX_DEPTH_MAX {
            let bytes = self.document(&digest, fetched.take(), &mut media_type).await?;
            let document = parse(&self.image, &bytes, &media_type)?;
            let (root_bytes, root_media_type) =
                root_document.get_or_insert((bytes.len() as u64, document.media_type().to_owned())).clone();
            match document {
                Document::Index(index) => {
                    let chosen = choose(&self.image, platform, index.builds())?.clone();
                    let document = Document::Index(index);
                    self.label(&digest, document.references(Some(&chosen.digest))).await?;
                    (digest, media_type) = (chosen.digest, chosen.media_type);
                }
                Document::Manifest(manifest) => {
                    let document = Document::Manifest(manifest.clone());
                    self.label(&digest, document.references(None)).await?;
                    Arc::clone(self).blob("configuration", manifest.config.clone(), Counted::No).await?;
                    let config = self.content.read(&manifest.config.digest, DOCUMENT_BYTES_MAX).await;
                    let config = config.map_err(|status| self.failed("read the configuration", status))?;
                    let config = config.ok_or_else(|| self.missing("configuration", &manifest.config.digest))?;
                    let root = Root { digest: root.digest, media_type: root_media_type, bytes: None };
                    return Build::new(&self.image, platform, (root, root_bytes), (digest, manifest), &config);
                }
            }
        }
        Err(Error::NotAnImage { image: self.image.clone().into(), why: NotAnImage::Nested })
    }

    /// One document, which is in containerd afterwards.
    async fn document(
        &self,
        digest: &Digest,
        fetched: Option<Vec<u8>>,
        media_type: &mut String,
    ) -> Result<Vec<u8>, Error> {
        let here =
            self.content.claim_blob(digest).await.map_err(|status| self.failed("look for a manifest", status))?;
        if here.is_some() {
            let bytes = self.content.read(digest, DOCUMENT_BYTES_MAX).await;
            let bytes = bytes.map_err(|status| self.failed("read a manifest", status))?;
            if let Some(bytes) = bytes {
                return Ok(bytes);
            }
        }
        let bytes = match (fetched, &self.source) {
            (Some(bytes), _) => bytes,
            (None, Source::Nowhere) => return Err(self.missing("manifest", digest)),
            (None, Source::Registry(credentials)) => {
                let pinned = self.image.pinned(digest.clone());
                let fetched = self.shared.registries.manifest(&pinned, credentials.as_ref()).await?;
                *media_type = fetched.media_type;
                fetched.bytes.to_vec()
            }
        };
        // Before it is stored: a schema 1 manifest or a web page does not belong there.
        parse(&self.image, &bytes, media_type)?;
        let put = self.content.put(digest, &bytes).await;
        put.map_err(|status| self.failed("store a manifest", status))?;
        Ok(bytes)
    }

    /// Fetches and unpacks, side by side, and ends with the first failure of either.
    async fn layers(self: &Arc<Self>, build: &Build) -> Result<(), Error> {
        // As many places as there are layers: fetching never waits for unpacking.
        let (arrived, mut arrivals) = mpsc::channel(build.layers.len().max(1));
        let fetching = async move {
            futures::stream::iter(build.manifest.layers.iter().cloned())
                .map(|layer| Arc::clone(self).blob("layer", layer, Counted::Yes))
                .buffered(DOWNLOADS)
                .try_for_each(|()| {
                    let _ = arrived.try_send(());
                    futures::future::ready(Ok(()))
                })
                .await?;
            self.entry.unpacking();
            Ok(())
        };
        let unpacking = async {
            for layer in &build.layers {
                // Fetching failed: its error is the one to report.
                if arrivals.recv().await.is_none() {
                    return Ok(());
                }
                self.unpack(layer).await?;
            }
            Ok(())
        };
        futures::future::try_join(fetching, unpacking).await.map(drop)
    }

    async fn unpack(self: &Arc<Self>, layer: &Layer) -> Result<(), Error> {
        let snapshotter = &self.shared.snapshotter;
        for _ in 0..FLIGHTS_MAX {
            let claimed = unpack::claim_snapshot(&self.content, snapshotter, &layer.chain_id).await;
            if claimed.map_err(|status| self.failed("look for a snapshot", status))? {
                return Ok(());
            }
            let began = Arc::new(AtomicBool::new(false));
            let flight = self.shared.chains.join(&layer.chain_id, || {
                began.store(true, Ordering::Relaxed);
                let (job, layer) = (Arc::clone(self), layer.clone());
                async move {
                    let unpacked = unpack::unpack(&job.content, &job.shared.snapshotter, &layer).await;
                    unpacked.map_err(|failed| match failed {
                        Failed::Containerd(doing, status) => job.failed(doing, status),
                        Failed::OtherContent { found } => Error::Corrupt {
                            image: job.image.clone().into(),
                            what: "unpacked layer",
                            wanted: layer.diff_id.clone(),
                            found,
                        },
                    })
                }
            });
            match flight.await {
                Err(error) if began.load(Ordering::Relaxed) => return Err(error),
                // Somebody else's failure may not be ours; and their success is seen by looking.
                _ => {}
            }
        }
        Err(self.failed("unpack a layer", Status::aborted("others who unpacked it failed again and again")))
    }

    async fn label(&self, digest: &Digest, labels: Vec<(String, String)>) -> Result<(), Error> {
        self.content.label(digest, labels).await.map_err(|status| self.failed("label a manifest", status))
    }

    pub(super) fn failed(&self, doing: &'static str, status: Status) -> Error {
        Error::containerd(&self.image, doing, status)
    }

    pub(super) fn missing(&self, what: &'static str, digest: &Digest) -> Error {
        Error::Incomplete { image: self.image.clone().into(), what, digest: digest.clone() }
    }

    pub(super) fn corrupt(&self, what: &'static str, blob: &Descriptor, found: String) -> Error {
        Error::Corrupt { image: self.image.clone().into(), what, wanted: blob.digest.clone(), found }
    }
}

/// How often somebody else's work is waited for before giving up; each time it must have failed.
pub(super) const FLIGHTS_MAX: usize = 4;

fn parse(image: &ImageRef, bytes: &[u8], media_type: &str) -> Result<Document, Error> {
    Document::parse(bytes, media_type).map_err(|why| Error::NotAnImage { image: image.clone().into(), why })
}

fn choose<'a>(
    image: &ImageRef,
    wanted: &Platform,
    builds: Vec<(Platform, &'a Descriptor)>,
) -> Result<&'a Descriptor, Error> {
    let (platforms, descriptors): (Vec<Platform>, Vec<&Descriptor>) = builds.into_iter().unzip();
    match wanted.choose(&platforms) {
        Some(at) => Ok(descriptors[at]),
        None => Err(Error::WrongPlatform { image: image.clone().into(), wanted: wanted.clone(), offered: platforms }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_one_lease_is_one_piece_of_work() {
        let digest = digest_of(Algorithm::Sha256, b"an image");
        let platform = Platform::of_this_machine();
        let names = ["app:1".to_owned(), "app:2".to_owned(), format!("app@{digest}"), format!("app:1@{digest}")];
        let wholes: Vec<Whole> =
            names.iter().map(|name| Whole::new(&name.parse().unwrap(), &digest, &platform)).collect();
        for (a, b) in wholes.iter().flat_map(|a| wholes.iter().map(move |b| (a, b))) {
            assert_eq!(a == b, lease_of(a) == lease_of(b), "{a:?} {b:?}");
        }
        assert_eq!(wholes[2], wholes[3], "a digest says more than a tag beside it");
    }
}
