//! Scenes of one to three machines.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use reconciler::{Resource, Timestamp};
use schemas::kinds::node::{Availability, Load, Machine, MachineResources, Node, NodeSpec, NodeState, NodeStatus};
use schemas::kinds::revision::{Revision, RevisionContent, RevisionSpec};
use schemas::kinds::service::{Protocol, TaskTemplate};
use schemas::kinds::task::{Attempt, DesiredState, Slot, Task, TaskSpec, TaskState, TaskStatus};
use schemas::kinds::template::{Mount, MountType, PlacementPreference, Platform};
use schemas::{Cpus, Size};

use super::plan::{Seen, Verdict, is_uneven, plan};

fn node(name: &str, memory_mib: u64) -> Node {
    let resources =
        MachineResources { cpus: Cpus::from_milli(2000), memory: Size::from_mib(memory_mib), ..Default::default() };
    let mut node = Node::new(name, NodeSpec::default());
    node.status = Some(NodeStatus {
        state: NodeState::Ready,
        machine: Some(Machine { resources, ..Machine::default() }),
        ..NodeStatus::default()
    });
    node
}

fn task(service: &str, slot: u32, on: Option<&str>) -> Task {
    let spec = TaskSpec {
        service: service.into(),
        revision: format!("{service}-r"),
        slot: Slot::Number(slot),
        node_name: on.map(str::to_owned),
        desired: Default::default(),
        networks: vec![],
        in_place_of: None,
    };
    let mut task = Task::new(format!("{service}-{slot}-{}", on.unwrap_or("new")), spec);
    task.metadata.creation_timestamp = Some(Timestamp::from_seconds(slot.into()));
    task
}

struct Scene {
    seen: Seen,
}

impl Scene {
    fn new(nodes: Vec<Node>, tasks: Vec<Task>) -> Self {
        Self {
            seen: Seen {
                tasks: tasks.into_iter().map(Arc::new).collect(),
                nodes: nodes.into_iter().map(Arc::new).collect(),
                revisions: BTreeMap::new(),
                volumes: BTreeMap::new(),
                ports: BTreeMap::new(),
                now: Timestamp::from_seconds(1_000),
            },
        }
    }

    fn service(mut self, name: &str, change: impl FnOnce(&mut TaskTemplate)) -> Self {
        let mut template = TaskTemplate::default();
        change(&mut template);
        let content = RevisionContent::Template(Box::new(template));
        let revision = Revision::new(format!("{name}-r"), RevisionSpec::new(name, content));
        self.seen.revisions.insert((String::new(), format!("{name}-r")), Arc::new(revision));
        self
    }

    fn told(&self) -> Vec<String> {
        let told = |decision: super::plan::Decision| match decision.verdict {
            Verdict::On(node) => format!("{} on {node}", decision.task.spec.slot),
            Verdict::Nowhere(why) => format!("{} {why}", decision.task.spec.slot),
        };
        plan(&self.seen).into_iter().map(told).collect()
    }
}

#[test]
fn tasks_of_a_service_are_spread() {
    let scene = Scene::new(
        vec![node("n1", 1024), node("n2", 1024)],
        vec![task("a", 1, Some("n1")), task("b", 1, None), task("a", 2, None), task("a", 3, None)],
    )
    .service("a", |_| {})
    .service("b", |_| {});
    assert_eq!(scene.told(), ["1 on n2", "2 on n2", "3 on n1"]);
}

#[test]
fn a_port_of_its_machine_is_one_tasks_alone() {
    let nodes = || vec![node("n1", 1024), node("n2", 1024)];
    let mut scene = Scene::new(
        nodes(),
        vec![
            task("other", 1, Some("n1")),
            task("web", 1, None),
            task("web", 2, None),
            task("free", 1, None),
            task("free", 2, None),
        ],
    );
    for name in ["web", "other", "free"] {
        scene = scene.service(name, |_| {});
    }
    for (name, port) in [("web", 80), ("other", 80)] {
        scene.seen.ports.insert((String::new(), name.into()), vec![(Protocol::Tcp, port)]);
    }
    let told = scene.told();
    assert_eq!(told[0], "1 on n2");
    assert!(told.iter().any(|it| it.contains("port 80 is other's on n1; port 80 is web's on n2")), "{told:?}");
    assert_eq!(told.iter().filter(|it| it.contains(" on n")).count(), 4, "{told:?}");
    // The one before it gives it up first.
    let mut before = task("web", 1, Some("n1"));
    before.spec.desired = DesiredState::Stopped;
    before.spec.revision = "web-before".into();
    let mut replaced = Scene::new(vec![node("n1", 1024)], vec![before, task("web", 1, None)]).service("web", |_| {});
    replaced.seen.ports.insert((String::new(), "web".into()), vec![(Protocol::Tcp, 80)]);
    assert_eq!(replaced.told(), ["1 on n1"]);
}

fn zoned(name: &str, zone: &str) -> Node {
    let mut node = node(name, 1024);
    node.spec.labels.insert("zone".into(), zone.into());
    node
}

#[test]
fn preferences_divide_tasks_evenly_between_the_values_of_a_label() {
    let nodes = || vec![zoned("n1", "a"), zoned("n2", "a"), zoned("n3", "a"), zoned("n4", "b"), node("n5", 1024)];
    let tasks = |count| (1..=count).map(|slot| task("web", slot, None)).collect();
    let spread = |template: &mut TaskTemplate| {
        template.placement.preferences = vec![PlacementPreference { spread: "node.labels.zone".into() }];
    };
    let told = Scene::new(nodes(), tasks(9)).service("web", spread).told();
    let count = |names: &[&str]| told.iter().filter(|it| names.iter().any(|name| it.ends_with(name))).count();
    assert_eq!((count(&["n1", "n2", "n3"]), count(&["n4"]), count(&["n5"])), (3, 3, 3), "{told:?}");
    assert_eq!(count(&["n1"]), 1, "within a zone as always");
    // As far as the filters let them.
    let limited = |template: &mut TaskTemplate| {
        spread(template);
        template.placement.max_replicas_per_node = 2;
    };
    let told = Scene::new(nodes(), tasks(10)).service("web", limited).told();
    assert!(told.iter().all(|it| !it.contains("no node fits")), "{told:?}");
    // Two levels: zones first, racks within them.
    let racked = |name: &str, zone: &str, rack: &str| {
        let mut node = zoned(name, zone);
        node.status.as_mut().unwrap().machine.as_mut().unwrap().labels.insert("rack".into(), rack.into());
        node
    };
    let nodes = vec![racked("n1", "a", "1"), racked("n2", "a", "1"), racked("n3", "a", "2"), racked("n4", "b", "1")];
    let both = |template: &mut TaskTemplate| {
        spread(template);
        template.placement.preferences.push(PlacementPreference { spread: "engine.labels.rack".into() });
    };
    let told = Scene::new(nodes, tasks(8)).service("web", both).told();
    let count = |names: &[&str]| told.iter().filter(|it| names.iter().any(|name| it.ends_with(name))).count();
    assert_eq!((count(&["n1", "n2"]), count(&["n3"]), count(&["n4"])), (2, 2, 4), "{told:?}");
}

#[test]
fn what_is_there_already_counts_in_its_zone() {
    let nodes = vec![zoned("n1", "a"), zoned("n2", "a"), zoned("n3", "b")];
    let tasks = vec![task("web", 1, Some("n3")), task("web", 2, Some("n3")), task("web", 3, None)];
    let scene = Scene::new(nodes, tasks).service("web", |template| {
        template.placement.preferences = vec![PlacementPreference { spread: "node.labels.zone".into() }];
    });
    assert_eq!(scene.told(), ["3 on n1"]);
}

#[test]
fn an_image_of_another_platform_goes_to_no_machine_that_cannot_run_it() {
    let mut arm = node("n1", 1024);
    arm.status.as_mut().unwrap().machine.as_mut().unwrap().platform =
        Platform { os: "linux".into(), arch: "arm64".into() };
    let mut amd = node("n2", 1024);
    amd.status.as_mut().unwrap().machine.as_mut().unwrap().platform =
        Platform { os: "linux".into(), arch: "amd64".into() };
    let of = |arch: &'static str| {
        move |template: &mut TaskTemplate| {
            template.placement.platforms = vec![Platform { os: "linux".into(), arch: arch.into() }];
        }
    };
    let scene = |arch| Scene::new(vec![arm.clone(), amd.clone()], vec![task("web", 1, None)]).service("web", of(arch));
    assert_eq!(scene("aarch64").told(), ["1 on n1"]);
    assert_eq!(scene("x86_64").told(), ["1 on n2"]);
    assert_eq!(scene("riscv64").told(), ["1 no node fits (2): the image is for linux/riscv64, unlike n1, n2"]);
}

#[test]
fn a_node_where_the_service_keeps_failing_is_the_last() {
    let failed =
        |at: i64| Attempt { finished_at: Some(Timestamp::from_seconds(at)), exit_code: Some(1), ..Attempt::default() };
    let scene = |at: i64| {
        let mut broken = task("web", 1, Some("n1"));
        broken.spec.desired = DesiredState::Stopped;
        let attempts = (0..5).map(|_| failed(at)).collect();
        broken.status = Some(TaskStatus { state: TaskState::Failed, attempts, ..TaskStatus::default() });
        let tasks = vec![broken, task("web", 2, Some("n2")), task("web", 1, None)];
        Scene::new(vec![node("n1", 1024), node("n2", 1024)], tasks).service("web", |_| {})
    };
    assert_eq!(scene(900).told(), ["1 on n2"], "it has one already, and the other one none");
    assert_eq!(scene(600).told(), ["1 on n1"], "that was more than five minutes ago");
}

#[test]
fn the_busier_of_two_that_are_alike_is_the_second() {
    let mut busy = node("n1", 1024);
    busy.status.as_mut().unwrap().load = Load::High;
    let tasks = vec![task("other", 1, Some("n2")), task("web", 1, None), task("web", 2, None)];
    let scene = Scene::new(vec![busy, node("n2", 1024)], tasks).service("web", |_| {}).service("other", |_| {});
    assert_eq!(scene.told(), ["1 on n2", "2 on n1"], "but spread all the same");
}

#[test]
fn a_replacement_goes_where_the_one_before_is() {
    let mut old = task("web", 1, Some("n2"));
    old.spec.revision = "web-old".into();
    let nodes = || vec![node("n1", 1024), node("n2", 1024), node("n3", 1024)];
    let tasks = || vec![old.clone(), task("other", 1, Some("n2")), task("web", 1, None)];
    let scene = |nodes| Scene::new(nodes, tasks()).service("web", |_| {}).service("other", |_| {});
    assert_eq!(scene(nodes()).told(), ["1 on n2"]);
    let mut drained = nodes();
    drained[1].spec.availability = Availability::Drain;
    assert_eq!(scene(drained).told(), ["1 on n1"]);
}

#[test]
fn who_takes_the_place_of_another_is_placed_beside_it_and_a_twin_is_not() {
    let mut new = task("web", 1, None);
    new.spec.in_place_of = Some("web-1-n1".into());
    let scene = |new: Task| {
        let tasks = vec![task("web", 1, Some("n1")), task("web", 2, Some("n1")), new];
        Scene::new(vec![node("n1", 1024), node("n2", 1024)], tasks).service("web", |_| {})
    };
    assert_eq!(scene(new).told(), ["1 on n2"]);
    assert!(scene(task("web", 1, None)).told().is_empty());
}

#[test]
fn what_is_uneven_is_what_would_be_placed_elsewhere_for_its_services_sake() {
    let uneven = |scene: &Scene, name: &str| {
        let task = scene.seen.tasks.iter().find(|task| task.metadata.name == name).unwrap();
        is_uneven(&scene.seen, task)
    };
    let mut tasks: Vec<Task> =
        [(1, "n1"), (2, "n1"), (3, "n1"), (4, "n2")].map(|(slot, on)| task("web", slot, Some(on))).into();
    for (number, task) in tasks.iter_mut().enumerate() {
        task.metadata.uid = reconciler::Uid::new(number.to_string());
    }
    let two = || vec![node("n1", 1024), node("n2", 1024)];
    let scene = Scene::new(two(), tasks.clone()).service("web", |_| {});
    assert!(uneven(&scene, "web-3-n1") && !uneven(&scene, "web-4-n2"));
    let even = Scene::new(two(), tasks[1..].to_vec()).service("web", |_| {});
    assert!(!uneven(&even, "web-3-n1"), "two and one");
    let mut busy = two();
    busy[0].status.as_mut().unwrap().load = Load::Over;
    let even = Scene::new(busy, tasks[1..].to_vec()).service("web", |_| {});
    assert!(!uneven(&even, "web-3-n1"), "nothing moves because a machine is busy");
    // Zones come first.
    let zones = vec![zoned("n1", "a"), zoned("n2", "a"), zoned("n3", "b")];
    let spread = |template: &mut TaskTemplate| {
        template.placement.preferences = vec![PlacementPreference { spread: "node.labels.zone".into() }];
    };
    let scene = Scene::new(zones, vec![tasks[0].clone(), tasks[3].clone()]).service("web", spread);
    assert!(uneven(&scene, "web-4-n2"));
    // What has its data there stays.
    let volume = |template: &mut TaskTemplate| {
        template.container.mounts =
            vec![Mount { kind: MountType::Volume, source: Some("data".into()), ..Mount::default() }];
    };
    let mut scene = Scene::new(two(), tasks[..2].to_vec()).service("web", volume);
    scene.seen.volumes.insert((String::new(), "data".into()), "n1".into());
    assert!(!uneven(&scene, "web-2-n1"));
}

#[test]
fn what_was_told_to_stop_or_went_with_its_machine_has_not_failed() {
    let ended = |code: i32, reason: &str| Attempt {
        finished_at: Some(Timestamp::from_seconds(990)),
        exit_code: Some(code),
        reason: reason.into(),
        ..Attempt::default()
    };
    let with = |attempt: Attempt, desired: DesiredState, state: TaskState| {
        let gone = (10..16).map(|slot| {
            let mut task = task("web", slot, Some("n1"));
            task.spec.desired = desired;
            task.status = Some(TaskStatus { state, attempts: vec![attempt.clone()], ..TaskStatus::default() });
            task
        });
        let tasks = gone.chain([task("web", 1, None), task("web", 2, Some("n2"))]).collect();
        Scene::new(vec![node("n1", 1024), node("n2", 1024)], tasks).service("web", |_| {}).told()
    };
    let (stopped, running) = (DesiredState::Stopped, DesiredState::Running);
    assert_eq!(with(ended(143, "Exited"), stopped, TaskState::Complete), ["1 on n1"]);
    assert_eq!(with(ended(255, "Lost"), stopped, TaskState::Failed), ["1 on n1"]);
    assert_eq!(with(ended(1, "Exited"), stopped, TaskState::Failed), ["1 on n2"]);
    assert_eq!(with(ended(1, "Exited"), running, TaskState::Rejected), ["1 on n2"]);
}

#[test]
fn of_many_nodes_that_are_turned_down_the_number_is_told() {
    let nodes = (1..=9).map(|number| node(&format!("n{number}"), 1024)).collect();
    let scene = Scene::new(nodes, vec![task("web", 1, None)]).service("web", |template| {
        template.placement.constraints = vec!["node.role==worker".into(), "node.id==x".into()]
    });
    assert_eq!(scene.told(), ["1 no node fits (9): node.id==x is not met by 9 nodes"]);
}

proptest! {
    /// As a look at every node for every task would have it.
    #[test]
    fn the_order_that_is_kept_is_the_order_that_is(
        there in prop::collection::vec((0..3_usize, 0..4_usize), 0..12),
        asked in prop::collection::vec((0..3_usize, 0..700_u64), 1..14),
        limit in 0..3_u32,
    ) {
        let names = ["a", "b", "c"];
        let mut tasks: Vec<Task> = Vec::new();
        for (place, (service, on)) in there.iter().enumerate() {
            tasks.push(task(names[*service], 100 + place as u32, Some(&format!("n{on}"))));
        }
        let mut memory = [0_u64; 3];
        for (place, (service, asks)) in asked.iter().enumerate() {
            memory[*service] = *asks;
            tasks.push(task(names[*service], 200 + place as u32, None));
        }
        let scene = |tasks: Vec<Task>| {
            let nodes = (0..4).map(|number| node(&format!("n{number}"), 1024)).collect();
            (0..3).fold(Scene::new(nodes, tasks), |scene, service| {
                scene.service(names[service], |template| {
                    template.resources.reservations.memory = Some(Size::from_mib(memory[service]));
                    template.placement.max_replicas_per_node = limit;
                })
            })
        };
        let together = plan(&scene(tasks.clone()).seen);
        // One by one, nothing is kept from one to the next.
        let mut known: Vec<Task> = tasks.iter().filter(|task| task.spec.node_name.is_some()).cloned().collect();
        for decision in together {
            let mut next = known.clone();
            next.push((*decision.task).clone());
            let alone = plan(&scene(next).seen);
            prop_assert_eq!(std::mem::discriminant(&alone[0].verdict), std::mem::discriminant(&decision.verdict));
            if let Verdict::On(node) = &decision.verdict {
                prop_assert_eq!(&alone[0].verdict, &decision.verdict);
                let mut placed = (*decision.task).clone();
                placed.spec.node_name = Some(node.clone());
                known.push(placed);
            }
        }
    }
}

#[test]
fn a_task_that_fits_nowhere_says_why() {
    let mut paused = node("n2", 4096);
    paused.spec.availability = Availability::Pause;
    let scene = Scene::new(vec![node("n1", 1024), paused], vec![task("a", 1, None), task("b", 1, None)])
        .service("a", |template| template.resources.reservations.memory = Some(Size::from_mib(8192)))
        .service("b", |template| template.placement.constraints = vec!["node.labels.disk==ssd".into()]);
    assert_eq!(
        scene.told(),
        [
            "1 no node fits (2): paused: n2; memory 8Gi asked, most free is 1Gi (n1)".to_owned(),
            "1 no node fits (2): paused: n2; node.labels.disk==ssd is not met by n1".to_owned(),
        ]
    );
}

#[test]
fn reservations_add_up_and_a_replacement_takes_over_what_its_slot_holds() {
    let ask = |template: &mut TaskTemplate| template.resources.reservations.memory = Some(Size::from_mib(600));
    let full = Scene::new(vec![node("n1", 1024)], vec![task("a", 1, Some("n1")), task("a", 2, None)]).service("a", ask);
    assert!(full.told()[0].contains("no node fits"), "{:?}", full.told());
    let mut old = task("a", 1, Some("n1"));
    old.spec.revision = "b-r".into();
    let scene =
        |new: Task| Scene::new(vec![node("n1", 1024)], vec![old.clone(), new]).service("a", ask).service("b", ask);
    // What is prepared starts when the one before has stopped; what is to run at once is there beside it.
    let mut prepared = task("a", 1, None);
    prepared.spec.desired = DesiredState::Ready;
    assert_eq!(scene(prepared).told(), ["1 on n1"]);
    assert!(scene(task("a", 1, None)).told()[0].contains("no node fits"));
}

#[test]
fn a_slot_whose_node_is_heard_of_again_gets_no_second_task() {
    let tasks = vec![task("a", 1, Some("n1")), task("a", 1, None)];
    let scene = Scene::new(vec![node("n1", 1024), node("n2", 1024)], tasks).service("a", |_| {});
    assert!(scene.told().is_empty(), "{:?}", scene.told());
}

#[test]
fn without_its_revision_a_task_waits() {
    let scene = Scene::new(vec![node("n1", 1024)], vec![task("a", 1, None)]);
    assert!(scene.told().is_empty());
}

#[test]
fn whoever_takes_the_place_of_a_task_on_a_lost_node_tells_it_to_stop() {
    let mut lost = node("n2", 1024);
    lost.status.as_mut().unwrap().state = NodeState::Lost;
    let old = task("a", 1, Some("n2"));
    let scene =
        Scene::new(vec![node("n1", 1024), lost], vec![old.clone(), task("a", 1, None), task("a", 2, Some("n1"))]);
    let scene = scene.service("a", |_| {});
    let decisions = plan(&scene.seen);
    assert_eq!(scene.told(), ["1 on n1"]);
    assert_eq!(decisions[0].instead_of.iter().map(|task| task.name()).collect::<Vec<_>>(), [old.name()]);
}

#[test]
fn a_task_goes_where_the_data_of_its_volumes_is() {
    let mounts = |template: &mut TaskTemplate| {
        template.container.mounts =
            vec![Mount { kind: MountType::Volume, source: Some("data".into()), ..Mount::default() }];
    };
    let nodes = || vec![node("n1", 1024), node("n2", 1024)];
    let on = |mut scene: Scene, node: &str| {
        scene.seen.volumes.insert((String::new(), "data".into()), node.into());
        scene
    };
    // n1 would be the emptier one.
    let tasks = || vec![task("other", 1, Some("n2")), task("db", 1, None)];
    assert_eq!(Scene::new(nodes(), tasks()).service("db", mounts).told(), ["1 on n1"], "it has no place yet");
    assert_eq!(on(Scene::new(nodes(), tasks()).service("db", mounts), "n2").told(), ["1 on n2"]);
    // Before the volume itself says where it is, the first task does: one that is placed, or is in the same breath.
    let second = vec![task("db", 1, Some("n2")), task("db", 2, None)];
    assert_eq!(Scene::new(nodes(), second).service("db", mounts).told(), ["2 on n2"]);
    let both = vec![task("db", 1, None), task("db", 2, None)];
    assert_eq!(Scene::new(nodes(), both).service("db", mounts).told(), ["1 on n1", "2 on n1"]);
    let elsewhere = on(Scene::new(nodes(), vec![task("db", 1, None)]).service("db", mounts), "n3");
    assert_eq!(elsewhere.told(), ["1 no node fits (2): the data of volume data is on n3, not on n1, n2"]);
}
