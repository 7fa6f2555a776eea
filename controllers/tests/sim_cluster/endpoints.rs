//! Services with ports and networks come and go, change what they publish, and take one another's names.

use controllers::cluster::endpoints::EndpointsController;
use reconciler::Resource;
use reconciler::api::OwnerReference;
use reconciler::sim::{Scene, User};
use schemas::kinds::network::Network;
use schemas::kinds::service::{PublishedPort, Service};
use schemas::kinds::task::{DesiredState, Slot, Task, TaskSpec};

use super::cast::{NAMESPACE, at, kinds, network, process, running, service, set_status, template};
use super::{promises, suite};

fn scene(scene: Scene) -> Scene {
    process(kinds(scene), "endpoints", |manager| manager.controller(EndpointsController::controller()))
        .workload(workload)
        .invariant("each address once", promises::each_address_once)
        .invariant("nothing is made for nobody", promises::nothing_for_nobody)
        .settles("every service is reachable", promises::services_are_reachable)
        .settles("what is asked for is there", as_asked)
}

async fn workload(user: User) {
    user.create(&network("back")).await;
    user.create(&with_ports("web", &[None])).await;
    user.pause().await;
    user.create(&with_ports("api", &[None, Some(8080)])).await;
    user.pause().await;
    let web = user.client().get::<Service>(&at("web")).await.unwrap();
    let task = task(&web, "web-1");
    user.create(&task).await;
    set_status::<Task>(&user, &at("web-1"), running).await;
    user.pause().await;
    user.update::<Task>(&at("web-1"), |task| task.spec.desired = DesiredState::Leaving).await;
    user.pause().await;
    user.create(&network("front")).await;
    user.update::<Service>(&at("api"), |api| api.spec.template.networks = template("", &["back", "front"]).networks)
        .await;
    user.pause().await;
    // Both want one number; the second gets it when the first lets go of it.
    user.update::<Service>(&at("web"), |web| web.spec.endpoint.ports[0].published = Some(8080)).await;
    user.pause().await;
    user.update::<Service>(&at("api"), |api| drop(api.spec.endpoint.ports.pop())).await;
    user.pause().await;
    user.delete::<Service>(&at("api")).await;
    user.create(&with_ports("mail", &[None])).await;
    user.pause().await;
    user.create(&with_ports("api", &[None, None])).await;
    user.pause().await;
    user.delete::<Network>(&at("front")).await;
    user.delete::<Task>(&at("web-1")).await;
    user.pause().await;
    user.delete::<Service>(&at("mail")).await;
    user.create(&with_ports("mail", &[None])).await;
    user.pause().await;
}

fn with_ports(name: &str, published: &[Option<u16>]) -> Service {
    let mut service = service(name, template("example/web:1", &["back"]), 1);
    let port = |(target, published): (u16, &Option<u16>)| PublishedPort {
        target,
        published: *published,
        ..PublishedPort::default()
    };
    service.spec.endpoint.ports = (80..).zip(published).map(port).collect();
    service
}

fn task(service: &Service, name: &str) -> Task {
    let spec = TaskSpec {
        service: service.name().to_owned(),
        revision: "web-1".into(),
        slot: Slot::Number(1),
        node_name: Some("n1".into()),
        desired: DesiredState::Running,
        networks: service.spec.template.networks.clone(),
        in_place_of: None,
    };
    let mut task = Task::new(name, spec);
    task.metadata.namespace = NAMESPACE.into();
    task.metadata.owner_references = vec![OwnerReference {
        api_version: Service::kind().api_version(),
        kind: Service::kind().kind.to_string(),
        name: service.name().to_owned(),
        uid: service.metadata.uid.clone(),
        controller: true,
        block_owner_deletion: true,
    }];
    task
}

/// In the end no two services want the same: each has every port and an address in every network that is there.
fn as_asked(snapshot: &reconciler::cache::Snapshot) -> promises::Held {
    use schemas::kinds::endpoints::Endpoints;
    for service in snapshot.all::<Service>() {
        let spec = snapshot.get::<Endpoints>(&service.object_ref()).map(|e| e.spec.clone()).unwrap_or_default();
        let there = service.spec.template.networks.iter().filter(|n| snapshot.get::<Network>(&at(&n.name)).is_some());
        let (ports, networks) = (service.spec.endpoint.ports.len(), there.count());
        if spec.ports.len() != ports || spec.networks.iter().filter(|network| network.vip.is_some()).count() != networks
        {
            return Err(format!("{} has {spec:?}, of {ports} ports and {networks} networks", service.name()));
        }
        for (asked, given) in service.spec.endpoint.ports.iter().zip(&spec.ports) {
            if asked.published.is_some() && asked.published != given.published || given.published.is_none() {
                return Err(format!("{} asked for {asked:?} and has {given:?}", service.name()));
            }
        }
    }
    Ok(())
}

#[test]
fn endpoints_of_services() {
    suite("endpoints", 100, scene);
}
