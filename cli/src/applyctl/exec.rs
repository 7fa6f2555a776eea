//! `exec`: a command in a task's container, with what it reads and prints passed through.

use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;

use hyper::Method;
use reconciler::Resource;
use reconciler::objects::{PageRequest, Selection, Selector};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use schemas::kinds::labels;
use schemas::kinds::task::{DesiredState, Task, TaskState};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::args::Exec;
use super::failure::{Exit, Failure};
use super::find::{self, Running};
use super::session::Session;
use crate::stream::{Decoder, EXEC_PROTOCOL, ExecQuery, Frame, task_path};

/// Read from either side at once.
const BLOCK_BYTES: usize = 16 << 10;

pub async fn run(session: &mut Session, exec: &Exec) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if exec.tty && !stdin.is_terminal() {
        return Err(Failure::new(Exit::Usage, "-t wants a terminal on the standard input").advise("leave out -t"));
    }
    let task = task(session, &exec.name).await?;
    let query = ExecQuery { command: exec.command.clone(), stdin: exec.interactive, tty: exec.tty };
    let path = format!("{}?{}", task_path(&session.namespace, &task, "exec"), query.to_query());
    let answer = session.remote()?.upgrade(Method::POST, &path, EXEC_PROTOCOL).await;
    let io = answer.map_err(Failure::beside_objects)?.upgraded().await?;
    let (reader, writer) = tokio::io::split(io);
    let code = {
        // Given back when this is dropped, however it ends.
        let _raw = exec.tty.then(RawTerminal::enter).transpose()?;
        carry(session, exec, reader, writer).await?
    };
    match code {
        0 => Ok(()),
        code => Err(Failure::new(Exit::OfCommand(u8::try_from(code).unwrap_or(255)), "")),
    }
}

/// A task, or some running task of a service.
async fn task(session: &Session, name: &str) -> Result<String, Failure> {
    let service = match find::running(session, name).await? {
        Running::Task(name) => return Ok(name),
        Running::Service(service) => service,
    };
    let selection = Selection {
        namespace: Some(session.namespace.clone()),
        labels: Selector::equals(labels::SERVICE, service.name()),
        ..Selection::of::<Task>()
    };
    let list = session.client.objects().list(&selection, PageRequest::default()).await?;
    let mut running: Vec<Task> = list.items.iter().filter_map(|stored| stored.decode().ok()).collect();
    running.retain(|task: &Task| {
        task.spec.desired <= DesiredState::Running
            && task.status.as_ref().is_some_and(|status| status.state == TaskState::Running)
    });
    running.sort_by_key(|task| task.spec.slot.clone());
    match running.first() {
        Some(task) => Ok(task.name().to_owned()),
        None => Err(Failure::new(Exit::NotFound, format!("no task of {} runs", service.name()))
            .advise(format!("see why: applyctl describe service {}", service.name()))),
    }
}

type Io = Box<dyn reconciler::objects::remote::connection::Io>;

async fn carry(
    session: &mut Session,
    exec: &Exec,
    mut reader: ReadHalf<Io>,
    mut writer: WriteHalf<Io>,
) -> Result<i32, Failure> {
    let lost = |error: std::io::Error| Failure::new(Exit::Unreachable, format!("the connection broke: {error}"));
    let mut stdin = exec.interactive.then(typed);
    let mut resized = signal(SignalKind::window_change())?;
    let mut from_there = vec![0; BLOCK_BYTES];
    let mut decoder = Decoder::default();
    // What is not sent yet. It goes out while we go on reading: the other end may write to us before it reads on.
    let mut unsent = if exec.tty { window().encode() } else { Vec::new() };
    let mut deaf = false;
    loop {
        let typed = async {
            match &mut stdin {
                Some(stdin) => stdin.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = reader.read(&mut from_there) => {
                let bytes = read.map_err(lost)?;
                if bytes == 0 {
                    return Err(Failure::new(Exit::Unreachable, "the connection ended before the command did"));
                }
                decoder.push(&from_there[..bytes]);
                let strange = |error: crate::stream::BadFrame| Failure::new(Exit::Failed, error.to_string());
                while let Some(frame) = decoder.next_frame().map_err(strange)? {
                    match frame {
                        Frame::Stdout(bytes) => session.screen.bytes(&bytes)?,
                        Frame::Stderr(bytes) => session.screen.error_bytes(&bytes)?,
                        Frame::Notice(text) => session.screen.fail(&text)?,
                        Frame::Exit(code) => return Ok(code),
                        Frame::Stdin(_) | Frame::Resize { .. } | Frame::Close => {}
                    }
                }
            }
            sent = writer.write(&unsent), if !unsent.is_empty() => match sent {
                Ok(sent) if sent > 0 => drop(unsent.drain(..sent)),
                // A command that is over reads no more; its exit code is still to come.
                _ => {
                    unsent.clear();
                    deaf = true;
                }
            },
            read = typed, if unsent.is_empty() && !deaf => {
                let frame = match read.transpose() {
                    Ok(Some(bytes)) => Frame::Stdin(bytes),
                    Ok(None) => {
                        stdin = None;
                        Frame::Close
                    }
                    Err(error) => return Err(Failure::new(Exit::Failed, format!("cannot read the standard input: {error}"))),
                };
                unsent = frame.encode();
            }
            _ = resized.recv(), if exec.tty && !deaf => unsent.extend(window().encode()),
        }
    }
}

/// What comes on the standard input, read on a thread of its own: such a read cannot be called off, and the process ends
/// without it. Few pieces wait, so that a fast writer is held back by a slow reader at the other end.
fn typed() -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        loop {
            let mut bytes = vec![0; BLOCK_BYTES];
            let read = match stdin.read(&mut bytes) {
                Ok(0) => return,
                Ok(read) => {
                    bytes.truncate(read);
                    Ok(bytes)
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let over = read.is_err();
            if sender.blocking_send(read).is_err() || over {
                return;
            }
        }
    });
    receiver
}

fn window() -> Frame {
    let (columns, rows) = tcgetwinsize(std::io::stdin().as_fd()).map_or((80, 24), |size| (size.ws_col, size.ws_row));
    Frame::Resize { columns, rows }
}

/// The terminal of the standard input, every key passed on as it is.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Result<Self, Failure> {
        let stdin = std::io::stdin();
        let broken = |error: rustix::io::Errno| Failure::new(Exit::Failed, format!("cannot set the terminal: {error}"));
        let before = tcgetattr(stdin.as_fd()).map_err(broken)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).map_err(broken)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // If the terminal is gone there is nobody to give it back to.
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}
