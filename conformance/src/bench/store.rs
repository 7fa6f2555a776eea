//! The stores: how fast they commit, how soon a watch tells, what an object takes on disk, how long opening takes.
//!
//! A commit here is what a controller does: one value of 1 KiB replaced, on condition that it is still the one read.
//! Writers have a key each, so that no commit is refused. The etcds are of one member, on this machine. Beside the
//! figures of the stores stands what the disk does without any: one block written and synced, again and again.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::StreamExt;
use reconciler::seams::Seams;
use reconciler::store::embedded::Options;
use reconciler::store::etcd;
use reconciler::store::{Effect, Embedded, Expect, Key, Line, Memory, Revision, Store, Txn, Watch};
use tokio::sync::mpsc;

use super::{Row, report};
use crate::parts::etcd::{Etcd, Version};
use crate::parts::process::{clear, fresh_folder};

/// What one object of ours is, about.
const VALUE_BYTES: usize = 1 << 10;
/// How long each rate is measured.
const SPELL: Duration = Duration::from_secs(3);
const OBJECTS: usize = 10_000;
const TOLD: usize = 1_000;
/// A watch that has not told by then never will.
const OVERDUE: Duration = Duration::from_secs(20);

/// Measures, prints and writes `target/bench/store.json`.
pub fn run() -> Result<()> {
    let folder = fresh_folder("bench-store")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut rows = vec![Row::new("disk: a block of 4 KiB written and synced", synced_blocks(&folder)?, "1/s")];
    runtime.block_on(speed("memory", Arc::new(Memory::new()), &mut rows))?;
    runtime.block_on(speed("embedded", Arc::new(open(&folder.join("speed.redb"))?), &mut rows))?;
    for (name, version) in [("etcd 3.4", Version::V3_4), ("etcd 3.5", Version::V3_5)] {
        let server = Etcd::start("bench", version, 1)?;
        runtime.block_on(async {
            let config = etcd::Config::new(server.endpoints(), Key::new("/bench/"));
            speed(name, Arc::new(etcd::Etcd::connect(&config, &Seams::real()).await?), &mut rows).await
        })?;
    }
    runtime.block_on(size(&folder.join("size.redb"), &mut rows))?;
    report("store", &rows)?;
    clear(&folder)
}

fn open(path: &Path) -> Result<Embedded> {
    Embedded::open(path, &*Seams::real().random, &Options::default()).context("could not open the store")
}

fn synced_blocks(folder: &Path) -> Result<f64> {
    let mut file = File::create(folder.join("block"))?;
    let (begun, mut blocks) = (Instant::now(), 0_u32);
    while begun.elapsed() < SPELL {
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        blocks += 1;
    }
    Ok(f64::from(blocks) / begun.elapsed().as_secs_f64())
}

async fn speed(name: &str, store: Arc<dyn Store>, rows: &mut Vec<Row>) -> Result<()> {
    for writers in [1, 64] {
        let plural = if writers == 1 { "writer" } else { "writers" };
        rows.push(Row::new(format!("{name}: commits, {writers} {plural}"), commits(&store, writers).await?, "1/s"));
    }
    let latencies = watch_latencies(&store).await?;
    for (share, at) in [("p50", TOLD / 2), ("p99", TOLD * 99 / 100)] {
        let value = latencies[at].as_secs_f64() * 1e3;
        rows.push(Row::new(format!("{name}: from the call of commit to the watcher, {share}"), value, "ms"));
    }
    Ok(())
}

/// Commits a second of so many writers together.
async fn commits(store: &Arc<dyn Store>, writers: usize) -> Result<f64> {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|number| {
            let (store, key) = (store.clone(), Key::new(format!("/bench/{writers}/{number}")));
            tokio::spawn(async move {
                let (mut expect, mut done) = (Expect::Absent, 0_u32);
                while begun.elapsed() < SPELL {
                    expect = Expect::Version(store.commit(replace(&key, expect)).await?);
                    done += 1;
                }
                anyhow::Ok(done)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok(f64::from(total) / begun.elapsed().as_secs_f64())
}

/// Sorted. One commit after the other, so that nothing queues.
async fn watch_latencies(store: &Arc<dyn Store>) -> Result<Vec<Duration>> {
    let key = Key::new("/bench/watched");
    let (mut after, _) = store.get(&key).await?;
    let watch = store.watch(&key, after).await?;
    let (tell, mut told) = mpsc::unbounded_channel();
    let watcher = tokio::spawn(stamp(watch, tell));
    let (mut latencies, mut expect) = (Vec::new(), Expect::Absent);
    for _ in 0..TOLD {
        let called = Instant::now();
        after = store.commit(replace(&key, expect)).await?;
        expect = Expect::Version(after);
        let heard = tokio::time::timeout(OVERDUE, told.recv()).await.context("the watch fell silent")?;
        let (revision, at) = heard.context("the watch ended")?;
        ensure!(revision == after, "the watch told of revision {revision} where {after} was committed");
        latencies.push(at.duration_since(called));
    }
    watcher.abort();
    latencies.sort_unstable();
    Ok(latencies)
}

/// When each change came.
async fn stamp(mut watch: Watch, tell: mpsc::UnboundedSender<(Revision, Instant)>) {
    while let Some(Ok(batch)) = watch.next().await {
        if !batch.changes.is_empty() && tell.send((batch.revision, Instant::now())).is_err() {
            return;
        }
    }
}

/// Each object is written twice, as a created one that got its status.
async fn size(path: &Path, rows: &mut Vec<Row>) -> Result<()> {
    const TOGETHER: usize = 100;
    let store = open(path)?;
    for _ in 0..2 {
        for first in (0..OBJECTS).step_by(TOGETHER) {
            let lines = (first..first + TOGETHER).map(|number| put(&Key::new(format!("/bench/{number:05}")), None));
            store.commit(Txn { fence: None, lines: lines.collect() }).await?;
        }
    }
    drop(store);
    // A block is 512 bytes here, whatever the file system's is.
    let bytes = fs::metadata(path)?.blocks() * 512;
    rows.push(Row::new("embedded: an object of 1 KiB on disk, of 10,000", bytes as f64 / OBJECTS as f64, "B"));
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        let store = open(path)?;
        times.push(begun.elapsed());
        let (_, last) = store.get(&Key::new(format!("/bench/{:05}", OBJECTS - 1))).await?;
        ensure!(last.is_some(), "the last object is gone");
    }
    times.sort_unstable();
    rows.push(Row::new("embedded: opening with 10,000 objects, p50 of 5", times[2].as_secs_f64() * 1e3, "ms"));
    Ok(())
}

fn replace(key: &Key, expect: Expect) -> Txn {
    Txn { fence: None, lines: vec![put(key, Some(expect))] }
}

fn put(key: &Key, expect: Option<Expect>) -> Line {
    Line { key: key.clone(), expect, effect: Effect::Put(Bytes::from(vec![b'x'; VALUE_BYTES])) }
}
