//! Where the objects of this daemon are: in a file of its own, or in an etcd that is somebody else's.
//!
//! The data directory remembers an etcd by the id of its cluster. Whoever finds another store than last time must not
//! take it for an empty one: what is not wanted there is taken away here, containers first.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use reconciler::causes::chain;
use reconciler::seams::Seams;
use reconciler::store::embedded::{self, Embedded, OpenError};
use reconciler::store::etcd::{self, Etcd};
use reconciler::store::{Identity, Key, Store};
use schemas::kinds::node::Role;

use super::backup::Places;
use super::etcd::{Managed, copy};
use super::machine::node_name;
use super::managers::{self, Now};
use super::membership::Membership;
use super::note::Note;
use super::options::{MachineOptions, StoreOptions};
use super::restore::free_name;
use super::seal::KeyFile;
use super::{ROOT, alone, durable, lock};

/// Between two looks for an etcd that does not answer yet.
const AGAIN: Duration = Duration::from_secs(2);

/// What `--store` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// `embedded`: one file in the data directory.
    #[default]
    Embedded,
    /// `etcd`: one that applyd runs itself.
    Managed,
    /// `etcd=URL[,URL]`: the members of one cluster that somebody else runs.
    Etcd(Vec<String>),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const HOW: &str = "say embedded, etcd, or etcd=https://HOST:2379 (several members with commas between)";
        match text {
            "embedded" => return Ok(Self::Embedded),
            "etcd" => return Ok(Self::Managed),
            _ => {}
        }
        let Some(endpoints) = text.strip_prefix("etcd=") else { return Err(HOW.to_owned()) };
        let endpoints: Vec<String> = endpoints.split(',').map(|one| one.trim().to_owned()).collect();
        match endpoints.iter().find(|one| !is_endpoint(one)) {
            Some(wrong) => Err(format!("{wrong:?} is no URL of a member; {HOW}")),
            None => Ok(Self::Etcd(endpoints)),
        }
    }
}

fn is_endpoint(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| {
        let host = host.trim_end_matches('/');
        !host.is_empty() && !host.contains(['/', ' ', '@', '?', '#'])
    })
}

/// A store that is open, and what only one of its kind can do.
#[derive(Clone)]
pub enum Opened {
    Embedded(Arc<Embedded>),
    /// One that this daemon runs.
    Managed {
        store: Arc<Etcd>,
        managed: Managed,
        /// As that of `Etcd`.
        _lock: Arc<File>,
    },
    Etcd {
        store: Arc<Etcd>,
        /// Where it is, for people.
        place: String,
        /// Held for as long as this daemon runs on its data directory; the file of the embedded store is its own.
        _lock: Arc<File>,
    },
}

impl Opened {
    /// Where objects are, in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Opened::Embedded(_) => "embedded",
            Opened::Managed { .. } | Opened::Etcd { .. } => "etcd",
        }
    }

    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store) => store.clone(),
            Self::Managed { store, .. } | Self::Etcd { store, .. } => store.clone(),
        }
    }
}

/// Opens what was chosen: the file, checked from its first byte to its last, or the etcd, once it answers.
///
/// # Errors
/// In words with what to do, when the store cannot be this machine's. `None`: this machine is a manager no more, or one
/// that begins anew; its disk says which.
pub async fn open(
    options: &MachineOptions,
    membership: &Membership,
    places: &Places,
    seams: &Seams,
) -> Result<Option<Opened>> {
    let managed = Managed::of(options);
    let member = membership.read()?;
    if let Some(member) = member.as_ref().filter(|member| member.role == Role::Manager && !membership.has_authority()) {
        let is_elsewhere = matches!(options.store.store, Choice::Etcd(_));
        if !managers::take_over(member, membership, &managed, places, is_elsewhere, seams).await? {
            return Ok(None);
        }
    }
    let (alone, to_etcd) = (Note::alone(&options.data), Note::to_etcd(&options.data));
    if alone.is_due() && managed.place()?.is_some() {
        let _lock = locked(&places.lock(), seams).await?;
        // Once begun there is no way back: its etcd would be a majority of itself, and put the others' down.
        alone::to_file(&managed, &alone, places, seams).await.with_context(|| {
            format!(
                "this manager cannot go on alone yet, and tries again when applyd begins ({})",
                alone.path().display()
            )
        })?;
    }
    alone.done().context("cannot forget that this manager was to go on alone")?;
    if let Choice::Etcd(endpoints) = &options.store.store {
        if managed.place()?.is_some() {
            bail!("the objects of this machine are in an etcd that applyd runs itself; start it without --store");
        }
        return open_etcd(endpoints, &options.store, places, seams).await.map(Some);
    }
    options.store.refuse_certificates()?;
    if let Some(etcd) = remembered(places)? {
        bail!(
            "the objects of this machine are in an etcd ({etcd}); say --store etcd=URL. To begin anew without \
             them, which takes its containers away: rm {}",
            places.remembered().display()
        );
    }
    let is_in_etcd = managed.place()?.is_some() && !places.store().exists();
    // A new one would be empty: no container of this machine would be wanted.
    if !is_in_etcd && !places.store().exists() && membership.has_authority() {
        bail!(
            "this machine is a manager, and its objects are gone from {}: bring them back (applyctl restore FILE). Where other \
             managers have them: rm {}, and it asks those",
            options.data.display(),
            membership.key_of_authority().display()
        );
    }
    if !is_in_etcd && options.store.store == Choice::Embedded && !to_etcd.is_there() {
        return open_file(places, seams).await.map(|store| Some(Opened::Embedded(Arc::new(store))));
    }
    let lock = locked(&places.lock(), seams).await?;
    let store = if is_in_etcd {
        let key = lock::key(places)?;
        let key = key.with_context(|| format!("the key of secrets is gone from {}", places.key().display()))?;
        to_etcd.done().context("cannot forget that the objects were moved")?;
        let others = member.as_ref().filter(|member| !member.managers.is_empty());
        let what_now = async || match others {
            Some(member) => managers::what_now(membership, &managed, places, member, seams).await,
            None => Ok(Now::TheSame),
        };
        let begun = tokio::select! {
            begun = begun(&managed, &key, what_now, seams) => begun?,
            // This machine begins anew, and alone.
            told = alone::while_silent(options, member.as_ref(), seams) => return told.map(|()| None),
        };
        // The others were back first.
        alone.done().context("cannot forget that this manager was to go on alone")?;
        match begun {
            Some(etcd) => etcd,
            None => return Ok(None),
        }
    } else {
        let name = member.as_ref().map_or_else(|| node_name(options), |member| Ok(member.node.clone()))?;
        let cluster = member.map(|member| member.cluster).unwrap_or_default();
        match moved(&managed, &to_etcd, &name, &cluster, places, seams).await? {
            Some(etcd) => etcd,
            None => {
                drop(lock);
                return open_file(places, seams).await.map(|store| Some(Opened::Embedded(Arc::new(store))));
            }
        }
    };
    Ok(Some(Opened::Managed { store: Arc::new(store), managed, _lock: Arc::new(lock) }))
}

/// Whether this machine has a store of its cluster already.
///
/// # Errors
/// It cannot be looked for.
pub fn is_there(options: &MachineOptions) -> Result<bool> {
    Ok(options.places().store().exists() || Managed::of(options).place()?.is_some())
}

/// For one's own etcd, alone, to begin.
const BEGINNING: Duration = Duration::from_secs(60);

/// Has the objects in etcd that were in the file, if there is one. `None`: etcd did not begin, and the file stands.
async fn moved(
    managed: &Managed,
    to_etcd: &Note,
    name: &str,
    cluster: &str,
    places: &Places,
    seams: &Seams,
) -> Result<Option<Etcd>> {
    let file = match places.store().exists() {
        true => Some(open_file(places, seams).await?),
        false => None,
    };
    let key = lock::key_or_new(places)?;
    managed.found(name, cluster, &key, seams)?;
    let began = tokio::select! {
        began = begun(managed, &key, async || Ok(Now::TheSame), seams) => began?,
        () = seams.sleep(BEGINNING), if file.is_some() => None,
    };
    let Some(etcd) = began else {
        let last = managed.last_words();
        tracing::warn!(
            last,
            "etcd did not begin within a minute: the objects stay in the file, and who would join is told so"
        );
        managed.forget().context("cannot remove an etcd that did not begin")?;
        to_etcd.done().context("cannot forget that the objects were to be moved")?;
        return Ok(None);
    };
    if let Some(file) = file {
        let keys = copy(&file, &etcd).await?;
        drop(file);
        let aside = free_name(&places.store());
        fs::rename(places.store(), &aside).context("cannot put the file aside that the objects were in")?;
        // Before anything is written to etcd that is not in it: back again after a power cut, the file would be the truth.
        let folder = places.store().parent().map(Path::to_owned).unwrap_or_default();
        File::open(&folder)?.sync_all().context("cannot have the disk know that the file is aside")?;
        tracing::info!(keys, file = %aside.display(), "the objects are in etcd now; the file is kept as it was");
    }
    to_etcd.done().context("cannot forget that the objects were to be moved")?;
    Ok(Some(etcd))
}

/// Between two looks for an etcd of one's own.
const SOON: Duration = Duration::from_millis(20);
/// Before it is told that one's own etcd does not answer.
const SILENT: Duration = Duration::from_secs(5);

/// The etcd of this machine, once it answers: for as long as that takes, as too few others may be there. While it does not,
/// others are asked what this machine is now; `None`: another than its disk has said.
async fn begun(
    managed: &Managed,
    key: &KeyFile,
    what_now: impl AsyncFn() -> Result<Now>,
    seams: &Seams,
) -> Result<Option<Etcd>> {
    let etcd = managed.begin(key, seams).await?;
    let answered = async {
        let mut silent_since = seams.monotonic();
        while let Err(error) = etcd.identity().await {
            if seams.monotonic().since(silent_since) > SILENT {
                let last = managed.last_words();
                tracing::warn!(
                    error = chain(&error),
                    last,
                    "etcd does not answer; it waits for other managers, or its log says why"
                );
                if !matches!(what_now().await?, Now::TheSame) {
                    return Ok(false);
                }
                silent_since = seams.monotonic();
            }
            seams.sleep(SOON).await;
        }
        Ok(true)
    };
    let is_there: Result<bool> = tokio::select! {
        answered = answered => answered,
        () = managed.keep(seams) => Ok(false),
    };
    Ok(is_there?.then_some(etcd))
}

/// Whether a process has no memory any more: it only has to close its files, or is gone.
fn is_dying(pid: &str) -> bool {
    pid.parse::<u32>().is_ok() && std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |words| words.is_empty())
}

/// A process that is about to be dead holds what it has open for a moment: it is waited for that long.
const DYING: Duration = Duration::from_secs(5);

async fn open_file(places: &Places, seams: &Seams) -> Result<Embedded> {
    let snapshots = places.snapshots().folder;
    let store_options = embedded::Options { snapshots: Some(snapshots), ..embedded::Options::default() };
    let begun = seams.monotonic();
    let opened = loop {
        match Embedded::open(places.store(), &*seams.random, &store_options) {
            Err(OpenError::InUse { holder, .. }) if is_dying(&holder) && seams.monotonic().since(begun) < DYING => {
                seams.sleep(Duration::from_millis(10)).await;
            }
            opened => break opened,
        }
    };
    opened.map_err(|error| {
        let advice = match &error {
            OpenError::Damaged { snapshot: Some(newest), .. } => {
                let data = places.store().parent().unwrap_or(Path::new("")).display().to_string();
                format!(
                    "\n  go back to it with: applyd restore --data {data} --force {}\n  containers run on meanwhile",
                    newest.display()
                )
            }
            OpenError::Damaged { snapshot: None, .. } => {
                "\n  restore a backup: applyd restore --force FILE; containers run on meanwhile".to_owned()
            }
            OpenError::InUse { .. } => "\n  another applyd runs on this data directory; this one ends".to_owned(),
            _ => String::new(),
        };
        anyhow!("{:#}{advice}", anyhow::Error::new(error))
    })
}

async fn open_etcd(endpoints: &[String], options: &StoreOptions, places: &Places, seams: &Seams) -> Result<Opened> {
    let tls = options.tls(endpoints)?;
    if tls.is_none() && !endpoints.iter().all(|endpoint| is_loopback(endpoint)) {
        tracing::warn!(?endpoints, "etcd is spoken to without TLS: whoever is between reads and writes all objects");
    }
    if places.store().exists() {
        bail!(
            "there is a store in {} already, which --store etcd would leave aside; move it away if that is meant",
            places.store().display()
        );
    }
    let lock = locked(&places.lock(), seams).await?;
    let config = etcd::Config { tls, ..etcd::Config::new(endpoints.iter().cloned(), Key::new(format!("{ROOT}/"))) };
    let store = Etcd::connect(&config, seams).await.context("--store")?;
    let Identity(found) = answered(&store, endpoints, seams).await;
    match remembered(places)? {
        Some(known) if known != found => bail!(
            "this is another etcd ({found}) than this machine's objects were in ({known}). Restored by etcdctl it has \
             them all the same: rm {} if that is so",
            places.remembered().display()
        ),
        Some(_) => {}
        None => remember(places, &found)?,
    }
    Ok(Opened::Etcd { store: Arc::new(store), place: endpoints.join(", "), _lock: Arc::new(lock) })
}

/// Waits for as long as it takes: after a power cut the members may come up later than their clients.
async fn answered(store: &Etcd, endpoints: &[String], seams: &Seams) -> Identity {
    let mut said = false;
    loop {
        match store.identity().await {
            Ok(identity) => {
                if said {
                    tracing::info!(?endpoints, "etcd answers");
                }
                return identity;
            }
            Err(error) if !said => {
                said = true;
                let secure = endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
                // Whoever is not let in by TLS 1.3 only sees the connection close.
                let look = secure.then_some("is --store-cert signed by whom etcd trusts? its log says");
                tracing::warn!(?endpoints, error = chain(&error), look, "etcd does not answer; applyd waits for it");
            }
            Err(error) => tracing::debug!(error = chain(&error), "etcd does not answer"),
        }
        seams.sleep(AGAIN).await;
    }
}

fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.split("://").nth(1).unwrap_or_default().trim_end_matches('/');
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// The etcd that this data directory belongs to.
pub fn remembered(places: &Places) -> Result<Option<String>> {
    let path = places.remembered();
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn remember(places: &Places, identity: &str) -> Result<()> {
    Ok(durable::write(&places.remembered(), format!("{identity}\n").as_bytes())?)
}

/// Who holds it is not known: a dying one has let go within this.
const HELD: Duration = Duration::from_secs(1);

pub(super) async fn locked(path: &Path, seams: &Seams) -> Result<File> {
    let begun = seams.monotonic();
    loop {
        match taken(path).with_context(|| format!("cannot lock {}", path.display()))? {
            Ok(file) => return Ok(file),
            Err(_) if seams.monotonic().since(begun) < HELD => seams.sleep(Duration::from_millis(10)).await,
            Err(holder) => bail!(
                "{} is in use by process {holder}\n  another applyd runs on this data directory; this one ends",
                path.parent().unwrap_or(path).display()
            ),
        }
    }
}

/// The lock of a data directory whose store is no file that could be locked; or the process that has it.
///
/// # Errors
/// It cannot be locked at all.
pub(super) fn taken(path: &Path) -> io::Result<Result<File, String>> {
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            Ok(Ok(file))
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut holder);
            Ok(Err(holder))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A path as it is typed into a shell.
fn typed(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

impl StoreOptions {
    /// For people: where the etcd is, and what removes the objects in it. `None` for the embedded store.
    pub fn etcd(&self) -> Option<(String, String)> {
        let Choice::Etcd(endpoints) = &self.store else { return None };
        let mut command = format!("etcdctl --endpoints {}", endpoints.join(","));
        for (flag, path) in [("--cacert", &self.ca), ("--cert", &self.cert), ("--key", &self.key)] {
            if let Some(path) = path {
                command.push_str(&format!(" {flag} {}", typed(path)));
            }
        }
        Some((endpoints.join(", "), format!("{command} del --prefix {ROOT}/")))
    }

    fn refuse_certificates(&self) -> Result<()> {
        let given = [("--store-ca", &self.ca), ("--store-cert", &self.cert), ("--store-key", &self.key)];
        match given.iter().find(|(_, path)| path.is_some()) {
            Some((flag, _)) => bail!("{flag} is for --store etcd=https://…; the embedded store has no connection"),
            None => Ok(()),
        }
    }

    /// `None` for members that are spoken to in the clear.
    fn tls(&self, endpoints: &[String]) -> Result<Option<etcd::Tls>> {
        let read = |flag: &str, path: &PathBuf| {
            fs::read(path).with_context(|| format!("cannot read {flag} {}", path.display()))
        };
        let secure = endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
        if secure == 0 {
            self.refuse_certificates()?;
            return Ok(None);
        }
        if secure < endpoints.len() {
            bail!("--store: all members by https, or none");
        }
        let Some(ca) = &self.ca else {
            bail!("--store etcd=https://… also needs --store-ca FILE: who signed theirs")
        };
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read("--store-cert", cert)?, read("--store-key", key)?)),
            (None, None) => None,
            _ => bail!("--store-cert and --store-key belong together"),
        };
        Ok(Some(etcd::Tls { ca: read("--store-ca", ca)?, identity, server_name: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_said_in_one_word() {
        let parsed = |text: &str| text.parse::<Choice>();
        assert_eq!(parsed("embedded"), Ok(Choice::Embedded));
        assert_eq!(parsed("etcd"), Ok(Choice::Managed));
        let members = ["https://a:2379", "https://b:2379"].map(str::to_owned);
        assert_eq!(parsed("etcd=https://a:2379,https://b:2379"), Ok(Choice::Etcd(members.to_vec())));
        for wrong in ["", "etcd=", "etcd=a:2379", "etcd=ftp://a", "etcd=https://", "etcd=https://a,", "redis"] {
            let said = parsed(wrong).unwrap_err();
            assert!(said.contains("etcd=https://HOST:2379"), "{wrong:?}: {said}");
        }
    }

    #[test]
    fn what_needs_no_tls_is_on_this_machine() {
        for here in ["http://127.0.0.1:2379", "http://[::1]:2379", "http://localhost:1", "http://127.0.0.2"] {
            assert!(is_loopback(here), "{here}");
        }
        for there in ["http://10.0.0.1:2379", "http://etcd:2379", "http://[fd00::1]:2379"] {
            assert!(!is_loopback(there), "{there}");
        }
    }

    #[test]
    fn whoever_removes_the_objects_types_what_applyd_was_told() {
        let store = "etcd=https://a:1,https://b:1".parse().unwrap();
        let options = StoreOptions { store, ca: Some("ca.pem".into()), cert: None, key: Some("ann's key.pem".into()) };
        let (place, command) = options.etcd().unwrap();
        assert_eq!(place, "https://a:1, https://b:1");
        assert_eq!(
            command,
            "etcdctl --endpoints https://a:1,https://b:1 --cacert ca.pem --key 'ann'\\''s key.pem' del --prefix /apply/"
        );
    }

    #[test]
    fn certificates_belong_to_https() {
        let file = |name: &str| Some(PathBuf::from(name));
        let options = |ca, cert, key| StoreOptions { store: Choice::Embedded, ca, cert, key };
        let said =
            |options: StoreOptions, endpoint: &str| format!("{:#}", options.tls(&[endpoint.to_owned()]).unwrap_err());
        assert!(options(None, None, None).tls(&["http://a".to_owned()]).unwrap().is_none());
        assert!(said(options(file("ca"), None, None), "http://a").contains("--store-ca is for"));
        assert!(said(options(None, None, None), "https://a").contains("--store-ca FILE"));
        assert!(said(options(file("ca"), file("c"), None), "https://a").contains("belong together"));
        assert!(
            said(options(file("/nowhere/ca"), None, None), "https://a").contains("cannot read --store-ca /nowhere/ca")
        );
        let mixed = options(file("ca"), None, None).tls(&["https://a".to_owned(), "http://b".to_owned()]);
        assert!(format!("{:#}", mixed.unwrap_err()).contains("or none"));
    }
}
