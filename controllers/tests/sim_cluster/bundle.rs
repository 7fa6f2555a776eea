//! An application is deployed, changed by hand, deployed again, loses and regains a service, becomes what it was at first,
//! goes, and comes back.

use controllers::cluster::bundle::Bundles;
use controllers::cluster::endpoints::EndpointsController;
use controllers::cluster::network::Networks;
use controllers::cluster::scheduler::Scheduler;
use controllers::cluster::service::Services;
use reconciler::Resource;
use reconciler::sim::{Scene, User, View};
use schemas::kinds::bundle::{Bundle, BundleSpec, ServiceFragment};
use schemas::kinds::service::{PublishedPort, Service, ServiceSpec};

use super::cast::{Machines, NAMESPACE, at, cascade, join, kinds, node, process, service, template, until_gone};
use super::{promises, suite};

fn scene(scene: Scene) -> Scene {
    let machines = Machines::default();
    let (seen, kept) = (machines.clone(), machines.clone());
    let scene = process(kinds(scene), "bundle", |manager| manager.controller(Bundles::controller()));
    let scene = process(scene, "others", |manager| {
        manager
            .controller(Services::controller())
            .controller(Scheduler::controller())
            .controller(Networks::controller())
            .controller(EndpointsController::controller())
    });
    node(cascade(scene), "n1", &machines)
        .workload(workload)
        .invariant("what belongs to others is not touched", others_untouched)
        .invariant("what was set by hand stays", by_hand_stays)
        .invariant("one container a slot", move |_| promises::one_container_a_slot(&seen))
        .invariant("nothing is made for nobody", promises::nothing_for_nobody)
        .invariant("history only grows", promises::history_only_grows)
        .settles("history ends with what is wanted", promises::history_ends_with_what_is_wanted)
        .settles("every bundle is up", promises::bundles_are_up)
        .settles("every service runs as it shall", move |snapshot| promises::services_run(snapshot, &kept))
        .settles("nothing is left over", promises::nothing_is_left)
}

pub fn bundle(services: &[(&str, &str)]) -> BundleSpec {
    let fragment = |image: &str, port: bool| {
        let mut spec = ServiceSpec { template: template(image, &["back"]), ..ServiceSpec::default() };
        spec.endpoint.ports = if port { vec![PublishedPort { target: 80, ..Default::default() }] } else { vec![] };
        ServiceFragment::from(&spec)
    };
    let services = services.iter().map(|(name, image)| ((*name).to_owned(), fragment(image, *name == "web")));
    BundleSpec { services: services.collect(), ..BundleSpec::default() }
}

pub async fn deploy(user: &User, services: &[(&str, &str)]) {
    let spec = bundle(services);
    if user.client().find::<Bundle>(&at("shop")).await.unwrap().is_none() {
        let mut bundle = Bundle::new("shop", spec);
        bundle.metadata.namespace = NAMESPACE.into();
        user.create(&bundle).await;
    } else {
        user.update::<Bundle>(&at("shop"), |bundle| bundle.spec = spec.clone()).await;
    }
}

async fn workload(user: User) {
    join(&user, "n1", 4096).await;
    // Somebody else's, in the way.
    user.create(&service("shop-db", template("example/other:1", &[]), 1)).await;
    deploy(&user, &[("web", "example/web:1"), ("db", "example/db:1")]).await;
    user.pause().await;
    user.delete::<Service>(&at("shop-db")).await;
    user.pause().await;
    user.update::<Service>(&at("shop-web"), |web| web.spec.replicas = Some(2)).await;
    user.pause().await;
    deploy(&user, &[("web", "example/web:2"), ("db", "example/db:1")]).await;
    user.pause().await;
    deploy(&user, &[("web", "example/web:2")]).await;
    user.pause().await;
    deploy(&user, &[("web", "example/web:2"), ("db", "example/db:2")]).await;
    user.pause().await;
    // The way back.
    deploy(&user, &[("web", "example/web:1"), ("db", "example/db:1")]).await;
    user.pause().await;
    user.delete::<Bundle>(&at("shop")).await;
    until_gone::<Bundle>(&user, &at("shop")).await;
    deploy(&user, &[("web", "example/web:3"), ("db", "example/db:2")]).await;
    user.pause().await;
}

fn others_untouched(view: &View<'_>) -> promises::Held {
    if view.writer.is_none_or(|writer| writer.manager != "bundle") {
        return Ok(());
    }
    for before in view.before.all::<Service>() {
        let owner = before.metadata.controller().map(|owner| owner.uid.clone());
        let its_bundle = view.before.all::<Bundle>().any(|bundle| owner.as_ref() == Some(&bundle.metadata.uid));
        let version = |service: &Service| service.metadata.resource_version;
        let now = view.now.get::<Service>(&before.object_ref()).map(|now| version(now));
        if !its_bundle && now != Some(version(before)) {
            return Err(format!("the bundle controller changed {}, which is not its own", before.name()));
        }
    }
    Ok(())
}

/// No file here speaks of replicas.
fn by_hand_stays(view: &View<'_>) -> promises::Held {
    for before in view.before.all::<Service>() {
        let now = view.now.get::<Service>(&before.object_ref());
        let now = now.filter(|now| now.metadata.uid == before.metadata.uid);
        let by_bundle = view.writer.is_some_and(|writer| writer.manager == "bundle");
        if by_bundle && now.is_some_and(|now| now.spec.replicas != before.spec.replicas) {
            return Err(format!("the bundle controller scales {}", before.name()));
        }
    }
    Ok(())
}

#[test]
fn bundle_of_services() {
    suite("bundle", 300, scene);
}
