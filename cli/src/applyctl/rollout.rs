//! `rollout`: what a service or bundle was before, how far the change of now has come, and the way back.

use std::sync::Arc;

use reconciler::objects::{PageRequest, Selection};
use reconciler::{Kind, ObjectRef, Resource, Timestamp};
use schemas::kinds::bundle::{Bundle, BundleSpec, ServiceFragment};
use schemas::kinds::revision::{Revision, RevisionContent, RevisionUse};
use schemas::kinds::service::Service;
use serde_json::{Value, json};

use super::args::{Patience, Reason, Rollout as Command, Wait};
use super::converge::{self, Goal, view};
use super::failure::{Exit, Failure};
use super::screen::Tone;
use super::session::Session;
use super::table::{Cell, Table};
use super::{deploy, find, scale, wait, words};

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::History { object, revision } => history(session, object, *revision).await,
        Command::Status { object, timeout } => {
            let wait = Wait { objects: vec![object.clone()], gone: false, until: None, timeout: *timeout };
            wait::run(session, &wait).await
        }
        Command::Undo { object, to, reason, patience } => undo(session, object, *to, reason, patience).await,
    }
}

/// What has a history.
enum Subject {
    Service(Box<Service>),
    Bundle(Box<Bundle>),
}

impl Subject {
    fn title(&self) -> String {
        match self {
            Self::Service(service) => format!("service/{}", service.name()),
            Self::Bundle(bundle) => format!("bundle/{}", bundle.name()),
        }
    }

    fn uid(&self) -> &schemas::Uid {
        match self {
            Self::Service(service) => &service.metadata.uid,
            Self::Bundle(bundle) => &bundle.metadata.uid,
        }
    }

    /// Whether this is what it wants now.
    fn wants(&self, content: &RevisionContent) -> bool {
        match (self, content) {
            (Self::Service(service), RevisionContent::Template(template)) => service.spec.template == **template,
            (Self::Bundle(bundle), RevisionContent::Bundle(spec)) => bundle.spec == **spec,
            _ => false,
        }
    }
}

/// A name without a kind is a service's, or else a bundle's.
async fn subject(session: &Session, text: &str) -> Result<Subject, Failure> {
    let (kind, name) = match text.split_once('/') {
        Some((word, name)) => (find::kind(word)?, name),
        None => {
            let reference = ObjectRef::new(&session.namespace, text);
            let is_bundle = session.client.find::<Service>(&reference).await?.is_none()
                && session.client.find::<Bundle>(&reference).await?.is_some();
            (find::kind(if is_bundle { "bundle" } else { "service" })?, text)
        }
    };
    let found = |kind: Arc<Kind>| async move { find::exact(session, &kind, name).await };
    match kind.kind.as_ref() {
        "Service" => Ok(Subject::Service(Box::new(found(kind).await?.decode()?))),
        "Bundle" => Ok(Subject::Bundle(Box::new(found(kind).await?.decode()?))),
        _ => {
            let failure = Failure::new(Exit::Usage, format!("a {} has no history", kind.singular));
            Err(failure.advise("name a service or a bundle: service/shop-web"))
        }
    }
}

/// One time that something became the wanted one.
struct Use {
    used: RevisionUse,
    revision: Revision,
}

/// All uses that are kept, by their numbers.
async fn uses(session: &Session, subject: &Subject) -> Result<Vec<Use>, Failure> {
    let selection = Selection { namespace: Some(session.namespace.clone()), ..Selection::of::<Revision>() };
    let list = session.client.objects().list(&selection, PageRequest::default()).await?;
    let mut uses = Vec::new();
    for stored in &list.items {
        let revision: Revision = stored.decode()?;
        if !revision.meta().is_owned_by(subject.uid()) {
            continue;
        }
        let of = revision.status.clone().unwrap_or_default().uses;
        uses.extend(of.into_iter().map(|used| Use { used, revision: revision.clone() }));
    }
    uses.sort_by_key(|one| one.used.number);
    Ok(uses)
}

async fn history(session: &mut Session, object: &str, number: Option<u64>) -> Result<(), Failure> {
    let subject = subject(session, object).await?;
    let uses = uses(session, &subject).await?;
    if let Some(number) = number {
        let content = &one(&subject, &uses, number)?.revision.spec.content;
        let value = serde_json::to_value(content).unwrap_or_default();
        if !session.print_value(&value)? {
            let text = schemas::source::yaml::to_string(&value)
                .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written as YAML: {error}")))?;
            session.screen.data(&text)?;
        }
        return Ok(());
    }
    let value: Vec<Value> = uses
        .iter()
        .map(|one| json!({"number": one.used.number, "time": one.used.time, "author": one.used.author, "message": one.used.message, "revision": one.revision.name()}))
        .collect();
    if session.print_value(&Value::from(value))? {
        return Ok(());
    }
    if uses.is_empty() {
        return Ok(session.screen.say(&format!("{} has no history yet", subject.title()))?);
    }
    let now = session.now();
    let current = uses.iter().rposition(|one| subject.wants(&one.revision.spec.content));
    let mut table = Table::new(["NUMBER", "AGO", "WHAT", "BY", "WHY"]);
    for (index, one) in uses.iter().enumerate() {
        let mark = if Some(index) == current { " (now)" } else { "" };
        let tone = if Some(index) == current { Tone::Good } else { Tone::Plain };
        table.row(vec![
            Cell::toned(format!("{}{mark}", one.used.number), tone),
            ago(one.used.time, now).into(),
            what(&one.revision.spec.content, index.checked_sub(1).map(|before| &uses[before].revision.spec.content))
                .into(),
            person(&one.used.author).into(),
            one.used.message.clone().into(),
        ]);
    }
    let text = table.print(session.screen.look());
    Ok(session.screen.data(&text)?)
}

fn ago(time: Option<Timestamp>, now: Timestamp) -> String {
    words::ago(time, now)
}

/// `ann`, as people call her who is `user:ann`.
fn person(identity: &str) -> &str {
    identity.strip_prefix("user:").unwrap_or(identity)
}

/// What tells one content from another at a glance: a service's image; of a bundle what became of it since `before`.
fn what(content: &RevisionContent, before: Option<&RevisionContent>) -> String {
    match (content, before) {
        (RevisionContent::Template(template), _) => words::image(&template.container.image),
        (RevisionContent::Bundle(spec), Some(RevisionContent::Bundle(before))) => difference(before, spec),
        (RevisionContent::Bundle(spec), _) => words::count(spec.services.len(), "service"),
    }
}

/// `web example/web:2, worker changed, +cache, -db`.
fn difference(before: &BundleSpec, now: &BundleSpec) -> String {
    let image = |fragment: &ServiceFragment| fragment.to_spec().map(|spec| spec.template.container.image).ok();
    let of_now = now.services.iter().filter_map(|(name, fragment)| match before.services.get(name) {
        None => Some(format!("+{name}")),
        Some(before) if before == fragment => None,
        Some(before) if image(before) != image(fragment) => {
            Some(format!("{name} {}", words::image(&image(fragment).unwrap_or_default())))
        }
        Some(_) => Some(format!("{name} changed")),
    });
    let gone = before.services.keys().filter(|name| !now.services.contains_key(*name)).map(|name| format!("-{name}"));
    let mut parts: Vec<String> = of_now.chain(gone).collect();
    if before.networks != now.networks {
        parts.push("networks changed".into());
    }
    if parts.is_empty() {
        parts.push("how it is deployed".into());
    }
    parts.join(", ")
}

/// The use of this number.
fn one<'a>(subject: &Subject, uses: &'a [Use], number: u64) -> Result<&'a Use, Failure> {
    uses.iter().find(|one| one.used.number == number).ok_or_else(|| {
        let known: Vec<String> = uses.iter().map(|one| one.used.number.to_string()).collect();
        let failure =
            Failure::new(Exit::NotFound, format!("{} has no number {number} in its history", subject.title()));
        match known.as_slice() {
            [] => failure,
            known => failure.advise(format!("there is {}", known.join(", "))),
        }
    })
}

/// Back to what it was, and then wait as after any change.
async fn undo(
    session: &mut Session,
    object: &str,
    to: Option<u64>,
    reason: &Reason,
    patience: &Patience,
) -> Result<(), Failure> {
    let subject = subject(session, object).await?;
    let uses = uses(session, &subject).await?;
    let wanted = match to {
        Some(number) => one(&subject, &uses, number)?,
        None if uses.is_empty() => {
            let failure = Failure::new(Exit::NotFound, format!("{} has no history yet", subject.title()));
            return Err(failure.advise("it begins with the next change"));
        }
        // The last one that is something else than what it is now.
        None => uses.iter().rfind(|one| !subject.wants(&one.revision.spec.content)).ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("{} was never anything else than it is", subject.title()))
        })?,
    };
    let number = wanted.used.number;
    let message = reason.message.clone().unwrap_or_else(|| format!("back to {number}"));
    session.because(&Reason { message: Some(message) });
    if subject.wants(&wanted.revision.spec.content) {
        session.screen.say(&format!("{} is so already; nothing was changed", subject.title()))?;
    }
    match (&subject, &wanted.revision.spec.content) {
        (Subject::Service(service), RevisionContent::Template(template)) => {
            let name = service.name();
            let generations =
                scale::change(session, &[name], |service| service.spec.template = (**template).clone()).await?;
            scale::wait(session, generations, patience).await?;
            if let Some(bundle) = service.metadata.labels.get(schemas::kinds::labels::BUNDLE) {
                let line =
                    format!("set by hand: the next deploy of bundle {bundle} keeps it unless its file changes there");
                session.screen.say(&line)?;
            }
            Ok(())
        }
        (Subject::Bundle(bundle), RevisionContent::Bundle(spec)) => {
            let mut desired = (**bundle).clone();
            desired.spec = (**spec).clone();
            let start = session.seams.monotonic();
            let written = deploy::put(session, Some((**bundle).clone()), &desired).await?;
            let name = bundle.name().to_owned();
            if patience.detach {
                return Ok(session
                    .screen
                    .say(&format!("{name}: changed; see how it goes: applyctl wait bundle/{name}"))?);
            }
            let goal = Goal::Bundle { name: name.clone(), generation: written.metadata.generation };
            let progress = converge::until_up(session, &goal, patience.timeout).await?;
            let line = view::done(&name, &progress, session.since(start));
            Ok(session.screen.say(&line)?)
        }
        _ => {
            Err(Failure::new(Exit::Failed, format!("number {number} holds something else than a {}", subject.title())))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_became_of_a_bundle_is_told_service_by_service() {
        let bundle = |services: serde_json::Value| -> BundleSpec { serde_json::from_value(services).unwrap() };
        let with = |image: &str| json!({"template": {"container": {"image": image}}});
        let more = json!({"replicas": 3, "template": {"container": {"image": "example/job:1"}}});
        let before = bundle(json!({"services": {"db": with("a"), "job": with("example/job:1"), "web": with("web:1")}}));
        let now = bundle(json!({"services": {"cache": with("a"), "job": more, "web": with("web:2")}}));
        assert_eq!(difference(&before, &now), "+cache, job changed, web web:2, -db");
        let reset = BundleSpec { reset: vec!["*".into()], ..now.clone() };
        assert_eq!(difference(&now, &reset), "how it is deployed");
    }
}
