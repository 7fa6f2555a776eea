//! Everything that is known of one task, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;
use reconciler::api::{ObjectRef, Resource, Timestamp, Uid};
use reconciler::cache::Snapshot;
use reconciler::causes::chain;
use reconciler::controller::Ctx;
use schemas::image::{Digest, ImageRef};
use schemas::kinds::endpoints::TaskAddress;
use schemas::kinds::network::Network;
use schemas::kinds::revision::Revision;
use schemas::kinds::service::Service;
use schemas::kinds::task::Task;
use schemas::kinds::template::TaskTemplate;
use schemas::kinds::volume::Volume;

use super::background::Stage;
use super::health::Health;
use super::planted::{Bugs, Planted};
use super::{ByUid, OnNode, Tasks, container_id, containers, logins};
use crate::mounted;
use crate::node::containerd::{Container, State};
use crate::node::images::{self, Healthcheck, ImageInfo, Progress};

/// What was made is usually told of within milliseconds; after this, everything is looked at.
pub(super) const LOOKED_AT_WITHIN: Duration = Duration::from_secs(1);

/// What the plan is made from.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub uid: Uid,
    pub now: Timestamp,
    /// `None` when the store has no such task on this machine: what is here of it has to go.
    pub task: Option<Arc<Task>>,
    /// The same as the store has it; its status may lag behind while the store does not answer.
    pub stored: Option<Arc<Task>>,
    /// `None` when the task's revision is not there, or not yet.
    pub revision: Option<Arc<Revision>>,
    /// By attempt.
    pub containers: BTreeMap<u32, Arc<Container>>,
    /// Something of that is known only because this process has done it.
    pub unseen: bool,
    /// Something beside containers is here.
    pub prepared: bool,
    pub image: Option<Stage<ImageOutcome>>,
    /// How long that has been known.
    pub image_age: Duration,
    /// How far the pull of the image is; `None` while none goes on.
    pub pull: Option<Progress>,
    /// Who we are for the image's registry; not looked for once the image is here.
    pub login: Option<ObjectRef>,
    pub addresses: Addressing,
    pub volumes: Volumes,
    /// The smallest of the task's networks.
    pub mtu: Option<u16>,
    /// By attempt.
    pub health: BTreeMap<u32, Health>,
    /// How long ago an attempt was asked to end, by this process.
    pub signalled: BTreeMap<u32, Duration>,
    /// How long connections may go on once the task is out of the mesh.
    pub drain: Duration,
    /// For waits: the same for the same attempts.
    pub jitter: u8,
    pub bugs: Bugs,
}

/// What became of having the image.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ImageOutcome {
    Here(Arc<ImageHere>),
    Failed { failure: ImageFailure, message: String },
}

/// Why an image could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageFailure {
    /// This machine's containerd did not do as it was asked.
    Runtime,
    /// The registry's reason may pass.
    Registry,
    /// It would fail the same way again.
    Lasting,
}

/// An image that can be started.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ImageHere {
    pub image: ImageRef,
    pub digest: Digest,
    pub config: ImageConfiguration,
    pub healthcheck: Option<Healthcheck>,
    /// Empty for an image without layers.
    pub layers: String,
}

/// The task's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Addressing {
    Given(Vec<TaskAddress>),
    /// Not all of them, and why.
    Waiting(String),
}

/// The objects of the named volumes that the task mounts.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Volumes {
    /// All there and meant to stay.
    There(Vec<Arc<Volume>>),
    /// One is not there yet, or goes: a volume that is being removed must not be filled again before it is gone.
    Waiting(String),
    /// One is on another machine.
    Elsewhere(String),
}

impl ImageOutcome {
    pub fn of(ensured: Result<ImageInfo, images::Error>) -> Self {
        match ensured {
            Ok(info) => ImageOutcome::Here(Arc::new(ImageHere {
                image: info.image,
                digest: info.digest,
                config: info.config,
                healthcheck: info.healthcheck,
                layers: info.chain_id.map(|id| id.to_string()).unwrap_or_default(),
            })),
            Err(error) => {
                let failure = match &error {
                    images::Error::Containerd { .. } | images::Error::Store { .. } => ImageFailure::Runtime,
                    error if error.is_temporary() => ImageFailure::Registry,
                    _ => ImageFailure::Lasting,
                };
                ImageOutcome::Failed { failure, message: chain(&error) }
            }
        }
    }
}

impl Seen {
    pub fn template(&self) -> Option<&TaskTemplate> {
        self.revision.as_ref()?.spec.content.template()
    }

    pub fn image_here(&self) -> Option<&Arc<ImageHere>> {
        match &self.image {
            Some(Stage::Done(ImageOutcome::Here(image))) => Some(image),
            _ => None,
        }
    }
}

impl Tasks {
    /// `None` when there is nothing to do and nothing to keep in mind.
    pub(super) fn observe(&self, uid: &Uid, cx: &Ctx) -> Option<Seen> {
        let snapshot = cx.snapshot();
        let stored = snapshot.by::<ByUid>(uid).next().filter(|task| task.spec.node_name.as_ref() == Some(&self.node));
        let known = stored.map(|task| self.as_known_here(task));
        let task = known.as_ref();
        let (containers, unseen) = self.containers_of(uid);
        let prepared = self.around.snapshot().is_some_and(|known| known.get(uid).is_some())
            || self.memory().prepared.contains(uid);
        if task.is_none() && containers.is_empty() && !prepared {
            self.forget(uid);
            return None;
        }
        let in_namespace = |task: &Task, name: &str| ObjectRef::new(&task.metadata.namespace, name);
        let revision =
            task.and_then(|task| snapshot.get::<Revision>(&in_namespace(task, &task.spec.revision))).cloned();
        let networks: Vec<&Arc<Network>> = task.map_or_else(Vec::new, |task| {
            let named = task.spec.networks.iter();
            named.filter_map(|attached| snapshot.get::<Network>(&in_namespace(task, &attached.name))).collect()
        });
        let image = self.images.world().stage(uid);
        let login = match &image {
            Some(Stage::Done(ImageOutcome::Here(_))) => None,
            _ => revision.as_ref().and_then(|revision| logins::of_revision(snapshot, revision)),
        };
        let now = self.seams.monotonic();
        let signalled = {
            let memory = self.memory();
            let of_task = memory.signalled.iter().filter(|((of, _), _)| of == uid);
            of_task.map(|((_, attempt), at)| (*attempt, now.since(*at))).collect()
        };
        Some(Seen {
            uid: uid.clone(),
            now: cx.now(),
            containers,
            unseen,
            prepared,
            image,
            image_age: self.images.world().done_at(uid).map(|at| now.since(at)).unwrap_or_default(),
            pull: revision.as_ref().and_then(|revision| self.pull(revision)),
            revision,
            login,
            drain: task.map_or(Duration::ZERO, |task| {
                let service = snapshot.get::<Service>(&in_namespace(task, &task.spec.service));
                service.map_or(Duration::ZERO, |service| service.spec.drain().get())
            }),
            addresses: task.map_or(Addressing::Given(Vec::new()), |task| self.addresses(task, snapshot)),
            volumes: task.map_or(Volumes::There(Vec::new()), |task| volumes(task, &self.node, snapshot)),
            mtu: networks.iter().filter_map(|network| network.spec.mtu).min(),
            health: self.checks.world().of(uid),
            signalled,
            jitter: jitter(uid, task.map(|task| &**task)),
            stored: stored.cloned(),
            task: task.cloned(),
            bugs: self.bugs,
        })
    }

    fn pull(&self, revision: &Revision) -> Option<Progress> {
        let image: ImageRef = revision.spec.content.template()?.container.image.parse().ok()?;
        self.parts.images.progress().borrow().get(&image).copied()
    }

    /// As they were last looked at, or further if this process knows that they are: a look may be older than what was
    /// done since, and what it shows would be done again. What this process has made and no look has seen is there as
    /// well: taken for absent, a task that runs would be called ended. What it has removed is not. The second answer is
    /// whether any of this was added to what the looks say.
    fn containers_of(&self, uid: &Uid) -> (BTreeMap<u32, Arc<Container>>, bool) {
        let Some(known) = self.containers.snapshot() else { return (BTreeMap::new(), false) };
        let ours = known.iter().filter_map(|(id, container)| {
            let (of, attempt) = containers::attempt_of(id.as_str())?;
            (of == *uid).then(|| (attempt, container.clone()))
        });
        let mut found: BTreeMap<u32, Arc<Container>> = ours.collect();
        let now = self.seams.monotonic();
        let mut unseen = false;
        self.memory().made.retain(|(of, attempt), made| {
            if of != uid {
                return true;
            }
            if known.is_later_than(made.moment) {
                return false;
            }
            let further = match (found.get(attempt), made.reached) {
                (None, None) => return false,
                (Some(_), None) => None,
                (Some(seen), Some(_)) if !seen.orphan && seen.state == State::Unknown => return true,
                // An orphan is of before: what is made has a record.
                (Some(seen), Some(reached)) if !seen.orphan && !is_before(&seen.state, &reached) => return false,
                (_, Some(state)) => {
                    let Some(id) = container_id(uid, *attempt) else { return false };
                    let labels = found.get(attempt).map(|seen| seen.labels.clone()).unwrap_or_default();
                    Some(Container { id, labels, state, orphan: false })
                }
            };
            unseen = true;
            if now.since(made.at) >= LOOKED_AT_WITHIN {
                self.containers.look_again();
            }
            match further {
                Some(container) => drop(found.insert(*attempt, Arc::new(container))),
                None => drop(found.remove(attempt)),
            }
            !self.bugs.has(Planted::UnseenIsAbsent)
        });
        (found, unseen)
    }

    /// With the status that could not be told yet; unless somebody has ended it in the meantime, or it was told after all.
    fn as_known_here(&self, stored: &Arc<Task>) -> Arc<Task> {
        let mut memory = self.memory();
        let Some(unsaid) = memory.unsaid.get(&stored.metadata.uid) else { return stored.clone() };
        let said = stored.status.as_ref();
        if said == Some(unsaid) || said.is_some_and(|status| status.state.is_terminal()) {
            memory.unsaid.remove(&stored.metadata.uid);
            return stored.clone();
        }
        let mut known = (**stored).clone();
        known.status = Some(unsaid.clone());
        Arc::new(known)
    }

    fn forget(&self, uid: &Uid) {
        self.images.world().forget(uid);
        self.checks.world().retain(uid, |_| false);
        let mut memory = self.memory();
        memory.addresses.let_go(uid);
        memory.signalled.retain(|(of, _), _| of != uid);
        memory.busy.retain(|(of, _), _| of != uid);
        memory.unsaid.remove(uid);
        memory.made.retain(|(of, _), _| of != uid);
    }

    /// An address in each network that the task is attached to, given here and now where it has none yet.
    fn addresses(&self, task: &Task, snapshot: &Snapshot) -> Addressing {
        let has = task.status.as_ref().map(|status| status.addresses.as_slice()).unwrap_or_default();
        let mut given = Vec::new();
        for attached in &task.spec.networks {
            let network = ObjectRef::new(&task.metadata.namespace, &attached.name);
            let Some(found) = snapshot.get::<Network>(&network) else {
                return Addressing::Waiting(format!("there is no network {}", attached.name));
            };
            let blocks = found.status.as_ref().map(|status| status.blocks.as_slice()).unwrap_or_default();
            let Some(block) = blocks.iter().find(|block| block.node == self.node) else {
                return Addressing::Waiting(format!("network {} has no addresses for this machine yet", attached.name));
            };
            let now = has.iter().find(|address| address.network == attached.name).map(|address| address.address);
            let taken = taken(snapshot, &self.node, task, &network);
            let address = self.memory().addresses.give(&network, &task.metadata.uid, now, block.block, &taken);
            match address {
                Some(address) => given.push(TaskAddress { network: attached.name.clone(), address }),
                None => {
                    let message = format!("all addresses of network {} on this machine are in use", attached.name);
                    return Addressing::Waiting(message);
                }
            }
        }
        Addressing::Given(given)
    }
}

/// An attempt only moves on: what is before where it has been was seen earlier.
fn is_before(seen: &State, reached: &State) -> bool {
    let place = |state: &State| match state {
        State::Incomplete => Some(0),
        State::Created => Some(1),
        State::Running { .. } => Some(2),
        State::Stopped { .. } | State::Gone => Some(3),
        State::Unknown => None,
    };
    place(seen).zip(place(reached)).is_some_and(|(seen, reached)| seen < reached)
}

fn volumes(task: &Task, node: &str, snapshot: &Snapshot) -> Volumes {
    let mut there = Vec::new();
    for reference in mounted::volumes_of(task, snapshot) {
        let name = &reference.name;
        let Some(volume) = snapshot.get::<Volume>(&reference) else {
            return Volumes::Waiting(format!("volume {name} is not there yet"));
        };
        match volume.spec.node.as_deref() {
            _ if volume.is_deleting() => return Volumes::Waiting(format!("volume {name} is being removed")),
            None => return Volumes::Waiting(format!("volume {name} has no machine yet")),
            Some(of) if of != node => {
                return Volumes::Elsewhere(format!("volume {name} is on machine {of}, and this is {node}"));
            }
            Some(_) => there.push(volume.clone()),
        }
    }
    Volumes::There(there)
}

/// What other tasks on this machine have in a network.
fn taken(snapshot: &Snapshot, node: &String, task: &Task, network: &ObjectRef) -> BTreeSet<IpAddr> {
    let others = snapshot
        .by::<OnNode>(node)
        .filter(|other| other.metadata.uid != task.metadata.uid && other.metadata.namespace == task.metadata.namespace);
    let held = others.filter_map(|other| other.status.as_ref()).filter(|status| !status.state.is_terminal());
    let addresses = held.flat_map(|status| &status.addresses);
    addresses.filter(|address| address.network == network.name).map(|address| address.address).collect()
}

pub(super) fn is_attached(task: &Task, network: &ObjectRef) -> bool {
    task.metadata.namespace == network.namespace
        && task.spec.networks.iter().any(|attached| attached.name == network.name)
}

fn jitter(uid: &Uid, task: Option<&Task>) -> u8 {
    let attempt = task.and_then(|task| task.status.as_ref()?.attempts.last()).map_or(0, |attempt| attempt.number);
    let spread = |sum: u8, byte: u8| sum.wrapping_mul(31).wrapping_add(byte);
    uid.as_str().bytes().fold(attempt.to_le_bytes()[0], spread)
}
