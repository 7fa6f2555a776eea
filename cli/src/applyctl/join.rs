//! `join`: this machine becomes a member of a cluster that there is.

use std::time::Duration;

use bytes::Bytes;
use controllers::identity::Token;
use hyper::Method;
use serde_json::Value;

use super::args::Join;
use super::failure::{Exit, Failure};
use super::session::Session;
use super::version;
use super::words::fine;
use crate::daemon::joining;

/// For a machine that was taken in to be what it is then: a manager waits until it has all that is in the store.
const BECOMING: Duration = Duration::from_secs(60);

pub async fn run(session: &mut Session, join: &Join) -> Result<(), Failure> {
    // Typed wrong is better known before anybody is asked.
    join.token.parse::<Token>().map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let remote = session.remote()?;
    let begun = session.seams.monotonic();
    let daemon = version::of_daemon(&remote).await?;
    if let Some(cluster) = daemon["cluster"].as_str() {
        let failure = Failure::new(Exit::Conflict, format!("this machine is in a cluster already ({cluster})"));
        return Err(failure.advise("its data goes away with: applyctl system reset"));
    }
    let ask = joining::Join { address: join.address.clone(), token: join.token.clone(), node: join.node.clone() };
    let body = Bytes::from(serde_json::to_vec(&ask).unwrap_or_default());
    let answer = remote.call(Method::POST, joining::JOIN, body).await;
    let answer = answer.map_err(refused)?.bytes().await?;
    let said: Value = serde_json::from_slice(&answer)
        .map_err(|error| Failure::new(Exit::Failed, format!("applyd's answer cannot be read: {error}")))?;
    if version::of_member(session, &remote, BECOMING).await?.is_none() {
        let failure =
            Failure::new(Exit::NotConverged, "this machine is taken in, and applyd is not done with what follows");
        return Err(failure.advise("its log says what it waits for; it goes on by itself"));
    }
    let took = session.since(begun);
    if session.print_value(&said)? {
        return Ok(());
    }
    let word = |field: &str| said[field].as_str().unwrap_or_default().to_owned();
    Ok(session.screen.say(&format!(
        "{} joined \"{}\" as {}, {}",
        word("node"),
        word("title"),
        word("role"),
        fine(took)
    ))?)
}

/// The daemon's words stand for themselves.
fn refused(error: reconciler::objects::Error) -> Failure {
    use reconciler::objects::Error;
    match &error {
        Error::Forbidden { detail, .. } => Failure::new(Exit::NotAllowed, detail.trim_start_matches("403: ")),
        _ => Failure::beside_objects(error),
    }
}
