//! Addresses for tasks, from the blocks that this machine was given.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use reconciler::api::{ObjectRef, Uid};
use schemas::kinds::network::Cidr;

/// What this process has given out, and where it goes on: an address that was let go is the last to be given again, as
/// others may still have connections to whoever had it.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    given: BTreeMap<(ObjectRef, Uid), IpAddr>,
    last: BTreeMap<ObjectRef, u128>,
}

impl Addresses {
    /// The address of `task` in `network`: the one it has, or the next of `block` that is not in `taken`. `None` when
    /// the block is used up.
    pub fn give(
        &mut self,
        network: &ObjectRef,
        task: &Uid,
        has: Option<IpAddr>,
        block: Cidr,
        taken: &BTreeSet<IpAddr>,
    ) -> Option<IpAddr> {
        let key = (network.clone(), task.clone());
        let given = self.given.get(&key).copied();
        if let Some(has) = [has, given].into_iter().flatten().find(|has| block.contains(*has)) {
            self.given.insert(key, has);
            return Some(has);
        }
        let size = 1u128 << (address_bits(block.address()) - u32::from(block.prefix())).min(64);
        // Neither the network's own address nor the one that IPv4 keeps for everybody.
        let (first, count) = (1, size.checked_sub(2)?);
        let others: BTreeSet<IpAddr> =
            self.given.iter().filter(|((of, _), _)| of == network).map(|(_, address)| *address).collect();
        let begin = self.last.get(network).map_or(0, |last| last + 1);
        let free = (0..count).map(|step| (begin + step) % count).find_map(|index| {
            let address = block.nth(first + index)?;
            (!taken.contains(&address) && !others.contains(&address)).then_some((index, address))
        });
        let (index, address) = free?;
        self.last.insert(network.clone(), index);
        self.given.insert(key, address);
        Some(address)
    }

    pub fn let_go(&mut self, task: &Uid) {
        self.given.retain(|(_, holder), _| holder != task);
    }
}

fn address_bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_its_own_and_keeps_it() {
        let (network, block) = (ObjectRef::new("default", "back"), "10.192.3.0/29".parse().unwrap());
        let mut addresses = Addresses::default();
        let mut give = |task: &str, has: Option<&str>, taken: &[&str]| {
            let taken = taken.iter().map(|address| address.parse().unwrap()).collect();
            let has = has.map(|has| has.parse().unwrap());
            addresses.give(&network, &Uid::new(task), has, block, &taken).map(|address| address.to_string())
        };
        assert_eq!(give("a", None, &[]).unwrap(), "10.192.3.1");
        assert_eq!(give("a", None, &[]).unwrap(), "10.192.3.1");
        assert_eq!(give("b", None, &["10.192.3.2"]).unwrap(), "10.192.3.3", "somebody else has .2");
        assert_eq!(give("c", Some("10.192.3.6"), &["10.192.3.6"]).unwrap(), "10.192.3.6", "it has it already");
        assert_eq!(give("c", Some("10.9.9.9"), &[]).unwrap(), "10.192.3.6", "one of another block is not its own");
        for task in ["d", "e", "f"] {
            assert!(give(task, None, &[]).is_some());
        }
        assert_eq!(give("g", None, &[]), None, "six addresses, six tasks");
        addresses.let_go(&Uid::new("b"));
        let again = addresses.give(&network, &Uid::new("g"), None, block, &BTreeSet::new());
        assert_eq!(again, Some("10.192.3.3".parse().unwrap()));
    }

    #[test]
    fn what_was_let_go_is_the_last_to_be_given_again() {
        let (network, block) = (ObjectRef::new("default", "back"), "10.192.3.0/24".parse().unwrap());
        let mut addresses = Addresses::default();
        let mut seen = BTreeSet::new();
        for n in 0..254 {
            let task = Uid::new(n.to_string());
            let address = addresses.give(&network, &task, None, block, &BTreeSet::new()).unwrap();
            assert!(seen.insert(address), "{address} again after {n}");
            addresses.let_go(&task);
        }
    }
}
