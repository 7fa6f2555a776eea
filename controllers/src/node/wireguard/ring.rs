//! The ring of keys in a file that goes with the machine's run.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use ring::rand::{SecureRandom, SystemRandom};

use super::PrivateKey;
use super::controller::{Kept, Ring};

/// A file (0600), best on a file system that does not outlive the machine's run: a machine that boots has new keys.
#[derive(Debug)]
pub struct RingFile {
    path: PathBuf,
}

impl RingFile {
    pub fn new(path: PathBuf) -> Self {
        RingFile { path }
    }
}

impl Ring for RingFile {
    fn read(&self) -> io::Result<Vec<Kept>> {
        match std::fs::read(&self.path) {
            // One that cannot be read is as good as none: what is new is told.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn write(&self, kept: &[Kept]) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        std::fs::rename(&fresh, &self.path)
    }

    fn random(&self) -> io::Result<PrivateKey> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
        Ok(PrivateKey::new(bytes))
    }
}
