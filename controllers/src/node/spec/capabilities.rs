//! Linux capabilities: Docker's default fourteen, what is added and what is dropped.

use std::collections::BTreeSet;

use super::Fault;

/// What a container has unless told otherwise (Docker's default since 1.2, unchanged).
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// All that there are (capabilities(7), Linux 5.9). A kernel that lacks one: the runtimes leave it out with a warning.
const ALL: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Names without `CAP_`, sorted.
pub(super) type Capabilities = BTreeSet<&'static str>;

/// As Docker: `ALL` added is everything but what is dropped by name; `ALL` dropped leaves what is added by name; else
/// the default, less what is dropped, plus what is added.
pub(super) fn granted(add: &[String], drop: &[String]) -> Result<Capabilities, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut named = |names: &[String]| -> (bool, Capabilities) {
        let mut all = false;
        let mut found = Capabilities::new();
        for name in names {
            let upper = name.to_ascii_uppercase();
            let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
            match ALL.iter().find(|known| **known == bare) {
                Some(known) => _ = found.insert(known),
                None if bare == "ALL" => all = true,
                None => faults.push(Fault::NoCapability { name: name.clone() }),
            }
        }
        (all, found)
    };
    let (add_all, added) = named(add);
    let (drop_all, dropped) = named(drop);
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(match (add_all, drop_all) {
        (true, _) => ALL.into_iter().filter(|cap| !dropped.contains(cap)).collect(),
        (false, true) => added,
        (false, false) => DEFAULT.into_iter().filter(|cap| !dropped.contains(cap)).chain(added).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(add: &[&str], drop: &[&str]) -> Result<usize, String> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let granted = granted(&owned(add), &owned(drop));
        granted.map(|caps| caps.len()).map_err(|f| f.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn adding_and_dropping_is_docker_s() {
        assert_eq!(count(&[], &[]), Ok(14));
        assert_eq!(count(&["NET_ADMIN"], &[]), Ok(15));
        assert_eq!(count(&["cap_net_admin", "CHOWN"], &["NET_RAW"]), Ok(14));
        assert_eq!(count(&[], &["ALL"]), Ok(0));
        assert_eq!(count(&["CHOWN"], &["all"]), Ok(1));
        assert_eq!(count(&["ALL"], &[]), Ok(41));
        assert_eq!(count(&["ALL"], &["SYS_ADMIN"]), Ok(40));
        assert_eq!(count(&["FLY"], &["CAP_SWIM"]), Err("no capability FLY; no capability CAP_SWIM".to_owned()));
    }
}
