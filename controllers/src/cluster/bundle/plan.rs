//! What a bundle's services and networks shall say. A pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reconciler::{ObjectMeta, Resource, Timestamp, Truth};
use schemas::kinds::bundle::{Bundle, BundleServiceStatus, BundleState, BundleStatus, Override, ServiceFragment};
use schemas::kinds::cluster::History;
use schemas::kinds::labels::{BUNDLE, LAST_APPLIED};
use schemas::kinds::network::{Network, NetworkSpec};
use schemas::kinds::revision::{Revision, RevisionContent, RevisionSpec};
use schemas::kinds::service::{PUBLISHED, Service, ServiceSpec};
use schemas::merge::{self, Deployed};
use schemas::names;
use serde_json::Value;

use crate::cluster::revisions;

#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub bundle: Arc<Bundle>,
    /// All of the namespace: one of the same name under another owner is in the way.
    pub services: Vec<Arc<Service>>,
    pub networks: Vec<Arc<Network>>,
    /// Its own.
    pub revisions: Vec<Arc<Revision>>,
    pub history: History,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// In the order in which they may happen; removals come last.
    pub changes: Vec<Change>,
    /// After them: nothing that is wanted waits for history.
    pub revisions: Vec<revisions::Change>,
    pub status: BundleStatus,
    /// What cannot be done as asked; the status says it too.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    CreateNetwork { name: String, spec: NetworkSpec, applied: String },
    UpdateNetwork { live: Arc<Network>, spec: NetworkSpec, applied: String },
    CreateService { name: String, spec: ServiceSpec, applied: String },
    UpdateService { live: Arc<Service>, spec: ServiceSpec, applied: String },
    RemoveService { live: Arc<Service> },
    RemoveNetwork { live: Arc<Network> },
}

pub(super) fn plan(seen: &Seen, now: Timestamp) -> Plan {
    let mut plan = Plan { status: seen.bundle.status.clone().unwrap_or_default(), ..Plan::default() };
    plan.status.overrides.clear();
    let mut problems = Vec::new();
    plan_history(seen, &mut plan);
    let networks = plan_networks(seen, &mut plan, &mut problems);
    let mut lines = Vec::new();
    let mut kept = BTreeSet::new();
    for (short, fragment) in &seen.bundle.spec.services {
        let name = match names::bundle_object_name(seen.bundle.name(), short) {
            Ok(name) => name,
            Err(message) => {
                problems.push(format!("services.{short}: {message}"));
                continue;
            }
        };
        kept.insert(name.clone());
        match in_cluster_terms(seen, short, &name, fragment, &networks) {
            Ok(file) => plan_service(seen, short, &name, file, &mut plan, &mut problems),
            Err(error) => problems.push(format!("services.{short}: {error}")),
        }
        lines.push(service_line(seen, short, &name));
    }
    let up = lines.iter().all(|line| line.desired == line.running && line.message.is_empty());
    if up && problems.is_empty() && plan.changes.is_empty() && !seen.bundle.spec.keep_dropped {
        plan.changes = dropped(seen, &kept, &networks);
    }
    plan.problems = problems;
    finish(seen, lines, up, &mut plan, now);
    plan
}

fn plan_history(seen: &Seen, plan: &mut Plan) {
    let content = RevisionContent::Bundle(Box::new(seen.bundle.spec.clone()));
    let spec = RevisionSpec::new(seen.bundle.name(), content);
    let wanted = spec.name();
    (plan.revisions, plan.status.number) =
        revisions::plan(&seen.revisions, &wanted, spec, &BTreeSet::new(), seen.history.revisions);
    plan.status.revision = Some(wanted);
}

/// The bundle's networks, from their names in the file to their objects' names.
fn plan_networks(seen: &Seen, plan: &mut Plan, problems: &mut Vec<String>) -> BTreeMap<String, String> {
    let spec = &seen.bundle.spec;
    let attached = spec.services.values().filter_map(|fragment| fragment.to_spec().ok());
    let attached = attached.flat_map(|service| service.template.networks).map(|attachment| attachment.name);
    let stated = spec.networks.iter().map(|(short, network)| (short.clone(), network.clone()));
    let wanted: Vec<(String, NetworkSpec)> =
        stated.chain(attached.map(|short| (short, NetworkSpec::default()))).collect();
    let mut made = BTreeSet::new();
    let mut by_short_name = BTreeMap::new();
    for (short, file) in wanted {
        let name = match names::bundle_object_name(seen.bundle.name(), &short) {
            Ok(name) => name,
            Err(message) => {
                problems.push(format!("networks.{short}: {message}"));
                continue;
            }
        };
        by_short_name.insert(short.clone(), name.clone());
        // `back_tier` and `back-tier` are one network, whoever says which.
        if made.insert(name.clone()) {
            plan_network(seen, &short, name, file, plan, problems);
        }
    }
    by_short_name
}

fn plan_network(
    seen: &Seen,
    short: &str,
    name: String,
    file: NetworkSpec,
    plan: &mut Plan,
    problems: &mut Vec<String>,
) {
    let file_json = serde_json::to_value(&file).expect("a spec is JSON: string keys, no fallible serializers");
    let applied = file_json.to_string();
    let Some(live) = seen.networks.iter().find(|live| live.metadata.name == name) else {
        plan.changes.push(Change::CreateNetwork { name, spec: file, applied });
        return;
    };
    let object = format!("networks.{short}");
    if let Some(spec) = merged(seen, &object, &**live, &file_json, plan, problems)
        && is_change(&live.metadata, live.spec == spec, &applied)
    {
        plan.changes.push(Change::UpdateNetwork { live: live.clone(), spec, applied });
    }
}

/// What the file says of a service with the names of objects for those of the file, and with the names that the service
/// answers to beside its own. What the file does not say stays unsaid.
fn in_cluster_terms(
    seen: &Seen,
    short: &str,
    name: &str,
    fragment: &ServiceFragment,
    networks: &BTreeMap<String, String>,
) -> Result<ServiceFragment, serde_json::Error> {
    let mut attachments = fragment.to_spec()?.template.networks;
    if attachments.is_empty() {
        return Ok(fragment.clone());
    }
    for attachment in &mut attachments {
        if let Some(object) = networks.get(&attachment.name) {
            attachment.name.clone_from(object);
        }
        for alias in names::service_aliases(seen.bundle.name(), short) {
            if alias != name && !attachment.aliases.contains(&alias) {
                attachment.aliases.push(alias);
            }
        }
    }
    let mut file = fragment.clone();
    let template = file.0.entry("template").or_insert_with(|| Value::Object(serde_json::Map::new()));
    template["networks"] = serde_json::to_value(attachments)?;
    Ok(file)
}

fn plan_service(
    seen: &Seen,
    short: &str,
    name: &str,
    file: ServiceFragment,
    plan: &mut Plan,
    problems: &mut Vec<String>,
) {
    let file_json = Value::Object(file.0.clone());
    let applied = file_json.to_string();
    let Some(live) = seen.services.iter().find(|live| live.metadata.name == name) else {
        match file.to_spec() {
            Ok(spec) => match anothers_data(seen, short, &spec) {
                None => plan.changes.push(Change::CreateService { name: name.to_owned(), spec, applied }),
                Some(problem) => problems.push(problem),
            },
            Err(error) => problems.push(format!("services.{short}: {error}")),
        }
        return;
    };
    if let Some(spec) = merged(seen, short, &**live, &file_json, plan, problems)
        && is_change(&live.metadata, live.spec == spec, &applied)
    {
        match anothers_data(seen, short, &spec) {
            None => plan.changes.push(Change::UpdateService { live: live.clone(), spec, applied }),
            Some(problem) => problems.push(problem),
        }
    }
}

/// Two applications at one volume are no wish that a file can say: both name it alike, and neither knows of the other.
fn anothers_data(seen: &Seen, short: &str, spec: &ServiceSpec) -> Option<String> {
    let wanted: BTreeSet<&str> = spec.named_volumes().collect();
    let own = seen.bundle.name();
    let bundle_of = |service: &Service| service.metadata.labels.get(BUNDLE).filter(|bundle| *bundle != own).cloned();
    seen.services.iter().find_map(|service| {
        let bundle = bundle_of(service)?;
        let volume = service.spec.named_volumes().find(|volume| wanted.contains(volume))?;
        Some(format!(
            "services.{short}: volume {volume} is the data of bundle {bundle} (service {}); name another one in its mounts",
            service.name()
        ))
    })
}

/// The spec that a live object shall have; nothing where it is not ours to say.
fn merged<T: Resource>(
    seen: &Seen,
    object: &str,
    live: &T,
    file: &Value,
    plan: &mut Plan,
    problems: &mut Vec<String>,
) -> Option<T::Spec> {
    let kind = T::kind().singular.as_ref();
    if !live.meta().is_owned_by(&seen.bundle.metadata.uid) {
        problems.push(in_the_way(kind, live.name(), live.meta()));
        return None;
    }
    let base: Option<Value> =
        live.meta().annotations.get(LAST_APPLIED).and_then(|text| serde_json::from_str(text).ok());
    match merge::deploy(live, base.as_ref(), file, &reset_paths(&seen.bundle.spec.reset, object)) {
        Ok(Deployed { spec, overrides }) => {
            plan.status.overrides.extend(overrides.into_iter().map(|difference| Override {
                object: object.to_owned(),
                path: difference.path,
                file: difference.file,
                live: difference.live,
            }));
            Some(spec)
        }
        Err(faults) => {
            problems.extend(faults.iter().map(|fault| format!("{kind} {}: {fault}", live.name())));
            None
        }
    }
}

/// Those of the bundle's `reset` that concern an object, as paths below its spec.
fn reset_paths<'r>(reset: &'r [String], object: &str) -> Vec<&'r str> {
    let below = |path: &'r String| match path.as_str() {
        "*" => Some(""),
        path => match path.strip_prefix(object)? {
            "" => Some(""),
            rest => rest.strip_prefix('.'),
        },
    };
    reset.iter().filter_map(below).collect()
}

/// Whether there is something to write: the spec, or what the next merge goes by.
fn is_change(meta: &ObjectMeta, is_same_spec: bool, applied: &str) -> bool {
    !is_same_spec || meta.annotations.get(LAST_APPLIED).map(String::as_str) != Some(applied)
}

/// The networks of the bundle, from their names in the file to their objects' names.
pub(super) fn network_names(seen: &Seen) -> BTreeMap<String, String> {
    plan_networks(seen, &mut Plan::default(), &mut Vec::new())
}

/// What the bundle made and no longer says.
pub(super) fn dropped(seen: &Seen, services: &BTreeSet<String>, networks: &BTreeMap<String, String>) -> Vec<Change> {
    let mut changes = Vec::new();
    let mine = |meta: &ObjectMeta| meta.is_owned_by(&seen.bundle.metadata.uid) && meta.deletion_timestamp.is_none();
    for live in seen.services.iter().filter(|live| mine(&live.metadata) && !services.contains(&live.metadata.name)) {
        changes.push(Change::RemoveService { live: live.clone() });
    }
    let used: BTreeSet<&String> = networks.values().collect();
    for live in seen.networks.iter().filter(|live| mine(&live.metadata) && !used.contains(&live.metadata.name)) {
        changes.push(Change::RemoveNetwork { live: live.clone() });
    }
    changes
}

fn service_line(seen: &Seen, short: &str, name: &str) -> BundleServiceStatus {
    let live = seen.services.iter().find(|live| live.metadata.name == name);
    let status = live.and_then(|live| live.status.as_ref());
    let current = live.zip(status).is_some_and(|(live, status)| status.observed_generation == live.metadata.generation);
    let ready = status.and_then(|status| status.conditions.get("Ready"));
    let published = status.and_then(|status| status.conditions.get(PUBLISHED));
    let message = match ready {
        Some(ready) if current && !ready.message.is_empty() => ready.message.clone(),
        // It runs, and nobody reaches it.
        Some(_) if current && published.is_some_and(|published| published.status == Truth::False) => {
            published.map(|published| published.message.clone()).unwrap_or_default()
        }
        Some(_) if current => String::new(),
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

fn finish(seen: &Seen, lines: Vec<BundleServiceStatus>, up: bool, plan: &mut Plan, now: Timestamp) {
    let generation = seen.bundle.metadata.generation;
    let status = &mut plan.status;
    status.observed_generation = generation;
    let running = lines.iter().filter(|line| line.desired == line.running).count();
    status.summary = format!("{running}/{}", lines.len());
    status.state = match (plan.problems.is_empty(), up) {
        (false, _) => BundleState::Degraded,
        (true, true) => BundleState::Up,
        (true, false) => BundleState::Converging,
    };
    let why = plan.problems.iter().cloned().chain(
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

fn in_the_way(kind: &str, name: &str, meta: &ObjectMeta) -> String {
    match meta.owner_references.first() {
        Some(owner) => format!("{kind} {name} exists already and belongs to {} {}", owner.kind, owner.name),
        None => format!("{kind} {name} exists already and belongs to nobody's bundle; remove or rename it"),
    }
}
