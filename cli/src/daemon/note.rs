//! What the next applyd of this machine shall do before anything else: files that say so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::durable;

/// One of them.
#[derive(Clone, Debug)]
pub struct Note(PathBuf);

/// What is begun is brought to its end, by whichever applyd.
const BEGUN: &str = "begun";

impl Note {
    /// The objects move from the file to an etcd that applyd runs.
    pub fn to_etcd(data: &Path) -> Self {
        Self(data.join("to-etcd"))
    }

    /// The objects move from that etcd, without its other members, back to a file.
    pub fn alone(data: &Path) -> Self {
        Self(data.join("alone"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn is_there(&self) -> bool {
        self.0.exists()
    }

    /// Whether it was left by this very process, which begins anew for it, or was begun: one of another life is nobody's wish
    /// any more.
    pub fn is_due(&self) -> bool {
        let said = fs::read_to_string(&self.0).unwrap_or_default();
        said == BEGUN || said == std::process::id().to_string()
    }

    /// There after a power cut, too.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn leave(&self) -> io::Result<()> {
        self.says(&std::process::id().to_string())
    }

    /// From here on there is no way back.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(&self) -> io::Result<()> {
        self.says(BEGUN)
    }

    fn says(&self, text: &str) -> io::Result<()> {
        durable::write(&self.0, text.as_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_due_for_who_left_it_and_once_it_is_begun_for_everybody() {
        let folder = std::env::temp_dir().join(format!("apply-note-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let note = Note::alone(&folder);
        assert!(!note.is_there() && !note.is_due());
        note.leave().unwrap();
        assert!(note.is_due());
        fs::write(note.path(), "1").unwrap();
        assert!(note.is_there() && !note.is_due(), "of another life");
        note.begin().unwrap();
        assert!(note.is_due());
        note.done().unwrap();
        note.done().unwrap();
        assert!(!note.is_there());
        fs::remove_dir_all(&folder).unwrap();
    }
}
