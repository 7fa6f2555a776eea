//! `leave`: this machine goes, and what it runs is elsewhere before it does.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use reconciler::objects::Remote;

use super::args::Leave;
use super::failure::{Exit, Failure};
use super::session::Session;
use super::system::There;
use super::{node, version, words};
use crate::daemon::leaving::{LEAVE, Leave as Ask, Left};

/// Between two times of asking.
const LOOK: Duration = Duration::from_millis(200);
/// For a manager to become a worker.
const BECOMING: Duration = Duration::from_secs(60);
/// For applyd to listen again, in no cluster.
const BEGINNING: Duration = Duration::from_secs(10);

pub async fn run(session: &mut Session, leave: &Leave) -> Result<(), Failure> {
    let remote = session.remote()?;
    let daemon = version::of_daemon(&remote).await?;
    if daemon["cluster"].is_null() {
        return Err(Failure::new(Exit::Failed, "this machine is in no cluster"));
    }
    let name = daemon["node"].as_str().unwrap_or_default().to_owned();
    let there = There::look(&remote).await?;
    let data = there.words();
    let how = if leave.force { "at once" } else { "once its tasks run elsewhere" };
    session.confirm(&format!("take {name} out of its cluster {how}, and remove everything here: {data}"), leave.yes)?;
    if daemon["role"] == "manager" {
        node::demote(session, std::slice::from_ref(&name)).await.map_err(|failure| match failure.exit {
            Exit::Conflict => failure.advise("the whole cluster goes, where it is the last: applyctl system reset"),
            _ => failure,
        })?;
        becomes_a_worker(session, &remote).await?;
    }
    emptied(session, &remote, &name, leave.force).await?;
    there.remove(session, &remote, true).await?;
    let begun = session.seams.monotonic();
    while version::of_daemon(&remote).await.is_err() && session.since(begun) < BEGINNING {
        session.seams.sleep(LOOK).await;
    }
    Ok(session.screen.say(&format!("{name} has left, and nothing of it is here; applyd waits for: applyctl join"))?)
}

async fn becomes_a_worker(session: &Session, remote: &Remote) -> Result<(), Failure> {
    let begun = session.seams.monotonic();
    while session.since(begun) < BECOMING {
        // It begins anew meanwhile, and does not listen for a moment.
        if version::of_daemon(remote).await.is_ok_and(|daemon| daemon["role"] == "worker") {
            return Ok(());
        }
        session.seams.sleep(LOOK).await;
    }
    let failure = Failure::new(Exit::NotConverged, "this manager has not become a worker within a minute");
    Err(failure.advise("its log says what it waits for; then again: applyctl leave"))
}

/// Until the cluster has no such machine any more.
async fn emptied(session: &mut Session, remote: &Remote, name: &str, force: bool) -> Result<(), Failure> {
    let mut said = usize::MAX;
    let mut answered = session.seams.monotonic();
    loop {
        let body = Bytes::from(serde_json::to_vec(&Ask { force }).unwrap_or_default());
        let left: Left = match remote.call(Method::POST, LEAVE, body).await {
            Ok(answer) => serde_json::from_slice(&answer.bytes().await?)
                .map_err(|error| Failure::new(Exit::Failed, format!("applyd's answer cannot be read: {error}")))?,
            // A manager may have gone; the next one is asked.
            Err(reconciler::objects::Error::Unavailable { detail })
                if !detail.starts_with("409: ") && session.since(answered) < BECOMING =>
            {
                session.seams.sleep(LOOK).await;
                continue;
            }
            Err(error) => {
                let failure = Failure::beside_objects(error);
                return Err(match failure.exit {
                    Exit::Conflict => {
                        failure.advise("remove what is not needed (applyctl volume rm), or: leave --force")
                    }
                    _ => failure,
                });
            }
        };
        answered = session.seams.monotonic();
        if left.gone {
            return Ok(());
        }
        if left.tasks != said && left.tasks > 0 {
            said = left.tasks;
            let tasks = words::count(left.tasks, "task");
            session.screen.say(&format!(
                "  {tasks} on {name} to be replaced elsewhere (^C: {name} stays, drained; --force does not wait)"
            ))?;
        }
        session.seams.sleep(LOOK).await;
    }
}
