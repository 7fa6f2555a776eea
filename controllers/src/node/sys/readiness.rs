//! Waiting for a descriptor that tokio has no type for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// `fd`, which is in non-blocking mode, as something to wait for. Within a runtime only.
#[expect(unsafe_code, reason = "tokio wants to be told that a descriptor stays what it is")]
pub fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: demanded are a valid descriptor, open until the `AsyncFd` is dropped, and always the same one. An `OwnedFd`
    // is valid until it is dropped, nothing else has it, and `AsyncFd` lends it out only as shared.
    let watched = unsafe { AsyncFd::register(fd) };
    Ok(watched?)
}
