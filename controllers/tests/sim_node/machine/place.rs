//! What stands around a task's containers, on the disk and in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use controllers::node::containerd::ContainerId;
use controllers::node::volumes::VolumeId;
use reconciler::api::Uid;

use super::State;

/// What of one task is here beside containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// On the disk; made first, removed last.
    pub folder: bool,
    /// A network namespace and the addresses that are routed into it.
    pub link: Option<BTreeSet<IpAddr>>,
    /// The task's own volumes, on the disk.
    pub volumes: bool,
    /// The named volumes that its containers mount.
    pub mounts: BTreeSet<VolumeId>,
    /// Of each attempt; true once it has ended.
    pub pipes: BTreeMap<ContainerId, bool>,
    /// On the disk.
    pub logs: bool,
}

impl Place {
    pub fn is_gone(&self) -> bool {
        *self == Place::default()
    }

    /// What is not on the disk is gone.
    pub(super) fn boot(&mut self) {
        self.link = None;
        self.pipes.clear();
    }
}

impl State {
    pub(super) fn at<T>(&mut self, uid: &Uid, change: impl FnOnce(&mut Place) -> T) -> T {
        let place = self.places.entry(uid.clone()).or_default();
        let answer = change(place);
        if place.is_gone() {
            self.places.remove(uid);
        }
        answer
    }

    /// An address leads into one namespace.
    pub(super) fn link(&mut self, uid: &Uid, addresses: BTreeSet<IpAddr>) {
        let others = self.places.iter().filter(|(other, _)| *other != uid);
        let taken = others.flat_map(|(other, place)| place.link.iter().flatten().map(move |it| (*it, other)));
        let twice: Vec<String> = taken
            .filter(|(address, _)| addresses.contains(address))
            .map(|(address, other)| format!("{uid} is given {address}, which {other} still has"))
            .collect();
        if let Some(what) = twice.into_iter().next() {
            self.breaks(what);
        }
        self.at(uid, |place| place.link = Some(addresses));
    }
}
