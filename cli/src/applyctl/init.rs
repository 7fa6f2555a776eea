//! `init`: this machine founds a cluster, as its first manager.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use reconciler::ObjectRef;
use reconciler::objects::Error;
use reconciler::seams::Purpose;
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster};
use schemas::kinds::node::{Node, Role};
use serde_json::{Value, json};

use super::args::{Init, Unlock};
use super::failure::{Exit, Failure};
use super::session::Session;
use super::{token, unseen, version};
use crate::daemon::lock::{self, Passphrase};
use crate::daemon::{ALONE, joining, waiting};

const HOW: [&str; 16] = [
    "brave", "calm", "clever", "eager", "fair", "gentle", "happy", "keen", "kind", "lively", "merry", "patient",
    "quick", "quiet", "sunny", "wise",
];
const WHO: [&str; 16] = [
    "badger", "beaver", "crane", "falcon", "fox", "heron", "ibex", "lynx", "marten", "otter", "owl", "raven", "seal",
    "stork", "swift", "wren",
];

pub async fn run(session: &mut Session, init: &Init) -> Result<(), Failure> {
    match init.force_new_cluster {
        true => alone(session, init.yes).await,
        false => found(session, init).await,
    }
}

async fn found(session: &mut Session, init: &Init) -> Result<(), Failure> {
    let daemon = founded(session, init).await?;
    let found = session.client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await?;
    let cluster = found.ok_or_else(|| Failure::new(Exit::Failed, "applyd holds no cluster; look into its logs"))?;
    let before = cluster.spec.title.clone();
    let title = match (&init.title, before.is_empty()) {
        (Some(title), false) if *title != before => {
            let failure = Failure::new(Exit::Conflict, format!("this machine is cluster \"{before}\" already"));
            return Err(failure.advise("its data goes away with: applyctl system reset"));
        }
        (Some(title), _) => title.clone(),
        (None, false) => before.clone(),
        (None, true) => {
            let pick = |words: [&'static str; 16]| words[(session.seams.random.next(Purpose::Identity) % 16) as usize];
            format!("{}-{}", pick(HOW), pick(WHO))
        }
    };
    let mut desired = cluster.clone();
    desired.spec.title.clone_from(&title);
    desired.spec.data_plane = init.data_plane.unwrap_or(cluster.spec.data_plane);
    if desired.spec != cluster.spec {
        session.client.update(&cluster, &desired).await?;
    }
    let node =
        session.client.list::<Node>(None).await?.first().map(|node| node.metadata.name.clone()).unwrap_or_default();
    let addresses: Vec<&str> =
        daemon["addresses"].as_array().into_iter().flatten().filter_map(|at| at.as_str()).collect();
    let store = daemon["store"].as_str().unwrap_or("unknown");
    // Whoever asks again has a cluster whose token was shown.
    let token = match before.is_empty() {
        true => Some(token::make(session, Role::Worker, None).await?),
        false => None,
    };
    let value = json!({
        "cluster": title, "node": node, "addresses": addresses, "store": store,
        "token": token.as_ref().map(|made| made.token.to_string()),
    });
    if session.print_value(&value)? {
        return Ok(());
    }
    let host = |at: &&str| at.parse::<SocketAddr>().map_or_else(|_| (*at).to_owned(), |at| at.ip().to_string());
    let address = addresses.first().map(|at| format!(" ({})", host(at))).unwrap_or_default();
    let already = if before.is_empty() { "" } else { " already" };
    let store = if store == "etcd" { "store in etcd".to_owned() } else { format!("{store} store") };
    let up = format!("cluster \"{title}\" is up on {node}{address}{already}, manager, {store}");
    let join = match &token {
        Some(made) => format!("another machine joins, within {}, with:   {}", made.life, made.command()),
        None => "another machine joins with what this says:   applyctl token create".to_owned(),
    };
    Ok(session.screen.data(&format!(
        "{up}\n  {join}\n  another manager (3 for safety):   applyctl token create --role manager\n  an application:   applyctl deploy NAME FILE.dab\n  a copy of it all:  applyctl backup FILE\n"
    ))?)
}

/// A manager goes on without the others.
async fn alone(session: &mut Session, yes: bool) -> Result<(), Failure> {
    let remote = session.remote()?;
    let daemon = version::of_daemon(&remote).await?;
    if daemon["role"] != "manager" {
        let failure = Failure::new(Exit::Conflict, "this machine is no manager, and has no objects of a cluster");
        return Err(failure.advise("type it on a manager that is left; where none is: applyctl restore FILE"));
    }
    session.confirm(
        "let this manager go on alone with what it has: what only the others were told is lost, also when they are back",
        yes,
    )?;
    remote.call(Method::POST, ALONE, Bytes::new()).await.map_err(Failure::beside_objects)?;
    session.screen.say("this manager begins anew, without the others")?;
    let is_alone = |daemon: &Value| daemon["store"] == "embedded";
    let Some(daemon) = version::once(session, &remote, FORCING, is_alone).await? else {
        return Err(Failure::new(Exit::Failed, "applyd was told to go on alone and does not; its log says why"));
    };
    let node = daemon["node"].as_str().unwrap_or_default().to_owned();
    let value = json!({"node": node, "store": daemon["store"]});
    if session.print_value(&value)? {
        return Ok(());
    }
    Ok(session.screen.data(&format!(
        "{node} manages the cluster alone, with what it had\n  the others become managers again when they are back; who never will be:   applyctl node rm NAME\n  more managers:   applyctl node promote NAME     or   applyctl token create --role manager\n"
    ))?)
}

/// How long it may take until the objects are in a file again.
const FORCING: Duration = Duration::from_secs(120);

/// A passphrase, typed twice.
fn chosen(session: &mut Session, from_stdin: bool) -> Result<Passphrase, Failure> {
    let text = unseen::read(session, "passphrase", "Passphrase for this cluster's managers:", from_stdin)?;
    let passphrase = Passphrase::new(text.clone());
    passphrase.check().map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    if !from_stdin && unseen::read(session, "passphrase", "The same again:", false)? != text {
        return Err(Failure::new(Exit::Usage, "those are two passphrases; nothing was changed"));
    }
    Ok(passphrase)
}

/// How long a daemon may take from being unlocked to having a store.
const UNLOCKING: Duration = Duration::from_secs(30);

/// `unlock`: a manager that is locked goes on.
pub async fn unlock(session: &mut Session, unlock: &Unlock) -> Result<(), Failure> {
    let remote = session.remote()?;
    let daemon = version::of_daemon(&remote).await?;
    if daemon["store"] != "locked" {
        return Ok(session.screen.say("this machine is not locked")?);
    }
    let text = unseen::read(session, "passphrase", "Passphrase of this cluster's managers:", unlock.passphrase_stdin)?;
    let body = serde_json::to_vec(&lock::Ask { passphrase: Passphrase::new(text) }).unwrap_or_default();
    remote.call(Method::POST, lock::UNLOCK, Bytes::from(body)).await.map_err(|error| match error {
        Error::Forbidden { detail, .. } => Failure::new(Exit::NotAllowed, detail.trim_start_matches("403: ")),
        error => Failure::beside_objects(error),
    })?;
    let is_open = |daemon: &Value| daemon["store"] != "locked";
    match version::once(session, &remote, UNLOCKING, is_open).await? {
        Some(_) => Ok(session.screen.say("this manager is unlocked until its next boot")?),
        None => Err(Failure::new(Exit::Failed, "applyd was unlocked and does not go on; its log says why")),
    }
}

/// How long a daemon may take from being told to having a store.
const FOUNDING: Duration = Duration::from_secs(30);

/// What the daemon says of itself once it holds a cluster, which it is told to if it has none.
async fn founded(session: &mut Session, init: &Init) -> Result<Value, Failure> {
    let remote = session.remote()?;
    let daemon = version::of_daemon(&remote).await.map_err(|failure| match failure.exit {
        Exit::Unreachable => failure.advise(
            "start applyd on this machine first:\n    applyd systemd-unit > /etc/systemd/system/applyd.service && systemctl enable --now applyd",
        ),
        _ => failure,
    })?;
    match daemon["role"].as_str() {
        Some("worker") => {
            let failure = Failure::new(Exit::Conflict, "this machine is a worker of a cluster already");
            return Err(failure.advise("its data goes away with: applyctl system reset"));
        }
        _ if !daemon["cluster"].is_null() && init.lock => {
            return Err(Failure::new(
                Exit::Conflict,
                "this machine has a cluster already; one is locked when it is founded",
            ));
        }
        _ if !daemon["cluster"].is_null() => return Ok(daemon),
        _ => {}
    }
    let passphrase = if init.lock { Some(chosen(session, init.passphrase_stdin)?) } else { None };
    let body = serde_json::to_vec(&waiting::Init { passphrase }).unwrap_or_default();
    remote.call(Method::POST, joining::INIT, Bytes::from(body)).await.map_err(Failure::beside_objects)?;
    let daemon = version::of_member(session, &remote, FOUNDING).await?;
    daemon.ok_or_else(|| {
        Failure::new(Exit::Failed, "applyd was told to found a cluster and holds none; its log says why")
    })
}
