//! A watch that never falls silent.
//!
//! etcd's own can: it ends without an error when history is compacted, it may be served by a member that hears nobody,
//! and it says nothing while others write elsewhere. And its word on passed revisions cannot be trusted before certain
//! releases of 3.4 and 3.5, where it overtakes events, or is left out. So each watch follows everything below the root
//! and tells of a passed revision only when an event at or after it has come by. When nothing has come for a second,
//! and the store has moved on meanwhile (somebody else writes beside the root), it writes one small key below the root
//! and waits for that. A watch that does not tell of it in time is broken, whatever the reason.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Event, EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use futures::stream;

use super::{Etcd, Failure, Members, end_of, heartbeat, revision_of, signed, unsigned, versioned};
use crate::seams::{Monotonic, Seams};
use crate::store::{Batch, Change, Key, Revision, StoreError, Watch};

/// The promise of [`Store`](crate::store::Store).
const QUIET: Duration = Duration::from_secs(1);
/// How long an event of ours may take to come back before the watch is given up.
const OVERDUE: Duration = Duration::from_secs(10);
/// etcd sends up to 1,000 revisions in one message when a watch begins in the past.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

struct Watching {
    members: Arc<Members>,
    seams: Seams,
    prefix: Key,
    heartbeat: String,
    stream: WatchStream,
    /// Asked for.
    after: Revision,
    /// Everything up to here has been told, or is ready to be.
    passed: Revision,
    ready: VecDeque<Batch>,
    /// An event at this revision or later must come by then.
    due: Option<(Revision, Monotonic)>,
    ended: bool,
}

impl Etcd {
    pub(super) async fn open_watch(&self, prefix: &Key, after: Revision) -> Result<Watch, StoreError> {
        assert!(prefix.starts_with(&self.root), "{prefix:?} is not below the root {:?}", self.root);
        let current = self.revision().await?;
        if after > current {
            return Err(StoreError::Future { asked: after, current });
        }
        // One revision early: at the compacted revision itself etcd would begin, but no longer know its deletions.
        let options = WatchOptions::new()
            .with_range(end_of(&self.root))
            .with_start_revision(signed(after).max(1))
            .with_prev_key();
        let stream = self
            .members
            .try_each(|client| {
                let mut client = client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
                let (root, options) = (self.root.as_str().to_owned(), options.clone());
                async move { client.watch(root, Some(options)).await.map_err(Failure::from) }
            })
            .await?;
        let watching = Watching {
            members: self.members.clone(),
            seams: self.seams.clone(),
            prefix: prefix.clone(),
            heartbeat: heartbeat(&self.root),
            stream,
            after,
            passed: after,
            ready: VecDeque::new(),
            due: None,
            ended: false,
        };
        Ok(Box::pin(stream::unfold(watching, |mut watching| async move {
            let item = watching.next().await?;
            Some((item, watching))
        })))
    }
}

impl Watching {
    async fn next(&mut self) -> Option<Result<Batch, StoreError>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Some(Ok(batch));
            }
            if let Err(error) = self.wait().await {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }

    /// Until something is ready, or a second has gone by without.
    async fn wait(&mut self) -> Result<(), StoreError> {
        let quiet = self.seams.sleep(QUIET);
        // In this order: what has come is told before anybody asks why nothing comes.
        let message = tokio::select! {
            biased;
            message = self.stream.message() => message,
            () = quiet => return self.ask().await,
        };
        match message {
            Ok(Some(response)) => self.take(&response),
            Ok(None) => self.lost("etcd ended the watch"),
            Err(error) => self.lost(&StoreError::from(Failure::from(error)).to_string()),
        }
    }

    fn lost(&self, detail: &str) -> Result<(), StoreError> {
        self.members.pass_over();
        Err(StoreError::Unavailable { detail: detail.into() })
    }

    fn take(&mut self, response: &WatchResponse) -> Result<(), StoreError> {
        if response.canceled() {
            return match response.compact_revision() {
                0 => self.lost(&format!("etcd cancelled the watch: {}", response.cancel_reason())),
                oldest => Err(StoreError::Compacted { asked: self.passed, oldest: Some(unsigned(oldest)) }),
            };
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = unsigned(kv.mod_revision());
            if revision <= self.after {
                continue;
            }
            if self.ready.back().is_none_or(|batch| batch.revision != revision) {
                debug_assert!(revision > self.passed, "{revision} came after {}", self.passed);
                self.ready.push_back(Batch { revision, changes: Vec::new() });
                self.passed = revision;
            }
            let batch = self.ready.back_mut().expect("one has just been pushed if there was none");
            batch.changes.extend(change(event, &self.prefix, &self.heartbeat));
        }
        for batch in &mut self.ready {
            batch.changes.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        }
        if self.due.is_some_and(|(revision, _)| self.passed >= revision) {
            self.due = None;
        }
        Ok(())
    }

    /// Nothing has come for a while: is that because nothing has happened?
    async fn ask(&mut self) -> Result<(), StoreError> {
        if let Some((revision, by)) = self.due {
            if self.seams.monotonic() > by {
                return self.lost(&format!("the watch does not tell of revision {revision}"));
            }
            return Ok(());
        }
        let mut kv = self.members.current().kv_client();
        // A store that does not answer is no news: the connection's keep-alive ends the watch if it is gone.
        let asked = async {
            let reply = kv.get(self.heartbeat.as_str(), Some(GetOptions::new().with_keys_only())).await;
            reply.map_err(Failure::from)
        };
        let Ok(reply) = self.members.within(asked).await else { return Ok(()) };
        if revision_of(reply.header()) <= self.passed {
            return Ok(());
        }
        // Refused when the quota is used up. Then others write nothing either, and what they delete is told late.
        let written = async { kv.put(self.heartbeat.as_str(), "", None).await.map_err(Failure::from) };
        if let Ok(reply) = self.members.within(written).await {
            self.due = Some((revision_of(reply.header()), self.seams.monotonic() + OVERDUE));
        }
        Ok(())
    }
}

fn change(event: &Event, prefix: &Key, heartbeat: &str) -> Option<Change> {
    let kv = event.kv()?;
    if kv.key() == heartbeat.as_bytes() {
        return None;
    }
    let key = Key::new(kv.key_str().ok()?);
    if !key.starts_with(prefix) {
        return None;
    }
    let value = match event.event_type() {
        EventType::Put => versioned(kv.clone()),
        EventType::Delete => None,
    };
    let previous = event.prev_kv().cloned().and_then(versioned);
    Some(Change { key, value, previous })
}
