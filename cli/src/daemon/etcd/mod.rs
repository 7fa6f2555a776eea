//! The etcd that applyd runs itself, on each manager: when it is asked for (`--store etcd`), and when a second manager joins.
//!
//! Everything of it is in `<data>/etcd-member`: `member.json` says which member of which etcd this machine is, and is there
//! before etcd is. Members speak with each other by mutual TLS of an authority for etcd alone, which signs managers only;
//! with applyd over the loopback, by the same. Reading order: this page, `process`, `moving` (from the file to etcd).

mod moving;
mod process;

use std::fs::{self, DirBuilder};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use controllers::identity::{Authority, Request};
use reconciler::objects::encoding::Sealer;
use reconciler::seams::{Purpose, Seams};
use reconciler::store::Key;
use reconciler::store::etcd::{self, Etcd, Member};
use serde::{Deserialize, Serialize};

pub use self::moving::copy;
use self::process::Process;
pub use self::process::{EtcdOptions, become_etcd, end, is_here};
use super::ROOT;
use super::durable::write;
use super::membership::{AUTHORITY, keep_authority, kept_authority};
use super::options::MachineOptions;

const MEMBER: &str = "member.json";
const CERTIFICATE: &str = "node.pem";
const KEY: &str = "node.key";
/// What the authority's key is sealed for.
const CONTEXT: &str = "etcd/authority";

/// Managers renew these themselves whenever they begin, and nobody else may have one; for etcd to be spoken to anew with
/// another, applyd has to begin anew.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// For a call to the etcd of this machine: what it had passed on to a leader that died is never answered, and whoever asked
/// waits for as long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks whether etcd runs.
const LOOK: Duration = Duration::from_millis(500);
/// One that ends again and again is started again so often.
const LOOK_MAX: Duration = Duration::from_secs(8);

/// Which member of which etcd a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// What it calls itself: this machine's Node.
    pub name: String,
    /// Where the other members reach it.
    pub peer: String,
    /// The members that there were when it began, itself among them: what they call themselves, and where they are.
    pub members: Vec<(String, String)>,
    /// That of the etcd: another one for each that is founded.
    pub token: String,
    /// It founds that etcd; otherwise it joins it.
    pub founds: bool,
    /// It has a vote.
    pub votes: bool,
}

/// What a manager tells one that joins it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handed {
    /// All members, the new one among them; it has no name yet.
    pub members: Vec<(String, String)>,
    pub token: String,
    /// The new one has a vote.
    pub votes: bool,
    /// Certificate and key of etcd's authority, in PEM.
    pub authority: String,
    pub authority_key: String,
}

/// With whom etcd begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    AsBefore,
    /// They are members no more.
    None,
}

/// This machine's etcd, which may not be there yet.
#[derive(Clone, Debug)]
pub struct Managed {
    dir: PathBuf,
    addresses: Vec<IpAddr>,
    /// Of applyd; those of etcd follow.
    port: u16,
    process: Arc<Mutex<Process>>,
}

impl Managed {
    pub fn of(options: &MachineOptions) -> Self {
        let advertised = match options.listen.ip() {
            ip if !ip.is_unspecified() => vec![ip],
            _ if options.advertise.is_empty() => controllers::node::machine::addresses(),
            _ => options.advertise.clone(),
        };
        let dir = options.places().member();
        let cgroup = format!("{}/etcd", options.cgroup.trim_matches('/'));
        Self {
            process: Arc::new(Mutex::new(Process::new(dir.clone(), cgroup))),
            dir,
            addresses: advertised,
            port: options.listen.port(),
        }
    }

    /// Which member this machine is; `None`: of none.
    ///
    /// # Errors
    /// In words, when it cannot be read.
    pub fn place(&self) -> Result<Option<Place>> {
        let path = self.dir.join(MEMBER);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            text => {
                let text = text.with_context(|| format!("cannot read {}", path.display()))?;
                let place = serde_json::from_slice(&text);
                place.map(Some).with_context(|| format!("{} is not what applyd has written", path.display()))
            }
        }
    }

    /// Where other members reach the one on this machine.
    ///
    /// # Errors
    /// This machine has no address.
    pub fn peer(&self) -> Result<String> {
        let address = self.addresses.first().context("this machine has no address for others; say --advertise")?;
        ensure!(
            (1..u16::MAX - 2).contains(&self.port),
            "managers beside others need a port that stays: say --listen ADDRESS:PORT"
        );
        Ok(format!("https://{}", SocketAddr::new(*address, self.port + 1)))
    }

    fn client(&self) -> String {
        format!("https://{}", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port + 2))
    }

    /// Whether etcd could begin here: this machine has an address, and nobody has its ports.
    ///
    /// # Errors
    /// In words.
    pub async fn could_begin(&self) -> Result<()> {
        self.peer()?;
        for port in [self.port + 1, self.port + 2] {
            let free = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
            free.with_context(|| format!("etcd cannot have port {port}, which managers beside others need"))?;
        }
        Ok(())
    }

    /// Becomes the first member of a new etcd, unless it is a member of one.
    ///
    /// # Errors
    /// In words, when it cannot be written.
    pub fn found(&self, name: &str, cluster: &str, sealer: &dyn Sealer, seams: &Seams) -> Result<()> {
        if self.place()?.is_some() {
            return Ok(());
        }
        let authority = Authority::make_for_store(cluster, seams.now())?;
        let token = format!("{cluster}-{:016x}", seams.random.next(Purpose::Identity));
        let peer = self.peer()?;
        let members = vec![(name.to_owned(), peer.clone())];
        self.put(&authority, sealer)?;
        self.remember(&Place { name: name.to_owned(), peer, members, token, founds: true, votes: true })
    }

    /// Becomes a member of an etcd that there is, or knows more of it. The members change no more once etcd has begun here.
    ///
    /// # Errors
    /// In words, when it cannot be written.
    pub fn join(&self, name: &str, handed: &Handed, sealer: &dyn Sealer) -> Result<()> {
        let peer = self.peer()?;
        self.put(&Authority::open(&handed.authority, &handed.authority_key)?, sealer)?;
        let named =
            |(known, at): &(String, String)| (if *at == peer { name.to_owned() } else { known.clone() }, at.clone());
        let place = Place {
            name: name.to_owned(),
            members: handed.members.iter().map(named).collect(),
            peer: peer.clone(),
            token: handed.token.clone(),
            founds: false,
            votes: handed.votes,
        };
        self.remember(&place)
    }

    fn put(&self, authority: &Authority, sealer: &dyn Sealer) -> Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.with_context(|| format!("cannot make {}", self.dir.display()))?;
        keep_authority(&self.dir, CONTEXT, authority, sealer)
    }

    fn remember(&self, place: &Place) -> Result<()> {
        Ok(write(&self.dir.join(MEMBER), &serde_json::to_vec_pretty(place)?)?)
    }

    fn authority(&self, sealer: &dyn Sealer) -> Result<Authority> {
        kept_authority(&self.dir, CONTEXT, sealer)
    }

    /// What the one is told that joins: of the members that there are now.
    ///
    /// # Errors
    /// In words, when etcd's authority cannot be read.
    pub fn handed(&self, members: &[Member], peer: &str, sealer: &dyn Sealer) -> Result<Handed> {
        let place = self.place()?.context("this machine is no member of any etcd")?;
        let authority = self.authority(sealer)?;
        let members_at =
            members.iter().flat_map(|member| member.peers.iter().map(|at| (member.name.clone(), at.clone())));
        Ok(Handed {
            members: members_at.collect(),
            token: place.token,
            votes: members.iter().any(|member| !member.is_learner && member.peers.iter().any(|at| at == peer)),
            authority: authority.certificate().to_owned(),
            authority_key: authority.key(),
        })
    }

    /// Has etcd run, and speaks with it. It may not answer yet.
    ///
    /// # Errors
    /// In words, when it cannot be started.
    pub async fn begin(&self, sealer: &dyn Sealer, seams: &Seams) -> Result<Etcd> {
        self.begin_among(Others::AsBefore, sealer, seams).await
    }

    /// The same as its only member from now on, whatever others there were; nobody else reaches it.
    ///
    /// # Errors
    /// As [`Managed::begin`].
    pub async fn begin_alone(&self, sealer: &dyn Sealer, seams: &Seams) -> Result<Etcd> {
        self.begin_among(Others::None, sealer, seams).await
    }

    async fn begin_among(&self, others: Others, sealer: &dyn Sealer, seams: &Seams) -> Result<Etcd> {
        let place = self.place()?.context("this machine is no member of any etcd")?;
        let authority = self.authority(sealer)?;
        let request = Request::make()?;
        let own = [&self.addresses[..], &[Ipv4Addr::LOCALHOST.into()]].concat();
        let certificate = authority.issue_to_store(&place.name, &own, &request.request, seams.now(), LIFE)?;
        // Read anew for each connection, in this order: for the moment between the two a connection fails and is tried again.
        write(&self.dir.join(KEY), request.key.as_bytes())?;
        write(&self.dir.join(CERTIFICATE), certificate.as_bytes())?;
        self.process().ensure(&self.arguments(&place, others)).context("cannot start etcd")?;
        let identity = Some((certificate.into_bytes(), request.key.into_bytes()));
        let tls = etcd::Tls { ca: authority.certificate().as_bytes().to_vec(), identity, server_name: None };
        let config = etcd::Config {
            tls: Some(tls),
            timeout: PATIENCE,
            ..etcd::Config::new([self.client()], Key::new(format!("{ROOT}/")))
        };
        Ok(Etcd::connect(&config, seams).await?)
    }

    /// Has etcd run, unless it does.
    ///
    /// # Errors
    /// In words, when it cannot be started.
    pub fn ensure(&self) -> Result<()> {
        let place = self.place()?.ok_or_else(|| anyhow!("{MEMBER} is gone"))?;
        self.process().ensure(&self.arguments(&place, Others::AsBefore)).map(drop).context("cannot start etcd")
    }

    /// Has etcd run again whenever it has ended, for ever.
    pub async fn keep(&self, seams: &Seams) {
        let mut pause = LOOK;
        loop {
            let looked = self.place().and_then(|place| {
                let place = place.ok_or_else(|| anyhow!("{MEMBER} is gone"))?;
                self.process().tidy()?;
                Ok(self.process().ensure(&self.arguments(&place, Others::AsBefore))?)
            });
            match looked {
                Ok(false) => pause = LOOK,
                Ok(true) => {
                    pause = (pause * 2).min(LOOK_MAX);
                    tracing::warn!(last = self.last_words(), "etcd had ended, and is started again");
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot have etcd run"),
            }
            seams.sleep(pause).await;
        }
    }

    /// Ends etcd on this machine, if it runs.
    ///
    /// # Errors
    /// The kernel does not say whether it runs.
    pub fn end(&self) -> io::Result<()> {
        process::end(&self.dir)
    }

    /// Begins anew: etcd ends on this machine, with all that it has.
    ///
    /// # Errors
    /// It cannot be ended or removed.
    pub fn forget(&self) -> io::Result<()> {
        self.end()?;
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Why it may not answer, for people.
    pub fn last_words(&self) -> String {
        self.process().last_words()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arguments(&self, place: &Place, others: Others) -> Vec<String> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let any: IpAddr = match (others, self.addresses.first()) {
            // Members of before would be told that they are out, and end.
            (Others::None, _) => Ipv4Addr::LOCALHOST.into(),
            (Others::AsBefore, Some(IpAddr::V6(_))) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            (Others::AsBefore, _) => Ipv4Addr::UNSPECIFIED.into(),
        };
        let members: Vec<String> = place.members.iter().map(|(name, at)| format!("{name}={at}")).collect();
        let state = if place.founds { "new" } else { "existing" };
        let listen = format!("https://{}", SocketAddr::new(any, self.port + 1));
        let mut words = vec![
            ("name", place.name.clone()),
            ("data-dir", file("data")),
            ("listen-peer-urls", listen),
            ("initial-advertise-peer-urls", place.peer.clone()),
            ("listen-client-urls", self.client()),
            ("advertise-client-urls", self.client()),
            ("initial-cluster", members.join(",")),
            ("initial-cluster-state", state.to_owned()),
            ("initial-cluster-token", place.token.clone()),
            ("cert-file", file(CERTIFICATE)),
            ("key-file", file(KEY)),
            ("client-cert-auth", "true".to_owned()),
            ("trusted-ca-file", file(AUTHORITY)),
            ("peer-cert-file", file(CERTIFICATE)),
            ("peer-key-file", file(KEY)),
            ("peer-client-cert-auth", "true".to_owned()),
            ("peer-trusted-ca-file", file(AUTHORITY)),
            // It would have a third manager wait until the second one was there for five seconds. Who joins has no vote until
            // it has caught up, and who goes is looked at before (`cluster::managers`).
            ("strict-reconfig-check", "false".to_owned()),
            // A member that was cut off does not make the others vote when it is back.
            ("pre-vote", "true".to_owned()),
            // Whoever watches is never further behind, or lists anew.
            ("auto-compaction-mode", "periodic".to_owned()),
            ("auto-compaction-retention", "10m".to_owned()),
            ("logger", "zap".to_owned()),
            ("log-level", "warn".to_owned()),
        ];
        if others == Others::None {
            words.push(("force-new-cluster", "true".to_owned()));
        }
        words.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
    }
}
