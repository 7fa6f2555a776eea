//! A store against a stupid one: a map, and a list of everything that ever happened.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// One step of a random story. Names are few, so that steps meet.
#[derive(Clone, Debug)]
pub enum Step {
    Commit {
        fence: Option<FenceKind>,
        lines: Vec<(u8, ExpectKind, EffectKind)>,
    },
    Get(u8),
    List {
        prefix: u8,
        limit: usize,
        after: Option<u8>,
        back: u64,
    },
    /// Looks at the whole history from so many revisions back.
    Watch {
        prefix: u8,
        back: u64,
    },
    Compact {
        back: u64,
    },
    /// Where the store can be: closed and opened again.
    Reopen,
}

#[derive(Clone, Copy, Debug)]
pub enum FenceKind {
    Current,
    Past,
}

#[derive(Clone, Copy, Debug)]
pub enum ExpectKind {
    None,
    Absent,
    Current,
    Past,
}

#[derive(Clone, Debug)]
pub enum EffectKind {
    Check,
    Put(Vec<u8>),
    Delete,
}

const NAMES: [&str; 6] = ["a", "a/b", "a/c", "b", "ba", "term"];
const PREFIXES: [&str; 4] = ["", "a", "a/", "b"];

pub fn story() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..NAMES.len() as u8;
    let expect = prop_oneof![
        4 => Just(ExpectKind::None),
        1 => Just(ExpectKind::Absent),
        3 => Just(ExpectKind::Current),
        1 => Just(ExpectKind::Past)
    ];
    let effect = prop_oneof![
        1 => Just(EffectKind::Check),
        4 => proptest::collection::vec(any::<u8>(), 0..6).prop_map(EffectKind::Put),
        2 => Just(EffectKind::Delete)
    ];
    let fence = prop_oneof![6 => Just(None), 1 => Just(Some(FenceKind::Current)), 1 => Just(Some(FenceKind::Past))];
    let lines = proptest::collection::vec((name.clone(), expect, effect), 0..5);
    let step = prop_oneof![
        10 => (fence, lines).prop_map(|(fence, lines)| Step::Commit { fence, lines }),
        2 => name.clone().prop_map(Step::Get),
        2 => (0..PREFIXES.len() as u8, 0..4_usize, proptest::option::of(name), 0..8_u64)
            .prop_map(|(prefix, limit, after, back)| Step::List { prefix, limit, after, back }),
        2 => (0..PREFIXES.len() as u8, 0..12_u64).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0..6_u64).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What stood at one revision, and the revision before which nothing is remembered.
pub struct Model {
    /// At each revision since `start`; the first is what stood there before.
    history: Vec<BTreeMap<Key, Versioned>>,
    start: u64,
    oldest: u64,
}

impl Model {
    /// Of a store in which nothing stands under the suite's prefix.
    pub fn new(start: Revision) -> Self {
        Self { history: vec![BTreeMap::new()], start: start.0, oldest: start.0 }
    }

    fn revision(&self) -> u64 {
        self.start + self.history.len() as u64 - 1
    }

    fn now(&self) -> &BTreeMap<Key, Versioned> {
        self.history.last().unwrap()
    }

    fn at(&self, revision: u64) -> &BTreeMap<Key, Versioned> {
        &self.history[(revision - self.start) as usize]
    }

    fn back(&self, back: u64) -> u64 {
        self.revision().saturating_sub(back).max(self.start)
    }

    fn txn(&self, fence: Option<FenceKind>, lines: &[(u8, ExpectKind, EffectKind)]) -> Txn {
        let modified = |key: &Key| self.now().get(key).map_or(Revision(1), |found| found.modified);
        let fence = fence.map(|kind| Fence {
            key: key("term"),
            revision: match kind {
                FenceKind::Current => modified(&key("term")),
                FenceKind::Past => Revision(modified(&key("term")).0.saturating_sub(1)),
            },
        });
        let lines = lines.iter().map(|(name, expect, effect)| {
            let key = key(NAMES[*name as usize]);
            let expect = match expect {
                ExpectKind::None => None,
                ExpectKind::Absent => Some(Expect::Absent),
                ExpectKind::Current => Some(Expect::Version(modified(&key))),
                ExpectKind::Past => Some(Expect::Version(Revision(modified(&key).0.saturating_sub(1)))),
            };
            let effect = match effect {
                EffectKind::Check => Effect::Check,
                EffectKind::Put(value) => Effect::Put(Bytes::copy_from_slice(value)),
                EffectKind::Delete => Effect::Delete,
            };
            Line { key, expect, effect }
        });
        Txn { fence, lines: lines.collect() }
    }

    /// What the store must say; the same words as [`told`].
    fn commit(&mut self, txn: &Txn) -> String {
        let mut names: Vec<&Key> = txn.lines.iter().map(|line| &line.key).collect();
        names.sort();
        if names.windows(2).any(|two| two[0] == two[1]) {
            return "repeated".into();
        }
        let modified = |key: &Key| self.now().get(key).map(|found| found.modified);
        if txn.fence.as_ref().is_some_and(|fence| modified(&fence.key) != Some(fence.revision)) {
            return "fenced".into();
        }
        for line in &txn.lines {
            let holds = match line.expect {
                None => true,
                Some(Expect::Absent) => modified(&line.key).is_none(),
                Some(Expect::Version(version)) => modified(&line.key) == Some(version),
            };
            if !holds {
                return format!("conflict {}", line.key);
            }
        }
        let next = Revision(self.revision() + 1);
        let mut after = self.now().clone();
        for line in &txn.lines {
            match &line.effect {
                Effect::Check => {}
                Effect::Put(value) => {
                    let created = after.get(&line.key).map_or(next, |found| found.created);
                    let found = Versioned { key: line.key.clone(), value: value.clone(), created, modified: next };
                    after.insert(line.key.clone(), found);
                }
                Effect::Delete => drop(after.remove(&line.key)),
            }
        }
        if after != *self.now() {
            self.history.push(after);
        }
        format!("revision {}", self.revision())
    }

    fn changes(&self, prefix: &Key, after: u64) -> Vec<Batch> {
        let batch = |revision: u64| {
            let (before, now) = (self.at(revision - 1), self.at(revision));
            let mut keys: Vec<&Key> = before.keys().chain(now.keys()).filter(|key| key.starts_with(prefix)).collect();
            keys.sort();
            keys.dedup();
            let changes = keys.into_iter().filter(|key| before.get(key) != now.get(key)).map(|key| Change {
                key: key.clone(),
                value: now.get(key).cloned(),
                previous: before.get(key).cloned(),
            });
            Batch { revision: Revision(revision), changes: changes.collect() }
        };
        (after + 1..=self.revision()).map(batch).filter(|batch| !batch.changes.is_empty()).collect()
    }
}

fn told(result: Result<Revision, CommitError>) -> String {
    match result {
        Ok(revision) => format!("revision {revision}"),
        Err(CommitError::Conflict { key }) => format!("conflict {key}"),
        Err(CommitError::Fenced { .. }) => "fenced".into(),
        Err(CommitError::Repeated { .. }) => "repeated".into(),
        Err(error) => error.to_string(),
    }
}

/// Plays one story on a store and on the model, and compares every answer. `reopen` answers the store to go on with.
pub async fn play(
    mut store: Arc<dyn Store>,
    mut reopen: impl AsyncFnMut(Arc<dyn Store>) -> Arc<dyn Store>,
    steps: Vec<Step>,
) {
    let mut model = Model::new(revision(&*store).await);
    for step in steps {
        match step {
            Step::Commit { fence, lines } => {
                let txn = model.txn(fence, &lines);
                let expected = model.commit(&txn);
                assert_eq!(told(store.commit(txn.clone()).await), expected, "{txn:?}");
            }
            Step::Get(name) => {
                let key = key(NAMES[name as usize]);
                let (revision, found) = store.get(&key).await.unwrap();
                assert_eq!((revision.0, found.as_ref()), (model.revision(), model.now().get(&key)));
            }
            Step::List { prefix, limit, after, back } => {
                let (prefix, at) = (key(PREFIXES[prefix as usize]), model.back(back));
                let after = after.map(|name| key(NAMES[name as usize]));
                let listing = store.list(&prefix, page(limit, after.as_ref(), Some(Revision(at)))).await;
                if at < model.oldest {
                    assert!(matches!(listing, Err(StoreError::Compacted { .. })), "{listing:?}");
                    continue;
                }
                let listing = listing.unwrap();
                let mut expected = model.at(at).values().filter(|found| {
                    found.key.starts_with(&prefix) && after.as_ref().is_none_or(|after| found.key > *after)
                });
                let some: Vec<_> = expected.by_ref().take(if limit == 0 { 99 } else { limit }).cloned().collect();
                assert_eq!(listing.entries, some);
                assert_eq!((listing.revision.0, listing.more), (at, expected.next().is_some()));
            }
            Step::Watch { prefix, back } => {
                let (prefix, after) = (key(PREFIXES[prefix as usize]), model.back(back));
                watch_and_compare(&*store, &model, &prefix, after).await;
            }
            Step::Compact { back } => {
                let before = model.back(back);
                store.compact(Revision(before)).await.unwrap();
                model.oldest = model.oldest.max(before);
            }
            Step::Reopen => store = reopen(store).await,
        }
    }
    watch_and_compare(&*store, &model, &key(""), model.oldest).await;
}

async fn watch_and_compare(store: &dyn Store, model: &Model, prefix: &Key, after: u64) {
    let watch = store.watch(prefix, Revision(after)).await;
    if after < model.oldest {
        let refused = match watch {
            Ok(mut watch) => next(&mut watch).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(refused, StoreError::Compacted { .. }), "{refused}");
        return;
    }
    let mut expected = model.changes(prefix, after);
    // The last change is waited for, and what comes after it is word of passed revisions.
    let until = expected.last().map_or(after, |batch| batch.revision.0);
    let mut seen = changes_until_or_at(&mut watch.unwrap(), Revision(after), Revision(until)).await;
    // What stood before may be compacted away.
    for batch in expected.iter_mut().chain(&mut seen) {
        for change in &mut batch.changes {
            change.previous.take_if(|previous| previous.modified.0 <= model.oldest);
        }
    }
    assert_eq!(seen, expected);
}

async fn changes_until_or_at(watch: &mut Watch, after: Revision, until: Revision) -> Vec<Batch> {
    if after == until { Vec::new() } else { changes_until(watch, until).await }
}
