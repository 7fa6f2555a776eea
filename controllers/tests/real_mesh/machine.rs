//! What the machine is told of, and what is left on it.

use std::{
    collections::BTreeSet,
    fs,
    net::{TcpListener, UdpSocket},
};

use controllers::node::{
    links::{KernelLinks, LinkPrefix, Links},
    mesh::{Obstacle, Protocol, PublishedPort},
};

use crate::lab::{Lab, ask, ip, ip_of, run};

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
