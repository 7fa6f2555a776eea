//! `applyd`: one process on each machine, which waits for a cluster, manages one, or works for one.
//!
//! Reading order: `options` and `config` (what it can be told), this page (what it is), `membership` (what its disk says it
//! is), `authorities` (what it shows, whom it believes), `waiting`, `manage` and `work` (the three that it can be), `machine` (what it acts through), `joining`, `renewal`,
//! `agent`, `calls` and `rights` (other machines), `audit` (who did what), `store` (where objects are), `seal` and `lock` (the key of secrets), `note` (what
//! the next one shall do first), `alone` (a manager without the others), `routes` and
//! `images` (what is answered beside objects), `backup` and `restore`, `unit` (systemd).

pub mod agent;
mod alone;
mod answer;
mod audit;
mod authorities;
pub mod backup;
mod calls;
pub mod config;
mod data;
mod durable;
mod etcd;
mod images;
pub mod joining;
pub mod leaving;
pub mod lock;
mod logins;
mod machine;
mod manage;
mod managers;
mod membership;
mod note;
pub mod options;
pub mod people;
pub mod probe;
mod renewal;
mod reset;
pub mod restore;
mod rights;
pub mod routes;
pub mod seal;
pub mod store;
pub mod unit;
pub mod waiting;
mod work;

use std::fs::DirBuilder;
use std::io::IsTerminal;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::process::{Command as Program, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use controllers::node::keep;
use controllers::node::sys::heap;
use reconciler::cache::Cache;
use reconciler::controller::Signal;
use reconciler::seams::{Seams, Shifted};
use reconciler::server::Server;
use rustix::process::{Resource as Rlimit, getrlimit, setrlimit};
use schemas::kinds::node::Role;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

use crate::usage;
use config::ConfigError;
use etcd::EtcdOptions;
use machine::{Made, machine};
use membership::Membership;
use options::{Command, KeepOptions, LogFormat, MachineOptions, Options};
use store::Choice;
use waiting::Told;

pub use alone::ALONE;

const ROOT: &str = "/apply";
/// Where the lease of the cluster's controllers lies.
pub const LEASE_NAMESPACE: &str = "apply-system";
/// What a machine without a cluster answers to whatever it is asked begins with.
pub const NO_CLUSTER: &str = "this machine is in no cluster yet";
/// What a manager answers whose key nobody has unlocked, begins with.
pub const LOCKED: &str = "this manager is locked";
/// What a manager answers whose etcd does not, begins with.
pub const NO_MAJORITY: &str = "this manager's etcd does not answer";
/// What a worker answers has this in it.
pub const A_WORKER: &str = "is a worker; say it to a manager";

pub fn main() -> ExitCode {
    let typed: Vec<_> = std::env::args_os().collect();
    let outcome = if typed.get(1).is_some_and(|word| word == "keep") {
        run_keep(&KeepOptions::parse_from(&typed[1..]))
    } else if typed.get(1).is_some_and(|word| word == "etcd") {
        etcd::become_etcd(&EtcdOptions::parse_from(&typed[1..])).map(|never| match never {})
    } else {
        match config::read(typed.clone()) {
            Err(ConfigError::Typed(error)) => return usage::tell(Options::command(), &typed, error),
            Err(ConfigError::Faults { path, faults }) => {
                eprintln!("{}", ConfigError::Faults { path, faults });
                eprintln!("applyd: nothing was started");
                return ExitCode::from(REFUSED);
            }
            Err(error) => Err(error.into()),
            Ok(options) => match &options.command {
                None => run(&options.machine),
                Some(Command::Restore(wanted)) => run_restore(wanted),
                Some(Command::SystemdUnit) => std::env::current_exe()
                    .context("cannot find this program's own file")
                    .map(|program| print!("{}", unit::unit(&program))),
            },
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("applyd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// As applyctl's: docs/exit-codes.md.
const REFUSED: u8 = 5;

fn run_restore(wanted: &restore::Restore) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(restore::restore(wanted, &Seams::real()))?;
    println!("{done}");
    Ok(())
}

fn run_keep(keep: &KeepOptions) -> Result<()> {
    keep::run(&keep::Options {
        dir: keep.dir.clone(),
        build: keep.build.clone(),
        replace: keep.replace,
        cgroup: keep.cgroup.clone(),
    })
    .context("the companion process ended")
}

fn run(options: &MachineOptions) -> Result<()> {
    heap::few_arenas();
    // Each connection takes a descriptor, and what a shell gives is a thousand.
    let mut files = getrlimit(Rlimit::Nofile);
    files.current = files.maximum;
    let _ = setrlimit(Rlimit::Nofile, files);
    say_in_logs(options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(options))?;
    // Whatever it still did, it does not do any more.
    runtime.shutdown_timeout(Duration::ZERO);
    match ended {
        Ended::Stopped => Ok(()),
        Ended::Again => {
            tracing::info!("applyd begins anew");
            let mut words = std::env::args_os();
            let mut next = Program::new("/proc/self/exe");
            // Known by the name that it was started by, as before.
            words.next().map(|name| next.arg0(name));
            let error = next.args(words).exec();
            Err(error).context("cannot begin anew")
        }
    }
}

/// How a daemon has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// As it was told.
    Stopped,
    /// To begin anew, as another than it was: this very process becomes the next applyd.
    Again,
}

fn say_in_logs(options: &MachineOptions) -> Result<()> {
    let filter = EnvFilter::try_new(&options.log).with_context(|| format!("--log {:?}", options.log))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for whoever looks, not for files and journals.
    let logs = logs.with_ansi(std::io::stderr().is_terminal());
    match options.log_format {
        LogFormat::Json => logs.json().init(),
        LogFormat::Text => logs.init(),
    }
    Ok(())
}

async fn serve(options: &MachineOptions) -> Result<Ended> {
    let real = Seams::real();
    let clock = Shifted::new(real.clock.clone());
    clock.shift(options.clock_offset.saturating_mul(1_000_000));
    let seams = Seams { clock: Arc::new(clock), ..real };
    let paths = options.paths();
    for folder in [&paths.data, &paths.run] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make {}", folder.display()))?;
    }
    if let Some(again) = reset::begun(&paths.data) {
        tracing::info!("a reset was begun and not finished: it is finished first");
        let (lines, unheard) = mpsc::channel(1);
        drop(unheard);
        reset::everything(&machine(options, &seams)?, options, &reset::Asked { lines, again }).await?;
        return Ok(if again { Ended::Again } else { Ended::Stopped });
    }
    let membership = Membership::new(&paths.data);
    // A worker has nothing that is locked, but what one who was a manager is about to remove.
    let is_worker = membership.read()?.is_some_and(|member| member.role == Role::Worker);
    if !is_worker && lock::is_locked(&options.places())? {
        lock::wait(options, &options.places(), &seams).await?;
    }
    let member = match membership.read()? {
        // A store of its own was there before clusters had authorities: it is a manager that has none yet.
        None if !matches!(options.store.store, Choice::Etcd(_)) && !store::is_there(options)? => {
            match waiting::wait(options, &seams).await? {
                Told::Stop => return Ok(Ended::Stopped),
                Told::Found => None,
                Told::Joined(member) => Some(member),
            }
        }
        member => member,
    };
    match member {
        Some(member) if member.role == Role::Worker => work::serve(options, member, &seams).await,
        _ => manage::serve(options, &seams).await,
    }
}

/// Until somebody says so; then everything ends, and goes if that was asked for. `ended`: the controllers have; `again`: this
/// machine has become another.
async fn told(
    resets: &mut mpsc::Receiver<reset::Asked>,
    stop: &Signal,
    ended: &Signal,
    again: &Signal,
    server: &Server,
    machine: &Made,
    options: &MachineOptions,
) -> Result<Ended> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut how = Ended::Stopped;
    let asked = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        asked = resets.recv() => asked,
        () = again.raised() => {
            how = Ended::Again;
            None
        }
    };
    let done = match asked {
        Some(asked) => {
            tracing::warn!("everything of this machine is removed, as was asked for");
            stop.raise();
            ended.raised().await;
            if asked.again {
                how = Ended::Again;
            }
            reset::everything(machine, options, &asked).await
        }
        None => {
            if how == Ended::Stopped {
                say_to_systemd("STOPPING=1");
                tracing::info!("told to stop: finishing what is under way; containers go on");
            }
            stop.raise();
            Ok(())
        }
    };
    server.stop().raise();
    done.map(|()| how)
}

fn say_to_systemd(state: &str) {
    if let Err(error) = unit::notify(state) {
        tracing::warn!(%error, state, "systemd was not told");
    }
}

/// How long nothing changes before a burst of work is taken to be over.
const CALM: Duration = Duration::from_secs(10);

/// What a burst of work has left free goes back to the kernel when it is over.
async fn tidy_memory(cache: &Cache, seams: &Seams) {
    let (mut seen, mut tidied) = (None, None);
    loop {
        seams.sleep(CALM).await;
        let now = cache.snapshot().map(|snapshot| snapshot.resource_version());
        if now == seen && now != tidied {
            heap::give_back();
            tidied = now;
        }
        seen = now;
    }
}
