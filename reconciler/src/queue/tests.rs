//! The books against a stupid model that keeps a list of keys and looks at all of them each time; then what the order
//! promises, and waiting on the real clock.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use reconciler_api::ResourceVersion;

use super::book::Book;
use super::*;

const SOURCES: [&str; 3] = ["own", "child", "timer"];
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

#[derive(Clone, Debug)]
enum Op {
    Add { key: u8, source: usize, background: bool },
    AddAfter { key: u8, seconds: u64 },
    Take,
    Done { which: usize, verdict: Verdict, wrote: bool },
    Advance,
    Wait { seconds: u64 },
    Forget { key: u8 },
    Hurry,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let verdict = prop_oneof![
        3 => Just(Verdict::Rest),
        2 => Just(Verdict::Failed),
        1 => (0..5u64).prop_map(|s| Verdict::FailedAfter(Duration::from_secs(s))),
        1 => (0..9u64).prop_map(|s| Verdict::After(Duration::from_secs(s))),
        1 => Just(Verdict::Again),
        1 => Just(Verdict::Gone),
    ];
    let op = prop_oneof![
        4 => (0..4u8, 0..3usize, any::<bool>()).prop_map(|(key, source, background)| Op::Add { key, source, background }),
        1 => (0..4u8, 0..9u64).prop_map(|(key, seconds)| Op::AddAfter { key, seconds }),
        4 => Just(Op::Take),
        4 => (0..4usize, verdict, any::<bool>()).prop_map(|(which, verdict, wrote)| Op::Done { which, verdict, wrote }),
        1 => Just(Op::Advance),
        2 => (0..4u64).prop_map(|seconds| Op::Wait { seconds }),
        1 => (0..4u8).prop_map(|key| Op::Forget { key }),
        1 => Just(Op::Hurry),
    ];
    proptest::collection::vec(op, 1..80)
}

/// What is remembered of one key.
#[derive(Clone, Debug, Default)]
struct Modelled {
    ready: bool,
    working: bool,
    held: Option<u64>,
    again: bool,
    due: Option<u64>,
    failures: u32,
    served: u64,
    paused: u64,
    forgotten: bool,
}

#[derive(Default)]
struct Model {
    keys: BTreeMap<u8, Modelled>,
    now: u64,
    version: u64,
    written: u64,
}

impl Model {
    fn add(&mut self, key: u8) {
        let now = self.now;
        let entry = self.keys.entry(key).or_default();
        if entry.working || entry.held.is_some() {
            entry.again = true;
        } else if entry.ready {
        } else if entry.paused > now {
            entry.due = Some(entry.due.map_or(entry.paused, |due| due.min(entry.paused)));
        } else {
            entry.due = None;
            entry.ready = true;
        }
    }

    fn add_after(&mut self, key: u8, seconds: u64) {
        if seconds == 0 {
            return self.add(key);
        }
        let at = self.now + seconds;
        let entry = self.keys.entry(key).or_default();
        if !entry.ready {
            entry.due = Some(entry.due.map_or(at, |due| due.min(at)));
        }
    }

    fn pass_time(&mut self) {
        for entry in self.keys.values_mut().filter(|entry| !entry.working && entry.held.is_none() && !entry.ready) {
            if entry.due.is_some_and(|due| due <= self.now) {
                entry.due = None;
                entry.ready = true;
            }
        }
    }

    fn settle(&mut self, key: u8) {
        let now = self.now;
        let entry = self.keys.get_mut(&key).unwrap();
        entry.working = false;
        entry.held = None;
        if std::mem::take(&mut entry.again) {
            if entry.paused <= now {
                entry.ready = true;
                entry.due = None;
            } else {
                entry.due = Some(entry.due.map_or(entry.paused, |due| due.min(entry.paused)));
            }
        }
    }

    fn done(&mut self, key: u8, verdict: Verdict, seen: Option<u64>) {
        let now = self.now;
        let entry = self.keys.get_mut(&key).unwrap();
        if std::mem::take(&mut entry.forgotten) {
            (entry.failures, entry.served, entry.paused) = (0, 0, 0);
        }
        let seconds = |d: Duration| d.as_secs();
        let due = |entry: &mut Modelled, at: u64| entry.due = Some(entry.due.map_or(at, |due| due.min(at)));
        match verdict {
            Verdict::Rest | Verdict::Gone | Verdict::After(_) => {
                (entry.failures, entry.served, entry.paused) = (0, 0, 0);
                match verdict {
                    Verdict::Gone => entry.due = None,
                    Verdict::After(delay) => due(entry, now + seconds(delay)),
                    _ => {}
                }
            }
            Verdict::Again => due(entry, now),
            Verdict::Failed if now >= entry.served => {
                entry.failures += 1;
                let delay = seconds(BACKOFF.delay(entry.failures, 0));
                (entry.served, entry.paused) = (now + delay, now + delay.min(1));
                due(entry, now + delay);
            }
            Verdict::Failed => {
                entry.paused = entry.served.min(now + 1);
                due(entry, entry.served);
            }
            Verdict::FailedAfter(delay) => {
                entry.failures += 1;
                (entry.served, entry.paused) = (now + seconds(delay), now + seconds(delay).min(1));
                due(entry, now + seconds(delay));
            }
        }
        match seen {
            Some(version) if version > self.version => {
                entry.working = false;
                entry.held = Some(version);
            }
            _ => self.settle(key),
        }
    }

    fn hurry(&mut self) {
        for entry in self.keys.values_mut().filter(|entry| entry.failures > 0) {
            (entry.failures, entry.served, entry.paused) = (0, 0, 0);
            let idle = !entry.working && entry.held.is_none() && !entry.ready;
            if idle && entry.due.take().is_some() {
                entry.ready = true;
            }
        }
    }

    fn working(&self) -> Vec<u8> {
        self.keys.iter().filter(|(_, entry)| entry.working).map(|(key, _)| *key).collect()
    }
}

fn at(seconds: u64) -> Monotonic {
    Monotonic(Duration::from_secs(seconds))
}

fn run(ops: &[Op]) {
    let mut book: Book<u8> = Book::new();
    let mut model = Model::default();
    for op in ops {
        let now = at(model.now);
        match op {
            Op::Add { key, source, background } => {
                let priority = if *background { Priority::Background } else { Priority::Normal };
                book.add(*key, priority, Reason::new(SOURCES[*source]), now);
                model.add(*key);
            }
            Op::AddAfter { key, seconds } => {
                book.add_after(*key, at(model.now + seconds), Reason::new("timer"), now);
                model.add_after(*key, *seconds);
            }
            Op::Take => {
                model.pass_time();
                let taken = book.take(now);
                assert_eq!(taken.is_some(), model.keys.values().any(|entry| entry.ready), "{:?}", model.keys);
                if let Some(work) = taken {
                    let entry = model.keys.get_mut(&work.key).unwrap();
                    assert!(entry.ready && !entry.working, "{} was handed out: {entry:?}", work.key);
                    assert_eq!(work.failures, entry.failures);
                    (entry.ready, entry.working) = (false, true);
                }
            }
            Op::Done { which, verdict, wrote } => {
                let working = model.working();
                let Some(key) = working.get(which % working.len().max(1)).copied() else { continue };
                let seen = wrote.then(|| {
                    model.written += 1;
                    model.written
                });
                book.done(&key, *verdict, seen.map(ResourceVersion), now, |failures| BACKOFF.delay(failures, 0));
                model.done(key, *verdict, seen);
            }
            Op::Advance => {
                model.version = model.written;
                book.advance(ResourceVersion(model.version), false, now);
                let version = model.version;
                let released: Vec<u8> = model
                    .keys
                    .iter()
                    .filter(|(_, entry)| entry.held.is_some_and(|held| held <= version))
                    .map(|(key, _)| *key)
                    .collect();
                released.into_iter().for_each(|key| model.settle(key));
            }
            Op::Wait { seconds } => model.now += seconds,
            Op::Forget { key } => {
                book.forget(key);
                if let Some(entry) = model.keys.get_mut(key) {
                    entry.forgotten = entry.working;
                    (entry.failures, entry.served, entry.paused) = (0, 0, 0);
                }
            }
            Op::Hurry => {
                book.hurry(now);
                model.hurry();
            }
        }
        let depth = book.depth();
        assert_eq!(depth.working, model.working().len());
        assert_eq!(depth.held, model.keys.values().filter(|entry| entry.held.is_some()).count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_books_agree_with_the_model(ops in ops()) {
        run(&ops);
    }
}

fn add(book: &mut Book<u32>, key: u32, source: &'static str, priority: Priority, now: Monotonic) {
    book.add(key, priority, Reason::new(source), now);
}

fn drain(book: &mut Book<u32>, now: Monotonic) -> Vec<u32> {
    std::iter::from_fn(|| book.take(now).map(|work| work.key)).collect()
}

#[test]
fn sources_take_turns() {
    let mut book = Book::new();
    (0..6).for_each(|key| add(&mut book, key, "noisy", Priority::Normal, at(0)));
    add(&mut book, 100, "quiet", Priority::Normal, at(0));
    add(&mut book, 101, "quiet", Priority::Normal, at(0));
    assert_eq!(drain(&mut book, at(0)), [0, 100, 1, 101, 2, 3, 4, 5]);
}

#[test]
fn a_key_of_a_noisy_source_that_a_quiet_one_wants_as_well_goes_with_that() {
    let mut book = Book::new();
    (0..6).for_each(|key| add(&mut book, key, "noisy", Priority::Normal, at(0)));
    add(&mut book, 5, "quiet", Priority::Normal, at(0));
    assert_eq!(drain(&mut book, at(0)), [0, 5, 1, 2, 3, 4]);
}

#[test]
fn urgency_is_a_head_start_and_not_a_rank() {
    let mut book = Book::new();
    add(&mut book, 1, "list", Priority::Background, at(0));
    add(&mut book, 2, "list", Priority::Normal, at(9));
    add(&mut book, 3, "list", Priority::Normal, at(11));
    assert_eq!(drain(&mut book, at(11)), [2, 1, 3], "the first listing waits 10 s at most for what came later");
}

#[test]
fn early_failures_do_not_reach_the_longest_delay() {
    let mut book: Book<u32> = Book::new();
    let backoff = |failures| BACKOFF.delay(failures, 0);
    let mut runs = 0;
    // Woken a hundred times a second for a minute, failing each time.
    for tick in 0..6000u64 {
        let now = Monotonic(Duration::from_millis(tick * 10));
        add(&mut book, 1, "noisy", Priority::Normal, now);
        if let Some(work) = book.take(now) {
            runs += 1;
            assert!(work.failures <= 6, "{} failures after {tick} ticks", work.failures);
            book.done(&1, Verdict::Failed, None, now, backoff);
        }
    }
    assert!((30..=70).contains(&runs), "{runs} runs in a minute");
}

#[test]
fn reasons_are_kept_and_counted() {
    let mut book: Book<u32> = Book::new();
    for _ in 0..10 {
        add(&mut book, 1, "child", Priority::Normal, at(0));
    }
    let work = book.take(at(0)).unwrap();
    assert_eq!((work.reasons.len(), work.reasons_total), (4, 10));
}

#[test]
fn what_is_finished_takes_no_memory() {
    let mut book: Book<u32> = Book::new();
    for key in 0..100 {
        add(&mut book, key, "list", Priority::Normal, at(0));
        book.take(at(0)).unwrap();
        book.done(&key, Verdict::Rest, None, at(0), |_| Duration::ZERO);
    }
    assert_eq!(book.remembered(), 0);
}

#[test]
fn a_delay_beyond_all_time_is_never_reached() {
    let mut book: Book<u32> = Book::new();
    let far = at(1) + Duration::MAX;
    book.add_after(1, far, Reason::new("timer"), at(1));
    assert_eq!(book.take(at(1_000_000_000)), None);
}

#[tokio::test]
async fn a_waiting_worker_gets_what_is_added_and_what_is_due() {
    let queue: Queue<u32> = Queue::new(Seams::real(), BACKOFF);
    let keeper = queue.clone();
    let _keeper = tokio::spawn(async move { keeper.keep_time(Duration::from_secs(60), || {}).await });
    let adder = queue.clone();
    tokio::spawn(async move {
        adder.add_after(2, Duration::from_millis(20), Reason::new("timer"));
        tokio::task::yield_now().await;
        adder.add(1, Priority::Normal, Reason::new("own"));
    });
    let taking = async {
        let first = queue.take().await.unwrap().key;
        let second = queue.take().await.unwrap().key;
        (first, second)
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), taking).await.unwrap(), (1, 2));
}

#[tokio::test]
async fn shutting_wakes_the_workers_and_draining_waits_for_them() {
    let queue: Queue<u32> = Queue::new(Seams::real(), BACKOFF);
    queue.add(1, Priority::Normal, Reason::new("own"));
    let work = queue.take().await.unwrap();
    let idle = queue.clone();
    let idle = tokio::spawn(async move { idle.take().await });
    let draining = queue.clone();
    let draining = tokio::spawn(async move { draining.drained().await });
    tokio::task::yield_now().await;
    queue.shut();
    assert_eq!(idle.await.unwrap(), None);
    assert!(!draining.is_finished());
    queue.done(&work.key, Verdict::Rest, None);
    tokio::time::timeout(Duration::from_secs(10), draining).await.unwrap().unwrap();
}

/// client-go counts in `workqueue_adds_total` what enters its dirty set, not every call of `Add`.
#[test]
fn a_key_that_is_wanted_already_is_not_counted_again() {
    let mut book: Book<u32> = Book::new();
    let add = |book: &mut Book<u32>| book.add(1, Priority::Normal, Reason::new("own"), at(1));
    add(&mut book);
    add(&mut book);
    assert_eq!(book.wanted_total(), 1, "ready already");
    book.take(at(1)).unwrap();
    add(&mut book);
    add(&mut book);
    assert_eq!(book.wanted_total(), 2, "wanted once more while it is worked on");
    book.done(&1, Verdict::After(Duration::from_secs(5)), None, at(1), |_| Duration::ZERO);
    book.take(at(1)).unwrap();
    book.done(&1, Verdict::Rest, None, at(1), |_| Duration::ZERO);
    assert_eq!(book.wanted_total(), 2, "its second run was counted when it was asked for");
    book.add_after(1, at(9), Reason::new("timer"), at(1));
    assert_eq!(book.wanted_total(), 2, "not yet");
    book.promote(at(9));
    assert_eq!(book.wanted_total(), 3, "its time has come");
}
