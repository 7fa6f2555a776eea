//! containerd's content store and its leases, as far as images need them.
//!
//! Everything is written straight into containerd, under a reference that follows from the digest, so that whoever
//! begins again after a crash goes on where the dead one stopped. containerd hashes what it receives and admits nothing
//! whose size or digest is not the promised one.
//!
//! **Nothing in use is collected**: all work happens under a lease, and a lease claims a blob before it looks for it
//! (look first, and the collector can pass in between). The lease goes when the image's record and the labels that
//! reach from it to every blob are there; it ends by itself a day after a crash.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1 as api;
use containerd_client::services::v1::WriteAction;
use prost_types::FieldMask;
use reconciler_api::Timestamp;
use schemas::image::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::super::containerd::connection::Connection;

/// Bytes of one write message. Large enough that waiting for each answer costs nothing, far below containerd's limit.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// How long a call that only touches metadata may take.
const CALL_WITHIN: Duration = Duration::from_secs(30);

/// How long containerd may take to write one message.
const WRITE_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take to commit: it syncs some gigabytes to a slow disk.
const COMMIT_WITHIN: Duration = Duration::from_secs(600);

/// How long a lease outlives a crash. Long enough for any pull, short enough that what a dead one left is not kept.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A lease with less left than this is replaced, so that it cannot end under a slow pull.
const LEASE_LEFT_MIN: Duration = Duration::from_secs(12 * 3600);

/// The label by which leases of pulls are found again.
const LEASE_LABEL: &str = "apply/pull";

/// How long a reference may be held by a writer that is already gone.
const LOCKED_FOR: Duration = Duration::from_secs(10);

/// The content store as one lease sees it.
#[derive(Clone)]
pub(super) struct Content {
    connection: Connection,
    lease: String,
}

/// What came of opening a blob for writing.
pub(super) enum Opened {
    /// It is there already, whole.
    There,
    Ingest(Box<Ingest>),
}

/// A blob that is being written. Dropped, it stays where it is and is taken up again by the next one who opens it.
pub(super) struct Ingest {
    messages: mpsc::Sender<api::WriteContentRequest>,
    answers: Streaming<api::WriteContentResponse>,
    offset: u64,
}

impl Content {
    /// The content store under the lease of that name, which is made, or taken over from a dead predecessor.
    pub async fn under_lease(connection: &Connection, name: &str) -> Result<Content, Status> {
        let mut leases = connection.within(CALL_WITHIN).leases();
        let now = now();
        let filters = vec![format!("id=={name:?}")];
        let found = leases.list(api::ListRequest { filters }).await?.into_inner().leases;
        if let Some(lease) = found.first() {
            let created = lease.created_at.map_or(0, |at| at.seconds);
            if now.since(Timestamp::from_seconds(created)) + LEASE_LEFT_MIN > LEASE_LIFE {
                // What only it held may be collected and is then fetched again.
                delete_lease(connection, name).await?;
            }
        }
        let labels = HashMap::from([
            ("containerd.io/gc.expire".to_owned(), (now + LEASE_LIFE).truncated().to_string()),
            (LEASE_LABEL.to_owned(), "1".to_owned()),
        ]);
        match leases.create(api::CreateRequest { id: name.to_owned(), labels }).await {
            Err(status) if status.code() != Code::AlreadyExists => return Err(status),
            _ => {}
        }
        let leased = connection.under_lease(name).map_err(|bad| Status::invalid_argument(bad.to_string()))?;
        Ok(Content { connection: leased, lease: name.to_owned() })
    }

    /// The connection on which everything that is made belongs to the lease.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Ends the lease. What nothing else holds may be collected from now on.
    pub async fn release(self) -> Result<(), Status> {
        delete_lease(&self.connection, &self.lease).await
    }

    /// Lets the lease hold something that exists, or that may exist: to be called before looking for it.
    pub async fn claim(&self, kind: &str, id: &str) -> Result<(), Status> {
        let resource = api::Resource { id: id.to_owned(), r#type: kind.to_owned() };
        let request = api::AddResourceRequest { id: self.lease.clone(), resource: Some(resource) };
        match self.connection.within(CALL_WITHIN).leases().add_resource(request).await {
            Err(status) if status.code() != Code::AlreadyExists => Err(status),
            _ => Ok(()),
        }
    }

    /// Claims a blob and says how long it is, or that it is not there.
    pub async fn claim_blob(&self, digest: &Digest) -> Result<Option<u64>, Status> {
        self.claim("content", digest.as_str()).await?;
        size_of(&self.connection, digest).await
    }

    /// Opens a blob for writing; what an earlier writer left of it is kept.
    pub async fn open(&self, reference: &str, promised: Option<(&Digest, u64)>) -> Result<Opened, Status> {
        let deadline = tokio::time::Instant::now() + LOCKED_FOR;
        loop {
            match self.try_open(reference, promised).await {
                // The writer before us died or was dropped and containerd has not noticed yet.
                Err(status) if status.code() == Code::Unavailable && status.message().contains("locked") => {
                    if tokio::time::Instant::now() > deadline {
                        return Err(status);
                    }
                    pause(Duration::from_millis(100)).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_open(&self, reference: &str, promised: Option<(&Digest, u64)>) -> Result<Opened, Status> {
        let (expected, total) = promised.map_or((String::new(), 0), |(digest, size)| (digest.to_string(), size as i64));
        let (messages, requests) = mpsc::channel(1);
        let first = api::WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            expected,
            total,
            ..Default::default()
        };
        messages.try_send(first).expect("an empty channel takes one message");
        let mut content = self.connection.content();
        let opening = async {
            let mut answers = content.write(ReceiverStream::new(requests)).await?.into_inner();
            let answer = answers.message().await?.ok_or_else(|| Status::unknown("the write ended before it began"))?;
            Ok(Ingest { messages, answers, offset: answer.offset.max(0) as u64 })
        };
        // Opening hashes what is there already.
        match within(COMMIT_WITHIN, opening).await {
            Ok(ingest) => Ok(Opened::Ingest(Box::new(ingest))),
            Err(status) if status.code() == Code::AlreadyExists => Ok(Opened::There),
            Err(status) => Err(status),
        }
    }

    /// Throws away what was written under a reference.
    pub async fn abort(&self, reference: &str) -> Result<(), Status> {
        let deadline = tokio::time::Instant::now() + LOCKED_FOR;
        loop {
            let request = api::AbortRequest { r#ref: reference.to_owned() };
            match self.connection.within(CALL_WITHIN).content().abort(request).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                // A dropped writer's last note fell into the folder that is being removed.
                Err(status) if status.message().contains("directory not empty") => {
                    if tokio::time::Instant::now() > deadline {
                        return Err(status);
                    }
                    pause(Duration::from_millis(100)).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    /// Throws away what an ingest has written, once containerd has closed it.
    pub async fn discard(&self, ingest: Ingest, reference: &str) -> Result<(), Status> {
        let Ingest { messages, mut answers, .. } = ingest;
        drop(messages);
        let closing = async {
            while answers.message().await?.is_some() {}
            Ok(())
        };
        // However it ended: it is thrown away.
        let _ = within(WRITE_WITHIN, closing).await;
        self.abort(reference).await
    }

    /// Writes a small blob whole. Its digest must be the one of these bytes.
    pub async fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Status> {
        let reference = reference_of(digest);
        for _ in 0..2 {
            let mut ingest = match self.open(&reference, Some((digest, bytes.len() as u64))).await? {
                Opened::There => return Ok(()),
                Opened::Ingest(ingest) => ingest,
            };
            let from = usize::try_from(ingest.offset()).ok().filter(|from| *from <= bytes.len());
            let Some(from) = from else {
                self.abort(&reference).await?;
                continue;
            };
            for chunk in bytes[from..].chunks(CHUNK_BYTES) {
                ingest.write(chunk.to_vec()).await?;
            }
            match ingest.commit(digest, bytes.len() as u64).await {
                // What a predecessor left was not the beginning of these bytes.
                Err(status) if status.code() == Code::FailedPrecondition => self.abort(&reference).await?,
                outcome => return outcome,
            }
        }
        Err(Status::data_loss(format!("{digest} cannot be written")))
    }

    /// Sets labels of a blob, leaving its others as they are.
    pub async fn label(&self, digest: &Digest, labels: Vec<(String, String)>) -> Result<(), Status> {
        let paths = labels.iter().map(|(name, _)| format!("labels.{name}")).collect();
        let info = api::Info { digest: digest.to_string(), labels: labels.into_iter().collect(), ..Default::default() };
        let request = api::UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        self.connection.within(CALL_WITHIN).content().update(request).await.map(drop)
    }

    pub async fn read(&self, digest: &Digest, bytes_max: u64) -> Result<Option<Vec<u8>>, Status> {
        read(&self.connection, digest, bytes_max).await
    }
}

impl Ingest {
    /// How much of it is there.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub async fn write(&mut self, data: Vec<u8>) -> Result<(), Status> {
        let length = data.len() as u64;
        let message = api::WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: self.offset as i64,
            data,
            ..Default::default()
        };
        let answer = within(WRITE_WITHIN, self.exchange(message)).await?;
        self.offset += length;
        match u64::try_from(answer.offset) {
            Ok(offset) if offset == self.offset => Ok(()),
            _ => Err(Status::out_of_range(format!("at {} instead of {}", answer.offset, self.offset))),
        }
    }

    /// The digest of what is there so far, by containerd's own count.
    pub async fn found(&mut self) -> Result<String, Status> {
        let message = api::WriteContentRequest { action: WriteAction::Stat.into(), ..Default::default() };
        Ok(within(WRITE_WITHIN, self.exchange(message)).await?.digest)
    }

    /// Makes it a blob. `FailedPrecondition` when it is not the promised one.
    pub async fn commit(mut self, digest: &Digest, size: u64) -> Result<(), Status> {
        let message = api::WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: size as i64,
            expected: digest.to_string(),
            offset: self.offset as i64,
            ..Default::default()
        };
        match within(COMMIT_WITHIN, self.exchange(message)).await {
            // The same content arrived by another way meanwhile.
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn exchange(&mut self, message: api::WriteContentRequest) -> Result<api::WriteContentResponse, Status> {
        // A stream that ended has its reason among the answers.
        let _ = self.messages.send(message).await;
        self.answers.message().await?.ok_or_else(|| Status::unavailable("the write was ended by containerd"))
    }
}

/// The reference under which a blob of that digest is written, by whoever does.
pub(super) fn reference_of(digest: &Digest) -> String {
    format!("apply-{}", digest.as_str().replace(':', "-"))
}

/// How long a blob is, none if it is not there.
pub(super) async fn size_of(connection: &Connection, digest: &Digest) -> Result<Option<u64>, Status> {
    let request = api::InfoRequest { digest: digest.to_string() };
    match connection.within(CALL_WITHIN).content().info(request).await {
        Ok(answer) => Ok(Some(answer.into_inner().info.map_or(0, |info| info.size.max(0) as u64))),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// A small blob, none if it is not there.
pub(super) async fn read(connection: &Connection, digest: &Digest, bytes_max: u64) -> Result<Option<Vec<u8>>, Status> {
    let request = api::ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
    let mut pieces = match connection.within(CALL_WITHIN).content().read(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        Err(status) => return Err(status),
    };
    let mut bytes = Vec::new();
    loop {
        match within(CALL_WITHIN, pieces.message()).await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece.data),
            Ok(None) => return Ok(Some(bytes)),
            // containerd says that there is nothing only once it has begun to answer.
            Err(status) if status.code() == Code::NotFound && bytes.is_empty() => return Ok(None),
            Err(status) => return Err(status),
        }
        if bytes.len() as u64 > bytes_max {
            return Err(Status::resource_exhausted(format!("{digest} has more than {bytes_max} bytes")));
        }
    }
}

/// Ends every lease of a pull that `is_live` does not name: those of predecessors that died.
pub(super) async fn release_abandoned(connection: &Connection, is_live: impl Fn(&str) -> bool) -> Result<(), Status> {
    let filters = vec![format!("labels.{LEASE_LABEL:?}==1")];
    let leases = connection.within(CALL_WITHIN).leases().list(api::ListRequest { filters }).await?.into_inner().leases;
    for lease in leases.iter().filter(|lease| !is_live(&lease.id)) {
        delete_lease(connection, &lease.id).await?;
    }
    Ok(())
}

async fn delete_lease(connection: &Connection, name: &str) -> Result<(), Status> {
    let request = api::DeleteRequest { id: name.to_owned(), sync: false };
    match connection.within(CALL_WITHIN).leases().delete(request).await {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}

/// Streams have no deadline of their own; a containerd that was stopped would keep us for ever.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", limit.as_secs()))),
    }
}

#[expect(clippy::disallowed_methods, reason = "the outer edge: containerd's locks end by time")]
async fn pause(length: Duration) {
    tokio::time::sleep(length).await;
}

#[expect(clippy::disallowed_methods, reason = "the outer edge: containerd holds leases against its own wall clock")]
fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_seconds(since_epoch.as_secs() as i64)
}
