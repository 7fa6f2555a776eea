//! Volumes are made for tasks that mount them, deleted while they are in use, made again under their old names; no data is
//! lost but that of a volume that was deleted.
//!
//! The controllers of volumes on both sides run here, beside that of tasks: what each promises is what the others rely
//! on.

use controllers::cluster;
use controllers::node::tasks::Tasks;
use controllers::node::volumes::VolumeId;
use controllers::node::volumes::controller::VolumeData;
use reconciler::Resource;
use reconciler::cache::Snapshot;
use reconciler::controller::Manager;
use reconciler::sim::{Env, Scene, User, View};
use schemas::kinds::task::{NODE_FINALIZER, Task};
use schemas::kinds::volume::{Volume, VolumeSpec, VolumeState};

use super::cast::{NAMESPACE, NODE, applyd, at, kinds, network, run, state, stop};
use super::machine::{Machine, uid_of};
use super::promises::{self, Held};
use super::suite;
use super::tally::{Happened, Tally};

fn scene(scene: Scene, tally: &Tally) -> Scene {
    let machine = Machine::new(tally);
    let seen = || machine.clone();
    let (whole, slots, kept, held, last, wanted, data, left) =
        (seen(), seen(), seen(), seen(), seen(), seen(), seen(), seen());
    let (acting, tally) = (machine.clone(), tally.clone());
    let scene =
        applyd(kinds(scene), machine.power(), move |manager, env| {
            manager
                .controller(Tasks::controller(NODE, acting.parts(env), &env.seams))
                .controller(VolumeData::controller(NODE, acting.volumes(env), &env.seams))
        });
    let scene = scene.process("manager", |env: Env| {
        let manager = Manager::builder(env.objects, env.seams);
        let manager = manager.controller(cluster::volume::Volumes::controller()).build();
        async move { manager.run(std::future::pending()).await }
    });
    others(scene, &machine)
        .workload(workload)
        .invariant("the machine is whole", move |_| promises::machine_is_whole(&whole, &tally))
        .invariant("one container a slot", move |view| promises::one_container_a_slot(view, &slots))
        .invariant("data goes only with its volume", move |view| goes_only_with_its_volume(view, &kept))
        .invariant("what runs has a volume", move |view| what_runs_has_a_volume(view, &held))
        .invariant("a volume goes after its data", move |view| goes_after_its_data(view, &last))
        .settles("every task is as it shall be", move |snapshot| {
            promises::tasks_are_as_wanted(snapshot, &wanted, |_| None)
        })
        .settles("every volume is as it shall be", move |snapshot| volumes_are_right(snapshot, &data))
        .settles("nothing is left over", move |snapshot| promises::nothing_is_left(snapshot, &left))
}

/// What others do to the machine.
fn others(scene: Scene, machine: &Machine) -> Scene {
    let (containerd, power, container) = (machine.clone(), machine.clone(), machine.clone());
    scene
        .drift("containerd is killed", move || containerd.kill_containerd())
        .drift("the power is cut", move || power.cut_power())
        .drift("somebody kills a container", move || container.kill_container())
}

async fn workload(user: User) {
    network(&user, "back", "10.192.3.0/28").await;
    run(&user, "db-1", 1, "db").await;
    let mut spare = Volume::new("spare", VolumeSpec::default());
    spare.metadata.namespace = NAMESPACE.into();
    user.create(&spare).await;
    user.pause().await;
    // In use: it waits for its task.
    user.delete::<Volume>(&at("data")).await;
    user.pause().await;
    stop(&user, "db-1").await;
    user.pause().await;
    run(&user, "db-2", 1, "db").await;
    user.delete::<Task>(&at("db-1")).await;
    user.pause().await;
    stop(&user, "db-2").await;
    // Its namesake is wanted at once.
    user.delete::<Volume>(&at("data")).await;
    run(&user, "db-3", 1, "db").await;
    user.pause().await;
    // Once more, as it is about to be taken hold of, or is already.
    user.delete::<Volume>(&at("data")).await;
    user.pause().await;
    stop(&user, "db-3").await;
    run(&user, "db-4", 1, "db").await;
    user.delete::<Volume>(&at("spare")).await;
    user.pause().await;
}

fn name_of(volume: &Volume) -> VolumeId {
    VolumeId::new(&volume.metadata.namespace, volume.name()).expect("a name that was accepted")
}

fn volume<'a>(snapshot: &'a Snapshot, id: &VolumeId) -> Option<&'a Volume> {
    snapshot.all::<Volume>().map(|volume| &**volume).find(|volume| name_of(volume) == *id)
}

fn goes_only_with_its_volume(view: &View<'_>, machine: &Machine) -> Held {
    for id in std::mem::take(&mut machine.lock().removed) {
        match volume(view.now, &id) {
            Some(volume) if volume.is_deleting() => {}
            Some(_) => return Err(format!("the data of {id} was removed, and the volume is to stay")),
            None => return Err(format!("the data of {id} was removed, and there is no such volume")),
        }
    }
    Ok(())
}

/// Nobody writes into a directory that nobody answers for.
fn what_runs_has_a_volume(view: &View<'_>, machine: &Machine) -> Held {
    let state = machine.lock();
    for (id, _) in state.containers.iter().filter(|(_, container)| container.runs()) {
        let mounts = state.places.get(&uid_of(id).0).map(|place| &place.mounts).into_iter().flatten();
        for mount in mounts {
            if volume(view.now, mount).is_none() {
                return Err(format!("{id} has mounted {mount}, and there is no such volume"));
            }
            if !state.volumes.contains_key(mount) {
                return Err(format!("{id} has mounted {mount}, whose directory is gone"));
            }
        }
    }
    Ok(())
}

fn goes_after_its_data(view: &View<'_>, machine: &Machine) -> Held {
    for gone in view.before.all::<Volume>() {
        let id = name_of(gone);
        let same = volume(view.now, &id).is_some_and(|now| now.metadata.uid == gone.metadata.uid);
        if !same && machine.lock().volumes.contains_key(&id) {
            return Err(format!("volume {id} leaves the store before its data"));
        }
    }
    Ok(())
}

fn volumes_are_right(snapshot: &Snapshot, machine: &Machine) -> Held {
    let machine = machine.lock();
    for volume in snapshot.all::<Volume>() {
        let id = name_of(volume);
        let status = volume.status.clone().unwrap_or_default();
        let used =
            snapshot.all::<Task>().filter(|task| task.spec.revision == "db" && !state(task).is_terminal()).count();
        let right = match volume.name() {
            "data" => status.state == VolumeState::Ready && status.in_use as usize == used && used == 1,
            _ => false,
        };
        let held = volume.metadata.finalizers.iter().any(|name| name == NODE_FINALIZER);
        if !right || !held || volume.is_deleting() || !machine.volumes.contains_key(&id) {
            return Err(format!(
                "{id} has {status:?}, used by {used}; held: {held}, deleting: {}",
                volume.is_deleting()
            ));
        }
    }
    match machine.volumes.keys().find(|id| volume(snapshot, id).is_none()) {
        Some(id) => Err(format!("the data of {id} belongs to no volume")),
        None => Ok(()),
    }
}

#[test]
fn volumes() {
    use Happened::{ContainerKilled, ContainerdAway, ContainerdKilled, DoneLate, PowerCut};
    let must = [ContainerKilled, ContainerdAway, ContainerdKilled, DoneLate, PowerCut];
    suite("volumes", 300, 300, &must, scene);
}
