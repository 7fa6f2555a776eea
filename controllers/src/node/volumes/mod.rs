//! Volumes on a machine: directories that outlive the containers that use them.
//!
//! [`Volumes`] is what controllers see. The real one, [`DirectoryVolumes`], keeps each volume in
//! `<root>/volumes/<namespace>/<name>/_data` and no record beside it: a volume is there when its `_data` is. Whatever
//! step it is killed in, the next call for the same volume goes on from there; the files beside `_data` say where.
//!
//! Reading order: this page; `fill` (what an empty volume takes over from an image), `copy` (a tree, exactly), `image`
//! (an image's tree), `usage` (how much is in it), `holders` (who has it mounted), `directories` (the trait's real
//! implementation), `of_task` (from what a task wants to mounts of its container), `controller` (the data of Volume objects).

pub mod controller;
mod copy;
mod directories;
mod fill;
mod holders;
mod image;
pub mod of_task;
mod usage;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use schemas::image::Digest;

pub use directories::DirectoryVolumes;
pub use usage::Usage;

/// The volumes of one machine.
///
/// *Guarantees*: every call may be repeated, dropped at any await and made again. A volume that has content is never
/// changed by `ensure`.
///
/// *Assumptions*: an image that a volume is filled from is not let go of meanwhile.
pub trait Volumes: Send + Sync {
    /// Has the volume here, and returns the directory to mount. One that is empty is filled first, if that is wanted.
    fn ensure<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<PathBuf, Error>>;

    /// The directory inside a volume that is here, `subpath` counted from the volume's root. It must be there, and
    /// links on the way to it are refused, since whoever writes the volume may make them lead out of it. The answer
    /// holds for now: a container that has the whole volume can still put a link there before it is mounted.
    fn inside<'a>(&'a self, id: &'a VolumeId, subpath: &'a Path) -> BoxFuture<'a, Result<PathBuf, Error>>;

    /// All volumes that are here, in order. Costs two looks for each.
    fn list(&self) -> BoxFuture<'_, Result<Vec<VolumeId>, Error>>;

    /// The directory of a volume, whether it is here or not.
    fn directory(&self, id: &VolumeId) -> PathBuf;

    /// How much is in a volume; none if it is not here. Costs a look at every file of it.
    fn measure<'a>(&'a self, id: &'a VolumeId) -> BoxFuture<'a, Result<Option<Usage>, Error>>;

    /// Removes a volume with all that is in it; false if it was not there. Refused while anything has it mounted, by
    /// the kernel's own word; that no container is about to mount it is for the caller to know.
    fn remove<'a>(&'a self, id: &'a VolumeId) -> BoxFuture<'a, Result<bool, Error>>;

    /// Looks whether a directory or file of this machine can be mounted into a container, and makes the directory if
    /// that is wanted.
    fn bind<'a>(&'a self, source: &'a Path, missing: Missing) -> BoxFuture<'a, Result<(), Error>>;
}

/// A volume's name. Displayed as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId {
    namespace: String,
    name: String,
}

impl VolumeId {
    /// Both in the grammar of object names, which no path can be hidden in.
    pub fn new(namespace: &str, name: &str) -> Result<VolumeId, BadName> {
        for part in [namespace, name] {
            if let Some(why) = schemas::names::object_name_fault(part) {
                return Err(BadName { why });
            }
        }
        Ok(VolumeId { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is wanted of [`Volumes::ensure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub id: VolumeId,
    /// What to fill it with while it is empty; none to leave it so.
    pub fill: Option<Fill>,
}

/// A directory of an image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The image's snapshot ([`ImageInfo::chain_id`](super::images::ImageInfo::chain_id)).
    pub chain_id: Digest,
    /// Where the volume is mounted, as the image sees it. Links are followed inside the image. Nothing is filled if the
    /// image has no directory there.
    pub path: PathBuf,
}

/// What to do about a bind mount whose source is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// As Swarm does: a directory made by mistake hides the mistake.
    #[default]
    Refuse,
    /// Make a directory.
    Make,
}

/// The name cannot be a volume's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct BadName {
    pub why: String,
}

/// Why a volume cannot be had, or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Try again when whoever has it is gone.
    #[error("volume {volume} is in use: {}", by.join(", "))]
    InUse { volume: VolumeId, by: Vec<String> },

    #[error("volume {volume}: the disk is full")]
    DiskFull { volume: VolumeId },

    /// containerd did not show the image: the queue's back-off applies.
    #[error("volume {volume}: containerd failed to show image {chain_id}")]
    Image { volume: VolumeId, chain_id: Digest, source: Box<tonic::Status> },

    #[error("volume {volume} could not be filled from the image's {}", path.display())]
    Fill { volume: VolumeId, path: PathBuf, source: io::Error },

    #[error("volume {volume} could not be {doing}")]
    Volume { volume: VolumeId, doing: &'static str, source: io::Error },

    #[error("volume {volume} has no directory {}", subpath.display())]
    NoSubpath { volume: VolumeId, subpath: PathBuf },

    #[error("{} is not an absolute path of this machine", source_path.display())]
    NotAbsolute { source_path: PathBuf },

    #[error("this machine has no {}; make it, or say bind.create", source_path.display())]
    NoSource { source_path: PathBuf },

    #[error("{} could not be made ready for a mount", source_path.display())]
    Source { source_path: PathBuf, source: io::Error },

    #[error("volumes in {} could not be listed", root.display())]
    List { root: PathBuf, source: io::Error },
}

impl Error {
    /// Whether the same call may succeed later with nothing changed by a person.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Error::Image { .. } | Error::InUse { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_be_a_path_is_refused() {
        for (namespace, name) in
            [("default", ""), ("default", ".."), ("default", "a/b"), ("..", "a"), ("", "a"), ("default", "_data")]
        {
            assert!(VolumeId::new(namespace, name).is_err(), "{namespace:?} {name:?}");
        }
        assert_eq!(VolumeId::new("default", "db-data").unwrap().to_string(), "default/db-data");
    }
}
