//! What each Endpoints object shall say. A pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::ClusterSpec;
use schemas::kinds::endpoints::{Backend, EndpointNetwork, Endpoints, EndpointsSpec, TaskAddress};
use schemas::kinds::network::Cidr;
use schemas::kinds::service::{EndpointMode, Protocol, PublishMode, PublishedPort, Service};
use schemas::kinds::task::{DesiredState, Task, TaskState};

pub(super) struct Seen {
    pub services: Vec<Arc<Service>>,
    pub tasks: Vec<Arc<Task>>,
    pub networks: BTreeSet<ObjectRef>,
    /// What each machine gives addresses from, by network and machine.
    pub blocks: BTreeMap<(ObjectRef, String), Cidr>,
    pub endpoints: Vec<Arc<Endpoints>>,
    /// Nodes that are lost: nobody is sent to what they run.
    pub lost: BTreeSet<String>,
    pub cluster: ClusterSpec,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    Create { service: Arc<Service>, spec: EndpointsSpec },
    Update { endpoints: Arc<Endpoints>, spec: EndpointsSpec },
    Delete { endpoints: Arc<Endpoints> },
}

/// What has been given away. What stands in an Endpoints object counts, also of a service that is going.
#[derive(Default)]
struct Taken {
    vips: BTreeSet<IpAddr>,
    /// Of every machine.
    ports: BTreeMap<(Protocol, u16), ObjectRef>,
    /// Of machines that run a task. Several services may have one: the scheduler keeps them apart.
    on_machines: BTreeMap<(Protocol, u16), BTreeSet<ObjectRef>>,
}

pub(super) fn plan(seen: &Seen) -> Vec<Change> {
    let mut services = seen.services.clone();
    services.sort_by_key(|service| (service.metadata.creation_timestamp, service.object_ref()));
    let stored: BTreeMap<ObjectRef, &Arc<Endpoints>> =
        seen.endpoints.iter().map(|endpoints| (endpoints.object_ref(), endpoints)).collect();
    let mut tasks: BTreeMap<ObjectRef, Vec<&Arc<Task>>> = BTreeMap::new();
    for task in &seen.tasks {
        tasks.entry(ObjectRef::new(&task.metadata.namespace, &task.spec.service)).or_default().push(task);
    }
    let mut taken = Taken::default();
    for endpoints in stored.values() {
        taken.vips.extend(endpoints.spec.networks.iter().filter_map(|network| network.vip));
        for port in ingress(&endpoints.spec.ports) {
            taken.ports.entry(port).or_insert_with(|| endpoints.object_ref());
        }
        for port in numbers(&endpoints.spec.ports, PublishMode::Host) {
            taken.on_machines.entry(port).or_default().insert(endpoints.object_ref());
        }
    }
    let mut changes = Vec::new();
    for service in &services {
        let reference = service.object_ref();
        let current = stored.get(&reference).filter(|endpoints| endpoints.metadata.is_owned_by(&service.metadata.uid));
        // A namesake's object goes first; its deletion wakes us.
        if current.is_none() && stored.contains_key(&reference) {
            continue;
        }
        let before = current.map(|endpoints| endpoints.spec.clone()).unwrap_or_default();
        let spec = EndpointsSpec {
            service: service.metadata.name.clone(),
            mode: service.spec.endpoint.mode,
            networks: networks(seen, service, &before, &mut taken),
            ports: ports(seen, service, &before, &mut taken),
            backends: backends(seen, service, tasks.get(&reference).map(Vec::as_slice).unwrap_or_default()),
        };
        match current {
            None if service.is_deleting() => {}
            None => changes.push(Change::Create { service: service.clone(), spec }),
            Some(current) if current.spec != spec => {
                changes.push(Change::Update { endpoints: (*current).clone(), spec });
            }
            Some(_) => {}
        }
    }
    let uids: BTreeSet<&str> = seen.services.iter().map(|service| service.metadata.uid.as_str()).collect();
    for endpoints in stored.values() {
        let owned = endpoints.metadata.owner_references.iter().any(|owner| uids.contains(owner.uid.as_str()));
        if !owned && !endpoints.is_deleting() {
            changes.push(Change::Delete { endpoints: (*endpoints).clone() });
        }
    }
    changes
}

fn networks(seen: &Seen, service: &Service, before: &EndpointsSpec, taken: &mut Taken) -> Vec<EndpointNetwork> {
    let name = &service.metadata.name;
    let mut networks = Vec::new();
    for attachment in service.spec.template.attachments().iter() {
        if !seen.networks.contains(&ObjectRef::new(&service.metadata.namespace, &attachment.name)) {
            continue;
        }
        let old = before.networks.iter().find(|network| network.network == attachment.name);
        let vip = match service.spec.endpoint.mode {
            EndpointMode::Dnsrr => None,
            EndpointMode::Vip => old.and_then(|network| network.vip).or_else(|| free_vip(seen, taken)),
        };
        let mut names = vec![name.clone()];
        names.extend(attachment.aliases.iter().filter(|alias| *alias != name).cloned());
        networks.push(EndpointNetwork { network: attachment.name.clone(), vip, vip6: None, names });
    }
    networks
}

/// The pool's first and last address stay free, as people expect of a subnet.
fn free_vip(seen: &Seen, taken: &mut Taken) -> Option<IpAddr> {
    let pool = seen.cluster.addresses.virtuals;
    let bits = if pool.address().is_ipv4() { 32 } else { 128 };
    let size = 1_u128.checked_shl(u32::from(bits - pool.prefix())).unwrap_or(u128::MAX);
    let vip = (1..size.saturating_sub(1)).filter_map(|index| pool.nth(index)).find(|vip| !taken.vips.contains(vip))?;
    taken.vips.insert(vip);
    Some(vip)
}

/// Each port with the number under which it is published. A number that was allocated stays while the service asks for
/// the same port; one that another service has is left out, and the service says so. No machine opens one number for all
/// machines and for itself.
fn ports(seen: &Seen, service: &Service, before: &EndpointsSpec, taken: &mut Taken) -> Vec<PublishedPort> {
    let me = service.object_ref();
    let mut ports: Vec<PublishedPort> = Vec::new();
    for asked in &service.spec.endpoint.ports {
        let mut port = asked.clone();
        if asked.mode == PublishMode::Ingress {
            let kept = before.ports.iter().find(|old| {
                (old.protocol, old.target, old.mode) == (asked.protocol, asked.target, asked.mode)
                    && !ports.iter().any(|other| (other.protocol, other.published) == (old.protocol, old.published))
            });
            let number = asked
                .published
                .or_else(|| kept.and_then(|old| old.published))
                .or_else(|| free_port(seen, asked.protocol, taken));
            let Some(number) = number else { continue };
            let on_machines = taken.on_machines.get(&(asked.protocol, number));
            if on_machines.is_some_and(|owners| owners.iter().any(|owner| *owner != me)) {
                continue;
            }
            let owner = taken.ports.entry((asked.protocol, number)).or_insert_with(|| me.clone());
            if *owner != me {
                continue;
            }
            port.published = Some(number);
        } else if let Some(number) = asked.published {
            if taken.ports.get(&(asked.protocol, number)).is_some_and(|owner| *owner != me) {
                continue;
            }
            taken.on_machines.entry((asked.protocol, number)).or_default().insert(me.clone());
        }
        ports.push(port);
    }
    ports
}

fn free_port(seen: &Seen, protocol: Protocol, taken: &Taken) -> Option<u16> {
    let range = &seen.cluster.ports;
    // A number that a service asks for by name is not handed out to another one.
    let asked: BTreeSet<(Protocol, u16)> = seen
        .services
        .iter()
        .flat_map(|service| &service.spec.endpoint.ports)
        .filter_map(|port| Some((port.protocol, port.published?)))
        .collect();
    (range.allocated_first..=range.allocated_last)
        .find(|number| !taken.ports.contains_key(&(protocol, *number)) && !asked.contains(&(protocol, *number)))
}

fn ingress(ports: &[PublishedPort]) -> impl Iterator<Item = (Protocol, u16)> {
    numbers(ports, PublishMode::Ingress)
}

fn numbers(ports: &[PublishedPort], mode: PublishMode) -> impl Iterator<Item = (Protocol, u16)> {
    let published = ports.iter().filter(move |port| port.mode == mode);
    published.filter_map(|port| port.published.map(|number| (port.protocol, number)))
}

/// Every task that has an address; those that get new connections are ready.
fn backends(seen: &Seen, service: &Service, tasks: &[&Arc<Task>]) -> Vec<Backend> {
    let mut backends: Vec<Backend> = tasks
        .iter()
        .filter(|task| task.metadata.is_owned_by(&service.metadata.uid))
        .filter_map(|task| {
            let status = task.status.as_ref()?;
            let node = task.spec.node_name.clone().filter(|node| !seen.lost.contains(node))?;
            let serves = task.spec.desired == DesiredState::Running && status.state == TaskState::Running;
            // All machines send there: a machine is believed about its own part of a network only, once parts are given.
            let is_its_own = |address: &&TaskAddress| {
                let network = ObjectRef::new(&task.metadata.namespace, &address.network);
                match seen.blocks.get(&(network.clone(), node.clone())) {
                    Some(block) => block.contains(address.address),
                    None => !seen.blocks.keys().any(|(other, _)| *other == network),
                }
            };
            let addresses: Vec<TaskAddress> = status.addresses.iter().filter(is_its_own).cloned().collect();
            let listed = serves && !task.is_deleting() && !addresses.is_empty();
            listed.then(|| Backend { task: task.metadata.name.clone(), node, ready: true, addresses })
        })
        .collect();
    backends.sort_by(|a, b| a.task.cmp(&b.task));
    backends
}
