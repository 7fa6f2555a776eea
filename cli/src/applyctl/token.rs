//! `token`: what a machine joins with. The secret is shown once, and only its digest is kept.

use std::net::SocketAddr;

use controllers::identity::{Fingerprint, Secret, Token};
use reconciler::{ObjectRef, Resource};
use ring::rand::{SecureRandom, SystemRandom};
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster};
use schemas::kinds::join_token::{JoinToken, JoinTokenSpec};
use schemas::kinds::node::Role;
use serde_json::json;

use super::args::{Token as Command, TokenCreate, TokenRole};
use super::failure::{Exit, Failure};
use super::session::Session;
use super::words::rough;
use super::{ca, find, get, version};
use crate::daemon::joining;

/// Of the digest, in a token's name: enough to tell a cluster's tokens apart.
const NAME_DIGITS: usize = 8;

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Create(create) => self::create(session, create).await,
        Command::Ls(ls) => get::list(session, "jointoken", &ls.which).await,
        Command::Revoke { names } => revoke(session, names).await,
    }
}

/// A token that was made, and where it is of use.
pub struct Made {
    pub token: Token,
    pub name: String,
    /// Managers, as machines that join reach them.
    pub addresses: Vec<String>,
    /// How long it is taken, for people.
    pub life: String,
}

impl Made {
    /// What to type on a machine that joins.
    pub fn command(&self) -> String {
        format!("applyctl join {} {}", self.addresses.first().map_or("ADDRESS", String::as_str), self.token)
    }
}

/// Makes a token for machines of a role, valid for the cluster's time or so long as is said.
pub async fn make(session: &Session, role: Role, life: Option<std::time::Duration>) -> Result<Made, Failure> {
    let daemon = version::of_daemon(&session.remote()?).await?;
    let authority = ca::signing(session).await?.as_deref().and_then(Fingerprint::parse);
    let Some(authority) = authority else {
        // It says itself what it is and whom to ask.
        session.client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await?;
        return Err(Failure::new(Exit::Failed, "this applyd has no authority for machines"));
    };
    let mut bytes = [0; 16];
    let random = SystemRandom::new().fill(&mut bytes);
    random.map_err(|_| Failure::new(Exit::Failed, "the kernel gives no random numbers"))?;
    let token = Token { authority, secret: Secret::new(bytes) };
    let life = match life {
        Some(life) => life,
        None => {
            let cluster = session.client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await?;
            cluster.map(|cluster| cluster.spec.periods).unwrap_or_default().join_token.get()
        }
    };
    let digest = token.secret.digest();
    let word = if role == Role::Manager { "manager" } else { "worker" };
    let name = format!("{word}-{}", &digest[..NAME_DIGITS]);
    let spec = JoinTokenSpec { role, digest, expires_at: Some((session.now() + life).truncated()), revoked: false };
    session.client.create(&JoinToken::new(&name, spec)).await?;
    let addresses = daemon["addresses"].as_array().into_iter().flatten().filter_map(|at| at.as_str());
    let addresses = addresses.map(typed).collect();
    Ok(Made { token, name, addresses, life: rough(life) })
}

/// As it is typed: the usual port goes without saying.
fn typed(address: &str) -> String {
    match address.parse::<SocketAddr>() {
        Ok(address) if address.port() == joining::PORT => address.ip().to_string(),
        _ => address.to_owned(),
    }
}

async fn create(session: &mut Session, create: &TokenCreate) -> Result<(), Failure> {
    let role = match create.role {
        TokenRole::Worker => Role::Worker,
        TokenRole::Manager => Role::Manager,
    };
    let made = make(session, role, create.ttl).await?;
    let value = json!({
        "token": made.token.to_string(), "name": made.name, "role": role, "addresses": made.addresses,
    });
    if session.print_value(&value)? {
        return Ok(());
    }
    session.screen.data(&format!("{}\n", made.token))?;
    Ok(session.screen.say(&format!(
        "another machine joins, within {}, with (it is not shown again):   applyctl join {} TOKEN",
        made.life,
        made.addresses.first().map_or("ADDRESS", String::as_str),
    ))?)
}

async fn revoke(session: &mut Session, names: &[String]) -> Result<(), Failure> {
    let kind = find::kind("jointoken")?;
    for name in names {
        let found = find::object(session, &kind, name).await?;
        let observed: JoinToken = session.client.get(&found.reference).await?;
        let mut desired = observed.clone();
        desired.spec.revoked = true;
        session.client.update(&observed, &desired).await?;
        session
            .screen
            .say(&format!("token/{} is no longer taken; machines that joined with it stay", observed.name()))?;
    }
    Ok(())
}
