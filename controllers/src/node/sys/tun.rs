//! TUN links (Documentation/networking/tuntap.rst), and how what comes from them is sent on.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

const PATH: &str = "/dev/net/tun";

/// Makes the link if it is missing; it stays when nobody has it open. In the network namespace of the calling thread.
pub fn ensure(name: &str) -> io::Result<()> {
    let file = match open(name) {
        Ok(file) => file,
        // Somebody has it open.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
        Err(error) => return Err(error),
    };
    request(&file, libc::TUNSETPERSIST, 1)
}

/// The end by which packets of the link are read and written, one a call, in non-blocking mode.
///
/// # Errors
/// There is no such link that stays: whoever wants one makes it first. One that this made would go with this process.
pub fn attach(name: &str) -> io::Result<OwnedFd> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no such link yet");
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    rustix::net::netdevice::name_to_index(&socket, name).map_err(|_| missing())?;
    let end = open(name)?.into();
    if is_attached(&end) { Ok(end) } else { Err(missing()) }
}

/// Whether it is the end of a link that stays. The link may have been taken away meanwhile, and another be there of its name.
#[expect(unsafe_code, reason = "no library has this request")]
pub fn is_attached(end: &OwnedFd) -> bool {
    // SAFETY: `ifreq` is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `ifreq`, which lives until after the call.
    if unsafe { libc::ioctl(end.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) } < 0 {
        return false;
    }
    // SAFETY: the kernel has just written this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    i32::from(flags) & libc::IFF_PERSIST != 0
}

fn open(name: &str) -> io::Result<File> {
    let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(PATH);
    let file = options.map_err(|error| {
        io::Error::new(error.kind(), format!("{PATH}: {error}; the kernel's module `tun` makes it (`modprobe tun`)"))
    })?;
    set_interface(&file, name)?;
    Ok(file)
}

#[expect(unsafe_code, reason = "no library has this request")]
fn set_interface(file: &File, name: &str) -> io::Result<()> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} cannot name a link")));
    }
    // SAFETY: `ifreq` is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the kernel reads and writes one `ifreq`, which lives until after the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[expect(unsafe_code, reason = "no library has this request")]
fn request(file: &File, what: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: these requests take a number and touch no memory of ours.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), what as _, value) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// As the kernel's WireGuard: routers on a narrower way may split what is sent, rather than lose it. What the tunnel tells
/// tasks of its width is that of the machine's own link.
#[expect(unsafe_code, reason = "no library has this option")]
pub fn may_be_split(socket: &OwnedFd) -> io::Result<()> {
    let value = libc::IP_PMTUDISC_DONT;
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads one `c_int`, which lives until after the call.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_IP, libc::IP_MTU_DISCOVER, (&raw const value).cast(), length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
