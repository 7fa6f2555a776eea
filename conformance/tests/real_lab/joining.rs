use conformance::lab::Lab;
use conformance::parts::installation::Person;
use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;

use crate::{audited, state_of};

/// How applyctl ended, and what it said.
pub(crate) fn typed(person: &Person, words: &[&str]) -> (i32, String) {
    let output = person.applyctl(words).unwrap().output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn token(manager: &Machine, more: &[&str]) -> String {
    let words = [&["token", "create"], more].concat();
    manager.json(&words).unwrap()["token"].as_str().unwrap().to_owned()
}

#[test]
fn a_machine_joins_with_a_token_and_every_wrong_one_is_told_what_is_wrong_with_it() {
    let mut lab = Lab::start("join", 3).unwrap();
    let (first, second) = (lab.machine(1).unwrap(), lab.machine(2).unwrap());
    first.ctl(&["init"]).unwrap();
    lab.machine(3).unwrap().ctl(&["init"]).unwrap();
    let good = token(first, &[]);
    let refuses = |words: &[&str], code: i32, told: &str| {
        let (ended, said) = typed(&second.person(), &[&["join"], words].concat());
        assert_eq!(ended, code, "{words:?}: {said}");
        assert!(said.contains(told), "{words:?}: {said}");
    };
    let mut mistyped = good.clone();
    let last = mistyped.pop().unwrap();
    mistyped.push(if last == '0' { '1' } else { '0' });
    refuses(&["10.99.0.1", &good[..40]], 2, "cut short: 40 of 92 characters");
    refuses(&["10.99.0.1", &mistyped], 2, "has a letter wrong");
    refuses(&["10.99.0.1", "SWMTKN-1-abc"], 2, "Docker Swarm");
    refuses(&["10.99.0.3", &good], 8, "of another cluster");
    refuses(&["10.99.0.77", &good], 1, "no manager answers at 10.99.0.77:7677");
    let revoked = token(first, &[]);
    let names = first.ctl(&["get", "jointokens", "-o", "name"]).unwrap();
    let of_revoked = names.lines().find(|name| {
        let name = name.rsplit('/').next().unwrap_or_default();
        first.json(&["get", "jointoken", name]).is_ok_and(|found| {
            let found = found["items"].get(0).cloned().unwrap_or(found);
            let secret: controllers::identity::Token = revoked.parse().unwrap();
            found["spec"]["digest"] == secret.secret.digest()
        })
    });
    first.ctl(&["token", "revoke", of_revoked.unwrap().rsplit('/').next().unwrap()]).unwrap();
    refuses(&["10.99.0.1", &revoked], 8, "was revoked");
    let short = token(first, &["--ttl", "1s"]);
    wait_until("the token to expire", PATIENCE, || {
        typed(&second.person(), &["join", "10.99.0.1", &short, "--node", "n1"]).1.contains("has expired")
    })
    .unwrap();
    refuses(&["10.99.0.1", &good, "--node", "n1"], 8, "there is a machine n1 in the cluster already");
    refuses(&["10.99.0.1", &good, "--node", "No Name"], 5, "is no name for a machine");
    let unknown = controllers::identity::Token {
        secret: controllers::identity::Secret::new([7; 16]),
        ..good.parse::<controllers::identity::Token>().unwrap()
    };
    refuses(&["10.99.0.1", &unknown.to_string()], 8, "not known to this cluster");

    // Who has not joined learns that somebody is there, and no more.
    let stranger = |path: &str| lab.fetch(&["-k", &format!("https://10.99.0.1:7677{path}")]);
    assert_eq!(stranger("/healthz").unwrap(), "ok");
    for path in ["/metrics", "/version", "/openapi/v3", "/apis/apply/v1/nodes", "/apis/apply/v1/system/reset"] {
        let refused = format!("{:#}", stranger(path).unwrap_err());
        assert!(refused.contains("403"), "{path}: {refused}");
    }

    // All of them are remembered, with where they came from.
    let refused_for = |reason: &str| {
        let of = |line: &serde_json::Value| {
            let from = line["address"].as_str().unwrap_or_default();
            from.starts_with("10.99.0.2:") && line["reason"].as_str().unwrap_or_default().contains(reason)
        };
        audited(first, "refusals").iter().any(of)
    };
    for reason in ["was revoked", "has expired", "machine n1 in the cluster already", "not known to this cluster"] {
        wait_until(reason, PATIENCE, || refused_for(reason)).unwrap();
    }
    let text = std::fs::read_to_string(first.folder().join("apply/audit/refusals.jsonl")).unwrap();
    assert!(text.contains("/apis/apply/v1/system/reset") && !text.contains(&revoked[60..]), "{text}");

    second.ctl(&["join", "10.99.0.1", &good]).unwrap();
    wait_until("n2 to be ready", PATIENCE, || state_of(first, "n2") == "Ready").unwrap();
    let (code, said) = typed(&second.person(), &["join", "10.99.0.1", &good]);
    assert!(code == 6 && said.contains("in a cluster already"), "{code} {said}");
    let (code, said) = typed(&second.person(), &["get", "nodes"]);
    assert!(code == 8 && said.contains("n2 is a worker") && said.contains("10.99.0.1"), "{code} {said}");

    let (code, said) = typed(&second.person(), &["token", "create"]);
    assert!(code == 8 && said.contains("n2 is a worker"), "{code} {said}");
    let (code, said) = typed(&first.person(), &["delete", "node", "n1", "--yes"]);
    assert!(code == 8 && said.contains("it is a manager"), "{code} {said}");

    // A member is one after it was off, without a command.
    lab.power_off(2).unwrap();
    let first = lab.machine(1).unwrap();
    wait_until("n2 to be lost", PATIENCE, || state_of(first, "n2") == "Lost").unwrap();
    lab.power_on(2).unwrap();
    let first = lab.machine(1).unwrap();
    wait_until("n2 to be ready again", PATIENCE, || state_of(first, "n2") == "Ready").unwrap();
}

#[test]
fn a_clock_that_is_hours_off_is_told_so_and_joins_nothing() {
    let mut lab = Lab::start("clock", 2).unwrap();
    lab.machine(1).unwrap().ctl(&["init"]).unwrap();
    let good = token(lab.machine(1).unwrap(), &[]);
    for (offset, word) in [("172800", "expired"), ("-172800", "not valid yet")] {
        let second = lab.machine_mut(2).unwrap();
        second.power_cut().unwrap();
        second.tell_applyd(&["--clock-offset", offset]);
        lab.power_on(2).unwrap();
        let second = lab.machine(2).unwrap();
        wait_until("applyd to answer", PATIENCE, || second.person().json(&["version"]).is_ok()).unwrap();
        let (code, said) = typed(&second.person(), &["join", "10.99.0.1", &good]);
        assert!(code == 8 && said.contains(word) && said.contains("Set the clock right"), "{code} {said}");
    }
}
