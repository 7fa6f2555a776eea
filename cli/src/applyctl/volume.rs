//! `volume`: data that outlives its tasks.

use schemas::kinds::volume::Volume;

use super::args::{Rm, Volume as Command};
use super::failure::{Exit, Failure};
use super::session::Session;
use super::{delete, describe, find, get, words};

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(ls) => get::list(session, "volume", &ls.which).await,
        Command::Inspect(inspect) => describe::inspect(session, &find::kind("volume")?, &inspect.names).await,
        Command::Rm(rm) => remove(session, rm).await,
    }
}

/// One that is in use would go as soon as it is not, with data that somebody still counts on: said now, and not begun.
async fn remove(session: &mut Session, rm: &Rm) -> Result<(), Failure> {
    let kind = find::kind("volume")?;
    for name in &rm.names {
        let volume: Volume = find::exact(session, &kind, name).await?.decode()?;
        let users = volume.status.map_or(0, |status| status.in_use);
        if users > 0 {
            let used = words::count(users as usize, "task");
            let failure = Failure::new(Exit::Conflict, format!("volume {name} is in use by {used}"));
            return Err(failure.advise("remove the service that mounts it first: applyctl service ls"));
        }
    }
    delete::rm(session, "volume", rm).await
}
