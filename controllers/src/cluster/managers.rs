//! Who has a vote in the store that the managers run themselves: managers, and nobody else.
//!
//! **Owns** the members of that store, as far as they go; who comes asks for its place itself.
//! **Relies on** the role of Nodes, and on their state for who answers.
//! **Promises** who is no manager any more, or was removed, loses its vote, once enough of those that stay answer to decide
//! without it; the last one keeps it.
//! **Woken by** Nodes and the members of the store.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::external::{External, World};
use reconciler::seams::Seams;
use schemas::kinds::node::{Node, NodeState, Role};

/// Between two looks at the members.
const LOOK: Duration = Duration::from_secs(5);
/// Before a member is looked at again whose removal has to wait.
const AGAIN: Duration = Duration::from_secs(1);

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
}

impl Managers {
    pub fn controller(votes: Arc<dyn Votes>, seams: &Seams) -> Controller<Singleton> {
        let members = External::with_resync("members", Members(votes), seams.clone(), LOOK);
        Controller::singleton("managers", Self { members: members.clone() })
            .watches::<Node, _>(|_, _| [Singleton])
            .watches_external(&members, |_, _| [Singleton])
    }
}

struct Seen {
    /// Managers, and whether each is heard of.
    managers: BTreeMap<String, bool>,
    members: BTreeMap<String, Voter>,
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    Remove(String),
    /// Too few of those that would stay are heard of.
    Wait(String),
}

impl KeyReconciler for Managers {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let Some(members) = self.members.snapshot() else { return Ok(Action::Await) };
        let is_heard = |node: &Node| node.status.as_ref().is_some_and(|status| status.state != NodeState::Lost);
        let managers = cx.snapshot().all::<Node>().filter(|node| node.spec.role == Role::Manager);
        let seen = Seen {
            managers: managers.map(|node| (node.metadata.name.clone(), is_heard(node))).collect(),
            members: members.iter().map(|(id, voter)| (id.clone(), (**voter).clone())).collect(),
        };
        match plan(&seen) {
            Plan::Nothing => Ok(Action::Await),
            Plan::Wait(node) => {
                tracing::warn!(node, "it manages no more and keeps its vote: too few of the other managers answer");
                Ok(Action::Requeue(AGAIN))
            }
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
    let goes = |voter: &&Voter| has_begun(voter) && !seen.managers.contains_key(&voter.node);
    for (id, voter) in &seen.members {
        if !goes(&voter) {
            continue;
        }
        let stay: Vec<&Voter> = seen.members.values().filter(|other| other.votes && other.node != voter.node).collect();
        let answer = stay.iter().filter(|other| seen.managers.get(&other.node).copied().unwrap_or(false)).count();
        return match voter.votes && answer < stay.len() / 2 + 1 {
            true => Plan::Wait(voter.node.clone()),
            false => Plan::Remove(id.clone()),
        };
    }
    // Who has not begun yet has no name: there are not more of them than managers that are no members so far.
    let unknown = seen.members.iter().filter(|(_, voter)| !has_begun(voter));
    let is_member = |manager: &&String| seen.members.values().any(|voter| voter.node == **manager);
    let awaited = seen.managers.keys().filter(|manager| !is_member(manager)).count();
    unknown.map(|(id, _)| id.clone()).nth(awaited).map_or(Plan::Nothing, Plan::Remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Managers with a minus before those that are lost; members with a question mark for one without a vote.
    fn planned(managers: &[&str], members: &[&str]) -> Plan {
        let managers = managers.iter().map(|name| (name.trim_start_matches('-').to_owned(), !name.starts_with('-')));
        let member = |name: &&str| Voter { node: name.trim_end_matches('?').to_owned(), votes: !name.ends_with('?') };
        let members = members.iter().enumerate().map(|(at, name)| (at.to_string(), member(name)));
        plan(&Seen { managers: managers.collect(), members: members.collect() })
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
    }

    #[test]
    fn who_was_let_in_and_never_came_goes_when_nobody_is_awaited() {
        assert_eq!(planned(&["n1", "n2"], &["n1", "?"]), Plan::Nothing, "n2 may be about to begin");
        assert_eq!(planned(&["n1"], &["n1", "?"]), Plan::Remove("1".into()));
        assert_eq!(planned(&["n1", "n2"], &["n1", "?", "?"]), Plan::Remove("2".into()));
    }
}
