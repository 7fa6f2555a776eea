//! Images without a registry: an archive is read once, as it comes, and what it holds goes straight into containerd.
//!
//! Decompression and tar framing run on a thread of their own, between two bounded channels; so memory stays at a few
//! chunks whatever the archive claims to hold. All files are stored under a lease of the import, since what they are is
//! often said last; the images are then made whole like pulled ones, and what none of them holds is collected with the
//! lease.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::try_join;
use schemas::image::{Digest, ImageRef};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::Archive;
use super::archive::{BadArchive, Contents, Keep, Kind, Stored, Tar, keep};
use super::content::{CHUNK_BYTES, Content, Ingest, Opened};
use super::error::{Error, is_disk_full};
use super::manifest::DOCUMENT_BYTES_MAX;
use super::platform::Platform;
use super::pull::{Root, Source, Whole};
use super::record::{self, Origin, Target};
use super::store::Shared;

/// Chunks on the way from the archive to the thread and back: enough that neither side waits for the other's turn.
const CHUNKS_ON_THE_WAY: usize = 4;

/// What the thread found.
enum Item {
    File {
        path: String,
        bytes: u64,
    },
    /// Of the file before.
    Data(Vec<u8>),
    End,
    Link {
        path: String,
        target: String,
    },
}

/// Numbers of the imports that are under way. A lease and the references of an import follow from its number, so what a
/// dead process left is taken over by the next import and not kept beside it.
#[derive(Default)]
pub(super) struct Imports(Mutex<BTreeSet<u32>>);

struct Number<'a> {
    imports: &'a Imports,
    number: u32,
}

impl Imports {
    fn begin(&self) -> Number<'_> {
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (0..).find(|number| !numbers.contains(number)).expect("there are more numbers than imports");
        numbers.insert(number);
        Number { imports: self, number }
    }

    /// Whether a lease is that of an import that is under way.
    pub fn holds(&self, lease: &str) -> bool {
        let numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.iter().any(|number| lease_of(*number) == lease)
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        self.imports.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

fn lease_of(number: u32) -> String {
    format!("apply-import-{number}")
}

/// Takes in all images of an archive, or none.
pub(super) async fn import(
    shared: &Arc<Shared>,
    archive: Archive,
    name: Option<&ImageRef>,
) -> Result<Vec<Target>, Error> {
    let number = shared.imports.begin();
    let lease = lease_of(number.number);
    let content = Content::under_lease(&shared.connection, &lease).await;
    let content = content.map_err(|status| Error::store("make a lease", status))?;
    let outcome = take_in(shared, &content, archive, name, &lease).await;
    let released = content.release().await;
    let targets = outcome?;
    released.map_err(|status| Error::store("end a lease", status))?;
    Ok(targets)
}

async fn take_in(
    shared: &Arc<Shared>,
    content: &Content,
    archive: Archive,
    name: Option<&ImageRef>,
    lease: &str,
) -> Result<Vec<Target>, Error> {
    let contents = store_files(content, archive, lease).await?;
    let platform = Platform::of_this_machine();
    let found = contents.images(name, &platform)?;
    let mut targets = Vec::new();
    for found in found {
        if let Some(made) = &found.made {
            let put = content.put(&found.digest, made).await;
            put.map_err(|status| Error::containerd(&found.image, "store a manifest", status))?;
        }
        let entry = Arc::new(shared.board.enter(&found.image));
        let root = Root { digest: found.digest.clone(), media_type: found.media_type, bytes: None };
        let whole = Whole::new(&found.image, &found.digest, &platform);
        shared.complete(whole, root, Source::Nowhere, entry, Origin::Archive).await?;
        let target = record::get(&shared.connection, &found.image).await;
        targets.extend(target.map_err(|status| Error::containerd(&found.image, "read its record", status))?);
    }
    Ok(targets)
}

/// Every file of the archive, in containerd.
async fn store_files(content: &Content, mut archive: Archive, lease: &str) -> Result<Contents, Error> {
    let (input, raw) = mpsc::channel::<io::Result<Vec<u8>>>(CHUNKS_ON_THE_WAY);
    let (items, mut output) = mpsc::channel::<Item>(CHUNKS_ON_THE_WAY);
    let walker = tokio::task::spawn_blocking(move || walk(Pipe::new(raw), &items));

    let pumping = async move {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES / 4];
            let read = archive.read(&mut chunk).await;
            let is_last = !matches!(read, Ok(1..));
            let message = read.map(|read| {
                chunk.truncate(read);
                chunk
            });
            // The thread stopped: it has said why, or has seen the end of the archive.
            if input.send(message).await.is_err() || is_last {
                return Ok::<_, Error>(());
            }
        }
    };
    let storing = async {
        let mut contents = Contents::default();
        let mut count = 0_u32;
        while let Some(item) = output.recv().await {
            match item {
                Item::Link { path, target } => drop(contents.links.insert(path, target)),
                Item::File { path, bytes } => match keep(&path) {
                    Keep::No => while let Some(Item::Data(_)) = output.recv().await {},
                    Keep::InMemory => {
                        let document = in_memory(&path, bytes, &mut output).await?;
                        contents.documents.insert(path, document);
                    }
                    Keep::InStore => {
                        count += 1;
                        let stored = in_store(content, &format!("{lease}-{count}"), &path, bytes, &mut output).await?;
                        contents.files.insert(path, stored);
                    }
                },
                Item::Data(_) | Item::End => unreachable!("the arm that opened the file reads to its end"),
            }
        }
        // Before the thread is waited for: it may be about to send.
        drop(output);
        Ok(contents)
    };
    // Both channels are closed when this returns, either way, so the thread ends.
    let stored = try_join(pumping, storing).await;
    let walked = walker.await.expect("the walk of an archive does not panic");
    // If the thread failed, the other side only saw its channel end.
    walked?;
    let ((), contents) = stored?;
    Ok(contents)
}

async fn in_memory(path: &str, bytes: u64, output: &mut mpsc::Receiver<Item>) -> Result<Vec<u8>, BadArchive> {
    if bytes > DOCUMENT_BYTES_MAX {
        return Err(BadArchive::TooLarge { path: path.to_owned(), bytes, max: DOCUMENT_BYTES_MAX });
    }
    let mut document = Vec::new();
    while let Some(Item::Data(data)) = output.recv().await {
        document.extend_from_slice(&data);
    }
    Ok(document)
}

/// Stores one file, under the digest that its name promises or under the one that it turns out to have.
async fn in_store(
    content: &Content,
    reference: &str,
    path: &str,
    bytes: u64,
    output: &mut mpsc::Receiver<Item>,
) -> Result<Stored, Error> {
    let store = |status| match is_disk_full(&status) {
        true => Error::Archive(BadArchive::DiskFull),
        false => Error::store("store a file of the archive", status),
    };
    let promised = promised(path);
    if let Some(digest) = &promised
        && content.claim_blob(digest).await.map_err(store)? == Some(bytes)
    {
        while let Some(Item::Data(_)) = output.recv().await {}
        return Ok(Stored { digest: digest.clone(), bytes });
    }
    // What a predecessor left under this reference is of another file. A pull of the same blob has another reference.
    content.abort(reference).await.map_err(store)?;
    let opened = content.open(reference, promised.as_ref().map(|digest| (digest, bytes))).await.map_err(store)?;
    let mut ingest: Box<Ingest> = match (opened, promised.clone()) {
        (Opened::Ingest(ingest), _) => ingest,
        (Opened::There, Some(digest)) => {
            while let Some(Item::Data(_)) = output.recv().await {}
            return Ok(Stored { digest, bytes });
        }
        (Opened::There, None) => unreachable!("nothing was promised that could be there"),
    };
    let mut is_whole = false;
    while let Some(item) = output.recv().await {
        match item {
            Item::Data(data) => ingest.write(data).await.map_err(store)?,
            _ => {
                is_whole = true;
                break;
            }
        }
    }
    if !is_whole {
        // The walk ended here and says why.
        content.discard(*ingest, reference).await.map_err(store)?;
        return Err(BadArchive::Truncated(path.to_owned()).into());
    }
    let found = ingest.found().await.map_err(store)?;
    let digest: Digest =
        found.parse().map_err(|_| BadArchive::Corrupt { path: path.to_owned(), found: found.clone() })?;
    if promised.is_some_and(|promised| promised != digest) {
        content.discard(*ingest, reference).await.map_err(store)?;
        return Err(BadArchive::Corrupt { path: path.to_owned(), found }.into());
    }
    // Only now is it known what to claim.
    content.claim("content", digest.as_str()).await.map_err(store)?;
    ingest.commit(&digest, bytes).await.map_err(store)?;
    Ok(Stored { digest, bytes })
}

/// The digest that a file of an OCI layout has by its place.
fn promised(path: &str) -> Option<Digest> {
    path.strip_prefix("blobs/")?.replacen('/', ":", 1).parse().ok()
}

/// Decompresses and walks; ends early, without an error, when nobody listens any more.
fn walk(mut raw: Pipe, items: &mpsc::Sender<Item>) -> Result<(), BadArchive> {
    let start = raw.peek().map_err(|error| BadArchive::Unreadable(error.to_string()))?;
    let plain: Box<dyn Read> = match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(raw)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::Decoder::new(raw).map_err(|error| BadArchive::Unreadable(error.to_string()))?)
        }
        _ => Box::new(raw),
    };
    let mut tar = Tar::new(plain);
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Some(entry) = tar.next()? {
        let first = match entry.kind {
            Kind::Other => continue,
            Kind::Link { target } => Item::Link { path: entry.path, target },
            Kind::File { bytes } => Item::File { path: entry.path, bytes },
        };
        let is_file = matches!(first, Item::File { .. });
        if items.blocking_send(first).is_err() {
            return Ok(());
        }
        if !is_file {
            continue;
        }
        loop {
            let mut filled = 0;
            while filled < buffer.len() {
                match tar.read(&mut buffer[filled..])? {
                    0 => break,
                    read => filled += read,
                }
            }
            let item = if filled == 0 { Item::End } else { Item::Data(buffer[..filled].to_vec()) };
            if items.blocking_send(item).is_err() {
                return Ok(());
            }
            if filled == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// The archive as the thread reads it.
struct Pipe {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
}

impl Pipe {
    fn new(chunks: mpsc::Receiver<io::Result<Vec<u8>>>) -> Self {
        Pipe { chunks, current: Vec::new(), at: 0 }
    }

    /// The first bytes, which stay to be read: at least four if there are as many.
    fn peek(&mut self) -> io::Result<&[u8]> {
        while self.current.len() < 4 {
            match self.chunks.blocking_recv().transpose()? {
                Some(chunk) if !chunk.is_empty() => self.current.extend(chunk),
                _ => break,
            }
        }
        Ok(&self.current)
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            match self.chunks.blocking_recv().transpose()? {
                Some(chunk) => (self.current, self.at) = (chunk, 0),
                None => return Ok(0),
            }
        }
        let read = buffer.len().min(self.current.len() - self.at);
        buffer[..read].copy_from_slice(&self.current[self.at..self.at + read]);
        self.at += read;
        Ok(read)
    }
}
