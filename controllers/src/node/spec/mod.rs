//! From what is wanted of a container to the document that runc and crun read: the OCI runtime spec.
//!
//! [`build`] is a pure function of the container's spec, the image's accounts and a few facts about the machine. Where
//! the container says nothing the outcome is what Docker gives: its capabilities, seccomp filter, masked paths, mounts
//! and merge rules. Bad input gives all its faults at once, in words for the person who wrote it.
//!
//! Reading order: `process` (arguments, environment, directory), [`accounts`] (users and groups), `capabilities`,
//! `seccomp`, `mounts`, `resources`.

pub mod accounts;
mod capabilities;
pub(crate) mod limits;
mod mounts;
mod process;
mod resources;
mod seccomp;
pub mod signal;

pub use accounts::{Accounts, Identity};
pub use resources::linux_resources;
pub use signal::Signal;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::node::containerd::container_spec::{ContainerSpec, Device, DeviceKind, Isolation, Rlimit, Seccomp};
use crate::node::containerd::runtime::Exec;

pub(crate) use process::overlay;

/// What the document depends on beside the container: how this machine is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// cgroup v2 alone, not v1 or both.
    pub unified_cgroups: bool,
    /// The kernel can limit swap; without it a swap limit is left out (as Docker does).
    pub accounts_swap: bool,
    /// As `std::env::consts::ARCH` names it.
    pub arch: &'static str,
}

/// Why no container can be made of this. The same input will be refused again.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Refused {
    /// At least one.
    pub faults: Vec<Fault>,
}

/// One thing that is wrong with a container's spec.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    #[error("no command: neither the image nor the service names one")]
    NoCommand,
    #[error("no user {user} in the image")]
    NoUser { user: String },
    #[error("no group {group} in the image")]
    NoGroup { group: String },
    #[error("no capability {name}")]
    NoCapability { name: String },
    #[error("no resource limit {name}")]
    NoRlimit { name: String },
    #[error("limit {name}: soft {soft} is over hard {hard}")]
    SoftOverHard { name: String, soft: u64, hard: u64 },
    #[error("{what} {path} is not an absolute path")]
    NotAbsolute { what: &'static str, path: PathBuf },
    #[error("{what} has a zero byte in it")]
    ZeroByte { what: &'static str },
    #[error("environment variable {variable:?} has no name")]
    NoName { variable: String },
    #[error("two mounts at {target}")]
    TwoMounts { target: PathBuf },
}

/// Where Docker's own init sits in its containers; tools look for it there.
const INIT: &str = "/sbin/docker-init";

/// Hidden from containers: they would show or change the machine (Docker's list).
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const MASKED_POWER: &str = "/sys/devices/virtual/powercap";
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's since 20.10: an ordinary user may bind low ports and ping, inside a network namespace of its own.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// The runtime spec of a container. `cgroup` is its cgroup's path from the root of each hierarchy.
pub fn build(wanted: &ContainerSpec, accounts: &Accounts, cgroup: &str, host: &Host) -> Result<Value, Refused> {
    let mut faults = Vec::new();
    let (image, isolation) = (&wanted.image.config, &wanted.isolation);
    let process = &wanted.process;
    let hostname = isolation.hostname.clone().unwrap_or_else(|| wanted.id.as_str().chars().take(12).collect());

    let mut arguments = process::arguments(image, process);
    if arguments.is_empty() {
        faults.push(Fault::NoCommand);
    }
    if process.init.is_some() {
        arguments.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
    }
    let environment = process::environment(image, process, &hostname);
    let working_dir = process::working_dir(image, process);
    let said_dir = process.working_dir.as_deref().filter(|dir| !dir.is_empty() && !dir.starts_with('/'));
    faults.extend(said_dir.map(|dir| Fault::NotAbsolute { what: "working directory", path: dir.into() }));
    faults.extend(zero_bytes("the command", &arguments).chain(zero_bytes("the environment", &environment)));
    faults.extend(
        environment.iter().filter(|v| process::name_of(v).is_empty()).map(|v| Fault::NoName { variable: v.clone() }),
    );

    let user = process.user.as_deref().filter(|user| !user.is_empty()).or(image.user().as_deref()).unwrap_or_default();
    let identity = or_faults(accounts.identity(user, &process.groups), &mut faults);
    let granted = capabilities::granted(&isolation.capabilities_add, &isolation.capabilities_drop);
    let granted = or_faults(granted, &mut faults).unwrap_or_default();
    let rlimits = or_faults(rlimits(&isolation.rlimits), &mut faults);
    let mounts = or_faults(mounts::mounts(wanted), &mut faults);
    let Some(((identity, rlimits), mounts)) = identity.zip(rlimits).zip(mounts).filter(|_| faults.is_empty()) else {
        return Err(Refused { faults });
    };

    let names: Vec<String> = granted.iter().map(|name| format!("CAP_{name}")).collect();
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": isolation.read_only_rootfs},
        "hostname": hostname,
        "process": {
            "terminal": process.tty,
            "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups},
            "args": arguments,
            "env": environment,
            "cwd": working_dir,
            "capabilities": capabilities_of(identity.uid, &json!(names)),
            "rlimits": rlimits,
            "noNewPrivileges": isolation.no_new_privileges,
            // Always said: it would be inherited from containerd, which protects itself.
            "oomScoreAdj": isolation.oom_score_adj,
        },
        "mounts": mounts,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces(isolation, host),
            "resources": resources::linux_resources(&wanted.resources, &isolation.devices, host),
            "devices": devices(&isolation.devices),
            "sysctl": sysctls(isolation),
            "maskedPaths": MASKED.iter().chain([&MASKED_POWER]).collect::<Vec<_>>(),
            "readonlyPaths": READ_ONLY,
        },
    });
    if let Some(domainname) = &isolation.domainname {
        spec["domainname"] = json!(domainname);
    }
    if let Some(profile) = &isolation.apparmor_profile {
        spec["process"]["apparmorProfile"] = json!(profile);
    }
    if let Some(propagation) = mounts::root_propagation(&wanted.mounts) {
        spec["linux"]["rootfsPropagation"] = json!(propagation);
    }
    if isolation.seccomp == Seccomp::Default {
        spec["linux"]["seccomp"] = seccomp::default_filter(&granted, host.arch);
    }
    Ok(spec)
}

/// The process of an exec: the container's own (`process` of its runtime spec), changed as wanted.
pub fn exec_process(container: &Value, exec: &Exec, accounts: &Accounts) -> Result<Value, Refused> {
    let mut faults = Vec::new();
    let mut process = container.clone();
    if exec.args.is_empty() {
        faults.push(Fault::NoCommand);
    }
    let mut env: Vec<String> = serde_json::from_value(process["env"].take()).unwrap_or_default();
    if exec.tty && !env.iter().any(|variable| process::name_of(variable) == "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    process::overlay(&mut env, &exec.env);
    faults.extend(zero_bytes("the command", &exec.args).chain(zero_bytes("the environment", &env)));
    process["args"] = json!(exec.args);
    process["env"] = json!(env);
    process["terminal"] = json!(exec.tty);
    if let Some(dir) = &exec.working_dir {
        if !dir.starts_with('/') {
            faults.push(Fault::NotAbsolute { what: "working directory", path: dir.into() });
        }
        process["cwd"] = json!(dir);
    }
    if let Some(user) = &exec.user
        && let Some(identity) = or_faults(accounts.identity(user, &[]), &mut faults)
    {
        process["user"] = json!({"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups});
        process["capabilities"] = capabilities_of(identity.uid, &process["capabilities"]["bounding"].take());
    }
    if faults.is_empty() { Ok(process) } else { Err(Refused { faults }) }
}

/// An ordinary user has none but the bounding set: it would lose them at execve anyway, and Docker gives it none.
fn capabilities_of(uid: u32, bounding: &Value) -> Value {
    match uid {
        0 => json!({"bounding": bounding, "permitted": bounding, "effective": bounding}),
        _ => json!({"bounding": bounding}),
    }
}

/// Moves the faults aside, so that all parts are checked before anything is refused.
fn or_faults<T>(checked: Result<T, Vec<Fault>>, faults: &mut Vec<Fault>) -> Option<T> {
    checked.map_err(|found| faults.extend(found)).ok()
}

fn zero_bytes(what: &'static str, texts: &[String]) -> impl Iterator<Item = Fault> {
    texts.iter().any(|text| text.contains('\0')).then_some(Fault::ZeroByte { what }).into_iter()
}

fn namespaces(isolation: &Isolation, host: &Host) -> Vec<Value> {
    let mut namespaces: Vec<Value> = ["mount", "pid", "ipc", "uts"].iter().map(|kind| json!({"type": kind})).collect();
    namespaces.push(match &isolation.network_namespace {
        Some(path) => json!({"type": "network", "path": path}),
        None => json!({"type": "network"}),
    });
    if host.unified_cgroups {
        // As Docker: private on v2; on v1 programs look for their own path below the mounts.
        namespaces.push(json!({"type": "cgroup"}));
    }
    namespaces
}

fn sysctls(isolation: &Isolation) -> Value {
    let defaults = SYSCTLS.into_iter().map(|(name, value)| (name.to_owned(), json!(value)));
    let wanted = isolation.sysctls.iter().map(|(name, value)| (name.clone(), json!(value)));
    defaults.chain(wanted).collect::<serde_json::Map<_, _>>().into()
}

fn devices(devices: &[Device]) -> Vec<Value> {
    let kind = |device: &Device| match device.kind {
        DeviceKind::Char => "c",
        DeviceKind::Block => "b",
    };
    devices
        .iter()
        .map(|d| json!({"path": d.path, "type": kind(d), "major": d.major, "minor": d.minor, "fileMode": 0o666}))
        .collect()
}

fn rlimits(limits: &[Rlimit]) -> Result<Vec<Value>, Vec<Fault>> {
    let mut faults = Vec::new();
    for limit in limits {
        let (soft, hard) = (limit.soft.unwrap_or(u64::MAX), limit.hard.unwrap_or(u64::MAX));
        if !schemas::ULIMITS.contains(&limit.name.as_str()) {
            faults.push(Fault::NoRlimit { name: limit.name.clone() });
        }
        if soft > hard {
            faults.push(Fault::SoftOverHard { name: limit.name.clone(), soft, hard });
        }
    }
    let value = |limit: &Rlimit| {
        json!({
            "type": format!("RLIMIT_{}", limit.name.to_ascii_uppercase()),
            "soft": limit.soft.unwrap_or(u64::MAX), "hard": limit.hard.unwrap_or(u64::MAX),
        })
    };
    if faults.is_empty() { Ok(limits.iter().map(value).collect()) } else { Err(faults) }
}

#[cfg(test)]
mod tests;
