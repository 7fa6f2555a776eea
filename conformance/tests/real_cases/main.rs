//! Public reports of what went wrong elsewhere, on this system: each test says what the users of those reports would have
//! called right. Needs root.

mod bundles;
mod images;
mod logs;
mod runtime;

use std::fs;
use std::path::PathBuf;

use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;
use serde_json::Value;

/// A machine with the images of the suites.
pub struct Stage {
    pub machine: Machine,
}

/// What a command that was refused said, and its exit code.
#[derive(Debug)]
pub struct Refusal {
    pub code: Option<i32>,
    pub said: String,
}

impl Stage {
    pub fn open(name: &str) -> Stage {
        let machine = Machine::start(&format!("case-{name}")).unwrap();
        machine.load("test").unwrap();
        Stage { machine }
    }

    /// A file of this text, for a command to read.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.machine.folder().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// A service of one container. `container`: the inside of a flow mapping in YAML.
    pub fn service(&self, name: &str, container: &str) {
        self.service_with(name, container, "");
    }

    /// Beside the container something more of the template.
    pub fn service_with(&self, name: &str, container: &str, template: &str) {
        let yaml = service(name, container, template);
        let file = self.file(&format!("{name}.yaml"), &yaml);
        self.machine.ctl(&["apply", "-f", &file]).unwrap();
    }

    /// It has to fail.
    pub fn refused(&self, words: &[&str]) -> Refusal {
        let output = self.machine.person().applyctl(words).unwrap().output().unwrap();
        assert!(!output.status.success(), "applyctl {} was not refused", words.join(" "));
        Refusal { code: output.status.code(), said: String::from_utf8(output.stderr).unwrap() }
    }

    pub fn tasks(&self, service: &str) -> Vec<Value> {
        let tasks = self.machine.person().list("task").unwrap_or_default();
        tasks.into_iter().filter(|task| task["spec"]["service"] == service).collect()
    }

    /// The first task of a service of which this is so.
    pub fn task_that(&self, service: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        let waited = wait_until(&format!("a task of {service} that {what}"), PATIENCE, || {
            found = self.tasks(service).into_iter().find(|task| is_so(task));
            found.is_some()
        });
        waited.unwrap_or_else(|error| panic!("{error}; there are {:#?}", self.tasks(service)));
        found.unwrap()
    }

    pub fn running(&self, service: &str) -> Value {
        self.task_that(service, "runs", |task| task["status"]["state"] == "Running")
    }

    pub fn exec(&self, service: &str, words: &[&str]) -> String {
        let words = [&["exec", service], words].concat();
        self.machine.ctl(&words).unwrap_or_else(|error| panic!("{error:#}"))
    }

    pub fn logs(&self, service: &str) -> String {
        self.machine.ctl(&["logs", service]).unwrap_or_default()
    }

    pub fn until(&self, what: &str, is_so: impl FnMut() -> bool) {
        wait_until(what, PATIENCE, is_so).unwrap_or_else(|error| panic!("{error}; {}", self.machine.log_end("applyd")));
    }

    /// Command lines of what runs on the machine beside the daemons.
    pub fn lines(&self) -> Vec<String> {
        self.machine.processes().into_iter().map(|(_, words)| words.join(" ")).collect()
    }
}

pub fn service(name: &str, container: &str, template: &str) -> String {
    format!(
        "apiVersion: apply/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  template: {{container: {{{container}}}{template}}}\n"
    )
}
