//! Networks and machines come and go; some networks ask for a subnet.

use controllers::cluster::network::Networks;
use reconciler::ObjectRef;
use reconciler::cache::Snapshot;
use reconciler::sim::{Scene, User};
use schemas::kinds::network::Network;
use schemas::kinds::node::Node;

use super::cast::{at, join, kinds, network, process, until_gone};
use super::{promises, suite};

fn scene(scene: Scene) -> Scene {
    process(kinds(scene), "network", |manager| manager.controller(Networks::controller()))
        .workload(workload)
        .invariant("each subnet once", promises::each_subnet_once)
        .settles("every network has its addresses", every_network_has_addresses)
}

async fn workload(user: User) {
    join(&user, "n1", 1024).await;
    for name in ["a", "b"] {
        user.create(&network(name)).await;
        user.pause().await;
    }
    join(&user, "n2", 1024).await;
    user.pause().await;
    user.delete::<Network>(&at("a")).await;
    user.pause().await;
    user.create(&network("c")).await;
    user.pause().await;
    let mut asks = network("asks");
    asks.spec.subnets = vec!["10.200.0.0/16".parse().unwrap()];
    user.create(&asks).await;
    user.pause().await;
    user.delete::<Node>(&ObjectRef::cluster("n1")).await;
    join(&user, "n3", 1024).await;
    user.pause().await;
    let mut late = network("late");
    late.spec.subnets = vec!["10.200.7.0/24".parse().unwrap()];
    user.create(&late).await;
    user.pause().await;
    // What stood in its way goes: it gets what it asked for, which is a block for one machine only.
    user.delete::<Network>(&at("asks")).await;
    until_gone::<Network>(&user, &at("asks")).await;
    user.create(&network("a")).await;
    user.pause().await;
    user.delete::<Node>(&ObjectRef::cluster("n3")).await;
    user.pause().await;
    user.delete::<Network>(&at("b")).await;
    user.create(&network("b")).await;
    user.pause().await;
}

fn every_network_has_addresses(snapshot: &Snapshot) -> promises::Held {
    let nodes: Vec<&str> = snapshot.all::<Node>().map(|node| &*node.metadata.name).collect();
    for network in snapshot.all::<Network>() {
        let status = network.status.clone().unwrap_or_default();
        let blocks: Vec<&str> = status.blocks.iter().map(|block| &*block.node).collect();
        let ready = status.conditions.is_true("Ready");
        if status.id.is_none() || status.subnet.is_none() || blocks != nodes || !ready {
            return Err(format!("{} has {status:?}, for {nodes:?}", network.metadata.name));
        }
    }
    Ok(())
}

#[test]
fn network_addresses() {
    suite("network", 100, scene);
}
