//! What `applyctl deploy` promises whoever deploys, on a machine with a real containerd: what cannot come up is told in
//! plain words and does not have to be waited for, the same file twice writes nothing, and what goes leaves nothing.
//! Needs root.

mod again;
mod failures;
mod guide;

use std::fs;
use std::path::PathBuf;

use conformance::parts::machine::Machine;

/// A file beside the machine's disk.
fn file(machine: &Machine, name: &str, text: &str) -> PathBuf {
    let path = machine.folder().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// How a command ended, and what it said.
struct Said {
    code: Option<i32>,
    talk: String,
}

fn run(machine: &Machine, words: &[&str]) -> Said {
    let output = machine.person().applyctl(words).unwrap().output().unwrap();
    Said { code: output.status.code(), talk: String::from_utf8(output.stderr).unwrap() }
}
