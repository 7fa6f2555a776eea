//! What a machine's daemon does beside objects, with a real containerd: images, and the end of it all. Needs root.

mod etcd;
mod meanwhile;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use conformance::images::{self, workspace};
use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;
use conformance::parts::registry::{self, Door, Packing, Pushed, Registry, archive};
use serde_json::{Value, json};

fn listed(machine: &Machine) -> Vec<Value> {
    let text = machine.ctl(&["image", "ls", "-o", "json"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn fails(machine: &Machine, words: &[&str], code: i32) -> String {
    let output = machine.person().applyctl(words).unwrap().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    said
}

fn example() -> Pushed {
    let layer = archive(&[("etc/name".to_owned(), vec![b'x'; 1 << 20])]).unwrap();
    let platform = controllers::node::images::Platform::of_this_machine().to_string();
    Pushed::image(&platform, &[(Packing::Gzip, layer)], json!({"Cmd": ["/bin/none"]})).unwrap()
}

#[test]
fn images_are_imported_listed_pulled_and_let_go() {
    let machine = Machine::start("images").unwrap();
    let set = images::set("test").unwrap();
    let built = images::build(set, &workspace().join("target/images")).unwrap();
    // The daemon could not read it: it comes over the socket, and from nowhere that has a name.
    let mut import = machine.person().applyctl(&["image", "import", "-"]).unwrap();
    let done = import.stdin(File::open(&built.path).unwrap()).stderr(Stdio::piped()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let nameless = machine.folder().join("nameless.tar");
    fs::write(&nameless, example().oci_archive("").unwrap()).unwrap();
    machine.ctl(&["image", "import", nameless.to_str().unwrap(), "--name", "example/own:1"]).unwrap();
    fs::write(&nameless, b"no archive").unwrap();
    assert!(!fails(&machine, &["image", "import", nameless.to_str().unwrap()], 5).is_empty());

    machine.ctl(&["service", "create", "--name", "web", "test/box:1"]).unwrap();
    let found = listed(&machine);
    let of = |name: &str| found.iter().find(|image| image["image"] == name).unwrap_or_else(|| panic!("{found:?}"));
    assert_eq!(of("test/box:1")["usedBy"], json!(["default/web"]));
    assert_eq!((&of("example/own:1")["usedBy"], &of("example/own:1")["imported"]), (&json!([]), &json!(true)));
    assert!(of("example/own:1")["sizeBytes"].as_u64().unwrap() > 0);
    let used = fails(&machine, &["image", "rm", "test/box:1"], 6);
    assert!(used.contains("in use by default/web"), "{used}");
    machine.ctl(&["image", "rm", "example/own:1"]).unwrap();
    assert!(fails(&machine, &["image", "rm", "example/own:1"], 3).contains("example/own:1"));

    let image = example();
    let (_registry, name) = machine
        .on_network(|| {
            let registry = Registry::start("daemon", Door::Open).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(registry.push("some/app", "1", &image)).unwrap();
            let name = registry.name();
            (registry, name)
        })
        .unwrap();
    let pulled = machine.ctl(&["image", "pull", &format!("{name}/some/app:1"), "-o", "json"]).unwrap();
    let pulled: Value = serde_json::from_str(&pulled).unwrap();
    assert_eq!(pulled["digest"], image.digest());
    let missing = fails(&machine, &["image", "pull", &format!("{name}/some/app:2")], 1);
    assert!(missing.contains("no such tag"), "{missing}");

    machine.ctl(&["image", "prune", "--yes"]).unwrap();
    let left = listed(&machine);
    assert!(left.iter().all(|image| image["imported"] == true), "{left:?}");
    machine.ctl(&["image", "prune", "--yes", "--imported"]).unwrap();
    let left: Vec<Value> = listed(&machine).iter().map(|image| image["image"].clone()).collect();
    assert_eq!(left, [json!("test/box:1")]);
}

#[test]
fn a_registry_with_a_password_is_pulled_from_by_whoever_logged_in() {
    let machine = Machine::start("login").unwrap();
    let image = example();
    let (_registry, name) = machine
        .on_network(|| {
            let registry = Registry::start("login", Door::Password).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            for tag in ["1", "2"] {
                runtime.block_on(registry.push("some/app", tag, &image)).unwrap();
            }
            let name = registry.name();
            (registry, name)
        })
        .unwrap();
    let app = format!("{name}/some/app:1");
    let login = |words: &[&str], password: &str| {
        let words = [&["login", &name, "-u", registry::USER, "--password-stdin"], words].concat();
        let mut login = machine.person().applyctl(&words).unwrap();
        let mut login = login.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        login.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
        let done = login.wait_with_output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let logins = || machine.person().list("registrylogin").unwrap();
    let tasks = || machine.person().list("task").unwrap();
    // Tasks of a failed image are replaced: any of them may be the one that says it.
    let said = |what: &str| {
        let heard = || tasks().iter().any(|task| task["status"].to_string().contains(what));
        let waited = wait_until(what, PATIENCE, heard);
        assert!(waited.is_ok(), "{waited:?}: {:#}", Value::from(tasks()));
    };

    machine.ctl(&["service", "create", "--detach", "--name", "web", &app]).unwrap();
    said(&format!("wants credentials for it, or has no such repository: check the name, or run applyctl login {name}"));
    let refused = fails(&machine, &["image", "pull", &app], 1);
    assert!(refused.contains(&format!("applyctl login {name}")), "{refused}");

    // What the registry does not know is not stored, and what it does not have to be asked about is.
    let (code, words) = login(&[], "guess");
    assert_eq!(code, Some(5), "{words}");
    assert!(words.contains(&format!("{name} does not know {} with this password", registry::USER)), "{words}");
    assert_eq!(logins(), Vec::<Value>::new());
    let (code, words) = login(&["--no-check"], "guess");
    assert_eq!((code, logins().len()), (Some(0), 1), "{words}");
    said("refused the credentials given for it");

    let (code, words) = login(&[], registry::PASSWORD);
    assert_eq!(code, Some(0), "{words}");
    said(&image.digest());
    // By hand as well, with the logins of the namespace and of no other.
    let other = format!("{name}/some/app:2");
    let refused = fails(&machine, &["-n", "elsewhere", "image", "pull", &other], 1);
    assert!(refused.contains("wants credentials"), "{refused}");
    machine.ctl(&["image", "pull", &other]).unwrap();

    // Nobody can read it: not in what is answered, not on the disk, not in what was logged.
    let encoded = base64(&format!("{}:{}", registry::USER, registry::PASSWORD));
    let read = machine.ctl(&["get", "registrylogin", "-o", "json"]).unwrap();
    let mut looked_at = vec![("get", read.into_bytes())];
    for file in ["applyd.log", "containerd.log", "apply/store.redb"] {
        let bytes = fs::read(machine.installation().disk.join(file)).unwrap();
        assert!(!bytes.is_empty(), "{file} is empty");
        looked_at.push((file, bytes));
    }
    for (place, bytes) in looked_at {
        for secret in [registry::PASSWORD, encoded.trim_end_matches('=')] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "the password is in {place}");
        }
    }
    machine.ctl(&["logout", &name]).unwrap();
    assert_eq!(logins(), Vec::<Value>::new());
}

fn base64(text: &str) -> String {
    let mut encode =
        Command::new("base64").args(["-w", "0"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    encode.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(encode.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn a_reset_leaves_nothing_of_the_machine() {
    let machine = Machine::start("reset").unwrap();
    machine.load("test").unwrap();
    machine
        .ctl(&[
            "service",
            "create",
            "--name",
            "web",
            "-p",
            "8080:80",
            "--mount",
            "type=volume,source=data,target=/data",
            "test/box:1",
        ])
        .unwrap();
    wait_until("the task to run", PATIENCE, || {
        let tasks = machine.person().list("task").unwrap_or_default();
        tasks.iter().any(|task| task["status"]["state"] == "Running")
    })
    .unwrap();
    let said = fails(&machine, &["system", "reset"], 2);
    assert!(said.contains("1 container") && said.contains("--yes"), "{said}");
    machine.ctl(&["system", "reset", "--yes"]).unwrap();

    let inside = |words: &[&str]| {
        let output = machine.inside(words[0]).args(&words[1..]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    wait_until("applyd and its companion to end", PATIENCE, || {
        machine.processes().iter().all(|(_, words)| !words.iter().any(|word| word.ends_with("/applyd")))
    })
    .unwrap();
    let own = |line: &&str| line.contains("apl");
    assert_eq!(inside(&["ip", "-o", "link"]).lines().filter(own).count(), 0);
    assert_eq!(inside(&["nft", "list", "tables"]), "");
    assert_eq!(machine.groups(), Vec::<std::path::PathBuf>::new());
    let installation = machine.installation();
    assert!(!installation.disk.join("apply").exists() && !machine.seen(&installation.run.join("apply")).exists());
    let socket = installation.containerd_socket();
    let ctr = |what: &[&str]| {
        let mut command: Command = machine.inside("ctr");
        let output = command.args(["-a", socket.to_str().unwrap(), "-n", "apply"]).args(what).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ctr(&["containers", "list", "-q"]) + &ctr(&["images", "list", "-q"]), "");
    assert!(!Path::new("/proc").join(machine.init().to_string()).join("root/run/a/apply").exists());
    // It can begin anew.
    machine.start_applyd().unwrap();
    assert_eq!(machine.person().list("service").unwrap(), Vec::<Value>::new());

    // One that was cut off is finished by whoever comes next, before it opens anything.
    assert!(machine.kill(Part::Applyd).unwrap());
    fs::write(installation.disk.join("apply/reset"), "").unwrap();
    machine.begin_applyd().unwrap();
    let finished = wait_until("the reset to be finished", PATIENCE, || !installation.disk.join("apply").exists());
    finished.unwrap_or_else(|error| panic!("{error}: {}", machine.log_end("applyd")));
}
