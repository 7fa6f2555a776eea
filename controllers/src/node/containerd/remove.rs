//! Signals, and taking a container away with all that belongs to it.

use containerd_client::services::v1::snapshots::RemoveSnapshotRequest;
use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, DeleteContainerRequest, DeleteTaskRequest, KillRequest, WaitRequest,
};
use tonic::{Code, Status};

use super::container_spec::ContainerId;
use super::messages::{self, SPEC};
use super::runtime::{Error, Recipients};
use super::{LABEL_SPEC, Shared, failure};
use crate::node::spec::Signal;

impl Shared {
    pub(super) async fn signal(&self, id: &ContainerId, signal: Signal, to: Recipients) -> Result<(), Error> {
        let request = KillRequest {
            container_id: id.to_string(),
            exec_id: String::new(),
            signal: signal.number(),
            all: to == Recipients::EveryProcess,
        };
        let sent = self.quick().tasks().kill(request).await.map(drop);
        failure::absent_is_done(sent)
            .map_err(|status| failure::error(format!("send {signal} to container {id}"), status))
    }

    pub(super) async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        let failed = |status| failure::error(format!("remove container {id}"), status);
        let task = self.remove_task(id).await.map_err(failed)?;
        // At once: each is one commit of containerd's database, and either order of the two is a safe place to die
        // (a layer without a record is the garbage collector's, a record without a layer is listed).
        let (mut containers, mut snapshots) = (self.quick().containers(), self.quick().snapshots());
        let (record, layer) = tokio::join!(
            containers.delete(DeleteContainerRequest { id: id.to_string() }),
            snapshots
                .remove(RemoveSnapshotRequest { snapshotter: self.config.snapshotter.clone(), key: id.to_string() }),
        );
        failure::absent_is_done(record.map(drop)).map_err(failed)?;
        failure::absent_is_done(layer.map(drop)).map_err(failed)?;
        if self.cgroups.exists(&self.cgroup(id)) {
            self.remove_orphan(id).await?;
        }
        // Absent: nothing to do, or containerd has lost sight of it.
        if task == Task::Absent || self.has_bundle(id) {
            self.end_leftovers(id).await?;
        }
        Ok(())
    }

    /// Kills what is left, then deletes. The usual case, a task that has ended, is one call.
    async fn remove_task(&self, id: &ContainerId) -> Result<Task, Status> {
        let container_id = id.to_string();
        let mut tasks = self.slow().tasks();
        let request = DeleteTaskRequest { container_id: container_id.clone() };
        match tasks.delete(request.clone()).await {
            Ok(_) => return Ok(Task::Deleted),
            Err(status) if status.code() == Code::NotFound => return Ok(Task::Absent),
            Err(status) if failure::unavailable(&status) => return Err(status),
            // It still runs.
            Err(_) => {}
        }
        let kill = KillRequest {
            container_id: container_id.clone(),
            exec_id: String::new(),
            signal: Signal::KILL.number(),
            all: true,
        };
        failure::absent_is_done(tasks.kill(kill).await.map(drop))?;
        let wait = WaitRequest { container_id, exec_id: String::new() };
        failure::absent_is_done(tasks.wait(wait).await.map(drop))?;
        match tasks.delete(request).await {
            Ok(_) => Ok(Task::Deleted),
            Err(status) if status.code() == Code::NotFound => Ok(Task::Absent),
            Err(status) => Err(status),
        }
    }

    /// The kernel still shows a group under this name, though no record is left. If containerd has a task for it, a
    /// record is lent to it, without which containerd deletes no task.
    async fn remove_orphan(&self, id: &ContainerId) -> Result<(), Error> {
        let failed = |status| failure::error(format!("remove what is left of container {id}"), status);
        let record = Record {
            id: id.to_string(),
            labels: [(LABEL_SPEC.to_owned(), "none".to_owned())].into(),
            runtime: Some(self.runtime_name()),
            spec: Some(messages::json(SPEC, &serde_json::json!({}))),
            ..Record::default()
        };
        let created = self.quick().containers().create(CreateContainerRequest { container: Some(record) }).await;
        match created {
            Err(status) if status.code() != Code::AlreadyExists => return Err(failed(status)),
            _ => {}
        }
        self.remove_task(id).await.map_err(failed)?;
        let request = DeleteContainerRequest { id: id.to_string() };
        failure::absent_is_done(self.quick().containers().delete(request).await.map(drop)).map_err(failed)?;
        self.end_leftovers(id).await
    }
}

/// What containerd had of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Deleted,
    Absent,
}
