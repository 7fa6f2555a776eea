//! Who does not reach what, and how soon it is told.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use controllers::node::{
    mesh::{Fault, Network, Protocol, Way, plan},
    sys::netns::Netns,
};

use crate::lab::{Flow, Lab, MACHINE, MACHINE6, OUTSIDE, OUTSIDE6, OVERLAY, SILENCE, ask, ask_within, ip, ip_of};

/// Far below any patience: "at once", for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn two_networks(name: &str) -> Lab {
    let mut lab = Lab::new(name);
    lab.task("a", &["10.192.1.2", "fd0a:2:1::2"]);
    lab.task("b", &["10.192.1.3", "fd0a:2:1::3"]);
    lab.task("x", &["10.192.2.2", "fd0a:2:2::2"]);
    lab.task("both", &["10.192.1.7", "10.192.2.7", "fd0a:2:1::7", "fd0a:2:2::7"]);
    lab.vip("10.96.0.5", &["10.192.2.2"]);
    lab.vip("fd0a:3::5", &["fd0a:2:2::2"]);
    lab.converge();
    lab
}

fn port80(to: &str) -> SocketAddr {
    SocketAddr::new(ip_of(to), 80)
}

#[test]
fn networks_are_apart_and_a_task_of_both_is_known_in_each_by_its_address_there() {
    let lab = two_networks("apart");
    let (a, both) = (lab.netns("a"), lab.netns("both"));
    for protocol in BOTH {
        for to in ["10.192.1.3", "fd0a:2:1::3"] {
            assert_eq!(ask(&a, protocol, port80(to)).unwrap().server, "b", "{protocol} inside the network");
        }
        // Directly, and by the virtual address of a service there.
        for to in ["10.192.2.2", "fd0a:2:2::2", "10.96.0.5", "fd0a:3::5"] {
            let answer = ask_within(&a, protocol, port80(to), AT_ONCE);
            let error = answer.expect_err("the other network");
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{protocol} to {to} is refused, not left waiting");
        }
        for (to, server, client) in [
            ("10.192.1.3", "b", "10.192.1.7"),
            ("10.192.2.2", "x", "10.192.2.7"),
            ("10.96.0.5", "x", "10.192.2.7"),
            ("fd0a:2:1::3", "b", "fd0a:2:1::7"),
            ("fd0a:2:2::2", "x", "fd0a:2:2::7"),
            ("fd0a:3::5", "x", "fd0a:2:2::7"),
        ] {
            let answer = ask(&both, protocol, port80(to)).unwrap_or_else(|error| panic!("{protocol} to {to}: {error}"));
            assert_eq!((answer.server.as_str(), answer.client), (server, ip_of(client)), "{protocol} to {to}");
        }
    }
}

#[test]
fn the_outside_reaches_published_ports_only() {
    let mut lab = two_networks("outside");
    lab.publish(8080, &["10.192.1.2"]);
    lab.converge();
    // A neighbour on the machine's network that knows the addresses and routes them here.
    ip(&lab.outside, &format!("route add 10.0.0.0/8 via {MACHINE}"));
    ip(&lab.outside, &format!("route add fd0a::/16 via {MACHINE6}"));
    for protocol in BOTH {
        for to in ["10.192.1.2", "fd0a:2:1::2"] {
            assert!(ask_within(&lab.outside, protocol, port80(to), SILENCE).is_err(), "{protocol} to {to}");
        }
        assert_eq!(ask(&lab.outside, protocol, SocketAddr::new(ip_of(MACHINE), 8080)).unwrap().server, "a");
    }
    // It says that it is a task: the answer could not come back, but a datagram must not get in.
    ip(&lab.outside, "addr add 10.192.1.200/32 dev lo");
    let mut forged = Flow::begin_from(&lab.outside, ip_of("10.192.1.200"), port80("10.192.1.2"), SILENCE).unwrap();
    assert!(forged.ask().is_err());
    assert!(!lab.heard("a").contains(&ip_of("10.192.1.200")), "it did not arrive");
}

#[test]
fn a_task_speaks_from_its_own_addresses_only() {
    let lab = two_networks("forged");
    let b = lab.netns("b");
    for (source, to, own) in
        [("10.192.1.77", "10.192.1.2", "10.192.1.3"), ("fd0a:2:1::77", "fd0a:2:1::2", "fd0a:2:1::3")]
    {
        ip(&b, &format!("addr add {source} dev lo"));
        let mut honest = Flow::begin_from(&b, ip_of(own), port80(to), SILENCE * 5).unwrap();
        assert_eq!(honest.ask().unwrap().client, ip_of(own));
        let mut forged = Flow::begin_from(&b, ip_of(source), port80(to), SILENCE).unwrap();
        assert!(forged.ask().is_err(), "{source} is not b's");
        assert!(lab.heard("a").contains(&ip_of(own)) && !lab.heard("a").contains(&ip_of(source)), "it did not arrive");
    }
}

#[test]
fn tasks_reach_the_outside_as_their_machine_unless_their_network_is_internal() {
    let mut lab = two_networks("masquerade");
    lab.serve("outside");
    for protocol in BOTH {
        for (to, machine) in [(OUTSIDE, MACHINE), (OUTSIDE6, MACHINE6)] {
            let answer = ask(&lab.netns("a"), protocol, port80(to)).unwrap();
            assert_eq!((answer.server.as_str(), answer.client), ("outside", ip_of(machine)), "{protocol} to {to}");
        }
    }
    let network: &mut Network = lab.state.networks.get_mut("one").unwrap();
    network.internal = true;
    lab.converge();
    for protocol in BOTH {
        for to in [OUTSIDE, OUTSIDE6] {
            let error = ask_within(&lab.netns("b"), protocol, port80(to), AT_ONCE).expect_err("internal");
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{protocol} to {to} is refused, not left waiting");
            assert!(ask(&lab.netns("x"), protocol, port80(to)).is_ok(), "the other network is not");
        }
        assert_eq!(ask(&lab.netns("b"), protocol, port80("10.192.1.2")).unwrap().server, "a", "inside it is as before");
        assert_eq!(ask(&lab.netns("b"), protocol, port80("fd0a:2:1::2")).unwrap().server, "a");
    }
}

#[test]
fn what_has_no_task_refuses_at_once() {
    let mut lab = two_networks("refused");
    lab.vip("10.96.0.6", &[]);
    lab.vip("fd0a:3::6", &[]);
    lab.publish(8081, &[]);
    lab.converge();
    // A virtual address without a task, an address that nobody has, a port without a task.
    let cases = [
        ("10.96.0.6", 80),
        ("fd0a:3::6", 80),
        ("10.192.1.222", 80),
        ("fd0a:2:1::222", 80),
        (MACHINE, 8081),
        (MACHINE6, 8081),
    ];
    for (to, port) in cases {
        for (what, from) in [("the machine", &lab.machine), ("a task", &lab.netns("a"))] {
            for protocol in BOTH {
                let error = ask_within(from, protocol, SocketAddr::new(ip_of(to), port), AT_ONCE).expect_err(to);
                // A datagram of the machine's own is refused in `send` already.
                let refused = [io::ErrorKind::ConnectionRefused, io::ErrorKind::PermissionDenied];
                assert!(refused.contains(&error.kind()), "{what}, {protocol} to {to}: {error}");
            }
        }
    }
    let mut towards = lab.state.loopback6_ports();
    assert!(towards.is_empty(), "nobody is behind the port: {towards:?}");
    lab.publish(8081, &["10.192.1.2"]);
    towards = lab.state.loopback6_ports();
    assert_eq!(towards.len(), 2, "TCP and UDP: {towards:?}");
}

#[test]
fn loopback_addresses_are_nobody_elses() {
    let mut lab = two_networks("loopback");
    lab.publish(8080, &["10.192.1.2"]);
    lab.converge();
    // The links of tasks take 127.0.0.0/8, for answers to the machine; a task must not begin from or to there.
    ip(&lab.outside, &format!("route add 127.0.0.99/32 via {MACHINE}"));
    let mut forged =
        Flow::begin_from(&lab.outside, ip_of(OUTSIDE), SocketAddr::new(ip_of("127.0.0.99"), 8080), SILENCE).unwrap();
    assert!(forged.ask().is_err());
    assert_eq!(
        ask(&lab.machine, Protocol::Udp, SocketAddr::new(ip_of("127.0.0.1"), 8080)).unwrap().client,
        ip_of(OVERLAY)
    );
}

#[test]
fn a_subnet_that_cannot_be_is_said_and_the_rest_works() {
    let mut lab = two_networks("faults");
    for (id, subnet) in [("three", "10.192.1.128/25"), ("four", "192.0.2.0/28"), ("five", "172.30.0.0/16")] {
        let subnets = [subnet.parse().unwrap()].into();
        lab.state.networks.insert(id.to_owned(), Network { subnets, internal: false });
    }
    let observed = lab.block_on(lab.mesh.observe()).unwrap();
    let faults: Vec<String> = plan(&lab.state, &observed.table).faults.iter().map(Fault::to_string).collect();
    assert_eq!(
        faults,
        [
            "subnet 192.0.2.0/28 of network four has 192.0.2.1 in it, which is not a task's",
            "subnet 10.192.1.128/25 of network three overlaps 10.192.1.0/24 of network one",
        ]
    );
    lab.state.networks.remove("three");
    lab.state.networks.remove("four");
    lab.ensure_machine();
    // A subnet that is in none of the pools: of the people who run the cluster.
    lab.task("v", &["172.30.0.2"]);
    lab.task("w", &["172.30.0.3"]);
    lab.converge();
    assert_eq!(ask(&lab.netns("v"), Protocol::Tcp, port80("172.30.0.3")).unwrap().server, "w");
    assert!(ask_within(&lab.netns("a"), Protocol::Tcp, port80("172.30.0.3"), AT_ONCE).is_err());
    assert_eq!(ask(&lab.machine, Protocol::Tcp, port80("172.30.0.3")).unwrap().client, ip_of(OVERLAY));
}

/// VXLAN authenticates nobody: whoever could speak to its port with a machine's address would be in every network.
#[test]
fn only_machines_speak_through_the_tunnel() {
    const TUNNEL: u16 = 4790;
    let mut lab = Lab::new("tunnelled");
    lab.task("a", &["10.192.1.2"]);
    lab.state.machine.tunnel = Some(Way::Plain);
    lab.converge();
    let listen = |netns: &str, port| {
        let bound = lab.open(netns).run(|| UdpSocket::bind(("0.0.0.0", port))).flatten().unwrap();
        bound.set_read_timeout(Some(SILENCE)).unwrap();
        bound
    };
    let says = |netns: &Netns, to: &str, port: u16| {
        let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0")).flatten().unwrap();
        socket.send_to(b"x", (to, port)).unwrap();
    };
    let hears = |socket: &UdpSocket| socket.recv_from(&mut [0; 10]).is_ok();
    let (outside, task) = (lab.open("outside"), lab.netns("a"));

    // From a stranger to the machine: to any port but that one.
    let (here, other) = (listen("machine", TUNNEL), listen("machine", TUNNEL + 1));
    says(&outside, MACHINE, TUNNEL);
    says(&outside, MACHINE, TUNNEL + 1);
    assert!(hears(&other) && !hears(&here), "a stranger");

    // From a task to a machine, whose address it would get on the way out.
    let mut state = lab.state.clone();
    state.nodes.insert(ip_of(OUTSIDE));
    lab.state = state;
    lab.converge();
    let listen = |port| {
        let bound = outside.run(|| UdpSocket::bind(("0.0.0.0", port))).flatten().unwrap();
        bound.set_read_timeout(Some(SILENCE)).unwrap();
        bound
    };
    let (there, other_there) = (listen(TUNNEL), listen(TUNNEL + 1));
    says(&task, OUTSIDE, TUNNEL);
    says(&task, OUTSIDE, TUNNEL + 1);
    assert!(hears(&other_there) && !hears(&there), "a task, to another machine");
    says(&task, MACHINE, TUNNEL);
    says(&task, MACHINE, TUNNEL + 1);
    assert!(hears(&other) && !hears(&here), "a task, to its own machine");
    // And a machine does.
    says(&outside, MACHINE, TUNNEL);
    assert!(hears(&here), "another machine");
    // Once it is encrypted, not even a machine's address lets anybody in.
    lab.state.machine.tunnel = Some(Way::Encrypted);
    lab.converge();
    says(&outside, MACHINE, TUNNEL);
    says(&outside, MACHINE, TUNNEL + 1);
    assert!(hears(&other) && !hears(&here), "who can say that it is another machine");
}
