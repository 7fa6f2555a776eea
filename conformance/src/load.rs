//! Requests at a fixed rate, a connection for each, whatever became of those before (open loop): who is slow is not asked less.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// A reply that takes longer has failed.
pub const LATE: Duration = Duration::from_secs(1);

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Report {
    pub requests: u64,
    /// When each was begun that failed, to whom it was, and why.
    pub failed: Vec<(Instant, SocketAddr, String)>,
    /// Of those that were answered, sorted.
    pub took: Vec<Duration>,
}

impl Report {
    /// So many of a thousand were answered within it.
    pub fn within(&self, per_mille: usize) -> Duration {
        let at = (self.took.len() * per_mille / 1000).min(self.took.len().saturating_sub(1));
        self.took.get(at).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} requests, {} failed; half within {:?}, 99 % within {:?}, 99.9 % within {:?}, all within {:?}",
            self.requests,
            self.failed.len(),
            self.within(500),
            self.within(990),
            self.within(999),
            self.within(1000)
        )
    }
}

/// Asks each of the `targets` in turn, so often a second over all of them, until it is told that it is enough. In this thread, so
/// in its network. `begun` counts meanwhile.
///
/// # Errors
/// This thread can wait for nothing.
pub fn at_rate(
    targets: &[SocketAddr],
    per_second: u32,
    enough: &AtomicBool,
    begun: &std::sync::atomic::AtomicU64,
) -> Result<Report> {
    ensure!(!targets.is_empty() && per_second > 0, "there is nothing to ask");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut report, mut under_way) = (Report::default(), FuturesUnordered::new());
        let mut next = targets.iter().copied().cycle();
        while !enough.load(Ordering::Relaxed) || !under_way.is_empty() {
            tokio::select! {
                _ = ticks.tick(), if !enough.load(Ordering::Relaxed) => {
                    let target = next.next().expect("a cycle does not end");
                    report.requests += 1;
                    begun.store(report.requests, Ordering::Relaxed);
                    under_way.push(async move {
                        let begun = Instant::now();
                        let answered = match timeout(LATE, ask(target)).await {
                            Ok(answered) => answered,
                            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
                        };
                        (begun, target, answered)
                    });
                }
                Some((begun, target, answered)) = under_way.next(), if !under_way.is_empty() => match answered {
                    Ok(()) => report.took.push(begun.elapsed()),
                    Err(error) => report.failed.push((begun, target, error.to_string())),
                },
            }
        }
        report.took.sort_unstable();
        Ok(report)
    })
}

async fn ask(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    match answer.starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("not an answer: {:?}", String::from_utf8_lossy(&answer)))),
    }
}
