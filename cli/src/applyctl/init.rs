//! `init`: a cluster of one machine gets its name. applyd holds the cluster already; nothing is started here.

use reconciler::ObjectRef;
use reconciler::seams::Purpose;
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster};
use schemas::kinds::node::Node;
use serde_json::json;

use super::args::Init;
use super::failure::{Exit, Failure};
use super::session::Session;
use super::version;

const HOW: [&str; 16] = [
    "brave", "calm", "clever", "eager", "fair", "gentle", "happy", "keen", "kind", "lively", "merry", "patient",
    "quick", "quiet", "sunny", "wise",
];
const WHO: [&str; 16] = [
    "badger", "beaver", "crane", "falcon", "fox", "heron", "ibex", "lynx", "marten", "otter", "owl", "raven", "seal",
    "stork", "swift", "wren",
];

pub async fn run(session: &mut Session, init: &Init) -> Result<(), Failure> {
    let found = session.client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await.map_err(|error| {
        let failure = Failure::from(error);
        match failure.exit {
            Exit::Unreachable => failure.advise(
                "start applyd on this machine first:\n    applyd systemd-unit > /etc/systemd/system/applyd.service && systemctl enable --now applyd",
            ),
            _ => failure,
        }
    })?;
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
    if title != before {
        let mut desired = cluster.clone();
        desired.spec.title.clone_from(&title);
        session.client.update(&cluster, &desired).await?;
    }
    let nodes = session.client.list::<Node>(None).await?;
    let machine = nodes.first().map(|node| {
        let machine = node.status.as_ref().and_then(|status| status.machine.as_ref());
        let addresses = machine.map(|machine| machine.addresses.clone()).unwrap_or_default();
        (node.metadata.name.clone(), addresses)
    });
    let (node, addresses) = machine.unwrap_or_default();
    let daemon = version::of_daemon(&session.remote()?).await?;
    let store = daemon["store"].as_str().unwrap_or("unknown");
    if session.print_value(&json!({"cluster": title, "node": node, "addresses": addresses, "store": store}))? {
        return Ok(());
    }
    let address = addresses.first().map(|address| format!(" ({address})")).unwrap_or_default();
    let already = if before.is_empty() { "" } else { " already" };
    let store = if store == "etcd" { "store in etcd".to_owned() } else { format!("{store} store") };
    session.screen.say(&format!("cluster \"{title}\" is up on {node}{address}{already}, manager, {store}"))?;
    Ok(session
        .screen
        .say("  an application:   applyctl deploy NAME FILE.dab\n  a copy of it all:  applyctl backup FILE")?)
}
