//! Which addresses each network and each machine gets. Pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use reconciler::Timestamp;
use schemas::kinds::cluster::AddressPools;
use schemas::kinds::network::{Cidr, Network, NetworkStatus, NodeBlock};

use crate::node::links;

pub(super) struct Seen {
    pub networks: Vec<Arc<Network>>,
    /// Every node, with its address in the overlay.
    pub nodes: BTreeMap<String, Option<Ipv4Addr>>,
    pub pools: AddressPools,
}

/// A network's subnet holds 2^6 blocks, one a machine.
const BLOCKS_BITS: u8 = 6;

/// The networks whose status has to change, with what it shall be. Networks that have addresses keep them; the others
/// get theirs in order of age.
pub(super) fn plan(seen: &Seen, now: Timestamp) -> Vec<(Arc<Network>, NetworkStatus)> {
    let mut networks = seen.networks.clone();
    networks.sort_by_key(|network| {
        (network.metadata.creation_timestamp, network.metadata.namespace.clone(), network.metadata.name.clone())
    });
    let status_of = |network: &Network| network.status.clone().unwrap_or_default();
    let mut ids: BTreeSet<u32> = networks.iter().filter_map(|network| status_of(network).id).collect();
    let mut subnets: Vec<Cidr> = networks.iter().filter_map(|network| status_of(network).subnet).collect();
    let mut changed = Vec::new();
    for network in networks {
        let mut status = status_of(&network);
        let generation = network.metadata.generation;
        if status.id.is_none() {
            let id = (1..).find(|id| !ids.contains(id)).expect("there are more numbers than networks");
            ids.insert(id);
            status.id = Some(id);
        }
        if status.subnet.is_none() {
            match choose_subnet(&network, &seen.pools, &subnets) {
                Ok(subnet) => {
                    subnets.push(subnet);
                    status.subnet = Some(subnet);
                }
                Err((reason, message)) => {
                    status.conditions.set("Ready", false, reason, message, generation, now);
                }
            }
        }
        if let Some(subnet) = status.subnet {
            give_blocks(&mut status, subnet, seen, generation, now);
        }
        status.observed_generation = generation;
        if network.status.as_ref() != Some(&status) {
            changed.push((network, status));
        }
    }
    changed
}

/// The addresses of the nodes that have none yet; the first ones that are free. Fewer, where the pool has no more.
pub(super) fn addresses(seen: &Seen) -> Vec<(&str, Ipv4Addr)> {
    /// As many as the last 16 bits of an address tell apart.
    const MACHINES_MAX: u128 = 1 << 16;
    let number = |address: Ipv4Addr| address.to_bits() & 0xffff;
    let taken: BTreeSet<u32> = seen.nodes.values().flatten().map(|address| number(*address)).collect();
    let all = (0..MACHINES_MAX).map_while(|index| seen.pools.nodes.nth(index));
    let v4 = all.filter_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    let free = v4.filter(|address| links::is_free(*address) && !taken.contains(&number(*address)));
    let without = seen.nodes.iter().filter(|(_, address)| address.is_none()).map(|(node, _)| node.as_str());
    without.zip(free).collect()
}

fn choose_subnet(network: &Network, pools: &AddressPools, taken: &[Cidr]) -> Result<Cidr, (&'static str, String)> {
    let asked = network.spec.subnets.iter().find(|subnet| subnet.address().is_ipv4());
    if let Some(asked) = asked {
        return match taken.iter().find(|other| other.overlaps(asked)) {
            None => Ok(*asked),
            Some(other) => Err(("SubnetTaken", format!("{asked} overlaps {other}, which another network has"))),
        };
    }
    let prefix = pools.node_block_prefix.saturating_sub(BLOCKS_BITS).max(pools.tasks.prefix());
    let count = 1_u128 << (prefix - pools.tasks.prefix());
    (0..count)
        .filter_map(|index| pools.tasks.subnet(prefix, index))
        .find(|candidate| taken.iter().all(|other| !other.overlaps(candidate)))
        .ok_or_else(|| ("PoolExhausted", format!("all {count} subnets of the pool {} are in use", pools.tasks)))
}

/// Every node has its block of every network, so that placing a task never waits for one. Nodes that are gone give
/// theirs back.
fn give_blocks(status: &mut NetworkStatus, subnet: Cidr, seen: &Seen, generation: i64, now: Timestamp) {
    status.blocks.retain(|block| seen.nodes.contains_key(&block.node));
    let prefix = seen.pools.node_block_prefix.max(subnet.prefix());
    let count = 1_u128 << (prefix - subnet.prefix()).min(127);
    for node in seen.nodes.keys() {
        if status.blocks.iter().any(|block| block.node == *node) {
            continue;
        }
        let free = (0..count)
            .filter_map(|index| subnet.subnet(prefix, index))
            .find(|candidate| status.blocks.iter().all(|block| block.block != *candidate));
        match free {
            Some(block) => status.blocks.push(NodeBlock { node: node.clone(), block, block6: None }),
            None => {
                let message = format!("{subnet} has no block left for {node} (all {count} are given away)");
                status.conditions.set("Ready", false, "SubnetExhausted", message, generation, now);
                return;
            }
        }
    }
    status.blocks.sort_by(|a, b| a.node.cmp(&b.node));
    // Also after a want of blocks has ended: nodes that left gave theirs back.
    status.conditions.set("Ready", true, "Allocated", "", generation, now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use reconciler::Resource;
    use schemas::kinds::network::NetworkSpec;

    const NOW: Timestamp = Timestamp::from_seconds(1_000);

    fn network(name: &str) -> Network {
        let mut network = Network::new(name, NetworkSpec::default());
        network.metadata.generation = 1;
        network
    }

    fn seen(networks: Vec<Network>, nodes: &[&str]) -> Seen {
        Seen {
            networks: networks.into_iter().map(Arc::new).collect(),
            nodes: nodes.iter().map(|node| ((*node).to_owned(), None)).collect(),
            pools: AddressPools::default(),
        }
    }

    fn settled(mut scene: Seen) -> Seen {
        for (network, status) in plan(&scene, NOW) {
            let mut done = (*network).clone();
            done.status = Some(status);
            scene.networks.retain(|other| other.metadata.name != done.metadata.name);
            scene.networks.push(Arc::new(done));
        }
        scene
    }

    #[test]
    fn every_network_gets_its_own_subnet_and_every_node_its_block_once() {
        let scene = settled(seen(vec![network("a"), network("b"), network("c")], &["n1", "n2"]));
        assert!(plan(&scene, NOW).is_empty(), "a second look changes nothing");
        let statuses: Vec<_> = scene.networks.iter().map(|network| network.status.clone().unwrap()).collect();
        for (i, a) in statuses.iter().enumerate() {
            assert_eq!(a.blocks.len(), 2);
            assert!(!a.blocks[0].block.overlaps(&a.blocks[1].block));
            assert!(a.blocks.iter().all(|block| a.subnet.unwrap().overlaps(&block.block)));
            for b in &statuses[i + 1..] {
                assert!(!a.subnet.unwrap().overlaps(&b.subnet.unwrap()));
                assert_ne!(a.id, b.id);
            }
        }
    }

    #[test]
    fn every_machine_gets_an_address_that_nobody_else_has_and_the_first_one_the_first() {
        let mut scene = seen(vec![], &["n1"]);
        let given = |scene: &Seen| -> Vec<(String, String)> {
            addresses(scene).iter().map(|(node, address)| ((*node).to_owned(), address.to_string())).collect()
        };
        assert_eq!(given(&scene), [("n1".to_owned(), "10.128.0.1".to_owned())]);
        scene.nodes.insert("n1".to_owned(), Some("10.128.0.1".parse().unwrap()));
        scene.nodes.insert("n3".to_owned(), Some("10.128.0.3".parse().unwrap()));
        scene.nodes.extend([("n2".to_owned(), None), ("n4".to_owned(), None)]);
        let expected = [("n2", "10.128.0.2"), ("n4", "10.128.0.4")];
        assert_eq!(given(&scene), expected.map(|(node, address)| (node.to_owned(), address.to_owned())));
        // Another pool, and still no two machines of one number.
        scene.pools.nodes = "10.200.0.0/16".parse().unwrap();
        let expected = [("n2", "10.200.0.2"), ("n4", "10.200.0.4")];
        assert_eq!(given(&scene), expected.map(|(node, address)| (node.to_owned(), address.to_owned())));
        // A pool of two that can be given; the last one has no other.
        scene.pools.nodes = "10.128.0.0/30".parse().unwrap();
        assert_eq!(given(&scene), [("n2".to_owned(), "10.128.0.2".to_owned())]);
    }

    #[test]
    fn what_was_handed_out_stays_when_others_come_and_go() {
        let scene = settled(seen(vec![network("a"), network("b")], &["n1"]));
        let before = scene.networks.iter().find(|network| network.metadata.name == "b").unwrap().status.clone();
        let mut later = scene;
        later.networks.retain(|network| network.metadata.name != "a");
        later.networks.push(Arc::new(network("c")));
        let later = settled(later);
        let after = later.networks.iter().find(|network| network.metadata.name == "b").unwrap().status.clone();
        assert_eq!(before, after);
    }

    #[test]
    fn an_asked_for_subnet_that_is_taken_is_a_condition() {
        let mut first = network("a");
        first.spec.subnets = vec!["10.200.0.0/16".parse().unwrap()];
        let mut second = network("b");
        second.spec.subnets = vec!["10.200.7.0/24".parse().unwrap()];
        let scene = settled(seen(vec![first, second], &["n1"]));
        let b = scene.networks.iter().find(|network| network.metadata.name == "b").unwrap();
        let condition = b.status.as_ref().unwrap().conditions.get("Ready").unwrap().clone();
        assert_eq!((condition.reason.as_str(), b.status.as_ref().unwrap().subnet), ("SubnetTaken", None));
    }
}
