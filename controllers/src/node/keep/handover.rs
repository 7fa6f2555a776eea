//! From one companion process to the next: descriptors over a socket (unix(7), SCM_RIGHTS).
//!
//! The old one stops working, between two packets and two chunks, and sends what it has, one descriptor a message; the
//! new one says that it has it. Until then the old one keeps copies: if the new one dies or dawdles, the old one goes on.
//! Both sides block meanwhile, for milliseconds.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};
use schemas::kinds::service::Protocol;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::super::sys::readiness;
use super::super::wireguard;

/// For each single message; and at the end for the other side's word that all has arrived. Below what a resolver waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a message says besides its descriptor.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What is passed on. Both are told by it what a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Item {
    /// The open file that has the lock.
    Lock,
    /// One end of a log's pipe: not to be read, only to be held until the new one has opened the pipes itself.
    Pipe,
    NamesUdp(SocketAddr),
    NamesTcp(SocketAddr),
    Listener(Protocol, SocketAddr),
    Tunnel(wireguard::Part),
    /// There is no more. Without a descriptor.
    End,
}

pub(super) type Passed = Vec<(Item, OwnedFd)>;

fn path(dir: &Path) -> PathBuf {
    dir.join("handover.sock")
}

/// A file of a dead one is replaced.
pub(super) fn listen(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let path = path(dir);
    let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
    rustix::net::listen(&socket, 4)?;
    readiness::watched(socket)
}

/// Waits for a successor. Cancel-safe.
pub(super) async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    listener
        .async_io(tokio::io::Interest::READABLE, |socket| Ok(rustix::net::accept_with(socket, SocketFlags::CLOEXEC)?))
        .await
}

/// Sends all and waits for the other side's word. An error: it does not have it, and will not take it any more.
pub(super) fn give(successor: &OwnedFd, items: &[(Item, BorrowedFd<'_>)]) -> io::Result<()> {
    patient(successor)?;
    for (item, fd) in items {
        send(successor, item, Some(*fd))?;
    }
    send(successor, &Item::End, None)?;
    if took(successor, RecvFlags::empty()) {
        return Ok(());
    }
    // Late is not never. From here on the word cannot be sent any more; was it?
    rustix::net::shutdown(successor, Shutdown::Both)?;
    match took(successor, RecvFlags::DONTWAIT) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::TimedOut, "the successor did not take over")),
    }
}

/// Asks the one that works now. An error: nothing was taken.
pub(super) fn take(dir: &Path) -> io::Result<Passed> {
    let predecessor = socket(SocketFlags::CLOEXEC)?;
    patient(&predecessor)?;
    rustix::net::connect(&predecessor, &SocketAddrUnix::new(path(dir))?)?;
    let mut passed = Passed::new();
    loop {
        match receive(&predecessor)? {
            (Item::End, _) => break,
            (item, Some(fd)) => passed.push((item, fd)),
            (item, None) => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{item:?} came alone"))),
        }
    }
    rustix::net::send(&predecessor, TOOK, SendFlags::NOSIGNAL)?;
    Ok(passed)
}

const TOOK: &[u8] = b"took";

fn took(successor: &OwnedFd, flags: RecvFlags) -> bool {
    let mut word = [0; 16];
    matches!(rustix::net::recv(successor, &mut word[..], flags), Ok((bytes, _)) if &word[..bytes] == TOOK)
}

/// Messages keep their boundaries, and each its descriptor.
fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn patient(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, Timeout::Recv, Some(PATIENCE))?;
    Ok(sockopt::set_socket_timeout(socket, Timeout::Send, Some(PATIENCE))?)
}

fn send(to: &OwnedFd, item: &Item, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let text = serde_json::to_vec(item)?;
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(from: &OwnedFd) -> io::Result<(Item, Option<OwnedFd>)> {
    let mut text = [0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(&mut text)];
    let message = rustix::net::recvmsg(from.as_fd(), slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.flatten().next();
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((serde_json::from_slice(&text[..message.bytes])?, fd))
}
