//! A small HTTP server.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | `HOSTNAME RELEASE CLIENT_ADDRESS`, one line |
//! | `/healthz` | 200, or 503 after `/sick` until `/well` |
//! | `/sick`, `/well` | changes what `/healthz` says |
//! | `/slow/MS` | as `/`, after that long |
//! | `/env/NAME` | the variable |
//! | `/exit/CODE` | the program leaves |
//!
//! A signal to stop (SIGTERM, SIGINT, SIGUSR1) closes nothing that is open: what is queued and what is asked is answered,
//! with `Connection: close`, and then the program leaves.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::net::{hostname, plain};

static SICK: AtomicBool = AtomicBool::new(false);
static STOPPING: AtomicBool = AtomicBool::new(false);
static OPEN: AtomicUsize = AtomicUsize::new(0);

pub fn serve(port: u16, delay: Duration) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    thread::spawn(move || {
        signals.forever().next();
        drain();
    });
    sleep(delay);
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    println!("serving on {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        OPEN.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            // A peer that hangs up is its own business.
            let _ = converse(stream);
            OPEN.fetch_sub(1, Ordering::SeqCst);
        });
    }
    Ok(())
}

/// Leaves once nobody has been there for a moment, or when the usual grace is nearly over.
fn drain() {
    STOPPING.store(true, Ordering::SeqCst);
    let (began, mut quiet_since) = (Instant::now(), Instant::now());
    while began.elapsed() < DRAIN_MAX && quiet_since.elapsed() < QUIET {
        sleep(Duration::from_millis(10));
        if OPEN.load(Ordering::SeqCst) > 0 {
            quiet_since = Instant::now();
        }
    }
    println!("nobody is left");
    process::exit(0);
}

fn converse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    stream.set_nodelay(true)?;
    let peer = plain(stream.peer_addr()?);
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some((path, close)) = request(&mut reader)? {
        let (status, body, exit) = answer(&path, peer);
        let close = close || STOPPING.load(Ordering::SeqCst);
        let connection = if close { "Connection: close\r\n" } else { "" };
        let length = body.len();
        stream
            .write_all(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{connection}\r\n{body}").as_bytes())?;
        if let Some(code) = exit {
            process::exit(code);
        }
        if close {
            break;
        }
    }
    Ok(())
}

/// The path of the next request and whether it is the last; `None` when the peer has gone, or is idle while stopping.
fn request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<(String, bool)>> {
    let mut idle_ticks = 0;
    let (mut first, mut line, mut close, mut length) = (String::new(), String::new(), false, 0);
    loop {
        match reader.read_line(&mut line) {
            Ok(0) => return Ok(None),
            Ok(_) if line == "\r\n" && !first.is_empty() => break,
            Ok(_) => {
                let lower = line.to_ascii_lowercase();
                close |= lower.trim_end() == "connection: close" || lower.trim_end().ends_with("http/1.0");
                length = lower.strip_prefix("content-length:").and_then(|n| n.trim().parse().ok()).unwrap_or(length);
                if first.is_empty() {
                    first = line.clone();
                }
                line.clear();
            }
            // What was read of a line stays in it.
            Err(cause) if matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let idle = first.is_empty() && line.is_empty();
                idle_ticks += u32::from(idle && STOPPING.load(Ordering::SeqCst));
                if idle_ticks >= 2 {
                    return Ok(None);
                }
            }
            Err(cause) => return Err(cause),
        }
    }
    io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
    Ok(first.split(' ').nth(1).map(|path| (path.to_owned(), close)))
}

fn answer(path: &str, peer: SocketAddr) -> (&'static str, String, Option<i32>) {
    let release = std::env::var("RELEASE").unwrap_or_else(|_| "-".to_owned());
    let here = || format!("{} {release} {peer}\n", hostname());
    match path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), "")) {
        ("", _) => ("200 OK", here(), None),
        ("healthz", _) if SICK.load(Ordering::SeqCst) => ("503 Service Unavailable", "sick\n".to_owned(), None),
        ("healthz", _) => ("200 OK", "well\n".to_owned(), None),
        ("sick", _) => {
            SICK.store(true, Ordering::SeqCst);
            ("200 OK", "sick from now on\n".to_owned(), None)
        }
        ("well", _) => {
            SICK.store(false, Ordering::SeqCst);
            ("200 OK", "well from now on\n".to_owned(), None)
        }
        ("slow", time) => {
            sleep(Duration::from_millis(time.parse().unwrap_or(0)));
            ("200 OK", here(), None)
        }
        ("env", name) => match std::env::var(name) {
            Ok(value) => ("200 OK", value + "\n", None),
            Err(_) => ("404 Not Found", "not set\n".to_owned(), None),
        },
        ("exit", code) => ("200 OK", "goodbye\n".to_owned(), Some(code.parse().unwrap_or(1))),
        _ => ("404 Not Found", "there is no such path\n".to_owned(), None),
    }
}

const TICK: Duration = Duration::from_millis(250);
const QUIET: Duration = Duration::from_millis(100);
const DRAIN_MAX: Duration = Duration::from_secs(8);
