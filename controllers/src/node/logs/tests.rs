use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::write::{Taken, Writer};
use super::*;

/// A task with one attempt; what is printed is collected at once.
struct Scene {
    root: PathBuf,
    log: Log,
    writer: Option<Writer>,
    pipes: [OwnedFd; 2],
    /// Stands still between two prints unless moved.
    now: u64,
}

impl Scene {
    fn new(max_size_bytes: u64, max_files: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("apply-logs-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // In memory where there is such a place: hundreds of scenes with hundreds of small files.
        let memory = PathBuf::from("/dev/shm");
        let root = if memory.is_dir() { memory } else { std::env::temp_dir() }.join(name);
        let pipes = root.join("pipes");
        ensure_pipes(&pipes, "t").unwrap();
        let ends = Stream::BOTH.map(|stream| pipes::open(&pipes, "t", stream).unwrap());
        let dir = attempt_dir(&root.join("task"), 0);
        let log = Log { id: "t".into(), pipes, dir, max_size_bytes, max_files, finished: false };
        Scene { root, log, writer: None, pipes: ends, now: 1_000_000_000 }
    }

    fn print(&mut self, stream: Stream, bytes: &[u8]) -> &mut Self {
        for part in bytes.chunks(64 << 10) {
            File::from(self.pipes[stream as usize].try_clone().unwrap()).write_all(part).unwrap();
            self.collect(stream);
        }
        self
    }

    fn collect(&mut self, stream: Stream) -> Vec<Taken> {
        let now = self.now;
        let writer = self.writer.get_or_insert_with(|| Writer::open(&self.log).unwrap());
        let mut all = Vec::new();
        loop {
            match writer.take(stream, self.pipes[stream as usize].as_fd(), now).unwrap() {
                Taken::Nothing => return all,
                taken => all.push(taken),
            }
        }
    }

    /// What a killed collector leaves is what a new one finds.
    fn killed(&mut self) -> &mut Self {
        self.writer = None;
        self
    }

    fn attempt(&mut self, attempt: u32) -> &mut Self {
        self.log.dir = attempt_dir(&self.task_dir(), attempt);
        self.killed()
    }

    fn later(&mut self, by: Duration) -> &mut Self {
        self.now += u64::try_from(by.as_nanos()).unwrap();
        self
    }

    fn task_dir(&self) -> PathBuf {
        self.root.join("task")
    }

    fn read(&self, options: ReadOptions) -> Vec<Entry> {
        runtime().block_on(read(self.task_dir(), options).map(Result::unwrap).collect())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.root).unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn raw(entries: &[Entry], only: Stream) -> Vec<u8> {
    let texts = entries.iter().filter_map(|entry| match entry {
        Entry::Text { stream, text, .. } if *stream == only => Some(text.to_vec()),
        _ => None,
    });
    texts.flatten().collect()
}

/// `o:` and `e:` before lines, `…` where a line goes on, `[n lost]` for gaps.
fn shown(entries: &[Entry]) -> String {
    let words = entries.iter().map(|entry| match entry {
        Entry::Text { stream, text, ends, .. } => {
            let text = String::from_utf8_lossy(text);
            let mark = if *stream == Stream::Stdout { "o" } else { "e" };
            format!("{mark}:{}{}", text.trim_end_matches('\n'), if *ends { "" } else { "…" })
        }
        Entry::Gap { stream, lost_bytes, .. } => {
            let of = stream.map_or(String::new(), |stream| format!(" of {stream:?}"));
            format!("[{lost_bytes}{of} lost]")
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn is_gap(entry: &Entry) -> bool {
    matches!(entry, Entry::Gap { .. })
}

#[test]
fn what_was_printed_is_what_is_read_byte_for_byte() {
    let mut hostile = Vec::new();
    hostile.extend_from_slice(b"plain\n\n\r\n 10%\r 20%\r100%\n\0nul\x1b[31mred\xff\xfe\xc3\n");
    hostile.extend_from_slice(&[b'x'; 100 << 10]);
    hostile.push(b'\n');
    hostile.extend((0..5 << 20).map(|i: u32| b'a' + (i % 23) as u8));
    hostile.extend_from_slice(b"\nunfinished");
    let mut scene = Scene::new(100 << 20, 1);
    scene.print(Stream::Stdout, &hostile).print(Stream::Stderr, b"apart\n");
    let entries = scene.read(ReadOptions::default());
    assert!(raw(&entries, Stream::Stdout) == hostile, "stdout differs");
    assert_eq!(raw(&entries, Stream::Stderr), b"apart\n");
    let longest = entries.iter().map(|entry| if let Entry::Text { text, .. } = entry { text.len() } else { 0 }).max();
    assert_eq!(longest, Some(16 << 10));
}

#[test]
fn streams_keep_their_order_and_lines_their_time() {
    let mut scene = Scene::new(1 << 20, 1);
    scene.print(Stream::Stdout, b"one\ntwo").later(Duration::from_secs(1)).print(Stream::Stderr, b"oops\n");
    scene.later(Duration::from_secs(1)).print(Stream::Stdout, b" and a half\nthree\n");
    let entries = scene.read(ReadOptions::default());
    assert_eq!(shown(&entries), "o:one e:oops o:two and a half o:three");
    let times = entries.iter().map(|entry| if let Entry::Text { time, .. } = entry { nanos(*time) } else { 0 });
    assert_eq!(times.map(|t| t / 1_000_000_000).collect::<Vec<_>>(), [1, 2, 1, 3]);

    let only = |stdout, stderr| ReadOptions { stdout, stderr, ..Default::default() };
    assert_eq!(shown(&scene.read(only(false, true))), "e:oops");
    let since = ReadOptions { since: Some(time_of(2_000_000_000)), ..Default::default() };
    assert_eq!(shown(&scene.read(since)), "e:oops o:three");
    let until = ReadOptions { until: Some(time_of(2_000_000_000)), ..Default::default() };
    assert_eq!(shown(&scene.read(until)), "o:one e:oops o:two…");
}

#[test]
fn a_collector_killed_between_index_and_bytes_is_overruled() {
    let mut scene = Scene::new(1 << 20, 1);
    scene.print(Stream::Stdout, b"one\n");
    // It had written that stderr is next, and half of another record, when it died.
    let index = File::options().write(true).open(write::path(&scene.log.dir, 1, "idx")).unwrap();
    let record = format::Record { time: scene.now, offset: 4, what: format::What::Chunk(Stream::Stderr) };
    index.write_all_at(&record.encode(), 48).unwrap();
    index.write_all_at(&record.encode()[..7], 72).unwrap();
    scene.killed().print(Stream::Stdout, b"two\n");
    assert_eq!(shown(&scene.read(ReadOptions::default())), "o:one o:two");
}

#[test]
fn an_index_that_a_power_cut_left_as_zeros_loses_no_byte() {
    let mut scene = Scene::new(1 << 20, 1);
    scene.print(Stream::Stdout, b"one\n").print(Stream::Stderr, b"two\n");
    File::options().write(true).open(write::path(&scene.log.dir, 1, "idx")).unwrap().write_all_at(&[0; 96], 0).unwrap();
    assert_eq!(shown(&scene.read(ReadOptions::default())), "o:one o:two");
}

#[test]
fn rotation_keeps_the_size_and_marks_what_it_removed() {
    let mut scene = Scene::new(1000, 3);
    let mut printed = 0;
    for i in 0..1000 {
        let line = format!("{i}\n");
        printed += line.len() as u64;
        scene.print(Stream::Stdout, line.as_bytes());
    }
    for entry in std::fs::read_dir(&scene.log.dir).unwrap() {
        assert!(entry.unwrap().metadata().unwrap().len() <= 1000);
    }
    assert_eq!(write::sequence(&scene.log.dir).unwrap().len(), 3);
    let entries = scene.read(ReadOptions::default());
    let Entry::Gap { stream: None, lost_bytes, .. } = entries[0] else { panic!("{}", shown(&entries)) };
    let kept = String::from_utf8(raw(&entries, Stream::Stdout)).unwrap();
    let numbers: Vec<u32> = kept.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers, (1000 - numbers.len() as u32..1000).collect::<Vec<_>>());
    // The line that lost its beginning is left out.
    let missing = printed - kept.len() as u64 - lost_bytes;
    assert!(missing < 4, "{missing} bytes are neither kept nor said to be lost");
}

#[test]
fn the_tail_is_the_last_lines_over_files_streams_and_attempts() {
    let mut scene = Scene::new(600, 100);
    for i in 0..200 {
        let stream = Stream::BOTH[(i % 3 == 0) as usize];
        scene.print(stream, format!("{i}\n").as_bytes());
    }
    let tail = |scene: &Scene, n| shown(&scene.read(ReadOptions { tail: Some(n), ..Default::default() }));
    assert_eq!(tail(&scene, 4), "o:196 o:197 e:198 o:199");
    assert_eq!(tail(&scene, 0), "");
    assert_eq!(tail(&scene, u64::MAX).split(' ').count(), 200);
    let errors = ReadOptions { tail: Some(2), stdout: false, ..Default::default() };
    assert_eq!(shown(&scene.read(errors)), "e:195 e:198");
    scene.attempt(1).print(Stream::Stdout, b"again\nand");
    assert_eq!(tail(&scene, 3), "o:199 o:again o:and…");
}

#[test]
fn a_follower_sees_later_lines_the_next_attempt_and_the_end() {
    let mut scene = Scene::new(1 << 20, 3);
    let stop = CancellationToken::new();
    let follow = ReadOptions { follow: Follow::Until(stop.clone()), ..Default::default() };
    runtime().block_on(async {
        let mut follower = Box::pin(read(scene.task_dir(), follow));
        let mut next = async || match tokio::time::timeout(Duration::from_secs(10), follower.next()).await {
            Ok(entry) => entry.map(|entry| shown(&[entry.unwrap()])),
            Err(_) => panic!("nothing came for ten seconds"),
        };
        scene.print(Stream::Stdout, b"one\ntw");
        assert_eq!(next().await.unwrap(), "o:one");
        assert_eq!(next().await.unwrap(), "o:tw…");
        scene.print(Stream::Stdout, b"o\n");
        assert_eq!(next().await.unwrap(), "o:o");
        scene.attempt(1).print(Stream::Stderr, b"again\n");
        assert_eq!(next().await.unwrap(), "e:again");
        scene.print(Stream::Stdout, b"last");
        stop.cancel();
        assert_eq!(next().await.unwrap(), "o:last…");
        assert_eq!(next().await, None);
    });
}

#[test]
fn a_follower_of_removed_logs_ends() {
    let mut scene = Scene::new(1 << 20, 3);
    let follow = ReadOptions { follow: Follow::Until(CancellationToken::new()), ..Default::default() };
    scene.print(Stream::Stdout, b"one\n");
    runtime().block_on(async {
        let mut follower = Box::pin(read(scene.task_dir(), follow));
        assert!(follower.next().await.is_some());
        remove(&scene.task_dir()).unwrap();
        remove(&scene.task_dir()).unwrap();
        let end = tokio::time::timeout(Duration::from_secs(10), follower.next()).await;
        assert!(end.expect("the follower did not end").is_none());
    });
}

#[derive(Clone, Debug)]
enum Step {
    Print(Stream, Vec<u8>),
    Kill,
    Later(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 1..200);
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    prop_oneof![
        8 => (stream, bytes).prop_map(|(stream, bytes)| Step::Print(stream, bytes)),
        1 => Just(Step::Kill),
        1 => (0..3_000_000u32).prop_map(Step::Later),
    ]
}

/// The stupid reader: lines in the order in which they began.
fn lines_of(steps: &[Step]) -> Vec<(Stream, Vec<u8>)> {
    let mut lines: Vec<(Stream, Vec<u8>)> = Vec::new();
    let mut open: [Option<usize>; 2] = [None; 2];
    for step in steps {
        let Step::Print(stream, bytes) = step else { continue };
        for &byte in bytes {
            let at = *open[*stream as usize].get_or_insert_with(|| {
                lines.push((*stream, Vec::new()));
                lines.len() - 1
            });
            lines[at].1.push(byte);
            if byte == b'\n' {
                open[*stream as usize] = None;
            }
        }
    }
    lines
}

fn run(scene: &mut Scene, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Print(stream, bytes) => scene.print(*stream, bytes),
            Step::Kill => scene.killed(),
            Step::Later(nanos) => scene.later(Duration::from_nanos(u64::from(*nanos))),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    #[test]
    fn nothing_is_lost_or_repeated_whatever_is_printed_and_whenever_it_is_killed(
        steps in prop::collection::vec(step(), 0..60), max_size in 512u64..4000, tail in 0usize..40,
    ) {
        let mut scene = Scene::new(max_size, u32::MAX);
        run(&mut scene, &steps);
        let lines = lines_of(&steps);
        let check = |entries: Vec<Entry>, lines: &[(Stream, Vec<u8>)]| {
            for stream in Stream::BOTH {
                let printed: Vec<u8> = lines.iter().filter(|(s, _)| *s == stream).flat_map(|(_, b)| b.clone()).collect();
                prop_assert_eq!(raw(&entries, stream), printed);
            }
            prop_assert!(!entries.iter().any(is_gap));
            Ok(())
        };
        check(scene.read(ReadOptions::default()), &lines)?;
        let options = ReadOptions { tail: Some(tail as u64), ..Default::default() };
        check(scene.read(options), &lines[lines.len().saturating_sub(tail)..])?;
    }

    #[test]
    fn what_rotation_leaves_is_the_end_of_what_was_printed(
        steps in prop::collection::vec(step(), 0..120), max_size in 512u64..2000, files in 1u32..4,
    ) {
        let mut scene = Scene::new(max_size, files);
        run(&mut scene, &steps);
        let lines = lines_of(&steps);
        let entries = scene.read(ReadOptions::default());
        for stream in Stream::BOTH {
            let printed: Vec<u8> = lines.iter().filter(|(s, _)| *s == stream).flat_map(|(_, b)| b.clone()).collect();
            let kept = raw(&entries, stream);
            prop_assert!(printed.ends_with(&kept));
            let before = printed.len() - kept.len();
            prop_assert!(before == 0 || kept.is_empty() || printed[before - 1] == b'\n', "begins within a line");
            prop_assert!(before == 0 || entries.first().is_none_or(is_gap));
        }
    }
}

#[test]
fn what_never_says_anything_has_nothing_on_the_disk() {
    let mut scene = Scene::new(1 << 20, 2);
    assert_eq!(scene.collect(Stream::Stdout), []);
    scene.writer.as_mut().unwrap().end(1).unwrap();
    assert!(!scene.log.dir.exists() && !scene.task_dir().exists());
    // A successor that finds nothing begins with the first byte.
    scene.killed();
    scene.print(Stream::Stderr, b"at last\n");
    assert_eq!(write::sequence(&scene.log.dir).unwrap(), [1]);
}
