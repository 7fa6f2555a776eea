//! The verbs over HTTP, in Kubernetes' URL shapes, so that `kubectl` and what is built on its libraries can talk to any
//! [`Objects`]; and the two calls that [`Remote`](crate::objects::remote) needs beside them (`objects::wire`).
//!
//! Served are, for every kind in [`Kinds`]: discovery (`/apis`, `/api`), `get`, `list` (pages, label and field
//! selectors, `Accept: …;as=Table`), `watch`, `create`, `update`, `patch` (JSON patch and merge patch), `delete` (with
//! propagation and preconditions), `/status`, `/scale` where the kind has one, `dryRun`; `/openapi/v3`, `/healthz`, `/readyz`, `/version`, `/metrics`.
//!
//! The server decides nothing about objects: it asks its [`Access`] whether a [`Peer`] may, translates, and lets the
//! [`Objects`] behind it answer. Who the peer is was found out by the [`Listener`]; the host adds routes of its own with
//! [`Server::merge`], which find the peer among the request's extensions.
//!
//! Everything that a peer can make grow has a bound, see [`Limits`].
//!
//! Reading order: `mod` (what a host says), `listen` (connections), `route` (paths), `handle` (verbs), `watching`,
//! `answer` (statuses), `scale`, `table`, `discovery`, `openapi`.

mod answer;
mod discovery;
mod handle;
mod listen;
mod openapi;
mod query;
mod route;
mod scale;
mod table;
mod watching;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::Method;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use serde_json::Value;

use reconciler_api::{Kind, ObjectRef};

use crate::controller::Signal;
use crate::metrics::{self, Metrics};
use crate::objects::{Kinds, Objects};
use crate::seams::Seams;

pub use listen::{Listener, Loopback, UnixSocket};

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The authenticated identity: `user:ann`, `node:n1`.
    pub identity: Arc<str>,
    /// The uid of the object that stands for the identity, as far as whoever authenticated it knows one: a successor of
    /// the same name is somebody else. Empty: not known.
    pub uid: Arc<str>,
    /// It may do everything, and its word is taken on in whose name it writes: the machine's administrator.
    pub trusted: bool,
    /// Where it is, if it is anywhere else.
    pub address: Option<SocketAddr>,
    /// It has not shown who it is. Others come by the same identity, so that what it has is counted by its address, and it
    /// is given less of everything.
    pub nobody: bool,
}

impl Peer {
    /// Somebody who may do what [`Access`] says.
    pub fn new(identity: impl Into<Arc<str>>) -> Self {
        Self { identity: identity.into(), uid: "".into(), trusted: false, address: None, nobody: false }
    }

    /// Somebody who has not shown who it is.
    pub fn nobody(identity: impl Into<Arc<str>>) -> Self {
        Self { nobody: true, ..Self::new(identity) }
    }

    /// Somebody who may do everything.
    pub fn trusted(identity: impl Into<Arc<str>>) -> Self {
        Self { trusted: true, ..Self::new(identity) }
    }

    /// The same, whose object has this uid.
    pub fn of(self, uid: impl Into<Arc<str>>) -> Self {
        Self { uid: uid.into(), ..self }
    }

    /// The same, as seen from this address.
    pub fn at(self, address: SocketAddr) -> Self {
        Self { address: Some(address), ..self }
    }

    /// Under what that which it has is counted.
    fn account(&self) -> Arc<str> {
        match self.address.filter(|_| self.nobody) {
            Some(address) => format!("{} at {}", self.identity, address.ip()).into(),
            None => self.identity.clone(),
        }
    }
}

/// Why a request was answered with 403 or 401: among the extensions of such an answer, by whatever route it came about. Routes of
/// the host's own put it there themselves.
#[derive(Clone, Debug)]
pub struct Reason(pub Arc<str>);

/// What such an answer, or one of another code, is counted as in `reconciler_refused_total`, where a route of the host's own has
/// a better word than the code says. Among the extensions of the answer.
#[derive(Clone, Copy, Debug)]
pub struct CountedAs(pub &'static str);

/// A request that was refused because of who asked.
#[derive(Clone, Copy, Debug)]
pub struct Refused<'a> {
    /// Who asked; `None` where nobody is known.
    pub peer: Option<&'a Peer>,
    /// What it asked for.
    pub method: &'a Method,
    /// Without the query.
    pub path: &'a str,
    /// Why not, for people.
    pub reason: &'a str,
}

/// What a peer wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Kubernetes' word: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'a str,
    /// The kind of what it wants to do it to.
    pub kind: &'a Kind,
    /// The name is empty for `list` and `watch`; the namespace too when all are meant.
    pub reference: &'a ObjectRef,
    /// `status`, or empty.
    pub subresource: &'a str,
}

/// Decides who may do what. Asked before each read and each write, from what it knows: it does not wait.
pub trait Access: fmt::Debug + Send + Sync {
    /// `Err` says why not, for people.
    fn allow(&self, peer: &Peer, ask: &Ask<'_>) -> Result<(), String>;

    /// Whether `peer` may ask for anything at all, and read what is no object: discovery, schemas, versions, readiness, metrics.
    /// Asked before the body of a request is read. Default: whoever was let in. That the server is alive is everybody's to
    /// know, and routes of the host's own are its own to guard.
    fn allow_around(&self, peer: &Peer) -> Result<(), String> {
        let _ = peer;
        Ok(())
    }
}

/// Trusted peers may do everything, others nothing.
#[derive(Clone, Copy, Debug)]
pub struct TrustedOnly;

impl Access for TrustedOnly {
    fn allow(&self, peer: &Peer, _: &Ask<'_>) -> Result<(), String> {
        if peer.trusted { Ok(()) } else { Err("only the administrator of this machine may".into()) }
    }
}

/// How much a peer may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body. Default 4 MiB: a commit of 1.25 MiB, however it is escaped.
    pub body_bytes: usize,
    /// Bytes of a request's head. Default 64 KiB: a stream names its selections there.
    pub head_bytes: usize,
    /// Connections at once. Default 2,048; more wait to be accepted.
    pub connections: usize,
    /// Connections of one identity at once, and what they have become since. Default 512; more are closed.
    pub connections_per_peer: usize,
    /// Requests of one identity at once, until the head of their answer. Default 256; more are answered with 429.
    pub requests_per_peer: usize,
    /// Bytes of bodies of one identity at once: what it has said in requests that go on, and what it was answered and has not
    /// taken. Default 64 MiB; more is answered with 429. One body is always let in.
    pub bytes_per_peer: usize,
    /// Watches and streams of one identity at once. Default 512; more are answered with 429.
    pub watches_per_peer: usize,
    /// For a request's head, and between two requests. Default 60 s.
    pub head_time: Duration,
    /// For a request's body. Default 30 s.
    pub body_time: Duration,
    /// A connection that takes no byte of what is being sent for so long is closed. Default 60 s. A watch on it is over;
    /// one that reads too slowly to be told everything ends with 410 (Expired), because history is not kept for it.
    pub write_time: Duration,
    /// Between being told to stop and cutting off whoever is still being answered. Default 10 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            head_bytes: 64 << 10,
            connections: 2_048,
            connections_per_peer: 512,
            requests_per_peer: 256,
            bytes_per_peer: 64 << 20,
            watches_per_peer: 512,
            head_time: Duration::from_secs(60),
            body_time: Duration::from_secs(30),
            write_time: Duration::from_secs(60),
            drain: Duration::from_secs(10),
        }
    }
}

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
type Refusals = Arc<dyn Fn(&Refused<'_>) + Send + Sync>;

/// The verbs of an [`Objects`], ready to be served. Clones share everything.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    extra: Router,
}

#[derive(Clone)]
struct Shared {
    objects: Arc<dyn Objects>,
    kinds: Kinds,
    /// Those that `/api/v1` serves as well.
    core: Vec<Arc<Kind>>,
    seams: Seams,
    access: Arc<dyn Access>,
    limits: Limits,
    metrics: Metrics,
    numbers: Numbers,
    version: Value,
    ready: Vec<(&'static str, Check)>,
    refusals: Refusals,
    stop: Signal,
    connections: Tally,
    requests: Tally,
    bytes: Tally,
    watches: Tally,
}

#[derive(Clone, Debug)]
struct Numbers {
    requests: Family<Vec<(&'static str, String)>, Counter>,
    seconds: Family<Vec<(&'static str, String)>, Histogram, fn() -> Histogram>,
}

impl Server {
    /// Serves every kind of `kinds`, as `objects` answers. Only trusted peers may do anything until [`Server::access`]
    /// says more.
    pub fn new(objects: Arc<dyn Objects>, kinds: Kinds, seams: Seams) -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_1, 4.0, 10));
        let numbers = Numbers { requests: Family::default(), seconds: Family::new_with_constructor(seconds) };
        let shared = Shared {
            objects,
            kinds,
            core: Vec::new(),
            seams,
            access: Arc::new(TrustedOnly),
            limits: Limits::default(),
            metrics: Metrics::new(),
            numbers,
            version: serde_json::json!({}),
            ready: Vec::new(),
            refusals: Arc::new(|_| {}),
            stop: Signal::new(),
            connections: Tally::default(),
            requests: Tally::default(),
            bytes: Tally::default(),
            watches: Tally::default(),
        };
        Self { shared: Arc::new(shared), extra: Router::new() }.metrics(Metrics::new())
    }

    /// Who says which peer may do what; default [`TrustedOnly`].
    pub fn access(self, access: Arc<dyn Access>) -> Self {
        self.with(|shared| shared.access = access)
    }

    /// How much a peer may ask for; default [`Limits::default`].
    pub fn limits(self, limits: Limits) -> Self {
        self.with(|shared| shared.limits = limits)
    }

    /// What `/metrics` shows, and where requests are counted.
    pub fn metrics(self, metrics: Metrics) -> Self {
        let numbers = self.shared.numbers.clone();
        metrics.register(|registry| {
            metrics::SERVED.register(registry, numbers.requests.clone());
            metrics::SERVED_SECONDS.register(registry, numbers.seconds.clone());
        });
        self.with(|shared| shared.metrics = metrics)
    }

    /// Serves a kind under `/api/v1` as well, where Kubernetes' clients look for it by its plural (`namespaces`).
    pub fn core(self, kind: &Kind) -> Self {
        self.with(|shared| shared.core.push(Arc::new(kind.clone())))
    }

    /// What `/version` answers, such as `{"gitVersion": "v0.1.0"}`.
    pub fn version(self, version: Value) -> Self {
        self.with(|shared| shared.version = version)
    }

    /// `/readyz` answers 200 only while all of these hold.
    pub fn ready(self, name: &'static str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.with(|shared| shared.ready.push((name, Arc::new(check))))
    }

    /// Is told of each request that is refused because of who asks, whatever answers it. It is called where requests are
    /// answered, and must not wait. Default: nobody is told.
    pub fn refusals(self, told: impl Fn(&Refused<'_>) + Send + Sync + 'static) -> Self {
        self.with(|shared| shared.refusals = Arc::new(told))
    }

    /// Adds routes of the host's own (further subresources, uploads); they go before the server's. The [`Peer`] is
    /// among the request's extensions, and asking [`Server::allow`] is theirs to do.
    pub fn merge(mut self, routes: Router) -> Self {
        self.extra = self.extra.merge(routes);
        self
    }

    /// Whether `peer` may do this: for routes of the host's own.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn allow(&self, peer: &Peer, ask: &Ask<'_>) -> Result<(), String> {
        self.shared.access.allow(peer, ask)
    }

    /// Raised once: every watch ends, and [`Server::serve`] drains and returns.
    pub fn stop(&self) -> &Signal {
        &self.shared.stop
    }

    fn with(mut self, change: impl FnOnce(&mut Shared)) -> Self {
        change(Arc::make_mut(&mut self.shared));
        self
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("kinds", &self.shared.kinds).field("access", &self.shared.access).finish()
    }
}

/// How much of something each identity has. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Mutex<BTreeMap<Arc<str>, usize>>>);

/// One of them, or more; dropping it makes room.
#[derive(Debug)]
pub struct Ticket {
    tally: Tally,
    identity: Arc<str>,
    amount: usize,
}

impl Tally {
    /// One more. `None` when `identity` has `limit` of them.
    pub fn enter(&self, identity: &Arc<str>, limit: usize) -> Option<Ticket> {
        let mut counts = self.lock();
        let count = counts.entry(identity.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Ticket { tally: self.clone(), identity: identity.clone(), amount: 1 })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Makes it so much more, unless its owner would have more than `limit` and has something beside it.
    fn grow(&mut self, more: usize, limit: usize) -> bool {
        let mut counts = self.tally.lock();
        let count = counts.entry(self.identity.clone()).or_default();
        if *count > self.amount && *count + more > limit {
            return false;
        }
        *count += more;
        self.amount += more;
        true
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.tally.lock();
        if let Some(count) = counts.get_mut(&self.identity) {
            *count = count.saturating_sub(self.amount);
            if *count == 0 {
                counts.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_identity_has_room_of_its_own_and_gets_it_back() {
        let tally = Tally::default();
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let held = [tally.enter(&ann, 2), tally.enter(&ann, 2)];
        assert!(held.iter().all(Option::is_some) && tally.enter(&ann, 2).is_none() && tally.enter(&bob, 2).is_some());
        drop(held);
        assert!(tally.enter(&ann, 2).is_some());
        assert!(tally.0.lock().unwrap().is_empty());
    }

    #[test]
    fn bytes_are_counted_together_and_one_body_is_always_let_in() {
        let tally = Tally::default();
        let ann: Arc<str> = "ann".into();
        let enter = || tally.enter(&ann, usize::MAX).unwrap();
        let mut first = enter();
        assert!(first.grow(50, 100) && first.grow(500, 100), "nothing is beside it");
        let mut second = enter();
        assert!(!second.grow(1, 100));
        drop(first);
        assert!(second.grow(500, 100));
        drop(second);
        assert!(tally.0.lock().unwrap().is_empty());
    }
}
