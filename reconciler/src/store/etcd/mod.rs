//! A store in etcd (3.4 or later), ours or somebody else's.
//!
//! etcd's revisions are ours: every commit is one transaction, every watch one watch. What the client library leaves
//! to its user is done here: replies are asked for in pages at one revision, members that do not answer are passed
//! over, outcomes that nobody knows are told as such, and a watch never falls silent (`watch`).
//!
//! It starts no task. All clients and watches of one [`Etcd`] share one connection a member.
//!
//! Not done here: history is compacted only when [`Store::compact`] is called, and nothing is defragmented; both are
//! for whoever owns the cluster.

mod cluster;
mod failure;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, GetResponse, KeyValue, ResponseHeader, TlsOptions,
    Txn as EtcdTxn, TxnOp, TxnOpResponse,
};
use futures::future::BoxFuture;

pub use self::cluster::{Member, MemberId};
use self::failure::Failure;
use super::{
    CommitError, Effect, Expect, Identity, Key, Listing, Page, Revision, Store, StoreError, Txn, Versioned, Watch,
};
use crate::seams::Seams;

/// Where etcd is, and what of it is ours.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host:2379`, or `http://` for one on a loopback. At least one; they must be of one cluster.
    pub endpoints: Vec<String>,
    /// What all keys begin with. Watches follow everything below it.
    pub root: Key,
    /// Certificates for `https` endpoints; default none.
    pub tls: Option<Tls>,
    /// How long a call may take; default 5 s. A commit that takes longer may have happened all the same.
    pub timeout: Duration,
}

/// Certificates, each as PEM. TLS by rustls with ring; the process's default provider is not touched.
#[derive(Clone)]
pub struct Tls {
    /// Who must have signed the server's certificate.
    pub ca: Vec<u8>,
    /// Our own certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that the server's certificate must have; default the host of the endpoint.
    pub server_name: Option<String>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Config {
    /// Without TLS, and with the default timeout.
    pub fn new(endpoints: impl IntoIterator<Item = String>, root: Key) -> Self {
        Self { endpoints: endpoints.into_iter().collect(), root, tls: None, timeout: Duration::from_secs(5) }
    }
}

/// What is wrong with a [`Config`].
#[derive(Debug, thiserror::Error)]
#[error("{endpoint}: {detail}")]
pub struct ConfigError {
    /// Which endpoint; `etcd` when there is none at all.
    pub endpoint: String,
    /// What is wrong with it, for people.
    pub detail: String,
}

/// The keys below one root of an etcd. Calls go to the member that answered last, and to the next one when it is gone.
pub struct Etcd {
    members: Arc<Members>,
    root: Key,
    seams: Seams,
}

/// One client for each member. The library's own balancer goes on sending to members that are gone.
struct Members {
    clients: Vec<Client>,
    /// The one that answered last.
    current: AtomicUsize,
    /// For a call, its connection included.
    limit: Duration,
    seams: Seams,
}

/// A dead or frozen member is noticed after at most the sum of the two.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// More than the replies that are asked for; one value alone may have 1.25 MiB.
const REPLY_BYTES_MAX: usize = 16 << 20;
const KEYS_PER_REPLY: usize = 500;

impl Etcd {
    /// Connects when it is first used, so that it can be made before etcd is there.
    pub async fn connect(config: &Config, seams: &Seams) -> Result<Self, ConfigError> {
        let mut clients = Vec::new();
        for endpoint in &config.endpoints {
            let client = Client::connect([endpoint], Some(options(config))).await;
            clients
                .push(client.map_err(|error| ConfigError { endpoint: endpoint.clone(), detail: error.to_string() })?);
        }
        if clients.is_empty() {
            return Err(ConfigError { endpoint: "etcd".into(), detail: "no endpoint is given".into() });
        }
        let limit = CONNECT_TIMEOUT + config.timeout;
        let members = Arc::new(Members { clients, current: AtomicUsize::new(0), limit, seams: seams.clone() });
        Ok(Self { members, root: config.root.clone(), seams: seams.clone() })
    }

    async fn range(&self, key: &str, options: GetOptions) -> Result<GetResponse, Failure> {
        self.members
            .try_each(|client| {
                let mut client = client.kv_client().max_decoding_message_size(REPLY_BYTES_MAX);
                let (key, options) = (key.to_owned(), options.clone());
                async move { client.get(key, Some(options)).await.map_err(Failure::from) }
            })
            .await
    }

    /// As the whole cluster sees it, not one member.
    async fn revision(&self) -> Result<Revision, Failure> {
        let reply = self.range(&heartbeat(&self.root), GetOptions::new().with_keys_only()).await?;
        Ok(revision_of(reply.header()))
    }

    async fn list_all(&self, prefix: &Key, page: &Page) -> Result<Listing, StoreError> {
        // One more than wanted tells whether there are more.
        let wanted = if page.limit == 0 { usize::MAX } else { page.limit.saturating_add(1) };
        let (heartbeat, end) = (heartbeat(&self.root), end_of(prefix));
        let mut from = match &page.after {
            Some(after) if after >= prefix => next_after(after.as_str()),
            _ => prefix.as_str().as_bytes().to_vec(),
        };
        let (mut at, mut entries, mut reply_keys) = (page.at, Vec::new(), KEYS_PER_REPLY);
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(reply_keys.min(wanted.saturating_sub(entries.len())).max(1) as i64)
                .with_revision(at.map_or(0, signed));
            let reply = self
                .members
                .try_each(|client| {
                    let mut client = client.kv_client().max_decoding_message_size(REPLY_BYTES_MAX);
                    let (from, options) = (from.clone(), options.clone());
                    async move { client.get(from, Some(options)).await.map_err(Failure::from) }
                })
                .await;
            let mut reply = match reply {
                Ok(reply) => reply,
                Err(Failure::ReplyTooLarge) if reply_keys > 1 => {
                    reply_keys /= 4;
                    reply_keys = reply_keys.max(1);
                    continue;
                }
                Err(failure) => return Err(self.read_error(failure, at).await),
            };
            let revision = *at.get_or_insert(revision_of(reply.header()));
            let more = reply.more();
            let found = reply.take_kvs();
            if let Some(last) = found.last() {
                from = [last.key(), b"\0"].concat();
            }
            entries.extend(found.into_iter().filter(|kv| kv.key() != heartbeat.as_bytes()).filter_map(versioned));
            if entries.len() >= wanted || !more {
                let more = entries.len() >= wanted;
                entries.truncate(wanted - usize::from(more));
                return Ok(Listing { revision, entries, more });
            }
        }
    }

    async fn read_error(&self, failure: Failure, asked: Option<Revision>) -> StoreError {
        match (failure, asked) {
            (Failure::Compacted, Some(asked)) => StoreError::Compacted { asked, oldest: None },
            (Failure::Future, Some(asked)) => match self.revision().await {
                Ok(current) if current < asked => StoreError::Future { asked, current },
                // It has been reached meanwhile; the caller may ask again.
                Ok(_) => StoreError::Unavailable { detail: format!("revision {asked} has only just been reached") },
                Err(failure) => failure.into(),
            },
            (failure, _) => failure.into(),
        }
    }

    async fn commit_once(&self, txn: &Txn) -> Result<Revision, CommitError> {
        if txn.fence.is_none() && txn.lines.is_empty() {
            return self.revision().await.map_err(CommitError::from);
        }
        let request = request(txn);
        let reply = self
            .members
            .try_each(|client| {
                let (mut client, request) = (client.kv_client(), request.clone());
                async move { client.txn(request).await.map_err(Failure::from) }
            })
            .await?;
        if reply.succeeded() {
            return Ok(revision_of(reply.header()));
        }
        let found = reply.op_responses().into_iter().map(|reply| match reply {
            TxnOpResponse::Get(reply) => reply.kvs().first().map(|kv| unsigned(kv.mod_revision())),
            _ => None,
        });
        Err(refusal(txn, found))
    }
}

impl Members {
    /// Asks the member that answered last, and the next ones only as long as one could not have done anything.
    async fn try_each<T, F>(&self, call: impl Fn(&Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut failure = None;
        for at in (0..self.clients.len()).map(|offset| (first + offset) % self.clients.len()) {
            match self.within(call(&self.clients[at])).await {
                Err(refused @ Failure::NotSent(_)) => failure = Some(refused),
                Err(lost @ Failure::Lost(_)) => {
                    // What became of the call is not known, but the next one goes to somebody else.
                    self.current.store((at + 1) % self.clients.len(), Ordering::Relaxed);
                    return Err(lost);
                }
                answer => {
                    self.current.store(at, Ordering::Relaxed);
                    return answer;
                }
            }
        }
        Err(failure.expect("there is at least one member"))
    }

    /// A member that has no majority takes connections and says nothing, and the library's own limit begins after TLS.
    async fn within<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            answer = call => answer,
            () = self.seams.sleep(self.limit) => Err(Failure::Lost("the member does not answer".to_owned())),
        }
    }

    fn current(&self) -> &Client {
        &self.clients[self.current.load(Ordering::Relaxed)]
    }

    fn pass_over(&self) {
        self.current.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some((at + 1) % self.clients.len())).ok();
    }
}

fn options(config: &Config) -> ConnectOptions {
    let options = ConnectOptions::new()
        .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(config.timeout);
    let Some(tls) = &config.tls else { return options };
    let mut settings = TlsOptions::new().ca_certificate(etcd_client::Certificate::from_pem(&tls.ca));
    if let Some((certificate, key)) = &tls.identity {
        settings = settings.identity(etcd_client::Identity::from_pem(certificate, key));
    }
    if let Some(name) = &tls.server_name {
        settings = settings.domain_name(name);
    }
    options.with_tls(settings)
}

/// What the transaction compares; when it fails, the same keys are read, so that it can be said which.
fn request(txn: &Txn) -> EtcdTxn {
    let fence = txn.fence.iter().map(|fence| (&fence.key, Expect::Version(fence.revision)));
    let expected: Vec<(&Key, Expect)> =
        fence.chain(txn.lines.iter().filter_map(|line| Some((&line.key, line.expect?)))).collect();
    let compares = expected.iter().map(|(key, expect)| match expect {
        Expect::Absent => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        Expect::Version(revision) => Compare::mod_revision(key.as_str(), CompareOp::Equal, signed(*revision)),
    });
    let effects = txn.lines.iter().filter_map(|line| match &line.effect {
        Effect::Check => None,
        Effect::Put(value) => Some(TxnOp::put(line.key.as_str(), value.to_vec(), None)),
        Effect::Delete => Some(TxnOp::delete(line.key.as_str(), None)),
    });
    // These reads also make a transaction that only compares a linearizable one.
    let reads = expected.iter().map(|(key, _)| TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only())));
    EtcdTxn::new()
        .when(compares.collect::<Vec<_>>())
        .and_then(effects.collect::<Vec<_>>())
        .or_else(reads.collect::<Vec<_>>())
}

fn refusal(txn: &Txn, mut found: impl Iterator<Item = Option<Revision>>) -> CommitError {
    if let Some(fence) = &txn.fence
        && found.next().flatten() != Some(fence.revision)
    {
        return CommitError::Fenced { fence: fence.clone() };
    }
    for line in &txn.lines {
        let holds = match line.expect {
            None => continue,
            Some(Expect::Absent) => found.next().flatten().is_none(),
            Some(Expect::Version(revision)) => found.next().flatten() == Some(revision),
        };
        if !holds {
            return CommitError::Conflict { key: line.key.clone() };
        }
    }
    // Every expectation was read as holding by the same transaction in which one did not.
    CommitError::Unknown { detail: "etcd refused the commit and did not say why".into() }
}

/// A key below the root that no user of the store can see: written to make a watch tell where it is.
fn heartbeat(root: &Key) -> String {
    format!("{root}\0passed")
}

fn next_after(key: &str) -> Vec<u8> {
    [key.as_bytes(), b"\0"].concat()
}

/// The first key after all that begin with `prefix`.
fn end_of(prefix: &Key) -> Vec<u8> {
    let mut end = prefix.as_str().as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's word for "to the end".
    vec![0]
}

/// `None` for a key that is not text, which none of ours is.
fn versioned(kv: KeyValue) -> Option<Versioned> {
    let (created, modified) = (unsigned(kv.create_revision()), unsigned(kv.mod_revision()));
    let (key, value) = kv.into_key_value();
    Some(Versioned { key: Key::new(String::from_utf8(key).ok()?), value: Bytes::from(value), created, modified })
}

fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    unsigned(header.map_or(0, ResponseHeader::revision))
}

/// etcd counts in signed numbers, and never below zero.
fn unsigned(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

impl Store for Etcd {
    /// The cluster's id.
    fn identity(&self) -> BoxFuture<'_, Result<Identity, StoreError>> {
        Box::pin(async move {
            let reply = self.range(&heartbeat(&self.root), GetOptions::new().with_keys_only()).await?;
            let id = reply.header().map_or(0, ResponseHeader::cluster_id);
            Ok(Identity(format!("etcd-{id:016x}")))
        })
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(Revision, Option<Versioned>), StoreError>> {
        Box::pin(async move {
            let mut reply = self.range(key.as_str(), GetOptions::new()).await?;
            let revision = revision_of(reply.header());
            Ok((revision, reply.take_kvs().pop().and_then(versioned)))
        })
    }

    fn list<'a>(&'a self, prefix: &'a Key, page: Page) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move { self.list_all(prefix, &page).await })
    }

    fn watch<'a>(&'a self, prefix: &'a Key, after: Revision) -> BoxFuture<'a, Result<Watch, StoreError>> {
        Box::pin(self.open_watch(prefix, after))
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        Box::pin(async move {
            txn.check()?;
            self.commit_once(&txn).await
        })
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let compacted = self
                .members
                .try_each(|client| {
                    let mut client = client.kv_client();
                    async move { client.compact(signed(before), None).await.map_err(Failure::from) }
                })
                .await;
            match compacted {
                Ok(_) | Err(Failure::Compacted) => Ok(()),
                Err(failure) => Err(self.read_error(failure, Some(before)).await),
            }
        })
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("members", &self.members.clients.len()).field("root", &self.root).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_after_all_that_begin_with_it() {
        for (prefix, end) in [("a", &b"b"[..]), ("/x/", b"/x0"), ("", b"\0"), ("a\u{7f}", b"a\x80")] {
            assert_eq!(end_of(&Key::new(prefix)), end, "{prefix:?}");
        }
    }
}
