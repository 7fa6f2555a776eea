//! The lab: several machines on this one, joined by a bridge in a network namespace of its own, the hub. Each is a
//! [`Machine`]: its own containerd and applyd, a `/run` in memory, a disk that outlives its power.
//!
//! The hub is where somebody outside of the cluster sits: 10.99.0.254. What a lab leaves is found by its name and removed,
//! also after whoever made it was killed.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::images::workspace;
use crate::parts::machine::{Machine, Options, PATIENCE, Way, Wire, child_of, ip_in, on_network};
use crate::parts::process::wait_until;

/// More than anybody's two processors bear.
pub const MACHINES_MAX: u8 = 16;

/// A lab; all of it removed when dropped.
pub struct Lab {
    hub: Hub,
    /// By number, from 1 on.
    machines: Vec<Machine>,
    lock: File,
}

/// The bridge, in its namespace.
struct Hub {
    folder: PathBuf,
    /// `unshare`, and the first process in the namespace.
    cord: u32,
    init: u32,
}

impl Lab {
    /// So many machines with power, containerd and applyd; in no cluster yet. `name`: a few lower-case letters; two of one
    /// name take turns.
    pub fn start(name: &str, machines: u8) -> Result<Lab> {
        ensure!((1..=MACHINES_MAX).contains(&machines), "1 to {MACHINES_MAX} machines are possible");
        let lock = lock(name)?;
        Hub::find(name).end()?;
        for number in 1..=MACHINES_MAX {
            // Of a larger one that was killed.
            if Machine::exists(&machine_name(name, number)) {
                Machine::new(&machine_name(name, number), &Options::default())?;
            }
        }
        let hub = Hub::start(name)?;
        let mut lab = Lab { hub, machines: Vec::new(), lock };
        for number in 1..=machines {
            let mut machine = Machine::new(&machine_name(name, number), &lab.options(number))?;
            machine.boot()?;
            lab.machines.push(machine);
        }
        for machine in &lab.machines {
            machine.start_containerd()?;
            machine.begin_applyd()?;
        }
        for machine in &lab.machines {
            let person = machine.person();
            wait_until("applyd to answer", PATIENCE, || person.json(&["version"]).is_ok())
                .with_context(|| machine.log_end("applyd"))?;
        }
        Ok(lab)
    }

    /// The lab that another process has left.
    pub fn found(name: &str) -> Result<Lab> {
        let lock = lock(name)?;
        let hub = Hub::find(name);
        ensure!(hub.init > 0, "there is no lab {name}; this makes one: conformance lab --name {name} up 3");
        let mut lab = Lab { hub, machines: Vec::new(), lock };
        for number in (1..=MACHINES_MAX).take_while(|number| Machine::exists(&machine_name(name, *number))) {
            lab.machines.push(Machine::found(&machine_name(name, number), &lab.options(number))?);
        }
        Ok(lab)
    }

    /// Leaves it up, for whoever finds it.
    pub fn leave(mut self) {
        self.machines.drain(..).for_each(Machine::leave);
        let _ = self.lock.unlock();
        std::mem::forget(self);
    }

    /// Takes all of it away; nothing to take away is fine.
    pub fn remove(name: &str) -> Result<()> {
        let _lock = lock(name)?;
        for number in 1..=MACHINES_MAX {
            if Machine::exists(&machine_name(name, number)) {
                drop(Machine::new(&machine_name(name, number), &Options::default())?);
            }
        }
        Hub::find(name).end()?;
        end_commands()
    }

    fn options(&self, number: u8) -> Options {
        let wire = Some(Wire { hub: self.hub.init, number });
        Options { node: Some(format!("n{number}")), wire, ..Options::default() }
    }

    /// A process in the network namespace of the hub.
    pub fn hub(&self) -> u32 {
        self.hub.init
    }

    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// By its number, from 1 on.
    pub fn machine(&self, number: u8) -> Result<&Machine> {
        let found = usize::from(number).checked_sub(1).and_then(|index| self.machines.get(index));
        found.with_context(|| format!("there is no machine {number}; there are {}", self.machines.len()))
    }

    pub fn machine_mut(&mut self, number: u8) -> Result<&mut Machine> {
        let count = self.machines.len();
        let found = usize::from(number).checked_sub(1).and_then(|index| self.machines.get_mut(index));
        found.with_context(|| format!("there is no machine {number}; there are {count}"))
    }

    /// Cuts a machine off from all others, or connects it again.
    pub fn connect(&self, number: u8, connected: bool) -> Result<()> {
        self.wire(number)?.set(connected)
    }

    /// Lets nothing pass one way, or again.
    pub fn pass(&self, number: u8, way: Way, passes: bool) -> Result<()> {
        self.wire(number)?.pass(way, passes)
    }

    /// So much and no more is sent to a machine, such as `2mbit`; or as much as there is.
    pub fn narrow(&self, number: u8, rate: Option<&str>) -> Result<()> {
        self.wire(number)?.narrow(rate)
    }

    /// A machine's network is whole again, whatever was done to it.
    pub fn heal(&self, number: u8) -> Result<()> {
        let wire = self.wire(number)?;
        wire.set(true)?;
        wire.pass(Way::From, true)?;
        wire.pass(Way::To, true)?;
        wire.narrow(None)
    }

    fn wire(&self, number: u8) -> Result<Wire> {
        self.machine(number)?.wire().context("every machine of a lab has a wire")
    }

    /// Power off: everything of the machine dies at once, its disk stays.
    pub fn power_off(&mut self, number: u8) -> Result<()> {
        self.machine_mut(number)?.power_cut()
    }

    /// Power on: containerd and applyd start as they would at a boot. Returns at once.
    pub fn power_on(&mut self, number: u8) -> Result<()> {
        let machine = self.machine_mut(number)?;
        machine.boot()?;
        machine.start_containerd()?;
        machine.begin_applyd()
    }

    /// The first machine founds a cluster, the others join it as workers.
    pub fn form(&self) -> Result<()> {
        self.form_with(&[])
    }

    /// The same, of which `init` is told more.
    pub fn form_with(&self, words: &[&str]) -> Result<()> {
        let first = self.machine(1)?;
        first.ctl(&[&["init", "--title", "brave-otter"], words].concat())?;
        let token = first.json(&["token", "create"])?["token"].as_str().context("a token")?.to_owned();
        let address = first.address().context("an address")?;
        for machine in &self.machines[1..] {
            machine.ctl(&["join", &address, &token])?;
        }
        let all_ready = || self.machines.iter().all(|machine| first.person().is_ready(&machine.installation().node));
        wait_until("all machines to be ready", PATIENCE, all_ready).with_context(|| first.log_end("applyd"))
    }

    /// Runs something on a thread outside of the cluster, where all machines are reached.
    pub fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_network(&PathBuf::from(format!("/proc/{}/ns/net", self.hub.init)), work)
    }

    /// curl, from outside of the cluster.
    pub fn fetch(&self, args: &[&str]) -> Result<String> {
        let mut curl = Command::new("nsenter");
        curl.args(["-t", &self.hub.init.to_string(), "-n", "--", "curl"]);
        crate::parts::installation::fetch(curl, args)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.machines.clear();
        if let Err(error) = self.hub.end() {
            eprintln!("the hub of the lab is not gone: {error:#}");
        }
    }
}

/// Ends commands of ours that were said to a machine which is gone: one that watches would wait for its return.
fn end_commands() -> Result<()> {
    let own = crate::parts::installation::program("applyctl")?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        if fs::read_link(entry.path().join("exe")).is_ok_and(|program| program == own) {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let told = environment.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"APPLY_HOST=unix://"));
            let socket = String::from_utf8_lossy(told.unwrap_or_default()).into_owned();
            // `/proc/PID/root/…`, PID being the first process of the machine, or the name of that among what is the machine's.
            let is_ours =
                socket.starts_with("/proc/") || PathBuf::from(&socket).starts_with(workspace().join("target"));
            let named = fs::read_link(&socket).unwrap_or_else(|_| socket.clone().into());
            let machine: PathBuf = named.components().take(3).collect();
            if is_ours && !(named.starts_with("/proc/") && machine.exists()) {
                // One that is gone is fine.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
    Ok(())
}

fn machine_name(lab: &str, number: u8) -> String {
    format!("{lab}-n{number}")
}

fn lock(name: &str) -> Result<File> {
    let folder = workspace().join("target/labs");
    fs::create_dir_all(&folder)?;
    let file = File::create(folder.join(format!("{name}.lock")))?;
    file.lock()?;
    Ok(file)
}

impl Hub {
    fn folder(name: &str) -> PathBuf {
        workspace().join("target/labs").join(name)
    }

    fn start(name: &str) -> Result<Hub> {
        let folder = Hub::folder(name);
        fs::create_dir_all(&folder)?;
        let up = folder.join("up");
        let _ = fs::remove_file(&up);
        let inside = format!("ip link set lo up && : > {} && sleep infinity & wait", up.display());
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--pid", "--fork", "--kill-child", "sh", "-c", &inside]);
        unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = unshare.spawn().context("could not start unshare")?;
        let cord = child.id();
        fs::write(folder.join("pid"), cord.to_string())?;
        std::thread::spawn(move || child.wait());
        let mut init = 0;
        wait_until("the hub of the lab", PATIENCE, || {
            init = child_of(cord).unwrap_or(0);
            init > 0 && up.exists()
        })?;
        let hub = Hub { folder, cord, init };
        ip_in(init, &["link", "add", "br0", "type", "bridge"])?;
        ip_in(init, &["address", "add", "10.99.0.254/24", "dev", "br0"])?;
        ip_in(init, &["address", "add", "fd99::fe/64", "dev", "br0", "nodad"])?;
        ip_in(init, &["link", "set", "br0", "up"])?;
        Ok(hub)
    }

    /// Of whoever made it; with no process where there is none.
    fn find(name: &str) -> Hub {
        let folder = Hub::folder(name);
        let cord = fs::read_to_string(folder.join("pid")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let line = fs::read(format!("/proc/{cord}/cmdline")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&line).contains(&format!("{}/", folder.display()));
        let cord = if ours { cord } else { 0 };
        Hub { folder, cord, init: child_of(cord).unwrap_or(0) }
    }

    fn end(&self) -> Result<()> {
        if let Some(pid) = Pid::from_raw(i32::try_from(self.cord)?) {
            // One that is gone is fine.
            let _ = kill_process(pid, Signal::KILL);
            wait_until("the hub of the lab to go", PATIENCE, || {
                fs::read(format!("/proc/{}/cmdline", self.cord)).map_or(true, |line| line.is_empty())
            })?;
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}
