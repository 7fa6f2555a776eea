//! `describe`: an object for people: what is wanted, what is so, why it is not more, what happened.

use std::collections::BTreeSet;
use std::sync::Arc;

use reconciler::objects::{PageRequest, Selection, Selector, Stored};
use reconciler::{Conditions, Kind, ObjectRef, Resource, Timestamp, Truth};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::event::Event;
use schemas::kinds::labels;
use schemas::kinds::service::Service;
use schemas::kinds::task::{DesiredState, Task};
use serde_json::Value;

use super::args::Describe;
use super::converge::Goal;
use super::converge::progress::{Progress, look};
use super::converge::world::World;
use super::failure::{Exit, Failure};
use super::rows;
use super::screen::Tone;
use super::session::Session;
use super::table::{Cell, Look, Table};
use super::{find, get, words};

/// The last so many events of an object are shown.
const EVENTS: usize = 15;

pub async fn run(session: &mut Session, describe: &Describe) -> Result<(), Failure> {
    let (kind, names) = find::kind_and_names(session, &describe.kind, &describe.names).await?;
    if names.is_empty() {
        let failure = Failure::new(Exit::Usage, format!("which {}?", kind.singular));
        return Err(failure.advise(format!("see them all: applyctl get {}", kind.plural)));
    }
    let mut pages = Vec::new();
    for name in &names {
        let stored = find::object(session, &kind, name).await?;
        pages.push(page(session, &stored).await?);
    }
    Ok(session.screen.data(&pages.join("\n"))?)
}

async fn page(session: &Session, stored: &Stored) -> Result<String, Failure> {
    let (now, color) = (session.now(), session.screen.color);
    let value = stored.to_value()?;
    let mut page = Page { text: String::new(), color };
    page.head(stored, &value, now);
    match stored.kind.kind.as_ref() {
        "Bundle" => bundle(session, &mut page, &stored.decode()?, now).await?,
        "Service" => service(session, &mut page, &stored.decode()?, now).await?,
        "Task" => task(&mut page, &stored.decode()?, now),
        "Node" => {
            let tasks =
                tasks(session, Selector::default(), Selector::equals("spec.nodeName", &stored.reference.name), true)
                    .await?;
            page.section("spec", value.get("spec"));
            page.section("status", value.get("status").map(without_conditions).as_ref());
            page.tasks(&tasks, now);
        }
        _ => {
            page.section("spec", value.get("spec"));
            page.section("status", value.get("status").map(without_conditions).as_ref());
        }
    }
    let conditions = value.pointer("/status/conditions").cloned().unwrap_or_default();
    page.conditions(&serde_json::from_value(conditions).unwrap_or_default(), now);
    page.events(&events(session, &stored.kind, &stored.reference).await?, now);
    Ok(page.text)
}

fn without_conditions(status: &Value) -> Value {
    let mut status = status.clone();
    if let Some(fields) = status.as_object_mut() {
        fields.remove("conditions");
        fields.remove("observedGeneration");
    }
    status
}

/// Tasks, and the machines that are lost: what these run nobody knows.
async fn tasks(
    session: &Session,
    labels: Selector,
    fields: Selector,
    everywhere: bool,
) -> Result<(Vec<Stored>, BTreeSet<String>), Failure> {
    let selection = Selection {
        namespace: (!everywhere).then(|| session.namespace.clone()),
        labels,
        fields,
        ..Selection::of::<Task>()
    };
    let listed = session.client.objects().list(&selection, PageRequest::default()).await?.items;
    Ok((listed, get::lost(session).await))
}

/// The last events about an object, oldest first.
pub async fn events(session: &Session, kind: &Kind, reference: &ObjectRef) -> Result<Vec<Event>, Failure> {
    let mut selection = Selection::of::<Event>();
    selection.fields = Selector::equals("spec.regarding.name", &reference.name)
        .and(Selector::equals("spec.regarding.kind", kind.kind.as_ref()));
    let list = match session.client.objects().list(&selection, PageRequest::default()).await {
        Ok(list) => list,
        // A cluster that keeps none.
        Err(reconciler::objects::Error::UnknownKind { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut events: Vec<Event> = list.items.iter().filter_map(|stored| stored.decode().ok()).collect();
    events.retain(|event: &Event| event.spec.regarding.namespace == reference.namespace);
    events.sort_by_key(|event| event.spec.last_time.or(event.metadata.creation_timestamp));
    Ok(events.split_off(events.len().saturating_sub(EVENTS)))
}

/// How far it has come, by the rules by which `deploy` gives up or not: it says now what was said then.
async fn progress(session: &Session, goal: &Goal) -> Result<Progress, Failure> {
    let mut world = World::default();
    for selection in World::selections(goal, &session.namespace) {
        let list = session.client.objects().list(&selection, PageRequest::default()).await?;
        list.items.iter().for_each(|stored| world.put(stored));
    }
    Ok(look(&world, goal, session.now()))
}

async fn bundle(session: &Session, page: &mut Page, bundle: &Bundle, now: Timestamp) -> Result<(), Failure> {
    let status = bundle.status.clone().unwrap_or_default();
    let goal = Goal::Bundle { name: bundle.name().to_owned(), generation: bundle.metadata.generation };
    let progress = progress(session, &goal).await?;
    page.field("State", &format!("{:?}", status.state).to_lowercase());
    page.field("Services", &status.summary);
    let said = |key: &str| bundle.metadata.annotations.get(key).map(String::as_str).unwrap_or_default();
    let (author, message) = (said(labels::AUTHOR).trim_start_matches("user:"), said(labels::MESSAGE));
    let by = if author.is_empty() { String::new() } else { format!(", by {author}") };
    let why = if message.is_empty() { String::new() } else { format!(": {message}") };
    if status.number > 0 {
        page.field("Revision", &format!("{}{by}{why}", status.number));
    }
    page.title("Services");
    let mut table = Table::new(["  NAME", "SERVICE", "RUNNING", "WHY"]);
    for line in &progress.lines {
        let tone = if line.up { Tone::Good } else { Tone::Busy };
        table.row(vec![
            format!("  {}", line.name).into(),
            line.service.clone().into(),
            Cell::toned(format!("{}/{}", line.running, line.desired), tone),
            line.why().into(),
        ]);
    }
    page.table(table);
    if !status.overrides.is_empty() {
        page.title("Set by hand, unlike the file (deploy --reset takes the file's word)");
        let mut table = Table::new(["  WHERE", "FILE", "LIVE"]);
        let plain = |value: &Option<Value>| value.as_ref().map_or_else(|| "–".to_owned(), Value::to_string);
        for one in &status.overrides {
            table.row(vec![
                format!("  {}.{}", one.object, one.path).into(),
                plain(&one.file).into(),
                plain(&one.live).into(),
            ]);
        }
        page.table(table);
    }
    let selector = Selector::equals(labels::BUNDLE, bundle.name());
    page.tasks(&tasks(session, selector, Selector::default(), false).await?, now);
    Ok(())
}

async fn service(session: &Session, page: &mut Page, service: &Service, now: Timestamp) -> Result<(), Failure> {
    let status = service.status.clone().unwrap_or_default();
    let container = &service.spec.template.container;
    page.field("Image", &container.image);
    page.field("Mode", rows::mode(service.spec.mode));
    page.field("Running", &rows::running(service).text);
    let goal = Goal::Services([(service.name().to_owned(), service.metadata.generation)].into());
    for line in &progress(session, &goal).await?.lines {
        page.field("Why", line.why());
    }
    let ports = if status.ports.is_empty() { &service.spec.endpoint.ports } else { &status.ports };
    page.field("Ports", &words::ports(ports));
    let networks: Vec<&str> = service.spec.template.networks.iter().map(|network| network.name.as_str()).collect();
    page.field("Networks", &networks.join(", "));
    page.field("Revision", status.revision.as_deref().unwrap_or_default());
    if let Some(update) = &status.update {
        page.field("Update", format!("{:?}  {}", update.state, update.message).trim_end());
    }
    let spec = serde_json::to_value(&service.spec).unwrap_or_default();
    page.section("spec", Some(&spec));
    let selector = Selector::equals(labels::SERVICE, service.name());
    page.tasks(&tasks(session, selector, Selector::default(), false).await?, now);
    Ok(())
}

fn task(page: &mut Page, task: &Task, now: Timestamp) {
    let status = task.status.clone().unwrap_or_default();
    page.field("Service", &task.spec.service);
    page.field("Slot", &task.spec.slot.to_string());
    page.field("Node", task.spec.node_name.as_deref().unwrap_or("–"));
    page.field("Desired", &format!("{:?}", task.spec.desired).to_lowercase());
    let since = words::ago(status.since, now);
    page.field("State", &format!("{}  since {since}", status.state.as_str().to_lowercase()));
    page.field("Why", &status.message);
    page.field("Revision", &task.spec.revision);
    page.field("Container", status.container_id.as_deref().unwrap_or_default());
    page.field("Image digest", status.image_digest.as_deref().unwrap_or_default());
    let addresses: Vec<String> =
        status.addresses.iter().map(|address| format!("{} ({})", address.address, address.network)).collect();
    page.field("Addresses", &addresses.join(", "));
    if let Some(health) = &status.health {
        let word = if health.healthy { "healthy" } else { "not healthy" };
        page.field(
            "Health",
            format!("{word}, {} failed in a row  {}", health.failures, health.output.trim()).trim_end(),
        );
    }
    if let Some(at) = status.next_attempt_at {
        page.field("Next start in", &words::rough(at.since(now)));
    }
    if !status.attempts.is_empty() {
        page.title("Attempts");
        let mut table = Table::new(["  NO", "STARTED", "RAN FOR", "EXIT", "WHY"]);
        for attempt in &status.attempts {
            let ran = attempt.started_at.map(|started| attempt.finished_at.unwrap_or(now).since(started));
            let why = [attempt.reason.as_str(), attempt.message.as_str()].join("  ");
            table.row(vec![
                format!("  {}", attempt.number).into(),
                attempt
                    .started_at
                    .map_or_else(|| "–".to_owned(), |at| format!("{} ago", words::ago(Some(at), now)))
                    .into(),
                ran.map_or_else(|| "–".to_owned(), words::fine).into(),
                attempt.exit_code.map_or_else(|| "–".to_owned(), |code| code.to_string()).into(),
                why.trim().to_owned().into(),
            ]);
        }
        page.table(table);
    }
}

struct Page {
    text: String,
    color: bool,
}

impl Page {
    fn head(&mut self, stored: &Stored, value: &Value, now: Timestamp) {
        let created = value["metadata"]["creationTimestamp"].as_str().and_then(|text| text.parse().ok());
        self.field(&stored.kind.kind, &stored.reference.name);
        self.field("Namespace", &stored.reference.namespace);
        self.field("Age", &words::ago(created, now));
        if let Some(owner) = value["metadata"]["ownerReferences"].as_array().and_then(|owners| owners.first()) {
            let text = |field: &str| owner[field].as_str().unwrap_or_default().to_owned();
            self.field("Belongs to", &format!("{} {}", text("kind").to_lowercase(), text("name")));
        }
        let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
        let labels: Vec<String> =
            labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        self.field("Labels", &labels.join(" "));
        if value["metadata"]["deletionTimestamp"].is_string() {
            let finalizers = value["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let waits: Vec<&str> = finalizers.collect();
            self.field("Going", &format!("waits for {}", waits.join(", ")));
        }
    }

    /// Nothing is said of what is empty.
    fn field(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.text.push_str(&format!("{:14}{value}\n", format!("{name}:")));
        }
    }

    fn title(&mut self, title: &str) {
        self.text.push_str(&format!("{title}:\n"));
    }

    fn table(&mut self, mut table: Table) {
        if table.is_empty() {
            self.text.push_str("  none\n");
        } else {
            self.text.push_str(&table.print(Look { color: self.color, columns: None }));
        }
    }

    fn section(&mut self, title: &str, value: Option<&Value>) {
        let Some(value) = value.filter(|value| value.as_object().is_none_or(|fields| !fields.is_empty())) else {
            return;
        };
        let Ok(yaml) = schemas::source::yaml::to_string(value) else { return };
        let capital: String = title.chars().take(1).flat_map(char::to_uppercase).chain(title.chars().skip(1)).collect();
        self.title(&capital);
        yaml.lines().for_each(|line| self.text.push_str(&format!("  {line}\n")));
    }

    fn tasks(&mut self, (tasks, lost): &(Vec<Stored>, BTreeSet<String>), now: Timestamp) {
        self.title("Tasks");
        let mut table = Table::new(["  NAME", "SLOT", "NODE", "STATE", "SINCE", "WHY"]);
        let mut tasks: Vec<Task> = tasks.iter().filter_map(|stored| stored.decode().ok()).collect();
        // The living first, then what became of those before them.
        tasks.sort_by_key(|task| {
            (
                task.spec.desired > DesiredState::Running,
                task.spec.service.clone(),
                task.spec.slot.clone(),
                task.metadata.creation_timestamp,
            )
        });
        for task in &tasks {
            let status = task.status.clone().unwrap_or_default();
            let (word, why) = rows::what_is_known(task, lost);
            table.row(vec![
                format!("  {}", task.name()).into(),
                task.spec.slot.to_string().into(),
                task.spec.node_name.clone().unwrap_or_else(|| "–".into()).into(),
                word,
                words::ago(status.since.or(task.metadata.creation_timestamp), now).into(),
                why.into(),
            ]);
        }
        self.table(table);
    }

    fn conditions(&mut self, conditions: &Conditions, now: Timestamp) {
        if conditions.is_empty() {
            return;
        }
        self.title("Conditions");
        let mut table = Table::new(["  TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"]);
        for condition in conditions.iter() {
            let tone = if condition.status == Truth::True { Tone::Good } else { Tone::Busy };
            table.row(vec![
                format!("  {}", condition.r#type).into(),
                Cell::toned(format!("{:?}", condition.status), tone),
                words::ago(condition.last_transition_time, now).into(),
                condition.reason.clone().into(),
                condition.message.clone().into(),
            ]);
        }
        self.table(table);
    }

    fn events(&mut self, events: &[Event], now: Timestamp) {
        if events.is_empty() {
            return;
        }
        self.title("Events");
        let mut table = Table::new(["  AGO", "REASON", "COUNT", "NOTE"]);
        for event in events {
            let time = event.spec.last_time.or(event.metadata.creation_timestamp);
            table.row(vec![
                format!("  {}", words::ago(time, now)).into(),
                event.spec.reason.clone().into(),
                event.spec.count.max(1).to_string().into(),
                event.spec.note.clone().into(),
            ]);
        }
        self.table(table);
    }
}

/// One object for programs, whole: `inspect`.
pub async fn inspect(session: &mut Session, kind: &Arc<Kind>, names: &[String]) -> Result<(), Failure> {
    let mut values = Vec::new();
    for name in names {
        values.push(find::object(session, kind, name).await?.to_value()?);
    }
    let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
    if !session.print_value(&value)? {
        let text = super::session::pretty(&value)?;
        session.screen.data(&format!("{text}\n"))?;
    }
    Ok(())
}
