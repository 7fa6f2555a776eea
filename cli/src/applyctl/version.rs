//! `version`: of the command, and of the daemon that answers it.

use std::time::Duration;

use hyper::Method;
use reconciler::objects::Remote;
use schemas::level::VERSION;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::session::Session;

pub async fn run(session: &mut Session) -> Result<(), Failure> {
    let own = VERSION;
    let remote = session.remote()?;
    let daemon = match of_daemon(&remote).await {
        Ok(daemon) => daemon,
        // The command's own version is worth something without a daemon.
        Err(failure) => {
            session.screen.data(&format!("applyctl  {own}\n"))?;
            return Err(failure);
        }
    };
    if session.print_value(&json!({"applyctl": own, "applyd": daemon}))? {
        return Ok(());
    }
    let version = daemon["gitVersion"].as_str().unwrap_or("–");
    Ok(session.screen.data(&format!("applyctl  {own}\napplyd    {version}\n"))?)
}

/// What the daemon says of itself: `gitVersion`, `store` (`embedded` or `etcd`).
pub async fn of_daemon(remote: &Remote) -> Result<Value, Failure> {
    let answer = remote.call(Method::GET, "/version", bytes::Bytes::new()).await?;
    serde_json::from_slice(&answer.bytes().await?)
        .map_err(|error| Failure::new(Exit::Failed, format!("applyd's answer cannot be read: {error}")))
}

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// What the daemon says of itself once it is in a cluster; `None`: it is in none after that long.
pub async fn of_member(session: &Session, remote: &Remote, patience: Duration) -> Result<Option<Value>, Failure> {
    once(session, remote, patience, |daemon| !daemon["cluster"].is_null()).await
}

/// What the daemon says of itself once that is what is waited for; `None`: it is not after that long.
pub async fn once(
    session: &Session,
    remote: &Remote,
    patience: Duration,
    is_so: impl Fn(&Value) -> bool,
) -> Result<Option<Value>, Failure> {
    let begun = session.seams.monotonic();
    while session.since(begun) < patience {
        match of_daemon(remote).await {
            Ok(daemon) if is_so(&daemon) => return Ok(Some(daemon)),
            // It changes from what it was to what it is then, and does not listen for a moment.
            Ok(_) => {}
            Err(failure) if failure.exit == Exit::Unreachable => {}
            Err(failure) => return Err(failure),
        }
        session.seams.sleep(LOOK).await;
    }
    Ok(None)
}
