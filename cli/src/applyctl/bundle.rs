//! `bundle`: applications.

use std::collections::BTreeSet;

use reconciler::objects::{PageRequest, Propagation, Selection, Selector, Stored};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::labels;
use schemas::kinds::service::Service;
use schemas::kinds::volume::Volume;

use super::args::{Bundle as Command, BundleRm, Which};
use super::failure::Failure;
use super::session::Session;
use super::{delete, deploy, find, get, ps, words};

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(ls) => get::list(session, "bundle", &ls.which).await,
        Command::Ps(args) => {
            let mut selectors = Vec::new();
            for name in &args.names {
                let bundle = find::object(session, &find::kind("bundle")?, name).await?;
                selectors.push(Selector::equals(labels::BUNDLE, bundle.reference.name));
            }
            ps::show(session, selectors, args.all).await
        }
        Command::Services { name } => {
            let bundle = find::object(session, &find::kind("bundle")?, name).await?;
            let which = Which { selector: format!("{}={}", labels::BUNDLE, bundle.reference.name), ..Which::default() };
            get::list(session, "service", &which).await
        }
        Command::Rm(rm) => remove(session, rm).await,
    }
}

/// The bundle goes, and with it what it made. Volumes are data: they stay, and are named, unless they shall go too.
async fn remove(session: &mut Session, args: &BundleRm) -> Result<(), Failure> {
    let kind = find::kind("bundle")?;
    let (mut bundles, mut services, mut volumes) = (Vec::new(), 0, Vec::new());
    for typed in &args.rm.names {
        let bundle = find::exact(session, &kind, typed).await?;
        let name = &bundle.reference.name.clone();
        deploy::say_name(session, typed, name)?;
        bundles.push(bundle);
        let (count, mounted) = mounted(session, name).await?;
        services += count;
        volumes.extend(existing(session, mounted).await?);
        for labelled in labelled(session, name).await? {
            if !volumes.iter().any(|known: &Volume| known.object_ref() == labelled.object_ref()) {
                volumes.push(labelled);
            }
        }
    }
    let bytes: u64 =
        volumes.iter().filter_map(|volume: &Volume| volume.status.as_ref()?.size).map(|size| size.bytes()).sum();
    let named: Vec<&str> = volumes.iter().map(Resource::name).collect();
    let names: Vec<&str> = bundles.iter().map(|bundle| bundle.reference.name.as_str()).collect();
    let mut what = format!("remove {} with {}", names.join(", "), words::count(services, "service"));
    if args.volumes && !volumes.is_empty() {
        let count = words::count(volumes.len(), "volume");
        what.push_str(&format!(" and {count} ({}, {} of data)", named.join(", "), words::bytes(bytes)));
    }
    // The bundle alone can be deployed again; data cannot.
    if args.volumes && !volumes.is_empty() || bundles.len() > 1 || session.can_ask {
        session.confirm(&what, args.rm.yes)?;
    }
    delete::remove(session, bundles, Propagation::Foreground, &args.rm.patience).await?;
    if !args.volumes {
        if !named.is_empty() {
            let names = named.join(" ");
            session.screen.say(&format!("volumes stay: {names}   (applyctl volume rm {names})"))?;
        }
        return Ok(());
    }
    let kind = find::kind("volume")?;
    let mut stored: Vec<Stored> = Vec::new();
    for volume in &volumes {
        match session.client.objects().get(&kind, &volume.object_ref()).await {
            Ok(one) => stored.push(one),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    delete::remove(session, stored, Propagation::Background, &args.rm.patience).await
}

/// How many services a bundle has, and the named volumes that they mount.
async fn mounted(session: &Session, bundle: &str) -> Result<(usize, BTreeSet<String>), Failure> {
    let selection = Selection {
        namespace: Some(session.namespace.clone()),
        labels: Selector::equals(labels::BUNDLE, bundle),
        ..Selection::of::<Service>()
    };
    let list = session.client.objects().list(&selection, PageRequest::default()).await?;
    let mut volumes = BTreeSet::new();
    for stored in &list.items {
        let service: Service = stored.decode()?;
        volumes.extend(service.spec.named_volumes().map(str::to_owned));
    }
    Ok((list.items.len(), volumes))
}

async fn existing(session: &Session, names: BTreeSet<String>) -> Result<Vec<Volume>, Failure> {
    let mut volumes = Vec::new();
    for name in names {
        volumes.extend(session.client.find::<Volume>(&ObjectRef::new(&session.namespace, name)).await?);
    }
    Ok(volumes)
}

/// Volumes that were made for services of a bundle, also for those that it no longer has.
async fn labelled(session: &Session, bundle: &str) -> Result<Vec<Volume>, Failure> {
    let selection = Selection {
        namespace: Some(session.namespace.clone()),
        labels: Selector::equals(labels::BUNDLE, bundle),
        ..Selection::of::<Volume>()
    };
    let list = session.client.objects().list(&selection, PageRequest::default()).await?;
    list.items.iter().map(|stored| stored.decode().map_err(Failure::from)).collect()
}
