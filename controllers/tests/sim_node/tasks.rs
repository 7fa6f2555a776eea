//! Tasks come, run, crash, are replaced, stopped and deleted; their images are there, late or never.

use controllers::node::tasks::Tasks;
use controllers::node::tasks::planted::Planted;
use reconciler::sim::{Scene, User};
use schemas::kinds::task::{Task, TaskState};

use super::cast::{NODE, applyd, at, kinds, network, run, stop};
use super::machine::Machine;
use super::tally::{Happened, Tally};
use super::{found, promises, suite};

const RUNS_UNKNOWN: &str = "nothing runs that the store does not know";
const IS_WHOLE: &str = "the machine is whole";
const RUNS_WELL: &str = "what runs well runs on";

fn scene(scene: Scene, tally: &Tally, planted: &'static [Planted]) -> Scene {
    let machine = Machine::new(tally);
    let seen = || machine.clone();
    let (whole, slots, runs, leaves, well, said, wanted, left) =
        (seen(), seen(), seen(), seen(), seen(), seen(), seen(), seen());
    let (acting, tally) = (machine.clone(), tally.clone());
    let scene = applyd(kinds(scene), machine.power(), move |manager, env| {
        manager.controller(Tasks::planted(NODE, acting.parts(env), &env.seams, planted))
    });
    others(scene, &machine)
        .workload(workload)
        .invariant(IS_WHOLE, move |_| promises::machine_is_whole(&whole, &tally))
        .invariant("one container a slot", move |view| promises::one_container_a_slot(view, &slots))
        .invariant(RUNS_UNKNOWN, move |view| promises::nothing_runs_unknown(view, &runs))
        .invariant("gone from the store last", move |view| promises::gone_from_the_store_last(view, &leaves))
        .invariant(RUNS_WELL, move |view| promises::what_runs_well_runs_on(view, &well))
        .invariant("addresses are said first", move |view| promises::addresses_are_said_first(view, &said))
        .invariant("tasks only move on", promises::tasks_only_move_on)
        .settles("every task is as it shall be", move |snapshot| {
            promises::tasks_are_as_wanted(snapshot, &wanted, |program| match program {
                "once" => Some(TaskState::Complete),
                "missing" => Some(TaskState::Rejected),
                _ => None,
            })
        })
        .settles("nothing is left over", move |snapshot| promises::nothing_is_left(snapshot, &left))
}

/// What others do to the machine.
fn others(scene: Scene, machine: &Machine) -> Scene {
    let at = || machine.clone();
    let (containerd, power, container, shim, record, images, busy) = (at(), at(), at(), at(), at(), at(), at());
    scene
        .drift("containerd is killed", move || containerd.kill_containerd())
        .drift("the power is cut", move || power.cut_power())
        .drift("somebody kills a container", move || container.kill_container())
        .drift("a shim does not answer", move || shim.silence_shim())
        .drift("somebody removes a record", move || record.remove_record())
        .drift("somebody removes all images", move || images.prune_images())
        .drift("containerd is going to die while it makes a task", move || busy.kill_containerd_at_work())
}

async fn workload(user: User) {
    network(&user, "back", "10.192.3.0/28").await;
    run(&user, "web-1", 1, "web").await;
    run(&user, "sick-1", 2, "late-sick").await;
    user.pause().await;
    run(&user, "flaky-1", 3, "broken-flaky").await;
    run(&user, "stubborn-1", 4, "stubborn").await;
    user.pause().await;
    stop(&user, "web-1").await;
    run(&user, "web-2", 1, "web").await;
    run(&user, "missing-1", 5, "missing").await;
    user.pause().await;
    user.delete::<Task>(&at("stubborn-1")).await;
    user.delete::<Task>(&at("web-1")).await;
    user.pause().await;
    run(&user, "once-1", 6, "once").await;
    user.delete::<Task>(&at("missing-1")).await;
    user.pause().await;
    user.delete::<Task>(&at("web-2")).await;
    user.pause().await;
    run(&user, "web-3", 7, "web").await;
    user.pause().await;
}

#[test]
fn tasks() {
    use Happened::{
        ContainerKilled, ContainerdAway, ContainerdKilled, CreationStuck, DoneLate, ImagesPruned, PowerCut,
        RecordRemoved, ShimSilent,
    };
    let must = [
        ContainerKilled,
        ContainerdAway,
        ContainerdKilled,
        CreationStuck,
        DoneLate,
        ImagesPruned,
        PowerCut,
        RecordRemoved,
        ShimSilent,
    ];
    suite("tasks", 500, 1000, &must, |fresh, tally| scene(fresh, tally, &[]));
}

#[test]
fn taking_the_unseen_for_absent_is_found() {
    found(scene, &[Planted::UnseenIsAbsent], IS_WHOLE);
}

#[test]
fn taking_silent_for_lost_is_found() {
    found(scene, &[Planted::SilentIsLost], RUNS_WELL);
}
