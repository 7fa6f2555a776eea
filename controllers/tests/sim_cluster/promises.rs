//! What must hold at every commit and effect, and what must be true in the end.

use std::collections::{BTreeMap, BTreeSet};

use reconciler::api::Uid;
use reconciler::cache::Snapshot;
use reconciler::sim::View;
use reconciler::{ObjectRef, Resource};
use schemas::kinds::bundle::{Bundle, BundleState};
use schemas::kinds::config::Config;
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::labels::REBALANCE;
use schemas::kinds::network::{Cidr, Network};
use schemas::kinds::node::{Availability, Node};
use schemas::kinds::revision::Revision;
use schemas::kinds::service::{PublishMode, Service, UpdateOrder};
use schemas::kinds::task::{DesiredState, Slot, Task};

use sha2::{Digest, Sha256};

use super::cast::{Machines, owners, runs, state, template_of};

pub type Held = Result<(), String>;

/// Two containers of one slot never run at once, on whatever machine.
pub fn one_container_a_slot(machines: &Machines) -> Held {
    let mut seen: BTreeMap<(Option<Uid>, Slot), String> = BTreeMap::new();
    for ((node, _), container) in &*machines.containers() {
        let here = format!("{} on {node}", container.task);
        if let Some(other) = seen.insert((container.service.clone(), container.slot.clone()), here.clone()) {
            return Err(format!("{other} and {here} are of one slot"));
        }
    }
    Ok(())
}

/// A slot never has two tasks that may run.
pub fn one_task_a_slot(view: &View<'_>) -> Held {
    let mut seen: BTreeMap<(Option<Uid>, &Slot), &str> = BTreeMap::new();
    for task in view.now.all::<Task>().filter(|task| may_run(task)) {
        let owner = task.metadata.controller().map(|owner| owner.uid.clone());
        if let Some(other) = seen.insert((owner, &task.spec.slot), task.name()) {
            return Err(format!("{other} and {} both may run in slot {}", task.name(), task.spec.slot));
        }
    }
    Ok(())
}

/// Of two tasks of a slot that may run the one takes the place of the other, and there are no three.
pub fn one_of_two_takes_over(view: &View<'_>) -> Held {
    let mut slots: BTreeMap<(Option<Uid>, &Slot), Vec<&Task>> = BTreeMap::new();
    for task in view.now.all::<Task>().filter(|task| may_run(task)) {
        let owner = task.metadata.controller().map(|owner| owner.uid.clone());
        slots.entry((owner, &task.spec.slot)).or_default().push(task);
    }
    for ((_, slot), tasks) in slots {
        let takes_over = |new: &&&Task| tasks.iter().any(|old| new.spec.in_place_of.as_deref() == Some(old.name()));
        if tasks.len() > 2 || tasks.len() == 2 && !tasks.iter().any(|task| takes_over(&task)) {
            let names: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
            return Err(format!("{names:?} may run in slot {slot}"));
        }
    }
    Ok(())
}

/// Where the next one serves first, the controller takes no task away that leaves fewer than are asked for, and has no more
/// beyond these than may be replaced at once.
pub fn never_fewer(view: &View<'_>) -> Held {
    if view.writer.is_none_or(|writer| writer.manager != "service") {
        return Ok(());
    }
    for service in view.now.all::<Service>().filter(|service| service.spec.update.order == UpdateOrder::StartFirst) {
        let uid = &service.metadata.uid;
        let serving = |snapshot: &Snapshot| {
            let slots = snapshot.owned_by::<Task>(uid).filter(|task| runs(task)).map(|task| task.spec.slot.clone());
            slots.collect::<BTreeSet<Slot>>().len()
        };
        let (before, now, wanted) = (serving(view.before), serving(view.now), service.spec.replicas() as usize);
        if now < before.min(wanted) {
            return Err(format!("{} goes from {before} serving tasks to {now}, of {wanted}", service.name()));
        }
        let made = |snapshot: &Snapshot| snapshot.owned_by::<Task>(uid).filter(|task| may_run(task)).count();
        let most = wanted + service.spec.update.parallelism() as usize;
        if made(view.now) > made(view.before).max(most) {
            return Err(format!("{} has {} tasks, more than {most}", service.name(), made(view.now)));
        }
    }
    Ok(())
}

/// Whoever asked for it has it, and is told.
pub fn spread_evenly(snapshot: &Snapshot) -> Held {
    for service in snapshot.all::<Service>() {
        let Some(asked) = service.metadata.annotations.get(REBALANCE) else { continue };
        if service.status.as_ref().and_then(|status| status.rebalanced.as_ref()) != Some(asked) {
            return Err(format!("{} does not say that {asked} is fulfilled", service.name()));
        }
        let nodes = snapshot.all::<Node>().filter(|node| node.spec.availability == Availability::Active);
        let on = |node: &str| {
            let tasks = snapshot.owned_by::<Task>(&service.metadata.uid).filter(|task| runs(task));
            tasks.filter(|task| task.spec.node_name.as_deref() == Some(node)).count()
        };
        let counts: Vec<usize> = nodes.map(|node| on(node.name())).collect();
        if counts.iter().max().zip(counts.iter().min()).is_some_and(|(most, least)| most - least > 1) {
            return Err(format!("{} has {counts:?} tasks on its machines", service.name()));
        }
    }
    Ok(())
}

/// Nothing of a task that shall stop runs once it is unplaced or has ended.
fn may_run(task: &Task) -> bool {
    match task.spec.desired {
        DesiredState::Stopped => task.spec.node_name.is_some() && !state(task).is_terminal(),
        _ => !state(task).is_terminal(),
    }
}

/// What a task should be only grows, and it stays where it was put.
pub fn tasks_only_move_on(view: &View<'_>) -> Held {
    for now in view.now.all::<Task>() {
        let Some(before) = view.before.get::<Task>(&now.object_ref()) else { continue };
        if before.metadata.uid != now.metadata.uid {
            continue;
        }
        if now.spec.desired < before.spec.desired {
            return Err(format!("{} shall be {:?} after {:?}", now.name(), now.spec.desired, before.spec.desired));
        }
        if before.spec.node_name.is_some() && now.spec.node_name != before.spec.node_name {
            return Err(format!("{} moves from {:?} to {:?}", now.name(), before.spec.node_name, now.spec.node_name));
        }
    }
    Ok(())
}

/// Whatever belongs to something belongs to something that was there when it was made.
pub fn nothing_for_nobody(view: &View<'_>) -> Held {
    fn check<T: Resource>(view: &View<'_>) -> Held {
        let owners = owners(view.now);
        for object in view.now.all::<T>() {
            let is_new = view.before.get::<T>(&object.object_ref()).is_none_or(|b| b.meta().uid != object.meta().uid);
            if is_new && object.meta().controller().is_some_and(|owner| !owners.contains(&owner.uid)) {
                return Err(format!("{} {} was made for an owner that is gone", T::kind().kind, object.name()));
            }
        }
        Ok(())
    }
    check::<Service>(view)?;
    check::<Network>(view)?;
    check::<Revision>(view)?;
    check::<Task>(view)?;
    check::<Endpoints>(view)
}

/// While a service is updated one by one, the others of its tasks go on serving: of those that the new template
/// replaces, at most one is out of service on the controller's account.
pub fn one_by_one(view: &View<'_>) -> Held {
    if view.writer.is_none_or(|writer| writer.manager != "service") {
        return Ok(());
    }
    for service in view.now.all::<Service>().filter(|service| service.spec.update.parallelism() == 1) {
        let uid = &service.metadata.uid;
        let serving = |snapshot: &Snapshot| snapshot.owned_by::<Task>(uid).filter(|task| runs(task)).count();
        let (before, now) = (serving(view.before), serving(view.now));
        let wanted = service.spec.replicas() as usize;
        if now < before && now + 1 < wanted.min(before) {
            return Err(format!("{} goes from {before} serving tasks to {now}, of {wanted}", service.name()));
        }
    }
    Ok(())
}

/// Every service has a running task of its template in every slot, says so, and is reachable.
pub fn services_run(snapshot: &Snapshot, machines: &Machines) -> Held {
    for service in snapshot.all::<Service>() {
        let tasks: Vec<_> = snapshot.owned_by::<Task>(&service.metadata.uid).filter(|task| runs(task)).collect();
        let slots: BTreeSet<String> = tasks.iter().map(|task| task.spec.slot.to_string()).collect();
        let wanted: BTreeSet<String> = (1..=service.spec.replicas()).map(|slot| slot.to_string()).collect();
        if slots != wanted || tasks.len() != wanted.len() {
            return Err(format!("{} runs in slots {slots:?}, and shall in {wanted:?}", service.name()));
        }
        if let Some(old) = tasks.iter().find(|task| template_of(snapshot, task) != Some(&service.spec.template)) {
            return Err(format!("{} runs from a template that is not the wanted one", old.name()));
        }
        let Some(status) = &service.status else { return Err(format!("{} has no status", service.name())) };
        let replicas = service.spec.replicas();
        let told = (status.observed_generation, status.desired, status.running, status.updated);
        if told != (service.metadata.generation, replicas, replicas, replicas) {
            return Err(format!("{} says {told:?} and has {replicas}", service.name()));
        }
        if !status.conditions.is_true("Ready") {
            return Err(format!("{} does not say that it is ready", service.name()));
        }
    }
    let placed: BTreeSet<Uid> =
        snapshot.all::<Task>().filter(|task| runs(task)).map(|task| task.metadata.uid.clone()).collect();
    let real: BTreeSet<Uid> = machines.containers().keys().map(|(_, uid)| uid.clone()).collect();
    if placed != real {
        return Err(format!("tasks {placed:?} run, and containers of {real:?}"));
    }
    Ok(())
}

/// Of configs: each running task's revision has the digest of what is there now.
pub fn data_is_seen(snapshot: &Snapshot) -> Held {
    for task in snapshot.all::<Task>().filter(|task| runs(task)) {
        let reference = ObjectRef::new(&task.metadata.namespace, &task.spec.revision);
        let Some(revision) = snapshot.get::<Revision>(&reference) else { continue };
        let named = revision.spec.content.template().map_or(0, |template| template.container.files().count());
        if revision.spec.files.len() != named {
            return Err(format!(
                "{} names {named} files, and knows the data of {}",
                reference,
                revision.spec.files.len()
            ));
        }
        for file in &revision.spec.files {
            let config = snapshot.get::<Config>(&ObjectRef::new(&task.metadata.namespace, &file.name));
            let digest = config.map(|config| Sha256::digest(config.spec.data.as_bytes()));
            let digest = digest.map(|it| it.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
            if digest.as_deref() != file.digest.strip_prefix("sha256:") {
                return Err(format!("{} runs with data of {} that is not there", task.name(), file.name));
            }
        }
    }
    Ok(())
}

/// Nothing runs, or is to run, on a machine that shall be emptied.
pub fn drained_machines_are_empty(snapshot: &Snapshot) -> Held {
    for node in snapshot.all::<Node>().filter(|node| node.spec.availability == Availability::Drain) {
        let on = |task: &&std::sync::Arc<Task>| task.spec.node_name.as_deref() == Some(node.name());
        if let Some(task) = snapshot.all::<Task>().filter(on).find(|task| runs(task)) {
            return Err(format!("{} runs on {}, which is drained", task.name(), node.name()));
        }
    }
    Ok(())
}

/// Who answers for each service is who runs.
pub fn services_are_reachable(snapshot: &Snapshot) -> Held {
    for service in snapshot.all::<Service>() {
        let Some(endpoints) = snapshot.get::<Endpoints>(&service.object_ref()) else {
            return Err(format!("{} has no endpoints", service.name()));
        };
        if !endpoints.metadata.is_owned_by(&service.metadata.uid) {
            return Err(format!("the endpoints of {} belong to a namesake", service.name()));
        }
        let listed: BTreeSet<&str> = endpoints.spec.backends.iter().map(|backend| &*backend.task).collect();
        let tasks = snapshot.owned_by::<Task>(&service.metadata.uid);
        let wanted: BTreeSet<&str> = tasks
            .filter(|task| runs(task) && task.status.as_ref().is_some_and(|status| !status.addresses.is_empty()))
            .map(|task| task.name())
            .collect();
        if listed != wanted {
            return Err(format!("{} lists {listed:?}, and {wanted:?} serve", service.name()));
        }
    }
    match snapshot.all::<Endpoints>().find(|e| snapshot.get::<Service>(&e.object_ref()).is_none()) {
        Some(left) => Err(format!("endpoints {} are left of a service that is gone", left.name())),
        None => Ok(()),
    }
}

/// Nothing carries the uid of an owner that is gone.
pub fn nothing_is_left(snapshot: &Snapshot) -> Held {
    fn check<T: Resource>(snapshot: &Snapshot, owners: &[Uid]) -> Held {
        let orphan =
            |object: &&std::sync::Arc<T>| object.meta().controller().is_some_and(|owner| !owners.contains(&owner.uid));
        match snapshot.all::<T>().find(orphan) {
            Some(left) => Err(format!("{} {} is left of an owner that is gone", T::kind().kind, left.name())),
            None => Ok(()),
        }
    }
    let owners = owners(snapshot);
    check::<Service>(snapshot, &owners)?;
    check::<Network>(snapshot, &owners)?;
    check::<Revision>(snapshot, &owners)?;
    check::<Task>(snapshot, &owners)?;
    check::<Endpoints>(snapshot, &owners)
}

/// A virtual IP and a published port belong to one service at a time, and a service keeps its own.
pub fn each_address_once(view: &View<'_>) -> Held {
    let mut vips = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for endpoints in view.now.all::<Endpoints>() {
        for vip in endpoints.spec.networks.iter().filter_map(|network| network.vip) {
            if let Some(other) = vips.insert(vip, endpoints.name()) {
                return Err(format!("{other} and {} both have {vip}", endpoints.name()));
            }
        }
        for port in endpoints.spec.ports.iter().filter(|port| port.mode == PublishMode::Ingress) {
            if let Some(other) = ports.insert((port.protocol, port.published), endpoints.name()) {
                let number = port.published.unwrap_or_default();
                return Err(format!("{other} and {} both publish {number}", endpoints.name()));
            }
        }
        let before = view.before.get::<Endpoints>(&endpoints.object_ref());
        for old in before.filter(|b| b.metadata.uid == endpoints.metadata.uid).iter().flat_map(|b| &b.spec.networks) {
            let now = endpoints.spec.networks.iter().find(|network| network.network == old.network);
            if now.is_some_and(|now| now.vip.is_some() && old.vip.is_some() && now.vip != old.vip) {
                return Err(format!("{} gets another virtual IP in {}", endpoints.name(), old.network));
            }
        }
    }
    Ok(())
}

/// No two subnets overlap, no two ids and no two blocks of a network are the same, and none of them moves.
pub fn each_subnet_once(view: &View<'_>) -> Held {
    let mut subnets: Vec<(Cidr, &str)> = Vec::new();
    let mut ids = BTreeMap::new();
    for network in view.now.all::<Network>() {
        let Some(status) = &network.status else { continue };
        if let Some(subnet) = status.subnet {
            if let Some((other, of)) = subnets.iter().find(|(other, _)| other.overlaps(&subnet)) {
                return Err(format!("{subnet} of {} overlaps {other} of {of}", network.name()));
            }
            subnets.push((subnet, network.name()));
        }
        if let Some(other) = status.id.and_then(|id| ids.insert(id, network.name())) {
            return Err(format!("{other} and {} have one id", network.name()));
        }
        let mut blocks = BTreeSet::new();
        if let Some(block) = status.blocks.iter().find(|block| !blocks.insert(block.block)) {
            return Err(format!("{} gives {} to two nodes", network.name(), block.block));
        }
        let before = view.before.get::<Network>(&network.object_ref());
        let before = before.filter(|before| before.metadata.uid == network.metadata.uid);
        if let Some(old) = before.and_then(|before| before.status.as_ref()) {
            if old.subnet.is_some() && old.subnet != status.subnet || old.id.is_some() && old.id != status.id {
                return Err(format!("{} moves", network.name()));
            }
            for block in &old.blocks {
                let now = status.blocks.iter().find(|now| now.node == block.node);
                if now.is_some_and(|now| now.block != block.block) {
                    return Err(format!("the block of {} in {} moves", block.node, network.name()));
                }
            }
        }
    }
    Ok(())
}

/// Every bundle is up and says so of its present generation.
pub fn bundles_are_up(snapshot: &Snapshot) -> Held {
    for bundle in snapshot.all::<Bundle>() {
        let status = bundle.status.clone().unwrap_or_default();
        if status.state != BundleState::Up || status.observed_generation != bundle.metadata.generation {
            return Err(format!("{} says {status:?} at generation {}", bundle.name(), bundle.metadata.generation));
        }
        let owned: BTreeSet<String> =
            snapshot.owned_by::<Service>(&bundle.metadata.uid).map(|service| service.name().to_owned()).collect();
        let wanted: BTreeSet<String> =
            bundle.spec.services.keys().map(|short| format!("{}-{short}", bundle.name())).collect();
        if owned != wanted {
            return Err(format!("{} has {owned:?}, and shall have {wanted:?}", bundle.name()));
        }
    }
    Ok(())
}

/// Number and revision of each use that is kept of an owner.
fn uses(snapshot: &Snapshot, owner: &Uid) -> Vec<(u64, String)> {
    let of = |revision: &std::sync::Arc<Revision>| {
        let name = revision.name().to_owned();
        let status = revision.status.clone().unwrap_or_default();
        status.uses.into_iter().map(move |used| (used.number, name.clone())).collect::<Vec<_>>()
    };
    let mut uses: Vec<_> = snapshot.owned_by::<Revision>(owner).flat_map(of).collect();
    uses.sort();
    uses
}

/// No number is given twice, and what was noted under one stays so for as long as its revision does.
pub fn history_only_grows(view: &View<'_>) -> Held {
    for owner in owners(view.now) {
        let now = uses(view.now, &owner);
        if let Some(twice) = now.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("number {} is given twice: {twice:?}", twice[0].0));
        }
        for (number, name) in uses(view.before, &owner) {
            let is_kept = view.now.owned_by::<Revision>(&owner).any(|revision| revision.name() == name);
            if is_kept && !now.contains(&(number, name.clone())) {
                return Err(format!("{name} forgot that it was number {number}"));
            }
        }
    }
    Ok(())
}

/// The last number of a bundle's history, and of a service's, is what it wants, and both say so.
pub fn history_ends_with_what_is_wanted(snapshot: &Snapshot) -> Held {
    let last = |owner: &Uid| {
        let (number, name) = uses(snapshot, owner).pop()?;
        let revision = snapshot.owned_by::<Revision>(owner).find(|revision| revision.name() == name)?;
        Some((number, name, revision.spec.content.clone()))
    };
    for bundle in snapshot.all::<Bundle>() {
        let (number, name, content) = last(&bundle.metadata.uid).ok_or(format!("{} has no history", bundle.name()))?;
        let status = bundle.status.clone().unwrap_or_default();
        if content.bundle() != Some(&bundle.spec) || (status.number, status.revision) != (number, Some(name)) {
            return Err(format!("{} is number {number} and says {}", bundle.name(), status.number));
        }
    }
    for service in snapshot.all::<Service>() {
        let (_, name, content) = last(&service.metadata.uid).ok_or(format!("{} has no history", service.name()))?;
        let told = service.status.clone().unwrap_or_default().revision;
        if content.template() != Some(&service.spec.template) || told.as_ref() != Some(&name) {
            return Err(format!("{} is {name} and says {told:?}", service.name()));
        }
    }
    Ok(())
}
