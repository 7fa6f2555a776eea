//! `deploy`: a file, overlays and flags become one Bundle; then it is watched until it is up.

use std::collections::BTreeSet;
use std::time::Duration;

use controllers::cluster::bundle::preview;
use reconciler::objects::{Error, Precondition, Write};
use reconciler::{ObjectRef, Resource};
use schemas::deploy::{Deployment, Text};
use schemas::kinds::bundle::Bundle;
use schemas::kinds::network::Network;
use schemas::kinds::node::Node;
use schemas::kinds::service::{Protocol, Service};
use serde_json::json;

use super::args::{Deploy, Diff, Format, Patience, Reason};
use super::changes;
use super::converge::{self, Goal, view};
use super::failure::{Exit, Failure};
use super::screen::Tone;
use super::session::{Session, read_file};

/// How often a write is repeated when the bundle's status was written meanwhile.
const TRIES: usize = 10;

pub async fn run(session: &mut Session, deploy: &Deploy) -> Result<(), Failure> {
    session.because(&deploy.reason);
    if deploy.dry_run {
        let (stored, wanted) = tried(session, deploy).await?;
        return tell_changes(session, stored.as_ref(), wanted).await.map(drop);
    }
    let (stored, wanted) = prepared(session, deploy).await?;
    if let Some(lost) = stored.as_ref().and_then(|stored| without_data(stored, &wanted)) {
        session.confirm(&lost, deploy.yes)?;
    }
    let reference = wanted.object_ref();
    let start = session.seams.monotonic();
    let written = put(session, stored, &wanted).await?;
    if deploy.patience.detach {
        session.print_value(&serde_json::to_value(&written).unwrap_or_default())?;
        return session
            .screen
            .say(&format!("{} is deployed; see how it goes: applyctl wait bundle/{}", reference.name, reference.name))
            .map_err(Failure::from);
    }
    let goal = Goal::Bundle { name: reference.name.clone(), generation: written.metadata.generation };
    let progress = converge::until_up(session, &goal, deploy.patience.timeout).await?;
    let took = session.since(start);
    session.screen.say(&view::done(&reference.name, &progress, took))?;
    let addresses = of_bundle(session, &written).await?;
    match session.format {
        Format::Json | Format::Yaml => {
            let bundle: Bundle = session.client.get(&reference).await?;
            let addresses: Vec<_> =
                addresses.iter().map(|(service, url)| json!({"service": service, "address": url})).collect();
            let value = json!({"bundle": bundle, "addresses": addresses, "seconds": took.as_secs_f64()});
            session.print_value(&value)?;
        }
        Format::Name => session.screen.data(&format!("bundle/{}\n", reference.name))?,
        Format::Table | Format::Wide => {
            let width = addresses.iter().map(|(service, _)| service.len()).max().unwrap_or(0);
            for (service, url) in &addresses {
                session.screen.data(&format!("  {service:width$}  {url}\n"))?;
            }
        }
    }
    Ok(())
}

/// What there is, and what the file makes of it.
async fn prepared(session: &mut Session, deploy: &Deploy) -> Result<(Option<Bundle>, Bundle), Failure> {
    let name = schemas::names::object_name(&deploy.name).map_err(|why| {
        Failure::new(Exit::Usage, why).advise("NAME is what the application is called, before the file")
    })?;
    let mut wanted = read(session, deploy)?;
    say_name(session, &deploy.name, &name)?;
    wanted.metadata.namespace = session.namespace.clone();
    let reference = wanted.object_ref();
    let stored = session.client.find::<Bundle>(&reference).await?;
    if stored.as_ref().is_some_and(Resource::is_deleting) {
        let failure = Failure::new(Exit::Conflict, format!("bundle {} is being removed", reference.name));
        return Err(failure.advise(format!("wait for it: applyctl wait --gone bundle/{}", reference.name)));
    }
    Ok((stored, wanted))
}

/// Services that would begin without the data that they have: most often an overlay was forgotten.
fn without_data(stored: &Bundle, wanted: &Bundle) -> Option<String> {
    let volumes = |bundle: &Bundle, service: &str| -> BTreeSet<String> {
        let spec = bundle.spec.services.get(service).and_then(|fragment| fragment.to_spec().ok()).unwrap_or_default();
        spec.named_volumes().map(str::to_owned).collect()
    };
    let lines = wanted.spec.services.keys().filter_map(|service| {
        let (had, has) = (volumes(stored, service), volumes(wanted, service));
        let lost: Vec<&str> = had.difference(&has).map(String::as_str).collect();
        (!lost.is_empty()).then(|| format!("{service} without its volume {}", lost.join(", ")))
    });
    let lines: Vec<String> = lines.collect();
    (!lines.is_empty()).then(|| {
        format!("start {}, which stays as it is (was it deployed --with a file that says so?)", lines.join(", "))
    })
}

/// What a name that was typed has become, where it is another.
pub fn say_name(session: &mut Session, typed: &str, name: &str) -> Result<(), Failure> {
    if typed == name { Ok(()) } else { Ok(session.screen.say(&format!("{typed} is called {name} here"))?) }
}

/// The same, and the server has checked it as it would check the write.
async fn tried(session: &mut Session, deploy: &Deploy) -> Result<(Option<Bundle>, Bundle), Failure> {
    let (stored, wanted) = prepared(session, deploy).await?;
    session.trying().commit(vec![write(stored.as_ref(), &wanted)]).await?;
    Ok((stored, wanted))
}

fn read(session: &mut Session, deploy: &Deploy) -> Result<Bundle, Failure> {
    let bundle = read_file(&deploy.file)?;
    let mut overlays = Vec::new();
    for path in &deploy.with {
        overlays.push((path.display().to_string(), read_file(path)?));
    }
    let file = deploy.file.display().to_string();
    let overlays: Vec<Text<'_>> = overlays.iter().map(|(name, bytes)| Text { name, bytes }).collect();
    let deployment = Deployment {
        name: &deploy.name,
        bundle: Text { name: &file, bytes: &bundle },
        overlays: &overlays,
        replicas: &deploy.replicas,
        publish: &deploy.publish,
        keep_dropped: deploy.no_prune,
        reset: &deploy.reset,
    };
    match schemas::deploy::read(&deployment) {
        Ok(bundle) => Ok(bundle.into_inner()),
        Err(refusals) => {
            for refusal in refusals {
                session.screen.fail(&refusal.to_string())?;
            }
            Err(Failure::new(Exit::Refused, "nothing was changed"))
        }
    }
}

/// `diff`: the same file, and nothing is done. As diff(1) does, it ends with 1 when there is a difference.
pub async fn diff(session: &mut Session, diff: &Diff) -> Result<(), Failure> {
    let deploy = Deploy {
        name: diff.name.clone(),
        file: diff.file.clone(),
        with: diff.with.clone(),
        replicas: diff.replicas.clone(),
        publish: diff.publish.clone(),
        no_prune: false,
        reset: Vec::new(),
        dry_run: true,
        yes: false,
        reason: Reason::default(),
        patience: Patience { detach: true, timeout: Duration::ZERO },
    };
    let (stored, wanted) = tried(session, &deploy).await?;
    // All is said already.
    let changes = tell_changes(session, stored.as_ref(), wanted).await?;
    if changes { Err(Failure::new(Exit::Failed, "")) } else { Ok(()) }
}

fn write(stored: Option<&Bundle>, wanted: &Bundle) -> Write {
    match stored {
        None => Write::create(wanted),
        Some(stored) => {
            let mut desired = stored.clone();
            desired.spec = wanted.spec.clone();
            let mut write = Write::update(stored, &desired);
            // The spec is ours to say; a status that was written meanwhile is no objection.
            if let Write::Update { precondition, .. } = &mut write {
                *precondition = Precondition::seen(stored);
            }
            write
        }
    }
}

/// Writes the bundle, of which this was there a moment ago; the same again is no write.
pub async fn put(session: &Session, mut stored: Option<Bundle>, wanted: &Bundle) -> Result<Bundle, Failure> {
    let reference = &wanted.object_ref();
    for _ in 0..TRIES {
        match session.client.commit(vec![write(stored.as_ref(), wanted)]).await {
            Ok(committed) => {
                let outcome = committed.outcomes.into_iter().next().and_then(|outcome| outcome.object);
                return match outcome {
                    Some(stored) => Ok(stored.decode()?),
                    None => Ok(session.client.get(reference).await?),
                };
            }
            Err(error) if error.is_conflict() => {}
            // It may have been written: what is there says.
            Err(Error::UnknownOutcome { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        stored = session.client.find::<Bundle>(reference).await?;
    }
    let failure =
        Failure::new(Exit::Conflict, format!("bundle {} keeps being changed by somebody else", reference.name));
    Err(failure.advise("try again, or see who: applyctl events"))
}

/// What the deployment would do, and whether that is anything.
async fn tell_changes(session: &mut Session, stored: Option<&Bundle>, wanted: Bundle) -> Result<bool, Failure> {
    let services = session.client.list::<Service>(Some(&session.namespace)).await?;
    let networks = session.client.list::<Network>(Some(&session.namespace)).await?;
    let spec = wanted.spec.clone();
    let asked = match stored {
        Some(stored) => Bundle { spec: wanted.spec, ..stored.clone() },
        None => wanted,
    };
    let preview = preview(asked, services.clone(), networks);
    let mut lines = changes::lines(&preview, &services, &spec);
    let changes = lines.iter().any(|line| !line.text.starts_with('='));
    let is_written = stored.is_none_or(|stored| stored.spec != spec);
    if is_written && !changes {
        let text = format!("~ bundle {}   what the file says is kept; nothing that runs changes", deployed(stored));
        lines.insert(0, changes::Line { tone: Tone::Busy, text });
    }
    for line in &lines {
        let text = session.screen.paint(line.tone, &line.text);
        session.screen.data(&format!("{text}\n"))?;
    }
    let changes = changes || is_written;
    session.screen.say(if changes { "nothing was changed yet" } else { "nothing would change" })?;
    Ok(changes)
}

fn deployed(stored: Option<&Bundle>) -> &str {
    stored.map_or("", |stored| stored.name())
}

/// Where each published port answers, by the services' names in the file.
async fn of_bundle(session: &Session, bundle: &Bundle) -> Result<Vec<(String, String)>, Failure> {
    let name = |short: &String| Some((short.clone(), schemas::names::bundle_object_name(bundle.name(), short).ok()?));
    addresses(session, bundle.spec.services.keys().filter_map(name)).await
}

/// Where each published port of services answers: what the service is called in the answer, and its own name.
pub async fn addresses(
    session: &Session,
    services: impl Iterator<Item = (String, String)>,
) -> Result<Vec<(String, String)>, Failure> {
    let nodes = session.client.list::<Node>(None).await?;
    let host = nodes
        .iter()
        .filter_map(|node| node.status.as_ref()?.machine.as_ref()?.addresses.first().copied())
        .next()
        .map_or_else(
            || "127.0.0.1".to_owned(),
            |address| match address {
                std::net::IpAddr::V4(v4) => v4.to_string(),
                std::net::IpAddr::V6(v6) => format!("[{v6}]"),
            },
        );
    let mut addresses = Vec::new();
    for (called, name) in services {
        let Some(service) = session.client.find::<Service>(&ObjectRef::new(&session.namespace, name)).await? else {
            continue;
        };
        for port in service.status.map(|status| status.ports).unwrap_or_default() {
            let Some(published) = port.published else { continue };
            addresses.push((
                called.clone(),
                match port.protocol {
                    Protocol::Tcp => format!("http://{host}:{published}"),
                    other => format!("{other}://{host}:{published}"),
                },
            ));
        }
    }
    Ok(addresses)
}
