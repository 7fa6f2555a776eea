//! A registry that misbehaves as it is told to: the one part that is not real, since real registries do these things
//! only on their bad days. It serves one repository, `app`, over HTTP/1.1 and writes down what it was asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::registry::{Pushed, digest_of};

/// One request, as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// The connection is cut after so many bytes of the body, whatever was promised.
    pub cut_after: Option<usize>,
    /// The answer never ends: this many bytes, then silence until the client goes.
    pub stall_after: Option<usize>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: body.into(), cut_after: None, stall_after: None }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    pub fn cut_after(mut self, bytes: usize) -> Reply {
        self.cut_after = Some(bytes);
        self
    }

    pub fn stall_after(mut self, bytes: usize) -> Reply {
        self.stall_after = Some(bytes);
        self
    }
}

/// Decides about a request before it is served: the request, and how often its path was asked for before.
pub type Trouble = dyn Fn(&Request, usize) -> Option<Reply> + Send + Sync;

/// A running stub. Dropped, it is gone with its connections.
pub struct StubRegistry {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    _serving: JoinSet<()>,
}

impl StubRegistry {
    /// Serves `image` under the tag `1`, except where `trouble` says otherwise. Needs a tokio runtime.
    pub async fn start(
        image: Pushed,
        trouble: impl Fn(&Request, usize) -> Option<Reply> + Send + Sync + 'static,
    ) -> Result<StubRegistry> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let (image, trouble): (Arc<Pushed>, Arc<Trouble>) = (Arc::new(image), Arc::new(trouble));
        let mut serving = JoinSet::new();
        let requests = Arc::clone(&log);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (image, trouble, log) = (Arc::clone(&image), Arc::clone(&trouble), Arc::clone(&requests));
                connections.spawn(async move {
                    // A client that goes away in the middle is no failure of the stub.
                    let _ = serve(stream, &image, &*trouble, &log).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(StubRegistry { address, log, _serving: serving })
    }

    /// As image references name it.
    pub fn name(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was asked so far, in order.
    pub fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often a path that contains this was asked for.
    pub fn count(&self, part: &str) -> usize {
        self.log().iter().filter(|request| request.path.contains(part)).count()
    }
}

async fn serve(stream: TcpStream, image: &Pushed, trouble: &Trouble, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await? {
        let before = {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            let before = log.iter().filter(|earlier| earlier.path == request.path).count();
            log.push(request.clone());
            before
        };
        let reply = trouble(&request, before).unwrap_or_else(|| ordinary(&request, image));
        let mut head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", reply.status, reply.body.len());
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await?;
        if request.method != "HEAD" {
            let sent = reply.cut_after.or(reply.stall_after).unwrap_or(reply.body.len()).min(reply.body.len());
            stream.write_all(&reply.body[..sent]).await?;
        }
        stream.flush().await?;
        if reply.stall_after.is_some() {
            // Until the client closes its end.
            let mut rest = String::new();
            stream.read_line(&mut rest).await?;
        }
        if reply.cut_after.is_some() || reply.stall_after.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, headers: BTreeMap::new() };
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 || line.trim().is_empty() {
            return Ok(Some(request));
        }
        if let Some((name, value)) = line.split_once(':') {
            request.headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
}

/// What a registry in good health answers.
fn ordinary(request: &Request, image: &Pushed) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    let not_found = |code: &str| Reply::new(404, format!(r#"{{"errors":[{{"code":"{code}"}}]}}"#));
    if path == "/v2/" {
        return Reply::new(200, "{}");
    }
    let Some(path) = path.strip_prefix("/v2/app/") else { return not_found("NAME_UNKNOWN") };
    if path == "tags/list" {
        return Reply::new(200, r#"{"name":"app","tags":["1"]}"#);
    }
    if let Some(reference) = path.strip_prefix("manifests/") {
        let last = image.documents.len().saturating_sub(1);
        let found = image
            .documents
            .iter()
            .enumerate()
            .find(|(at, (_, document))| (reference == "1" && *at == last) || digest_of(document) == reference);
        return match found {
            Some((_, (media_type, document))) => Reply::new(200, document.clone())
                .with("content-type", media_type.clone())
                .with("docker-content-digest", digest_of(document)),
            None => not_found("MANIFEST_UNKNOWN"),
        };
    }
    let Some(blob) = path.strip_prefix("blobs/").and_then(|digest| image.blobs.get(digest)) else {
        return not_found("BLOB_UNKNOWN");
    };
    let from =
        request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    match from {
        Some(from) if from < blob.len() => Reply::new(206, &blob[from..])
            .with("content-range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
        Some(_) => Reply::new(416, ""),
        None => Reply::new(200, blob.clone()),
    }
}
