//! How many there are of everything that exists once for each container.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use containerd_client::services::v1::snapshots::ListSnapshotsRequest;
use containerd_client::services::v1::{ListContainersRequest, ListTasksRequest};
use controllers::node::containerd::{Connection, DEFAULT_NAMESPACE};
use serde_json::Value;

use crate::parts::machine::Machine;

/// Counts by what is counted. On a machine at rest all are the number of tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub counts: BTreeMap<&'static str, usize>,
}

impl Census {
    /// Counts on a machine whose containerd answers and whose firewall table is there.
    pub fn take(machine: &Machine) -> Result<Census> {
        let installation = machine.installation();
        let run = machine.seen(&installation.run);
        let mut counts = BTreeMap::new();
        let groups: BTreeSet<String> = machine.groups().iter().flat_map(|group| folders(group)).collect();
        counts.insert("control groups", groups.iter().filter(|name| *name != "keep").count());
        let shims = machine.processes().into_iter().filter(|(_, words)| words[0].ends_with("containerd-shim-runc-v2"));
        counts.insert("shims", shims.count());
        let state = run.join("containerd/io.containerd.runtime.v2.task").join(DEFAULT_NAMESPACE);
        counts.insert("containerd's folders", folders(&state).len());
        counts.insert("the runtime's folders", folders(&run.join("runc").join(DEFAULT_NAMESPACE)).len());
        counts.insert("network namespaces", entries(&run.join("apply/netns")).len());
        let pipes = entries(&run.join("apply/pipes"));
        let pipes: BTreeSet<&str> = pipes.iter().filter_map(|name| Some(name.rsplit_once('.')?.0)).collect();
        counts.insert("sets of pipes", pipes.len());
        counts.insert("folders of tasks", folders(&run.join("apply/tasks")).len());
        let mounted = fs::read_to_string(format!("/proc/{}/mountinfo", machine.init()))?;
        // A machine also has the mounts that its host had when it began: those are somebody else's.
        let own = format!(" {}/", installation.run.display());
        let own: Vec<&str> = mounted.lines().filter(|line| line.contains(&own)).collect();
        let count = |needle: &str| own.iter().filter(|line| line.contains(needle)).count();
        counts.insert("root file systems", count(" - overlay overlay rw,lowerdir="));
        counts.insert("mounted namespaces", count(" - nsfs "));
        let links = machine.inside("ip").args(["-o", "link", "show", "type", "veth"]).output()?;
        let prefix = format!(": {}t", installation.links);
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        counts.insert("links", links.lines().filter(|line| line.contains(&prefix)).count());
        counts.insert("addresses in the firewall", firewall(machine)?);
        counts.extend(containerd(&machine.seen(&installation.containerd_socket()))?);
        Ok(Census { counts })
    }

    /// What is not `wanted` times there.
    pub fn other_than(&self, wanted: usize) -> Vec<String> {
        let other = self.counts.iter().filter(|(_, count)| **count != wanted);
        other.map(|(what, count)| format!("{count} {what}")).collect()
    }
}

/// Tasks whose address nftables knows.
fn firewall(machine: &Machine) -> Result<usize> {
    let table = machine.installation().table.as_str();
    let output = machine.inside("nft").args(["-j", "list", "set", "inet", table, "owner4"]).output()?;
    let listed: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("nft: {}", String::from_utf8_lossy(&output.stderr)))?;
    let objects = listed["nftables"].as_array().cloned().unwrap_or_default();
    Ok(objects.iter().filter_map(|object| object["set"]["elem"].as_array()).map(Vec::len).sum())
}

fn containerd(socket: &Path) -> Result<[(&'static str, usize); 3]> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connection = Connection::new(socket, DEFAULT_NAMESPACE)?.within(std::time::Duration::from_secs(10));
        let said = |status: tonic::Status| anyhow!("containerd: {status}");
        let records = connection.containers().list(ListContainersRequest::default()).await.map_err(said)?;
        let tasks = connection.tasks().list(ListTasksRequest::default()).await.map_err(said)?;
        let request = ListSnapshotsRequest { snapshotter: "overlayfs".to_owned(), ..ListSnapshotsRequest::default() };
        let mut snapshots = connection.snapshots().list(request).await.map_err(said)?.into_inner();
        let mut layers = 0;
        while let Some(part) = snapshots.message().await.map_err(said)? {
            // Committed ones are the images'.
            layers += part.info.iter().filter(|info| info.kind() != COMMITTED).count();
        }
        let (records, tasks) = (records.into_inner().containers.len(), tasks.into_inner().tasks.len());
        Ok([("records in containerd", records), ("tasks in containerd", tasks), ("writable layers", layers)])
    })
}

const COMMITTED: containerd_client::services::v1::snapshots::Kind =
    containerd_client::services::v1::snapshots::Kind::Committed;

fn folders(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
