//! Everything on a machine, by name: to be taken before and after, and compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::parts::machine::{Machine, command_line};

/// Of a machine of tests: its processes, mounts, links, firewall tables, control groups, and the files of its `/run` and
/// its disk, but for those that one and the same process writes all the time (stores, logs, content).
pub fn inventory(machine: &Machine) -> Result<BTreeSet<String>> {
    let files = [machine.seen(Path::new("/run")), machine.folder().join("apply/logs")];
    let mut found = of_process(machine.init(), &machine.installation().group, &files)?;
    // containerd's shim cleans up after a task that it was killed in the midst of making; which root its runtime was told
    // it does not know by then, and runc makes the folder of the usual one in order to find nothing there. What lies in
    // it would be seen.
    for folder in ["/run/containerd/runc", "/run/containerd/runc/apply"] {
        found.remove(&format!("file {}", machine.seen(Path::new(folder)).display()));
    }
    Ok(found)
}

/// Of where this process is: its namespaces of processes, mounts and network; `group` is a control group that should not
/// be there, `folders` are walked.
pub fn inventory_here(group: &str, folders: &[PathBuf]) -> Result<BTreeSet<String>> {
    of_process(std::process::id(), group, folders)
}

fn of_process(pid: u32, group: &str, folders: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let own = fs::read_link(format!("/proc/{pid}/ns/pid"))?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(other) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let inside = fs::read_link(format!("/proc/{other}/ns/pid")).is_ok_and(|namespace| namespace == own);
        // Namespaces of processes nest: a container's processes are in one of their own, and their group is seen below.
        if let Some(words) = command_line(other).filter(|_| inside && other != pid) {
            found.insert(format!("process {}", words.join(" ")));
        }
    }
    for line in fs::read_to_string(format!("/proc/{pid}/mountinfo"))?.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        let kind = line.split_once(" - ").and_then(|(_, kind)| kind.split(' ').next()).unwrap_or_default();
        found.insert(format!("mount {kind} {point}"));
    }
    for (what, command) in
        [("link", "ip -o link"), ("table", "nft list tables"), ("route", "ip -o route"), ("rule", "ip -o rule")]
    {
        let mut words = command.split(' ');
        let output = Command::new("nsenter")
            .args(["-t", &pid.to_string(), "-n", "--", words.next().unwrap_or_default()])
            .args(words)
            .output()
            .with_context(|| format!("could not run {command}"))?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            // A link's number and state change with nothing lost.
            let line = if what == "link" { line.split(": ").nth(1).unwrap_or(line) } else { line };
            found.insert(format!("{what} {}", line.trim()));
        }
    }
    for group in crate::parts::machine::groups(group) {
        walk(&group, &mut |path, is_folder| {
            if is_folder {
                found.insert(format!("control group {}", path.display()));
            }
        });
    }
    for folder in folders {
        walk(folder, &mut |path, _| {
            found.insert(format!("file {}", path.display()));
        });
    }
    Ok(found)
}

/// Itself and all below, without following links and without entering what is mounted on a container's behalf.
fn walk(folder: &Path, see: &mut impl FnMut(&Path, bool)) {
    if folder.is_dir() {
        see(folder, true);
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && entry.file_name() == "rootfs" => see(&entry.path(), true),
            Ok(kind) if kind.is_dir() => walk(&entry.path(), see),
            _ => see(&entry.path(), false),
        }
    }
}

/// What one has and the other has not, in words.
pub fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let more = after.difference(before).map(|line| format!("+ {line}"));
    let less = before.difference(after).map(|line| format!("- {line}"));
    more.chain(less).collect()
}
