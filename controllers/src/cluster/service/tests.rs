//! Scenes. Left of the first `|`: replicas (`x3`, `x3 start-first`) or `global n1,n2`. Then one task each: `SLOT STATE [old]
//! [leaving | stopped] [in mesh] [lost | away | drained] [for tN]`, oldest first; they are called t0, t1, ….

use std::sync::Arc;
use std::time::Duration;

use reconciler::{Resource, Timestamp, Uid};
use schemas::kinds::endpoints::TaskAddress;
use schemas::kinds::node::{Availability, Node, NodeSpec};
use schemas::kinds::revision::{Revision, RevisionContent, RevisionSpec, RevisionStatus, RevisionUse};
use schemas::kinds::service::{ContainerSpec, Mode, OnDisconnect, Service, ServiceSpec, TaskTemplate, UpdateOrder};
use schemas::kinds::task::{DesiredState, Slot, Task, TaskSpec, TaskState, TaskStatus};

use super::changes::Change;
use super::observe::Seen;
use super::plan::plan;

const NOW: Timestamp = Timestamp::from_seconds(10_000);

fn check(scene: &str, expected: &str) {
    let seen = read(scene);
    let told = tell(&seen);
    assert_eq!(told, expected, "{scene}");
    let mut turned = seen.clone();
    turned.tasks.reverse();
    turned.nodes.reverse();
    assert_eq!(tell(&turned), expected, "the order of the input does not matter: {scene}");
}

fn tell(seen: &Seen) -> String {
    let plan = plan(seen, NOW);
    plan.changes.iter().map(Change::to_string).collect::<Vec<_>>().join("; ")
}

fn read(scene: &str) -> Seen {
    let mut parts = scene.split('|').map(str::trim);
    let head = parts.next().unwrap();
    let container = ContainerSpec { image: "example/web:1".into(), ..ContainerSpec::default() };
    let mut spec =
        ServiceSpec { template: TaskTemplate { container, ..TaskTemplate::default() }, ..ServiceSpec::default() };
    let mut nodes = Vec::new();
    match head.strip_prefix('x') {
        Some(replicas) => {
            let first = replicas.strip_suffix(" start-first");
            spec.update.order = first.map_or(UpdateOrder::StopFirst, |_| UpdateOrder::StartFirst);
            spec.replicas = Some(first.unwrap_or(replicas).parse().unwrap());
        }
        None => {
            spec.mode = Mode::Global;
            for name in head.trim_start_matches("global").trim().split(',') {
                let (name, paused) = name.trim().strip_suffix(" paused").map_or((name.trim(), false), |it| (it, true));
                let availability = if paused { Availability::Pause } else { Availability::Active };
                nodes.push(Arc::new(Node::new(name, NodeSpec { availability, ..NodeSpec::default() })));
            }
        }
    }
    let content = RevisionContent::Template(Box::new(spec.template.clone()));
    let wanted = RevisionSpec::new("web", content.clone()).name();
    let mut service = Service::new("web", spec);
    service.metadata.uid = Uid::new("u-web");
    service.metadata.generation = 1;
    let mut revision = Revision::new(wanted.clone(), RevisionSpec::new("web", content));
    revision.status = Some(RevisionStatus { uses: vec![RevisionUse { number: 2, ..RevisionUse::default() }] });
    let mut seen = Seen {
        service: Arc::new(service),
        revisions: vec![Arc::new(revision)],
        files: Some(vec![]),
        missing: vec![],
        tasks: vec![],
        nodes,
        lost: ["n9".to_owned()].into(),
        away: ["n7".to_owned()].into(),
        evening: None,
        drained: ["n8".to_owned()].into(),
        backends: Default::default(),
        lagging: vec![],
        waited: Default::default(),
        ports: vec![],
        rivals: Default::default(),
        obstacles: vec![],
        history: Default::default(),
        wants_default_network: false,
    };
    for (age, part) in parts.enumerate() {
        let words: Vec<&str> = part.split_whitespace().collect();
        let slot = words[0].parse().map(Slot::Number).unwrap_or_else(|_| Slot::Node(words[0].into()));
        let old = words.contains(&"old");
        let spec = TaskSpec {
            service: "web".into(),
            revision: if old { "web-old".into() } else { wanted.clone() },
            slot,
            node_name: (words[1] != "new").then(|| match () {
                () if words.contains(&"lost") => "n9".into(),
                () if words.contains(&"away") => "n7".into(),
                () if words.contains(&"drained") => "n8".into(),
                () => "n1".into(),
            }),
            desired: match () {
                () if words.contains(&"leaving") => DesiredState::Leaving,
                () if words.contains(&"stopped") => DesiredState::Stopped,
                () => DesiredState::Running,
            },
            networks: vec![],
            in_place_of: words.iter().position(|word| *word == "for").map(|at| words[at + 1].to_owned()),
        };
        let mut task = Task::new(format!("t{age}"), spec);
        task.metadata.creation_timestamp = Some(Timestamp::from_seconds(age as i64));
        // Whatever clock the node has.
        let since = Some(Timestamp::from_seconds(1));
        task.status = Some(TaskStatus { state: parse_state(words[1]), since, ..TaskStatus::default() });
        if words.contains(&"long-ago") {
            seen.waited.rejected.insert(task.metadata.name.clone(), Duration::from_secs(3600));
        }
        if part.contains("in mesh") {
            seen.backends.insert(task.metadata.name.clone());
        }
        seen.tasks.push(Arc::new(task));
    }
    seen
}

fn parse_state(word: &str) -> TaskState {
    match word {
        "new" => TaskState::New,
        "preparing" => TaskState::Preparing,
        "running" => TaskState::Running,
        "stopping" => TaskState::Stopping,
        "complete" => TaskState::Complete,
        "failed" => TaskState::Failed,
        "rejected" => TaskState::Rejected,
        "orphaned" => TaskState::Orphaned,
        other => panic!("{other}"),
    }
}

#[test]
fn a_new_service_gets_its_revision_and_a_task_in_every_slot() {
    let mut seen = read("x2");
    seen.revisions.clear();
    assert_eq!(tell(&seen), "create revision; use revision as 1; create 1 (EmptySlot); create 2 (EmptySlot)");
}

#[test]
fn what_was_on_a_lost_node_is_made_anew_and_told_nothing() {
    check("x2 | 1 running lost | 2 running", "create 1 (NodeLost)");
    // Its replacement is on the way, or up.
    check("x1 | 1 running lost | 1 new", "");
    check("x1 | 1 running lost stopped | 1 running", "");
    check("x1 | 1 running lost stopped | 1 rejected stopped long-ago", "create 1 (NodeLost)");
    // Nobody waits for what it was told before.
    check("x1 | 1 stopping lost stopped", "create 1 (NodeLost)");
    check("x1 | 1 running lost leaving", "create 1 (NodeLost)");
    // What is no longer wanted at all is told so, for when it hears again.
    check("x0 | 1 running lost", "stop 1 (ScaledDown)");
    check("x0 | 1 running lost stopped", "");
    // It is back before its replacement had a node: the older one stays.
    check("x1 | 1 running | 1 new", "stop 1 (Duplicate)");
    // A global service's task stays with its node.
    check("global n1 | n1 running | n9 running lost", "");
}

#[test]
fn who_is_waited_for_is_not_replaced_but_by_what_is_wanted_instead() {
    check("x2 | 1 running away | 2 running", "");
    let status = plan(&read("x2 | 1 running away | 2 running"), NOW).status;
    assert_eq!((status.running, status.desired), (1, 2), "nobody is helped by it meanwhile");
    let ready = status.conditions.get("Ready").unwrap();
    assert!(ready.message.contains("slot 1 is on n7, which is lost, and waits for it to be back"), "{}", ready.message);
    check("x2 | 1 running old away | 2 running", "create 1 (NodeLost)");
    check("x1 | 1 running away | 2 running away", "stop 2 (ScaledDown)");
    // An update goes on with the others.
    check("x3 | 1 running away | 2 running old | 3 running old", "leave 2 (NewRevision)");
    let with = |scene: &str, on_disconnect: OnDisconnect| {
        let mut seen = read(scene);
        let mut service = (*seen.service).clone();
        service.spec.on_disconnect = on_disconnect;
        seen.service = Arc::new(service);
        seen
    };
    // What must not run twice does not, whatever is wanted of it.
    for scene in ["x1 | 1 running old away", "x1 | 1 running away leaving", "x1 | 1 running away stopped"] {
        assert_eq!(tell(&with(scene, OnDisconnect::Keep)), "", "{scene}");
    }
    let mut seen = with("x1 | 1 running away", OnDisconnect::After(schemas::Period::from_secs(60)));
    seen.waited.lost.insert("n7".into(), Duration::from_secs(45));
    assert_eq!(plan(&seen, NOW).look_again, Some(NOW + Duration::from_secs(15)));
}

#[test]
fn start_first_has_the_next_one_serve_before_the_one_before_goes() {
    check("x2 start-first | 1 running old | 2 running old", "create 1 (StartFirst)");
    check("x2 start-first | 1 running old | 1 preparing for t0 | 2 running old", "");
    check("x2 start-first | 1 running old | 1 running for t0 in mesh | 2 running old", "leave 1 (NewRevision)");
    check("x2 start-first | 1 running old leaving in mesh | 1 running for t0 in mesh | 2 running old", "");
    check("x2 start-first | 1 running old leaving | 1 running for t0 in mesh | 2 running old", "stop 1 (OutOfMesh)");
    check(
        "x2 start-first | 1 complete old stopped | 1 running for t0 in mesh | 2 running old",
        "create 2 (StartFirst)",
    );
    // With an address and without being in the mesh, nobody is sent to it yet.
    let mut seen = read("x1 start-first | 1 running old | 1 running for t0");
    let mut new = (*seen.tasks[1]).clone();
    new.status.as_mut().unwrap().addresses =
        vec![TaskAddress { network: "n".into(), address: "10.0.0.1".parse().unwrap() }];
    seen.tasks[1] = Arc::new(new);
    assert_eq!(tell(&seen), "");
    seen.backends.insert("t1".into());
    assert_eq!(tell(&seen), "leave 1 (NewRevision)");
}

#[test]
fn what_does_not_come_up_beside_the_one_that_serves_leaves_it_alone() {
    check("x1 start-first | 1 running old | 1 rejected for t0", "stop 1 (Rejected)");
    check("x1 start-first | 1 running old | 1 rejected stopped for t0", "");
    check("x1 start-first | 1 running old | 1 rejected stopped for t0 long-ago", "create 1 (StartFirst)");
    check("x1 start-first | 1 running old | 1 failed for t0", "");
    // What it was for is no longer wanted, or it serves already and is.
    check("x1 start-first | 1 running old | 1 preparing old for t0", "stop 1 (NewRevision)");
    check("x1 start-first | 1 running old | 1 running old for t0 in mesh", "leave 1 (NewRevision)");
    // The older one is gone: the newer is the slot's.
    check("x1 start-first | 1 running old lost | 1 preparing for t0", "");
    check("x1 | 1 failed stopped old | 1 running for t0", "");
    // It fits nowhere, and somebody would rather have the older one go first.
    let nowhere = |order: &str| {
        let mut seen = read(&format!("x2{order} | 1 running old | 1 new for t0 | 2 running old"));
        let mut new = (*seen.tasks[1]).clone();
        new.status.as_mut().unwrap().reason = "NoNodeFits".into();
        seen.tasks[1] = Arc::new(new);
        tell(&seen)
    };
    assert_eq!(nowhere(" start-first"), "create 2 (StartFirst)", "others need not wait");
    assert_eq!(nowhere(""), "stop 1 (Duplicate); leave 2 (NewRevision)");
    // Beside one that is what is wanted, what has ended is of no use.
    check("x1 start-first | 1 running | 1 failed for t0", "stop 1 (Duplicate)");
    check("x1 start-first | 1 running | 1 rejected for t0", "stop 1 (Duplicate)");
    // Scaled down in the midst of it: both go.
    check("x0 start-first | 1 running old | 1 preparing for t0", "stop 1 (ScaledDown); leave 1 (ScaledDown)");
}

#[test]
fn a_drained_node_is_left_start_first_where_the_service_says_so() {
    check("x2 start-first | 1 running drained | 2 running drained", "create 1 (StartFirst)");
    check("x2 start-first | 1 running drained | 1 running for t0 in mesh | 2 running drained", "leave 1 (NodeDrained)");
    check("x2 start-first | 1 running drained | 1 preparing drained for t0 | 2 running", "stop 1 (NodeDrained)");
    let status = plan(&read("x1 start-first | 1 running drained | 1 running for t0"), NOW).status;
    assert_eq!((status.running, status.updated, status.desired), (1, 1, 1), "slots are counted");
}

#[test]
fn what_is_to_be_even_moves_one_by_one_and_says_when_it_is() {
    let evening = |scene: &str, next: Option<usize>| {
        let mut seen = read(scene);
        let next = next.map(|task| seen.tasks[task].clone());
        seen.evening = Some(super::observe::Evening { asked: "monday".into(), next });
        let plan = plan(&seen, NOW);
        (plan.changes.iter().map(Change::to_string).collect::<Vec<_>>().join("; "), plan.status.rebalanced)
    };
    assert_eq!(evening("x2 | 1 running | 2 running", Some(1)), ("create 2 (Moved)".into(), None));
    // Not while anything else is going on, nor the one that is moving already.
    assert_eq!(evening("x2 | 1 preparing | 2 running", Some(1)), (String::new(), None));
    assert_eq!(evening("x2 | 1 running | 2 running | 2 preparing for t1", Some(1)), (String::new(), None));
    assert_eq!(
        evening("x2 | 1 running | 2 running | 2 running for t1 in mesh", Some(1)),
        ("leave 2 (Moved)".into(), None)
    );
    assert_eq!(evening("x2 | 1 running | 2 running", None), (String::new(), Some("monday".into())));
    assert_eq!(evening("x2 | 1 running | 2 preparing", None), (String::new(), None));
    // One that did not come up elsewhere is not tried for ever.
    assert_eq!(
        evening("x2 | 1 running | 2 running | 2 failed stopped for t1", Some(1)),
        (String::new(), Some("monday".into()))
    );
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    check("x2 | 1 running | 2 running", "");
    check("x2 | 1 running | 2 preparing", "");
    check("x0", "");
}

#[test]
fn a_slot_with_a_task_that_still_stops_gets_no_other() {
    check("x1 | 1 running leaving in mesh", "");
    check("x1 | 1 running leaving", "stop 1 (OutOfMesh)");
    check("x1 | 1 stopping stopped", "");
    check("x1 | 1 complete stopped", "create 1 (Replaced)");
}

#[test]
fn a_task_that_leaves_stops_when_every_mesh_has_let_go_of_it_or_a_second_later() {
    let mut seen = read("x1 | 1 running leaving");
    seen.lagging = vec!["the mesh of n1".into()];
    let waiting = plan(&seen, NOW);
    assert_eq!(
        (waiting.changes.as_slice(), waiting.waiting[0].as_str()),
        (&[][..], "slot 1 is leaving the mesh of n1")
    );
    assert!(waiting.look_again.is_some());
    seen.waited.left.insert("t0".into(), Duration::from_secs(1));
    assert_eq!(tell(&seen), "stop 1 (MeshLags)");
    seen.lagging.clear();
    assert_eq!(tell(&seen), "stop 1 (OutOfMesh)");
}

#[test]
fn scaling_down_empties_the_highest_slots_and_forgets_them() {
    check("x1 | 1 running | 2 running | 3 preparing", "leave 2 (ScaledDown); stop 3 (ScaledDown)");
    check("x1 | 1 running | 2 complete stopped", "forget 2");
}

#[test]
fn a_new_revision_replaces_one_by_one() {
    check("x3 | 1 running old | 2 running old | 3 running old", "leave 1 (NewRevision)");
    check("x3 | 1 complete old stopped | 2 running old | 3 running old", "create 1 (Replaced)");
    check("x3 | 1 preparing | 2 running old | 3 running old", "");
    check("x3 | 1 running | 2 running old | 3 running old", "leave 2 (NewRevision)");
}

#[test]
fn a_node_that_is_drained_loses_its_tasks_one_by_one() {
    check("x3 | 1 running drained | 2 running drained | 3 running", "leave 1 (NodeDrained)");
    check("x3 | 1 preparing | 2 running drained | 3 running", "");
    check("x3 | 1 running | 2 running drained | 3 running", "leave 2 (NodeDrained)");
    check("x2 | 1 preparing drained | 2 running", "stop 1 (NodeDrained)");
    check("x1 | 1 running leaving drained", "stop 1 (OutOfMesh)");
    check("x1 | 1 complete stopped drained", "create 1 (Replaced)");
    // A global service has nothing to do there.
    check("global n1 | n1 running | n8 running drained", "leave n8 (ScaledDown)");
}

#[test]
fn a_global_service_keeps_what_is_on_a_paused_node_and_puts_nothing_new_there() {
    check("global n1, n2 paused | n1 running | n2 running", "");
    check("global n1, n2 paused | n1 running", "");
    check("global n1, n2 paused | n1 running old | n2 running old", "leave n1 (NewRevision)");
    check("global n1, n2 paused | n1 running | n2 running old", "");
}

#[test]
fn an_update_stops_where_the_new_revision_does_not_come_up() {
    check("x2 | 1 failed | 2 running old", "");
}

#[test]
fn what_does_not_serve_is_replaced_at_once() {
    check("x2 | 1 preparing old | 2 running old", "stop 1 (NewRevision)");
    check("x1 | 1 failed old", "stop 1 (NewRevision); create 1 (Replaced)");
}

#[test]
fn a_rejected_task_is_replaced_after_a_while_and_a_failed_one_stays() {
    check("x1 | 1 rejected", "stop 1 (Rejected)");
    check("x1 | 1 rejected stopped", "");
    check("x1 | 1 rejected stopped long-ago", "create 1 (RetryAfterRejection)");
    check("x1 | 1 failed", "");
    check("x1 | 1 orphaned", "stop 1 (NodeRemoved); create 1 (Replaced)");
}

#[test]
fn a_global_service_has_one_task_on_every_node() {
    check("global n1,n2 | n1 running", "create n2 (EmptySlot)");
    check("global n1 | n1 running | n2 running", "leave n2 (ScaledDown)");
}

#[test]
fn two_live_tasks_of_a_slot_become_one() {
    check("x1 | 1 running | 1 running", "stop 1 (Duplicate)");
}

#[test]
fn history_is_short() {
    let many = (0..9).map(|_| " | 1 complete stopped").collect::<String>();
    let plan = plan(&read(&format!("x1 | 1 running{many}")), NOW);
    let forgotten = plan.changes.iter().filter(|change| matches!(change, Change::Forget { .. })).count();
    assert_eq!(forgotten, 5, "the live task and four others are kept");
}

#[test]
fn how_far_it_is_may_be_said_later_and_whether_it_is_ready_at_once() {
    let status = |before: Option<&Seen>, scene: &str| {
        let mut seen = read(scene);
        if let Some(before) = before {
            let mut service = (*seen.service).clone();
            service.status = Some(plan(before, NOW).status);
            seen.service = Arc::new(service);
        }
        plan(&seen, NOW).status
    };
    let begun = read("x3 | 1 running | 2 preparing | 3 preparing");
    let said = plan(&begun, NOW).status;
    let after = |scene: &str| super::plan::is_progress(&said, &status(Some(&begun), scene));
    assert!(after("x3 | 1 running | 2 running | 3 preparing"));
    assert!(after("x3 | 1 running | 2 preparing | 3 running"));
    assert!(!after("x3 | 1 running | 2 running | 3 running"), "it is ready");
    assert!(!after("x4 | 1 running | 2 running | 3 preparing"), "another number is wanted");
    let ready = status(None, "x1 | 1 running");
    assert!(!super::plan::is_progress(&ready, &status(None, "x1 | 1 preparing")), "it is ready no longer");
    assert!(!super::plan::is_progress(&Default::default(), &said), "nothing was said before");
}
