//! What iptables-legacy does, which nftables' listing does not show: the policy of a chain of its `filter` table.
//!
//! The tables are asked for only if some exist (`/proc/net/ip_tables_names`): asking makes the kernel set them up.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, RawProtocol, SocketFlags, SocketType, ipproto};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Hook numbers of netfilter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Input = 1,
    Forward = 2,
}

/// Whether that built-in chain drops by its policy and has no rule that accepts what comes by links whose names begin
/// with `links`. Of the network namespace of the calling thread.
pub fn filter_drops(family: Family, hook: Hook, links: &str) -> io::Result<bool> {
    let (names, domain, protocol) = match family {
        Family::V4 => ("ip_tables_names", AddressFamily::INET, None),
        Family::V6 => ("ip6_tables_names", AddressFamily::INET6, Some(ipproto::RAW)),
    };
    let tables = match fs::read_to_string(format!("/proc/thread-self/net/{names}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    if !tables.lines().any(|table| table == "filter") {
        return Ok(false);
    }
    let protocol = protocol.or(RawProtocol::new(255).map(rustix::net::Protocol::from_raw));
    let socket = rustix::net::socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    let info = get_option(&socket, family, INFO, filter_request(INFO_BYTES))?;
    let (first, policy) = (number(&info, FIRST_AT + 4 * hook as usize)?, number(&info, POLICY_AT + 4 * hook as usize)?);
    let size = number(&info, SIZE_AT)?;
    let mut request = filter_request(ENTRIES_AT + size as usize);
    request[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&size.to_ne_bytes());
    let entries = get_option(&socket, family, ENTRIES, request)?;
    let rules = entries.get(ENTRIES_AT..).unwrap_or_default();
    // The policy is the chain's last rule, without conditions.
    if rule(rules, policy as usize, family)?.verdict != DROP {
        return Ok(false);
    }
    let mut at = first as usize;
    while at < policy as usize {
        let rule = rule(rules, at, family)?;
        if rule.verdict == ACCEPT && rule.by.starts_with(links.as_bytes()) {
            return Ok(false);
        }
        at += rule.length.max(1);
    }
    Ok(true)
}

struct Rule<'a> {
    /// The beginning of the names of links that a packet must have come by; empty for all.
    by: &'a [u8],
    /// Of a rule with another target, something else than these two.
    verdict: i32,
    length: usize,
}

/// Verdicts as iptables writes them: -(NF_DROP) - 1 and -(NF_ACCEPT) - 1.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

/// `struct ipt_entry`: `struct ipt_ip` (84 bytes; `ip6t_ip6` 136) that begins with two addresses, two masks and the
/// name of a link; `nfcache`; then two half-words, where the target is and how long the whole is.
fn rule(rules: &[u8], at: usize, family: Family) -> io::Result<Rule<'_>> {
    let (link, offsets) = match family {
        Family::V4 => (4 * 4, 84 + 4),
        Family::V6 => (4 * 16, 136 + 4),
    };
    let name = rules.get(at + link..at + link + 16).ok_or(io::ErrorKind::UnexpectedEof)?;
    let by = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let offsets = number(rules, at + offsets)?.to_ne_bytes();
    let [target, length] =
        [[offsets[0], offsets[1]], [offsets[2], offsets[3]]].map(u16::from_ne_bytes).map(usize::from);
    // A target without a name is a verdict.
    let is_verdict = rules.get(at + target + 2) == Some(&0);
    let verdict = number(rules, at + target + TARGET_HEADER)?.cast_signed();
    Ok(Rule { by, verdict: if is_verdict { verdict } else { 0 }, length })
}

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`; the same for IPv6.
const INFO: libc::c_int = 64;
const ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size.
const NAME_BYTES: usize = 32;
const FIRST_AT: usize = NAME_BYTES + 4;
const POLICY_AT: usize = FIRST_AT + 20;
const SIZE_AT: usize = POLICY_AT + 20 + 4;
const INFO_BYTES: usize = SIZE_AT + 4;
/// `struct ipt_get_entries`: name[32], size, then entries at a multiple of 8.
const ENTRIES_AT: usize = 40;
/// `struct xt_entry_target`: 32 bytes, then a standard target's verdict.
const TARGET_HEADER: usize = 32;

fn filter_request(bytes: usize) -> Vec<u8> {
    let mut request = vec![0; bytes];
    request[..6].copy_from_slice(b"filter");
    request
}

fn number(bytes: &[u8], at: usize) -> io::Result<u32> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(u32::from_ne_bytes(*word))
}

#[expect(unsafe_code, reason = "rustix has no options of iptables")]
fn get_option(socket: &OwnedFd, family: Family, option: libc::c_int, mut value: Vec<u8>) -> io::Result<Vec<u8>> {
    let level = match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    };
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the length of the borrow; the kernel writes at most `length` bytes, which is
    // the length of `value`, and reads the request from it.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
