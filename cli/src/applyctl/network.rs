//! `network`: who reaches whom.

use super::args::Network as Command;
use super::failure::Failure;
use super::session::Session;
use super::{delete, describe, find, get};

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(ls) => get::list(session, "network", &ls.which).await,
        Command::Inspect(inspect) => describe::inspect(session, &find::kind("network")?, &inspect.names).await,
        Command::Rm(rm) => delete::rm(session, "network", rm).await,
    }
}
