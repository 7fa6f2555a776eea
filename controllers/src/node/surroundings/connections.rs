//! Who is still connected to a task, as its own network namespace has it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::node::sys::netns::{self, Netns};

/// How many TCP connections others have open to a task's ports. None where there is no such namespace.
///
/// Blocks for about a millisecond: it starts a thread that enters the namespace.
pub(super) fn accepted(netns: &Path) -> io::Result<usize> {
    let namespace = match Netns::open(netns) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        opened => opened?,
    };
    namespace.run(|| {
        let read = |table: &str| netns::sockets(table).unwrap_or_default();
        count(&[read("tcp"), read("tcp6")].concat())
    })
}

/// Connections to a port that is listened on; those that the task has opened itself are its own affair.
fn count(tables: &str) -> usize {
    /// As in the kernel's `tcp_states.h`.
    const ESTABLISHED: &str = "01";
    const LISTEN: &str = "0A";
    let sockets: Vec<(&str, &str)> = tables.lines().filter_map(socket).collect();
    let listening: BTreeSet<&str> =
        sockets.iter().filter(|(_, state)| *state == LISTEN).map(|(port, _)| *port).collect();
    sockets.iter().filter(|(port, state)| *state == ESTABLISHED && listening.contains(port)).count()
}

/// Local port and state of a line `sl local_address rem_address st …`.
fn socket(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (words.next()?, words.next()?, words.next()?);
    Some((local.rsplit_once(':')?.1, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_to_a_port_that_is_listened_on_count() {
        let text = "  sl  local_address rem_address   st tx_queue\n\
                    0: 00000000:1F90 00000000:0000 0A 00000000:00000000\n\
                    1: 0100C00A:1F90 0500C00A:C350 01 00000000:00000000\n\
                    2: 0100C00A:1F90 0600C00A:C351 08 00000000:00000000\n\
                    3: 0100C00A:C000 0700C00A:1F90 01 00000000:00000000\n\
                    0: 0000000000000000FFFF00000100C00A:1F90 0000000000000000FFFF00000800C00A:C352 01 0:0\n";
        assert_eq!(count(text), 2);
        assert_eq!(count(""), 0);
    }
}
