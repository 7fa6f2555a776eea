//! One network over all machines.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use conformance::lab::Lab;
use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;
use conformance::parts::registry::{self, Door, Packing, Pushed, Registry, archive};
use rustix::net::{AddressFamily, SocketType};
use serde_json::json;

use crate::load::{Asked, under_load};
use crate::{running, state_of};

/// A client outside, as the machines' network knows it.
const OUTSIDE: &str = "10.99.0.254";
pub(crate) const SILENCE: Duration = Duration::from_secs(5);

pub(crate) fn lab(name: &str) -> Lab {
    let lab = Lab::start(name, 3).unwrap();
    lab.form().unwrap();
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    lab
}

pub(crate) fn serve(manager: &Machine, words: &[&str]) {
    manager.ctl(&[&["service", "create"], words].concat()).unwrap();
}

/// So many tasks behind port 8080 of each machine, in an update by that order. Without a check, a task would count as soon as
/// its program has begun, before it listens.
pub(crate) fn serve_checked(lab: &Lab, replicas: usize, order: &str) {
    let first = lab.machine(1).unwrap();
    let health = "{check: {exec: {command: [/testbox, get, 'http://127.0.0.1/healthz']}, startInterval: 50ms}}";
    let container = format!("{{image: 'test/box:1', args: [serve, '80'], health: {health}}}");
    let (endpoint, update) = ("{ports: [{published: 8080, target: 80}]}", format!("{{order: {order}}}"));
    let template = format!("{{container: {container}}}");
    let spec = format!("{{replicas: {replicas}, update: {update}, endpoint: {endpoint}, template: {template}}}");
    apply(first, "web", &format!("{{apiVersion: apply/v1, kind: Service, metadata: {{name: web}}, spec: {spec}}}"));
    first.ctl(&["wait", "service/web", "--for", &format!("jsonpath={{.status.running}}={replicas}")]).unwrap();
    for machine in 1..=3 {
        let url = format!("http://{}/", address(machine, 8080));
        wait_until("the port of the machine to open", PATIENCE, || lab.fetch(&[&url]).is_ok()).unwrap();
    }
}

pub(crate) fn address(machine: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 99, 0, machine], port))
}

/// One line of the server, `TASK RELEASE CLIENT:PORT`: which task, and which client it saw.
fn who(answer: &str) -> (String, String) {
    let words: Vec<&str> = answer.split_whitespace().collect();
    let [task, _, client] = words[..] else { panic!("not an answer of the server: {answer:?}") };
    let (host, _) = client.rsplit_once(':').unwrap();
    (task.to_owned(), host.to_owned())
}

/// A task of the service on that machine: its name and its address.
pub(crate) fn task_on(manager: &Machine, service: &str, node: &str) -> (String, String) {
    let tasks = manager.person().list("task").unwrap();
    let found = tasks.iter().find(|task| task["spec"]["service"] == service && task["spec"]["nodeName"] == node);
    let task = found.unwrap_or_else(|| panic!("{service} has a task on {node}"));
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    (text(&task["metadata"]["name"]), text(&task["status"]["addresses"][0]["address"]))
}

#[test]
fn a_published_port_answers_on_every_machine_for_every_task_and_the_client_is_seen() {
    let lab = lab("reach");
    let first = lab.machine(1).unwrap();
    serve(first, &["--name", "web", "--replicas", "6", "-p", "8080:80", "test/box:1", "serve", "80"]);
    assert_eq!(running(first, "web"), ["n1", "n1", "n2", "n2", "n3", "n3"]);
    let counted = |answers: Vec<(String, String)>| {
        let mut tasks: BTreeMap<String, usize> = BTreeMap::new();
        answers.iter().for_each(|(task, _)| *tasks.entry(task.clone()).or_default() += 1);
        (tasks.len(), tasks.values().copied().collect::<BTreeSet<_>>())
    };
    for machine in 1..=3 {
        let url = format!("http://{}/", address(machine, 8080));
        // The mesh of a machine may be a moment behind that of the others.
        wait_until("the port of the machine to open", PATIENCE, || lab.fetch(&[&url]).is_ok()).unwrap();
        let answers: Vec<_> = (0..12).map(|_| who(&lab.fetch(&[&url]).unwrap())).collect();
        assert!(answers.iter().all(|(_, client)| client == OUTSIDE), "n{machine}: {answers:?}");
        assert_eq!(counted(answers.clone()), (6, BTreeSet::from([2])), "in turn, n{machine}: {answers:?}");
    }
    for machine in 1..=3 {
        let here = lab.machine(machine).unwrap();
        for host in [
            "127.0.0.1".to_owned(),
            "[::1]".to_owned(),
            format!("10.99.0.{machine}"),
            format!("10.99.0.{}", machine % 3 + 1),
        ] {
            let url = format!("http://{host}:8080/");
            let answers: Vec<_> = (0..6).map(|_| who(&here.fetch(&[&url]).unwrap())).collect();
            assert_eq!(counted(answers).0, 6, "{url} on n{machine}");
        }
    }
    // From a task: by the service's name, by each task's address, by a machine's port.
    let (task, own) = task_on(first, "web", "n1");
    let inside = |words: &[&str]| first.ctl(&[&["exec", &task, "/testbox"], words].concat()).unwrap();
    let all: BTreeSet<String> = inside(&["resolve", "tasks.web"]).lines().map(str::to_owned).collect();
    assert_eq!(all.len(), 6, "{all:?}");
    for address in &all {
        assert_eq!(
            who(&inside(&["get", &format!("http://{address}/")])).1,
            own,
            "its own address is seen at {address}"
        );
    }
    for url in ["http://web/", "http://10.99.0.2:8080/"] {
        let answers: Vec<_> = (0..6).map(|_| who(&inside(&["get", url]))).collect();
        assert_eq!(counted(answers).0, 6, "{url}");
    }
}

#[test]
fn datagrams_and_long_streams_cross_machines_whole() {
    let lab = lab("cross");
    let first = lab.machine(1).unwrap();
    let only = ["--constraint", "node.hostname==n3", "test/box:1", "echo"];
    serve(first, &[&["--name", "udp", "-p", "9000:9000/udp"], &only[..], &["udp", "9000"]].concat());
    serve(first, &[&["--name", "tcp", "-p", "9001:9001"], &only[..], &["tcp", "9001"]].concat());
    for machine in 1..=3 {
        let echoed = lab.outside(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(address(machine, 9000)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let mut answer = [0; 2000];
            // The mesh of a machine may be a moment behind that of the others.
            let tries = (0..25).find_map(|_| {
                socket.send(&[b'x'; 1300]).ok()?;
                socket.recv(&mut answer).ok()
            });
            let count = tries.expect("an answer");
            String::from_utf8_lossy(&answer[..count]).into_owned()
        });
        let echoed = echoed.unwrap();
        let (said, text) = echoed.split_once('\n').unwrap();
        assert!(said.contains(&format!("{OUTSIDE}:")), "n{machine}: the client is seen: {said}");
        assert_eq!(text, "x".repeat(1300));
        // Segments of the outside are longer than what the tunnel takes.
        let long: Vec<u8> = (0..300_000_u32).map(|number| number.to_ne_bytes()[0]).collect();
        let back = lab.outside(|| {
            let mut stream = TcpStream::connect_timeout(&address(machine, 9001), SILENCE).unwrap();
            stream.set_read_timeout(Some(SILENCE)).unwrap();
            let mut writer = stream.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    writer.write_all(&long).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                all
            })
        });
        let back = back.unwrap();
        let first_line = back.iter().position(|byte| *byte == b'\n').unwrap();
        assert!(back[first_line + 1..] == long[..], "n{machine}: {} bytes back", back.len());
    }
}

/// On the task's machine both connections would be one and the same, but for the machine that they came in by.
#[test]
fn a_clients_port_may_come_by_two_machines_to_one_task_at_once() {
    let lab = lab("zones");
    let first = lab.machine(1).unwrap();
    let only = ["--constraint", "node.hostname==n3", "test/box:1", "echo", "tcp", "9000"];
    serve(first, &[&["--name", "one", "-p", "9000:9000"], &only[..]].concat());
    for machine in 1..=3 {
        let open = || lab.outside(|| TcpStream::connect_timeout(&address(machine, 9000), SILENCE).is_ok()).unwrap();
        wait_until("the port of the machine to open", PATIENCE, open).unwrap();
    }
    let said = lab.outside(|| {
        let streams: Vec<TcpStream> = (1..=3)
            .map(|machine| {
                let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
                rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
                rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, 40_000))).unwrap();
                let stream = TcpStream::from(socket);
                stream.set_write_timeout(Some(SILENCE)).unwrap();
                stream.set_read_timeout(Some(SILENCE)).unwrap();
                rustix::net::connect(&stream, &address(machine, 9000)).unwrap();
                stream
            })
            .collect();
        // All are open when each is used.
        let talk = |mut stream: &TcpStream| {
            stream.write_all(b"hello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut all = String::new();
            stream.read_to_string(&mut all).unwrap();
            all
        };
        streams.iter().map(talk).collect::<Vec<_>>()
    });
    let said = said.unwrap();
    assert_eq!(said.len(), 3);
    for answer in &said {
        assert!(answer.contains(&format!("{OUTSIDE}:")) && answer.ends_with("\nhello"), "{said:?}");
    }
}

#[test]
fn networks_are_apart_on_every_machine() {
    let lab = lab("apart");
    let first = lab.machine(1).unwrap();
    for network in ["red", "blue"] {
        first.ctl(&["network", "create", network]).unwrap();
        serve(first, &["--name", network, "--network", network, "--replicas", "3", "test/box:1", "serve", "80"]);
    }
    let (red, _) = task_on(first, "red", "n1");
    let get = |address: &str| first.ctl(&["exec", &red, "/testbox", "get", &format!("http://{address}/")]);
    for node in ["n1", "n2", "n3"] {
        get(&task_on(first, "red", node).1).unwrap_or_else(|error| panic!("its own network on {node}: {error:#}"));
        let other = get(&task_on(first, "blue", node).1);
        let refused = format!("{:#}", other.expect_err("another network"));
        assert!(refused.contains("No route to host"), "{node}: {refused}");
    }
    assert!(first.ctl(&["exec", &red, "/testbox", "resolve", "blue"]).is_err(), "no name of another network either");
}

#[test]
fn who_connects_while_a_machine_dies_finds_a_task_that_lives() {
    let mut lab = lab("dies");
    let first = lab.machine(1).unwrap();
    serve(first, &["--name", "web", "--replicas", "6", "-p", "8080:80", "test/box:1", "serve", "80"]);
    let url = format!("http://{}/", address(1, 8080));
    let nobody_of = |lab: &Lab, lost: &BTreeSet<String>| {
        let answers: Vec<_> = (0..12).map(|_| lab.fetch(&["-m", "20", &url]).map(|answer| who(&answer).0)).collect();
        answers.into_iter().all(|answer| answer.is_ok_and(|task| !lost.contains(&task)))
    };
    let tasks = first.person().list("task").unwrap();
    let on_third = tasks.iter().filter(|task| task["spec"]["nodeName"] == "n3");
    let lost: BTreeSet<String> = on_third.map(|task| task["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(lost.len(), 2);
    lab.power_off(3).unwrap();
    // Begun while nobody knows of it yet: what was on its way to n3 is sent elsewhere when n3 is lost.
    assert!(nobody_of(&lab, &lost), "every connection found a task that lives");
    let first = lab.machine(1).unwrap();
    let six = || running(first, "web") == ["n1", "n1", "n1", "n2", "n2", "n2"];
    wait_until("six to run on two machines", PATIENCE, six).unwrap();
}

/// Every machine is asked all the time, a connection for each request, while tasks come, go and are replaced everywhere.
#[test]
fn no_request_is_lost_on_any_machine_while_tasks_come_and_go() {
    let lab = lab("load");
    let first = lab.machine(1).unwrap();
    serve_checked(&lab, 6, "stop-first");
    let asked = under_load(&lab, |_| {
        for words in [
            &["service", "scale", "web=3"][..],
            &["service", "scale", "web=7"],
            &["service", "update", "web", "--image", "test/box:2"],
            &["service", "scale", "web=6"],
            &["node", "drain", "n3"],
        ] {
            first.ctl(words).unwrap();
        }
        wait_until("n3 to be empty", PATIENCE, || running(first, "web") == ["n1", "n1", "n1", "n2", "n2", "n2"])
            .unwrap();
        first.ctl(&["node", "activate", "n3"]).unwrap();
        first.ctl(&["service", "scale", "web=8"]).unwrap();
        assert_eq!(
            running(first, "web"),
            ["n1", "n1", "n1", "n2", "n2", "n2", "n3", "n3"],
            "new ones go to the empty one"
        );
    });
    for (machine, Asked { answers, failed }) in (1..).zip(asked) {
        assert_eq!(failed, [], "n{machine}: of {} requests", answers.len());
        let releases: BTreeSet<&str> = answers.iter().filter_map(|answer| answer.split(' ').nth(1)).collect();
        assert_eq!(releases, BTreeSet::from(["1", "2"]), "n{machine}");
    }
}

/// What was begun is brought to its end by the task that it was begun with, whichever machine it came in by.
#[test]
fn a_request_that_is_under_way_is_answered_while_its_task_on_another_machine_leaves() {
    let lab = lab("slow");
    let first = lab.machine(1).unwrap();
    let only = ["--constraint", "node.hostname==n2", "test/box:1", "serve", "80"];
    serve(first, &[&["--name", "web", "-p", "8080:80"], &only[..]].concat());
    let url = format!("http://{}/", address(1, 8080));
    wait_until("the port to open", PATIENCE, || lab.fetch(&[&url]).is_ok()).unwrap();
    std::thread::scope(|scope| {
        let slow = format!("http://{}/slow/2500", address(1, 8080));
        let lab = &lab;
        let asked = scope.spawn(move || lab.fetch(&["-m", "30", &slow]));
        let connected = || {
            let outside = std::process::Command::new("nsenter")
                .args(["-t", &lab.hub().to_string(), "-n", "ss", "-Htn", "state", "established", "dport", "=", ":8080"])
                .output();
            outside.is_ok_and(|seen| !seen.stdout.is_empty())
        };
        wait_until("the request to be under way", PATIENCE, connected).unwrap();
        first.ctl(&["service", "scale", "web=0", "--detach"]).unwrap();
        wait_until("nothing new to come to it", PATIENCE, || lab.fetch(&["-m", "5", &url]).is_err()).unwrap();
        let answer = asked.join().unwrap().unwrap();
        assert_eq!(who(&answer).1, OUTSIDE, "{answer}");
    });
}

/// Whoever still sends connections to a task keeps it from being told to stop, on whichever machine it is, for a second.
#[test]
fn a_task_that_leaves_waits_for_the_meshes_of_other_machines() {
    let lab = lab("lags");
    let first = lab.machine(1).unwrap();
    // Frozen, but not lost for it.
    apply(
        first,
        "cluster",
        "{apiVersion: apply/v1, kind: Cluster, metadata: {name: cluster}, spec: {periods: {heartbeat: 20s}}}",
    );
    serve(
        first,
        &[
            "--name",
            "web",
            "--replicas",
            "2",
            "-p",
            "8080:80",
            "--constraint",
            "node.hostname==n1",
            "test/box:1",
            "serve",
            "80",
        ],
    );
    // Said of a task that is told to stop though a machine lags.
    let late = || {
        let events = first.person().list("event").unwrap_or_default();
        events.iter().filter(|event| event.to_string().contains("some machine may still send to it")).count()
    };
    first.ctl(&["service", "scale", "web=1"]).unwrap();
    wait_until("one to be left", PATIENCE, || running(first, "web").len() == 1).unwrap();
    let second = lab.machine(2).unwrap();
    second.freeze(Part::Applyd).unwrap();
    first.ctl(&["service", "scale", "web=0", "--detach"]).unwrap();
    wait_until("it to be told to stop in spite of n2", PATIENCE, || late() == 1).unwrap();
    second.thaw(Part::Applyd);
}

#[test]
fn what_a_task_says_is_read_and_commands_run_in_it_wherever_it_is() {
    let mut lab = lab("logs");
    let first = lab.machine(1).unwrap();
    serve(first, &["--name", "web", "--replicas", "3", "test/box:1", "serve", "80"]);
    let everything = first.ctl(&["logs", "web"]).unwrap();
    assert_eq!(everything.matches("serving on 80").count(), 3, "{everything}");
    for node in ["n1", "n2", "n3"] {
        let (task, _) = task_on(first, "web", node);
        assert!(first.ctl(&["exec", &task, "/testbox", "env"]).unwrap().contains("HOSTNAME="), "{node}");
        let failed = format!("{:#}", first.ctl(&["exec", &task, "/testbox", "exit", "7"]).unwrap_err());
        assert!(failed.contains("exit status: 7"), "{failed}");
        let mut exec = first.person().applyctl(&["exec", "-i", &task, "/testbox", "cat", "/dev/stdin"]).unwrap();
        let mut exec = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        exec.stdin.take().unwrap().write_all(&[b'x'; 100_000]).unwrap();
        let output = exec.wait_with_output().unwrap();
        assert_eq!(output.stdout.len(), 100_000, "{node}");
    }
    // Followed until it ends.
    let (task, _) = task_on(first, "web", "n2");
    let mut follow = first.person().applyctl(&["logs", "-f", &task]).unwrap();
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("serving on 80"));
    first.ctl(&["service", "rm", "web", "--yes"]).unwrap();
    // Up to what it says when it is told to stop.
    let last: Vec<String> = lines.map(|line| line.unwrap()).collect();
    assert!(follow.wait().unwrap().success(), "{last:?}");

    serve(first, &["--name", "far", "--constraint", "node.hostname==n3", "test/box:1", "serve", "80"]);
    let (task, _) = task_on(first, "far", "n3");
    let elsewhere = format!("{:#}", lab.machine(2).unwrap().ctl(&["logs", &task]).unwrap_err());
    assert!(elsewhere.contains("say it to a manager"), "{elsewhere}");
    lab.power_off(3).unwrap();
    let first = lab.machine(1).unwrap();
    wait_until("n3 to be lost", PATIENCE, || state_of(first, "n3") == "Lost").unwrap();
    let silent = format!("{:#}", first.ctl(&["logs", &task]).unwrap_err());
    assert!(silent.contains("n3 does not answer: it is not heard of"), "{silent}");
}

/// The registry is reached on n2 only, so that it is n2 that asks it.
#[test]
fn a_worker_pulls_with_the_login_that_was_said_to_the_manager_and_keeps_none() {
    let lab = Lab::start("login", 2).unwrap();
    lab.form().unwrap();
    let (first, second) = (lab.machine(1).unwrap(), lab.machine(2).unwrap());
    let layer = archive(&[("etc/name".to_owned(), vec![b'x'; 1 << 16])]).unwrap();
    let platform = controllers::node::images::Platform::of_this_machine().to_string();
    let image = Pushed::image(&platform, &[(Packing::Gzip, layer)], json!({"Cmd": ["/bin/none"]})).unwrap();
    let (_registry, name) = second
        .on_network(|| {
            let registry = Registry::start("lablogin", Door::Password).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(registry.push("some/app", "1", &image)).unwrap();
            let name = registry.name();
            (registry, name)
        })
        .unwrap();
    let said = |what: &str| {
        let tasks = || first.person().list("task").unwrap_or_default();
        wait_until(what, PATIENCE, || tasks().iter().any(|task| task["status"].to_string().contains(what))).unwrap();
    };
    let app = format!("{name}/some/app:1");
    let only = ["--constraint", "node.hostname==n2"];
    first.ctl(&[&["service", "create", "--detach", "--name", "web"], &only[..], &[&app]].concat()).unwrap();
    said("wants credentials for it");
    // Not to be asked from n1.
    let words = ["login", &name, "-u", registry::USER, "--password-stdin", "--no-check"];
    let mut login = first.person().applyctl(&words).unwrap().stdin(Stdio::piped()).spawn().unwrap();
    login.stdin.take().unwrap().write_all(registry::PASSWORD.as_bytes()).unwrap();
    assert!(login.wait().unwrap().success());
    said(&image.digest());
    for file in ["applyd.log", "containerd.log"] {
        let bytes = std::fs::read(second.installation().disk.join(file)).unwrap();
        let secret = registry::PASSWORD.as_bytes();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "the password is in {file}");
    }
    // Given to machines that pull with it, and to nobody who merely asks, were it root.
    let path = "/apis/apply/v1/namespaces/default/registrylogins";
    let logins = first.person().list("registrylogin").unwrap();
    let data = format!("http://x{path}/{}/data", logins[0]["metadata"]["name"].as_str().unwrap());
    let socket = first.person().socket;
    let asked =
        std::process::Command::new("curl").args(["-s", "--unix-socket"]).arg(socket).arg(&data).output().unwrap();
    let answer = String::from_utf8(asked.stdout).unwrap();
    assert!(answer.contains("\"code\":403"), "{answer}");
}

pub(crate) fn apply(manager: &Machine, name: &str, document: &str) {
    let file = manager.folder().join(format!("{name}.yaml"));
    std::fs::write(&file, document).unwrap();
    manager.ctl(&["apply", "-f", &file.to_string_lossy()]).unwrap();
}

#[test]
fn what_is_in_the_way_between_two_machines_is_named() {
    let lab = lab("probe");
    let (first, third) = (lab.machine(1).unwrap(), lab.machine(3).unwrap());
    serve_checked(&lab, 3, "stop-first");
    let probe = || {
        let output = first.person().applyctl(&["network", "probe", "web"]).unwrap().output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let mut said = String::new();
    // Its table may be a moment behind.
    wait_until("all to be reached", PATIENCE, || {
        let (code, text) = probe();
        said = text;
        code == Some(0)
    })
    .unwrap_or_else(|error| panic!("{error:#}: {said}"));
    assert!(said.contains("web is reached from every machine") && said.contains("127.0.0.1:8080"), "{said}");
    // A firewall of somebody else's lets nothing of the tunnel in.
    let rules = "add table inet foreign; add chain inet foreign in { type filter hook input priority -300; }; \
                 add rule inet foreign in udp dport 7677 drop";
    assert!(third.inside("nft").arg(rules).status().unwrap().success());
    let (code, said) = probe();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("n1 does not reach tasks on n3") && said.contains("n2 does not reach tasks on n3"), "{said}");
    assert!(!said.contains("n1 does not reach tasks on n2") && said.contains("no answer within 1 s"), "{said}");
}

#[test]
fn a_port_of_single_machines_leads_to_their_own_tasks_and_is_one_tasks_alone() {
    let lab = lab("host");
    let first = lab.machine(1).unwrap();
    let publish = ["-p", "published=8081,target=80,mode=host"];
    let serves = ["test/box:1", "serve", "80"];
    serve(first, &[&["--name", "web", "--replicas", "2"], &publish[..], &serves].concat());
    let ask = |machine: u8| lab.fetch(&["-m", "5", &format!("http://{}/", address(machine, 8081))]);
    wait_until("two to run", PATIENCE, || running(first, "web").len() == 2).unwrap();
    let on = running(first, "web");
    assert!(on[0] != on[1], "{on:?}");
    for number in 1..=3 {
        let node = format!("n{number}");
        if !on.contains(&node) {
            assert!(ask(number).is_err(), "{node} runs none");
            continue;
        }
        wait_until("the port to open", PATIENCE, || ask(number).is_ok()).unwrap();
        let task = task_on(first, "web", &node).0;
        for _ in 0..4 {
            let (answered, client) = who(&ask(number).unwrap());
            assert_eq!((answered.as_str(), client.as_str()), (task.as_str(), OUTSIDE), "{node}");
        }
    }
    // There is one on each machine, and no place for a fourth, nor for another service's.
    first.ctl(&["scale", "web=4", "--detach"]).unwrap();
    wait_until("three to run", PATIENCE, || running(first, "web") == ["n1", "n2", "n3"]).unwrap();
    wait_until("the fourth to say why it does not", PATIENCE, || {
        first.ctl(&["ps", "web"]).is_ok_and(|said| said.contains("port 8081 is web's on n1, n2, n3"))
    })
    .unwrap();
    let create = ["service", "create", "--name", "other", "-p", "8081:80", "--timeout", "20s"];
    let said = format!("{:#}", first.ctl(&[&create[..], &serves].concat()).unwrap_err());
    assert!(said.contains("port 8081/tcp is published by service web"), "{said}");
    // One that goes gives its port to the next.
    first.ctl(&["scale", "web=3"]).unwrap();
    first.ctl(&["service", "update", "web", "--image", "test/box:2"]).unwrap();
    assert_eq!(running(first, "web"), ["n1", "n2", "n3"]);
}
