//! Archives of images: which files are in them, and which images these files make. Pure but for reading its input.
//!
//! An archive is not trusted. No path of it is ever a path of this machine; the number and length of names, and what
//! is held in memory, are bounded; digests are checked by containerd as the files are stored.

mod meaning;
mod tar;

pub(super) use meaning::{Contents, Keep, Stored, keep};
pub(super) use tar::{Kind, Tar};

use schemas::image::BadImageRef;

/// Why an archive was not taken in. Nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadArchive {
    #[error("it is not a tar archive, plain or compressed by gzip or zstd")]
    NotATar,
    #[error("it ends in the middle of {0}")]
    Truncated(String),
    #[error("it could not be read: {0}")]
    Unreadable(String),
    #[error("the header of entry {0} is damaged")]
    Header(u32),
    #[error("it has more than {0} entries")]
    TooMany(u32),
    #[error("the name of entry {0} is not one that an image archive has")]
    Name(u32),
    #[error("{path} has {bytes} bytes, {max} at most")]
    TooLarge { path: String, bytes: u64, max: u64 },
    #[error("{path}: {why}")]
    Document { path: &'static str, why: String },
    #[error("it names {0}, which is not in it")]
    Missing(String),
    #[error("it has neither index.json nor manifest.json, so it holds no images")]
    NoImages,
    #[error("it does not say what its image is called: give it a name")]
    Unnamed,
    #[error("it holds {0} images without names, and one name cannot be given to all")]
    ManyUnnamed(usize),
    #[error("its image {text:?} has no proper name: {why}")]
    BadName { text: String, why: BadImageRef },
    #[error("the disk is full")]
    DiskFull,
    #[error("{path} came as {found}")]
    Corrupt { path: String, found: String },
}
