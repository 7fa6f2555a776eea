//! What nobody asked etcd to do. Writers note what was acknowledged; followers keep a picture as a cache does, by a listing
//! and a watch, and list again when the watch ends. In the end the picture, the listing and the notes agree.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use reconciler::store::{CommitError, Expect, Key, Page, Revision, Store, StoreError};
use tokio::sync::watch;

use super::store_suite::{commit, key, put, txn, when};
use super::*;

type Picture = BTreeMap<String, Bytes>;

/// Counts up in one key until told to stop. Answers how often that was acknowledged, and how often nobody knows.
async fn count(store: Arc<etcd::Etcd>, name: &'static str, mut stop: watch::Receiver<bool>) -> Counted {
    let mut counted = Counted::default();
    while !*stop.borrow_and_update() {
        let Ok((_, found)) = store.get(&key(name)).await else { continue };
        let (number, expect) = match &found {
            Some(found) => (number(&found.value) + 1, Expect::Version(found.modified)),
            None => (1, Expect::Absent),
        };
        match store.commit(txn([when(expect, put(name, number.to_string()))])).await {
            Ok(_) => counted.acknowledged += 1,
            Err(CommitError::Unknown { .. }) => counted.unknown += 1,
            Err(CommitError::Unavailable { .. }) => counted.refused += 1,
            // The one before, of which nobody knew, has happened after it was looked for.
            Err(CommitError::Conflict { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        tokio::task::yield_now().await;
    }
    counted
}

#[derive(Debug, Default)]
struct Counted {
    acknowledged: u64,
    unknown: u64,
    refused: u64,
}

fn number(value: &Bytes) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

async fn listed(store: &etcd::Etcd) -> Result<(Picture, Revision), StoreError> {
    let listing = store.list(&key(""), Page::default()).await?;
    let entries = listing.entries.into_iter().map(|entry| (entry.key.to_string(), entry.value));
    Ok((entries.collect(), listing.revision))
}

/// Keeps a picture, and says which revision it shows and how often it had to begin anew.
async fn follow(store: Arc<etcd::Etcd>, seen: watch::Sender<(Revision, Picture, u32)>) {
    let mut lists = 0;
    loop {
        let Ok((mut picture, revision)) = listed(&store).await else {
            tokio::task::yield_now().await;
            continue;
        };
        lists += 1;
        seen.send_replace((revision, picture.clone(), lists));
        let Ok(mut watch) = store.watch(&key(""), revision).await else { continue };
        let mut last = revision;
        while let Some(Ok(batch)) = watch.next().await {
            assert!(batch.revision > last, "{} came after {last}", batch.revision);
            last = batch.revision;
            for change in batch.changes {
                match change.value {
                    Some(value) => picture.insert(change.key.to_string(), value.value),
                    None => picture.remove(change.key.as_str()),
                };
            }
            seen.send_replace((last, picture.clone(), lists));
        }
    }
}

struct Play {
    server: Etcd,
    store: Arc<etcd::Etcd>,
    stop: watch::Sender<bool>,
    writers: Vec<tokio::task::JoinHandle<Counted>>,
    seen: watch::Receiver<(Revision, Picture, u32)>,
    follower: tokio::task::JoinHandle<()>,
}

const WRITERS: [&str; 3] = ["a", "b", "c"];
/// What takes milliseconds may take long on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

impl Play {
    async fn begin(version: Version, members: usize) -> Play {
        let (server, store) = started(version, members).await;
        let (stop, stopped) = watch::channel(false);
        // Each has connections of its own, as processes have.
        let mut writers = Vec::new();
        for name in WRITERS {
            writers.push(tokio::spawn(count(connect(&server).await, name, stopped.clone())));
        }
        let (seen, follower) = watch::channel((Revision(0), Picture::new(), 0));
        let follower = (follower, tokio::spawn(follow(connect(&server).await, seen)));
        let mut play = Play { server, store, stop, writers, seen: follower.0, follower: follower.1 };
        play.goes_on().await;
        play
    }

    /// Until every writer has got on by some, as the follower sees it.
    async fn goes_on(&mut self) {
        let counts = |picture: &Picture| WRITERS.map(|name| picture.get(key(name).as_str()).map_or(0, number));
        let before = counts(&self.seen.borrow().1);
        let got_on = |seen: &(Revision, Picture, u32)| {
            counts(&seen.1).iter().zip(before).all(|(now, before)| *now >= before + 20)
        };
        tokio::time::timeout(PATIENCE, self.seen.wait_for(got_on)).await.expect("writing goes on").unwrap();
    }

    /// Stops the writers; then nothing that was acknowledged is missing, and the follower sees what is.
    async fn ends_well(mut self) -> u32 {
        self.stop.send_replace(true);
        let mut counts = Vec::new();
        for (name, writer) in WRITERS.into_iter().zip(self.writers) {
            counts.push((name, tokio::time::timeout(PATIENCE, writer).await.expect("a writer stops").unwrap()));
        }
        let last = commit(&*self.store, [put("last", "1")]).await;
        let (truth, _) = listed(&self.store).await.unwrap();
        for (name, counted) in counts {
            let found = number(&truth[key(name).as_str()]);
            let may_be = counted.acknowledged..=counted.acknowledged + counted.unknown;
            assert!(may_be.contains(&found), "{name} is {found}, but {counted:?}");
        }
        let seen = tokio::time::timeout(PATIENCE, self.seen.wait_for(|seen| seen.0 >= last)).await;
        let seen = seen.expect("the follower gets there").unwrap();
        assert_eq!(seen.1, truth, "the picture is the store's");
        let lists = seen.2;
        drop(seen);
        self.follower.abort();
        lists
    }
}

async fn killed_again_and_again(version: Version) {
    let mut play = Play::begin(version, 1).await;
    for _ in 0..3 {
        play.server.kill(0).unwrap();
        play.server.restart(0).unwrap();
        play.goes_on().await;
    }
    assert!(play.ends_well().await >= 2, "a killed server ends a watch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_3_4_is_killed() {
    killed_again_and_again(Version::V3_4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_3_5_is_killed() {
    killed_again_and_again(Version::V3_5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed_and_forgiven() {
    let mut play = Play::begin(Version::V3_4, 1).await;
    play.server.freeze(0).unwrap();
    // A commit ends with a word about it, however long the server sleeps.
    let ended = tokio::time::timeout(PATIENCE, play.store.commit(txn([put("frozen", "1")]))).await.expect("it ends");
    assert!(matches!(ended, Err(CommitError::Unknown { .. } | CommitError::Unavailable { .. })), "{ended:?}");
    play.server.thaw(0).unwrap();
    play.goes_on().await;
    play.ends_well().await;
}

/// A watcher that was away while history was compacted is told so, and a picture made anew knows what was deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_too_late_is_told() {
    for version in [Version::V3_4, Version::V3_5] {
        let (_server, store) = started(version, 1).await;
        let first = commit(&*store, [put("x", "1"), put("y", "1")]).await;
        for number in 2..20 {
            commit(&*store, [put("x", number.to_string())]).await;
        }
        let last = commit(&*store, [store_suite::delete("y")]).await;
        store.compact(last).await.unwrap();
        let refused = match store.watch(&key(""), first).await {
            Ok(mut watch) => store_suite::next(&mut watch).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(matches!(refused, Err(StoreError::Compacted { .. })), "{refused:?}");
        let (picture, _) = listed(&store).await.unwrap();
        assert_eq!(picture.keys().map(String::as_str).collect::<Vec<_>>(), [key("x").as_str()]);
    }
}

/// Writers and a follower go on while everything that is past is forgotten again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_under_way_harms_nobody() {
    let mut play = Play::begin(Version::V3_5, 1).await;
    for _ in 0..10 {
        let (now, _) = play.store.get(&key("a")).await.unwrap();
        play.store.compact(now).await.unwrap();
        play.goes_on().await;
    }
    play.ends_well().await;
}

async fn leaders_go(version: Version) {
    let mut play = Play::begin(version, 3).await;
    for _ in 0..2 {
        let leader = play.server.leader().unwrap();
        play.server.kill(leader).unwrap();
        play.goes_on().await;
        play.server.restart(leader).unwrap();
    }
    // One that neither answers nor goes away.
    let leader = play.server.leader().unwrap();
    play.server.freeze(leader).unwrap();
    play.goes_on().await;
    play.server.thaw(leader).unwrap();
    play.ends_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_leaders_loses_nothing_in_3_4() {
    leaders_go(Version::V3_4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_leaders_loses_nothing_in_3_5() {
    leaders_go(Version::V3_5).await;
}

/// Somebody else's keys beside ours, and our own root: neither is mixed up with the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_beside_the_root_is_not_ours() {
    let (server, store) = started(Version::V3_4, 1).await;
    let config = etcd::Config::new(server.endpoints(), Key::new("/other/"));
    let other = etcd::Etcd::connect(&config, &Seams::real()).await.unwrap();
    let line = reconciler::store::Line {
        key: Key::new("/other/x"),
        expect: None,
        effect: reconciler::store::Effect::Put(Bytes::from_static(b"1")),
    };
    let mut watch = store_suite::watch(&*store, "/suite/", store_suite::revision(&*store).await).await;
    let beside = other.commit(txn([line])).await.unwrap();
    // The watch says that it has passed what it does not tell.
    loop {
        let batch = store_suite::next(&mut watch).await.unwrap();
        assert!(batch.changes.is_empty(), "{batch:?}");
        if batch.revision >= beside {
            break;
        }
    }
    assert!(listed(&store).await.unwrap().0.is_empty());
}
