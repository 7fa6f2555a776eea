//! The control groups of a machine: one in each hierarchy, in which all of it runs, and which is the root to whoever looks from
//! inside. Where there is only cgroup2, a machine has no namespace of them: its root would hold processes and groups at once.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::machine::kill;

/// A hierarchy that is mounted here.
struct Hierarchy {
    point: PathBuf,
    /// What it is mounted by: the controllers of v1 (`cpu,cpuacct`, `none,name=systemd`); `None`: it is of v2.
    controllers: Option<String>,
}

fn hierarchies() -> Vec<Hierarchy> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(hierarchy).collect()
}

fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (mount, kind) = line.split_once(" - ")?;
    let point = PathBuf::from(mount.split(' ').nth(4)?);
    let mut words = kind.split(' ');
    let controllers = match words.next()? {
        "cgroup2" => None,
        "cgroup" => {
            const OTHERS: [&str; 6] = ["rw", "ro", "xattr", "noprefix", "clone_children", "release_agent"];
            let options = words.nth(1)?.split(',');
            let named: Vec<&str> =
                options.filter(|option| !OTHERS.contains(&option.split('=').next().unwrap_or_default())).collect();
            let unbound = named.iter().all(|name| name.starts_with("name=")).then_some("none");
            Some(unbound.into_iter().chain(named).collect::<Vec<_>>().join(","))
        }
        _ => return None,
    };
    Some(Hierarchy { point, controllers })
}

/// Whether machines have a namespace of control groups here.
fn apart(hierarchies: &[Hierarchy]) -> bool {
    hierarchies.iter().any(|hierarchy| hierarchy.controllers.is_some())
}

/// A machine's control groups.
#[derive(Clone, Debug)]
pub struct Groups {
    name: String,
    /// Its own one in each hierarchy; none where it has no namespace of them.
    own: Vec<PathBuf>,
}

impl Groups {
    /// Of that name, below the root.
    pub fn of(name: &str) -> Self {
        let hierarchies = hierarchies();
        let own = match apart(&hierarchies) {
            true => hierarchies.iter().map(|hierarchy| hierarchy.point.join(name)).collect(),
            false => Vec::new(),
        };
        Self { name: name.to_owned(), own }
    }

    /// Makes them.
    pub fn make(&self) -> Result<()> {
        for group in &self.own {
            let made = || {
                fs::create_dir_all(group)?;
                // A cpuset without processors takes nobody in.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let above = group.parent().unwrap_or(group).join(file);
                    if group.join(file).exists() && above.exists() {
                        fs::write(group.join(file), fs::read(above)?)?;
                    }
                }
                // Beside processes that are in no group it counts as one of them; it is a whole machine.
                let shares = group.join("cpu.shares");
                if shares.exists() { fs::write(shares, "16384") } else { Ok(()) }
            };
            made().with_context(|| format!("could not make the control group {}", group.display()))?;
        }
        Ok(())
    }

    /// A line for `sh` by which it goes there, with all that it starts.
    pub fn enter(&self) -> String {
        self.own.iter().fold(String::new(), |mut text, group| {
            let _ = write!(text, "echo 0 > {}/cgroup.procs; ", group.display());
            text
        })
    }

    /// What makes the namespace, as `unshare` and `nsenter` know it.
    pub fn namespace(&self) -> Option<&'static str> {
        (!self.own.is_empty()).then_some("--cgroup")
    }

    /// A line for `sh` that mounts each hierarchy as it is seen from inside. `v1_only`: cgroup2 beside v1 is left out.
    pub fn mount(&self, v1_only: bool) -> String {
        let hierarchies = hierarchies();
        if self.own.is_empty() {
            return String::new();
        }
        let mut text = "mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup; ".to_owned();
        for Hierarchy { point, controllers } in hierarchies {
            let at = point.display();
            let _ = match controllers {
                Some(controllers) => write!(text, "mkdir {at}; mount -t cgroup -o {controllers} cgroup {at}; "),
                None if v1_only => Ok(()),
                None => write!(text, "mkdir {at}; mount -t cgroup2 cgroup2 {at}; "),
            };
        }
        text
    }

    /// That of its containers, in each hierarchy that has it.
    pub fn of_containers(&self) -> Vec<PathBuf> {
        match self.own.is_empty() {
            true => named(&self.name),
            false => self.own.iter().map(|own| own.join(&self.name)).filter(|group| group.is_dir()).collect(),
        }
    }

    /// Ends what is left in them, and removes what is empty; whether nothing is there any more.
    pub fn are_gone(&self) -> bool {
        named(&self.name).iter().for_each(|group| end(group));
        named(&self.name).is_empty()
    }
}

/// The control group of this name below the root, in each hierarchy that has it.
pub fn named(name: &str) -> Vec<PathBuf> {
    hierarchies().into_iter().map(|hierarchy| hierarchy.point.join(name)).filter(|group| group.is_dir()).collect()
}

/// Kills what is in a control group and those below it, and removes what is empty. To be called until it is gone.
fn end(group: &Path) {
    for below in fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        end(&below.path());
    }
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in listed.lines().filter_map(|pid| pid.parse().ok()) {
        let _ = kill(pid);
    }
    let _ = fs::remove_dir(group);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_mounted_again_by_what_it_is_bound_to() {
        let of = |line: &str| hierarchy(line).map(|found| (found.point.display().to_string(), found.controllers));
        let at = "/sys/fs/cgroup/x".to_owned();
        for (options, controllers) in [
            ("rw,memory", "memory"),
            ("rw,cpu,cpuacct", "cpu,cpuacct"),
            ("rw,xattr,name=systemd", "none,name=systemd"),
            ("rw,xattr,release_agent=/x,name=systemd", "none,name=systemd"),
        ] {
            let line = format!("32 31 0:29 / /sys/fs/cgroup/x rw,relatime shared:7 - cgroup cgroup {options}");
            assert_eq!(of(&line), Some((at.clone(), Some(controllers.to_owned()))));
        }
        assert_eq!(of("41 31 0:38 / /sys/fs/cgroup/x rw - cgroup2 cgroup2 rw"), Some((at, None)));
        assert_eq!(of("31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755"), None);
    }
}
