//! Containers: what the kernel and the runtime would refuse later is refused here, where a person can still read it.

use std::collections::BTreeMap;

use super::{Faults, nul_fault};
use crate::advice;
use crate::defaults;
use crate::kinds::template::{ContainerSpec, ExecProbe, FileKind, Health, Mount, MountType, Probe};
use crate::names;
use crate::quantity::Period;
use crate::walk::show_plain;

pub(super) fn check(faults: &mut Faults, container: &ContainerSpec) {
    words(faults, container);
    env(faults, container);
    process(faults, container);
    faults.at_most("stopGrace", container.stop_grace, defaults::STOP_GRACE_MAX.value);
    if let Some(health) = &container.health {
        faults.below("health", |faults| check_health(faults, health));
    }
    faults.each("hosts", &container.hosts, |faults, host| {
        faults.check(is_host_name(&host.name), "name", || format!("{:?} is not a host name", host.name));
    });
    mounts(faults, &container.mounts);
    files(faults, container);
    sysctls(faults, container);
    capabilities(faults, container);
    ulimits(faults, container);
}

/// One place has one file: two that are mounted over each other would be found out by whoever reads the wrong one.
fn files(faults: &mut Faults, container: &ContainerSpec) {
    let plain = |path: &str| path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    let mounts = container.mounts.iter().enumerate();
    let mut taken: BTreeMap<String, String> =
        mounts.map(|(index, mount)| (plain(&mount.target), format!("mounts[{index}]"))).collect();
    for (kind, name, list) in
        [(FileKind::Secret, "secrets", &container.secrets), (FileKind::Config, "configs", &container.configs)]
    {
        let mut index = 0;
        faults.each(name, list, |faults, file| {
            if let Some(message) = names::object_name_fault(&file.source) {
                faults.add("source", message);
            }
            faults.check(file.mode.as_deref().is_none_or(is_octal), "mode", || octal_message(file.mode.as_deref()));
            let path = file.path(kind);
            let is_file = is_absolute(&path) && !path.ends_with('/') && !path.split('/').any(|part| part == "..");
            faults.check(is_file, "target", || {
                format!("{} is not the path of a file", show_plain(&path.as_str().into()))
            });
            // The very same text twice in a list is found by the list's key already.
            if let Some(first) = taken.insert(plain(&path), format!("{name}[{index}]"))
                && !first.starts_with(name)
            {
                faults.add("target", format!("{path} is the target of {first} already"));
            }
            index += 1;
        });
    }
}

fn words(faults: &mut Faults, container: &ContainerSpec) {
    for (name, list) in [("command", &container.command), ("args", &container.args)] {
        faults.each(name, list, |faults, word| {
            if let Some(message) = nul_fault(word) {
                faults.add("", message);
            }
        });
    }
    if container.command.first().is_some_and(String::is_empty) {
        faults.add("command[0]", "an empty string is no program");
    }
}

fn env(faults: &mut Faults, container: &ContainerSpec) {
    faults.each("env", &container.env, |faults, variable| {
        match variable.name.as_str() {
            "" => faults.add("name", "a variable needs a name"),
            name if name.contains('=') => {
                faults.add("name", format!("{} has a '='; name and value are two fields", show_plain(&name.into())))
            }
            name => {
                if let Some(message) = nul_fault(name) {
                    faults.add("name", message);
                }
            }
        }
        let value = variable.value.as_deref().unwrap_or_default();
        if let Some(message) = nul_fault(value).or_else(|| template_fault(value)) {
            faults.add("value", message);
        }
    });
}

/// Docker expands `{{.Node.Hostname}}` and its like; to hand them on as they are would be found out in production.
fn template_fault(text: &str) -> Option<String> {
    let inner = text.split("{{").skip(1).map(str::trim_start);
    let is_template = |inner: &str| [".Service.", ".Node.", ".Task."].iter().any(|root| inner.starts_with(root));
    inner
        .into_iter()
        .any(is_template)
        .then(|| "templates such as {{.Task.Slot}} are not acted on yet; write the value".into())
}

fn process(faults: &mut Faults, container: &ContainerSpec) {
    if let Some(dir) = &container.dir {
        faults
            .check(is_absolute(dir), "dir", || format!("{} is not an absolute path", show_plain(&dir.as_str().into())));
    }
    if let Some(user) = &container.user {
        let good = !user.is_empty() && user.split(':').count() <= 2 && user.split(':').all(is_account);
        faults.check(good, "user", || {
            format!("{} is not a user (name or number, with :group if need be)", show_plain(&user.as_str().into()))
        });
    }
    faults.each("groups", &container.groups, |faults, group| {
        faults.check(is_account(group), "", || {
            format!("{} is not a group (name or number)", show_plain(&group.as_str().into()))
        });
    });
    if let Some(hostname) = &container.hostname {
        match template_fault(hostname) {
            Some(message) => faults.add("hostname", message),
            None => faults.check(is_host_name(hostname) && hostname.len() <= 64, "hostname", || {
                format!(
                    "{} is not a host name (letters, digits, '-' and '.', 64 at most)",
                    show_plain(&hostname.as_str().into())
                )
            }),
        }
    }
    if let Some(signal) = &container.stop_signal {
        faults.check(signal_number(signal).is_some(), "stopSignal", || {
            format!(
                "{} is not a signal (a name such as SIGTERM, or a number from 1 to 64)",
                show_plain(&signal.as_str().into())
            )
        });
    }
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}

fn is_account(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':')
}

fn is_host_name(text: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

/// The number of a signal on Linux by name (with or without `SIG`, in any case) or number; absent for what is none.
pub fn signal_number(text: &str) -> Option<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return u8::try_from(index + 1).ok();
    }
    // glibc keeps the first two real-time signals for itself: SIGRTMIN is 34.
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        _ => rest.strip_prefix(sign)?.parse::<u8>().ok().filter(|offset| *offset <= 30),
    };
    match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest, '+').map(|offset| 34 + offset),
        (_, Some(rest)) => offset(rest, '-').map(|offset| 64 - offset),
        _ => None,
    }
}

fn check_health(faults: &mut Faults, health: &Health) {
    let probes = [
        ("check", &health.check),
        ("startup", &health.startup),
        ("readiness", &health.readiness),
        ("liveness", &health.liveness),
    ];
    for (name, probe) in probes {
        let Some(probe) = probe else { continue };
        if health.disabled {
            faults.add(name, "disabled says that there is no check; leave one of the two out");
        }
        faults.below(name, |faults| check_probe(faults, probe));
    }
}

fn check_probe(faults: &mut Faults, probe: &Probe) {
    let actions = [probe.exec.is_some(), probe.http.is_some(), probe.tcp.is_some(), probe.grpc.is_some()];
    let stated = actions.iter().filter(|stated| **stated).count();
    faults.check(stated == 1, "", || match stated {
        0 => "says how often but not what; it needs one of exec, http, tcp, grpc".into(),
        _ => "has more than one of exec, http, tcp, grpc".into(),
    });
    for (name, period) in
        [("interval", probe.interval), ("timeout", probe.timeout), ("startInterval", probe.start_interval)]
    {
        faults.check(period.is_none_or(|period| period >= Period::from_millis(1)), name, || {
            format!("{} is too short, at least 1ms", period.unwrap_or_default())
        });
        faults.at_most(name, period, defaults::PROBE_PERIOD_MAX.value);
    }
    faults.at_most("startPeriod", probe.start_period, defaults::PROBE_PERIOD_MAX.value);
    if let Some(exec) = &probe.exec {
        faults.below("exec.command", |faults| check_exec(faults, exec));
    }
    if let Some(path) = probe.http.as_ref().and_then(|http| http.path.as_deref()) {
        faults.check(path.starts_with('/'), "http.path", || format!("{path:?} does not begin with a /"));
    }
}

fn check_exec(faults: &mut Faults, exec: &ExecProbe) {
    match exec.command.first().map(String::as_str) {
        None | Some("") => faults.add("", "a program is needed"),
        Some("CMD-SHELL") => {
            faults.add("[0]", "CMD-SHELL is Docker's word, not a program; write [\"/bin/sh\", \"-c\", …]")
        }
        Some("CMD") => faults.add("[0]", "CMD is Docker's word, not a program; leave it out"),
        Some("NONE") => faults.add("[0]", "NONE is Docker's word, not a program; write health: {disabled: true}"),
        Some(_) => {}
    }
}

fn mounts(faults: &mut Faults, mounts: &[Mount]) {
    let mut targets: BTreeMap<String, usize> = BTreeMap::new();
    for (index, mount) in mounts.iter().enumerate() {
        faults.below(&format!("mounts[{index}]"), |faults| {
            check_mount(faults, mount);
            let plain = mount.target.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
            // The very same text twice is found by the list's key already.
            if let Some(first) = targets.insert(plain, index)
                && mounts[first].target != mount.target
            {
                faults.add("target", format!("{} is the target of mounts[{first}] already", mount.target));
            }
        });
    }
}

fn check_mount(faults: &mut Faults, mount: &Mount) {
    let target = mount.target.as_str();
    let up = |path: &str| path.split('/').any(|part| part == "..");
    faults.check(is_absolute(target) && !up(target), "target", || {
        format!("{} is not an absolute path", show_plain(&target.into()))
    });
    faults.check(!is_absolute(target) || target.chars().any(|c| c != '/'), "target", || {
        "the root itself cannot be mounted over".into()
    });
    match (mount.kind, mount.source.as_deref()) {
        (MountType::Bind, None) => faults.add("source", "is needed: a path of the host"),
        (MountType::Bind, Some(source)) => faults.check(is_absolute(source) && !up(source), "source", || {
            format!(
                "{} is not an absolute path of the host; for a volume of that name write type: volume",
                show_plain(&source.into())
            )
        }),
        (MountType::Volume, Some(source)) if source.starts_with(['/', '.']) => {
            faults.add("source", format!("{} is a path; write type: bind", show_plain(&source.into())));
        }
        (MountType::Volume, Some(source)) => {
            if let Some(message) = names::object_name_fault(source) {
                faults.add("source", message);
            }
        }
        (MountType::Tmpfs, Some(_)) => faults.add("source", "memory has no source; leave it out"),
        (MountType::Cluster | MountType::Image | MountType::Npipe, None) => faults.add("source", "is needed"),
        _ => {}
    }
    if let Some(message) = template_fault(target).or_else(|| mount.source.as_deref().and_then(template_fault)) {
        faults.add("", message);
    }
    let word = |kind: MountType| match kind {
        MountType::Bind => "bind",
        MountType::Volume => "volume",
        MountType::Tmpfs => "tmpfs",
        MountType::Cluster => "cluster",
        MountType::Image => "image",
        MountType::Npipe => "npipe",
    };
    for (kind, given) in [
        (MountType::Bind, mount.bind.is_some()),
        (MountType::Volume, mount.volume.is_some()),
        (MountType::Tmpfs, mount.tmpfs.is_some()),
    ] {
        faults.check(!given || kind == mount.kind, word(kind), || {
            format!("only for type {}; this is {}", word(kind), word(mount.kind))
        });
    }
    if let Some(mode) = mount.tmpfs.as_ref().and_then(|tmpfs| tmpfs.mode.as_deref()) {
        faults.check(is_octal(mode), "tmpfs.mode", || octal_message(Some(mode)));
    }
    if mount.bind.as_ref().is_some_and(|bind| bind.read_only_below.is_some()) && !mount.read_only {
        faults.add("bind.readOnlyBelow", "only with readOnly: true");
    }
    if let Some(subpath) = mount.volume.as_ref().and_then(|volume| volume.subpath.as_deref()) {
        faults.check(!subpath.starts_with('/') && !up(subpath) && !subpath.is_empty(), "volume.subpath", || {
            format!("{subpath:?} is not a path inside the volume")
        });
    }
}

fn is_octal(text: &str) -> bool {
    (1..=5).contains(&text.len())
        && text.bytes().all(|b| (b'0'..=b'7').contains(&b))
        && u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o7777)
}

fn octal_message(text: Option<&str>) -> String {
    format!("{:?} is not a set of permission bits (octal digits, such as \"0444\")", text.unwrap_or_default())
}

/// Parameters of the kernel that belong to a container's own namespaces; others are the whole machine's, and runc
/// refuses them at the start.
fn sysctls(faults: &mut Faults, container: &ContainerSpec) {
    const NAMESPACED: [&str; 3] = ["net.", "fs.mqueue.", "kernel.shm"];
    const OTHERS: [&str; 6] =
        ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.domainname", "kernel.msg_next_id"];
    for name in container.sysctls.keys() {
        let dotted = name.replace('/', ".");
        let good = NAMESPACED.iter().any(|prefix| dotted.starts_with(prefix)) || OTHERS.contains(&dotted.as_str());
        faults.check(good, &format!("sysctls.{name}"), || {
            "is not a parameter of a container's own (net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem)".into()
        });
    }
}

/// Linux 6.x, capability.h, in order of number.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn capabilities(faults: &mut Faults, container: &ContainerSpec) {
    let plain = |name: &str| name.strip_prefix("CAP_").unwrap_or(name).to_owned();
    for (side, list) in [("add", &container.capabilities.add), ("drop", &container.capabilities.drop)] {
        faults.each(&format!("capabilities.{side}"), list, |faults, name| {
            let known = plain(name) == "ALL" || CAPABILITIES.contains(&plain(name).as_str());
            faults.check(known, "", || {
                let meant = advice::nearest(&plain(&name.to_ascii_uppercase()), CAPABILITIES);
                let advice = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
                format!("{} is not a capability{advice}", show_plain(&name.as_str().into()))
            });
        });
    }
    for (index, name) in container.capabilities.add.iter().enumerate() {
        if container.capabilities.drop.iter().any(|dropped| plain(dropped) == plain(name)) {
            faults.add(&format!("capabilities.add[{index}]"), format!("{} is added and dropped", plain(name)));
        }
    }
}

/// getrlimit(2), as `docker run --ulimit` names them.
pub const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn ulimits(faults: &mut Faults, container: &ContainerSpec) {
    faults.each("ulimits", &container.ulimits, |faults, ulimit| {
        faults.check(ULIMITS.contains(&ulimit.name.as_str()), "name", || {
            format!("{} is not a limit; there are {}", show_plain(&ulimit.name.as_str().into()), ULIMITS.join(", "))
        });
        let above = |soft: i64, hard: i64| hard != -1 && (soft == -1 || soft > hard);
        if let Some(hard) = ulimit.hard.filter(|hard| above(ulimit.soft, *hard)) {
            faults.add("soft", format!("{} is above hard ({hard})", ulimit.soft));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SYS", Some(31)),
            ("0", None),
            ("65", None),
            ("SIGNOPE", None),
            ("SIGRTMIN3", None),
            ("", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
