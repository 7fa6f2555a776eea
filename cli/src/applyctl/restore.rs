//! `restore`: the store of this machine out of a file. No daemon is asked: none may run.

use super::failure::{Exit, Failure};
use super::session::Session;
use crate::daemon::restore::{Restore, RestoreError, restore};
use reconciler::causes::chain;
use reconciler::store::embedded::OpenError;

pub async fn run(session: &mut Session, wanted: &Restore) -> Result<(), Failure> {
    let done = restore(wanted, &session.seams).await.map_err(|error| {
        let exit = match &error {
            RestoreError::Running { .. } | RestoreError::Occupied { .. } => Exit::Conflict,
            RestoreError::NoKey { .. } | RestoreError::WrongKey { .. } | RestoreError::InEtcd { .. } => Exit::Refused,
            RestoreError::Store(OpenError::Damaged { .. } | OpenError::Format { .. }) => Exit::Refused,
            RestoreError::Store(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Exit::NotFound
            }
            _ => Exit::Failed,
        };
        Failure::new(exit, chain(&error)).advise("nothing was changed")
    })?;
    Ok(session.screen.say(&done.to_string())?)
}
