//! It begins, is followed by another of its kind, and ends.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use controllers::node::keep::{ClientError, Life, Listener, Options};
use controllers::node::logs::Stream;
use reconciler::external::External;
use reconciler::seams::Seams;
use rustix::process::{Pid, Signal};
use schemas::kinds::service::Protocol;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::network::*;
use crate::output::line;
use crate::scene::*;

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
    // The signal is on its way to some of its threads still.
    wait("it to stand still", || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat")).unwrap();
        threads.map(stat).all(|stat| stat.rsplit_once(") ").unwrap().1.starts_with('T'))
    });
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

pub fn pss_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
