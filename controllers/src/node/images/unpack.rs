//! From layers to snapshots: each layer is applied on a copy of the one below and committed under its chain id.
//!
//! The name of a committed snapshot says all that is in it, so whoever finds it need not make it, whether a sibling
//! image or a dead predecessor left it there. The snapshot that is being filled has one name for each layer too: one
//! that is found belongs to somebody dead (within this process a chain is unpacked by one at a time) and is made anew.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snap;
use containerd_client::types;
use schemas::image::Digest;
use tonic::{Code, Status};

use super::super::containerd::connection::Connection;
use super::content::Content;

/// How long a metadata call may take. Commits of snapshots are serial in containerd: thirty may wait.
const CALL_WITHIN: Duration = Duration::from_secs(60);

/// How long one layer may take to unpack: tens of gigabytes on a slow disk.
const APPLY_WITHIN: Duration = Duration::from_secs(3600);

/// One layer: what it is, and how to be sure of what came out.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub blob: Digest,
    pub size: u64,
    /// As containerd's diff service knows it.
    pub media_type: String,
    /// The digest of the layer once it is decompressed.
    pub diff_id: Digest,
    /// The snapshot below; none for the first layer.
    pub parent: Option<Digest>,
    /// The snapshot that this layer makes.
    pub chain_id: Digest,
}

/// Why a layer was not unpacked.
#[derive(Debug)]
pub(super) enum Failed {
    Containerd(&'static str, Status),
    /// The layer is whole, but decompressed it is not what the configuration names.
    OtherContent {
        found: String,
    },
}

/// Whether the snapshot is there; from now on the lease holds it.
pub(super) async fn claim_snapshot(content: &Content, snapshotter: &str, name: &Digest) -> Result<bool, Status> {
    content.claim(&format!("snapshots/{snapshotter}"), name.as_str()).await?;
    is_there(content.connection(), snapshotter, name).await
}

pub(super) async fn is_there(connection: &Connection, snapshotter: &str, name: &Digest) -> Result<bool, Status> {
    let request = snap::StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: name.to_string() };
    match connection.within(CALL_WITHIN).snapshots().stat(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status),
    }
}

/// Makes the layer's snapshot, unless it is there. Its parent must be.
pub(super) async fn unpack(content: &Content, snapshotter: &str, layer: &Layer) -> Result<(), Failed> {
    let found = claim_snapshot(content, snapshotter, &layer.chain_id).await;
    if found.map_err(|status| Failed::Containerd("look for a snapshot", status))? {
        return Ok(());
    }
    let key = format!("apply-unpack-{}", layer.chain_id);
    let mounts = prepare(content, snapshotter, layer, &key).await?;
    let blob = types::Descriptor {
        media_type: layer.media_type.clone(),
        digest: layer.blob.to_string(),
        size: layer.size as i64,
        annotations: HashMap::new(),
    };
    let request = api::ApplyRequest { diff: Some(blob), mounts, ..Default::default() };
    let applied = content.connection().within(APPLY_WITHIN).diff().apply(request).await;
    let outcome = match applied {
        Err(status) => Err(Failed::Containerd("unpack a layer", status)),
        Ok(answer) => {
            let found = answer.into_inner().applied.map(|applied| applied.digest).unwrap_or_default();
            if found == layer.diff_id.as_str() { Ok(()) } else { Err(Failed::OtherContent { found }) }
        }
    };
    if let Err(failed) = outcome {
        // It is only a leftover; the failure is what matters, and the next attempt removes it too.
        let _ = remove(content, snapshotter, &key).await;
        return Err(failed);
    }
    let request = snap::CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: layer.chain_id.to_string(),
        key: key.clone(),
        ..Default::default()
    };
    match content.connection().within(CALL_WITHIN).snapshots().commit(request).await {
        Err(status) if status.code() == Code::AlreadyExists => {
            let _ = remove(content, snapshotter, &key).await;
            Ok(())
        }
        Err(status) => Err(Failed::Containerd("commit a snapshot", status)),
        Ok(_) => Ok(()),
    }
}

async fn prepare(content: &Content, snapshotter: &str, layer: &Layer, key: &str) -> Result<Vec<types::Mount>, Failed> {
    let request = snap::PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: layer.parent.as_ref().map(Digest::to_string).unwrap_or_default(),
        ..Default::default()
    };
    let failed = |status| Failed::Containerd("prepare a snapshot", status);
    let mut snapshots = content.connection().within(CALL_WITHIN).snapshots();
    match snapshots.prepare(request.clone()).await {
        Ok(answer) => Ok(answer.into_inner().mounts),
        Err(status) if status.code() == Code::AlreadyExists => {
            remove(content, snapshotter, key).await.map_err(failed)?;
            Ok(snapshots.prepare(request).await.map_err(failed)?.into_inner().mounts)
        }
        Err(status) => Err(failed(status)),
    }
}

async fn remove(content: &Content, snapshotter: &str, key: &str) -> Result<(), Status> {
    let request = snap::RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    match content.connection().within(CALL_WITHIN).snapshots().remove(request).await {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}
