//! `scale`: how many tasks services have.

use std::collections::BTreeMap;

use reconciler::objects::Write;
use reconciler::{ObjectRef, Resource};
use schemas::kinds::service::{Mode, Service};

use super::args::{Patience, Scale};
use super::converge::{self, Goal, view};
use super::failure::{Exit, Failure};
use super::find;
use super::session::Session;

/// How often a write is repeated when a service was changed meanwhile.
const TRIES: usize = 10;

pub async fn run(session: &mut Session, scale: &Scale) -> Result<(), Failure> {
    session.because(&scale.reason);
    let kind = find::kind("service")?;
    for flag in &scale.services {
        let service: Service = find::exact(session, &kind, &flag.service).await?.decode()?;
        if service.spec.mode != Mode::Replicated {
            let failure = Failure::new(
                Exit::Usage,
                format!("{} runs one task on each node; it cannot be scaled", service.name()),
            );
            return Err(failure.advise("label nodes and use a constraint to choose among them"));
        }
    }
    let names: Vec<&str> = scale.services.iter().map(|flag| flag.service.as_str()).collect();
    let generations = change(session, &names, |service| {
        if let Some(flag) = scale.services.iter().find(|flag| flag.service == service.name()) {
            service.spec.replicas = Some(flag.count);
        }
    })
    .await?;
    wait(session, generations, &scale.patience).await
}

/// Changes services all or nothing; answers with the generation that each has then.
pub async fn change(
    session: &Session,
    names: &[&str],
    change: impl Fn(&mut Service),
) -> Result<BTreeMap<String, i64>, Failure> {
    for attempt in 1.. {
        let mut writes = Vec::new();
        for name in names {
            let observed: Service = session.client.get(&ObjectRef::new(&session.namespace, *name)).await?;
            let mut desired = observed.clone();
            change(&mut desired);
            writes.push(Write::update(&observed, &desired));
        }
        match session.client.commit(writes).await {
            Ok(_) => break,
            Err(error) if error.is_conflict() && attempt < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut generations = BTreeMap::new();
    for name in names {
        let service: Service = session.client.get(&ObjectRef::new(&session.namespace, *name)).await?;
        generations.insert((*name).to_owned(), service.metadata.generation);
    }
    Ok(generations)
}

/// Waits until services are up as they were written, if that is wanted.
pub async fn wait(session: &mut Session, services: BTreeMap<String, i64>, patience: &Patience) -> Result<(), Failure> {
    let names = services.keys().cloned().collect::<Vec<_>>().join(", ");
    if patience.detach {
        return session
            .screen
            .say(&format!("{names}: changed; see how it goes: applyctl ps {}", names.replace(", ", " ")))
            .map_err(Failure::from);
    }
    let start = session.seams.monotonic();
    let progress = converge::until_up(session, &Goal::Services(services), patience.timeout).await?;
    let took = session.since(start);
    Ok(session.screen.say(&view::done(&names, &progress, took))?)
}
