//! What the next applyd of this machine shall do before anything else: files whose being there says so.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// One of them.
#[derive(Clone, Debug)]
pub struct Note(PathBuf);

impl Note {
    /// The objects move from the file to an etcd that applyd runs.
    pub fn to_etcd(data: &Path) -> Self {
        Self(data.join("to-etcd"))
    }

    /// The objects move from that etcd, without its other members, back to a file.
    pub fn alone(data: &Path) -> Self {
        Self(data.join("alone"))
    }

    pub fn is_there(&self) -> bool {
        self.0.exists()
    }

    /// There after a power cut, too.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn leave(&self) -> io::Result<()> {
        File::create(&self.0)?.sync_all()?;
        self.0.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// It is done; one that is not there is no error.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn done(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
