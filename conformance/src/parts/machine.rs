//! A machine for a test: containerd and applyd in network, mount and process namespaces of their own, with a `/run` in
//! memory. Its first process is its power cord: when that is killed the kernel kills everything else at the same moment,
//! and mounts, links, firewall and `/run` are gone with the namespaces. What is on its disk, a folder below
//! `target/machines`, stays for the next boot.
//!
//! Control groups have no namespace here: those of a dead machine are removed by whoever waits for its end. A machine
//! whose test was killed is found by the next one of its name, and removed first.

use std::fs::{self, File};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::debian;
use super::installation::{Installation, Person};
use super::process::{stands_still, wait_until};
use crate::images::{self, workspace};

/// For anything that takes a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How a machine is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The OCI runtime; `None`: runc. With crun no cgroup2 is mounted beside v1, which crun 1.8 refuses.
    pub runtime: Option<String>,
    /// The Debian whose containerd it has (`trixie`); `None`: that of the machine here.
    pub containerd: Option<String>,
    /// What its node is called; `None`: n1.
    pub node: Option<String>,
    /// Its network; `None`: it has none but itself.
    pub wire: Option<Wire>,
}

/// The way from a machine to others: a port of the bridge in the network namespace of `hub`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// A process in that namespace.
    pub hub: u32,
    /// Of the machine: the last part of its addresses, 10.99.0.N and fd99::N, and of its port, mN.
    pub number: u8,
}

/// A machine; off, and all of it removed, when dropped.
pub struct Machine {
    installation: Installation,
    folder: PathBuf,
    wire: Option<Wire>,
    power: Option<Power>,
    lock: File,
}

struct Power {
    /// `unshare`, which waits for the first process; `None`: another process has started it.
    child: Option<Child>,
    /// The process of `unshare`.
    cord: u32,
    /// The first process, as seen from here.
    init: u32,
}

/// What of a machine can be killed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Applyd,
    Keep,
    Containerd,
    /// Of a manager beside others.
    Etcd,
}

impl Machine {
    /// A machine with containerd and applyd up. `name`: a few lower-case letters. Two of one name take turns.
    pub fn start(name: &str) -> Result<Machine> {
        Machine::start_with(name, &Options::default())
    }

    pub fn start_with(name: &str, options: &Options) -> Result<Machine> {
        let mut machine = Machine::new(name, options)?;
        machine.boot()?;
        machine.start_containerd()?;
        machine.start_applyd()?;
        Ok(machine)
    }

    /// A machine without power; what a dead test left of it is removed.
    pub fn new(name: &str, options: &Options) -> Result<Machine> {
        let machine = Machine::known(name, options)?;
        machine.remove()?;
        fs::create_dir_all(&machine.folder)?;
        Ok(machine)
    }

    /// Whether a machine of this name has a disk.
    pub fn exists(name: &str) -> bool {
        workspace().join("target/machines").join(name).is_dir()
    }

    /// The machine as another process has left it, with power or without.
    pub fn found(name: &str, options: &Options) -> Result<Machine> {
        let mut machine = Machine::known(name, options)?;
        if let Some(cord) = machine.running() {
            let init = child_of(cord).context("the first process of the machine is gone")?;
            machine.power = Some(Power { child: None, cord, init });
        }
        Ok(machine)
    }

    /// Leaves the machine as it is, for whoever finds it.
    pub fn leave(self) {
        let _ = self.lock.unlock();
        std::mem::forget(self);
    }

    fn known(name: &str, options: &Options) -> Result<Machine> {
        let folder = workspace().join("target/machines").join(name);
        fs::create_dir_all(folder.parent().unwrap_or(&folder))?;
        let lock = File::create(folder.with_extension("lock"))?;
        lock.lock()?;
        let containerd = options.containerd.as_deref().map(debian::containerd);
        let installation = Installation {
            disk: folder.clone(),
            run: PathBuf::from("/run/a"),
            group: format!("apply-{name}"),
            links: "apl".to_owned(),
            table: "apply".to_owned(),
            node: options.node.clone().unwrap_or_else(|| "n1".to_owned()),
            runtime: options.runtime.clone(),
            containerd: containerd.transpose()?,
            besides: Vec::new(),
        };
        Ok(Machine { installation, folder, wire: options.wire, power: None, lock })
    }

    /// Power on. Nothing is started yet.
    pub fn boot(&mut self) -> Result<()> {
        ensure!(self.power.is_none(), "the machine has power");
        let up = self.folder.join("up");
        let _ = fs::remove_file(&up);
        let without_cgroup2 = match self.installation.runtime {
            Some(_) => "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified",
            None => ":",
        };
        // It waits for whatever is given to it, as a first process must.
        let inside = format!(
            "set -e; mount -t tmpfs -o mode=755 tmpfs /run; mount -t tmpfs tmpfs /tmp; mkdir -p {run}; {without_cgroup2}; ip link set lo up; \
             hostname {name}; : > {up}; sleep infinity & wait",
            name = self.installation.node,
            run = self.installation.run.display(),
            up = up.display()
        );
        let log = self.installation.log("boot")?;
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        unshare.args(["sh", "-c", &inside]);
        unshare.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let cord = unshare.spawn().context("could not start unshare")?;
        fs::write(self.folder.join("pid"), cord.id().to_string())?;
        let mut init = 0;
        wait_until("the first process of the machine", PATIENCE, || {
            init = child_of(cord.id()).unwrap_or(0);
            init > 0 && up.exists()
        })?;
        self.power = Some(Power { cord: cord.id(), child: Some(cord), init });
        let door = self.door();
        let _ = fs::remove_file(&door);
        std::os::unix::fs::symlink(self.seen(&self.installation.socket()), &door)?;
        self.plug_in()
    }

    /// Where applyd of the machine is reached from here, through all its lives.
    fn door(&self) -> PathBuf {
        self.folder.join("apply.sock")
    }

    /// A power cut: everything ends at this instant, nothing is tidied up, and `/run` is empty at the next boot.
    pub fn power_cut(&mut self) -> Result<()> {
        // A process that is dead must be waited for, which one that is frozen does not do.
        self.signal(&self.processes().iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), Signal::CONT);
        let Some(mut power) = self.power.take() else { return Ok(()) };
        // Whatever dies says goodbye to nobody.
        if let Some(wire) = self.wire {
            wire.set(false)?;
        }
        kill(power.init)?;
        match &mut power.child {
            Some(child) => drop(child.wait()?),
            None => wait_until("the machine to be off", PATIENCE, || command_line(power.cord).is_none())?,
        }
        self.remove_groups()
    }

    /// Its end of the wire, with addresses and the hub as the way to everywhere else.
    fn plug_in(&self) -> Result<()> {
        let Some(Wire { hub, number }) = self.wire else { return Ok(()) };
        let (init, port) = (self.init().to_string(), format!("m{number}"));
        // One that is there is of a life before.
        let _ = ip_in(hub, &["link", "delete", &port]);
        // Its network card outlives its power.
        let card = format!("02:99:00:00:00:{number:02x}");
        ip_in(hub, &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &card, "netns", &init])?;
        ip_in(hub, &["link", "set", &port, "master", "br0", "up"])?;
        let ip = |words: &[&str]| ip_in(self.init(), words);
        ip(&["address", "add", &format!("10.99.0.{number}/24"), "dev", "eth0"])?;
        ip(&["address", "add", &format!("fd99::{number}/64"), "dev", "eth0", "nodad"])?;
        ip(&["link", "set", "eth0", "up"])?;
        ip(&["route", "add", "default", "via", "10.99.0.254"])?;
        ip(&["route", "add", "default", "via", "fd99::fe"])
    }

    /// Its address, where it has a wire.
    pub fn address(&self) -> Option<String> {
        self.wire.map(|wire| format!("10.99.0.{}", wire.number))
    }

    pub fn wire(&self) -> Option<Wire> {
        self.wire
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.power.is_some()
    }

    /// What its applyd is told besides, from its next start on.
    pub fn tell_applyd(&mut self, words: &[&str]) {
        self.installation.besides = words.iter().map(|word| (*word).to_owned()).collect();
    }

    pub fn start_containerd(&self) -> Result<()> {
        self.spawn("containerd", &self.installation.containerd()?)?;
        let socket = self.seen(&self.installation.containerd_socket());
        wait_until("containerd to answer", PATIENCE, || answers(&socket))
    }

    /// Returns once the API answers and the node is ready; the first time it founds a cluster.
    pub fn start_applyd(&self) -> Result<()> {
        self.begin_applyd()?;
        let person = self.person();
        wait_until("applyd to answer", PATIENCE, || person.has_cluster().unwrap_or(false))
            .with_context(|| self.log_end("applyd"))?;
        wait_until("applyd to be ready", PATIENCE, || person.is_ready(&self.installation.node))
            .with_context(|| self.log_end("applyd"))
    }

    /// Returns at once.
    pub fn begin_applyd(&self) -> Result<()> {
        self.begin_applyd_of(None)
    }

    /// The same, of another program than this build's.
    pub fn begin_applyd_of(&self, program: Option<&Path>) -> Result<()> {
        let mut words = self.installation.applyd()?;
        if let (Some(first), Some(program)) = (words.first_mut(), program) {
            *first = program.display().to_string();
        }
        self.spawn("applyd", &words)
    }

    fn spawn(&self, name: &str, words: &[String]) -> Result<()> {
        let (program, args) = words.split_first().context("a program")?;
        let log = self.installation.log(name)?;
        let mut command = self.inside(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let mut child = command.spawn().with_context(|| format!("could not start {name}"))?;
        // Whoever starts it waits for it; its end is looked for in /proc.
        thread::spawn(move || child.wait());
        Ok(())
    }

    /// A command that is run inside.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init().to_string(), "-m", "-n", "-u", "-i", "-p", "--", program]);
        command
    }

    /// The first process, as seen from here; 0 without power.
    pub fn init(&self) -> u32 {
        self.power.as_ref().map_or(0, |power| power.init)
    }

    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.init()).into()
    }

    /// A path of the machine, as seen from here.
    pub fn seen(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix("/").unwrap_or(path);
        Path::new("/proc").join(self.init().to_string()).join("root").join(below)
    }

    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// What a program of the machine has said, from here.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// Its disk, and what is beside it: files of the test may lie here.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn person(&self) -> Person {
        // A longer path names no socket (unix(7)).
        const PATH_BYTES_MAX: usize = 107;
        let door = self.door();
        let fits = door.as_os_str().len() <= PATH_BYTES_MAX;
        Person { socket: if fits { door } else { self.seen(&self.installation.socket()) } }
    }

    /// What somebody typed on the machine, with applyctl at hand; its words go where this process's go.
    pub fn typed(&self, words: &[String]) -> Result<Command> {
        ensure!(self.is_on(), "the machine has no power");
        let (program, args) = words.split_first().context("a command")?;
        let own = super::installation::program("applyctl")?;
        let folder = own.parent().unwrap_or(Path::new("/")).display().to_string();
        let mut command = self.inside("env");
        command.arg("-C").arg(std::env::current_dir()?);
        command.arg(format!("PATH={folder}:{}", std::env::var("PATH").unwrap_or_default()));
        command.arg(format!("APPLY_HOST=unix://{}", self.installation.socket().display()));
        command.arg(program).args(args);
        Ok(command)
    }

    /// Runs applyctl; a failure says what it said.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        self.person().ctl(args)
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        self.person().json(args)
    }

    /// Builds a set of images (`test`: tiny ones; `voting-app`) and loads it.
    pub fn load(&self, set: &str) -> Result<()> {
        let set = images::set(set).with_context(|| format!("there is no set of images {set}"))?;
        let archive = images::build(set, &workspace().join("target/images"))?;
        self.person().load(&archive.path)
    }

    /// curl, on the network of the machine.
    pub fn fetch(&self, args: &[&str]) -> Result<String> {
        super::installation::fetch(self.inside("curl"), args)
    }

    /// Runs something on a thread of this machine's network.
    pub fn on_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_network(&self.netns(), work)
    }

    /// SIGKILL; says whether there was something to kill. Returns once it is dead.
    pub fn kill(&self, part: Part) -> Result<bool> {
        self.end(part, Signal::KILL)
    }

    /// Ends a part of it by a signal, and waits until it is gone. False: it was not there.
    pub fn end(&self, part: Part, signal: Signal) -> Result<bool> {
        let pids = self.pids(part);
        self.signal(&pids, signal);
        wait_until("the killed to be dead", PATIENCE, || !pids.iter().any(|pid| self.pids(part).contains(pid)))?;
        Ok(!pids.is_empty())
    }

    /// Holds a part where it is until `thaw`.
    pub fn freeze(&self, part: Part) -> Result<()> {
        let pids = self.pids(part);
        self.signal(&pids, Signal::STOP);
        wait_until("it to stand still", PATIENCE, || pids.iter().all(|pid| stands_still(*pid)))
    }

    pub fn thaw(&self, part: Part) {
        self.signal(&self.pids(part), Signal::CONT);
    }

    /// To processes and to those that brought them in from outside: `nsenter` stops itself when what it runs is stopped,
    /// and does not notice that it goes on.
    fn signal(&self, pids: &[u32], signal: Signal) {
        let parent = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| parent(&stat));
        let is_nsenter =
            |pid: &u32| command_line(*pid).is_some_and(|words| words.first().is_some_and(|word| word == "nsenter"));
        let outside = pids.iter().filter_map(parent).filter(is_nsenter).filter(|_| signal == Signal::CONT);
        for pid in pids.iter().copied().chain(outside) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // One that is gone is fine.
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// The processes of a part.
    pub fn pids(&self, part: Part) -> Vec<u32> {
        let is_part = |words: &[String]| {
            let program = words.first().and_then(|word| word.rsplit('/').next()).unwrap_or_default();
            let second = words.get(1).map(String::as_str).unwrap_or_default();
            match part {
                Part::Applyd => program == "applyd" && second != "keep",
                Part::Keep => program == "applyd" && second == "keep",
                Part::Containerd => program == "containerd",
                Part::Etcd => program == "etcd",
            }
        };
        self.processes().into_iter().filter(|(_, words)| is_part(words)).map(|(pid, _)| pid).collect()
    }

    /// All that runs in its process namespace and below, with command lines; none that is only waited for.
    pub fn processes(&self) -> Vec<(u32, Vec<String>)> {
        let own = fs::read_link(format!("/proc/{}/ns/pid", self.init())).ok();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let inside = pids.filter(|pid| own.is_some() && fs::read_link(format!("/proc/{pid}/ns/pid")).ok() == own);
        inside.filter_map(|pid| Some((pid, command_line(pid)?))).collect()
    }

    /// The end of the log of `applyd`, `containerd` or `boot`, for a failure's message.
    pub fn log_end(&self, name: &str) -> String {
        self.installation.log_end(name)
    }

    /// The control group of its containers, in each hierarchy.
    pub fn groups(&self) -> Vec<PathBuf> {
        groups(&self.installation.group)
    }

    fn remove_groups(&self) -> Result<()> {
        wait_until("the control groups to go", PATIENCE, || {
            self.groups().iter().for_each(|group| end_group(group));
            self.groups().is_empty()
        })
    }

    /// The process of its `unshare`, whoever started it.
    fn running(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.folder.join("pid")).ok().and_then(|text| text.trim().parse::<u32>().ok());
        let ours = |pid: &u32| {
            let line = command_line(*pid).unwrap_or_default();
            line.iter().any(|word| word.contains(&format!("{}/", self.folder.display())))
        };
        pid.filter(ours)
    }

    /// All of it, whoever started it.
    pub fn remove(&self) -> Result<()> {
        if let Some(pid) = self.running() {
            // `unshare` takes the first process with it.
            kill(pid)?;
            wait_until("a dead test's machine to go", PATIENCE, || command_line(pid).is_none())?;
        }
        self.remove_groups()?;
        // What was mounted in there is let go a moment after the last process.
        let begun = Instant::now();
        loop {
            match fs::remove_dir_all(&self.folder) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) if begun.elapsed() > PATIENCE => bail!("{}: {error}", self.folder.display()),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let keep = thread::panicking();
        let ended = self.power_cut().and_then(|()| match keep {
            // Logs and disk stay for whoever looks why; the next machine of this name removes them.
            true => Ok(()),
            false => self.remove(),
        });
        if let Err(error) = ended {
            eprintln!("{} is not gone: {error:#}", self.folder.display());
        }
    }
}

/// What does not pass a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What the machine sends.
    From,
    /// What is sent to it.
    To,
}

impl Wire {
    /// Connects the machine with the others, or cuts it off.
    pub fn set(self, connected: bool) -> Result<()> {
        let word = if connected { "up" } else { "down" };
        ip_in(self.hub, &["link", "set", &self.port(), word])
    }

    fn port(self) -> String {
        format!("m{}", self.number)
    }

    /// What passes one way does so no more, or again. The machine's own firewall has no part in it.
    pub fn pass(self, way: Way, passes: bool) -> Result<()> {
        let set = match way {
            Way::From => "unheard",
            Way::To => "deaf",
        };
        let port = self.port();
        let gone = if passes { format!("delete element bridge wires {set} {{ {port} }}\n") } else { String::new() };
        // Added first, so that there is something to delete.
        let rules = format!(
            "add table bridge wires\nadd set bridge wires unheard {{ type ifname; }}\nadd set bridge wires deaf {{ type ifname; }}\n\
             add chain bridge wires in {{ type filter hook prerouting priority 0; }}\nflush chain bridge wires in\n\
             add chain bridge wires out {{ type filter hook postrouting priority 0; }}\nflush chain bridge wires out\n\
             add rule bridge wires in iifname @unheard drop\nadd rule bridge wires out oifname @deaf drop\n\
             add element bridge wires {set} {{ {port} }}\n{gone}"
        );
        let mut nft = Command::new("nsenter");
        nft.args(["-t", &self.hub.to_string(), "-n", "--", "nft", "-f", "-"]);
        let mut nft = nft.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("could not run nft")?;
        nft.stdin.take().context("its input")?.write_all(rules.as_bytes())?;
        let output = nft.wait_with_output()?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// So much and no more is sent to the machine, such as `2mbit`; or as much as there is.
    pub fn narrow(self, rate: Option<&str>) -> Result<()> {
        let port = self.port();
        let mut tc = Command::new("nsenter");
        tc.args(["-t", &self.hub.to_string(), "-n", "--", "tc", "qdisc"]);
        match rate {
            Some(rate) => {
                let limits = ["tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"];
                tc.args(["replace", "dev", &port, "root"]).args(limits);
            }
            None => drop(tc.args(["delete", "dev", &port, "root"])),
        }
        let output = tc.stdin(Stdio::null()).output().context("could not run tc")?;
        // One that is not there need not go.
        ensure!(output.status.success() || rate.is_none(), "tc: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

/// Runs something on a thread in that network namespace.
pub(crate) fn on_network<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let netns = File::open(netns)?;
    let inside = move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// `ip`, in the network namespace of a process.
pub fn ip_in(pid: u32, words: &[&str]) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", "--", "ip"]).args(words).stdin(Stdio::null());
    let output = command.output().context("could not run nsenter")?;
    ensure!(output.status.success(), "ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The one child of a process.
pub fn child_of(pid: u32) -> Option<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.split_whitespace().next()?.parse().ok()
}

/// The control group of this name, in each hierarchy that has it.
pub fn groups(name: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let point = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    };
    table.lines().filter_map(point).map(|point| point.join(name)).filter(|group| group.is_dir()).collect()
}

/// Kills what is in a control group and those below it, and removes what is empty. To be called until it is gone.
pub fn end_group(group: &Path) {
    for below in fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        end_group(&below.path());
    }
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in listed.lines().filter_map(|pid| pid.parse().ok()) {
        let _ = kill(pid);
    }
    let _ = fs::remove_dir(group);
}

/// SIGKILL; one that is gone is fine.
pub fn kill(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
    match kill_process(pid, Signal::KILL) {
        Err(error) if error != rustix::io::Errno::SRCH => Err(error).context("could not kill"),
        _ => Ok(()),
    }
}

/// The parent that a line of /proc/PID/stat names: the second word after the name, which may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The words of a process that runs; none if it does not, or is only waited for.
pub fn command_line(pid: u32) -> Option<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| !line.is_empty())?;
    Some(line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok_and(|stream| stream.shutdown(Shutdown::Both).is_ok())
}
