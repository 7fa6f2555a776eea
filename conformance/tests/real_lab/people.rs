//! People: each with a certificate of their own, from any machine, with the rights that grants say and no others.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use conformance::lab::Lab;
use conformance::parts::installation::program;
use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;

use crate::audited;

/// Somebody at a machine of the cluster, or one beside it, with contexts of their own.
pub(crate) struct Person<'a> {
    at: &'a Machine,
    config: PathBuf,
}

impl Person<'_> {
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.at.inside(&program("applyctl").unwrap().to_string_lossy());
        command.env("APPLY_CONFIG", &self.config).env_remove("APPLY_HOST").args(words).stdin(Stdio::null());
        command
    }

    pub(crate) fn does(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn may_not(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(8), "{words:?}: {said}");
        said
    }
}

/// Lets somebody in, who is at the second machine from then on.
pub(crate) fn let_in<'a>(lab: &'a Lab, name: &str, words: &[&str]) -> Person<'a> {
    let (first, second) = (lab.machine(1).unwrap(), lab.machine(2).unwrap());
    let file = first.folder().join(format!("{name}.yaml"));
    let path = file.to_string_lossy().into_owned();
    first.ctl(&[&["user", "create", name], words, &[&path]].concat()).unwrap();
    let person = Person { at: second, config: second.folder().join(format!("{name}.contexts")) };
    person.does(&["context", "add", &path]);
    std::fs::remove_file(file).unwrap();
    person
}

#[test]
fn people_may_what_was_granted_from_anywhere_and_nothing_once_they_are_gone() {
    let lab = Lab::start("people", 2).unwrap();
    lab.form().unwrap();
    let first = lab.machine(1).unwrap();
    for number in [1, 2] {
        lab.machine(number).unwrap().load("test").unwrap();
    }
    let ann = let_in(&lab, "ann", &["--role", "admin"]);
    let dev = let_in(&lab, "dev", &["--role", "edit", "-n", "shop"]);
    let eve = let_in(&lab, "eve", &["--role", "view", "-n", "shop"]);

    // An administrator, and who works in one namespace. It is the context's where none is said.
    let web = |name: &'static str| ["service", "create", "--name", name, "test/box:1", "serve", "80"];
    ann.does(&web("web"));
    assert!(ann.does(&["rollout", "history", "service/web"]).contains("ann"), "who did it is known");
    assert!(ann.does(&["image", "ls"]).contains("test/box:1"), "and what is beside objects");
    dev.does(&web("cart"));
    assert!(first.ctl(&["get", "services", "-n", "shop"]).unwrap().contains("cart"));
    assert!(dev.does(&["exec", "cart", "/testbox", "env"]).contains("HOSTNAME="));
    dev.does(&["logs", "cart"]);
    dev.does(&["get", "nodes"]);
    for words in [
        &["service", "create", "--detach", "-n", "default", "--name", "more", "test/box:1"][..],
        &["get", "services", "-A"],
        &["logs", "-n", "default", "web"],
        &["exec", "-n", "default", "web", "/testbox", "env"],
        &["user", "create", "eva", "--role", "admin", "-"],
        &["user", "credentials", "ann", "-"],
        &["node", "drain", "n2"],
        &["image", "ls"],
        &["backup", "-"],
        &["token", "create"],
    ] {
        dev.may_not(words);
    }

    // What is as good as root on the machines is granted by name.
    let bound = [
        "service",
        "create",
        "--name",
        "keys",
        "--mount",
        "type=bind,source=/etc,target=/mnt",
        "test/box:1",
        "serve",
        "80",
    ];
    let said = dev.may_not(&bound);
    assert!(
        said.contains("spec.template takes the folder /etc of machines") && said.contains("grant of the verb host"),
        "{said}"
    );
    ann.does(&[&bound[..2], &["-n", "shop"], &bound[2..]].concat());
    dev.does(&["scale", "keys=2"]);
    dev.may_not(&["service", "update", "keys", "--env", "A=b", "--detach"]);
    let said = dev.may_not(&["exec", "keys", "/testbox", "env"]);
    assert!(said.contains("it has the folder /etc of its machine"), "{said}");
    let ops = let_in(&lab, "ops", &["--role", "edit", "--host-access", "-n", "shop"]);
    ops.does(&["service", "update", "keys", "--env", "A=b"]);
    assert!(ops.does(&["exec", "keys", "/testbox", "env"]).contains("A=b"));
    ops.does(&["delete", "service", "keys", "--yes"]);

    // What is said of this very machine is not asked of another one.
    let output = ann.command(&["--context", "production", "system", "reset", "--yes"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));

    // Who looks.
    assert!(eve.does(&["get", "services"]).contains("cart"));
    eve.does(&["logs", "cart"]);
    eve.may_not(&["exec", "cart", "/testbox", "env"]);
    eve.may_not(&["scale", "cart=2"]);
    eve.may_not(&["delete", "service", "cart", "--yes"]);
    let said = eve.may_not(&["get", "services", "-n", "default"]);
    assert!(said.contains("no grant says so"), "{said}");
    // Nor can anybody grant it to themselves.
    let grant = first.folder().join("grant.yaml");
    std::fs::write(
        &grant,
        "apiVersion: apply/v1\nkind: Grant\nmetadata: {name: more}\nspec: {subjects: [{name: eve}], verbs: ['*'], kinds: ['*']}\n",
    )
    .unwrap();
    for person in [&dev, &eve] {
        person.may_not(&["apply", "-f", &grant.to_string_lossy()]);
    }
    // A grant that an administrator writes holds at once.
    ann.does(&["apply", "-f", &grant.to_string_lossy()]);
    eve.does(&["get", "services", "-n", "default"]);
    ann.does(&["delete", "grant", "more", "--yes"]);
    eve.may_not(&["get", "services", "-n", "default"]);

    // Who did what, and who was not let.
    let line = |of: &str, who: &str, name: &str, outcome: &str| {
        wait_until(&format!("{who} and {name} in {of}"), PATIENCE, || {
            let lines = audited(first, of);
            lines.iter().any(|line| {
                let says =
                    |text: &str| line["name"] == text || line["path"].as_str().unwrap_or_default().ends_with(text);
                line["identity"] == who && says(name) && line["outcome"] == outcome
            })
        })
        .unwrap();
    };
    line("writes", "user:ann", "web", "done");
    line("writes", "user:dev", "cart", "done");
    line("refusals", "user:eve", "/default/services", "refused");
    line("refusals", "user:dev", "/backup", "refused");

    // Gone on open connections as well, and not back with the name.
    let going_on = [&["exec", "cart", "/testbox", "sleep"][..], &["logs", "-f", "cart"]];
    let dan = let_in(&lab, "dan", &["--role", "edit", "-n", "shop"]);
    let mut going_on =
        going_on.map(|words| dan.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    ann.does(&["exec", "-n", "shop", "cart", "/testbox", "env"]);
    assert!(going_on.iter_mut().all(|it| it.try_wait().unwrap().is_none()), "they go on");
    ann.does(&["user", "rm", "dan", "--yes"]);
    wait_until("what he had begun to end", PATIENCE, || {
        going_on.iter_mut().all(|it| it.try_wait().is_ok_and(|ended| ended.is_some()))
    })
    .unwrap();
    let mut watch =
        eve.command(&["get", "services", "-w"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    ann.does(&["user", "rm", "eve", "--yes"]);
    wait_until("the watch to end", PATIENCE, || watch.try_wait().is_ok_and(|ended| ended.is_some())).unwrap();
    let said = eve.may_not(&["get", "services"]);
    assert!(said.contains("eve is not, or no longer, a user of the cluster"), "{said}");
    let again = first.folder().join("again.yaml");
    ann.does(&["user", "create", "eve", "--role", "view", &again.to_string_lossy()]);
    eve.may_not(&["get", "services"]);
    assert_eq!(ann.does(&["get", "grants", "-o", "name"]).lines().filter(|line| line.contains("eve.")).count(), 2);
    eve.does(&["context", "add", &again.to_string_lossy(), "--name", "again"]);
    eve.does(&["get", "services", "-A"]);
    assert!(eve.does(&["context", "ls"]).lines().any(|line| line.contains('*') && line.contains("again")));
}
