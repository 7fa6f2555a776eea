//! Why an image could not be had, in words for the person who named it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemas::image::{Digest, ImageRef};

use super::archive::BadArchive;
use super::manifest::NotAnImage;
use super::platform::Platform;
use crate::node::containerd::failure;

/// Why an image is not here. Cheap to clone, as everyone who waited for one pull gets its outcome.
///
/// The messages name the whole reference that was tried where a short one may have meant another (`redis` is
/// `docker.io/library/redis:latest`).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("image {}: the registry at {} has no such tag{tags}", image.familiar(), image.registry())]
    NoSuchTag { image: Box<ImageRef>, tags: Tags },

    #[error("image {image}: the registry at {} has nothing with this digest in that repository", image.registry())]
    NoSuchDigest { image: Box<ImageRef> },

    #[error("image {image}: the registry at {} has no such repository{elsewhere}", image.registry())]
    NoSuchRepository { image: Box<ImageRef>, elsewhere: Elsewhere },

    /// Without credentials a registry does not say whether a repository is private or does not exist.
    #[error("image {image}: the registry at {registry} {}{elsewhere}", refusal(.registry, .anonymous))]
    Refused { image: Box<ImageRef>, registry: String, anonymous: bool, elsewhere: Elsewhere },

    #[error("image {image}: it is not on this machine, and could not reach the registry at {} ({why}){elsewhere}", image.registry())]
    Unreachable { image: Box<ImageRef>, why: String, elsewhere: Elsewhere },

    /// The registry is there and does not serve: it said so, more often than we ask.
    #[error("image {image}: the registry at {} answered {status}{}", image.registry(), wait(.retry_after))]
    Overloaded { image: Box<ImageRef>, status: u16, retry_after: Option<Duration> },

    #[error("image {image}: the registry at {} answered {status} {message:?}", image.registry())]
    Strange { image: Box<ImageRef>, status: u16, message: String },

    #[error("image {}: it is not here and may not be pulled{elsewhere}", image.familiar())]
    NotHere { image: Box<ImageRef>, elsewhere: Elsewhere },

    #[error("image {}: there is no build for {wanted}; there is {}", image.familiar(), list(.offered))]
    WrongPlatform { image: Box<ImageRef>, wanted: Platform, offered: Vec<Platform> },

    #[error("image {}: {why}", image.familiar())]
    NotAnImage { image: Box<ImageRef>, why: NotAnImage },

    /// What came is not what was promised: a damaged or lying registry, proxy or archive. Nothing of it is used.
    #[error("image {}: {what} {wanted} came as {found}", image.familiar())]
    Corrupt { image: Box<ImageRef>, what: &'static str, wanted: Digest, found: String },

    /// A part that the image names is not here, and there is no registry to ask for it.
    #[error("image {}: its {what} {digest} is missing", image.familiar())]
    Incomplete { image: Box<ImageRef>, what: &'static str, digest: Digest },

    #[error("image {}: the disk is full", image.familiar())]
    DiskFull { image: Box<ImageRef> },

    #[error("image {}: containerd failed to {doing}", image.familiar())]
    Containerd { image: Box<ImageRef>, doing: &'static str, source: Arc<Cause> },

    #[error("containerd failed to {doing}")]
    Store { doing: &'static str, source: Arc<Cause> },

    #[error("the archive cannot be imported")]
    Archive(#[from] BadArchive),
}

impl Error {
    /// Whether the same call may succeed later with nothing changed by a person. What is not temporary fails the same
    /// way until the image, the credentials or the disk is another.
    pub fn is_temporary(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Overloaded { .. } | Error::Containerd { .. } | Error::Store { .. } => {
                true
            }
            Error::Strange { status, .. } => *status >= 500,
            _ => false,
        }
    }

    pub(super) fn containerd(image: &ImageRef, doing: &'static str, status: tonic::Status) -> Error {
        if is_disk_full(&status) {
            return Error::DiskFull { image: image.clone().into() };
        }
        Error::Containerd { image: image.clone().into(), doing, source: cause(&status) }
    }

    pub(super) fn store(doing: &'static str, status: tonic::Status) -> Error {
        Error::Store { doing, source: cause(&status) }
    }

    /// The same error, which also names images that are here and end alike: somebody may have meant one of them.
    pub(super) fn with_elsewhere(mut self, images: Vec<ImageRef>) -> Error {
        if let Error::NoSuchRepository { elsewhere, .. }
        | Error::Refused { elsewhere, .. }
        | Error::Unreachable { elsewhere, .. }
        | Error::NotHere { elsewhere, .. } = &mut self
        {
            *elsewhere = Elsewhere(images);
        }
        self
    }
}

type Cause = dyn std::error::Error + Send + Sync;

fn cause(status: &tonic::Status) -> Arc<Cause> {
    Box::<Cause>::from(failure::words(status)).into()
}

/// containerd passes the kernel's words on as text; there is no code for it.
pub(super) fn is_disk_full(status: &tonic::Status) -> bool {
    status.message().contains("no space left on device") || status.message().contains("disk quota exceeded")
}

/// The tags that a repository has, as far as its registry told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags(pub Vec<String>);

/// Images on this machine whose names end like the one that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere(pub Vec<ImageRef>);

/// Most tags or images that a message lists.
const LISTED_MAX: usize = 5;

impl fmt::Display for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; it has {}", first_few(&self.0)) }
    }
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = self.0.iter().map(ImageRef::familiar).collect();
        write!(f, "; here there is {}", first_few(&names))
    }
}

fn first_few(names: &[String]) -> String {
    let shown = names.iter().take(LISTED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn refusal(registry: &str, anonymous: &bool) -> String {
    match anonymous {
        true => format!(
            "wants credentials for it, or has no such repository: check the name, or run applyctl login {registry}"
        ),
        false => "refused the credentials given for it".to_owned(),
    }
}

fn wait(retry_after: &Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!(" and wants to be left alone for {} s", wait.as_secs()),
        None => " again and again".to_owned(),
    }
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none at all".to_owned();
    }
    platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

/// Tags in the order in which a person looks for them: `latest`, then the highest versions, then names.
pub(super) fn sort_tags(tags: &mut [String]) {
    fn version(tag: &str) -> Option<Vec<u64>> {
        let parts = tag.strip_prefix('v').unwrap_or(tag).split(['.', '-', '_']);
        let numbers: Vec<u64> = parts.map_while(|part| part.parse().ok()).collect();
        (!numbers.is_empty()).then_some(numbers)
    }
    tags.sort_by_cached_key(|tag| {
        let is_version = version(tag);
        (tag != "latest", is_version.is_none(), std::cmp::Reverse(is_version), tag.clone())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> ImageRef {
        text.parse().unwrap()
    }

    #[test]
    fn messages_say_what_was_tried_and_what_to_do() {
        let elsewhere = Elsewhere(vec![image("localhost:5000/mysql57")]);
        let mut tags: Vec<String> =
            ["1.3", "edge", "1.10", "1.4", "latest", "v2", "1.4-alpine"].map(String::from).to_vec();
        sort_tags(&mut tags);
        for (error, said) in [
            (
                Error::NoSuchTag { image: image("registry.example.com/example/shop:latst").into(), tags: Tags(tags) },
                "image registry.example.com/example/shop:latst: the registry at registry.example.com has no such tag; \
                 it has latest, v2, 1.10, 1.4, 1.4-alpine and 2 more",
            ),
            (
                Error::NoSuchRepository { image: image("mysql57").into(), elsewhere: elsewhere.clone() },
                "image docker.io/library/mysql57:latest: the registry at docker.io has no such repository; \
                 here there is localhost:5000/mysql57:latest",
            ),
            (
                Error::Refused {
                    image: image("mysql57").into(),
                    registry: "docker.io".into(),
                    anonymous: true,
                    elsewhere: Elsewhere::default(),
                },
                "image docker.io/library/mysql57:latest: the registry at docker.io wants credentials for it, or has no \
                 such repository: check the name, or run applyctl login docker.io",
            ),
            (
                Error::WrongPlatform {
                    image: image("x").into(),
                    wanted: Platform::new("linux", "amd64", ""),
                    offered: vec![Platform::new("linux", "arm64", "v8"), Platform::new("windows", "amd64", "")],
                },
                "image x:latest: there is no build for linux/amd64; there is linux/arm64, windows/amd64",
            ),
            (
                Error::Overloaded {
                    image: image("x").into(),
                    status: 429,
                    retry_after: Some(Duration::from_secs(3600)),
                },
                "image docker.io/library/x:latest: the registry at docker.io answered 429 and wants to be left alone \
                 for 3600 s",
            ),
        ] {
            assert_eq!(error.to_string(), said);
        }
    }

    #[test]
    fn a_full_disk_is_known_by_the_kernels_words() {
        let full = tonic::Status::unknown("write /x/ingest/data: no space left on device");
        assert!(matches!(Error::containerd(&image("x"), "store", full), Error::DiskFull { .. }));
    }
}
