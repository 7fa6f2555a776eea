//! Places, the connections to them, and what came back over one.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::metrics::{ClientMetrics, Metrics};
use crate::objects::Error;
use crate::seams::{Monotonic, Seams, TaskHandle};

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A way to a server.
pub trait Connect: fmt::Debug + Send + Sync {
    /// A new connection. Cancel-safe.
    ///
    /// # Errors
    /// Nobody answers there.
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Io>>>;
    /// Where it leads, for people.
    fn place(&self) -> String;
    /// What to do when nobody answers there, for people; may be empty.
    fn advice(&self) -> String {
        String::new()
    }
}

/// The way to a unix socket.
#[derive(Clone, Debug)]
pub struct Unix {
    path: PathBuf,
    advice: String,
}

impl Unix {
    /// To the socket at `path`. Connects when it is first used.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), advice: "is the server running, and may this user open the socket?".into() }
    }

    /// What people are told to do when nobody answers.
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }
}

impl Connect for Unix {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Io>>> {
        Box::pin(async move { Ok(Box::new(UnixStream::connect(&self.path).await?) as Box<dyn Io>) })
    }

    fn place(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    fn advice(&self) -> String {
        self.advice.clone()
    }
}

/// From the request to the head of its answer, and from there to the end of a body that is read as a whole.
const PATIENCE: Duration = Duration::from_secs(30);
/// Shorter than any server waits for the next request, so that one is hardly ever sent into a closing connection.
const IDLE: Duration = Duration::from_secs(10);
/// More than these are closed when they are done.
const IDLE_CONNECTIONS: usize = 8;
/// A commit of a hundred deletions tells of all that was deleted: 100 objects of the largest size, and some room.
const LINE_BYTES: usize = 160 << 20;

/// All connections to one place.
#[derive(Debug)]
pub(super) struct Connections {
    connect: Arc<dyn Connect>,
    seams: Seams,
    idle: Mutex<Vec<Idle>>,
    numbers: OnceLock<ClientMetrics>,
}

#[derive(Debug)]
struct Idle {
    since: Monotonic,
    connection: Connection,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Drives it; dropping this closes it.
    task: TaskHandle,
}

impl Connections {
    pub(super) fn new(connect: Arc<dyn Connect>, seams: Seams) -> Self {
        Self { connect, seams, idle: Mutex::default(), numbers: OnceLock::new() }
    }

    pub(super) fn count_in(&self, metrics: &Metrics) {
        let _ = self.numbers.set(metrics.of_client());
    }

    pub(super) fn unavailable(&self, what: &str) -> Error {
        Error::Unavailable { detail: format!("{}: {what}", self.connect.place()) }
    }

    /// Whoever answered speaks another language.
    pub(super) fn strange(&self, error: &serde_json::Error) -> Error {
        self.unavailable(&format!("the answer cannot be read: {error}"))
    }

    /// Sends a request and waits for the head of the answer. Anything but a `GET` may have happened once it was sent.
    pub(super) async fn call(
        self: &Arc<Self>,
        method: Method,
        path_and_query: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, Error> {
        let answered = self.exchange(method.clone(), path_and_query, headers, body).await;
        if let Some(numbers) = self.numbers.get() {
            let code = answered.as_ref().ok().map(|answer| answer.status().as_u16());
            numbers.asked(code, method.as_str(), self.connect.place());
        }
        answered
    }

    async fn exchange(
        self: &Arc<Self>,
        method: Method,
        path_and_query: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, Error> {
        let harmless = method == Method::GET;
        let mut request = Request::builder().method(method).uri(path_and_query).header("host", "apply");
        request = request.header("content-type", "application/json").header("accept", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request
            .body(Full::new(body))
            .map_err(|error| Error::Unavailable { detail: format!("{path_and_query:?} is no path: {error}") })?;
        let lost = |what: String| {
            if harmless { self.unavailable(&what) } else { Error::UnknownOutcome { detail: what } }
        };
        let exchange = async {
            loop {
                let idle = self.take_idle();
                let fresh = idle.is_none();
                let mut connection = match idle {
                    Some(connection) => connection,
                    None => self.open().await?,
                };
                if connection.sender.ready().await.is_err() {
                    if fresh {
                        return Err(self.unavailable("the connection was closed at once"));
                    }
                    continue;
                }
                match connection.sender.try_send_request(request).await {
                    Ok(response) => return Ok((connection, response)),
                    Err(mut error) => match error.take_message() {
                        // It never left, so it may go by another connection.
                        Some(unsent) if !fresh => request = unsent,
                        Some(_) => return Err(self.unavailable(&error.error().to_string())),
                        None => return Err(lost(format!("the connection broke: {}", error.error()))),
                    },
                }
            }
        };
        let (connection, response) = tokio::select! {
            biased;
            answered = exchange => answered?,
            () = self.seams.sleep(PATIENCE) => return Err(lost(format!("no answer within {PATIENCE:?}"))),
        };
        Ok(Answer { response, connection, home: self.clone() })
    }

    /// Bytes to and from the place, and nothing said yet.
    pub(super) async fn dial(&self) -> Result<Box<dyn Io>, Error> {
        self.connect.connect().await.map_err(|error| {
            let advice = self.connect.advice();
            let what = if advice.is_empty() { error.to_string() } else { format!("{error}; {advice}") };
            self.unavailable(&what)
        })
    }

    async fn open(&self) -> Result<Connection, Error> {
        let io = self.dial().await?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(io)).await.map_err(|error| self.unavailable(&error.to_string()))?;
        let task = self.seams.spawn("connection", async move {
            // Whoever waits for an answer is told by the sender's side.
            let _ = driver.with_upgrades().await;
        });
        Ok(Connection { sender, task })
    }

    fn take_idle(&self) -> Option<Connection> {
        let now = self.seams.monotonic();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| now.since(idle.since) < IDLE && !idle.connection.sender.is_closed());
        idle.pop().map(|idle| idle.connection)
    }

    fn put_back(&self, connection: Connection) {
        let since = self.seams.monotonic();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.sender.is_closed() && idle.len() < IDLE_CONNECTIONS {
            idle.push(Idle { since, connection });
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.task.fmt(f)
    }
}

/// What a server answered, its body not yet read. Dropping it closes its connection.
#[derive(Debug)]
pub struct Answer {
    response: Response<Incoming>,
    connection: Connection,
    home: Arc<Connections>,
}

impl Answer {
    /// The status that the server answered with.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header of the answer by its name, in any case; `None` also where it is no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The whole body.
    pub async fn bytes(self) -> Result<Bytes, Error> {
        let Self { response, connection, home } = self;
        let body = tokio::select! {
            biased;
            body = response.into_body().collect() => {
                body.map_err(|error| home.unavailable(&format!("the answer broke off: {error}")))?.to_bytes()
            }
            () = home.seams.sleep(PATIENCE) => {
                return Err(home.unavailable(&format!("the answer did not end within {PATIENCE:?}")));
            }
        };
        home.put_back(connection);
        Ok(body)
    }

    /// The body line by line.
    pub fn lines(self) -> Lines {
        let Self { response, connection, home } = self;
        Lines { body: response.into_body(), _connection: connection, home, buffer: BytesMut::new(), looked_at: 0 }
    }

    /// The connection itself, once the server has agreed to [`Remote::upgrade`](super::Remote::upgrade).
    pub async fn upgraded(self) -> Result<Box<dyn Io>, Error> {
        let Self { response, connection, home } = self;
        let upgraded = hyper::upgrade::on(response).await;
        drop(connection);
        let upgraded = upgraded.map_err(|error| home.unavailable(&format!("it was not upgraded: {error}")))?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }
}

/// The body of an answer that comes bit by bit.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    _connection: Connection,
    home: Arc<Connections>,
    buffer: BytesMut,
    /// So many bytes of the buffer have no line end.
    looked_at: usize,
}

impl Lines {
    /// The next line without its end; `None` when the body is over. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(end) = self.buffer[self.looked_at..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(self.looked_at + end + 1);
                line.truncate(line.len() - 1);
                self.looked_at = 0;
                return Ok(Some(line.freeze()));
            }
            self.looked_at = self.buffer.len();
            if self.looked_at > LINE_BYTES {
                return Err(self.home.unavailable("a line of the answer does not end"));
            }
            match self.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    self.looked_at = 0;
                    return Ok(Some(self.buffer.split().freeze()));
                }
            }
        }
    }

    /// Whatever comes next, as it comes; `None` when the body is over. Cancel-safe. Not to be mixed with
    /// [`Lines::next`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    // Trailers.
                    Err(_) => continue,
                },
                Some(Err(error)) => return Err(self.home.unavailable(&format!("the answer broke off: {error}"))),
            }
        }
    }
}
