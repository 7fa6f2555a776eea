//! What containers do that they should not, and what is done about it.

use conformance::parts::machine::{Machine, Part, kill};

use crate::{Stage, service};

/// moby/moby#29238, moby/moby#35910: orphans that nobody waits for; the container must stop all the same.
#[test]
fn orphans_are_waited_for_or_go_with_their_container() {
    let stage = Stage::open("orphans");
    let orphans = "for i in $(seq 200); do (sleep 1 &) ; done; exec sleep 1000000";
    let container =
        |init: bool| format!("image: 'test/shell:1', command: [sh, -c, '{orphans}'], init: {init}, stopGrace: 1s");
    stage.service("waited", &container(true));
    stage.service("alone", &container(false));
    let zombies = |service: &str| {
        let listed = stage.exec(service, &["sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"]);
        listed.trim().parse::<usize>().unwrap()
    };
    stage.running("waited");
    stage.running("alone");
    stage.until("the orphans to be dead", || zombies("alone") >= 200);
    stage.until("the orphans to be waited for", || zombies("waited") == 0);
    // `sleep` as the first process hears no SIGTERM: it takes the grace, and the kill.
    stage.machine.ctl(&["service", "rm", "alone", "waited", "--yes"]).unwrap();
    stage.until("nothing to be left of them", || !stage.lines().iter().any(|line| line.starts_with("sleep 1000000")));
    stage.until("no task to be left", || stage.tasks("alone").is_empty() && stage.tasks("waited").is_empty());
    assert!(!stage.lines().iter().any(|line| line.contains("containerd-shim")), "{:?}", stage.lines());
}

/// moby/moby#33192: an exit that nobody heard of was Running for two weeks.
#[test]
fn no_end_of_a_container_is_missed() {
    let stage = Stage::open("exits");
    stage.service("web", "image: 'test/box:1'");
    // The container's process dies while applyd is held.
    let first = stage.running("web");
    let pid = pid_of(&first);
    stage.machine.freeze(Part::Applyd).unwrap();
    kill_inside(&stage.machine, pid);
    stage.machine.thaw(Part::Applyd);
    let second = stage.task_that("web", "runs with another process", |task| {
        task["status"]["state"] == "Running" && task["status"]["pid"].as_u64().is_some_and(|now| now != pid)
    });
    // Its shim is killed, and then it.
    let pid = pid_of(&second);
    for (at, words) in stage.machine.processes() {
        if words.first().is_some_and(|word| word.contains("containerd-shim")) {
            kill(at).unwrap();
        }
    }
    kill_inside(&stage.machine, pid);
    let third = stage.task_that("web", "runs with a third process", |task| {
        task["status"]["state"] == "Running" && task["status"]["pid"].as_u64().is_some_and(|now| now != pid)
    });
    assert!(
        stage.machine.inside("test").args(["-d", &format!("/proc/{}", pid_of(&third))]).status().unwrap().success()
    );
}

/// As the machine counts.
fn pid_of(task: &serde_json::Value) -> u64 {
    task["status"]["pid"].as_u64().unwrap_or_else(|| panic!("no process: {task}"))
}

/// A process by the number that it has on the machine.
fn kill_inside(machine: &Machine, pid: u64) {
    let killed = machine.inside("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success(), "{pid} is not there");
}

/// moby/moby#45927, moby/moby#51789: what a check that hangs leaves behind.
#[test]
fn a_check_that_hangs_is_ended_with_all_that_it_started() {
    let stage = Stage::open("checks");
    stage.service(
        "web",
        "image: 'test/shell:1', command: [sleep], args: ['1000000'], health: {check: {exec: {command: \
         [sh, -c, 'sleep 777777 & sleep 777777']}, interval: 1s, timeout: 1s, retries: 1000}}",
    );
    let count = || stage.lines().iter().filter(|line| line.starts_with("sleep 777777")).count();
    let failures = || {
        let task = stage.tasks("web").into_iter().next().unwrap_or_default();
        let health = task["status"]["health"].clone();
        (health["failures"].as_u64().unwrap_or(0), health["output"].as_str().unwrap_or_default().to_owned())
    };
    for wanted in [2, 4, 6] {
        stage.until("another check to have failed", || failures().0 >= wanted);
        assert!(count() <= 2, "{} processes of checks", count());
    }
    let (_, said) = failures();
    assert!(said.contains("longer than 1s"), "{said}");
}

/// docker/for-linux#88, moby/moby#25209 and others: limits that were left out without a word.
#[test]
fn limits_are_kept_or_refused_with_their_place() {
    let stage = Stage::open("limits");
    stage.service(
        "web",
        "image: 'test/shell:1', command: [sleep], args: ['1000000'], ulimits: [{name: memlock, soft: 4096, hard: 8192}, \
         {name: nofile, soft: 1234}]",
    );
    stage.running("web");
    let said = stage.exec("web", &["sh", "-c", "ulimit -S -l; ulimit -H -l; ulimit -n"]);
    assert_eq!(said, "4\n8\n1234\n");
    let bad = service("bad", "image: 'test/shell:1', ulimits: [{name: nofile, soft: 2048, hard: 1024}]", "");
    let refusal = stage.refused(&["apply", "-f", &stage.file("bad.yaml", &bad)]);
    assert_eq!(refusal.code, Some(5));
    assert!(refusal.said.contains("spec.template.container.ulimits[0]"), "{}", refusal.said);
    // More than the kernel gives anybody.
    stage.service("much", "image: 'test/shell:1', ulimits: [{name: nofile, soft: 4000000000, hard: 4000000000}]");
    let task = stage.task_that("much", "is refused", |task| task["status"]["state"] == "Rejected");
    let message = task["status"]["message"].as_str().unwrap();
    assert!(message.contains("nofile") && message.contains("4000000000"), "{message}");
}

/// The pids limit is told when it is reached, and holds.
#[test]
fn a_fork_bomb_stays_in_its_container() {
    let stage = Stage::open("pids");
    stage.service_with(
        "bomb",
        "image: 'test/box:1', command: [/testbox, threads, '500']",
        ", resources: {limits: {pids: 50}}",
    );
    stage.running("bomb");
    stage.until("it to say how far it got", || !stage.logs("bomb").is_empty());
    let said = stage.logs("bomb");
    let words = said.rsplit('|').next().unwrap().split_whitespace().collect::<Vec<_>>();
    let [got, "of", "500", "threads"] = words[..] else { panic!("{said}") };
    assert!(got.parse::<usize>().unwrap() < 50, "{said}");
}
