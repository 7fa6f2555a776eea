//! The companion process does what the store and the pipes of the machine say, whoever is killed; and no output is lost.
//!
//! The simulated companion is a process and two files: the table, which applyd writes, and what it says that it has done.
//! Taking the last of an attempt's output takes it a while.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controllers::node::keep::controller::{Companion, Keeps, Pipes};
use controllers::node::keep::{ClientError, Status, Table};
use controllers::node::surroundings::{Output, Paths};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, StreamExt};
use reconciler::Resource;
use reconciler::api::Uid;
use reconciler::cache::Snapshot;
use reconciler::external::{Announced, Announcements, External, World};
use reconciler::sim::{CallError, Env, Scene, User};
use schemas::kinds::cluster::Cluster;
use schemas::kinds::endpoints::{Backend, EndpointNetwork, Endpoints, EndpointsSpec, TaskAddress};
use schemas::kinds::network::Network;
use schemas::kinds::node::Node;
use schemas::kinds::revision::Revision;
use schemas::kinds::service::{PublishedPort, Service};
use schemas::kinds::task::{Task, TaskState};
use tokio::sync::Notify;

use super::cast::{NAMESPACE, NODE, applyd, at, network, set_status, state, task};
use super::keys::tunnelling;
use super::power::Power;
use super::promises::Held;
use super::suite;
use super::tally::{Happened, Tally};

/// How long the companion takes to put a table into effect.
const TAKES: Duration = Duration::from_millis(20);

/// What is on the machine. Clones share it.
#[derive(Clone)]
struct Around {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    power: Power,
    tally: Tally,
    paths: Arc<Paths>,
}

#[derive(Default)]
struct State {
    /// Attempts by the names of their containers; true: ended.
    pipes: BTreeMap<String, bool>,
    /// What was printed and is still in a pipe.
    unread: BTreeSet<String>,
    table: Option<Table>,
    /// Which run of the companion, while there is one.
    companion: Option<u64>,
    runs: u64,
    /// As of its last run.
    effect: Option<Table>,
    broken: Option<String>,
}

impl Around {
    fn new(tally: &Tally) -> Self {
        Around {
            state: Arc::default(),
            changed: Arc::default(),
            power: Power::default(),
            tally: tally.clone(),
            paths: Arc::new(Paths { data: PathBuf::from("/data"), run: PathBuf::from("/run") }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody else did something here.
    fn change(&self, what: Option<Happened>, change: impl FnOnce(&mut State)) {
        if let Some(what) = what {
            self.tally.count(what);
        }
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    fn prints(&self, id: &str) {
        self.change(None, |state| {
            state.pipes.entry(id.to_owned()).or_default();
            state.unread.insert(id.to_owned());
        });
    }

    fn ends(&self, id: &str) {
        self.change(None, |state| {
            if let Some(ended) = state.pipes.get_mut(id) {
                *ended = true;
            }
        });
    }

    fn cut_power(&self) {
        self.change(Some(Happened::PowerCut), |state| {
            // Pipes and the companion's files do not outlive the power, nor what was in them.
            *state = State { runs: state.runs, broken: state.broken.take(), ..State::default() };
        });
        self.power.cut();
    }
}

/// What one incarnation of applyd reaches all that by.
#[derive(Clone)]
struct Hand {
    around: Around,
    env: Env,
}

fn failed(error: CallError) -> io::Error {
    io::Error::other(error)
}

impl Hand {
    fn stopped(&self) -> ClientError {
        ClientError::NotStarted { dir: self.around.paths.keep() }
    }

    async fn put_into_effect(&self, table: &Table) -> Result<Status, ClientError> {
        let around = &self.around;
        let io = |what| {
            let dir = around.paths.keep();
            move |error| ClientError::Io { what, dir, source: failed(error) }
        };
        let calls = &self.env.calls;
        if around.lock().table.as_ref() != Some(table) {
            let write = calls.effect("writes the companion's table", || around.lock().table = Some(table.clone()));
            write.await.map_err(io("write the table"))?;
        }
        if around.lock().companion.is_none() {
            let start = calls.effect("starts a companion", || {
                let mut state = around.lock();
                state.runs += 1;
                state.companion = Some(state.runs);
            });
            start.await.map_err(io("start a companion process"))?;
        }
        let run = around.lock().companion;
        self.env.seams.sleep(TAKES).await;
        let mut state = around.lock();
        // It died, or somebody took the table away, or wrote another one.
        if run.is_none() || state.companion != run || state.table.as_ref() != Some(table) {
            return Err(self.stopped());
        }
        for log in &table.logs {
            state.unread.remove(&log.id);
        }
        state.effect = Some(table.clone());
        Ok(Status::default())
    }
}

impl Companion for Hand {
    fn apply<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<Status, ClientError>> {
        self.put_into_effect(table).boxed()
    }
}

impl World for Hand {
    type Key = String;
    type Item = Output;
    type Error = io::Error;

    async fn list(&self) -> io::Result<Vec<(String, Output)>> {
        let listed = self.env.calls.look("list the pipes", || {
            let state = self.around.lock();
            let output = |(id, finished): (&String, &bool)| {
                let (uid, attempt) = id.rsplit_once('.').expect("two parts");
                let attempt = attempt.parse().expect("a number");
                (id.clone(), Output { uid: Uid::new(uid), attempt, finished: *finished })
            };
            state.pipes.iter().map(output).collect()
        });
        listed.await.map_err(failed)
    }

    fn changes(&self) -> Option<Announcements<Self>> {
        let announced = stream::unfold(self.around.changed.clone(), |changed| async move {
            changed.notified().await;
            Some((Ok(Announced::LookAgain), changed))
        });
        Some(announced.boxed())
    }
}

impl Pipes for Hand {
    fn paths(&self) -> &Paths {
        &self.around.paths
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let what = format!("removes the pipes of {id}");
            let removed = self.env.calls.effect(&what, || {
                let mut state = self.around.lock();
                if state.unread.contains(id) {
                    state.broken.get_or_insert(format!("the pipes of {id} go with what was printed last"));
                }
                if state.pipes.remove(id) == Some(false) {
                    state.broken.get_or_insert(format!("the pipes of {id} go while it runs"));
                }
            });
            self.around.changed.notify_waiters();
            removed.await.map_err(failed)
        }
        .boxed()
    }
}

fn scene(scene: Scene, tally: &Tally) -> Scene {
    let around = Around::new(tally);
    let (acting, whole, right, printing) = (around.clone(), around.clone(), around.clone(), around.clone());
    let (killed, removed, power, tally) = (around.clone(), around.clone(), around.clone(), tally.clone());
    let scene = scene
        .kind::<Endpoints>()
        .kind::<Network>()
        .kind::<Service>()
        .kind::<Task>()
        .kind::<Revision>()
        .kind::<Node>()
        .kind::<Cluster>();
    applyd(scene, &around.power, move |manager, env| {
        let hand = Hand { around: acting.clone(), env: env.clone() };
        let outputs = External::new("outputs", hand.clone(), env.seams.clone());
        manager.controller(Keeps::controller(NODE, Arc::new(hand), &outputs, tunnelling()))
    })
    .drift("somebody kills the companion", move || {
        killed.change(Some(Happened::CompanionKilled), |state| state.companion = None);
    })
    .drift("somebody removes the companion's table", move || {
        removed.change(Some(Happened::TableRemoved), |state| state.table = None);
    })
    .drift("the power is cut", move || power.cut_power())
    .workload(move |user| workload(user, printing))
    .invariant("no output is lost", move |_| {
        let state = whole.lock();
        tally.saw(&format!("{:?} {:?} {:?}", state.pipes, state.unread, state.companion.is_some()));
        state.broken.clone().map_or(Ok(()), Err)
    })
    .settles("the companion does what it shall", move |snapshot| as_said(snapshot, &right))
    .settles_within(Duration::from_secs(60))
}

async fn workload(user: User, around: Around) {
    network(&user, "back", "10.192.0.0/18").await;
    for round in 1..=5u8 {
        let name = format!("web-{round}");
        let address: std::net::IpAddr = format!("10.192.0.{round}").parse().expect("an address");
        let made = user.create(&task(&name, 1, "web")).await;
        let address = TaskAddress { network: "back".into(), address };
        let (first, second) = (format!("{}.1", made.metadata.uid), format!("{}.2", made.metadata.uid));
        around.prints(&first);
        set_status::<Task>(&user, &at(&name), |task| {
            let status = task.status.get_or_insert_default();
            (status.state, status.addresses) = (TaskState::Running, vec![address.clone()]);
        })
        .await;
        serves(&user, &name, address.clone()).await;
        user.pause().await;
        around.prints(&first);
        around.ends(&first);
        around.prints(&second);
        user.pause().await;
        if round % 2 == 0 {
            around.prints(&second);
            around.ends(&second);
            set_status::<Task>(&user, &at(&name), |task| {
                task.status.get_or_insert_default().state = TaskState::Complete;
            })
            .await;
            user.pause().await;
        }
    }
    user.delete::<Endpoints>(&at("web")).await;
    user.pause().await;
}

/// The service is at this task now, and published.
async fn serves(user: &User, task: &str, address: TaskAddress) {
    let vip = Some("10.129.0.1".parse().expect("an address"));
    let spec = EndpointsSpec {
        service: "web".into(),
        networks: vec![EndpointNetwork {
            network: "back".into(),
            vip,
            names: vec!["web".into()],
            ..EndpointNetwork::default()
        }],
        ports: vec![PublishedPort { target: 80, published: Some(5000), ..PublishedPort::default() }],
        backends: vec![Backend { task: task.into(), node: NODE.into(), ready: true, addresses: vec![address] }],
        ..EndpointsSpec::default()
    };
    if user.client().find::<Endpoints>(&at("web")).await.expect("no faults").is_some() {
        return user.update::<Endpoints>(&at("web"), |there| there.spec = spec.clone()).await;
    }
    let mut fresh = Endpoints::new("web", spec);
    fresh.metadata.namespace = NAMESPACE.into();
    user.create(&fresh).await;
}

fn as_said(snapshot: &Snapshot, around: &Around) -> Held {
    let state_now = around.lock();
    let Some(effect) = state_now.effect.as_ref().filter(|_| state_now.companion.is_some()) else {
        return Err("no companion runs".into());
    };
    if state_now.table.as_ref() != Some(effect) {
        return Err("its table is not in effect".into());
    }
    let logs: BTreeSet<&String> = effect.logs.iter().map(|log| &log.id).collect();
    let pipes: BTreeSet<&String> = state_now.pipes.keys().collect();
    if logs != pipes || state_now.pipes.values().any(|ended| *ended) || !state_now.unread.is_empty() {
        return Err(format!("it collects {logs:?}, and there is {:?}", state_now.pipes));
    }
    let published = snapshot.all::<Endpoints>().map(|endpoints| endpoints.spec.ports.len()).sum::<usize>();
    if effect.listeners.len() != published {
        return Err(format!("it listens at {:?}", effect.listeners));
    }
    let asking = |task: &&Arc<Task>| !state(task).is_terminal();
    let asking: BTreeSet<_> = snapshot
        .all::<Task>()
        .filter(asking)
        .flat_map(|task| task.status.iter().flat_map(|status| &status.addresses).map(|address| address.address))
        .collect();
    let may_ask: BTreeSet<_> = effect.names.clients.keys().copied().collect();
    if may_ask != asking {
        return Err(format!("{may_ask:?} may ask for names, and {asking:?} live"));
    }
    Ok(())
}

#[test]
fn keep_of_a_companion() {
    use Happened::{CompanionKilled, PowerCut, TableRemoved};
    suite("keep", 10, 20, &[CompanionKilled, PowerCut, TableRemoved], scene);
}
