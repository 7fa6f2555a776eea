//! Certificates that are not what they say, or not any more; and tokens that are shown again.

use std::io::Write;

use conformance::parts::machine::{Machine, Options, PATIENCE, Part};
use conformance::parts::process::wait_until;
use controllers::identity::{Authority, MANAGER_NAME, Request, Subject, Who};
use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use reconciler::api::{Timestamp, Uid};
use reconciler::seams::Seams;
use schemas::kinds::node::Role;
use schemas::level::VERSION;
use serde_json::{Value, json};

use crate::peer::{self, PORT, Shown, answer, ask, get, is_closed, post, tls};
use crate::{HONEST, HOSTILE, counted, refused, remembered, token, worker};

const NODES: &str = "/apis/apply/v1/nodes";
const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

/// The code of an answer; none to who is turned away before.
fn code(shown: Option<&Shown>, request: &[u8]) -> Option<u16> {
    let mut peer = tls(HOSTILE, PORT, shown, "http/1.1").ok()?;
    ask(&mut peer, request).ok().map(|answer| answer.code)
}

fn subject(cluster: &str, role: Role) -> Subject {
    Subject { cluster: cluster.into(), who: Who::Node { name: "n1".into(), uid: Uid::new("u"), role } }
}

fn issued(by: &Authority, whom: &Subject, now: Timestamp) -> Shown {
    let request = Request::make().unwrap();
    let issued = by.issue(whom, &request.request, now, DAY).unwrap();
    Shown { chain: issued.pem + by.certificate(), key: request.key }
}

/// A leaf that another leaf has signed, and that one after it.
fn signed_by_a_leaf(leaf: &Shown, whom: &str) -> Shown {
    let signer = Issuer::from_ca_cert_pem(&leaf.chain, KeyPair::from_pem(&leaf.key).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![MANAGER_NAME.to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI(whom.try_into().unwrap()));
    let pem = params.signed_by(&key, &signer).unwrap().pem();
    Shown { chain: pem + &leaf.chain, key: key.serialize_pem() }
}

/// One that has signed itself and says that it is an authority, under the name of the cluster's.
fn signed_by_itself(cluster: &str, whom: &str) -> Shown {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![MANAGER_NAME.to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI(whom.try_into().unwrap()));
    params.distinguished_name.push(DnType::CommonName, "apply authority");
    params.distinguished_name.push(DnType::OrganizationName, cluster);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Shown { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn cluster_of(manager: &Machine) -> String {
    manager.json(&["version"]).unwrap()["applyd"]["cluster"].as_str().unwrap().to_owned()
}

#[test]
fn certificates_that_are_not_what_they_say_open_nothing() {
    let mut machine = Machine::start("forged").unwrap();
    let member = machine.on_network(|| forged(&machine)).unwrap();
    machine.on_network(|| replayed(&machine)).unwrap();
    // Its time is over, but not for long.
    with_clock(&mut machine, 3);
    machine.on_network(|| expired(&machine, &member, Some(200))).unwrap();
    with_clock(&mut machine, 40);
    machine.on_network(|| expired(&machine, &member, None)).unwrap();
}

fn with_clock(machine: &mut Machine, days: u64) {
    machine.kill(Part::Applyd).unwrap();
    machine.tell_applyd(&["--clock-offset", &(days * 86_400).to_string()]);
    machine.start_applyd().unwrap();
}

fn forged(manager: &Machine) -> Shown {
    let member = worker(manager, "n2");
    assert_eq!(code(Some(&member), &get(NODES)), Some(200), "who is a member is let in");
    let (cluster, now) = (cluster_of(manager), Seams::real().now());
    let manages = subject(&cluster, Role::Manager).to_string();
    let (twin, other) = (Authority::make(&cluster, now).unwrap(), Authority::make("other", now).unwrap());
    let store = Authority::make_for_store(&cluster, now).unwrap();
    let before = refused(manager, "certificate");
    let forgeries = [
        ("by an authority of the same name", issued(&twin, &subject(&cluster, Role::Manager), now)),
        ("of another cluster", issued(&other, &subject("other", Role::Manager), now)),
        ("of a store", issued(&store, &subject(&cluster, Role::Manager), now)),
        ("signed by a worker", signed_by_a_leaf(&member, &manages)),
        ("signed by itself", signed_by_itself(&cluster, &manages)),
        ("a member's, with another key", Shown { key: KeyPair::generate().unwrap().serialize_pem(), ..member.clone() }),
    ];
    for (what, forgery) in &forgeries {
        for request in [get(NODES), post("/apis/apply/v1/certificate", "{\"request\": \"\"}")] {
            assert_eq!(code(Some(forgery), &request), None, "{what}");
        }
    }
    counted(manager, "certificate", before, 2 * forgeries.len() as u64);
    remembered(manager, HOSTILE, "invalid peer certificate");
    member
}

/// A member whose certificate has ended may ask for the next one while it may, and for nothing else.
fn expired(manager: &Machine, member: &Shown, renewal: Option<u16>) {
    let [forbidden, certificates] = ["forbidden", "certificate"].map(|reason| refused(manager, reason));
    let request = json!({"request": Request::make().unwrap().request}).to_string();
    assert_eq!(code(Some(member), &post("/apis/apply/v1/certificate", &request)), renewal);
    let others = [
        get(NODES),
        get("/metrics"),
        get("/apis/apply/v1/namespaces/default/secrets/key/data"),
        post("/apis/apply/v1/join", &json!({"secret": "", "node": "n9", "request": ""}).to_string()),
        post("/apis/apply/v1/leave", "{\"force\": true}"),
        b"POST /apis/apply/v1/agent HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: apply-agent/1\r\n\r\n"
            .to_vec(),
    ];
    for request in &others {
        let told = code(Some(member), request);
        assert_eq!(told, renewal.map(|_| 403), "{}", String::from_utf8_lossy(request));
    }
    match renewal {
        Some(_) => counted(manager, "forbidden", forbidden, others.len() as u64),
        None => {
            counted(manager, "certificate", certificates, others.len() as u64 + 1);
            remembered(manager, HOSTILE, "expired");
        }
    }
}

/// Tokens that were revoked, have expired, or are shown again by somebody else.
fn replayed(manager: &Machine) {
    let before = refused(manager, "token");
    let join = |token: &controllers::identity::Token, node: &str, request: &Request| {
        peer::join(HOSTILE, token, node, request).unwrap()
    };
    let [first, second] = [(), ()].map(|()| Request::make().unwrap());
    let good = token(manager, &[]);
    assert_eq!(join(&good, "n3", &first).code, 200);
    // The same machine, whose answer was lost, is told again; whoever heard it ask gets a certificate for a key it has not.
    let again = peer::shown(&join(&good, "n3", &first), &second);
    assert_eq!(code(Some(&again), &get(NODES)), None, "the key is another");
    let told = join(&good, "n3", &second);
    assert!(told.code == 403 && told.body.contains("there is a machine n3 in the cluster already"), "{told:?}");

    let short = token(manager, &["--ttl", "1s"]);
    let mut told = join(&short, "n3", &second);
    wait_until("the token to expire", PATIENCE, || {
        told = join(&short, "n3", &second);
        told.body.contains("has expired")
    })
    .unwrap();
    assert_eq!(told.code, 403);
    let revoked = token(manager, &[]);
    let tokens = manager.json(&["get", "jointokens"]).unwrap();
    let of_it = |token: &&Value| token["spec"]["digest"] == revoked.secret.digest();
    let name = tokens["items"].as_array().unwrap().iter().find(of_it).unwrap()["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    manager.ctl(&["token", "revoke", &name]).unwrap();
    let made_up =
        controllers::identity::Token { secret: controllers::identity::Secret::new([7; 16]), ..token(manager, &[]) };
    for (token, why) in [(&revoked, "was revoked"), (&made_up, "not known to this cluster"), (&short, "has expired")] {
        let told = join(token, "n4", &second);
        assert!(told.code == 403 && told.body.contains(why), "{told:?}");
        remembered(manager, HOSTILE, why);
    }
    counted(manager, "token", before, 4);
    // A member joins no second time.
    let member = worker(manager, "n5");
    let body = json!({"secret": good.secret.reveal(), "node": "n6", "request": second.request, "version": VERSION})
        .to_string();
    assert_eq!(code(Some(&member), &post("/apis/apply/v1/join", &body)), Some(403));
    let nodes = manager.json(&["get", "nodes"]).unwrap();
    let names: Vec<&str> =
        nodes["items"].as_array().unwrap().iter().filter_map(|node| node["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3", "n5"]);
}

/// Each authority opens one door.
#[test]
fn the_stores_certificates_open_the_store_alone_and_nobody_elses_do() {
    let mut machine = Machine::new("twodoors", &Options::default()).unwrap();
    machine.tell_applyd(&["--store", "etcd", "--advertise", "127.0.0.1"]);
    machine.boot().unwrap();
    machine.start_containerd().unwrap();
    machine.start_applyd().unwrap();
    machine.on_network(|| doors(&machine)).unwrap();
}

fn doors(manager: &Machine) {
    const STORE: u16 = PORT + 2;
    let disk = manager.folder().join("apply");
    let read = |path: &str| std::fs::read_to_string(disk.join(path)).unwrap();
    let identity = read("identity/node.pem");
    let own = Shown { chain: identity.clone(), key: identity };
    let store = Shown { chain: read("etcd-member/node.pem"), key: read("etcd-member/node.key") };
    let member = worker(manager, "n2");
    let before = refused(manager, "certificate");
    assert_eq!(code(Some(&store), &get(NODES)), None);
    counted(manager, "certificate", before, 1);
    assert_eq!(code(Some(&own), &get(NODES)), Some(200));
    // As etcd's gateway has it; what matters is whether anything is answered.
    let status = post("/v3/maintenance/status", "{}");
    let answers = |shown: Option<&Shown>, port: u16| {
        let Ok(mut peer) = tls(HONEST, port, shown, "http/1.1") else { return false };
        let sent = peer.write_all(&status).and_then(|()| peer.flush());
        sent.is_ok() && answer(&mut peer).is_ok()
    };
    assert!(answers(Some(&store), STORE), "a member of the store is let in");
    for port in [STORE, PORT + 1] {
        for (what, shown) in [("nobody", None), ("a worker", Some(&member)), ("a manager", Some(&own))] {
            assert!(!answers(shown, port), "{what} at {port}");
        }
    }
    let mut plain = peer::tcp(HONEST, STORE).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(is_closed(&mut plain));
}
