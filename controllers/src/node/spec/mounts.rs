//! The mount table: what every container has, and what is mounted over it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::{Fault, INIT};
use crate::node::containerd::container_spec::{Access, ContainerSpec, Mount, MountKind, Propagation};

/// Docker's size of `/dev/shm`.
const SHM_BYTES: u64 = 64 << 20;

/// Defaults, init, then the wanted ones, nearest to the root first; one on the same target replaces a default.
pub(super) fn mounts(wanted: &ContainerSpec) -> Result<Vec<Value>, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut ours: BTreeMap<(usize, PathBuf), Value> = BTreeMap::new();
    for mount in &wanted.mounts {
        let target = normal(&mount.target);
        let at_root = target == Path::new("/");
        if !mount.target.is_absolute() || at_root {
            faults.push(Fault::NotAbsolute { what: "mount target", path: mount.target.clone() });
        }
        if let MountKind::Bind { source, .. } = &mount.kind
            && !source.is_absolute()
        {
            faults.push(Fault::NotAbsolute { what: "mount source", path: source.clone() });
        }
        if ours.insert((target.components().count(), target.clone()), one(mount, &target)).is_some() {
            faults.push(Fault::TwoMounts { target });
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let shm = wanted.isolation.shm_bytes.unwrap_or(SHM_BYTES);
    let replaced = |target: &str| ours.keys().any(|(_, ours)| ours == Path::new(target));
    let mut mounts: Vec<Value> =
        defaults(shm).into_iter().filter(|(target, _)| !replaced(target)).map(|(_, mount)| mount).collect();
    if let Some(init) = &wanted.process.init {
        mounts.push(json!({"destination": INIT, "type": "bind", "source": init, "options": ["bind", "ro"]}));
    }
    mounts.extend(ours.into_values());
    Ok(mounts)
}

/// A bind mount that shares its propagation with the machine needs a root that lets it through. `None`: the runtimes'
/// own default, under which nothing gets out.
pub(super) fn root_propagation(mounts: &[Mount]) -> Option<&'static str> {
    let wants = |wanted: Propagation| {
        mounts.iter().any(|m| matches!(m.kind, MountKind::Bind { propagation, .. } if propagation == wanted))
    };
    if wants(Propagation::Shared) {
        Some("shared")
    } else if wants(Propagation::Slave) {
        Some("rslave")
    } else {
        None
    }
}

fn defaults(shm_bytes: u64) -> Vec<(&'static str, Value)> {
    let mount = |target: &'static str, kind: &str, source: &str, options: &[&str]| {
        (target, json!({"destination": target, "type": kind, "source": source, "options": options}))
    };
    let shm = format!("size={shm_bytes}");
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
    ]
}

fn one(mount: &Mount, target: &Path) -> Value {
    let access = match mount.access {
        Access::ReadWrite => "rw",
        Access::ReadOnly => "ro",
        Access::ReadOnlyRecursive => "rro",
    };
    match &mount.kind {
        MountKind::Bind { source, recursive, propagation } => {
            let bind = if *recursive { "rbind" } else { "bind" };
            let propagation = match (propagation, recursive) {
                (Propagation::Private, true) => "rprivate",
                (Propagation::Private, false) => "private",
                (Propagation::Shared, true) => "rshared",
                (Propagation::Shared, false) => "shared",
                (Propagation::Slave, true) => "rslave",
                (Propagation::Slave, false) => "slave",
            };
            json!({
                "destination": target, "type": "bind", "source": source, "options": [bind, propagation, access],
            })
        }
        MountKind::Tmpfs { bytes_max, mode, exec } => {
            let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
            options.extend((!exec).then(|| "noexec".to_owned()));
            options.push(if mount.access == Access::ReadWrite { "rw" } else { "ro" }.to_owned());
            options.extend(bytes_max.map(|bytes| format!("size={bytes}")));
            options.extend(mode.map(|mode| format!("mode={mode:o}")));
            json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options})
        }
    }
}

/// Without `.`, `..` and doubled slashes, so that equal targets compare equal.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => _ = normal.pop(),
            _ => {}
        }
    }
    normal
}
