//! What a table shows of each kind. Kinds without a view of their own show the columns that they declare.

use std::collections::BTreeSet;

use reconciler::api::{Column, ColumnType};
use reconciler::objects::Stored;
use reconciler::{Kind, Resource, Timestamp};
use schemas::kinds::bundle::{Bundle, BundleState};
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::event::{Event, EventType};
use schemas::kinds::node::{Availability, Node, NodeState};
use schemas::kinds::service::{Mode, PUBLISHED, Service, ServiceStatus};
use schemas::kinds::task::{DesiredState, Task, TaskState};
use schemas::kinds::volume::Volume;
use serde_json::Value;

use super::screen::Tone;
use super::table::Cell;
use super::words;

/// How much a table shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breadth {
    pub wide: bool,
    /// Objects of several namespaces stand side by side.
    pub namespaces: bool,
    /// Machines of which nothing is heard: what runs there nobody knows.
    pub lost: BTreeSet<String>,
}

/// The names of a kind's columns.
pub fn header(kind: &Kind, breadth: &Breadth) -> Vec<String> {
    let own: Vec<&str> = match kind.kind.as_ref() {
        "Bundle" => vec!["NAME", "SERVICES", "STATE", "REVISION", "WHY", "AGE"],
        "Service" => vec!["NAME", "MODE", "RUNNING", "IMAGE", "PORTS", "WHY", "AGE"],
        "Task" => vec!["NAME", "SLOT", "NODE", "STATE", "SINCE", "RESTARTS", "WHY"],
        "Node" => vec!["NAME", "ROLE", "STATE", "CPUS", "MEMORY", "VERSION", "AGE"],
        "Event" => vec!["TIME", "OBJECT", "REASON", "COUNT", "NOTE"],
        "Endpoints" => vec!["NAME", "BACKENDS", "VIP", "PORTS", "AGE"],
        "Volume" => vec!["NAME", "NODE", "STATE", "SIZE", "IN USE", "AGE"],
        _ => {
            let shown = kind.columns.iter().filter(|column| breadth.wide || !column.wide);
            std::iter::once("NAME").chain(shown.map(|column| column.name.as_ref())).chain(["AGE"]).collect()
        }
    };
    let more: &[&str] = match (breadth.wide, kind.kind.as_ref()) {
        (true, "Service") => &["REVISION"],
        (true, "Task") => &["SERVICE", "ADDRESSES", "CONTAINER", "REVISION"],
        (true, "Node") => &["ADDRESSES", "OS", "KERNEL", "CONTAINERD", "RUNTIME"],
        (true, "Endpoints") => &["ADDRESSES"],
        (true, "Volume") => &["PATH"],
        _ => &[],
    };
    let namespace = breadth.namespaces.then_some("NAMESPACE");
    namespace.into_iter().chain(own).chain(more.iter().copied()).map(str::to_owned).collect()
}

/// One object's cells under that header.
pub fn row(stored: &Stored, breadth: &Breadth, now: Timestamp) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    if breadth.namespaces {
        cells.push(stored.reference.namespace.clone().into());
    }
    let own = match stored.kind.kind.as_ref() {
        "Bundle" => stored.decode::<Bundle>().map(|bundle| bundle_row(&bundle, now)),
        "Service" => stored.decode::<Service>().map(|service| service_row(&service, breadth, now)),
        "Task" => stored.decode::<Task>().map(|task| task_row(&task, breadth, now)),
        "Node" => stored.decode::<Node>().map(|node| node_row(&node, breadth, now)),
        "Event" => stored.decode::<Event>().map(|event| event_row(&event)),
        "Endpoints" => stored.decode::<Endpoints>().map(|endpoints| endpoints_row(&endpoints, breadth, now)),
        "Volume" => stored.decode::<Volume>().map(|volume| volume_row(&volume, breadth, now)),
        _ => stored.to_value().map(|value| declared_row(&stored.kind, &value, breadth, now)),
    };
    match own {
        Ok(own) => cells.extend(own),
        // Written by a newer version: its name is still worth seeing.
        Err(error) => cells.extend([stored.reference.name.clone().into(), Cell::toned(error.to_string(), Tone::Bad)]),
    }
    cells
}

fn age(meta: &reconciler::ObjectMeta, now: Timestamp) -> Cell {
    words::ago(meta.creation_timestamp, now).into()
}

fn bundle_row(bundle: &Bundle, now: Timestamp) -> Vec<Cell> {
    let status = bundle.status.clone().unwrap_or_default();
    let current = status.observed_generation == bundle.metadata.generation;
    let (state, tone) = match status.state {
        _ if bundle.is_deleting() => ("going", Tone::Busy),
        BundleState::Up if current => ("up", Tone::Good),
        BundleState::Degraded => ("degraded", Tone::Bad),
        BundleState::Up | BundleState::Converging => ("converging", Tone::Busy),
    };
    let why = status.conditions.get("Ready").map(|ready| ready.message.clone()).unwrap_or_default();
    let number = if status.number == 0 { "–".to_owned() } else { status.number.to_string() };
    let summary = if status.summary.is_empty() { format!("0/{}", bundle.spec.services.len()) } else { status.summary };
    let why = if state == "up" { String::new() } else { why };
    vec![
        bundle.name().into(),
        summary.into(),
        Cell::toned(state, tone),
        number.into(),
        why.into(),
        age(&bundle.metadata, now),
    ]
}

/// `2/3`, and how good that is.
pub fn running(service: &Service) -> Cell {
    let status = service.status.clone().unwrap_or_default();
    let desired = match status.observed_generation {
        0 if service.spec.mode == Mode::Replicated => service.spec.replicas(),
        _ => status.desired,
    };
    let tone = match status.running {
        running if running >= desired => Tone::Good,
        0 => Tone::Bad,
        _ => Tone::Busy,
    };
    Cell::toned(format!("{}/{desired}", status.running), tone)
}

pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Replicated => "replicated",
        Mode::Global => "global",
        Mode::ReplicatedJob => "replicated-job",
        Mode::GlobalJob => "global-job",
    }
}

fn endpoints_row(endpoints: &Endpoints, breadth: &Breadth, now: Timestamp) -> Vec<Cell> {
    let spec = &endpoints.spec;
    let (all, ready) = (spec.backends.len(), spec.backends.iter().filter(|backend| backend.ready).count());
    let tone = match ready {
        _ if ready == all && all > 0 => Tone::Good,
        0 => Tone::Bad,
        _ => Tone::Busy,
    };
    let listed = |addresses: Vec<String>| addresses.join(", ");
    let mut cells = vec![
        endpoints.name().into(),
        Cell::toned(format!("{ready}/{all}"), tone),
        listed(spec.networks.iter().filter_map(|network| network.vip.as_ref()).map(ToString::to_string).collect())
            .into(),
        words::ports(&spec.ports).into(),
        age(&endpoints.metadata, now),
    ];
    if breadth.wide {
        let ready = spec.backends.iter().filter(|backend| backend.ready);
        let addresses = ready.flat_map(|backend| &backend.addresses).map(|address| address.address.to_string());
        cells.push(listed(addresses.collect()).into());
    }
    cells
}

/// What is wrong with a service: with its tasks, or else with the way to them.
pub fn trouble(status: &ServiceStatus) -> Option<String> {
    let said = |name: &str| status.conditions.get(name).map(|said| said.message.clone());
    [said("Ready"), said(PUBLISHED)].into_iter().flatten().find(|message| !message.is_empty())
}

fn service_row(service: &Service, breadth: &Breadth, now: Timestamp) -> Vec<Cell> {
    let status = service.status.clone().unwrap_or_default();
    let why = match service.is_deleting() {
        true => "going".to_owned(),
        false => trouble(&status).unwrap_or_default(),
    };
    let ports = if status.ports.is_empty() { &service.spec.endpoint.ports } else { &status.ports };
    let image = &service.spec.template.container.image;
    let mut cells = vec![
        service.name().into(),
        mode(service.spec.mode).into(),
        running(service),
        if breadth.wide { image.clone() } else { words::image(image) }.into(),
        words::ports(ports).into(),
        why.into(),
        age(&service.metadata, now),
    ];
    if breadth.wide {
        cells.push(status.revision.unwrap_or_default().into());
    }
    cells
}

/// The state of a task in a word, as it is meant.
pub fn state(task: &Task) -> Cell {
    let state = task.status.as_ref().map(|status| status.state).unwrap_or_default();
    let tone = match state {
        TaskState::Running => Tone::Good,
        TaskState::Failed | TaskState::Rejected | TaskState::Orphaned => Tone::Bad,
        TaskState::Complete => Tone::Faint,
        _ => Tone::Busy,
    };
    Cell::toned(state.as_str().to_lowercase(), tone)
}

/// The state of a task in a word, and why; nobody knows what runs on a machine that is lost.
pub fn what_is_known(task: &Task, lost: &BTreeSet<String>) -> (Cell, String) {
    let status = task.status.clone().unwrap_or_default();
    match task.spec.node_name.as_ref().filter(|node| lost.contains(*node) && !status.state.is_terminal()) {
        Some(node) => {
            let was = status.state.as_str().to_lowercase();
            (Cell::toned("unknown", Tone::Busy), format!("{node} is lost; it was {was}"))
        }
        None => (state(task), status.message),
    }
}

fn task_row(task: &Task, breadth: &Breadth, now: Timestamp) -> Vec<Cell> {
    let status = task.status.clone().unwrap_or_default();
    let (mut word, why) = what_is_known(task, &breadth.lost);
    if task.spec.desired >= DesiredState::Leaving && !status.state.is_terminal() {
        word = Cell::toned(format!("{} (leaving)", word.text), Tone::Faint);
    }
    let mut cells = vec![
        task.name().into(),
        task.spec.slot.to_string().into(),
        task.spec.node_name.clone().unwrap_or_else(|| "–".into()).into(),
        word,
        words::ago(status.since.or(task.metadata.creation_timestamp), now).into(),
        status.restarts.to_string().into(),
        why.into(),
    ];
    if breadth.wide {
        let addresses: Vec<String> = status.addresses.iter().map(|address| address.address.to_string()).collect();
        cells.push(task.spec.service.clone().into());
        cells.push(addresses.join(", ").into());
        cells.push(status.container_id.unwrap_or_default().into());
        cells.push(task.spec.revision.clone().into());
    }
    cells
}

fn node_row(node: &Node, breadth: &Breadth, now: Timestamp) -> Vec<Cell> {
    let status = node.status.clone().unwrap_or_default();
    let machine = status.machine.unwrap_or_default();
    let (state, tone) = match (status.state, node.spec.availability) {
        (NodeState::Lost, _) => ("lost", Tone::Bad),
        (NodeState::NotReady, _) => ("not ready", Tone::Bad),
        (NodeState::Unknown, _) => ("unknown", Tone::Busy),
        (NodeState::Ready, Availability::Active) => ("ready", Tone::Good),
        (NodeState::Ready, Availability::Pause) => ("ready, paused", Tone::Busy),
        (NodeState::Ready, Availability::Drain) => ("ready, drained", Tone::Busy),
    };
    let role = match node.spec.role {
        schemas::kinds::node::Role::Manager => "manager",
        schemas::kinds::node::Role::Worker => "worker",
    };
    let mut cells = vec![
        node.name().into(),
        role.into(),
        Cell::toned(state, tone),
        machine.resources.cpus.to_string().into(),
        machine.resources.memory.near().into(),
        machine.versions.apply.into(),
        age(&node.metadata, now),
    ];
    if breadth.wide {
        let addresses: Vec<String> = machine.addresses.iter().map(ToString::to_string).collect();
        let versions =
            [machine.versions.os, machine.versions.kernel, machine.versions.containerd, machine.versions.runtime];
        cells.push(addresses.join(", ").into());
        cells.extend(versions.map(Cell::from));
    }
    cells
}

fn event_row(event: &Event) -> Vec<Cell> {
    let spec = &event.spec;
    let time = spec.last_time.or(event.metadata.creation_timestamp);
    let tone = if spec.kind == EventType::Warning { Tone::Bad } else { Tone::Plain };
    vec![
        time.map(clock).unwrap_or_default().into(),
        format!("{}/{}", spec.regarding.kind.to_lowercase(), spec.regarding.name).into(),
        Cell::toned(spec.reason.clone(), tone),
        spec.count.max(1).to_string().into(),
        spec.note.clone().into(),
    ]
}

/// The time of the day, in UTC.
pub fn clock(time: Timestamp) -> String {
    time.truncated().to_string().get(11..19).unwrap_or_default().to_owned()
}

fn volume_row(volume: &Volume, breadth: &Breadth, now: Timestamp) -> Vec<Cell> {
    let status = volume.status.clone().unwrap_or_default();
    let mut cells = vec![
        volume.name().into(),
        volume.spec.node.clone().unwrap_or_else(|| "–".into()).into(),
        format!("{:?}", status.state).to_lowercase().into(),
        status.size.map_or_else(|| "–".to_owned(), |size| words::bytes(size.bytes())).into(),
        words::count(status.in_use as usize, "task").into(),
        age(&volume.metadata, now),
    ];
    if breadth.wide {
        cells.push(status.path.unwrap_or_default().into());
    }
    cells
}

fn declared_row(kind: &Kind, value: &Value, breadth: &Breadth, now: Timestamp) -> Vec<Cell> {
    let text = |pointer: &str| match value.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(", "),
        Some(other) => other.to_string(),
    };
    let created = text("/metadata/creationTimestamp").parse().ok();
    let shown = kind.columns.iter().filter(|column| breadth.wide || !column.wide);
    let cell = |column: &Column| match column.r#type {
        ColumnType::Date => words::ago(text(&column.pointer).parse().ok(), now),
        _ => text(&column.pointer),
    };
    std::iter::once(text("/metadata/name"))
        .chain(shown.map(cell))
        .chain([words::ago(created, now)])
        .map(Cell::from)
        .collect()
}
