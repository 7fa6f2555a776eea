//! One blob: into containerd from a registry, through broken connections and dead predecessors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tonic::Status;

use super::Credentials;
use super::content::{CHUNK_BYTES, Ingest, Opened, reference_of};
use super::error::Error;
use super::manifest::Descriptor;
use super::pull::{FLIGHTS_MAX, Job, Source};
use super::registry::retry::Setback;
use super::registry::{bear, root_cause, unreachable};

/// Whether a blob is a part of what progress is shown of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    Yes,
    No,
}

enum Trouble {
    /// The connection broke: what came is kept, the rest is asked for again.
    Broken(String),
    Final(Error),
}

impl Job {
    /// One blob, in containerd afterwards, whole.
    pub(super) fn blob(
        self: Arc<Self>,
        what: &'static str,
        blob: Descriptor,
        counted: Counted,
    ) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(async move {
            for _ in 0..FLIGHTS_MAX {
                let here = self.content.claim_blob(&blob.digest).await;
                if let Some(size) = here.map_err(|status| self.failed("look for a layer", status))? {
                    if size != blob.size {
                        return Err(self.corrupt(what, &blob, format!("{size} bytes instead of {}", blob.size)));
                    }
                    self.count(counted, blob.size);
                    return Ok(());
                }
                let Source::Registry(credentials) = &self.source else {
                    return Err(self.missing(what, &blob.digest));
                };
                let began = Arc::new(AtomicBool::new(false));
                let flight = self.shared.blobs.join(&blob.digest, || {
                    began.store(true, Ordering::Relaxed);
                    let (job, blob, credentials) = (Arc::clone(&self), blob.clone(), credentials.clone());
                    async move { job.fetch(what, &blob, credentials.as_ref(), counted).await }
                });
                match flight.await {
                    outcome if began.load(Ordering::Relaxed) => return outcome,
                    // Their credentials or repository may have been the reason, so it is tried by ourselves.
                    _ => {}
                }
            }
            Err(self.failed("store a layer", Status::aborted("others who fetched it failed again and again")))
        })
    }

    /// Fetches a blob into containerd, going on where a broken connection or a dead predecessor stopped.
    async fn fetch(
        &self,
        what: &'static str,
        blob: &Descriptor,
        credentials: Option<&Credentials>,
        counted: Counted,
    ) -> Result<(), Error> {
        let _place = self.shared.downloads.acquire().await.expect("the semaphore is never closed");
        let reference = reference_of(&blob.digest);
        let store = |status| self.failed("store a layer", status);
        let mut patience = self.shared.registries.patience();
        let mut may_be_leftover = true;
        let mut shown = 0;
        loop {
            let opened = self.content.open(&reference, Some((&blob.digest, blob.size))).await.map_err(store)?;
            let Opened::Ingest(mut ingest) = opened else {
                self.count(counted, blob.size - shown);
                return Ok(());
            };
            let from = ingest.offset();
            self.show(counted, &mut shown, from.min(blob.size));
            let outcome = match from.cmp(&blob.size) {
                std::cmp::Ordering::Less => {
                    self.receive(what, blob, credentials, &mut ingest, |at| self.show(counted, &mut shown, at)).await
                }
                _ => Ok(()),
            };
            match outcome {
                Ok(()) if ingest.offset() == blob.size => {
                    let found = ingest.found().await.map_err(store)?;
                    if found == blob.digest.as_str() {
                        return ingest.commit(&blob.digest, blob.size).await.map_err(store);
                    }
                    self.content.discard(*ingest, &reference).await.map_err(store)?;
                    // The part that was there before us may be the bad one: once more, all of it from the registry.
                    if from == 0 || !may_be_leftover {
                        return Err(self.corrupt(what, blob, found));
                    }
                    may_be_leftover = false;
                }
                Ok(()) => {
                    self.content.discard(*ingest, &reference).await.map_err(store)?;
                }
                Err(Trouble::Broken(why)) => {
                    if ingest.offset() > from {
                        patience.renew();
                    }
                    drop(ingest);
                    bear(&mut patience, Setback::Broken).await.ok_or_else(|| unreachable(&self.image, &why))?;
                }
                Err(Trouble::Final(error)) => {
                    // What a lying registry sent is of no use to the next attempt.
                    if !error.is_temporary() {
                        self.content.discard(*ingest, &reference).await.map_err(store)?;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Writes what the registry sends, from where the ingest stands to the end.
    async fn receive(
        &self,
        what: &'static str,
        blob: &Descriptor,
        credentials: Option<&Credentials>,
        ingest: &mut Ingest,
        mut show: impl FnMut(u64),
    ) -> Result<(), Trouble> {
        let from = ingest.offset();
        let strange = |status: StatusCode, message: String| {
            Trouble::Final(Error::Strange { image: self.image.clone().into(), status: status.as_u16(), message })
        };
        let answer = self.shared.registries.blob(&self.image, credentials, &blob.digest, from).await;
        let mut response = answer.map_err(Trouble::Final)?;
        let mut skip = match response.status() {
            StatusCode::OK => from,
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                if range.and_then(range_start) != Some(from) {
                    let message = format!("with {range:?} when asked for bytes {from}-");
                    return Err(strange(response.status(), message));
                }
                0
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let found = format!("no more than {from} bytes instead of {}", blob.size);
                return Err(Trouble::Final(self.corrupt(what, blob, found)));
            }
            status => return Err(strange(status, format!("it has no {what} {}", blob.digest))),
        };
        let mut buffer = Vec::new();
        loop {
            let chunk = response.chunk().await;
            let is_last = !matches!(chunk, Ok(Some(_)));
            if let Ok(Some(chunk)) = &chunk {
                let skipped = skip.min(chunk.len() as u64);
                skip -= skipped;
                buffer.extend_from_slice(&chunk[skipped as usize..]);
            }
            if ingest.offset() + buffer.len() as u64 > blob.size {
                let found = format!("more than {} bytes", blob.size);
                return Err(Trouble::Final(self.corrupt(what, blob, found)));
            }
            while buffer.len() >= CHUNK_BYTES || (is_last && !buffer.is_empty()) {
                let rest = buffer.split_off(buffer.len().min(CHUNK_BYTES));
                let written = ingest.write(std::mem::replace(&mut buffer, rest)).await;
                written.map_err(|status| Trouble::Final(self.failed("store a layer", status)))?;
                show(ingest.offset());
            }
            match chunk {
                Ok(Some(_)) => {}
                Ok(None) if ingest.offset() == blob.size => return Ok(()),
                Ok(None) => {
                    return Err(Trouble::Broken(format!("it ended after {} of {} bytes", ingest.offset(), blob.size)));
                }
                Err(failed) => return Err(Trouble::Broken(root_cause(&failed))),
            }
        }
    }

    pub(super) fn count(&self, counted: Counted, bytes: u64) {
        if counted == Counted::Yes {
            self.entry.advance(bytes);
        }
    }

    /// Moves what is shown of one blob from `shown` to `at`.
    fn show(&self, counted: Counted, shown: &mut u64, at: u64) {
        if counted == Counted::Yes {
            match at.checked_sub(*shown) {
                Some(forward) => self.entry.advance(forward),
                None => self.entry.retreat(*shown - at),
            }
        }
        *shown = at;
    }
}

/// The first byte that an answer brings: 100 of `bytes 100-199/200`.
fn range_start(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_is_not_the_one_asked_for_is_seen() {
        assert_eq!(range_start("bytes 100-199/200"), Some(100));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        assert_eq!(range_start("bytes */200"), None);
        assert_eq!(range_start("items 1-2/3"), None);
    }
}
