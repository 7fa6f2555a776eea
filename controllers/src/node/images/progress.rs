//! How far each pull has come, for people who watch.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::image::ImageRef;
use tokio::sync::watch;

/// How far one pull or import has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    /// Compressed bytes of it that are here, those that were here before included.
    pub done_bytes: u64,
    /// Compressed bytes that it has in all; 0 until the manifest is known.
    pub total_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Asking what the reference means.
    #[default]
    Resolving,
    /// Fetching layers, and unpacking those that are there.
    Downloading,
    /// Everything has come; unpacking the rest.
    Unpacking,
}

/// Every pull that is under way; one that has ended, either way, is not in it.
pub type Pulls = BTreeMap<ImageRef, Progress>;

/// The board on which pulls write and from which everyone reads. Slow readers miss steps, never the last one.
#[derive(Clone)]
pub(super) struct Board(Arc<watch::Sender<Pulls>>);

impl Default for Board {
    fn default() -> Self {
        Board(Arc::new(watch::Sender::new(Pulls::new())))
    }
}

impl Board {
    pub fn watch(&self) -> watch::Receiver<Pulls> {
        self.0.subscribe()
    }

    /// A line on the board, wiped when the entry is dropped.
    pub fn enter(&self, image: &ImageRef) -> Entry {
        self.0.send_modify(|pulls| {
            pulls.insert(image.clone(), Progress::default());
        });
        Entry { board: self.clone(), image: image.clone() }
    }
}

/// The line of one pull.
pub(super) struct Entry {
    board: Board,
    image: ImageRef,
}

impl Entry {
    pub fn total(&self, bytes: u64) {
        self.change(|line| (line.phase, line.total_bytes) = (Phase::Downloading, bytes));
    }

    pub fn advance(&self, bytes: u64) {
        self.change(|line| line.done_bytes = line.done_bytes.saturating_add(bytes).min(line.total_bytes));
    }

    /// Bytes that came and were thrown away again.
    pub fn retreat(&self, bytes: u64) {
        self.change(|line| line.done_bytes = line.done_bytes.saturating_sub(bytes));
    }

    pub fn unpacking(&self) {
        self.change(|line| line.phase = Phase::Unpacking);
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        self.board.0.send_modify(|pulls| {
            if let Some(line) = pulls.get_mut(&self.image) {
                change(line);
            }
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.board.0.send_modify(|pulls| {
            pulls.remove(&self.image);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_on_the_board_for_as_long_as_it_goes_on() {
        let board = Board::default();
        let watch = board.watch();
        let image: ImageRef = "x".parse().unwrap();
        let entry = board.enter(&image);
        entry.total(100);
        entry.advance(60);
        entry.advance(60);
        let seen = watch.borrow()[&image];
        assert_eq!(seen, Progress { phase: Phase::Downloading, done_bytes: 100, total_bytes: 100 });
        entry.retreat(40);
        assert_eq!(watch.borrow()[&image].done_bytes, 60);
        drop(entry);
        assert!(watch.borrow().is_empty());
    }
}
