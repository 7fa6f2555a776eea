//! What applyd answers beside objects: a task's output, commands in its container; images are in their own module.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use controllers::node::containerd::runtime::{Exec, Session};
use controllers::node::containerd::{Error as RuntimeError, Runtime};
use controllers::node::images::{Images, RegistryOptions};
use controllers::node::logs::{self, Entry, Follow, ReadOptions};
use controllers::node::surroundings::Paths;
use controllers::node::tasks::{Logins, container_id};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use reconciler::ObjectRef;
use reconciler::api::Timestamp;
use reconciler::causes::chain;
use reconciler::objects::{Client, Writer};
use reconciler::seams::Seams;
use schemas::kinds::task::Task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::answer::{Refusal, WhileAllowed, bad};
use super::calls::Calls;
use crate::stream::{Decoder, EXEC_PROTOCOL, ExecQuery, Frame, LogQuery};

/// What the routes act through.
#[derive(Clone)]
pub struct Parts {
    pub client: Client,
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn Images>,
    /// Opens the logins of registries for one pull.
    pub logins: Arc<dyn Logins>,
    pub registries: RegistryOptions,
    pub paths: Paths,
    /// This machine's Node.
    pub node: String,
    /// The way to other machines, from a manager.
    pub others: Option<Calls>,
    pub seams: Seams,
}

pub fn routes(parts: Parts) -> Router {
    let machine = Router::new().merge(super::images::routes()).merge(super::logins::routes());
    machine.with_state(parts.clone()).merge(of_tasks(parts))
}

/// What a task says, commands in it, and what is reached from here. What is on another machine is answered there.
pub fn of_tasks(parts: Parts) -> Router {
    Router::new()
        .route("/apis/apply/v1/namespaces/{namespace}/tasks/{name}/log", get(log))
        .route("/apis/apply/v1/namespaces/{namespace}/tasks/{name}/exec", post(exec))
        .route_layer(axum::middleware::from_fn_with_state(parts.clone(), wherever_it_is))
        .with_state(parts.clone())
        .merge(super::probe::routes(parts))
}

async fn wherever_it_is(
    State(parts): State<Parts>,
    Path((namespace, name)): Path<(String, String)>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let task = task(&parts, &namespace, &name).await?;
    match (task.spec.node_name.as_ref().filter(|node| **node != parts.node), &parts.others) {
        (None, _) => Ok(next.run(request).await),
        (Some(node), Some(others)) => others.forward(node, request, &parts.seams).await,
        (Some(node), None) => {
            let why = format!("task {name} is on {node}, not on {}: ask there, or on a manager", parts.node);
            Err(Refusal(StatusCode::NOT_IMPLEMENTED, why))
        }
    }
}

async fn task(parts: &Parts, namespace: &str, name: &str) -> Result<Task, Refusal> {
    Ok(parts.client.get::<Task>(&ObjectRef::new(namespace, name)).await?)
}

async fn log(
    State(parts): State<Parts>,
    Path((namespace, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let query = LogQuery::from_query(&query.unwrap_or_default()).map_err(bad)?;
    let task = task(&parts, &namespace, &name).await?;
    let since = query.since_time.map(|time| {
        std::time::UNIX_EPOCH + std::time::Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(0))
    });
    let token = CancellationToken::new();
    let follow = if query.follow { Follow::Until(token.clone()) } else { Follow::No };
    let options = ReadOptions { since, tail: query.tail_lines, follow, ..ReadOptions::default() };
    let mut begins = [true; 2];
    let ended = token.drop_guard();
    let frames = logs::read(parts.paths.logs(&task.metadata.uid), options).map(move |entry| {
        let _held = &ended;
        let frame = match entry {
            Ok(Entry::Text { stream, time, text, ends, .. }) => {
                let line = &mut begins[usize::from(stream == logs::Stream::Stderr)];
                let mut bytes = Vec::new();
                if query.timestamps && *line {
                    bytes.extend(format!("{} ", stamp(time)).into_bytes());
                }
                *line = ends;
                bytes.extend_from_slice(&text);
                match stream {
                    logs::Stream::Stdout => Frame::Stdout(bytes),
                    logs::Stream::Stderr => Frame::Stderr(bytes),
                }
            }
            Ok(Entry::Gap { lost_bytes, stream: None, .. }) => {
                Frame::Notice(format!("{lost_bytes} bytes were removed by rotation"))
            }
            Ok(Entry::Gap { lost_bytes, .. }) => Frame::Notice(format!("{lost_bytes} bytes could not be written")),
            Err(error) => Frame::Notice(error.to_string()),
        };
        Ok::<_, std::convert::Infallible>(Bytes::from(frame.encode()))
    });
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(frames)).into_response())
}

fn stamp(time: std::time::SystemTime) -> Timestamp {
    Timestamp::default() + time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

async fn exec(
    State(parts): State<Parts>,
    Path((namespace, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let query = ExecQuery::from_query(&query.unwrap_or_default()).map_err(bad)?;
    let wants = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if wants != Some(EXEC_PROTOCOL) {
        return Err(bad(format!("ask for an upgrade to {EXEC_PROTOCOL}")));
    }
    let task = task(&parts, &namespace, &name).await?;
    let attempt = task.status.as_ref().and_then(|status| {
        let running = status.attempts.last().filter(|attempt| attempt.finished_at.is_none());
        running.map(|attempt| attempt.number)
    });
    let id = attempt.and_then(|attempt| container_id(&task.metadata.uid, attempt));
    let Some(id) = id else {
        return Err(Refusal(StatusCode::CONFLICT, format!("task {name} does not run")));
    };
    let wanted = Exec { args: query.command, tty: query.tty, ..Exec::default() };
    let session = match parts.runtime.attach_exec(&id, &wanted).await {
        Ok(session) => Ok(session),
        Err(RuntimeError::Failed { message, .. }) => Err(not_run(&name, &wanted.args[0], &message)),
        Err(error) => return Err(no_exec(&name, &error)),
    };
    let stdin = query.stdin;
    let allowed = request.extensions().get::<WhileAllowed>().cloned();
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut connection = TokioIo::new(upgraded);
        match session {
            Ok(session) => drop(WhileAllowed::of(allowed, relay(session, connection, stdin)).await),
            Err((why, code)) => {
                let frames = [Frame::Notice(why).encode(), Frame::Exit(code).encode()].concat();
                // Whoever asked may be gone.
                let _ = connection.write_all(&frames).await;
                let _ = connection.shutdown().await;
            }
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, EXEC_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// A program that could not be run: why, and what a shell would end with.
fn not_run(task: &str, program: &str, message: &str) -> (String, i32) {
    let lower = message.to_lowercase();
    let names = message.contains(&format!("\"{program}\"")) || message.contains(&format!("`{program}`"));
    let missing = lower.contains("not found in $path") || lower.contains("no such file or directory");
    if names && missing {
        return (format!("task {task}: {program} is not in its image"), 127);
    }
    (format!("task {task}: {program} cannot be run: {message}"), 126)
}

/// Why no program could be tried: without the names that containerd has for things.
fn no_exec(task: &str, error: &RuntimeError) -> Refusal {
    match error {
        RuntimeError::Absent { .. } => Refusal(StatusCode::CONFLICT, format!("task {task} does not run")),
        RuntimeError::Unavailable { source, .. } => Refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("task {task}: nothing can be run now: {}", chain(&**source)),
        ),
        RuntimeError::Busy { .. } => {
            Refusal(StatusCode::CONFLICT, format!("task {task} is being started or stopped; try again"))
        }
        other => Refusal(StatusCode::BAD_REQUEST, format!("task {task}: {}", chain(other))),
    }
}

/// Frames both ways until the command has ended or whoever asked has gone, which ends the command.
async fn relay(
    session: Session,
    connection: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
    wants_stdin: bool,
) {
    let Session { stdin, stdout, stderr, control } = session;
    let (mut reader, mut writer) = tokio::io::split(connection);
    let (frames, mut outgoing) = mpsc::channel::<Frame>(16);
    let command = &control;
    // It has the only senders: when it is over, so is what is written.
    let output = async move {
        let out = pump(stdout, frames.clone(), Frame::Stdout);
        let err = async {
            if let Some(stderr) = stderr {
                pump(stderr, frames.clone(), Frame::Stderr).await;
            }
        };
        let ((), (), code) = tokio::join!(out, err, command.wait());
        let last = match code {
            Ok(code) => Frame::Exit(i32::try_from(code).unwrap_or(i32::MAX)),
            Err(error) => Frame::Notice(error.to_string()),
        };
        let _ = frames.send(last).await;
    };
    let write = async {
        while let Some(frame) = outgoing.recv().await {
            let last = matches!(frame, Frame::Exit(_));
            if writer.write_all(&frame.encode()).await.is_err() || last {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    let input = async {
        let mut stdin = stdin.filter(|_| wants_stdin);
        if !wants_stdin {
            // Whoever reads meets the end, instead of waiting for what nobody sends.
            let _ = control.close_stdin().await;
        }
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let Ok(read @ 1..) = reader.read(&mut buffer).await else { return };
            decoder.push(&buffer[..read]);
            loop {
                match decoder.next_frame() {
                    Ok(Some(Frame::Stdin(bytes))) => {
                        if let Some(stdin) = &mut stdin {
                            // A program that reads no more may still print.
                            let _ = stdin.write_all(&bytes).await;
                        }
                    }
                    Ok(Some(Frame::Close)) => {
                        drop(stdin.take());
                        let _ = control.close_stdin().await;
                    }
                    Ok(Some(Frame::Resize { columns, rows })) => {
                        let _ = control.resize(columns.into(), rows.into()).await;
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
    };
    tokio::select! {
        _ = async { tokio::join!(output, write) } => {}
        () = input => {}
    }
}

async fn pump(mut from: impl tokio::io::AsyncRead + Unpin, to: mpsc::Sender<Frame>, frame: fn(Vec<u8>) -> Frame) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.send(frame(buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

/// In whose name the routes read.
pub fn reader(objects: Arc<dyn reconciler::objects::Objects>) -> Client {
    Client::new(objects, Writer::new("applyd", "routes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_and_one_that_cannot_be_run_end_as_in_a_shell() {
        let missing = ("task web-1: sh is not in its image".to_owned(), 127);
        assert_eq!(not_run("web-1", "sh", "exec: \"sh\": executable file not found in $PATH"), missing);
        assert_eq!(
            not_run("web-1", "sh", "executable file `sh` not found in $PATH: No such file or directory"),
            missing
        );
        let (why, code) = not_run("web-1", "/nope", "exec: \"/nope\": stat /nope: no such file or directory");
        assert_eq!((why.as_str(), code), ("task web-1: /nope is not in its image", 127));
        let (why, code) = not_run("web-1", "/data", "exec: \"/data\": permission denied");
        assert_eq!((why.as_str(), code), ("task web-1: /data cannot be run: exec: \"/data\": permission denied", 126));
        let (_, code) = not_run("web-1", "sh", "chdir to cwd (\"/gone\"): no such file or directory");
        assert_eq!(code, 126, "it is not the program that is missing");
    }

    #[test]
    fn a_containerd_that_does_not_answer_is_no_fault_of_the_command() {
        let error = RuntimeError::Unavailable {
            doing: "run a program in container e03a5904".into(),
            source: "containerd does not answer".into(),
        };
        let Refusal(code, message) = no_exec("web-1", &error);
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(message, "task web-1: nothing can be run now: containerd does not answer");
    }
}
