//! `make demo`: the example application on this machine, on parts of its own, and `make demo-down`: all of it gone.
//!
//! Everything lies below `target/demo`: a containerd with its own root, state and socket, applyd's data. What lies outside
//! of it has names of its own (the control group `apply-demo`, links that begin with `dem`, the nftables table
//! `apply-demo`), by which [`Demo::down`] finds it, whoever was killed when.

#![expect(clippy::disallowed_methods, reason = "the real world is waited for in real time")]

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::images::{self, workspace};
use crate::parts::containerd::processes_below;
use crate::parts::installation::{self, Installation, Person};
use crate::parts::machine::{end_group, groups};

const LINKS: &str = "dem";
pub const BUNDLE: &str = "voting-app";
pub const VOTE: &str = "http://127.0.0.1:5000/";
const RESULT: &str = "http://127.0.0.1:5001/api/result";
/// What takes a second here may take a minute on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// A first process that takes no note of the dead does so at no time.
const NOTED: Duration = Duration::from_secs(5);

/// A demo's things, found by its name.
pub struct Demo {
    name: String,
    folder: PathBuf,
}

/// Brings the application up, votes, kills, scales, and leaves it up.
fn up(demo: &Demo) -> Result<()> {
    step("the images are built");
    let set = images::set(BUNDLE).context("the example has a set of images")?;
    let archive = images::build(set, &workspace().join("target/images"))?;
    step("containerd and applyd are started");
    demo.start_containerd()?;
    demo.start_applyd()?;
    step("the images are loaded");
    demo.person().load(&archive.path)?;

    let example = workspace().join("examples/voting-app");
    let file = example.join("voting-app.dab");
    let with = example.join("voting-app.yaml");
    say(&format!(
        "\n$ applyctl deploy {BUNDLE} examples/voting-app/voting-app.dab --with examples/voting-app/voting-app.yaml"
    ));
    demo.ctl(&["deploy", BUNDLE, &file.to_string_lossy(), "--with", &with.to_string_lossy()])?;

    step("votes are cast");
    let before = wait("the result is shown", || counts().ok())?;
    let served = wait("the page of vote", || fetch(&[VOTE]).ok().filter(|page| !page.is_empty()))?;
    ensure!(served.contains("Cats"), "the page of vote is not the page of vote");
    for vote in ["a", "a", "b"] {
        wait("a vote is taken", || fetch(&["-o", "/dev/null", "-d", &format!("vote={vote}"), VOTE]).ok())?;
    }
    let wanted = (before.0 + 2, before.1 + 1);
    let after = wait("the votes are counted", || counts().ok().filter(|counts| *counts == wanted))?;
    say(&format!("  {} for cats, {} for dogs, counted by {RESULT}", after.0, after.1));

    step("a container is killed, and comes back");
    let (task, pid, restarts) = demo.running("voting-app-vote")?;
    say(&format!("  kill -9 {pid}   # {task}"));
    kill_process(Pid::from_raw(pid).context("a pid")?, Signal::KILL)?;
    let begun = Instant::now();
    wait("it comes back", || {
        let found = demo.task(&task).ok()?;
        let again = found["status"]["restarts"].as_u64().unwrap_or(0) > restarts;
        (again && found["status"]["state"] == "Running").then_some(())
    })?;
    say(&format!("  back after {:.1} s", begun.elapsed().as_secs_f64()));

    say("\n$ applyctl scale voting-app-vote=6");
    demo.ctl(&["scale", "voting-app-vote=6"])?;
    say("\n$ applyctl ps");
    demo.ctl(&["ps"])?;
    let host = format!("unix://{}", demo.person().socket.display());
    say(&format!(
        "\nThe application is up: vote at http://localhost:5000, the result at http://localhost:5001.\nNext:\n\n  \
         export APPLY_HOST={host}\n  export PATH={}:$PATH\n  applyctl ps\n  applyctl logs -f voting-app-worker\n  \
         applyctl describe bundle voting-app\n  applyctl scale voting-app-vote=3\n  make demo-down",
        installation::program("applyctl")?.parent().unwrap_or(Path::new("")).display()
    ));
    Ok(())
}

fn down(demo: &Demo) -> Result<()> {
    let processes = demo.processes();
    // Whoever starts things first. A command that waits for the demo would wait for its return.
    demo.end_programs(&["applyctl"])?;
    demo.end_programs(&["applyd"])?;
    demo.end_programs(&["containerd"])?;
    demo.end_programs(&["containerd-shim", "runc", "applyd"])?;
    demo.end_groups()?;
    demo.end_mounts()?;
    demo.end_sockets();
    for link in links()? {
        let _ = Command::new("ip").args(["link", "delete", &link]).stderr(Stdio::null()).status();
    }
    let _ = Command::new("nft").args(["delete", "table", "inet", &demo.group()]).stderr(Stdio::null()).status();
    match fs::remove_dir_all(&demo.folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => bail!("{}: {error}", demo.folder.display()),
        _ => {}
    }
    let left = demo.remains()?;
    ensure!(left.is_empty(), "something is left: {left:?}");
    // Dead they are; until this machine's first process has taken note, an observer still sees their names.
    let begun = Instant::now();
    while processes.iter().any(|pid| test_kill_process(*pid).is_ok()) && begun.elapsed() < NOTED {
        thread::sleep(POLL);
    }
    say("nothing of the demo is left");
    Ok(())
}

impl Demo {
    /// The one of `make demo` is called `demo`. Only one can be up on one network: the ports are the example's.
    pub fn named(name: &str) -> Demo {
        Demo { name: name.to_owned(), folder: workspace().join("target").join(name) }
    }

    /// Brings the application up, votes, kills, scales, and leaves it up. What is up already stays.
    pub fn up(&self) -> Result<()> {
        up(self)
    }

    /// Takes everything away; nothing to take away is fine.
    pub fn down(&self) -> Result<()> {
        down(self)
    }

    /// Its control group, and its firewall table.
    pub fn group(&self) -> String {
        format!("apply-{}", self.name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn installation(&self) -> Installation {
        Installation {
            disk: self.folder.clone(),
            run: self.path("run"),
            group: self.group(),
            links: LINKS.to_owned(),
            table: self.group(),
            node: self.name.clone(),
            runtime: None,
            containerd: None,
            // Nobody joins it, and somebody's own applyd may have the usual port.
            besides: ["--listen", "127.0.0.1:0"].map(str::to_owned).into(),
        }
    }

    pub fn person(&self) -> Person {
        Person { socket: self.installation().socket() }
    }

    fn start_containerd(&self) -> Result<()> {
        let socket = self.installation().containerd_socket();
        if !self.programs(&["containerd"]).is_empty() && UnixStream::connect(&socket).is_ok() {
            return Ok(());
        }
        self.end_programs(&["containerd"])?;
        self.spawn("containerd", &self.installation().containerd()?)?;
        wait("containerd answers", || UnixStream::connect(&socket).ok())?;
        Ok(())
    }

    fn start_applyd(&self) -> Result<()> {
        // The programs may be newer than what runs; containers do not mind.
        self.end_programs(&["applyd"])?;
        self.spawn("applyd", &self.installation().applyd()?)?;
        wait("applyd answers", || self.person().json(&["version"]).ok())
            .with_context(|| self.installation().log_end("applyd"))?;
        say("\n$ applyctl init");
        self.ctl(&["init"])?;
        wait("the node is ready", || self.person().is_ready(&self.name).then_some(()))
            .with_context(|| self.installation().log_end("applyd"))
    }

    fn spawn(&self, name: &str, words: &[String]) -> Result<()> {
        let (program, args) = words.split_first().context("a program")?;
        let log = self.installation().log(name)?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn().with_context(|| format!("could not start {program}"))?;
        Ok(())
    }

    /// As a person would, who sees what it prints.
    fn ctl(&self, args: &[&str]) -> Result<()> {
        let status = self.person().applyctl(args)?.status()?;
        ensure!(status.success(), "applyctl {} ended with {status}", args.join(" "));
        Ok(())
    }

    fn task(&self, name: &str) -> Result<Value> {
        let found = self.person().json(&["get", "task", name])?;
        // One object, or a list of it.
        Ok(found["items"].get(0).cloned().unwrap_or(found))
    }

    /// A running task of a service: its name, the pid of its container, how often it was restarted.
    fn running(&self, service: &str) -> Result<(String, i32, u64)> {
        let tasks = self.person().list("task")?;
        let found = tasks.iter().find(|task| task["spec"]["service"] == service && task["status"]["pid"].is_u64());
        let task = found.with_context(|| format!("no task of {service} runs"))?;
        let name = task["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let pid = task["status"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("a pid")?;
        Ok((name, pid, task["status"]["restarts"].as_u64().unwrap_or(0)))
    }

    /// Processes whose program is named so and whose command line names something of the demo; a command has that in its
    /// environment.
    fn programs(&self, names: &[&str]) -> Vec<Pid> {
        let below = format!("{}/", self.folder.display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
            else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let program = words.first().map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default();
            let program = program.rsplit('/').next().unwrap_or_default();
            let named = names.iter().any(|name| program == *name || (program.starts_with(name) && name.contains('-')));
            let of_demo = |word: &[u8]| String::from_utf8_lossy(word).contains(&below);
            let environment = || fs::read(entry.path().join("environ")).unwrap_or_default();
            let told = |variables: &[u8]| {
                variables.split(|byte| *byte == 0).any(|word| word.starts_with(b"APPLY_HOST=") && of_demo(word))
            };
            let ours = match program {
                "applyctl" => told(&environment()),
                _ => words.iter().skip(1).any(|word| of_demo(word)),
            };
            if named && ours {
                found.push(pid);
            }
        }
        found
    }

    /// All that [`down`] ends.
    fn processes(&self) -> Vec<Pid> {
        let mut found = self.programs(&["applyctl", "applyd", "containerd", "containerd-shim", "runc"]);
        let contained = groups(&self.group()).into_iter().flat_map(|group| processes_below(&group));
        found.extend(contained.filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)));
        found
    }

    fn end_programs(&self, names: &[&str]) -> Result<()> {
        wait(&format!("{} ends", names.join(", ")), || {
            let living: Vec<Pid> = self.programs(names);
            for pid in &living {
                let _ = kill_process(*pid, Signal::KILL);
            }
            living.is_empty().then_some(())
        })
    }

    /// Shims listen outside of the demo's folder, at places that only files in it tell; a killed one leaves its socket.
    fn end_sockets(&self) {
        let tasks = self.installation().containerd_state().join("io.containerd.runtime.v2.task");
        let below = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        for bundle in below(tasks).flat_map(below) {
            if let Ok(address) = fs::read_to_string(bundle.join("address")) {
                let _ = fs::remove_file(address.trim().trim_start_matches("unix://"));
            }
        }
        // Another containerd's, if it has one, is not empty.
        for folder in ["/run/containerd/s", "/run/containerd"] {
            let _ = fs::remove_dir(folder);
        }
    }

    fn end_groups(&self) -> Result<()> {
        wait("the control groups end", || {
            for group in groups(&self.group()) {
                end_group(&group);
            }
            groups(&self.group()).is_empty().then_some(())
        })
    }

    fn mounts(&self) -> Result<Vec<PathBuf>> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(&self.folder)).collect();
        below.reverse();
        Ok(below)
    }

    fn end_mounts(&self) -> Result<()> {
        wait("the mounts go", || {
            let mounts = self.mounts().ok()?;
            for point in &mounts {
                let _ = unmount(point, UnmountFlags::DETACH);
            }
            mounts.is_empty().then_some(())
        })
    }

    /// What an outsider still sees.
    fn remains(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> = links()?.into_iter().map(|link| format!("link {link}")).collect();
        left.extend(self.mounts()?.into_iter().map(|mount| format!("mount {}", mount.display())));
        left.extend(groups(&self.group()).into_iter().map(|group| format!("control group {}", group.display())));
        let tables = Command::new("nft").args(["list", "tables"]).output()?;
        let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
        left.extend(tables.lines().filter(|table| table.ends_with(&self.group())).map(str::to_owned));
        Ok(left)
    }
}

/// Of the network that this process is on, which need not be the one that `/sys` shows.
fn links() -> Result<Vec<String>> {
    let output = Command::new("ip").args(["-o", "link"]).output().context("could not run ip")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    // `3: dems0@dems1: <BROADCAST,…`
    let names = listed.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next().map(str::to_owned));
    Ok(names.filter(|name| name.starts_with(LINKS)).collect())
}

fn counts() -> Result<(u64, u64)> {
    let result: Value = serde_json::from_str(&fetch(&[RESULT])?)?;
    let count = |name: &str| result[name].as_u64().with_context(|| format!("no count of {name}"));
    Ok((count("a")?, count("b")?))
}

fn fetch(args: &[&str]) -> Result<String> {
    installation::fetch(Command::new("curl"), args)
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(begun.elapsed() < PATIENCE, "it never came to be: {what}");
        thread::sleep(POLL);
    }
}

fn step(what: &str) {
    say(&format!("• {what}"));
}

fn say(text: &str) {
    println!("{text}");
    let _ = io::stdout().flush();
}
