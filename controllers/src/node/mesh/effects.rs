//! Effects on the table, as the controller needs them and as a simulator can play them.

use std::{collections::BTreeSet, io, sync::Arc};

use futures::{future::BoxFuture, stream::BoxStream};

use super::{
    kernel,
    obstacles::{Obstacle, foreign_drops, taken_ports},
    state::PublishedPort,
    table::{Op, Table},
    watch::Watch,
};
use crate::node::{
    links::LinkPrefix,
    sys::{
        conntrack::{self, Stale},
        netlink::{NetlinkError, Protocol, Socket},
        netns::Netns,
        worker::Worker,
    },
};

/// Counts the transactions of a network namespace, whoever makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u32);

impl Generation {
    /// The one that a transaction at this one makes.
    pub fn next(self) -> Generation {
        // The kernel leaves 0 out.
        Generation(self.0.checked_add(1).unwrap_or(1))
    }
}

/// The table as it was at one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub table: Table,
    pub generation: Generation,
}

/// The table of one machine.
///
/// *Guarantees*: a commit is all or nothing, and happens only at the generation that it names.
pub trait Mesh: Send + Sync {
    fn generation(&self) -> BoxFuture<'_, Result<Generation, MeshError>>;

    /// An item soon after each transaction in the namespace, whoever made it; several may become one. Ends never.
    fn changes(&self) -> BoxStream<'static, ()>;

    /// Lists the whole table. Cost: its size, some 30 ms for 10,000 services.
    fn observe(&self) -> BoxFuture<'_, Result<Observed, MeshError>>;

    /// One transaction. When the future is dropped, it may or may not happen.
    fn commit(&self, at: Generation, ops: Arc<[Op]>) -> BoxFuture<'_, Result<(), MeshError>>;

    /// What is in the mesh's way on this machine. Cost: all rules of others, all sockets of the machine.
    fn obstacles(&self, ports: BTreeSet<PublishedPort>) -> BoxFuture<'_, Result<BTreeSet<Obstacle>, MeshError>>;

    /// Deletes tracked connections: what still talks finds another task with its next packet. Of tasks that are gone, on
    /// whichever machine they were; the links of this machine's own do so by themselves.
    fn forget(&self, stale: BTreeSet<Stale>) -> BoxFuture<'_, Result<(), MeshError>>;

    /// Takes the table away.
    fn remove(&self) -> BoxFuture<'_, Result<(), MeshError>>;
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// Somebody changed the ruleset meanwhile: observe and plan again.
    #[error("nftables rules were changed by somebody else meanwhile")]
    Conflict { source: Option<NetlinkError> },
    /// Nothing was changed. Again, later; if it stays, the kernel lacks something, and a person should see it.
    #[error("could not {doing}")]
    Kernel { doing: String, source: NetlinkError },
    #[error("could not {doing}")]
    System { doing: &'static str, source: io::Error },
}

/// [`Mesh`] of the kernel that this process runs on.
#[derive(Debug)]
pub struct KernelMesh {
    worker: Worker<Kernel>,
    watch: Watch,
}

#[derive(Debug)]
struct Kernel {
    socket: Socket,
    table: String,
    links: LinkPrefix,
}

impl KernelMesh {
    /// `table` names the table of family inet (`apply` by default). `machine` is the network namespace, `None` for the
    /// caller's.
    pub fn open(table: &str, links: LinkPrefix, machine: Option<Netns>) -> io::Result<KernelMesh> {
        let table = table.to_owned();
        let watch = Watch::start(machine.as_ref().map(Netns::try_clone).transpose()?)?;
        let worker =
            Worker::start("mesh", machine, || Ok(Kernel { socket: Socket::open(Protocol::Netfilter)?, table, links }))?;
        Ok(KernelMesh { worker, watch })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Kernel) -> Result<T, MeshError> + Send + 'static,
    ) -> Result<T, MeshError> {
        self.worker.run(work).await.map_err(|source| MeshError::System { doing: "reach the kernel", source })?
    }
}

impl Mesh for KernelMesh {
    fn generation(&self) -> BoxFuture<'_, Result<Generation, MeshError>> {
        Box::pin(self.run(Kernel::generation))
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        self.watch.changes()
    }

    fn observe(&self) -> BoxFuture<'_, Result<Observed, MeshError>> {
        Box::pin(self.run(Kernel::observe))
    }

    fn commit(&self, at: Generation, ops: Arc<[Op]>) -> BoxFuture<'_, Result<(), MeshError>> {
        Box::pin(self.run(move |kernel| kernel.commit(at, &ops)))
    }

    fn obstacles(&self, ports: BTreeSet<PublishedPort>) -> BoxFuture<'_, Result<BTreeSet<Obstacle>, MeshError>> {
        Box::pin(self.run(move |kernel| {
            let mut found = foreign_drops(&mut kernel.socket, &kernel.table, &kernel.links)
                .map_err(|source| MeshError::Kernel { doing: "look at the rules of others".into(), source })?;
            let taken = taken_ports(&ports);
            found.extend(taken.map_err(|source| MeshError::System { doing: "look for listening sockets", source })?);
            Ok(found)
        }))
    }

    fn forget(&self, stale: BTreeSet<Stale>) -> BoxFuture<'_, Result<(), MeshError>> {
        Box::pin(self.run(move |kernel| {
            conntrack::forget(&mut kernel.socket, &stale)
                .map_err(|source| MeshError::Kernel { doing: "forget connections".into(), source })
        }))
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), MeshError>> {
        Box::pin(self.run(|kernel| {
            kernel::delete_table(&mut kernel.socket, &kernel.table)
                .map_err(|source| MeshError::Kernel { doing: format!("delete table inet {}", kernel.table), source })
        }))
    }
}

impl Kernel {
    fn generation(&mut self) -> Result<Generation, MeshError> {
        let number = kernel::generation(&mut self.socket)
            .map_err(|source| MeshError::Kernel { doing: "ask for the generation of the rules".into(), source })?;
        Ok(Generation(number))
    }

    fn observe(&mut self) -> Result<Observed, MeshError> {
        /// Somebody who changes rules without a pause is not waited for for ever.
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            let generation = self.generation()?;
            match kernel::observe(&mut self.socket, &self.table) {
                Ok(table) if self.generation()? == generation => return Ok(Observed { table, generation }),
                Ok(_) | Err(NetlinkError::Interrupted) => {}
                Err(source) => {
                    return Err(MeshError::Kernel { doing: format!("list table inet {}", self.table), source });
                }
            }
        }
        Err(MeshError::Conflict { source: None })
    }

    fn commit(&mut self, at: Generation, ops: &[Op]) -> Result<(), MeshError> {
        use rustix::io::Errno;
        let Err((source, op)) = kernel::commit(&mut self.socket, &self.table, at.0, ops) else { return Ok(()) };
        if source.errno().map(Errno::raw_os_error) == Some(libc::ERESTART) {
            return Err(MeshError::Conflict { source: Some(source) });
        }
        let doing = op.and_then(|op| ops.get(op)).map_or_else(|| "change the rules".into(), ToString::to_string);
        Err(MeshError::Kernel { doing, source })
    }
}
