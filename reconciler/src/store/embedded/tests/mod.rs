//! What happens to the file when everything goes wrong below it. (What a store does when nothing does: the suite.)

mod disk;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::join_all;

use self::disk::{Fault, Faulty, Seeded};
use super::medium::Medium;
use super::*;
use crate::seams::Seams;
use crate::store::{CommitError, Effect, Expect, Line};

/// What stood at each revision, from 0.
type Past = Vec<BTreeMap<Key, Versioned>>;

/// How many seeds a test tries: a sample of its own, or as many as `STORE_SEEDS` says.
fn seeds(sample: u64) -> std::ops::Range<u64> {
    0..std::env::var("STORE_SEEDS").map_or(sample, |count| count.parse().expect("STORE_SEEDS is a number"))
}

fn options() -> Options {
    // So little that records are removed all the time.
    Options { retention: Retention { revisions: 12, bytes: 1 << 20 }, ..Options::default() }
}

fn open(disk: &Faulty) -> Result<Embedded, LoadError> {
    Embedded::open_medium(Arc::new(disk.clone()), &*Seams::real().random, &options(), None)
}

fn put(key: &str, value: impl Into<Bytes>) -> Line {
    Line { key: Key::new(key), expect: None, effect: Effect::Put(value.into()) }
}

fn delete(key: &str) -> Line {
    Line { key: Key::new(key), expect: None, effect: Effect::Delete }
}

fn txn(lines: impl IntoIterator<Item = Line>) -> Txn {
    Txn { fence: None, lines: lines.into_iter().collect() }
}

fn commit(store: &Embedded, lines: impl IntoIterator<Item = Line>) -> Result<Revision, CommitError> {
    block_on(store.commit(txn(lines)))
}

fn list(store: &Embedded, at: Option<Revision>) -> BTreeMap<Key, Versioned> {
    let page = Page { at, ..Page::default() };
    let listing = block_on(store.list(&Key::new(""), page)).expect("a listing");
    listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect()
}

/// A few commits, one after the other or at once; now and then a compaction.
fn some_step(random: &mut Seeded) -> Vec<Txn> {
    let some_line = |random: &mut Seeded| {
        let key = format!("key-{:02}", random.below(16));
        let length = match random.below(10) {
            0 => 20_000,
            1..4 => 2_000,
            _ => 60,
        };
        match random.below(4) {
            0 => delete(&key),
            _ => put(&key, (0..random.below(length)).map(|_| random.next() as u8).collect::<Vec<_>>()),
        }
    };
    let some_txn = |random: &mut Seeded| {
        let mut lines: Vec<Line> = (0..=random.below(5)).map(|_| some_line(random)).collect();
        lines.sort_by(|a, b| a.key.cmp(&b.key));
        lines.dedup_by(|a, b| a.key == b.key);
        txn(lines)
    };
    (0..if random.below(4) == 0 { 4 } else { 1 }).map(|_| some_txn(random)).collect()
}

/// What was known when so many things had been done to the disk.
#[derive(Debug, Default)]
struct Witness {
    past: Past,
    /// (things done, revision acknowledged by then), ascending.
    acknowledged: Vec<(usize, u64)>,
    /// From when to when a commit failed without a word on what became of it.
    in_doubt: Vec<std::ops::Range<usize>>,
}

impl Witness {
    fn new() -> Self {
        Self { past: vec![BTreeMap::new()], ..Self::default() }
    }

    /// Plays `steps` steps, whatever fails.
    fn play(&mut self, disk: &Faulty, store: &Embedded, random: &mut Seeded, steps: usize) {
        for _ in 0..steps {
            let began = disk.done();
            let answers = block_on(join_all(some_step(random).into_iter().map(|txn| store.commit(txn))));
            if random.below(8) == 0 {
                let _ = block_on(store.compact(Revision(store.history.revision().0.saturating_sub(3))));
            }
            // What memory holds now is what the store answers for.
            for at in self.past.len() as u64..=store.history.revision().0 {
                self.past.push(list(store, Some(Revision(at))));
            }
            let acknowledged = answers.iter().filter_map(|answer| answer.as_ref().ok()).max();
            if let Some(revision) = acknowledged {
                self.acknowledged.push((disk.done(), revision.0));
            }
            for error in answers.iter().filter_map(|answer| answer.as_ref().err()) {
                assert!(
                    matches!(error, CommitError::Unknown { .. } | CommitError::Unavailable { .. }),
                    "nothing else can go wrong here: {error}"
                );
                self.in_doubt.push(began..disk.done());
            }
        }
    }

    fn acknowledged_by(&self, cut: usize) -> u64 {
        self.acknowledged.iter().rev().find(|(done, _)| *done <= cut).map_or(0, |(_, revision)| *revision)
    }

    /// Opens what a power cut left and compares. Answers the disk, opened and closed again.
    fn check(&self, told: &str, cut: usize, found: Option<Vec<u8>>) -> Faulty {
        let disk = Faulty::holding(found);
        let store = open(&disk).unwrap_or_else(|error| panic!("{told}: {error:?}"));
        let (revision, acknowledged) = (store.history.revision(), self.acknowledged_by(cut));
        assert!(revision.0 >= acknowledged, "{told}: {acknowledged} was acknowledged, {revision} is there");
        let until = match self.in_doubt.iter().any(|doubt| doubt.contains(&cut)) {
            // A commit of which nobody knows whether it happened may stand after what is known.
            true => acknowledged.max(store.history.oldest().0),
            false => revision.0,
        };
        for at in store.history.oldest().0..=until {
            assert_eq!(list(&store, Some(Revision(at))), self.past[at as usize], "{told}: revision {at}");
        }
        // It goes on from there.
        let next = commit(&store, [put("after", "x")]).unwrap_or_else(|error| panic!("{told}: {error}"));
        assert_eq!(next.0, revision.0 + 1);
        drop(store);
        disk
    }
}

#[test]
fn a_power_cut_at_any_write_or_sync_loses_nothing_acknowledged_and_leaves_nothing_half() {
    let mut cuts = 0;
    for seed in seeds(3) {
        let disk = Faulty::default();
        let mut witness = Witness::new();
        let mut random = Seeded(seed);
        let store = open(&disk).unwrap();
        witness.play(&disk, &store, &mut random, 25);
        drop(store);
        for cut in 0..=disk.done() {
            let told = format!("seed {seed}, power cut after {cut}");
            let found = disk.after_power_cut(cut, &mut random);
            let after = witness.check(&told, cut, found);
            cuts += 1;
            // The power goes again while it recovers, or soon after.
            if random.below(4) == 0 {
                let again = random.below(after.done() + 1);
                let found = after.after_power_cut(again, &mut random);
                let disk = Faulty::holding(found);
                let store = open(&disk).unwrap_or_else(|error| panic!("{told}, and again after {again}: {error:?}"));
                let revision = store.history.revision().0;
                assert!(revision >= witness.acknowledged_by(cut), "{told}, and again after {again}");
                let known = revision.min(witness.past.len() as u64 - 1);
                let mut seen = list(&store, Some(Revision(revision)));
                if seen.remove(&Key::new("after")).is_none() {
                    assert_eq!(seen, witness.past[known as usize], "{told}, and again after {again}");
                }
                cuts += 1;
            }
        }
    }
    eprintln!("{cuts} power cuts");
    assert!(cuts > 200, "only {cuts} power cuts were tried");
}

#[test]
fn a_failed_write_or_sync_costs_no_acknowledged_commit() {
    let (mut tried, mut struck) = (0, 0);
    for seed in seeds(2) {
        let (steps, rehearsal) = (15, Faulty::default());
        let store = open(&rehearsal).unwrap();
        Witness::new().play(&rehearsal, &store, &mut Seeded(seed), steps);
        drop(store);
        let faults = (0..rehearsal.syncs()).map(Fault::Sync);
        // Which write it is depends on how the commits are grouped; a sample of them is as good as all.
        let faults = faults.chain((0..rehearsal.done()).step_by(5).map(Fault::Write));
        for fault in faults {
            let told = format!("seed {seed}, {fault:?}");
            let (disk, mut random, mut witness) = (Faulty::default(), Seeded(seed), Witness::new());
            disk.set_fault(fault);
            let Ok(store) = open(&disk) else { continue };
            witness.play(&disk, &store, &mut random, steps);
            tried += 1;
            struck += usize::from(disk.forgive());
            assert_eq!(store.health(), Health::Writable, "{told}");
            // Whatever failed, it is mended by the next commit.
            let last = commit(&store, [put("last", "x")]).unwrap_or_else(|error| panic!("{told}: {error}"));
            witness.past.push(list(&store, Some(last)));
            witness.acknowledged.push((disk.done(), last.0));
            for _ in 0..3 {
                let cut = disk.done() - random.below(3).min(disk.done());
                let cut = if random.coin() { cut } else { random.below(disk.done() + 1) };
                witness.check(&format!("{told}, power cut after {cut}"), cut, disk.after_power_cut(cut, &mut random));
            }
        }
    }
    eprintln!("{tried} runs, in {struck} of them the fault struck");
    assert!(struck * 2 > tried, "in {struck} of {tried} runs the fault struck");
}

#[test]
fn a_disk_that_fails_for_long_stops_writes_and_nothing_else() {
    let disk = Faulty::default();
    let store = open(&disk).unwrap();
    let one = commit(&store, [put("a", "1")]).unwrap();
    disk.set_broken(true);
    for _ in 0..3 {
        let error = commit(&store, [put("a", "2")]).unwrap_err();
        assert!(matches!(error, CommitError::Unknown { .. } | CommitError::Unavailable { .. }), "{error}");
        assert!(matches!(store.health(), Health::Failing { .. }));
        assert_eq!(block_on(store.get(&Key::new("a"))).unwrap().0, one);
    }
    assert!(block_on(store.compact(one)).is_err());
    disk.set_broken(false);
    let two = commit(&store, [put("a", "2")]).unwrap();
    assert_eq!((two.0, store.health()), (one.0 + 1, Health::Writable));
    drop(store);
    assert_eq!(open(&disk).unwrap().history.revision(), two);
}

#[test]
fn on_a_full_disk_deletions_go_on_and_writes_come_back_with_the_room() {
    for seed in seeds(1) {
        let disk = Faulty::default();
        disk.set_capacity(Some(400 + 64 * seed as usize));
        let store = open(&disk).unwrap();
        let mut random = Seeded(seed);
        let mut full = 0;
        for round in 0..4 {
            // Until it is full.
            let mut count = 0;
            let error = loop {
                let value = vec![round; 100 + random.below(3_000)];
                match commit(&store, [put(&format!("key-{count:05}"), value)]) {
                    Ok(_) => count += 1,
                    Err(error) => break error,
                }
                assert!(count < 10_000, "it never gets full");
            };
            assert!(matches!(error, CommitError::Full { .. }), "seed {seed}, round {round}: {error}");
            assert!(matches!(store.health(), Health::Full { .. }));
            assert!(count > 20, "seed {seed}, round {round}: full after {count}");
            full += 1;
            // Nothing was lost by that, and refused again it is.
            assert_eq!(list(&store, None).len(), count);
            assert!(matches!(commit(&store, [put("b", "x")]), Err(CommitError::Full { .. })));
            // An expectation that does not hold is told also now; a deletion that is none succeeds.
            let expecting = Line { expect: Some(Expect::Absent), ..delete("key-00000") };
            assert!(matches!(commit(&store, [expecting]), Err(CommitError::Conflict { .. })));
            commit(&store, [delete("absent")]).unwrap();
            for key in 0..count {
                commit(&store, [delete(&format!("key-{key:05}"))])
                    .unwrap_or_else(|error| panic!("seed {seed}, round {round}, deletion {key} of {count}: {error}"));
            }
            assert_eq!(list(&store, None).len(), 0);
        }
        // The deletions made the room; once, somebody else does.
        while commit(&store, [put(&format!("more-{}", random.next()), vec![0; 3_000])]).is_ok() {}
        let (used, before) = (disk.blocks_used(), list(&store, None));
        disk.set_capacity(Some(used + 500));
        let last = commit(&store, [put("last", "x")]).unwrap();
        assert_eq!((full, store.health()), (4, Health::Writable));
        drop(store);
        let again = open(&disk).unwrap();
        assert_eq!((again.history.revision(), list(&again, None).len()), (last, before.len() + 1));
    }
}

#[test]
fn a_deletion_that_is_the_first_to_find_the_disk_full_is_taken() {
    for number in 1..60 {
        let disk = Faulty::default();
        let store = open(&disk).unwrap();
        for key in 0..number {
            commit(&store, [put(&format!("key-{key:02}"), vec![1; 1_000])]).unwrap();
        }
        // Somebody else takes all the room there is, but for what is set aside.
        disk.set_capacity(Some(disk.blocks_used()));
        assert_eq!(store.health(), Health::Writable);
        for key in 0..number {
            commit(&store, [delete(&format!("key-{key:02}"))])
                .unwrap_or_else(|error| panic!("deletion {key} of {number}: {error}"));
        }
        assert_eq!(list(&store, None).len(), 0);
    }
}

#[test]
fn a_store_that_starts_on_a_full_disk_takes_deletions() {
    let disk = Faulty::default();
    let store = open(&disk).unwrap();
    commit(&store, (0..50).map(|i| put(&format!("{i}"), vec![1; 4_000]))).unwrap();
    drop(store);
    disk.release().unwrap();
    disk.set_capacity(Some(disk.blocks_used() + 30));
    let store = open(&disk).unwrap();
    assert!(matches!(store.health(), Health::Full { .. }));
    commit(&store, (0..50).map(|i| delete(&format!("{i}")))).unwrap();
    commit(&store, [put("a", "1")]).unwrap();
    assert_eq!(store.health(), Health::Writable);
}

/// Refused, or opened with everything there; never anything between.
fn refused_or_whole(told: &str, bytes: Vec<u8>, expected: &BTreeMap<Key, Versioned>, revision: Revision) -> bool {
    let disk = Faulty::holding(Some(bytes));
    match open(&disk) {
        Err(LoadError::Damaged(_) | LoadError::Io(_)) => true,
        Err(error) => panic!("{told}: {error:?}"),
        Ok(store) => {
            assert_eq!((store.history.revision(), &list(&store, None)), (revision, expected), "{told}");
            // And what is written on top of it is as safe as ever.
            let next = commit(&store, [put("after", vec![7; 9_000]), delete("key-00")]).unwrap();
            drop(store);
            assert_eq!(open(&disk).unwrap_or_else(|error| panic!("{told}: {error:?}")).history.revision(), next);
            false
        }
    }
}

#[test]
fn a_flipped_byte_is_refused_wherever_it_would_matter() {
    let disk = Faulty::default();
    let store = open(&disk).unwrap();
    let (mut random, mut witness) = (Seeded(1), Witness::new());
    witness.play(&disk, &store, &mut random, 25);
    let (revision, expected) = (store.history.revision(), list(&store, None));
    // As it is when the process is killed, and after it was closed well.
    let killed = disk.bytes();
    drop(store);
    let step = if std::env::var_os("STORE_SEEDS").is_some() { 1 } else { 997 };
    for (how, bytes) in [("killed", killed), ("closed", disk.bytes())] {
        let (mut flipped, mut refused) = (0, 0);
        // The first sectors are redb's header: every byte of it that is in use, always.
        for at in (0..320).chain((320..bytes.len()).step_by(step)) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << random.below(8);
            refused += usize::from(refused_or_whole(&format!("{how}, byte {at}"), bytes, &expected, revision));
            flipped += 1;
        }
        eprintln!("{how}: {flipped} bytes flipped, {refused} refused, the others nothing stood on");
        assert!(refused > 0);
    }
}

#[test]
fn a_file_cut_short_is_refused() {
    let disk = Faulty::default();
    let store = open(&disk).unwrap();
    Witness::new().play(&disk, &store, &mut Seeded(2), 25);
    let (revision, expected) = (store.history.revision(), list(&store, None));
    drop(store);
    let bytes = disk.bytes();
    for len in (0..bytes.len()).step_by(1_777).chain([1, 511, 4_096, bytes.len() - 1]) {
        let cut = bytes[..len].to_vec();
        assert!(refused_or_whole(&format!("cut to {len}"), cut, &expected, revision), "cut to {len}");
    }
}

#[test]
fn damage_names_the_record() {
    use redb::{ReadableTable, TableDefinition};
    const LOG: TableDefinition<(u64, &str), &[u8]> = TableDefinition::new("log");
    type Spoil = fn(&mut redb::Table<'_, (u64, &'static str), &'static [u8]>);
    let cases: [(Spoil, &str); 5] = [
        (
            |table| {
                let mut record = table.get((2, "b")).unwrap().unwrap().value().to_vec();
                *record.last_mut().unwrap() ^= 1;
                table.insert((2, "b"), &*record).unwrap();
            },
            "the record of b at revision 2 does not match its checksum",
        ),
        (|table| drop(table.remove((2, "b")).unwrap()), "2 records are there of 3"),
        (
            |table| {
                let record = table.get((1, "a")).unwrap().unwrap().value().to_vec();
                table.insert((3, "a"), &*record).unwrap();
            },
            "the record of a at revision 3 does not match its checksum",
        ),
        (|table| drop(table.remove((u64::MAX, "head")).unwrap()), "the head is missing"),
        (|table| drop(table.insert((0, "identity"), &b"12345"[..]).unwrap()), "the identity does not match"),
    ];
    for (spoil, expected) in cases {
        let disk = Faulty::default();
        let store = open(&disk).unwrap();
        for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
            commit(&store, [put(key, value)]).unwrap();
        }
        drop(store);
        // What no checksum of redb's would notice: written by redb.
        let backend = super::medium::Backend { disk: disk.open().unwrap().unwrap(), troubles: Arc::default() };
        let file = redb::Builder::new().create_with_backend(backend).unwrap();
        let transaction = file.begin_write().unwrap();
        spoil(&mut transaction.open_table(LOG).unwrap());
        transaction.commit().unwrap();
        drop(file);
        match open(&disk) {
            Err(LoadError::Damaged(detail)) => assert!(detail.contains(expected), "{detail}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}
