//! Services, their tasks, and what those print and run.

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use schemas::deploy::Replicas;
use schemas::kinds::service::{OnDisconnect, UpdateOrder};

use super::{Inspect, Ls, Patience, Reason, Rm};
use crate::applyctl::complete;
use crate::applyctl::words::parse_number;

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

#[derive(Debug, ClapArgs)]
pub struct Rebalance {
    /// The services
    #[arg(required = true, value_name = "SERVICE", add = ArgValueCompleter::new(complete::services))]
    pub names: Vec<String>,
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
    /// Spread tasks evenly over the nodes that there are now: one after the other moves, the next serving first
    #[command(before_help = "  applyctl service rebalance shop-web")]
    Rebalance(Rebalance),
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

/// What a service's spec can be told by flags. The names are those of `docker service`.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct ServiceFlags {
    /// Open a port on every machine: PUBLISHED:PORT, PORT, with /udp behind; on those alone that run a task, which has it for
    /// itself: published=8080,target=80,mode=host
    #[arg(short, long, value_name = "PORTS")]
    pub publish: Vec<String>,
    /// How many tasks there are
    #[arg(long, value_name = "N", value_parser = parse_number::<u32>)]
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
    /// A secret that the tasks see as a file: NAME, or source=NAME,target=PATH,uid=0,gid=0,mode=0444
    #[arg(long, value_name = "NAME")]
    pub secret: Vec<String>,
    /// A config that the tasks see as a file, said like a secret
    #[arg(long, value_name = "NAME")]
    pub config: Vec<String>,
    /// Where tasks may run: node.labels.disk==ssd
    #[arg(long, value_name = "EXPRESSION")]
    pub constraint: Vec<String>,
    /// Spread tasks evenly over the values of a label: spread=node.labels.zone; may be repeated, the first comes first
    #[arg(long, value_name = "spread=LABEL")]
    pub placement_pref: Vec<String>,
    /// Most tasks of the service on one node; 0: no limit
    #[arg(long, value_name = "N", value_parser = parse_number::<u32>)]
    pub replicas_max_per_node: Option<u32>,
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
    #[arg(long, value_name = "N", value_parser = parse_number::<u32>)]
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
    #[arg(long, value_name = "N", value_parser = parse_number::<u32>)]
    pub health_retries: Option<u32>,
    /// Failures so soon after the start do not count
    #[arg(long, value_name = "TIME")]
    pub health_start_period: Option<schemas::Period>,
    /// Tasks that an update replaces at once; 0: all
    #[arg(long, value_name = "N", value_parser = parse_number::<u32>)]
    pub update_parallelism: Option<u32>,
    /// stop-first, or start-first: the next one serves before the one before it goes
    #[arg(long, value_name = "ORDER", value_parser = parse_order)]
    pub update_order: Option<UpdateOrder>,
    /// What becomes of tasks whose node is lost: replace, keep, or how long it is waited for, such as 10m
    #[arg(long, value_name = "WHAT")]
    pub on_disconnect: Option<OnDisconnect>,
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
    /// Preferences to take away
    #[arg(long, value_name = "spread=LABEL")]
    pub placement_pref_rm: Vec<String>,
    /// Targets of mounts to take away
    #[arg(long, value_name = "TARGET")]
    pub mount_rm: Vec<String>,
    /// Secrets to take away
    #[arg(long, value_name = "NAME")]
    pub secret_rm: Vec<String>,
    /// Configs to take away
    #[arg(long, value_name = "NAME")]
    pub config_rm: Vec<String>,
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
    /// A service or a task, also as service/NAME or task/NAME
    #[arg(add = ArgValueCompleter::new(complete::services_and_tasks))]
    pub name: String,
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines of each task
    #[arg(long, value_name = "N", value_parser = parse_number::<u64>)]
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
    /// A task, or a service with a running task, also as task/NAME or service/NAME
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

fn parse_order(text: &str) -> Result<UpdateOrder, String> {
    match text {
        "stop-first" => Ok(UpdateOrder::StopFirst),
        "start-first" => Ok(UpdateOrder::StartFirst),
        _ => Err("there are stop-first and start-first".to_owned()),
    }
}
