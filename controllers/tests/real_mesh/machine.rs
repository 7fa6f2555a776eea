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
