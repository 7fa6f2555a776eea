//! Peers that mean no good, at the port of a real manager: what each of them gets, that it is counted and remembered, what it
//! costs the manager, and that nobody else notices. All of it on the loopback of a machine of its own. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests of the real world wait in real time")]

mod certificates;
mod crowds;
mod peer;

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;
use controllers::identity::{Request, Token};
use serde_json::Value;

use peer::Shown;

/// Where who means no good is, who does, and who would join.
const HOSTILE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const JOINING: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

fn token(manager: &Machine, more: &[&str]) -> Token {
    let words = [&["token", "create", "-q"], more].concat();
    manager.ctl(&words).unwrap().trim().parse().unwrap()
}

/// A worker's certificate, by the way that machines take.
fn worker(manager: &Machine, node: &str) -> Shown {
    let request = Request::make().unwrap();
    let answer = peer::join(HONEST, &token(manager, &[]), node, &request).unwrap();
    peer::shown(&answer, &request)
}

/// How many were turned away so far, by why.
fn refused(manager: &Machine, reason: &str) -> u64 {
    let mut socket = UnixStream::connect(manager.person().socket).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let line = format!("reconciler_refused_total{{reason=\"{reason}\"}} ");
    text.lines().find_map(|found| found.strip_prefix(&line)?.trim().parse().ok()).unwrap_or(0)
}

/// Waits until so many more than `before` are counted.
#[track_caller]
fn counted(manager: &Machine, reason: &str, before: u64, more: u64) {
    let waited = wait_until(reason, PATIENCE, || refused(manager, reason) >= before + more);
    let found = refused(manager, reason) - before;
    assert!(waited.is_ok(), "{reason}: {found} counted of {more}\n{}", manager.log_end("applyd"));
    println!("  refused as {reason}: {found}");
}

/// Waits until the audit log has a refusal from there for a reason.
#[track_caller]
fn remembered(manager: &Machine, from: Ipv4Addr, reason: &str) {
    let path = manager.folder().join("apply/audit/refusals.jsonl");
    let is_said = || {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.any(|line| {
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            text("address").starts_with(&format!("{from}:")) && text("reason").contains(reason)
        })
    };
    let waited = wait_until(reason, PATIENCE, is_said);
    assert!(waited.is_ok(), "{waited:?}: {}", fs::read_to_string(&path).unwrap_or_default());
}

/// What a process has of memory, pages that are shared counted by share.
fn memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn applyd(manager: &Machine) -> u32 {
    manager.pids(Part::Applyd)[0]
}

/// Looks again and again at what the manager has, and keeps the most.
struct Watched {
    over: Arc<AtomicBool>,
    memory: Arc<AtomicU64>,
    descriptors: Arc<AtomicU64>,
    looking: Option<JoinHandle<()>>,
}

impl Watched {
    fn begin(pid: u32) -> Self {
        let (over, most, files) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::<AtomicU64>::default());
        let most: Arc<AtomicU64> = most;
        let (end, largest, open) = (over.clone(), most.clone(), files.clone());
        let looking = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                largest.fetch_max(memory(pid), Ordering::Relaxed);
                open.fetch_max(descriptors(pid) as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { over, memory: most, descriptors: files, looking: Some(looking) }
    }

    fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    fn descriptors(&self) -> u64 {
        self.descriptors.load(Ordering::Relaxed)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(looking) = self.looking.take() {
            let _ = looking.join();
        }
    }
}

/// For one question of a member, and one of who would join, whatever else goes on.
const ANSWER: Duration = Duration::from_secs(10);

/// A member that reads and somebody who would join, each with a new connection every time, for as long as this lives.
struct Honest {
    over: Arc<AtomicBool>,
    took: Arc<Mutex<Vec<Duration>>>,
    asking: Vec<JoinHandle<()>>,
}

impl Honest {
    fn begin(member: &Shown) -> Self {
        let (over, took) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let member = member.clone();
        let askers = [(HONEST, Some(member), "/apis/apply/v1/nodes"), (JOINING, None, "/healthz")];
        let asking = askers.map(|(from, shown, path)| {
            let (over, took) = (over.clone(), took.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let (answer, time) = peer::timed(from, shown.as_ref(), path)
                        .unwrap_or_else(|error| panic!("{from} {path}: {error}"));
                    assert_eq!(answer.code, 200, "{path}: {}", answer.body);
                    assert!(time < ANSWER, "{from} waited {time:?} for {path}");
                    took.lock().unwrap().push(time);
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        });
        Self { over, took, asking: asking.into() }
    }

    /// How long answers took since this was last asked: the middle, the worst, and how many they were.
    fn took(&self) -> (Duration, Duration, usize) {
        let mut took = std::mem::take(&mut *self.took.lock().unwrap());
        took.sort();
        let at = |place: usize| took.get(place).copied().unwrap_or_default();
        (at(took.len() / 2), at(took.len().saturating_sub(1)), took.len())
    }

    /// So many answers, with nobody in the way.
    fn alone(&self, many: usize) -> (Duration, Duration, usize) {
        let begun = Instant::now();
        let enough = || self.took.lock().unwrap().len() >= many;
        wait_until("answers", PATIENCE, enough).unwrap_or_else(|error| panic!("{error} after {:?}", begun.elapsed()));
        self.took()
    }

    fn end(mut self) {
        self.over.store(true, Ordering::Relaxed);
        for asking in self.asking.drain(..) {
            asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
