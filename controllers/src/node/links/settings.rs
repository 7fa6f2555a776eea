//! Settings of the kernel that links need, in /proc/sys/net.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::LinkName;

/// Has the kernel forward packets.
pub(super) fn forward(ipv6: bool) -> io::Result<()> {
    set("ipv4/ip_forward", "1")?;
    if ipv6 && get("ipv6/conf/all/forwarding")?.as_deref() != Some("1") {
        // A machine that forwards no longer listens to routers unless told to (2): it would lose its way out.
        for name in files(Path::new("/proc/sys/net/ipv6/conf"))? {
            let listens = format!("ipv6/conf/{name}/accept_ra");
            if name != "all" && get(&listens)?.as_deref() == Some("1") {
                set(&listens, "2")?;
            }
        }
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// No addresses that the kernel makes up, no waiting for them, no advice from routers.
pub(super) fn quiet(link: &LinkName) -> io::Result<()> {
    for (name, value) in [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_dad", "0"), ("accept_ra", "0")] {
        set_if_known(&format!("ipv6/conf/{link}/{name}"), value)?;
    }
    Ok(())
}

pub(super) fn outside(link: &LinkName) -> io::Result<()> {
    // Answers to what the machine sent from 127.0.0.1; the mesh lets no others in.
    set(&format!("ipv4/conf/{link}/route_localnet"), "1")?;
    // Where a packet of a task may come from is the mesh's to say.
    set(&format!("ipv4/conf/{link}/rp_filter"), "0")
}

pub(super) fn inside() -> io::Result<()> {
    set("ipv4/conf/all/accept_redirects", "0")?;
    // Docker's: whoever is alone in a namespace may listen on port 80 and ping without being root.
    set("ipv4/ip_unprivileged_port_start", "0")?;
    set("ipv4/ping_group_range", "0\t2147483647")
}

/// Of the link to the other machines.
pub(super) fn tunnel(link: &LinkName) -> io::Result<()> {
    quiet(link)?;
    // Answers to what the machine sent from 127.0.0.1; the mesh lets no others in.
    set(&format!("ipv4/conf/{link}/route_localnet"), "1")?;
    // A client that came in by another machine has its way back there, not here.
    any_source(link)
}

/// Of the encrypted link below that one.
pub(super) fn wireguard(link: &LinkName) -> io::Result<()> {
    quiet(link)?;
    // The way to the addresses that speak here is the link above.
    any_source(link)
}

/// The larger of the link's number and the one for all counts: where that one is strict (1), only loose (2) is larger.
fn any_source(link: &LinkName) -> io::Result<()> {
    let strict = get("ipv4/conf/all/rp_filter")?.as_deref() == Some("1");
    set(&format!("ipv4/conf/{link}/rp_filter"), if strict { "2" } else { "0" })
}

const SETTINGS: &str = "/proc/sys/net";

/// `None` when the kernel has no such setting.
fn get(name: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(format!("{SETTINGS}/{name}")) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(about(name, error)),
    }
}

/// Writes only what differs: where /proc/sys is read-only, somebody may have seen to it already.
fn set(name: &str, value: &str) -> io::Result<()> {
    write_unless(name, get(name)?.as_deref(), value)
}

fn set_if_known(name: &str, value: &str) -> io::Result<()> {
    get(name)?.map_or(Ok(()), |there| write_unless(name, Some(&there), value))
}

fn write_unless(name: &str, there: Option<&str>, value: &str) -> io::Result<()> {
    if there == Some(value) {
        return Ok(());
    }
    fs::write(format!("{SETTINGS}/{name}"), value).map_err(|error| about(name, error))
}

fn about(name: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{SETTINGS}/{name}: {error}"))
}

/// Names in a directory; none when it is not there.
pub(super) fn files(directory: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}
