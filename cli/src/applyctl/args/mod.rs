//! What can be typed. Data only: nothing here waits or connects, so that `--help` and completion answer at once.
//!
//! A file for each family of commands; here is what all have in common.

mod applications;
mod machines;
mod objects;
mod registries;
mod services;

use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use super::failure::EXITS;
use super::words::parse_duration;
use crate::daemon::restore::Restore;

pub use applications::{Bundle, BundlePs, BundleRm, Deploy, Diff, Rollout};
pub use machines::{
    Backup, Ca, CaRotate, Config, Context, ContextAdd, Controller, ControllerGrant, CredentialsFile, DataCreate,
    DataUpdate, Image, Init, Join, Leave, Network, NetworkCreate, NetworkProbe, Node, NodeAvailability, NodeNames,
    NodeRm, NodeUpdate, Proxy, Prune, Secret, System, Token, TokenCreate, TokenRole, Unlock, User, UserCreate,
    UserCredentials, UserRole, Volume,
};
pub use objects::{Apply, Cascade, Delete, Describe, Events, Explain, Get, Wait};
pub use registries::{Login, Logout, Registry};
pub use services::{
    Exec, Logs, Ps, Rebalance, Scale, Service, ServiceCreate, ServiceFlags, ServiceMode, ServiceUpdate,
};

/// Where the daemon listens unless it is told otherwise.
pub const DEFAULT_HOST: &str = "unix:///run/apply/apply.sock";

/// Runs applications on your machines.
#[derive(Debug, Parser)]
#[command(
    name = "applyctl",
    version = schemas::level::VERSION,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    before_help = "  applyctl deploy voting-app voting-app.dab --with voting-app.yaml\n  applyctl get tasks -o wide",
    after_help = exit_codes()
)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Global {
    /// Where applyd listens on this machine; without it the current context, and without one unix:///run/apply/apply.sock
    #[arg(
        long, global = true, env = "APPLY_HOST", value_name = "ADDRESS", hide_env_values = true,
        help_heading = EVERYWHERE
    )]
    pub host: Option<String>,
    /// A cluster, and who you are there, as `context ls` names them
    #[arg(
        long, global = true, env = "APPLY_CONTEXT", value_name = "NAME", hide_env_values = true,
        conflicts_with = "host", help_heading = EVERYWHERE
    )]
    pub context: Option<String>,
    /// Namespace; without it the context's, and without one default
    #[arg(short, long, global = true, env = "APPLY_NAMESPACE", hide_env_values = true, help_heading = EVERYWHERE)]
    pub namespace: Option<String>,
    /// How data is printed: table, wide (a table with more columns), json, yaml or name
    #[arg(
        short, long, global = true, value_name = "FORMAT", default_value = "table", hide_default_value = true,
        hide_possible_values = true, help_heading = EVERYWHERE
    )]
    pub output: Format,
    /// When colours are used: auto, always or never
    #[arg(
        long, global = true, value_name = "WHEN", default_value = "auto", hide_default_value = true,
        hide_possible_values = true, help_heading = EVERYWHERE
    )]
    pub color: ColorChoice,
    /// Only data and failures
    #[arg(short, long, global = true, help_heading = EVERYWHERE)]
    pub quiet: bool,
}

/// Below a command's own options in its help.
const EVERYWHERE: &str = "Options of every command";

// Without a comment of their own: with one, `--help` of every command would take two lines for each option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Found a cluster on this machine, whose applyd runs
    Init(Init),
    /// Type the passphrase of a manager that is locked (init --lock), after a boot
    Unlock(Unlock),
    /// Make this machine a member of a cluster
    Join(Join),
    /// Take this machine out of its cluster: its tasks go elsewhere first, then all of apply on it goes
    Leave(Leave),
    /// What machines join with: create, ls, revoke
    #[command(subcommand)]
    Token(Token),
    /// The authority that signs certificates: ls, rotate
    #[command(subcommand)]
    Ca(Ca),
    /// People and programs: create, credentials, ls, rm
    #[command(subcommand)]
    User(User),
    /// Controllers of other authors: grant, ls, revoke
    #[command(subcommand)]
    Controller(Controller),
    /// Clusters, and who you are there: ls, use, add, rm
    #[command(subcommand)]
    Context(Context),
    /// Make an application be as a file says
    Deploy(Deploy),
    /// What deploy would change; ends with 1 if there is anything
    Diff(Diff),
    /// Make objects be as files say, all or nothing
    Apply(Apply),
    /// List objects
    Get(Get),
    /// All that is known of an object, and why it is as it is
    Describe(Describe),
    /// Remove objects
    Delete(Delete),
    /// What a kind or field means: explain service.spec.update
    Explain(Explain),
    /// Set how many tasks a service has: scale web=3
    Scale(Scale),
    /// What a service or bundle was before, how far its change has come, and the way back
    #[command(subcommand)]
    Rollout(Rollout),
    /// Services: create, ls, ps, inspect, scale, update, rm
    #[command(subcommand)]
    Service(Service),
    /// Applications: ls, ps, services, rm
    #[command(subcommand)]
    Bundle(Bundle),
    /// Tasks of services, bundles or the whole namespace
    #[command(alias = "task")]
    Ps(Ps),
    /// What a task, or all tasks of a service, printed
    Logs(Logs),
    /// Run a command in a task's container
    Exec(Exec),
    /// Volumes: ls, inspect, rm
    #[command(subcommand)]
    Volume(Volume),
    /// Data that only tasks may read: create, update, ls, inspect, rm
    #[command(subcommand)]
    Secret(Secret),
    /// Files for tasks: create, update, ls, inspect, rm
    #[command(subcommand)]
    Config(Config),
    /// Networks: ls, inspect, rm
    #[command(subcommand)]
    Network(Network),
    /// Nodes: ls, ps, inspect, update, drain, pause, activate, promote, demote, rm
    #[command(subcommand)]
    Node(Node),
    /// Registries: login, logout, ls
    #[command(subcommand)]
    Registry(Registry),
    /// Remember who you are for a registry, if it agrees; the same as registry login
    Login(Login),
    /// Forget who you are for a registry
    Logout(Logout),
    /// Images on the daemon's machine: ls, import, pull, rm, prune
    #[command(subcommand)]
    Image(Image),
    /// Write the whole store to a file
    Backup(Backup),
    /// Make a backup the store of this machine, whose applyd does not run
    Restore(Restore),
    /// A port for kubectl, for as long as the command runs
    Proxy(Proxy),
    /// What happened, newest last
    Events(Events),
    /// Wait until objects are up, gone, or as --for says
    Wait(Wait),
    /// The cluster: status, df, prune, reset
    #[command(subcommand)]
    System(System),
    /// Versions of the command and of applyd
    #[command(before_help = "  applyctl version")]
    Version,
    /// A script for your shell, which then completes names of what is there too: source <(applyctl completion bash)
    #[command(
        before_help = "  source <(applyctl completion bash)\n  applyctl completion zsh >> ~/.zshrc\n  applyctl completion fish | source"
    )]
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: String,
    },
}

impl Command {
    /// Whether it is about the machine that it is typed on, whatever cluster one works with.
    pub fn is_of_this_machine(&self) -> bool {
        let is_reset = matches!(self, Self::System(System::Reset { .. }));
        is_reset || matches!(self, Self::Init(_) | Self::Unlock(_) | Self::Join(_) | Self::Leave(_) | Self::Restore(_))
    }
}

/// How long to wait for what was asked, and whether.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub struct Patience {
    /// Do not wait until it is so
    #[arg(short, long)]
    pub detach: bool,
    /// Give up waiting after so long; what was begun goes on
    #[arg(long, value_parser = parse_duration, default_value = "5m", value_name = "TIME")]
    pub timeout: Duration,
}

/// Why something is changed.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Reason {
    /// Why: rollout history shows it
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
}

/// Which objects of a kind.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Which {
    /// Those of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only those with these labels: a=b,c!=d,e in (f,g),!h
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
    /// Only those with these fields: spec.nodeName=n1
    #[arg(long, value_name = "FIELDS", default_value = "", hide_default_value = true)]
    pub field_selector: String,
}

#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Ls {
    #[command(flatten)]
    pub which: Which,
}

#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// Names
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct Rm {
    /// Names
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Do not ask; without a terminal needed for volumes, and for several at once
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub patience: Patience,
}

fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
    for (code, meaning) in EXITS {
        text.push_str(&format!("  {code:>3}  {meaning}\n"));
    }
    text.pop();
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Args::command().debug_assert();
    }

    /// clap sees that only once the command is typed, and panics.
    #[test]
    fn no_command_has_an_argument_called_like_one_of_all() {
        fn own(command: &clap::Command, of_all: &[String], path: &str) {
            for command in command.get_subcommands() {
                let path = format!("{path} {}", command.get_name());
                let twice = command.get_arguments().find(|own| of_all.iter().any(|name| own.get_id() == name.as_str()));
                assert!(twice.is_none(), "{path}: {:?}", twice.map(clap::Arg::get_id));
                own(command, of_all, &path);
            }
        }
        let all = Args::command();
        let global: Vec<String> =
            all.get_arguments().filter(|one| one.is_global_set()).map(|one| one.get_id().to_string()).collect();
        assert!(global.contains(&"host".to_owned()), "{global:?}");
        own(&all, &global, "applyctl");
    }

    /// Every command that does something, by the words that lead to it.
    fn commands(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for below in command.get_subcommands() {
            let path = format!("{path} {}", below.get_name());
            if !below.has_subcommands() {
                found.push((path.clone(), below.clone()));
            }
            commands(below, &path, found);
        }
    }

    #[test]
    fn every_command_says_in_a_line_what_it_does_and_begins_with_an_example_that_can_be_typed() {
        let mut found = Vec::new();
        commands(&Args::command(), "applyctl", &mut found);
        let mut faults = Vec::new();
        for (path, command) in found {
            for arg in command.get_arguments().filter(|arg| arg.get_help().is_none() && !arg.is_hide_set()) {
                faults.push(format!("{path}: {} says nothing of itself", arg.get_id()));
            }
            if command.get_about().is_none() {
                faults.push(format!("{path}: no story"));
            }
            let examples = command.get_before_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<&str> = examples.lines().filter(|line| line.contains(&path)).collect();
            if lines.is_empty() {
                faults.push(format!("{path}: no example"));
            }
            for line in lines {
                let from = line.find("applyctl").unwrap_or(0);
                let line = line.replace("$(date +%F)", "today");
                let typed = line[from..].split(['|', '<', '&', ')', '>']).next().unwrap_or_default();
                if let Err(error) = Args::try_parse_from(typed.split_whitespace()) {
                    faults.push(format!("{line}: {error}"));
                }
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn help_begins_with_two_examples_and_ends_with_the_exit_codes() {
        let help = Args::command().render_long_help().to_string();
        assert!(help.starts_with("  applyctl deploy"), "{help}");
        assert!(help.contains("130  left with ^C"), "{help}");
    }
}
