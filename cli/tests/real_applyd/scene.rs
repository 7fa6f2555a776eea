//! A folder of one test with a daemon in it, in a network of its own; gone with the test.

#![expect(clippy::disallowed_methods, reason = "processes are waited for in real time")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Scene {
    folder: PathBuf,
    name: String,
}

/// Ends with what it started when it is dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

/// A file system of its own size.
pub struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "it never came to be: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Scene {
    /// What a killed run left under this name goes first.
    pub fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("applyd-{name}"));
        let scene = Scene { folder, name: name.to_owned() };
        scene.clear();
        fs::create_dir_all(&scene.folder).unwrap();
        scene
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    pub fn exists(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    pub fn names(&self) -> Vec<String> {
        fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub fn snapshots(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join("data/snapshots")).unwrap();
        let mut paths: Vec<String> = entries.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned()).collect();
        paths.sort();
        paths
    }

    pub fn small_disk(&self, name: &str, bytes: u64) -> Disk {
        let at = self.folder.join(name);
        fs::create_dir_all(&at).unwrap();
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(size.as_c_str())).unwrap();
        Disk(at)
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", env!("CARGO_BIN_EXE_applyd")]);
        for (option, value) in [
            ("--data", self.path("data")),
            ("--run", self.path("run")),
            ("--containerd", self.path("containerd.sock")),
            ("--containerd-state", self.path("containerd")),
            ("--runtime-root", self.path("runtime")),
            ("--cgroup", self.cgroup()),
            ("--links", "tda".into()),
            ("--table", format!("apply-test-{}", self.name)),
            ("--node", "n1".into()),
        ] {
            command.args([option, &value]);
        }
        command.args(more).stdin(Stdio::null());
        command
    }

    fn cgroup(&self) -> String {
        format!("/apply-test-{}", self.name)
    }

    pub fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    pub fn start_with(&self, more: &[&str]) -> Daemon {
        let log = self.folder.join("log");
        let file = File::create(&log).unwrap();
        let child = self.command(more).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let mut daemon = Daemon { child, log, ended: None };
        until("applyd answers", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.log());
            let version = self.applyctl(&["version", "-o", "json"]);
            let version: Value = version.status.success().then(|| serde_json::from_slice(&version.stdout).unwrap())?;
            match version["applyd"]["cluster"].is_null() {
                true => Some(self.ok(&["init", "-q"])),
                false => Some(String::new()),
            }
        });
        until("its node is there", || self.applyctl(&["get", "node", "n1"]).status.success().then_some(()));
        daemon
    }

    /// One that answers, whatever it is.
    pub fn start_alone(&self) -> Daemon {
        let log = self.folder.join("log");
        let file = File::create(&log).unwrap();
        let child = self.command(&[]).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let daemon = Daemon { child, log, ended: None };
        until("applyd answers", || self.applyctl(&["version"]).status.success().then_some(()));
        daemon
    }

    /// What it says when it does not start.
    pub fn refuses_to_start(&self) -> String {
        let output = self.command(&[]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }

    /// applyd with these words alone, and how it ended.
    pub fn ended(&self, words: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_applyd")).args(words).output().unwrap();
        let said = [output.stderr, output.stdout].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }

    pub fn applyd(&self, words: &[&str]) {
        let (code, said) = self.ended(words);
        assert_eq!(code, 0, "{said}");
    }

    pub fn applyctl(&self, words: &[&str]) -> Output {
        self.typed(words).output().unwrap()
    }

    fn typed(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_applyctl"));
        command.env("APPLY_HOST", format!("unix://{}", self.path("run/apply.sock"))).args(words).stdin(Stdio::null());
        command
    }

    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.applyctl(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn fails(&self, words: &[&str], code: i32) -> String {
        let output = self.applyctl(words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        said
    }

    /// The one object that there is.
    pub fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ok(words)).unwrap()
    }

    pub fn apply(&self, yaml: &str) {
        self.try_apply(yaml).unwrap();
    }

    pub fn try_apply(&self, yaml: &str) -> Result<(), String> {
        let file = self.path("applied.yaml");
        fs::write(&file, yaml).unwrap();
        let output = self.applyctl(&["apply", "-f", &file]);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
    }

    /// Processes, mounts, groups and files of this scene.
    fn clear(&self) {
        let below = self.folder.to_str().unwrap().to_owned() + "/";
        until("the processes end", || {
            let living: Vec<Pid> = processes(&below);
            for pid in &living {
                let _ = kill_process(*pid, Signal::KILL);
            }
            living.is_empty().then_some(())
        });
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        for point in points.iter().rev().filter(|point| point.starts_with(&below)) {
            let _ = unmount(*point, UnmountFlags::DETACH);
        }
        let hierarchies = mounts.lines().filter(|line| line.contains(" - cgroup"));
        for point in hierarchies.filter_map(|line| line.split(' ').nth(4)) {
            let group = format!("{point}{}", self.cgroup());
            let _ = fs::remove_dir(format!("{group}/keep"));
            let _ = fs::remove_dir(group);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Those whose command line names something below a folder; this test's own does not.
fn processes(below: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let named = |pid: &Pid| {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(below)
    };
    pids.filter(named).collect()
}

impl Daemon {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn stop(&mut self) -> ExitStatus {
        if let Some(ended) = self.ended {
            return ended;
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        let ended = until("applyd ends", || self.child.try_wait().unwrap());
        self.ended = Some(ended);
        ended
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
