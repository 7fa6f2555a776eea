//! Too many, too much, too slow, and what is no TLS or HTTP at all.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;
use controllers::identity::Request;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::peer::{
    self, CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PING, PORT, RST_STREAM, SETTINGS, Shown, Tls, answer, ask,
    frame, get, get_healthz, is_closed, post, preface, tcp, tls,
};
use crate::{HOSTILE, Honest, Watched, applyd, counted, memory, refused, remembered, worker};

const IDLE: usize = 10_000;
/// As the manager has them: cli/src/tls/strangers.rs, and `Limits` of reconciler/src/server.
const STRANGERS: usize = 512;
const STRANGERS_OF_PLACE: usize = 64;
const OF_PEER: usize = 512;
const BYTES_OF_PEER: u64 = 64 << 20;

/// What one connection takes at most: TLS (a record each way and what is not sent yet), the head that is read, the answer that
/// waits to be sent; of who shows no certificate, small heads and no answers.
const OF_CONNECTION: u64 = 256 << 10;
const OF_STRANGER: u64 = 128 << 10;
/// Everything else of a manager at work: its caches, what the allocator keeps.
const BESIDES: u64 = 64 << 20;

#[test]
fn who_means_no_good_is_refused_and_counted_and_costs_nobody_else_anything() {
    let machine = Machine::start("peers").unwrap();
    machine.on_network(|| scene(&machine)).unwrap();
}

fn scene(manager: &Machine) {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    let (member, hostile) = (worker(manager, "honest"), worker(manager, "hostile"));
    objects(manager);
    let pid = applyd(manager);
    let honest = Honest::begin(&member);
    let alone = honest.alone(100);
    let before = memory(pid);
    let watched = Watched::begin(pid);
    let mut rows = Vec::new();
    let mut while_it_lasts = |what: &'static str, attack: &dyn Fn()| {
        println!("{what}");
        honest.took();
        attack();
        let (middle, worst, answers) = honest.took();
        rows.push((what, middle, worst, answers, memory(pid)));
    };
    // Those that wait for a time to pass begin first, and are looked at last.
    let slow = Slow::begin(manager);
    while_it_lasts("bytes that are no TLS", &|| garbage(manager));
    while_it_lasts("10,000 connections that say nothing", &|| idle(manager));
    while_it_lasts("1,000 handshakes without a certificate, and nothing more", &|| idle_in_tls(manager));
    while_it_lasts("heads and bodies that are too large", &|| too_large(manager, &hostile));
    while_it_lasts("HTTP/2 by no rule", &|| frames(manager, &hostile));
    while_it_lasts("a worker that asks for what is others'", &|| secrets(manager, &hostile));
    while_it_lasts("700 connections of a worker, watches and answers that it does not read", &|| {
        greedy(manager, &hostile)
    });
    while_it_lasts("a person with a hundred logs open", &|| curious(manager));
    while_it_lasts("what is slow", &|| slow.end(manager));
    let (worst, open) = (watched.memory(), watched.descriptors());
    drop(watched);
    println!(
        "answers to others, each by a new connection: alone {:.1} ms, at the worst {:.1} ms",
        ms(alone.0),
        ms(alone.1)
    );
    for (what, middle, at_worst, answers, memory) in rows {
        let ratio = middle.as_secs_f64() / alone.0.as_secs_f64().max(1e-6);
        println!(
            "  {:.1} ms ({ratio:.1} times), at the worst {:.1} ms, {answers} answers, memory {:.1} MB: {what}",
            ms(middle),
            ms(at_worst),
            mb(memory)
        );
    }
    honest.end();
    wait_until("connections to be gone", PATIENCE, || crate::descriptors(pid) < 200).unwrap();
    println!("memory: before {:.1} MB, at the worst {:.1} MB, after {:.1} MB", mb(before), mb(worst), mb(memory(pid)));
    println!("descriptors at the worst: {open}");
    let bound = STRANGERS as u64 * OF_STRANGER + OF_PEER as u64 * OF_CONNECTION + BYTES_OF_PEER + BESIDES;
    assert!(worst - before < bound, "{} bytes more, and {bound} are what the limits allow", worst - before);
    assert!(open < (STRANGERS + OF_PEER + 300) as u64, "{open} descriptors");
    // It is as it was.
    let joined = worker(manager, "afterwards");
    assert_eq!(peer::timed(HOSTILE, Some(&joined), "/apis/apply/v1/nodes").unwrap().0.code, 200);
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A hundred services of 60 kB: something to be told of.
fn objects(manager: &Machine) {
    let file = manager.folder().join("large.yaml");
    let large = "x".repeat(60_000);
    let one = |number: usize| {
        format!(
            "apiVersion: apply/v1\nkind: Service\nmetadata: {{name: large-{number}, annotations: {{x/y: {large}}}}}\n\
             spec: {{replicas: 0, template: {{container: {{image: test/none:1}}}}}}\n"
        )
    };
    let all: Vec<String> = (0..100).map(one).collect();
    // A commit has 1.25 MiB at most.
    for some in all.chunks(20) {
        std::fs::write(&file, some.join("---\n")).unwrap();
        manager.ctl(&["apply", "-f", &file.to_string_lossy()]).unwrap();
    }
}

fn garbage(manager: &Machine) {
    let before = refused(manager, "no_tls");
    let http = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let noise: Vec<u8> = (0..4_096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // A record of TLS that says it is as long as can be, and a hello that says it is longer than any.
    let long = [&[22, 3, 1, 0xff, 0xff][..], &[0; 512]].concat();
    let hello = [&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 16_380]].concat();
    for _ in 0..50 {
        for bytes in [&http[..], &noise, &long, &hello] {
            let mut peer = tcp(HOSTILE, PORT).unwrap();
            let _ = peer.write_all(bytes);
            assert!(is_closed(&mut peer));
        }
    }
    counted(manager, "no_tls", before, 200);
    remembered(manager, HOSTILE, "");
}

fn idle(manager: &Machine) {
    let before = refused(manager, "crowded");
    let held: Vec<TcpStream> = (0..IDLE).map(|_| tcp(HOSTILE, PORT).unwrap()).collect();
    counted(manager, "crowded", before, (IDLE - STRANGERS_OF_PLACE) as u64);
    remembered(manager, HOSTILE, "it has shown no certificate, and others came");
    let open = held.iter().filter(|stream| {
        stream.set_nonblocking(true).unwrap();
        let mut one = [0];
        matches!((&**stream).read(&mut one), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    });
    let open = open.count();
    println!("  of {IDLE} connections {open} are open");
    assert!(open <= STRANGERS_OF_PLACE, "{open} are open");
}

fn idle_in_tls(manager: &Machine) {
    let before = refused(manager, "crowded");
    let held: Vec<Tls> = (0..1_000).filter_map(|_| tls(HOSTILE, PORT, None, "http/1.1").ok()).collect();
    counted(manager, "crowded", before, (1_000 - STRANGERS_OF_PLACE) as u64);
    drop(held);
}

fn too_large(manager: &Machine, hostile: &Shown) {
    let [heads, bodies] = ["large_head", "large_body"].map(|reason| refused(manager, reason));
    let long = |bytes: usize| {
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "y".repeat(bytes)).into_bytes()
    };
    for (shown, bytes) in [(None, 20 << 10), (Some(hostile), 200 << 10)] {
        for _ in 0..10 {
            let mut peer = tls(HOSTILE, PORT, shown, "http/1.1").unwrap();
            // It may close before all of it is sent; what it says first is then lost on the way.
            assert!(ask(&mut peer, &long(bytes)).map_or(true, |answer| answer.code == 431));
            assert!(is_closed(&mut peer));
        }
    }
    counted(manager, "large_head", heads, 20);
    // Of a million bytes none is kept.
    let large = "x".repeat(1 << 20);
    let endless = b"transfer-encoding: chunked\r\n\r\n";
    let services = "/apis/apply/v1/namespaces/default/services";
    for _ in 0..5 {
        let mut peer = tls(HOSTILE, PORT, None, "http/1.1").unwrap();
        let told = ask(&mut peer, &post("/apis/apply/v1/join", &format!("{{\"secret\": \"{large}\"}}")));
        assert!(told.map_or(true, |answer| answer.code == 413));
        let mut peer = tls(HOSTILE, PORT, Some(hostile), "http/1.1").unwrap();
        let head = format!("POST {services} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
        peer.write_all(&[head.as_bytes(), endless].concat()).unwrap();
        let chunk = [b"100000\r\n".as_slice(), large.as_bytes(), b"\r\n"].concat();
        let sent = (0..64).take_while(|_| peer.write_all(&chunk).is_ok()).count();
        assert!(sent < 64, "a body without end was taken");
    }
    counted(manager, "large_body", bodies, 10);
    // Who is nobody is not listened to where it may nothing.
    let before = refused(manager, "forbidden");
    let mut peer = tls(HOSTILE, PORT, None, "http/1.1").unwrap();
    let head = format!("POST {services} HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n{{");
    assert_eq!(ask(&mut peer, head.as_bytes()).unwrap().code, 403);
    counted(manager, "forbidden", before, 1);
}

/// Floods, and frames that break the rules. Whatever may be said for ever is ended by the size of what is sent here.
fn frames(manager: &Machine, hostile: &Shown) {
    let before = refused(manager, "http2");
    let healthz = get_healthz();
    let request = |stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, &healthz);
    let reset =
        |number: u32| [request(2 * number + 1), frame(RST_STREAM, 0, 2 * number + 1, &8_u32.to_be_bytes())].concat();
    let endless: Vec<u8> = (0..2_000).flat_map(|_| frame(CONTINUATION, 0, 1, &[0; 1_000])).collect();
    let breaking = [
        ("a frame that says it is longer than any", vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]),
        ("settings of five bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        ("a ping of one byte", frame(PING, 0, 0, &[0])),
        ("headers of stream 0", frame(HEADERS, END_HEADERS, 0, &healthz)),
        ("a head that never ends", [frame(HEADERS, 0, 1, &healthz), endless].concat()),
    ];
    for (what, bytes) in &breaking {
        for shown in [None, Some(hostile)] {
            let mut peer = tls(HOSTILE, PORT, shown, "h2").unwrap();
            let _ = peer.write_all(&[&preface()[..], bytes].concat()).and_then(|()| peer.flush());
            assert!(is_closed(&mut peer), "{what}");
        }
    }
    counted(manager, "http2", before, 2 * breaking.len() as u64);
    let floods = [
        ("settings", (0..20_000).flat_map(|_| frame(SETTINGS, 0, 0, &[])).collect::<Vec<u8>>()),
        ("pings", (0..20_000).flat_map(|_| frame(PING, 0, 0, &[0; 8])).collect()),
        ("requests that are taken back at once", (0..20_000).flat_map(reset).collect()),
    ];
    for (what, bytes) in floods {
        let mut peer = tls(HOSTILE, PORT, Some(hostile), "h2").unwrap();
        // Nothing of what is answered is read: whoever answers waits, or ends it.
        let stream = peer.get_ref().try_clone().unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let sent = peer.write_all(&preface()).and_then(|()| peer.write_all(&bytes)).and_then(|()| peer.flush());
        println!("  20,000 {what}: {}", sent.map_or_else(|error| format!("not taken ({error})"), |()| "taken".into()));
    }
}

fn secrets(manager: &Machine, hostile: &Shown) {
    let before = refused(manager, "forbidden");
    let file = manager.folder().join("planted");
    std::fs::write(&file, "open-sesame-5e1f").unwrap();
    manager.ctl(&["secret", "create", "key", &file.to_string_lossy()]).unwrap();
    let namespace = "/apis/apply/v1/namespaces/default";
    let asked = [
        get("/apis/apply/v1/secrets"),
        get(&format!("{namespace}/secrets/key")),
        get(&format!("{namespace}/secrets/key/data")),
        get("/apis/apply/v1/secrets?watch=1"),
        get("/apis/apply/v1/stream?selections=%5B%7B%22kind%22%3A%22secrets.apply%22%7D%5D"),
        get("/apis/apply/v1/jointokens"),
        get("/apis/apply/v1/backup"),
        post("/apis/apply/v1/managers", "{\"peer\": \"https://127.0.0.66:7678\", \"hasBegun\": false}"),
        post("/apis/apply/v1/users/ann/certificate", "{\"request\": \"\", \"seconds\": 600}"),
        post("/apis/apply/v1/namespaces/default/secrets", "{\"metadata\": {\"name\": \"own\"}}"),
    ];
    for request in &asked {
        let first = String::from_utf8_lossy(request).lines().next().unwrap_or_default().to_owned();
        let told = ask(&mut tls(HOSTILE, PORT, Some(hostile), "http/1.1").unwrap(), request).unwrap();
        assert_eq!(told.code, 403, "{first}: {}", told.body);
        assert!(!told.body.contains("open-sesame"), "{first}: {}", told.body);
    }
    counted(manager, "forbidden", before, asked.len() as u64);
    remembered(manager, HOSTILE, "no task on hostile sees the secret");
}

/// A member takes all that it can get: streams of a machine and idle connections, then watches and answers that it does not read.
fn greedy(manager: &Machine, hostile: &Shown) {
    let [connections, bytes, readers] = ["connections", "bytes", "slow_reader"].map(|reason| refused(manager, reason));
    let open = |request: &[u8]| {
        let mut peer = tls(HOSTILE, PORT, Some(hostile), "http/1.1").ok()?;
        peer.write_all(request).and_then(|()| peer.flush()).ok()?;
        let code = answer_head(&mut peer)?;
        Some((code, peer))
    };
    let agent =
        b"POST /apis/apply/v1/agent HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: apply-agent/1\r\n\r\n";
    let streams: Vec<Tls> = (0..100)
        .map(|number| {
            let (code, peer) = open(agent).unwrap_or_else(|| panic!("stream {number}"));
            assert_eq!(code, 101, "stream {number}");
            peer
        })
        .collect();
    let idle: Vec<Tls> = (0..600).filter_map(|_| tls(HOSTILE, PORT, Some(hostile), "http/1.1").ok()).collect();
    counted(manager, "connections", connections, (streams.len() + 600 - OF_PEER) as u64);
    drop(idle);
    wait_until("room for others", PATIENCE, || open(&get("/healthz")).is_some()).unwrap();
    // The kernel gives up those that have begun after some seconds; others are told that there are too many bytes.
    let watches: Vec<_> = (0..100).filter_map(|_| open(&get("/apis/apply/v1/services?watch=1"))).collect();
    assert!(watches.iter().all(|(code, _)| *code == 200));
    // Each answer is 6 MB.
    let answers: Vec<_> = (0..24).filter_map(|_| open(&get("/apis/apply/v1/services"))).collect();
    let count = |wanted| answers.iter().filter(|(code, _)| *code == wanted).count() as u64;
    println!("  answers that are not read: {} begun, {} refused with 429", count(200), count(429));
    assert!(count(429) > 0, "all of {} are answered", answers.len());
    counted(manager, "bytes", bytes, count(429));
    counted(manager, "slow_reader", readers, 1);
    let nodes: Value = manager.json(&["get", "nodes"]).unwrap();
    assert!(nodes["items"].as_array().is_some_and(|nodes| nodes.len() >= 3));
}

/// Logs that are followed go on for ever: of one person so many do.
fn curious(manager: &Machine) {
    const OPEN_MAX: usize = 64;
    let before = refused(manager, "logs_and_exec");
    let person = person(manager, "ann");
    manager.ctl(&["service", "create", "--detach", "--name", "web", "test/none:1"]).unwrap();
    let mut task = String::new();
    wait_until("a task", PATIENCE, || {
        let tasks = manager.person().list("task").unwrap();
        task = tasks.first().map(|task| task["metadata"]["name"].as_str().unwrap().to_owned()).unwrap_or_default();
        !task.is_empty()
    })
    .unwrap();
    let follow = || {
        let mut peer = tls(HOSTILE, PORT, Some(&person), "http/1.1").unwrap();
        let path = format!("/apis/apply/v1/namespaces/default/tasks/{task}/log?follow=true");
        let told = ask(&mut peer, &get(&path)).unwrap();
        (told, peer)
    };
    let mut held: Vec<_> = (0..100).map(|_| follow()).collect();
    let open = held.iter().filter(|(told, _)| told.code == 200).count();
    assert_eq!(open, OPEN_MAX, "{:?}", held[0].0);
    let refusal = &held[OPEN_MAX].0;
    assert!(refusal.code == 429 && refusal.body.contains("end some of them"), "{refusal:?}");
    counted(manager, "logs_and_exec", before, 100 - OPEN_MAX as u64);
    held.clear();
    wait_until("room for another", PATIENCE, || follow().0.code == 200).unwrap();
    manager.ctl(&["service", "rm", "web", "--yes"]).unwrap();
}

/// A person's certificate, as an administrator of the machine makes it.
fn person(manager: &Machine, name: &str) -> Shown {
    let file = manager.folder().join("person.yaml");
    let user = format!("apiVersion: apply/v1\nkind: User\nmetadata: {{name: {name}}}\nspec: {{}}\n");
    let grant = format!(
        "apiVersion: apply/v1\nkind: Grant\nmetadata: {{name: {name}}}\n\
         spec: {{subjects: [{{name: {name}}}], verbs: ['*'], kinds: ['*']}}\n"
    );
    std::fs::write(&file, format!("{user}---\n{grant}")).unwrap();
    manager.ctl(&["apply", "-f", &file.to_string_lossy()]).unwrap();
    let request = Request::make().unwrap();
    let body = serde_json::json!({"request": request.request, "seconds": 3_600}).to_string();
    let mut socket = UnixStream::connect(manager.person().socket).unwrap();
    socket.write_all(&post(&format!("/apis/apply/v1/users/{name}/certificate"), &body)).unwrap();
    let told = answer(&mut socket).unwrap();
    let said: Value = serde_json::from_str(&told.body).unwrap();
    Shown { chain: said["certificate"].as_str().unwrap().to_owned(), key: request.key }
}

/// The code of an answer of which no more than the beginning is read.
fn answer_head(peer: &mut Tls) -> Option<u16> {
    let mut head = [0; 12];
    peer.read_exact(&mut head).ok()?;
    std::str::from_utf8(&head[9..]).ok()?.parse().ok()
}

/// What begins and does not go on, in the handshake, in the head and in the body.
struct Slow {
    before: [u64; 3],
    held: Vec<Tls>,
    body: Tls,
    silent: Vec<TcpStream>,
}

impl Slow {
    /// From an address of its own: the hostile one makes room for itself.
    fn begin(manager: &Machine) -> Self {
        let from = std::net::Ipv4Addr::new(127, 0, 0, 67);
        let before = ["slow_handshake", "slow_head", "slow_body"].map(|reason| refused(manager, reason));
        let silent = (0..5).map(|_| {
            let mut stream = tcp(from, PORT).unwrap();
            stream.write_all(&[22, 3, 1]).unwrap();
            stream
        });
        let begun = |what: &[u8]| {
            let mut peer = tls(from, PORT, None, "http/1.1").unwrap();
            peer.write_all(what).and_then(|()| peer.flush()).unwrap();
            peer
        };
        let held = [&b""[..], b"GET /", b"GET /healthz HTTP/1.1\r\nhost: somebody\r\nx-slow: ", b"PRI * HTTP/2.0\r\n"];
        let body = begun(b"POST /apis/apply/v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{");
        Self { before, silent: silent.collect(), held: held.into_iter().map(begun).collect(), body }
    }

    fn end(&self, manager: &Machine) {
        let [handshakes, heads, bodies] = self.before;
        counted(manager, "slow_handshake", handshakes, self.silent.len() as u64);
        counted(manager, "slow_head", heads, self.held.len() as u64);
        counted(manager, "slow_body", bodies, 1);
        for mut stream in &self.silent {
            assert!(is_closed(&mut stream));
        }
        let mut told = [0; 64];
        // What was answered waits to be read; the rest of TLS is of no matter here.
        assert!(self.body.get_ref().peek(&mut told).unwrap() > 0);
    }
}
