//! One netlink socket: requests, dumps and nftables transactions, blocking.
//!
//! The kernel does the whole of a request inside `send`; the answer waits when `send` returns. An async socket would
//! only add wake-ups, and a socket belongs to the network namespace of the thread that opened it; so these are used
//! from plain threads (`netns`).

mod message;

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink,
        sockopt::{self, Timeout},
    },
};

pub use message::{
    Attributes, Writer, attributes, octets, read_address, read_be16, read_be32, read_text, read_u16, read_u32,
};

/// Bits of `nlmsg_flags` (linux/netlink.h); their meaning depends on the kind of request.
pub mod flag {
    pub const REPLACE: u16 = 0x100;
    pub const EXCLUSIVE: u16 = 0x200;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;

    pub(super) const REQUEST: u16 = 0x1;
    pub(super) const ACK: u16 = 0x4;
    pub(super) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(super) const DUMP: u16 = 0x300;
    pub(super) const ACK_ATTRIBUTES: u16 = 0x200;
    pub(super) const ACK_CAPPED: u16 = 0x100;
}

/// Which part of the kernel a socket talks with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nftables and connection tracking.
    Netfilter,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The kernel understood and said no: nothing of the request was done.
    #[error("the kernel refused it: {errno}{}", explain(.text))]
    Refused {
        errno: Errno,
        /// What the kernel adds in words, often nothing.
        text: String,
        /// Which message of a transaction, counted from 0 without its opening; of a plain request 0.
        message: usize,
    },
    /// What is dumped changed meanwhile: ask again.
    #[error("it changed while it was read")]
    Interrupted,
    /// The socket itself failed, or the kernel spoke nonsense; a new socket may help.
    #[error("netlink socket failed")]
    Socket { source: io::Error },
}

impl NetlinkError {
    /// The errno of a refusal.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> NetlinkError {
        NetlinkError::Socket { source: errno.into() }
    }
}

fn explain(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

#[derive(Debug)]
pub struct Socket {
    descriptor: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open(protocol: Protocol) -> io::Result<Socket> {
        let number = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(netlink::NETFILTER),
        };
        let descriptor =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, number)?;
        // Answers wait when `send` returns. If one does not come, an error in the log beats a thread that hangs.
        sockopt::set_socket_timeout(&descriptor, Timeout::Recv, Some(Duration::from_secs(10)))?;
        // A whole ruleset is one message: 10,000 services are about 3 MB.
        sockopt::set_socket_send_buffer_size_force(&descriptor, SEND_BYTES_MAX)?;
        sockopt::set_socket_recv_buffer_size_force(&descriptor, 4 << 20)?;
        // Errors with the kernel's own words, without a copy of the request.
        set_netlink_option(&descriptor, libc::NETLINK_EXT_ACK, 1)?;
        set_netlink_option(&descriptor, libc::NETLINK_CAP_ACK, 1)?;
        if protocol == Protocol::Route {
            // Dumps are filtered by the kernel; without it, it ignores what we ask to filter by.
            set_netlink_option(&descriptor, libc::NETLINK_GET_STRICT_CHK, 1)?;
        }
        // 32 KiB is the largest piece in which the kernel sends a dump.
        Ok(Socket { descriptor, sequence: 1, buffer: vec![0; 64 << 10] })
    }

    /// Has the kernel send what it announces to this group. Such a socket is for [`Socket::hear`] only, which gives up
    /// after `patience` so that its thread can look whether anybody still listens.
    pub fn join(&mut self, group: i32, patience: Duration) -> io::Result<()> {
        // A socket without an address of its own has 0, which is whom announcements are not sent to.
        rustix::net::bind(&self.descriptor, &netlink::SocketAddrNetlink::new(0, 0))?;
        set_netlink_option(&self.descriptor, libc::NETLINK_ADD_MEMBERSHIP, group)?;
        Ok(sockopt::set_socket_timeout(&self.descriptor, Timeout::Recv, Some(patience))?)
    }

    /// Waits for announcements; `each` gets their types. Nothing within the patience is `WouldBlock`, too many at once
    /// `ENOBUFS`: some were lost.
    pub fn hear(&mut self, mut each: impl FnMut(u16)) -> io::Result<()> {
        let answers = self.read_answers().map_err(|error| match error {
            NetlinkError::Socket { source } => source,
            other => io::Error::other(other),
        })?;
        for answer in answers {
            if let Answer::Object { kind, .. } = answer {
                each(kind);
            }
        }
        Ok(())
    }

    /// Sends one request and waits until the kernel has done it.
    pub fn request(&mut self, kind: u16, flags: u16, body: &Writer) -> Result<(), NetlinkError> {
        self.send(kind, flags | flag::ACK, body)?;
        self.receive(|_, _| {})
    }

    /// Asks for one object; `None` when there is no such object.
    pub fn get<T>(
        &mut self,
        kind: u16,
        body: &Writer,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        self.send(kind, flag::ACK, body)?;
        let mut found = None;
        match self.receive(|_, payload| found = read(payload)) {
            Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NODEV)) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// Asks for all objects of a kind; `each` gets the type and the body of every answer.
    pub fn dump(&mut self, kind: u16, body: &Writer, each: impl FnMut(u16, &[u8])) -> Result<(), NetlinkError> {
        self.send(kind, flag::DUMP, body)?;
        self.receive(each)
    }

    /// Carries out a transaction of nftables: all of it or nothing.
    pub fn commit(&mut self, batch: Batch) -> Result<(), NetlinkError> {
        let first = self.sequence;
        let (bytes, messages) = batch.finish(first);
        self.sequence = self.sequence.wrapping_add(messages + 1);
        if bytes.len() > SEND_BYTES_MAX {
            return Err(NetlinkError::Socket { source: io::ErrorKind::FileTooLarge.into() });
        }
        self.send_bytes(&bytes)?;
        let last = first.wrapping_add(messages - 1);
        let mut outcome = Ok(());
        // The kernel answers each message that it refuses, and the last one in any case; a transaction that could not
        // be committed as a whole is answered for its opening message, which then comes first.
        loop {
            for answer in self.read_answers()? {
                let (sequence, refused) = match answer {
                    Answer::Ack { sequence } => (sequence, None),
                    Answer::Refused { sequence, errno, text } => (sequence, Some((errno, text))),
                    Answer::Object { .. } | Answer::Done { .. } => continue,
                };
                let position = sequence.wrapping_sub(first);
                if position > messages {
                    continue; // late answer to an earlier transaction
                }
                if let (Some((errno, text)), true) = (refused, outcome.is_ok()) {
                    let message = (position as usize).saturating_sub(1);
                    outcome = Err(NetlinkError::Refused { errno, text, message });
                }
                if sequence == last || (position == 0 && outcome.is_err()) {
                    return outcome;
                }
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &Writer) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(HEADER + body.bytes().len());
        put_header(&mut bytes, body.bytes().len(), kind, flags | flag::REQUEST, self.sequence);
        bytes.extend_from_slice(body.bytes());
        self.send_bytes(&bytes)
    }

    fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.descriptor, bytes, SendFlags::empty()))?;
        debug_assert_eq!(sent, bytes.len(), "netlink takes a message whole or not at all");
        Ok(())
    }

    /// Reads answers to the last request until its end.
    fn receive(&mut self, mut each: impl FnMut(u16, &[u8])) -> Result<(), NetlinkError> {
        let current = self.sequence;
        let mut interrupted = false;
        loop {
            // Taken out so that answers can borrow from it while `self` is at hand.
            let buffer = std::mem::take(&mut self.buffer);
            let (buffer, outcome) = self.receive_into(buffer, current, &mut interrupted, &mut each);
            self.buffer = buffer;
            if let Some(outcome) = outcome.transpose() {
                outcome?;
                return if interrupted { Err(NetlinkError::Interrupted) } else { Ok(()) };
            }
        }
    }

    fn receive_into(
        &mut self,
        mut buffer: Vec<u8>,
        current: u32,
        interrupted: &mut bool,
        each: &mut impl FnMut(u16, &[u8]),
    ) -> (Vec<u8>, Result<Option<()>, NetlinkError>) {
        let length = match self.read_into(&mut buffer) {
            Ok(length) => length,
            Err(error) => return (buffer, Err(error)),
        };
        let mut outcome = Ok(None);
        for answer in answers(&buffer[..length]) {
            match answer {
                Answer::Object { sequence, kind, flags, payload } if sequence == current => {
                    *interrupted |= flags & flag::DUMP_INTERRUPTED != 0;
                    each(kind, payload);
                }
                Answer::Done { sequence, flags } if sequence == current => {
                    *interrupted |= flags & flag::DUMP_INTERRUPTED != 0;
                    outcome = Ok(Some(()));
                }
                Answer::Ack { sequence } if sequence == current => outcome = Ok(Some(())),
                Answer::Refused { sequence, errno, text } if sequence == current => {
                    outcome = Err(NetlinkError::Refused { errno, text, message: 0 });
                }
                _ => {} // late answer to a request that failed
            }
        }
        (buffer, outcome)
    }

    fn read_answers(&mut self) -> Result<Vec<Answer<'_>>, NetlinkError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let length = self.read_into(&mut buffer);
        self.buffer = buffer;
        Ok(answers(&self.buffer[..length?]).collect())
    }

    fn read_into(&mut self, buffer: &mut [u8]) -> Result<usize, NetlinkError> {
        let (length, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.descriptor, &mut *buffer, RecvFlags::empty()))?;
        Ok(length)
    }
}

/// Messages of one nftables transaction.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where each message starts, the opening included.
    starts: Vec<usize>,
}

impl Batch {
    pub fn new() -> Batch {
        Batch::open(&Writer::with_header(&BATCH_HEADER))
    }

    /// Refused with `ERESTART` when the ruleset is not of this generation: somebody was faster.
    pub fn at(generation: u32) -> Batch {
        /// `NFNL_BATCH_GENID`.
        const GENERATION: u16 = 1;
        let mut opening = Writer::with_header(&BATCH_HEADER);
        opening.put_be32(GENERATION, generation);
        Batch::open(&opening)
    }

    fn open(opening: &Writer) -> Batch {
        let mut batch = Batch { bytes: Vec::new(), starts: Vec::new() };
        batch.push(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, opening);
        batch
    }

    pub fn push(&mut self, kind: u16, flags: u16, body: &Writer) {
        self.starts.push(self.bytes.len());
        put_header(&mut self.bytes, body.bytes().len(), kind, flags | flag::REQUEST, 0);
        self.bytes.extend_from_slice(body.bytes());
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.starts.len() == 1
    }

    /// Closes the batch; also says how many messages it has, opening included and end excluded.
    fn finish(mut self, first: u32) -> (Vec<u8>, u32) {
        let messages = self.starts.len() as u32;
        // Only the last message asks for an answer: a socket's buffer holds a few hundred at most.
        let last = *self.starts.last().expect("a batch begins with its opening");
        let flags = read_u16(&self.bytes[last + 6..]).expect("a message has a header");
        self.bytes[last + 6..last + 8].copy_from_slice(&(flags | flag::ACK).to_ne_bytes());
        self.push(libc::NFNL_MSG_BATCH_END as u16, 0, &Writer::with_header(&BATCH_HEADER));
        for (index, start) in self.starts.iter().enumerate() {
            let sequence = first.wrapping_add(index as u32);
            self.bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
        (self.bytes, messages)
    }
}

impl Default for Batch {
    fn default() -> Batch {
        Batch::new()
    }
}

/// `nfgenmsg` of a batch: no family, version 0, subsystem nftables in network order.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8];

/// Above the size of any ruleset of ours; the kernel copies a message whole.
const SEND_BYTES_MAX: usize = 64 << 20;

const HEADER: usize = 16;

fn put_header(bytes: &mut Vec<u8>, body: usize, kind: u16, flags: u16, sequence: u32) {
    let length = u32::try_from(HEADER + body).expect("bodies are bounded by SEND_BYTES_MAX");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
}

enum Answer<'a> {
    Object { sequence: u32, kind: u16, flags: u16, payload: &'a [u8] },
    Done { sequence: u32, flags: u16 },
    Ack { sequence: u32 },
    Refused { sequence: u32, errno: Errno, text: String },
}

fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = read_u32(bytes)? as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(answer(message))
    })
}

/// `message` has at least a header.
fn answer(message: &[u8]) -> Answer<'_> {
    let kind = read_u16(&message[4..]).unwrap_or_default();
    let flags = read_u16(&message[6..]).unwrap_or_default();
    let sequence = read_u32(&message[8..]).unwrap_or_default();
    let payload = &message[HEADER..];
    let code = || read_u32(payload).unwrap_or_default().cast_signed();
    match i32::from(kind) {
        libc::NLMSG_DONE if code() == 0 => Answer::Done { sequence, flags },
        libc::NLMSG_ERROR if code() == 0 => Answer::Ack { sequence },
        libc::NLMSG_DONE | libc::NLMSG_ERROR => {
            let text = if flags & flag::ACK_ATTRIBUTES == 0 {
                String::new()
            } else {
                explanation(payload, i32::from(kind) == libc::NLMSG_ERROR, flags)
            };
            Answer::Refused { sequence, errno: Errno::from_raw_os_error(-code()), text }
        }
        _ => Answer::Object { sequence, kind, flags, payload },
    }
}

/// `NLMSGERR_ATTR_MSG` of an error: behind the code and, in an answer to a request, (the header of) that request.
fn explanation(payload: &[u8], has_request: bool, flags: u16) -> String {
    const MESSAGE: u16 = 1;
    let request = match (has_request, flags & flag::ACK_CAPPED != 0) {
        (false, _) => 0,
        (true, true) => HEADER,
        (true, false) => read_u32(payload.get(4..).unwrap_or_default()).unwrap_or_default() as usize,
    };
    let extra = payload.get((4 + request).next_multiple_of(4)..).unwrap_or_default();
    attributes(extra).find(MESSAGE).map(read_text).unwrap_or_default()
}

#[expect(unsafe_code, reason = "rustix has no options of SOL_NETLINK")]
fn set_netlink_option(descriptor: &OwnedFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the borrow; the value is an int and its size is given as such;
    // the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            descriptor.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
