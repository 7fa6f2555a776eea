//! `network`: who reaches whom.

use reconciler::Resource;
use reconciler::objects::Error;
use schemas::kinds::network::{Network, NetworkSpec};

use super::args::{Network as Command, NetworkCreate};
use super::failure::Failure;
use super::session::Session;
use super::{delete, describe, find, get, probe, service};

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Create(create) => self::create(session, create).await,
        Command::Ls(ls) => get::list(session, "network", &ls.which).await,
        Command::Inspect(inspect) => describe::inspect(session, &find::kind("network")?, &inspect.names).await,
        Command::Probe(probe) => probe::run(session, probe).await,
        Command::Rm(rm) => delete::rm(session, "network", rm).await,
    }
}

async fn create(session: &mut Session, create: &NetworkCreate) -> Result<(), Failure> {
    let mut spec = NetworkSpec { subnets: create.subnet.clone(), internal: create.internal, ..NetworkSpec::default() };
    spec.labels = service::labels(&create.label)?;
    let mut network = Network::new(create.name.clone(), spec);
    network.metadata.namespace.clone_from(&session.namespace);
    service::check(&network)?;
    match session.client.create(&network).await {
        Ok(_) => Ok(session.screen.say(&format!("network/{} created", create.name))?),
        Err(error @ Error::AlreadyExists { .. }) => {
            let advice = format!("look at it: applyctl network inspect {}", create.name);
            Err(Failure::from(error).advise(advice))
        }
        Err(error) => Err(error.into()),
    }
}
