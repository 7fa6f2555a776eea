//! What is deployed: bundles, and how they come to be.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use schemas::deploy::{Publish, Replicas};

use super::{Ls, Patience, Reason, Rm};
use crate::applyctl::complete;
use crate::applyctl::words::{parse_duration, parse_number};

#[derive(Debug, ClapArgs)]
#[command(
    before_help = "  applyctl deploy voting-app voting-app.dab\n  applyctl deploy voting-app voting-app.dab --replicas vote=3 -m \"more\""
)]
pub struct Deploy {
    /// What the application is called
    #[arg(add = ArgValueCompleter::new(complete::bundles))]
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
    /// Do not ask, not even where a service would begin without its volume
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub patience: Patience,
}

#[derive(Debug, ClapArgs)]
#[command(
    before_help = "  applyctl diff voting-app voting-app.dab\n  applyctl diff voting-app voting-app.dab --with voting-app.yaml"
)]
pub struct Diff {
    /// What the application is called
    #[arg(add = ArgValueCompleter::new(complete::bundles))]
    pub name: String,
    /// A .dab file; - for the standard input
    pub file: PathBuf,
    /// An overlay; may be repeated, later ones win
    #[arg(long, value_name = "FILE")]
    pub with: Vec<PathBuf>,
    /// How many tasks a service has
    #[arg(long, value_name = "SERVICE=N")]
    pub replicas: Vec<Replicas>,
    /// Open a port of a service on the machines
    #[arg(short, long, value_name = "SERVICE:PUBLISHED:PORT")]
    pub publish: Vec<Publish>,
}

#[derive(Debug, Subcommand)]
pub enum Bundle {
    /// List applications
    #[command(alias = "list", before_help = "  applyctl bundle ls -A")]
    Ls(Ls),
    /// Tasks of bundles
    #[command(before_help = "  applyctl bundle ps shop")]
    Ps(BundlePs),
    /// Services of a bundle
    #[command(before_help = "  applyctl bundle services shop")]
    Services {
        /// The bundle
        #[arg(add = ArgValueCompleter::new(complete::bundles))]
        name: String,
    },
    /// Remove applications; named volumes stay unless --volumes
    #[command(alias = "remove", before_help = "  applyctl bundle rm shop\n  applyctl bundle rm shop --volumes --yes")]
    Rm(BundleRm),
}

#[derive(Debug, ClapArgs)]
pub struct BundlePs {
    /// Bundles
    #[arg(required = true, add = ArgValueCompleter::new(complete::bundles))]
    pub names: Vec<String>,
    /// Also tasks that are no longer wanted
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, ClapArgs)]
pub struct BundleRm {
    #[command(flatten)]
    pub rm: Rm,
    /// Remove the named volumes of its services as well, with their data
    #[arg(long)]
    pub volumes: bool,
}

#[derive(Debug, Subcommand)]
#[command(before_help = "  applyctl rollout history bundle/shop\n  applyctl rollout undo bundle/shop --to 2")]
pub enum Rollout {
    /// What it was, one line for each time it became so
    #[command(
        before_help = "  applyctl rollout history bundle/shop\n  applyctl rollout history service/shop-web --revision 2"
    )]
    History {
        /// service/NAME or bundle/NAME
        #[arg(value_name = "KIND/NAME", add = ArgValueCompleter::new(complete::workloads))]
        object: String,
        /// All that this number held
        #[arg(long, value_name = "NUMBER", value_parser = parse_number::<u64>)]
        revision: Option<u64>,
    },
    /// How far it has come; ends when it is up, or cannot be
    #[command(before_help = "  applyctl rollout status bundle/shop")]
    Status {
        /// service/NAME or bundle/NAME
        #[arg(value_name = "KIND/NAME", add = ArgValueCompleter::new(complete::workloads))]
        object: String,
        /// Give up waiting after so long
        #[arg(long, value_parser = parse_duration, default_value = "5m", value_name = "TIME")]
        timeout: Duration,
    },
    /// Make it what it was: the last time it was something else, or at a number of its history
    #[command(before_help = "  applyctl rollout undo bundle/shop\n  applyctl rollout undo service/shop-web --to 2")]
    Undo {
        /// service/NAME or bundle/NAME
        #[arg(value_name = "KIND/NAME", add = ArgValueCompleter::new(complete::workloads))]
        object: String,
        /// A number of its history
        #[arg(long, alias = "to-revision", value_name = "NUMBER", value_parser = parse_number::<u64>)]
        to: Option<u64>,
        #[command(flatten)]
        reason: Reason,
        #[command(flatten)]
        patience: Patience,
    },
}
