//! What systemd is told of applyd, and what applyd tells systemd.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// A unit that runs `program`. `dist/applyd.service` is that of an installation.
pub fn unit(program: &Path) -> String {
    format!(
        "\
[Unit]
Description=apply: runs applications in containers
Wants=containerd.service network-online.target
After=containerd.service network-online.target

[Service]
Type=notify
ExecStart={program}
# What it was told beside /etc/apply/applyd.yaml: APPLY_DATA=…, APPLY_LOG=…; see applyd --help.
EnvironmentFile=-/etc/default/applyd
Restart=on-failure
RestartSec=1
# Containers, their names and their logs go on without it, and through its upgrade.
KillMode=process
# The control groups below are its own.
Delegate=yes
OOMScoreAdjust=-900
LimitNOFILE=1048576
TasksMax=infinity
TimeoutStartSec=infinity
TimeoutStopSec=30

[Install]
WantedBy=multi-user.target
",
        program = program.display()
    )
}

/// Tells whoever started this process (`NOTIFY_SOCKET`) how it is: `READY=1`, `STOPPING=1`. Nobody may have asked.
pub fn notify(state: &str) -> io::Result<()> {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match place.to_string_lossy().strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&place)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_unit_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/applyd.service");
        let wanted = unit(Path::new("/usr/bin/applyd"));
        if std::env::var_os("APPLY_WRITE").is_some() {
            std::fs::write(path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(found, wanted, "APPLY_WRITE=1 cargo test -p cli installed_unit writes it anew");
    }
}
