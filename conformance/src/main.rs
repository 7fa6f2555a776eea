//! `conformance`: what is promised, shown.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use conformance::lab::Lab;
use conformance::parts::debian;
use conformance::parts::machine::Way;
use conformance::{bench, browser, demo, images, picture, prove};

/// Suites over real parts, and what they run on.
///
/// Examples:
///   conformance images build voting-app
///   conformance images list
#[derive(Parser)]
#[command(name = "conformance", version, verbatim_doc_comment)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes container images, without Docker and without a registry
    #[command(subcommand)]
    Images(Images),
    /// Three machines on this one and the voting application on them: up, or down without a trace
    Demo {
        /// Another than `make demo`'s
        #[arg(long, default_value = "demo")]
        name: String,
        #[command(subcommand)]
        way: Demo,
    },
    /// Machines to play with, on this one
    #[command(before_help = "  conformance lab up 3\n  conformance lab exec 1 applyctl init\n  conformance lab kill 3")]
    Lab {
        /// Another than `make lab`'s: that of `make demo` is called demo
        #[arg(long, global = true, default_value = "lab", env = "CONFORMANCE_LAB")]
        name: String,
        #[command(subcommand)]
        command: LabCommand,
    },
    /// The pictures of the README, from a real run; the machine that they are made on is its own
    Picture {
        #[arg(long, value_name = "FOLDER", default_value_os_t = images::workspace().join("docs/pictures"))]
        out: PathBuf,
    },
    /// The folder of a containerd of another Debian, unpacked below target/: to be put in front of PATH
    Containerd {
        /// Debian's name of the release: trixie has 1.7, forky 2.1
        suite: String,
    },
    /// Measures, in a release build: a table, and target/bench/NAME.json
    #[command(subcommand)]
    Bench(Bench),
    /// Votes in the voting application as a person would, in headless Chromium
    Browser {
        /// The page of `vote`
        vote: String,
        /// The page of `result`
        result: String,
        /// The network namespace that both are reached from
        #[arg(long, value_name = "PATH")]
        netns: Option<PathBuf>,
        /// Where the pictures of both pages go
        #[arg(long, value_name = "FOLDER", default_value_os_t = images::workspace().join("target/browser"))]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
enum LabCommand {
    /// So many machines with containerd and applyd, in no cluster yet; those of before are gone
    Up {
        #[arg(default_value_t = 3)]
        machines: u8,
    },
    /// All of it gone
    Down,
    /// What each machine is
    Status,
    /// Runs something on a machine: exec 2 applyctl get nodes
    #[command(trailing_var_arg = true)]
    Exec {
        machine: u8,
        #[arg(required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Pulls the plug of a machine's network; or lets nothing pass one way
    Cut {
        machine: u8,
        /// What it sends is lost, or what is sent to it
        #[arg(long, value_name = "from|to")]
        only: Option<OneWay>,
    },
    /// Makes its network narrow: slow 2 1mbit
    Slow { machine: u8, rate: String },
    /// Its network is whole again
    Heal { machine: u8 },
    /// Cuts the power of a machine: everything on it dies at once, its disk stays
    Kill { machine: u8 },
    /// Gives it power again
    Boot { machine: u8 },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OneWay {
    From,
    To,
}

#[derive(Subcommand)]
enum Demo {
    Up,
    Down,
    /// Up twice, voted in by a browser, removed, killed half-way, down: nothing may be left. On an empty machine
    Prove,
}

#[derive(Subcommand)]
enum Bench {
    /// From `applyctl deploy` to all running, beside the bare work of containerd and its runtime
    Deploy {
        /// The OCI runtime: runc, crun; several are measured one after the other
        #[arg(long = "runtime", default_values = ["runc", "crun"])]
        runtimes: Vec<String>,
        /// Tasks of a deployment
        #[arg(long = "tasks", default_values_t = [6, 30, 100])]
        tasks: Vec<usize>,
    },
    /// Three machines: how long they take to form a cluster, to deploy, to scale, and to be whole again when one goes
    Cluster {
        /// How often each is measured
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// A program that measures another orchestrator in the same run
        #[arg(long, value_name = "PROGRAM")]
        beside: Option<PathBuf>,
    },
    /// A manager of a thousand machines that do nothing: until all are ready, and what it uses then
    Agents {
        #[arg(long, default_value_t = 1_000)]
        agents: usize,
    },
    /// A task on another machine, encrypted and in the clear, beside a program that is reached itself
    Tunnel,
    /// One changed task among 10,000 services, from what is wanted to the kernel
    Mesh,
    /// Commits, watches, size and opening of the stores, beside what the disk does without them
    Store,
    /// Tasks that wait and nodes that are ready: 10,000 on 1,000, and 100,000 on 5,000
    Scheduler,
    /// The library by itself: queue, runs, cache, lists, over the store in memory
    Library,
}

#[derive(Subcommand)]
enum Images {
    /// Names the sets of images
    List,
    /// Builds sets of images, each into one OCI archive
    Build {
        /// Which; all of them when none is named
        sets: Vec<String>,
        /// Where the archives and everything worth keeping for the next build go
        #[arg(long, value_name = "FOLDER", default_value_os_t = images::workspace().join("target/images"))]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // Without the way that the program took to it: that is of no use to whoever plays.
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { name, way: Demo::Up } => demo::Demo::named(&name).up(),
        Command::Demo { name, way: Demo::Down } => demo::Demo::named(&name).down(),
        Command::Demo { name, way: Demo::Prove } => prove::prove(&name),
        Command::Lab { name, command } => run_lab(&name, command),
        Command::Picture { out } => picture::make(&out),
        Command::Containerd { suite } => {
            println!("{}", debian::containerd(&suite)?.display());
            Ok(())
        }
        Command::Bench(Bench::Deploy { runtimes, tasks }) => bench::deploy::run(&runtimes, &tasks),
        Command::Bench(Bench::Cluster { rounds, beside }) => bench::cluster::run(rounds, beside.as_deref()),
        Command::Bench(Bench::Agents { agents }) => bench::agents::run(agents),
        Command::Bench(Bench::Tunnel) => bench::tunnel::run(),
        Command::Bench(Bench::Mesh) => bench::mesh::run(),
        Command::Bench(Bench::Store) => bench::store::run(),
        Command::Bench(Bench::Scheduler) => bench::scheduler::run(),
        Command::Bench(Bench::Library) => bench::library::run(),
        Command::Images(Images::List) => {
            for set in images::SETS {
                println!("{:<12} {}", set.name, set.about);
            }
            Ok(())
        }
        Command::Images(Images::Build { sets, out }) => build_images(&sets, &out),
        Command::Browser { vote, result, netns, out } => {
            let seen = browser::vote_and_see(&vote, &result, &out, netns.as_deref())?;
            println!("served by {}", seen.served_by);
            for ([a, b], when) in [
                (seen.before, "before"),
                (seen.after_a, "after a vote for a"),
                (seen.after_b, "after a change of mind"),
            ] {
                println!("{a:>6} {b:>6}  {when}");
            }
            println!("{}", out.join("result.png").display());
            Ok(())
        }
    }
}

fn build_images(names: &[String], out: &std::path::Path) -> Result<()> {
    let known = || images::SETS.iter().map(|set| set.name).collect::<Vec<_>>().join(", ");
    let sets: Vec<&images::Set> = match names {
        [] => images::SETS.iter().collect(),
        names => names
            .iter()
            .map(|name| images::set(name).with_context(|| format!("there is no set {name}; there are {}", known())))
            .collect::<Result<_>>()?,
    };
    for set in sets {
        let archive = images::build(set, out)?;
        for image in &archive.images {
            println!("{:<22} {:>6.1} MB  {}", image.name, image.size() as f64 / 1e6, image.manifest.digest);
        }
        println!("{}", archive.path.display());
    }
    Ok(())
}

fn run_lab(name: &str, command: LabCommand) -> Result<()> {
    match command {
        LabCommand::Up { machines } => {
            let lab = Lab::start(name, machines)?;
            show(&lab);
            let own = std::env::current_exe().unwrap_or_default();
            let conformance = match name {
                "lab" => "conformance lab".to_owned(),
                name => format!("conformance lab --name {name}"),
            };
            println!(
                "\n  export PATH={}:$PATH\na cluster of them:\n  {conformance} exec 1 applyctl init\n  \
                 {conformance} exec 2 applyctl join 10.99.0.1 TOKEN\nimages, on each machine that shall run them:\n  \
                 {conformance} exec 1 applyctl image import FILE.tar\nfrom outside:\n  \
                 nsenter -t {} -n curl http://10.99.0.1:8080\na machine without power, and with; without network, and with:\n  \
                 {conformance} kill 3;  {conformance} boot 3;  {conformance} cut 2;  {conformance} heal 2\n\
                 what applyd says on a machine, and the end of it all:\n  {}\n  {conformance} down",
                own.parent().unwrap_or(std::path::Path::new("")).display(),
                lab.hub(),
                lab.machine(1)?.log("applyd").display(),
            );
            lab.leave();
        }
        LabCommand::Down => {
            Lab::remove(name)?;
            println!("nothing of the lab {name} is left");
        }
        LabCommand::Status => {
            let lab = Lab::found(name)?;
            show(&lab);
            lab.leave();
        }
        LabCommand::Exec { machine, command } => {
            let lab = Lab::found(name)?;
            let typed = lab.machine(machine).and_then(|machine| machine.typed(&command));
            // Others may type meanwhile.
            lab.leave();
            std::process::exit(typed?.status()?.code().unwrap_or(1));
        }
        LabCommand::Cut { machine, only: None } => {
            with_lab(name, "is cut off", machine, |lab| lab.connect(machine, false))?;
        }
        LabCommand::Cut { machine, only: Some(OneWay::From) } => {
            with_lab(name, "is not heard", machine, |lab| lab.pass(machine, Way::From, false))?;
        }
        LabCommand::Cut { machine, only: Some(OneWay::To) } => {
            with_lab(name, "does not hear", machine, |lab| lab.pass(machine, Way::To, false))?;
        }
        LabCommand::Slow { machine, rate } => {
            with_lab(name, "is slow", machine, |lab| lab.narrow(machine, Some(&rate)))?;
        }
        LabCommand::Heal { machine } => with_lab(name, "is connected", machine, |lab| lab.heal(machine))?,
        LabCommand::Kill { machine } => with_lab(name, "is without power", machine, |lab| lab.power_off(machine))?,
        LabCommand::Boot { machine } => with_lab(name, "has power, and boots", machine, |lab| lab.power_on(machine))?,
    }
    Ok(())
}

fn with_lab(name: &str, word: &str, machine: u8, act: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    let mut lab = Lab::found(name)?;
    let done = act(&mut lab);
    lab.leave();
    done.map(|()| println!("n{machine} {word}"))
}

fn show(lab: &Lab) {
    println!("MACHINE  ADDRESS     POWER  APPLYD");
    for machine in lab.machines() {
        let version = machine.person().json(&["version"]).unwrap_or_default();
        let applyd = match (&version["applyd"]["cluster"], version["applyd"]["role"].as_str()) {
            _ if version.is_null() => "does not answer",
            (cluster, _) if cluster.is_null() => "in no cluster",
            (_, role) => role.unwrap_or("in a cluster"),
        };
        let power = if machine.is_on() { "on" } else { "off" };
        let address = machine.address().unwrap_or_default();
        println!("{:<7}  {address:<10}  {power:<5}  {applyd}", machine.installation().node);
    }
}
