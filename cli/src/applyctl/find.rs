//! From what was typed to what is meant: kinds by any of their names, objects by theirs or the beginning of it.

use std::sync::Arc;

use reconciler::objects::{PageRequest, Selection, Stored};
use reconciler::{Kind, ObjectRef};
use schemas::advice::nearest;
use schemas::kinds;
use schemas::kinds::service::Service;
use schemas::kinds::task::Task;

use super::failure::{Exit, Failure};
use super::served;
use super::session::{Session, namespace_of};

/// The kind of ours that a word means.
pub fn kind(word: &str) -> Result<Arc<Kind>, Failure> {
    match kinds::find(word) {
        Some(registered) => Ok(Arc::new((registered.kind)().clone())),
        None => {
            let all = || kinds::ALL.iter().map(|registered| (registered.kind)());
            let names = all().flat_map(|kind| {
                [kind.plural.as_ref(), kind.singular.as_ref()]
                    .into_iter()
                    .chain(kind.short_names.iter().map(AsRef::as_ref))
            });
            let failure = Failure::new(Exit::NotFound, format!("{word:?} is not a kind"));
            Err(match nearest(word, names) {
                Some(near) => failure.advise(format!("did you mean {near}?")),
                None => {
                    let all: Vec<&str> = all().map(|kind| kind.plural.as_ref()).collect();
                    failure.advise(format!("there are {}", all.join(", ")))
                }
            })
        }
    }
}

/// The kind that somebody typed: one of ours, or one that the cluster serves beside them.
pub async fn any_kind(session: &Session, word: &str) -> Result<Arc<Kind>, Failure> {
    let unknown = match kind(word) {
        Ok(kind) => return Ok(kind),
        Err(unknown) => unknown,
    };
    let others = served::others(session).await?;
    let named: Vec<&Arc<Kind>> = others.iter().filter(|kind| served::answers_to(kind, word)).collect();
    match named.as_slice() {
        [only] => Ok((*only).clone()),
        [] if unknown.advice.as_ref().is_some_and(|advice| advice.starts_with("did you mean")) => Err(unknown),
        [] => Err(match nearest(word, others.iter().flat_map(|kind| served::names(kind))) {
            Some(near) => unknown.advise(format!("did you mean {near}?")),
            None => unknown,
        }),
        several => {
            let all: Vec<String> = several.iter().map(|kind| kind.qualified()).collect();
            Err(Failure::new(Exit::Usage, format!("{word:?} means several kinds"))
                .advise(format!("say which: {}", all.join(", "))))
        }
    }
}

/// `service/web`, or a kind and names apart.
pub async fn kind_and_names(
    session: &Session,
    word: &str,
    names: &[String],
) -> Result<(Arc<Kind>, Vec<String>), Failure> {
    let (word, names) = split(word, names);
    Ok((any_kind(session, word).await?, names))
}

fn split<'a>(word: &'a str, names: &[String]) -> (&'a str, Vec<String>) {
    let Some((word, first)) = word.split_once('/') else { return (word, names.to_vec()) };
    let name = |text: &String| text.split_once('/').map_or_else(|| text.clone(), |(_, name)| name.to_owned());
    (word, std::iter::once(first.to_owned()).chain(names.iter().map(name)).collect())
}

/// The object that is meant to be looked at: by its name, or by the beginning of it while that is unique.
pub async fn object(session: &Session, kind: &Arc<Kind>, name: &str) -> Result<Stored, Failure> {
    match begun(session, kind, name).await? {
        Some(found) => Ok(found),
        None => Err(missing(session, &[kind], &meant(kind, name)).await?),
    }
}

/// As [`object`]; `None`: nothing is called so or begins so.
async fn begun(session: &Session, kind: &Arc<Kind>, name: &str) -> Result<Option<Stored>, Failure> {
    let meant = meant(kind, name);
    let name = meant.as_str();
    let reference = ObjectRef::new(namespace_of(kind, &session.namespace), name);
    match session.client.objects().get(kind, &reference).await {
        Ok(stored) => return Ok(Some(stored)),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let all = in_namespace(session, kind).await?;
    let mut begins: Vec<&Stored> = all.iter().filter(|stored| stored.reference.name.starts_with(name)).collect();
    // Who shortens a task's name means one that lives, where there is one.
    if begins.iter().any(|stored| !has_ended(stored)) {
        begins.retain(|stored| !has_ended(stored));
    }
    match begins.as_slice() {
        [only] if !name.is_empty() => Ok(Some((*only).clone())),
        [] | [_] => Ok(None),
        several => {
            let names: Vec<&str> = several.iter().map(|stored| stored.reference.name.as_str()).take(10).collect();
            let failure = Failure::new(Exit::NotFound, format!("several {} begin with {name:?}", kind.plural));
            Err(failure.advise(format!("say which: {}", names.join(", "))))
        }
    }
}

/// The object of exactly this name: for whatever changes or removes it.
pub async fn exact(session: &Session, kind: &Arc<Kind>, name: &str) -> Result<Stored, Failure> {
    let meant = meant(kind, name);
    let name = meant.as_str();
    let reference = ObjectRef::new(namespace_of(kind, &session.namespace), name);
    match session.client.objects().get(kind, &reference).await {
        Ok(stored) => Ok(stored),
        Err(error) if error.is_not_found() => Err(missing(session, &[kind], name).await?),
        Err(error) => Err(error.into()),
    }
}

/// The name that an object has for what was typed: a bundle's becomes what `deploy` makes of it.
pub fn meant(kind: &Kind, name: &str) -> String {
    match kind.kind.as_ref() {
        "Bundle" => schemas::names::object_name(name).unwrap_or_else(|_| name.to_owned()),
        _ => name.to_owned(),
    }
}

fn has_ended(stored: &Stored) -> bool {
    stored.kind.kind == "Task"
        && stored.decode::<Task>().is_ok_and(|task| task.status.is_some_and(|status| status.state.is_terminal()))
}

/// Who prints, and where programs can be run.
pub enum Running {
    Service(Box<Service>),
    Task(String),
}

/// A service, or else a task by its name or the beginning of it; service/NAME and task/NAME say which.
pub async fn running(session: &Session, text: &str) -> Result<Running, Failure> {
    let service = kind("service")?;
    let tasks = kind("task")?;
    if let Some((word, name)) = text.split_once('/') {
        let kind = kind(word)?;
        return match kind.kind.as_ref() {
            "Service" => Ok(Running::Service(Box::new(exact(session, &kind, name).await?.decode()?))),
            "Task" => Ok(Running::Task(object(session, &kind, name).await?.reference.name)),
            _ => Err(Failure::new(Exit::Usage, format!("a {} prints nothing", kind.singular))
                .advise("name a service or a task: service/shop-web")),
        };
    }
    if let Some(service) = session.client.find::<Service>(&ObjectRef::new(&session.namespace, text)).await? {
        return Ok(Running::Service(Box::new(service)));
    }
    match begun(session, &tasks, text).await? {
        Some(task) => Ok(Running::Task(task.reference.name)),
        None => Err(missing(session, &[&service, &tasks], text).await?),
    }
}

async fn in_namespace(session: &Session, kind: &Arc<Kind>) -> Result<Vec<Stored>, Failure> {
    let mut selection = Selection::all_of(kind.clone());
    let namespace = namespace_of(kind, &session.namespace);
    selection.namespace = (!namespace.is_empty()).then_some(namespace);
    Ok(session.client.objects().list(&selection, PageRequest::default()).await?.items)
}

/// Nothing of any of these kinds, all in one scope, is called so: said with what may have been meant.
async fn missing(session: &Session, of: &[&Arc<Kind>], name: &str) -> Result<Failure, Failure> {
    let mut all = Vec::new();
    for kind in of {
        all.extend(in_namespace(session, kind).await?);
    }
    let known: Vec<&str> = all.iter().map(|stored| stored.reference.name.as_str()).collect();
    Ok(nothing_called(of, name, &session.namespace, &known))
}

fn nothing_called(of: &[&Arc<Kind>], name: &str, namespace: &str, known: &[&str]) -> Failure {
    let is_namespaced = of.iter().all(|kind| kind.scope == reconciler::api::Scope::Namespaced);
    let place = match namespace {
        namespace if is_namespaced && namespace != kinds::DEFAULT_NAMESPACE => format!(" in namespace {namespace}"),
        _ => String::new(),
    };
    let singular: Vec<&str> = of.iter().map(|kind| kind.singular.as_ref()).collect();
    let plural = of.first().map(|kind| kind.plural.as_ref()).unwrap_or_default();
    let failure = Failure::new(Exit::NotFound, format!("there is no {} {name}{place}", singular.join(" or ")));
    // People leave the bundle's name out.
    let ends = known.iter().find(|known| known.strip_suffix(name).is_some_and(|rest| rest.ends_with('-')));
    match nearest(name, known.iter().copied()).or(ends.copied()) {
        Some(near) => failure.advise(format!("did you mean {near}?")),
        None if known.is_empty() => failure.advise(format!("there are no {plural} at all")),
        None => failure.advise(format!("see them all: applyctl get {plural}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_answer_to_all_their_names_and_typos_get_the_nearest() {
        for word in ["service", "services", "svc", "Service", "SERVICES"] {
            assert_eq!(kind(word).unwrap().kind, "Service");
        }
        assert_eq!(kind("servces").unwrap_err().advice.unwrap(), "did you mean services?");
        assert!(kind("xyzzy").unwrap_err().advice.unwrap().starts_with("there are bundles"));
        let (kind, names) = split("svc/web", &["service/api".into(), "db".into()]);
        assert_eq!((kind, names), ("svc", vec!["web".into(), "api".into(), "db".into()]));
    }

    #[test]
    fn what_is_missing_comes_with_what_was_meant() {
        let service = kind("service").unwrap();
        let advice = |name: &str, known: &[&str]| nothing_called(&[&service], name, "default", known).advice.unwrap();
        assert_eq!(advice("wbe", &["web", "db"]), "did you mean web?");
        assert_eq!(advice("vote", &["voting-app-vote"]), "did you mean voting-app-vote?");
        assert_eq!(advice("x", &[]), "there are no services at all");
    }
}
