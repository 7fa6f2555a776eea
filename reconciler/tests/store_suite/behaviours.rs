//! One function a behaviour; its name is the sentence it proves.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use reconciler::store::{BYTES_PER_COMMIT, KEYS_PER_COMMIT};

use super::*;

type S = Arc<dyn Store>;

pub async fn a_value_is_read_as_it_was_written(store: S) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let largest = vec![7; BYTES_PER_COMMIT - key("largest").as_str().len()];
    for (name, value) in [("bytes", &all_bytes[..]), ("empty", b""), ("largest", &largest), ("ünïcode/ /x", b"v")] {
        let revision = commit(&*store, [put(name, value)]).await;
        let (now, found) = store.get(&key(name)).await.unwrap();
        assert_eq!(now, revision);
        let expected =
            Versioned { key: key(name), value: Bytes::copy_from_slice(value), created: revision, modified: revision };
        assert!(found == Some(expected), "{name}");
    }
    assert_eq!(get(&*store, "nothing").await, None);
    assert_eq!(store.identity().await.unwrap(), store.identity().await.unwrap());
    assert!(!store.identity().await.unwrap().0.is_empty());
}

pub async fn a_key_made_again_is_another_one(store: S) {
    let first = commit(&*store, [put("a", "1")]).await;
    let second = commit(&*store, [put("a", "2")]).await;
    assert!(second > first);
    let found = get(&*store, "a").await.unwrap();
    assert_eq!((found.created, found.modified), (first, second));

    let gone = commit(&*store, [delete("a")]).await;
    assert!(gone > second);
    assert_eq!(get(&*store, "a").await, None);

    let again = commit(&*store, [put("a", "2")]).await;
    let found = get(&*store, "a").await.unwrap();
    assert_eq!((found.created, found.modified), (again, again));
}

pub async fn expectations_decide(store: S) {
    let one = commit(&*store, [when(Expect::Absent, put("a", "1"))]).await;
    let cases = [
        (when(Expect::Absent, put("a", "x")), false),
        (when(Expect::Absent, delete("a")), false),
        (check("a", Expect::Absent), false),
        (check("b", Expect::Absent), true),
        (check("a", Expect::Version(one)), true),
        (check("a", Expect::Version(Revision(one.0 + 1))), false),
        (check("b", Expect::Version(one)), false),
        (when(Expect::Version(Revision(one.0 - 1)), put("a", "x")), false),
        (when(Expect::Version(one), put("a", "2")), true),
        (when(Expect::Version(one), put("a", "x")), false),
        (when(Expect::Version(one), delete("a")), false),
    ];
    for (line, holds) in cases {
        let (told, before) = (format!("{line:?}"), revision(&*store).await);
        let name = line.key.as_str().strip_prefix("/suite/").unwrap().to_owned();
        match store.commit(txn([line])).await {
            Ok(_) => assert!(holds, "{told}"),
            Err(error) => {
                assert!(!holds && is_conflict(&error, &name), "{told}: {error}");
                assert_eq!(revision(&*store).await, before, "{told}");
            }
        }
    }
    let two = get(&*store, "a").await.unwrap().modified;
    assert_eq!(two, Revision(one.0 + 1));
    commit(&*store, [when(Expect::Version(two), delete("a"))]).await;
    // The version of what is gone is no version.
    assert!(is_conflict(&store.commit(txn([check("a", Expect::Version(two))])).await.unwrap_err(), "a"));
    commit(&*store, [when(Expect::Absent, put("a", "3"))]).await;
}

pub async fn a_commit_is_all_or_nothing(store: S) {
    let before = commit(&*store, [put("a", "1"), put("b", "1"), put("c", "1")]).await;
    let lines = [put("a", "2"), delete("b"), when(Expect::Absent, put("c", "2")), put("d", "2")];
    let error = store.commit(txn(lines)).await.unwrap_err();
    assert!(is_conflict(&error, "c"), "{error}");
    let listing = store.list(&key(""), Page::default()).await.unwrap();
    assert_eq!((listing.revision, entries(&listing.entries)), (before, vec!["a=1".into(), "b=1".into(), "c=1".into()]));

    let after = commit(&*store, [put("a", "2"), delete("b"), check("c", Expect::Version(before)), put("d", "2")]).await;
    assert_eq!(after, Revision(before.0 + 1));
    let listing = store.list(&key(""), Page::default()).await.unwrap();
    assert_eq!(entries(&listing.entries), ["a=2", "c=1", "d=2"]);
    let versions: Vec<u64> = listing.entries.iter().map(|entry| entry.modified.0 - before.0).collect();
    assert_eq!(versions, [1, 0, 1]);
}

pub async fn a_fence_holds_until_somebody_else_is_elected(store: S) {
    let first = Fence { key: key("term"), revision: commit(&*store, [put("term", "n1")]).await };
    store.commit(fenced(&first, [put("a", "n1")])).await.unwrap();
    // A leader may end its own term.
    let second = Fence { key: key("term"), revision: commit(&*store, [put("term", "n2")]).await };
    let error = store.commit(fenced(&first, [put("a", "late")])).await.unwrap_err();
    assert!(matches!(&error, CommitError::Fenced { fence } if *fence == first), "{error}");
    // The end of a term outweighs a conflict: the leader must hear it.
    let error = store.commit(fenced(&first, [when(Expect::Absent, put("a", "late"))])).await.unwrap_err();
    assert!(matches!(&error, CommitError::Fenced { .. }), "{error}");
    assert!(matches!(store.commit(fenced(&first, [])).await.unwrap_err(), CommitError::Fenced { .. }));
    assert_eq!(store.commit(fenced(&second, [])).await.unwrap(), second.revision);

    let error = store.commit(fenced(&second, [when(Expect::Absent, put("a", "n2"))])).await.unwrap_err();
    assert!(is_conflict(&error, "a"), "{error}");
    let third = store.commit(fenced(&second, [put("term", "n3"), put("a", "n2")])).await.unwrap();
    assert!(store.commit(fenced(&second, [put("a", "late")])).await.is_err());
    let third = Fence { key: key("term"), revision: third };
    store.commit(fenced(&third, [put("a", "n3"), delete("term")])).await.unwrap();
    assert!(store.commit(fenced(&third, [put("a", "late")])).await.is_err());
    assert_eq!(text(&get(&*store, "a").await.unwrap().value), "n3");
}

pub async fn limits_are_refused_whole(store: S) {
    let fence = Fence { key: key("term"), revision: commit(&*store, [put("term", "n1")]).await };
    let many = |count: usize| (0..count).map(|i| put(&format!("many/{i:03}"), "x"));
    store.commit(txn(many(KEYS_PER_COMMIT))).await.unwrap();
    store.commit(fenced(&fence, many(KEYS_PER_COMMIT - 1))).await.unwrap();
    // Each with an expectation, so that each costs a comparison as well.
    let version = revision(&*store).await;
    let expecting = |line| when(Expect::Version(version), line);
    store.commit(fenced(&fence, many(KEYS_PER_COMMIT - 1).map(expecting))).await.unwrap();

    let before = revision(&*store).await;
    let too_many = store.commit(txn(many(KEYS_PER_COMMIT + 1))).await.unwrap_err();
    assert!(matches!(too_many, CommitError::TooLarge { what: "keys", asked: 101, limit: 100 }), "{too_many}");
    assert!(store.commit(fenced(&fence, many(KEYS_PER_COMMIT))).await.is_err());
    let too_long = store.commit(txn([put("a", vec![0; BYTES_PER_COMMIT])])).await.unwrap_err();
    assert!(matches!(too_long, CommitError::TooLarge { what: "bytes", .. }), "{too_long}");
    let half = vec![0; BYTES_PER_COMMIT / 2];
    let too_long = store.commit(txn([put("a", &half), put("b", &half)])).await.unwrap_err();
    assert!(matches!(too_long, CommitError::TooLarge { what: "bytes", .. }), "{too_long}");
    let twice = store.commit(txn([put("a", "1"), delete("a")])).await.unwrap_err();
    assert!(matches!(&twice, CommitError::Repeated { key: at } if *at == key("a")), "{twice}");
    assert_eq!(revision(&*store).await, before);
}

pub async fn what_changes_nothing_takes_no_revision(store: S) {
    let before = commit(&*store, [put("a", "1")]).await;
    assert_eq!(commit(&*store, []).await, before);
    assert_eq!(commit(&*store, [delete("absent")]).await, before);
    assert_eq!(commit(&*store, [check("a", Expect::Version(before)), check("b", Expect::Absent)]).await, before);
    assert_eq!(commit(&*store, [when(Expect::Absent, delete("absent"))]).await, before);
    assert_eq!(revision(&*store).await, before);
    // The same value written again is a change: whoever writes through the objects layer is kept from it there.
    assert_eq!(commit(&*store, [put("a", "1"), delete("absent")]).await, Revision(before.0 + 1));
    let mut watch = watch(&*store, "/suite/", before).await;
    assert_eq!(changes(&next_change(&mut watch).await), ["a: 1 -> 1"]);
}

pub async fn keys_are_ordered_bytewise(store: S) {
    let names = ["a", "a!", "a/", "a/b", "a0", "aé", "b", "é", "\u{ffff}", "\u{10ffff}"];
    commit(&*store, names.iter().rev().map(|name| put(name, "x"))).await;
    let list = async |prefix: &str| {
        let listing = store.list(&Key::new(format!("/suite/{prefix}")), Page::default()).await.unwrap();
        listing.entries.iter().map(|entry| short(&entry.key)).collect::<Vec<_>>()
    };
    assert_eq!(list("").await, names);
    assert_eq!(list("a").await, ["a", "a!", "a/", "a/b", "a0", "aé"]);
    assert_eq!(list("a/").await, ["a/", "a/b"]);
    assert_eq!(list("\u{10ffff}").await, ["\u{10ffff}"]);
    assert_eq!(list("c").await, [""; 0]);
    for limit in [1, 3] {
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let listing = store.list(&key("a"), page(limit, after.as_ref(), None)).await.unwrap();
            assert!(listing.entries.len() <= limit);
            found.extend(listing.entries.iter().map(|entry| short(&entry.key)));
            after = listing.entries.last().map(|entry| entry.key.clone()).or(after);
            if !listing.more {
                break;
            }
        }
        assert_eq!(found, list("a").await, "in pages of {limit}");
    }
    // A place before, and one after, everything under the prefix.
    assert_eq!(store.list(&key("a"), page(0, Some(&key("")), None)).await.unwrap().entries.len(), 6);
    let past = store.list(&key("a"), page(0, Some(&key("b")), None)).await.unwrap();
    assert!(past.entries.is_empty() && !past.more);
}

pub async fn pages_tell_of_one_moment_while_writes_go_on(store: S) {
    let name = |i: usize| format!("{i:04}");
    for group in 0..6 {
        commit(&*store, (0..50).map(|i| put(&name(group * 50 + i), "old"))).await;
    }
    let writer = {
        let store = store.clone();
        async move {
            for i in 0..60 {
                let (gone, made, changed) = (name(i * 5), format!("{}+", name(i * 5)), name(i * 5 + 1));
                commit(&*store, [delete(&gone), put(&made, "new"), put(&changed, "new")]).await;
            }
        }
    };
    let reader = async {
        let (mut at, mut after, mut found) = (None, None, Vec::new());
        loop {
            let listing = store.list(&key(""), page(7, after.as_ref(), at)).await.unwrap();
            assert_eq!(*at.get_or_insert(listing.revision), listing.revision);
            after = listing.entries.last().map(|entry| entry.key.clone());
            found.extend(listing.entries);
            if !listing.more {
                return (at.unwrap(), found);
            }
        }
    };
    let (_, (at, found)) = tokio::join!(writer, reader);
    let at_once = store.list(&key(""), page(0, None, Some(at))).await.unwrap();
    assert_eq!(entries(&found), entries(&at_once.entries));
    let keys: Vec<&Key> = found.iter().map(|entry| &entry.key).collect();
    assert_eq!(keys.len(), 300, "each commit takes one key and makes one");
    assert!(keys.is_sorted());
    assert!(found.iter().all(|entry| entry.modified <= at));
}

pub async fn the_past_can_be_listed_until_it_is_compacted(store: S) {
    let one = commit(&*store, [put("a", "1"), put("b", "1")]).await;
    let two = commit(&*store, [delete("a"), put("c", "2")]).await;
    let three = commit(&*store, [put("a", "3"), put("b", "3")]).await;
    let at = async |revision| {
        let listing = store.list(&key(""), page(0, None, Some(revision))).await?;
        assert_eq!(listing.revision, revision);
        Ok::<_, StoreError>(entries(&listing.entries))
    };
    assert_eq!(at(one).await.unwrap(), ["a=1", "b=1"]);
    assert_eq!(at(two).await.unwrap(), ["b=1", "c=2"]);
    assert_eq!(at(three).await.unwrap(), ["a=3", "b=3", "c=2"]);
    let ahead = Revision(three.0 + 1);
    assert!(
        matches!(at(ahead).await, Err(StoreError::Future { asked, current }) if asked == ahead && current == three)
    );
    assert!(matches!(store.compact(ahead).await, Err(StoreError::Future { .. })));

    store.compact(two).await.unwrap();
    assert!(matches!(at(one).await, Err(StoreError::Compacted { asked, .. }) if asked == one));
    assert_eq!(at(two).await.unwrap(), ["b=1", "c=2"]);
    // Again, and less far: nothing to do.
    store.compact(two).await.unwrap();
    store.compact(one).await.unwrap();
    store.compact(three).await.unwrap();
    assert!(matches!(at(two).await, Err(StoreError::Compacted { .. })));
    assert_eq!(at(three).await.unwrap(), ["a=3", "b=3", "c=2"]);
    assert_eq!(revision(&*store).await, three);
    let found = get(&*store, "c").await.unwrap();
    assert_eq!((found.created, found.modified), (two, two), "what stands keeps its versions");
    commit(&*store, [when(Expect::Version(two), delete("c"))]).await;
}

pub async fn large_listings_arrive_whole(store: S) {
    // More than one message of the protocol holds, in few keys and in many.
    let megabyte = vec![b'x'; 1_000_000];
    for i in 0..10 {
        commit(&*store, [put(&format!("large/{i}"), &megabyte)]).await;
    }
    for group in 0..30 {
        commit(&*store, (0..100).map(|i| put(&format!("many/{group:02}{i:02}"), [b'y'; 20]))).await;
    }
    let large = store.list(&key("large/"), Page::default()).await.unwrap();
    assert_eq!((large.entries.len(), large.more), (10, false));
    assert!(large.entries.iter().all(|entry| entry.value == megabyte));
    let many = store.list(&key("many/"), Page::default()).await.unwrap();
    assert_eq!((many.entries.len(), many.more), (3_000, false));
    let most = store.list(&key(""), page(3_009, None, None)).await.unwrap();
    assert_eq!((most.entries.len(), most.more), (3_009, true));
}

pub async fn a_watch_tells_each_commit_once_in_order_and_whole(store: S) {
    let start = commit(&*store, [put("a/0", "0")]).await;
    let mut watch = watch(&*store, "/suite/a", start).await;
    commit(&*store, [put("a/1", "1"), put("b", "1"), put("a/2", "1")]).await;
    commit(&*store, [put("b", "2")]).await;
    commit(&*store, [delete("a/1"), put("a/0", "3")]).await;
    let last = commit(&*store, [put("a/1", "4")]).await;
    let batches = changes_until(&mut watch, last).await;
    let told: Vec<(u64, Vec<String>)> =
        batches.iter().map(|batch| (batch.revision.0 - start.0, changes(batch))).collect();
    let told: Vec<(u64, Vec<&str>)> =
        told.iter().map(|(at, changes)| (*at, changes.iter().map(String::as_str).collect())).collect();
    assert_eq!(
        told,
        [(1, vec!["a/1: - -> 1", "a/2: - -> 1"]), (3, vec!["a/0: 0 -> 3", "a/1: 1 -> -"]), (4, vec!["a/1: - -> 4"]),]
    );
    for batch in &batches {
        assert!(batch.changes.iter().all(|c| c.value.as_ref().is_none_or(|value| value.modified == batch.revision)));
    }
    // And promptly, when it happens while one watches.
    let next = tokio::join!(next_change(&mut watch), commit(&*store, [put("a/5", "5")])).0;
    assert_eq!(changes(&next), ["a/5: - -> 5"]);
}

pub async fn a_watch_knows_what_stood_before(store: S) {
    let one = commit(&*store, [put("a", "1")]).await;
    let two = commit(&*store, [put("a", "2")]).await;
    let three = commit(&*store, [delete("a")]).await;
    commit(&*store, [put("a", "4")]).await;
    let mut first = watch(&*store, "/suite/", one).await;
    let batch = next_change(&mut first).await;
    let previous = batch.changes[0].previous.as_ref().unwrap();
    assert_eq!((previous.created, previous.modified, text(&previous.value)), (one, one, "1".into()));
    let value = batch.changes[0].value.as_ref().unwrap();
    assert_eq!((value.created, value.modified), (one, two));
    assert_eq!(changes(&next_change(&mut first).await), ["a: 2 -> -"]);
    assert_eq!(changes(&next_change(&mut first).await), ["a: - -> 4"]);

    // What is compacted away is not known any more, but what happened after it is told.
    store.compact(two).await.unwrap();
    let mut later = watch(&*store, "/suite/", two).await;
    let batch = next_change(&mut later).await;
    assert_eq!((batch.revision, &batch.changes[0].value), (three, &None));
    assert!(batch.changes[0].previous.as_ref().is_none_or(|previous| text(&previous.value) == "2"));
    assert_eq!(changes(&next_change(&mut later).await), ["a: - -> 4"]);
}

pub async fn a_watch_goes_on_where_another_one_ended(store: S) {
    let start = revision(&*store).await;
    for i in 0..50 {
        commit(&*store, [put(&format!("{}", i % 7), format!("{i}"))]).await;
    }
    let (mut seen, mut whole) = (start, Vec::new());
    while whole.len() < 50 {
        let mut watch = watch(&*store, "/suite/", seen).await;
        for _ in 0..9_usize.min(50 - whole.len()) {
            let batch = next_change(&mut watch).await;
            seen = batch.revision;
            whole.extend(changes(&batch));
        }
    }
    assert_eq!(seen, revision(&*store).await);
    let expected: Vec<String> = (0..50)
        .map(|i| format!("{}: {} -> {i}", i % 7, if i < 7 { "-".into() } else { (i - 7).to_string() }))
        .collect();
    assert_eq!(whole, expected);
}

pub async fn a_watch_tells_of_passed_revisions(store: S) {
    let start = revision(&*store).await;
    let mut watch = watch(&*store, "/suite/quiet/", start).await;
    for i in 0..3 {
        commit(&*store, [put("loud", format!("{i}"))]).await;
    }
    let last = revision(&*store).await;
    let told = tokio::time::timeout(Duration::from_secs(3), async {
        loop {
            let batch = next(&mut watch).await.unwrap();
            assert!(batch.changes.is_empty());
            if batch.revision >= last {
                return batch.revision;
            }
        }
    });
    assert_eq!(told.await.expect("word within three seconds"), last);
    // Nothing is told while nothing happens: a passed revision was passed.
    assert!(tokio::time::timeout(Duration::from_millis(100), watch.next()).await.is_err());
    // And what was passed is not told again.
    let after = tokio::join!(next_change(&mut watch), commit(&*store, [put("quiet/a", "1")])).0;
    assert_eq!(after.revision, Revision(last.0 + 1));
}

pub async fn a_watch_from_the_future_or_the_forgotten_past_is_refused(store: S) {
    let refusal = async |after: Revision| match store.watch(&key(""), after).await {
        Ok(mut watch) => {
            let refusal = next(&mut watch).await.unwrap_err();
            let end = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
            assert!(end.expect("an end").is_none(), "a watch ends with its first error");
            refusal
        }
        Err(error) => error,
    };
    let one = commit(&*store, [put("a", "1")]).await;
    let two = commit(&*store, [delete("a")]).await;
    let three = commit(&*store, [put("b", "3")]).await;
    let ahead = Revision(three.0 + 1);
    let error = refusal(ahead).await;
    assert!(matches!(error, StoreError::Future { asked, current } if asked == ahead && current == three), "{error}");
    store.compact(two).await.unwrap();
    // The deletion at the compacted revision can be told by nobody: one who has seen only `one` must list anew.
    let error = refusal(one).await;
    assert!(matches!(error, StoreError::Compacted { asked, .. } if asked == one), "{error}");
    let error = refusal(Revision(one.0 - 1)).await;
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
    let mut watch = watch(&*store, "/suite/", two).await;
    assert_eq!(changes(&next_change(&mut watch).await), ["b: - -> 3"]);
}

pub async fn a_slow_watcher_misses_nothing(store: S) {
    let start = revision(&*store).await;
    let mut slow = watch(&*store, "/suite/", start).await;
    for group in 0..20 {
        let commits = (0..100).map(|i| store.commit(txn([put(&format!("{i}"), format!("{group}"))])));
        for done in join_all(commits).await {
            done.unwrap();
        }
    }
    let last = revision(&*store).await;
    assert_eq!(last.0 - start.0, 2_000);
    let told = changes_until(&mut slow, last).await;
    assert_eq!(told.len(), 2_000);
    assert!(told.iter().enumerate().all(|(i, batch)| batch.revision.0 == start.0 + 1 + i as u64));
}

pub async fn a_large_commit_arrives_as_one_batch(store: S) {
    let start = revision(&*store).await;
    let mut watch = watch(&*store, "/suite/", start).await;
    let value = vec![b'v'; 12_000];
    for round in 0..4 {
        commit(&*store, (0..KEYS_PER_COMMIT).map(|i| put(&format!("{i:03}"), &value))).await;
        let batch = next_change(&mut watch).await;
        assert_eq!((batch.revision.0 - start.0, batch.changes.len()), (round + 1, KEYS_PER_COMMIT));
        assert!(batch.changes.iter().map(|change| &change.key).is_sorted());
        assert!(batch.changes.iter().all(|change| change.previous.is_some() == (round > 0)));
    }
    // The same for one that begins in the past.
    let mut late = super::watch(&*store, "/suite/", start).await;
    let told = changes_until(&mut late, Revision(start.0 + 4)).await;
    assert_eq!(told.iter().map(|batch| batch.changes.len()).collect::<Vec<_>>(), [KEYS_PER_COMMIT; 4]);
}

pub async fn writers_that_race_lose_no_update(store: S) {
    commit(&*store, [put("counter", "0")]).await;
    let add = |store: S| async move {
        let mut conflicts = 0;
        for _ in 0..20 {
            loop {
                let seen = get(&*store, "counter").await.unwrap();
                let sum: u64 = text(&seen.value).parse().unwrap();
                let line = when(Expect::Version(seen.modified), put("counter", (sum + 1).to_string()));
                match store.commit(txn([line])).await {
                    Ok(revision) => {
                        // A read after an acknowledged commit sees it, or one after it.
                        assert!(get(&*store, "counter").await.unwrap().modified >= revision);
                        break;
                    }
                    Err(error) => {
                        assert!(is_conflict(&error, "counter"), "{error}");
                        conflicts += 1;
                    }
                }
            }
        }
        conflicts
    };
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(add(store.clone()))).collect();
    let _conflicts: usize = join_all(tasks).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(text(&get(&*store, "counter").await.unwrap().value), "160");
}

pub async fn all_watchers_see_the_same_history(store: S) {
    let start = revision(&*store).await;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..40 {
                    commit(&*store, [put(&format!("{}", i % 5), format!("{writer}-{i}")), put("last", "x")]).await;
                }
            })
        })
        .collect();
    let watchers: Vec<_> = (0..3)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut watch = watch(&*store, "/suite/", start).await;
                changes_until(&mut watch, Revision(start.0 + 160)).await
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let seen: Vec<Vec<Batch>> = join_all(watchers).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(seen[0].len(), 160);
    assert!(seen.iter().all(|one| *one == seen[0]));
    // What was told, laid on top of each other, is what stands.
    let mut laid = std::collections::BTreeMap::new();
    for change in seen[0].iter().flat_map(|batch| &batch.changes) {
        assert_eq!(laid.get(&change.key), change.previous.as_ref());
        laid.insert(change.key.clone(), change.value.clone().unwrap());
    }
    let stands = store.list(&key(""), Page::default()).await.unwrap();
    assert_eq!(stands.entries, laid.into_values().collect::<Vec<_>>());
}

pub async fn cancelled_commits_happen_whole_or_not_at_all(store: S) {
    let start = revision(&*store).await;
    for i in 0..40_u64 {
        let commit = store.commit(txn([put("a", format!("{i}")), put("b", format!("{i}"))]));
        // Let go of before it is begun, while it waits, or never.
        let _ = tokio::time::timeout(Duration::from_micros(i * 50), commit).await;
    }
    let last = commit(&*store, [put("end", "1")]).await;
    let mut watch = watch(&*store, "/suite/", start).await;
    let told = changes_until(&mut watch, last).await;
    assert!(told[..told.len() - 1].iter().all(|batch| batch.changes.len() == 2));
    let (a, b) = (get(&*store, "a").await, get(&*store, "b").await);
    assert_eq!(a.map(|found| found.value), b.map(|found| found.value));
}
