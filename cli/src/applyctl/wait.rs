//! `wait`: until bundles and services are up, or objects of any kind are gone.

use std::collections::BTreeMap;

use schemas::kinds::bundle::Bundle;
use schemas::kinds::service::Service;

use super::args::Wait;
use super::converge::{self, Goal, view};
use super::failure::{Exit, Failure};
use super::find;
use super::session::{Session, namespace_of};

pub async fn run(session: &mut Session, wait: &Wait) -> Result<(), Failure> {
    if wait.gone {
        return gone(session, wait).await;
    }
    let start = session.seams.monotonic();
    let (mut goals, mut services) = (Vec::new(), BTreeMap::new());
    for text in &wait.objects {
        let (kind, name) = pair(text)?;
        let stored = find::object(session, &kind, &name).await?;
        match kind.kind.as_ref() {
            "Bundle" => {
                let bundle: Bundle = stored.decode()?;
                goals.push(Goal::Bundle { name: stored.reference.name, generation: bundle.metadata.generation });
            }
            "Service" => {
                let service: Service = stored.decode()?;
                services.insert(stored.reference.name, service.metadata.generation);
            }
            _ => {
                let failure = Failure::new(Exit::Usage, format!("a {} is never up", kind.singular));
                return Err(failure.advise("wait for bundles and services, or for anything to be --gone"));
            }
        }
    }
    if !services.is_empty() {
        goals.push(Goal::Services(services));
    }
    for goal in goals {
        let left = wait.timeout.saturating_sub(session.since(start));
        let progress = converge::until_up(session, &goal, left).await?;
        let line = view::done(&goal.title(), &progress, session.since(start));
        session.screen.say(&line)?;
    }
    Ok(())
}

fn pair(text: &str) -> Result<(std::sync::Arc<reconciler::Kind>, String), Failure> {
    match text.split_once('/') {
        Some((word, name)) if !name.is_empty() => Ok((find::kind(word)?, name.to_owned())),
        _ => Err(Failure::new(Exit::Usage, format!("{text:?} is not KIND/NAME, such as bundle/voting-app"))),
    }
}

async fn gone(session: &mut Session, wait: &Wait) -> Result<(), Failure> {
    let mut left = Vec::new();
    for text in &wait.objects {
        let (kind, name) = pair(text)?;
        let reference = reconciler::ObjectRef::new(namespace_of(&kind, &session.namespace), name);
        match session.client.objects().get(&kind, &reference).await {
            Ok(stored) => left.push(stored),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    converge::until_gone(session, &left, wait.timeout).await?;
    Ok(session.screen.say(&format!("{} gone", if wait.objects.len() == 1 { "it is" } else { "they are" }))?)
}
