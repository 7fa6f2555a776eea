//! `get`: objects as tables, JSON, YAML or names; once, or on and on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use reconciler::objects::{Change, Error, Event, PageRequest, Selection, Selector, Start, Stored};
use reconciler::{Kind, ObjectRef};
use schemas::kinds::node::Node;
use serde_json::{Value, json};

use super::args::{Format, Get, Which};
use super::converge::passes;
use super::failure::{Exit, Failure};
use super::find;
use super::rows::{self, Breadth};
use super::session::{Session, namespace_of};
use super::table::{Look, Table};

pub async fn run(session: &mut Session, get: &Get) -> Result<(), Failure> {
    let kinds: Vec<&str> = get.kind.split(',').filter(|word| !word.is_empty()).collect();
    let (several, watched) = (kinds.len() > 1, get.watch);
    match kinds.as_slice() {
        [] => Err(Failure::new(Exit::Usage, "name a kind, such as services")),
        [_, _, ..] if watched => Err(Failure::new(Exit::Usage, "one kind can be watched at a time")),
        [_, _, ..] if !get.names.is_empty() => {
            Err(Failure::new(Exit::Usage, "names of several kinds are given as KIND/NAME: get service/web task/web-1"))
        }
        words => {
            let mut found = Vec::new();
            for word in words {
                let (kind, names) = find::kind_and_names(session, word, &get.names).await?;
                if watched {
                    return watch(session, kind, &names, &get.which).await;
                }
                let items = items(session, &kind, &names, &get.which).await?;
                found.push((kind, items));
            }
            print(session, found, get.which.all_namespaces, several || get.names.is_empty() && !get.kind.contains('/'))
                .await
        }
    }
}

/// All of a kind that are selected, as `service ls` and its like show them.
pub async fn list(session: &mut Session, word: &str, which: &Which) -> Result<(), Failure> {
    let kind = find::kind(word)?;
    let items = items(session, &kind, &[], which).await?;
    print(session, vec![(kind, items)], which.all_namespaces, true).await
}

/// Selected objects of a kind.
pub fn selection(session: &Session, kind: &Arc<Kind>, which: &Which) -> Result<Selection, Failure> {
    let parse = |text: &str| text.parse::<Selector>().map_err(|error| Failure::new(Exit::Usage, error.to_string()));
    let namespace = namespace_of(kind, &session.namespace);
    Ok(Selection {
        kind: kind.clone(),
        namespace: (!which.all_namespaces && !namespace.is_empty()).then_some(namespace),
        labels: parse(&which.selector)?,
        fields: parse(&which.field_selector)?,
    })
}

async fn items(session: &Session, kind: &Arc<Kind>, names: &[String], which: &Which) -> Result<Vec<Stored>, Failure> {
    if names.is_empty() {
        let selection = selection(session, kind, which)?;
        let mut items = session.client.objects().list(&selection, PageRequest::default()).await?.items;
        if kind.kind == "Event" {
            items.sort_by_key(event_time);
        }
        return Ok(items);
    }
    let mut items = Vec::new();
    for name in names {
        items.push(find::object(session, kind, name).await?);
    }
    Ok(items)
}

/// Machines of which nothing is heard. Whoever may not know of machines sees tasks as they were last told of.
pub async fn lost(session: &Session) -> BTreeSet<String> {
    let nodes = session.client.list::<Node>(None).await.unwrap_or_default();
    nodes.into_iter().filter(Node::is_lost).map(|node| node.metadata.name).collect()
}

fn event_time(stored: &Stored) -> Option<schemas::Timestamp> {
    stored
        .decode::<schemas::kinds::Event>()
        .ok()
        .and_then(|event| event.spec.last_time.or(event.metadata.creation_timestamp))
}

/// Objects in the format that is wanted.
pub async fn print(
    session: &mut Session,
    found: Vec<(Arc<Kind>, Vec<Stored>)>,
    namespaces: bool,
    as_list: bool,
) -> Result<(), Failure> {
    let (now, look) = (session.now(), look(session));
    match session.format {
        Format::Json | Format::Yaml => {
            let mut values = Vec::new();
            for stored in found.iter().flat_map(|(_, items)| items) {
                values.push(stored.to_value()?);
            }
            let value = match (as_list, values.len()) {
                (false, 1) => values.remove(0),
                _ => json!({"apiVersion": "v1", "kind": "List", "items": values}),
            };
            session.print_value(&value)?;
        }
        Format::Name => {
            let mut text = String::new();
            for (kind, items) in &found {
                items
                    .iter()
                    .for_each(|stored| text.push_str(&format!("{}/{}\n", kind.singular, stored.reference.name)));
            }
            session.screen.data(&text)?;
        }
        Format::Table | Format::Wide => {
            let lost = match found.iter().any(|(kind, items)| kind.kind == "Task" && !items.is_empty()) {
                true => lost(session).await,
                false => BTreeSet::new(),
            };
            let breadth = Breadth { wide: session.format == Format::Wide, namespaces, lost };
            let mut blocks = Vec::new();
            for (kind, items) in found.iter().filter(|(_, items)| !items.is_empty()) {
                let mut table = Table::new(rows::header(kind, &breadth));
                items.iter().for_each(|stored| table.row(rows::row(stored, &breadth, now)));
                blocks.push(table.print(look));
            }
            session.screen.data(&blocks.join("\n"))?;
            for (kind, _) in found.iter().filter(|(_, items)| items.is_empty()) {
                session.screen.say(&format!("there are no {}{}", kind.plural, place(session, kind, namespaces)))?;
                if kind.kind == "Namespace" {
                    session
                        .screen
                        .say("  none has to be made: -n NAME is enough; those in use: applyctl get services -A")?;
                }
            }
        }
    }
    Ok(())
}

/// Whoever asks for everything gets it, wherever lines end.
fn look(session: &Session) -> Look {
    let columns = session.screen.columns.filter(|_| session.format == Format::Table);
    Look { columns, ..session.screen.look() }
}

fn place(session: &Session, kind: &Kind, all: bool) -> String {
    match kind.scope {
        reconciler::api::Scope::Namespaced if !all => format!(" in namespace {}", session.namespace),
        _ => String::new(),
    }
}

/// Between two tries to reach a daemon that went away.
const AGAIN: Duration = Duration::from_millis(500);
/// One that answers and then does not break off is back.
const QUIET: Duration = Duration::from_secs(1);

/// Shows what stands, then a row for each change, until ^C. Where the connection breaks off it goes on after what was shown
/// last; where the server cannot tell what came after that, what changed meanwhile is found by comparing.
async fn watch(session: &mut Session, kind: Arc<Kind>, names: &[String], which: &Which) -> Result<(), Failure> {
    let mut selection = selection(session, &kind, which)?;
    if !names.is_empty() {
        let by_name = format!("metadata.name in ({})", names.join(","));
        let by_name = by_name.parse::<Selector>().map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        selection.fields = selection.fields.and(by_name);
    }
    let breadth =
        Breadth { wide: session.format == Format::Wide, namespaces: which.all_namespaces, ..Breadth::default() };
    let mut shown = Shown {
        table: Table::new(rows::header(&kind, &breadth)),
        breadth,
        known: BTreeMap::new(),
        begun: false,
        at: Start::Now,
        away: false,
    };
    loop {
        match follow(session, &selection, &mut shown).await? {
            Some(Error::Expired { .. }) => {
                shown.at = Start::Now;
                continue;
            }
            Some(error) if !(shown.begun && passes(&error)) => return Err(error.into()),
            _ => {}
        }
        if !shown.away {
            shown.away = true;
            session.screen.say("applyd is away; waiting for it (^C to leave)")?;
        }
        session.seams.sleep(AGAIN).await;
    }
}

/// Shows what one stream tells; answers with what it ended with, if it gave a reason.
async fn follow(session: &mut Session, selection: &Selection, shown: &mut Shown) -> Result<Option<Error>, Failure> {
    let mut stream = match session.client.objects().stream(vec![selection.clone()], shown.at.clone()).await {
        Ok(stream) => stream,
        Err(error) => return Ok(Some(error)),
    };
    let mut standing = BTreeMap::new();
    loop {
        let event = tokio::select! {
            biased;
            event = stream.next() => event,
            // A daemon that has nothing to tell is there all the same.
            () = session.seams.sleep(QUIET), if shown.away => {
                shown.is_back(session)?;
                continue;
            }
        };
        let Some(event) = event else { return Ok(None) };
        match event {
            Ok(Event::Initial(items)) => {
                standing.extend(items.into_iter().map(|stored| (stored.reference.clone(), stored)));
            }
            Ok(Event::InitialDone { epoch, resource_version }) => {
                shown.is_back(session)?;
                shown.reset(session, std::mem::take(&mut standing))?;
                shown.at = Start::After { epoch, resource_version };
            }
            Ok(Event::Batch { epoch, resource_version, changes }) => {
                shown.is_back(session)?;
                for change in changes {
                    match change {
                        Change::Put { object, .. } => shown.put(session, object)?,
                        Change::Gone { reference, last, .. } => shown.gone(session, &reference, last)?,
                    }
                }
                shown.at = Start::After { epoch, resource_version };
            }
            Err(error) => return Ok(Some(error)),
        }
    }
}

struct Shown {
    table: Table,
    breadth: Breadth,
    known: BTreeMap<ObjectRef, Stored>,
    /// What stood at the beginning has been shown.
    begun: bool,
    /// What is shown is as of this point.
    at: Start,
    /// It was said that nobody answers.
    away: bool,
}

impl Shown {
    fn is_back(&mut self, session: &mut Session) -> Result<(), Failure> {
        match std::mem::take(&mut self.away) {
            true => Ok(session.screen.say("applyd is back")?),
            false => Ok(()),
        }
    }

    fn reset(&mut self, session: &mut Session, standing: BTreeMap<ObjectRef, Stored>) -> Result<(), Failure> {
        let gone: Vec<ObjectRef> = self.known.keys().filter(|known| !standing.contains_key(known)).cloned().collect();
        for reference in gone {
            self.gone(session, &reference, None)?;
        }
        if !std::mem::replace(&mut self.begun, true) && matches!(session.format, Format::Table | Format::Wide) {
            for stored in standing.values() {
                self.table.row(rows::row(stored, &self.breadth, session.now()));
            }
            let text = self.table.print(look(session));
            self.known = standing;
            session.screen.data(&text)?;
            return Ok(());
        }
        for stored in standing.into_values() {
            if self.known.get(&stored.reference).is_none_or(|known| known.resource_version != stored.resource_version) {
                self.put(session, stored)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, session: &mut Session, stored: Stored) -> Result<(), Failure> {
        let word = if self.known.contains_key(&stored.reference) { "MODIFIED" } else { "ADDED" };
        self.show(session, word, &stored)?;
        self.known.insert(stored.reference.clone(), stored);
        Ok(())
    }

    fn gone(&mut self, session: &mut Session, reference: &ObjectRef, last: Option<Stored>) -> Result<(), Failure> {
        match self.known.remove(reference).or(last) {
            Some(stored) => self.show(session, "DELETED", &stored),
            None => Ok(()),
        }
    }

    fn show(&mut self, session: &mut Session, word: &str, stored: &Stored) -> Result<(), Failure> {
        let text = match session.format {
            Format::Json => {
                let event: Value = json!({"type": word, "object": stored.to_value()?});
                format!("{event}\n")
            }
            Format::Yaml => {
                let event = json!({"type": word, "object": stored.to_value()?});
                let text = schemas::source::yaml::to_string(&event)
                    .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written as YAML: {error}")))?;
                format!("---\n{text}")
            }
            Format::Name => format!("{}/{}\n", stored.kind.singular, stored.reference.name),
            Format::Table | Format::Wide => {
                let mut cells = rows::row(stored, &self.breadth, session.now());
                if word == "DELETED" {
                    cells.push("(gone)".into());
                }
                self.table.row(cells);
                self.table.print_rows(look(session))
            }
        };
        Ok(session.screen.data(&text)?)
    }
}
