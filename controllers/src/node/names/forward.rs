//! Names that nobody here has are asked of somebody else, and the answer is passed on as it came: this is a relay and
//! not a cache, so nothing a task asks for can change what another one is told.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::{self, Transport};

/// For one resolver. A busy one answers what it has not cached within a second.
const TRY: Duration = Duration::from_millis(1500);
/// For all. Below the 5 seconds after which the C libraries give up, so that they hear that it failed.
const ALL: Duration = Duration::from_millis(4500);
/// As the C libraries: those beyond are not asked.
const RESOLVERS_MAX: usize = 3;

pub(super) struct Forwarder {
    /// The one that answered last is asked first: one that is dead costs its time once and not with each question.
    preferred: Cell<Option<SocketAddr>>,
}

impl Forwarder {
    pub fn new() -> Self {
        Forwarder { preferred: Cell::new(None) }
    }

    /// The answer of the first resolver that has one. None when nobody answered in time.
    pub async fn ask(&self, packet: &[u8], transport: Transport, resolvers: &[SocketAddr]) -> Option<Vec<u8>> {
        let mut order: Vec<SocketAddr> = resolvers.iter().copied().take(RESOLVERS_MAX).collect();
        if let Some(first) = order.iter().position(|&resolver| Some(resolver) == self.preferred.get()) {
            order[..=first].rotate_right(1);
        }
        timeout(ALL, self.ask_in_turn(packet, transport, &order)).await.ok().flatten()
    }

    async fn ask_in_turn(&self, packet: &[u8], transport: Transport, order: &[SocketAddr]) -> Option<Vec<u8>> {
        let mut refusal = None;
        // Twice round: a packet may be lost.
        for &resolver in order.iter().chain(order) {
            let reply = match transport {
                Transport::Udp => timeout(TRY, by_udp(packet, resolver)).await,
                Transport::Tcp => timeout(TRY, by_tcp(packet, resolver)).await,
            };
            let Ok(Ok(reply)) = reply else { continue };
            match answer::code(&reply) {
                // Another one may know better.
                Some(ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp) => {
                    refusal.get_or_insert(reply);
                    if order.len() == 1 {
                        break;
                    }
                }
                _ => {
                    self.preferred.set(Some(resolver));
                    return Some(reply);
                }
            }
        }
        refusal
    }
}

/// Each question from a port of its own, which the kernel chooses: an answer has to guess it.
async fn by_udp(packet: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(packet).await?;
    let mut reply = vec![0; answer::udp_bytes_max(packet)];
    loop {
        let bytes = socket.recv(&mut reply).await?;
        if answer::answers(packet, &reply[..bytes]) {
            reply.truncate(bytes);
            return Ok(reply);
        }
    }
}

async fn by_tcp(packet: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    stream.write_all(&framed(packet)).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    if !answer::answers(packet, &reply) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(reply)
}

/// A message as it goes over TCP: its length first.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("no message is longer");
    [&length.to_be_bytes(), message].concat()
}
