//! `delete`, and the `rm` of every kind: objects go, after a question where something is lost for good.

use std::sync::Arc;

use reconciler::objects::{Error, PageRequest, Precondition, Propagation, Stored, Write};
use reconciler::{Kind, ObjectRef, Resource};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::network::Network;
use schemas::kinds::service::Service;
use schemas::names;
use schemas::objects::FromFile;

use super::args::{Cascade, Delete, Patience, Which};
use super::converge;
use super::failure::{Exit, Failure};
use super::session::{Session, namespace_of, read_file};
use super::{find, get, words};

pub async fn run(session: &mut Session, delete: &Delete) -> Result<(), Failure> {
    let targets =
        if delete.files.is_empty() { typed(session, delete).await? } else { named_in_files(session, delete).await? };
    if targets.is_empty() {
        return session.screen.say("there is nothing to delete").map_err(Failure::from);
    }
    refuse_what_comes_back(session, &targets).await?;
    let propagation = match delete.cascade {
        Cascade::Background => Propagation::Background,
        Cascade::Foreground => Propagation::Foreground,
        Cascade::Orphan => Propagation::Orphan,
    };
    if delete.dry_run {
        for target in &targets {
            session.screen.data(&format!("{}/{} would be deleted\n", target.kind.singular, target.reference.name))?;
        }
        return Ok(());
    }
    // A person is asked; a script need not repeat itself for one object that can be made again.
    let is_much = delete.all || targets.len() > 1 || targets.iter().any(|target| target.kind.kind == "Volume");
    if is_much || session.can_ask {
        session.confirm(&format!("delete {}", several(&targets)), delete.yes)?;
    }
    remove(session, targets, propagation, &delete.patience).await
}

/// What a bundle wants it makes again within seconds: refused, before anything is deleted. Not so what goes together with
/// its bundle, and what the bundle's file no longer has.
async fn refuse_what_comes_back(session: &Session, targets: &[Stored]) -> Result<(), Failure> {
    if let Some(cluster) = targets.iter().find(|target| target.kind.kind == "Cluster") {
        let name = &cluster.reference.name;
        return Err(Failure::new(Exit::Refused, format!("cluster/{name} says what holds for all machines, and stays"))
            .advise("set one of its fields: applyctl apply -f; take all of it away: applyctl system reset"));
    }
    let (mut lines, mut bundles) = (Vec::new(), Vec::new());
    for target in targets {
        let Some(bundle) = wanted_by(session, target).await? else { continue };
        if targets.iter().any(|other| other.kind.kind == "Bundle" && other.reference == bundle) {
            continue;
        }
        let (kind, name) = (&target.kind.singular, &target.reference.name);
        lines.push(format!("{kind}/{name} belongs to bundle {}, which would make it again", bundle.name));
        if !bundles.contains(&bundle.name) {
            bundles.push(bundle.name);
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Refused, lines.join("\n")).advise(format!(
        "take it out of the bundle's file and deploy that, or remove the bundle: applyctl bundle rm {}",
        bundles.join(" ")
    )))
}

/// The bundle that made this and still wants it.
async fn wanted_by(session: &Session, target: &Stored) -> Result<Option<ObjectRef>, Failure> {
    let meta = match target.kind.kind.as_ref() {
        "Service" => target.decode::<Service>()?.metadata,
        "Network" => target.decode::<Network>()?.metadata,
        _ => return Ok(None),
    };
    for owner in meta.owner_references.iter().filter(|owner| owner.kind == "Bundle") {
        let reference = ObjectRef::new(&target.reference.namespace, &owner.name);
        let Some(bundle) = session.client.find::<Bundle>(&reference).await? else { continue };
        let wants = |in_file: &String| {
            names::bundle_object_name(bundle.name(), in_file).is_ok_and(|name| name == target.reference.name)
        };
        let wanted = match target.kind.kind.as_ref() {
            "Service" => bundle.spec.services.keys().any(wants),
            _ => bundle.spec.networks.keys().any(wants),
        };
        if wanted && bundle.metadata.uid == owner.uid && !bundle.is_deleting() {
            return Ok(Some(reference));
        }
    }
    Ok(None)
}

/// `services shop-web, shop-db`, or how many of what.
fn several(targets: &[Stored]) -> String {
    let kinds: std::collections::BTreeSet<&str> = targets.iter().map(|target| target.kind.singular.as_ref()).collect();
    let counted: Vec<String> = kinds
        .into_iter()
        .map(|kind| words::count(targets.iter().filter(|target| target.kind.singular == kind).count(), kind))
        .collect();
    let names: Vec<&str> = targets.iter().map(|target| target.reference.name.as_str()).collect();
    match names.len() {
        0..=8 => format!("{}: {}", counted.join(", "), names.join(", ")),
        _ => counted.join(", "),
    }
}

async fn typed(session: &Session, delete: &Delete) -> Result<Vec<Stored>, Failure> {
    let word = delete.kind.as_deref().unwrap_or_default();
    let (kind, names) = find::kind_and_names(session, word, &delete.names).await?;
    if names.is_empty() && (delete.all || !delete.selector.is_empty()) {
        let which = Which { selector: delete.selector.clone(), ..Which::default() };
        let selection = get::selection(session, &kind, &which)?;
        return Ok(session.client.objects().list(&selection, PageRequest::default()).await?.items);
    }
    if names.is_empty() {
        let failure = Failure::new(Exit::Usage, format!("which {}?", kind.singular));
        return Err(failure.advise(format!("name it, or say --all: applyctl delete {} NAME", kind.singular)));
    }
    let mut targets = Vec::new();
    for name in &names {
        targets.push(find::exact(session, &kind, name).await?);
    }
    Ok(targets)
}

async fn named_in_files(session: &Session, delete: &Delete) -> Result<Vec<Stored>, Failure> {
    let (mut targets, mut others) = (Vec::new(), None);
    for path in &delete.files {
        let shown = path.display().to_string();
        let found =
            schemas::objects::read(&read_file(path)?).map_err(|faults| super::apply::refused(&shown, &faults))?;
        for FromFile { object, .. } in found {
            let text =
                |pointer: &str| object.value.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default();
            let kind: Arc<Kind> = match object.kind {
                Some(kind) => Arc::new(kind.clone()),
                // Where the kind is not served there is no such object.
                None => match super::apply::others_kind(session, &mut others, &object.value).await? {
                    Ok(kind) => kind,
                    Err(_) => continue,
                },
            };
            let namespace = match text("/metadata/namespace") {
                "" => namespace_of(&kind, &session.namespace),
                namespace => namespace.to_owned(),
            };
            let reference = reconciler::ObjectRef::new(namespace, text("/metadata/name"));
            match session.client.objects().get(&kind, &reference).await {
                Ok(stored) => targets.push(stored),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(targets)
}

/// Deletes what was seen, all or nothing, and waits until it is gone.
pub async fn remove(
    session: &mut Session,
    targets: Vec<Stored>,
    propagation: Propagation,
    patience: &Patience,
) -> Result<(), Failure> {
    for some in targets.chunks(reconciler::store::KEYS_PER_COMMIT / 2) {
        let mut writes = Vec::new();
        for target in some {
            let uid = target.to_value()?["metadata"]["uid"].as_str().map(schemas::Uid::new);
            writes.push(Write::Delete {
                kind: target.kind.clone(),
                reference: target.reference.clone(),
                precondition: Precondition { uid, resource_version: None },
                propagation,
            });
        }
        match session.client.commit(writes).await {
            Ok(_) => {}
            // Somebody else was faster with one of them: the others are still there.
            Err(Error::NotFound { .. }) => one_by_one(session, some, propagation).await?,
            Err(error) => return Err(error.into()),
        }
    }
    if !patience.detach {
        converge::until_gone(session, &targets, patience.timeout).await?;
    }
    for target in &targets {
        let word = if patience.detach { "is going" } else { "is gone" };
        session.screen.say(&format!("{}/{} {word}", target.kind.singular, target.reference.name))?;
    }
    Ok(())
}

async fn one_by_one(session: &Session, targets: &[Stored], propagation: Propagation) -> Result<(), Failure> {
    for target in targets {
        let write = Write::Delete {
            kind: target.kind.clone(),
            reference: target.reference.clone(),
            precondition: Precondition {
                uid: target.to_value()?["metadata"]["uid"].as_str().map(schemas::Uid::new),
                resource_version: None,
            },
            propagation,
        };
        match session.client.commit(vec![write]).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// `rm` of a kind: the objects of exactly these names.
pub async fn rm(session: &mut Session, word: &str, rm: &super::args::Rm) -> Result<(), Failure> {
    let delete = Delete {
        kind: Some(word.to_owned()),
        names: rm.names.clone(),
        files: Vec::new(),
        all: false,
        selector: String::new(),
        yes: rm.yes,
        dry_run: false,
        patience: rm.patience,
        cascade: Cascade::Background,
    };
    run(session, &delete).await
}
