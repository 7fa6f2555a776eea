//! What is meant by saying nothing. Each default and limit once, with its source; the types' accessors, the JSON Schema
//! (`default`, `x-source`) and `applyctl explain` all read it here.

use std::fmt::Display;

use crate::quantity::{Cpus, Period, Size};

/// A value and where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Sourced<T> {
    /// The default or limit itself.
    pub value: T,
    /// Whose it is and why: `Docker's (StopGracePeriod)`. `applyctl explain` shows it.
    pub source: &'static str,
}

impl<T: Display> Sourced<T> {
    /// As it stands in JSON, for values whose JSON is a string.
    pub fn text(&self) -> String {
        self.value.to_string()
    }
}

const fn sourced<T>(value: T, source: &'static str) -> Sourced<T> {
    Sourced { value, source }
}

/// `spec.replicas` of a Service.
pub const REPLICAS: Sourced<u32> = sourced(1, "Docker's (ServiceSpec.Mode)");
/// Most tasks that one Service may ask for.
pub const REPLICAS_MAX: Sourced<u32> = sourced(10_000, "ours: a digit too many must not fill the store");
/// Least that `limits.cpus` and `reservations.cpus` may say.
pub const CPUS_MIN: Sourced<Cpus> = sourced(Cpus::from_milli(1), "Docker's (NanoCPUs)");
/// Least that `limits.memory` and `reservations.memory` may say.
pub const MEMORY_MIN: Sourced<Size> = sourced(Size::from_mib(4), "Docker's (MemoryBytes)");
/// `stopGrace` of a container: from the signal to the kill.
pub const STOP_GRACE: Sourced<Period> = sourced(Period::from_secs(10), "Docker's (StopGracePeriod)");
/// Longest `stopGrace`.
pub const STOP_GRACE_MAX: Sourced<Period> =
    sourced(Period::from_secs(3600), "ours: longer is a task that does not stop");
/// `stopSignal` of a container.
pub const STOP_SIGNAL: Sourced<&str> = sourced("SIGTERM", "Docker's, where the image names none");

/// `interval` of a probe: from the end of one run to the start of the next.
pub const PROBE_INTERVAL: Sourced<Period> = sourced(Period::from_secs(30), "Docker's (Healthcheck.Interval)");
/// `timeout` of a probe: how long one run may take.
pub const PROBE_TIMEOUT: Sourced<Period> = sourced(Period::from_secs(30), "Docker's (Healthcheck.Timeout)");
/// `retries` of a probe: failures in a row that make it unhealthy.
pub const PROBE_RETRIES: Sourced<u32> = sourced(3, "Docker's (Healthcheck.Retries)");
/// `startPeriod` of a probe: how long after the start failures do not count.
pub const PROBE_START_PERIOD: Sourced<Period> = sourced(Period::ZERO, "Docker's (Healthcheck.StartPeriod)");
/// `startInterval` of a probe: what stands for `interval` within `startPeriod`.
pub const PROBE_START_INTERVAL: Sourced<Period> = sourced(Period::from_secs(5), "Docker's (Healthcheck.StartInterval)");

/// Longest of each period of a probe.
pub const PROBE_PERIOD_MAX: Sourced<Period> = sourced(Period::from_secs(86_400), "ours: a check a day is none");

/// Longest `restart.delay`.
pub const RESTART_DELAY_MAX: Sourced<Period> = sourced(Period::from_secs(86_400), "ours: a day; a schedule is a job's");
/// `restart.window`: restarts within it count for `restart.maxAttempts`.
pub const RESTART_WINDOW: Sourced<Period> = sourced(Period::ZERO, "Docker's (RestartPolicy.Window); 0s = since ever");
/// `restart.maxAttempts`.
pub const RESTART_MAX_ATTEMPTS: Sourced<u32> = sourced(0, "Docker's (RestartPolicy.MaxAttempts); 0 = no limit");
/// The first delay of the back-off that applies where no `restart.delay` is stated.
pub const RESTART_BACKOFF_FIRST: Sourced<Period> =
    sourced(Period::from_millis(500), "the design's: once free, then 0.5 s x 2^n");
/// Longest delay of the back-off.
pub const RESTART_BACKOFF_MAX: Sourced<Period> = sourced(Period::from_secs(60), "the design's");
/// A task that ran longer than this before it ended starts the back-off anew.
pub const RESTART_BACKOFF_QUICK: Sourced<Period> = sourced(Period::from_secs(10), "the design's");

/// `update.parallelism`: tasks in a batch.
pub const UPDATE_PARALLELISM: Sourced<u32> = sourced(1, "Docker's (UpdateConfig.Parallelism); 0 = all at once");
/// `update.delay`: pause between two batches.
pub const UPDATE_DELAY: Sourced<Period> = sourced(Period::ZERO, "Docker's (UpdateConfig.Delay)");
/// `update.monitor`: how long each new task is watched.
pub const UPDATE_MONITOR: Sourced<Period> = sourced(Period::from_secs(5), "Docker's (UpdateConfig.Monitor)");
/// `update.maxFailureRatio`: the part of the tasks, 0 to 1, that may fail.
pub const UPDATE_MAX_FAILURE_RATIO: Sourced<f64> = sourced(0.0, "Docker's (UpdateConfig.MaxFailureRatio)");
/// `update.minReady`: how long a batch has to have been healthy.
pub const UPDATE_MIN_READY: Sourced<Period> = sourced(Period::ZERO, "the design's: monitor watches, minReady gates");

/// Longest of each period of an update.
pub const UPDATE_PERIOD_MAX: Sourced<Period> =
    sourced(Period::from_secs(7 * 86_400), "ours: a week between two batches");

/// Longest `drain` of a Service.
pub const DRAIN_MAX: Sourced<Period> = sourced(Period::from_secs(3600), "as STOP_GRACE_MAX");
/// `drain` of a Service: how long a leaving task goes on serving.
pub const DRAIN: Sourced<Period> = sourced(Period::from_secs(5), "half of the grace that Docker gives a stop");

/// `log.options.max-size`: size at which the next file of a task's log is begun.
pub const LOG_MAX_SIZE: Sourced<Size> =
    sourced(Size::from_mib(10), "ours: a task's log is bounded unless asked otherwise");
/// `log.options.max-file`: files of a task's log, the one being written included.
pub const LOG_MAX_FILE: Sourced<u32> = sourced(3, "ours: the file being written and two before it");

/// Published ports that nobody named are given from here.
pub const ALLOCATED_PORTS: Sourced<(u16, u16)> = sourced((30_000, 32_767), "Docker's (ingress allocation)");

/// Cut into a subnet a network and a block a machine: 256 networks on 64 machines at the default sizes. Tasks and nodes
/// lie side by side in 10.128.0.0/9, so that one element tells overlay addresses from all others.
pub const TASK_ADDRESSES: Sourced<&str> = sourced("10.192.0.0/10", "256 networks x 64 machines x 254 tasks");
/// `addresses.virtuals` of the Cluster: virtual addresses of services.
pub const VIRTUAL_ADDRESSES: Sourced<&str> =
    sourced("10.129.0.0/16", "beside the machines, in the same 10.128.0.0/9; 65,534 services");
/// `addresses.nodes` of the Cluster: one address a machine.
pub const NODE_ADDRESSES: Sourced<&str> = sourced("10.128.0.0/16", "beside the task pool; 65,534 machines");
/// `addresses.nodeBlockPrefix` of the Cluster: bits of the prefix of a machine's block in a network.
pub const NODE_BLOCK_PREFIX: Sourced<u8> = sourced(24, "Docker's (SubnetSize); 254 tasks of a network on a machine");
/// `periods.heartbeat` of the Cluster.
pub const HEARTBEAT: Sourced<Period> =
    sourced(Period::from_millis(500), "three of them are the 1.5 s after which a node is lost");
/// `periods.heartbeatsMissed` of the Cluster: so many, and a node is lost.
pub const HEARTBEATS_MISSED: Sourced<u32> = sourced(3, "Docker's (dispatcher grace)");
/// `periods.nodeCertificate` of the Cluster: life of a node's certificate.
pub const NODE_CERTIFICATE: Sourced<Period> =
    sourced(Period::from_secs(86_400), "the design's: 24 h, renewed by itself");
/// `periods.joinToken` of the Cluster: life of a join token.
pub const JOIN_TOKEN: Sourced<Period> = sourced(Period::from_secs(86_400), "the design's: 24 h");
/// `authority.overlap` of the Cluster: how long an authority is believed that signs no more.
pub const AUTHORITY_OVERLAP: Sourced<Period> =
    sourced(Period::from_secs(86_400), "as long as a node's certificate; for people to get new credentials");
/// Most bytes of a Secret, before base64.
pub const SECRET_BYTES_MAX: Sourced<usize> = sourced(511_999, "Docker's (SecretSpec.Data)");
/// Most bytes of a Config, before base64.
pub const CONFIG_BYTES_MAX: Sourced<usize> =
    sourced(960_000, "what base64 and the envelope leave of an object's 1.25 MiB (Docker's is 1,023,999)");
/// `history.tasksPerSlot` of the Cluster: tasks kept for each slot, the live one included.
pub const TASK_HISTORY: Sourced<u32> = sourced(5, "Docker's (TaskHistoryRetentionLimit)");
/// `history.revisions` of the Cluster: revisions kept for each service and bundle.
pub const REVISION_HISTORY: Sourced<u32> = sourced(10, "the design's; Kubernetes' revisionHistoryLimit");
/// How many attempts of a task its status keeps.
pub const TASK_ATTEMPTS: Sourced<usize> = sourced(5, "the design's");
/// How long an Event is kept after it was last seen.
pub const EVENT_LIFETIME: Sourced<Period> = sourced(Period::from_secs(86_400), "the design's: 24 h");
/// Most Events that are kept; the oldest go first.
pub const EVENTS_MAX: Sourced<usize> = sourced(10_000, "the design's");
/// How long a JoinToken is kept after its end, so that whoever still has it is told that it has expired.
pub const JOIN_TOKEN_KEPT: Sourced<Period> = sourced(Period::from_secs(86_400), "as an Event's");
/// `spec.ttl` of a Lease.
pub const LEASE_TTL: Sourced<Period> =
    sourced(Period::from_secs(3), "two lost renewals of one second do not change the leader");
