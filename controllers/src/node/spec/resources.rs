//! The limits of the cgroup.

use serde_json::{Value, json};

use super::{Device, DeviceKind, Host};
use crate::node::containerd::container_spec::Resources;

/// The period of the CPU quota in microseconds (the kernel's and Docker's default).
const CPU_PERIOD_US: u64 = 100_000;
/// The smallest quota that the kernel takes, in microseconds.
const CPU_QUOTA_US_MIN: u64 = 1_000;

/// The `linux.resources` part of a runtime spec; also what an update of a running container is sent.
pub fn linux_resources(wanted: &Resources, devices: &[Device], host: &Host) -> Value {
    let mut resources = serde_json::Map::new();
    // All denied; runc and crun themselves allow what every container needs (null, zero, tty, …).
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    rules.extend(devices.iter().map(|d| {
        let kind = if d.kind == DeviceKind::Char { "c" } else { "b" };
        json!({"allow": true, "type": kind, "major": d.major, "minor": d.minor, "access": d.access})
    }));
    resources.insert("devices".to_owned(), rules.into());

    let mut memory = serde_json::Map::new();
    if let Some(limit) = wanted.memory_bytes_max {
        memory.insert("limit".to_owned(), json!(limit));
        if host.accounts_swap {
            // OCI counts memory and swap together.
            let swap = wanted.swap_bytes_max.unwrap_or(limit);
            memory.insert("swap".to_owned(), json!(limit.saturating_add(swap).min(i64::MAX as u64)));
        }
    }
    if let Some(reserved) = wanted.memory_bytes_reserved {
        memory.insert("reservation".to_owned(), json!(reserved));
    }
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = wanted.cpu_shares {
        cpu.insert("shares".to_owned(), json!(shares));
    }
    if let Some(nano_cpus) = wanted.nano_cpus {
        let quota = u128::from(nano_cpus) * u128::from(CPU_PERIOD_US) / 1_000_000_000;
        let quota = u64::try_from(quota).unwrap_or(u64::MAX).clamp(CPU_QUOTA_US_MIN, i64::MAX as u64);
        cpu.insert("period".to_owned(), json!(CPU_PERIOD_US));
        cpu.insert("quota".to_owned(), json!(quota));
    }
    for (name, set) in [("cpus", &wanted.cpuset_cpus), ("mems", &wanted.cpuset_mems)] {
        if let Some(set) = set {
            cpu.insert(name.to_owned(), json!(set));
        }
    }
    for (name, part) in [("memory", memory), ("cpu", cpu)] {
        if !part.is_empty() {
            resources.insert(name.to_owned(), part.into());
        }
    }
    if let Some(limit) = wanted.pids_max {
        resources.insert("pids".to_owned(), json!({"limit": limit}));
    }
    resources.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { unified_cgroups: false, accounts_swap: true, arch: "x86_64" };

    #[test]
    fn nothing_wanted_limits_nothing() {
        let resources = linux_resources(&Resources::default(), &[], &HOST);
        assert_eq!(resources, json!({"devices": [{"allow": false, "access": "rwm"}]}));
    }

    #[test]
    fn units_are_converted_and_swap_is_left_out_where_it_cannot_be_had() {
        let wanted = Resources {
            memory_bytes_max: Some(64 << 20),
            nano_cpus: Some(1_500_000_000),
            pids_max: Some(10),
            cpuset_cpus: Some("0-1".to_owned()),
            ..Resources::default()
        };
        let resources = linux_resources(&wanted, &[], &HOST);
        assert_eq!(resources["memory"], json!({"limit": 67_108_864, "swap": 134_217_728}));
        assert_eq!(resources["cpu"], json!({"period": 100_000, "quota": 150_000, "cpus": "0-1"}));
        assert_eq!(resources["pids"], json!({"limit": 10}));
        let without = linux_resources(&wanted, &[], &Host { accounts_swap: false, ..HOST });
        assert_eq!(without["memory"], json!({"limit": 67_108_864}));
        let tiny = linux_resources(&Resources { nano_cpus: Some(1), ..Resources::default() }, &[], &HOST);
        assert_eq!(tiny["cpu"]["quota"], json!(1_000));
    }
}
