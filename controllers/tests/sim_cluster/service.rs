//! A service comes and waits for a config, is scaled, updated, fed other data, a bad image and a good one, loses tasks, moves to
//! another machine, goes, and comes back under its old name.

use controllers::cluster::endpoints::EndpointsController;
use controllers::cluster::scheduler::Scheduler;
use controllers::cluster::service::Services;
use reconciler::ObjectRef;
use reconciler::sim::{Scene, User};
use schemas::kinds::config::Config;
use schemas::kinds::labels::REBALANCE;
use schemas::kinds::node::{Availability, Node};
use schemas::kinds::service::{Service, UpdateOrder};
use schemas::kinds::task::Task;
use schemas::kinds::template::FileReference;

use super::cast::{
    BAD_IMAGE, Machines, at, cascade, config, join, kinds, network, node, process, service, template, until_gone,
};
use super::{promises, suite};

pub fn scene(scene: Scene) -> Scene {
    let machines = Machines::default();
    let (seen, kept) = (machines.clone(), machines.clone());
    on_two_machines(scene, &machines)
        .workload(workload)
        .invariant("one container a slot", move |_| promises::one_container_a_slot(&seen))
        .invariant("one task a slot", promises::one_task_a_slot)
        .invariant("tasks only move on", promises::tasks_only_move_on)
        .invariant("nothing is made for nobody", promises::nothing_for_nobody)
        .invariant("one by one", promises::one_by_one)
        .settles("every service runs as it shall", move |snapshot| promises::services_run(snapshot, &kept))
        .settles("every task sees the data that there is", promises::data_is_seen)
        .settles("a drained machine is empty", promises::drained_machines_are_empty)
        .settles("every service is reachable", promises::services_are_reachable)
        .settles("nothing is left over", promises::nothing_is_left)
}

async fn workload(user: User) {
    let web = at("web");
    join(&user, "n1", 4096).await;
    user.create(&network("back")).await;
    let mut seeing = template("example/web:1", &["back"]);
    seeing.container.configs = vec![FileReference { source: "motd".into(), ..FileReference::default() }];
    user.create(&service("web", seeing, 2)).await;
    user.pause().await;
    user.create(&config("motd", "aGVsbG8=")).await;
    user.pause().await;
    user.update::<Service>(&web, |web| web.spec.replicas = Some(3)).await;
    user.pause().await;
    user.update::<Config>(&at("motd"), |motd| motd.spec.data = "YnllIGJ5ZQ==".into()).await;
    user.pause().await;
    user.update::<Service>(&web, |web| web.spec.template.container.image = "example/web:2".into()).await;
    user.pause().await;
    if let Some(task) = user.snapshot().all::<Task>().next().cloned() {
        user.delete::<Task>(&at(&task.metadata.name)).await;
    }
    user.pause().await;
    // What is gone leaves those that run as they are, whatever else is wanted of them.
    user.delete::<Config>(&at("motd")).await;
    user.pause().await;
    user.update::<Service>(&web, |web| web.spec.template.container.image = BAD_IMAGE.into()).await;
    user.create(&config("motd", "aGVsbG8=")).await;
    user.pause().await;
    user.update::<Service>(&web, |web| web.spec.template.container.image = "example/web:3".into()).await;
    user.pause().await;
    join(&user, "n2", 4096).await;
    user.update::<Node>(&ObjectRef::cluster("n1"), |n1| n1.spec.availability = Availability::Drain).await;
    user.pause().await;
    user.update::<Service>(&web, |web| web.spec.replicas = Some(1)).await;
    user.pause().await;
    user.delete::<Service>(&web).await;
    until_gone::<Service>(&user, &web).await;
    user.create(&service("web", template("example/web:3", &["back"]), 2)).await;
    user.pause().await;
}

/// The controllers of a service, and two machines.
fn on_two_machines(scene: Scene, machines: &Machines) -> Scene {
    let scene = process(kinds(scene), "service", |manager| manager.controller(Services::controller()));
    let scene = process(scene, "others", |manager| {
        manager.controller(Scheduler::controller()).controller(EndpointsController::controller())
    });
    node(node(cascade(scene), "n1", machines), "n2", machines)
}

/// One whose next tasks serve before those before them go: updated, also to what does not come up and in the midst of it,
/// moved off a machine, and spread evenly over one that comes later.
fn start_first(scene: Scene) -> Scene {
    let machines = Machines::default();
    let kept = machines.clone();
    on_two_machines(scene, &machines)
        .workload(updated)
        .invariant("two of a slot only while one takes over", promises::one_of_two_takes_over)
        .invariant("never fewer than asked", promises::never_fewer)
        .invariant("tasks only move on", promises::tasks_only_move_on)
        .settles("every service runs as it shall", move |snapshot| promises::services_run(snapshot, &kept))
        .settles("a drained machine is empty", promises::drained_machines_are_empty)
        .settles("every service is reachable", promises::services_are_reachable)
        .settles("what was to be spread evenly is", promises::spread_evenly)
        .settles("nothing is left over", promises::nothing_is_left)
}

async fn updated(user: User) {
    let web = at("web");
    join(&user, "n1", 8192).await;
    user.create(&network("back")).await;
    let mut first = service("web", template("example/web:1", &["back"]), 3);
    first.spec.update.order = UpdateOrder::StartFirst;
    user.create(&first).await;
    user.pause().await;
    user.update::<Service>(&web, |web| web.spec.template.container.image = "example/web:2".into()).await;
    user.pause().await;
    user.update::<Service>(&web, |web| web.spec.template.container.image = BAD_IMAGE.into()).await;
    user.pause().await;
    user.update::<Service>(&web, |web| web.spec.replicas = Some(4)).await;
    user.update::<Service>(&web, |web| web.spec.template.container.image = "example/web:3".into()).await;
    user.pause().await;
    join(&user, "n2", 8192).await;
    user.pause().await;
    let wish = |wish: &'static str| {
        move |web: &mut Service| drop(web.metadata.annotations.insert(REBALANCE.to_owned(), wish.to_owned()))
    };
    user.update::<Service>(&web, wish("one")).await;
    user.pause().await;
    user.update::<Node>(&ObjectRef::cluster("n1"), |n1| n1.spec.availability = Availability::Drain).await;
    user.pause().await;
    user.update::<Service>(&web, |web| web.spec.update.parallelism = Some(2)).await;
    user.update::<Service>(&web, |web| web.spec.template.container.image = "example/web:4".into()).await;
    user.pause().await;
    user.update::<Node>(&ObjectRef::cluster("n1"), |n1| n1.spec.availability = Availability::Active).await;
    user.pause().await;
    user.update::<Service>(&web, wish("two")).await;
    user.pause().await;
}

#[test]
fn service_start_first() {
    suite("service, start-first", 300, start_first);
}

#[test]
fn service_of_tasks() {
    suite("service", 300, scene);
}
