//! Published ports that somebody else has, firewalls in the way, and connections that go on while their task leaves: on
//! a machine with a real containerd. Needs root.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use conformance::parts::machine::{Machine, PATIENCE, Part, kill};
use conformance::parts::process::wait_until;
use serde_json::Value;

fn fails(machine: &Machine, words: &[&str], code: i32) -> String {
    let output = machine.person().applyctl(words).unwrap().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    said
}

/// The condition `Published` of a service: its status, reason and message.
fn published(machine: &Machine, service: &str) -> (String, String, String) {
    let services = machine.person().list("service").unwrap_or_default();
    let found = services.into_iter().find(|it| it["metadata"]["name"] == service).unwrap_or_default();
    let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let condition = conditions.into_iter().find(|it| it["type"] == "Published").unwrap_or_default();
    let word = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    (word("status"), word("reason"), word("message"))
}

fn is_open(machine: &Machine, service: &str) -> bool {
    published(machine, service).0 == "True"
}

fn answers(machine: &Machine, url: &str) -> Option<String> {
    machine.fetch(&["-m", "5", url]).ok()
}

/// A program of the machine that is no container and answers `here` at a port; it ends with this value.
struct Listener {
    /// nsenter, which waits for it.
    child: Child,
    pid: u32,
}

impl Listener {
    fn start(machine: &Machine, port: u16) -> Listener {
        let program = format!(
            "use IO::Socket::INET; my $l = IO::Socket::INET->new(LocalPort => {port}, Listen => 5, ReuseAddr => 1) or die; \
             while (my $c = $l->accept) {{ sysread($c, my $q, 4096); print $c \"HTTP/1.0 200 OK\\r\\n\\r\\nhere\"; close $c }}"
        );
        let mut command: Command = machine.inside("perl");
        let child = command.args(["-e", &program]).stdin(Stdio::null()).spawn().unwrap();
        let url = format!("http://127.0.0.1:{port}/");
        wait_until("the program to answer", PATIENCE, || answers(machine, &url).as_deref() == Some("here")).unwrap();
        let is_ours = |words: &[String]| words.first().is_some_and(|word| word == "perl");
        let pid = machine.processes().into_iter().find(|(_, words)| is_ours(words)).map(|(pid, _)| pid);
        Listener { child, pid: pid.unwrap() }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = kill(self.pid);
        let _ = self.child.wait();
    }
}

const WEB: &str = "http://127.0.0.1:8080/";

#[test]
fn a_port_that_somebody_has_stays_theirs_and_the_service_says_so_until_it_is_free() {
    let machine = Machine::start("ports").unwrap();
    machine.load("test").unwrap();
    let program = Listener::start(&machine, 8080);
    let create = ["service", "create", "--name", "web", "-p", "8080:80", "test/box:1"];
    let said = fails(&machine, &create, 4);
    assert!(said.contains("port 8080/tcp is taken on n1: perl (pid"), "{said}");
    assert_eq!(answers(&machine, WEB).as_deref(), Some("here"), "whoever had the port is still reached");
    assert_eq!(published(&machine, "web").1, "PortTaken");
    let events = machine.ctl(&["events"]).unwrap();
    assert!(events.contains("PortTaken"), "{events}");

    drop(program);
    wait_until("the port to be free", PATIENCE, || is_open(&machine, "web")).unwrap();
    let by_service = || answers(&machine, WEB).is_some_and(|answer| answer.contains(" 1 "));
    wait_until("the service to answer", PATIENCE, by_service).unwrap_or_else(|error| {
        panic!("{error}: {:?} {:?}", answers(&machine, WEB), published(&machine, "web"));
    });

    // Two services cannot have one port: the second names the first, and gets it when that goes.
    let said = fails(&machine, &["service", "create", "--name", "api", "-p", "8080:80", "test/box:2"], 4);
    assert!(said.contains("port 8080/tcp is published by service web"), "{said}");
    assert!(by_service() && is_open(&machine, "web"));
    machine.ctl(&["service", "rm", "web"]).unwrap();
    wait_until("the other one to have it", PATIENCE, || is_open(&machine, "api")).unwrap();
    wait_until("it to answer", PATIENCE, || answers(&machine, WEB).is_some_and(|answer| answer.contains(" 2 ")))
        .unwrap();

    // A firewall that drops what is forwarded, and is taken away again.
    let nft = |rules: &str| {
        let status = machine.inside("nft").arg(rules).status().unwrap();
        assert!(status.success(), "{rules}");
    };
    nft("add table ip fw; add chain ip fw guard { type filter hook forward priority 0; policy drop; }");
    wait_until("the firewall to be seen", PATIENCE, || published(&machine, "api").1 == "FirewallInTheWay").unwrap();
    assert!(published(&machine, "api").2.contains("chain guard of ip fw"), "{:?}", published(&machine, "api"));
    nft("delete table ip fw");
    wait_until("the way to be free", PATIENCE, || is_open(&machine, "api")).unwrap();
}

#[test]
fn a_published_port_answers_at_ipv6_addresses_of_the_machine_too() {
    let machine = Machine::start("sixes").unwrap();
    // An address and a way out, by which applyd finds it when it starts.
    for words in ["-6 addr add fd99::1/128 dev lo", "-6 route add 2001:db8::/32 dev lo src fd99::1"] {
        let status = machine.inside("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    }
    machine.kill(Part::Applyd).unwrap();
    machine.start_applyd().unwrap();
    machine.load("test").unwrap();
    machine.ctl(&["service", "create", "--name", "web", "-p", "8080:80", "--replicas", "2", "test/box:1"]).unwrap();
    let all = || {
        for address in ["127.0.0.1", "[::1]", "[fd99::1]"] {
            let url = format!("http://{address}:8080/");
            wait_until("every address to answer", PATIENCE, || answers(&machine, &url).is_some())
                .unwrap_or_else(|error| panic!("{address}: {error}"));
        }
    };
    all();
    // Our own listeners are nothing in the way to whoever looks for such anew.
    machine.kill(Part::Applyd).unwrap();
    machine.start_applyd().unwrap();
    machine.ctl(&["service", "scale", "web=1"]).unwrap();
    assert!(is_open(&machine, "web"), "{:?}", published(&machine, "web"));
    all();
}

#[test]
fn a_request_that_is_under_way_is_answered_while_its_task_leaves() {
    let machine = Machine::start("drain").unwrap();
    machine.load("test").unwrap();
    machine.ctl(&["service", "create", "--name", "web", "-p", "8080:80", "--replicas", "1", "test/box:1"]).unwrap();
    wait_until("the service to answer", PATIENCE, || answers(&machine, WEB).is_some()).unwrap();
    let states = || -> Vec<(Value, Value)> {
        let tasks = machine.person().list("task").unwrap_or_default();
        tasks.iter().map(|task| (task["status"]["state"].clone(), task["status"]["reason"].clone())).collect()
    };
    thread::scope(|scope| {
        let asked = scope.spawn(|| machine.fetch(&["-m", "30", "http://127.0.0.1:8080/slow/2500"]));
        let connected = || {
            let output = machine.inside("ss").args(["-Htn", "state", "established", "dport", "=", ":8080"]).output();
            output.is_ok_and(|output| !output.stdout.is_empty())
        };
        wait_until("the request to be under way", PATIENCE, connected).unwrap();
        machine.ctl(&["service", "scale", "web=0", "--detach"]).unwrap();
        let drains = || states().iter().any(|(_, reason)| reason == "Draining");
        wait_until("the task to be drained", Duration::from_secs(30), drains).unwrap();
        assert!(answers(&machine, WEB).is_none(), "nothing new comes to it");
        let answer = asked.join().unwrap().unwrap();
        assert!(answer.contains(" 1 "), "{answer}");
    });
    wait_until("the task to be gone", PATIENCE, || states().is_empty()).unwrap();
}
