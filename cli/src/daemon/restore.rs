//! `restore`: what a backup holds becomes the store of a machine whose applyd does not run.
//!
//! Everything is looked at before anything is changed: the backup as a whole, whether a daemon has the store open,
//! whether there is one already, and whether the key opens what is sealed in the backup. The restored store has an
//! identity of its own, so that the next applyd begins a new line of resource versions, above all that were ever given
//! out, and whoever watched the old one lists anew; other managers see the later line, and ask for a place in it.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use reconciler::objects::encoding::{Sealer, opens};
use reconciler::seams::Seams;
use reconciler::store::embedded::{Embedded, OpenError, Options, Restored};
use reconciler::store::{Key, Page, Store, StoreError};

use super::backup::Places;
use super::etcd::end;
use super::seal::KeyFile;
use super::store::{remembered, taken};
use super::{ROOT, lock};

/// Where applyd keeps its data unless it is told otherwise.
pub const DEFAULT_DATA: &str = "/var/lib/apply";
/// And what goes with the machine's run.
pub const DEFAULT_RUN: &str = "/run/apply";

/// What to restore, and where.
#[derive(Clone, Debug, Args)]
#[command(
    before_help = "  applyctl restore monday.backup\n  applyctl restore --data /srv/apply --key key.saved --force monday.backup"
)]
pub struct Restore {
    /// What `applyctl backup` wrote, or one of the hourly snapshots in <data>/snapshots
    pub file: PathBuf,
    /// The data directory of the applyd that shall have it, which must not run
    #[arg(long, env = "APPLY_DATA", default_value = DEFAULT_DATA, value_name = "DIR")]
    pub data: PathBuf,
    /// The key that secrets in the backup are sealed with; default <data>/key
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Where the applyd keeps what goes with the machine's run: a locked key that was unlocked since the last boot is there
    #[arg(long, env = "APPLY_RUN", default_value = DEFAULT_RUN, value_name = "DIR")]
    pub run: PathBuf,
    /// Put it in the place of a store that is there; that one is kept beside it
    #[arg(long)]
    pub force: bool,
}

/// What was put in place.
#[derive(Debug)]
pub struct Done {
    pub restored: Restored,
    /// How many values in it are sealed, and open.
    pub sealed: usize,
    /// Where what stood there before is now.
    pub aside: Vec<PathBuf>,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "restored: {} keys, revision {}", self.restored.keys, self.restored.revision)?;
        if self.sealed > 0 {
            write!(f, ", {} of them sealed and their key fits", self.sealed)?;
        }
        self.aside.iter().try_for_each(|path| write!(f, "\n  what was there before is {}", path.display()))?;
        f.write_str("\n  start applyd: whoever watches lists anew, and containers become as the backup says")
    }
}

/// Why nothing was restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The file, or the store of a running daemon.
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("applyd (process {holder}) runs on {data}; stop it first: {stop}", stop = stop(holder), data = data.display())]
    Running { data: PathBuf, holder: String },
    #[error("there is a store in {data} already; --force puts the backup in its place and keeps the old one beside it", data = data.display())]
    Occupied { data: PathBuf },
    #[error("the objects of {data} are in an etcd ({etcd}), which is restored by its own tool: etcdctl snapshot restore", data = data.display())]
    InEtcd { data: PathBuf, etcd: String },
    #[error("{sealed} values in the backup are sealed, and there is no key at {key}; bring the key file of the machine that it was taken on, and name it with --key", key = key.display())]
    NoKey { sealed: usize, key: PathBuf },
    #[error("the key at {key} does not open {what}: the backup was sealed with another one; name that with --key", key = key.display())]
    WrongKey { key: PathBuf, what: String },
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("the backup cannot be read")]
    Read(#[from] StoreError),
}

fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> RestoreError {
    let what = what.into();
    move |source| RestoreError::Io { what, source }
}

/// Restores, see the module. Safe to repeat after it was killed: until the last step the old store stands, or, where it was in
/// the etcd that managers run, applyd refuses to begin.
pub async fn restore(wanted: &Restore, seams: &Seams) -> Result<Done, RestoreError> {
    let places = Places::new(&wanted.data, &wanted.run);
    let made = fs::create_dir_all(&wanted.data).and_then(|()| private(&wanted.data));
    made.map_err(io(format!("cannot make {}", wanted.data.display())))?;
    if let Some(etcd) =
        remembered(&places).map_err(|error| io("cannot look")(io::Error::other(format!("{error:#}"))))?
    {
        return Err(RestoreError::InEtcd { data: wanted.data.clone(), etcd });
    }
    let (store, member) = (places.store(), places.member());
    let _lock = in_use(&places, &wanted.data)?;
    let there = |path: &Path| path.try_exists().map_err(io(format!("cannot look at {}", path.display())));
    let in_etcd = there(&member)?;
    if (in_etcd || there(&store)?) && !wanted.force {
        return Err(RestoreError::Occupied { data: wanted.data.clone() });
    }
    let (key, sealed) = check(wanted, &places, seams).await?;
    let mut aside = Vec::new();
    if let (Some(_), Some(key), true) = (&wanted.key, &key, sealed > 0)
        && !is_here(key, &places)
    {
        aside.extend(set_aside(&places.key())?);
        key.copy_to(&places.key()).map_err(io("cannot put the key in place"))?;
    }
    if in_etcd {
        end(&member).map_err(io("cannot end the etcd of this manager"))?;
        aside.extend(set_aside(&member)?);
    }
    let mut restored = Embedded::restore(&wanted.file, &store, &*seams.random)?;
    if let Some(replaced) = &restored.replaced {
        let kept = free_name(&store);
        fs::rename(replaced, &kept).map_err(io("cannot name what was there before"))?;
        restored.replaced = Some(kept.clone());
        aside.push(kept);
    }
    Ok(Done { restored, sealed, aside })
}

fn private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// What ends the daemon that is this process: systemd would start again one of its own that is only killed.
fn stop(holder: &str) -> String {
    let groups = fs::read_to_string(format!("/proc/{holder}/cgroup")).unwrap_or_default();
    match unit(&groups) {
        Some(unit) => format!("systemctl stop {unit}"),
        None if holder.parse::<u32>().is_ok() => format!("kill {holder}"),
        None => "end that process".to_owned(),
    }
}

/// The unit of systemd's that a process with these control groups is of, if it is one of ours.
fn unit(groups: &str) -> Option<&str> {
    let units = groups.lines().filter_map(|line| line.rsplit('/').next()?.strip_suffix(".service"));
    units.into_iter().find(|name| name.starts_with("applyd"))
}

/// Refuses while a daemon runs, and keeps others from beginning. The restore itself takes the lock of the file again.
fn in_use(places: &Places, data: &Path) -> Result<File, RestoreError> {
    let running = |holder| RestoreError::Running { data: data.to_owned(), holder };
    match Embedded::is_free(places.store()) {
        Ok(()) => {}
        Err(OpenError::InUse { holder, .. }) => return Err(running(holder)),
        Err(error) => return Err(error.into()),
    }
    taken(&places.lock()).map_err(io("cannot lock the data directory"))?.map_err(running)
}

/// Reads a copy of the backup as a store, and opens all that is sealed in it; how much that is.
async fn check(
    wanted: &Restore,
    places: &Places,
    seams: &Seams,
) -> Result<(Option<Arc<KeyFile>>, usize), RestoreError> {
    places.tidy().map_err(io("cannot make room for a copy"))?;
    let copy = places.passing().join("restore.redb");
    Embedded::restore(&wanted.file, &copy, &*seams.random)?;
    let store = Embedded::open(&copy, &*seams.random, &Options::default())?;
    let at = wanted.key.clone().unwrap_or_else(|| places.key());
    let unreadable = |error: anyhow::Error| {
        io(format!("cannot read the key at {}", at.display()))(io::Error::other(format!("{error:#}")))
    };
    let key = match &wanted.key {
        Some(given) if lock::is_locked_file(given) => {
            let how = "it is locked by a passphrase: copy it to <data>/key, start applyd, applyctl unlock, stop applyd, and restore \
                       without --key";
            return Err(unreadable(anyhow::anyhow!(how)));
        }
        Some(given) => KeyFile::existing(given).map_err(|error| unreadable(error.into()))?,
        None => lock::key(places).map_err(unreadable)?,
    };
    let key = key.map(Arc::new);
    let found = sealed(&store, key.clone().map(|key| key as Arc<dyn Sealer>)).await?;
    drop(store);
    places.tidy().map_err(io("cannot remove the copy"))?;
    match found {
        Sealed::Open(sealed) => Ok((key, sealed)),
        Sealed::NoKey(sealed) => Err(RestoreError::NoKey { sealed, key: at }),
        Sealed::Wrong(what) => Err(RestoreError::WrongKey { key: at, what }),
    }
}

/// What is sealed in a store.
#[derive(Debug, PartialEq, Eq)]
pub enum Sealed {
    /// So many values, and all of them open.
    Open(usize),
    /// So many, and there is no key.
    NoKey(usize),
    /// This one does not open.
    Wrong(String),
}

/// Looks at every value; opens those that are sealed.
pub async fn sealed(store: &dyn Store, key: Option<Arc<dyn Sealer>>) -> Result<Sealed, StoreError> {
    let prefix = format!("{ROOT}/objects/");
    let all = store.list(&Key::new(prefix.clone()), Page::default()).await?;
    let mut count = 0;
    for entry in all.entries {
        let Some(key) = &key else {
            count += usize::from(entry.value.get(1..5).is_some_and(|id| id != [0; 4]));
            continue;
        };
        match opens(&entry.value, entry.key.as_str(), key) {
            Ok(sealed) => count += usize::from(sealed),
            Err(_) => return Ok(Sealed::Wrong(entry.key.as_str().trim_start_matches(&prefix).to_owned())),
        }
    }
    Ok(match (count, key) {
        (1.., None) => Sealed::NoKey(count),
        _ => Sealed::Open(count),
    })
}

/// The key of this machine is that one, locked or not.
fn is_here(key: &KeyFile, places: &Places) -> bool {
    lock::key(places).is_ok_and(|own| own.is_some_and(|own| own.bytes() == key.bytes()))
}

/// The first name beside `path` that nothing has: `store.redb.replaced-1`.
pub(super) fn free_name(path: &Path) -> PathBuf {
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".replaced-{number}"));
        PathBuf::from(name)
    };
    (1..).map(name).find(|name| !name.exists()).expect("there are more numbers than files")
}

fn set_aside(path: &Path) -> Result<Option<PathBuf>, RestoreError> {
    let kept = free_name(path);
    match fs::rename(path, &kept) {
        Ok(()) => Ok(Some(kept)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(format!("cannot keep {} aside", path.display()))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_started_a_daemon_is_who_stops_it() {
        assert_eq!(unit("0::/system.slice/applyd.service\n"), Some("applyd"));
        assert_eq!(unit("4:memory:/\n1:name=systemd:/system.slice/applyd-two.service\n"), Some("applyd-two"));
        assert_eq!(unit("0::/user.slice/user-0.slice/session-1.scope\n"), None);
        assert_eq!(unit("0::/system.slice/ssh.service\n"), None, "a daemon that was started by hand over ssh");
        assert_eq!(stop("4294967295"), "kill 4294967295");
    }
}
