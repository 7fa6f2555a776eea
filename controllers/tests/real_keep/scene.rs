//! A directory with a companion process in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use controllers::node::keep::{Client, Options, Status, Table};
use controllers::node::logs::{self, Entry, Log, ReadOptions, Stream};
use futures::StreamExt;
use rustix::process::{Pid, Signal};
use sha2::{Digest, Sha256};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with a companion process in it. What an earlier run of the same test left is removed first.
pub struct Scene {
    pub root: PathBuf,
    pub client: Client,
    pub table: Table,
    pub holds: Vec<logs::Hold>,
    pub runtime: tokio::runtime::Runtime,
    /// Commands that remove what else there is.
    pub undo: Vec<Vec<String>>,
}

impl Scene {
    pub fn new(name: &str) -> Self {
        Self::through(name, &[], &[])
    }

    /// The process is started through `prefix`, such as `ip netns exec …`.
    pub fn through(name: &str, prefix: &[&str], undo: &[&[&str]]) -> Self {
        // One place for each checkout; short, for the sake of socket addresses.
        let checkout = Sha256::digest(env!("CARGO_MANIFEST_DIR"));
        let root = std::env::temp_dir().join(format!("apply-keep-{:02x}{:02x}-{name}", checkout[0], checkout[1]));
        let undo = undo.iter().map(|words| words.iter().map(|&word| word.to_owned()).collect()).collect();
        let options = Options { dir: root.join("keep"), build: "1".into(), replace: false, cgroup: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = client(options, prefix);
        let mut scene = Scene { root, client, table: Table::default(), holds: Vec::new(), runtime, undo };
        scene.clean();
        std::fs::create_dir_all(&scene.root).unwrap();
        scene
    }

    fn clean(&mut self) {
        companions(&self.root.join("keep")).into_iter().for_each(kill);
        for undo in self.undo.iter().rev() {
            let _ = Command::new(&undo[0]).args(&undo[1..]).output();
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }

    pub fn log(&mut self, id: &str) -> &mut Log {
        let pipes = self.root.join("pipes");
        logs::ensure_pipes(&pipes, id).unwrap();
        self.holds.push(logs::hold(&pipes, id).unwrap());
        let dir = logs::attempt_dir(&self.task_dir(id), 0);
        self.table.logs.push(Log { id: id.into(), pipes, dir, max_size_bytes: 1 << 30, max_files: 1, finished: false });
        self.table.logs.last_mut().unwrap()
    }

    pub fn task_dir(&self, id: &str) -> PathBuf {
        self.root.join("logs").join(id)
    }

    /// What a container has as its stdout or stderr.
    pub fn printer(&self, id: &str, stream: Stream) -> File {
        let pipes = logs::ensure_pipes(&self.root.join("pipes"), id).unwrap();
        let path = if stream == Stream::Stdout { pipes.stdout } else { pipes.stderr };
        File::options().write(true).open(path).unwrap()
    }

    pub fn apply(&mut self) -> Status {
        self.runtime.block_on(self.client.apply(&self.table)).unwrap()
    }

    /// A process that is killed closes its files a moment after its memory is gone.
    pub fn wait_for_lock(&self) {
        let lock = File::open(self.root.join("keep/lock")).unwrap();
        let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
        wait("the lock to be free", || rustix::fs::flock(&lock, shared).is_ok());
    }

    pub fn finish(&mut self) -> Status {
        self.table.logs.iter_mut().for_each(|log| log.finished = true);
        self.apply()
    }

    pub fn read(&self, id: &str, options: ReadOptions) -> Vec<Entry> {
        self.runtime.block_on(logs::read(self.task_dir(id), options).map(Result::unwrap).collect())
    }

    /// What the log has of the stream, and how many bytes it says are lost.
    pub fn printed(&self, id: &str, stream: Stream) -> (Vec<u8>, u64) {
        let (mut bytes, mut lost) = (Vec::new(), 0);
        for entry in self.read(id, ReadOptions::default()) {
            match entry {
                Entry::Text { stream: of, text, .. } if of == stream => bytes.extend_from_slice(&text),
                Entry::Gap { stream: of, lost_bytes, .. } if of.is_none_or(|of| of == stream) => lost += lost_bytes,
                _ => {}
            }
        }
        (bytes, lost)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.clean();
    }
}

pub fn client(options: Options, prefix: &[&str]) -> Client {
    let prefix: Vec<String> = prefix.iter().map(|&word| word.to_owned()).collect();
    Client::new(options, move |options| companion(&prefix, options))
}

pub const DIR: &str = "APPLY_TEST_KEEP_DIR";
pub const BUILD: &str = "APPLY_TEST_KEEP_BUILD";
pub const REPLACE: &str = "APPLY_TEST_KEEP_REPLACE";
pub const CGROUP: &str = "APPLY_TEST_KEEP_CGROUP";

/// This binary again, with one test chosen, which then is the companion process.
pub fn companion(prefix: &[String], options: &Options) -> Command {
    let binary = std::env::current_exe().unwrap().into_os_string();
    let words: Vec<_> = prefix.iter().map(Into::into).chain([binary]).collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["--exact", "without_a_place_for_its_directory_it_says_so", "--nocapture"]);
    command.env(DIR, &options.dir).env(BUILD, &options.build).stdout(std::process::Stdio::null());
    command.envs(options.replace.then_some((REPLACE, "1"))).envs(options.cgroup.as_ref().map(|group| (CGROUP, group)));
    command
}

/// All that were started for the directory, by whomever.
pub fn companions(dir: &Path) -> Vec<u32> {
    let wanted = format!("{DIR}={}", dir.display());
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_one = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        is_ours(*pid) && environment.split(|&byte| byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    pids.filter(is_one).collect()
}

/// Only if it is a companion process: the number may be another one's by now. Returns once it is gone.
pub fn kill(pid: u32) {
    if !is_ours(pid) {
        return;
    }
    let _ = rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
    wait("the process to die", || !is_ours(pid));
}

/// Not for a zombie, which has no command line.
pub fn is_ours(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).contains("without_a_place_for_its_directory_it_says_so")
        && pid != std::process::id()
}

#[expect(clippy::disallowed_methods, reason = "between two looks at a real process")]
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[expect(clippy::disallowed_methods, reason = "durations of real work are printed")]
pub fn now() -> Instant {
    Instant::now()
}

pub fn text(status: &Status) -> String {
    serde_json::to_string(status).unwrap()
}

pub fn command(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
