//! Machines that become managers and workers again, fall silent, are removed and come back, before the controller that takes
//! out of the store's members who manages no more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controllers::cluster::managers::{Managers, Voter, Votes, VotesError};
use futures::future::BoxFuture;
use reconciler::cache::Snapshot;
use reconciler::controller::Manager;
use reconciler::objects::{Client, Writer};
use reconciler::sim::{Calls, Env, Scene, User};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::node::{Node, NodeSpec, NodeState, Role};

use super::cast::{kinds, set_status};
use super::{promises, suite};

const MACHINES: [&str; 3] = ["n1", "n2", "n3"];

/// The members of a store, as they are.
#[derive(Clone, Default)]
struct Etcd(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    members: BTreeMap<String, Voter>,
    count: usize,
}

impl Etcd {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn voters(&self) -> Vec<String> {
        let inside = self.inside();
        inside.members.values().filter(|voter| voter.votes).map(|voter| voter.node.clone()).collect()
    }
}

impl Inside {
    fn add(&mut self, node: &str, votes: bool) {
        self.count += 1;
        self.members.insert(format!("{:x}", self.count), Voter { node: node.to_owned(), votes });
    }

    /// One step of a machine that shall be a manager: let in, begun, voting.
    fn come(&mut self, node: &str) {
        if let Some(member) = self.members.values_mut().find(|member| member.node == node) {
            member.votes = true;
        } else if let Some(member) = self.members.values_mut().find(|member| member.node.is_empty()) {
            node.clone_into(&mut member.node);
        } else {
            self.add("", false);
        }
    }
}

struct Reached {
    etcd: Etcd,
    calls: Calls,
}

impl Votes for Reached {
    fn members(&self) -> BoxFuture<'_, Result<BTreeMap<String, Voter>, VotesError>> {
        Box::pin(async move {
            let listed = self.calls.look("members", || self.etcd.inside().members.clone()).await;
            listed.map_err(|error| VotesError(error.to_string()))
        })
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), VotesError>> {
        Box::pin(async move {
            let removed = self.calls.effect("remove a member", || drop(self.etcd.inside().members.remove(id))).await;
            removed.map_err(|error| VotesError(error.to_string()))
        })
    }
}

fn scene(scene: Scene) -> Scene {
    let etcd = Etcd::default();
    etcd.inside().add("n1", true);
    let (reached, comes, ghost, seen, settled) = (etcd.clone(), etcd.clone(), etcd.clone(), etcd.clone(), etcd);
    kinds(scene)
        .process("manager", move |env: Env| {
            let votes = Arc::new(Reached { etcd: reached.clone(), calls: env.calls.clone() });
            let manager = Manager::builder(env.objects, env.seams.clone())
                .controller(Managers::controller(votes, &env.seams))
                .build();
            async move { manager.run(std::future::pending()).await }
        })
        .process("machines", move |env: Env| {
            let (etcd, client) = (comes.clone(), Client::new(env.objects, Writer::new("machines", "machines")));
            async move {
                loop {
                    for name in MACHINES {
                        let node = client.find::<Node>(&ObjectRef::cluster(name)).await;
                        if node.is_ok_and(|node| node.is_some_and(|node| node.spec.role == Role::Manager)) {
                            etcd.inside().come(name);
                        }
                    }
                    env.seams.sleep(Duration::from_millis(700)).await;
                }
            }
        })
        .drift("a machine is let in that never comes", move || {
            let mut inside = ghost.inside();
            if inside.members.values().all(|member| !member.node.is_empty()) {
                inside.add("", false);
            }
        })
        .workload(workload)
        .invariant("somebody has a vote", move |_| match seen.voters().is_empty() {
            true => Err("the last member was taken out".to_owned()),
            false => Ok(()),
        })
        .settles("managers have votes, and nobody else", move |snapshot| managers_vote(snapshot, &settled))
}

async fn role(user: &User, name: &str, role: Role) {
    user.update::<Node>(&ObjectRef::cluster(name), |node| node.spec.role = role).await;
}

async fn workload(user: User) {
    let manager = || NodeSpec { role: Role::Manager, ..NodeSpec::default() };
    for name in MACHINES {
        user.create(&Node::new(name, manager())).await;
        user.pause().await;
    }
    let state = async |name: &str, state: NodeState| {
        set_status::<Node>(&user, &ObjectRef::cluster(name), |node| {
            node.status.get_or_insert_default().state = state;
        })
        .await;
        user.pause().await;
    };
    for round in 0..4 {
        let (changes, falls) = (MACHINES[round % 3], MACHINES[(round + 1) % 3]);
        state(falls, NodeState::Lost).await;
        role(&user, changes, Role::Worker).await;
        user.pause().await;
        state(falls, NodeState::Ready).await;
        user.pause().await;
        if round % 2 == 0 {
            user.delete::<Node>(&ObjectRef::cluster(changes)).await;
            user.pause().await;
            user.create(&Node::new(changes, manager())).await;
        } else {
            role(&user, changes, Role::Manager).await;
        }
        user.pause().await;
    }
    role(&user, "n3", Role::Worker).await;
}

fn managers_vote(snapshot: &Snapshot, etcd: &Etcd) -> promises::Held {
    let managers = snapshot.all::<Node>().filter(|node| node.spec.role == Role::Manager);
    let mut managers: Vec<String> = managers.map(|node| node.metadata.name.clone()).collect();
    let (mut voters, members) = (etcd.voters(), etcd.inside().members.len());
    managers.sort();
    voters.sort();
    if managers != voters || members != voters.len() {
        return Err(format!("{managers:?} are managers, {voters:?} have votes, of {members} members"));
    }
    Ok(())
}

#[test]
fn managers() {
    suite("managers", 20, scene);
}
