//! How a machine becomes a member: what it asks a manager, and what the manager answers. And how members get their next
//! certificates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use controllers::identity::{Issued, Request, Secret, Token};
use controllers::level;
use hyper::Method;
use reconciler::cache::Cache;
use reconciler::objects::{Client, Error, Remote};
use reconciler::seams::Seams;
use reconciler::server::Peer;
use reconciler::store::etcd::Etcd;
use reconciler::{ObjectRef, Resource};
use schemas::defaults::NODE_CERTIFICATE;
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster};
use schemas::kinds::join_token::JoinToken;
use schemas::kinds::node::{Node, NodeSpec, Role};
use schemas::level::VERSION;
use serde::{Deserialize, Serialize};

use super::answer::{Refusal, Short};
use super::authorities::Held;
use super::membership::{Member, Membership};
use crate::tls::{ANONYMOUS, ANOTHER_CLUSTER, Credentials, Pinned, RENEWING};

/// At a machine's own socket: found a cluster.
pub const INIT: &str = "/apis/apply/v1/init";
/// At a machine's own socket: join a cluster. At a manager's port: take this machine in.
pub const JOIN: &str = "/apis/apply/v1/join";
/// At a manager's port: the next certificate.
pub const CERTIFICATE: &str = "/apis/apply/v1/certificate";
/// Where managers listen unless they are told otherwise.
pub const PORT: u16 = 7677;

/// Notes on a Node whose key asked for it, so that a machine whose answer was lost may ask again.
const JOINED_WITH: &str = "apply/joined-with";

/// What `applyctl join` tells the daemon of its own machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Join {
    /// A manager: host or address, perhaps with a port.
    pub address: String,
    pub token: String,
    /// What this machine shall be called; default what its applyd was told, or its host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// What a machine asks a manager.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    /// The digest is what is kept; the secret proves it.
    secret: String,
    node: String,
    /// PKCS#10 in PEM.
    request: String,
    /// Of its applyd.
    version: Option<String>,
}

/// What a manager answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    member: Member,
    /// What people call the cluster.
    title: String,
    /// Certificate and authority, in PEM.
    chain: String,
    authorities: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct AskAgain {
    request: String,
}

/// Why a machine did not join.
#[derive(Debug)]
pub struct Failure {
    pub code: StatusCode,
    pub message: String,
}

fn failure(code: StatusCode, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

/// Joins the cluster of a token, and has its membership on the disk; also what people call the cluster.
///
/// # Errors
/// In words, with what to do. Nothing is half there.
pub async fn join(
    join: &Join,
    node: &str,
    membership: &Membership,
    seams: &Seams,
) -> Result<(Member, String), Failure> {
    let token: Token = join.token.parse().map_err(|error| failure(StatusCode::BAD_REQUEST, format!("{error}")))?;
    let address = address_of(&join.address).await?;
    let request = membership.request();
    let request = request.map_err(|error| failure(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")))?;
    let (member, credentials, title) = taken_in(&token, address, node, request, seams).await?;
    membership
        .join(&member, &credentials)
        .map_err(|error| failure(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")))?;
    tracing::info!(node = member.node, cluster = member.cluster, role = ?member.role, "this machine has joined");
    Ok((member, title))
}

/// What a manager makes of a machine that shows a token: a member, what it shows from then on, and what people call the
/// cluster.
///
/// # Errors
/// In words, with what to do.
pub async fn taken_in(
    token: &Token,
    address: SocketAddr,
    node: &str,
    request: Request,
    seams: &Seams,
) -> Result<(Member, Credentials, String), Failure> {
    let remote = Remote::new(Arc::new(Pinned::new(address, token.authority, seams)), seams.clone());
    let ask = Ask {
        secret: token.secret.reveal(),
        node: node.to_owned(),
        request: request.request,
        version: Some(VERSION.to_owned()),
    };
    let body = serde_json::to_vec(&ask).unwrap_or_default();
    let answered = match remote.call(Method::POST, JOIN, Bytes::from(body)).await {
        Ok(answer) => answer.bytes().await,
        Err(error) => Err(error),
    };
    let answer = answered.map_err(|error| told(&error, address, seams))?;
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|error| failure(StatusCode::BAD_GATEWAY, format!("{address} answers strangely: {error}")))?;
    let mut member = answer.member;
    if !member.managers.contains(&address) {
        member.managers.insert(0, address);
    }
    let credentials = Credentials { chain: answer.chain, key: request.key, authorities: answer.authorities };
    Ok((member, credentials, answer.title))
}

/// A host, an address, either with a port.
async fn address_of(text: &str) -> Result<SocketAddr, Failure> {
    let bad = |why: String| failure(StatusCode::BAD_REQUEST, format!("{text:?} is no address of a manager: {why}"));
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(address) = text.trim_matches(['[', ']']).parse() {
        return Ok(SocketAddr::new(address, PORT));
    }
    let with_port = if text.contains(':') { text.to_owned() } else { format!("{text}:{PORT}") };
    let mut found = tokio::net::lookup_host(&with_port).await.map_err(|error| bad(error.to_string()))?;
    found.next().ok_or_else(|| bad("it has no address".to_owned()))
}

/// What an error of the call means to whoever joins.
fn told(error: &Error, address: SocketAddr, seams: &Seams) -> Failure {
    let text = error.to_string();
    match error {
        Error::Unavailable { .. } if text.contains(ANOTHER_CLUSTER) => {
            let why = format!(
                "the token is of another cluster than the one that {address} is of, or another authority signs there since it was \
                 made; a new one, on a manager: applyctl token create"
            );
            failure(StatusCode::FORBIDDEN, why)
        }
        Error::Unavailable { .. } if text.contains("expired") || text.contains("not valid yet") => failure(
            StatusCode::FORBIDDEN,
            format!(
                "by the clock of this machine ({}) the certificate of {address} does not hold: {text}. Set the clock right",
                seams.now()
            ),
        ),
        Error::Unavailable { .. } => failure(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("no manager answers at {address}: {text}. Is applyd up there, and is the port open?"),
        ),
        Error::Forbidden { detail, .. } => {
            failure(StatusCode::FORBIDDEN, detail.trim_start_matches("403: ").to_owned())
        }
        Error::Invalid { faults, .. } => {
            let lines: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
            failure(StatusCode::BAD_REQUEST, lines.join("\n"))
        }
        _ => failure(StatusCode::BAD_GATEWAY, text),
    }
}

/// What a manager needs to take machines in.
#[derive(Clone)]
pub struct Registrar {
    pub client: Client,
    pub authorities: Held,
    /// Where this manager is reached.
    pub addresses: Vec<SocketAddr>,
    /// Keeps Nodes, which say where the others are.
    pub cache: Cache,
    /// The store whose members managers are, where they run it themselves.
    pub votes: Option<Arc<Etcd>>,
    pub cluster: String,
    pub seams: Seams,
}

/// Whoever joins has no certificate yet, so these look at their callers themselves.
pub fn routes(registrar: Registrar) -> Router {
    Router::new().route(JOIN, post(take_in)).route(CERTIFICATE, post(renew)).with_state(registrar)
}

async fn take_in(
    State(registrar): State<Registrar>,
    Extension(peer): Extension<Peer>,
    Short(ask): Short<Ask>,
) -> Result<Json<Answer>, Response> {
    let forbidden = |why: String| Refusal(StatusCode::FORBIDDEN, why);
    if &*peer.identity != ANONYMOUS {
        return Err(forbidden(format!("{} is a member already", peer.identity)).into());
    }
    let role = registrar.role_of(&ask.secret).await.map_err(|refusal| refusal.counted_as("token"))?;
    let fault = schemas::names::label_fault(&ask.node);
    if let Some(fault) = fault {
        let why = format!("{:?} is no name for a machine: {fault}", ask.node);
        return Err(Refusal(StatusCode::BAD_REQUEST, why).into());
    }
    if let Some(known) = registrar.cache.snapshot() {
        level::fits(&known, ask.version.as_deref()).map_err(forbidden)?;
    }
    let node = registrar.node(&ask, role).await?;
    let subject_of = Member {
        cluster: registrar.cluster.clone(),
        node: node.metadata.name.clone(),
        uid: node.metadata.uid.clone(),
        role: node.spec.role,
        managers: registrar.managers(),
    };
    let issued = registrar.issue(&subject_of, &ask.request).await?;
    tracing::info!(node = subject_of.node, role = ?role, "a machine has joined");
    Ok(Json(registrar.answer(subject_of, &issued).await?))
}

async fn renew(
    State(registrar): State<Registrar>,
    Extension(peer): Extension<Peer>,
    Short(ask): Short<AskAgain>,
) -> Result<Json<Answer>, Refusal> {
    let identity = peer.identity.strip_prefix(RENEWING).unwrap_or(&peer.identity);
    let Some(name) = identity.strip_prefix("node:") else {
        return Err(Refusal(StatusCode::FORBIDDEN, format!("{identity} is no machine of the cluster")));
    };
    let node = registrar.client.find::<Node>(&ObjectRef::cluster(name)).await?;
    let node = node.filter(|node| node.metadata.uid.as_str() == &*peer.uid);
    if node.as_ref().is_none_or(|node| node.spec.role == Role::Worker) {
        registrar.has_no_vote(name).await?;
    }
    let Some(node) = node else {
        return Err(Refusal(StatusCode::FORBIDDEN, format!("{name} was removed from the cluster")));
    };
    let member = Member {
        cluster: registrar.cluster.clone(),
        node: name.to_owned(),
        uid: node.metadata.uid.clone(),
        role: node.spec.role,
        managers: registrar.managers(),
    };
    let issued = registrar.issue(&member, &ask.request).await?;
    Ok(Json(registrar.answer(member, &issued).await?))
}

impl Registrar {
    /// Who was a manager is told that it is none any more only when the others can decide without it.
    async fn has_no_vote(&self, name: &str) -> Result<(), Refusal> {
        let Some(store) = &self.votes else { return Ok(()) };
        let later = |why: String| Refusal(StatusCode::SERVICE_UNAVAILABLE, why);
        let members = store.members().await.map_err(|error| later(error.to_string()))?;
        match members.iter().any(|member| member.name == name) {
            true => Err(later(format!("{name} has a vote in the store yet; ask again"))),
            false => Ok(()),
        }
    }

    /// This one first.
    pub(super) fn managers(&self) -> Vec<SocketAddr> {
        let mut managers = self.addresses.clone();
        if let Some(known) = self.cache.snapshot() {
            let others = known.all::<Node>().flat_map(|node| node.api_addresses());
            let others: Vec<SocketAddr> = others.filter(|at| !self.addresses.contains(at)).copied().collect();
            managers.extend(others);
        }
        managers
    }

    async fn role_of(&self, secret: &str) -> Result<Role, Refusal> {
        let forbidden = |why: String| Refusal(StatusCode::FORBIDDEN, why);
        let secret = Secret::parse(secret).ok_or_else(|| forbidden("no secret was shown".to_owned()))?;
        let digest = secret.digest();
        let tokens = self.client.list::<JoinToken>(None).await?;
        let found = tokens.iter().find(|token| token.spec.digest == digest);
        const ANOTHER: &str = "make another on a manager: applyctl token create";
        let Some(token) = found else {
            return Err(forbidden(format!("the token is not known to this cluster; {ANOTHER}")));
        };
        if token.spec.revoked {
            return Err(forbidden(format!("the token was revoked; {ANOTHER}")));
        }
        match token.spec.expires_at {
            Some(end) if end <= self.seams.now() => Err(forbidden(format!("the token has expired ({end}); {ANOTHER}"))),
            _ => Ok(token.spec.role),
        }
    }

    /// The Node of a machine that joins; the one that it made itself when its first answer was lost.
    async fn node(&self, ask: &Ask, role: Role) -> Result<Node, Refusal> {
        let asked_with = controllers::identity::key_of_request(&ask.request)
            .map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
        let reference = ObjectRef::cluster(&ask.node);
        let mut node = Node::new(&ask.node, NodeSpec { role, ..NodeSpec::default() });
        node.metadata.annotations.insert(JOINED_WITH.to_owned(), asked_with.to_string());
        match self.client.create(&node).await {
            Ok(made) => return Ok(made),
            Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let found = self.client.get::<Node>(&reference).await?;
        if found.metadata.annotations.get(JOINED_WITH).map(String::as_str) == Some(&asked_with.to_string()) {
            return Ok(found);
        }
        Err(Refusal(
            StatusCode::FORBIDDEN,
            format!(
                "there is a machine {0} in the cluster already. Another name: applyctl join --node NAME …; if it is this one, \
                 installed anew, first on a manager: applyctl node rm {0}",
                ask.node
            ),
        ))
    }

    async fn issue(&self, member: &Member, request: &str) -> Result<Issued, Refusal> {
        let life = certificate_life(&self.client).await?;
        let issued = self.authorities.signing().issue(&member.subject(), request, self.seams.now(), life);
        issued.map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))
    }

    /// What people call the cluster.
    pub(super) async fn title(&self) -> Result<String, Refusal> {
        let cluster = self.client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await?;
        Ok(cluster.map(|cluster| cluster.spec.title).unwrap_or_default())
    }

    async fn answer(&self, member: Member, issued: &Issued) -> Result<Answer, Refusal> {
        let title = self.title().await?;
        Ok(Answer { member, title, chain: issued.chain.clone(), authorities: self.authorities.believed() })
    }
}

/// How long a certificate that is made now shall live.
///
/// # Errors
/// The store does not answer.
pub async fn certificate_life(client: &Client) -> Result<Duration, Error> {
    let cluster = client.find::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).await?;
    Ok(cluster.map_or(NODE_CERTIFICATE.value, |cluster| cluster.spec.periods.node_certificate).get())
}

/// The next certificate of this machine, from a manager.
///
/// # Errors
/// As the manager said; [`Error::Forbidden`] when this machine is no member any more.
pub async fn next_certificate(remote: &Remote) -> Result<(Member, Credentials), Error> {
    let strange = |error: &dyn std::fmt::Display| Error::Unavailable { detail: error.to_string() };
    let request = Request::make().map_err(|error| strange(&error))?;
    let body = serde_json::to_vec(&AskAgain { request: request.request }).unwrap_or_default();
    let answer = remote.call(Method::POST, CERTIFICATE, Bytes::from(body)).await?.bytes().await?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(|error| strange(&error))?;
    let credentials = Credentials { chain: answer.chain, key: request.key, authorities: answer.authorities };
    Ok((answer.member, credentials))
}
