//! From the file to etcd and back: asked for by a note beside them, and done by the next applyd that begins, before it serves
//! anything. Killed at any instruction it is done again from the beginning: what the objects are moved from is the truth until
//! it is put aside.

use anyhow::{Context, Result, bail};
use reconciler::store::{BYTES_PER_COMMIT, Effect, KEYS_PER_COMMIT, Key, Line, Page, Store, Txn};

use super::super::ROOT;

/// Of one page of what is read.
const PAGE: usize = 1_000;

/// Makes all of our keys in `to` those that are in `from`, which nobody writes to meanwhile. How many they are.
///
/// # Errors
/// A store does not do as it is asked; then it is to be called again.
pub async fn copy(from: &dyn Store, to: &dyn Store) -> Result<usize> {
    let root = Key::new(format!("{ROOT}/"));
    let left = to.list(&root, Page::default()).await.context("cannot see what is there already")?;
    let mut batch = Batch::new(to);
    for entry in left.entries {
        batch.push(entry.key, Effect::Delete, 0).await?;
    }
    batch.commit().await?;
    let (mut page, mut count) = (Page { limit: PAGE, ..Page::default() }, 0);
    loop {
        let listing = from.list(&root, page.clone()).await.context("cannot read the store")?;
        count += listing.entries.len();
        page.at = Some(listing.revision);
        page.after = listing.entries.last().map(|entry| entry.key.clone());
        for entry in listing.entries {
            let bytes = entry.value.len();
            batch.push(entry.key, Effect::Put(entry.value), bytes).await?;
        }
        if !listing.more {
            break;
        }
    }
    batch.commit().await?;
    let there = to.list(&root, Page::default()).await?.entries.len();
    if there != count {
        bail!("{count} keys were copied, and {there} are there: somebody else writes to it");
    }
    Ok(count)
}

/// Lines of the next commit.
struct Batch<'a> {
    store: &'a dyn Store,
    lines: Vec<Line>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    fn new(store: &'a dyn Store) -> Self {
        Self { store, lines: Vec::new(), bytes: 0 }
    }

    async fn push(&mut self, key: Key, effect: Effect, bytes: usize) -> Result<()> {
        let bytes = bytes + key.as_str().len();
        if self.lines.len() == KEYS_PER_COMMIT || self.bytes + bytes > BYTES_PER_COMMIT {
            self.commit().await?;
        }
        self.bytes += bytes;
        self.lines.push(Line { key, expect: None, effect });
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        self.bytes = 0;
        let lines = std::mem::take(&mut self.lines);
        if !lines.is_empty() {
            self.store.commit(Txn { fence: None, lines }).await.context("cannot write to the store")?;
        }
        Ok(())
    }
}
