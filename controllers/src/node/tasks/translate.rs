//! From a task and its template to what is wanted of its surroundings and its container. Pure but for what
//! the machine has: numbers of devices, limits, an init.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reconciler::api::ObjectRef;
use schemas::kinds::task::Task;
use schemas::kinds::template::{
    AppArmor, BindOptions, ContainerSpec as Wanted, MountType, Propagation as Propagated, ReadOnlyBelow,
    Resources as Limits, SeccompMode, TaskTemplate, Ulimit,
};

use super::containers::{LABEL_ATTEMPT, LABEL_NAME, LABEL_NAMESPACE, LABEL_UID};
use super::observe::{Addressing, ImageHere, Seen};
use super::surroundings::{File, Place, Prepared, VolumeMount};
use crate::node::containerd::container_spec::{
    Access, Device, Isolation, Mount, MountKind, Process, Propagation, Resources, Rlimit, Seccomp, Stdio,
};
use crate::node::containerd::{ContainerId, ContainerSpec, ImageRoot};
use crate::node::spec::limits;

pub(super) fn place(seen: &Seen, task: &Task, template: &TaskTemplate, image: &ImageHere, id: ContainerId) -> Place {
    let addresses = match &seen.addresses {
        Addressing::Given(addresses) => addresses.iter().map(|address| address.address).collect(),
        Addressing::Waiting(_) => Vec::new(),
    };
    let container = &template.container;
    let volumes = container.mounts.iter().filter(|mount| mount.kind == MountType::Volume).map(|mount| {
        let options = mount.volume.clone().unwrap_or_default();
        VolumeMount {
            name: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
            copy: !options.no_copy,
            subpath: options.subpath,
        }
    });
    let files = container.files().map(|(kind, file)| File {
        kind,
        source: ObjectRef::new(&task.metadata.namespace, &file.source),
        target: file.path(kind),
        uid: file.uid.unwrap_or_default(),
        gid: file.gid.unwrap_or_default(),
        mode: file.mode(),
    });
    let declared = image.config.config().as_ref().and_then(|config| config.volumes().clone()).unwrap_or_default();
    let own =
        declared.into_iter().filter(|target| !container.mounts.iter().any(|mount| same_path(&mount.target, target)));
    let own = own.map(|target| VolumeMount { name: None, target, read_only: false, copy: true, subpath: None });
    Place {
        uid: seen.uid.clone(),
        namespace: task.metadata.namespace.clone(),
        container: id,
        addresses,
        mtu: seen.mtu,
        hostname: hostname(task, container),
        hosts: container.hosts.clone(),
        dns: container.dns.clone(),
        volumes: volumes.chain(own).collect(),
        files: files.collect(),
        image_layers: image.layers.clone(),
    }
}

pub(super) fn container(
    task: &Task,
    template: &TaskTemplate,
    image: &ImageHere,
    id: &ContainerId,
    attempt: u32,
    prepared: &Prepared,
) -> Result<ContainerSpec, String> {
    let wanted = &template.container;
    let config = image.config.config().clone().unwrap_or_default();
    let root = ImageRoot { name: image.name(), parent: image.layers.clone(), config };
    let mut mounts = prepared.mounts.clone();
    for mount in &wanted.mounts {
        mounts.extend(mount_of(mount)?);
    }
    Ok(ContainerSpec {
        id: id.clone(),
        labels: labels(task, wanted, attempt),
        image: root,
        process: process(wanted)?,
        isolation: isolation(task, wanted, prepared)?,
        mounts,
        resources: resources(&template.resources),
        stdio: Stdio { stdin: None, stdout: prepared.stdout.clone(), stderr: prepared.stderr.clone() },
    })
}

fn labels(task: &Task, wanted: &Wanted, attempt: u32) -> BTreeMap<String, String> {
    let mut labels = wanted.labels.clone();
    labels.insert(LABEL_UID.to_owned(), task.metadata.uid.to_string());
    labels.insert(LABEL_NAMESPACE.to_owned(), task.metadata.namespace.clone());
    labels.insert(LABEL_NAME.to_owned(), task.metadata.name.clone());
    labels.insert(LABEL_ATTEMPT.to_owned(), attempt.to_string());
    labels
}

fn hostname(task: &Task, wanted: &Wanted) -> String {
    wanted.hostname.clone().unwrap_or_else(|| task.metadata.name.clone())
}

fn process(wanted: &Wanted) -> Result<Process, String> {
    let some = |words: &Vec<String>| (!words.is_empty()).then(|| words.clone());
    let env = wanted.env.iter().map(|variable| match &variable.value {
        Some(value) => format!("{}={value}", variable.name),
        None => variable.name.clone(),
    });
    Ok(Process {
        entrypoint: some(&wanted.command),
        command: some(&wanted.args),
        env: env.collect(),
        working_dir: wanted.dir.clone(),
        user: wanted.user.clone(),
        groups: wanted.groups.clone(),
        tty: wanted.tty,
        init: wanted.init.then(init).transpose()?,
    })
}

/// The small init that is put into containers that want one (Debian's tini-static).
fn init() -> Result<PathBuf, String> {
    let path = PathBuf::from("/usr/bin/tini-static");
    match path.exists() {
        true => Ok(path),
        false => Err(format!("init: {} is not on this machine (Debian has it in the package tini)", path.display())),
    }
}

fn isolation(task: &Task, wanted: &Wanted, prepared: &Prepared) -> Result<Isolation, String> {
    let mut devices = Vec::new();
    for device in &wanted.devices {
        let inside = device.target.as_deref().unwrap_or(&device.source);
        let access = device.permissions.as_deref().unwrap_or("rwm");
        let found = Device::of_machine(Path::new(&device.source), Path::new(inside), access);
        devices.push(found.map_err(|error| format!("device {}: {error}", device.source))?);
    }
    let seccomp = match wanted.privileges.seccomp.as_ref().map(|seccomp| seccomp.mode) {
        None | Some(SeccompMode::Default) => Seccomp::Default,
        Some(SeccompMode::Unconfined) => Seccomp::Unconfined,
        Some(SeccompMode::Custom) => return Err("a seccomp profile of one's own is not acted on yet".to_owned()),
    };
    if wanted.privileges.apparmor == Some(AppArmor::Default) {
        return Err("AppArmor profiles are not acted on yet".to_owned());
    }
    Ok(Isolation {
        hostname: Some(hostname(task, wanted)),
        domainname: None,
        network_namespace: prepared.network_namespace.clone(),
        read_only_rootfs: wanted.read_only,
        no_new_privileges: wanted.privileges.no_new_privileges,
        capabilities_add: wanted.capabilities.add.clone(),
        capabilities_drop: wanted.capabilities.drop.clone(),
        seccomp,
        apparmor_profile: None,
        sysctls: wanted.sysctls.clone(),
        rlimits: wanted.ulimits.iter().map(rlimit).collect::<Result<_, _>>()?,
        devices,
        oom_score_adj: wanted.oom_score_adj,
        shm_bytes: None,
    })
}

fn rlimit(limit: &Ulimit) -> Result<Rlimit, String> {
    let bound = |value: i64| u64::try_from(value).ok();
    let limit =
        Rlimit { name: limit.name.clone(), soft: bound(limit.soft), hard: bound(limit.hard.unwrap_or(limit.soft)) };
    match limits::refusal(&limit) {
        Some(refusal) => Err(refusal),
        None => Ok(limit),
    }
}

fn resources(wanted: &Limits) -> Resources {
    Resources {
        memory_bytes_max: wanted.limits.memory.map(|size| size.bytes()),
        memory_bytes_reserved: wanted.reservations.memory.map(|size| size.bytes()),
        swap_bytes_max: wanted.limits.swap.map(|size| size.bytes()),
        nano_cpus: wanted.limits.cpus.map(|cpus| cpus.nano()),
        cpu_shares: None,
        cpuset_cpus: None,
        cpuset_mems: None,
        pids_max: wanted.limits.pids.map(u64::from),
    }
}

/// Volumes are mounted by the surroundings; the rest here.
fn mount_of(mount: &schemas::kinds::template::Mount) -> Result<Option<Mount>, String> {
    let target = PathBuf::from(&mount.target);
    Ok(Some(match mount.kind {
        MountType::Volume => return Ok(None),
        MountType::Tmpfs => {
            let options = mount.tmpfs.clone().unwrap_or_default();
            let mode = options.mode.as_deref().map(|mode| u32::from_str_radix(mode, 8));
            let mode = mode.transpose().map_err(|_| format!("mount {}: its mode is no octal number", mount.target))?;
            let exec = options.options.iter().any(|option| option == "exec");
            let access = if mount.read_only { Access::ReadOnly } else { Access::ReadWrite };
            Mount {
                target,
                kind: MountKind::Tmpfs { bytes_max: options.size.map(|size| size.bytes()), mode, exec },
                access,
            }
        }
        MountType::Bind => {
            let options = mount.bind.clone().unwrap_or_default();
            let source = PathBuf::from(mount.source.as_deref().unwrap_or_default());
            bind_source(&source, &options)?;
            let kind = MountKind::Bind {
                source,
                recursive: !options.non_recursive,
                propagation: propagation(options.propagation),
            };
            let access = match (mount.read_only, options.read_only_below) {
                (false, _) => Access::ReadWrite,
                (true, Some(ReadOnlyBelow::Force)) => Access::ReadOnlyRecursive,
                (true, _) => Access::ReadOnly,
            };
            Mount { target, kind, access }
        }
        MountType::Cluster | MountType::Image | MountType::Npipe => {
            return Err(format!("mount {}: this type is not acted on yet", mount.target));
        }
    }))
}

fn bind_source(source: &Path, options: &BindOptions) -> Result<(), String> {
    if options.create {
        std::fs::create_dir_all(source).map_err(|error| format!("cannot make {}: {error}", source.display()))?;
    }
    match source.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("bind source {} does not exist on this machine", source.display())),
        Err(error) => Err(format!("bind source {}: {error}", source.display())),
    }
}

fn propagation(stated: Option<Propagated>) -> Propagation {
    match stated {
        None | Some(Propagated::Private | Propagated::Rprivate) => Propagation::Private,
        Some(Propagated::Shared | Propagated::Rshared) => Propagation::Shared,
        Some(Propagated::Slave | Propagated::Rslave) => Propagation::Slave,
    }
}

fn same_path(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}
