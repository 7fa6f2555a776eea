//! The controllers that run beside the store, together, over a real objects layer: an application goes in, tasks come
//! out. The machine is played by a small controller that says of every task placed on it that it runs.

use std::sync::Arc;
use std::time::Duration;

use controllers::cluster::{bundle, endpoints, network, scheduler, service};
use reconciler::cache::{Cache, Snapshot};
use reconciler::controller::{Action, Controller, Ctx, Error, Manager, Reconciler};
use reconciler::objects::{Client, Kinds, Propagation, StoreObjects, Writer};
use reconciler::seams::Seams;
use reconciler::store::memory::Memory;
use reconciler::{ObjectRef, Resource};
use schemas::kinds::bundle::{Bundle, BundleSpec, BundleState, ServiceFragment};
use schemas::kinds::cluster::Cluster;
use schemas::kinds::config::Config;
use schemas::kinds::endpoints::{Endpoints, TaskAddress};
use schemas::kinds::network::Network;
use schemas::kinds::node::{Machine, MachineResources, Node, NodeSpec, NodeState, NodeStatus};
use schemas::kinds::revision::Revision;
use schemas::kinds::secret::Secret;
use schemas::kinds::service::{NetworkAttachment, PublishedPort, Service, ServiceSpec};
use schemas::kinds::task::{DesiredState, Task, TaskState};
use schemas::kinds::volume::Volume;
use schemas::{Cpus, Size};

/// Much longer than anything here takes; a machine under load is slow, not wrong.
const PATIENCE: Duration = Duration::from_secs(60);

struct PlayedNode;

impl Reconciler for PlayedNode {
    type Object = Task;

    async fn reconcile(&self, task: Arc<Task>, cx: &Ctx) -> Result<Action, Error> {
        let mut desired = (*task).clone();
        let status = desired.status.get_or_insert_default();
        let next = match (task.spec.desired, status.state) {
            (DesiredState::Stopped, state) if !state.is_terminal() => TaskState::Complete,
            (DesiredState::Running, TaskState::Assigned) => TaskState::Running,
            _ => return Ok(Action::Await),
        };
        status.state = next;
        status.addresses = match next {
            TaskState::Running => task
                .spec
                .networks
                .iter()
                .map(|network| TaskAddress { network: network.name.clone(), address: "10.192.0.7".parse().unwrap() })
                .collect(),
            _ => Vec::new(),
        };
        cx.client().update_status(&*task, &desired).await?;
        Ok(Action::Await)
    }
}

struct Scene {
    client: Client,
    cache: Cache,
    store: Arc<Memory>,
    _running: tokio::task::JoinHandle<()>,
}

async fn scene() -> Scene {
    let kinds = Kinds::new()
        .with::<Bundle>()
        .with::<Service>()
        .with::<Secret>()
        .with::<Config>()
        .with::<Revision>()
        .with::<Task>()
        .with::<Node>()
        .with::<Network>()
        .with::<Endpoints>()
        .with::<Volume>()
        .with::<Cluster>();
    let store = Arc::new(Memory::new());
    let objects = Arc::new(StoreObjects::open(store.clone(), "/apply", kinds, Seams::real()).await.unwrap());
    let manager = Manager::builder(objects.clone(), Seams::real())
        .controller(bundle::Bundles::controller())
        .controller(service::Services::controller())
        .controller(scheduler::Scheduler::controller())
        .controller(network::Networks::controller())
        .controller(endpoints::EndpointsController::controller())
        .controller(Controller::new("node", PlayedNode))
        .build();
    let cache = manager.cache().clone();
    let running = tokio::spawn(async move { manager.run(std::future::pending()).await });
    let client = Client::new(objects, Writer::new("user:test", "test"));
    let node = client.create(&Node::new("n1", NodeSpec::default())).await.unwrap();
    let resources =
        MachineResources { cpus: Cpus::from_milli(4000), memory: Size::from_mib(4096), ..Default::default() };
    let mut ready = node.clone();
    ready.status = Some(NodeStatus {
        state: NodeState::Ready,
        machine: Some(Machine { hostname: "n1".into(), resources, ..Machine::default() }),
        ..NodeStatus::default()
    });
    client.update_status(&node, &ready).await.unwrap();
    Scene { client, cache, store, _running: running }
}

impl Scene {
    async fn until(&self, what: &str, condition: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        match tokio::time::timeout(PATIENCE, self.cache.wait_for(condition)).await {
            Ok(snapshot) => snapshot,
            Err(_) => panic!("never came to be: {what}; last seen: {:#?}", self.seen()),
        }
    }

    fn seen(&self) -> Vec<String> {
        let Some(snapshot) = self.cache.snapshot() else { return Vec::new() };
        let tasks =
            snapshot.all::<Task>().map(|task| format!("{} {:?} {:?}", task.name(), task.spec.desired, task.status));
        tasks.chain(snapshot.all::<Bundle>().map(|bundle| format!("{:?}", bundle.status))).collect()
    }

    async fn deploy(&self, image: &str) -> Bundle {
        let reference = ObjectRef::new("default", "shop");
        let spec = bundle_spec(image);
        match self.client.find::<Bundle>(&reference).await.unwrap() {
            None => {
                let mut bundle = Bundle::new("shop", spec);
                bundle.metadata.namespace = "default".into();
                self.client.create(&bundle).await.unwrap()
            }
            Some(stored) => {
                let mut desired = stored.clone();
                desired.spec = spec;
                self.client.update(&stored, &desired).await.unwrap()
            }
        }
    }
}

fn bundle_spec(image: &str) -> BundleSpec {
    let service = |ports: Vec<PublishedPort>| {
        let mut spec = ServiceSpec::default();
        spec.template.container.image = image.into();
        spec.template.networks = vec![NetworkAttachment { name: "back".into(), aliases: vec![] }];
        spec.endpoint.ports = ports;
        ServiceFragment::from(&spec)
    };
    let web = service(vec![PublishedPort { target: 80, ..PublishedPort::default() }]);
    BundleSpec {
        services: [("web".to_owned(), web), ("db".to_owned(), service(vec![]))].into(),
        ..BundleSpec::default()
    }
}

fn is_up(snapshot: &Snapshot, generation: i64) -> bool {
    snapshot
        .get::<Bundle>(&ObjectRef::new("default", "shop"))
        .and_then(|bundle| bundle.status.as_ref())
        .is_some_and(|status| status.state == BundleState::Up && status.observed_generation == generation)
}

fn live(snapshot: &Snapshot, service: &str) -> Vec<Arc<Task>> {
    let tasks = snapshot.all::<Task>().filter(|task| task.spec.service == service);
    tasks.filter(|task| task.spec.desired <= DesiredState::Running).cloned().collect()
}

#[tokio::test]
async fn an_application_comes_up_scales_updates_and_settles() {
    let scene = scene().await;
    let made = scene.deploy("example/web:1").await;
    let up = scene.until("the bundle is up", |snapshot| is_up(snapshot, made.metadata.generation)).await;
    assert_eq!(live(&up, "shop-web").len(), 1);
    let listed = scene
        .until("the port is open to one task", |snapshot| {
            let web = snapshot.get::<Endpoints>(&ObjectRef::new("default", "shop-web"));
            web.is_some_and(|web| web.spec.backends.len() == 1 && !web.spec.ports.is_empty())
        })
        .await;
    let web = listed.get::<Endpoints>(&ObjectRef::new("default", "shop-web")).unwrap();
    assert_eq!(web.spec.ports[0].published, Some(30000));
    assert!(web.spec.networks[0].vip.is_some());
    assert!(web.spec.networks[0].names.contains(&"shop_web".to_owned()), "{:?}", web.spec.networks);

    let web = scene.client.get::<Service>(&ObjectRef::new("default", "shop-web")).await.unwrap();
    let mut scaled = web.clone();
    scaled.spec.replicas = Some(6);
    scene.client.update(&web, &scaled).await.unwrap();
    scene
        .until("six tasks run", |snapshot| {
            let running = live(snapshot, "shop-web");
            running.len() == 6
                && running.iter().all(|task| task.status.as_ref().is_some_and(|s| s.state == TaskState::Running))
        })
        .await;

    // What was set by hand survives a deploy that says nothing of it; every slot gets the new image.
    let changed = scene.deploy("example/web:2").await;
    let updated = scene
        .until("the new image runs everywhere", |snapshot| {
            is_up(snapshot, changed.metadata.generation)
                && snapshot
                    .get::<Service>(&ObjectRef::new("default", "shop-web"))
                    .and_then(|service| service.status.as_ref())
                    .is_some_and(|status| status.updated == 6 && status.running == 6)
        })
        .await;
    let slots: std::collections::BTreeSet<String> =
        live(&updated, "shop-web").iter().map(|task| task.spec.slot.to_string()).collect();
    assert_eq!(slots.len(), 6, "one task a slot: {:?}", scene.seen());
    let bundle = updated.get::<Bundle>(&ObjectRef::new("default", "shop")).unwrap();
    let overrides: Vec<&str> =
        bundle.status.as_ref().unwrap().overrides.iter().map(|over| over.path.as_str()).collect();
    assert_eq!(overrides, ["replicas"]);
}

#[tokio::test]
async fn the_same_file_twice_is_not_one_write() {
    use reconciler::store::{Key, Store};
    let scene = scene().await;
    let made = scene.deploy("example/web:1").await;
    let settled = |snapshot: &Snapshot| {
        is_up(snapshot, made.metadata.generation)
            && snapshot.all::<Endpoints>().filter(|endpoints| endpoints.spec.backends.len() == 1).count() == 2
    };
    let up = scene.until("the application has settled", settled).await;
    scene.deploy("example/web:1").await;
    // A write of our own marks the end: whatever the controllers did before it has a lower revision.
    let node = scene.client.get::<Node>(&ObjectRef::cluster("n1")).await.unwrap();
    let mut labelled = node.clone();
    labelled.metadata.labels.insert("marked".into(), "yes".into());
    scene.client.update(&node, &labelled).await.unwrap();
    let marked = scene
        .until("the mark is seen", |snapshot| {
            snapshot
                .get::<Node>(&ObjectRef::cluster("n1"))
                .is_some_and(|node| node.metadata.labels.contains_key("marked"))
        })
        .await;
    let (revision, _) = scene.store.get(&Key::new("/none")).await.unwrap();
    assert_eq!(revision.0, marked.resource_version().0, "nothing was written after the mark");
    for (before, after) in up.all::<Service>().zip(marked.all::<Service>()) {
        assert_eq!(before.metadata.resource_version, after.metadata.resource_version);
    }
}

#[tokio::test]
async fn a_task_that_fits_nowhere_says_why_and_runs_when_there_is_room() {
    let scene = scene().await;
    let mut spec = ServiceSpec::default();
    spec.template.container.image = "example/big:1".into();
    spec.template.resources.reservations.memory = Some(Size::from_mib(8192));
    let mut big = Service::new("big", spec);
    big.metadata.namespace = "default".into();
    let big = scene.client.create(&big).await.unwrap();
    scene
        .until("the service says why", |snapshot| {
            let service = snapshot.get::<Service>(&ObjectRef::new("default", "big"));
            service
                .and_then(|service| service.status.as_ref())
                .and_then(|status| status.conditions.get("Ready"))
                .is_some_and(|ready| ready.message.contains("memory 8Gi asked, most free is 4Gi (n1)"))
        })
        .await;
    let mut smaller = scene.client.get::<Service>(&big.object_ref()).await.unwrap();
    let before = smaller.clone();
    smaller.spec.template.resources.reservations.memory = Some(Size::from_mib(1024));
    scene.client.update(&before, &smaller).await.unwrap();
    scene
        .until("it runs", |snapshot| {
            live(snapshot, "big").iter().any(|task| task.status.as_ref().is_some_and(|s| s.state == TaskState::Running))
        })
        .await;
    let service = scene.client.get::<Service>(&big.object_ref()).await.unwrap();
    scene.client.delete(&service, Propagation::Background).await.unwrap();
}
