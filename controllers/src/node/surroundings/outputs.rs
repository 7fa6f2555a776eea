//! Pipes of attempts: which there are, and which of them have ended.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream;
use reconciler::api::Uid;
use reconciler::external::{Announced, Announcements, World};
use tokio::sync::Notify;

use super::Paths;
use crate::node::containerd::ContainerId;
use crate::node::logs::{self, Hold, Pipes};
use crate::node::tasks::attempt_of;

/// Beside the pipes of an attempt that has ended.
const DONE: &str = "done";

/// The output of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub uid: Uid,
    pub attempt: u32,
    /// Nothing will be written any more.
    pub finished: bool,
}

/// What has pipes here, as a world that is watched; by the name of its container.
///
/// This process holds all of them open, so that nothing in them is lost, whoever else dies.
pub struct Outputs {
    paths: Paths,
    changed: Arc<Notify>,
    held: Mutex<BTreeMap<String, Hold>>,
}

impl Outputs {
    pub(super) fn new(paths: Paths) -> Self {
        Outputs { paths, changed: Arc::default(), held: Mutex::default() }
    }

    /// Pipes for an attempt. Those before it have ended.
    pub(super) fn begin(&self, id: &ContainerId) -> io::Result<Pipes> {
        let pipes = logs::ensure_pipes(&self.paths.pipes(), id.as_str())?;
        self.hold(id.as_str())?;
        if let Some((uid, attempt)) = attempt_of(id.as_str()).filter(|(_, attempt)| *attempt > 1) {
            self.finish(&uid, Some(attempt))?;
        }
        self.changed.notify_one();
        Ok(pipes)
    }

    /// The attempts of a task before `before`, or all, have ended.
    pub(super) fn finish(&self, uid: &Uid, before: Option<u32>) -> io::Result<()> {
        for (id, output) in self.found()? {
            let ended = output.uid == *uid && before.is_none_or(|before| output.attempt < before);
            if ended && !output.finished {
                fs::write(self.paths.pipes().join(format!("{id}.{DONE}")), [])?;
            }
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Nobody wants the output of a task any more, nor what is still in its pipes.
    pub(super) fn abandon(&self, uid: &Uid) -> io::Result<()> {
        for (id, output) in self.found()? {
            if output.uid == *uid {
                self.remove(&id)?;
            }
        }
        Ok(())
    }

    /// The pipes of an attempt, whose output has been taken.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        self.held().remove(id);
        logs::remove_pipes(&self.paths.pipes(), id)?;
        match fs::remove_file(self.paths.pipes().join(format!("{id}.{DONE}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.changed.notify_one();
        Ok(())
    }

    pub fn directory(&self) -> PathBuf {
        self.paths.pipes()
    }

    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    fn hold(&self, id: &str) -> io::Result<()> {
        let mut held = self.held();
        if !held.contains_key(id) {
            held.insert(id.to_owned(), logs::hold(&self.paths.pipes(), id)?);
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Hold>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> io::Result<BTreeMap<String, Output>> {
        let entries = match fs::read_dir(self.paths.pipes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries?,
        };
        let mut found: BTreeMap<String, Output> = BTreeMap::new();
        for entry in entries {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let Some((id, kind)) = name.rsplit_once('.') else { continue };
            let Some((uid, attempt)) = attempt_of(id) else { continue };
            let output = found.entry(id.to_owned()).or_insert(Output { uid, attempt, finished: false });
            output.finished |= kind == DONE;
        }
        Ok(found)
    }
}

impl World for Outputs {
    type Key = String;
    type Item = Output;
    type Error = io::Error;

    async fn list(&self) -> io::Result<Vec<(String, Output)>> {
        let found = self.found()?;
        for id in found.keys() {
            // One of whose two pipes somebody has taken away is mended by the next attempt.
            if let Err(error) = self.hold(id) {
                tracing::debug!(id, %error, "cannot hold the pipes open");
            }
        }
        Ok(found.into_iter().collect())
    }

    fn changes(&self) -> Option<Announcements<Self>> {
        let announced = stream::unfold(self.changed.clone(), |changed| async move {
            changed.notified().await;
            Some((Ok(Announced::LookAgain), changed))
        });
        Some(announced.boxed())
    }
}
