//! Processes of parts that have no more than a folder: their output, their end, and what a killed test left of them.
//!
//! Each part lives in a folder of its own below `target/parts`, named by whoever starts it, so that tests run side by
//! side. It ends when its handle is dropped. When a test was killed, the next start in the same folder finds the process
//! by its id and command line, and removes it first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::images::workspace;

/// The folder of a part, emptied of whatever a dead predecessor left.
pub fn fresh_folder(name: &str) -> Result<PathBuf> {
    let folder = workspace().join("target/parts").join(name);
    clear(&folder)?;
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    Ok(folder)
}

/// Ends what still runs in the folder, and removes it.
pub fn clear(folder: &Path) -> Result<()> {
    if let Ok(text) = fs::read_to_string(folder.join(PID_FILE))
        && let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw)
        && command_line(pid).is_some_and(|line| line.contains(&*folder.to_string_lossy()))
    {
        let _ = kill_process(pid, Signal::KILL);
        wait_until("the process of a dead test to end", Duration::from_secs(10), || command_line(pid).is_none())?;
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// A process that belongs to a folder.
pub struct Process {
    child: Child,
    folder: PathBuf,
}

const PID_FILE: &str = "pid";

/// Where what a part says is kept.
const LOG_FILE: &str = "log";

impl Process {
    /// Starts it, with its output in the folder. The command line must name the folder: that is how a leftover is known.
    pub fn start(folder: &Path, command: &mut Command) -> Result<Process> {
        let log = File::options().create(true).append(true).open(folder.join(LOG_FILE))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("could not start {program}; is its package of packages.txt installed?"))?;
        fs::write(folder.join(PID_FILE), child.id().to_string())?;
        Ok(Process { child, folder: folder.to_owned() })
    }

    /// Fails with the end of its log if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("it ended with {status}:\n{}", self.log_end()),
        }
    }

    /// As a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("could not kill the process")?;
        self.child.wait().context("could not wait for the process")?;
        Ok(())
    }

    /// Stops it where it stands, or lets it go on.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a pid")?;
        kill_process(pid, signal).context("could not signal the process")?;
        match signal == Signal::STOP {
            true => wait_until("it to stand still", Duration::from_secs(20), || stands_still(self.child.id())),
            false => Ok(()),
        }
    }

    fn log_end(&self) -> String {
        let log = fs::read(self.folder.join(LOG_FILE)).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether every thread of a stopped process has come to a halt, or there is none: the signal is on its way to some of them
/// when whoever sent it goes on, and what they are at is done first.
pub fn stands_still(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let state = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    threads.filter_map(state).all(|state| "TtZX".contains(state))
}

/// Looks again and again until it is so; fails, saying what was waited for, when it is not in time.
#[expect(clippy::disallowed_methods, reason = "tests of real parts wait in real time")]
pub fn wait_until(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = std::time::Instant::now() + within;
    while !is_so() {
        if std::time::Instant::now() > deadline {
            bail!("waited {} s in vain for {what}", within.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The command line of a process that runs; none if it does not, or is only waited for.
fn command_line(pid: Pid) -> Option<String> {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    (!line.is_empty()).then(|| String::from_utf8_lossy(&line).replace('\0', " "))
}
