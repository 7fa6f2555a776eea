//! The members of the etcd cluster itself, for whoever runs it.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use etcd_client::{ClusterClient, MemberAddOptions};

use super::Etcd;
use super::failure::Failure;
use crate::store::StoreError;

/// One member of an etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As etcd calls it.
    pub id: MemberId,
    /// As it calls itself; empty until it has begun.
    pub name: String,
    /// Where the others reach it.
    pub peers: Vec<String>,
    /// It gets all that is written, and has no vote yet.
    pub is_learner: bool,
}

/// etcd's own name of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberId(u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for MemberId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl From<&etcd_client::Member> for Member {
    fn from(member: &etcd_client::Member) -> Self {
        Self {
            id: MemberId(member.id()),
            name: member.name().to_owned(),
            peers: member.peer_urls().to_vec(),
            is_learner: member.is_learner(),
        }
    }
}

impl Etcd {
    /// All members.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn members(&self) -> Result<Vec<Member>, StoreError> {
        let listed = self.ask(|mut client| async move { client.member_list().await }).await?;
        Ok(listed.members().iter().map(Member::from).collect())
    }

    /// A new member without a vote, which others reach at `peer`. All members as they are then.
    ///
    /// # Errors
    /// etcd refuses it: there is one without a vote already, or a member is not reached. What became of it when the answer
    /// was lost, [`Etcd::members`] says.
    pub async fn add_learner(&self, peer: &str) -> Result<Vec<Member>, StoreError> {
        let added = self.ask(|mut client| async move {
            client.member_add([peer.to_owned()], Some(MemberAddOptions::new().with_is_learner())).await
        });
        Ok(added.await?.member_list().iter().map(Member::from).collect())
    }

    /// Gives a member a vote.
    ///
    /// # Errors
    /// It has not caught up yet, or etcd does not answer.
    pub async fn promote(&self, id: MemberId) -> Result<(), StoreError> {
        self.ask(|mut client| async move { client.member_promote(id.0).await }).await.map(drop)
    }

    /// Others reach a member at another place from now on.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn moved(&self, id: MemberId, peer: &str) -> Result<(), StoreError> {
        self.ask(|mut client| async move { client.member_update(id.0, [peer.to_owned()]).await }).await.map(drop)
    }

    /// Takes a member out, whether it has a vote or not.
    ///
    /// # Errors
    /// What is left could not decide anything, or etcd does not answer.
    pub async fn remove(&self, id: MemberId) -> Result<(), StoreError> {
        self.ask(|mut client| async move { client.member_remove(id.0).await }).await.map(drop)
    }

    async fn ask<T, F>(&self, call: impl Fn(ClusterClient) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let asked = self.members.try_each(|client| {
            let answer = call(client.cluster_client());
            async move { answer.await.map_err(Failure::from) }
        });
        asked.await.map_err(StoreError::from)
    }
}
