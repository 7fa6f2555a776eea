//! All of them in one process, as a manager runs them, with two machines.

use controllers::cluster::bundle::Bundles;
use controllers::cluster::endpoints::EndpointsController;
use controllers::cluster::network::Networks;
use controllers::cluster::scheduler::Scheduler;
use controllers::cluster::service::Services;
use reconciler::sim::{Scene, User};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::service::Service;

use super::bundle::deploy;
use super::cast::{Machines, at, cascade, join, kinds, node, process};
use super::{promises, suite};

fn scene(scene: Scene) -> Scene {
    let machines = Machines::default();
    let (seen, kept) = (machines.clone(), machines.clone());
    let scene = process(kinds(scene), "manager", |manager| {
        manager
            .controller(Bundles::controller())
            .controller(Services::controller())
            .controller(Scheduler::controller())
            .controller(Networks::controller())
            .controller(EndpointsController::controller())
    });
    let scene = node(cascade(scene), "n1", &machines);
    node(scene, "n2", &machines)
        .workload(workload)
        .invariant("one container a slot", move |_| promises::one_container_a_slot(&seen))
        .invariant("one task a slot", promises::one_task_a_slot)
        .invariant("tasks only move on", promises::tasks_only_move_on)
        .invariant("each address once", promises::each_address_once)
        .invariant("each subnet once", promises::each_subnet_once)
        .invariant("one by one", promises::one_by_one)
        .invariant("nothing is made for nobody", promises::nothing_for_nobody)
        .settles("every bundle is up", promises::bundles_are_up)
        .settles("every service runs as it shall", move |snapshot| promises::services_run(snapshot, &kept))
        .settles("every service is reachable", promises::services_are_reachable)
        .settles("nothing is left over", promises::nothing_is_left)
}

async fn workload(user: User) {
    join(&user, "n1", 4096).await;
    deploy(&user, &[("web", "example/web:1")]).await;
    user.pause().await;
    join(&user, "n2", 4096).await;
    user.update::<Service>(&at("shop-web"), |web| web.spec.replicas = Some(3)).await;
    user.pause().await;
    deploy(&user, &[("web", "example/web:2")]).await;
    user.pause().await;
    user.delete::<Bundle>(&at("shop")).await;
    user.pause().await;
}

#[test]
fn whole_cluster() {
    suite("cluster", 300, scene);
}
