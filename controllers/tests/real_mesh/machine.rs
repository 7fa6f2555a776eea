//! What the machine is told of, and what is left on it.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener, UdpSocket},
};

use controllers::node::{
    links::{KernelLinks, LinkPrefix, Links, MachineLink, Overlay, Peer},
    mesh::{Obstacle, Protocol, PublishedPort},
};

use crate::lab::{Lab, MACHINE, ask, ip, ip_of, run};

fn obstacles(lab: &Lab, ports: &[(Protocol, u16)]) -> Vec<String> {
    let ports: BTreeSet<PublishedPort> =
        ports.iter().map(|(protocol, port)| PublishedPort { protocol: *protocol, port: *port }).collect();
    lab.block_on(lab.mesh.obstacles(ports)).unwrap().iter().map(Obstacle::to_string).collect()
}

#[test]
fn other_firewalls_in_the_way_are_named() {
    let mut lab = Lab::new("firewalls");
    lab.task("a", &["10.192.1.2"]);
    lab.converge();
    let nothing: [&str; 0] = [];
    assert_eq!(obstacles(&lab, &[]), nothing);
    let nft = |arguments: &str| run(&lab.machine, "nft", &[arguments]);
    nft("add table ip filter");
    nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
    nft("add chain ip filter HARMLESS { type filter hook forward priority 1; policy accept; }");
    nft("add table inet firewalld");
    nft("add chain inet firewalld in { type filter hook input priority 0; policy drop; }");
    let expected = [
        "chain in of inet firewalld drops what comes to this machine, what tasks ask its name server among it",
        "chain FORWARD of ip filter drops what is forwarded, the tasks' packets among it",
    ];
    let mut seen = obstacles(&lab, &[]);
    seen.sort_by_key(|it| it.contains("FORWARD"));
    assert_eq!(seen, expected);
    // The way out that people are told.
    nft("insert rule ip filter FORWARD iifname \"aplt*\" accept");
    assert_eq!(obstacles(&lab, &[]), expected[..1]);
    nft("insert rule inet firewalld in iifname \"aplt*\" accept");
    assert_eq!(obstacles(&lab, &[]), nothing);
}

#[test]
fn the_older_iptables_is_seen_too() {
    let lab = Lab::new("legacy");
    let nothing: [&str; 0] = [];
    for (tool, other) in [("iptables-legacy", "ip6tables-legacy"), ("ip6tables-legacy", "iptables-legacy")] {
        let change = |arguments: &str| run(&lab.machine, tool, &arguments.split(' ').collect::<Vec<_>>());
        change("-A FORWARD -p tcp -j ACCEPT");
        assert_eq!(obstacles(&lab, &[]), nothing);
        change("-P FORWARD DROP");
        let expected = [format!("chain FORWARD of {tool} filter drops what is forwarded, the tasks' packets among it")];
        assert_eq!(obstacles(&lab, &[]), expected);
        change("-A FORWARD -i other+ -j ACCEPT");
        assert_eq!(obstacles(&lab, &[]), expected);
        // The way out that people are told.
        change("-A FORWARD -i aplt+ -j ACCEPT");
        assert_eq!(obstacles(&lab, &[]), nothing, "{other} has not been touched");
    }
}

#[test]
fn the_machine_itself_is_reached_at_the_gateway_and_keeps_its_own_way_out() {
    let mut lab = Lab::new("gateway");
    lab.task("a", &["10.192.1.2", "fd0a:2:1::2"]);
    lab.serve("machine");
    lab.converge();
    let answer = ask(&lab.netns("a"), Protocol::Tcp, "169.254.1.1:80".parse().unwrap()).unwrap();
    assert_eq!((answer.server.as_str(), answer.client), ("machine", ip_of("10.192.1.2")));
    // As a name server does it: bound to that very address, or its answers would come from another.
    let server = lab.machine.run(|| UdpSocket::bind("169.254.1.1:53")).flatten().unwrap();
    let client = lab.netns("a").run(|| UdpSocket::bind("0.0.0.0:0")).flatten().unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    }
    client.send_to(b"question", "169.254.1.1:53").unwrap();
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"question"[..], ip_of("10.192.1.2")));
    server.send_to(b"answer", from).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"answer"[..], ip_of("169.254.1.1")));
    // A machine that forwards must be told to go on listening to its router.
    let listens = lab.machine.run(|| fs::read_to_string("/proc/sys/net/ipv6/conf/up0/accept_ra")).flatten();
    assert_eq!(listens.unwrap().trim(), "2");
}

#[test]
fn taken_ports_are_named_with_who_has_them() {
    let lab = Lab::new("taken");
    let (tcp, udp, loopback) = lab
        .machine
        .run(|| {
            let tcp = TcpListener::bind("0.0.0.0:8080").unwrap();
            let udp = UdpSocket::bind("127.0.0.1:5353").unwrap();
            // As `applyd keep` does.
            (tcp, udp, TcpListener::bind("[::1]:9090").unwrap())
        })
        .unwrap();
    let asked = [(Protocol::Tcp, 8080), (Protocol::Udp, 8080), (Protocol::Udp, 5353), (Protocol::Tcp, 9090)];
    let seen = obstacles(&lab, &asked);
    let me = fs::read_to_string("/proc/self/comm").unwrap();
    let me = format!("{} (pid {})", me.trim_end(), std::process::id());
    assert_eq!(
        seen,
        [
            format!("{me} listens on published port 8080/tcp at 0.0.0.0"),
            format!("{me} listens on published port 5353/udp at 127.0.0.1"),
        ]
    );
    drop((tcp, udp, loopback));
}

#[test]
fn nothing_is_left() {
    let mut lab = Lab::new("nothing-left");
    let links_before = "lo up0";
    lab.task("a", &["10.192.1.2", "fd0a:2:1::2"]);
    lab.vip("10.96.0.5", &["10.192.1.2"]);
    lab.publish(8080, &["10.192.1.2", "fd0a:2:1::2"]);
    lab.converge();
    assert!(ask(&lab.machine, Protocol::Udp, "10.96.0.5:80".parse().unwrap()).is_ok());
    // A successor removes what it did not make.
    lab.links = KernelLinks::open(lab.tasks(), LinkPrefix::default(), Some(lab.open("machine"))).unwrap();
    lab.forget_everything();
    for _ in 0..2 {
        lab.end("a");
        lab.block_on(lab.mesh.remove()).unwrap();
        lab.block_on(lab.links.remove_machine()).unwrap();
    }
    let names = ip(&lab.machine, "-br link");
    let mut names: Vec<&str> =
        names.lines().filter_map(|line| line.split([' ', '@']).next()).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    assert_eq!(names.join(" "), links_before);
    assert_eq!(run(&lab.machine, "nft", &["list", "ruleset"]), "");
    assert_eq!(fs::read_dir(lab.tasks()).unwrap().count(), 0);
    for family in ["-4", "-6"] {
        assert_eq!(ip(&lab.machine, &format!("{family} route show proto 97")), "");
    }
    let tracked = fs::read_to_string("/proc/net/nf_conntrack").unwrap_or_default();
    assert!(!tracked.contains(&ip_of("10.192.1.2").to_string()), "{tracked}");
}

/// Everything that the tunnel is made of, as other tools see it, through all that can change.
#[test]
fn the_tunnel_is_what_is_wanted_whatever_was_there_and_goes_when_the_machine_is_alone() {
    let lab = Lab::new("tunnel");
    let peer = |at: &str, blocks: &[&str]| Peer {
        at: ip_of(at),
        blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
    };
    let second = ("10.128.0.2".parse().unwrap(), peer("192.0.2.2", &["10.192.1.0/26", "10.192.2.0/26"]));
    let third = ("10.128.1.3".parse().unwrap(), peer("192.0.2.3", &[]));
    let overlay = |id, peers: &[(Ipv4Addr, Peer)]| {
        Some(Overlay { id, at: ip_of(MACHINE), encrypted: false, peers: peers.iter().cloned().collect() })
    };
    let ensure = |overlay: Option<Overlay>| {
        let machine = &lab.state.machine;
        let (address4, address6) = (machine.address4, machine.address6);
        let wanted = MachineLink { address4, address6, ranges: lab.state.overlay(), overlay };
        lab.block_on(lab.links.ensure_machine(&wanted)).unwrap();
    };
    let lines = |text: String| -> BTreeSet<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let seen = || {
        let routes = lines(ip(&lab.machine, "route show dev aplx0"));
        let machines = lines(run(&lab.machine, "bridge", &["fdb", "show", "dev", "aplx0"]));
        (routes, machines)
    };
    let set = |lines: &[&str]| -> BTreeSet<String> { lines.iter().map(|line| (*line).to_owned()).collect() };

    ensure(overlay(7, &[second.clone(), third.clone()]));
    let routes = [
        "10.128.0.2 proto 97 scope link src 10.128.0.1",
        "10.128.1.3 proto 97 scope link src 10.128.0.1",
        "10.192.1.0/26 via 10.128.0.2 proto 97 src 10.128.0.1 onlink",
        "10.192.2.0/26 via 10.128.0.2 proto 97 src 10.128.0.1 onlink",
    ];
    let machines = ["02:42:61:70:00:02 dst 192.0.2.2 self permanent", "02:42:61:70:01:03 dst 192.0.2.3 self permanent"];
    assert_eq!(seen(), (set(&routes), set(&machines)));
    let link = ip(&lab.machine, "-d link show aplx0");
    for part in ["mtu 1450", "vxlan id 7 local 192.0.2.1", "dstport 4790 nolearning", "02:42:61:70:00:01"] {
        assert!(link.contains(part), "{part} in {link}");
    }
    let back = || {
        let table = run(&lab.machine, "nft", &["list", "ruleset", "netdev"]);
        (
            ip(&lab.machine, "rule").matches("lookup 97").count(),
            table.matches("to the machine that it came in by").count(),
        )
    };
    assert_eq!(back(), (1, 1));
    let number = ip(&lab.machine, "-o link show aplx0").split(':').next().map(str::to_owned);
    ensure(overlay(7, &[second.clone(), third.clone()]));
    assert_eq!(ip(&lab.machine, "-o link show aplx0").split(':').next().map(str::to_owned), number, "the same link");
    assert_eq!(back(), (1, 1));

    // A machine moves, gets another block and gives one away; another machine is gone.
    let moved = (second.0, peer("192.0.2.22", &["10.192.2.0/26", "10.192.3.0/26"]));
    ensure(overlay(7, std::slice::from_ref(&moved)));
    let routes = [
        "10.128.0.2 proto 97 scope link src 10.128.0.1",
        "10.192.2.0/26 via 10.128.0.2 proto 97 src 10.128.0.1 onlink",
        "10.192.3.0/26 via 10.128.0.2 proto 97 src 10.128.0.1 onlink",
    ];
    let expected = (set(&routes), set(&["02:42:61:70:00:02 dst 192.0.2.22 self permanent"]));
    assert_eq!(seen(), expected);
    // Somebody else takes parts of it away, or the whole link, with which the rule of the way back goes.
    ip(&lab.machine, "route del 10.192.2.0/26 dev aplx0");
    ip(&lab.machine, "rule del pref 97");
    run(&lab.machine, "bridge", &["fdb", "del", "02:42:61:70:00:02", "dev", "aplx0"]);
    ensure(overlay(7, std::slice::from_ref(&moved)));
    assert_eq!((seen(), back()), (expected.clone(), (1, 1)));
    ip(&lab.machine, "link del aplx0");
    ensure(overlay(7, std::slice::from_ref(&moved)));
    assert_eq!((seen(), back()), (expected.clone(), (1, 1)));
    // Another cluster's, or one of an older version.
    ensure(overlay(8, std::slice::from_ref(&moved)));
    assert!(ip(&lab.machine, "-d link show aplx0").contains("vxlan id 8 "));
    assert_eq!((seen(), back()), (expected.clone(), (1, 1)));

    // From now on encrypted, and back.
    let encrypted = || overlay(8, std::slice::from_ref(&moved)).map(|overlay| Overlay { encrypted: true, ..overlay });
    let below = |what: &str| ip(&lab.machine, what);
    for _ in 0..2 {
        ensure(encrypted());
        let (routes, machines) = seen();
        assert_eq!(machines, set(&["02:42:61:70:00:02 dst 10.128.0.2 via aplw0 self permanent"]));
        assert_eq!(routes, expected.0, "tasks are told the same ways");
        let link = below("-d link show aplx0");
        for part in ["mtu 1370", "vxlan id 8 local 10.128.0.1 dev aplw0", "dstport 4790 nolearning"] {
            assert!(link.contains(part), "{part} in {link}");
        }
        let link = below("-d link show aplw0");
        assert!(
            link.contains("mtu 1420") && link.contains("tun type tun pi off") && link.contains("persist on"),
            "{link}"
        );
        // Whoever takes the lower one takes both.
        ip(&lab.machine, "link del aplw0");
        assert!(!below("link show").contains("aplx0"));
    }
    ensure(encrypted());
    ensure(overlay(8, std::slice::from_ref(&moved)));
    assert!(!below("link show").contains("aplw0"));
    assert_eq!((seen(), back()), (expected, (1, 1)));

    ensure(encrypted());
    ensure(None);
    assert_eq!(back(), (0, 0));
    assert!(!["aplx0", "aplw0"].iter().any(|link| below("link show").contains(link)));
    ensure(overlay(8, &[third]).map(|overlay| Overlay { encrypted: true, ..overlay }));
    lab.block_on(lab.links.remove_machine()).unwrap();
    assert_eq!(back(), (0, 0));
    assert!(!ip(&lab.machine, "link show").contains("apl"), "nothing is left");
}
