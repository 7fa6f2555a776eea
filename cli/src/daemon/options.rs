//! What applyd can be told.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use controllers::node::surroundings::Paths;
use controllers::node::wireguard;

use super::backup::Places;
use super::restore::Restore;
use super::store::Choice;

/// The daemon of apply: holds what is wanted, and brings it about on this machine.
///
/// It runs in the foreground until SIGTERM or SIGINT; containers, their names and their logs go on without it. What is
/// said on the command line outranks the environment, that the file, and that the defaults.
#[derive(Debug, Parser)]
#[command(
    name = "applyd",
    version = schemas::level::VERSION,
    before_help = "  applyd --data /srv/apply --log info,controllers=debug\n  applyd systemd-unit > /etc/systemd/system/applyd.service"
)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub machine: MachineOptions,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a backup the store of this machine, whose applyd does not run
    Restore(Restore),
    /// Print a unit for systemd that runs this very program
    SystemdUnit,
}

/// The companion process: logs, names and [::1] listeners, which outlive applyd. Started by applyd itself.
#[derive(Debug, Parser)]
#[command(name = "applyd keep")]
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

/// The machine that it runs on.
#[derive(Clone, Debug, Args)]
pub struct MachineOptions {
    /// A YAML file that says the same: each option by its long name, lists where it may be repeated; default
    /// /etc/apply/applyd.yaml if there is one
    #[arg(long, env = "APPLY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What outlives a boot: the store, its hourly snapshots, the key of secrets, logs, volumes
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
    #[command(flatten)]
    pub store: StoreOptions,
    /// containerd's socket
    #[arg(long, env = "APPLY_CONTAINERD", default_value = "/run/containerd/containerd.sock", value_name = "PATH")]
    pub containerd: PathBuf,
    /// containerd's state directory
    #[arg(long, env = "APPLY_CONTAINERD_STATE", default_value = "/run/containerd", value_name = "DIR")]
    pub containerd_state: PathBuf,
    /// The OCI runtime, by name or path; default containerd's own (runc)
    #[arg(long, env = "APPLY_RUNTIME", value_name = "NAME")]
    pub runtime: Option<String>,
    /// Where the OCI runtime keeps its state
    #[arg(long, env = "APPLY_RUNTIME_ROOT", default_value = "/run/containerd/runc", value_name = "DIR")]
    pub runtime_root: PathBuf,
    /// The control group that containers are made in
    #[arg(long, env = "APPLY_CGROUP", default_value = "/apply", value_name = "PATH")]
    pub cgroup: String,
    /// What the network links of this installation begin with: 1 to 3 letters
    #[arg(long, env = "APPLY_LINKS", default_value = "ap", value_name = "LETTERS")]
    pub links: String,
    /// The nftables table of this installation
    #[arg(long, env = "APPLY_TABLE", default_value = "apply", value_name = "NAME")]
    pub table: String,
    /// Labels of the machine, for constraints on engine.labels.KEY; may be repeated
    #[arg(long = "label", env = "APPLY_LABELS", value_delimiter = ',', value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Addresses that others reach this machine at; default what it uses towards the world; may be repeated
    #[arg(long = "advertise", env = "APPLY_ADVERTISE", value_delimiter = ',', value_name = "ADDRESS")]
    pub advertise: Vec<IpAddr>,
    /// Where other machines of the cluster connect to, by mutual TLS; and, at the UDP port of that number, where they send
    /// what their tasks say to this one's, by WireGuard
    #[arg(long, env = "APPLY_LISTEN", default_value = "[::]:7677", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Registries that are spoken to by HTTP or with a certificate nobody knows; may be repeated
    #[arg(
        long = "insecure-registry",
        env = "APPLY_INSECURE_REGISTRIES",
        value_delimiter = ',',
        value_name = "HOST[:PORT]"
    )]
    pub insecure_registries: Vec<String>,
    /// By how many seconds the wall clock is taken to be off: for trying what a wrong clock does
    #[arg(long, hide = true, default_value_t = 0, allow_negative_numbers = true, value_name = "SECONDS")]
    pub clock_offset: i64,
    /// What is logged: error, warn, info, debug, trace, or one for each part: info,controllers=debug
    #[arg(long, env = "APPLY_LOG", default_value = "info", value_name = "LEVELS")]
    pub log: String,
    /// How: text for people, or json, one object a line
    #[arg(long, env = "APPLY_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Where the objects are.
#[derive(Clone, Debug, Default, Args)]
pub struct StoreOptions {
    /// Where the objects are: embedded, a file below --data, until a second manager joins; etcd, one that applyd runs itself;
    /// or etcd=https://HOST:2379, an etcd of yours (3.4 or later; several members with commas between), below /apply/
    #[arg(long, env = "APPLY_STORE", default_value = "embedded", value_name = "STORE")]
    pub store: Choice,
    /// Who must have signed etcd's certificate: PEM
    #[arg(long = "store-ca", env = "APPLY_STORE_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Our own certificate for etcd: PEM
    #[arg(long = "store-cert", env = "APPLY_STORE_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its key: PEM
    #[arg(long = "store-key", env = "APPLY_STORE_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl MachineOptions {
    pub fn places(&self) -> Places {
        Places::new(&self.data, &self.run)
    }

    pub fn paths(&self) -> Paths {
        Paths { data: self.data.clone(), run: self.run.clone() }
    }

    /// Where the encrypted tunnel is listened for.
    pub fn tunnel_port(&self) -> u16 {
        match self.listen.port() {
            0 => wireguard::PORT,
            port => port,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.run.join("apply.sock"))
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("say KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
