//! `ca`: the authority that signs the certificates of machines and people, and how it becomes another one.

use std::collections::BTreeSet;
use std::time::Duration;

use reconciler::ObjectRef;
use schemas::kinds::cluster::{AuthorityState, AuthorityStatus, CLUSTER_NAME, Cluster};
use schemas::kinds::node::Node;
use schemas::quantity::Period;
use serde_json::{Value, json};

use super::args::{Ca as Command, CaRotate};
use super::failure::{Exit, Failure};
use super::session::Session;
use super::table::Table;
use super::{version, words};

/// Of a fingerprint, in a table: enough to tell a cluster's authorities apart.
const SHORT: usize = 12;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls => ls(session).await,
        Command::Rotate(rotate) => self::rotate(session, rotate).await,
    }
}

async fn cluster(session: &Session) -> Result<Cluster, Failure> {
    Ok(session.client.get(&ObjectRef::cluster(CLUSTER_NAME)).await?)
}

/// The fingerprint that join tokens carry: that of the authority which signs now.
pub async fn signing(session: &Session) -> Result<Option<String>, Failure> {
    let known = session.client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await?;
    let listed = known.and_then(|cluster| cluster.status).unwrap_or_default().authorities;
    if let Some(signing) = listed.into_iter().find(|authority| authority.state == AuthorityState::Signing) {
        return Ok(Some(signing.fingerprint));
    }
    // There was never another than the first.
    let daemon = version::of_daemon(&session.remote()?).await?;
    Ok(daemon["authority"].as_str().map(str::to_owned))
}

async fn ls(session: &mut Session) -> Result<(), Failure> {
    let mut listed = cluster(session).await?.status.unwrap_or_default().authorities;
    if listed.is_empty() {
        let fingerprint = signing(session).await?.unwrap_or_default();
        listed.push(AuthorityStatus { fingerprint, state: AuthorityState::Signing, ..AuthorityStatus::default() });
    }
    let nodes = session.client.list::<Node>(None).await?;
    let identities: Vec<_> = nodes.iter().filter_map(|node| node.status.as_ref()?.identity.as_ref()).collect();
    let rows: Vec<(AuthorityStatus, usize, usize)> = listed
        .into_iter()
        .map(|authority| {
            let shown = identities.iter().filter(|it| it.signed_by == authority.fingerprint).count();
            let believed = identities.iter().filter(|it| it.believes.contains(&authority.fingerprint)).count();
            (authority, shown, believed)
        })
        .collect();
    let value: Value = rows
        .iter()
        .map(|(authority, shown, believed)| {
            json!({
                "fingerprint": authority.fingerprint, "state": authority.state, "since": authority.since,
                "rotation": authority.rotation, "machinesSigned": shown, "machinesBelieving": believed,
            })
        })
        .collect();
    if session.print_value(&value)? {
        return Ok(());
    }
    let mut table = Table::new(["FINGERPRINT", "STATE", "SINCE", "CERTIFICATES", "BELIEVED BY"]);
    let all = nodes.len();
    for (authority, shown, believed) in rows {
        let since = authority.since.map_or_else(|| "the beginning".to_owned(), |since| since.to_string());
        let short: String = authority.fingerprint.chars().take(SHORT).collect();
        table.row(vec![
            short.into(),
            format!("{:?}", authority.state).into(),
            since.into(),
            format!("{shown} of {all} machines").into(),
            format!("{believed} of {all} machines").into(),
        ]);
    }
    let text = table.print(session.screen.look());
    Ok(session.screen.data(&text)?)
}

async fn rotate(session: &mut Session, rotate: &CaRotate) -> Result<(), Failure> {
    let start = session.seams.monotonic();
    let before = cluster(session).await?;
    let latest = before.status.iter().flat_map(|status| &status.authorities).map(|it| it.rotation).max().unwrap_or(0);
    let under_way = before.spec.authority.rotation > latest
        || before.status.iter().flat_map(|status| &status.authorities).any(|it| it.state == AuthorityState::Coming);
    let mut desired = before.clone();
    // One that is under way is what was asked for.
    if !under_way {
        desired.spec.authority.rotation = before.spec.authority.rotation + 1;
    }
    if let Some(overlap) = rotate.overlap {
        desired.spec.authority.overlap = Period::new(overlap);
    }
    let wanted = desired.spec.authority.clone();
    if desired.spec != before.spec {
        session.client.update(&before, &desired).await?;
    }
    if rotate.patience.detach {
        session.screen.say("the authority becomes another one; see how it goes: applyctl ca ls")?;
        return Ok(());
    }
    let mut said = String::new();
    loop {
        let now = cluster(session).await?;
        let status = now.status.clone().unwrap_or_default();
        let waiting = status.conditions.get("AuthorityIsLatest").map(|it| it.message.clone()).unwrap_or_default();
        let signing = status.authorities.iter().find(|it| it.state == AuthorityState::Signing);
        if let Some(signing) = signing.filter(|it| it.rotation >= wanted.rotation) {
            let nodes = session.client.list::<Node>(None).await?;
            let shown: BTreeSet<&str> = nodes
                .iter()
                .map(|node| node.status.as_ref().and_then(|it| it.identity.as_ref()))
                .map(|identity| identity.map_or("", |it| it.signed_by.as_str()))
                .collect();
            let is_over = status.authorities.len() == 1;
            if shown.iter().all(|it| *it == signing.fingerprint) && (is_over || !wanted.overlap.is_zero()) {
                return done(session, signing, nodes.len(), is_over, &wanted.overlap.to_string(), start);
            }
        }
        if waiting != said && !waiting.is_empty() {
            session.screen.say(&format!("  {waiting}"))?;
            said = waiting;
        }
        if session.since(start) > rotate.patience.timeout {
            let failure = Failure::new(Exit::NotConverged, format!("the authority is not another one yet: {said}"));
            return Err(failure.advise("it goes on by itself; see how far it is: applyctl ca ls"));
        }
        session.seams.sleep(LOOK).await;
    }
}

fn done(
    session: &mut Session,
    signing: &AuthorityStatus,
    machines: usize,
    is_over: bool,
    overlap: &str,
    start: reconciler::seams::Monotonic,
) -> Result<(), Failure> {
    let value = json!({"fingerprint": signing.fingerprint, "machines": machines, "since": signing.since});
    if session.print_value(&value)? {
        return Ok(());
    }
    let short: String = signing.fingerprint.chars().take(SHORT).collect();
    let took = words::fine(session.since(start));
    let certificates = words::count(machines, "machine");
    let before = match is_over {
        true => "what the one before signed is good no more".to_owned(),
        false => format!("what the one before signed is good for {overlap} from then on"),
    };
    Ok(session.screen.data(&format!(
        "authority {short} signs now, and {certificates} have certificates of it, {took}\n  {before}: credentials of people (new ones: applyctl user credentials NAME)\n  join tokens of before are good no more:   applyctl token create\n"
    ))?)
}
