//! Connections: where they come from, who is at the other end, and how they end.

use std::error::Error;
use std::fmt;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::{Extension, Router};
use futures::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::seams::Seams;

use super::{Peer, Server, Shared, Ticket};

/// Where connections come from, each with who is at its other end.
///
/// A handshake that may take long belongs into tasks of the listener's own: `accept` is called again only when it has
/// answered.
pub trait Listener: Send + 'static {
    /// What bytes go over, both ways.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Cancel-safe. An error concerns this one connection; accepting goes on after a moment.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Peer)>> + Send;
}

/// A socket file that only its owner and root can open.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    owner: u32,
}

impl UnixSocket {
    /// Listens at `path` (mode 0600), in place of a socket that nobody listens at any more. The path never shows a
    /// socket that others could open.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when somebody listens there, or what is there is no socket.
    pub async fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        if let Ok(found) = fs::symlink_metadata(&path) {
            let taken =
                |what: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{} {what}", path.display())));
            if !found.file_type().is_socket() {
                return taken("exists and is no socket");
            }
            if UnixStream::connect(&path).await.is_ok() {
                return taken("has somebody listening already");
            }
        }
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&beside)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
        fs::rename(&beside, &path)?;
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::symlink_metadata(&path)?);
        Ok(Self { listener, path, owner })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Listener for UnixSocket {
    type Io = UnixStream;

    /// Root, and the user that this process runs as, are the machine's administrators.
    async fn accept(&mut self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        let identity = if uid == 0 { "user:root".to_owned() } else { format!("user:uid-{uid}") };
        let trusted = uid == 0 || uid == self.owner;
        Ok((stream, if trusted { Peer::trusted(identity) } else { Peer::new(identity) }))
    }
}

/// A port of this machine alone, where everybody is one given peer: what `kubectl proxy` is for.
#[derive(Debug)]
pub struct Loopback {
    listener: TcpListener,
    peer: Peer,
}

impl Loopback {
    /// Listens at a port of 127.0.0.1; 0 for any that is free. Whoever can open a connection on this machine acts as
    /// `peer`.
    pub async fn bind(port: u16, peer: Peer) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(("127.0.0.1", port)).await?, peer })
    }

    /// Which port it is, when any was asked for.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }
}

impl Listener for Loopback {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Peer)> {
        let (stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, self.peer.clone()))
    }
}

/// After an accept failed (no descriptors left, most of the time), so that the loop does not spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Requests at once on one HTTP/2 connection.
const STREAMS_PER_CONNECTION: u32 = 256;
/// Bytes of bodies that wait on an HTTP/2 connection until somebody reads them, and of one body: whoever sends more waits.
const WINDOW: u32 = 128 << 10;
const STREAM_WINDOW: u32 = 64 << 10;
/// Bytes of one answer that wait to be sent.
const SEND_BUFFER: usize = 64 << 10;
/// What HTTP/2 begins with: until so much has come it is not known what is spoken, and no other clock runs.
const PREFACE: usize = 24;
/// For who has not shown who it is, where others get more: joining is one request of some hundred bytes in its head.
const NOBODYS_TIME: Duration = Duration::from_secs(10);
const NOBODYS_HEAD_BYTES: usize = 8 << 10;
const NOBODYS_STREAMS: u32 = 8;

impl Server {
    /// Serves everybody who comes, until [`Server::stop`] is raised and whoever is being answered has been, at most
    /// [`drain`](super::Limits::drain) later. Several listeners may be served at once. Dropping the future cuts
    /// everybody off.
    pub async fn serve<L: Listener>(&self, mut listener: L) {
        let (shared, router) = (&self.shared, self.router());
        let room = Arc::new(Semaphore::new(shared.limits.connections));
        let mut connections = JoinSet::new();
        loop {
            let accept = async {
                let permit = room.clone().acquire_owned().await.expect("it is never closed");
                (permit, listener.accept().await)
            };
            tokio::select! {
                biased;
                () = shared.stop.raised() => break,
                // Reaps those that have ended, so that the set does not grow.
                Some(_) = connections.join_next() => {}
                (permit, accepted) = accept => match accepted {
                    Ok((io, peer)) => {
                        let entered = shared.connections.enter(&peer.account(), shared.limits.connections_per_peer);
                        let Some(ticket) = entered else {
                            shared.metrics.refused("connections");
                            tracing::debug!(peer = &*peer.identity, "has too many connections open: this one is closed");
                            continue;
                        };
                        connections.spawn(self.connection(&router, io, peer, (ticket, permit)));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        shared.seams.sleep(ACCEPT_AGAIN).await;
                    }
                },
            }
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            () = drained => {}
            () = shared.seams.sleep(shared.limits.drain) => tracing::warn!("connections are cut off: they did not end in time"),
        }
    }

    fn connection<Io>(&self, router: &Router, io: Io, peer: Peer, room: Room) -> BoxFuture<'static, ()>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = self.shared.clone();
        let identity = peer.identity.clone();
        let limits = &shared.limits;
        let (head_time, head_bytes, streams) = match peer.nobody {
            true => (limits.head_time.min(NOBODYS_TIME), limits.head_bytes.min(NOBODYS_HEAD_BYTES), NOBODYS_STREAMS),
            false => (limits.head_time, limits.head_bytes, STREAMS_PER_CONNECTION),
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(peer)));
        let io = TokioIo::new(Impatient::new(io, &shared, head_time, room));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(head_time).max_buf_size(head_bytes);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(streams)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(head_time / 2);
        Box::pin(async move {
            let connection = builder.serve_connection_with_upgrades(io, service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = shared.stop.raised() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                if let Some(reason) = fault(&*error) {
                    shared.metrics.refused(reason);
                }
                tracing::debug!(peer = &*identity, %error, "a connection broke off");
            }
        })
    }
}

/// What a connection was ended for by the peer's fault. `None`: it broke off, or whoever ended it has counted it.
fn fault(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let error = error.downcast_ref::<hyper::Error>()?;
    if error.is_parse_too_large() {
        return Some("large_head");
    } else if error.is_parse() {
        return Some("no_http");
    } else if error.is_timeout() {
        return Some("slow_head");
    } else if error.is_user() {
        return None;
    }
    match error.source()?.downcast_ref::<io::Error>() {
        // The kernel has given it up: nothing was acknowledged for too long, or no room made for what was sent.
        Some(broken) => {
            (broken.kind() == io::ErrorKind::TimedOut && broken.raw_os_error().is_some()).then_some("slow_reader")
        }
        // What is left has its source in HTTP/2, whose own error says no more to us.
        None => Some("http2"),
    }
}

/// What a connection takes of what there is for all, given back when it is gone: whatever it may have become since.
type Room = (Ticket, OwnedSemaphorePermit);

/// A connection that ends when the other side does not begin to speak, or takes nothing for too long.
struct Impatient<Io> {
    io: Io,
    seams: Seams,
    patience: Duration,
    metrics: Metrics,
    /// Until so many bytes have come, this long.
    silence: Option<(usize, BoxFuture<'static, ()>)>,
    /// Running while something waits to be taken.
    waiting: Option<BoxFuture<'static, ()>>,
    _room: Room,
}

impl<Io> Impatient<Io> {
    fn new(io: Io, shared: &Shared, head_time: Duration, room: Room) -> Self {
        let (seams, metrics, patience) = (shared.seams.clone(), shared.metrics.clone(), shared.limits.write_time);
        let silence = Some((PREFACE, seams.sleep(head_time)));
        Self { io, seams, patience, metrics, silence, waiting: None, _room: room }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let (seams, patience) = (&self.seams, self.patience);
        ready!(self.waiting.get_or_insert_with(|| seams.sleep(patience)).as_mut().poll(cx));
        self.metrics.refused("slow_reader");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing of what was sent was taken")))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Impatient<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        let Some((missing, time)) = &mut self.silence else { return read };
        match read {
            Poll::Ready(read) => {
                *missing = missing.saturating_sub(buffer.filled().len() - before);
                if *missing == 0 {
                    self.silence = None;
                }
                Poll::Ready(read)
            }
            Poll::Pending => {
                ready!(time.as_mut().poll(cx));
                self.metrics.refused("slow_head");
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was asked for")))
            }
        }
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Impatient<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.judge(cx, shut)
    }
}

impl<Io> fmt::Debug for Impatient<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Impatient")
    }
}
