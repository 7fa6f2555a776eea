//! `service rebalance`: tasks move until they are spread evenly over the nodes that there are now.

use std::collections::BTreeMap;

use reconciler::objects::Error;
use schemas::kinds::labels::REBALANCE;
use schemas::kinds::service::{Mode, Service};
use schemas::kinds::task::{DesiredState, Task, TaskState};

use super::args::Rebalance;
use super::failure::{Exit, Failure};
use super::session::Session;
use super::{find, scale, wait, words};

pub async fn run(session: &mut Session, rebalance: &Rebalance) -> Result<(), Failure> {
    let start = session.seams.monotonic();
    let kind = find::kind("service")?;
    let mut before = BTreeMap::new();
    for name in &rebalance.names {
        let service: Service = find::exact(session, &kind, name).await?.decode()?;
        if service.spec.mode != Mode::Replicated {
            return Err(Failure::new(Exit::Usage, format!("{name} runs one task on each node; that is even already")));
        }
        before.insert(name.clone(), spread(session, name).await?);
    }
    let names: Vec<&str> = rebalance.names.iter().map(String::as_str).collect();
    // Another one each time: it is what makes it another wish.
    let asked = format!("{} {}", session.seams.now(), std::process::id());
    let wish = |service: &mut Service| drop(service.metadata.annotations.insert(REBALANCE.to_owned(), asked.clone()));
    scale::change(session, &names, wish).await?;
    for (name, before) in before {
        if rebalance.patience.detach {
            session.screen.say(&format!("{name}: {before}; see how it goes: applyctl ps {name}"))?;
            continue;
        }
        let left = rebalance.patience.timeout.saturating_sub(session.since(start));
        let until =
            wait::Until::Field { path: ".status.rebalanced".parse().map_err(usage)?, value: Some(asked.clone()) };
        wait::true_of(session, &kind, &name, &until, left).await?;
        let after = spread(session, &name).await?;
        let took = words::fine(session.since(start));
        session.screen.say(&match before == after {
            true => format!("{name}: {after}; nothing had to move"),
            false => format!("{name}: {before} → {after}, {took}"),
        })?;
    }
    Ok(())
}

fn usage(error: String) -> Failure {
    Failure::new(Exit::Usage, error)
}

/// How many of a service's tasks run on each node: `n1 3, n2 1`.
async fn spread(session: &Session, service: &str) -> Result<String, Error> {
    let tasks = session.client.list::<Task>(Some(&session.namespace)).await?;
    let mut nodes: BTreeMap<String, usize> = BTreeMap::new();
    for task in tasks.iter().filter(|task| task.spec.service == service && task.spec.desired == DesiredState::Running) {
        let runs = task.status.as_ref().is_some_and(|status| status.state == TaskState::Running);
        if let Some(node) = task.spec.node_name.as_ref().filter(|_| runs) {
            *nodes.entry(node.clone()).or_default() += 1;
        }
    }
    let nodes: Vec<String> = nodes.iter().map(|(node, count)| format!("{node} {count}")).collect();
    Ok(if nodes.is_empty() { "no task runs".to_owned() } else { nodes.join(", ") })
}
