//! One at a time: which of several processes leads, and why a leader that does not know better does no harm.
//!
//! A lease is an object {holder, ttl, renewals}. Its holder renews it; a candidate takes over when the object has not
//! changed for `ttl` on the candidate's own clock, so no two clocks are ever compared. That alone would be a guess: a
//! leader may be paused, and go on. So the commit that changes the holder begins a [`Term`], and every commit of a leader
//! happens only while its term lasts, however late it is sent: the store decides, not a clock.
//!
//! *Assumptions*: the lease's kind was added with [`Kinds::with_terms`](crate::objects::Kinds::with_terms); clocks run at
//! about the same speed (one that runs much too fast changes leaders too often, and nothing worse).

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reconciler_api::{ObjectRef, Resource, ResourceVersion, Uid};

use crate::controller::Signal;
use crate::objects::{Client, Error, Objects, Term, Writer};
use crate::seams::{Monotonic, Purpose, Seams, TaskHandle};

/// What a lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Empty: nobody.
    pub holder: String,
    /// How long it lasts without a renewal.
    pub ttl: Duration,
    /// Counted up by each renewal, so that a renewal is a change.
    pub renewals: u64,
}

/// How leases are objects of a kind. A type of its own, so that the kind may be somebody else's.
pub trait LeaseKind: Send + Sync + 'static {
    /// The kind of the leases.
    type Object: Resource;

    /// What a lease says.
    fn read(lease: &Self::Object) -> Record;
    /// Makes a lease say this, and touches nothing else of it.
    fn write(lease: &mut Self::Object, record: &Record);
    /// A lease that says nothing yet.
    fn blank(name: &str) -> Self::Object;
}

/// One process's candidacy for one lease.
pub struct Election<L: LeaseKind> {
    objects: Arc<dyn Objects>,
    seams: Seams,
    name: &'static str,
    lease: ObjectRef,
    identity: String,
    ttl: Duration,
    kind: std::marker::PhantomData<fn() -> L>,
}

/// Renewed so often within a ttl.
const RENEWALS_PER_TTL: u32 = 3;
/// Looked at so often within a ttl by candidates: what a successor loses after a leader resigned.
const LOOKS_PER_TTL: u32 = 10;

impl<L: LeaseKind> Election<L> {
    /// `name` is for metrics and the field manager of what is written to the lease; `identity` says who this is, for
    /// people. `ttl` is how long a dead leader is waited for.
    pub fn new(
        objects: Arc<dyn Objects>,
        seams: Seams,
        name: &'static str,
        lease: ObjectRef,
        identity: impl Into<String>,
        ttl: Duration,
    ) -> Self {
        Self { objects, seams, name, lease, identity: identity.into(), ttl, kind: std::marker::PhantomData }
    }

    /// The name it was given, for metrics and field managers.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Waits until this process leads. Cancel-safe: a lease won at the very end is left to run out.
    pub async fn campaign(&self) -> Leading<L> {
        let mut seen = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(Some(leading)) => {
                    tracing::info!(lease = %self.lease, identity = self.identity, "leading");
                    return leading;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(lease = %self.lease, %error, "no word about the lease"),
            }
            self.seams.sleep(self.ttl / LOOKS_PER_TTL).await;
        }
    }

    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<Option<Leading<L>>, Error> {
        let client = Client::new(self.objects.clone(), Writer::controller(self.name));
        let before = self.seams.monotonic();
        let found = client.find::<L::Object>(&self.lease).await?;
        if let Some(lease) = &found {
            let record = L::read(lease);
            let now = Seen {
                uid: lease.meta().uid.clone(),
                version: lease.meta().resource_version,
                // Later than the change, so that it is never thought older than it is.
                at: self.seams.monotonic(),
            };
            let lapsed = match seen {
                Some(seen) if seen.is_same(&now) => before.since(seen.at) >= record.ttl,
                _ => {
                    *seen = Some(now);
                    false
                }
            };
            if !record.holder.is_empty() && !lapsed {
                return Ok(None);
            }
        }
        // Different each time: taking over from oneself, after a commit whose outcome is not known, begins a term too.
        let holder = format!("{}/{:016x}", self.identity, self.seams.random.next(Purpose::Identity));
        let record = Record { holder, ttl: self.ttl, renewals: 0 };
        let began = self.seams.monotonic();
        let won = match &found {
            Some(lease) => {
                let mut desired = lease.clone();
                L::write(&mut desired, &record);
                client.update(lease, &desired).await
            }
            None => {
                let mut lease = L::blank(&self.lease.name);
                lease.meta_mut().namespace.clone_from(&self.lease.namespace);
                L::write(&mut lease, &record);
                client.create(&lease).await
            }
        };
        match won {
            Ok(lease) => Ok(Some(self.lead(lease, record, began))),
            // Another candidate was faster.
            Err(error) if error.is_conflict() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lead(&self, lease: L::Object, record: Record, began: Monotonic) -> Leading<L> {
        let term = Term {
            kind: L::Object::kind().qualified(),
            lease: self.lease.clone(),
            began: lease.meta().resource_version,
        };
        let writer = Writer::controller(self.name).fenced(term.clone());
        let reign = Arc::new(Reign {
            client: Client::new(self.objects.clone(), writer),
            seams: self.seams.clone(),
            lease: self.lease.clone(),
            record,
            lost: Signal::new(),
        });
        let keeping = reign.clone();
        let task = self.seams.spawn("lease", async move { keeping.keep::<L>(lease, began).await });
        Leading { term, reign, task, kind: std::marker::PhantomData }
    }
}

/// How a candidate last saw the lease change.
struct Seen {
    uid: Uid,
    version: ResourceVersion,
    at: Monotonic,
}

impl Seen {
    fn is_same(&self, other: &Self) -> bool {
        self.uid == other.uid && self.version == other.version
    }
}

/// This process leads: the right to write, for as long as it is renewed. Dropping it stops renewing.
pub struct Leading<L: LeaseKind> {
    term: Term,
    reign: Arc<Reign>,
    task: TaskHandle,
    kind: std::marker::PhantomData<fn() -> L>,
}

struct Reign {
    client: Client,
    seams: Seams,
    lease: ObjectRef,
    record: Record,
    lost: Signal,
}

impl<L: LeaseKind> Leading<L> {
    /// What every commit of this leader carries ([`Writer::fenced`]).
    pub fn term(&self) -> &Term {
        &self.term
    }

    /// Waits until the lease is lost, or so long not renewed that somebody else may lead soon. Cancel-safe.
    pub async fn lost(&self) {
        self.reign.lost.raised().await;
    }

    /// Gives the lease up, so that the next leader need not wait. If that cannot be said, the lease runs out.
    pub async fn resign(self) {
        // The renewing would see the change as a loss.
        drop(self.task);
        if let Err(error) = self.reign.release::<L>().await {
            tracing::debug!(lease = %self.reign.lease, %error, "the lease is left to run out");
        }
    }
}

impl Reign {
    async fn keep<L: LeaseKind>(&self, mut lease: L::Object, began: Monotonic) {
        let ttl = self.record.ttl;
        let mut renewed = began;
        loop {
            self.seams.clock.sleep_until(renewed + ttl / RENEWALS_PER_TTL).await;
            let ended = loop {
                let asked = self.seams.monotonic();
                // Stops well before a candidate may take over: what is still running shall end by then.
                let patience = (ttl * 2 / 3).saturating_sub(asked.since(renewed));
                let renewal = tokio::select! {
                    biased;
                    renewal = self.renew::<L>(&lease) => renewal,
                    () = self.seams.sleep(patience) => break Some("it could not be renewed in time".to_owned()),
                };
                match renewal {
                    Ok(Some(current)) => {
                        lease = current;
                        renewed = asked;
                        break None;
                    }
                    Ok(None) => break Some("somebody else holds it".to_owned()),
                    Err(error) => {
                        tracing::debug!(lease = %self.lease, %error, "not renewed");
                        self.seams.sleep(ttl / LOOKS_PER_TTL).await;
                        if self.seams.monotonic().since(renewed) > ttl * 2 / 3 {
                            break Some(error.to_string());
                        }
                    }
                }
            };
            if let Some(reason) = ended {
                tracing::warn!(lease = %self.lease, reason, "not leading any more");
                self.lost.raise();
                return;
            }
        }
    }

    /// `None`: it is not ours any more.
    async fn renew<L: LeaseKind>(&self, lease: &L::Object) -> Result<Option<L::Object>, Error> {
        let mut desired = lease.clone();
        let renewals = L::read(lease).renewals + 1;
        L::write(&mut desired, &Record { renewals, ..self.record.clone() });
        match self.client.update(lease, &desired).await {
            Ok(lease) => Ok(Some(lease)),
            Err(Error::Fenced | Error::NotFound { .. }) => Ok(None),
            // Somebody wrote to it (a label), or an earlier renewal did happen: what counts is who holds it.
            Err(Error::Conflict { .. } | Error::UnknownOutcome { .. }) => {
                let current = self.client.find::<L::Object>(&self.lease).await?;
                Ok(current.filter(|current| L::read(current).holder == self.record.holder))
            }
            Err(error) => Err(error),
        }
    }

    async fn release<L: LeaseKind>(&self) -> Result<(), Error> {
        let lease = self.client.get::<L::Object>(&self.lease).await?;
        let mut desired = lease.clone();
        L::write(&mut desired, &Record { holder: String::new(), ..L::read(&lease) });
        self.client.update(&lease, &desired).await.map(drop)
    }
}

impl<L: LeaseKind> fmt::Debug for Election<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Election {} as {}", self.lease, self.identity)
    }
}

impl<L: LeaseKind> fmt::Debug for Leading<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leading {} since {}", self.term.lease, self.term.began)
    }
}
