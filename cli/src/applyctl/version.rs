//! `version`: of the command, and of the daemon that answers it.

use hyper::Method;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::session::Session;

pub async fn run(session: &mut Session) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let asked = match session.remote() {
        Ok(remote) => match remote.call(Method::GET, "/version", bytes::Bytes::new()).await {
            Ok(answer) => answer.bytes().await,
            Err(error) => Err(error),
        },
        Err(failure) => return Err(failure),
    };
    let daemon = match asked {
        Ok(bytes) => serde_json::from_slice::<Value>(&bytes)
            .map_err(|error| Failure::new(Exit::Failed, format!("applyd's answer cannot be read: {error}")))?,
        // The command's own version is worth something without a daemon.
        Err(error) => {
            session.screen.data(&format!("applyctl  {own}\n"))?;
            return Err(error.into());
        }
    };
    if session.print_value(&json!({"applyctl": own, "applyd": daemon}))? {
        return Ok(());
    }
    let version = daemon["gitVersion"].as_str().unwrap_or("–");
    Ok(session.screen.data(&format!("applyctl  {own}\napplyd    {version}\n"))?)
}
