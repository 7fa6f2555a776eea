//! How far each machine has come with Endpoints: a task is told to stop only when nobody sends it connections any more.
//!
//! In memory, as it is stale the moment after it was said: a process that begins knows nothing, and whoever waits for a
//! machine that says nothing does so for a bounded time.

use std::collections::BTreeMap;

use reconciler::ResourceVersion;
use reconciler::cache::Snapshot;
use schemas::kinds::endpoints::Endpoints;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Who follows Endpoints on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Follower {
    /// Virtual addresses and published ports.
    Mesh,
    /// The name server.
    Names,
}

impl Follower {
    fn as_str(self) -> &'static str {
        match self {
            Follower::Mesh => "mesh",
            Follower::Names => "name server",
        }
    }
}

/// What every machine has said so far. Clones share it.
#[derive(Clone, Debug)]
pub struct Applied {
    said: watch::Sender<Said>,
}

type Said = BTreeMap<(String, Follower), ResourceVersion>;

/// How far one machine has come.
pub type Reached = BTreeMap<Follower, ResourceVersion>;

impl Default for Applied {
    fn default() -> Self {
        Applied { said: watch::Sender::new(Said::new()) }
    }
}

impl Applied {
    /// All that Endpoints said at this version is in effect there.
    pub fn reached(&self, node: &str, follower: Follower, version: ResourceVersion) {
        self.said.send_if_modified(|said| {
            let known = said.entry((node.to_owned(), follower)).or_default();
            let is_further = version > *known;
            *known = version.max(*known);
            is_further
        });
    }

    /// What this machine has said so far, and again whenever it says more. Never ends.
    pub fn follow(&self, node: &str) -> Following {
        let (node, said) = (node.to_owned(), self.said.subscribe());
        Following { node, said, last: Reached::new() }
    }

    /// Who of these machines has not come as far, in words. One that has said nothing yet has not.
    pub(crate) fn behind(&self, version: ResourceVersion, machines: &[&str]) -> Vec<String> {
        let said = self.said.borrow();
        let followers = machines.iter().flat_map(|node| [(*node, Follower::Mesh), (*node, Follower::Names)]);
        let late = followers.filter(|(node, follower)| {
            said.get(&((*node).to_owned(), *follower)).is_none_or(|reached| *reached < version)
        });
        late.map(|(node, follower)| format!("the {} of {node}", follower.as_str())).collect()
    }
}

/// What one machine says, from now on.
#[derive(Debug)]
pub struct Following {
    node: String,
    said: watch::Receiver<Said>,
    last: Reached,
}

impl Following {
    /// The next time that it has come further. Cancel-safe.
    pub async fn next(&mut self) -> Reached {
        loop {
            let of_node: Reached = {
                let said = self.said.borrow_and_update();
                let own = said.iter().filter(|((node, _), _)| *node == self.node);
                own.map(|((_, follower), version)| (*follower, *version)).collect()
            };
            if of_node != self.last {
                self.last.clone_from(&of_node);
                return of_node;
            }
            if self.said.changed().await.is_err() {
                // Nobody says anything any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The version of the newest Endpoints in a snapshot: what whoever has carried out all of them has reached.
pub(crate) fn newest(snapshot: &Snapshot) -> ResourceVersion {
    snapshot.all::<Endpoints>().map(|endpoints| endpoints.metadata.resource_version).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_machine_is_behind_until_both_of_its_followers_say_otherwise() {
        let applied = Applied::default();
        let behind = |version, machines: &[&str]| applied.behind(ResourceVersion(version), machines);
        assert_eq!(behind(5, &[]), Vec::<String>::new(), "nobody is waited for");
        assert_eq!(behind(5, &["n1"]), ["the mesh of n1", "the name server of n1"], "it has said nothing");
        applied.reached("n1", Follower::Names, ResourceVersion(7));
        assert_eq!(behind(5, &["n1"]), ["the mesh of n1"]);
        applied.reached("n1", Follower::Mesh, ResourceVersion(5));
        applied.reached("n1", Follower::Mesh, ResourceVersion(4));
        assert_eq!(behind(5, &["n1"]), Vec::<String>::new());
        assert_eq!(behind(6, &["n1"]), ["the mesh of n1"]);
        assert_eq!(behind(6, &[]), Vec::<String>::new(), "one that is lost is not asked for");
    }

    #[test]
    fn who_follows_a_machine_hears_of_it_alone_and_of_each_step_once() {
        let applied = Applied::default();
        let mut following = applied.follow("n1");
        assert_eq!(following.next().now_or_never(), None);
        applied.reached("n1", Follower::Mesh, ResourceVersion(3));
        applied.reached("n1", Follower::Mesh, ResourceVersion(4));
        assert_eq!(following.next().now_or_never(), Some(Reached::from([(Follower::Mesh, ResourceVersion(4))])));
        applied.reached("n2", Follower::Mesh, ResourceVersion(9));
        applied.reached("n1", Follower::Mesh, ResourceVersion(2));
        assert_eq!(following.next().now_or_never(), None);
        applied.reached("n1", Follower::Names, ResourceVersion(4));
        assert_eq!(following.next().now_or_never().map(|reached| reached.len()), Some(2));
    }
}
