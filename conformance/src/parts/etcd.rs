//! An etcd of one's own: one member or several on loopback ports, of two versions, which can be killed, frozen and
//! started again.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustix::process::Signal;
use serde_json::Value;

use super::debian;
use super::process::{Process, clear, fresh_folder, wait_until};

/// Which Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's, installed.
    V3_4,
    /// Debian 13's, fetched and unpacked.
    V3_5,
}

impl Version {
    fn program(self) -> Result<PathBuf> {
        Ok(match self {
            Version::V3_4 => "etcd".into(),
            Version::V3_5 => debian::unpacked("trixie", "etcd-server")?.join("usr/bin/etcd"),
        })
    }
}

/// A cluster. Dropped, it is killed and what it stored is removed.
pub struct Etcd {
    program: PathBuf,
    cluster: String,
    members: Vec<Member>,
}

/// How clients reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Open,
    /// By TLS, and only those with a certificate that its authority signed.
    Certificates,
}

/// PEM files: the authority's certificate, what it signed, and what another authority of the same name signed.
#[derive(Clone, Debug)]
pub struct Certificates {
    folder: PathBuf,
}

struct Member {
    folder: PathBuf,
    certificates: Option<Certificates>,
    client: u16,
    peer: u16,
    process: Option<Process>,
}

/// A slow disk makes a start slow; nothing else does.
const PATIENCE: Duration = Duration::from_secs(30);

impl Etcd {
    /// Returns when every member answers.
    pub fn start(name: &str, version: Version, members: usize) -> Result<Etcd> {
        Etcd::start_with(name, version, members, Door::Open)
    }

    pub fn start_with(name: &str, version: Version, members: usize, door: Door) -> Result<Etcd> {
        let ports = free_ports(2 * members)?;
        let members: Vec<Member> = (ports.chunks(2).enumerate())
            .map(|(at, ports)| {
                let folder = fresh_folder(&format!("etcd-{name}-{at}"))?;
                let certificates = (door == Door::Certificates).then(|| Certificates::make(&folder)).transpose()?;
                Ok(Member { folder, certificates, client: ports[0], peer: ports[1], process: None })
            })
            .collect::<Result<_>>()?;
        let peers: Vec<String> =
            members.iter().enumerate().map(|(at, member)| format!("m{at}={}", member.at_peer())).collect();
        let mut etcd = Etcd { program: version.program()?, cluster: peers.join(","), members };
        for at in 0..etcd.members.len() {
            etcd.spawn(at)?;
        }
        for at in 0..etcd.members.len() {
            etcd.wait_for(at)?;
        }
        Ok(etcd)
    }

    /// Where clients reach each member.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::at_client).collect()
    }

    /// What clients of the first member need; each member has its own authority.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.members[0].certificates.as_ref()
    }

    /// As a crash of the machine's kernel would not, but `kill -9` does: what was synced stays.
    pub fn kill(&mut self, at: usize) -> Result<()> {
        self.members[at].process.take().context("the member is down already")?.kill()
    }

    /// Starts a killed member again, and waits for it.
    pub fn restart(&mut self, at: usize) -> Result<()> {
        ensure!(self.members[at].process.is_none(), "the member runs");
        self.spawn(at)?;
        self.wait_for(at)
    }

    /// It answers nobody and keeps its connections, as a machine does whose disk hangs.
    pub fn freeze(&self, at: usize) -> Result<()> {
        self.members[at].process.as_ref().context("the member is down")?.signal(Signal::STOP)
    }

    pub fn thaw(&self, at: usize) -> Result<()> {
        self.members[at].process.as_ref().context("the member is down")?.signal(Signal::CONT)
    }

    /// Who leads, as the members that answer see it.
    pub fn leader(&self) -> Result<usize> {
        let mut found = None;
        wait_until("etcd to have a leader", PATIENCE, || {
            found = (0..self.members.len()).find(|at| {
                let Some(status) = self.members[*at].ask() else { return false };
                status["leader"].is_string() && status["leader"] == status["header"]["member_id"]
            });
            found.is_some()
        })?;
        found.context("no leader")
    }

    fn spawn(&mut self, at: usize) -> Result<()> {
        let (client, peer) = (self.members[at].at_client(), self.members[at].at_peer());
        let folder = self.members[at].folder.clone();
        let mut command = Command::new(&self.program);
        command.arg("--data-dir").arg(folder.join("data"));
        for (option, value) in [
            ("--name", format!("m{at}")),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", self.cluster.clone()),
            ("--initial-cluster-state", "new".to_owned()),
            ("--logger", "zap".to_owned()),
            ("--log-level", "error".to_owned()),
        ] {
            command.arg(option).arg(value);
        }
        if let Some(certificates) = &self.members[at].certificates {
            let (certificate, key) = certificates.of("server");
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(certificates.authority());
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        self.members[at].process = Some(Process::start(&folder, &mut command)?);
        Ok(())
    }

    fn wait_for(&mut self, at: usize) -> Result<()> {
        let waited = wait_until("etcd to answer", PATIENCE, || self.members[at].ask().is_some());
        if waited.is_err()
            && let Some(process) = &mut self.members[at].process
        {
            process.check()?;
        }
        waited
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.process = None;
            let _ = clear(&member.folder);
        }
    }
}

impl Member {
    fn at_client(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client)
    }

    fn at_peer(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }

    /// What it says of itself; nothing while it has no leader.
    fn ask(&self) -> Option<Value> {
        let status = post(&self.at_client(), "v3/maintenance/status", self.certificates.as_ref())?;
        // The default value is left out: no leader is no such field.
        status["leader"].is_string().then_some(status)
    }
}

/// All at once, so that no two are the same. Should somebody take one meanwhile, etcd says so and ends.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    held.iter().map(|port| Ok(port.local_addr()?.port())).collect()
}

/// By a program: the harness is called from asynchronous tests, in which a blocking client must not run.
fn post(endpoint: &str, call: &str, certificates: Option<&Certificates>) -> Option<Value> {
    let mut curl = Command::new("curl");
    if let Some(certificates) = certificates {
        let (certificate, key) = certificates.of("client");
        curl.arg("--cacert").arg(certificates.authority()).arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    let asked = curl.args(["-sSf", "-m", "2", "-d", "{}"]).arg(format!("{endpoint}/{call}")).output().ok()?;
    serde_json::from_slice(&asked.stdout).ok()
}

impl Certificates {
    fn make(folder: &Path) -> Result<Certificates> {
        let folder = folder.to_owned();
        for (authority, signed) in [("authority", &["server", "client"][..]), ("other", &["stranger"])] {
            // A certificate with the name of who signed it would be taken for self-signed.
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "authority");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
            fs::write(folder.join(format!("{authority}.pem")), issuer.pem())?;
            for name in signed {
                let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
                params.distinguished_name.push(DnType::CommonName, *name);
                // etcd is its own client where it answers plain HTTP.
                params.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
                let key = KeyPair::generate()?;
                fs::write(folder.join(format!("{name}.pem")), params.signed_by(&key, &issuer)?.pem())?;
                fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
            }
        }
        Ok(Certificates { folder })
    }

    pub fn authority(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    /// Another authority, that signed the stranger's.
    pub fn other_authority(&self) -> PathBuf {
        self.folder.join("other.pem")
    }

    /// Certificate and key of `server`, `client` or `stranger`.
    pub fn of(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.folder.join(format!("{name}.pem")), self.folder.join(format!("{name}.key")))
    }
}
