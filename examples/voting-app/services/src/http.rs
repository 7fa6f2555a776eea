//! A small HTTP/1.1 server: a thread a connection, keep-alive, server-sent events, and a stop that drops nobody.
//!
//! Asked to stop, it goes on accepting (connections that the kernel has queued belong to people who are waiting),
//! answers whatever is asked with `Connection: close`, gives idle keep-alive connections a second to ask once more, and
//! returns when nobody is left.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::dial::dial;
use crate::stop::Stop;

/// What was asked.
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub cookies: String,
    pub body: Vec<u8>,
    close: bool,
}

impl Request {
    /// The value of a cookie.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies.split("; ").find_map(|cookie| cookie.strip_prefix(name)?.strip_prefix('='))
    }

    /// The value of a field of a form, undecoded.
    pub fn field(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(&self.body).ok()?.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    }
}

/// What is answered.
pub struct Response {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Body,
}

enum Body {
    Whole(Vec<u8>),
    Events(Box<dyn FnMut() -> Option<String>>),
}

impl Response {
    pub fn html(page: String) -> Response {
        Response::new("200 OK", "text/html; charset=utf-8", page)
    }

    pub fn json(status: &'static str, json: String) -> Response {
        Response::new(status, "application/json", json + "\n")
    }

    pub fn text(status: &'static str, text: &str) -> Response {
        Response::new(status, "text/plain; charset=utf-8", format!("{text}\n"))
    }

    /// "Look there instead, by GET": what answers a form, so that reloading the page does not send it again.
    pub fn see_other(location: &str) -> Response {
        Response::text("303 See Other", "").header("Location", location.to_owned())
    }

    /// Server-sent events. `next` is asked four times a second and says what is new, if anything is.
    pub fn events(next: impl FnMut() -> Option<String> + 'static) -> Response {
        let mut response = Response::new("200 OK", "text/event-stream", String::new());
        response.body = Body::Events(Box::new(next));
        response
    }

    pub fn status(mut self, status: &'static str) -> Response {
        self.status = status;
        self
    }

    pub fn header(mut self, name: &'static str, value: String) -> Response {
        self.headers.push((name, value));
        self
    }

    fn new(status: &'static str, kind: &'static str, body: String) -> Response {
        let headers = vec![("Content-Type", kind.to_owned()), ("Cache-Control", "no-store".to_owned())];
        Response { status, headers, body: Body::Whole(body.into_bytes()) }
    }
}

/// Serves on a port, IPv4 and IPv6, until asked to stop and everybody has been answered.
///
/// `/healthz` is answered here: 200, or 503 once the program is stopping.
pub fn serve(port: u16, stop: &Stop, answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|cause| io::Error::new(cause.kind(), format!("could not listen on port {port}: {cause}")))?;
    let open = Arc::new(Open::default());
    let server = Arc::new(Server { answer, stop: stop.clone() });
    let count = Arc::clone(&open);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (server, guest) = (Arc::clone(&server), Open::enter(&count));
            // A failure to start the thread drops the connection, and the guest with it.
            drop(thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
                let _guest = guest;
                // A peer that hangs up or talks nonsense is its own business.
                let _ = server.converse(stream);
            }));
        }
    });
    stop.wait();
    open.wait_until_quiet();
    Ok(())
}

/// Asks `/healthz` of the server in this container; for health checks, as the image holds no other program.
pub fn check(port: u16) -> ExitCode {
    let ask = || -> io::Result<bool> {
        let mut stream = dial(&format!("127.0.0.1:{port}"), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(&head == b"HTTP/1.1 200")
    };
    match ask() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("not healthy");
            ExitCode::FAILURE
        }
        Err(cause) => {
            eprintln!("no answer: {cause}");
            ExitCode::FAILURE
        }
    }
}

struct Server<A> {
    answer: A,
    stop: Stop,
}

impl<A: Fn(&Request) -> Response> Server<A> {
    fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(SLOW))?;
        let mut read = Vec::new();
        loop {
            let request = match self.next_request(&mut stream, &mut read)? {
                Some(Ok(request)) => request,
                Some(Err(response)) => return self.send(&mut stream, response, &Request::bad()),
                None => return Ok(()),
            };
            let response = match request.path.as_str() {
                "/healthz" if self.stop.asked() => Response::text("503 Service Unavailable", "stopping"),
                "/healthz" => Response::text("200 OK", "ok"),
                _ => (self.answer)(&request),
            };
            let close = request.close || self.stop.asked() || matches!(response.body, Body::Events(_));
            let request = Request { close, ..request };
            self.send(&mut stream, response, &request)?;
            if close {
                return Ok(());
            }
        }
    }

    /// `None` when the peer has gone or has been idle for too long; `Err` is the answer to what is no request.
    fn next_request(
        &self,
        stream: &mut TcpStream,
        read: &mut Vec<u8>,
    ) -> io::Result<Option<Result<Request, Response>>> {
        let began = Instant::now();
        let mut stopping = None;
        let mut piece = [0; 4096];
        loop {
            match parse(read) {
                Ok(Some((request, length))) => {
                    read.drain(..length);
                    return Ok(Some(Ok(request)));
                }
                Ok(None) => {}
                Err(response) => return Ok(Some(Err(response))),
            }
            match stream.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(count) => read.extend(&piece[..count]),
                Err(cause) if matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let stopping_for = self.stop.asked().then(|| stopping.get_or_insert_with(Instant::now).elapsed());
                    let patience = if read.is_empty() { IDLE } else { SLOW };
                    let gone = read.is_empty() && stopping_for.is_some_and(|time| time >= LAST_WORDS);
                    if gone || began.elapsed() > patience {
                        return Ok(None);
                    }
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
    }

    fn send(&self, stream: &mut TcpStream, response: Response, request: &Request) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {}\r\n", response.status);
        for (name, value) in &response.headers {
            // A value that comes from outside must not begin a header of its own.
            head += &format!("{name}: {}\r\n", value.replace(['\r', '\n'], " "));
        }
        if request.close {
            head += "Connection: close\r\n";
        }
        match response.body {
            Body::Whole(body) => {
                head += &format!("Content-Length: {}\r\n\r\n", body.len());
                let mut bytes = head.into_bytes();
                if request.method != "HEAD" {
                    bytes.extend(body);
                }
                stream.write_all(&bytes)
            }
            Body::Events(next) => {
                head += "\r\n";
                stream.write_all(head.as_bytes())?;
                self.send_events(stream, next)
            }
        }
    }

    fn send_events(&self, stream: &mut TcpStream, mut next: impl FnMut() -> Option<String>) -> io::Result<()> {
        let mut last = Instant::now();
        loop {
            if let Some(event) = next() {
                stream.write_all(format!("data: {event}\n\n").as_bytes())?;
                last = Instant::now();
            } else if last.elapsed() > STILL_THERE {
                // A comment: it keeps proxies from hanging up and finds out whether anybody is there.
                stream.write_all(b":\n\n")?;
                last = Instant::now();
            }
            if self.stop.wait_for(TICK / 2) {
                return Ok(());
            }
        }
    }
}

impl Request {
    /// Stands for what could not be read.
    fn bad() -> Request {
        Request { method: String::new(), path: String::new(), cookies: String::new(), body: Vec::new(), close: true }
    }
}

/// The first request in these bytes and its length, or `None` while it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Response> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let body_at = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(Response::text("431 Request Header Fields Too Large", "too long")),
        Err(fault) => return Err(Response::text("400 Bad Request", &fault.to_string())),
    };
    let header = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value))
    };
    if header("Transfer-Encoding").is_some() {
        return Err(Response::text("411 Length Required", "send a Content-Length"));
    }
    let length = match header("Content-Length").map(|length| length.trim().parse::<usize>()) {
        None => 0,
        Some(Ok(length)) if length <= BODY_BYTES_MAX => length,
        Some(Ok(_)) => return Err(Response::text("413 Content Too Large", "that is no vote")),
        Some(Err(_)) => return Err(Response::text("400 Bad Request", "Content-Length is not a number")),
    };
    let Some(body) = bytes.get(body_at..body_at + length) else { return Ok(None) };
    let connection = header("Connection").unwrap_or_default().to_ascii_lowercase();
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: head.path.unwrap_or_default().split('?').next().unwrap_or_default().to_owned(),
        cookies: header("Cookie").unwrap_or_default().into_owned(),
        body: body.to_vec(),
        close: connection.contains("close") || (head.version == Some(0) && !connection.contains("keep-alive")),
    };
    Ok(Some((request, body_at + length)))
}

/// How many connections are open.
#[derive(Default)]
struct Open {
    count: Mutex<usize>,
    changed: Condvar,
}

/// One open connection.
struct Guest(Arc<Open>);

impl Open {
    /// Counts one more; waits while there are too many, so that the rest wait in the kernel's queue.
    fn enter(open: &Arc<Open>) -> Guest {
        let count = open.count.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |count: &mut usize| *count >= CONNECTIONS_MAX;
        *open.changed.wait_while(count, full).unwrap_or_else(PoisonError::into_inner) += 1;
        Guest(Arc::clone(open))
    }

    /// Waits until nobody has been there for a moment: who is in the kernel's queue needs that long to get in.
    fn wait_until_quiet(&self) {
        let deadline = Instant::now() + DRAIN_MAX;
        let wait = |until: Instant, busy: bool| {
            let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
            let left = until.saturating_duration_since(Instant::now());
            let waited = self.changed.wait_timeout_while(count, left, |count| (*count > 0) == busy);
            waited.map_or_else(|poisoned| poisoned.into_inner().1.timed_out(), |(_, timeout)| timeout.timed_out())
        };
        while Instant::now() < deadline {
            let empty = !wait(deadline, true);
            if empty && wait(Instant::now() + QUIET, false) {
                return;
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}

/// How often a waiting thread looks up.
const TICK: Duration = Duration::from_millis(500);
/// How long an idle connection is kept, how long a peer may take over a request or over reading an answer.
const IDLE: Duration = Duration::from_secs(75);
const SLOW: Duration = Duration::from_secs(10);
/// How often something is sent to who is watching, though nothing is new.
const STILL_THERE: Duration = Duration::from_secs(15);
/// When stopping: the time that an idle connection has for one more request, how long the door must have been quiet,
/// and the longest that all this may take (less than the usual grace of 10 s).
const LAST_WORDS: Duration = Duration::from_millis(500);
const QUIET: Duration = Duration::from_millis(100);
const DRAIN_MAX: Duration = Duration::from_secs(8);
const CONNECTIONS_MAX: usize = 1000;
const STACK_BYTES: usize = 256 * 1024;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const BODY_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests;
