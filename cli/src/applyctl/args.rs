//! What can be typed. Data only: nothing here waits or connects, so that `--help` and completion answer at once.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use schemas::deploy::{Publish, Replicas};

use super::failure::EXITS;
use super::words::parse_duration;

/// Where the daemon listens unless it is told otherwise.
pub const DEFAULT_HOST: &str = "unix:///run/apply/apply.sock";

/// Runs applications on your machines.
#[derive(Debug, Parser)]
#[command(
    name = "applyctl",
    version,
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
#[derive(Clone, Debug, ClapArgs)]
pub struct Global {
    /// Where applyd listens
    #[arg(long, global = true, env = "APPLY_HOST", default_value = DEFAULT_HOST, value_name = "ADDRESS")]
    pub host: String,
    /// Namespace
    #[arg(short, long, global = true, env = "APPLY_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// How data is printed
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table", hide_default_value = true)]
    pub output: Format,
    /// When colours are used
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_default_value = true)]
    pub color: ColorChoice,
    /// Only data and failures
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    Json,
    Yaml,
    /// KIND/NAME, one a line.
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
    /// Make an application be as a file says
    Deploy(Deploy),
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
    /// A script for your shell: source <(applyctl completion bash)
    Completion { shell: clap_complete::Shell },
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

#[derive(Debug, ClapArgs)]
#[command(
    before_help = "  applyctl deploy voting-app voting-app.dab\n  applyctl deploy voting-app voting-app.dab --with voting-app.yaml --replicas vote=3 -p vote:5000:80"
)]
pub struct Deploy {
    /// What the application is called
    pub name: String,
    /// A .dab file; - for the standard input
    pub file: PathBuf,
    /// An overlay that says what a .dab cannot (YAML); may be repeated, later ones win
    #[arg(long, value_name = "FILE")]
    pub with: Vec<PathBuf>,
    /// How many tasks a service has
    #[arg(long, value_name = "SERVICE=N")]
    pub replicas: Vec<Replicas>,
    /// Open a port of a service on the machines
    #[arg(short, long, value_name = "SERVICE:PUBLISHED:PORT")]
    pub publish: Vec<Publish>,
    /// Keep services that the file no longer has
    #[arg(long)]
    pub no_prune: bool,
    /// Let the file outrank what was set by hand, everywhere or at a path such as vote.replicas
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "*", require_equals = true)]
    pub reset: Vec<String>,
    /// Check everything and say what would change
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub patience: Patience,
}

#[derive(Debug, ClapArgs)]
#[command(
    before_help = "  applyctl apply -f shop.yaml\n  applyctl get service web -o yaml | sed s/:1/:2/ | applyctl apply -f -"
)]
pub struct Apply {
    /// YAML or JSON, several documents; - for the standard input
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Check everything and say what would change
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl get services\n  applyctl get tasks -l apply/bundle=shop -o wide -w")]
pub struct Get {
    /// Kinds, separated by commas, or KIND/NAME
    pub kind: String,
    pub names: Vec<String>,
    #[command(flatten)]
    pub which: Which,
    /// Go on showing what changes
    #[arg(short, long)]
    pub watch: bool,
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

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl describe service shop-web\n  applyctl describe task/shop-web-1-5f0c2a")]
pub struct Describe {
    /// Kind, or KIND/NAME
    pub kind: String,
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl delete service web\n  applyctl delete -f shop.yaml")]
pub struct Delete {
    /// Kind, or KIND/NAME
    #[arg(required_unless_present = "files")]
    pub kind: Option<String>,
    pub names: Vec<String>,
    /// The objects that a file names; - for the standard input
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with = "kind")]
    pub files: Vec<PathBuf>,
    /// All of the kind in the namespace, or those that -l selects
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Only those with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Do nothing and say what would go
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub patience: Patience,
    /// What becomes of what the object owns
    #[arg(long, value_name = "HOW", default_value = "background")]
    pub cascade: Cascade,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Cascade {
    #[default]
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl explain service\n  applyctl explain service.spec.template.container.health")]
pub struct Explain {
    /// A kind and fields below it; without it, all kinds
    pub path: Option<String>,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl scale shop-web=3\n  applyctl scale shop-web=3 shop-worker=2")]
pub struct Scale {
    #[arg(required = true, value_name = "SERVICE=N")]
    pub services: Vec<Replicas>,
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

    #[test]
    fn help_begins_with_two_examples_and_ends_with_the_exit_codes() {
        let help = Args::command().render_long_help().to_string();
        assert!(help.starts_with("  applyctl deploy"), "{help}");
        assert!(help.contains("130  left with ^C"), "{help}");
    }
}
