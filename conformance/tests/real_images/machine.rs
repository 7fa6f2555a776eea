//! A machine of its own for one test: a containerd in private network, mount and process namespaces, with a private `/run`.
//! When its first process dies, the kernel takes all the rest with it; what stays are empty cgroups and one folder below
//! `target`, which the end of the test removes, or the next run of the same test.

use std::fmt::Debug;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use conformance::images;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub struct Machine {
    root: PathBuf,
    namespace: String,
    process: Child,
    /// Its first process, as seen from here.
    init: u32,
    runs: AtomicU32,
    _lock: File,
}

impl Machine {
    pub fn start(name: &str) -> Machine {
        let root = images::workspace().join("target/real-images").join(name);
        fs::create_dir_all(&root).unwrap();
        // Two runs of one test take turns.
        let lock = File::create(root.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        let namespace = format!("real-images-{name}");
        sweep(&root, &namespace);
        fs::create_dir_all(&root).unwrap();

        let config = format!(
            "version = 2\nroot = '{0}/root'\nstate = '{0}/state'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.snapshotter.v1.aufs', \
             'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.devmapper', \
             'io.containerd.snapshotter.v1.zfs', 'io.containerd.internal.v1.opt']\n[grpc]\naddress = '{0}/sock'\n",
            root.display()
        );
        fs::write(root.join("config.toml"), config).unwrap();
        // Images in memory: a test unpacks some 200 MB in thousands of files, and throws them away.
        fs::create_dir(root.join("root")).unwrap();
        let inside = format!(
            "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs {0}/root && ip link set lo up &&
             exec containerd --config {0}/config.toml",
            root.display()
        );
        let log = File::create(root.join("containerd.log")).unwrap();
        let process = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &inside])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        fs::write(root.join("pid"), process.id().to_string()).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", process.id());
        let mut init = 0;
        eventually("the machine has a first process", || {
            init = fs::read_to_string(&children).ok().and_then(|pids| pids.trim().parse().ok()).unwrap_or(0);
            init > 0
        });
        let machine = Machine { root, namespace, process, init, runs: AtomicU32::new(0), _lock: lock };
        eventually("containerd answers", || machine.try_ctr(&["version"]).status.success());
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        fs::create_dir_all(self.path(name)).unwrap();
        self.path(name)
    }

    pub fn file(&self, name: &str, contents: &str) -> PathBuf {
        fs::write(self.path(name), contents).unwrap();
        self.path(name)
    }

    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.init).into()
    }

    /// Runs something on a thread of this machine's network.
    pub fn http<T: Send>(&self, ask: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(self.netns()).unwrap();
        let inside = move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            ask()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Calls `ctr` inside, and what it prints.
    pub fn ctr(&self, words: &[&str]) -> String {
        let output = self.try_ctr(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {}: {errors}", words.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    fn try_ctr(&self, words: &[&str]) -> Output {
        let (init, socket) = (self.init.to_string(), self.path("sock"));
        let mut ctr = Command::new("nsenter");
        ctr.args(["-t", &init, "-m", "-n", "-p", "ctr", "-n", &self.namespace, "-a"]).arg(socket).args(words);
        ctr.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a container to its end: its exit code and what it wrote to stdout. `words` replace entrypoint and command.
    pub fn run(&self, image: &str, mounts: &[(&Path, &str)], words: &[&str]) -> (Option<i32>, String) {
        let id = format!("run-{}", self.runs.fetch_add(1, Ordering::SeqCst));
        let output =
            self.try_ctr(&strs(&arguments(&["run", "--rm", "--with-ns", NETWORK], &id, image, mounts, &[], words)));
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn up(&self, id: &str, image: &str, mounts: &[(&Path, &str)], words: &[&str]) {
        self.up_with(id, image, mounts, &[], words);
    }

    /// Starts a container that goes on; its output is added to `log(id)`.
    pub fn up_with(&self, id: &str, image: &str, mounts: &[(&Path, &str)], env: &[&str], words: &[&str]) {
        let log = format!("file://{}", self.path(&format!("{id}.log")).display());
        let first = ["run", "--detach", "--with-ns", NETWORK, "--log-uri", &log];
        self.ctr(&strs(&arguments(&first, id, image, mounts, env, words)));
    }

    pub fn log(&self, id: &str) -> String {
        fs::read_to_string(self.path(&format!("{id}.log"))).unwrap_or_default()
    }

    pub fn exec(&self, id: &str, words: &[&str]) -> String {
        let exec = format!("exec-{}", self.runs.fetch_add(1, Ordering::SeqCst));
        let output = self.try_ctr(&[&["task", "exec", "--exec-id", &exec, id], words].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sends a signal, waits for the end, and removes the container: its exit code.
    pub fn kill(&self, id: &str, signal: &str) -> i32 {
        self.ctr(&["task", "kill", "--signal", signal, id]);
        eventually(&format!("{id} has left"), || {
            let tasks = self.ctr(&["task", "ls"]);
            tasks.lines().any(|line| line.split_whitespace().next() == Some(id) && line.ends_with("STOPPED"))
        });
        // ctr leaves with the code of the task that it deletes.
        let code = self.try_ctr(&["task", "rm", id]).status.code();
        self.ctr(&["container", "rm", id]);
        code.expect("ctr was not killed")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            for entry in fs::read_dir(&self.root).unwrap().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    let log = fs::read_to_string(&path).unwrap_or_default();
                    let tail: Vec<_> = log.lines().rev().take(15).collect();
                    eprintln!("--- {}", path.display());
                    tail.iter().rev().for_each(|line| eprintln!("{line}"));
                }
            }
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        sweep(&self.root, &self.namespace);
    }
}

/// Removes what a machine of this root left, alive or dead.
fn sweep(root: &Path, namespace: &str) {
    let old = fs::read_to_string(root.join("pid")).ok().and_then(|pid| pid.parse::<i32>().ok());
    if let Some(pid) = old {
        // The number may be another process' by now.
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.contains(&root.display().to_string())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    // The kernel ends the rest of a machine a moment after its first process; busy folders are tried again.
    eventually("the machine is gone", || {
        let cgroups = cgroups(namespace);
        cgroups.iter().for_each(|path| drop(fs::remove_dir(path)));
        let _ = fs::remove_dir_all(root);
        !root.exists() && cgroups.iter().all(|path| !path.exists())
    });
}

/// The cgroups of a containerd namespace, the inner ones first, in every hierarchy (version 1) or in the one (version 2).
fn cgroups(namespace: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let tops = hierarchies.map(|path| path.join(namespace)).chain([Path::new("/sys/fs/cgroup").join(namespace)]);
    let mut found = Vec::new();
    for top in tops.filter(|top| top.is_dir()) {
        let inner = fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
        found.extend(inner.filter(|path| path.is_dir()));
        found.push(top);
    }
    found
}

fn arguments(
    first: &[&str],
    id: &str,
    image: &str,
    mounts: &[(&Path, &str)],
    env: &[&str],
    words: &[&str],
) -> Vec<String> {
    let mut arguments: Vec<String> = first.iter().map(|word| word.to_string()).collect();
    for (source, target) in mounts {
        arguments.push("--mount".into());
        arguments.push(format!("type=bind,src={},dst={target},options=rbind", source.display()));
    }
    for variable in env {
        arguments.extend(["--env".into(), variable.to_string()]);
    }
    arguments.extend([format!("docker.io/{image}"), id.to_owned()]);
    arguments.extend(words.iter().map(|word| word.to_string()));
    arguments
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The machine's network, as its processes see it. (`--net-host` is the same, but ctr then puts the host's `hosts` and
/// `resolv.conf` over ours.)
const NETWORK: &str = "network:/proc/1/ns/net";

/// Looks until it is so.
pub fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    becomes(what, true, is_so);
}

/// Looks until what is seen is what should be; says what was seen last when it is not.
#[expect(clippy::disallowed_methods, reason = "a test of real parts waits in real time")]
pub fn becomes<T: PartialEq + Debug>(what: &str, expected: T, mut look: impl FnMut() -> T) {
    let began = Instant::now();
    loop {
        let seen = look();
        if seen == expected {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: {seen:?} after {PATIENCE:?}, and not {expected:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A machine that does much else at the same time is slow, not wrong.
const PATIENCE: Duration = Duration::from_secs(120);
