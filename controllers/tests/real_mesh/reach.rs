//! Who reaches what: every source, protocol and family.

use std::{collections::BTreeMap, net::SocketAddr};

use controllers::node::{mesh::Protocol, sys::netns::Netns};

use crate::lab::{Answer, Lab, MACHINE, MACHINE6, OUTSIDE, OUTSIDE6, OVERLAY, OVERLAY6, ask, ip_of};

const VIP: &str = "10.96.0.5";
const VIP6: &str = "fd0a:3::5";

/// Three tasks `a`, `b`, `c` behind one service, `same` in their network, `other` in another.
fn lab_with_a_service(name: &str) -> Lab {
    let mut lab = Lab::new(name);
    let addresses = [["10.192.1.2", "fd0a:2:1::2"], ["10.192.1.3", "fd0a:2:1::3"], ["10.192.1.4", "fd0a:2:1::4"]];
    for (id, addresses) in ["a", "b", "c"].into_iter().zip(&addresses) {
        lab.task(id, addresses);
    }
    lab.task("same", &["10.192.1.9", "fd0a:2:1::9"]);
    lab.task("other", &["10.192.2.9", "fd0a:2:2::9"]);
    lab.vip(VIP, &addresses.map(|both| both[0]));
    lab.vip(VIP6, &addresses.map(|both| both[1]));
    lab.publish(8080, addresses.as_flattened());
    lab.converge();
    lab
}

/// Asks six times; each of the three must have answered twice. Returns which clients they saw.
///
/// On a busy machine a packet that is sent twice may take a turn that nobody sees (once in some 5,000 questions here).
/// So six others may show it; by chance alone, all cases of a test would pass so once in 10^20.
fn in_turn(from: &Netns, protocol: Protocol, to: SocketAddr, what: &str) -> BTreeMap<String, Vec<String>> {
    let first = six_answers(from, protocol, to, what);
    if first.values().all(|clients| clients.len() == 2) && first.len() == 3 {
        return first;
    }
    let seen = six_answers(from, protocol, to, what);
    let counts: Vec<(&str, usize)> = seen.iter().map(|(server, clients)| (server.as_str(), clients.len())).collect();
    assert_eq!(counts, [("a", 2), ("b", 2), ("c", 2)], "{what}, {protocol} to {to}; before: {first:?}");
    seen
}

fn six_answers(from: &Netns, protocol: Protocol, to: SocketAddr, what: &str) -> BTreeMap<String, Vec<String>> {
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..6 {
        let Answer { server, client } =
            ask(from, protocol, to).unwrap_or_else(|error| panic!("{what}, {protocol} to {to}: {error}"));
        seen.entry(server).or_default().push(client.to_string());
    }
    seen
}

#[test]
fn every_source_reaches_a_service_in_exact_rotation_and_is_seen_as_itself() {
    let lab = lab_with_a_service("sources");
    let (same, other) = (lab.netns("same"), lab.netns("other"));
    // From where, to which address, and as whom the tasks must see it.
    let cases: [(&str, &Netns, &[(&str, u16, &str)]); 4] = [
        ("outside", &lab.outside, &[(MACHINE, 8080, OUTSIDE), (MACHINE6, 8080, OUTSIDE6)]),
        (
            "the machine",
            &lab.machine,
            &[
                (MACHINE, 8080, MACHINE),
                (MACHINE6, 8080, MACHINE6),
                ("127.0.0.1", 8080, OVERLAY),
                (OVERLAY, 8080, OVERLAY),
                (OVERLAY6, 8080, OVERLAY6),
                (VIP, 80, OVERLAY),
                (VIP6, 80, OVERLAY6),
            ],
        ),
        (
            "a task in the network",
            &same,
            &[
                (VIP, 80, "10.192.1.9"),
                (VIP6, 80, "fd0a:2:1::9"),
                (MACHINE, 8080, "10.192.1.9"),
                (MACHINE6, 8080, "fd0a:2:1::9"),
                ("169.254.1.1", 8080, "10.192.1.9"),
            ],
        ),
        ("a task in another network", &other, &[(MACHINE, 8080, OVERLAY), (MACHINE6, 8080, OVERLAY6)]),
    ];
    for (what, from, destinations) in cases {
        for (to, port, client) in destinations {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let seen = in_turn(from, protocol, SocketAddr::new(ip_of(to), *port), what);
                for clients in seen.values().flatten() {
                    assert_eq!(clients, client, "{what}, {protocol} to {to}");
                }
            }
        }
    }
}

#[test]
fn a_machine_without_ipv6_addresses_does_all_of_ipv4() {
    let mut lab = Lab::new("four");
    lab.state.machine.address6 = None;
    lab.state.networks.values_mut().for_each(|network| network.subnets.retain(|subnet| subnet.addr().is_ipv4()));
    lab.ensure_machine();
    let addresses = ["10.192.1.2", "10.192.1.3", "10.192.1.4"];
    for (id, address) in ["a", "b", "c"].into_iter().zip(addresses) {
        lab.task(id, &[address]);
    }
    lab.vip(VIP, &addresses);
    lab.publish(8080, &addresses);
    lab.converge();
    let a = lab.netns("a");
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        in_turn(&lab.outside, protocol, SocketAddr::new(ip_of(MACHINE), 8080), "outside");
        in_turn(&lab.machine, protocol, SocketAddr::new(ip_of("127.0.0.1"), 8080), "the machine");
        in_turn(&a, protocol, SocketAddr::new(ip_of(VIP), 80), "a task");
    }
    lab.forget_everything();
    assert_eq!(lab.converge().changes, 0);
}

#[test]
fn a_task_reaches_itself_through_its_own_service() {
    let lab = lab_with_a_service("hairpin");
    let a = lab.netns("a");
    for (to, port, machine) in
        [(VIP, 80, OVERLAY), (VIP6, 80, OVERLAY6), (MACHINE, 8080, OVERLAY), (MACHINE6, 8080, OVERLAY6)]
    {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let seen = in_turn(&a, protocol, SocketAddr::new(ip_of(to), port), "a task that is behind it");
            assert_eq!(seen["a"], [machine; 2], "itself it can only meet under another address");
            let itself = if ip_of(to).is_ipv4() { "10.192.1.2" } else { "fd0a:2:1::2" };
            assert_eq!(seen["b"], [itself; 2]);
        }
    }
}
