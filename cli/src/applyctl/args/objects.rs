//! Objects of any kind.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use clap_complete::engine::ArgValueCompleter;

use super::{Patience, Reason, Which};
use crate::applyctl::complete;
use crate::applyctl::wait::Until;
use crate::applyctl::words::parse_duration;

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
    #[command(flatten)]
    pub reason: Reason,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl get services\n  applyctl get tasks -l apply/bundle=shop -o wide -w")]
pub struct Get {
    /// Kinds, separated by commas, or KIND/NAME
    #[arg(add = ArgValueCompleter::new(complete::kinds))]
    pub kind: String,
    /// Names, or their beginnings; without them, all
    #[arg(add = ArgValueCompleter::new(complete::names))]
    pub names: Vec<String>,
    #[command(flatten)]
    pub which: Which,
    /// Go on showing what changes
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl describe service shop-web\n  applyctl describe task/shop-web-1-5f0c2a")]
pub struct Describe {
    /// Kind, or KIND/NAME
    #[arg(add = ArgValueCompleter::new(complete::kinds))]
    pub kind: String,
    /// Names, or their beginnings
    #[arg(add = ArgValueCompleter::new(complete::names))]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl delete service web\n  applyctl delete -f shop.yaml")]
pub struct Delete {
    /// Kind, or KIND/NAME
    #[arg(required_unless_present = "files", add = ArgValueCompleter::new(complete::kinds))]
    pub kind: Option<String>,
    /// Names
    #[arg(add = ArgValueCompleter::new(complete::names))]
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
    /// Do not ask; without a terminal needed for volumes, and for several at once
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
#[command(before_help = "  applyctl events -w\n  applyctl events --for service/shop-web")]
pub struct Events {
    /// Go on with what comes
    #[arg(short, long, alias = "follow")]
    pub watch: bool,
    /// Only about this: KIND/NAME
    #[arg(long = "for", value_name = "KIND/NAME")]
    pub regarding: Option<String>,
    /// Those of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

#[derive(Debug, ClapArgs)]
#[command(
    before_help = "  applyctl wait bundle/voting-app\n  applyctl wait node/n1 --for condition=Ready --timeout 1m\n  applyctl wait service/web --for jsonpath={.status.running}=3\n  applyctl wait bundle/voting-app --for delete"
)]
pub struct Wait {
    /// KIND/NAME of bundles and services; of any kind with --for or --gone
    #[arg(required = true, value_name = "KIND/NAME", add = ArgValueCompleter::new(complete::kinds))]
    pub objects: Vec<String>,
    /// Until there is no such object; the same as --for delete
    #[arg(long, conflicts_with = "until")]
    pub gone: bool,
    /// delete, condition=NAME[=STATUS] or jsonpath={.PATH}[=VALUE]; without it, until it is up
    #[arg(long = "for", value_name = "WHAT")]
    pub until: Option<Until>,
    /// Give up waiting after so long
    #[arg(long, value_parser = parse_duration, default_value = "5m", value_name = "TIME")]
    pub timeout: Duration,
}
