//! Scenes of services that publish ports.

use std::sync::Arc;

use reconciler::api::OwnerReference;
use reconciler::{ObjectRef, Resource, Timestamp, Uid};
use schemas::kinds::endpoints::{Endpoints, EndpointsSpec, TaskAddress};
use schemas::kinds::service::{NetworkAttachment, PublishedPort, Service, ServiceSpec};
use schemas::kinds::task::{DesiredState, Slot, Task, TaskSpec, TaskState, TaskStatus};

use super::plan::{Change, Seen, plan};

fn service(name: &str, age: i64, ports: &[(u16, Option<u16>)]) -> Service {
    let mut spec = ServiceSpec::default();
    spec.template.networks = vec![NetworkAttachment { name: "back".into(), aliases: vec!["short".into()] }];
    spec.endpoint.ports = ports
        .iter()
        .map(|(target, published)| PublishedPort { target: *target, published: *published, ..PublishedPort::default() })
        .collect();
    let mut service = Service::new(name, spec);
    service.metadata.namespace = "default".into();
    service.metadata.uid = Uid::new(format!("u-{name}"));
    service.metadata.creation_timestamp = Some(Timestamp::from_seconds(age));
    service
}

fn task(service: &Service, slot: u32, desired: DesiredState, state: TaskState) -> Task {
    let spec = TaskSpec {
        service: service.metadata.name.clone(),
        revision: "r".into(),
        slot: Slot::Number(slot),
        node_name: Some("n1".into()),
        desired,
        networks: vec![],
        in_place_of: None,
    };
    let mut task = Task::new(format!("{}-{slot}", service.metadata.name), spec);
    task.metadata.namespace = "default".into();
    task.metadata.owner_references = vec![OwnerReference { uid: service.metadata.uid.clone(), ..Default::default() }];
    let address = TaskAddress { network: "back".into(), address: format!("10.5.0.{slot}").parse().unwrap() };
    task.status = Some(TaskStatus { state, addresses: vec![address], ..TaskStatus::default() });
    task
}

fn seen(services: Vec<Service>, tasks: Vec<Task>) -> Seen {
    Seen {
        services: services.into_iter().map(Arc::new).collect(),
        tasks: tasks.into_iter().map(Arc::new).collect(),
        networks: [ObjectRef::new("default", "back")].into(),
        blocks: ["n1", "n9"]
            .map(|node| ((ObjectRef::new("default", "back"), node.to_owned()), "10.5.0.0/24".parse().unwrap()))
            .into(),
        endpoints: vec![],
        lost: ["n9".to_owned()].into(),
        cluster: Default::default(),
    }
}

/// Carries a plan out, and checks that a second one finds nothing to do.
fn settle(scene: &mut Seen) {
    for change in plan(scene) {
        match change {
            Change::Create { service, spec } => {
                let mut made = Endpoints::new(service.metadata.name.clone(), spec);
                made.metadata.namespace = "default".into();
                made.metadata.owner_references =
                    vec![OwnerReference { uid: service.metadata.uid.clone(), ..Default::default() }];
                scene.endpoints.push(Arc::new(made));
            }
            Change::Update { endpoints, spec } => {
                let mut changed = (*endpoints).clone();
                changed.spec = spec;
                scene.endpoints.retain(|other| other.metadata.name != changed.metadata.name);
                scene.endpoints.push(Arc::new(changed));
            }
            Change::Delete { endpoints } => {
                scene.endpoints.retain(|other| other.metadata.name != endpoints.metadata.name);
            }
        }
    }
    assert_eq!(plan(scene), [], "a second look changes nothing");
}

fn spec_of<'a>(scene: &'a Seen, name: &str) -> &'a EndpointsSpec {
    &scene.endpoints.iter().find(|endpoints| endpoints.metadata.name == name).unwrap().spec
}

#[test]
fn ports_and_virtual_addresses_belong_to_one_service() {
    let mut scene = seen(
        vec![service("a", 1, &[(80, None), (443, None)]), service("b", 2, &[(80, None), (80, Some(30001))])],
        vec![],
    );
    settle(&mut scene);
    let published = |name: &str| spec_of(&scene, name).ports.iter().map(|port| port.published).collect::<Vec<_>>();
    assert_eq!(published("a"), [Some(30000), Some(30002)], "30001 was asked for by name");
    assert_eq!(published("b"), [Some(30003), Some(30001)]);
    assert_ne!(spec_of(&scene, "a").networks[0].vip, spec_of(&scene, "b").networks[0].vip);
    assert_eq!(spec_of(&scene, "a").networks[0].names, ["a", "short"]);
}

#[test]
fn an_allocated_port_stays_while_it_is_asked_for() {
    let mut scene = seen(vec![service("a", 1, &[(80, None)]), service("b", 2, &[(80, None)])], vec![]);
    settle(&mut scene);
    let before = spec_of(&scene, "b").clone();
    scene.services.retain(|service| service.metadata.name != "a");
    settle(&mut scene);
    assert_eq!(scene.endpoints.len(), 1);
    assert_eq!(spec_of(&scene, "b"), &before);
}

#[test]
fn a_port_that_another_service_has_is_left_out() {
    let mut scene = seen(vec![service("a", 1, &[(80, Some(8080))]), service("b", 2, &[(81, Some(8080))])], vec![]);
    settle(&mut scene);
    assert_eq!((spec_of(&scene, "a").ports.len(), spec_of(&scene, "b").ports.len()), (1, 0));
}

#[test]
fn only_tasks_that_serve_get_new_connections() {
    let a = service("a", 1, &[]);
    let tasks = vec![
        task(&a, 1, DesiredState::Running, TaskState::Running),
        task(&a, 2, DesiredState::Running, TaskState::Starting),
        task(&a, 3, DesiredState::Leaving, TaskState::Running),
        task(&a, 4, DesiredState::Stopped, TaskState::Running),
    ];
    let mut scene = seen(vec![a], tasks);
    settle(&mut scene);
    let backends: Vec<_> = spec_of(&scene, "a").backends.iter().map(|backend| backend.task.as_str()).collect();
    assert_eq!(backends, ["a-1"]);
}

#[test]
fn a_machine_is_believed_about_its_own_part_of_a_network_only() {
    let service = service("web", 1, &[]);
    let mut tasks: Vec<Task> =
        (1..=3).map(|slot| task(&service, slot, DesiredState::Running, TaskState::Running)).collect();
    tasks[1].status.as_mut().unwrap().addresses[0].address = "127.0.0.1".parse().unwrap();
    tasks[2].status.as_mut().unwrap().addresses[0].address = "10.5.1.3".parse().unwrap();
    let mut scene = seen(vec![service], tasks);
    settle(&mut scene);
    let backends: Vec<String> = spec_of(&scene, "web").backends.iter().map(|it| it.task.clone()).collect();
    assert_eq!(backends, ["web-1"]);
}
