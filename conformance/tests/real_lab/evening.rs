//! Who serves goes only once the next one serves; tasks are spread evenly when that is asked for; a machine that is away for
//! a while is waited for where the service says so.

use std::collections::BTreeSet;

use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;

use crate::load::{Asked, under_load};
use crate::reaching::{lab, serve, serve_checked};
use crate::{running, state_of};

/// A service of one task, updated and moved from machine to machine: no moment without it.
#[test]
fn a_single_task_is_updated_and_moved_and_no_request_is_lost() {
    let lab = lab("even");
    let first = lab.machine(1).unwrap();
    serve_checked(&lab, 1, "start-first");
    let asked = under_load(&lab, |_| {
        first.ctl(&["service", "update", "web", "--image", "test/box:2"]).unwrap();
        let [at] = &running(first, "web")[..] else { panic!("one task runs") };
        first.ctl(&["node", "drain", at]).unwrap();
        wait_until("it to be elsewhere", PATIENCE, || running(first, "web").iter().all(|node| node != at)).unwrap();
        first.ctl(&["node", "activate", at]).unwrap();
        first.ctl(&["service", "scale", "web=6"]).unwrap();
        first.ctl(&["node", "drain", "n3"]).unwrap();
        wait_until("n3 to be empty", PATIENCE, || running(first, "web").iter().all(|node| node != "n3")).unwrap();
        first.ctl(&["node", "activate", "n3"]).unwrap();
        let said = first.ctl(&["service", "rebalance", "web"]).unwrap();
        assert_eq!(running(first, "web"), ["n1", "n1", "n2", "n2", "n3", "n3"], "{said}");
        let again = first.person().applyctl(&["service", "rebalance", "web"]).unwrap().output().unwrap();
        let again = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(again.contains("n1 2, n2 2, n3 2; nothing had to move"), "{again}");
    });
    for (machine, Asked { answers, failed }) in (1..).zip(asked) {
        assert_eq!(failed, [], "n{machine}: of {} requests", answers.len());
        let releases: BTreeSet<&str> = answers.iter().filter_map(|answer| answer.split(' ').nth(1)).collect();
        assert_eq!(releases, BTreeSet::from(["1", "2"]), "n{machine}");
    }
}

/// Uid and node of each task of a service that is meant to run.
pub(crate) fn tasks(manager: &Machine, service: &str) -> BTreeSet<(String, String)> {
    let tasks = manager.person().list("task").unwrap();
    let of = tasks.iter().filter(|task| task["spec"]["service"] == service && task["spec"]["desired"] == "Running");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    of.map(|task| (text(&task["metadata"]["uid"]), text(&task["spec"]["nodeName"]))).collect()
}

#[test]
fn a_machine_that_is_away_is_waited_for_where_the_service_says_so() {
    let lab = lab("away");
    let first = lab.machine(1).unwrap();
    let three = ["--replicas", "3", "test/box:1", "sleep"];
    serve(first, &[&["--name", "web"], &three[..]].concat());
    serve(first, &[&["--name", "stays", "--on-disconnect", "1h"], &three[..]].concat());
    serve(first, &[&["--name", "soon", "--on-disconnect", "2s"], &three[..]].concat());
    let before = tasks(first, "stays");
    assert_eq!(before.iter().map(|(_, node)| node.as_str()).collect::<BTreeSet<_>>().len(), 3, "{before:?}");
    lab.connect(3, false).unwrap();
    for service in ["web", "soon"] {
        wait_until("three to run on two machines", PATIENCE, || {
            let running = running(first, service);
            running.len() == 3 && !running.contains(&"n3".to_owned())
        })
        .unwrap();
    }
    assert_eq!(tasks(first, "stays"), before);
    let said = first.ctl(&["describe", "service", "stays"]).unwrap();
    assert!(said.contains("is on n3, which is lost, and waits for it to be back"), "{said}");
    lab.connect(3, true).unwrap();
    wait_until("n3 to be ready again", PATIENCE, || state_of(first, "n3") == "Ready").unwrap();
    wait_until("stays to run", PATIENCE, || running(first, "stays") == ["n1", "n2", "n3"]).unwrap();
    assert_eq!(tasks(first, "stays"), before, "the same tasks");
    for service in ["web", "soon"] {
        assert!(!running(first, service).contains(&"n3".to_owned()), "nothing moves back by itself");
    }
}
