//! `node`: machines.

use std::time::Duration;

use reconciler::objects::{Error, PageRequest, Selection, Selector, Write};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::node::{Availability, Node, NodeState, Role};
use schemas::kinds::task::Task;
use schemas::kinds::volume::Volume;

use super::args::{Node as Command, NodeAvailability, NodeRm, NodeUpdate};
use super::failure::{Exit, Failure};
use super::session::Session;
use super::{delete, describe, find, get, words};

/// How often a write is repeated when the node was changed meanwhile: it reports on itself all the time.
const TRIES: usize = 10;

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(ls) => get::list(session, "node", &ls.which).await,
        Command::Inspect(inspect) => describe::inspect(session, &find::kind("node")?, &inspect.names).await,
        Command::Ps(ps) => tasks(session, &ps.names).await,
        Command::Update(update) => self::update(session, update).await,
        Command::Drain(nodes) => drain(session, &nodes.names).await,
        Command::Pause(nodes) => set(session, &nodes.names, Availability::Pause).await,
        Command::Activate(nodes) => set(session, &nodes.names, Availability::Active).await,
        Command::Promote(nodes) => promote(session, &nodes.names).await,
        Command::Demote(nodes) => demote(session, &nodes.names).await,
        Command::Rm(rm) => remove(session, rm).await,
    }
}

/// One that is heard of would run on what nobody counts any more: said now, and not begun.
async fn remove(session: &mut Session, rm: &NodeRm) -> Result<(), Failure> {
    let kind = find::kind("node")?;
    for name in &rm.rm.names {
        let node: Node = find::exact(session, &kind, name).await?.decode()?;
        let state = node.status.map(|status| status.state).unwrap_or_default();
        if node.spec.role == Role::Manager {
            let failure = Failure::new(Exit::Conflict, format!("{name} is a manager"));
            return Err(failure.advise(format!("first: applyctl node demote {name}")));
        }
        if state != NodeState::Lost && !rm.force {
            let failure = Failure::new(Exit::Conflict, format!("{name} is still heard of"));
            let advice = format!("end its applyd first, or: applyctl node rm {name} --force");
            return Err(failure.advise(advice));
        }
    }
    delete::rm(session, "node", &rm.rm).await
}

/// For a machine to become what it shall be.
const BECOMING: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

async fn promote(session: &mut Session, names: &[String]) -> Result<(), Failure> {
    all_there(session, names).await?;
    for node in session.client.list::<Node>(None).await? {
        if names.iter().any(|name| name == node.name()) && node.is_lost() {
            let failure =
                Failure::new(Exit::Conflict, format!("{} is lost, and could not become a manager", node.name()));
            return Err(failure.advise("bring it back first; nothing was changed"));
        }
    }
    for name in names {
        change(session, name, |node| node.spec.role = Role::Manager).await?;
        let is_one = |node: &Node| !node.api_addresses().is_empty();
        becomes(session, name, is_one, "its log says what it waits for; it goes on by itself").await?;
    }
    Ok(())
}

/// Only where the others can decide without it.
pub(super) async fn demote(session: &mut Session, names: &[String]) -> Result<(), Failure> {
    all_there(session, names).await?;
    for name in names {
        let nodes = session.client.list::<Node>(None).await?;
        let managers = || nodes.iter().filter(|node| node.spec.role == Role::Manager);
        if managers().any(|node| node.metadata.name == *name) {
            let stay: Vec<&Node> = managers().filter(|node| node.metadata.name != *name).collect();
            let answer = stay.iter().filter(|node| !node.is_lost()).count();
            if stay.is_empty() {
                let failure = Failure::new(Exit::Conflict, format!("{name} is the only manager"));
                return Err(failure.advise("make another one first: applyctl node promote NAME"));
            }
            if answer < stay.len() / 2 + 1 {
                let why =
                    format!("without {name} {answer} of {} managers would answer, which is no majority", stay.len());
                let advice = "bring the lost ones back, or demote those first";
                return Err(Failure::new(Exit::Conflict, why).advise(advice));
            }
        }
        change(session, name, |node| node.spec.role = Role::Worker).await?;
    }
    Ok(())
}

async fn becomes(session: &Session, name: &str, is_so: impl Fn(&Node) -> bool, advice: &str) -> Result<(), Failure> {
    let begun = session.seams.monotonic();
    while session.since(begun) < BECOMING {
        match session.client.get::<Node>(&ObjectRef::cluster(name)).await {
            Ok(node) if is_so(&node) => return Ok(()),
            // The manager that is asked may move its objects to etcd meanwhile, and does not listen for a moment.
            Ok(_) | Err(Error::Unavailable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        session.seams.sleep(LOOK).await;
    }
    Err(Failure::new(Exit::NotConverged, format!("{name} has not become one within a minute")).advise(advice))
}

async fn all_there(session: &Session, names: &[String]) -> Result<(), Failure> {
    let kind = find::kind("node")?;
    for name in names {
        find::exact(session, &kind, name).await?;
    }
    Ok(())
}

/// All are there before the first is changed.
async fn set(session: &mut Session, names: &[String], availability: Availability) -> Result<(), Failure> {
    all_there(session, names).await?;
    for name in names {
        change(session, name, |node| node.spec.availability = availability).await?;
    }
    Ok(())
}

/// What is there goes one after the other, and is looked at with `ps`; what cannot go is said now.
async fn drain(session: &mut Session, names: &[String]) -> Result<(), Failure> {
    set(session, names, Availability::Drain).await?;
    let tasks = session.client.list::<Task>(None).await?;
    let volumes = session.client.list::<Volume>(None).await?;
    for name in names {
        let is_here = |task: &&Task| {
            let state = task.status.as_ref().map(|status| status.state).unwrap_or_default();
            task.spec.node_name.as_ref() == Some(name) && !state.is_terminal()
        };
        let here = tasks.iter().filter(is_here).count();
        if here > 0 {
            let count = words::count(here, "task");
            session
                .screen
                .say(&format!("  {count} to be replaced elsewhere; how far it is: applyctl node ps {name}"))?;
        }
        let data = volumes.iter().filter(|volume| volume.spec.node.as_ref() == Some(name));
        let data: Vec<&str> = data.map(|volume| volume.name()).collect();
        if !data.is_empty() {
            session.screen.say(&format!(
                "  its data stays: what mounts {} is down until applyctl node activate {name}",
                data.join(", ")
            ))?;
        }
    }
    Ok(())
}

async fn tasks(session: &mut Session, names: &[String]) -> Result<(), Failure> {
    let kind = find::kind("node")?;
    let mut items = Vec::new();
    for name in names {
        let node = find::object(session, &kind, name).await?;
        let fields = Selector::equals("spec.nodeName", &node.reference.name);
        let selection = Selection { fields, ..Selection::of::<Task>() };
        items.extend(session.client.objects().list(&selection, PageRequest::default()).await?.items);
    }
    get::print(session, vec![(find::kind("task")?, items)], true, true).await
}

async fn update(session: &mut Session, update: &NodeUpdate) -> Result<(), Failure> {
    let kind = find::kind("node")?;
    find::exact(session, &kind, &update.name).await?;
    let mut labels = Vec::new();
    for text in &update.label_add {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => labels.push((key.to_owned(), value.to_owned())),
            _ => return Err(Failure::new(Exit::Usage, format!("--label-add {text:?} is not KEY=VALUE"))),
        }
    }
    change(session, &update.name, |node| {
        node.spec.labels.extend(labels.iter().cloned());
        node.spec.labels.retain(|key, _| !update.label_rm.contains(key));
        if let Some(availability) = update.availability {
            node.spec.availability = match availability {
                NodeAvailability::Active => Availability::Active,
                NodeAvailability::Pause => Availability::Pause,
                NodeAvailability::Drain => Availability::Drain,
            };
        }
    })
    .await
}

async fn change(session: &mut Session, name: &str, change: impl Fn(&mut Node)) -> Result<(), Failure> {
    for attempt in 1.. {
        let observed: Node = session.client.get(&ObjectRef::cluster(name)).await?;
        let mut desired = observed.clone();
        change(&mut desired);
        match session.client.commit(vec![Write::update(&observed, &desired)]).await {
            Ok(committed) => {
                let changed = committed.outcomes.iter().any(|outcome| outcome.changed);
                let word = if changed { "changed" } else { "is so already" };
                return Ok(session.screen.say(&format!("node/{} {word}", observed.name()))?);
            }
            Err(error) if error.is_conflict() && attempt < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
