//! The way to the daemon.

use std::net::SocketAddr;
use std::sync::Arc;

use reconciler::objects::remote::connection::Unix;
use reconciler::objects::{Client, Remote};
use reconciler::seams::Seams;

use super::args::{DEFAULT_HOST, Global};
use super::failure::{Exit, Failure};
use super::kubeconfig::{Context, Kubeconfig};
use super::session;
use crate::tls::{Keyring, Managers};

/// Whom to ask, and what is meant where no namespace is said.
pub struct Way {
    pub remote: Remote,
    pub namespace: Option<String>,
    /// The context that says so, if one does.
    pub context: Option<String>,
}

impl Way {
    fn by_socket(host: &str, seams: &Seams) -> Result<Self, Failure> {
        Ok(Self { remote: remote(host, seams)?, namespace: None, context: None })
    }
}

/// A socket that was said, a context that was said, the current context, or the usual socket: the first of them. Nothing
/// is sent yet: whether anybody is there shows at the first call. `of_machine`: what is asked is about this very machine.
pub fn way(global: &Global, of_machine: bool, seams: &Seams) -> Result<Way, Failure> {
    if of_machine {
        // Elsewhere the same words would take another machine away.
        if let Some(context) = &global.context {
            let failure = Failure::new(
                Exit::Usage,
                format!("this is about the machine that it is typed on, not about {context}"),
            );
            return Err(failure.advise("leave out --context, and APPLY_CONTEXT"));
        }
        return Way::by_socket(global.host.as_deref().unwrap_or(DEFAULT_HOST), seams);
    }
    if let Some(host) = &global.host {
        return Way::by_socket(host, seams);
    }
    let own = Kubeconfig::own()?;
    let context = global.context.as_deref().unwrap_or(&own.current_context);
    match context {
        "" => Way::by_socket(DEFAULT_HOST, seams),
        name => by_context(name, own.context(name)?, seams),
    }
}

fn by_context(name: &str, context: Context, seams: &Seams) -> Result<Way, Failure> {
    let bad = |why: String| Failure::new(Exit::Refused, format!("context {name}: {why}"));
    let address = |server: &String| {
        let host = server.strip_prefix("https://").unwrap_or(server).trim_end_matches('/');
        host.parse::<SocketAddr>().map_err(|_| bad(format!("{server} is no https://ADDRESS:PORT of a manager")))
    };
    let servers = context.servers.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let ring = Keyring::new(context.credentials, seams).map_err(|error| bad(error.to_string()))?;
    if ring.says().until < seams.now() {
        let failure = bad(format!("its credentials ended {}", ring.says().until));
        return Err(failure.advise("ask an administrator for new ones: applyctl user credentials NAME"));
    }
    let managers = Managers::new(servers, ring);
    let remote = Remote::new(Arc::new(managers), seams.clone());
    Ok(Way { remote, namespace: context.namespace, context: Some(name.to_owned()) })
}

/// By a socket of this machine.
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
