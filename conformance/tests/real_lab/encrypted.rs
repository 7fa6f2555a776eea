//! What tasks say to tasks on other machines: not to be read on the way, and not lost while keys and processes change.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use conformance::lab::Lab;
use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType};

use crate::load::under_load;
use crate::reaching::{SILENCE, address, apply, lab, serve, task_on};

/// UDP ports of the encrypted tunnel, and of the tunnel itself.
const ENCRYPTED: u16 = 7677;
const PLAIN: u16 = 4790;
/// How long requests may fail after a companion process was killed.
const PROMISED: Duration = Duration::from_secs(1);

/// Everything on the wire between the machines while `work` is done.
fn captured(lab: &Lab, work: impl FnOnce()) -> Vec<Vec<u8>> {
    let (done, listening) = (AtomicBool::new(false), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        let (done, ready) = (&done, &listening);
        let ear = scope.spawn(move || {
            lab.outside(|| {
                // `ETH_P_ALL`, in the order of the network.
                let all = Protocol::from_raw(0x0300.try_into().unwrap());
                let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, Some(all)).unwrap();
                let moment = Some(Duration::from_millis(50));
                rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, moment).unwrap();
                ready.wait();
                let (mut frames, mut room) = (Vec::new(), [0; 65_536]);
                while !done.load(Ordering::Relaxed) {
                    if let Ok((bytes, _)) = rustix::net::recv(&socket, &mut room[..], RecvFlags::empty()) {
                        frames.push(room[..bytes].to_vec());
                    }
                }
                frames
            })
            .unwrap()
        });
        listening.wait();
        work();
        done.store(true, Ordering::Relaxed);
        ear.join().unwrap()
    })
}

fn has(frame: &[u8], text: &str) -> bool {
    frame.windows(text.len()).any(|part| part == text.as_bytes())
}

/// Frames of UDP over IPv4 to a port.
fn to_port(frames: &[Vec<u8>], port: u16) -> usize {
    let is_to = |frame: &&Vec<u8>| {
        let is_udp = frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17);
        is_udp && frame.get(36..38) == Some(&port.to_be_bytes())
    };
    frames.iter().filter(is_to).count()
}

#[test]
fn what_tasks_say_between_machines_cannot_be_read_on_the_wire() {
    let lab = lab("wire");
    let first = lab.machine(1).unwrap();
    serve(first, &["--name", "echo", "--replicas", "3", "test/box:1", "echo", "tcp", "9000"]);
    let (from, _) = task_on(first, "echo", "n1");
    let others = [task_on(first, "echo", "n2").1, task_on(first, "echo", "n3").1];
    let say = |words: &str| {
        for other in &others {
            let to = format!("{other}:9000");
            let echoed = || first.ctl(&["exec", &from, "/testbox", "say", "tcp", &to, words]);
            let answered = || echoed().is_ok_and(|answer| answer.contains(words));
            wait_until("a task on another machine to answer", PATIENCE, answered).unwrap();
        }
    };
    let frames = captured(&lab, || say("the-whole-secret"));
    assert!(frames.iter().all(|frame| !has(frame, "the-whole-secret")), "it can be read");
    assert!(to_port(&frames, ENCRYPTED) > 0, "it went that way");
    assert_eq!(to_port(&frames, PLAIN), 0, "and by no other");

    // In the clear it is seen: so it would have been.
    let plane = |word: &str| {
        let spec = format!(
            "{{apiVersion: apply/v1, kind: Cluster, metadata: {{name: cluster}}, spec: {{dataPlane: {word}}}}}"
        );
        apply(first, "cluster", &spec);
        let encrypted = word == "encrypted";
        let is_so = |machine: &Machine| {
            let there = machine.on_network(|| std::fs::exists("/proc/thread-self/net/dev_snmp6/aplw0")).unwrap();
            there.is_ok_and(|there| there == encrypted)
        };
        wait_until("the machines to follow", PATIENCE, || lab.machines().iter().all(is_so)).unwrap();
    };
    plane("plain");
    let frames = captured(&lab, || say("said-aloud"));
    assert!(frames.iter().any(|frame| has(frame, "said-aloud")) && to_port(&frames, PLAIN) > 0);
    plane("encrypted");
    say("anything");
    let frames = captured(&lab, || say("whispered-again"));
    assert!(frames.iter().all(|frame| !has(frame, "whispered-again")) && to_port(&frames, ENCRYPTED) > 0);
}

/// Two tasks on each machine, behind one port.
fn web(lab: &Lab) {
    let first = lab.machine(1).unwrap();
    serve(first, &["--name", "web", "--replicas", "6", "-p", "8080:80", "test/box:1", "serve", "80"]);
    for machine in 1..=3 {
        let url = format!("http://{}/", address(machine, 8080));
        let all_answer = || (0..6).all(|_| lab.fetch(&["-m", "2", &url]).is_ok());
        wait_until("the port of the machine to open", PATIENCE, all_answer).unwrap();
    }
}

/// What the companion process of a machine says that it does.
pub(crate) fn status(machine: &Machine) -> serde_json::Value {
    let file = machine.seen(&machine.installation().paths().keep()).join("status.json");
    std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn logs(lab: &Lab) -> String {
    lab.machines().iter().map(|machine| machine.log_end("applyd")).collect()
}

pub(crate) fn speaks_with(machine: &Machine) -> usize {
    status(machine)["sessions"]["with"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_companion_that_is_killed_is_missed_for_a_moment_and_one_that_is_replaced_is_not() {
    let lab = lab("kept");
    web(&lab);
    let mut killed = Vec::new();
    let asked = under_load(&lab, |load| {
        for machine in lab.machines() {
            let before = status(machine)["pid"].clone();
            killed.push(Instant::now());
            assert!(machine.kill(Part::Keep).unwrap());
            let back = || status(machine)["pid"] != before && speaks_with(machine) == 2;
            wait_until("another to speak with both others", PATIENCE, back).unwrap();
            // What was promised from then on is put to the proof before the next one goes.
            let moment = *killed.last().unwrap() + PROMISED;
            wait_until("requests of later to be answered", PATIENCE, || load.has_answered_after(moment)).unwrap();
        }
    });
    let total: usize = asked.iter().map(|asked| asked.answers.len()).sum();
    let failed: Vec<&(Instant, String)> = asked.iter().flat_map(|asked| &asked.failed).collect();
    println!("companions killed: of {total} requests {} failed", failed.len());
    // Since the last companion that was killed before it was done with; one that was under way by then is excused too.
    let since = |begun: Instant| {
        killed.iter().rfind(|kill| begun + SILENCE > **kill).map(|kill| begun.saturating_duration_since(*kill))
    };
    let late: Vec<String> = failed
        .iter()
        .filter(|(begun, _)| since(*begun).is_none_or(|since| since >= PROMISED))
        .map(|(begun, why)| format!("{:?} after: {why}", since(*begun)))
        .collect();
    assert!(
        late.is_empty(),
        "{} failed too late, such as {:?}\n{}",
        late.len(),
        &late[..late.len().min(5)],
        logs(&lab)
    );

    let asked = under_load(&lab, |_| {
        for machine in lab.machines() {
            let installation = machine.installation();
            let before = status(machine)["pid"].clone();
            // Of another build, which applyd at once replaces by its own again.
            let mut other = machine.inside(&installation.applyd().unwrap()[0]);
            other.args(["keep", "--dir"]).arg(installation.paths().keep()).args(["--build", "another", "--replace"]);
            let mut other = other.spawn().unwrap();
            let back = || {
                let now = status(machine);
                now["pid"] != before && now["build"] != "another" && speaks_with(machine) == 2
            };
            wait_until("two to have taken over, one after the other", PATIENCE, back).unwrap();
            // It goes when nobody sends to its sessions any more.
            wait_until("the one in between to end", PATIENCE, || matches!(other.try_wait(), Ok(Some(_)))).unwrap();
        }
    });
    let total: usize = asked.iter().map(|asked| asked.answers.len()).sum();
    let failed: Vec<&(Instant, String)> = asked.iter().flat_map(|asked| &asked.failed).collect();
    assert!(failed.is_empty() && total > 100, "of {total}: {failed:?}");
}

#[test]
fn keys_change_under_load_and_no_request_is_lost() {
    let lab = lab("keys");
    web(&lab);
    let keys_of = |node: &str| {
        // The manager is not there for a moment when it is its turn.
        let node = lab.machine(1).unwrap().json(&["get", "node", node]).unwrap_or_default();
        let node = node["items"].get(0).cloned().unwrap_or(node);
        node["status"]["tunnel"]["keys"].as_array().cloned().unwrap_or_default()
    };
    let asked = under_load(&lab, |_| {
        for machine in lab.machines() {
            let node = machine.installation().node.clone();
            let before = keys_of(&node);
            assert_eq!(before.len(), 1);
            let ring = machine.seen(&machine.installation().paths().tunnel_keys());
            let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&ring).unwrap()).unwrap();
            kept[0]["since"] = "2020-01-01T00:00:00Z".into();
            std::fs::write(&ring, kept.to_string()).unwrap();
            // It looks at the clock when it begins.
            machine.kill(Part::Applyd).unwrap();
            machine.begin_applyd().unwrap();
            let told = || {
                let now = keys_of(&node);
                now.len() == 2 && now[1] == before[0]
            };
            wait_until("a new key to be told beside the old one", PATIENCE, told).unwrap();
            let newest = || status(machine)["sessions"]["by"] == serde_json::json!([keys_of(&node)[0]]);
            wait_until("the others to speak by the new one", PATIENCE, newest).unwrap();
        }
    });
    let total: usize = asked.iter().map(|asked| asked.answers.len()).sum();
    let failed: Vec<&(Instant, String)> = asked.iter().flat_map(|asked| &asked.failed).collect();
    assert!(failed.is_empty() && total > 100, "of {total}: {failed:?}");
}
