//! How far each machine has come with Endpoints: a task is told to stop only when nobody sends it connections any more.
//!
//! In memory, as it is stale the moment after it was said: a process that begins knows nothing, and whoever waits for a
//! machine that says nothing does so for a bounded time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use reconciler::ResourceVersion;

/// Who follows Endpoints on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Clone, Debug, Default)]
pub struct Applied {
    said: Arc<Mutex<Said>>,
}

type Said = BTreeMap<(String, Follower), ResourceVersion>;

impl Applied {
    /// From now on this machine is waited for, whether it has said anything or not.
    pub fn expect(&self, node: &str, follower: Follower) {
        self.with(|said| {
            said.entry((node.to_owned(), follower)).or_default();
        });
    }

    /// All that Endpoints said at this version is in effect there.
    pub fn reached(&self, node: &str, follower: Follower, version: ResourceVersion) {
        self.with(|said| {
            let known = said.entry((node.to_owned(), follower)).or_default();
            *known = version.max(*known);
        });
    }

    /// Who has not come as far, in words.
    pub(crate) fn behind(&self, version: ResourceVersion) -> Vec<String> {
        let late = |((node, follower), reached): (&(String, Follower), &ResourceVersion)| {
            (*reached < version).then(|| format!("the {} of {node}", follower.as_str()))
        };
        self.with(|said| said.iter().filter_map(late).collect())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Said) -> T) -> T {
        work(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_expected_is_behind_until_it_says_otherwise() {
        let applied = Applied::default();
        assert_eq!(applied.behind(ResourceVersion(5)), Vec::<String>::new(), "nobody is waited for");
        applied.expect("n1", Follower::Mesh);
        applied.reached("n1", Follower::Names, ResourceVersion(7));
        assert_eq!(applied.behind(ResourceVersion(5)), ["the mesh of n1"]);
        applied.reached("n1", Follower::Mesh, ResourceVersion(5));
        applied.reached("n1", Follower::Mesh, ResourceVersion(4));
        assert_eq!(applied.behind(ResourceVersion(5)), Vec::<String>::new());
        assert_eq!(applied.behind(ResourceVersion(6)), ["the mesh of n1"]);
    }
}
