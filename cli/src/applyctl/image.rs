//! `image`: what there is on the daemon's machine to start containers from.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reconciler::objects::{Error, Remote};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::args::{Format, Image as Command};
use super::failure::{Exit, Failure};
use super::screen::Tone;
use super::session::Session;
use super::table::{Cell, Table};
use super::words;

const IMAGES: &str = "/apis/apply/v1/images";
/// Between two drawings of how far an import has come.
const DRAW: Duration = Duration::from_millis(100);

/// As applyd tells of one; the daemon's `images` has the form.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Image {
    image: String,
    digest: String,
    size_bytes: u64,
    created: Option<schemas::Timestamp>,
    used_by: Vec<String>,
}

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls => ls(session).await,
        Command::Import { file, name } => import(session, file, name.as_deref()).await,
        Command::Pull { image } => pull(session, image).await,
        Command::Rm { images, force } => rm(session, images, *force).await,
        Command::Prune { imported, yes } => prune(session, *imported, *yes).await,
    }
}

fn query(word: &str) -> String {
    utf8_percent_encode(word, NON_ALPHANUMERIC).to_string()
}

fn parsed(bytes: &[u8]) -> Result<(Value, Vec<Image>), Failure> {
    let unread = |error| Failure::new(Exit::Failed, format!("applyd's answer cannot be read: {error}"));
    let value: Value = serde_json::from_slice(bytes).map_err(unread)?;
    let images = Vec::<Image>::deserialize(&value["images"]).map_err(unread)?;
    Ok((value, images))
}

async fn asked(session: &Session, method: Method, path: &str) -> Result<(Value, Vec<Image>), Failure> {
    let answer = session.remote()?.call(method, path, Bytes::new()).await.map_err(Failure::beside_objects)?;
    parsed(&answer.bytes().await?)
}

/// What is there, for `system df` too: how many, and how large.
pub async fn totals(session: &Session) -> Result<(usize, u64), Failure> {
    let (_, images) = asked(session, Method::GET, IMAGES).await?;
    // Names of one content share it.
    let sizes: std::collections::BTreeMap<&str, u64> =
        images.iter().map(|image| (image.digest.as_str(), image.size_bytes)).collect();
    Ok((images.len(), sizes.values().sum()))
}

async fn ls(session: &mut Session) -> Result<(), Failure> {
    let (value, images) = asked(session, Method::GET, IMAGES).await?;
    if session.print_value(&value["images"])? {
        return Ok(());
    }
    if session.format == Format::Name {
        let names: String = images.iter().map(|image| format!("image/{}\n", image.image)).collect();
        return Ok(session.screen.data(&names)?);
    }
    let wide = session.format == Format::Wide;
    let mut table = Table::new(["IMAGE", "DIGEST", "SIZE", "AGE", "USED BY"]);
    for image in &images {
        let digest = if wide { image.digest.clone() } else { short(&image.digest).to_owned() };
        let used = match image.used_by.as_slice() {
            [] => Cell::toned("–", Tone::Faint),
            [user] => user.as_str().into(),
            users if wide => users.join(", ").into(),
            [user, others @ ..] => format!("{user} and {} more", others.len()).into(),
        };
        let age = words::ago(image.created, session.now());
        table.row(vec![
            image.image.as_str().into(),
            digest.into(),
            words::bytes(image.size_bytes).into(),
            age.into(),
            used,
        ]);
    }
    let text = table.print(session.screen.look());
    Ok(session.screen.data(&text)?)
}

fn short(digest: &str) -> &str {
    let hash = digest.split_once(':').map_or(digest, |(_, hash)| hash);
    hash.get(..12).unwrap_or(hash)
}

/// The client reads the file: applyd need not be able to, and may be somebody else.
async fn import(session: &mut Session, file: &Path, name: Option<&str>) -> Result<(), Failure> {
    let unread = |error: io::Error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("cannot read {}: {error}", file.display()))
    };
    let (reader, bytes): (Box<dyn AsyncRead + Send + Sync + Unpin>, u64) = if file.as_os_str() == "-" {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(unread)?;
        (Box::new(tokio::fs::File::from_std(stdin.into())), 0)
    } else {
        let opened = tokio::fs::File::open(file).await.map_err(unread)?;
        let found = opened.metadata().await.map_err(unread)?;
        if found.is_dir() {
            let failure = Failure::new(Exit::Usage, format!("{} is a folder", file.display()));
            return Err(failure
                .advise(format!("pass it as one file: tar -C {} -c . | applyctl image import -", file.display())));
        }
        (Box::new(opened), found.len())
    };
    let path = match name {
        Some(name) => format!("{IMAGES}/import?name={}", query(name)),
        None => format!("{IMAGES}/import"),
    };
    let remote = session.remote()?;
    // A refusal that comes while the file is on its way may be lost with the connection: what would refuse any, says so here.
    remote.call(Method::GET, IMAGES, Bytes::new()).await.map_err(Failure::beside_objects)?;
    let sent = Arc::new(AtomicU64::new(0));
    let mut work = Box::pin(upload(&remote, &path, reader, sent.clone()));
    let title = file.display().to_string();
    let answer = loop {
        let pause = session.seams.sleep(DRAW);
        tokio::select! {
            biased;
            done = &mut work => break done,
            () = pause => {
                let sent = sent.load(Ordering::Relaxed);
                let far = if bytes > 0 { words::progress(sent, bytes) } else { words::bytes(sent) };
                session.screen.redraw(&[format!("{title}  {far}")])?;
            }
        }
    };
    session.screen.redraw(&[])?;
    let (value, images) = parsed(&answer.map_err(Failure::beside_objects)?)?;
    if session.print_value(&value["images"])? {
        return Ok(());
    }
    for image in images {
        let line = format!("{}  {}  {}", image.image, short(&image.digest), words::bytes(image.size_bytes));
        session.screen.say(&line)?;
    }
    Ok(())
}

/// One call whose body comes from a reader, and the body of its answer.
async fn upload(
    remote: &Remote,
    path: &str,
    reader: impl AsyncRead + Send + Sync + Unpin + 'static,
    sent: Arc<AtomicU64>,
) -> Result<Bytes, Error> {
    let broken = |error: hyper::Error| Error::UnknownOutcome { detail: format!("the upload broke off: {error}") };
    let frames = ReaderStream::with_capacity(reader, 256 << 10).map_ok(move |chunk| {
        sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Frame::data(chunk)
    });
    let request = Request::builder().method(Method::POST).uri(path).header("host", "apply");
    let request = request
        .header("content-type", "application/x-tar")
        .body(StreamBody::new(frames))
        .map_err(|error| Error::Unavailable { detail: error.to_string() })?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(remote.dial().await?)).await.map_err(broken)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let code = response.status();
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        if code.is_success() { Ok(body) } else { Err(Remote::failed(code.as_u16(), &body)) }
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        done = &mut exchange => done,
        // Over before the answer was read: what is left of it is there.
        _ = driver => exchange.await,
    }
}

async fn pull(session: &mut Session, image: &str) -> Result<(), Failure> {
    let path = format!("{IMAGES}/pull?image={}&namespace={}", query(image), query(&session.namespace));
    let called = session.remote()?.call(Method::POST, &path, Bytes::new()).await;
    let mut lines = called.map_err(Failure::beside_objects)?.lines();
    let mut last = Value::Null;
    while let Some(line) = lines.next().await? {
        last = serde_json::from_slice(&line)
            .map_err(|error| Failure::new(Exit::Failed, format!("applyd's answer cannot be read: {error}")))?;
        if let Some(phase) = last["phase"].as_str() {
            let (done, total) = (last["doneBytes"].as_u64().unwrap_or(0), last["totalBytes"].as_u64().unwrap_or(0));
            let far = if total > 0 { words::progress(done, total) } else { String::new() };
            session.screen.redraw(&[format!("{image}  {phase}  {far}")])?;
        }
    }
    session.screen.redraw(&[])?;
    if let Some(error) = last["error"].as_str() {
        return Err(Failure::new(Exit::Failed, format!("{image}: {error}")));
    }
    let Some(name) = last["image"].as_str() else {
        return Err(Failure::new(
            Exit::Unreachable,
            "applyd's answer broke off; what was fetched stays for the next try",
        ));
    };
    if let Some(why) = last["stale"].as_str() {
        session.screen.say(&format!("the registry could not be asked, what is here was here before: {why}"))?;
    }
    let line = format!(
        "{name}  {}  {}",
        short(last["digest"].as_str().unwrap_or_default()),
        words::bytes(last["sizeBytes"].as_u64().unwrap_or(0))
    );
    if session.print_value(&last)? { Ok(()) } else { Ok(session.screen.say(&line)?) }
}

async fn rm(session: &mut Session, images: &[String], force: bool) -> Result<(), Failure> {
    for image in images {
        let path = format!("{IMAGES}?image={}&force={force}", query(image));
        let (_, gone) = asked(session, Method::DELETE, &path).await?;
        for image in gone {
            session.screen.say(&format!("{} is gone", image.image))?;
        }
    }
    Ok(())
}

async fn prune(session: &mut Session, imported: bool, yes: bool) -> Result<(), Failure> {
    let kept = if imported { "" } else { "; those that came from archives stay" };
    session.confirm(&format!("remove every image that no service and no task names{kept}"), yes)?;
    let path = format!("{IMAGES}/prune?imported={imported}");
    let (value, gone) = asked(session, Method::POST, &path).await?;
    if session.print_value(&value["images"])? {
        return Ok(());
    }
    for image in &gone {
        session.screen.say(&format!("{}  {}", image.image, words::bytes(image.size_bytes)))?;
    }
    let bytes = gone.iter().map(|image| image.size_bytes).sum();
    Ok(session.screen.say(&format!("{} gone, {}", words::count(gone.len(), "image"), words::bytes(bytes)))?)
}
