//! Making a container and letting it run, in the order that `mod.rs` explains.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_client::services::v1::container::Runtime as RuntimeName;
use containerd_client::services::v1::snapshots::{MountsRequest, PrepareSnapshotRequest};
use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, CreateTaskRequest, GetContainerRequest, GetRequest, StartRequest,
    UpdateContainerRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use prost::Message;
use prost_types::{Any, FieldMask};
use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::{Code, Status};

use super::container_spec::{ContainerId, ContainerSpec, ImageRoot};
use super::leftovers::BUNDLES;
use super::messages::{self, RUNC_OPTIONS, RuncOptions, SPEC};
use super::rootfs::Layers;
use super::runtime::{Error, State};
use super::{LABEL_COMPLETE, LABEL_SPEC, SHIM, Shared, TURN_WITHIN, failure};
use crate::node::spec::{self, Accounts};

/// How many images' accounts are kept. Beyond it all are forgotten; the next container of each reads them again.
const ACCOUNTS_MAX: usize = 256;

impl Shared {
    pub(super) async fn create(&self, wanted: &ContainerSpec) -> Result<(), Error> {
        let id = &wanted.id;
        let accounts = self.accounts(wanted).await?;
        let document = spec::build(wanted, &accounts, &self.cgroup(id), &self.host)?;
        let record = self.record(wanted, &document);
        if self.ensure_record(id, record).await? == Begun::Complete {
            return match self.task_status(id).await? {
                Some(_) => Ok(()),
                None => Err(Error::Spent { id: id.clone() }),
            };
        }
        let layers = self.ensure_layer(id, &wanted.image).await?;
        self.ensure_task(wanted, layers).await?;
        self.mark_complete(id).await
    }

    pub(super) async fn start(&self, id: &ContainerId) -> Result<State, Error> {
        let request = StartRequest { container_id: id.to_string(), exec_id: String::new() };
        let status = match self.slow().tasks().start(request).await {
            Ok(answer) => return Ok(State::Running { pid: answer.into_inner().pid }),
            Err(status) => status,
        };
        match self.task(id).await?.map(|task| self.state(id, &task)) {
            Some(state @ (State::Running { .. } | State::Stopped { .. })) => Ok(state),
            _ => Err(failure::error(format!("start container {id}"), status)),
        }
    }

    /// What the task of this container is doing; `None` only if there surely is none.
    pub(super) async fn task_status(&self, id: &ContainerId) -> Result<Option<TaskStatus>, Error> {
        Ok(self.task(id).await?.map(|task| task.status()))
    }

    async fn task(&self, id: &ContainerId) -> Result<Option<Process>, Error> {
        let request = GetRequest { container_id: id.to_string(), exec_id: String::new() };
        match self.quick().tasks().get(request).await {
            Ok(answer) => Ok(answer.into_inner().process),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failure::error(format!("look at container {id}"), status)),
        }
    }

    /// The users and groups of the image. Read once an image: through the layer of the first container that needs
    /// them, since a layer must hang on a record and this one is about to be made anyway.
    async fn accounts(&self, wanted: &ContainerSpec) -> Result<Arc<Accounts>, Error> {
        let cell = {
            let mut known = self.accounts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if known.len() >= ACCOUNTS_MAX && !known.contains_key(&wanted.image.parent) {
                known.clear();
            }
            Arc::clone(known.entry(wanted.image.parent.clone()).or_default())
        };
        let read = async {
            if wanted.image.parent.is_empty() {
                return Ok(Arc::default());
            }
            // Not the real document yet: that needs the accounts. Nothing is started from it.
            self.ensure_record(&wanted.id, self.record(wanted, &json!({}))).await?;
            let mounts = self.ensure_layer(&wanted.id, &wanted.image).await?;
            let doing = || format!("read the users of image {}", wanted.image.name);
            read_accounts(&mounts).map(Arc::new).map_err(|message| Error::Failed { doing: doing(), message })
        };
        cell.get_or_try_init(|| read).await.cloned()
    }

    fn record(&self, wanted: &ContainerSpec, document: &serde_json::Value) -> Record {
        let spec = messages::json(SPEC, document);
        let mut labels: HashMap<String, String> = wanted.labels.clone().into_iter().collect();
        labels.insert(LABEL_SPEC.to_owned(), hex(&Sha256::digest(&spec.value)));
        Record {
            id: wanted.id.to_string(),
            labels,
            image: wanted.image.name.clone(),
            runtime: Some(self.runtime_name()),
            spec: Some(spec),
            snapshotter: self.config.snapshotter.clone(),
            snapshot_key: wanted.id.to_string(),
            ..Record::default()
        }
    }

    pub(super) fn runtime_name(&self) -> RuntimeName {
        let options = RuncOptions {
            binary_name: self.config.oci_runtime.clone().unwrap_or_default(),
            root: self.config.oci_runtime_root.display().to_string(),
        };
        let options = Any { type_url: RUNC_OPTIONS.to_owned(), value: options.encode_to_vec() };
        RuntimeName { name: SHIM.to_owned(), options: Some(options) }
    }

    async fn ensure_record(&self, id: &ContainerId, record: Record) -> Result<Begun, Error> {
        let doing = || format!("create container {id}");
        let mut containers = self.quick().containers();
        match containers.create(CreateContainerRequest { container: Some(record.clone()) }).await {
            Ok(_) => return Ok(Begun::Incomplete),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(failure::error(doing(), status)),
        }
        let found = match containers.get(GetContainerRequest { id: id.to_string() }).await {
            Ok(answer) => answer.into_inner().container.unwrap_or_default(),
            // Removed between the two calls.
            Err(status) if status.code() == Code::NotFound => return Err(Error::Busy { doing: doing() }),
            Err(status) => return Err(failure::error(doing(), status)),
        };
        if !found.labels.contains_key(LABEL_SPEC) {
            return Err(Error::Foreign { id: id.clone() });
        }
        if found.labels.contains_key(LABEL_COMPLETE) {
            return Ok(Begun::Complete);
        }
        if found.labels != record.labels {
            // The placeholder of `accounts`, or what a predecessor of another version wanted.
            let mask = FieldMask { paths: vec!["labels".to_owned(), "spec".to_owned()] };
            let request = UpdateContainerRequest { container: Some(record), update_mask: Some(mask) };
            containers.update(request).await.map_err(|status| failure::error(doing(), status))?;
        }
        Ok(Begun::Incomplete)
    }

    /// The container's own layer over the image's; its mounts.
    async fn ensure_layer(&self, id: &ContainerId, image: &ImageRoot) -> Result<Vec<Mount>, Error> {
        let doing = || format!("make the layer of container {id}");
        let snapshotter = self.config.snapshotter.clone();
        let mut snapshots = self.quick().snapshots();
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: id.to_string(),
            parent: image.parent.clone(),
            labels: HashMap::new(),
        };
        let mut prepared = snapshots.prepare(request.clone()).await;
        if prepared.as_ref().is_err_and(is_in_the_way) {
            // containerd was killed while it made a layer. The call that finds the half-made directory in its way fails,
            // and takes it out of the way of the next.
            prepared = snapshots.prepare(request).await;
        }
        let status = match prepared {
            Ok(answer) => return Ok(answer.into_inner().mounts),
            Err(status) => status,
        };
        match status.code() {
            Code::AlreadyExists => {
                let request = MountsRequest { snapshotter, key: id.to_string() };
                let answer = snapshots.mounts(request).await;
                answer.map(|answer| answer.into_inner().mounts).map_err(|status| failure::error(doing(), status))
            }
            Code::NotFound => Err(Error::NoImage { image: image.name.clone() }),
            // Nothing of the container's spec has been looked at: not its fault.
            _ => Err(Error::Unavailable { doing: doing(), source: Box::new(status) }),
        }
    }

    async fn ensure_task(&self, wanted: &ContainerSpec, rootfs: Vec<Mount>) -> Result<(), Error> {
        let id = &wanted.id;
        let doing = || format!("create container {id}");
        let tty = wanted.process.tty;
        let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        let stdout = path(&wanted.stdio.stdout);
        let stderr = match &wanted.stdio.stderr {
            _ if tty => String::new(),
            None => stdout.clone(),
            some => path(some),
        };
        // The shim opens the outputs for writing, which waits for a reader; once it has them it holds both ends.
        let outputs = [&stdout, &stderr].into_iter().filter(|path| !path.is_empty());
        let readers: Result<Vec<File>, Error> = outputs
            .map(|path| {
                hold_open(Path::new(path))
                    .map_err(|error| Error::Failed { doing: doing(), message: format!("cannot open {path}: {error}") })
            })
            .collect();
        let readers = readers?;
        let request = CreateTaskRequest {
            container_id: id.to_string(),
            rootfs,
            stdin: path(&wanted.stdio.stdin),
            stdout,
            stderr,
            terminal: tty,
            ..CreateTaskRequest::default()
        };
        let turn = tokio::time::timeout(TURN_WITHIN, self.creations.acquire()).await;
        let mut created = self.slow().tasks().create(request.clone()).await;
        if created.as_ref().is_err_and(|status| lost_its_directory(status) || is_undone(status)) {
            // A call that was cut off tidied up behind itself, and took the directory of this one. It has done so now;
            // a runtime that cannot be run at all fails in the same way once more.
            created = self.slow().tasks().create(request).await;
        }
        drop((readers, turn));
        let Err(status) = created else { return Ok(()) };
        match status.code() {
            // Made by a predecessor, whose call may also be at it still.
            Code::AlreadyExists => match self.task_status(id).await? {
                Some(TaskStatus::Unknown) | None => Err(Error::Busy { doing: doing() }),
                Some(_) => Ok(()),
            },
            // The same, a moment earlier or later: containerd's own directory for the task.
            _ if is_in_the_way(&status) || is_undone(&status) => Err(Error::Busy { doing: doing() }),
            // The record was removed meanwhile.
            Code::NotFound => Err(Error::Busy { doing: doing() }),
            // Not the container's fault: its shim did not come up, so nothing of its spec was looked at.
            _ if status.message().starts_with("failed to start shim") => {
                Err(Error::Unavailable { doing: doing(), source: Box::new(status) })
            }
            _ => Err(failure::error(doing(), status)),
        }
    }

    async fn mark_complete(&self, id: &ContainerId) -> Result<(), Error> {
        let record = Record {
            id: id.to_string(),
            labels: HashMap::from([(LABEL_COMPLETE.to_owned(), "true".to_owned())]),
            ..Record::default()
        };
        let mask = FieldMask { paths: vec![format!("labels.{LABEL_COMPLETE}")] };
        let request = UpdateContainerRequest { container: Some(record), update_mask: Some(mask) };
        let updated = self.quick().containers().update(request).await;
        updated.map(drop).map_err(|status| failure::error(format!("create container {id}"), status))
    }
}

/// What a record says about the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Incomplete,
    /// Its task was there once.
    Complete,
}

/// The users and groups in a file system that is given by its mounts; the error is in words.
pub(super) fn read_accounts(mounts: &[Mount]) -> Result<Accounts, String> {
    let layers = Layers::of(mounts).ok_or("the snapshotter does not keep layers in directories")?;
    let read = |path: &str| layers.read(Path::new(path)).map_err(|error| format!("{path}: {error}"));
    let passwd = read("/etc/passwd")?.unwrap_or_default();
    let group = read("/etc/group")?.unwrap_or_default();
    Ok(Accounts::parse(&passwd, &group))
}

/// A directory that containerd wants to make is there already; it has no code of its own for that.
fn is_in_the_way(status: &Status) -> bool {
    status.code() == Code::Unknown && status.message().contains("file exists")
}

/// The OCI runtime could not even write its log: it did not run, or its directory went from under it.
fn lost_its_directory(status: &Status) -> bool {
    let message = status.message();
    message.contains("unable to retrieve OCI runtime error") && message.contains("log.json: no such file or directory")
}

/// containerd itself misses a part of its directory for the task, before it has asked any shim: another call takes the
/// directory away while this one fills it.
fn is_undone(status: &Status) -> bool {
    let message = status.message();
    let before_the_shim = !message.starts_with("failed to") || message.starts_with("failed to write bundle spec");
    before_the_shim && message.contains(BUNDLES) && message.contains("no such file or directory")
}

/// Holds a FIFO open for reading, without waiting for a writer and without reading.
fn hold_open(path: &Path) -> std::io::Result<File> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    OpenOptions::new().read(true).custom_flags(nonblock).open(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_says_of_its_own_directory_is_told_from_what_a_runtime_says() {
        let said = |message: &str| Status::unknown(message.to_owned());
        let own = "/r/io.containerd.runtime.v2.task/apply/c.1";
        let ours = [
            format!("symlink {own} {own}/work: no such file or directory"),
            format!("mkdir {own}/rootfs: no such file or directory"),
            format!("chmod {own}: no such file or directory: unknown"),
            format!("failed to write bundle spec: open {own}/config.json: no such file or directory"),
        ];
        for message in ours {
            assert!(is_undone(&said(&message)), "{message}");
        }
        let theirs = [
            format!(
                "failed to create shim task: OCI runtime create failed: mount {own}/rootfs/x: no such file or directory"
            ),
            format!("failed to start shim: start failed: chdir {own}: no such file or directory"),
            format!("mkdir {own}: no space left on device"),
            format!("mkdir {own}: file exists"),
            "stat /bin/nothing: no such file or directory".to_owned(),
        ];
        for message in theirs {
            assert!(!is_undone(&said(&message)), "{message}");
        }
        assert!(is_in_the_way(&said(&format!("mkdir {own}: file exists"))));
    }
}
