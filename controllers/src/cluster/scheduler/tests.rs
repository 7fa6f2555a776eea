//! Scenes of one to three machines.

use std::collections::BTreeMap;
use std::sync::Arc;

use reconciler::{Resource, Timestamp};
use schemas::kinds::node::{Availability, Machine, MachineResources, Node, NodeSpec, NodeState, NodeStatus};
use schemas::kinds::revision::{Revision, RevisionContent, RevisionSpec};
use schemas::kinds::service::TaskTemplate;
use schemas::kinds::task::{Slot, Task, TaskSpec};
use schemas::kinds::template::{Mount, MountType};
use schemas::{Cpus, Size};

use super::plan::{Seen, Verdict, plan};

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
    old.spec.revision = "a-old".into();
    let replaced = Scene::new(vec![node("n1", 1024)], vec![old, task("a", 1, None)]).service("a", ask);
    assert_eq!(replaced.told(), ["1 on n1"]);
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
