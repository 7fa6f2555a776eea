//! Images on a machine: having them, knowing what they are, letting go of them.
//!
//! [`Images`] is what controllers see. It names images by [`ImageRef`], promises that what it returns can be started
//! (its snapshot is there and its record keeps it), and says in words for people why an image cannot be had. The real
//! one, [`ContainerdImages`], keeps everything in containerd: content, snapshots, records. It has no state of its own
//! that matters; whatever step it is killed in, the next call for the same image goes on from there.
//!
//! Reading order: this page; `platform` and `manifest` (what an image is; pure), `registry` (asking for it), `content`
//! and `unpack` (containerd's side), `pull` (all of it in order), `archive` and `import` (images without a registry),
//! `record` (what is here), `store` (the trait's real implementation).

mod archive;
mod build;
mod content;
mod error;
mod fetch;
mod flights;
mod import;
mod manifest;
mod platform;
mod progress;
mod pull;
mod record;
mod registry;
mod store;
mod unpack;

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use oci_spec::image::ImageConfiguration;
use reconciler_api::Timestamp;
use schemas::image::{Digest, ImageRef};
use tokio::io::AsyncRead;
use tokio::sync::watch;

pub use archive::BadArchive;
pub use error::{Elsewhere, Error, Tags};
pub use manifest::NotAnImage;
pub use platform::{BadPlatform, Platform};
pub use progress::{Phase, Progress, Pulls};
pub use registry::RegistryOptions;
pub use registry::auth::Credentials;
pub use registry::login::{Door, LoginError, check_login};
pub use store::{ContainerdImages, Options};

/// The images of one machine.
///
/// *Guarantees*: every call may be repeated, dropped at any await and made again; callers who want the same image at
/// the same time share one pull. What `ensure` returned stays until `remove` or `prune` lets go of it.
///
/// *Assumptions*: one process at a time uses a containerd namespace through this.
pub trait Images: Send + Sync {
    /// What a reference means now: asks the registry, unless the image was imported here under that name. When the
    /// registry cannot be asked, what is here under that name is the answer, and says so.
    fn resolve<'a>(
        &'a self,
        image: &'a ImageRef,
        credentials: Option<&'a Credentials>,
    ) -> BoxFuture<'a, Result<Resolved, Error>>;

    /// Has the image here, unpacked, and says what it is. A few calls to containerd when it is here already.
    fn ensure<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<ImageInfo, Error>>;

    /// How far every pull that is under way has come.
    fn progress(&self) -> watch::Receiver<Pulls>;

    /// What is here, by name.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Record>, Error>>;

    /// Lets go of one name, and of its content unless another name or a container holds it. False if it was not there.
    fn remove<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<bool, Error>>;

    /// Lets go of every image that is not in use, and of what interrupted pulls left; returns the names that went.
    fn prune<'a>(&'a self, prune: &'a Prune) -> BoxFuture<'a, Result<Vec<Record>, Error>>;

    /// Takes in all images of an archive: an OCI layout or what `docker save` writes, as tar, maybe compressed.
    /// `name` is for the image of an archive that names none.
    fn import<'a>(&'a self, archive: Archive, name: Option<&'a ImageRef>) -> BoxFuture<'a, Result<Vec<Record>, Error>>;
}

/// The bytes of an archive.
pub type Archive = Box<dyn AsyncRead + Send + Unpin>;

/// What is wanted of [`Images::ensure`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    pub image: ImageRef,
    pub platform: Platform,
    pub credentials: Option<Credentials>,
    pub pull: Pull,
}

impl Wanted {
    /// The image for this machine, without credentials, pulled if it is missing.
    pub fn new(image: ImageRef) -> Wanted {
        Wanted { image, platform: Platform::of_this_machine(), credentials: None, pull: Pull::Missing }
    }
}

/// When a registry is asked. A reference with a digest is never pulled when it is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pull {
    /// When nothing is here under that name.
    #[default]
    Missing,
    /// Always. If it cannot be asked, what is here is good enough, and [`ImageInfo::stale_because`] says so.
    Newest,
    Never,
}

/// What a reference means.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub digest: Digest,
    /// What it is built for; attestations and the like left out.
    pub platforms: Vec<Platform>,
    /// Why the registry was not the one to say so; none if it was, or if the image was imported.
    pub stale_because: Option<Error>,
}

/// An image that is here and can be started.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// As it was asked for.
    pub image: ImageRef,
    /// What the reference means: an index or a manifest.
    pub digest: Digest,
    /// The manifest for the platform that was wanted; `digest` itself if there is only one.
    pub manifest: Digest,
    pub config: ImageConfiguration,
    /// Docker's addition to the configuration.
    pub healthcheck: Option<Healthcheck>,
    /// The snapshot to prepare a container's own on (`parent`); none for an image without layers.
    pub chain_id: Option<Digest>,
    /// Compressed.
    pub size_bytes: u64,
    /// Why the registry was not asked for the newest one though that was wanted.
    pub stale_because: Option<Error>,
}

/// The health check that an image brings (`HEALTHCHECK`). Zero or absent means Docker's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `["NONE"]`, or `CMD` and arguments, or `CMD-SHELL` and one line.
    pub test: Vec<String>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub start_period: Option<Duration>,
    pub start_interval: Option<Duration>,
    pub retries: Option<u32>,
}

/// A name on this machine and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub image: ImageRef,
    pub digest: Digest,
    /// Compressed, of the build that is here. Shared parts are counted for every image.
    pub size_bytes: u64,
    /// When it was first here under that name.
    pub created: Timestamp,
    /// It came from an archive, so no registry may have it.
    pub imported: bool,
}

/// What [`Images::prune`] may take.
#[derive(Clone, Debug, Default)]
pub struct Prune {
    /// Kept, by name and by content.
    pub in_use: BTreeSet<ImageRef>,
    pub imported: PruneImported,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PruneImported {
    /// They cannot be pulled again.
    #[default]
    Keep,
    Take,
}
