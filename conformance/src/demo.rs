//! `make demo`: three machines on this one become a cluster, run a service and lose one of them; then the example
//! application from its one file. And `make demo-down`: all of it gone.
//!
//! The machines are a [`Lab`]: whatever they do stays in namespaces of their own, and goes with them. This machine reaches
//! them by one link, whose other end is in the lab, so that a browser here opens `http://10.99.0.1:5000`.

#![expect(clippy::disallowed_methods, reason = "the real world is waited for in real time")]

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::images::{self, workspace};
use crate::lab::Lab;
use crate::parts::installation;
use crate::parts::machine::{Machine, ip_in};

pub const BUNDLE: &str = "voting-app";
pub const MACHINES: u8 = 3;
/// The link of this machine into the lab, and its address there.
const LINK: &str = "apdemo";
const HERE: &str = "10.99.0.253/24";
const NETWORK: &str = "10.99.0.0/24";
/// Of the service of the first act.
const PORT: u16 = 8000;
/// What takes a second here may take a minute on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// A demo's things, found by its name.
pub struct Demo {
    name: String,
}

impl Demo {
    /// The one of `make demo` is called `demo`. Only one can be up on one network: its addresses are the lab's.
    pub fn named(name: &str) -> Demo {
        Demo { name: name.to_owned() }
    }

    /// Shows all of it, and leaves it up. One that is up already goes first.
    pub fn up(&self) -> Result<()> {
        let set = images::set(BUNDLE).context("the example has a set of images")?;
        step("the images are built");
        images::build(set, &workspace().join("target/images"))?;
        step("three machines are started, each with a containerd and an applyd of its own");
        if Lab::found(&self.name).is_ok() {
            say("  those of the demo before, and all that was made on them, are taken away first");
        }
        Lab::remove(&self.name)?;
        refuse_foreign_network()?;
        let mut lab = Lab::start(&self.name, MACHINES)?;
        connect(&lab)?;
        form(&lab)?;
        step("the images are loaded");
        for machine in lab.machines() {
            machine.load(BUNDLE)?;
        }
        keynote(&mut lab)?;
        application(&lab)?;
        farewell(&self.name, &lab)?;
        lab.leave();
        Ok(())
    }

    /// Takes everything away; nothing to take away is fine.
    pub fn down(&self) -> Result<()> {
        Lab::remove(&self.name)?;
        // Gone with the lab's end of it, unless the lab never came to be.
        let _ = Command::new("ip").args(["link", "delete", LINK]).stderr(std::process::Stdio::null()).status();
        say("nothing of the demo is left");
        Ok(())
    }

    /// The lab that is up.
    pub fn lab(&self) -> Result<Lab> {
        Lab::found(&self.name)
    }
}

/// The first machine founds a cluster; the others join it with what it has printed.
fn form(lab: &Lab) -> Result<()> {
    let first = lab.machine(1)?;
    let begun = Instant::now();
    say("\nn1$ applyctl init");
    let output = first.person().applyctl(&["init"])?.output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    print!("{said}");
    let token = said.split_whitespace().find(|word| word.starts_with("APPLY-1-")).context("init prints a token")?;
    let address = first.address().context("an address")?;
    for (number, machine) in lab.machines().iter().enumerate().skip(1) {
        say(&format!("\nn{}$ applyctl join {address} {}…", number + 1, token.get(..24).unwrap_or(token)));
        person(machine, &["join", &address, token])?;
    }
    let all_ready = || {
        let ready = |machine: &Machine| first.person().is_ready(&machine.installation().node);
        lab.machines().iter().all(ready).then_some(())
    };
    wait("all machines are ready", all_ready)?;
    say(&format!("  a cluster of {MACHINES} after {:.2} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// A service with a port that every machine answers, more of it, and a machine that is switched off.
fn keynote(lab: &mut Lab) -> Result<()> {
    let first = lab.machine(1)?;
    let publish = format!("{PORT}:80");
    say(&format!("\nn1$ applyctl service create --name web --replicas 2 -p {publish} example/vote:1"));
    person(first, &["service", "create", "--name", "web", "--replicas", "2", "-p", &publish, "example/vote:1"])?;
    step("each machine answers at the port");
    for machine in lab.machines() {
        let address = machine.address().context("an address")?;
        let page = wait("the page comes", || served_by(&address, PORT).ok())?;
        say(&format!("  http://{address}:{PORT}  served by container {page}"));
    }
    say("\nn1$ applyctl scale web=6");
    person(first, &["scale", "web=6"])?;
    step("a page that is loaded again shows each container in turn");
    let seen = rotation(&first.address().context("an address")?)?;
    say(&format!("  {}", seen.iter().cloned().collect::<Vec<_>>().join("  ")));

    step("n3 is switched off, with two tasks on it");
    let begun = Instant::now();
    lab.power_off(MACHINES)?;
    let first = lab.machine(1)?;
    let gone = wait("six run on two machines", || {
        let nodes = first.person().nodes_of("web").ok()?;
        (nodes.len() == 6 && !nodes.contains(&"n3".to_owned())).then(|| begun.elapsed())
    })?;
    let seen = rotation(&first.address().context("an address")?)?;
    say(&format!("  six again after {:.1} s, {} containers answer", gone.as_secs_f64(), seen.len()));
    say("\nn1$ applyctl get nodes");
    person(first, &["get", "nodes"])?;
    say("\nn1$ applyctl ps");
    person(first, &["ps"])?;
    step("n3 is switched on again");
    lab.power_on(MACHINES)?;
    let first = lab.machine(1)?;
    wait("n3 is ready", || first.person().is_ready("n3").then_some(()))?;
    say("\nn1$ applyctl service rm web");
    person(first, &["service", "rm", "web", "--yes"])
}

/// The example from its one file: deployed, voted in, healed, scaled.
fn application(lab: &Lab) -> Result<()> {
    let first = lab.machine(1)?;
    let example = workspace().join("examples/voting-app");
    let (file, with) = (example.join("voting-app.dab"), example.join("voting-app.yaml"));
    say(&format!(
        "\nn1$ applyctl deploy {BUNDLE} examples/voting-app/voting-app.dab --with examples/voting-app/voting-app.yaml"
    ));
    person(first, &["deploy", BUNDLE, &file.to_string_lossy(), "--with", &with.to_string_lossy()])?;

    step("votes are cast, one on each machine");
    let before = wait("the result is shown", || counts(lab).ok())?;
    let votes = ["a", "a", "b"];
    for (machine, vote) in lab.machines().iter().zip(votes) {
        let page = vote_page(machine)?;
        wait("a vote is taken", || fetch(&["-o", "/dev/null", "-d", &format!("vote={vote}"), &page]).ok())?;
    }
    let wanted = (before.0 + 2, before.1 + 1);
    let after = wait("the votes are counted", || counts(lab).ok().filter(|counts| *counts == wanted))?;
    say(&format!("  {} for cats, {} for dogs, counted by {}", after.0, after.1, result_page(first)?));

    step("a container is killed, and comes back");
    let (task, node, restarts) = a_running(first, "voting-app-vote")?;
    let machine = lab.machines().iter().find(|machine| machine.installation().node == node).context("its machine")?;
    // As the machine itself knows the process.
    let pid = task["status"]["pid"].as_i64().context("a pid")?.to_string();
    let name = task["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    say(&format!("  {node}$ kill -9 {pid}   # {name}"));
    let begun = Instant::now();
    ensure!(machine.inside("kill").args(["-9", &pid]).status()?.success(), "could not kill {pid}");
    wait("it comes back", || {
        let found = first.json(&["get", "task", &name]).ok()?;
        let found = found["items"].get(0).cloned().unwrap_or(found);
        let again = found["status"]["restarts"].as_u64().unwrap_or(0) > restarts;
        (again && found["status"]["state"] == "Running").then_some(())
    })?;
    say(&format!("  back after {:.1} s", begun.elapsed().as_secs_f64()));

    say("\nn1$ applyctl scale voting-app-vote=6");
    person(first, &["scale", "voting-app-vote=6"])?;
    say("\nn1$ applyctl ps");
    person(first, &["ps"])
}

fn farewell(name: &str, lab: &Lab) -> Result<()> {
    let first = lab.machine(1)?;
    let programs = installation::program("applyctl")?;
    say(&format!(
        "\nThe application is up, on every machine: vote at {}, the result at {}.\nNext:\n\n  export APPLY_HOST=unix://{}\n  \
         export PATH={}:$PATH\n  applyctl ps\n  applyctl logs -f voting-app-worker\n  applyctl describe bundle voting-app\n  \
         applyctl scale voting-app-vote=3\n  conformance lab --name {name} kill 2    # its power; and: boot 2\n  make demo-down\n\n\
         These machines have no way to the internet: an image that is not in `applyctl image ls` has to be imported on each.",
        vote_page(first)?,
        result_page(first)?,
        first.person().socket.display(),
        programs.parent().unwrap_or(Path::new("")).display()
    ));
    Ok(())
}

/// Whoever has these addresses already would lose them for as long as the demo is up.
fn refuse_foreign_network() -> Result<()> {
    let routes =
        Command::new("ip").args(["-4", "route", "show", "root", NETWORK]).output().context("could not run ip")?;
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    let foreign = routes.lines().find(|line| !line.contains(LINK));
    ensure!(foreign.is_none(), "{NETWORK} is in use on this machine already, by: {}", foreign.unwrap_or_default());
    Ok(())
}

/// This machine's way into the lab; it goes with it.
fn connect(lab: &Lab) -> Result<()> {
    let hub = lab.hub().to_string();
    let ip = |words: &str| {
        let done = Command::new("ip").args(words.split(' ')).status().context("could not run ip")?;
        ensure!(done.success(), "ip {words}: {done}");
        Ok(())
    };
    ip(&format!("link add {LINK} type veth peer name here netns {hub}"))?;
    ip_in(lab.hub(), &["link", "set", "here", "master", "br0", "up"])?;
    ip(&format!("address add {HERE} dev {LINK}"))?;
    ip(&format!("link set {LINK} up"))
}

/// As a person would, who sees what it prints.
fn person(machine: &Machine, args: &[&str]) -> Result<()> {
    let status = machine.person().applyctl(args)?.status()?;
    ensure!(status.success(), "applyctl {} ended with {status}", args.join(" "));
    Ok(())
}

/// Which container has served the page of `vote`.
fn served_by(address: &str, port: u16) -> Result<String> {
    let page = fetch(&[&format!("http://{address}:{port}/")])?;
    let (_, rest) = page.split_once("id=\"served-by\">").context("the page does not say who served it")?;
    Ok(rest.split('<').next().unwrap_or_default().to_owned())
}

/// Until six containers have answered, each in its turn.
fn rotation(address: &str) -> Result<BTreeSet<String>> {
    wait("six containers answer in turn", || {
        let seen: BTreeSet<String> = (0..6).filter_map(|_| served_by(address, PORT).ok()).collect();
        (seen.len() == 6).then_some(seen)
    })
}

/// A running task of a service, its node, and how often it was restarted.
fn a_running(manager: &Machine, service: &str) -> Result<(Value, String, u64)> {
    let tasks = manager.person().list("task")?;
    let found = tasks.into_iter().find(|task| {
        task["spec"]["service"] == service && task["status"]["state"] == "Running" && task["status"]["pid"].is_u64()
    });
    let task = found.with_context(|| format!("no task of {service} runs"))?;
    let node = task["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    let restarts = task["status"]["restarts"].as_u64().unwrap_or(0);
    Ok((task, node, restarts))
}

/// On a machine, as others reach it.
pub fn vote_page(machine: &Machine) -> Result<String> {
    Ok(format!("http://{}:5000/", machine.address().context("an address")?))
}

pub fn result_page(machine: &Machine) -> Result<String> {
    Ok(format!("http://{}:5001/", machine.address().context("an address")?))
}

fn counts(lab: &Lab) -> Result<(u64, u64)> {
    let result: Value = serde_json::from_str(&fetch(&[&format!("{}api/result", result_page(lab.machine(2)?)?)])?)?;
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
