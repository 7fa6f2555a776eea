//! applyd as a process: its store, its backups, what it refuses and what it says then. No containerd is needed.

mod scene;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use scene::{Scene, until};
use serde_json::Value;

const SERVICE: &str = "apiVersion: apply/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  template:\n    container: {image: 'example/web:1'}\n";
const LOGIN: &str = "apiVersion: apply/v1\nkind: RegistryLogin\nmetadata: {name: example}\nspec: {registry: registry.example.com, username: ann, password: s3cret-and-long}\n";

#[test]
fn a_backup_is_whole_private_and_brings_everything_back_under_new_versions() {
    let scene = Scene::new("backup");
    let mut daemon = scene.start();
    scene.apply(SERVICE);
    scene.apply(LOGIN);
    let before = scene.json(&["get", "service", "web", "-o", "json"]);
    let file = scene.path("monday.backup");
    let said: Value = serde_json::from_str(&scene.ok(&["backup", &file, "-o", "json"])).unwrap();
    let bytes = fs::read(&file).unwrap();
    assert_eq!(said["bytes"], bytes.len());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!bytes.windows(15).any(|window| window == b"s3cret-and-long"), "a password is in the clear");
    assert_eq!(scene.names().iter().filter(|name| name.contains("partial")).count(), 0);

    // A running daemon has the store, and keeps it.
    let refused = scene.fails(&["restore", "--data", &scene.path("data"), &file], 6);
    assert!(refused.contains("stop it first"), "{refused}");
    scene.ok(&["delete", "service", "web", "--yes", "--detach"]);
    daemon.stop();

    let refused = scene.fails(&["restore", "--data", &scene.path("data"), &file], 6);
    assert!(refused.contains("--force"), "{refused}");
    scene.ok(&["restore", "--data", &scene.path("data"), "--force", &file]);
    assert!(scene.exists("data/store.redb.replaced-1"));
    // A second one does not take the place of the first one's original.
    scene.ok(&["restore", "--data", &scene.path("data"), "--force", &file]);
    assert!(scene.exists("data/store.redb.replaced-2"));

    let _daemon = scene.start();
    let after = scene.json(&["get", "service", "web", "-o", "json"]);
    assert_eq!((&after["spec"], &after["metadata"]["uid"]), (&before["spec"], &before["metadata"]["uid"]));
    let version = |list: &Value| list["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(version(&after) >= version(&before) + (1 << 32), "whoever watched would take old for new");
    assert!(scene.ok(&["get", "registrylogin", "example", "-o", "yaml"]).contains("hmac-sha256:"));
}

#[test]
fn what_is_sealed_wants_its_key() {
    let scene = Scene::new("key");
    let mut daemon = scene.start();
    scene.apply(LOGIN);
    let file = scene.path("b");
    scene.ok(&["backup", &file]);
    daemon.stop();
    let key = scene.path("data/key");

    let other = scene.path("other");
    let refused = scene.fails(&["restore", "--data", &other, &file], 5);
    assert!(refused.contains("1 values in the backup are sealed") && refused.contains("--key"), "{refused}");
    let mut wrong = fs::read(&key).unwrap();
    wrong[0] ^= 1;
    fs::write(scene.path("wrong"), wrong).unwrap();
    let refused = scene.fails(&["restore", "--data", &other, "--key", &scene.path("wrong"), &file], 5);
    assert!(refused.contains("does not open registrylogins.apply/default/example"), "{refused}");
    assert!(!scene.exists("other/store.redb"));
    scene.ok(&["restore", "--data", &other, "--key", &key, &file]);
    assert_eq!(fs::read(&key).unwrap(), fs::read(scene.path("other/key")).unwrap());

    // The daemon itself asks the same.
    fs::rename(&key, scene.path("kept")).unwrap();
    let said = scene.refuses_to_start();
    assert!(said.contains("their key is gone"), "{said}");
    assert!(!scene.exists("data/key"), "a new key would make the old one look like the wrong one");
    fs::rename(scene.path("wrong"), &key).unwrap();
    assert!(scene.refuses_to_start().contains("does not open"));
    fs::rename(scene.path("kept"), &key).unwrap();
    drop(scene.start());
}

#[test]
fn a_cluster_gets_its_name_once() {
    let scene = Scene::new("init");
    let refused = scene.fails(&["init"], 7);
    assert!(refused.contains("start applyd on this machine first"), "{refused}");
    assert!(!scene.exists("data"), "nothing is started or made by it");
    let mut daemon = scene.start_alone();
    let refused = scene.fails(&["get", "nodes"], 8);
    assert!(refused.contains("in no cluster yet") && refused.contains("applyctl init"), "{refused}");
    assert!(!scene.exists("data/store.redb"), "asking founds nothing");
    let made: Value = serde_json::from_str(&scene.ok(&["init", "-o", "json"])).unwrap();
    assert!(made["cluster"].as_str().is_some_and(|title| title.contains('-')) && made["node"] == "n1", "{made}");
    assert!(made["token"].as_str().is_some_and(|token| token.starts_with("APPLY-1-")), "{made}");
    let again: Value = serde_json::from_str(&scene.ok(&["init", "-o", "json"])).unwrap();
    assert!(again["cluster"] == made["cluster"] && again["token"].is_null(), "{again}");
    daemon.stop();
    let _daemon = scene.start_alone();
    let still: Value = serde_json::from_str(&scene.ok(&["init", "-o", "json"])).unwrap();
    assert_eq!(still["cluster"], made["cluster"]);
    let refused = scene.fails(&["init", "--title", "another"], 6);
    assert!(refused.contains("already"), "{refused}");
}

#[test]
fn an_authority_wants_the_key_that_sealed_it() {
    let scene = Scene::new("authority");
    scene.start().stop();
    let key = scene.path("data/key");
    fs::rename(&key, scene.path("kept")).unwrap();
    let said = scene.refuses_to_start();
    assert!(said.contains("the cluster's authority is sealed, and its key is gone"), "{said}");
    assert!(!scene.exists("data/key"), "a new key would make the old one look like the wrong one");
    let mut wrong = fs::read(scene.path("kept")).unwrap();
    wrong[0] ^= 1;
    fs::write(&key, wrong).unwrap();
    let said = scene.refuses_to_start();
    assert!(said.contains("bring back the key that it was sealed with") && said.contains("rm -r"), "{said}");
    fs::rename(scene.path("kept"), &key).unwrap();
    drop(scene.start());
    // What was cut short in the middle is told too, and does not become another cluster.
    let member = scene.path("data/identity/member.json");
    let whole = fs::read(&member).unwrap();
    fs::write(&member, &whole[..whole.len() / 2]).unwrap();
    let said = scene.refuses_to_start();
    assert!(said.contains("is not what applyd has written"), "{said}");
    fs::write(&member, whole).unwrap();
    drop(scene.start());
}

#[test]
fn it_does_not_start_twice_on_one_directory() {
    let scene = Scene::new("twice");
    let mut daemon = scene.start();
    let said = scene.refuses_to_start();
    assert!(said.contains(&format!("is in use by process {}", daemon.id())), "{said}");
    // And the first one does not notice.
    scene.ok(&["get", "nodes"]);
    daemon.stop();
}

#[test]
fn a_damaged_store_is_refused_with_the_way_back() {
    let scene = Scene::new("damage");
    let mut daemon = scene.start();
    scene.apply(SERVICE);
    daemon.stop();
    let store = scene.path("data/store.redb");
    let snapshot = scene.snapshots().pop().expect("one is taken when it starts");
    let mut bytes = fs::read(&store).unwrap();
    // In all of the file: what a page that is not in use any more holds is nobody's loss.
    let found = bytes.windows(13).enumerate().filter(|(_, window)| window == b"example/web:1").map(|(at, _)| at);
    let found: Vec<usize> = found.collect();
    assert!(!found.is_empty(), "the service is in there");
    found.into_iter().for_each(|at| bytes[at] ^= 1);
    fs::write(&store, bytes).unwrap();
    let said = scene.refuses_to_start();
    // Which of the two sees it first, redb or our own checksums, is up to where the byte lies.
    let named = said.contains("services.apply/default/web") || said.contains("DB corrupted");
    assert!(said.contains("is damaged") && named, "{said}");
    assert!(said.contains(&format!("--force {snapshot}")), "{said}");
    // What it says to type works.
    let line = said.lines().find_map(|line| line.split_once("applyd ")).unwrap().1;
    let words: Vec<&str> = line.split_whitespace().collect();
    scene.applyd(&words);
    drop(scene.start());
}

#[test]
fn a_full_disk_takes_deletions_and_recovers_by_itself() {
    let scene = Scene::new("full");
    let small = scene.small_disk("data", 24 << 20);
    let _daemon = scene.start();
    scene.apply(SERVICE);
    scene.apply("apiVersion: apply/v1\nkind: Network\nmetadata: {name: first}\nspec: {}\n");
    fs::write(scene.path("data/ballast"), vec![0; 64 << 20]).expect_err("the disk is small");
    let large = |number: u32| {
        let text = "x".repeat(200_000);
        format!(
            "apiVersion: apply/v1\nkind: Network\nmetadata: {{name: n{number}, annotations: {{note: {text}}}}}\nspec: {{}}\n"
        )
    };
    let mut number = 0;
    let refused = until("the store is full", || {
        number += 1;
        scene.try_apply(&large(number)).err()
    });
    assert!(refused.contains("full"), "{refused}");
    scene.ok(&["delete", "network", "first", "--yes", "--detach"]);
    until("it is gone", || (!scene.applyctl(&["get", "network", "first"]).status.success()).then_some(()));
    scene.ok(&["get", "service", "web"]);
    fs::remove_file(scene.path("data/ballast")).unwrap();
    until("it takes writes again", || scene.try_apply(&large(1_000)).ok());
    scene.ok(&["get", "network", "n1000"]);
    drop((_daemon, small));
}

#[test]
fn a_faulty_file_of_options_names_every_place() {
    let scene = Scene::new("config");
    fs::write(scene.path("applyd.yaml"), "dta: x\nlog-format: xml\n").unwrap();
    let (code, said) = scene.ended(&["--config", &scene.path("applyd.yaml")]);
    assert_eq!(code, 5, "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("applyd.yaml:1:1  dta: unknown option; did you mean data?"), "{said}");
    assert!(lines[1].contains("applyd.yaml:2:13  log-format: invalid value"), "{said}");
    let (code, unit) = scene.ended(&["systemd-unit"]);
    assert!(code == 0 && unit.contains(concat!("ExecStart=", env!("CARGO_BIN_EXE_applyd"))), "{unit}");
}

#[test]
fn its_logs_can_be_read_by_programs_and_it_ends_when_told() {
    let scene = Scene::new("logs");
    let mut daemon = scene.start_with(&["--log-format", "json"]);
    assert!(daemon.stop().success());
    let log = daemon.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    let messages: Vec<&str> = lines.iter().filter_map(|line| line["fields"]["message"].as_str()).collect();
    assert!(
        messages.contains(&"applyd is up") && messages.iter().any(|text| text.starts_with("told to stop")),
        "{log}"
    );
}
