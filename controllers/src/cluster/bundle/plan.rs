//! What a bundle's services and networks shall say. A pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reconciler::{Resource, Timestamp};
use schemas::kinds::bundle::{Bundle, BundleServiceStatus, BundleState, BundleStatus, Override};
use schemas::kinds::network::{Network, NetworkSpec};
use schemas::kinds::service::{Service, ServiceSpec};
use serde_json::Value;

use super::merge::{Kept, merge};

/// What the bundle controller last applied to an object: the base of the next merge, written in the same commit.
pub(super) const LAST_APPLIED: &str = "apply/last-applied";
pub(super) const BUNDLE_LABEL: &str = "apply/bundle";

pub(super) struct Seen {
    pub bundle: Arc<Bundle>,
    /// All of the namespace: one of the same name under another owner is in the way.
    pub services: Vec<Arc<Service>>,
    pub networks: Vec<Arc<Network>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// In the order in which they may happen; removals come last.
    pub changes: Vec<Change>,
    pub status: BundleStatus,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    CreateNetwork { name: String, spec: NetworkSpec },
    CreateService { name: String, spec: ServiceSpec, applied: String },
    UpdateService { live: Arc<Service>, spec: ServiceSpec, applied: String },
    RemoveService { live: Arc<Service> },
    RemoveNetwork { live: Arc<Network> },
}

pub(super) fn plan(seen: &Seen, now: Timestamp) -> Plan {
    let mut plan = Plan { status: seen.bundle.status.clone().unwrap_or_default(), ..Plan::default() };
    plan.status.overrides.clear();
    let mut problems = Vec::new();
    let networks = plan_networks(seen, &mut plan, &mut problems);
    let mut lines = Vec::new();
    let mut names = BTreeSet::new();
    for (short, fragment) in &seen.bundle.spec.services {
        let name = object_name(&seen.bundle, short);
        names.insert(name.clone());
        match fragment.to_spec() {
            Ok(spec) => {
                let file = in_cluster_terms(seen, short, spec, &networks);
                plan_service(seen, &name, file, &mut plan, &mut problems);
            }
            Err(error) => problems.push(format!("services.{short}: {error}")),
        }
        lines.push(service_line(seen, short, &name));
    }
    let up = lines.iter().all(|line| line.desired == line.running && line.message.is_empty());
    if up && problems.is_empty() && plan.changes.is_empty() && !seen.bundle.spec.keep_dropped {
        remove_dropped(seen, &names, &networks, &mut plan);
    }
    finish(seen, lines, problems, up, &mut plan, now);
    plan
}

/// The bundle's networks, from their names in the file to their objects' names.
fn plan_networks(seen: &Seen, plan: &mut Plan, problems: &mut Vec<String>) -> BTreeMap<String, String> {
    let spec = &seen.bundle.spec;
    let mut wanted: BTreeMap<String, NetworkSpec> = spec.networks.clone();
    for fragment in spec.services.values().filter_map(|fragment| fragment.to_spec().ok()) {
        for attachment in fragment.template.networks {
            wanted.entry(attachment.name).or_default();
        }
    }
    let mut names = BTreeMap::new();
    for (short, network) in wanted {
        let name = object_name(&seen.bundle, &short);
        names.insert(short, name.clone());
        match seen.networks.iter().find(|live| live.metadata.name == name) {
            None => plan.changes.push(Change::CreateNetwork { name, spec: network }),
            Some(live) if live.metadata.is_owned_by(&seen.bundle.metadata.uid) => {}
            Some(live) => problems.push(in_the_way("network", &name, &live.metadata)),
        }
    }
    names
}

/// Names of the file become names of objects, and the service answers to its old names too.
fn in_cluster_terms(
    seen: &Seen,
    short: &str,
    mut spec: ServiceSpec,
    networks: &BTreeMap<String, String>,
) -> ServiceSpec {
    for attachment in &mut spec.template.networks {
        if let Some(name) = networks.get(&attachment.name) {
            attachment.name.clone_from(name);
        }
        for alias in [short.to_owned(), format!("{}_{short}", seen.bundle.metadata.name)] {
            if !attachment.aliases.contains(&alias) {
                attachment.aliases.push(alias);
            }
        }
    }
    spec
}

fn plan_service(seen: &Seen, name: &str, file: ServiceSpec, plan: &mut Plan, problems: &mut Vec<String>) {
    let file_json = json(&file);
    let applied = file_json.to_string();
    let Some(live) = seen.services.iter().find(|live| live.metadata.name == name) else {
        plan.changes.push(Change::CreateService { name: name.to_owned(), spec: file, applied });
        return;
    };
    if !live.metadata.is_owned_by(&seen.bundle.metadata.uid) {
        problems.push(in_the_way("service", name, &live.metadata));
        return;
    }
    let base: Option<Value> =
        live.metadata.annotations.get(LAST_APPLIED).and_then(|text| serde_json::from_str(text).ok());
    let mut kept: Vec<Kept> = Vec::new();
    let merged = merge(base.as_ref(), Some(&file_json), Some(&json(&live.spec)), "", &mut kept);
    // A merge of three good specs can be a bad one (a map emptied by one and filled by another is still a map, so in
    // practice it is not); then the file alone counts.
    let spec = merged.and_then(|value| serde_json::from_value(value).ok()).unwrap_or(file);
    plan.status.overrides.extend(kept.into_iter().map(|kept| Override {
        object: format!("service/{name}"),
        path: format!("spec.{}", kept.path),
        file: kept.file,
        live: kept.live,
    }));
    if spec != live.spec || live.metadata.annotations.get(LAST_APPLIED) != Some(&applied) {
        plan.changes.push(Change::UpdateService { live: live.clone(), spec, applied });
    }
}

fn remove_dropped(seen: &Seen, services: &BTreeSet<String>, networks: &BTreeMap<String, String>, plan: &mut Plan) {
    let mine = |meta: &reconciler::ObjectMeta| {
        meta.is_owned_by(&seen.bundle.metadata.uid) && meta.deletion_timestamp.is_none()
    };
    for live in seen.services.iter().filter(|live| mine(&live.metadata) && !services.contains(&live.metadata.name)) {
        plan.changes.push(Change::RemoveService { live: live.clone() });
    }
    let used: BTreeSet<&String> = networks.values().collect();
    for live in seen.networks.iter().filter(|live| mine(&live.metadata) && !used.contains(&live.metadata.name)) {
        plan.changes.push(Change::RemoveNetwork { live: live.clone() });
    }
}

fn service_line(seen: &Seen, short: &str, name: &str) -> BundleServiceStatus {
    let live = seen.services.iter().find(|live| live.metadata.name == name);
    let status = live.and_then(|live| live.status.as_ref());
    let current = live.zip(status).is_some_and(|(live, status)| status.observed_generation == live.metadata.generation);
    let ready = status.and_then(|status| status.conditions.get("Ready"));
    let message = match ready {
        Some(ready) if current => ready.message.clone(),
        _ => "not looked at yet".to_owned(),
    };
    BundleServiceStatus {
        name: short.to_owned(),
        service: name.to_owned(),
        desired: status.map_or_else(|| live.map_or(1, |live| live.spec.replicas()), |status| status.desired),
        running: status.map_or(0, |status| status.updated),
        message,
    }
}

fn finish(
    seen: &Seen,
    lines: Vec<BundleServiceStatus>,
    problems: Vec<String>,
    up: bool,
    plan: &mut Plan,
    now: Timestamp,
) {
    let generation = seen.bundle.metadata.generation;
    let status = &mut plan.status;
    status.observed_generation = generation;
    let running = lines.iter().filter(|line| line.desired == line.running).count();
    status.summary = format!("{running}/{}", lines.len());
    status.state = match (problems.is_empty(), up) {
        (false, _) => BundleState::Degraded,
        (true, true) => BundleState::Up,
        (true, false) => BundleState::Converging,
    };
    let why = problems.into_iter().chain(
        lines.iter().filter(|line| !line.message.is_empty()).map(|line| format!("{}: {}", line.name, line.message)),
    );
    let message = why.collect::<Vec<_>>().join("; ");
    let reason = match status.state {
        BundleState::Up => "AllRunning",
        BundleState::Converging => "Converging",
        BundleState::Degraded => "Refused",
    };
    status.conditions.set("Ready", status.state == BundleState::Up, reason, message, generation, now);
    status.services = lines;
}

/// `voting-app` and `vote` make `voting-app-vote`. What the readers let through always has such a name.
fn object_name(bundle: &Bundle, short: &str) -> String {
    let short = short.to_lowercase().replace(['_', '.'], "-");
    format!("{}-{short}", bundle.name())
}

fn in_the_way(kind: &str, name: &str, meta: &reconciler::ObjectMeta) -> String {
    match meta.owner_references.first() {
        Some(owner) => format!("{kind} {name} exists already and belongs to {} {}", owner.kind, owner.name),
        None => format!("{kind} {name} exists already and belongs to nobody's bundle; remove or rename it"),
    }
}

fn json(spec: &ServiceSpec) -> Value {
    serde_json::to_value(spec).expect("a spec is JSON: string keys, no fallible serializers")
}
