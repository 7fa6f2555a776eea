//! Who has a vote in the store that the managers run themselves: managers, and nobody else.
//!
//! **Owns** the members of that store, as far as they go; who comes asks for its place itself.
//! **Relies on** the role of Nodes, and on their state for who answers.
//! **Promises** who is no manager any more, or was removed, loses its vote, once enough of those that stay answer to decide
//! without it; the last one keeps it.
//! **Woken by** Nodes and the members of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::external::{External, World};
use reconciler::seams::{Monotonic, Seams};
use schemas::kinds::node::{Node, NodeState, Role};

/// Between two looks at the members.
const LOOK: Duration = Duration::from_secs(5);
/// Before a member is looked at again whose removal has to wait.
const AGAIN: Duration = Duration::from_secs(1);
/// Nobody is taken out before it was to go for so long without a break: by then a new leader knows by itself who answers.
const SETTLED: Duration = Duration::from_millis(3_500);

/// One member of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its machine's Node; empty while it has not begun.
    pub node: String,
    /// It counts for a majority.
    pub votes: bool,
}

/// The members of the store, by what the store calls them.
pub trait Votes: Send + Sync + 'static {
    fn members(&self) -> BoxFuture<'_, Result<BTreeMap<String, Voter>, VotesError>>;

    /// Takes a member out. One that is out already is no error.
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), VotesError>>;
}

/// The store did not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the members of the store: {0}")]
pub struct VotesError(pub String);

struct Members(Arc<dyn Votes>);

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Members")
    }
}

impl World for Members {
    type Key = String;
    type Item = Voter;
    type Error = VotesError;

    async fn list(&self) -> Result<Vec<(String, Voter)>, VotesError> {
        Ok(self.0.members().await?.into_iter().collect())
    }
}

pub struct Managers {
    members: External<Members>,
    /// Who is to go, since when, and when that was last so.
    going: Mutex<Option<(String, Monotonic, Monotonic)>>,
    /// Whose vote is waited for, as the log says already.
    said: Mutex<Option<String>>,
    seams: Seams,
}

impl Managers {
    pub fn controller(votes: Arc<dyn Votes>, seams: &Seams) -> Controller<Singleton> {
        let members = External::with_resync("members", Members(votes), seams.clone(), LOOK);
        Controller::singleton(
            "managers",
            Self { members: members.clone(), going: Mutex::default(), said: Mutex::default(), seams: seams.clone() },
        )
        .watches::<Node, _>(|_, _| [Singleton])
        .watches_external(&members, |_, _| [Singleton])
    }
}

struct Seen {
    managers: BTreeSet<String>,
    /// Machines that are heard of, whatever their role.
    heard: BTreeSet<String>,
    members: BTreeMap<String, Voter>,
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    Remove(String),
    /// Too few of those that would stay are heard of.
    Wait(String),
}

impl Managers {
    fn said(&self) -> MutexGuard<'_, Option<String>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a member was to go for long enough, each time that was looked.
    fn is_settled(&self, id: &str) -> bool {
        let now = self.seams.monotonic();
        let mut going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match &*going {
            Some((known, since, last)) if known == id && now.since(*last) < 2 * AGAIN => *since,
            _ => now,
        };
        *going = Some((id.to_owned(), since, now));
        now.since(since) >= SETTLED
    }
}

impl KeyReconciler for Managers {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let Some(members) = self.members.snapshot() else { return Ok(Action::Await) };
        let is_heard = |node: &&Arc<Node>| {
            let state = node.status.as_ref().map(|status| status.state).unwrap_or_default();
            matches!(state, NodeState::Ready | NodeState::NotReady)
        };
        let name = |node: &Arc<Node>| node.metadata.name.clone();
        let nodes = || cx.snapshot().all::<Node>();
        let seen = Seen {
            managers: nodes().filter(|node| node.spec.role == Role::Manager).map(name).collect(),
            heard: nodes().filter(is_heard).map(name).collect(),
            members: members.iter().map(|(id, voter)| (id.clone(), (**voter).clone())).collect(),
        };
        match plan(&seen) {
            Plan::Nothing => {
                self.said().take();
                Ok(Action::Await)
            }
            Plan::Wait(node) => {
                // Once, however long it takes.
                if self.said().replace(node.clone()) != Some(node.clone()) {
                    tracing::warn!(node, "it manages no more and keeps its vote: too few of the other managers answer");
                }
                Ok(Action::Requeue(AGAIN))
            }
            Plan::Remove(id) if !self.is_settled(&id) => Ok(Action::Requeue(AGAIN)),
            Plan::Remove(id) => {
                self.members.world().0.remove(&id).await.map_err(Error::retry)?;
                tracing::info!(node = seen.members[&id].node, "it has no vote in the store any more");
                self.members.look_again();
                Ok(Action::Requeue(AGAIN))
            }
        }
    }
}

/// One at a time.
fn plan(seen: &Seen) -> Plan {
    let has_begun = |voter: &Voter| !voter.node.is_empty();
    let goes = |voter: &&Voter| has_begun(voter) && !seen.managers.contains(&voter.node);
    for (id, voter) in &seen.members {
        if !goes(&voter) {
            continue;
        }
        let stay: Vec<&Voter> = seen.members.values().filter(|other| other.votes && other.node != voter.node).collect();
        let answer = stay.iter().filter(|other| seen.heard.contains(&other.node)).count();
        return match voter.votes && answer < stay.len() / 2 + 1 {
            true => Plan::Wait(voter.node.clone()),
            false => Plan::Remove(id.clone()),
        };
    }
    // Who has not begun yet has no name: there are not more of them than managers that are no members so far.
    let unknown = seen.members.iter().filter(|(_, voter)| !has_begun(voter));
    let is_member = |manager: &&String| seen.members.values().any(|voter| voter.node == **manager);
    let awaited = seen.managers.iter().filter(|manager| !is_member(manager)).count();
    unknown.map(|(id, _)| id.clone()).nth(awaited).map_or(Plan::Nothing, Plan::Remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Managers with a minus before those that are lost; members with a question mark for one without a vote.
    fn planned(managers: &[&str], members: &[&str]) -> Plan {
        let lost: Vec<&str> = managers.iter().filter_map(|name| name.strip_prefix('-')).collect();
        let all = managers.iter().chain(members).map(|name| name.trim_matches(['-', '?']));
        let heard = all.filter(|name| !lost.contains(name)).map(str::to_owned).collect();
        let managers = managers.iter().map(|name| name.trim_start_matches('-').to_owned()).collect();
        let member = |name: &&str| Voter { node: name.trim_end_matches('?').to_owned(), votes: !name.ends_with('?') };
        let members = members.iter().enumerate().map(|(at, name)| (at.to_string(), member(name)));
        plan(&Seen { managers, heard, members: members.collect() })
    }

    #[test]
    fn who_manages_no_more_loses_its_vote_when_the_others_can_do_without() {
        let remove = |at: usize| Plan::Remove(at.to_string());
        assert_eq!(planned(&["n1", "n2", "n3"], &["n1", "n2", "n3"]), Plan::Nothing);
        assert_eq!(planned(&["n1", "n2"], &["n1", "n2", "n3"]), remove(2));
        assert_eq!(
            planned(&["n1", "-n2"], &["n1", "n2", "n3"]),
            Plan::Wait("n3".into()),
            "n3 is the majority's other half"
        );
        assert_eq!(planned(&["n1", "-n3"], &["n1", "n2", "n3"]), Plan::Wait("n2".into()));
        assert_eq!(planned(&["n1"], &["n1", "n2"]), remove(1));
        assert_eq!(planned(&["-n1"], &["n1", "n2?"]), remove(1), "it has no vote");
        assert_eq!(planned(&[], &["n1"]), Plan::Wait("n1".into()), "the last one stays");
        assert_eq!(planned(&["n1", "n2"], &["n1", "n2", "n3", "n4"]), remove(2), "one at a time");
        assert_eq!(planned(&["n1"], &["n1", "n2", "n3"]), remove(1), "n3 goes too, and answers as long as it votes");
    }

    #[test]
    fn who_was_let_in_and_never_came_goes_when_nobody_is_awaited() {
        assert_eq!(planned(&["n1", "n2"], &["n1", "?"]), Plan::Nothing, "n2 may be about to begin");
        assert_eq!(planned(&["n1"], &["n1", "?"]), Plan::Remove("1".into()));
        assert_eq!(planned(&["n1", "n2"], &["n1", "?", "?"]), Plan::Remove("2".into()));
    }
}
