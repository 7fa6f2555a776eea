//! Connections: where they come from, who is at the other end, and how they end.

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
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::seams::Seams;

use super::{Peer, Server};

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
                        let Some(ticket) = shared.connections.enter(&peer.identity, shared.limits.connections_per_peer)
                        else {
                            tracing::warn!(peer = &*peer.identity, "has too many connections open: this one is closed");
                            continue;
                        };
                        let connection = self.connection(&router, io, peer);
                        connections.spawn(async move {
                            connection.await;
                            drop((ticket, permit));
                        });
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

    fn connection<Io>(&self, router: &Router, io: Io, peer: Peer) -> BoxFuture<'static, ()>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = self.shared.clone();
        let identity = peer.identity.clone();
        let service = TowerToHyperService::new(router.clone().layer(Extension(peer)));
        let limits = &shared.limits;
        let io = TokioIo::new(Impatient::new(io, shared.seams.clone(), limits.write_time));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head_time).max_buf_size(limits.head_bytes);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .keep_alive_interval(limits.head_time / 2);
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
                tracing::debug!(peer = &*identity, %error, "a connection broke off");
            }
        })
    }
}

/// A connection that ends when the other side takes nothing for too long.
struct Impatient<Io> {
    io: Io,
    seams: Seams,
    patience: Duration,
    /// Running while something waits to be taken.
    waiting: Option<BoxFuture<'static, ()>>,
}

impl<Io> Impatient<Io> {
    fn new(io: Io, seams: Seams, patience: Duration) -> Self {
        Self { io, seams, patience, waiting: None }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let (seams, patience) = (&self.seams, self.patience);
        ready!(self.waiting.get_or_insert_with(|| seams.sleep(patience)).as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing of what was sent was taken")))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Impatient<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
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
