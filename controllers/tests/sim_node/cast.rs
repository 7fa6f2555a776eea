//! Who acts in the simulations: applyd on its machine, and the user who wants tasks of it.

use std::sync::Arc;
use std::time::Duration;

use reconciler::controller::{Manager, ManagerBuilder};
use reconciler::sim::{Env, Scene, User};
use reconciler::{ObjectRef, Resource};
use schemas::Period;
use schemas::kinds::network::{Network, NetworkSpec, NetworkStatus, NodeBlock};
use schemas::kinds::registry_login::RegistryLogin;
use schemas::kinds::revision::{Revision, RevisionContent, RevisionSpec};
use schemas::kinds::service::{NetworkAttachment, Service};
use schemas::kinds::task::{DesiredState, NODE_FINALIZER, Slot, Task, TaskSpec, TaskState, TaskStatus};
use schemas::kinds::template::{ExecProbe, Health, Mount, Probe, RestartCondition, TaskTemplate};
use schemas::kinds::volume::Volume;

use super::power::Power;

pub const NAMESPACE: &str = "default";
pub const NODE: &str = "n1";
/// From the loss of power until applyd runs again.
const BOOT: Duration = Duration::from_secs(5);

pub fn kinds(scene: Scene) -> Scene {
    scene.kind::<Task>().kind::<Revision>().kind::<Network>().kind::<RegistryLogin>().kind::<Service>().kind::<Volume>()
}

/// applyd with these controllers. When the power is cut it dies at whatever it was, and comes back with the machine.
pub fn applyd(
    scene: Scene,
    power: &Power,
    controllers: impl Fn(ManagerBuilder, &Env) -> ManagerBuilder + Send + Sync + 'static,
) -> Scene {
    let (power, controllers) = (power.clone(), Arc::new(controllers));
    scene.process("applyd", move |env: Env| {
        let (power, controllers) = (power.clone(), controllers.clone());
        async move {
            loop {
                let manager = Manager::builder(env.objects.clone(), env.seams.clone());
                let manager = controllers(manager, &env).build();
                let cut = tokio::select! {
                    biased;
                    () = power.lost() => true,
                    () = manager.run(std::future::pending()) => false,
                };
                if !cut {
                    return;
                }
                drop(manager);
                env.seams.sleep(BOOT).await;
            }
        }
    })
}

pub fn at(name: &str) -> ObjectRef {
    ObjectRef::new(NAMESPACE, name)
}

/// A network whose addresses on this machine are these.
pub async fn network(user: &User, name: &str, block: &str) {
    let mut network = Network::new(name, NetworkSpec::default());
    network.metadata.namespace = NAMESPACE.into();
    user.create(&network).await;
    let block = block.parse().expect("a subnet");
    let blocks = vec![NodeBlock { node: NODE.into(), block, block6: None }];
    let status = NetworkStatus { subnet: Some(block), blocks, ..NetworkStatus::default() };
    set_status::<Network>(user, &at(name), move |network| network.status = Some(status.clone())).await;
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

/// What is to be run is said by its image: see `machine::containers`.
fn template(program: &str) -> TaskTemplate {
    let mut template = TaskTemplate::default();
    template.container.image = format!("example/{program}:1");
    template.container.stop_grace = Some(Period::from_secs(3));
    match program {
        "db" => {
            let source = Some("data".to_owned());
            template.container.mounts = vec![Mount { source, target: "/data".into(), ..Mount::default() }];
        }
        "once" => template.restart.condition = RestartCondition::OnFailure,
        "late-sick" => {
            let exec = Some(ExecProbe { command: vec!["check".into()] });
            let (interval, retries) = (Some(Period::from_secs(30)), Some(1));
            let check =
                Some(Probe { exec, interval, retries, start_period: Some(Period::from_secs(0)), ..Probe::default() });
            template.container.health = Some(Health { check, ..Health::default() });
        }
        _ => {}
    }
    template
}

/// A task as service controller and scheduler leave it: placed here, with this machine's finalizer.
pub fn task(name: &str, slot: u32, program: &str) -> Task {
    let spec = TaskSpec {
        service: "app".into(),
        revision: program.into(),
        slot: Slot::Number(slot),
        node_name: Some(NODE.into()),
        desired: DesiredState::Running,
        networks: vec![NetworkAttachment { name: "back".into(), aliases: vec![] }],
        in_place_of: None,
    };
    let mut task = Task::new(name, spec);
    task.metadata.namespace = NAMESPACE.into();
    task.metadata.finalizers = vec![NODE_FINALIZER.to_owned()];
    task
}

/// Wants a task, and has it placed here.
pub async fn run(user: &User, name: &str, slot: u32, program: &str) {
    if user.client().find::<Revision>(&at(program)).await.expect("no faults").is_none() {
        let content = RevisionContent::Template(Box::new(template(program)));
        let mut revision = Revision::new(program, RevisionSpec::new("app", content));
        revision.metadata.namespace = NAMESPACE.into();
        user.create(&revision).await;
    }
    let task = task(name, slot, program);
    user.create(&task).await;
    let assigned = TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() };
    set_status::<Task>(user, &at(name), move |task| {
        task.status.get_or_insert_with(|| assigned.clone());
    })
    .await;
}

/// No longer wanted. Returns when its slot may have another.
pub async fn stop(user: &User, name: &str) {
    user.update::<Task>(&at(name), |task| task.spec.desired = DesiredState::Stopped).await;
    loop {
        match user.client().find::<Task>(&at(name)).await.expect("no faults") {
            Some(task) if !state(&task).is_terminal() => user.pause().await,
            _ => return,
        }
    }
}

pub fn state(task: &Task) -> TaskState {
    task.status.as_ref().map(|status| status.state).unwrap_or_default()
}

pub fn is_wanted(task: &Task) -> bool {
    task.spec.desired == DesiredState::Running && !task.is_deleting()
}
