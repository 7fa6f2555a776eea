//! An application becomes services and networks.
//!
//! **Owns** the Services and Networks that carry its owner reference: what the bundle says of them; its Revisions.
//! **Relies on** people to change the rest of such a Service by hand, and on cascading deletion when the bundle goes.
//! **Promises** every spec that was the wanted one when it looked has a Revision, of which the newest stay; a field that the file changed takes the file's value; one that it did not keeps what is live; what left
//! the file is removed after the new is up; an object of that name under another owner is never touched.
//! **Woken by** the Services, Networks and Revisions that it owns, and by those that stand in its way.

mod act;
mod plan;
mod preview;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use reconciler::cache::Snapshot;
use reconciler::controller::{Action, Controller, Ctx, Error, Reconciler};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster};
use schemas::kinds::labels::BUNDLE;
use schemas::kinds::network::Network;
use schemas::kinds::revision::Revision;
use schemas::kinds::service::Service;

use plan::Seen;
pub use preview::{Foreseen, Preview, preview};

pub struct Bundles;

impl Bundles {
    pub fn controller() -> Controller<ObjectRef> {
        Controller::new("bundle", Self)
            .owns::<Service>()
            .owns::<Network>()
            .owns::<Revision>()
            .reads::<Cluster>()
            .watches::<Service, _>(wanting)
            .watches::<Service, _>(wanting_its_volumes)
            .watches::<Network, _>(wanting)
    }
}

/// The bundles that may want an object of this name: one that is in the way, whoever owns it, wakes them when it goes.
fn wanting<T: Resource>(object: &T, snapshot: &Snapshot) -> Vec<ObjectRef> {
    let bundles = snapshot.in_namespace::<Bundle>(&object.meta().namespace);
    let wants = |bundle: &&Arc<Bundle>| {
        let rest = object.name().strip_prefix(&bundle.metadata.name);
        rest.is_some_and(|rest| rest.starts_with('-')) && !object.meta().is_owned_by(&bundle.metadata.uid)
    };
    bundles.filter(wants).map(|bundle| bundle.object_ref()).collect()
}

/// The bundles that may want the data of a service: one of another bundle that lets go of a volume wakes them.
fn wanting_its_volumes(service: &Service, snapshot: &Snapshot) -> Vec<ObjectRef> {
    let held: BTreeSet<&str> = service.spec.named_volumes().collect();
    if held.is_empty() || !service.metadata.labels.contains_key(BUNDLE) {
        return Vec::new();
    }
    let wants = |bundle: &&Arc<Bundle>| {
        let specs = bundle.spec.services.values().filter_map(|fragment| fragment.to_spec().ok());
        let mut volumes = specs.flat_map(|spec| spec.named_volumes().map(str::to_owned).collect::<Vec<_>>());
        !service.metadata.is_owned_by(&bundle.metadata.uid) && volumes.any(|volume| held.contains(volume.as_str()))
    };
    let bundles = snapshot.in_namespace::<Bundle>(&service.metadata.namespace);
    bundles.filter(wants).map(|bundle| bundle.object_ref()).collect()
}

impl Reconciler for Bundles {
    type Object = Bundle;

    async fn reconcile(&self, bundle: Arc<Bundle>, cx: &Ctx) -> Result<Action, Error> {
        let snapshot = cx.snapshot();
        let namespace = &bundle.metadata.namespace;
        let seen = Seen {
            services: snapshot.in_namespace::<Service>(namespace).cloned().collect(),
            networks: snapshot.in_namespace::<Network>(namespace).cloned().collect(),
            revisions: snapshot.owned_by::<Revision>(&bundle.metadata.uid).cloned().collect(),
            history: snapshot
                .get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME))
                .map(|cluster| cluster.spec.history.clone())
                .unwrap_or_default(),
            bundle,
        };
        act::act(cx, &seen, plan::plan(&seen, cx.now())).await
    }
}
