//! What must hold at every step, and what must be true in the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use reconciler::Resource;
use reconciler::api::Uid;
use reconciler::cache::Snapshot;
use reconciler::sim::View;
use schemas::kinds::task::{DesiredState, Slot, Task, TaskState};

use super::cast::{is_wanted, state};
use super::machine::{Container, Machine, State, uid_of};
use super::tally::Tally;

pub type Held = Result<(), String>;

fn of_uid<'a>(snapshot: &'a Snapshot, uid: &Uid) -> Option<&'a Arc<Task>> {
    snapshot.all::<Task>().find(|task| task.metadata.uid == *uid)
}

/// What no machine may ever come to: two attempts of a task at once, an address in two places, a start without a
/// network. The machine itself has noticed.
pub fn machine_is_whole(machine: &Machine, tally: &Tally) -> Held {
    let state = machine.lock();
    let containers: Vec<_> = state.containers.values().map(|container| container.outline()).collect();
    tally.saw(&(state.away, containers, state.places.values().collect::<Vec<_>>(), &state.leases));
    state.broken.clone().map_or(Ok(()), Err)
}

/// Two containers of one slot never run at once.
pub fn one_container_a_slot(view: &View<'_>, machine: &Machine) -> Held {
    let mut seen: BTreeMap<&Slot, &str> = BTreeMap::new();
    let state = machine.lock();
    for (id, _) in state.containers.iter().filter(|(_, container)| container.runs()) {
        let Some(task) = of_uid(view.now, &uid_of(id).0) else { continue };
        if let Some(other) = seen.insert(&task.spec.slot, task.name()) {
            return Err(format!("{other} and {} run, both of slot {}", task.name(), task.spec.slot));
        }
    }
    Ok(())
}

/// What runs here, the store knows of, and does not take for ended.
pub fn nothing_runs_unknown(view: &View<'_>, machine: &Machine) -> Held {
    for (id, _) in machine.lock().containers.iter().filter(|(_, container)| container.runs()) {
        match of_uid(view.now, &uid_of(id).0) {
            None => return Err(format!("{id} runs, and its task has left the store")),
            Some(task) if state(task).is_terminal() => {
                return Err(format!("{id} runs, and {} is {} in the store", task.name(), state(task)));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// When a task leaves the store, nothing of it is on the machine any more.
pub fn gone_from_the_store_last(view: &View<'_>, machine: &Machine) -> Held {
    for task in view.before.all::<Task>() {
        let uid = &task.metadata.uid;
        if of_uid(view.now, uid).is_none() {
            nothing_of(&machine.lock(), uid)
                .map_err(|left| format!("{} leaves the store before {left}", task.name()))?;
        }
    }
    Ok(())
}

fn nothing_of(state: &State, uid: &Uid) -> Held {
    // A layer that nothing holds is the collector's.
    let left = |it: &Container| it.record.is_some() || it.task.is_some();
    if let Some((id, _)) = state.containers.iter().find(|(id, container)| uid_of(id).0 == *uid && left(container)) {
        return Err(format!("container {id}"));
    }
    match state.places.get(uid) {
        Some(place) => Err(format!("{place:?}")),
        None => Ok(()),
    }
}

/// A container that runs well is ended by us only for a reason: its task is not wanted any more, or has another attempt.
pub fn what_runs_well_runs_on(view: &View<'_>, machine: &Machine) -> Held {
    let mut state = machine.lock();
    for id in std::mem::take(&mut state.ended) {
        let (uid, attempt) = uid_of(&id);
        let Some(task) = of_uid(view.now, &uid) else { continue };
        let status = task.status.clone().unwrap_or_default();
        let over = status
            .attempts
            .iter()
            .any(|known| known.number > attempt || known.number == attempt && known.finished_at.is_some());
        let unwanted = !is_wanted(task) || status.state.is_terminal();
        if !over && !unwanted {
            return Err(format!("{id} ran well and was ended; {} is {}", task.name(), status.state));
        }
    }
    Ok(())
}

/// What has ended stays so, attempts are counted up, and what a task should be only grows.
pub fn tasks_only_move_on(view: &View<'_>) -> Held {
    for now in view.now.all::<Task>() {
        let Some(before) = of_uid(view.before, &now.metadata.uid) else { continue };
        let last = |task: &Task| {
            task.status.as_ref().and_then(|status| status.attempts.last()).map_or(0, |attempt| attempt.number)
        };
        if state(before).is_terminal() && state(now) != state(before) {
            return Err(format!("{} is {} after {}", now.name(), state(now), state(before)));
        }
        if last(now) < last(before) {
            return Err(format!("{} is at attempt {} after {}", now.name(), last(now), last(before)));
        }
    }
    Ok(())
}

/// An address is in the store before anything on the machine has it.
pub fn addresses_are_said_first(view: &View<'_>, machine: &Machine) -> Held {
    for (uid, place) in &machine.lock().places {
        let Some(task) = of_uid(view.now, uid) else { continue };
        let status = task.status.clone().unwrap_or_default();
        // Of one that has ended, the store lets go first.
        if status.state.is_terminal() {
            continue;
        }
        for address in place.link.iter().flatten() {
            if !status.addresses.iter().any(|said| said.address == *address) {
                return Err(format!("{} has {address}, and the store says {:?}", task.name(), status.addresses));
            }
        }
    }
    Ok(())
}

/// Every task that is wanted runs (or has ended, as `ends` says of its program), and its status is what the machine
/// has.
pub fn tasks_are_as_wanted(snapshot: &Snapshot, machine: &Machine, ends: impl Fn(&str) -> Option<TaskState>) -> Held {
    let machine = machine.lock();
    for task in snapshot.all::<Task>() {
        let status = task.status.clone().unwrap_or_default();
        let wanted = match (task.is_deleting(), task.spec.desired) {
            (true, _) => return Err(format!("{} is still there: {status:?}", task.name())),
            (false, DesiredState::Stopped) => TaskState::Complete,
            (false, _) => ends(&task.spec.revision).unwrap_or(TaskState::Running),
        };
        if status.state != wanted {
            return Err(format!("{} is {:?}, and shall be {wanted}", task.name(), status));
        }
        let of_task = machine.containers.iter().filter(|(id, _)| uid_of(id).0 == task.metadata.uid);
        let all: Vec<_> = of_task.collect();
        if wanted.is_terminal() {
            let place = machine.places.get(&task.metadata.uid);
            if !all.is_empty() || place.is_some_and(|place| place.folder || place.link.is_some() || place.volumes) {
                return Err(format!("{} has ended and left {all:?} {place:?}", task.name()));
            }
            continue;
        }
        let [(id, container)] = all[..] else { return Err(format!("{} has {all:?}", task.name())) };
        let pid = container.task.as_ref().filter(|task| task.runs()).map(|task| task.pid);
        if pid.is_none() || status.pid != pid || status.container_id.as_deref() != Some(id.as_str()) {
            return Err(format!("{} says {status:?} of {id} {container:?}", task.name()));
        }
        let said: Vec<_> = status.addresses.iter().map(|address| address.address).collect();
        let link = machine.places.get(&task.metadata.uid).and_then(|place| place.link.clone()).unwrap_or_default();
        if said.is_empty() || link != said.iter().copied().collect() {
            return Err(format!("{} says addresses {said:?} and has {link:?}", task.name()));
        }
    }
    Ok(())
}

/// Nothing is on the machine of tasks that are not in the store, and no pull is under way.
pub fn nothing_is_left(snapshot: &Snapshot, machine: &Machine) -> Held {
    let machine = machine.lock();
    let of_containers = machine.containers.keys().map(|id| uid_of(id).0);
    for uid in of_containers.chain(machine.places.keys().cloned()) {
        if of_uid(snapshot, &uid).is_none() {
            let (container, place) = (nothing_of(&machine, &uid), machine.places.get(&uid));
            return Err(format!("of a task that is gone, {uid}, there is {container:?} {place:?}"));
        }
    }
    match machine.leases.first() {
        Some(lease) => Err(format!("the lease of {lease} is left")),
        None => Ok(()),
    }
}
