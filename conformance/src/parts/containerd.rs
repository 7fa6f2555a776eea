//! A containerd of one's own: its root, state and socket below one directory, its runtime's state and its cgroups named
//! after it, so that it never meets another one on the machine.
//!
//! Nothing outlives the value, and what a killed test has left is found and ended by the next start: a directory whose
//! lock nobody holds belongs to the dead. The file depends on std and rustix alone, so that other crates' tests can
//! include it by path.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A running containerd; stopped, with all that it ran, when dropped.
pub struct PrivateContainerd {
    place: Place,
    options: Options,
    daemon: Option<Child>,
    _lock: File,
}

/// What is not as on most machines.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The daemon's executable; its shim is looked for beside it. Default: the machine's own.
    pub executable: Option<PathBuf>,
    /// Run it where no cgroup2 is mounted beside v1: crun 1.8 refuses a mixture in which v2 has a controller.
    pub cgroup_v1_only: bool,
    /// Its content and snapshots lie on a disk of this size, in memory. Default: on the machine's own.
    pub disk_bytes: Option<u64>,
    /// Its garbage collector runs after every change instead of now and then, so that a test sees what it would take.
    pub eager_collector: bool,
}

/// Where one of them keeps its things; all that is needed to end it.
#[derive(Clone, Debug)]
struct Place {
    directory: PathBuf,
}

/// What `target/` holds of them.
const BASE: &str = "target/containerd";
const LOCK: &str = "lock";
/// Where systemd and others mount cgroup2 beside v1.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// containerd answers a second after its start on a busy machine.
const START: Duration = Duration::from_secs(30);
/// SIGKILL needs a moment.
const DEATH: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

impl PrivateContainerd {
    /// Ends what dead tests have left, then starts one. `name` is for people, and must be short: unix sockets have
    /// paths of at most 107 bytes.
    pub fn start(name: &str) -> io::Result<Self> {
        Self::start_with(name, Options::default())
    }

    pub fn start_with(name: &str, options: Options) -> io::Result<Self> {
        let base = workspace().join(BASE);
        fs::create_dir_all(&base)?;
        sweep(&base)?;
        let directory = base.join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let lock = File::create(directory.join(LOCK))?;
        lock.try_lock().map_err(|error| io::Error::other(format!("{}: {error}", directory.display())))?;
        let place = Place { directory };
        fs::write(place.path("config.toml"), place.config(&options))?;
        if let Some(bytes) = options.disk_bytes {
            fs::create_dir_all(place.path("root"))?;
            let size = std::ffi::CString::new(format!("size={bytes}"))?;
            rustix::mount::mount("tmpfs", place.path("root"), "tmpfs", MountFlags::empty(), Some(size.as_c_str()))?;
        }
        let mut started = PrivateContainerd { place, options, daemon: None, _lock: lock };
        started.restart()?;
        Ok(started)
    }

    /// Starts the daemon again, on what is there.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        let log = File::options().create(true).append(true).open(self.place.path("log"))?;
        let executable = self.options.executable.clone().unwrap_or_else(|| PathBuf::from("containerd"));
        let mut command = Command::new(&executable);
        if self.options.cgroup_v1_only && Path::new(UNIFIED).exists() {
            command = Command::new("unshare");
            command.args(["--mount", "--propagation", "slave", "sh", "-c"]);
            command.arg(format!("umount {UNIFIED} && exec \"$0\" \"$@\"")).arg(&executable);
        }
        command.arg("--config").arg(self.place.path("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        if let Some(beside) = executable.parent().filter(|p| p.is_absolute()) {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", beside.display()));
        }
        let mut daemon = command.spawn()?;
        let deadline = Instant::now() + START;
        while UnixStream::connect(self.socket()).is_err() {
            if daemon.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.place.path("log")).unwrap_or_default();
                return Err(io::Error::other(format!("containerd did not start:\n{log}")));
            }
            thread::sleep(POLL);
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// SIGKILL to the daemon alone: what it runs goes on.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            _ = daemon.kill();
            _ = daemon.wait();
        }
    }

    /// The daemon's process.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    pub fn socket(&self) -> PathBuf {
        self.place.path("sock")
    }

    /// For files of the test: gone with the rest.
    pub fn directory(&self) -> &Path {
        &self.place.directory
    }

    /// Where runc or crun must keep its state, so as not to meet that of another containerd.
    pub fn runtime_root(&self) -> PathBuf {
        self.place.path("runtime")
    }

    /// Its own state, as its configuration says.
    pub fn state_dir(&self) -> PathBuf {
        self.place.path("state")
    }

    /// The group that all containers must be made in.
    pub fn cgroup_parent(&self) -> String {
        self.place.cgroup()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.place.path("log")).unwrap_or_default()
    }

    /// The processes of a container's shim.
    pub fn shims(&self, id: &str) -> Vec<u32> {
        let words = self.place.processes().into_iter();
        words.filter(|(_, words)| words.windows(2).any(|w| w[0] == "-id" && w[1] == id)).map(|(pid, _)| pid).collect()
    }

    /// What containers have left, as the kernel and the file system show it: nothing, once all are removed.
    pub fn remains(&self) -> Vec<String> {
        let mut found = Vec::new();
        let own = self.pid().unwrap_or_default();
        for (pid, words) in self.place.processes() {
            if pid != own {
                found.push(format!("process {pid}: {}", words.join(" ")));
            }
        }
        // As the daemon sees them: it may have a mount namespace of its own.
        let table = format!("/proc/{}/mountinfo", self.pid().map_or("self".to_owned(), |pid| pid.to_string()));
        found.extend(self.place.mounts(&table).into_iter().map(|mount| format!("mount {}", mount.display())));
        for group in self.place.cgroups() {
            found.extend(entries(&group).filter(|e| e.is_dir()).map(|group| format!("cgroup {}", group.display())));
        }
        for bundles in self.place.bundles() {
            found.push(format!("bundle {}", bundles.display()));
        }
        for directory in ["runtime", "exec"] {
            found.extend(entries(&self.place.path(directory)).map(|p| format!("{directory}: {}", p.display())));
        }
        found.retain(|line| !is_empty_runtime_namespace(line));
        found
    }
}

impl Drop for PrivateContainerd {
    fn drop(&mut self) {
        self.kill();
        if let Err(error) = self.place.end() {
            // A test that failed already must not abort; the next start tries again.
            eprintln!("{} is not gone: {error}", self.place.directory.display());
        }
    }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn cgroup(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default().to_string_lossy();
        format!("/apply-test-{name}")
    }

    fn config(&self, options: &Options) -> String {
        let collector = match options.eager_collector {
            true => {
                "[plugins.'io.containerd.gc.v1.scheduler']\ndeletion_threshold = 1\nmutation_threshold = 1\n\
                 schedule_delay = '0s'\nstartup_delay = '10ms'\n"
            }
            false => "",
        };
        format!(
            "version = 2\nroot = '{0}/root'\nstate = '{0}/state'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', \
             'io.containerd.cri.v1.runtime', 'io.containerd.snapshotter.v1.aufs', \
             'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.devmapper', \
             'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.blockfile', \
             'io.containerd.internal.v1.opt', 'io.containerd.nri.v1.nri']\n\
             [grpc]\naddress = '{0}/sock'\n[ttrpc]\naddress = '{0}/sock.ttrpc'\n[debug]\nlevel = 'info'\n\
             {collector}",
            self.directory.display()
        )
    }

    /// Ends everything of it, the daemon first, and removes the directory.
    fn end(&self) -> io::Result<()> {
        // The daemon would clean up after its shims while we do; its command line names the directory too.
        let is_daemon = |words: &[String]| words.iter().any(|word| word == "--config");
        let (daemons, others): (Vec<_>, Vec<_>) = self.processes().into_iter().partition(|(_, words)| is_daemon(words));
        end_processes(daemons.into_iter().map(|(pid, _)| pid).collect())?;
        end_processes(others.into_iter().map(|(pid, _)| pid).collect())?;
        for bundle in self.bundles() {
            // Shims listen outside of the directory, at a place that only this file tells.
            if let Ok(address) = fs::read_to_string(bundle.join("address")) {
                _ = fs::remove_file(address.trim().trim_start_matches("unix://"));
            }
        }
        let deadline = Instant::now() + DEATH;
        for group in self.cgroups() {
            loop {
                let left = processes_below(&group);
                if left.is_empty() {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(io::Error::other(format!("{left:?} of {} do not die", group.display())));
                }
                end_processes(left)?;
            }
            remove_groups(&group)?;
        }
        for mount in self.mounts("/proc/self/mountinfo") {
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH)?;
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// The processes whose command line names something in the directory: the daemon and its shims.
    fn processes(&self) -> Vec<(u32, Vec<String>)> {
        let named = format!("{}/", self.directory.display());
        let pids = entries(Path::new("/proc")).filter_map(|path| path.file_name()?.to_str()?.parse::<u32>().ok());
        let commands = pids.filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let words: Vec<String> =
                line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            let is_part =
                words.first().is_some_and(|w| w.contains("containerd") || w.contains("runc") || w.contains("crun"));
            (is_part && words.iter().any(|word| word.starts_with(&named))).then_some((pid, words))
        });
        commands.collect()
    }

    /// Innermost first.
    fn mounts(&self, table: &str) -> Vec<PathBuf> {
        let table = fs::read_to_string(table).unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(&self.directory)).collect();
        below.reverse();
        below
    }

    /// Its group in each hierarchy where it has one.
    fn cgroups(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = table.lines().filter_map(|line| {
            let (mount, kind) = line.split_once(" - cgroup")?;
            kind.starts_with([' ', '2']).then(|| mount.split(' ').nth(4))?
        });
        let name = self.cgroup();
        let groups = mounted.map(|point| Path::new(point).join(name.trim_start_matches('/')));
        groups.filter(|group| group.is_dir()).collect()
    }

    fn bundles(&self) -> Vec<PathBuf> {
        let namespaces = entries(&self.path("state/io.containerd.runtime.v2.task"));
        namespaces.flat_map(|namespace| entries(&namespace).collect::<Vec<_>>()).collect()
    }
}

/// The workspace that this was built in.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// Ends those whose test is dead.
fn sweep(base: &Path) -> io::Result<()> {
    for directory in entries(base) {
        let held = match File::open(directory.join(LOCK)) {
            Ok(lock) => match lock.try_lock() {
                Ok(()) => Some(lock),
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            },
            // Being made this moment, or being removed by another sweep.
            Err(_) => continue,
        };
        Place { directory }.end()?;
        drop(held);
    }
    Ok(())
}

/// Kills, and waits until they are gone or nobody's but their parent's.
fn end_processes(pids: Vec<u32>) -> io::Result<()> {
    let pids: Vec<Pid> = pids.into_iter().filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).collect();
    for pid in &pids {
        _ = kill_process(*pid, Signal::KILL);
    }
    let deadline = Instant::now() + DEATH;
    for pid in pids {
        while test_kill_process(pid).is_ok() && !is_zombie(pid) {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("process {} does not die", pid.as_raw_nonzero())));
            }
            thread::sleep(POLL);
        }
    }
    Ok(())
}

fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// What is in a control group and those below it.
pub(crate) fn processes_below(group: &Path) -> Vec<u32> {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<u32> = listed.lines().filter_map(|pid| pid.parse().ok()).collect();
    for below in entries(group).filter(|entry| entry.is_dir()) {
        found.extend(processes_below(&below));
    }
    found
}

fn remove_groups(group: &Path) -> io::Result<()> {
    entries(group).filter(|entry| entry.is_dir()).try_for_each(|below| remove_groups(&below))?;
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// runc and crun keep a directory for the namespace, which stays.
fn is_empty_runtime_namespace(line: &str) -> bool {
    line.strip_prefix("runtime: ").is_some_and(|path| entries(Path::new(path)).next().is_none())
}
