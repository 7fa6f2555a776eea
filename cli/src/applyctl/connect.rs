//! The way to the daemon.

use std::sync::Arc;

use reconciler::objects::remote::connection::Unix;
use reconciler::objects::{Client, Remote};
use reconciler::seams::Seams;

use super::args::DEFAULT_HOST;
use super::failure::{Exit, Failure};
use super::session;

/// Nothing is sent yet: whether anybody is there shows at the first call.
pub fn remote(host: &str, seams: &Seams) -> Result<Remote, Failure> {
    let path = match host.strip_prefix("unix://") {
        Some(path) => path,
        None if host.starts_with('/') => host,
        None => {
            let failure = Failure::new(Exit::Usage, format!("{host:?} is no address of applyd"));
            return Err(failure.advise(format!("say a unix socket, such as --host {DEFAULT_HOST}")));
        }
    };
    let connect = Unix::new(path).advice("");
    Ok(Remote::new(Arc::new(connect), seams.clone()))
}

pub fn client(remote: Remote) -> Client {
    Client::new(Arc::new(remote), session::writer())
}
