//! Copies of the store: hourly ones beside it, and one for whoever asks (`GET /apis/apply/v1/backup`).
//!
//! The answer is a store file of its own at one revision, sealed values sealed. It is written and read back as a whole
//! before its first byte is sent, so that what breaks off is known to be broken by its length.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use reconciler::store::embedded::{SnapshotPolicy, snapshot_of};
use reconciler::store::{Key, Store};
use tokio_util::io::ReaderStream;

use super::ROOT;
use super::answer::Refusal;
use super::durable::write;

/// The revision that a backup is of.
pub const REVISION_HEADER: &str = "apply-revision";
/// Where the key lies on the daemon's machine that opens what is sealed in a backup.
pub const KEY_HEADER: &str = "apply-key";

/// Where copies lie.
#[derive(Clone, Debug)]
pub struct Places {
    data: PathBuf,
    run: PathBuf,
}

impl Places {
    /// `run`: for what is not to outlive the machine's run.
    pub fn new(data: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), run: run.into() }
    }

    pub fn store(&self) -> PathBuf {
        self.data.join("store.redb")
    }

    /// The key of secrets; locked, where it is to be.
    pub fn key(&self) -> PathBuf {
        self.data.join("key")
    }

    /// The open one beside a locked one, until the next boot.
    pub fn unlocked(&self) -> PathBuf {
        self.run.join("key")
    }

    /// Names the etcd that the objects of this machine are in, where they are in one.
    pub fn remembered(&self) -> PathBuf {
        self.data.join("etcd")
    }

    /// All of the etcd that applyd runs itself, where the objects are in one.
    pub fn member(&self) -> PathBuf {
        self.data.join("etcd-member")
    }

    /// Locked by the applyd of this data directory, where its store is no file that could be.
    pub fn lock(&self) -> PathBuf {
        self.data.join("lock")
    }

    fn line(&self) -> PathBuf {
        self.data.join("line")
    }

    /// The last line of history that a store of this machine was in, a number that rises with each; 0 for none. One that is
    /// brought back from before begins one above it.
    ///
    /// # Errors
    /// In words, when it cannot be read.
    pub fn line_seen(&self) -> Result<u64> {
        let path = self.line();
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            text => {
                let text = text.with_context(|| format!("cannot read {}", path.display()))?;
                text.trim().parse().with_context(|| format!("{} is not what applyd has written", path.display()))
            }
        }
    }

    /// The store is in this one now.
    ///
    /// # Errors
    /// In words, when it cannot be written.
    pub fn saw_line(&self, line: u64) -> Result<()> {
        match self.line_seen()? == line {
            true => Ok(()),
            false => Ok(write(&self.line(), format!("{line}\n").as_bytes())?),
        }
    }

    /// An hour apart, 24 kept.
    pub fn snapshots(&self) -> SnapshotPolicy {
        SnapshotPolicy::new(self.data.join("snapshots"))
    }

    /// For files of a moment; nothing in it is worth keeping when nobody is at work.
    pub fn passing(&self) -> PathBuf {
        self.data.join("passing")
    }

    /// Takes away what a killed process left.
    pub fn tidy(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.passing()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(self.passing()),
        }
    }
}

/// Where etcd is the store: its own tool copies it, and knows how it is restored.
pub fn refused(place: &str, places: &Places) -> Router {
    let message = format!(
        "the objects are in etcd at {place}, which is copied by: etcdctl snapshot save FILE\n  what is sealed in it is \
         opened by {} on this machine: keep a copy of that too",
        places.key().display()
    );
    let refuse = get(async move || Refusal(StatusCode::NOT_IMPLEMENTED, message.clone()));
    Router::new().route("/apis/apply/v1/backup", refuse)
}

#[derive(Clone)]
struct Backups {
    store: Arc<dyn Store>,
    places: Places,
    count: Arc<AtomicU64>,
}

pub fn routes(store: Arc<dyn Store>, places: Places) -> Router {
    let backups = Backups { store, places, count: Arc::default() };
    Router::new().route("/apis/apply/v1/backup", get(backup)).with_state(backups)
}

async fn backup(State(backups): State<Backups>) -> std::result::Result<Response, Refusal> {
    let number = backups.count.fetch_add(1, Ordering::Relaxed);
    let path = backups.places.passing().join(format!("backup-{number}.redb"));
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal(code, format!("no copy of the store could be made: {error}"))
    };
    let root = Key::new(format!("{ROOT}/"));
    let revision = snapshot_of(&*backups.store, &root, &path).await.map_err(failed)?;
    let file = tokio::fs::File::open(&path).await.map_err(failed)?;
    // It goes with whoever reads it, however that ends.
    fs::remove_file(&path).map_err(failed)?;
    let bytes = file.metadata().await.map_err(failed)?.len();
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH.as_str(), bytes.to_string()),
        (REVISION_HEADER, revision.to_string()),
        (KEY_HEADER, backups.places.key().display().to_string()),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(file))).into_response())
}
