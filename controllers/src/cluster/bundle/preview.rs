//! What a bundle would make of what is there, told before anything is done: the plan itself, without its act.

use std::collections::BTreeSet;
use std::sync::Arc;

use reconciler::{Resource, Timestamp};
use schemas::kinds::bundle::{Bundle, Override};
use schemas::kinds::cluster::History;
use schemas::kinds::network::Network;
use schemas::kinds::service::Service;
use schemas::names;
use serde_json::Value;

use super::plan::{Change, Plan, Seen, dropped, network_names, plan};

/// What would happen once the bundle is written as it is given here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preview {
    pub changes: Vec<Foreseen>,
    /// Where what is live stays, though the file says something else.
    pub overrides: Vec<Override>,
    /// What cannot be done as asked.
    pub problems: Vec<String>,
}

/// One object; `kind` is its singular word, specs are JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Foreseen {
    Create {
        kind: &'static str,
        name: String,
        spec: Value,
    },
    /// Where the two specs are the same, only what the next merge goes by is written.
    Update {
        kind: &'static str,
        name: String,
        live: Value,
        spec: Value,
    },
    /// After the rest is up.
    Remove {
        kind: &'static str,
        name: String,
    },
}

/// The plan for a bundle, given the services and networks of its namespace. A bundle that is not stored yet has no uid
/// and owns nothing.
pub fn preview(bundle: Bundle, services: Vec<Service>, networks: Vec<Network>) -> Preview {
    let seen = Seen {
        bundle: Arc::new(bundle),
        services: services.into_iter().map(Arc::new).collect(),
        networks: networks.into_iter().map(Arc::new).collect(),
        revisions: Vec::new(),
        history: History::default(),
    };
    let Plan { mut changes, status, problems, .. } = plan(&seen, Timestamp::default());
    changes.retain(|change| !matches!(change, Change::RemoveService { .. } | Change::RemoveNetwork { .. }));
    if !seen.bundle.spec.keep_dropped {
        let name = |short: &String| names::bundle_object_name(seen.bundle.name(), short).ok();
        let kept: BTreeSet<String> = seen.bundle.spec.services.keys().filter_map(name).collect();
        changes.extend(dropped(&seen, &kept, &network_names(&seen)));
    }
    Preview { changes: changes.into_iter().map(foreseen).collect(), overrides: status.overrides, problems }
}

fn foreseen(change: Change) -> Foreseen {
    let (network, service) = ("network", "service");
    match change {
        Change::CreateNetwork { name, spec, .. } => Foreseen::Create { kind: network, name, spec: json(&spec) },
        Change::CreateService { name, spec, .. } => Foreseen::Create { kind: service, name, spec: json(&spec) },
        Change::UpdateNetwork { live, spec, .. } => {
            Foreseen::Update { kind: network, name: live.name().to_owned(), live: json(&live.spec), spec: json(&spec) }
        }
        Change::UpdateService { live, spec, .. } => {
            Foreseen::Update { kind: service, name: live.name().to_owned(), live: json(&live.spec), spec: json(&spec) }
        }
        Change::RemoveService { live } => Foreseen::Remove { kind: service, name: live.name().to_owned() },
        Change::RemoveNetwork { live } => Foreseen::Remove { kind: network, name: live.name().to_owned() },
    }
}

fn json(spec: &impl serde::Serialize) -> Value {
    serde_json::to_value(spec).expect("a spec is JSON: string keys, no fallible serializers")
}
