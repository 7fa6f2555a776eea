//! What changes, restarts and other people's deeds do to connections.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use controllers::node::{
    links::{Attachment, KernelLinks, LinkPrefix, Links, MachineLink},
    mesh::{
        AllRules, Changed, Converged, Converger, Frontend, KernelMesh, LocalTask, Machine, Mesh, MeshState, Protocol,
        Rules,
    },
    sys::netns::Netns,
};

use futures::{FutureExt, StreamExt};
use reconciler::{external::External, seams::Seams};

use crate::lab::{Answer, Conversation, Flow, Lab, MACHINE, OVERLAY, ask, ip, ip_of, meanwhile, run};

const BACKENDS: [&str; 3] = ["10.192.1.2", "10.192.1.3", "10.192.1.4"];

fn three_tasks(name: &str) -> Lab {
    let mut lab = Lab::new(name);
    for (id, address) in ["a", "b", "c"].into_iter().zip(BACKENDS) {
        lab.task(id, &[address]);
    }
    lab.vip("10.96.0.5", &BACKENDS);
    lab.publish(8080, &BACKENDS);
    lab.converge();
    lab
}

fn published() -> SocketAddr {
    SocketAddr::new(ip_of(MACHINE), 8080)
}

fn servers(from: &Netns, protocol: Protocol, questions: usize) -> BTreeSet<String> {
    (0..questions).map(|_| ask(from, protocol, published()).unwrap().server).collect()
}

fn nothing_done() -> Converged {
    Converged::default()
}

#[test]
fn who_leaves_keeps_its_connections_and_gets_no_new_ones() {
    let mut lab = three_tasks("drain");
    let mut open: Vec<(Answer, Conversation, Flow)> = Vec::new();
    for _ in 0..3 {
        let mut conversation = Conversation::begin(&lab.outside, published()).unwrap();
        let mut flow = Flow::begin(&lab.outside, published()).unwrap();
        flow.ask().unwrap();
        open.push((conversation.ask().unwrap(), conversation, flow));
    }
    assert_eq!(open.iter().map(|it| it.0.server.as_str()).collect::<BTreeSet<_>>(), ["a", "b", "c"].into());
    lab.publish(8080, &BACKENDS[1..]);
    lab.converge();
    for (answer, conversation, flow) in &mut open {
        assert_eq!(conversation.ask().unwrap(), *answer);
        assert!(flow.ask().is_ok());
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        assert_eq!(servers(&lab.outside, protocol, 6), ["b", "c"].map(String::from).into());
    }
    // Back again, into whichever slot.
    lab.publish(8080, &BACKENDS);
    lab.converge();
    assert_eq!(servers(&lab.outside, Protocol::Tcp, 3), ["a", "b", "c"].map(String::from).into());
}

#[test]
fn a_start_with_nothing_changed_changes_nothing() {
    let mut lab = three_tasks("restart");
    lab.task("six", &["fd0a:2:1::6", "10.192.2.6"]);
    lab.state.networks.get_mut("two").unwrap().internal = true;
    lab.vip("fd0a:3::5", &["fd0a:2:1::6"]);
    lab.publish(8443, &["fd0a:2:1::6", "10.192.1.2"]);
    assert!(lab.converge().changes > 0);
    assert_eq!(lab.converge(), nothing_done());
    lab.forget_everything();
    assert_eq!(lab.converge(), nothing_done());
    // Changed while nobody was there to see.
    lab.vip("10.96.0.5", &BACKENDS[..1]);
    lab.forget_everything();
    assert!(lab.converge().changes > 0);
    assert_eq!(ask(&lab.machine, Protocol::Tcp, "10.96.0.5:80".parse().unwrap()).unwrap().server, "a");
}

#[test]
fn what_others_break_is_repaired() {
    let mut lab = three_tasks("repair");
    let deeds: [&[&str]; 6] = [
        &["flush", "ruleset"],
        &["delete", "table", "inet", "apply"],
        &["flush", "map", "inet", "apply", "ports4"],
        &["flush", "chain", "inet", "apply", "lb"],
        &["add", "rule", "inet", "apply", "lb", "drop"],
        &["add", "chain", "inet", "apply", "surprise", "{ type filter hook forward priority 5; policy drop; }"],
    ];
    for deed in deeds {
        run(&lab.machine, "nft", deed);
        assert!(lab.converge().changes > 0, "{deed:?} must be seen");
        assert_eq!(servers(&lab.outside, Protocol::Tcp, 3).len(), 3, "after {deed:?}");
        assert_eq!(lab.converge(), nothing_done());
    }
    // Somebody else's table is none of ours.
    run(&lab.machine, "nft", &["add", "table", "inet", "theirs"]);
    assert_eq!(lab.converge(), nothing_done());
    assert!(run(&lab.machine, "nft", &["list", "tables"]).contains("theirs"));
}

#[test]
fn a_flush_is_heard_of_at_once() {
    let mut lab = three_tasks("heard");
    let rules = External::new("rules", Rules::new(lab.mesh.clone()), Seams::real());
    assert!(lab.mesh.changes().next().now_or_never().is_none(), "what is over is not told again");
    let machine = lab.open("machine");
    let mesh = lab.mesh.clone();
    lab.block_on(async {
        let woken = async {
            let before = *rules.known().await.get(&AllRules).unwrap().clone();
            run(&machine, "nft", &["flush", "ruleset"]);
            let flushed = mesh.generation().await.unwrap();
            assert_ne!(before, flushed);
            while rules.snapshot().and_then(|known| known.get(&AllRules).map(|it| **it)) != Some(flushed) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = rules.run() => unreachable!("it looks for ever"),
            woken = tokio::time::timeout(std::time::Duration::from_secs(5), woken) => {
                woken.expect("well before the next look, which is in half a minute");
            }
        }
    });
    assert!(lab.converge().changes > 0);
    assert_eq!(servers(&lab.outside, Protocol::Tcp, 3).len(), 3);
}

#[test]
fn no_connection_is_refused_while_tasks_come_and_go() {
    let mut lab = three_tasks("churn");
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (from, stop) = (lab.open("outside"), stop.clone());
            meanwhile(move || {
                let (mut asked, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    asked += 1;
                    failed.extend(ask(&from, Protocol::Tcp, published()).err());
                }
                (asked, failed)
            })
        })
        .collect();
    // Shrinks, grows and changes of who is in a slot, all tasks alive throughout.
    let states = [&BACKENDS[..], &BACKENDS[..1], &BACKENDS[1..], &BACKENDS[2..], &BACKENDS[..2]];
    for backends in states.into_iter().cycle().take(100) {
        lab.publish(8080, backends);
        lab.converge();
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let (asked, failed): (usize, Vec<std::io::Error>) = client.recv().unwrap();
        assert!(asked > 20, "the test itself must ask something: {asked}");
        assert!(failed.is_empty(), "{} of {asked} failed: {:?}", failed.len(), failed.first());
    }
}

#[test]
fn a_flow_to_a_task_that_is_gone_moves_to_another() {
    let mut lab = three_tasks("moved");
    let mut flow = Flow::begin(&lab.outside, published()).unwrap();
    let first = flow.ask().unwrap().server;
    let left: Vec<&str> = ["a", "b", "c"].into_iter().zip(BACKENDS).filter(|it| it.0 != first).map(|it| it.1).collect();
    lab.publish(8080, &left);
    lab.converge();
    assert_eq!(flow.ask().unwrap().server, first, "it still talks");
    lab.end(&first);
    lab.converge();
    let next = flow.ask().expect("the same flow, another task").server;
    assert_ne!(next, first);
}

#[test]
fn a_flow_that_began_before_anybody_was_there_finds_who_comes() {
    let mut lab = three_tasks("early");
    lab.publish(9090, &[]);
    lab.converge();
    let to = SocketAddr::new(ip_of(MACHINE), 9090);
    let mut flow = Flow::begin(&lab.outside, to).unwrap();
    assert_eq!(flow.ask().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    lab.publish(9090, &BACKENDS);
    lab.converge();
    assert!(flow.ask().is_ok(), "the client did not begin anew");
}

#[test]
fn tasks_that_were_attached_before_the_machine_had_its_address_see_it_by_that() {
    let mut lab = three_tasks("order");
    lab.block_on(lab.links.remove_machine()).unwrap();
    lab.task("late", &["10.192.1.50"]);
    lab.ensure_machine();
    lab.converge();
    let answer = ask(&lab.machine, Protocol::Tcp, "10.192.1.50:80".parse().unwrap()).unwrap();
    assert_eq!(answer.client, ip_of(OVERLAY));
}

#[test]
fn a_change_of_one_service_needs_no_look_at_the_others() {
    let mut lab = three_tasks("partial");
    let vip = Frontend::Vip(ip_of("10.96.0.5"));
    lab.vip("10.96.0.5", &BACKENDS[..2]);
    lab.publish(9090, &BACKENDS);
    let (state, changed) = (lab.state.clone(), BTreeSet::from([vip]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let done = runtime.block_on(lab.converger.converge(&state, Changed::Frontends(&changed))).unwrap();
    assert!(done.changes > 0);
    assert!(ask(&lab.machine, Protocol::Tcp, SocketAddr::new(ip_of(MACHINE), 9090)).is_err(), "was not asked for");
    lab.converge();
    assert!(ask(&lab.machine, Protocol::Tcp, SocketAddr::new(ip_of(MACHINE), 9090)).is_ok());
}

#[test]
fn links_are_made_whole_from_any_leftover() {
    let mut lab = three_tasks("leftovers");
    let works = |lab: &Lab| {
        assert_eq!(ask(&lab.netns("b"), Protocol::Tcp, "10.192.1.2:80".parse().unwrap()).unwrap().server, "a")
    };
    works(&lab);
    let wanted = Attachment { id: "b".into(), addresses: [ip_of("10.192.1.3")].into(), mtu: 1500 };
    let link = lab.state.tasks["b"].link.to_string();
    // Nothing amiss; then what a crash or a person may leave.
    type Deed = fn(&Lab, &str);
    let deeds: [(&str, Deed); 7] = [
        ("nothing", |_, _| {}),
        ("link gone", |lab, link| drop(ip(&lab.machine, &format!("link del {link}")))),
        ("link down", |lab, link| drop(ip(&lab.machine, &format!("link set {link} down")))),
        ("gateway gone", |lab, link| drop(ip(&lab.machine, &format!("addr flush dev {link}")))),
        ("address gone", |lab, _| drop(ip(&lab.netns("b"), "addr flush dev eth0"))),
        ("way out gone", |lab, _| drop(ip(&lab.netns("b"), "route flush table main"))),
        ("unmounted", |lab, _| {
            rustix::mount::unmount(lab.tasks().join("b"), rustix::mount::UnmountFlags::DETACH).unwrap();
        }),
    ];
    for (what, deed) in deeds {
        deed(&lab, &link);
        let made = lab.block_on(lab.links.ensure(&wanted)).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(made.link.to_string(), link, "{what}");
        works(&lab);
    }
    let listed = lab.block_on(lab.links.list()).unwrap();
    let ids: Vec<&str> = listed.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    assert!(
        listed.iter().any(|it| it.id == "b" && it.addresses == wanted.addresses && it.netns == lab.tasks().join("b"))
    );

    // Another address in another network: the old one goes.
    lab.task("b", &["10.192.2.3", "fd0a:2:2::3"]);
    lab.converge();
    assert!(ask(&lab.machine, Protocol::Udp, "10.192.2.3:80".parse().unwrap()).is_ok());
    assert!(ask(&lab.machine, Protocol::Udp, "[fd0a:2:2::3]:80".parse().unwrap()).is_ok());
    assert!(ask(&lab.machine, Protocol::Udp, "10.192.1.3:80".parse().unwrap()).is_err());
}

#[test]
fn two_installations_on_one_machine_leave_each_other_alone() {
    let mut lab = three_tasks("two");
    let other = LinkPrefix::new("dem").unwrap();
    let links =
        KernelLinks::open(lab.tasks().with_file_name("others"), other.clone(), Some(lab.open("machine"))).unwrap();
    let wanted = MachineLink {
        address4: "10.64.0.1".parse().unwrap(),
        address6: None,
        ranges: ["10.64.0.0/16".parse().unwrap()].into(),
        overlay: None,
    };
    lab.block_on(links.ensure_machine(&wanted)).unwrap();
    let task = Attachment { id: "a".into(), addresses: [ip_of("10.64.1.2")].into(), mtu: 1500 };
    let attached = lab.block_on(links.ensure(&task)).unwrap();
    let mut state = MeshState::new(Machine {
        links: other.clone(),
        pools: ["10.64.0.0/16".parse().unwrap()].into(),
        address4: wanted.address4,
        address6: None,
        machines: ["10.64.0.0/24".parse().unwrap()].into(),
        tunnel: None,
    });
    state.tasks.insert("a".into(), LocalTask { link: attached.link, addresses: task.addresses });
    let mesh = Arc::new(KernelMesh::open("demo", other, Some(lab.open("machine"))).unwrap());
    let mut converger = Converger::new(mesh.clone(), Seams::real());
    assert!(lab.block_on(converger.converge(&state, Changed::Anything)).unwrap().changes > 0);
    let routes = ip(&lab.machine, "-4 route show proto 97");
    for _ in 0..2 {
        lab.ensure_machine();
        lab.block_on(links.ensure_machine(&wanted)).unwrap();
        assert_eq!(lab.converge(), nothing_done());
        assert_eq!(lab.block_on(converger.converge(&state, Changed::Anything)).unwrap(), nothing_done());
    }
    assert_eq!(ip(&lab.machine, "-4 route show proto 97"), routes);
    assert_eq!(servers(&lab.outside, Protocol::Tcp, 3).len(), 3);
    lab.block_on(links.remove("a")).unwrap();
    lab.block_on(mesh.remove()).unwrap();
    lab.block_on(links.remove_machine()).unwrap();
    assert_eq!(servers(&lab.outside, Protocol::Udp, 3).len(), 3);
}

#[test]
fn bad_ids_are_refused() {
    let lab = Lab::new("ids");
    for id in ["", ".", "..", ".hidden", "a/b", "ä", "a b", &"x".repeat(129)] {
        let wanted = Attachment { id: id.into(), addresses: BTreeSet::new(), mtu: 1500 };
        assert!(lab.block_on(lab.links.ensure(&wanted)).is_err(), "{id:?}");
        assert!(lab.block_on(lab.links.remove(id)).is_err(), "{id:?}");
    }
}

#[test]
fn what_is_removed_together_goes_and_what_is_wanted_again_stays() {
    let mut lab = Lab::new("together");
    for (id, address) in [("a", "10.192.1.1"), ("b", "10.192.1.2"), ("c", "10.192.1.3"), ("d", "10.192.1.4")] {
        lab.attach(id, &[address]);
    }
    let attached = |lab: &Lab| {
        let all = lab.block_on(lab.links.list()).unwrap();
        let links = ip(&lab.machine, "-br link show type veth");
        all.into_iter().filter(|it| links.contains(it.link.as_str())).map(|it| it.id).collect::<Vec<_>>()
    };
    let (a, b) = lab.block_on(async { futures::join!(lab.links.remove("a"), lab.links.remove("b")) });
    a.unwrap();
    b.unwrap();
    assert_eq!(attached(&lab), ["c", "d"]);
    // Whoever began to remove this one was killed before the end of it.
    let link = lab.state.tasks["c"].link.clone();
    ip(&lab.machine, &format!("link set {} group 1634757753", link.as_str()));
    lab.attach("c", &["10.192.1.3"]);
    lab.end("d");
    assert_eq!(attached(&lab), ["c"]);
}
