//! A pool renews its members when its edition changes, and at most one of them is away for it at any time.

use std::sync::Arc;

use reconciler::api::{ObjectRef, Resource};
use reconciler::cache::Snapshot;
use reconciler::controller::planted::Planted;
use reconciler::controller::{Action, Controller, Ctx, Error, Manager, Reconciler};
use reconciler::objects::Propagation;
use reconciler::seams::Purpose;
use reconciler::sim::{Env, Fault, Scene, User, View};
use serde::{Deserialize, Serialize};

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Pool", crate = reconciler::api)]
pub struct PoolSpec {
    pub size: u32,
    pub edition: u32,
}

#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "example.dev", version = "v1", kind = "Member", crate = reconciler::api)]
pub struct MemberSpec {
    pub number: u32,
    pub edition: u32,
}

struct Pools;

impl Reconciler for Pools {
    type Object = Pool;

    async fn reconcile(&self, pool: Arc<Pool>, cx: &Ctx) -> Result<Action, Error> {
        let members = cx.owned::<Member>();
        let edition = pool.spec.edition;
        let is_there = |number: u32| members.iter().any(|member| member.spec.number == number);
        let missing: Vec<u32> = (0..pool.spec.size).filter(|number| !is_there(*number)).collect();
        for number in &missing {
            let member = Member::new(format!("{}-{number}", pool.name()), MemberSpec { number: *number, edition });
            cx.client().create(&cx.own(member)).await?;
        }
        let outdated: Vec<_> = members.iter().filter(|member| member.spec.edition != edition).collect();
        if missing.is_empty() && !outdated.is_empty() {
            // Any of them: what keeps it to one is that the next run sees what this one did.
            let draw = cx.seams().random.next(Purpose::Choice) as usize % outdated.len();
            cx.client().delete(&**outdated[draw], Propagation::Background).await?;
        }
        Ok(Action::Await)
    }
}

pub fn scene(scene: Scene, planted: &'static [Planted]) -> Scene {
    scene
        .kind::<Pool>()
        .kind::<Member>()
        .process("pools", move |env: Env| {
            let pools = Controller::new("pools", Pools).owns::<Member>();
            let manager = Manager::builder(env.objects, env.seams).planted(planted).controller(pools).build();
            async move { manager.run(std::future::pending()).await }
        })
        // A deletion that happens when its sender was told that nobody knows, or is gone: no view of the past helps.
        .without(Fault::CommitLate)
        .without(Fault::CommitSlow)
        .workload(workload)
        .invariant("at most one member is away", one_away)
        .settles("every pool is full, and of its edition", full)
}

async fn workload(user: User) {
    let pool = ObjectRef::new("default", "pool");
    let mut made = Pool::new("pool", PoolSpec { size: 4, edition: 1 });
    made.metadata.namespace = "default".into();
    user.create(&made).await;
    for edition in [2, 3, 4] {
        user.pause().await;
        user.update::<Pool>(&pool, |pool| pool.spec.edition = edition).await;
    }
    user.pause().await;
}

fn members(pool: &Pool, seen: &Snapshot) -> usize {
    seen.owned_by::<Member>(&pool.metadata.uid).count()
}

fn one_away(view: &View<'_>) -> Result<(), String> {
    for pool in view.now.all::<Pool>() {
        let (before, now) = (members(pool, view.before), members(pool, view.now));
        if now < before && now + 1 < pool.spec.size as usize {
            return Err(format!("{} is down from {before} members to {now}, of {}", pool.name(), pool.spec.size));
        }
    }
    Ok(())
}

fn full(seen: &Snapshot) -> Result<(), String> {
    for pool in seen.all::<Pool>() {
        let current = |member: &&Arc<Member>| member.spec.edition == pool.spec.edition;
        let count = seen.owned_by::<Member>(&pool.metadata.uid).filter(current).count();
        if count != pool.spec.size as usize || members(pool, seen) != count {
            return Err(format!("{} has {count} members of edition {}", pool.name(), pool.spec.edition));
        }
    }
    Ok(())
}
