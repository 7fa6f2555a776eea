//! Listeners and names.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use controllers::node::keep::Listener;
use controllers::node::names;
use schemas::kinds::service::Protocol;

use crate::scene::*;

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

/// In a thread of its own, in a network namespace made by `ip netns add`.
pub fn within<T: Send + 'static>(namespace: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
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
pub fn free_port(address: std::net::IpAddr) -> SocketAddr {
    // A port that is free for the one may be somebody's for the other.
    let both = || {
        let udp = UdpSocket::bind((address, 0)).unwrap();
        TcpListener::bind(udp.local_addr().unwrap()).ok()?.local_addr().ok()
    };
    std::iter::repeat_with(both).take(100).flatten().next().expect("a port that both protocols have free")
}

/// Lives as long as the test's process.
pub fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
        }
    });
    address
}

pub fn echoed(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut writing, bytes_out) = (stream.try_clone().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || writing.write_all(&bytes_out).unwrap());
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    writer.join().unwrap();
    back
}

pub fn names_for(client: &str, listen: SocketAddr) -> names::Table {
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

pub const A: u16 = 1;
pub const PTR: u16 = 12;
pub const AAAA: u16 = 28;

/// RFC 1035 by hand: what the server's own library gets wrong in both directions would not show.
pub fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut packet = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&[kind.to_be_bytes(), [0, 1]].concat());
    packet
}

pub fn framed_write(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(&[&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()).unwrap();
}

pub fn framed_read(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    message
}

pub fn answer_with(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut packet = question.to_vec();
    packet[2..4].copy_from_slice(&[0x81, 0x80]);
    packet[7] = 1;
    packet.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    packet.extend_from_slice(&address);
    packet
}

#[derive(Debug)]
pub struct Reply {
    code: u8,
    pub addresses: Vec<String>,
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

pub fn ask_udp(socket: &UdpSocket, server: SocketAddr, name: &str, kind: u16) -> Reply {
    ask_udp_once(socket, server, name, kind, PATIENCE).unwrap_or_else(|| panic!("no answer for {name}"))
}

pub fn ask_udp_once(
    socket: &UdpSocket,
    server: SocketAddr,
    name: &str,
    kind: u16,
    patience: Duration,
) -> Option<Reply> {
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
