//! What is there: containerd's records and tasks joined into one picture.

use std::collections::{BTreeMap, HashMap};

use containerd_client::services::v1::{
    Container as Record, GetContainerRequest, GetRequest, ListContainersRequest, ListTasksRequest,
};
use containerd_client::types::v1::{Process, Status as TaskStatus};
use reconciler_api::Timestamp;
use tonic::Code;

use super::container_spec::ContainerId;
use super::runtime::{Container, Error, State};
use super::{LABEL_COMPLETE, LABEL_SPEC, Shared, failure};

impl Shared {
    /// Two calls, and one more for each record whose task was not listed: containerd leaves out a task whose shim did
    /// not answer it in time, and that must not pass for one that is gone.
    pub(super) async fn list(&self) -> Result<Vec<Container>, Error> {
        let failed = |status| failure::error("list containers", status);
        // Tasks first: a record is made before its task, so that a task without a record surely has none.
        let tasks = self.slow().tasks().list(ListTasksRequest::default()).await.map_err(failed)?;
        let mut tasks: HashMap<String, Process> =
            tasks.into_inner().tasks.into_iter().map(|task| (task.id.clone(), task)).collect();

        // By stream, one record a message: with their specs a thousand would not fit into one.
        let request = ListContainersRequest::default();
        let mut records = self.slow().containers().list_stream(request).await.map_err(failed)?.into_inner();
        let mut found = Vec::new();
        while let Some(message) = records.message().await.map_err(failed)? {
            let record = message.container.unwrap_or_default();
            let task = tasks.remove(&record.id);
            let Some(id) = ours(&record) else { continue };
            let complete = record.labels.contains_key(LABEL_COMPLETE);
            let container = Container { id, labels: labels(record), state: State::Incomplete, orphan: false };
            found.push((container, task, complete));
        }

        let mut containers = Vec::with_capacity(found.len());
        for (container, task, complete) in found {
            let state = match task {
                Some(task) => self.state(&container.id, &task),
                None => self.state_alone(&container.id, complete).await?,
            };
            containers.push(Container { state, ..container });
        }
        let orphans = tasks.into_values().filter_map(|task| {
            let id = ContainerId::new(task.id.as_str()).ok()?;
            Some(Container { state: self.state(&id, &task), id, labels: BTreeMap::new(), orphan: true })
        });
        containers.extend(orphans);
        Ok(containers)
    }

    pub(super) async fn inspect(&self, id: &ContainerId) -> Result<Option<Container>, Error> {
        let request = GetContainerRequest { id: id.to_string() };
        let record = match self.quick().containers().get(request).await {
            Ok(answer) => answer.into_inner().container.unwrap_or_default(),
            Err(status) if status.code() == Code::NotFound => return self.without_record(id).await,
            Err(status) => return Err(failure::error(format!("look at container {id}"), status)),
        };
        let Some(id) = ours(&record) else { return Ok(None) };
        let complete = record.labels.contains_key(LABEL_COMPLETE);
        let state = self.state_alone(&id, complete).await?;
        Ok(Some(Container { id, labels: labels(record), state, orphan: false }))
    }

    /// What runs under a name that nothing is recorded of. containerd finds a task by its record only, or in the list of
    /// all; the group says whether that needs to be looked through.
    async fn without_record(&self, id: &ContainerId) -> Result<Option<Container>, Error> {
        if !self.cgroups.exists(&self.cgroup(id)) {
            return Ok(None);
        }
        Ok(self.list().await?.into_iter().find(|container| container.id == *id))
    }

    pub(super) async fn has_record(&self, id: &ContainerId) -> Result<bool, Error> {
        match self.quick().containers().get(GetContainerRequest { id: id.to_string() }).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(failure::error(format!("look at container {id}"), status)),
        }
    }

    /// The state of one container by asking for its task.
    async fn state_alone(&self, id: &ContainerId, complete: bool) -> Result<State, Error> {
        let request = GetRequest { container_id: id.to_string(), exec_id: String::new() };
        match self.quick().tasks().get(request).await {
            Ok(answer) => Ok(answer.into_inner().process.map_or(State::Unknown, |task| self.state(id, &task))),
            Err(status) if status.code() == Code::NotFound => {
                Ok(if complete { State::Gone } else { State::Incomplete })
            }
            Err(status) if failure::broken(&status) => Err(failure::error(format!("look at container {id}"), status)),
            // containerd is there, but its shim did not answer; that must not hide the other containers.
            Err(_) => Ok(State::Unknown),
        }
    }

    pub(super) fn state(&self, id: &ContainerId, task: &Process) -> State {
        match task.status() {
            TaskStatus::Created => State::Created,
            TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => State::Running { pid: task.pid },
            TaskStatus::Stopped => State::Stopped {
                exit_code: task.exit_status,
                exited_at: task.exited_at.as_ref().map(timestamp).unwrap_or_default(),
                // The group stays until the task is deleted, so this is known without having seen any event.
                out_of_memory: self.cgroups.oom_kills(&self.cgroup(id)) > 0,
            },
            TaskStatus::Unknown => State::Unknown,
        }
    }
}

/// The id of a record that we made.
pub(super) fn ours(record: &Record) -> Option<ContainerId> {
    record.labels.contains_key(LABEL_SPEC).then(|| ContainerId::new(record.id.as_str()).ok()).flatten()
}

fn labels(record: Record) -> BTreeMap<String, String> {
    record.labels.into_iter().filter(|(name, _)| name != LABEL_SPEC && name != LABEL_COMPLETE).collect()
}

fn timestamp(time: &prost_types::Timestamp) -> Timestamp {
    Timestamp::from_micros(time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos / 1_000)))
}
