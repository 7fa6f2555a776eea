//! What follows for one UID from who owns whom. Each step is about one object and safe without the others.

use reconciler_api::Uid;

use super::{FOREGROUND, ORPHAN, Owned, Propagation};

/// Who owns whom, as far as it is known.
pub(super) trait Graph {
    fn get(&self, uid: &Uid) -> Option<&Owned>;
    fn all(&self) -> Box<dyn Iterator<Item = (&Uid, &Owned)> + '_>;
    /// Whether objects of this kind would be in the graph.
    fn is_served(&self, api_version: &str, kind: &str) -> bool;
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Delete {
        uid: Uid,
        propagation: Propagation,
        because: &'static str,
    },
    /// Takes away its references to these owners.
    Disown {
        uid: Uid,
        of: Vec<Uid>,
        because: &'static str,
    },
    /// Takes away a finalizer of ours.
    Finish {
        uid: Uid,
        finalizer: &'static str,
    },
}

impl Step {
    pub fn uid(&self) -> &Uid {
        match self {
            Self::Delete { uid, .. } | Self::Disown { uid, .. } | Self::Finish { uid, .. } => uid,
        }
    }

    pub fn because(&self) -> &'static str {
        match self {
            Self::Delete { because, .. } | Self::Disown { because, .. } => because,
            Self::Finish { .. } => "nothing is left to wait for",
        }
    }
}

/// How an owner of something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// There, or not known here.
    Solid,
    /// Being deleted in the foreground: it waits for what it owns.
    Waiting,
    Gone,
}

pub(super) fn plan(graph: &dyn Graph, uid: &Uid) -> Vec<Step> {
    match graph.get(uid) {
        // Whatever it owned is looked at; what it was itself does not matter any more.
        None => dependents(graph, uid).filter_map(|(uid, object)| bereaved(graph, uid, object)).collect(),
        Some(object) if object.deleting && has(object, ORPHAN) => orphan(graph, uid),
        Some(object) if object.deleting && has(object, FOREGROUND) => foreground(graph, uid),
        Some(object) => bereaved(graph, uid, object).into_iter().collect(),
    }
}

/// What becomes of an object some of whose owners are gone.
fn bereaved(graph: &dyn Graph, uid: &Uid, object: &Owned) -> Option<Step> {
    let standings: Vec<(Standing, &Uid)> =
        object.owners.iter().map(|owner| (standing(graph, owner), &owner.uid)).collect();
    let gone: Vec<Uid> =
        standings.iter().filter(|(standing, _)| *standing == Standing::Gone).map(|(_, uid)| (*uid).clone()).collect();
    if gone.is_empty() || object.deleting {
        return None;
    }
    let any = |wanted| standings.iter().any(|(standing, _)| *standing == wanted);
    Some(if any(Standing::Solid) {
        Step::Disown { uid: uid.clone(), of: gone, because: "one of its owners is gone" }
    } else {
        let propagation = if any(Standing::Waiting) { Propagation::Foreground } else { Propagation::Background };
        Step::Delete { uid: uid.clone(), propagation, because: "its owners are gone" }
    })
}

/// The dependents go; those that block are waited for.
fn foreground(graph: &dyn Graph, owner: &Uid) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut blocked = false;
    for (uid, object) in dependents(graph, owner) {
        let others = object.owners.iter().filter(|other| other.uid != *owner);
        if others.clone().any(|other| standing(graph, other) == Standing::Solid) {
            let of = vec![owner.clone()];
            steps.push(Step::Disown { uid: uid.clone(), of, because: "its other owners stay" });
            continue;
        }
        blocked |= object.owners.iter().any(|reference| reference.uid == *owner && reference.block_owner_deletion);
        if !object.deleting {
            let has_own = dependents(graph, uid).next().is_some();
            let propagation = if has_own { Propagation::Foreground } else { Propagation::Background };
            steps.push(Step::Delete { uid: uid.clone(), propagation, because: "its owner is being deleted" });
        }
    }
    if !blocked {
        steps.push(Step::Finish { uid: owner.clone(), finalizer: FOREGROUND });
    }
    steps
}

/// The dependents stay, and the owner goes once none of them refers to it.
fn orphan(graph: &dyn Graph, owner: &Uid) -> Vec<Step> {
    let disown = |(uid, _): (&Uid, &Owned)| Step::Disown {
        uid: uid.clone(),
        of: vec![owner.clone()],
        because: "its owner leaves it behind",
    };
    let steps: Vec<Step> = dependents(graph, owner).map(disown).collect();
    match steps.is_empty() {
        true => vec![Step::Finish { uid: owner.clone(), finalizer: ORPHAN }],
        false => steps,
    }
}

fn standing(graph: &dyn Graph, owner: &reconciler_api::OwnerReference) -> Standing {
    match graph.get(&owner.uid) {
        Some(object) if object.deleting && has(object, FOREGROUND) => Standing::Waiting,
        Some(_) => Standing::Solid,
        // A reference that says no UID says too little to act on.
        None if owner.uid.is_empty() || !graph.is_served(&owner.api_version, &owner.kind) => Standing::Solid,
        None => Standing::Gone,
    }
}

fn dependents<'a>(graph: &'a dyn Graph, owner: &'a Uid) -> impl Iterator<Item = (&'a Uid, &'a Owned)> {
    graph.all().filter(move |(_, object)| object.owners.iter().any(|reference| reference.uid == *owner))
}

fn has(object: &Owned, finalizer: &str) -> bool {
    object.finalizers.iter().any(|name| name == finalizer)
}
