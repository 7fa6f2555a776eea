//! `system`: whether all is well, what there is, and what nothing uses.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hyper::Method;
use reconciler::objects::{PageRequest, Propagation, Remote, Selection, Stored};
use reconciler::{ObjectRef, Resource, Truth};
use schemas::kinds::bundle::{Bundle, BundleState};
use schemas::kinds::cluster::Cluster;
use schemas::kinds::labels::BUNDLE;
use schemas::kinds::lease::Lease;
use schemas::kinds::node::{Node, NodeState, Role};
use schemas::kinds::service::Service;
use schemas::kinds::task::{DesiredState, Task, TaskState};
use schemas::kinds::volume::Volume;
use schemas::level::Level;
use serde_json::{Value, json};

use super::args::{Patience, Prune, System as Command};
use super::failure::{Exit, Failure};
use super::screen::Tone;
use super::session::Session;
use super::table::{Cell, Table};
use super::{delete, find, image, rows, version, words};
use crate::daemon::LEASE_NAMESPACE;

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Status => status(session).await,
        Command::Df => df(session).await,
        Command::Prune(prune) => self::prune(session, prune).await,
        Command::Reset { yes } => reset(session, *yes).await,
    }
}

/// One line for each kind of thing that can be well or not; below, what is not.
async fn status(session: &mut Session) -> Result<(), Failure> {
    let nodes = session.client.list::<Node>(None).await?;
    let bundles = session.client.list::<Bundle>(None).await?;
    let services = session.client.list::<Service>(None).await?;
    let tasks = session.client.list::<Task>(None).await?;
    let clusters = session.client.list::<Cluster>(None).await.unwrap_or_default();
    let ready = nodes.iter().filter(|node| node.status.as_ref().is_some_and(|status| status.state == NodeState::Ready));
    let up =
        bundles.iter().filter(|bundle| bundle.status.as_ref().is_some_and(|status| status.state == BundleState::Up));
    let full = |service: &&Service| {
        let status = service.status.clone().unwrap_or_default();
        status.observed_generation == service.metadata.generation && status.running >= status.desired
    };
    // What a lost machine runs nobody knows, and others run it instead.
    let lost: BTreeSet<&str> = nodes.iter().filter(|node| node.is_lost()).map(|node| node.name()).collect();
    let counts = |task: &&Task| {
        let is_lost = task.spec.node_name.as_deref().is_some_and(|node| lost.contains(node));
        task.spec.desired <= DesiredState::Running && !is_lost
    };
    let wanted = tasks.iter().filter(counts);
    let running =
        wanted.clone().filter(|task| task.status.as_ref().is_some_and(|status| status.state == TaskState::Running));
    let managers: Vec<&Node> = nodes.iter().filter(|node| node.spec.role == Role::Manager).collect();
    let silent: Vec<&str> = managers.iter().filter(|node| node.is_lost()).map(|node| node.name()).collect();
    let mut lines = vec![
        ("nodes ready", ready.count(), nodes.len()),
        ("bundles up", up.count(), bundles.len()),
        ("services full", services.iter().filter(full).count(), services.len()),
        ("tasks running", running.count(), wanted.count()),
    ];
    if managers.len() > 1 {
        lines.insert(1, ("managers answer", managers.len() - silent.len(), managers.len()));
    }
    let leads = leader(session).await;
    let versions = Versions::of(&nodes);
    let title = clusters.first().map(|cluster| cluster.spec.title.clone()).unwrap_or_default();
    let value = json!({
        "cluster": title, "leader": leads, "level": versions.level().map(|level| level.to_string()), "versions": versions.0,
        "counts": lines.iter().map(|(name, good, all)| json!({"name": name, "good": good, "all": all})).collect::<Vec<_>>(),
    });
    if session.print_value(&value)? {
        return Ok(());
    }
    let mut table = Table::new(["", "", ""]);
    for (name, good, all) in lines {
        let (mark, tone) = if good >= all { ("●", Tone::Good) } else { ("◐", Tone::Busy) };
        table.row(vec![Cell::toned(mark, tone), name.into(), format!("{good}/{all}").into()]);
    }
    let mut text = if title.is_empty() { String::new() } else { format!("cluster {title}\n") };
    text.push_str(&table.print_rows(session.screen.look()));
    if managers.len() > 1 {
        let leads = leads.map_or_else(|| "nobody leads".to_owned(), |name| format!("{name} leads"));
        text.push_str(&format!("  managers: {leads}; {}\n", spare(managers.len(), &silent)));
    }
    text.extend(versions.differ().map(|line| format!("  versions: {line}\n")));
    for node in &nodes {
        let conditions = node.status.clone().unwrap_or_default().conditions;
        for said in conditions.iter().filter(|condition| condition.status == Truth::False) {
            text.push_str(&format!("  node {}: {}\n", node.name(), said.message));
        }
    }
    // Those of bundles are told with their bundle.
    for service in services.iter().filter(|service| !service.metadata.labels.contains_key(BUNDLE)) {
        if let Some(why) = service.status.as_ref().and_then(rows::trouble) {
            text.push_str(&format!("  service {}: {why}\n", service.name()));
        }
    }
    for bundle in &bundles {
        let status = bundle.status.clone().unwrap_or_default();
        let ready = status.conditions.get("Ready").filter(|ready| !ready.message.is_empty());
        if let (false, Some(ready)) = (status.state == BundleState::Up, ready) {
            text.push_str(&format!("  bundle {}: {}\n", bundle.name(), ready.message));
        }
    }
    Ok(session.screen.data(&text)?)
}

/// Machines by the version that they run, those that have not said it left out.
struct Versions<'a>(BTreeMap<&'a str, Vec<&'a str>>);

impl<'a> Versions<'a> {
    fn of(nodes: &'a [Node]) -> Self {
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (node, (version, _)) in nodes.iter().filter_map(|node| Some((node, node.version()?))) {
            versions.entry(version).or_default().push(node.name());
        }
        Self(versions)
    }

    fn levels(&self) -> impl Iterator<Item = Level> {
        self.0.keys().filter_map(|version| Level::of(version))
    }

    /// What all machines can do.
    fn level(&self) -> Option<Level> {
        self.levels().min()
    }

    /// What comes of their differences, and what to do about them.
    fn differ(&self) -> Option<String> {
        let (lowest, highest) = (self.level()?, self.levels().max()?);
        if lowest == highest {
            return None;
        }
        let of = |level| self.0.iter().filter(move |(version, _)| Level::of(version) == Some(level));
        let names = |level| of(level).flat_map(|(_, nodes)| nodes.clone()).collect::<Vec<_>>().join(", ");
        let (new, old) = (names(highest), names(lowest));
        Some(match lowest.is_beside(highest) {
            true => {
                format!("{highest} on {new}, {lowest} on {old}: what came with {highest} is refused until it is on all")
            }
            false => format!("{highest} on {new}, {lowest} on {old}: they may differ by one; upgrade the latter"),
        })
    }
}

/// The machine whose controllers act for the cluster, where they are elected.
async fn leader(session: &Session) -> Option<String> {
    let lease = ObjectRef::new(LEASE_NAMESPACE, "controllers");
    let holder = session.client.find::<Lease>(&lease).await.ok()??.spec.holder;
    let name = holder.split('/').next().unwrap_or_default();
    (!name.is_empty()).then(|| name.to_owned())
}

/// How many more managers may be lost, and what to do when that is none.
fn spare(managers: usize, silent: &[&str]) -> String {
    let majority = managers / 2 + 1;
    match (managers - silent.len()).saturating_sub(majority) {
        0 if silent.is_empty() => "no manager may be lost yet: make one more (applyctl node promote NAME)".to_owned(),
        0 => format!("no other may be lost: bring {} back", silent.join(", ")),
        more => format!("{} may be lost", words::count(more, "manager")),
    }
}

/// How many objects of each kind, and how much they and the volumes hold.
async fn df(session: &mut Session) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for registered in schemas::kinds::ALL {
        let kind = std::sync::Arc::new((registered.kind)().clone());
        let list = match session.client.objects().list(&Selection::all_of(kind.clone()), PageRequest::default()).await {
            Ok(list) => list,
            // A cluster need not have every kind.
            Err(reconciler::objects::Error::UnknownKind { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let stored: usize = list.items.iter().map(|stored| stored.json.len()).sum();
        let sizes = list.items.iter().filter_map(|stored| stored.decode::<Volume>().ok()?.status?.size);
        let data: u64 = if kind.kind == "Volume" { sizes.map(|size| size.bytes()).sum() } else { 0 };
        if !list.items.is_empty() {
            rows.push((kind.plural.to_string(), list.items.len(), stored as u64, data));
        }
    }
    // Without containerd there are none to tell of, and the rest is still worth telling.
    if let Ok((count, bytes)) = image::totals(session).await {
        rows.push(("images".to_owned(), count, 0, bytes));
    }
    let value = rows
        .iter()
        .map(|(kind, count, stored, data)| json!({"kind": kind, "count": count, "storedBytes": stored, "dataBytes": data}))
        .collect();
    if session.print_value(&value)? {
        return Ok(());
    }
    let mut table = Table::new(["KIND", "COUNT", "STORED", "DATA"]);
    for (kind, count, stored, data) in rows {
        let data = if data == 0 { String::new() } else { words::bytes(data) };
        let stored = if stored == 0 { String::new() } else { words::bytes(stored) };
        table.row(vec![kind.into(), count.to_string().into(), stored.into(), data.into()]);
    }
    let text = table.print(session.screen.look());
    Ok(session.screen.data(&text)?)
}

/// Everything of the daemon's machine. It ends when it is done.
async fn reset(session: &mut Session, yes: bool) -> Result<(), Failure> {
    let remote = session.remote()?;
    not_one_of_several(session, &remote).await?;
    let there = There::look(&remote).await?;
    session.confirm(&format!("remove everything of apply on this machine: {}", there.words()), yes)?;
    there.remove(session, &remote, false).await?;
    session.screen.say("nothing of it is left on this machine, and applyd has ended")?;
    let text = |field: &str| there.0[field].as_str().unwrap_or_default();
    if !text("etcd").is_empty() {
        session.screen.say(&format!(
            "its objects are still in the etcd at {}: an applyd that is given it makes all of it anew\n  to remove \
             them: {}",
            text("etcd"),
            text("etcdctl")
        ))?;
    }
    Ok(())
}

/// What of apply is on this machine.
pub(super) struct There(Value);

impl There {
    const RESET: &str = "/apis/apply/v1/system/reset";

    fn unread(error: serde_json::Error) -> Failure {
        Failure::new(Exit::Failed, format!("applyd's answer cannot be read: {error}"))
    }

    pub(super) async fn look(remote: &Remote) -> Result<There, Failure> {
        let asked = remote.call(Method::GET, Self::RESET, Bytes::new()).await.map_err(Failure::beside_objects)?;
        Ok(There(serde_json::from_slice(&asked.bytes().await?).map_err(Self::unread)?))
    }

    pub(super) fn words(&self) -> String {
        let count = |field: &str, word: &str| words::count(self.0[field].as_u64().unwrap_or(0) as usize, word);
        let text = |field: &str| self.0[field].as_str().unwrap_or_default();
        let store = match text("etcd") {
            "" => format!("the store in {}", text("data")),
            etcd => format!("what else is in {}; what is wanted stays in the etcd at {etcd}", text("data")),
        };
        format!(
            "{}, {} with {} of data, {}, and {store}",
            count("containers", "container"),
            count("volumes", "volume"),
            words::bytes(self.0["volumeBytes"].as_u64().unwrap_or(0)),
            count("images", "image")
        )
    }

    /// All of it, told step by step. `again`: applyd begins anew afterwards.
    pub(super) async fn remove(&self, session: &mut Session, remote: &Remote, again: bool) -> Result<(), Failure> {
        let path = format!("{}?again={again}", Self::RESET);
        let answer = remote.call(Method::POST, &path, Bytes::new()).await.map_err(Failure::beside_objects)?;
        let mut lines = answer.lines();
        while let Some(line) = lines.next().await? {
            let line: Value = serde_json::from_slice(&line).map_err(Self::unread)?;
            if let Some(error) = line["error"].as_str() {
                let failure = Failure::new(Exit::Failed, format!("not everything could be removed: {error}"));
                return Err(failure.advise("start applyd again: it finishes this first"));
            }
            if line["done"] == true {
                return Ok(());
            }
            session.screen.say(&format!("  gone: {}", line["step"].as_str().unwrap_or_default()))?;
        }
        let failure = Failure::new(Exit::Unreachable, "applyd ended before it had removed everything");
        Err(failure.advise("start it again: it finishes this first"))
    }
}

/// A manager that others need for a majority is not taken away by one word.
async fn not_one_of_several(session: &Session, remote: &Remote) -> Result<(), Failure> {
    let daemon = version::of_daemon(remote).await?;
    let Some(name) = daemon["node"].as_str().filter(|_| daemon["role"] == "manager") else { return Ok(()) };
    // Where the store does not answer there is nobody to be asked.
    let nodes = session.client.list::<Node>(None).await.unwrap_or_default();
    let others = nodes.iter().filter(|node| node.spec.role == Role::Manager && node.name() != name).count();
    if others == 0 {
        return Ok(());
    }
    let why = format!("{name} is one of {} managers, which decide together", others + 1);
    Err(Failure::new(Exit::Conflict, why).advise(format!("first, on another one: applyctl node demote {name}")))
}

/// Volumes of the namespace that no service of it mounts.
async fn prune(session: &mut Session, prune: &Prune) -> Result<(), Failure> {
    let services = session.client.list::<Service>(Some(&session.namespace)).await?;
    let used: BTreeSet<&str> = services.iter().flat_map(|service| service.spec.named_volumes()).collect();
    let kind = find::kind("volume")?;
    let selection = Selection { namespace: Some(session.namespace.clone()), ..Selection::all_of(kind) };
    let list = session.client.objects().list(&selection, PageRequest::default()).await?;
    let (mut unused, mut bytes): (Vec<Stored>, u64) = (Vec::new(), 0);
    for stored in list.items {
        let volume: Volume = stored.decode()?;
        let status = volume.status.clone().unwrap_or_default();
        if !used.contains(volume.name()) && status.in_use == 0 {
            bytes += status.size.map_or(0, |size| size.bytes());
            unused.push(stored);
        }
    }
    if unused.is_empty() {
        return Ok(session.screen.say("every volume is in use")?);
    }
    let names: Vec<&str> = unused.iter().map(|stored| stored.reference.name.as_str()).collect();
    let count = words::count(unused.len(), "volume");
    session
        .confirm(&format!("remove {count} with {} of data: {}", words::bytes(bytes), names.join(", ")), prune.yes)?;
    let patience = Patience { detach: false, timeout: std::time::Duration::from_secs(60) };
    delete::remove(session, unused, Propagation::Background, &patience).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_differ_are_told_with_what_to_do() {
        let told = |versions: &[&str]| {
            let nodes: Vec<Node> = versions
                .iter()
                .enumerate()
                .map(|(index, version)| {
                    let mut node = Node::new(format!("n{}", index + 1), Default::default());
                    node.status.get_or_insert_default().machine.get_or_insert_default().versions.apply =
                        (*version).to_owned();
                    node
                })
                .collect();
            Versions::of(&nodes).differ()
        };
        assert_eq!(told(&["0.2.0", "0.2.1", ""]), None);
        assert_eq!(
            told(&["0.2.0", "0.1.0", "0.1.0"]).unwrap(),
            "0.2 on n1, 0.1 on n2, n3: what came with 0.2 is refused until it is on all"
        );
        assert!(
            told(&["0.3.0", "0.2.0", "0.1.0"])
                .unwrap()
                .ends_with("0.1 on n3: they may differ by one; upgrade the latter")
        );
    }

    #[test]
    fn it_is_said_how_many_managers_may_be_lost() {
        assert_eq!(spare(3, &[]), "1 manager may be lost");
        assert_eq!(spare(5, &[]), "2 managers may be lost");
        assert_eq!(spare(5, &["n2"]), "1 manager may be lost");
        assert!(spare(2, &[]).starts_with("no manager may be lost yet: make one more"));
        assert_eq!(spare(3, &["n2"]), "no other may be lost: bring n2 back");
    }
}
