//! What can be typed. Data only: nothing here waits or connects, so that `--help` and completion answer at once.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use schemas::deploy::{Publish, Replicas};

use super::complete;
use super::failure::EXITS;
use super::wait::Until;
use super::words::parse_duration;
use crate::daemon::restore::Restore;

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
    #[arg(
        long, global = true, env = "APPLY_HOST", default_value = DEFAULT_HOST, value_name = "ADDRESS",
        hide_env_values = true, help_heading = EVERYWHERE
    )]
    pub host: String,
    /// Namespace
    #[arg(
        short, long, global = true, env = "APPLY_NAMESPACE", default_value = "default", hide_env_values = true,
        help_heading = EVERYWHERE
    )]
    pub namespace: String,
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
    /// Name the cluster of this machine, whose applyd runs
    Init(Init),
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
    /// Networks: ls, inspect, rm
    #[command(subcommand)]
    Network(Network),
    /// Nodes: ls, ps, inspect, update
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
    /// A service, and how many tasks it has from now on
    #[arg(required = true, value_name = "SERVICE=N")]
    pub services: Vec<Replicas>,
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub patience: Patience,
}

#[derive(Debug, Subcommand)]
pub enum Service {
    /// Start a service
    Create(Box<ServiceCreate>),
    /// Change a service
    Update(Box<ServiceUpdate>),
    /// Set how many tasks a service has
    #[command(before_help = "  applyctl service scale shop-web=3")]
    Scale(Scale),
    /// List services
    #[command(alias = "list", before_help = "  applyctl service ls\n  applyctl service ls -l tier=front -o wide")]
    Ls(Ls),
    /// Tasks of services
    #[command(before_help = "  applyctl service ps shop-web")]
    Ps(Ps),
    /// Everything about a service, as JSON unless -o says otherwise
    #[command(before_help = "  applyctl service inspect shop-web")]
    Inspect(Inspect),
    /// Remove services
    #[command(alias = "remove", before_help = "  applyctl service rm web --yes")]
    Rm(Rm),
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
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub patience: Patience,
}

/// What a service's spec can be told by flags. The names are those of `docker service`.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct ServiceFlags {
    /// Open a port on the machines: PUBLISHED:PORT, PORT, with /udp behind
    #[arg(short, long, value_name = "PORTS")]
    pub publish: Vec<String>,
    /// How many tasks there are
    #[arg(long, value_name = "N")]
    pub replicas: Option<u32>,
    /// Set a variable: NAME=VALUE
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Label the service: KEY=VALUE
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Attach to a network
    #[arg(long, value_name = "NAME")]
    pub network: Vec<String>,
    /// type=volume|bind|tmpfs,source=…,target=…[,readonly]
    #[arg(long, value_name = "MOUNT")]
    pub mount: Vec<String>,
    /// Where tasks may run: node.labels.disk==ssd
    #[arg(long, value_name = "EXPRESSION")]
    pub constraint: Vec<String>,
    /// User, and group, in the container
    #[arg(short, long)]
    pub user: Option<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// What the container calls its machine
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Most memory a task may have: 256Mi
    #[arg(long, value_name = "SIZE")]
    pub limit_memory: Option<schemas::Size>,
    /// Most CPUs a task may have: 0.5
    #[arg(long, value_name = "CPUS")]
    pub limit_cpu: Option<schemas::Cpus>,
    /// Most processes a task may have
    #[arg(long, value_name = "N")]
    pub limit_pids: Option<u32>,
    /// Memory set aside for each task
    #[arg(long, value_name = "SIZE")]
    pub reserve_memory: Option<schemas::Size>,
    /// CPUs set aside for each task
    #[arg(long, value_name = "CPUS")]
    pub reserve_cpu: Option<schemas::Cpus>,
    /// A shell command that succeeds while the task is healthy
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Between two checks
    #[arg(long, value_name = "TIME")]
    pub health_interval: Option<schemas::Period>,
    /// A check that takes longer has failed
    #[arg(long, value_name = "TIME")]
    pub health_timeout: Option<schemas::Period>,
    /// So many failures in a row, and the task is replaced
    #[arg(long, value_name = "N")]
    pub health_retries: Option<u32>,
    /// Failures so soon after the start do not count
    #[arg(long, value_name = "TIME")]
    pub health_start_period: Option<schemas::Period>,
    /// Between being asked to stop and being killed
    #[arg(long, value_name = "TIME")]
    pub stop_grace_period: Option<schemas::Period>,
    /// By which it is asked to stop: SIGINT
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// The container cannot write to its root file system
    #[arg(long)]
    pub read_only: bool,
}

#[derive(Debug, ClapArgs)]
#[command(
    before_help = "  applyctl service create --name web -p 8080:80 --replicas 2 example/web:1\n  applyctl service create --name once example/job:1 migrate --all"
)]
pub struct ServiceCreate {
    /// What its tasks are made of
    pub image: String,
    /// What the container is told to do instead of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// What the service is called
    #[arg(long)]
    pub name: String,
    /// replicated, or global for one task on each node
    #[arg(
        long,
        value_name = "MODE",
        default_value = "replicated",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub mode: ServiceMode,
    #[command(flatten)]
    pub flags: ServiceFlags,
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub patience: Patience,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ServiceMode {
    #[default]
    Replicated,
    Global,
}

#[derive(Debug, ClapArgs)]
#[command(
    before_help = "  applyctl service update --image example/web:2 web\n  applyctl service update -p 80:80 shop-web"
)]
pub struct ServiceUpdate {
    /// The service
    #[arg(add = ArgValueCompleter::new(complete::services))]
    pub name: String,
    /// What its tasks are made of
    #[arg(long)]
    pub image: Option<String>,
    /// What the container is told to do, as words of a shell
    #[arg(long, value_name = "WORDS")]
    pub args: Option<String>,
    /// Variables to take away
    #[arg(long, value_name = "NAME")]
    pub env_rm: Vec<String>,
    /// Labels to take away
    #[arg(long, value_name = "KEY")]
    pub label_rm: Vec<String>,
    /// Ports of the container to close, such as 80 or 53/udp
    #[arg(long, value_name = "PORT")]
    pub publish_rm: Vec<String>,
    /// Constraints to take away
    #[arg(long, value_name = "EXPRESSION")]
    pub constraint_rm: Vec<String>,
    /// Targets of mounts to take away
    #[arg(long, value_name = "TARGET")]
    pub mount_rm: Vec<String>,
    /// Replace every task even if nothing else changes
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub flags: ServiceFlags,
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub patience: Patience,
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

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl ps\n  applyctl ps shop-web --all")]
pub struct Ps {
    /// Services or bundles; without them, all tasks of the namespace
    #[arg(add = ArgValueCompleter::new(complete::services_and_bundles))]
    pub names: Vec<String>,
    /// Also tasks that are no longer wanted
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl logs -f shop-web\n  applyctl logs --tail 20 --timestamps shop-web-1-5f0c2a")]
pub struct Logs {
    /// A service or a task
    #[arg(add = ArgValueCompleter::new(complete::services_and_tasks))]
    pub name: String,
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines of each task
    #[arg(long, value_name = "N")]
    pub tail: Option<u64>,
    /// Only what was printed since: a time, or how long ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// With the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl exec shop-web cat /etc/hosts\n  applyctl exec -it shop-db-1-5f0c2a psql")]
pub struct Exec {
    /// A task, or a service with a running task
    #[arg(add = ArgValueCompleter::new(complete::services_and_tasks))]
    pub name: String,
    /// Pass the standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// As on a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// What is run, and what it is told
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// List volumes
    #[command(alias = "list", before_help = "  applyctl volume ls")]
    Ls(Ls),
    /// Everything about a volume, as JSON unless -o says otherwise
    #[command(before_help = "  applyctl volume inspect votes")]
    Inspect(Inspect),
    /// Remove volumes with their data
    #[command(alias = "remove", before_help = "  applyctl volume rm votes --yes")]
    Rm(Rm),
}

#[derive(Debug, Subcommand)]
pub enum Network {
    /// List networks
    #[command(alias = "list", before_help = "  applyctl network ls")]
    Ls(Ls),
    /// Everything about a network, as JSON unless -o says otherwise
    #[command(before_help = "  applyctl network inspect shop-back")]
    Inspect(Inspect),
    /// Remove networks
    #[command(alias = "remove", before_help = "  applyctl network rm back --yes")]
    Rm(Rm),
}

#[derive(Debug, Subcommand)]
pub enum Node {
    /// List nodes
    #[command(alias = "list", before_help = "  applyctl node ls")]
    Ls(Ls),
    /// Tasks on nodes
    #[command(before_help = "  applyctl node ps n1")]
    Ps(Inspect),
    /// Everything about a node, as JSON unless -o says otherwise
    #[command(before_help = "  applyctl node inspect n1")]
    Inspect(Inspect),
    /// Change labels and availability
    #[command(
        before_help = "  applyctl node update n1 --label-add disk=ssd\n  applyctl node update n1 --availability drain"
    )]
    Update(NodeUpdate),
}

#[derive(Debug, ClapArgs)]
pub struct NodeUpdate {
    /// The node
    #[arg(add = ArgValueCompleter::new(complete::nodes))]
    pub name: String,
    /// active; pause: no new tasks; drain: none at all
    #[arg(long, value_name = "WORD", hide_possible_values = true)]
    pub availability: Option<NodeAvailability>,
    /// Label the node
    #[arg(long, value_name = "KEY=VALUE")]
    pub label_add: Vec<String>,
    /// Labels to take away
    #[arg(long, value_name = "KEY")]
    pub label_rm: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NodeAvailability {
    Active,
    Pause,
    Drain,
}

#[derive(Debug, Subcommand)]
pub enum Registry {
    /// Remember who you are for a registry, if it agrees; nodes pull with it
    #[command(before_help = "  applyctl registry login registry.example.com -u ann --password-stdin < password")]
    Login(Login),
    /// Forget who you are for a registry
    #[command(before_help = "  applyctl registry logout registry.example.com")]
    Logout(Logout),
    /// List logins
    #[command(alias = "list", before_help = "  applyctl registry ls")]
    Ls(Ls),
}

#[derive(Debug, ClapArgs)]
#[command(
    before_help = "  applyctl login registry.example.com -u ann --password-stdin < password\n  applyctl login docker.io -u ann"
)]
pub struct Login {
    /// Host and port; docker.io for Docker Hub
    pub registry: String,
    /// Who you are there
    #[arg(short, long)]
    pub username: String,
    /// Read the password from the standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// Store it without asking the registry whether it is right
    #[arg(long)]
    pub no_check: bool,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl init\n  applyctl init --title brave-otter")]
pub struct Init {
    /// What people call the cluster; one is made up when it is left out
    #[arg(long, value_name = "NAME")]
    pub title: Option<String>,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl logout registry.example.com")]
pub struct Logout {
    /// Host and port; docker.io for Docker Hub
    pub registry: String,
}

#[derive(Debug, Subcommand)]
#[command(
    before_help = "  applyctl image pull example/web:1\n  tar -C layout -c . | applyctl image import - --name example/web:1"
)]
pub enum Image {
    /// What is there, and which services use it
    #[command(alias = "list", before_help = "  applyctl image ls")]
    Ls,
    /// Take in the images of an archive: an OCI layout or what `docker save` writes, as tar, maybe compressed
    #[command(
        before_help = "  applyctl image import images.tar\n  tar -C layout -c . | applyctl image import - --name example/web:1"
    )]
    Import {
        /// - for the standard input
        file: PathBuf,
        /// For the image of an archive that names none
        #[arg(long, value_name = "IMAGE")]
        name: Option<String>,
    },
    /// Fetch an image from its registry, with the namespace's login if there is one
    #[command(before_help = "  applyctl image pull example/web:1")]
    Pull {
        /// As a service would name it
        image: String,
    },
    /// Let go of images by name
    #[command(alias = "remove", before_help = "  applyctl image rm example/web:1")]
    Rm {
        /// As image ls names them
        #[arg(required = true)]
        images: Vec<String>,
        /// Even while services use it: their next task pulls it again
        #[arg(short, long)]
        force: bool,
    },
    /// Remove every image that no service and no task names
    #[command(before_help = "  applyctl image prune\n  applyctl image prune --imported --yes")]
    Prune {
        /// Those that came from archives as well: they cannot be pulled again
        #[arg(long)]
        imported: bool,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl backup monday.backup\n  applyctl backup /mnt/backups/$(date +%F)")]
pub struct Backup {
    /// Where to; a file that is there is replaced once the new one is whole
    pub file: PathBuf,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl proxy --kubeconfig ./kubeconfig &\n  applyctl proxy --kubeconfig - > kubeconfig")]
pub struct Proxy {
    /// Port of 127.0.0.1; any that is free when it is left out
    #[arg(short, long, default_value_t = 0, hide_default_value = true)]
    pub port: u16,
    /// Where the kubeconfig goes, with a key in it (mode 0600), until the command ends; - for the standard output
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
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
        #[arg(long, value_name = "NUMBER")]
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
        #[arg(long, alias = "to-revision", value_name = "NUMBER")]
        to: Option<u64>,
        #[command(flatten)]
        reason: Reason,
        #[command(flatten)]
        patience: Patience,
    },
}

#[derive(Debug, Subcommand)]
pub enum System {
    /// Whether all is well
    #[command(alias = "info", before_help = "  applyctl system status")]
    Status,
    /// What objects and volumes there are, and how large
    #[command(before_help = "  applyctl system df")]
    Df,
    /// Remove what nothing uses: volumes that no service names
    #[command(before_help = "  applyctl system prune --volumes --yes")]
    Prune(Prune),
    /// Remove everything of this machine: containers, volumes with their data, images, network, the store
    #[command(before_help = "  applyctl system reset")]
    Reset {
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub struct Prune {
    /// Remove volumes that no service names, with their data
    #[arg(long, required = true)]
    pub volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
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
