//! What containers print.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use controllers::node::logs::{self, Entry, Follow, ReadOptions, Stream};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::scene::*;

/// Numbered lines of uneven length, a quarter of a kilobyte each on average.
pub fn line(number: u64) -> Vec<u8> {
    let mut line = format!("{number} ").into_bytes();
    line.extend((0..number * 7919 % 500).map(|i| b'a' + (i % 26) as u8));
    line.push(b'\n');
    line
}

#[test]
fn killed_again_and_again_it_loses_no_byte_and_repeats_none() {
    let mut scene = Scene::new("kill");
    scene.log("a");
    let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let first = scene.apply();
    assert!(first.faults.is_empty(), "{}", text(&first));
    let printers = Stream::BOTH.map(|stream| {
        let (mut pipe, written, stop) = (scene.printer("a", stream), written.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut digest = Sha256::new();
            let mut number = stream as u64;
            while !stop.load(Ordering::Relaxed) {
                let line = line(number);
                digest.update(&line);
                pipe.write_all(&line).unwrap();
                written.fetch_add(line.len() as u64, Ordering::Relaxed);
                number += 1;
            }
            (digest.finalize(), number)
        })
    });
    let (mut pids, mut pauses) = (vec![first.pid], Vec::new());
    for _ in 0..20 {
        let before = written.load(Ordering::Relaxed);
        wait("output", || written.load(Ordering::Relaxed) > before + 3_000_000);
        kill(*pids.last().unwrap());
        scene.wait_for_lock();
        let dead = now();
        let status = scene.apply();
        pauses.push(dead.elapsed());
        assert!(status.faults.is_empty() && !pids.contains(&status.pid), "{}", text(&status));
        pids.push(status.pid);
    }
    stop.store(true, Ordering::Relaxed);
    let printed = printers.map(|printer| printer.join().unwrap());
    scene.finish();
    for (stream, (digest, lines)) in Stream::BOTH.into_iter().zip(printed) {
        let (kept, lost) = scene.printed("a", stream);
        assert_eq!(lost, 0);
        assert!(Sha256::digest(&kept) == digest, "{stream:?} differs");
        println!("{stream:?}: {lines} lines, {} bytes, sha256 equal", kept.len());
    }
    pauses.sort();
    println!(
        "20 kills; from death to a new one that has taken effect: {:?} median, {:?} worst",
        pauses[10], pauses[19]
    );
}

#[test]
fn random_bytes_come_back_as_they_were() {
    let mut scene = Scene::new("random");
    scene.log("a").max_size_bytes = 700_001;
    scene.table.logs[0].max_files = 1000;
    scene.apply();
    let mut bytes = vec![0; 16 << 20];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    let begun = now();
    scene.printer("a", Stream::Stderr).write_all(&bytes).unwrap();
    scene.finish();
    let (stored, begun) = (begun.elapsed(), now());
    let (kept, lost) = scene.printed("a", Stream::Stderr);
    println!("16 MiB of random bytes: stored in {stored:?}, read in {:?}", begun.elapsed());
    assert!(lost == 0 && Sha256::digest(&kept) == Sha256::digest(&bytes));
}

#[test]
fn a_follower_is_carried_over_rotations() {
    let mut scene = Scene::new("follow");
    let log = scene.log("a");
    (log.max_size_bytes, log.max_files) = (256 << 10, 3);
    scene.apply();
    let stop = CancellationToken::new();
    let follow = ReadOptions { follow: Follow::Until(stop.clone()), ..Default::default() };
    let mut follower = Box::pin(logs::read(scene.task_dir("a"), follow));
    let mut pipe = scene.printer("a", Stream::Stdout);
    const LINES: u64 = 100_000;
    let printer = std::thread::spawn(move || (0..LINES).for_each(|number| pipe.write_all(&line(number)).unwrap()));
    let (mut lines, mut lost, mut gaps, mut last, mut open) = (0, 0, 0, None, Vec::new());
    scene.runtime.block_on(async {
        while last != Some(LINES - 1) {
            let next = tokio::time::timeout(PATIENCE, follower.next()).await;
            let entry = next.unwrap_or_else(|_| panic!("stalled after line {last:?}")).unwrap().unwrap();
            match entry {
                Entry::Text { text, ends, .. } => {
                    open.extend_from_slice(&text);
                    if ends {
                        let number = std::str::from_utf8(&open).unwrap().split(' ').next().unwrap().parse().unwrap();
                        assert_eq!(open, line(number), "a line is not as it was printed");
                        assert!(last.is_none_or(|last| number > last), "{number} after {last:?}");
                        assert!(gaps > 0 || number == lines, "a line is missing and no gap says so");
                        (last, lines) = (Some(number), lines + 1);
                        open.clear();
                    }
                }
                Entry::Gap { lost_bytes, .. } => {
                    open.clear();
                    (gaps, lost) = (gaps + 1, lost + lost_bytes);
                }
            }
        }
    });
    printer.join().unwrap();
    println!("{lines} of {LINES} lines followed over some 100 rotations; {gaps} gaps, {lost} bytes overtaken");
    stop.cancel();
    assert!(lines > 0 && (lines == LINES) == (lost == 0));
}

#[test]
fn a_full_disk_holds_up_no_container_and_is_told() {
    let small = format!("{}", std::env::temp_dir().join("apply-keep-small").display());
    let mut scene = Scene::new("full");
    let logs_dir = scene.root.join("logs");
    std::fs::create_dir_all(&logs_dir).unwrap();
    let mount_point = logs_dir.to_str().unwrap().to_owned();
    scene.undo.push(["umount", "-l", &mount_point].map(str::to_owned).to_vec());
    command(&["mount", "-t", "tmpfs", "-o", "size=2m", &small, &mount_point]);
    scene.log("a");
    scene.apply();
    let filler = logs_dir.join("filler");
    std::fs::write(&filler, vec![0; 1 << 20]).unwrap();
    let mut pipe = scene.printer("a", Stream::Stdout);
    let mut total = 0;
    let begun = now();
    for number in 0..40_000 {
        let line = line(number);
        total += line.len() as u64;
        pipe.write_all(&line).unwrap();
    }
    println!("{total} bytes printed onto a disk of 2 MiB in {:?}", begun.elapsed());
    let fault = |scene: &Scene| scene.client.status().unwrap().unwrap().faults.logs.get("a").cloned();
    wait("the fault", || fault(&scene).is_some());
    println!("fault: {}", fault(&scene).unwrap());
    std::fs::remove_file(&filler).unwrap();
    pipe.write_all(b"last\n").unwrap();
    wait("the fault to go away", || fault(&scene).is_none());
    scene.finish();
    let (kept, lost) = scene.printed("a", Stream::Stdout);
    assert!(lost > 0 && kept.ends_with(b"last\n"));
    assert_eq!(kept.len() as u64 + lost, total + 5, "each byte is kept or counted as lost");
}
