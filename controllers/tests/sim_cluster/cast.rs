//! Who acts in the simulations beside the controllers under test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use reconciler::api::Uid;
use reconciler::cache::Snapshot;
use reconciler::controller::{
    Action, Controller, Ctx, Error, KeyReconciler, Manager, ManagerBuilder, Reconciler, Singleton,
};
use reconciler::objects::{Precondition, Propagation, Write};
use reconciler::sim::{Calls, Env, Scene, User};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::cluster::Cluster;
use schemas::kinds::config::{Config, ConfigSpec};
use schemas::kinds::endpoints::{Endpoints, TaskAddress};
use schemas::kinds::network::Network;
use schemas::kinds::node::{Machine, MachineResources, Node, NodeSpec, NodeState, NodeStatus};
use schemas::kinds::revision::{Revision, RevisionContent};
use schemas::kinds::secret::Secret;
use schemas::kinds::service::{NetworkAttachment, Service, ServiceSpec, TaskTemplate};
use schemas::kinds::task::{DesiredState, NODE_FINALIZER, Slot, Task, TaskState, TaskStatus};
use schemas::{Cpus, Size};

pub const NAMESPACE: &str = "default";
/// No machine starts a task of this image.
pub const BAD_IMAGE: &str = "example/bad:1";

pub fn kinds(scene: Scene) -> Scene {
    scene
        .kind::<Bundle>()
        .kind::<Service>()
        .kind::<Revision>()
        .kind::<Task>()
        .kind::<Node>()
        .kind::<Network>()
        .kind::<Endpoints>()
        .kind::<Cluster>()
        .kind::<Secret>()
        .kind::<Config>()
}

/// A process that runs these controllers.
pub fn process(
    scene: Scene,
    name: &str,
    controllers: impl Fn(ManagerBuilder) -> ManagerBuilder + Send + Sync + 'static,
) -> Scene {
    scene.process(name, move |env: Env| {
        let manager = controllers(Manager::builder(env.objects, env.seams)).build();
        async move { manager.run(std::future::pending()).await }
    })
}

/// What runs on all machines: containers by node and task.
#[derive(Clone, Default)]
pub struct Machines(Arc<Mutex<BTreeMap<(String, Uid), Container>>>);

#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub task: String,
    pub service: Option<Uid>,
    pub slot: Slot,
    pub revision: String,
}

impl Machines {
    pub fn containers(&self) -> MutexGuard<'_, BTreeMap<(String, Uid), Container>> {
        self.0.lock().unwrap()
    }
}

/// A machine: starts what is placed on it, stops what shall stop, and says so. It holds a task's record until nothing of
/// it runs.
struct PlayedNode {
    name: &'static str,
    machines: Machines,
    calls: Calls,
}

impl PlayedNode {
    async fn start(&self, task: &Task) -> Result<(), Error> {
        let container = Container {
            task: task.name().to_owned(),
            service: task.metadata.controller().map(|owner| owner.uid.clone()),
            slot: task.spec.slot.clone(),
            revision: task.spec.revision.clone(),
        };
        let key = (self.name.to_owned(), task.metadata.uid.clone());
        let what = format!("starts {}", task.name());
        Ok(self.calls.effect(&what, || drop(self.machines.containers().insert(key, container))).await?)
    }

    async fn stop(&self, task: &Task) -> Result<(), Error> {
        let key = (self.name.to_owned(), task.metadata.uid.clone());
        let what = format!("stops {}", task.name());
        Ok(self.calls.effect(&what, || drop(self.machines.containers().remove(&key))).await?)
    }

    async fn say(&self, task: &Task, state: TaskState, cx: &Ctx) -> Result<Task, Error> {
        let mut desired = task.clone();
        let status = desired.status.get_or_insert_default();
        if status.state != state {
            status.since = Some(cx.now());
        }
        status.state = state;
        status.observed_generation = task.metadata.generation;
        status.message = if state == TaskState::Rejected { "no such image".into() } else { String::new() };
        status.addresses = match state {
            TaskState::Running => addresses(task),
            _ => Vec::new(),
        };
        Ok(cx.client().update_status(task, &desired).await?)
    }
}

pub fn addresses(task: &Task) -> Vec<TaskAddress> {
    let of = |network: &NetworkAttachment| TaskAddress {
        network: network.name.clone(),
        address: "10.192.0.7".parse().unwrap(),
    };
    task.spec.networks.iter().map(of).collect()
}

impl Reconciler for PlayedNode {
    type Object = Task;

    async fn reconcile(&self, task: Arc<Task>, cx: &Ctx) -> Result<Action, Error> {
        if task.spec.node_name.as_deref() != Some(self.name) {
            return Ok(Action::Await);
        }
        let state = task.status.as_ref().map(|status| status.state).unwrap_or_default();
        let holds = task.metadata.finalizers.iter().any(|name| name == NODE_FINALIZER);
        if task.spec.desired == DesiredState::Stopped || task.is_deleting() {
            self.stop(&task).await?;
            let told =
                if state.is_terminal() { (*task).clone() } else { self.say(&task, TaskState::Complete, cx).await? };
            if holds {
                let mut released = told.clone();
                released.metadata.finalizers.retain(|name| name != NODE_FINALIZER);
                cx.client().update(&told, &released).await?;
            }
            return Ok(Action::Await);
        }
        if state.is_terminal() {
            return Ok(Action::Await);
        }
        if !holds {
            let mut held = (*task).clone();
            held.metadata.finalizers.push(NODE_FINALIZER.to_owned());
            cx.client().update(&*task, &held).await?;
            return Ok(Action::Await);
        }
        let reference = ObjectRef::new(&task.metadata.namespace, &task.spec.revision);
        let Some(revision) = cx.snapshot().get::<Revision>(&reference) else { return Ok(Action::Await) };
        if revision.spec.content.template().is_some_and(|template| template.container.image == BAD_IMAGE) {
            self.say(&task, TaskState::Rejected, cx).await?;
            return Ok(Action::Await);
        }
        self.start(&task).await?;
        self.say(&task, TaskState::Running, cx).await?;
        Ok(Action::Await)
    }
}

pub fn node(scene: Scene, name: &'static str, machines: &Machines) -> Scene {
    let machines = machines.clone();
    scene.process(name, move |env: Env| {
        let player = PlayedNode { name, machines: machines.clone(), calls: env.calls.clone() };
        let controller = Controller::new("node", player).reads::<Revision>().reconciles_deleting();
        let manager = Manager::builder(env.objects, env.seams).controller(controller).build();
        async move { manager.run(std::future::pending()).await }
    })
}

/// What is owned by nobody that is there goes.
struct Cascade;

impl KeyReconciler for Cascade {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let snapshot = cx.snapshot();
        let mut owners = owners(snapshot);
        let going = snapshot.all::<Service>().filter(|service| waits_for_its_own(service));
        let going: Vec<&Uid> = going.map(|service| &service.metadata.uid).collect();
        owners.retain(|owner| !going.contains(&owner));
        let mut writes = Vec::new();
        orphans::<Service>(snapshot, &owners, &mut writes);
        orphans::<Network>(snapshot, &owners, &mut writes);
        orphans::<Revision>(snapshot, &owners, &mut writes);
        orphans::<Task>(snapshot, &owners, &mut writes);
        orphans::<Endpoints>(snapshot, &owners, &mut writes);
        for service in snapshot.all::<Service>().filter(|service| waits_for_its_own(service)) {
            let uid = &service.metadata.uid;
            let left = snapshot.owned_by::<Revision>(uid).count()
                + snapshot.owned_by::<Task>(uid).count()
                + snapshot.owned_by::<Endpoints>(uid).count();
            if left == 0 {
                let mut released = (**service).clone();
                released.metadata.finalizers.retain(|name| name != FOREGROUND);
                writes.push(Write::update(&**service, &released));
            }
        }
        // One by one: what somebody else removed meanwhile is in nobody's way.
        for write in writes {
            match cx.client().commit(vec![write]).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Action::Await)
    }
}

pub fn owners(snapshot: &Snapshot) -> Vec<Uid> {
    let bundles = snapshot.all::<Bundle>().map(|bundle| bundle.metadata.uid.clone());
    bundles.chain(snapshot.all::<Service>().map(|service| service.metadata.uid.clone())).collect()
}

/// It goes when nothing of it is left.
fn waits_for_its_own(service: &Service) -> bool {
    service.is_deleting() && service.metadata.finalizers.iter().any(|name| name == FOREGROUND)
}

const FOREGROUND: &str = "foregroundDeletion";

fn orphans<T: Resource>(snapshot: &Snapshot, owners: &[Uid], writes: &mut Vec<Write>) {
    for object in snapshot.all::<T>().filter(|object| !object.is_deleting()) {
        if object.meta().controller().is_some_and(|owner| !owners.contains(&owner.uid)) {
            writes.push(Write::delete(&**object, Precondition::same(&**object), Propagation::Background));
        }
    }
}

pub fn cascade(scene: Scene) -> Scene {
    process(scene, "cascade", |manager| {
        manager.controller(
            Controller::singleton("cascade", Cascade)
                .watches_all::<Bundle>()
                .watches_all::<Service>()
                .watches_all::<Network>()
                .watches_all::<Revision>()
                .watches_all::<Task>()
                .watches_all::<Endpoints>(),
        )
    })
}

/// A machine joins.
pub async fn join(user: &User, name: &str, memory_mib: u64) {
    user.create(&Node::new(name, NodeSpec::default())).await;
    let resources =
        MachineResources { cpus: Cpus::from_milli(4000), memory: Size::from_mib(memory_mib), ..Default::default() };
    let machine = Machine { hostname: name.to_owned(), resources, ..Machine::default() };
    let status = NodeStatus { state: NodeState::Ready, machine: Some(machine), ..NodeStatus::default() };
    set_status::<Node>(user, &ObjectRef::cluster(name), |node| node.status = Some(status.clone())).await;
}

pub async fn set_status<T: Resource>(user: &User, reference: &ObjectRef, change: impl Fn(&mut T)) {
    loop {
        let Some(observed) = user.client().find::<T>(reference).await.expect("no faults") else { return };
        let mut desired = observed.clone();
        change(&mut desired);
        match user.client().update_status(&observed, &desired).await {
            Ok(_) => return,
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            Err(error) => panic!("the workload's own request was refused: {error}"),
        }
    }
}

pub fn template(image: &str, networks: &[&str]) -> TaskTemplate {
    let mut template = TaskTemplate::default();
    template.container.image = image.to_owned();
    template.networks =
        networks.iter().map(|name| NetworkAttachment { name: (*name).to_owned(), aliases: vec![] }).collect();
    template
}

pub fn service(name: &str, template: TaskTemplate, replicas: u32) -> Service {
    let mut service = Service::new(name, ServiceSpec { template, replicas: Some(replicas), ..ServiceSpec::default() });
    service.metadata.namespace = NAMESPACE.into();
    service
}

/// A config of one's own words.
pub fn config(name: &str, words: &str) -> Config {
    let mut config = Config::new(name, ConfigSpec { data: words.into(), ..ConfigSpec::default() });
    config.metadata.namespace = NAMESPACE.into();
    config
}

pub fn network(name: &str) -> Network {
    let mut network = Network::new(name, Default::default());
    network.metadata.namespace = NAMESPACE.into();
    network
}

pub fn at(name: &str) -> ObjectRef {
    ObjectRef::new(NAMESPACE, name)
}

/// Until nothing of that name is left: a namesake can come only then.
pub async fn until_gone<T: Resource>(user: &User, reference: &ObjectRef) {
    while user.client().find::<T>(reference).await.expect("no faults").is_some() {
        user.pause().await;
    }
}

pub fn state(task: &Task) -> TaskState {
    task.status.as_ref().map(|status| status.state).unwrap_or_default()
}

pub fn runs(task: &Task) -> bool {
    state(task) == TaskState::Running && task.spec.desired == DesiredState::Running && !task.is_deleting()
}

/// The template that a task is made from.
pub fn template_of<'a>(snapshot: &'a Snapshot, task: &Task) -> Option<&'a TaskTemplate> {
    let revision = snapshot.get::<Revision>(&ObjectRef::new(&task.metadata.namespace, &task.spec.revision))?;
    match &revision.spec.content {
        RevisionContent::Template(template) => Some(template),
        _ => None,
    }
}

/// A task's status as a machine would have it.
pub fn running(task: &mut Task) {
    let addresses = addresses(task);
    task.status = Some(TaskStatus { state: TaskState::Running, addresses, ..TaskStatus::default() });
}
