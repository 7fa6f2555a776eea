//! `wait`: until bundles and services are up, objects of any kind are gone, or something is true of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use controllers::files::{digest_of_config, digest_of_secret};
use futures::StreamExt;
use reconciler::objects::{Change, Error, Event, PageRequest, Selection, Selector, Start};
use reconciler::seams::Monotonic;
use reconciler::{Kind, ObjectRef};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::config::Config;
use schemas::kinds::labels;
use schemas::kinds::revision::Revision;
use schemas::kinds::secret::Secret;
use schemas::kinds::service::Service;
use schemas::kinds::template::FileKind;
use serde_json::Value;

use super::args::Wait;
use super::converge::{self, Goal, view};
use super::failure::{Exit, Failure};
use super::session::{Session, namespace_of};
use super::{find, words};

/// What is waited for, as kubectl says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// `delete`: there is no such object.
    Gone,
    /// `condition=TYPE[=STATUS]`, in any case; without a status, True.
    Condition { kind: String, status: String },
    /// `jsonpath={.status.running}=3`; without a value, until there is anything.
    Field { path: Path, value: Option<String> },
}

impl std::str::FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "delete" => Ok(Self::Gone),
            Some(("condition", rest)) if !rest.is_empty() => {
                let (kind, status) = rest.split_once('=').unwrap_or((rest, "True"));
                Ok(Self::Condition { kind: kind.to_owned(), status: status.to_owned() })
            }
            Some(("jsonpath", rest)) => {
                let text = rest.trim_matches('\'');
                // The value is behind the last brace: a path may hold a `=` of its own.
                let (path, value) = match text.rfind('}') {
                    Some(end) => (&text[..=end], text[end + 1..].trim_start_matches('\'').strip_prefix('=')),
                    None => text.split_once('=').map_or((text, None), |(path, value)| (path, Some(value))),
                };
                Ok(Self::Field { path: path.parse()?, value: value.map(str::to_owned) })
            }
            _ => Err(format!("{text:?} is none of delete, condition=NAME[=STATUS], jsonpath={{.PATH}}[=VALUE]")),
        }
    }
}

impl Until {
    /// Whether it is so; `None`: there is no such object.
    fn is_so(&self, object: Option<&Value>) -> bool {
        match (self, object) {
            (Self::Gone, object) => object.is_none(),
            (_, None) => false,
            (Self::Condition { kind, status }, Some(object)) => {
                let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
                let of =
                    |condition: &&Value| condition["type"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(kind));
                let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
                conditions.filter(of).any(|condition| {
                    // What is said of an earlier spec is not an answer.
                    let observed = condition["observedGeneration"].as_i64().unwrap_or(generation);
                    let is = condition["status"].as_str().is_some_and(|is| is.eq_ignore_ascii_case(status));
                    is && observed >= generation
                })
            }
            (Self::Field { path, value }, Some(object)) => match (path.of(object), value) {
                (None | Some(Value::Null), _) => false,
                (Some(_), None) => true,
                (Some(Value::String(text)), Some(value)) => text == value,
                (Some(found), Some(value)) => serde_json::from_str::<Value>(value).is_ok_and(|value| value == *found),
            },
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Gone => "to be gone".to_owned(),
            Self::Condition { kind, status } => format!("{kind} to be {status}"),
            Self::Field { path, value: Some(value) } => format!("{path} to be {value}"),
            Self::Field { path, value: None } => format!("{path} to be there"),
        }
    }

    /// What is so instead.
    fn instead(&self, object: Option<&Value>) -> String {
        let none = "there is none".to_owned();
        match (self, object) {
            (_, None) => "there is no such object".to_owned(),
            (Self::Gone, _) => "it is there".to_owned(),
            (Self::Condition { kind, .. }, Some(object)) => {
                let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
                let of =
                    |condition: &&Value| condition["type"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(kind));
                conditions.find(of).map_or(none, |condition| {
                    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
                    format!("it is {}  {}", text("status"), text("message")).trim_end().to_owned()
                })
            }
            (Self::Field { path, .. }, Some(object)) => path.of(object).map_or(none, |found| format!("it is {found}")),
        }
    }
}

/// The part of JSONPath that names one value: `{.status.services[0].name}`, `.metadata.labels['a.b']`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    steps: Vec<Step>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(usize),
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a path to one value, such as {{.status.running}} or {{.spec.ports[0]}}");
        let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        let mut rest = inner.strip_prefix('$').unwrap_or(inner);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(bracket) = rest.strip_prefix('[') {
                let end = bracket.find(']').ok_or_else(bad)?;
                let (inside, behind) = (&bracket[..end], &bracket[end + 1..]);
                let quoted = inside.strip_prefix('\'').and_then(|name| name.strip_suffix('\''));
                let quoted = quoted.or_else(|| inside.strip_prefix('"').and_then(|name| name.strip_suffix('"')));
                steps.push(match quoted {
                    Some(name) => Step::Field(name.to_owned()),
                    None => Step::Index(inside.parse().map_err(|_| bad())?),
                });
                rest = behind;
            } else {
                let behind = rest.strip_prefix('.').ok_or_else(bad)?;
                // A dot behind a backslash is part of the name.
                let (mut name, mut length, mut escaped) = (String::new(), 0, false);
                for c in behind.chars() {
                    match c {
                        '\\' if !escaped => escaped = true,
                        '.' | '[' if !escaped => break,
                        c => {
                            name.push(c);
                            escaped = false;
                        }
                    }
                    length += c.len_utf8();
                }
                if name.is_empty() || name.contains(['*', '?', '@']) {
                    return Err(bad());
                }
                steps.push(Step::Field(name));
                rest = &behind[length..];
            }
        }
        if steps.is_empty() { Err(bad()) } else { Ok(Self { steps, text: inner.to_owned() }) }
    }
}

impl Path {
    fn of<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.steps.iter().try_fold(value, |value, step| match step {
            Step::Field(name) => value.get(name),
            Step::Index(index) => value.get(index),
        })
    }
}

pub async fn run(session: &mut Session, wait: &Wait) -> Result<(), Failure> {
    match &wait.until {
        None if !wait.gone => up(session, wait).await,
        None | Some(Until::Gone) => gone(session, wait).await,
        Some(until) => true_of_all(session, wait, until).await,
    }
}

async fn up(session: &mut Session, wait: &Wait) -> Result<(), Failure> {
    let start = session.seams.monotonic();
    let (mut goals, mut services) = (Vec::new(), BTreeMap::new());
    for text in &wait.objects {
        let (kind, name) = pair(session, text).await?;
        let stored = find::object(session, &kind, &name).await?;
        match kind.kind.as_ref() {
            "Bundle" => {
                let bundle: Bundle = stored.decode()?;
                goals.push(Goal::Bundle { name: stored.reference.name, generation: bundle.metadata.generation });
            }
            "Service" => {
                let service: Service = stored.decode()?;
                services.insert(stored.reference.name, service.metadata.generation);
            }
            _ => {
                let failure = Failure::new(Exit::Usage, format!("a {} is never up", kind.singular));
                return Err(failure
                    .advise("say what to wait for: --for condition=NAME, --for delete, --for jsonpath={.PATH}=VALUE"));
            }
        }
    }
    if !services.is_empty() {
        goals.push(Goal::Services(services));
    }
    for goal in goals {
        has_latest_files(session, &goal, start, wait.timeout).await?;
        let left = wait.timeout.saturating_sub(session.since(start));
        let progress = converge::until_up(session, &goal, left).await?;
        let line = view::done(&goal.title(), &progress, session.since(start));
        session.screen.say(&line)?;
    }
    Ok(())
}

/// Between two looks whether a service has seen that its data is another.
const LOOK: Duration = Duration::from_millis(50);

/// Until the services have seen which data their secrets and configs have now: one that was changed a moment ago is another
/// revision of them, and until then they are up as what they were.
async fn has_latest_files(session: &Session, goal: &Goal, start: Monotonic, timeout: Duration) -> Result<(), Failure> {
    loop {
        let services = match goal {
            Goal::Services(names) => {
                let mut found = Vec::new();
                for name in names.keys() {
                    found.extend(session.client.find::<Service>(&ObjectRef::new(&session.namespace, name)).await?);
                }
                found
            }
            Goal::Bundle { name, .. } => {
                let of_bundle = Selection {
                    namespace: Some(session.namespace.clone()),
                    labels: Selector::equals(labels::BUNDLE, name),
                    ..Selection::of::<Service>()
                };
                let listed = session.client.objects().list(&of_bundle, PageRequest::default()).await?;
                listed.items.iter().filter_map(|stored| stored.decode().ok()).collect()
            }
        };
        let mut is_behind = false;
        for service in &services {
            is_behind |= !sees_latest(session, service).await?;
        }
        // Whatever else is the matter is told by who waits next.
        if !is_behind || session.since(start) >= timeout {
            return Ok(());
        }
        session.seams.sleep(LOOK).await;
    }
}

async fn sees_latest(session: &Session, service: &Service) -> Result<bool, Failure> {
    let Some(revision) = service.status.as_ref().and_then(|status| status.revision.as_ref()) else { return Ok(true) };
    if service.spec.template.container.files().next().is_none() {
        return Ok(true);
    }
    let here = |name: &str| ObjectRef::new(&session.namespace, name);
    let Some(revision) = session.client.find::<Revision>(&here(revision)).await? else { return Ok(false) };
    for file in &revision.spec.files {
        let now = match file.kind {
            FileKind::Secret => {
                session.client.find::<Secret>(&here(&file.name)).await?.map(|secret| digest_of_secret(&secret))
            }
            FileKind::Config => {
                session.client.find::<Config>(&here(&file.name)).await?.map(|config| digest_of_config(&config))
            }
        };
        // One that is missing leaves the service as it was, and a condition of it says so.
        if now.is_some_and(|now| now != file.digest) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn pair(session: &Session, text: &str) -> Result<(Arc<Kind>, String), Failure> {
    match text.split_once('/') {
        Some((word, name)) if !name.is_empty() => {
            let kind = find::any_kind(session, word).await?;
            let name = find::meant(&kind, name);
            Ok((kind, name))
        }
        _ => Err(Failure::new(Exit::Usage, format!("{text:?} is not KIND/NAME, such as bundle/voting-app"))),
    }
}

async fn gone(session: &mut Session, wait: &Wait) -> Result<(), Failure> {
    let mut left = Vec::new();
    for text in &wait.objects {
        let (kind, name) = pair(session, text).await?;
        let reference = ObjectRef::new(namespace_of(&kind, &session.namespace), name);
        match session.client.objects().get(&kind, &reference).await {
            Ok(stored) => left.push(stored),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    converge::until_gone(session, &left, wait.timeout).await?;
    Ok(session.screen.say(&format!("{} gone", if wait.objects.len() == 1 { "it is" } else { "they are" }))?)
}

async fn true_of_all(session: &mut Session, wait: &Wait, until: &Until) -> Result<(), Failure> {
    let start = session.seams.monotonic();
    for text in &wait.objects {
        let (kind, name) = pair(session, text).await?;
        // One that is not there may be misspelt; one that goes meanwhile is told of when the time is over.
        let name = find::object(session, &kind, &name).await?.reference.name;
        let left = wait.timeout.saturating_sub(session.since(start));
        true_of(session, &kind, &name, until, left).await?;
        session.screen.say(&format!("{}/{name}: {}", kind.singular, until.text().replacen(" to be", " is", 1)))?;
    }
    Ok(())
}

/// Waits until it is so of one object.
///
/// # Errors
/// In words, when the time is over first.
pub async fn true_of(
    session: &Session,
    kind: &Arc<Kind>,
    name: &str,
    until: &Until,
    timeout: std::time::Duration,
) -> Result<(), Failure> {
    let mut selection =
        Selection { fields: Selector::equals("metadata.name", name), ..Selection::all_of(kind.clone()) };
    let namespace = namespace_of(kind, &session.namespace);
    selection.namespace = (!namespace.is_empty()).then_some(namespace);
    let mut last: Option<Value> = None;
    let look = async {
        loop {
            let mut stream = session.client.objects().stream(vec![selection.clone()], Start::Now).await?;
            last = None;
            while let Some(event) = stream.next().await {
                match event {
                    Ok(Event::Initial(items)) => {
                        if let Some(stored) = items.first() {
                            last = Some(stored.to_value()?);
                        }
                        continue;
                    }
                    Ok(Event::InitialDone { .. }) => {}
                    Ok(Event::Batch { changes, .. }) => {
                        for change in &changes {
                            last = match change {
                                Change::Put { object, .. } => Some(object.to_value()?),
                                Change::Gone { .. } => None,
                            };
                        }
                    }
                    Err(Error::Expired { .. }) => break,
                    Err(error) => return Err(Failure::from(error)),
                }
                if until.is_so(last.as_ref()) {
                    return Ok(());
                }
            }
        }
    };
    tokio::select! {
        biased;
        done = look => return done,
        () = session.seams.sleep(timeout) => {}
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new(Exit::Interrupted, "left; nothing depends on this command"));
        }
    }
    let message = format!(
        "waited {} in vain for {}/{name}: {}; {}",
        words::fine(timeout),
        kind.singular,
        until.text(),
        until.instead(last.as_ref())
    );
    Err(Failure::new(Exit::NotConverged, message).advise(format!("see: applyctl describe {} {name}", kind.singular)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn until(text: &str) -> Until {
        text.parse().unwrap()
    }

    #[test]
    fn what_kubectl_waits_for_is_waited_for() {
        let object = json!({
            "metadata": {"generation": 2, "labels": {"a.b/c": "x"}},
            "status": {
                "running": 3, "ports": [{"target": 80}], "state": "Up", "nothing": null,
                "conditions": [
                    {"type": "Ready", "status": "True", "observedGeneration": 2},
                    {"type": "Old", "status": "True", "observedGeneration": 1},
                ],
            },
        });
        for (text, expected) in [
            ("condition=ready", true),
            ("condition=Ready=true", true),
            ("condition=Ready=False", false),
            ("condition=Old", false),
            ("condition=Missing", false),
            ("jsonpath={.status.running}=3", true),
            ("jsonpath='{.status.running}'=4", false),
            ("jsonpath=.status.state=Up", true),
            ("jsonpath={.status.ports[0].target}=80", true),
            ("jsonpath={.status.ports[1].target}=80", false),
            (r"jsonpath={.metadata.labels.a\.b/c}=x", true),
            ("jsonpath={.metadata.labels['a.b/c']}=x", true),
            ("jsonpath={.status.state}", true),
            ("jsonpath={.status.nothing}", false),
            ("delete", false),
        ] {
            assert_eq!(until(text).is_so(Some(&object)), expected, "{text}");
        }
        assert!(until("delete").is_so(None) && !until("condition=ready").is_so(None));
    }

    #[test]
    fn what_is_not_understood_is_said_to_be_so() {
        for text in [
            "",
            "gone",
            "condition=",
            "jsonpath=",
            "jsonpath={.a[*]}",
            "jsonpath={a}",
            "jsonpath={.a[x]}",
            "jsonpath={.}",
        ] {
            assert!(text.parse::<Until>().is_err(), "{text}");
        }
    }
}
