//! What people see who look on: while the daemon is away, and while a machine cannot do what it shall.

use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use conformance::parts::machine::{Machine, PATIENCE, Part};
use conformance::parts::process::wait_until;

/// A command that runs on, and what it has said so far.
struct Looking {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Looking {
    fn start(machine: &Machine, words: &[&str]) -> Looking {
        let mut command = machine.person().applyctl(words).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for mut output in outputs {
            let said = said.clone();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = output.read(&mut bytes) {
                    said.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
            });
        }
        Looking { child, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    #[track_caller]
    fn waits_for(&self, words: &str) {
        let seen = wait_until(words, PATIENCE, || self.said().contains(words));
        assert!(seen.is_ok(), "{seen:?}; it said\n{}", self.said());
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn whoever_watches_goes_on_watching_when_the_daemon_is_back() {
    let machine = Machine::start("watch").unwrap();
    machine.load("test").unwrap();
    machine.ctl(&["service", "create", "--name", "first", "test/box:1"]).unwrap();
    let table = Looking::start(&machine, &["get", "services", "-w"]);
    let names = Looking::start(&machine, &["get", "services", "-w", "-o", "name"]);
    table.waits_for("first");
    names.waits_for("service/first\n");
    assert!(machine.kill(Part::Applyd).unwrap());
    table.waits_for("applyd is away; waiting for it (^C to leave)\n");
    machine.start_applyd().unwrap();
    table.waits_for("applyd is back\n");
    machine.ctl(&["service", "create", "--name", "second", "--detach", "test/box:1"]).unwrap();
    table.waits_for("second");
    names.waits_for("service/second\n");
    assert_eq!(table.said().matches("NAME").count(), 1, "what was shown is not shown again: {}", table.said());
    // Nobody is waited for who was never there.
    assert!(machine.kill(Part::Applyd).unwrap());
    super::fails(&machine, &["get", "services", "-w"], 7);
}

#[test]
fn what_a_machine_cannot_do_now_is_told_while_it_is_tried_again() {
    let machine = Machine::start("cannot").unwrap();
    machine.load("test").unwrap();
    // No namespace can be made for a network: a disk that fails, a full one, a mistake of somebody's.
    let namespaces = machine.installation().run.join("apply/netns");
    let mount = format!("mkdir -p {0} && mount -t tmpfs -o ro tmpfs {0}", namespaces.display());
    assert!(machine.inside("sh").args(["-c", &mount]).status().unwrap().success());
    let mut creating = Looking::start(&machine, &["service", "create", "--name", "web", "test/box:1"]);
    creating.waits_for("it is tried again");
    assert!(creating.said().contains("Read-only file system"), "{}", creating.said());
    let page = machine.ctl(&["describe", "service", "web"]).unwrap();
    assert!(page.contains("Read-only file system"), "{page}");
    assert!(machine.inside("umount").arg(&namespaces).status().unwrap().success());
    let ended = creating.child.wait().unwrap();
    assert!(ended.success(), "{ended}: {}", creating.said());
    creating.waits_for("web is up");
}
