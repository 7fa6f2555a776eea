//! Both ends of small conversations.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;
use std::{fs, thread};

/// The name of this container.
pub fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

/// An address as people know it: IPv4 is not shown inside IPv6.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub fn echo_tcp(port: u16) -> io::Result<()> {
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    println!("echoing tcp on {port}");
    for stream in listener.incoming() {
        let mut stream = stream?;
        thread::spawn(move || -> io::Result<()> {
            let peer = plain(stream.peer_addr()?);
            stream.write_all(format!("{} {peer}\n", hostname()).as_bytes())?;
            let mut piece = [0; 16 * 1024];
            loop {
                match stream.read(&mut piece)? {
                    0 => return Ok(()),
                    count => stream.write_all(&piece[..count])?,
                }
            }
        });
    }
    Ok(())
}

pub fn echo_udp(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port)))?;
    println!("echoing udp on {port}");
    let mut piece = vec![0; 64 * 1024];
    loop {
        let (count, peer) = socket.recv_from(&mut piece)?;
        let mut answer = format!("{} {}\n", hostname(), plain(peer)).into_bytes();
        answer.extend(&piece[..count]);
        // The peer may be gone already (ICMP port unreachable).
        let _ = socket.send_to(&answer, peer);
    }
}

/// Answers questions for A records; a known name has no record of any other type.
pub fn names(port: u16, known: &[&str]) -> io::Result<()> {
    let parse = |entry: &str| {
        let (name, address) = entry.split_once('=')?;
        Some((name.to_ascii_lowercase(), address.parse::<Ipv4Addr>().ok()?))
    };
    let wrong = || io::Error::other("names are given as NAME=IPV4");
    let known = known.iter().map(|entry| parse(entry).ok_or_else(wrong)).collect::<io::Result<Vec<_>>>()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    println!("answering for {} names on {port}", known.len());
    let mut question = [0; 512];
    loop {
        let (count, peer) = socket.recv_from(&mut question)?;
        if let Some(answer) = answer(&question[..count], &known) {
            // Who asked may be gone already.
            let _ = socket.send_to(&answer, peer);
        }
    }
}

fn answer(question: &[u8], known: &[(String, Ipv4Addr)]) -> Option<Vec<u8>> {
    let (mut name, mut at) = (String::new(), 12);
    while let length @ 1.. = usize::from(*question.get(at)?) {
        let label = std::str::from_utf8(question.get(at + 1..at + 1 + length)?).ok()?;
        name = if name.is_empty() { label.to_owned() } else { format!("{name}.{label}") };
        at += 1 + length;
    }
    let end = at + 5;
    let kind = question.get(at + 1..at + 3)?;
    let address = known.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, address)| address);
    let found = address.filter(|_| kind == [0, 1]);
    let mut answer = question.get(..end)?.to_vec();
    // A response, authoritative, recursion as asked; NXDOMAIN (3) only for a name that is not known at all.
    answer[2] = 0x84 | (question[2] & 1);
    answer[3] = if address.is_some() { 0 } else { 3 };
    answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0]);
    if let Some(address) = found {
        // A pointer to the name in the question, type A, class IN, 1 s, 4 bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

pub fn say_tcp(address: &str, text: &str) -> io::Result<String> {
    let mut stream = dial(address)?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer + "\n")
}

pub fn say_udp(address: &str, text: &str) -> io::Result<String> {
    let peer = address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    let any: IpAddr = if peer.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // Connected, so that a refusal (ICMP port unreachable) is an error and not silence.
    socket.connect(peer)?;
    socket.send(text.as_bytes())?;
    let mut answer = vec![0; 64 * 1024];
    let count = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..count]).into_owned() + "\n")
}

/// Whether the status was 200, and the body.
pub fn get(url: &str) -> io::Result<(bool, String)> {
    let rest = url.strip_prefix("http://").ok_or_else(|| io::Error::other("only http:// URLs are known"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let mut stream = dial(&if has_port { host.to_owned() } else { format!("{host}:80") })?;
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut status = String::new();
    reader.read_line(&mut status)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok((status.split(' ').nth(1) == Some("200"), body))
}

pub fn resolve(name: &str) -> io::Result<Vec<String>> {
    let mut addresses: Vec<_> = (name, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses.iter().map(IpAddr::to_string).collect())
}

fn dial(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(cause) => last = cause,
        }
    }
    Err(last)
}

const PATIENCE: Duration = Duration::from_secs(2);
