//! One thread moves all packets. It is apart from the rest of the companion process because it may be busy all the time,
//! and a name server must answer meanwhile.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::engine::{BYTES_MAX, Engine, Out, TICK};
use super::{Sessions, Table};
use crate::node::sys::{readiness, tun};

/// What one process passes on to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::node) enum Part {
    /// The TUN link of this name.
    Device(String),
    /// The UDP socket at this port.
    Socket(u16),
    /// Where to pass on what comes for sessions of the one before.
    Before,
}

/// The handle to the thread, which ends when this is dropped.
pub(in crate::node) struct Tunnel {
    orders: mpsc::UnboundedSender<Order>,
    told: watch::Receiver<Told>,
    thread: JoinHandle<()>,
}

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::node) struct Told {
    pub sessions: Sessions,
    /// What of the table cannot be now, in words. It is tried again.
    pub fault: Option<String>,
}

enum Order {
    Apply(Option<Box<Table>>, oneshot::Sender<()>),
    Adopt(Part, OwnedFd),
    Pause(oneshot::Sender<io::Result<Vec<(Part, OwnedFd)>>>),
    Resume,
    Leave,
}

/// Packets taken in a row from one side before the other has its turn.
const BATCH: usize = 64;
/// Room for what comes while the thread is about something else.
const SOCKET_BYTES: usize = 4 << 20;
/// After this long no session of the process before is good for anything (WireGuard's "reject after time").
const SESSION: std::time::Duration = std::time::Duration::from_secs(180);
/// What is under way may take this long: to the process before when all speak with this one, or the link that is made.
const LAG: std::time::Duration = std::time::Duration::from_secs(2);

impl Tunnel {
    /// # Errors
    /// The kernel gives no more descriptors or threads.
    pub fn start() -> io::Result<Self> {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (report, told) = watch::channel(Told::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut seed = [0; 4];
        let random = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&random, &mut seed).map_err(|_| io::Error::other("no random numbers"))?;
        let work = Work {
            engine: Engine::new(u32::from_ne_bytes(seed)),
            table: None,
            fault: None,
            device: None,
            socket: None,
            before: None,
            inbox,
            report,
        };
        let thread = std::thread::Builder::new()
            .name("wireguard".into())
            .stack_size(512 << 10)
            .spawn(move || runtime.block_on(work.run()))?;
        Ok(Tunnel { orders, told, thread })
    }

    /// Makes it what `table` says. What of it cannot be now is told.
    pub async fn apply(&self, table: Option<&Table>) {
        let (answer, done) = oneshot::channel();
        let _ = self.orders.send(Order::Apply(table.cloned().map(Box::new), answer));
        let _ = done.await;
    }

    /// Goes on with what the process before had.
    pub fn adopt(&self, parts: Vec<(Part, OwnedFd)>) {
        for (part, fd) in parts {
            let _ = self.orders.send(Order::Adopt(part, fd));
        }
    }

    /// Stops, and says what to pass on.
    pub async fn pause(&self) -> io::Result<Vec<(Part, OwnedFd)>> {
        let (answer, done) = oneshot::channel();
        let _ = self.orders.send(Order::Pause(answer));
        done.await.unwrap_or_else(|_| Ok(Vec::new()))
    }

    /// Nobody took over.
    pub fn resume(&self) {
        let _ = self.orders.send(Order::Resume);
    }

    /// Somebody took over: returns when that one needs nothing more of us.
    pub async fn finish(self) {
        let _ = self.orders.send(Order::Leave);
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }

    /// How it goes, as it changes from now on.
    pub fn told(&self) -> watch::Receiver<Told> {
        let mut told = self.told.clone();
        told.mark_unchanged();
        told
    }
}

struct Work {
    engine: Engine,
    table: Option<Box<Table>>,
    /// And since when.
    fault: Option<(String, Instant)>,
    device: Option<Device>,
    socket: Option<Socket>,
    before: Option<Before>,
    inbox: mpsc::UnboundedReceiver<Order>,
    report: watch::Sender<Told>,
}

struct Device {
    name: String,
    packets: AsyncFd<OwnedFd>,
}

struct Socket {
    port: u16,
    datagrams: UdpSocket,
    /// Of both families: IPv4 is spoken of by mapped addresses.
    is_dual: bool,
}

/// The process before, which can read what is sent to its sessions.
struct Before {
    way: OwnedFd,
    since: Instant,
    whole: Option<Instant>,
}

/// Where the engine writes to. What cannot be taken now is lost, as on any wire.
struct Ends<'a> {
    device: Option<&'a Device>,
    socket: Option<&'a Socket>,
}

impl Out for Ends<'_> {
    fn send(&mut self, to: SocketAddr, datagram: &[u8]) {
        if let Some(socket) = self.socket {
            let to = if socket.is_dual { SocketAddr::new(mapped(to.ip()), to.port()) } else { to };
            let _ = socket.datagrams.try_send_to(datagram, to);
        }
    }

    fn deliver(&mut self, packet: &[u8]) {
        if let Some(device) = self.device {
            let _ = rustix::io::write(device.packets.get_ref(), packet);
        }
    }
}

impl Socket {
    fn new(port: u16, datagrams: UdpSocket) -> io::Result<Socket> {
        let is_dual = datagrams.local_addr()?.is_ipv6();
        Ok(Socket { port, datagrams, is_dual })
    }
}

fn mapped(address: std::net::IpAddr) -> std::net::IpAddr {
    match address {
        std::net::IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        address => address,
    }
}

impl Work {
    async fn run(mut self) {
        let mut room = vec![0; BYTES_MAX].into_boxed_slice();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // What was adopted waits for the table that says whom it is for.
            let is_wanted = self.table.is_some();
            tokio::select! {
                order = self.inbox.recv() => match order {
                    Some(Order::Apply(table, answer)) => {
                        self.table = table;
                        self.apply();
                        self.report();
                        let _ = answer.send(());
                    }
                    Some(Order::Adopt(part, fd)) => self.adopt(part, fd),
                    Some(Order::Pause(answer)) => match self.parts() {
                        Ok((parts, rest)) => {
                            let _ = answer.send(Ok(parts));
                            if self.wait(rest, &mut room).await {
                                return;
                            }
                        }
                        Err(error) => drop(answer.send(Err(error))),
                    },
                    Some(Order::Resume) => {}
                    Some(Order::Leave) | None => return,
                },
                _ = readable_packets(self.device.as_ref()), if is_wanted => self.outgoing(&mut room),
                _ = readable_datagrams(self.socket.as_ref()), if is_wanted => self.incoming(&mut room),
                _ = tick.tick(), if is_wanted => self.tick(),
            }
        }
    }

    fn report(&mut self) {
        let now = Told { sessions: self.engine.sessions(), fault: self.told_fault() };
        self.report.send_if_modified(|told| {
            let changed = *told != now;
            *told = now;
            changed
        });
    }

    /// Who makes the link has a moment to do so.
    fn told_fault(&self) -> Option<String> {
        let (fault, since) = self.fault.as_ref()?;
        (since.elapsed() > LAG).then(|| fault.clone())
    }

    fn apply(&mut self) {
        let fault = match self.table.clone() {
            Some(table) => self.open(&table).err(),
            None => {
                (self.device, self.socket, self.before) = (None, None, None);
                let mut ends = Ends { device: None, socket: None };
                self.engine.apply(&Table::default(), &mut ends);
                None
            }
        };
        let since = self.fault.take().map_or_else(Instant::now, |(_, since)| since);
        self.fault = fault.map(|fault| (fault, since));
    }

    fn open(&mut self, table: &Table) -> Result<(), String> {
        if self.device.as_ref().is_none_or(|device| device.name != table.device) {
            self.device = None;
            let packets = tun::attach(&table.device).and_then(readiness::watched);
            let packets = packets.map_err(|error| format!("the link {}: {error}", table.device))?;
            self.device = Some(Device { name: table.device.clone(), packets });
        }
        if self.socket.as_ref().is_none_or(|socket| socket.port != table.port) {
            self.socket = None;
            let opened = listen(table.port).and_then(|datagrams| Socket::new(table.port, datagrams));
            self.socket = Some(opened.map_err(|error| format!("UDP port {}: {error}", table.port))?);
        }
        let mut ends = Ends { device: self.device.as_ref(), socket: self.socket.as_ref() };
        self.engine.apply(table, &mut ends);
        Ok(())
    }

    fn adopt(&mut self, part: Part, fd: OwnedFd) {
        let adopted = match part {
            Part::Device(name) => readiness::watched(fd).map(|packets| self.device = Some(Device { name, packets })),
            Part::Socket(port) => UdpSocket::from_std(std::net::UdpSocket::from(fd))
                .and_then(|datagrams| Socket::new(port, datagrams))
                .map(|socket| self.socket = Some(socket)),
            Part::Before => {
                self.before = Some(Before { way: fd, since: Instant::now(), whole: None });
                Ok(())
            }
        };
        if let Err(error) = adopted {
            tracing::warn!(%error, "a part of the tunnel is opened anew");
        }
    }

    /// For the next process: what we have, and a way to send us what it cannot read. And our end of that.
    fn parts(&self) -> io::Result<(Vec<(Part, OwnedFd)>, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut parts = Vec::new();
        if let Some(device) = &self.device {
            parts.push((Part::Device(device.name.clone()), device.packets.get_ref().try_clone()?));
        }
        if let Some(socket) = &self.socket {
            parts.push((Part::Socket(socket.port), socket.datagrams.as_fd().try_clone_to_owned()?));
            parts.push((Part::Before, theirs));
        }
        Ok((parts, ours))
    }

    /// Reads nothing more but what the next process passes on. True: it has what it needs. False: there is none.
    async fn wait(&mut self, passed_on: OwnedFd, room: &mut [u8]) -> bool {
        let Ok(passed_on) = readiness::watched(passed_on) else { return false };
        match self.inbox.recv().await {
            Some(Order::Leave) => {}
            None => return true,
            Some(_) => return false,
        }
        let _ = timeout(SESSION, async {
            loop {
                let Ok(mut ready) = passed_on.readable().await else { return };
                match rustix::io::read(passed_on.get_ref(), &mut *room) {
                    Ok(0) => return,
                    Ok(bytes) => {
                        let nowhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
                        let mut ends = Ends { device: self.device.as_ref(), socket: None };
                        self.engine.incoming(&room[..bytes], nowhere, &mut ends);
                    }
                    Err(Errno::AGAIN) => ready.clear_ready(),
                    Err(_) => return,
                }
            }
        })
        .await;
        true
    }

    fn outgoing(&mut self, room: &mut [u8]) {
        let Some(device) = &self.device else { return };
        for _ in 0..BATCH {
            let read = |end: &OwnedFd| Ok(rustix::io::read(end, &mut *room)?);
            match device.packets.try_io(Interest::READABLE, read) {
                Ok(bytes) => {
                    let mut ends = Ends { device: Some(device), socket: self.socket.as_ref() };
                    self.engine.outgoing(&room[..bytes], &mut ends);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The link has gone, or is down.
                Err(_) => return self.device = None,
            }
        }
    }

    fn incoming(&mut self, room: &mut [u8]) {
        let Some(socket) = &self.socket else { return };
        for _ in 0..BATCH {
            let (bytes, from) = match socket.datagrams.try_recv_from(room) {
                Ok(received) => received,
                // What is told of earlier datagrams (nobody listens there) is no reason to stop.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => continue,
                Err(_) => return,
            };
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            let mut ends = Ends { device: self.device.as_ref(), socket: Some(socket) };
            if !self.engine.incoming(&room[..bytes], from, &mut ends)
                && let Some(before) = &self.before
            {
                let _ = rustix::net::send(&before.way, &room[..bytes], SendFlags::NOSIGNAL);
            }
        }
    }

    fn tick(&mut self) {
        if self.device.as_ref().is_some_and(|device| !tun::is_attached(device.packets.get_ref())) {
            self.device = None;
        }
        if self.device.is_none() || self.socket.is_none() {
            self.apply();
        }
        self.report();
        let mut ends = Ends { device: self.device.as_ref(), socket: self.socket.as_ref() };
        self.engine.tick(&mut ends);
        let Some(before) = &mut self.before else { return };
        if before.whole.is_none() && self.engine.is_whole() {
            before.whole = Some(Instant::now());
        }
        if before.since.elapsed() > SESSION || before.whole.is_some_and(|whole| whole.elapsed() > LAG) {
            self.before = None;
        }
    }
}

async fn readable_packets(device: Option<&Device>) {
    match device {
        Some(device) => drop(device.packets.readable().await),
        None => std::future::pending().await,
    }
}

async fn readable_datagrams(socket: Option<&Socket>) {
    match socket {
        Some(socket) => drop(socket.datagrams.readable().await),
        None => std::future::pending().await,
    }
}

/// At all addresses, of both families where the machine has both.
fn listen(port: u16) -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, at) = match rustix::net::socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None) {
        Ok(socket) => {
            sockopt::set_ipv6_v6only(&socket, false)?;
            (socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        }
        Err(Errno::AFNOSUPPORT) => {
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
            (socket, SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port)))
        }
        Err(error) => return Err(error.into()),
    };
    // Without the right to, it is what the machine gives everybody.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES);
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES);
    tun::may_be_split(&socket)?;
    rustix::net::bind(&socket, &at)?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}
