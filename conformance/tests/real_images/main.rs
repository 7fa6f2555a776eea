//! The images, as containerd and runc take them: unpacked, started, stopped and killed. Needs root.

mod machine;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use conformance::{browser, images};
use machine::{Machine, becomes, eventually};

/// Builds a set and gives it to a machine.
fn machine_with(name: &str, set: &str) -> Machine {
    let set = images::set(set).expect("a set of this name");
    let archive = images::build(set, &images::workspace().join("target/images")).expect("the images are built");
    let machine = Machine::start(name);
    machine.ctr(&["image", "import", &archive.path.display().to_string()]);
    machine
}

#[test]
fn layers_replace_and_remove_what_is_below() {
    let machine = machine_with("layers", "test");
    let (code, seen) = machine.run("test/layers:1", &[], &[]);
    assert_eq!(code, Some(0), "{seen}");
    // Sizes of what is not compared below are left out with the first line: a folder's owner and mode are enough.
    let expected = "\
d 0755 0:0 0 /tree
- 0644 0:0 29 /tree/another-name
d 0755 0:0 0 /tree/becomes-dir
- 0644 0:0 7 /tree/becomes-dir/inside
l 0777 0:0 0 /tree/dangling -> /nowhere
- 0644 0:0 29 /tree/kept
l 0777 0:0 0 /tree/link -> kept
d 0755 0:0 0 /tree/opaque
- 0644 0:0 6 /tree/opaque/above
d 1777 1000:1000 0 /tree/open
- 0644 0:0 11 /tree/removed
- 0600 1000:1000 29 /tree/replaced
- 4755 0:0 7 /tree/setuid
";
    assert_eq!(seen, expected);
}

#[test]
fn the_test_program_has_its_manners() {
    let machine = machine_with("manners", "test");
    assert_eq!(machine.run("test/exit:3", &[], &[]).0, Some(3));
    // Process 1 is immune to the SIGABRT that it sends itself, so libc ends it by a fault: 128 + SIGSEGV.
    assert_eq!(machine.run("test/crash:1", &[], &[]).0, Some(139));
    let (_, id) = machine.run("test/manners:1", &[], &["/testbox", "id"]);
    assert!(id.starts_with("Uid 1000 1000 1000 1000\nGid 100 100 100 100\n"), "{id}");
    let (_, seed) = machine.run("test/manners:1", &[], &["/testbox", "cat", "data/seed"]);
    assert_eq!(seed, "put here by the image\n", "read relative to the image's working directory");
    let (code, words) = machine.run("test/shell:1", &[], &["sh", "-c", "echo $((6 * 7)) | sed s/4/four-/"]);
    assert_eq!((code, words.as_str()), (Some(0), "four-2\n"));
}

/// libc's resolver is asked by a static program in an image that holds that program alone: no NSS library, no
/// `nsswitch.conf`.
#[test]
fn a_static_program_resolves_names_with_resolv_conf_alone() {
    let machine = machine_with("names", "test");
    let resolv = machine.file("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n");
    machine.up("names", "test/box:1", &[], &["/testbox", "names", "53", "redis=10.1.2.3", "back-tier.redis=10.1.2.4"]);
    let mount = [(resolv.as_path(), "/etc/resolv.conf")];
    let resolve = |name: &str| machine.run("test/box:1", &mount, &["/testbox", "resolve", name]);
    eventually("the name server answers", || resolve("redis").0 == Some(0));
    assert_eq!(resolve("redis"), (Some(0), "10.1.2.3\n".to_owned()));
    assert_eq!(resolve("Back-Tier.Redis"), (Some(0), "10.1.2.4\n".to_owned()));
    assert_eq!(resolve("nobody").0, Some(125));
}

/// Each service of the voting application, with its volume where it has one.
struct App {
    machine: Machine,
}

impl App {
    fn start(name: &str) -> App {
        let app = App { machine: machine_with(name, "voting-app") };
        app.machine.file("hosts", "127.0.0.1 localhost redis db\n");
        SERVICES.iter().for_each(|service| app.up(service));
        app
    }

    fn up(&self, service: &str) {
        let (hosts, data) = (self.machine.path("hosts"), self.machine.folder(&format!("volume-{service}")));
        let (image, at, env): (_, _, &[&str]) = match service {
            "redis" => ("example/redis:7", "/data", &[]),
            "db" => ("example/postgres:15", "/var/lib/postgresql/data", &[]),
            "vote" => ("example/vote:1", "/unused", &["PORT=5000"]),
            "result" => ("example/result:1", "/unused", &["PORT=5001"]),
            "worker" => ("example/worker:1", "/unused", &[]),
            other => panic!("no service {other}"),
        };
        let mounts = [(hosts.as_path(), "/etc/hosts"), (data.as_path(), at)];
        self.machine.up_with(service, image, &mounts, env, &[]);
    }

    /// Votes for A and B, once they can be had.
    fn counts(&self) -> Option<[u64; 2]> {
        let (200, body) = self.machine.http(|| request(5001, "GET /api/result", "", ""))? else { return None };
        let result: serde_json::Value = serde_json::from_str(&body).expect("the result is JSON");
        Some([result["a"].as_u64()?, result["b"].as_u64()?])
    }
}

const SERVICES: [&str; 5] = ["redis", "db", "worker", "vote", "result"];

/// One request over its own connection: the status and the body. `None` when it is not answered.
fn request(port: u16, line: &str, cookie: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nConnection: close\r\nCookie: {cookie}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

#[test]
fn a_vote_that_was_thanked_for_is_counted_once_whatever_is_killed() {
    let app = App::start("kills");
    let (voters, thanked, done) = (300_u32, AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for quarter in 0..4 {
            let (app, thanked) = (&app, &thanked);
            scope.spawn(move || {
                for voter in (quarter..voters).step_by(4) {
                    let (cookie, body) =
                        (format!("voter_id={voter:016x}"), if voter % 3 == 0 { "vote=a" } else { "vote=b" });
                    // A voter who is not thanked tries again.
                    eventually("the vote is taken", || {
                        app.machine
                            .http(|| request(5000, "POST /", &cookie, body))
                            .is_some_and(|(status, _)| status == 303)
                    });
                    thanked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(|| {
            for (round, service) in SERVICES.iter().cycle().take(12).enumerate() {
                let due = (round as u32 + 1) * voters / 14;
                eventually("votes go on", || thanked.load(Ordering::SeqCst) >= due);
                app.machine.kill(service, "SIGKILL");
                app.up(service);
            }
            done.store(true, Ordering::SeqCst);
        });
    });
    assert!(done.load(Ordering::SeqCst), "all kills took place while votes were cast");
    let expected = [u64::from(voters / 3), u64::from(voters - voters / 3)];
    becomes("the result", Some(expected), || app.counts());
}

#[test]
fn every_service_leaves_at_sigterm() {
    let app = App::start("stops");
    becomes("the application is up", Some([0, 0]), || app.counts());
    assert_eq!(app.machine.http(|| request(5000, "POST /", "", "vote=a")).map(|(status, _)| status), Some(303));
    becomes("the vote is counted", Some([1, 0]), || app.counts());
    for service in SERVICES {
        assert_eq!(app.machine.kill(service, "SIGTERM"), 0, "{service} leaves by itself, and content");
    }
    // The database took the time to write everything down, though two clients were connected.
    let (log, left_over) = (app.machine.log("db"), app.machine.path("volume-db/main/postmaster.pid"));
    assert!(log.contains("received fast shutdown request") && log.contains("database system is shut down"), "{log}");
    assert!(!left_over.exists());
    for service in SERVICES {
        app.up(service);
    }
    becomes("the vote is still there", Some([1, 0]), || app.counts());
}

/// Whatever moment of its first start the database is killed at, the next start has a whole one.
#[test]
fn a_first_start_of_the_database_may_be_killed() {
    let machine = machine_with("first-start", "voting-app");
    let data = machine.folder("volume");
    let mounts = [(data.as_path(), "/var/lib/postgresql/data")];
    for moment in ["new", "new/global", "new/base/5", "main"] {
        machine.up_with("db", "example/postgres:15", &mounts, &[], &[]);
        eventually(moment, || data.join(moment).exists());
        machine.kill("db", "SIGKILL");
    }
    machine.up_with("db", "example/postgres:15", &mounts, &[], &[]);
    eventually("the database answers", || {
        machine.exec("db", &["psql", "-qAtU", "postgres", "-c", "select 40 + 2"]) == "42\n"
    });
}

#[test]
fn a_person_votes_and_sees_the_result_change() {
    let app = App::start("person");
    becomes("the application is up", Some([0, 0]), || app.counts());
    let netns = app.machine.netns();
    let seen = browser::vote_and_see(
        "http://127.0.0.1:5000",
        "http://127.0.0.1:5001",
        Path::new(&app.machine.folder("browser")),
        Some(&netns),
    );
    let seen = seen.expect("the browser shows it");
    assert_eq!((seen.before, seen.after_a, seen.after_b), ([0, 0], [1, 0], [0, 1]));
}
