//! The process: takes the lock or takes over, then follows the table until a successor comes.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::Resource;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::super::sys::cgroup::Cgroups;
use super::super::sys::heap;
use super::super::wireguard::{self, Tunnel};
use super::super::{logs, names};
use super::Options;
use super::handover::{self, Item, Passed};
use super::relay::{Key, Relay};
use super::table::{self, Faults, Status, Versioned, status_path, table_path};
use super::watch::Watch;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// The place or the machine is not as it must be; another start may find it so.
    #[error("could not {what} in {dir}", dir = dir.display())]
    Io { what: &'static str, dir: PathBuf, source: io::Error },
    /// The one that works now goes on.
    #[error("could not take over from the one that works in {dir}", dir = dir.display())]
    Handover { dir: PathBuf, source: io::Error },
}

/// Works until a successor has taken over, and then until the last connection that it relays has ended, or an hour.
/// Returns at once if another one works in the directory and is not to be replaced.
///
/// Blocks; brings its own runtime, on this thread. Makes its process the leader of a new session (if it does not lead
/// its group), moves it to `/`, raises its limit of open files, and lets any panic end it: to be called by a process made
/// for it.
pub fn run(options: &Options) -> Result<(), KeepError> {
    let dir = &options.dir;
    let fault = |what| move |source| KeepError::Io { what, dir: dir.clone(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fault("make the directory"))?;
    prepare(options);
    let taken = match lock(dir).map_err(fault("take the lock"))? {
        Some(lock) => vec![(Item::Lock, lock)],
        None if options.replace => {
            handover::take(dir).map_err(|source| KeepError::Handover { dir: dir.clone(), source })?
        }
        None => {
            tracing::info!(dir = %dir.display(), "another one works here");
            return Ok(());
        }
    };
    end_by_any_panic();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(fault("start a runtime"))?;
    LocalSet::new().block_on(&runtime, async {
        tokio::task::spawn_local(give_back());
        let keep = Keep::start(options, taken).await.map_err(fault("start"))?;
        keep.work().await.map_err(fault("work"))
    })
}

/// How long after its beginning nothing of that is needed any more.
const BEGUN: Duration = Duration::from_secs(10);

#[expect(clippy::disallowed_methods, reason = "the outer edge: this process has no seams")]
async fn give_back() {
    tokio::time::sleep(BEGUN).await;
    heap::give_back();
}

fn prepare(options: &Options) {
    // Fails for a leader of a group, which then is already out of reach of its parent's terminal.
    let _ = rustix::process::setsid();
    // Each log takes four descriptors, each connection two.
    let mut files = rustix::process::getrlimit(Resource::Nofile);
    files.current = files.maximum;
    let _ = rustix::process::setrlimit(Resource::Nofile, files);
    // Its memory is small and bounded, and all containers would feel its loss. Not for who is no root.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    if let Some(group) = &options.cgroup {
        let refused = Cgroups::of_machine().map(|cgroups| cgroups.enter(group)).unwrap_or_default();
        for (directory, error) in refused {
            tracing::warn!(directory = %directory.display(), %error, "stays in the cgroup that it was started in");
        }
    }
    // Not to hold on to a file system that somebody wants to unmount. `dir` must be absolute for this.
    if options.dir.is_absolute() {
        let _ = std::env::set_current_dir("/");
    }
}

/// A part that has panicked must not be missing for ever: the next process has all of them.
fn end_by_any_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// None: somebody has it.
fn lock(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"))?;
    // Whoever only looks whether it is locked has it for an instant.
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file.into())),
            Err(Errno::WOULDBLOCK) => pause(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(None)
}

const LOCK_TRIES: u32 = 20;

#[expect(clippy::disallowed_methods, reason = "the outer edge: before there is a runtime")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// True if a companion process works in the directory. A directory that is missing has none.
pub(super) fn is_alive(dir: &Path) -> io::Result<bool> {
    let file = match File::open(dir.join("lock")) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// True if the process has the file of the lock open: it is, or was, the one that works in the directory.
pub(super) fn has_lock(dir: &Path, pid: u32) -> bool {
    let Ok(lock) = rustix::fs::stat(dir.join("lock")) else { return false };
    let is_lock = |found: rustix::fs::Stat| (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino);
    // It opens few files before, and many pipes after: listing those costs more than asking for the first.
    let first = (0..FIRST_FILES).map(|fd| PathBuf::from(format!("/proc/{pid}/fd/{fd}")));
    let listed = std::iter::once_with(|| std::fs::read_dir(format!("/proc/{pid}/fd")));
    let all = listed.flatten().flatten().flatten().map(|fd| fd.path());
    first.chain(all).any(|file| rustix::fs::stat(file).is_ok_and(is_lock))
}

/// Files that the companion process may have open before its lock.
const FIRST_FILES: u32 = 16;

struct Keep {
    dir: PathBuf,
    lock: OwnedFd,
    successors: AsyncFd<OwnedFd>,
    watch: Watch,
    collector: logs::Collector,
    names: names::Server,
    relay: Relay,
    /// None while none was asked for.
    tunnel: Option<Tunnel>,
    table: Versioned,
    /// Of the file that `table` was read from.
    stamp: Option<Stamp>,
    resolvers: Vec<SocketAddr>,
    /// Of all but the logs, whose own the collector knows.
    faults: Faults,
    /// As it was last written.
    status: Status,
    /// Pipes of the predecessor, until ours are open.
    pipes: Vec<OwnedFd>,
}

/// Looked at without any hint this often; more often while something does not work.
const LOOK: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
/// How long an old one stays for connections that it relays.
const DRAIN: Duration = Duration::from_secs(3600);

impl Keep {
    async fn start(options: &Options, passed: Passed) -> io::Result<Self> {
        let dir = options.dir.clone();
        // A file of a dead one would say that its table is in effect.
        match std::fs::remove_file(status_path(&dir)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let Sorted { lock, pipes, names: sockets, listeners, tunnel } = Sorted::from(passed);
        let lock = lock.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the lock was not passed on"))?;
        let status = Status { pid: std::process::id(), build: options.build.clone(), ..Status::default() };
        let mut keep = Keep {
            successors: handover::listen(&dir)?,
            watch: Watch::new(&[&table_path(&dir), Path::new(names::resolv::HOST)]),
            collector: logs::Collector::start()?,
            names: names::Server::new(),
            relay: Relay::default(),
            tunnel: None,
            table: Versioned::default(),
            stamp: None,
            resolvers: Vec::new(),
            faults: Faults::default(),
            status,
            dir,
            lock,
            pipes,
        };
        keep.load();
        keep.look_at_resolvers();
        keep.names.adopt(sockets)?;
        keep.relay.adopt(listeners, &keep.table.table.listeners)?;
        if !tunnel.is_empty() {
            keep.tunnel.insert(Tunnel::start()?).adopt(tunnel);
        }
        keep.put_into_effect().await;
        Ok(keep)
    }

    async fn work(mut self) -> io::Result<()> {
        let mut collected = self.collector.collected();
        loop {
            let mut told = self.tunnel.as_ref().map(Tunnel::told);
            let reported = self.report().inspect_err(|error| tracing::warn!(%error, "cannot write the status"));
            let look = if self.status.faults.is_empty() && reported.is_ok() { LOOK } else { RETRY };
            tokio::select! {
                _ = timeout(look, self.watch.changed()) => {
                    if !self.is_at_home() {
                        tracing::warn!(dir = %self.dir.display(), "the directory was taken away");
                        return Ok(());
                    }
                    self.look_at_resolvers();
                    if self.load() || !self.status.faults.is_empty() {
                        self.put_into_effect().await;
                    }
                }
                _ = collected.changed() => {}
                () = told_anew(told.as_mut()) => {}
                successor = handover::accept(&self.successors) => match successor {
                    Ok(successor) => match self.hand_over(&successor).await {
                        Ok(left) => return left.drain().await,
                        Err((keep, error)) => {
                            tracing::warn!(%error, "nobody took over");
                            self = *keep;
                            collected = self.collector.collected();
                        }
                    },
                    Err(error) => tracing::warn!(%error, "a successor's connection"),
                }
            }
        }
    }

    /// False once nobody could find us any more: another one may work in a new directory of that name, or none shall.
    fn is_at_home(&self) -> bool {
        let ours = rustix::fs::fstat(&self.lock);
        let found = rustix::fs::stat(self.dir.join("lock"));
        matches!((ours, found), (Ok(ours), Ok(found)) if (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino))
    }

    /// Reads the table if its file is another one than last time. True if it says something else.
    fn load(&mut self) -> bool {
        let path = table_path(&self.dir);
        let stamp = Stamp::of(&path);
        if stamp.is_none() || stamp == self.stamp {
            return false;
        }
        match table::read::<Versioned>(&path) {
            Ok(read) => {
                self.stamp = stamp;
                self.faults.table = None;
                let table = read.unwrap_or_default();
                let changed = table != self.table;
                self.table = table;
                changed
            }
            Err(error) => {
                // It is replaced as a whole, so this is no half-written one: looked at again with the next change.
                self.stamp = stamp;
                self.faults.table = Some(error.to_string());
                false
            }
        }
    }

    /// `apply` of each part does only what is not yet so.
    async fn put_into_effect(&mut self) {
        let Versioned { version, table } = &self.table;
        self.collector.apply(*version, table.logs.clone());
        let names = self.names.apply(Rc::new(table.names.clone()));
        self.faults.names = names.into_iter().map(|(address, fault)| (address, fault.to_string())).collect();
        self.faults.listeners = self.relay.apply(&table.listeners).await;
        if self.tunnel.is_none() && table.tunnel.is_some() {
            match Tunnel::start() {
                Ok(tunnel) => self.tunnel = Some(tunnel),
                Err(error) => self.faults.tunnel = Some(error.to_string()),
            }
        }
        if let Some(tunnel) = &self.tunnel {
            tunnel.apply(table.tunnel.as_ref()).await;
        }
    }

    fn look_at_resolvers(&mut self) {
        // A missing file means what an empty one does.
        let text = std::fs::read_to_string(names::resolv::HOST).unwrap_or_default();
        let index = |name: &str| {
            let socket = std::net::UdpSocket::bind((std::net::Ipv6Addr::LOCALHOST, 0)).ok()?;
            rustix::net::netdevice::name_to_index(&socket, name).ok()
        };
        let resolvers = names::resolv::parse(&text, index).nameservers;
        if resolvers != self.resolvers {
            self.names.set_resolvers(&resolvers);
            self.resolvers = resolvers;
        }
    }

    fn report(&mut self) -> io::Result<()> {
        let collected = self.collector.collected();
        let collected = collected.borrow();
        let told = self.tunnel.as_ref().map(|tunnel| tunnel.told().borrow().clone());
        let mut faults = Faults { logs: collected.faults.clone(), ..self.faults.clone() };
        let wireguard::Told { sessions, fault } = told.unwrap_or_default();
        faults.tunnel = fault.or(faults.tunnel);
        // The logs are the last part that comes into effect: the others have when their `apply` returns.
        let version = collected.version;
        if version == self.table.version {
            self.pipes.clear();
        }
        let status = Status { loaded: self.table.version, version, faults, sessions, ..self.status.clone() };
        if status == self.status && status_path(&self.dir).exists() {
            return Ok(());
        }
        table::replace(&status_path(&self.dir), &status)?;
        self.status = status;
        Ok(())
    }

    /// The error has the one that goes on.
    async fn hand_over(mut self, successor: &OwnedFd) -> Result<Left, (Box<Self>, io::Error)> {
        let pipes = self.collector.stop();
        let listeners = self.relay.pause().await;
        let names = match self.names.pause().await {
            Ok(names) => names,
            Err(error) => return Err((Box::new(self.resume(Vec::new(), listeners).await), error)),
        };
        let tunnel = match &self.tunnel {
            Some(tunnel) => tunnel.pause().await,
            None => Ok(Vec::new()),
        };
        let tunnel = match tunnel {
            Ok(tunnel) => tunnel,
            Err(error) => return Err((Box::new(self.resume(names, listeners).await), error)),
        };
        let mut items = vec![(Item::Lock, self.lock.as_fd())];
        items.extend(pipes.iter().chain(&self.pipes).map(|pipe| (Item::Pipe, pipe.as_fd())));
        for socket in &names {
            items.push((Item::NamesUdp(socket.address), socket.udp.as_fd()));
            items.push((Item::NamesTcp(socket.address), socket.tcp.as_fd()));
        }
        items.extend(listeners.iter().map(|((protocol, at), fd)| (Item::Listener(*protocol, *at), fd.as_fd())));
        items.extend(tunnel.iter().map(|(part, fd)| (Item::Tunnel(part.clone()), fd.as_fd())));
        match handover::give(successor, &items) {
            // Everything else is closed here, the lock too.
            Ok(()) => Ok(Left { names: self.names, relay: self.relay, tunnel: self.tunnel }),
            Err(error) => Err((Box::new(self.resume(names, listeners).await), error)),
        }
    }

    async fn resume(mut self, names: Vec<names::Socket>, listeners: Vec<(Key, OwnedFd)>) -> Self {
        self.collector = logs::Collector::start().expect("a thread and two descriptors were there a moment ago");
        if let Err(error) = self.names.adopt(names) {
            tracing::warn!(%error, "name server sockets are bound anew");
        }
        if let Err(error) = self.relay.adopt(listeners, &self.table.table.listeners) {
            tracing::warn!(%error, "listeners are opened anew");
        }
        if let Some(tunnel) = &self.tunnel {
            tunnel.resume();
        }
        self.put_into_effect().await;
        self
    }
}

async fn told_anew(told: Option<&mut watch::Receiver<wireguard::Told>>) {
    if let Some(told) = told
        && told.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// What an old one still has to do.
struct Left {
    names: names::Server,
    relay: Relay,
    tunnel: Option<Tunnel>,
}

impl Left {
    async fn drain(self) -> io::Result<()> {
        let _ = timeout(DRAIN, async {
            if let Some(tunnel) = self.tunnel {
                tunnel.finish().await;
            }
            self.names.finish().await;
            self.relay.finish().await;
        })
        .await;
        Ok(())
    }
}

/// Tells files of one name apart without reading them.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).ok()?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Some(Stamp { inode: metadata.ino(), modified, bytes: metadata.len() })
    }
}

#[derive(Default)]
struct Sorted {
    lock: Option<OwnedFd>,
    pipes: Vec<OwnedFd>,
    names: Vec<names::Socket>,
    listeners: Vec<(Key, OwnedFd)>,
    tunnel: Vec<(wireguard::Part, OwnedFd)>,
}

impl From<Passed> for Sorted {
    fn from(passed: Passed) -> Self {
        let mut sorted = Sorted::default();
        let mut udp_before: Option<(SocketAddr, OwnedFd)> = None;
        for (item, fd) in passed {
            match item {
                Item::Lock => sorted.lock = Some(fd),
                Item::Pipe => sorted.pipes.push(fd),
                Item::NamesUdp(address) => udp_before = Some((address, fd)),
                Item::NamesTcp(address) => {
                    if let Some((_, udp)) = udp_before.take().filter(|(before, _)| *before == address) {
                        sorted.names.push(names::Socket { address, udp, tcp: fd });
                    }
                }
                Item::Listener(protocol, address) => sorted.listeners.push(((protocol, address), fd)),
                Item::Tunnel(part) => sorted.tunnel.push((part, fd)),
                Item::End => {}
            }
        }
        sorted
    }
}
