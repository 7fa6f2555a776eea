//! A machine that is silent is removed while tasks are placed on it: they run elsewhere, and nothing of them is left.

use controllers::cluster::endpoints::EndpointsController;
use controllers::cluster::orphan::Orphans;
use controllers::cluster::scheduler::Scheduler;
use controllers::cluster::service::Services;
use reconciler::ObjectRef;
use reconciler::cache::Snapshot;
use reconciler::sim::{Scene, User};
use schemas::kinds::node::Node;
use schemas::kinds::service::Service;
use schemas::kinds::task::Task;

use super::cast::{Machines, at, cascade, join, kinds, network, node, process, service, template, until_gone};
use super::{promises, suite};

fn scene(scene: Scene) -> Scene {
    let machines = Machines::default();
    let (seen, kept) = (machines.clone(), machines.clone());
    let scene = process(kinds(scene), "service", |manager| manager.controller(Services::controller()));
    let scene = process(scene, "orphan", |manager| manager.controller(Orphans::controller()));
    let scene = process(scene, "others", |manager| {
        manager.controller(Scheduler::controller()).controller(EndpointsController::controller())
    });
    // Nobody plays n2: what is placed there stays as it is.
    node(cascade(scene), "n1", &machines)
        .workload(workload)
        .invariant("one container a slot", move |_| promises::one_container_a_slot(&seen))
        .invariant("one task a slot", promises::one_task_a_slot)
        .invariant("tasks only move on", promises::tasks_only_move_on)
        .settles("every service runs as it shall", move |snapshot| promises::services_run(snapshot, &kept))
        .settles("nothing waits for a machine that was removed", nothing_waits)
        .settles("nothing is left over", promises::nothing_is_left)
}

async fn workload(user: User) {
    join(&user, "n1", 4096).await;
    user.create(&network("back")).await;
    for (round, name) in [(0, "web"), (1, "api")] {
        join(&user, "n2", 4096).await;
        user.create(&service(name, template("example/web:1", &["back"]), 3)).await;
        user.pause().await;
        if round == 1 {
            // Its tasks are to go while nobody can take them apart.
            user.delete::<Service>(&at("web")).await;
            user.pause().await;
        }
        user.delete::<Node>(&ObjectRef::cluster("n2")).await;
        user.pause().await;
    }
    until_gone::<Service>(&user, &at("web")).await;
}

fn nothing_waits(snapshot: &Snapshot) -> promises::Held {
    let there = |task: &Task| {
        task.spec.node_name.as_ref().is_none_or(|node| snapshot.get::<Node>(&ObjectRef::cluster(node)).is_some())
    };
    let ended = |task: &Task| task.status.as_ref().is_some_and(|status| status.state.is_terminal());
    match snapshot.all::<Task>().find(|task| !there(task) && (!ended(task) || !task.metadata.finalizers.is_empty())) {
        Some(task) => Err(format!("{} waits for its node, which was removed", task.metadata.name)),
        None => Ok(()),
    }
}

#[test]
fn removed() {
    suite("removed", 40, scene);
}
