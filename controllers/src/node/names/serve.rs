//! The sockets of the name server. A socket is bound to one address, so that an answer leaves from where it was asked,
//! and bound freely (IP_FREEBIND): the address may come, with the first task's veth, and go, with the last one's.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Transport, Verdict, answer, failure};
use super::forward::{Forwarder, framed};
use super::table::Table;

/// Answers while it lives. Everything runs on the caller's `LocalSet`.
pub(crate) struct Server {
    shared: Rc<Shared>,
    open: BTreeMap<SocketAddr, Open>,
}

/// The two sockets of an address, to be passed to another process.
pub(crate) struct Socket {
    pub address: SocketAddr,
    pub udp: OwnedFd,
    pub tcp: OwnedFd,
}

struct Open {
    udp: Rc<UdpSocket>,
    tcp: Rc<TcpListener>,
    stop: CancellationToken,
    loops: [JoinHandle<()>; 2],
}

struct Shared {
    table: RefCell<Rc<Table>>,
    /// The host's.
    resolvers: RefCell<Rc<[SocketAddr]>>,
    forwarder: Forwarder,
    turn: Cell<usize>,
    forwards: Rc<Quota>,
    connections: Rc<Quota>,
    /// Questions passed on and connections, which outlive the socket that they came by.
    unfinished: TaskTracker,
}

/// All at once, and of them for one address: a task that asks for what nobody answers must not use up the others' share.
const FORWARDS: (usize, usize) = (512, 64);
const CONNECTIONS: (usize, usize) = (128, 16);
/// A connection on which nothing happens for so long is closed, also half-way through a message.
const IDLE: Duration = Duration::from_secs(10);
/// A question is never larger. (Answers that are passed on may be.)
const QUESTION_BYTES_MAX: usize = 4096;
/// What may wait while another process takes over: some 1,000 questions. Takes memory only while they wait.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

impl Server {
    pub fn new() -> Self {
        Server {
            shared: Rc::new(Shared {
                table: RefCell::default(),
                resolvers: RefCell::new(Rc::new([])),
                forwarder: Forwarder::new(),
                turn: Cell::new(0),
                forwards: Quota::new(FORWARDS),
                connections: Quota::new(CONNECTIONS),
                unfinished: TaskTracker::new(),
            }),
            open: BTreeMap::new(),
        }
    }

    /// Answers from `table` from now on, at its addresses. Returns the addresses that could not be bound, with the
    /// reason; calling again tries them again.
    pub fn apply(&mut self, table: Rc<Table>) -> BTreeMap<SocketAddr, io::Error> {
        self.open.retain(|address, _| table.listen.contains(address));
        let mut faults = BTreeMap::new();
        for &address in &table.listen {
            if !self.open.contains_key(&address)
                && let Err(fault) = bind(address).and_then(|socket| self.open(socket))
            {
                faults.insert(address, fault);
            }
        }
        *self.shared.table.borrow_mut() = table;
        faults
    }

    /// The host's resolvers, asked for names outside by whoever has no own ones.
    pub fn set_resolvers(&self, resolvers: &[SocketAddr]) {
        *self.shared.resolvers.borrow_mut() = resolvers.into();
    }

    /// Goes on with sockets that another process bound.
    pub fn adopt(&mut self, sockets: Vec<Socket>) -> io::Result<()> {
        sockets.into_iter().try_for_each(|socket| self.open(socket))
    }

    /// Stops taking questions, each socket between two of them, and returns copies of the sockets. What is waiting in
    /// them is answered by whoever goes on; [`Server::finish`] waits for what was taken.
    pub async fn pause(&mut self) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        for (&address, open) in &mut self.open {
            open.stop.cancel();
            for running in &mut open.loops {
                let _ = running.await;
            }
            let (udp, tcp) = (rustix::io::dup(&open.udp)?, rustix::io::dup(&open.tcp)?);
            sockets.push(Socket { address, udp, tcp });
        }
        self.open.clear();
        Ok(sockets)
    }

    /// Returns once nothing is unfinished.
    pub async fn finish(&self) {
        self.shared.unfinished.close();
        self.shared.unfinished.wait().await;
    }

    fn open(&mut self, socket: Socket) -> io::Result<()> {
        let Socket { address, udp, tcp } = socket;
        let (udp, tcp) = (std::net::UdpSocket::from(udp), std::net::TcpListener::from(tcp));
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (udp, tcp) = (Rc::new(UdpSocket::from_std(udp)?), Rc::new(TcpListener::from_std(tcp)?));
        let stop = CancellationToken::new();
        let loops = [
            tokio::task::spawn_local(serve_udp(self.shared.clone(), udp.clone(), stop.clone())),
            tokio::task::spawn_local(serve_tcp(self.shared.clone(), tcp.clone(), stop.clone())),
        ];
        self.open.insert(address, Open { udp, tcp, stop, loops });
        Ok(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = |kind| -> io::Result<OwnedFd> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        // For IPv6 too: the kernel looks at this one for both.
        sockopt::set_ip_freebind(&socket, true)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if kind == SocketType::STREAM {
            // Connections of a predecessor that was killed are no reason to wait.
            sockopt::set_socket_reuseaddr(&socket, true)?;
        } else {
            let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES);
        }
        rustix::net::bind(&socket, &address)?;
        Ok(socket)
    };
    let (udp, tcp) = (socket(SocketType::DGRAM)?, socket(SocketType::STREAM)?);
    rustix::net::listen(&tcp, 128)?;
    Ok(Socket { address, udp, tcp })
}

async fn serve_udp(shared: Rc<Shared>, socket: Rc<UdpSocket>, stop: CancellationToken) {
    let mut packet = vec![0; QUESTION_BYTES_MAX];
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut packet) => received,
        };
        let (bytes, from) = match received {
            Ok(received) => received,
            Err(error) => {
                recover(&error, &stop).await;
                continue;
            }
        };
        match shared.take(from.ip(), &packet[..bytes], Transport::Udp) {
            Taken::Nothing => {}
            Taken::Reply(reply) => send(&socket, &reply, from).await,
            Taken::Forward(resolvers, slot) => {
                let (shared, socket, packet) = (shared.clone(), socket.clone(), packet[..bytes].to_vec());
                let tracker = shared.unfinished.clone();
                tracker.spawn_local(async move {
                    if let Some(reply) = shared.forward(&packet, Transport::Udp, &resolvers, slot).await {
                        send(&socket, &reply, from).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    // Who asked may be gone, with its link; it is not ours to care.
    let _ = socket.send_to(reply, to).await;
}

async fn serve_tcp(shared: Rc<Shared>, listener: Rc<TcpListener>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                // Without a slot it is closed at once, which is told sooner than by a wait.
                let Some(slot) = shared.connections.slot(from.ip()) else { continue };
                let connection = shared.clone();
                shared.unfinished.spawn_local(async move {
                    let _slot = slot;
                    // Whatever ends a connection is the other side's business.
                    let _ = connection.serve_connection(stream, from.ip()).await;
                });
            }
            Err(error) => recover(&error, &stop).await,
        }
    }
}

/// Errors here are the machine's (no descriptors, no memory): it gets a moment.
async fn recover(error: &io::Error, stop: &CancellationToken) {
    tracing::warn!(%error, "name server socket");
    let _ = timeout(Duration::from_millis(100), stop.cancelled()).await;
}

enum Taken {
    Nothing,
    Reply(Vec<u8>),
    Forward(Vec<SocketAddr>, Slot),
}

impl Shared {
    fn take(&self, from: IpAddr, packet: &[u8], transport: Transport) -> Taken {
        let table = self.table.borrow();
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        match answer(&table, from, packet, transport, turn) {
            Verdict::Ignore => Taken::Nothing,
            Verdict::Reply(reply) => Taken::Reply(reply),
            Verdict::Forward(own) => {
                let resolvers: Vec<SocketAddr> = match own {
                    [] => self.resolvers.borrow().to_vec(),
                    own => own.iter().map(|&resolver| (resolver, 53).into()).collect(),
                };
                // Where somebody made the host ask us, no answer is better than a circle.
                let others = resolvers.into_iter().filter(|resolver| !table.listen.contains(resolver)).collect();
                match self.forwards.slot(from) {
                    Some(slot) => Taken::Forward(others, slot),
                    None => failure(packet, transport).map_or(Taken::Nothing, Taken::Reply),
                }
            }
        }
    }

    async fn forward(
        &self,
        packet: &[u8],
        transport: Transport,
        resolvers: &[SocketAddr],
        _slot: Slot,
    ) -> Option<Vec<u8>> {
        match self.forwarder.ask(packet, transport, resolvers).await {
            Some(reply) => Some(reply),
            None => failure(packet, transport),
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
            if length > QUESTION_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut packet = vec![0; length];
            timeout(IDLE, stream.read_exact(&mut packet)).await??;
            let reply = match self.take(from, &packet, Transport::Tcp) {
                Taken::Nothing => return Ok(()),
                Taken::Reply(reply) => Some(reply),
                Taken::Forward(resolvers, slot) => self.forward(&packet, Transport::Tcp, &resolvers, slot).await,
            };
            let Some(reply) = reply else { return Ok(()) };
            timeout(IDLE, stream.write_all(&framed(&reply))).await??;
        }
    }
}

/// A number of things at once, and a smaller one for each address.
struct Quota {
    all_max: usize,
    each_max: usize,
    taken: RefCell<BTreeMap<IpAddr, usize>>,
}

/// Given back when dropped.
struct Slot {
    quota: Rc<Quota>,
    who: IpAddr,
}

impl Quota {
    fn new((all_max, each_max): (usize, usize)) -> Rc<Self> {
        Rc::new(Quota { all_max, each_max, taken: RefCell::default() })
    }

    fn slot(self: &Rc<Self>, who: IpAddr) -> Option<Slot> {
        let mut taken = self.taken.borrow_mut();
        // One entry each and none at zero: the sum is short.
        if taken.values().sum::<usize>() >= self.all_max || taken.get(&who).is_some_and(|&n| n >= self.each_max) {
            return None;
        }
        *taken.entry(who).or_default() += 1;
        Some(Slot { quota: self.clone(), who })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.borrow_mut();
        if let Some(n) = taken.get_mut(&self.who) {
            *n -= 1;
            if *n == 0 {
                taken.remove(&self.who);
            }
        }
    }
}
