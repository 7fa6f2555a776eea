//! Hears of every transaction, so that rules that somebody flushed are back within milliseconds (`systemctl reload
//! nftables` begins with a flush).

use std::{fmt, io, sync::Arc, thread, time::Duration};

use futures::{
    StreamExt, future,
    stream::{self, BoxStream},
};
use reconciler::external::{Announced, Announcements, World};
use tokio::sync::watch;

use super::effects::{Generation, Mesh, MeshError};
use crate::node::sys::{
    netlink::{Protocol, Socket},
    netns::Netns,
};

/// A thread that listens. It ends within a second after this value is gone.
#[derive(Debug)]
pub(super) struct Watch {
    /// How many transactions were heard of.
    heard: watch::Receiver<u64>,
}

impl Watch {
    pub fn start(netns: Option<Netns>) -> io::Result<Watch> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let open = || {
            let mut socket = Socket::open(Protocol::Netfilter)?;
            socket.join(libc::NFNLGRP_NFTABLES, PATIENCE)?;
            Ok::<_, io::Error>(socket)
        };
        let socket = netns.map_or_else(|| Ok(open()), |netns| netns.run(open)).flatten()?;
        let (tell, heard) = watch::channel(0);
        thread::Builder::new().name("mesh-watch".into()).spawn(move || listen(socket, &tell))?;
        Ok(Watch { heard })
    }

    pub fn changes(&self) -> BoxStream<'static, ()> {
        // From now on: a clone would begin with all that was heard before, at once and every time.
        let mut heard = self.heard.clone();
        heard.mark_unchanged();
        let next = |mut heard: watch::Receiver<u64>| async {
            if heard.changed().await.is_err() {
                // The socket failed: who listens goes on by its periodic looks.
                future::pending::<()>().await;
            }
            Some(((), heard))
        };
        stream::unfold(heard, next).boxed()
    }
}

fn listen(mut socket: Socket, tell: &watch::Sender<u64>) {
    /// `NFT_MSG_NEWGEN`, the end of each transaction.
    const NEW_GENERATION: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | 15;
    while tell.receiver_count() > 0 {
        let mut changed = false;
        match socket.hear(|kind| changed |= kind == NEW_GENERATION) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
            Err(_) => return,
        }
        if changed {
            tell.send_modify(|heard| *heard += 1);
        }
    }
}

/// The generation of the rules as a world that is watched: whoever converges the mesh is woken when somebody else has
/// been at them.
pub struct Rules {
    mesh: Arc<dyn Mesh>,
}

/// The one thing in [`Rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllRules;

impl fmt::Display for AllRules {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("nftables")
    }
}

impl Rules {
    pub fn new(mesh: Arc<dyn Mesh>) -> Rules {
        Rules { mesh }
    }
}

impl World for Rules {
    type Key = AllRules;
    type Item = Generation;
    type Error = MeshError;

    async fn list(&self) -> Result<Vec<(AllRules, Generation)>, MeshError> {
        Ok(vec![(AllRules, self.mesh.generation().await?)])
    }

    fn changes(&self) -> Option<Announcements<Rules>> {
        Some(self.mesh.changes().map(|()| Ok(Announced::LookAgain)).boxed())
    }
}
