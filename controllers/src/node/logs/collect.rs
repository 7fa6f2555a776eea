//! One thread moves the output of all containers. It is apart from the rest of the companion process because a write to
//! a disk may wait, and a name server must not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::io::Errno;
use tokio::sync::watch;

use super::write::{Taken, Writer};
use super::{Log, Stream, now_nanos, pipes};

/// What the thread has done so far. Faults are by log id, in plain words, and go away when it works again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The version of the table whose logs are all open, or finished and let go, but for those with a fault.
    pub version: u64,
    pub faults: BTreeMap<String, String>,
}

/// The handle to the thread. Dropping it stops the thread between two chunks and waits for that.
pub struct Collector {
    orders: mpsc::Sender<Order>,
    wake: OwnedFd,
    collected: watch::Receiver<Collected>,
    /// Returns the pipes that it had open.
    thread: Option<JoinHandle<Vec<OwnedFd>>>,
}

enum Order {
    Apply(u64, Vec<Log>),
    Stop,
}

impl Collector {
    /// # Errors
    /// The kernel gives no more descriptors or threads.
    pub fn start() -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let (report, collected) = watch::channel(Collected::default());
        let (active, done) = (BTreeMap::new(), BTreeSet::new());
        let mut work = Work { epoll, wake: wake.try_clone()?, inbox, report, active, done, next: 0, pending: None };
        // Nothing here is deep: the default of 2 MiB would only be address space, but is not needed either.
        let thread = std::thread::Builder::new().name("logs".into()).stack_size(256 << 10).spawn(move || work.run())?;
        Ok(Collector { orders, wake, collected, thread: Some(thread) })
    }

    /// Makes `logs` the logs that are collected. Returns at once; [`Collected::version`] tells when it is so.
    pub fn apply(&self, version: u64, logs: Vec<Log>) {
        self.order(Order::Apply(version, logs));
    }

    /// How far it is, as it changes.
    pub fn collected(&self) -> watch::Receiver<Collected> {
        self.collected.clone()
    }

    /// Stops the thread between two chunks, waits for that, and returns the pipes, for them to stay open until another
    /// collector has opened them.
    pub fn stop(&mut self) -> Vec<OwnedFd> {
        self.order(Order::Stop);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }

    fn order(&self, order: Order) {
        // Neither fails while the thread lives, and it lives until told to stop.
        let _ = self.orders.send(order);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
    }
}

const WAKE: u64 = u64::MAX;
/// What could not be opened is tried again this often.
const RETRY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Most that is taken from one pipe when a log is finished: a pipe that is refilled for ever must not hold up the rest.
const DRAIN_BYTES_MAX: u64 = 16 << 20;

struct Work {
    epoll: OwnedFd,
    wake: OwnedFd,
    inbox: mpsc::Receiver<Order>,
    report: watch::Sender<Collected>,
    active: BTreeMap<String, Active>,
    /// Finished, and still in the table.
    done: BTreeSet<String>,
    next: u64,
    /// What is wanted and not yet so.
    pending: Option<(u64, Vec<Log>)>,
}

struct Active {
    log: Log,
    /// Epoll's name for stdout; stderr has the next.
    token: u64,
    writer: Writer,
    pipes: [OwnedFd; 2],
}

impl Work {
    fn run(&mut self) -> Vec<OwnedFd> {
        let mut events = Vec::with_capacity(64);
        loop {
            let retry = self.pending.is_some().then_some(&RETRY);
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), retry) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => unreachable!("epoll on our own descriptor failed: {e}"),
            }
            for event in &events {
                match event.data.u64() {
                    WAKE => {}
                    token => self.ready(token),
                }
            }
            let mut counter = [0; 8];
            let _ = rustix::io::read(&self.wake, &mut counter);
            loop {
                match self.inbox.try_recv() {
                    Ok(Order::Apply(version, logs)) => self.pending = Some((version, logs)),
                    Ok(Order::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                        return std::mem::take(&mut self.active)
                            .into_values()
                            .flat_map(|active| active.pipes)
                            .collect();
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            if let Some((version, logs)) = self.pending.take() {
                self.converge(version, logs);
            }
        }
    }

    fn ready(&mut self, token: u64) {
        // A log has few neighbours (hundreds); finding it costs less than the two system calls that follow.
        let Some(active) = self.active.values_mut().find(|active| active.token == token & !1) else { return };
        let stream = Stream::BOTH[(token & 1) as usize];
        let fault = match active.take(stream) {
            Ok(Taken::Nothing) => return,
            Ok(Taken::Stored(_)) => None,
            Ok(Taken::Dropped { why, .. }) => Some(format!("output is dropped: {why}")),
            Err(e) => {
                // A pipe that cannot even be emptied would wake us for ever.
                let _ = epoll::delete(&self.epoll, &active.pipes[stream as usize]);
                Some(format!("pipe cannot be read: {e}"))
            }
        };
        let id = active.log.id.clone();
        self.report.send_if_modified(|collected| note(&mut collected.faults, &id, fault));
    }

    /// One round towards the wanted logs. What fails is named, and tried again in a second.
    fn converge(&mut self, version: u64, logs: Vec<Log>) {
        let wanted: BTreeMap<&str, &Log> = logs.iter().map(|log| (log.id.as_str(), log)).collect();
        // Closing a pipe takes it out of epoll: nobody else in this process has a copy.
        self.active.retain(|id, _| wanted.contains_key(id.as_str()));
        self.done.retain(|id| wanted.contains_key(id.as_str()));
        let mut faults = self.report.borrow().faults.clone();
        faults.retain(|id, _| self.active.contains_key(id));
        let mut complete = true;
        for (id, log) in wanted {
            let done = if log.finished { self.finish(log) } else { self.collect(log) };
            if let Err(e) = done {
                complete = false;
                note(&mut faults, id, Some(e.to_string()));
            }
        }
        if !complete {
            self.pending = Some((version, logs));
        }
        self.report.send_if_modified(|collected| {
            let now = Collected { version, faults };
            let changed = *collected != now;
            *collected = now;
            changed
        });
    }

    fn collect(&mut self, log: &Log) -> io::Result<()> {
        if let Some(active) = self.active.get_mut(&log.id) {
            active.writer.limit(log);
            return Ok(());
        }
        let token = self.next;
        let active = Active::open(log, token)?;
        for stream in Stream::BOTH {
            let data = epoll::EventData::new_u64(token | stream as u64);
            epoll::add(&self.epoll, &active.pipes[stream as usize], data, epoll::EventFlags::IN)?;
        }
        self.next += 2;
        self.active.insert(log.id.clone(), active);
        Ok(())
    }

    /// Also for a log that this process has never seen: the one that had it may have died before the end mark.
    fn finish(&mut self, log: &Log) -> io::Result<()> {
        if self.done.contains(&log.id) {
            return Ok(());
        }
        let mut active = match self.active.remove(&log.id) {
            Some(active) => active,
            None => match Active::open(log, 0) {
                // The pipes go only once the end mark was acknowledged, or with a reboot.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            },
        };
        for stream in Stream::BOTH {
            let mut left = DRAIN_BYTES_MAX;
            while left > 0 {
                match active.take(stream)? {
                    Taken::Nothing => break,
                    Taken::Stored(bytes) | Taken::Dropped { bytes, .. } => left = left.saturating_sub(bytes),
                }
            }
        }
        // On a full disk the end mark is missing: a follower then learns it from the next attempt, or from its caller.
        let _ = active.writer.end(now_nanos());
        self.done.insert(log.id.clone());
        Ok(())
    }
}

impl Active {
    fn open(log: &Log, token: u64) -> io::Result<Self> {
        let pipes =
            [pipes::open(&log.pipes, &log.id, Stream::Stdout)?, pipes::open(&log.pipes, &log.id, Stream::Stderr)?];
        Ok(Active { log: log.clone(), token, writer: Writer::open(log)?, pipes })
    }

    fn take(&mut self, stream: Stream) -> Result<Taken, Errno> {
        self.writer.take(stream, self.pipes[stream as usize].as_fd(), now_nanos())
    }
}

/// True if that changed anything.
fn note(faults: &mut BTreeMap<String, String>, id: &str, fault: Option<String>) -> bool {
    match fault {
        None => faults.remove(id).is_some(),
        Some(fault) => {
            let changed = faults.get(id) != Some(&fault);
            faults.insert(id.to_owned(), fault);
            changed
        }
    }
}
