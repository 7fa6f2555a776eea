//! etcd as a process of its own: it outlives the applyd that has started it, and the next one finds it running.
//!
//! `applyd etcd` becomes it: takes a lock whose descriptor goes on into etcd, so that whether the lock is held says whether
//! etcd lives, and whoever is second ends.

use std::convert::Infallible;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use controllers::node::sys::cgroup::{Cgroups, signal_if};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::process::Signal;

/// Becomes etcd: for applyd itself to call.
#[derive(Debug, Parser)]
#[command(name = "applyd etcd")]
pub struct EtcdOptions {
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long)]
    pub cgroup: String,
    /// etcd's own
    #[arg(last = true)]
    pub arguments: Vec<String>,
}

const LOCK: &str = "lock";
const PID: &str = "pid";
const LOG: &str = "log";
/// etcd only warns there; more than this is thrown away.
const LOG_BYTES: u64 = 4 << 20;

/// Becomes etcd; returns only when that fails.
///
/// # Errors
/// In words.
pub fn become_etcd(options: &EtcdOptions) -> Result<Infallible> {
    let dir = &options.dir;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Fails for a leader of a group, which then is already out of reach of its parent's terminal.
    let _ = rustix::process::setsid();
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, files);
    // The cluster would feel its loss. Not for who is no root.
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    for (directory, error) in Cgroups::of_machine().map(|groups| groups.enter(&options.cgroup)).unwrap_or_default() {
        eprintln!("applyd etcd: stays out of {}: {error}", directory.display());
    }
    // Without CLOEXEC: it stays held for as long as etcd runs.
    let lock = rustix::fs::open(dir.join(LOCK), OFlags::RDWR | OFlags::CREATE, Mode::RUSR | Mode::WUSR)?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("etcd runs in {} already", dir.display());
    }
    let _held = lock.into_raw_fd();
    fs::write(dir.join(PID), std::process::id().to_string())?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(LOG))?;
    let mut command = Command::new("etcd");
    // What it would take from the environment is not ours to know.
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.args(&options.arguments).env_clear().env("PATH", path).current_dir("/");
    if cfg!(target_arch = "aarch64") {
        command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
    }
    let error = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).exec();
    Err(error).context("etcd does not start; it is in Debian's etcd-server")
}

/// etcd in one directory.
#[derive(Debug)]
pub(super) struct Process {
    dir: PathBuf,
    cgroup: String,
    /// Started by us, to be reaped when it ends.
    child: Option<Child>,
}

impl Process {
    pub(super) fn new(dir: PathBuf, cgroup: String) -> Self {
        Self { dir, cgroup, child: None }
    }

    /// Starts it unless it runs. True: it did not.
    ///
    /// # Errors
    /// This program cannot be started.
    pub(super) fn ensure(&mut self, arguments: &[String]) -> io::Result<bool> {
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(None))
        {
            return Ok(false);
        }
        if is_alive(&self.dir)? {
            return Ok(false);
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg("etcd").arg("--dir").arg(&self.dir).arg("--cgroup").arg(&self.cgroup).arg("--").args(arguments);
        self.child = Some(command.stdin(Stdio::null()).spawn()?);
        Ok(true)
    }

    /// Its last words, for people.
    pub(super) fn last_words(&self) -> String {
        let text = fs::read_to_string(self.dir.join(LOG)).unwrap_or_default();
        text.lines().next_back().unwrap_or_default().chars().take(500).collect()
    }

    /// Bounds what it has logged.
    pub(super) fn tidy(&self) -> io::Result<()> {
        match File::options().write(true).open(self.dir.join(LOG)) {
            Ok(log) if log.metadata()?.len() > LOG_BYTES => log.set_len(0),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether this machine has the program.
pub fn is_here() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("etcd").is_file())
}

/// Whether etcd runs in a directory.
fn is_alive(dir: &Path) -> io::Result<bool> {
    let file = match File::open(dir.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Between two looks whether it is dead, and how often that is looked.
const DYING: Duration = Duration::from_millis(10);
const LOOKS: usize = 500;

/// Ends it at once, if it runs, and returns once it is dead.
///
/// # Errors
/// Its lock cannot be looked at, or it does not end.
#[expect(clippy::disallowed_methods, reason = "a process that was killed is dead within milliseconds")]
pub fn end(dir: &Path) -> io::Result<()> {
    let pid = fs::read_to_string(dir.join(PID)).ok().and_then(|text| text.trim().parse().ok());
    let Some(pid) = pid else { return Ok(()) };
    let is_ours = || {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| is_below(&String::from_utf8_lossy(word), dir))
    };
    for _ in 0..LOOKS {
        if !is_alive(dir)? {
            return Ok(());
        }
        signal_if(pid, Signal::KILL, is_ours);
        std::thread::sleep(DYING);
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("etcd does not end in {}", dir.display())))
}

/// Whether a word of a command line names something in a folder: by itself, or as what an option is.
fn is_below(word: &str, dir: &Path) -> bool {
    let value = word.split_once('=').map_or(word, |(_, value)| value);
    Path::new(value).starts_with(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_is_known_by_its_folder_before_and_after_it_has_become_etcd() {
        let dir = Path::new("/var/lib/apply/etcd-member");
        assert!(
            is_below("/var/lib/apply/etcd-member", dir) && is_below("--data-dir=/var/lib/apply/etcd-member/data", dir)
        );
        assert!(!is_below("--data-dir=/var/lib/apply/etcd-member-2/data", dir) && !is_below("--name=n1", dir));
    }
}
