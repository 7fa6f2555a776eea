//! What applyd can be told.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use controllers::node::surroundings::Paths;

/// The daemon of apply: holds what is wanted, and brings it about on this machine.
///
/// It runs in the foreground until SIGTERM or SIGINT; containers, their names and their logs go on without it.
#[derive(Debug, Parser)]
#[command(name = "applyd", version)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub machine: MachineOptions,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The companion process: logs, names and [::1] listeners, which outlive applyd. Started by applyd itself
    Keep(KeepOptions),
}

/// The machine that it runs on.
#[derive(Clone, Debug, Args)]
pub struct MachineOptions {
    /// What outlives a boot: the store, logs, volumes
    #[arg(long, env = "APPLY_DATA", default_value = "/var/lib/apply", value_name = "DIR")]
    pub data: PathBuf,
    /// What does not: the socket, network namespaces, pipes
    #[arg(long, env = "APPLY_RUN", default_value = "/run/apply", value_name = "DIR")]
    pub run: PathBuf,
    /// Where applyctl finds it; default <run>/apply.sock
    #[arg(long, env = "APPLY_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Name of this machine in the cluster; default its host name
    #[arg(long, env = "APPLY_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// containerd's socket
    #[arg(long, env = "APPLY_CONTAINERD", default_value = "/run/containerd/containerd.sock", value_name = "PATH")]
    pub containerd: PathBuf,
    /// containerd's state directory
    #[arg(long, default_value = "/run/containerd", value_name = "DIR")]
    pub containerd_state: PathBuf,
    /// The OCI runtime, by name or path; default containerd's own (runc)
    #[arg(long, env = "APPLY_RUNTIME", value_name = "NAME")]
    pub runtime: Option<String>,
    /// Where the OCI runtime keeps its state
    #[arg(long, default_value = "/run/containerd/runc", value_name = "DIR")]
    pub runtime_root: PathBuf,
    /// The control group that containers are made in
    #[arg(long, default_value = "/apply", value_name = "PATH")]
    pub cgroup: String,
    /// What the network links of this installation begin with: 1 to 3 letters
    #[arg(long, default_value = "ap", value_name = "LETTERS")]
    pub links: String,
    /// The nftables table of this installation
    #[arg(long, default_value = "apply", value_name = "NAME")]
    pub table: String,
    /// Labels of the machine, for constraints on engine.labels.KEY
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Addresses that others reach this machine at; default what it uses towards the world
    #[arg(long = "advertise", value_name = "ADDRESS")]
    pub advertise: Vec<IpAddr>,
    /// Registries that are spoken to by HTTP or with a certificate nobody knows
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    pub insecure_registries: Vec<String>,
    /// How much it says, as in RUST_LOG: warn, info, debug, controllers=debug
    #[arg(long, env = "APPLY_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// One JSON object a line instead of text
    #[arg(long, env = "APPLY_LOG_JSON")]
    pub log_json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct KeepOptions {
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long)]
    pub build: String,
    #[arg(long)]
    pub replace: bool,
    #[arg(long)]
    pub cgroup: Option<String>,
}

impl MachineOptions {
    pub fn paths(&self) -> Paths {
        Paths { data: self.data.clone(), run: self.run.clone() }
    }

    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.run.join("apply.sock"))
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("say KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
