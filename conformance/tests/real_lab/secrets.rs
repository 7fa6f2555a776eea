//! Secrets and configs: seen by their tasks, wherever these run, and by nobody else.

use std::fs;
use std::path::Path;
use std::process::Command;

use conformance::lab::Lab;
use conformance::parts::machine::{Machine, PATIENCE, Part, command_line, kill};
use conformance::parts::process::wait_until;

use super::running;

const FIRST: &str = "open-sesame-5e1f";
const SECOND: &str = "close-sesame-77aa";

fn fails(machine: &Machine, words: &[&str], code: i32) -> String {
    let output = machine.person().applyctl(words).unwrap().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    said
}

fn file(machine: &Machine, name: &str, content: &str) -> String {
    let path = machine.folder().join(name);
    fs::write(&path, content).unwrap();
    path.to_string_lossy().into_owned()
}

/// What the running tasks of `web` see at a path, by task.
fn seen(manager: &Machine, path: &str) -> Vec<String> {
    let tasks = manager.person().list("task").unwrap();
    let running =
        tasks.iter().filter(|task| task["status"]["state"] == "Running" && task["spec"]["desired"] == "Running");
    let names = running.map(|task| task["metadata"]["name"].as_str().unwrap().to_owned());
    names.filter_map(|task| manager.ctl(&["exec", &task, "--", "cat", path]).ok()).collect()
}

#[test]
fn secrets_are_seen_by_their_tasks_wherever_they_run_and_by_nobody_else() {
    let lab = Lab::start("secrets", 3).unwrap();
    lab.form().unwrap();
    let machines = [1, 2, 3].map(|number| lab.machine(number).unwrap());
    let first = machines[0];
    for machine in machines {
        machine.load("test").unwrap();
    }

    // What is not there is said before anything is written, and a service that waits for it begins when it comes.
    let create = ["service", "create", "--name", "web", "--secret", "key", "--constraint", "node.hostname!=n3"];
    let said = fails(first, &[&create[..], &["test/shell:1", "sleep", "98765"]].concat(), 3);
    assert!(said.contains("there is no secret key") && said.contains("applyctl secret create key"), "{said}");
    super::reaching::apply(
        first,
        "web",
        "apiVersion: apply/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  replicas: 2\n  template:\n    container:\n      \
         image: test/shell:1\n      args: [sleep, '98765']\n      stopGrace: 100ms\n      secrets: [{source: key}, {source: key, target: /etc/deep/key, mode: '0', uid: 7}]\n      \
         configs: [{source: motd, target: /etc/motd}]\n    placement: {constraints: [node.hostname!=n3]}\n",
    );
    let said = fails(first, &["wait", "service/web", "--timeout", "3s"], 4);
    assert!(said.contains("there is no secret key; there is no config motd"), "{said}");
    let planted = file(first, "planted", FIRST);
    first.ctl(&["secret", "create", "key", &planted]).unwrap();
    fs::remove_file(planted).unwrap();
    first.ctl(&["config", "create", "motd", &file(first, "motd", "be well\n")]).unwrap();
    first.ctl(&["wait", "service/web", "--timeout", "60s"]).unwrap();
    assert_eq!(running(first, "web").into_iter().collect::<std::collections::BTreeSet<_>>().len(), 2, "on n1 and n2");

    assert_eq!(seen(first, "/run/secrets/key"), [FIRST, FIRST]);
    assert_eq!(seen(first, "/etc/deep/key"), [FIRST, FIRST]);
    assert_eq!(seen(first, "/etc/motd"), ["be well\n", "be well\n"]);
    let in_one = |words: &[&str]| first.ctl(&[&["exec", "web", "--"], words].concat());
    assert_eq!(in_one(&["stat", "-c", "%a %u", "/run/secrets/key", "/etc/deep/key"]).unwrap(), "444 0\n0 7\n");
    assert!(in_one(&["sh", "-c", "echo x > /run/secrets/key"]).is_err(), "it is read only");

    // Nowhere else: no disk, no process, no answer.
    for machine in machines {
        look_through(machine, &machine.installation().disk, FIRST);
    }
    for words in [
        &["get", "secret,config,service,revision,task,event", "-o", "json"][..],
        &["secret", "inspect", "key"],
        &["describe", "secret", "key"],
    ] {
        let answer = first.ctl(words).unwrap();
        assert!(!holds(answer.as_bytes(), FIRST), "{words:?}: {answer}");
    }
    // A machine that runs none of them is not told, nor is whoever merely asks, were it root.
    let path = "/apis/apply/v1/namespaces/default/secrets/key/data";
    let as_machine = |machine: &Machine| {
        let identity = machine.installation().disk.join("apply/identity");
        let (node, authorities) = (identity.join("node.pem"), identity.join("authorities.pem"));
        let url = format!("https://{}:7677{path}", first.address().unwrap());
        let mut curl = machine.inside("curl");
        curl.args(["-s", "-k", "--cert"]).arg(&node).arg("--key").arg(&node).arg("--cacert").arg(&authorities).arg(url);
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    assert_eq!(as_machine(machines[1]), FIRST);
    let refused = as_machine(machines[2]);
    assert!(refused.contains("\"code\":403") && refused.contains("no task on n3 sees the secret"), "{refused}");
    let mut asked = Command::new("curl");
    let asked = asked.args(["-s", "--unix-socket"]).arg(first.person().socket).arg(format!("http://x{path}")).output();
    let refused = String::from_utf8(asked.unwrap().stdout).unwrap();
    assert!(refused.contains("\"code\":403"), "{refused}");

    // Other data is another revision, by the service's own way of being updated.
    let said = fails(first, &["secret", "rm", "key"], 6);
    assert!(said.contains("secret key is seen by web"), "{said}");
    for (content, other) in [(SECOND, FIRST), (FIRST, SECOND), (SECOND, FIRST)] {
        first.ctl(&["secret", "update", "key", &file(first, "planted", content)]).unwrap();
        wait_until("all tasks to see the new data", PATIENCE, || seen(first, "/run/secrets/key") == [content, content])
            .unwrap();
        assert!(!seen(first, "/run/secrets/key").contains(&other.to_owned()));
    }
    first.ctl(&["wait", "service/web", "--timeout", "60s"]).unwrap();

    // Started again with no manager there: a task keeps what it was given.
    first.freeze(Part::Applyd).unwrap();
    let second = machines[1];
    let before = sleeper(second).unwrap();
    kill(before).unwrap();
    let again = || sleeper(second).filter(|pid| *pid != before);
    wait_until("the task to run again", PATIENCE, || again().is_some()).unwrap();
    let pid = again().unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/root/run/secrets/key")).unwrap(), SECOND);
    first.thaw(Part::Applyd);

    first.ctl(&["service", "rm", "web", "--yes"]).unwrap();
    first.ctl(&["secret", "rm", "key"]).unwrap();
    for machine in &machines[..2] {
        let left = || fs::read_dir(machine.seen(Path::new("/run/a/apply/data"))).map_or(0, |found| found.count());
        wait_until("the data to be gone", PATIENCE, || left() == 0).unwrap();
    }
}

/// The process of the machine's task.
fn sleeper(machine: &Machine) -> Option<u32> {
    let groups = machine.groups().into_iter().flat_map(|group| fs::read_dir(group).into_iter().flatten().flatten());
    let pids = groups.flat_map(|group| {
        let pids = fs::read_to_string(group.path().join("cgroup.procs")).unwrap_or_default();
        pids.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    let sleeps = |pid: &u32| command_line(*pid).is_some_and(|words| words.iter().any(|word| word == "98765"));
    let mut pids = pids;
    pids.find(sleeps)
}

/// As it is, or as JSON has it.
fn holds(bytes: &[u8], secret: &str) -> bool {
    let encoded = encode(secret);
    [secret, encoded.trim_end_matches('=')]
        .iter()
        .any(|word| bytes.windows(word.len()).any(|window| window == word.as_bytes()))
}

fn encode(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Every file of the machine's disk, and what its processes were told.
fn look_through(machine: &Machine, folder: &Path, secret: &str) {
    let mut folders = vec![folder.to_owned()];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                assert!(!holds(&bytes, secret), "the secret is in {}", entry.path().display());
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 10, "{looked_at} files only");
    for (pid, _) in machine.processes() {
        for about in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{about}")).unwrap_or_default();
            assert!(!holds(&bytes, secret), "the secret is in the {about} of {pid}");
        }
    }
}
