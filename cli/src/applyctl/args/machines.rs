//! Machines and what is on them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use schemas::kinds::cluster::DataPlane;
use schemas::kinds::network::Cidr;

use super::{Inspect, Ls, Patience, Rm};
use crate::applyctl::complete;
use crate::applyctl::words::parse_duration;

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl init\n  applyctl init --title brave-otter\n  applyctl init --force-new-cluster")]
pub struct Init {
    /// What people call the cluster; one is made up when it is left out
    #[arg(long, value_name = "NAME")]
    pub title: Option<String>,
    /// Whether what tasks say to tasks on other machines is encrypted (WireGuard) or sent as it is: for a network of your own,
    /// where speed is worth more; default encrypted
    #[arg(long, value_name = "encrypted|plain", value_parser = data_plane)]
    pub data_plane: Option<DataPlane>,
    /// Lock the key of secrets and of the authority by a passphrase, on the disk of each manager: it is asked for after each boot
    /// (applyctl unlock)
    #[arg(long)]
    pub lock: bool,
    /// Read the passphrase from the standard input
    #[arg(long, requires = "lock")]
    pub passphrase_stdin: bool,
    /// On a manager whose others are gone for good: go on alone with what it has. What was acknowledged by those alone is lost;
    /// one that is back after all asks for a place anew
    #[arg(long, conflicts_with_all = ["title", "data_plane", "lock"])]
    pub force_new_cluster: bool,
    /// Do not ask
    #[arg(short, long, requires = "force_new_cluster")]
    pub yes: bool,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl unlock\n  applyctl unlock --passphrase-stdin")]
pub struct Unlock {
    /// Read the passphrase from the standard input
    #[arg(long)]
    pub passphrase_stdin: bool,
}

fn data_plane(text: &str) -> Result<DataPlane, String> {
    match text {
        "encrypted" => Ok(DataPlane::Encrypted),
        "plain" => Ok(DataPlane::Plain),
        _ => Err("say encrypted or plain".to_owned()),
    }
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl leave\n  applyctl leave --force")]
pub struct Leave {
    /// At once, whatever runs here: it is replaced elsewhere afterwards
    #[arg(short, long)]
    pub force: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl join 10.0.0.1 APPLY-1-…\n  applyctl join n1.example.com:7677 APPLY-1-… --node n2")]
pub struct Join {
    /// A manager, as this machine reaches it
    #[arg(value_name = "ADDRESS[:PORT]")]
    pub address: String,
    /// What `applyctl token create` on a manager has printed
    pub token: String,
    /// What this machine is called in the cluster; default its host name
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token that machines join with; it is shown once
    #[command(before_help = "  applyctl token create\n  applyctl token create --ttl 1h")]
    Create(TokenCreate),
    /// List tokens; their secrets are not kept
    #[command(alias = "list", before_help = "  applyctl token ls")]
    Ls(Ls),
    /// Take tokens back; machines that joined with them stay
    #[command(before_help = "  applyctl token revoke worker-4f2a9c01")]
    Revoke {
        /// As `token ls` names them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub struct TokenCreate {
    /// What machines become with it: worker or manager
    #[arg(long, value_name = "ROLE", default_value = "worker", hide_possible_values = true)]
    pub role: TokenRole,
    /// How long it is taken; default the cluster's time (24h)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub ttl: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub enum Ca {
    /// The authorities that are believed, and how many machines have a certificate of each
    #[command(alias = "list", before_help = "  applyctl ca ls")]
    Ls,
    /// Have another authority sign, without a connection dropped: machines learn to believe it, get certificates of it, and
    /// believe the one before no more. Credentials of people and join tokens of before end with that one
    #[command(before_help = "  applyctl ca rotate\n  applyctl ca rotate --overlap 0s")]
    Rotate(CaRotate),
}

#[derive(Debug, ClapArgs)]
pub struct CaRotate {
    /// How long what the one before has signed is good beside the next one, 0s when its key is known to others; kept for the
    /// next time; default the cluster's (24h)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub overlap: Option<Duration>,
    #[command(flatten)]
    pub patience: Patience,
}

#[derive(Debug, Subcommand)]
pub enum User {
    /// Let somebody in, and write the credentials to a file, which kubectl takes as well
    #[command(
        before_help = "  applyctl user create ann --role admin\n  applyctl user create ci --role edit --namespace shop --valid 2160h ci.yaml"
    )]
    Create(UserCreate),
    /// Make new credentials for somebody who is let in; those before stay good until their end
    #[command(before_help = "  applyctl user credentials ann")]
    Credentials(UserCredentials),
    /// List users
    #[command(alias = "list", before_help = "  applyctl user ls")]
    Ls(Ls),
    /// Let somebody in no longer, on open connections as well
    #[command(alias = "remove", before_help = "  applyctl user rm ann")]
    Rm(Rm),
}

#[derive(Debug, ClapArgs)]
pub struct UserCreate {
    /// Name
    pub name: String,
    /// admin: everything; edit: applications and commands in their tasks; view: to look. With --namespace, there only
    #[arg(long, value_name = "ROLE", hide_possible_values = true)]
    pub role: UserRole,
    /// Also to have tasks take of their machines what containers do not get: folders, devices, capabilities, system calls. That
    /// is as good as being root there
    #[arg(long)]
    pub host_access: bool,
    #[command(flatten)]
    pub file: CredentialsFile,
}

#[derive(Debug, ClapArgs)]
pub struct UserCredentials {
    /// Name
    pub name: String,
    #[command(flatten)]
    pub file: CredentialsFile,
}

/// Where credentials go, and how long they hold.
#[derive(Clone, Debug, ClapArgs)]
pub struct CredentialsFile {
    /// Where the credentials go (mode 0600); default NAME.yaml; - for the standard output
    pub file: Option<PathBuf>,
    /// How long they hold
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "8760h")]
    pub valid: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UserRole {
    Admin,
    Edit,
    View,
}

#[derive(Debug, Subcommand)]
pub enum Controller {
    /// Let a controller of other authors in, with no more than it needs, and write its credentials to a file
    #[command(
        before_help = "  applyctl controller grant widgets --kinds widgets.example.com\n  applyctl controller grant widgets --kinds widgets.example.com --read services,tasks -n shop"
    )]
    Grant(ControllerGrant),
    /// List controllers, and what each may
    #[command(alias = "list", before_help = "  applyctl controller ls")]
    Ls,
    /// Let a controller in no longer, on open connections as well
    #[command(before_help = "  applyctl controller revoke widgets")]
    Revoke(Rm),
}

#[derive(Debug, ClapArgs)]
pub struct ControllerGrant {
    /// Name; its Lease is in the namespace controller-NAME
    pub name: String,
    /// Its own kinds: all of them, their status and finalizers too. With --namespace, there only
    #[arg(long, required = true, value_delimiter = ',', value_name = "KINDS")]
    pub kinds: Vec<String>,
    /// Kinds whose objects it makes for those, without their status. Who may write services is root on the machines
    #[arg(long, value_delimiter = ',', value_name = "KINDS")]
    pub write: Vec<String>,
    /// Kinds that it looks at
    #[arg(long, value_delimiter = ',', value_name = "KINDS")]
    pub read: Vec<String>,
    #[command(flatten)]
    pub file: CredentialsFile,
}

#[derive(Debug, Subcommand)]
pub enum Context {
    /// List contexts; the current one has a mark
    #[command(alias = "list", before_help = "  applyctl context ls")]
    Ls,
    /// Make another one current
    #[command(before_help = "  applyctl context use brave-otter")]
    Use {
        /// Name
        name: String,
    },
    /// Take over the contexts of a credentials file; the first is current from then on
    #[command(before_help = "  applyctl context add ann.yaml\n  applyctl context add ann.yaml --name production")]
    Add(ContextAdd),
    /// Forget contexts, with their credentials
    #[command(alias = "remove", before_help = "  applyctl context rm brave-otter")]
    Rm {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub struct ContextAdd {
    /// What `applyctl user create` has written
    pub file: PathBuf,
    /// What the context is called here; default as in the file
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenRole {
    Worker,
    Manager,
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
        before_help = "  applyctl node update n1 --label-add disk=ssd\n  applyctl node update n1 --availability pause"
    )]
    Update(NodeUpdate),
    /// Empty nodes: their tasks are replaced elsewhere, and no new ones come
    #[command(before_help = "  applyctl node drain n2\n  applyctl node ps n2")]
    Drain(NodeNames),
    /// Let no new tasks come to nodes; those that are there stay
    #[command(before_help = "  applyctl node pause n2")]
    Pause(NodeNames),
    /// Let tasks come to nodes again
    #[command(before_help = "  applyctl node activate n2")]
    Activate(NodeNames),
    /// Make workers managers: they hold the store too, and answer the API
    #[command(before_help = "  applyctl node promote n2 n3")]
    Promote(NodeNames),
    /// Make managers workers: they lose their copy of the store, and keys
    #[command(before_help = "  applyctl node demote n3")]
    Demote(NodeNames),
    /// Take machines out of the cluster that are lost, or switched off for good
    #[command(alias = "remove", before_help = "  applyctl node rm n3\n  applyctl node rm n3 --force")]
    Rm(NodeRm),
}

#[derive(Debug, ClapArgs)]
pub struct NodeRm {
    #[command(flatten)]
    pub rm: Rm,
    /// Though it is still heard of: what it runs is replaced, and runs on there until it is reset
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, ClapArgs)]
pub struct NodeNames {
    /// The nodes
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete::nodes))]
    pub names: Vec<String>,
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
pub enum Secret {
    /// Keep data that only tasks may read; --secret of a service gives it to them
    #[command(
        before_help = "  applyctl secret create db-password password.txt\n  openssl rand -hex 32 | applyctl secret create db-password -"
    )]
    Create(DataCreate),
    /// Give a secret other data; the services that see it are updated
    #[command(before_help = "  applyctl secret update db-password new.txt")]
    Update(DataUpdate),
    /// List secrets; what is in them is not shown
    #[command(alias = "list", before_help = "  applyctl secret ls")]
    Ls(Ls),
    /// Everything about a secret but its data, as JSON unless -o says otherwise
    #[command(before_help = "  applyctl secret inspect db-password")]
    Inspect(Inspect),
    /// Remove secrets that no service sees
    #[command(alias = "remove", before_help = "  applyctl secret rm db-password")]
    Rm(Rm),
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Keep a file for tasks; --config of a service gives it to them
    #[command(before_help = "  applyctl config create nginx nginx.conf")]
    Create(DataCreate),
    /// Give a config other data; the services that see it are updated
    #[command(before_help = "  applyctl config update nginx nginx.conf")]
    Update(DataUpdate),
    /// List configs
    #[command(alias = "list", before_help = "  applyctl config ls")]
    Ls(Ls),
    /// Everything about a config, as JSON unless -o says otherwise; its data in base64
    #[command(before_help = "  applyctl config inspect nginx")]
    Inspect(Inspect),
    /// Remove configs that no service sees
    #[command(alias = "remove", before_help = "  applyctl config rm nginx")]
    Rm(Rm),
}

#[derive(Debug, ClapArgs)]
pub struct DataCreate {
    /// Name
    pub name: String,
    /// The file that holds the data; - for the standard input
    pub file: PathBuf,
    /// A label: tier=front
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct DataUpdate {
    /// Name
    pub name: String,
    /// The file that holds the data; - for the standard input
    pub file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Network {
    /// Make a network; services are attached to it by --network
    #[command(
        before_help = "  applyctl network create back\n  applyctl network create vault --internal --subnet 10.7.0.0/16"
    )]
    Create(NetworkCreate),
    /// List networks
    #[command(alias = "list", before_help = "  applyctl network ls")]
    Ls(Ls),
    /// Everything about a network, as JSON unless -o says otherwise
    #[command(before_help = "  applyctl network inspect shop-back")]
    Inspect(Inspect),
    /// Remove networks
    #[command(alias = "remove", before_help = "  applyctl network rm back --yes")]
    Rm(Rm),
    /// Try from every machine whether a service is reached (its tasks, virtual addresses and published ports, by TCP), and say which
    /// hop fails; ends with 1 if one does
    #[command(before_help = "  applyctl network probe shop-web")]
    Probe(NetworkProbe),
}

#[derive(Debug, ClapArgs)]
pub struct NetworkProbe {
    /// The service
    #[arg(add = ArgValueCompleter::new(complete::services))]
    pub service: String,
}

#[derive(Debug, ClapArgs)]
pub struct NetworkCreate {
    /// The name that services know it by
    pub name: String,
    /// Where its addresses come from; default a part of the cluster's pool
    #[arg(long, value_name = "SUBNET")]
    pub subnet: Vec<Cidr>,
    /// No way out of it, neither to the world nor to other networks
    #[arg(long)]
    pub internal: bool,
    /// A label of the network
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// Docker's word for a network over all machines; every network here is one
    #[arg(short, long, value_name = "DRIVER", hide = true, value_parser = ["overlay"])]
    pub driver: Option<String>,
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
