//! Machines whose processors and disks have no moment left are heard of all the same.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conformance::parts::machine::PATIENCE;
use conformance::parts::process::wait_until;

use crate::evening::tasks;
use crate::reaching::{lab, serve};
use crate::running;

const SPINNING: usize = 64;

/// Tasks of the cluster take every moment of the processors, and somebody has each block on the disk of the store written
/// through: nobody is taken for lost. `BUSY` seconds of it.
#[test]
fn machines_without_a_moment_to_spare_are_not_taken_for_lost() {
    let busy: u64 = std::env::var("BUSY").ok().and_then(|text| text.parse().ok()).unwrap_or(120);
    let lab = lab("busy");
    let first = lab.machine(1).unwrap();
    let replicas = SPINNING.to_string();
    serve(first, &["--name", "spin", "--detach", "--replicas", &replicas, "test/box:1", "spin", "86400"]);
    wait_until("all to spin", 4 * PATIENCE, || running(first, "spin").len() == SPINNING).unwrap();
    let before = tasks(first, "spin");
    let (path, told) = (first.folder().join("written-through"), first.folder().join("nodes-as-they-were-told"));
    let (done, synced) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut watch = first.person().applyctl(&["get", "nodes", "-w"]).unwrap();
    let mut watch = watch.stdout(File::create(&told).unwrap()).stderr(Stdio::null()).spawn().unwrap();
    let lines = || std::fs::read_to_string(&told).unwrap();
    wait_until("the nodes to be told", PATIENCE, || lines().lines().count() > 3).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::create(&path).unwrap();
            file.write_all(&[0; 4096]).unwrap();
            while !done.load(Ordering::Relaxed) {
                file.write_all_at(&[1; 4096], 0).unwrap();
                file.sync_all().unwrap();
                synced.fetch_add(1, Ordering::Relaxed);
            }
        });
        let begun = Instant::now();
        let over = || begun.elapsed() >= Duration::from_secs(busy);
        wait_until("the time to be over", Duration::from_secs(busy) + PATIENCE, over).unwrap();
        done.store(true, Ordering::Relaxed);
    });
    watch.kill().unwrap();
    watch.wait().unwrap();
    let told = lines();
    let amiss: Vec<&str> =
        told.lines().skip(1).filter(|line| !line.split_whitespace().any(|it| it == "ready")).collect();
    println!("{} times written through in {busy} s; nodes, as they were told:\n{told}", synced.load(Ordering::Relaxed));
    assert_eq!(amiss, [""; 0], "no machine was taken for anything but ready");
    assert_eq!(tasks(first, "spin"), before, "nothing was replaced");
    assert_eq!(running(first, "spin").len(), SPINNING);
}
