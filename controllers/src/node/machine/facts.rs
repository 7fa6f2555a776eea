//! Facts about the machine that this process runs on, from /proc and /etc.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use reconciler::api::Timestamp;
use schemas::kinds::node::{Machine, MachineResources, Versions};
use schemas::kinds::template::Platform;
use schemas::{Cpus, Size};

use super::Describe;
use crate::node::containerd::{Connection, failure};

/// What cannot be read from the machine.
#[derive(Clone, Debug)]
pub struct Facts {
    pub connection: Connection,
    /// Labels that the daemon was started with.
    pub labels: BTreeMap<String, String>,
    pub apply: String,
    pub runtime: String,
    /// What other machines reach it at; empty: what it uses towards the world.
    pub addresses: Vec<IpAddr>,
    /// Where it answers as a manager; empty on a worker.
    pub api_addresses: Vec<SocketAddr>,
}

impl Describe for Facts {
    fn machine(&self) -> Machine {
        let kernel = |name: &str| read(&format!("/proc/sys/kernel/{name}")).trim().to_owned();
        Machine {
            hostname: kernel("hostname"),
            platform: Platform { os: "linux".to_owned(), arch: architecture().to_owned() },
            resources: MachineResources { cpus: cpus(), memory: memory(), generic: BTreeMap::new() },
            addresses: if self.addresses.is_empty() { addresses() } else { self.addresses.clone() },
            api_addresses: self.api_addresses.clone(),
            versions: Versions {
                apply: self.apply.clone(),
                containerd: String::new(),
                runtime: self.runtime.clone(),
                kernel: kernel("osrelease"),
                os: os_name(&read("/etc/os-release")),
            },
            labels: self.labels.clone(),
            boot_id: kernel("random/boot_id"),
            booted_at: booted_at(&read("/proc/stat")),
            cgroup_version: if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { 2 } else { 1 },
        }
    }

    fn load(&self) -> f64 {
        let minute = read("/proc/loadavg").split(' ').next().and_then(|text| text.parse::<f64>().ok());
        minute.unwrap_or_default() * 1e9 / cpus().nano() as f64
    }

    fn runtime(&self) -> BoxFuture<'_, Result<String, String>> {
        async {
            let asked = self.connection.within(PATIENCE).version().version(()).await;
            let answer = asked.map_err(|status| match status.code() {
                // The words name the socket already.
                tonic::Code::Unavailable => failure::words(&status),
                _ => {
                    let socket = self.connection.socket().display();
                    format!("containerd does not answer at {socket}: {}", failure::words(&status))
                }
            })?;
            Ok(answer.into_inner().version.trim_start_matches('v').to_owned())
        }
        .boxed()
    }
}

/// How long containerd may take to say its version.
const PATIENCE: Duration = Duration::from_secs(2);

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// As image manifests have it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn cpus() -> Cpus {
    let count = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    Cpus::from_milli(count * 1000)
}

fn memory() -> Size {
    let kib = read("/proc/meminfo").lines().find_map(|line| {
        let rest = line.strip_prefix("MemTotal:")?;
        rest.trim().trim_end_matches(" kB").parse::<u64>().ok()
    });
    Size::from_bytes(kib.unwrap_or_default() * 1024)
}

/// The addresses that the machine would use towards the world; nothing is sent.
pub fn addresses() -> Vec<IpAddr> {
    let towards = |bind: &str, to: &str| {
        let socket = UdpSocket::bind(bind).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified() && !address.is_loopback())
    };
    // Documentation prefixes (RFC 5737, RFC 3849): whoever routes at all routes these.
    towards("0.0.0.0:0", "192.0.2.1:9").into_iter().chain(towards("[::]:0", "[2001:db8::1]:9")).collect()
}

fn os_name(os_release: &str) -> String {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.unwrap_or("Linux").trim_matches('"').to_owned()
}

fn booted_at(stat: &str) -> Option<Timestamp> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    seconds.trim().parse().ok().map(Timestamp::from_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_of_the_kernel_are_read_and_a_silent_containerd_is_told() {
        assert_eq!(
            os_name("NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(booted_at("cpu 1 2\nbtime 1764000000\n"), Some(Timestamp::from_seconds(1_764_000_000)));
        let connection = Connection::new("/nonexistent/containerd.sock", "apply").unwrap();
        let (labels, addresses) = (BTreeMap::new(), Vec::new());
        let facts = Facts {
            connection,
            labels,
            apply: String::new(),
            runtime: String::new(),
            addresses,
            api_addresses: vec![],
        };
        let silent = facts.runtime().await.unwrap_err();
        assert_eq!(silent, "containerd does not answer at /nonexistent/containerd.sock: no such file or directory");
        let here = facts.machine();
        assert!(here.resources.memory.bytes() > 1 << 20 && !here.boot_id.is_empty() && !here.hostname.is_empty());
    }
}
