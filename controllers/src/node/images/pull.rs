//! Having an image whole: documents, configuration, layers, snapshots, labels, and last its record.
//!
//! The order makes every prefix a safe place to die. Everything is made under the lease of the image's digest; a record
//! appears when all is there, and only then does the lease go. Whoever comes after a crash finds the lease, the blobs
//! and the half-written blob by their names and goes on.
//!
//! Layers are fetched a few at a time and unpacked in order as they come. A blob that two images share is fetched once,
//! a chain of snapshots that they share is unpacked once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use futures::stream::{StreamExt, TryStreamExt};
use oci_spec::image::ImageConfiguration;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use schemas::image::{Algorithm, Digest, ImageRef};
use serde::Deserialize;
use tokio::sync::mpsc;
use tonic::Status;

use super::content::{self, CHUNK_BYTES, Content, Ingest, Opened, reference_of};
use super::error::Error;
use super::manifest::{
    DOCUMENT_BYTES_MAX, Descriptor, Document, Manifest, NotAnImage, chain_ids, digest_of, layer_media_type,
};
use super::platform::Platform;
use super::progress::Entry;
use super::record::{self, Origin, Target};
use super::registry::retry::Setback;
use super::registry::{bear, root_cause, unreachable};
use super::store::Shared;
use super::unpack::{self, Failed, Layer};
use super::{Credentials, Healthcheck, ImageInfo, Pull, Wanted};

/// Layers of one image that are fetched side by side, as Docker does; all images together have the same number of
/// connections.
pub(super) const DOWNLOADS: usize = 3;

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
struct Job {
    shared: Arc<Shared>,
    image: ImageRef,
    source: Source,
    content: Content,
    entry: Arc<Entry>,
}

/// The root document of an image, as far as it is known.
#[derive(Clone, Debug)]
pub(super) struct Root {
    pub digest: Digest,
    pub media_type: String,
    /// If it has just been fetched.
    pub bytes: Option<Vec<u8>>,
}

/// The documents of an image for one platform.
struct Build {
    root: Digest,
    root_bytes: u64,
    root_media_type: String,
    manifest_digest: Digest,
    manifest: Manifest,
    config: ImageConfiguration,
    healthcheck: Option<Healthcheck>,
    layers: Vec<Layer>,
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
        let whole = Whole { image: image.clone(), digest: root.digest.clone(), platform: wanted.platform.clone() };
        match self.complete(whole, root, source, entry, origin).await {
            Ok(info) => Ok(ImageInfo { stale_because, ..info }),
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
        let Some(build) = self.read_build(wanted, known).await? else { return Ok(None) };
        if let Some(top) = build.layers.last()
            && !unpack::is_there(&self.connection, &self.snapshotter, &top.chain_id).await.map_err(failed)?
        {
            return Ok(None);
        }
        Ok(Some(build.info(&wanted.image)))
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
    pub image: ImageRef,
    pub digest: Digest,
    pub platform: Platform,
}

/// The lease of that work, which a successor finds again.
pub(super) fn lease_of(whole: &Whole) -> String {
    let names = format!("{} {} {}", record::name_of(&whole.image), whole.digest, whole.platform);
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

    /// One blob, in containerd afterwards, whole.
    fn blob(
        self: Arc<Self>,
        what: &'static str,
        blob: Descriptor,
        counted: Counted,
    ) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(async move {
            for _ in 0..FLIGHTS_MAX {
                let here = self.content.claim_blob(&blob.digest).await;
                if let Some(size) = here.map_err(|status| self.failed("look for a layer", status))? {
                    if size != blob.size {
                        return Err(self.corrupt(what, &blob, format!("{size} bytes instead of {}", blob.size)));
                    }
                    self.count(counted, blob.size);
                    return Ok(());
                }
                let Source::Registry(credentials) = &self.source else {
                    return Err(self.missing(what, &blob.digest));
                };
                let began = Arc::new(AtomicBool::new(false));
                let flight = self.shared.blobs.join(&blob.digest, || {
                    began.store(true, Ordering::Relaxed);
                    let (job, blob, credentials) = (Arc::clone(&self), blob.clone(), credentials.clone());
                    async move { job.fetch(what, &blob, credentials.as_ref(), counted).await }
                });
                match flight.await {
                    outcome if began.load(Ordering::Relaxed) => return outcome,
                    // Their credentials or repository may have been the reason, so it is tried by ourselves.
                    _ => {}
                }
            }
            Err(self.failed("store a layer", Status::aborted("others who fetched it failed again and again")))
        })
    }

    /// Fetches a blob into containerd, going on where a broken connection or a dead predecessor stopped.
    async fn fetch(
        &self,
        what: &'static str,
        blob: &Descriptor,
        credentials: Option<&Credentials>,
        counted: Counted,
    ) -> Result<(), Error> {
        let _place = self.shared.downloads.acquire().await.expect("the semaphore is never closed");
        let reference = reference_of(&blob.digest);
        let store = |status| self.failed("store a layer", status);
        let mut patience = self.shared.registries.patience();
        let mut may_be_leftover = true;
        let mut shown = 0;
        loop {
            let opened = self.content.open(&reference, Some((&blob.digest, blob.size))).await.map_err(store)?;
            let Opened::Ingest(mut ingest) = opened else {
                self.count(counted, blob.size - shown);
                return Ok(());
            };
            let from = ingest.offset();
            self.show(counted, &mut shown, from.min(blob.size));
            let outcome = match from.cmp(&blob.size) {
                std::cmp::Ordering::Less => {
                    self.receive(what, blob, credentials, &mut ingest, |at| self.show(counted, &mut shown, at)).await
                }
                _ => Ok(()),
            };
            match outcome {
                Ok(()) if ingest.offset() == blob.size => {
                    let found = ingest.found().await.map_err(store)?;
                    if found == blob.digest.as_str() {
                        return ingest.commit(&blob.digest, blob.size).await.map_err(store);
                    }
                    self.content.discard(*ingest, &reference).await.map_err(store)?;
                    // The part that was there before us may be the bad one: once more, all of it from the registry.
                    if from == 0 || !may_be_leftover {
                        return Err(self.corrupt(what, blob, found));
                    }
                    may_be_leftover = false;
                }
                Ok(()) => {
                    self.content.discard(*ingest, &reference).await.map_err(store)?;
                }
                Err(Trouble::Broken(why)) => {
                    if ingest.offset() > from {
                        patience.renew();
                    }
                    drop(ingest);
                    bear(&mut patience, Setback::Broken).await.ok_or_else(|| unreachable(&self.image, &why))?;
                }
                Err(Trouble::Final(error)) => {
                    // What a lying registry sent is of no use to the next attempt.
                    if !error.is_temporary() {
                        self.content.discard(*ingest, &reference).await.map_err(store)?;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Writes what the registry sends, from where the ingest stands to the end.
    async fn receive(
        &self,
        what: &'static str,
        blob: &Descriptor,
        credentials: Option<&Credentials>,
        ingest: &mut Ingest,
        mut show: impl FnMut(u64),
    ) -> Result<(), Trouble> {
        let from = ingest.offset();
        let strange = |status: StatusCode, message: String| {
            Trouble::Final(Error::Strange { image: self.image.clone().into(), status: status.as_u16(), message })
        };
        let answer = self.shared.registries.blob(&self.image, credentials, &blob.digest, from).await;
        let mut response = answer.map_err(Trouble::Final)?;
        let mut skip = match response.status() {
            StatusCode::OK => from,
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                if range.and_then(range_start) != Some(from) {
                    let message = format!("with {range:?} when asked for bytes {from}-");
                    return Err(strange(response.status(), message));
                }
                0
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let found = format!("no more than {from} bytes instead of {}", blob.size);
                return Err(Trouble::Final(self.corrupt(what, blob, found)));
            }
            status => return Err(strange(status, format!("it has no {what} {}", blob.digest))),
        };
        let mut buffer = Vec::new();
        loop {
            let chunk = response.chunk().await;
            let is_last = !matches!(chunk, Ok(Some(_)));
            if let Ok(Some(chunk)) = &chunk {
                let skipped = skip.min(chunk.len() as u64);
                skip -= skipped;
                buffer.extend_from_slice(&chunk[skipped as usize..]);
            }
            if ingest.offset() + buffer.len() as u64 > blob.size {
                let found = format!("more than {} bytes", blob.size);
                return Err(Trouble::Final(self.corrupt(what, blob, found)));
            }
            while buffer.len() >= CHUNK_BYTES || (is_last && !buffer.is_empty()) {
                let rest = buffer.split_off(buffer.len().min(CHUNK_BYTES));
                let written = ingest.write(std::mem::replace(&mut buffer, rest)).await;
                written.map_err(|status| Trouble::Final(self.failed("store a layer", status)))?;
                show(ingest.offset());
            }
            match chunk {
                Ok(Some(_)) => {}
                Ok(None) if ingest.offset() == blob.size => return Ok(()),
                Ok(None) => {
                    return Err(Trouble::Broken(format!("it ended after {} of {} bytes", ingest.offset(), blob.size)));
                }
                Err(failed) => return Err(Trouble::Broken(root_cause(&failed))),
            }
        }
    }

    async fn label(&self, digest: &Digest, labels: Vec<(String, String)>) -> Result<(), Error> {
        self.content.label(digest, labels).await.map_err(|status| self.failed("label a manifest", status))
    }

    fn count(&self, counted: Counted, bytes: u64) {
        if counted == Counted::Yes {
            self.entry.advance(bytes);
        }
    }

    /// Moves what is shown of one blob from `shown` to `at`.
    fn show(&self, counted: Counted, shown: &mut u64, at: u64) {
        if counted == Counted::Yes {
            match at.checked_sub(*shown) {
                Some(forward) => self.entry.advance(forward),
                None => self.entry.retreat(*shown - at),
            }
        }
        *shown = at;
    }

    fn failed(&self, doing: &'static str, status: Status) -> Error {
        Error::containerd(&self.image, doing, status)
    }

    fn missing(&self, what: &'static str, digest: &Digest) -> Error {
        Error::Incomplete { image: self.image.clone().into(), what, digest: digest.clone() }
    }

    fn corrupt(&self, what: &'static str, blob: &Descriptor, found: String) -> Error {
        Error::Corrupt { image: self.image.clone().into(), what, wanted: blob.digest.clone(), found }
    }
}

/// How often somebody else's work is waited for before giving up; each time it must have failed.
const FLIGHTS_MAX: usize = 4;

/// Whether a blob is a part of what progress is shown of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Yes,
    No,
}

enum Trouble {
    /// The connection broke: what came is kept, the rest is asked for again.
    Broken(String),
    Final(Error),
}

impl Build {
    fn new(
        image: &ImageRef,
        platform: &Platform,
        (root, root_bytes): (Root, u64),
        (manifest_digest, manifest): (Digest, Manifest),
        config: &[u8],
    ) -> Result<Build, Error> {
        let not_an_image = |why| Error::NotAnImage { image: image.clone().into(), why };
        let unreadable =
            |why: serde_json::Error| not_an_image(NotAnImage::Unreadable(format!("its configuration: {why}")));
        let healthcheck = healthcheck(config).map_err(unreadable)?;
        let config: ImageConfiguration = serde_json::from_slice(config).map_err(unreadable)?;
        check_platform(image, platform, &config)?;
        let layers = layers_of(&manifest, &config).map_err(not_an_image)?;
        Ok(Build {
            root: root.digest,
            root_bytes,
            root_media_type: root.media_type,
            manifest_digest,
            manifest,
            config,
            healthcheck,
            layers,
        })
    }

    fn info(self, image: &ImageRef) -> ImageInfo {
        ImageInfo {
            image: image.clone(),
            digest: self.root,
            manifest: self.manifest_digest,
            size_bytes: self.manifest.bytes(),
            config: self.config,
            healthcheck: self.healthcheck,
            chain_id: self.layers.last().map(|top| top.chain_id.clone()),
            stale_because: None,
        }
    }
}

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

/// The platform that a configuration states, none if it leaves it out, as some old tools did.
pub(super) fn stated_platform(config: &ImageConfiguration) -> Option<Platform> {
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    let variant = config.variant().as_deref().unwrap_or_default();
    (!os.is_empty() && !architecture.is_empty()).then(|| Platform::new(&os, &architecture, variant))
}

fn check_platform(image: &ImageRef, wanted: &Platform, config: &ImageConfiguration) -> Result<(), Error> {
    match stated_platform(config) {
        Some(stated) if wanted.distance(&stated).is_none() => {
            Err(Error::WrongPlatform { image: image.clone().into(), wanted: wanted.clone(), offered: vec![stated] })
        }
        _ => Ok(()),
    }
}

fn layers_of(manifest: &Manifest, config: &ImageConfiguration) -> Result<Vec<Layer>, NotAnImage> {
    let diff_ids = config.rootfs().diff_ids().iter().map(|text| text.parse::<Digest>());
    let diff_ids: Vec<Digest> =
        diff_ids.collect::<Result<_, _>>().map_err(|bad| NotAnImage::Unreadable(bad.to_string()))?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(NotAnImage::Layers { layers: manifest.layers.len(), named: diff_ids.len() });
    }
    let chain = chain_ids(&diff_ids);
    let mut layers = Vec::with_capacity(chain.len());
    for (at, (blob, diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
        layers.push(Layer {
            blob: blob.digest.clone(),
            size: blob.size,
            media_type: layer_media_type(&blob.media_type).ok_or_else(|| NotAnImage::Layer(blob.media_type.clone()))?,
            diff_id,
            parent: at.checked_sub(1).map(|below| chain[below].clone()),
            chain_id: chain[at].clone(),
        });
    }
    Ok(layers)
}

fn healthcheck(config: &[u8]) -> Result<Option<Healthcheck>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Outer {
        #[serde(default)]
        config: Option<Inner>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        #[serde(default)]
        healthcheck: Option<Written>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    #[derive(Default)]
    struct Written {
        test: Option<Vec<String>>,
        interval: i64,
        timeout: i64,
        start_period: i64,
        start_interval: i64,
        retries: i64,
    }
    let nanos = |nanos: i64| u64::try_from(nanos).ok().filter(|n| *n > 0).map(std::time::Duration::from_nanos);
    let outer: Outer = serde_json::from_slice(config)?;
    Ok(outer.config.and_then(|config| config.healthcheck).map(|written| Healthcheck {
        test: written.test.unwrap_or_default(),
        interval: nanos(written.interval),
        timeout: nanos(written.timeout),
        start_period: nanos(written.start_period),
        start_interval: nanos(written.start_interval),
        retries: u32::try_from(written.retries).ok().filter(|retries| *retries > 0),
    }))
}

/// The first byte that an answer brings: 100 of `bytes 100-199/200`.
fn range_start(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_is_not_the_one_asked_for_is_seen() {
        assert_eq!(range_start("bytes 100-199/200"), Some(100));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        assert_eq!(range_start("bytes */200"), None);
        assert_eq!(range_start("items 1-2/3"), None);
    }

    #[test]
    fn the_health_check_of_an_image_is_read_in_dockers_units() {
        let config = br#"{"config":{"Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":5000000000,"Retries":3,"Timeout":-1}}}"#;
        let read = healthcheck(config).unwrap().unwrap();
        assert_eq!(read.interval, Some(std::time::Duration::from_secs(5)));
        assert_eq!((read.retries, read.timeout, read.test.len()), (Some(3), None, 2));
        assert_eq!(healthcheck(br#"{"config":{"Healthcheck":null}}"#).unwrap(), None);
        assert_eq!(healthcheck(b"{}").unwrap(), None);
    }

    #[test]
    fn a_configuration_that_names_other_layers_than_the_manifest_is_refused() {
        let config: ImageConfiguration =
            serde_json::from_str(r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#)
                .unwrap();
        let layer = format!(r#"{{"digest":"sha256:{}","size":1}}"#, "a".repeat(64));
        let manifest: Manifest =
            serde_json::from_str(&format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer}]}}"#)).unwrap();
        assert_eq!(layers_of(&manifest, &config).unwrap_err(), NotAnImage::Layers { layers: 1, named: 0 });
    }
}
