//! Connecting to a service by its name.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Connects to `host:port`: every address of the name is tried in turn, each for at most `timeout`.
///
/// The name is looked up anew each time, as the service may have moved. A static program may do so: since glibc 2.34
/// the resolver that reads `/etc/resolv.conf` is part of libc itself (the image tests look a name up in an image that
/// holds nothing else).
pub fn dial(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let said = |cause: io::Error| io::Error::new(cause.kind(), format!("could not reach {address}: {cause}"));
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs().map_err(said)? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(cause) => last = cause,
        }
    }
    Err(said(last))
}
