//! One more program in a running container: for health checks, and for a person at a terminal.
//!
//! What belongs to an exec is told by two marks, either of which suffices: its session (the runtime makes the program a
//! session leader) and a variable in its environment, both inherited by what it puts into the background. When an exec
//! must end, all of the container's processes that bear a mark are killed, until there are none.
//!
//! Its pipes lie in a directory of its own, named by container and exec, which is removed with it; a directory found
//! at the start is an exec of a dead predecessor.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use containerd_client::services::v1::snapshots::MountsRequest;
use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetContainerRequest, KillRequest, ResizePtyRequest,
    StartRequest, WaitRequest,
};
use futures::future::{BoxFuture, FutureExt};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::changes::sleep;
use super::container_spec::ContainerId;
use super::messages::{self, PROCESS};
use super::runtime::{Error, Exec, ExecBounds, ExecEnd, ExecOutcome, Session, SessionControl};
use super::{SLOW, Shared, failure};
use crate::node::spec::{self, Accounts, Signal};
use crate::node::sys::cgroup::signal_if;

/// In the environment of every process of an exec.
const MARK: &str = "APPLY_EXEC";
/// How long output is waited for after the program has ended: something in the background may hold the pipe for ever.
const DRAIN: Duration = Duration::from_secs(1);
/// How often the marked processes are looked for before they are given up as unkillable.
const KILL_ROUNDS: u32 = 200;
const KILL_PAUSE: Duration = Duration::from_millis(5);

/// Runs to the end or to the deadline.
pub(super) async fn run(
    shared: &Arc<Shared>,
    id: &ContainerId,
    exec: &Exec,
    bounds: ExecBounds,
) -> Result<ExecOutcome, Error> {
    let process = shared.process_of(id, exec).await?;
    let running = Running::prepare(shared, id, false)?;
    let mut output = running.receiver("out")?;
    let mut kept = Kept { bytes: Vec::new(), truncated: false, max: bounds.output_bytes_max };
    let to_end = async {
        running.start(process, exec.tty).await?;
        let mut code = std::pin::pin!(running.wait());
        let code = tokio::select! {
            biased;
            code = &mut code => code?,
            read = kept.read_from(&mut output) => {
                read.map_err(|error| running.failed(error))?;
                code.await?
            }
        };
        Ok::<u32, Error>(code)
    };
    let end = match tokio::time::timeout(bounds.deadline, to_end).await {
        Ok(code) => ExecEnd::Exited { code: code? },
        Err(_) => {
            running.kill().await?;
            ExecEnd::TimedOut
        }
    };
    // What was said before the end is in the pipe or on its way through the shim.
    let drained = tokio::time::timeout(DRAIN, kept.read_from(&mut output)).await;
    if drained.is_ok() {
        running.forget().await;
    }
    // Else the pipe is held by what the program left in the background; dropping `running` forgets it meanwhile.
    Ok(ExecOutcome { end, output: kept.bytes, truncated: kept.truncated })
}

/// Hands out the streams.
pub(super) async fn attach(shared: &Arc<Shared>, id: &ContainerId, exec: &Exec) -> Result<Session, Error> {
    let process = shared.process_of(id, exec).await?;
    let running = Running::prepare(shared, id, true)?;
    let stdin = running.sender()?;
    let stdout = running.receiver("out")?;
    let stderr = if exec.tty { None } else { Some(running.receiver("err")?) };
    running.start(process, exec.tty).await?;
    Ok(Session {
        stdin: Some(Box::new(stdin)),
        stdout: Box::new(stdout),
        stderr: stderr.map(|stderr| Box::new(stderr) as _),
        control: Box::new(Control { running, tty: exec.tty }),
    })
}

/// An exec between its making and its forgetting. Dropped early, it is killed and forgotten in the background.
struct Running {
    shared: Arc<Shared>,
    id: ContainerId,
    exec_id: String,
    directory: PathBuf,
    interactive: bool,
    /// containerd may know of it.
    begun: AtomicBool,
    ended: AtomicBool,
    forgotten: AtomicBool,
}

impl Running {
    /// Makes the directory and the pipes.
    fn prepare(shared: &Arc<Shared>, id: &ContainerId, interactive: bool) -> Result<Self, Error> {
        let count = shared.exec_count.fetch_add(1, Ordering::Relaxed);
        let exec_id = format!("{}-{count}", shared.exec_prefix);
        let directory = shared.config.exec_dir.join(format!("{id}@{exec_id}"));
        let running = Running {
            shared: Arc::clone(shared),
            id: id.clone(),
            exec_id,
            directory,
            interactive,
            begun: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
        };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&running.directory).and_then(|()| {
            let names: &[&str] = if interactive { &["in", "out", "err"] } else { &["out"] };
            names.iter().try_for_each(|name| make_fifo(&running.directory.join(name)))
        });
        made.map(|()| running).map_err(|error| Error::Failed {
            doing: format!("run a program in container {id}"),
            message: format!("cannot make its pipes: {error}"),
        })
    }

    /// Open before the shim opens the other end, so that neither waits; to be read only once `start` is done, as a
    /// pipe without a writer looks like one at its end.
    fn receiver(&self, name: &str) -> Result<pipe::Receiver, Error> {
        pipe::OpenOptions::new().open_receiver(self.directory.join(name)).map_err(|error| self.failed(error))
    }

    fn sender(&self) -> Result<pipe::Sender, Error> {
        // Both ends, as there is no reader yet.
        let mut options = pipe::OpenOptions::new();
        options.read_write(true).open_sender(self.directory.join("in")).map_err(|error| self.failed(error))
    }

    async fn start(&self, mut process: Value, tty: bool) -> Result<(), Error> {
        let mut env: Vec<String> = serde_json::from_value(process["env"].take()).unwrap_or_default();
        spec::overlay(&mut env, &[self.mark()]);
        process["env"] = json!(env);
        let path = |name: &str| self.directory.join(name).display().to_string();
        let stderr = match (self.interactive, tty) {
            (_, true) => String::new(),
            (true, false) => path("err"),
            (false, false) => path("out"),
        };
        let request = ExecProcessRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec_id.clone(),
            stdin: if self.interactive { path("in") } else { String::new() },
            stdout: path("out"),
            stderr,
            terminal: tty,
            spec: Some(messages::json(PROCESS, &process)),
        };
        self.begun.store(true, Ordering::Release);
        let mut tasks = self.shared.slow().tasks();
        tasks.exec(request).await.map_err(|status| self.error(status))?;
        let request = StartRequest { container_id: self.id.to_string(), exec_id: self.exec_id.clone() };
        tasks.start(request).await.map(drop).map_err(|status| self.error(status))
    }

    /// The exit code.
    async fn wait(&self) -> Result<u32, Error> {
        // No deadline: a person may stay for days, and a health check has one around this.
        let request = WaitRequest { container_id: self.id.to_string(), exec_id: self.exec_id.clone() };
        let answer = self.shared.connection.tasks().wait(request).await.map_err(|status| self.error(status))?;
        self.ended.store(true, Ordering::Release);
        Ok(answer.into_inner().exit_status)
    }

    async fn signal(&self, signal: Signal) -> Result<(), Error> {
        let request = KillRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec_id.clone(),
            signal: signal.number(),
            all: false,
        };
        let sent = self.shared.quick().tasks().kill(request).await.map(drop);
        failure::absent_is_done(sent).map_err(|status| self.error(status))
    }

    /// Ends every process of the exec.
    async fn kill(&self) -> Result<(), Error> {
        kill(&self.shared, &self.id, &self.exec_id).await?;
        self.ended.store(true, Ordering::Release);
        Ok(())
    }

    /// Lets containerd forget the exec and removes its pipes.
    async fn forget(&self) {
        self.forgotten.store(true, Ordering::Release);
        forget(&self.shared, &self.id, &self.exec_id, &self.directory).await;
    }

    fn mark(&self) -> String {
        format!("{MARK}={}", self.exec_id)
    }

    fn doing(&self) -> String {
        format!("run a program in container {}", self.id)
    }

    fn error(&self, status: tonic::Status) -> Error {
        failure::error(self.doing(), status)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::Failed { doing: self.doing(), message: error.to_string() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if *self.forgotten.get_mut() {
            return;
        }
        if !*self.begun.get_mut() {
            _ = fs::remove_dir_all(&self.directory);
            return;
        }
        let (shared, id, exec_id) = (Arc::clone(&self.shared), self.id.clone(), self.exec_id.clone());
        let (directory, ended) = (self.directory.clone(), *self.ended.get_mut());
        let clean_up = async move {
            if !ended && let Err(error) = kill(&shared, &id, &exec_id).await {
                tracing::warn!(container = %id, exec = exec_id, %error, "an exec could not be killed");
            }
            forget(&shared, &id, &exec_id, &directory).await;
        };
        // Without a runtime the process is about to end; the next one finds the directory.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.shared.leftovers.spawn_on(clean_up, &runtime);
        }
    }
}

struct Control {
    running: Running,
    tty: bool,
}

impl SessionControl for Control {
    fn resize(&self, columns: u32, rows: u32) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            if !self.tty {
                return Ok(());
            }
            let request = ResizePtyRequest {
                container_id: self.running.id.to_string(),
                exec_id: self.running.exec_id.clone(),
                width: columns,
                height: rows,
            };
            let resized = self.running.shared.quick().tasks().resize_pty(request).await.map(drop);
            failure::absent_is_done(resized).map_err(|status| self.running.error(status))
        }
        .boxed()
    }

    fn close_stdin(&self) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let request = CloseIoRequest {
                container_id: self.running.id.to_string(),
                exec_id: self.running.exec_id.clone(),
                stdin: true,
            };
            let closed = self.running.shared.quick().tasks().close_io(request).await.map(drop);
            failure::absent_is_done(closed).map_err(|status| self.running.error(status))
        }
        .boxed()
    }

    fn signal(&self, signal: Signal) -> BoxFuture<'_, Result<(), Error>> {
        self.running.signal(signal).boxed()
    }

    fn wait(&self) -> BoxFuture<'_, Result<u32, Error>> {
        self.running.wait().boxed()
    }
}

/// The first bytes of an output.
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
    max: usize,
}

impl Kept {
    /// Up to the end of the stream. Cancel-safe: what was read is kept.
    async fn read_from(&mut self, output: &mut pipe::Receiver) -> io::Result<()> {
        let mut buffer = [0; 8192];
        loop {
            let read = output.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            let room = (self.max - self.bytes.len()).min(read);
            self.bytes.extend_from_slice(&buffer[..room]);
            self.truncated |= room < read;
        }
    }
}

/// Kills the program and all that bears its mark. A container or an exec that is not there has nothing to kill.
async fn kill(shared: &Shared, id: &ContainerId, exec_id: &str) -> Result<(), Error> {
    let doing = || format!("kill a program in container {id}");
    // By way of the shim first: it answers only once a program that was being started has its process.
    let request = KillRequest {
        container_id: id.to_string(),
        exec_id: exec_id.to_owned(),
        signal: Signal::KILL.number(),
        all: false,
    };
    let killed = shared.quick().tasks().kill(request).await;
    let never_started = |status: &tonic::Status| status.message().contains("process not created");
    match failure::absent_is_done(killed.map(drop)) {
        Err(status) if failure::unavailable(&status) => return Err(failure::error(doing(), status)),
        Err(status) if !never_started(&status) => {
            tracing::debug!(container = %id, exec = exec_id, %status, "the shim did not kill an exec");
        }
        _ => {}
    }
    let group = shared.cgroup(id);
    let mark = format!("{MARK}={exec_id}");
    for _ in 0..KILL_ROUNDS {
        let left = marked(shared, &group, &mark);
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            signal_if(pid, rustix::process::Signal::KILL, || shared.cgroups.processes(&group).contains(&pid));
        }
        sleep(KILL_PAUSE).await;
    }
    Err(Error::Failed { doing: doing(), message: "its processes do not die".to_owned() })
}

/// The processes of the group that bear the mark, or share a session with one that does.
fn marked(shared: &Shared, group: &str, mark: &str) -> Vec<i32> {
    let processes: Vec<(i32, Option<i32>, bool)> = shared
        .cgroups
        .processes(group)
        .into_iter()
        .map(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            (pid, session(pid), environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes()))
        })
        .collect();
    let leads = |session: i32| processes.iter().any(|(pid, _, marked)| *pid == session && *marked);
    let sessions: Vec<i32> = processes
        .iter()
        .filter(|(_, _, marked)| *marked)
        .filter_map(|(_, session, _)| *session)
        .filter(|s| leads(*s))
        .collect();
    let belongs = |(_, session, marked): &(i32, Option<i32>, bool)| {
        *marked || session.is_some_and(|session| sessions.contains(&session))
    };
    processes.iter().filter(|process| belongs(process)).map(|(pid, _, _)| *pid).collect()
}

/// proc(5): the sixth field of `stat`; the second is in parentheses and may contain anything.
fn session(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(3)?.parse().ok()
}

async fn forget(shared: &Shared, id: &ContainerId, exec_id: &str, directory: &Path) {
    let request = DeleteProcessRequest { container_id: id.to_string(), exec_id: exec_id.to_owned() };
    let forgotten = shared.connection.within(SLOW).tasks().delete_process(request).await.map(drop);
    if let Err(status) = failure::absent_is_done(forgotten) {
        // It goes with the container.
        tracing::debug!(container = %id, exec = exec_id, %status, "an exec is still remembered");
    }
    _ = fs::remove_dir_all(directory);
}

impl Shared {
    /// The process of an exec: the container's own, changed as wanted.
    async fn process_of(&self, id: &ContainerId, exec: &Exec) -> Result<Value, Error> {
        let doing = || format!("run a program in container {id}");
        let request = GetContainerRequest { id: id.to_string() };
        let answer = self.quick().containers().get(request).await;
        let record = answer.map_err(|status| failure::error(doing(), status))?.into_inner().container;
        let document: Value = record
            .and_then(|record| record.spec)
            .and_then(|spec| serde_json::from_slice(&spec.value).ok())
            .ok_or_else(|| Error::Failed { doing: doing(), message: "its record has no spec".to_owned() })?;
        let accounts = match exec.user {
            Some(_) => self.accounts_inside(id).await?,
            None => Accounts::default(),
        };
        Ok(spec::exec_process(&document["process"], exec, &accounts)?)
    }

    /// The users and groups of a container as they are now: it may have added some.
    async fn accounts_inside(&self, id: &ContainerId) -> Result<Accounts, Error> {
        let doing = format!("read the users of container {id}");
        let request = MountsRequest { snapshotter: self.config.snapshotter.clone(), key: id.to_string() };
        let mounts = self.quick().snapshots().mounts(request).await;
        let mounts = mounts.map_err(|status| failure::error(doing.clone(), status))?.into_inner().mounts;
        super::create::read_accounts(&mounts).map_err(|message| Error::Failed { doing, message })
    }

    /// Ends the execs of a predecessor, whose directories are all that tells of them.
    pub(super) async fn reap_execs(&self) -> Result<(), Error> {
        let entries = match fs::read_dir(&self.config.exec_dir) {
            Ok(entries) => entries,
            Err(_) => return Ok(()),
        };
        for directory in entries.flatten().map(|entry| entry.path()) {
            let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some((id, exec_id)) = name.split_once('@') else { continue };
            if exec_id.starts_with(&self.exec_prefix) {
                continue;
            }
            if let Ok(id) = ContainerId::new(id) {
                kill(self, &id, exec_id).await?;
                forget(self, &id, exec_id, &directory).await;
            }
        }
        Ok(())
    }
}

fn make_fifo(path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
}
