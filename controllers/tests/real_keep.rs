//! The companion process as it is: real pipes, sockets, signals, network namespaces and a full disk. Needs root.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use controllers::node::keep::{Client, ClientError, Life, Listener, Options, Status, Table, run};
use controllers::node::logs::{self, Entry, Follow, Log, ReadOptions, Stream};
use controllers::node::names;
use futures::StreamExt;
use reconciler::external::External;
use reconciler::seams::Seams;
use rustix::process::{Pid, Signal};
use schemas::kinds::service::Protocol;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with a companion process in it. What an earlier run of the same test left is removed first.
struct Scene {
    root: PathBuf,
    client: Client,
    table: Table,
    holds: Vec<logs::Hold>,
    runtime: tokio::runtime::Runtime,
    /// Commands that remove what else there is.
    undo: Vec<Vec<String>>,
}

impl Scene {
    fn new(name: &str) -> Self {
        Self::through(name, &[], &[])
    }

    /// The process is started through `prefix`, such as `ip netns exec …`.
    fn through(name: &str, prefix: &[&str], undo: &[&[&str]]) -> Self {
        // One place for each checkout; short, for the sake of socket addresses.
        let checkout = Sha256::digest(env!("CARGO_MANIFEST_DIR"));
        let root = std::env::temp_dir().join(format!("apply-keep-{:02x}{:02x}-{name}", checkout[0], checkout[1]));
        let undo = undo.iter().map(|words| words.iter().map(|&word| word.to_owned()).collect()).collect();
        let options = Options { dir: root.join("keep"), build: "1".into(), replace: false, cgroup: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = client(options, prefix);
        let mut scene = Scene { root, client, table: Table::default(), holds: Vec::new(), runtime, undo };
        scene.clean();
        std::fs::create_dir_all(&scene.root).unwrap();
        scene
    }

    fn clean(&mut self) {
        companions(&self.root.join("keep")).into_iter().for_each(kill);
        for undo in self.undo.iter().rev() {
            let _ = Command::new(&undo[0]).args(&undo[1..]).output();
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }

    fn log(&mut self, id: &str) -> &mut Log {
        let pipes = self.root.join("pipes");
        logs::ensure_pipes(&pipes, id).unwrap();
        self.holds.push(logs::hold(&pipes, id).unwrap());
        let dir = logs::attempt_dir(&self.task_dir(id), 0);
        self.table.logs.push(Log { id: id.into(), pipes, dir, max_size_bytes: 1 << 30, max_files: 1, finished: false });
        self.table.logs.last_mut().unwrap()
    }

    fn task_dir(&self, id: &str) -> PathBuf {
        self.root.join("logs").join(id)
    }

    /// What a container has as its stdout or stderr.
    fn printer(&self, id: &str, stream: Stream) -> File {
        let pipes = logs::ensure_pipes(&self.root.join("pipes"), id).unwrap();
        let path = if stream == Stream::Stdout { pipes.stdout } else { pipes.stderr };
        File::options().write(true).open(path).unwrap()
    }

    fn apply(&mut self) -> Status {
        self.runtime.block_on(self.client.apply(&self.table)).unwrap()
    }

    /// A process that is killed closes its files a moment after its memory is gone.
    fn wait_for_lock(&self) {
        let lock = File::open(self.root.join("keep/lock")).unwrap();
        let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
        wait("the lock to be free", || rustix::fs::flock(&lock, shared).is_ok());
    }

    fn finish(&mut self) -> Status {
        self.table.logs.iter_mut().for_each(|log| log.finished = true);
        self.apply()
    }

    fn read(&self, id: &str, options: ReadOptions) -> Vec<Entry> {
        self.runtime.block_on(logs::read(self.task_dir(id), options).map(Result::unwrap).collect())
    }

    /// What the log has of the stream, and how many bytes it says are lost.
    fn printed(&self, id: &str, stream: Stream) -> (Vec<u8>, u64) {
        let (mut bytes, mut lost) = (Vec::new(), 0);
        for entry in self.read(id, ReadOptions::default()) {
            match entry {
                Entry::Text { stream: of, text, .. } if of == stream => bytes.extend_from_slice(&text),
                Entry::Gap { stream: of, lost_bytes, .. } if of.is_none_or(|of| of == stream) => lost += lost_bytes,
                _ => {}
            }
        }
        (bytes, lost)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.clean();
    }
}

fn client(options: Options, prefix: &[&str]) -> Client {
    let prefix: Vec<String> = prefix.iter().map(|&word| word.to_owned()).collect();
    Client::new(options, move |options| companion(&prefix, options))
}

const DIR: &str = "APPLY_TEST_KEEP_DIR";
const BUILD: &str = "APPLY_TEST_KEEP_BUILD";
const REPLACE: &str = "APPLY_TEST_KEEP_REPLACE";
const CGROUP: &str = "APPLY_TEST_KEEP_CGROUP";

/// This binary again, with one test chosen, which then is the companion process.
fn companion(prefix: &[String], options: &Options) -> Command {
    let binary = std::env::current_exe().unwrap().into_os_string();
    let words: Vec<_> = prefix.iter().map(Into::into).chain([binary]).collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["--exact", "without_a_place_for_its_directory_it_says_so", "--nocapture"]);
    command.env(DIR, &options.dir).env(BUILD, &options.build).stdout(std::process::Stdio::null());
    command.envs(options.replace.then_some((REPLACE, "1"))).envs(options.cgroup.as_ref().map(|group| (CGROUP, group)));
    command
}

#[test]
fn without_a_place_for_its_directory_it_says_so() {
    let Some(dir) = std::env::var_os(DIR) else {
        let dir = PathBuf::from("/dev/null/keep");
        let error = run(&Options { dir, build: "1".into(), replace: false, cgroup: None }).unwrap_err();
        assert_eq!(error.to_string(), "could not make the directory in /dev/null/keep");
        return;
    };
    run(&Options {
        dir: dir.into(),
        build: std::env::var(BUILD).unwrap(),
        replace: std::env::var_os(REPLACE).is_some(),
        cgroup: std::env::var(CGROUP).ok(),
    })
    .unwrap();
}

/// All that were started for the directory, by whomever.
fn companions(dir: &Path) -> Vec<u32> {
    let wanted = format!("{DIR}={}", dir.display());
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_one = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        is_ours(*pid) && environment.split(|&byte| byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    pids.filter(is_one).collect()
}

/// Only if it is a companion process: the number may be another one's by now. Returns once it is gone.
fn kill(pid: u32) {
    if !is_ours(pid) {
        return;
    }
    let _ = rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
    wait("the process to die", || !is_ours(pid));
}

/// Not for a zombie, which has no command line.
fn is_ours(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).contains("without_a_place_for_its_directory_it_says_so")
        && pid != std::process::id()
}

#[expect(clippy::disallowed_methods, reason = "between two looks at a real process")]
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[expect(clippy::disallowed_methods, reason = "durations of real work are printed")]
fn now() -> Instant {
    Instant::now()
}

fn text(status: &Status) -> String {
    serde_json::to_string(status).unwrap()
}

/// Numbered lines of uneven length, a quarter of a kilobyte each on average.
fn line(number: u64) -> Vec<u8> {
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

#[test]
fn a_successor_takes_over_and_nobody_notices() {
    let mut scene = Scene::new("handover");
    scene.log("a");
    let server = free_port(Ipv4Addr::LOCALHOST.into());
    scene.table.names = names_for("127.0.0.1", server);
    let echo = echo_server();
    let relay = free_port(Ipv6Addr::LOCALHOST.into());
    scene.table.listeners = vec![Listener { protocol: Protocol::Tcp, listen: relay, target: echo }];
    let mut before = scene.apply();
    assert!(before.faults.is_empty(), "{}", text(&before));
    let stop = Arc::new(AtomicBool::new(false));
    let asker = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let (mut asked, mut slowest) = (0, Duration::ZERO);
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let begun = now();
                let reply = ask_udp(&socket, server, "vote", A);
                assert_eq!(reply.addresses, ["10.96.0.5"], "query {asked}");
                (asked, slowest) = (asked + 1, slowest.max(begun.elapsed()));
            }
            (asked, slowest)
        })
    };
    let connector = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut connections = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut stream = TcpStream::connect(relay).unwrap();
                assert_eq!(echoed(&mut stream, b"short"), b"short");
                connections += 1;
            }
            connections
        })
    };
    let printer = {
        let (stop, mut pipe) = (stop.clone(), scene.printer("a", Stream::Stdout));
        std::thread::spawn(move || {
            let mut digest = Sha256::new();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                digest.update(line(number));
                pipe.write_all(&line(number)).unwrap();
                number += 1;
            }
            digest.finalize()
        })
    };
    let mut long = TcpStream::connect(relay).unwrap();
    assert_eq!(echoed(&mut long, b"before"), b"before");
    let first = before.pid;
    for build in 2..7 {
        let options = Options { dir: scene.root.join("keep"), build: build.to_string(), replace: false, cgroup: None };
        scene.client = client(options, &[]);
        let status = scene.apply();
        assert!(status.pid != before.pid && status.faults.is_empty(), "{}", text(&status));
        assert_eq!(echoed(&mut long, b"after"), b"after", "a connection lives on in the process that accepted it");
        before = status;
    }
    stop.store(true, Ordering::Relaxed);
    let (asked, slowest) = asker.join().unwrap();
    let connections = connector.join().unwrap();
    println!("5 handovers: {asked} queries, none lost, slowest {slowest:?}; {connections} connections, none refused");
    assert!(is_ours(first), "the first one stays for its connection");
    drop(long);
    wait("the first one to go", || !is_ours(first));
    let digest = printer.join().unwrap();
    scene.finish();
    assert!(Sha256::digest(scene.printed("a", Stream::Stdout).0) == digest, "the log differs");
}

#[test]
fn there_is_one() {
    let mut scene = Scene::new("one");
    let status = scene.apply();
    let options = Options { dir: scene.root.join("keep"), build: "1".into(), replace: false, cgroup: None };
    assert!(companion(&[], &options).status().unwrap().success());
    assert_eq!(scene.apply(), status);
    // Two that look at the same moment, when there is none.
    kill(status.pid);
    scene.wait_for_lock();
    let mut other = client(options, &[]);
    let table = scene.table.clone();
    let (one, two) = scene.runtime.block_on(async { tokio::join!(scene.client.apply(&table), other.apply(&table)) });
    assert_eq!(one.unwrap().pid, two.unwrap().pid);
    wait("the one that came second to leave", || companions(&scene.root.join("keep")).len() == 1);
}

#[test]
fn a_directory_that_is_taken_away_ends_it() {
    let mut scene = Scene::new("away");
    let pid = scene.apply().pid;
    std::fs::remove_dir_all(scene.root.join("keep")).unwrap();
    wait("it to end", || !is_ours(pid));
}

#[test]
fn one_that_hangs_is_killed_and_replaced() {
    let mut scene = Scene::new("hang");
    let pid = scene.apply().pid;
    rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::STOP).unwrap();
    scene.log("a");
    let error = scene.runtime.block_on(scene.client.apply(&scene.table)).unwrap_err();
    assert!(matches!(error, ClientError::Hung { pid: Some(hung), .. } if hung == pid), "{error}");
    wait("it to die", || !is_ours(pid));
    let status = scene.apply();
    assert!(status.pid != pid && status.faults.is_empty(), "{}", text(&status));
}

#[test]
fn a_successor_that_leaves_or_dawdles_changes_nothing() {
    let mut scene = Scene::new("dawdler");
    scene.log("a");
    let server = free_port(Ipv4Addr::LOCALHOST.into());
    scene.table.names = names_for("127.0.0.1", server);
    let relay = free_port(Ipv6Addr::LOCALHOST.into());
    scene.table.listeners = vec![Listener { protocol: Protocol::Tcp, listen: relay, target: echo_server() }];
    let status = scene.apply();
    let address = rustix::net::SocketAddrUnix::new(scene.root.join("keep/handover.sock")).unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut pipe = scene.printer("a", Stream::Stdout);
    let connect = || {
        use rustix::net::{AddressFamily, SocketType};
        let successor = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::connect(&successor, &address).unwrap();
        successor
    };
    let mut goes_on = |round| {
        pipe.write_all(&line(round)).unwrap();
        let begun = now();
        assert_eq!(ask_udp(&socket, server, "vote", A).addresses, ["10.96.0.5"]);
        assert_eq!(echoed(&mut TcpStream::connect(relay).unwrap(), b"still"), b"still");
        begun.elapsed()
    };
    drop(connect());
    goes_on(0);
    let dawdler = connect();
    let mut slowest = Duration::ZERO;
    wait("the pause in which the dawdler is given its time", || {
        slowest = slowest.max(goes_on(1));
        slowest > Duration::from_secs(1)
    });
    drop(dawdler);
    goes_on(2);
    println!("slowest query and connection while a successor dawdled: {slowest:?}");
    assert_eq!(scene.finish().pid, status.pid);
    let (kept, lost) = scene.printed("a", Stream::Stdout);
    assert!(lost == 0 && kept.starts_with(&line(0)) && kept.ends_with(&line(2)));
}

#[test]
fn its_end_is_known_at_once_and_whoever_comes_after_goes_on() {
    const TASKS: usize = 50;
    let mut scene = Scene::new("life");
    for i in 0..TASKS {
        scene.log(&format!("task-{i}"));
    }
    let begun = now();
    let first = scene.apply();
    println!("started, with {TASKS} logs: {:?}", begun.elapsed());
    scene.log("one-more");
    let begun = now();
    let before = scene.apply();
    println!("one more log: {:?}", begun.elapsed());
    assert_eq!((before.version, before.pid), (first.version + 1, first.pid));

    let life = External::new("companion", Life::new(scene.root.join("keep")), Seams::real());
    let stop = CancellationToken::new();
    let (known, watched) = (life.clone(), stop.clone());
    let watcher = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(watched.run_until_cancelled(known.run()));
    });
    let pid = || life.snapshot().and_then(|known| known.iter().map(|(&pid, _)| pid).next());
    wait("the one that works", || pid() == Some(before.pid));
    kill(before.pid);
    let begun = now();
    wait("its end to be known", || pid().is_none());
    println!("its end was known {:?} after", begun.elapsed());

    // What applyd was started anew.
    let options = Options { dir: scene.root.join("keep"), build: "1".into(), replace: false, cgroup: None };
    scene.client = client(options, &[]);
    let after = scene.apply();
    assert_eq!(after.version, before.version, "the same table is not written again");
    wait("the next one to be known", || pid() == Some(after.pid));
    stop.cancel();
    watcher.join().unwrap();
}

#[test]
fn a_broken_table_changes_nothing_and_is_told() {
    let mut scene = Scene::new("broken");
    let server = free_port(Ipv4Addr::LOCALHOST.into());
    scene.table.names = names_for("127.0.0.1", server);
    scene.apply();
    let path = scene.root.join("keep/table.json");
    std::fs::write(path.with_extension("x"), "{\"version\": 9, \"names\": 3}").unwrap();
    std::fs::rename(path.with_extension("x"), &path).unwrap();
    let fault = |scene: &Scene| scene.client.status().unwrap().unwrap().faults.table;
    wait("the fault", || fault(&scene).is_some());
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    assert_eq!(ask_udp(&socket, server, "vote", A).addresses, ["10.96.0.5"]);
    scene.table.names.scopes.clear();
    assert!(scene.apply().faults.is_empty());
}

#[test]
fn listeners_relay_tcp_and_udp_and_name_what_they_cannot_open() {
    let mut scene = Scene::new("relay");
    let (tcp, udp) = (free_port(Ipv6Addr::LOCALHOST.into()), free_port(Ipv6Addr::LOCALHOST.into()));
    let taken = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let nobody = free_port(Ipv4Addr::LOCALHOST.into());
    let udp_echo = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    udp_echo.set_read_timeout(Some(PATIENCE)).unwrap();
    let listener = |protocol, listen, target| Listener { protocol, listen, target };
    scene.table.listeners = vec![
        listener(Protocol::Tcp, tcp, echo_server()),
        listener(Protocol::Udp, udp, udp_echo.local_addr().unwrap()),
        listener(Protocol::Tcp, taken.local_addr().unwrap(), tcp),
    ];
    let status = scene.apply();
    let faults: Vec<_> = status.faults.listeners.keys().cloned().collect();
    assert_eq!(faults, [format!("tcp {}", taken.local_addr().unwrap())]);

    let mut bytes = vec![0; 3 << 20];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    assert!(echoed(&mut TcpStream::connect(tcp).unwrap(), &bytes) == bytes);

    let clients = [0, 1].map(|_| UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap());
    let mut packet = [0; 2000];
    let mut ports = Vec::new();
    for (i, client) in clients.iter().enumerate() {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        for _ in 0..2 {
            client.send_to(&[i as u8; 1400], udp).unwrap();
            let (bytes, from) = udp_echo.recv_from(&mut packet).unwrap();
            ports.push(from.port());
            udp_echo.send_to(&packet[..bytes], from).unwrap();
            let (bytes, from) = client.recv_from(&mut packet).unwrap();
            assert_eq!((&packet[..bytes], from), (&[i as u8; 1400][..], udp));
        }
    }
    assert!(ports[0] == ports[1] && ports[2] == ports[3] && ports[0] != ports[2], "{ports:?}");

    drop(taken);
    scene.table.listeners[0].target = nobody;
    scene.apply();
    let refused = TcpStream::connect(tcp).unwrap().read(&mut packet);
    assert!(refused.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "a reset, not an end");
    wait("the port that is free now", || scene.client.status().unwrap().unwrap().faults.is_empty());
    scene.table.listeners.clear();
    scene.apply();
    assert!(TcpStream::connect(tcp).is_err());
}

#[test]
fn it_leads_a_session_and_leaves_the_cgroup_of_who_started_it() {
    let group = format!("apply-keep-test-{}", std::process::id());
    let mut scene = Scene::new("cgroup");
    let options =
        Options { dir: scene.root.join("keep"), build: "1".into(), replace: false, cgroup: Some(group.clone()) };
    scene.client = client(options, &[]);
    let status = scene.apply();
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", status.pid)).unwrap();
    let session = rustix::process::getsid(Pid::from_raw(status.pid.cast_signed()));
    kill(status.pid);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut removed = 0;
    for point in mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4)) {
        let dir = Path::new(point).join(&group);
        if dir.exists() {
            wait("an empty group", || std::fs::remove_dir(&dir).is_ok());
            removed += 1;
        }
    }
    assert!(removed > 0);
    assert_eq!(session.unwrap().as_raw_nonzero().get(), status.pid.cast_signed());
    for line in groups.lines().filter(|line| !line.contains("cpuset") && !line.starts_with("0::/../")) {
        assert!(line.ends_with(&group), "{line}");
    }
}

#[test]
fn a_task_asks_over_its_link_and_the_server_answers_from_its_address() {
    let (host, task) = ("apply-keep-h", "apply-keep-t");
    let etc = format!("/etc/netns/{host}");
    let undo: [&[&str]; 3] = [&["ip", "netns", "del", host], &["ip", "netns", "del", task], &["rm", "-r", &etc]];
    let mut scene = Scene::through("names", &["ip", "netns", "exec", host], &undo);
    command(&["ip", "netns", "add", host]);
    command(&["ip", "netns", "add", task]);
    command(&["ip", "-n", host, "link", "set", "lo", "up"]);
    // Before there is any link, so before the address exists.
    scene.table.names = names_for("10.5.0.2", names::SERVER);
    let resolver = SocketAddr::from(([127, 9, 9, 9], 53));
    // `ip netns exec` shows this as /etc/resolv.conf.
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(Path::new(&etc).join("resolv.conf"), format!("nameserver {}\n", resolver.ip())).unwrap();
    let nobody = names::Client { scopes: vec![], resolvers: vec!["127.9.9.8".parse().unwrap()] };
    scene.table.names.clients.insert("10.5.0.3".parse().unwrap(), nobody);
    let status = scene.apply();
    assert!(status.faults.is_empty(), "{}", text(&status));
    for step in [
        "-n HOST link add vh type veth peer name eth0 netns TASK",
        "-n HOST addr add 169.254.1.1/32 dev vh",
        "-n HOST link set vh up",
        "-n TASK addr add 10.5.0.2/32 dev eth0",
        "-n TASK addr add 10.5.0.3/32 dev eth0",
        "-n TASK addr add 10.5.0.4/32 dev eth0",
        "-n TASK link set eth0 up",
        "-n TASK route add 169.254.1.1 dev eth0 scope link src 10.5.0.2",
        "-n HOST route add 10.5.0.0/24 dev vh scope link",
    ] {
        let words = step.replace("HOST", host).replace("TASK", task);
        command(&std::iter::once("ip").chain(words.split(' ')).collect::<Vec<_>>());
    }
    // Somebody outside, who does not answer the first time.
    let (outside, outside_tcp) =
        within(host, move || (UdpSocket::bind(resolver).unwrap(), TcpListener::bind(resolver).unwrap()));
    std::thread::spawn(move || {
        let (mut stream, _) = outside_tcp.accept().unwrap();
        let question = framed_read(&mut stream);
        framed_write(&mut stream, &answer_with(&question, [93, 184, 216, 35]));
    });
    let stop = Arc::new(AtomicBool::new(false));
    let resolver = {
        let stop = stop.clone();
        outside.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        std::thread::spawn(move || {
            let (mut packet, mut seen) = ([0; 600], 0);
            while !stop.load(Ordering::Relaxed) {
                let Ok((bytes, from)) = outside.recv_from(&mut packet) else { continue };
                seen += 1;
                if seen > 1 {
                    outside.send_to(&answer_with(&packet[..bytes], [93, 184, 216, 34]), from).unwrap();
                }
            }
            seen
        })
    };
    within(task, || {
        let bound = |address: &str| {
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let socket = bound("10.5.0.2");
        let ask = |name: &str, kind| ask_udp(&socket, names::SERVER, name, kind);
        wait("the link", || ask_udp_once(&socket, names::SERVER, "vote", A, Duration::from_millis(100)).is_some());
        assert_eq!(ask("vote", A).shown(), "NOERROR 10.96.0.5");
        assert_eq!(ask("APP_vote", A).shown(), "NOERROR 10.96.0.5");
        assert_eq!(ask("vote", AAAA).shown(), "NOERROR");
        let turns: std::collections::BTreeSet<String> = (0..4).map(|_| ask("tasks.vote", A).shown()).collect();
        assert_eq!(turns.into_iter().collect::<Vec<_>>(), ["NOERROR 10.5.0.7 10.5.0.8", "NOERROR 10.5.0.8 10.5.0.7"]);
        assert_eq!(ask("5.0.96.10.in-addr.arpa", PTR).shown(), "NOERROR app_vote");
        let begun = now();
        assert_eq!(ask("example.com", A).shown(), "NOERROR 93.184.216.34");
        println!("asked outside, first packet lost: {:?}", begun.elapsed());
        // By TCP, several questions on one connection.
        let mut stream = TcpStream::connect(names::SERVER).unwrap();
        for (name, shown) in
            [("vote", "NOERROR 10.96.0.5"), ("example.com", "NOERROR 93.184.216.35"), ("VOTE", "NOERROR 10.96.0.5")]
        {
            framed_write(&mut stream, &question(9, name, A));
            assert_eq!(Reply::parse(&framed_read(&mut stream)).shown(), shown);
        }
        let begun = now();
        assert_eq!(ask_udp(&bound("10.5.0.3"), names::SERVER, "example.com", A).shown(), "SERVFAIL");
        println!("nobody outside: {:?}", begun.elapsed());
        assert_eq!(ask_udp(&bound("10.5.0.4"), names::SERVER, "vote", A).shown(), "REFUSED");
        let begun = now();
        (0..1000).for_each(|_| drop(ask("vote", A)));
        println!("a query over a veth takes {:?}", begun.elapsed() / 1000);
    });
    stop.store(true, Ordering::Relaxed);
    assert!(resolver.join().unwrap() >= 2);
}

#[test]
fn its_memory_is_small() {
    let mut scene = Scene::new("memory");
    let pid = scene.apply().pid;
    let idle = pss_kib(pid);
    for i in 0..100 {
        scene.log(&format!("task-{i}"));
    }
    assert_eq!(scene.apply().pid, pid);
    let open = pss_kib(pid);
    let printers: Vec<_> = (0..100)
        .map(|i| {
            let mut pipe = scene.printer(&format!("task-{i}"), Stream::Stdout);
            std::thread::spawn(move || (0..4000).for_each(|number| pipe.write_all(&line(number)).unwrap()))
        })
        .collect();
    let begun = now();
    printers.into_iter().for_each(|printer| printer.join().unwrap());
    let moved = begun.elapsed();
    let busy = pss_kib(pid);
    println!("PSS: {idle} KiB idle, {open} KiB with 100 logs, {busy} KiB after 100 MB came by in {moved:?}");
    assert!(busy < 24 << 10, "{busy} KiB");
    scene.finish();
}

fn pss_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn command(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// In a thread of its own, in a network namespace made by `ip netns add`.
fn within<T: Send + 'static>(namespace: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::options().read(true).custom_flags(0).open(format!("/run/netns/{namespace}")).unwrap();
    let thread = std::thread::spawn(move || {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        use std::os::fd::AsFd;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        act()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Free for both protocols a moment ago.
fn free_port(address: std::net::IpAddr) -> SocketAddr {
    let udp = UdpSocket::bind((address, 0)).unwrap();
    TcpListener::bind(udp.local_addr().unwrap()).unwrap().local_addr().unwrap()
}

/// Lives as long as the test's process.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
        }
    });
    address
}

fn echoed(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut writing, bytes_out) = (stream.try_clone().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || writing.write_all(&bytes_out).unwrap());
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    writer.join().unwrap();
    back
}

fn names_for(client: &str, listen: SocketAddr) -> names::Table {
    let answer = |addresses: &[&str]| names::Answer {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ttl_seconds: 5,
    };
    let mut scope = names::Scope::default();
    scope.names.insert("vote".into(), answer(&["10.96.0.5"]));
    scope.names.insert("app_vote".into(), answer(&["10.96.0.5"]));
    scope.names.insert("tasks.vote".into(), answer(&["10.5.0.7", "10.5.0.8"]));
    scope.reverse.insert("10.96.0.5".parse().unwrap(), "app_vote".into());
    names::Table {
        listen: vec![listen],
        clients: [(client.parse().unwrap(), names::Client { scopes: vec!["n".into()], resolvers: vec![] })].into(),
        scopes: [("n".into(), scope)].into(),
        pools: vec![],
    }
}

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;

/// RFC 1035 by hand: what the server's own library gets wrong in both directions would not show.
fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut packet = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&[kind.to_be_bytes(), [0, 1]].concat());
    packet
}

fn framed_write(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(&[&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()).unwrap();
}

fn framed_read(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    message
}

fn answer_with(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut packet = question.to_vec();
    packet[2..4].copy_from_slice(&[0x81, 0x80]);
    packet[7] = 1;
    packet.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    packet.extend_from_slice(&address);
    packet
}

#[derive(Debug)]
struct Reply {
    code: u8,
    addresses: Vec<String>,
}

impl Reply {
    fn parse(packet: &[u8]) -> Self {
        let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        assert!(packet[2] & 0x80 != 0 && packet[2] & 2 == 0, "not a whole response");
        let labels = |mut at: usize| {
            let mut labels = Vec::new();
            let mut end = None;
            loop {
                match packet[at] {
                    0 => return (labels.join("."), end.unwrap_or(at + 1)),
                    length if length & 0xc0 == 0xc0 => {
                        end.get_or_insert(at + 2);
                        at = word(at) & 0x3fff;
                    }
                    length => {
                        let next = at + 1 + usize::from(length);
                        labels.push(String::from_utf8(packet[at + 1..next].to_vec()).unwrap());
                        at = next;
                    }
                }
            }
        };
        let mut at = labels(12).1 + 4;
        let mut addresses = Vec::new();
        for _ in 0..word(6) {
            at = labels(at).1;
            let (kind, length) = (word(at), word(at + 8));
            at += 10;
            addresses.push(match (u16::try_from(kind).unwrap(), &packet[at..at + length]) {
                (A, &[a, b, c, d]) => Ipv4Addr::new(a, b, c, d).to_string(),
                (PTR, _) => labels(at).0,
                other => format!("{other:?}"),
            });
            at += length;
        }
        Reply { code: packet[3] & 15, addresses }
    }

    fn shown(&self) -> String {
        let code = match self.code {
            0 => "NOERROR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            5 => "REFUSED",
            _ => "other",
        };
        std::iter::once(code).chain(self.addresses.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
    }
}

fn ask_udp(socket: &UdpSocket, server: SocketAddr, name: &str, kind: u16) -> Reply {
    ask_udp_once(socket, server, name, kind, PATIENCE).unwrap_or_else(|| panic!("no answer for {name}"))
}

fn ask_udp_once(socket: &UdpSocket, server: SocketAddr, name: &str, kind: u16, patience: Duration) -> Option<Reply> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed) as u16;
    socket.set_read_timeout(Some(patience)).unwrap();
    // Without a route yet it is not even sent.
    socket.send_to(&question(id, name, kind), server).ok()?;
    let mut packet = [0; 2000];
    loop {
        let (bytes, from) = socket.recv_from(&mut packet).ok()?;
        assert_eq!(from, server, "an answer from elsewhere");
        if packet[..2] == id.to_be_bytes() {
            return Some(Reply::parse(&packet[..bytes]));
        }
    }
}
