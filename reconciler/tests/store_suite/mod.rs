//! What every store does, whatever lies below: the same behaviours, tried on each backend.
//!
//! `store_suite!(make)` makes a test of each; `make` is an async function that answers a [`Subject`]. A store need not
//! be empty nor at revision 0, but during a test nobody else may write to it.

// Each backend is a test binary of its own and uses nearly all of it.
#![allow(dead_code)]

pub mod behaviours;
pub mod model;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use reconciler::store::{
    Batch, Change, CommitError, Effect, Expect, Fence, Key, Line, Page, Revision, Store, StoreError, Txn, Versioned,
    Watch,
};

/// A store to try, and what must be kept for as long as it is used (a folder, a server).
pub struct Subject {
    pub store: Arc<dyn Store>,
    pub keep: Box<dyn Any + Send>,
}

macro_rules! store_suite {
    ($make:path) => {
        $crate::store_suite::store_suite!(@ $make,
            a_value_is_read_as_it_was_written,
            a_key_made_again_is_another_one,
            expectations_decide,
            a_commit_is_all_or_nothing,
            a_fence_holds_until_somebody_else_is_elected,
            limits_are_refused_whole,
            what_changes_nothing_takes_no_revision,
            keys_are_ordered_bytewise,
            pages_tell_of_one_moment_while_writes_go_on,
            the_past_can_be_listed_until_it_is_compacted,
            large_listings_arrive_whole,
            a_watch_tells_each_commit_once_in_order_and_whole,
            a_watch_knows_what_stood_before,
            a_watch_goes_on_where_another_one_ended,
            a_watch_tells_of_passed_revisions,
            a_watch_from_the_future_or_the_forgotten_past_is_refused,
            a_slow_watcher_misses_nothing,
            a_large_commit_arrives_as_one_batch,
            writers_that_race_lose_no_update,
            all_watchers_see_the_same_history,
            cancelled_commits_happen_whole_or_not_at_all,
        );
    };
    (@ $make:path, $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let subject = $make().await;
                $crate::store_suite::behaviours::$name(subject.store.clone()).await;
                drop(subject);
            }
        )*
    };
}
pub(crate) use store_suite;

/// A key of the suite; it shares the store with nobody, but not every store has an empty root.
pub fn key(name: &str) -> Key {
    Key::new(format!("/suite/{name}"))
}

pub fn put(name: &str, value: impl AsRef<[u8]>) -> Line {
    Line { key: key(name), expect: None, effect: Effect::Put(Bytes::copy_from_slice(value.as_ref())) }
}

pub fn delete(name: &str) -> Line {
    Line { key: key(name), expect: None, effect: Effect::Delete }
}

pub fn check(name: &str, expect: Expect) -> Line {
    Line { key: key(name), expect: Some(expect), effect: Effect::Check }
}

pub fn when(expect: Expect, line: Line) -> Line {
    Line { expect: Some(expect), ..line }
}

pub fn txn(lines: impl IntoIterator<Item = Line>) -> Txn {
    Txn { fence: None, lines: lines.into_iter().collect() }
}

pub fn fenced(fence: &Fence, lines: impl IntoIterator<Item = Line>) -> Txn {
    Txn { fence: Some(fence.clone()), lines: lines.into_iter().collect() }
}

pub async fn commit(store: &dyn Store, lines: impl IntoIterator<Item = Line>) -> Revision {
    store.commit(txn(lines)).await.expect("a commit")
}

pub async fn get(store: &dyn Store, name: &str) -> Option<Versioned> {
    store.get(&key(name)).await.expect("a read").1
}

pub async fn revision(store: &dyn Store) -> Revision {
    store.get(&key("nothing")).await.expect("a read").0
}

/// `name=value` for each entry, in order.
pub fn entries(listing: &[Versioned]) -> Vec<String> {
    listing.iter().map(|entry| format!("{}={}", short(&entry.key), text(&entry.value))).collect()
}

/// `name: before -> after` for each change.
pub fn changes(batch: &Batch) -> Vec<String> {
    let side = |side: &Option<Versioned>| side.as_ref().map_or("-".to_owned(), |version| text(&version.value));
    let one =
        |change: &Change| format!("{}: {} -> {}", short(&change.key), side(&change.previous), side(&change.value));
    batch.changes.iter().map(one).collect()
}

fn short(key: &Key) -> String {
    key.as_str().strip_prefix("/suite/").unwrap_or(key.as_str()).to_owned()
}

fn text(value: &Bytes) -> String {
    String::from_utf8_lossy(value).into_owned()
}

pub async fn watch(store: &dyn Store, prefix: &str, after: Revision) -> Watch {
    store.watch(&Key::new(prefix), after).await.expect("a watch")
}

/// What the watch says next, in a time that no honest store needs.
pub async fn next(watch: &mut Watch) -> Result<Batch, StoreError> {
    tokio::time::timeout(Duration::from_secs(20), watch.next())
        .await
        .expect("the watch says something within 20 s")
        .expect("the watch goes on")
}

/// The next batch that tells of a change.
pub async fn next_change(watch: &mut Watch) -> Batch {
    loop {
        let batch = next(watch).await.expect("no error");
        if !batch.changes.is_empty() {
            return batch;
        }
    }
}

/// All changes up to `until`, with the empty batches left out.
pub async fn changes_until(watch: &mut Watch, until: Revision) -> Vec<Batch> {
    let (mut batches, mut passed) = (Vec::new(), Revision(0));
    while passed < until {
        let batch = next(watch).await.expect("no error");
        assert!(batch.revision > passed, "{} came after {passed}", batch.revision);
        passed = batch.revision;
        if !batch.changes.is_empty() {
            batches.push(batch);
        }
    }
    batches
}

pub fn is_conflict(error: &CommitError, name: &str) -> bool {
    matches!(error, CommitError::Conflict { key: at } if *at == key(name))
}

pub fn page(limit: usize, after: Option<&Key>, at: Option<Revision>) -> Page {
    Page { limit, after: after.cloned(), at }
}
