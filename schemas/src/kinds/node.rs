//! Node: a machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use reconciler_api::{Conditions, Resource, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;
use super::service::Protocol;
use super::template::Platform;
use crate::level::Level;
use crate::quantity::{Cpus, Size};

/// A machine. Made when it joins; the user writes labels, availability and role, `status.machine` is written by the
/// machine itself, the conditions by the node controller.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", kind = "Node", status = NodeStatus, scope = "Cluster", short("no"),
    column("ROLE", "/spec/role"), column("STATE", "/status/state"), column("AVAILABILITY", "/spec/availability"),
    wide_column("LOAD", "/status/load"),
    column("VERSION", "/status/machine/versions/apply"), wide_column("ADDRESS", "/status/machine/addresses"),
    wide_column("CPUS", "/status/machine/resources/cpus"), wide_column("MEMORY", "/status/machine/resources/memory")
)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Labels of the machine, which constraints name as `node.labels.X`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether tasks may be here.
    #[serde(skip_serializing_if = "is_default")]
    pub availability: Availability,
    /// What the machine does for the cluster, besides running tasks.
    #[serde(skip_serializing_if = "is_default")]
    pub role: Role,
}

/// Whether tasks may be on a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "active"))]
pub enum Availability {
    /// New tasks may come.
    #[default]
    Active,
    /// No new tasks; those that are there stay.
    Pause,
    /// No tasks: they are replaced elsewhere.
    Drain,
}

/// What a machine does for the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("default" = "worker"))]
pub enum Role {
    /// Runs tasks, and knows only what concerns them.
    #[default]
    Worker,
    /// Also holds the store and answers the API.
    Manager,
}

/// What is observed of a machine. Written by the machine itself and by the node controller, as each field says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// The `metadata.generation` that this status speaks of.
    pub observed_generation: i64,
    /// The conditions in one word.
    pub state: NodeState,
    /// Written by the machine itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// The machine's address in the cluster's own network, of the pool `addresses.nodes` of the Cluster: what tasks see
    /// when the machine speaks to them. Written by the network controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay_address: Option<Ipv4Addr>,
    /// How what others say to its tasks is encrypted for it; absent while nothing is. Written by the machine itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<NodeTunnel>,
    /// What it shows to other machines, and whom it believes. Written by the machine itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<NodeIdentity>,
    /// How busy its processors are; written by the machine itself, when it has changed.
    #[serde(skip_serializing_if = "is_default")]
    pub load: Load,
    /// What on the machine is in the way of published ports and is not ours to change. Written by the machine itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub obstacles: Vec<Obstacle>,
    /// What stands in its way: `Runtime`, written by the machine itself, is false while its container runtime does not
    /// answer.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}

impl Node {
    /// Where it answers the API; empty unless it is a manager that has said so.
    pub fn api_addresses(&self) -> &[SocketAddr] {
        let machine = self.status.as_ref().and_then(|status| status.machine.as_ref());
        match machine {
            Some(machine) if self.spec.role == Role::Manager => &machine.api_addresses,
            _ => &[],
        }
    }

    /// The version of its applyd, and what that can do; absent until it has said so, and where it is no version.
    pub fn version(&self) -> Option<(&str, Level)> {
        let version = &*self.status.as_ref()?.machine.as_ref()?.versions.apply;
        Some((version, Level::of(version)?))
    }

    /// Too many of its heartbeats were missed: what it runs is nobody's help, and may run on for all that is known.
    pub fn is_lost(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.state == NodeState::Lost)
    }
}

/// How busy the processors of a machine are: what runs or waits to (the load average of a minute) to their number. Coarse,
/// since each change is a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Low"))]
pub enum Load {
    /// Below three quarters.
    #[default]
    Low,
    /// Up to twice as much as there are processors for.
    High,
    /// More than that.
    Over,
}

impl Load {
    /// At a ratio of load to processors, after having been at another level: it falls only well below the line that it
    /// rose at, so that it does not go to and fro.
    pub fn at(ratio: f64, before: Load) -> Load {
        let (high, over) = (0.75, 2.0);
        let line = |line: f64, is_above: bool| if is_above { line * 0.8 } else { line };
        match ratio {
            ratio if ratio >= line(over, before == Load::Over) => Load::Over,
            ratio if ratio >= line(high, before >= Load::High) => Load::High,
            _ => Load::Low,
        }
    }
}

/// Whether a machine can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "Unknown"))]
pub enum NodeState {
    /// Not heard of since this leader began, or not yet.
    #[default]
    Unknown,
    /// Its heartbeats come, and nothing is in its way.
    Ready,
    /// It is heard of, and nothing can be started there: its conditions say why.
    NotReady,
    /// Too many heartbeats were missed.
    Lost,
}

/// A machine as it describes itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Machine {
    /// Host name of the machine (`uname -n`); constraints know it as `node.hostname`.
    pub hostname: String,
    /// Operating system and architecture, as in image manifests.
    pub platform: Platform,
    /// What its tasks can use together.
    pub resources: MachineResources,
    /// Addresses that other machines reach it at, the preferred one first.
    pub addresses: Vec<IpAddr>,
    /// Where it answers the API as a manager, the preferred one first; empty on a worker.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_addresses: Vec<SocketAddr>,
    /// Versions of what runs there, for people.
    pub versions: Versions,
    /// Labels that the daemon was started with: `engine.labels.X`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Identity of the running kernel: another one after each boot.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// When the kernel started, by the machine's clock; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub booted_at: Option<Timestamp>,
    /// cgroup version: 1 or 2.
    #[serde(skip_serializing_if = "is_default")]
    pub cgroup_version: u8,
}

/// Where a machine is sent what is encrypted for it, and by which keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeTunnel {
    /// UDP port that it listens at.
    pub port: u16,
    /// Its public WireGuard keys (32 bytes in base64), the newest first. There are two while they change.
    pub keys: Vec<String>,
}

/// What a machine shows to others, and whom it believes. Authorities are named by their fingerprints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeIdentity {
    /// The authority that signed its certificate.
    pub signed_by: String,
    /// Until when its certificate holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The authorities that it believes.
    pub believes: Vec<String>,
    /// The authorities whose keys it has, as a manager; the first is the one that it signs with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<String>,
}

/// Something on a machine that is in the way of what shall run there.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Obstacle {
    /// What is in the way.
    pub kind: ObstacleKind,
    /// The published port that somebody listens on; absent for firewalls, which concern all ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The protocol of `port`.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// Who is in the way, for people: `nginx (pid 812) listens at 0.0.0.0`.
    pub message: String,
}

/// What can be in the way of what shall run on a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("default" = "PortTaken"))]
pub enum ObstacleKind {
    /// A process listens on a published port, which therefore stays closed on this machine.
    #[default]
    PortTaken,
    /// A firewall drops what tasks send or get.
    Firewall,
}

/// What tasks of a machine can use together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineResources {
    /// Processors that the machine's daemon may run on.
    pub cpus: Cpus,
    /// Memory of the machine, in bytes.
    pub memory: Size,
    /// Countable things that tasks may reserve, such as `gpu: 2`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub generic: BTreeMap<String, u64>,
}

/// Versions of what runs on a machine; empty where they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Versions {
    /// Of applyd.
    pub apply: String,
    /// Of the containerd that it uses.
    pub containerd: String,
    /// Of the OCI runtime, with its name: `runc 1.1.4`.
    pub runtime: String,
    /// Of the kernel (`uname -r`).
    pub kernel: String,
    /// Of the distribution: `Debian GNU/Linux 12`.
    pub os: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_falls_only_well_below_the_line_that_it_rose_at() {
        let levels = [0.1, 0.74, 0.76, 0.7, 0.61, 0.59, 1.9, 2.1, 1.7, 1.5, 0.0];
        let mut level = Load::Low;
        let seen: Vec<Load> = levels
            .iter()
            .map(|ratio| {
                level = Load::at(*ratio, level);
                level
            })
            .collect();
        let (low, high, over) = (Load::Low, Load::High, Load::Over);
        assert_eq!(seen, [low, low, high, high, high, low, high, over, over, high, low]);
    }
}
