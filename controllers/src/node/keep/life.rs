//! Whether a companion process works, as a world that is watched: its end is known at once, whoever started it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use reconciler::external::{Announced, Announcements, World};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::time::timeout;

use super::super::sys::readiness;
use super::run::has_lock;
use super::table::{self, Status, status_path};

/// The companion process of a directory, by its process id: one, or none.
#[derive(Clone, Debug)]
pub struct Life {
    dir: PathBuf,
}

/// A new one is noticed within this.
const LOOK: Duration = Duration::from_millis(100);

impl Life {
    /// `dir` as in [`super::Options`].
    pub fn new(dir: PathBuf) -> Self {
        Life { dir }
    }

    fn working(&self) -> Option<u32> {
        // A status that cannot be read is as good as none: the next look finds another.
        let status = table::read::<Status>(&status_path(&self.dir)).ok().flatten()?;
        has_lock(&self.dir, status.pid).then_some(status.pid)
    }

    /// Returns once another one works than `known`, or one where none did, or none where one did.
    async fn turn(&self, known: Option<u32>) -> io::Result<Option<u32>> {
        loop {
            let working = self.working();
            if working != known {
                return Ok(working);
            }
            if let Some(pid) = working {
                let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
                let process = readiness::watched(pidfd_open(number, PidfdFlags::NONBLOCK)?)?;
                drop(process.readable().await?);
                if self.working() != known {
                    continue;
                }
            }
            let _ = timeout(LOOK, std::future::pending::<()>()).await;
        }
    }
}

impl World for Life {
    type Key = u32;
    type Item = ();
    type Error = io::Error;

    async fn list(&self) -> io::Result<Vec<(u32, ())>> {
        Ok(self.working().map(|pid| (pid, ())).into_iter().collect())
    }

    fn changes(&self) -> Option<Announcements<Self>> {
        let known = self.working();
        let turns = stream::unfold((self.clone(), known), |(life, known)| async move {
            match life.turn(known).await {
                Ok(working) => Some((Ok(Announced::LookAgain), (life, working))),
                // Ended between two looks at it; what follows the end of the announcements is a new listing.
                Err(error) => Some((Err(error), (life, None))),
            }
        });
        Some(turns.boxed())
    }
}
