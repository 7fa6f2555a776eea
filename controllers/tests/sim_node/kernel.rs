//! The kernel's rules and the machine's own link: the table that the mesh keeps, a generation that every transaction of
//! anybody counts up, and the machine's address.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use controllers::node::links::{Attached, Attachment, Links, LinksError, MachineLink};
use controllers::node::mesh::{Generation, Mesh, MeshError, Observed, Obstacle, Op, PublishedPort, Stale, Table};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use reconciler::sim::{CallError, Calls};
use tokio::sync::Notify;

use super::power::Power;
use super::tally::{Happened, Tally};

/// Clones share it.
#[derive(Clone)]
pub struct Kernel {
    state: Arc<Mutex<Rules>>,
    changed: Arc<Notify>,
    pub power: Power,
    tally: Tally,
}

pub struct Rules {
    pub table: Table,
    generation: Generation,
    /// Transactions that were told of.
    told: u64,
    pub link: Option<MachineLink>,
    pub broken: Option<String>,
}

impl Rules {
    fn new() -> Self {
        Rules { table: Table::absent(), generation: Generation(1), told: 0, link: None, broken: None }
    }
}

impl Kernel {
    pub fn new(tally: &Tally) -> Self {
        Kernel {
            state: Arc::new(Mutex::new(Rules::new())),
            changed: Arc::default(),
            power: Power::default(),
            tally: tally.clone(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Rules> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As one incarnation of applyd reaches it.
    pub fn hand(&self, calls: &Calls) -> Arc<Hand> {
        Arc::new(Hand { kernel: self.clone(), calls: calls.clone() })
    }

    /// Somebody's transaction.
    fn others(&self, what: Happened, change: impl FnOnce(&mut Table)) {
        let mut rules = self.lock();
        self.tally.count(what);
        change(&mut rules.table);
        rules.generation = rules.generation.next();
        rules.told += 1;
        drop(rules);
        self.changed.notify_waiters();
    }

    /// As `systemctl reload nftables` begins.
    pub fn flush(&self) {
        self.others(Happened::RulesFlushed, |table| *table = Table::absent());
    }

    pub fn change_others(&self) {
        self.others(Happened::OtherRules, |_| {});
    }

    /// Somebody takes out the first slot that the last frontend has, or its route when there is but one.
    pub fn tamper(&self) {
        let Some(frontend) = self.lock().table.frontends().last().copied() else { return };
        self.others(Happened::RulesTampered, |table| {
            // He may have been here a moment ago.
            let slots: Vec<u32> = table.slots(frontend).map(|(slot, _)| slot).collect();
            let op = match slots[..] {
                [first, _, ..] => Op::DeleteSlot { frontend, slot: first },
                _ => Op::DeleteRoute { frontend },
            };
            table.commit(&[op]).expect("it was there");
        });
    }

    /// Rules and links do not outlive the power.
    pub fn cut_power(&self) {
        let mut rules = self.lock();
        self.tally.count(Happened::PowerCut);
        *rules = Rules { broken: rules.broken.take(), ..Rules::new() };
        drop(rules);
        self.power.cut();
    }
}

/// See [`Kernel::hand`].
pub struct Hand {
    kernel: Kernel,
    calls: Calls,
}

fn mesh_failed(doing: &'static str) -> impl FnOnce(CallError) -> MeshError {
    move |error| MeshError::System { doing, source: io::Error::other(error) }
}

fn link_failed(doing: &'static str) -> impl FnOnce(CallError) -> LinksError {
    move |error| LinksError::System { doing, subject: "the machine".into(), source: io::Error::other(error) }
}

impl Kernel {
    fn commit(&self, at: Generation, ops: &[Op]) -> Result<(), MeshError> {
        let mut rules = self.lock();
        if rules.generation != at {
            self.tally.count(Happened::Conflict);
            return Err(MeshError::Conflict { source: None });
        }
        if let Err(refused) = rules.table.commit(ops) {
            rules.broken.get_or_insert(format!("the kernel refuses a transaction: {refused}"));
            return Err(MeshError::Conflict { source: None });
        }
        let empty = rules.table.frontends().into_iter().find(|it| rules.table.answers(*it).contains(&None));
        if let Some(frontend) = empty {
            let answers = rules.table.answers(frontend);
            rules.broken.get_or_insert(format!("{frontend} leads to nobody in {answers:?}"));
        }
        rules.generation = rules.generation.next();
        rules.told += 1;
        drop(rules);
        self.changed.notify_waiters();
        Ok(())
    }
}

impl Mesh for Hand {
    fn generation(&self) -> BoxFuture<'_, Result<Generation, MeshError>> {
        async move {
            let looked = self.calls.look("ask for the generation", || self.kernel.lock().generation).await;
            looked.map_err(mesh_failed("ask for the generation of the rules"))
        }
        .boxed()
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        let kernel = self.kernel.clone();
        let from = kernel.lock().told;
        stream::unfold((kernel, from), |(kernel, heard)| async move {
            let told = kernel.told_after(heard).await;
            Some(((), (kernel, told)))
        })
        .boxed()
    }

    fn observe(&self) -> BoxFuture<'_, Result<Observed, MeshError>> {
        async move {
            let looked = self.calls.look("list the table", || {
                let rules = self.kernel.lock();
                Observed { table: rules.table.clone(), generation: rules.generation }
            });
            looked.await.map_err(mesh_failed("list the table"))
        }
        .boxed()
    }

    fn commit(&self, at: Generation, ops: Arc<[Op]>) -> BoxFuture<'_, Result<(), MeshError>> {
        async move {
            let what: Vec<String> = ops.iter().map(ToString::to_string).collect();
            let what = format!("rules: {}", what.join(", "));
            self.calls.effect(&what, || self.kernel.commit(at, &ops)).await.map_err(mesh_failed("change the rules"))?
        }
        .boxed()
    }

    fn obstacles(&self, _: BTreeSet<PublishedPort>) -> BoxFuture<'_, Result<BTreeSet<Obstacle>, MeshError>> {
        async { Ok(BTreeSet::new()) }.boxed()
    }

    fn forget(&self, _: BTreeSet<Stale>) -> BoxFuture<'_, Result<(), MeshError>> {
        async move { self.calls.effect("forgets connections", || ()).await.map_err(mesh_failed("forget connections")) }
            .boxed()
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), MeshError>> {
        async move {
            let gone = self.calls.effect("removes the table", || self.kernel.lock().table = Table::absent());
            gone.await.map_err(mesh_failed("remove the table"))
        }
        .boxed()
    }
}

impl Kernel {
    async fn told_after(&self, heard: u64) -> u64 {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            let told = self.lock().told;
            if told != heard {
                return told;
            }
            changed.await;
        }
    }
}

impl Links for Hand {
    fn ensure_machine<'a>(&'a self, wanted: &'a MachineLink) -> BoxFuture<'a, Result<(), LinksError>> {
        async move {
            let there = || self.kernel.lock().link.as_ref() == Some(wanted);
            let there = self.calls.look("look at the machine's link", there).await;
            if there.map_err(link_failed("look at the machine's link"))? {
                return Ok(());
            }
            let made = self.calls.effect("makes the machine's link", || self.kernel.lock().link = Some(wanted.clone()));
            made.await.map_err(link_failed("make the machine's link"))
        }
        .boxed()
    }

    fn ensure<'a>(&'a self, wanted: &'a Attachment) -> BoxFuture<'a, Result<Attached, LinksError>> {
        async move { Err(LinksError::BadId { id: wanted.id.clone() }) }.boxed()
    }

    fn remove<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), LinksError>> {
        async { Ok(()) }.boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Attached>, LinksError>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn remove_machine(&self) -> BoxFuture<'_, Result<(), LinksError>> {
        async { Ok(()) }.boxed()
    }
}
