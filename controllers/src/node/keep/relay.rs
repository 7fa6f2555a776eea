//! Listeners that pass on to another address, byte for byte: for `[::1]`, which the kernel does not translate to
//! addresses outside of the loopback interface as it does for 127.0.0.1.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};
use schemas::kinds::service::Protocol;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::table::Listener;

/// Relays while it lives. Everything runs on the caller's `LocalSet`.
#[derive(Default)]
pub(super) struct Relay {
    open: BTreeMap<Key, Open>,
    connections: TaskTracker,
    taken: Rc<Cell<usize>>,
}

pub(super) type Key = (Protocol, SocketAddr);

struct Open {
    socket: OwnedFd,
    target: Rc<Cell<SocketAddr>>,
    /// Of UDP.
    sessions: Sessions,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

type Sessions = Rc<RefCell<HashMap<SocketAddr, Session>>>;

/// All listeners together; 16 KiB each. Who comes then is refused.
const CONNECTIONS_MAX: usize = 1024;
const BUFFER_BYTES: usize = 8 << 10;
const CONNECT: Duration = Duration::from_secs(5);
/// Of one listener. Beyond it the one that was silent for longest goes.
const SESSIONS_MAX: usize = 256;
/// How long a silent UDP client keeps its port towards the target: conntrack's for a stream that was answered.
const SESSION_IDLE: Duration = Duration::from_secs(120);
const DATAGRAM_BYTES_MAX: usize = 65_535;

impl Relay {
    /// Makes `listeners` the listeners. Returns those that could not be opened; calling again tries them again.
    ///
    /// Connections of one that is gone go on; its UDP sessions end.
    pub async fn apply(&mut self, listeners: &[Listener]) -> BTreeMap<String, String> {
        let wanted: BTreeMap<Key, SocketAddr> =
            listeners.iter().map(|listener| ((listener.protocol, listener.listen), listener.target)).collect();
        for (_, open) in self.open.extract_if(.., |key, _| !wanted.contains_key(key)).collect::<Vec<_>>() {
            let sessions = open.sessions.clone();
            open.close().await;
            sessions.borrow_mut().clear();
        }
        let mut faults = BTreeMap::new();
        for (key, target) in wanted {
            match self.open.get(&key) {
                Some(open) => open.target.set(target),
                None => {
                    if let Err(fault) = bind(key).and_then(|socket| self.open(key, target, socket)) {
                        faults.insert(format!("{} {}", key.0.as_str(), key.1), fault.to_string());
                    }
                }
            }
        }
        faults
    }

    /// Goes on with a socket that another process bound. Where to relay is said by the next [`Relay::apply`]; until then
    /// nothing is taken from it.
    pub fn adopt(&mut self, sockets: Vec<(Key, OwnedFd)>, listeners: &[Listener]) -> io::Result<()> {
        for (key, socket) in sockets {
            if let Some(listener) = listeners.iter().rfind(|listener| (listener.protocol, listener.listen) == key) {
                self.open(key, listener.target, socket)?;
            }
        }
        Ok(())
    }

    /// Stops taking connections and datagrams, and returns the sockets. Connections and sessions that exist go on.
    pub async fn pause(&mut self) -> Vec<(Key, OwnedFd)> {
        let mut sockets = Vec::new();
        for (key, open) in std::mem::take(&mut self.open) {
            sockets.push((key, open.close().await));
        }
        sockets
    }

    /// Returns once no connection and no session is left.
    pub async fn finish(&self) {
        self.connections.close();
        self.connections.wait().await;
    }

    fn open(&mut self, key: Key, target: SocketAddr, socket: OwnedFd) -> io::Result<()> {
        let (copy, target, stop) = (socket.try_clone()?, Rc::new(Cell::new(target)), CancellationToken::new());
        let sessions = Sessions::default();
        let task = match key.0 {
            Protocol::Tcp => {
                let listener = TcpListener::from_std(copy.into())?;
                let relay =
                    Tcp { target: target.clone(), connections: self.connections.clone(), taken: self.taken.clone() };
                tokio::task::spawn_local(relay.serve(listener, stop.clone()))
            }
            Protocol::Udp => {
                let socket = Rc::new(UdpSocket::from_std(copy.into())?);
                let relay = Udp {
                    target: target.clone(),
                    socket,
                    sessions: sessions.clone(),
                    answers: self.connections.clone(),
                };
                tokio::task::spawn_local(relay.serve(stop.clone()))
            }
            Protocol::Sctp => return Err(unsupported()),
        };
        self.open.insert(key, Open { socket, target, sessions, stop, task });
        Ok(())
    }
}

impl Open {
    /// Nothing is taken any more when this returns.
    async fn close(self) -> OwnedFd {
        self.stop.cancel();
        let _ = self.task.await;
        self.socket
    }
}

fn bind((protocol, address): Key) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
        Protocol::Sctp => return Err(unsupported()),
    };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of a predecessor that was killed are no reason to wait.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, 128)?;
    }
    Ok(socket)
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "sctp is not relayed")
}

/// Errors here are the machine's (no descriptors, no memory): it gets a moment.
async fn recover(error: &io::Error, stop: &CancellationToken) {
    tracing::warn!(%error, "relay socket");
    let _ = timeout(Duration::from_millis(100), stop.cancelled()).await;
}

struct Tcp {
    target: Rc<Cell<SocketAddr>>,
    connections: TaskTracker,
    taken: Rc<Cell<usize>>,
}

/// One of `CONNECTIONS_MAX`, given back when dropped.
struct Slot(Rc<Cell<usize>>);

impl Slot {
    fn take(taken: &Rc<Cell<usize>>) -> Option<Self> {
        if taken.get() >= CONNECTIONS_MAX {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Slot(taken.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Tcp {
    async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((client, _)) => match Slot::take(&self.taken) {
                    Some(slot) => {
                        let target = self.target.get();
                        self.connections.spawn_local(async move {
                            relay(client, target).await;
                            drop(slot);
                        });
                    }
                    None => refuse(&client),
                },
                Err(error) => recover(&error, &stop).await,
            }
        }
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr) {
    let Ok(Ok(mut server)) = timeout(CONNECT, TcpStream::connect(target)).await else {
        return refuse(&client);
    };
    for stream in [&client, &server] {
        // Neither matters enough to give up for.
        let _ = stream.set_nodelay(true);
        let _ = sockopt::set_socket_keepalive(stream.as_fd(), true);
    }
    let done = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES).await;
    if done.is_err() {
        refuse(&client);
        refuse(&server);
    }
}

/// When it is closed the other side meets a reset, which cannot be taken for a regular end.
fn refuse(stream: &TcpStream) {
    let _ = sockopt::set_socket_linger(stream.as_fd(), Some(Duration::ZERO));
}

struct Udp {
    target: Rc<Cell<SocketAddr>>,
    socket: Rc<UdpSocket>,
    sessions: Sessions,
    answers: TaskTracker,
}

/// One client's port towards the target.
struct Session {
    upstream: Rc<UdpSocket>,
    target: SocketAddr,
    /// Counts packets from the client; the task that waits for answers compares.
    used: Rc<Cell<u64>>,
    /// Which packet of the listener came last from here: the smallest was silent for longest.
    turn: u64,
    _stop: tokio_util::sync::DropGuard,
}

impl Udp {
    async fn serve(self, stop: CancellationToken) {
        let mut packet = vec![0; DATAGRAM_BYTES_MAX];
        let mut turn = 0;
        loop {
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                received = self.socket.recv_from(&mut packet) => received,
            };
            let (bytes, client) = match received {
                Ok(received) => received,
                Err(error) => {
                    recover(&error, &stop).await;
                    continue;
                }
            };
            turn += 1;
            match self.session(client, turn).await {
                // What cannot be sent now is lost, as datagrams are. Past tokio, which would first have to learn that a
                // new socket is ready.
                Ok(upstream) => {
                    let _ = rustix::net::send(&upstream, &packet[..bytes], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                }
                Err(error) => recover(&error, &stop).await,
            }
        }
    }

    async fn session(&self, client: SocketAddr, turn: u64) -> io::Result<Rc<UdpSocket>> {
        let target = self.target.get();
        if let Some(session) = self.sessions.borrow_mut().get_mut(&client)
            && session.target == target
        {
            session.used.set(turn);
            session.turn = turn;
            return Ok(session.upstream.clone());
        }
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let upstream = UdpSocket::bind(any).await?;
        upstream.connect(target).await?;
        let (upstream, used, stop) = (Rc::new(upstream), Rc::new(Cell::new(turn)), CancellationToken::new());
        let answers = Answers {
            client,
            socket: self.socket.clone(),
            upstream: upstream.clone(),
            used: used.clone(),
            sessions: self.sessions.clone(),
        };
        self.answers.spawn_local(answers.relay(stop.clone()));
        let mut sessions = self.sessions.borrow_mut();
        if sessions.len() >= SESSIONS_MAX
            && let Some(&oldest) = sessions.iter().min_by_key(|(_, session)| session.turn).map(|(client, _)| client)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(client, Session { upstream: upstream.clone(), target, used, turn, _stop: stop.drop_guard() });
        Ok(upstream)
    }
}

/// The way back of one session; ends it when it is silent in both directions.
struct Answers {
    client: SocketAddr,
    socket: Rc<UdpSocket>,
    upstream: Rc<UdpSocket>,
    used: Rc<Cell<u64>>,
    sessions: Sessions,
}

impl Answers {
    async fn relay(self, stop: CancellationToken) {
        let mut seen = self.used.get();
        loop {
            let ready = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ready = timeout(SESSION_IDLE, self.upstream.readable()) => ready,
            };
            if ready.is_err() {
                if self.used.get() == seen {
                    break;
                }
                seen = self.used.get();
                continue;
            }
            // The buffer lives only while there is something to move: sessions are many and mostly silent.
            let mut packet = vec![0; DATAGRAM_BYTES_MAX];
            match self.upstream.try_recv(&mut packet) {
                Ok(bytes) => drop(self.socket.send_to(&packet[..bytes], self.client).await),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // Nobody is at the target now. The next packet from the client may find somebody.
                Err(_) => {}
            }
        }
        let mut sessions = self.sessions.borrow_mut();
        if sessions.get(&self.client).is_some_and(|session| Rc::ptr_eq(&session.upstream, &self.upstream)) {
            sessions.remove(&self.client);
        }
    }
}
