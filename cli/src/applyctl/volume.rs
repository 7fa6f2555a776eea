//! `volume`: data that outlives its tasks.

use super::args::Volume as Command;
use super::failure::Failure;
use super::session::Session;
use super::{delete, get};

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(ls) => get::list(session, "volume", &ls.which).await,
        Command::Rm(rm) => delete::rm(session, "volume", rm).await,
    }
}
