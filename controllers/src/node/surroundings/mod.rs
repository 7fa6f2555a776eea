//! What stands around the containers of a task on this machine: network namespace, volumes, small files, pipes, logs.
//!
//! The real [`Surroundings`]. All of it has names derived from the task's uid, so that whoever comes after a crash finds
//! it:
//!
//! | what | where |
//! | --- | --- |
//! | network namespace and link | by [`Links`] |
//! | `hosts`, `hostname`, `resolv.conf` | `<run>/tasks/<uid>/` |
//! | Secrets and Configs | `<run>/data/<uid>/`, in memory |
//! | pipes of an attempt | `<run>/pipes/<uid>.<attempt>.…`, and `….done` once it has ended |
//! | logs of an attempt, once it has said something | `<data>/logs/<uid>/<attempt>/` |
//! | volumes of its own | by [`Volumes`] |
//!
//! A task's folder below `<run>/tasks` is made first and removed last: what has one may have the rest. After a boot, which
//! takes it along, volumes of its own are all that a task may have. Nothing is written to the disk for a task that neither
//! has volumes nor says anything.

mod connections;
mod data;
mod files;
mod outputs;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use reconciler::api::Uid;
use reconciler::external::External;
use reconciler::seams::Seams;

use crate::node::containerd::container_spec::{Access, Mount};
use crate::node::links::{Attachment, Links, LinksError};
use crate::node::logs;
use crate::node::tasks::{Files, Place, PrepareError, Prepared, Surroundings};
use crate::node::volumes::{VolumeId, Volumes, of_task as volumes};

pub use outputs::{Output, Outputs};

/// What a link carries when nobody says anything else: Ethernet's.
const MTU: u32 = 1500;

/// Where everything of this machine lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What outlives a boot, such as `/var/lib/apply`.
    pub data: PathBuf,
    /// What does not, such as `/run/apply`.
    pub run: PathBuf,
}

impl Paths {
    pub fn pipes(&self) -> PathBuf {
        self.run.join("pipes")
    }

    pub fn namespaces(&self) -> PathBuf {
        self.run.join("netns")
    }

    pub fn keep(&self) -> PathBuf {
        self.run.join("keep")
    }

    /// The ring of the tunnel's keys.
    pub fn tunnel_keys(&self) -> PathBuf {
        self.run.join("tunnel-keys.json")
    }

    pub fn execs(&self) -> PathBuf {
        self.run.join("exec")
    }

    fn tasks(&self) -> PathBuf {
        self.run.join("tasks")
    }

    /// For files that are written at each preparation, so that they need not outlive a boot.
    fn files(&self, uid: &Uid) -> PathBuf {
        self.tasks().join(uid.as_str())
    }

    /// In memory, wherever the rest is.
    fn in_memory(&self) -> PathBuf {
        self.run.join("data")
    }

    fn data(&self, uid: &Uid) -> PathBuf {
        self.in_memory().join(uid.as_str())
    }

    /// The log directory of a task.
    pub fn logs(&self, uid: &Uid) -> PathBuf {
        self.data.join("logs").join(uid.as_str())
    }
}

/// The surroundings of tasks on the machine that this process runs on.
pub struct Machine {
    paths: Paths,
    links: Arc<dyn Links>,
    volumes: Arc<dyn Volumes>,
    outputs: External<Outputs>,
}

impl Machine {
    pub fn new(paths: Paths, links: Arc<dyn Links>, volumes: Arc<dyn Volumes>, seams: &Seams) -> Self {
        let outputs = External::new("outputs", Outputs::new(paths.clone()), seams.clone());
        Machine { paths, links, volumes, outputs }
    }

    /// Whose output is there to be collected, for whoever has the companion process do it.
    pub fn outputs(&self) -> &External<Outputs> {
        &self.outputs
    }

    async fn prepare_place(&self, place: &Place, data: &dyn Files) -> Result<Prepared, PrepareError> {
        let files = self.paths.files(&place.uid);
        fs::create_dir_all(&files).map_err(|error| io_failed("make the task's folder", error))?;
        let attachment = Attachment {
            id: place.uid.to_string(),
            addresses: place.addresses.iter().copied().collect::<BTreeSet<_>>(),
            mtu: place.mtu.map_or(MTU, u32::from),
        };
        let attached = self.links.ensure(&attachment).await.map_err(links_failed)?;
        let mut mounts = volumes::mounts(&*self.volumes, place).await?;
        if !place.files.is_empty() {
            data::ensure_memory(&self.paths.in_memory())?;
            mounts.extend(data::mounts(data, &self.paths.data(&place.uid), &place.files).await?);
        }
        for (name, content) in files::contents(place) {
            let path = files.join(name);
            files::write(&path, &content).map_err(|error| io_failed("write the task's files", error))?;
            mounts.push(Mount::bind(path, Path::new("/etc").join(name), Access::ReadWrite));
        }
        let pipes = self.outputs.world().begin(&place.container);
        let pipes = pipes.map_err(|error| io_failed("make the pipes of the container", error))?;
        self.outputs.look_again();
        Ok(Prepared {
            network_namespace: Some(attached.netns),
            mounts,
            stdout: Some(pipes.stdout),
            stderr: Some(pipes.stderr),
        })
    }

    async fn release_place(&self, uid: &Uid) -> Result<(), PrepareError> {
        self.links.remove(uid.as_str()).await.map_err(links_failed)?;
        volumes::remove_own(&*self.volumes, uid).await?;
        self.outputs.world().finish(uid, None).map_err(|error| io_failed("end the pipes of the task", error))?;
        self.outputs.look_again();
        for folder in [self.paths.data(uid), self.paths.files(uid)] {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_failed("remove the task's folder", error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Tasks with a folder, and those with a link or a volume whose folder went with a boot, or by somebody's hand.
    async fn found(&self) -> Result<Vec<Uid>, PrepareError> {
        let mut found = BTreeSet::new();
        match fs::read_dir(self.paths.tasks()) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.map_err(|error| io_failed("list the tasks' folders", error))?;
                    found.extend(entry.file_name().into_string().map(Uid::new));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_failed("list the tasks' folders", error)),
        }
        let attached = self.links.list().await.map_err(links_failed)?;
        found.extend(attached.into_iter().map(|attached| Uid::new(attached.id)));
        let volumes = self.volumes.list().await.map_err(|error| PrepareError::failed("list the volumes", error))?;
        found.extend(volumes.iter().filter_map(VolumeId::task));
        Ok(found.into_iter().collect())
    }
}

impl Surroundings for Machine {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Uid>, PrepareError>> {
        self.found().boxed()
    }

    fn prepare<'a>(&'a self, place: &'a Place, files: &'a dyn Files) -> BoxFuture<'a, Result<Prepared, PrepareError>> {
        self.prepare_place(place, files).boxed()
    }

    fn release<'a>(&'a self, uid: &'a Uid) -> BoxFuture<'a, Result<(), PrepareError>> {
        self.release_place(uid).boxed()
    }

    fn connections<'a>(&'a self, uid: &'a Uid) -> BoxFuture<'a, Result<usize, PrepareError>> {
        let netns = self.paths.namespaces().join(uid.as_str());
        async move {
            let counted = tokio::task::spawn_blocking(move || connections::accepted(&netns)).await;
            let counted = counted.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            counted.map_err(|error| io_failed("count the connections of the task", error))
        }
        .boxed()
    }

    fn forget_logs<'a>(&'a self, uid: &'a Uid) -> BoxFuture<'a, Result<(), PrepareError>> {
        async move {
            self.outputs.world().abandon(uid).map_err(|error| io_failed("remove the pipes of the task", error))?;
            self.outputs.look_again();
            logs::remove(&self.paths.logs(uid)).map_err(|error| io_failed("remove the logs of the task", error))
        }
        .boxed()
    }
}

fn io_failed(doing: &'static str, error: io::Error) -> PrepareError {
    PrepareError::failed(doing, error)
}

fn links_failed(error: LinksError) -> PrepareError {
    PrepareError::failed("attach the task to its networks", error)
}
