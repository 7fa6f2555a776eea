//! applyd's side: writes the table, keeps a companion process alive, and waits until the table is in effect.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, timeout_at};

use super::super::sys::cgroup::signal_if;

use super::table::{self, Status, Table, Versioned, status_path, table_path};
use super::{Options, run};

/// One per applyd: what writes the table.
pub struct Client {
    options: Options,
    launch: Box<dyn Fn(&Options) -> Command + Send + Sync>,
    /// Started by us, to be reaped when it ends. There are two while one takes over from another.
    children: Vec<Child>,
    /// In the file; None until it was read.
    written: Option<Versioned>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    #[error("could not {what} in {dir}", dir = dir.display())]
    Io { what: &'static str, dir: PathBuf, source: io::Error },
    /// None runs, and one that was started ended at once or did not come up: its own words are in the log.
    #[error("the companion process does not start in {dir}", dir = dir.display())]
    NotStarted { dir: PathBuf },
    /// It did not even read the table, and was killed: nothing is lost, and another call starts another.
    #[error("the companion process {pid:?} in {dir} hung and was killed", dir = dir.display())]
    Hung { dir: PathBuf, pid: Option<u32> },
    /// It waits for a disk that logs are on. Names and listeners have come into effect.
    #[error("the companion process {pid} in {dir} cannot open or write logs: the disk does not answer", dir = dir.display())]
    Disk { dir: PathBuf, pid: u32 },
}

/// For a companion process to start, and to put a table into effect: both take milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(100);

impl Client {
    /// `launch` makes the command that calls [`run`] with the options that it is given: `options` but for `replace`.
    ///
    /// Its standard input is closed; its output goes where ours goes, unless `launch` says otherwise.
    pub fn new(options: Options, launch: impl Fn(&Options) -> Command + Send + Sync + 'static) -> Self {
        Client { options, launch: Box::new(launch), children: Vec::new(), written: None }
    }

    /// Makes `table` the table and returns once it is in effect, with the faults that there are in it. Starts a companion
    /// process if none works, or one of another build does. With the same table as before it writes nothing.
    ///
    /// Cancel-safe: dropped half-way it may or may not have been written, and can be called again.
    pub async fn apply(&mut self, table: &Table) -> Result<Status, ClientError> {
        let version = self.write(table)?;
        let deadline = Instant::now() + PATIENCE;
        let mut look = LOOK_MIN;
        loop {
            let alive = self.ensure()?;
            let status = self.status()?;
            match status {
                Some(status) if alive && self.is_done(&status, version) => return Ok(status),
                status if Instant::now() >= deadline => return Err(self.give_up(alive, status, version)),
                _ => {}
            }
            let _ = timeout_at(Instant::now() + look, std::future::pending::<()>()).await;
            look = (look * 3 / 2).min(LOOK_MAX);
        }
    }

    /// Starts a companion process if none works, or one of another build does. True if one works. To be called now and
    /// then: whoever prints into a log waits, 1 MiB later, for somebody to read.
    pub fn ensure(&mut self) -> Result<bool, ClientError> {
        self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let alive = run::is_alive(&self.options.dir).map_err(self.fault("look at the lock"))?;
        // Without a status it has just begun to work.
        let other = alive && self.status()?.is_some_and(|status| status.build != self.options.build);
        if (!alive || other) && self.starting() < 1 {
            let options = Options { replace: other, ..self.options.clone() };
            let mut command = (self.launch)(&options);
            let child = command.stdin(Stdio::null()).spawn().map_err(self.fault("start a companion process"))?;
            self.children.push(child);
        }
        Ok(alive)
    }

    /// What the companion process last said. None: nothing yet. One that is dead said it too: see [`Client::ensure`].
    pub fn status(&self) -> Result<Option<Status>, ClientError> {
        table::read(&status_path(&self.options.dir)).map_err(self.fault("read the status"))
    }

    fn is_done(&self, status: &Status, version: u64) -> bool {
        // The lock may be another one's already that has not yet got round to removing a dead one's status.
        let still = || run::has_lock(&self.options.dir, status.pid);
        status.version == version && status.build == self.options.build && still()
    }

    fn give_up(&self, alive: bool, status: Option<Status>, version: u64) -> ClientError {
        let dir = self.options.dir.clone();
        match status {
            _ if !alive => ClientError::NotStarted { dir },
            Some(Status { pid, loaded, .. }) if loaded == version => ClientError::Disk { dir, pid },
            status => {
                let pid = status.map(|status| status.pid);
                let working = |pid: u32| run::has_lock(&dir, pid);
                if let Some(number) = pid.and_then(|pid| i32::try_from(pid).ok()) {
                    signal_if(number, Signal::KILL, || pid.is_some_and(working));
                }
                ClientError::Hung { dir, pid }
            }
        }
    }

    /// Those of ours that live and are not the one that works: they are about to be.
    fn starting(&self) -> usize {
        let working = self.status().ok().flatten().map(|status| status.pid);
        self.children.iter().filter(|child| Some(child.id()) != working).count()
    }

    fn write(&mut self, table: &Table) -> Result<u64, ClientError> {
        let path = table_path(&self.options.dir);
        std::fs::create_dir_all(&self.options.dir).map_err(self.fault("make the directory"))?;
        if self.written.is_none() {
            // What another version of ours wrote may not be readable; only its number matters, if there is one.
            let before = table::read::<Versioned>(&path).ok().flatten();
            let said = self.status().ok().flatten().map_or(0, |status| status.version);
            self.written = Some(before.unwrap_or(Versioned { version: said, ..Versioned::default() }));
        }
        let written = self.written.get_or_insert_default();
        if written.version > 0 && written.table == *table && path.exists() {
            return Ok(written.version);
        }
        let next = Versioned { version: written.version + 1, table: table.clone() };
        table::replace(&path, &next).map_err(self.fault("write the table"))?;
        let version = next.version;
        self.written = Some(next);
        Ok(version)
    }

    fn fault(&self, what: &'static str) -> impl FnOnce(io::Error) -> ClientError + use<> {
        let dir = self.options.dir.clone();
        move |source| ClientError::Io { what, dir, source }
    }
}
