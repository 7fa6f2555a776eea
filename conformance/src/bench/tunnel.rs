//! What it costs that a task is on another machine: the way from a client by one machine to a task on the other, encrypted and
//! in the clear, beside a program on that other machine that the client reaches itself. All of it shares two cores.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Row, report};
use crate::lab::Lab;
use crate::parts::machine::PATIENCE;
use crate::parts::process::wait_until;

const ROUNDS: usize = 5;
/// Echoed in one stream.
const BYTES: usize = 100 << 20;
/// Connections, each for one request, one after the other.
const CONNECTIONS: usize = 2000;
const PUBLISHED: u16 = 9000;
const DIRECT: u16 = 9100;

/// All of it.
pub fn run() -> Result<()> {
    let mut rows = Vec::new();
    let mut direct = (Vec::new(), Vec::new());
    let ways = [("in the clear", "plain"), ("encrypted", "encrypted")].map(|(name, plane)| -> Result<_> {
        let lab = Lab::start("bench", 2)?;
        lab.form_with(&["--data-plane", plane])?;
        let first = lab.machine(1)?;
        lab.machine(2)?.load("test")?;
        let port = format!("{PUBLISHED}:{PUBLISHED}");
        let on_second = ["--constraint", "node.hostname==n2", "test/box:1", "echo", "tcp", &PUBLISHED.to_string()];
        first.ctl(&[&["service", "create", "--name", "echo", "-p", &port], &on_second[..]].concat())?;
        let (way, beside) = (at(1, PUBLISHED), at(2, DIRECT));
        let opened = || lab.outside(|| echoed(way, 1).is_ok()).unwrap_or(false);
        wait_until("the port to open", PATIENCE, opened)?;
        serve_on(&lab)?;
        let mut measured = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            // In pairs, so that what else goes on concerns both.
            measured.0.push(lab.outside(|| stream(way))??);
            direct.0.push(lab.outside(|| stream(beside))??);
            measured.1.push(lab.outside(|| connections(way))??);
            direct.1.push(lab.outside(|| connections(beside))??);
        }
        Ok((name, middle(measured.0), middle(measured.1)))
    });
    let ways = ways.into_iter().collect::<Result<Vec<_>>>()?;
    let (stream, connections) = (middle(direct.0), middle(direct.1));
    rows.push(Row::new("a program on the other machine, echoed", stream, "MB/s"));
    rows.push(Row::new("a program on the other machine, connections", connections, "1/s"));
    for (name, way_stream, way_connections) in ways {
        rows.push(Row::new(format!("a task on the other machine, {name}, echoed"), way_stream, "MB/s"));
        rows.push(Row::new(format!("a task on the other machine, {name}, connections"), way_connections, "1/s"));
        rows.push(Row::new(format!("{name}, echoed, to direct"), way_stream / stream, "ratio"));
        rows.push(Row::new(format!("{name}, connections, to direct"), way_connections / connections, "ratio"));
    }
    report("tunnel", &rows)?;
    Ok(())
}

fn at(machine: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 99, 0, machine], port))
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A program of the second machine itself that gives back what it is sent; it ends with this process.
fn serve_on(lab: &Lab) -> Result<()> {
    let listener = lab.machine(2)?.on_network(|| TcpListener::bind(("0.0.0.0", DIRECT)))??;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = std::io::copy(&mut &stream, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    Ok(())
}

/// MB a second, there and back.
fn stream(to: SocketAddr) -> Result<f64> {
    let begun = Instant::now();
    echoed(to, BYTES)?;
    Ok(BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

/// Connections a second.
fn connections(to: SocketAddr) -> Result<f64> {
    let begun = Instant::now();
    for _ in 0..CONNECTIONS {
        echoed(to, 1)?;
    }
    Ok(CONNECTIONS as f64 / begun.elapsed().as_secs_f64())
}

fn echoed(to: SocketAddr, bytes: usize) -> Result<()> {
    const SILENCE: Duration = Duration::from_secs(10);
    let stream = TcpStream::connect_timeout(&to, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            let chunk = vec![b'x'; bytes.min(64 << 10)];
            let mut left = bytes;
            while left > 0 {
                let now = left.min(chunk.len());
                writer.write_all(&chunk[..now])?;
                left -= now;
            }
            writer.shutdown(Shutdown::Write)
        });
        let (mut back, mut room) = (0, vec![0; 256 << 10]);
        loop {
            match (&stream).read(&mut room)? {
                0 => break,
                now => back += now,
            }
        }
        sent.join().map_err(|_| anyhow!("the writer panicked"))??;
        anyhow::ensure!(back >= bytes, "{back} of {bytes} bytes came back");
        Ok(())
    })
    .with_context(|| format!("echo at {to}"))
}
