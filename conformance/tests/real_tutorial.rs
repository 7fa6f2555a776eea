//! `docs/tutorial-controller.md`, typed as it is printed; then what it says of two copies. Needs root.
//!
//! A block of the page is a file (its name stands behind the language), commands (`sh`; `sh fails`: they are refused;
//! `sh background`: they go on), or what the commands before it print (`text`: each line is somewhere in it, soon if they only
//! look).
#![allow(clippy::disallowed_methods, reason = "tests of the real world wait in real time")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use conformance::images::workspace;
use conformance::lab::Lab;
use conformance::parts::installation::program;
use conformance::parts::machine::PATIENCE;
use conformance::parts::process::wait_until;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// Of its own: the one that somebody plays with stays.
const LAB: &str = "tut";

struct Block {
    /// `sh fails`, `rust src/main.rs`.
    info: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(info), None) => open = Some(Block { info: info.to_owned(), text: String::new() }),
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some(block)) => block.text.push_str(&format!("{line}\n")),
            (None, None) => {}
        }
    }
    found
}

/// Somebody who reads the page and types.
struct Reader {
    /// Where `cd` has led.
    folder: PathBuf,
    began: PathBuf,
    said: String,
    background: Vec<(Child, PathBuf)>,
}

impl Reader {
    fn shell(&self, commands: &str) -> Command {
        let folder = program("applyctl").unwrap().parent().unwrap().display().to_string();
        let mut command = Command::new("bash");
        // Where it is afterwards is where the next commands are typed.
        command.args([
            "-e",
            "-u",
            "-o",
            "pipefail",
            "-c",
            &format!("{commands}\npwd > {}", self.began.join("pwd").display()),
        ]);
        command.current_dir(&self.folder).stdin(Stdio::null());
        command.env("PATH", format!("{folder}:{}", std::env::var("PATH").unwrap_or_default()));
        command.env("CONFORMANCE_LAB", LAB).env("CARGO_NET_OFFLINE", "true").env_remove("CARGO_TARGET_DIR");
        command
    }

    fn types(&mut self, block: &Block, fails: bool) {
        let output = self.shell(&block.text).output().unwrap();
        self.said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert_eq!(output.status.success(), !fails, "{}ended with {}:\n{}", block.text, output.status, self.said);
        if let Ok(pwd) = fs::read_to_string(self.began.join("pwd")) {
            self.folder = pwd.trim().into();
        }
    }

    /// What was typed last says all of this.
    fn was_told(&mut self, block: &Block, typed: Option<&Block>) {
        let missing = |said: &str| {
            let said = squeezed(said);
            block.text.lines().find(|line| !said.contains(&squeezed(line))).map(str::to_owned)
        };
        let only_looks = |typed: &Block| {
            let looks = [" applyctl get ", " applyctl events ", " applyctl wait ", " applyctl explain "];
            typed.text.lines().all(|line| looks.iter().any(|word| line.contains(word)))
        };
        // An Event is written a moment later, so that several go at once.
        if let (Some(_), Some(typed)) = (missing(&self.said), typed.filter(|typed| only_looks(typed))) {
            let _ = wait_until("what the page shows", PATIENCE, || {
                self.types(typed, false);
                missing(&self.said).is_none()
            });
        }
        assert_eq!(missing(&self.said), None, "is not in what was printed:\n{}", self.said);
    }

    fn leaves_running(&mut self, block: &Block) {
        let path = self.began.join(format!("terminal-{}", self.background.len() + 2));
        let log = File::create(&path).unwrap();
        let mut command = self.shell(&format!("exec {}", block.text.trim()));
        command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.background.push((command.spawn().unwrap(), path));
    }

    fn log(&self, terminal: usize) -> String {
        fs::read_to_string(&self.background[terminal].1).unwrap_or_default()
    }

    /// ^C in that terminal.
    fn stops(&mut self, terminal: usize) {
        let child = &mut self.background[terminal].0;
        let group = Pid::from_child(child);
        let _ = kill_process_group(group, Signal::INT);
        wait_until("what was stopped to end", PATIENCE, || child.try_wait().is_ok_and(|ended| ended.is_some()))
            .unwrap();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for (child, _) in &mut self.background {
            if child.try_wait().is_ok_and(|ended| ended.is_none()) {
                let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
                let _ = child.wait();
            }
        }
        let _ = Lab::remove(LAB);
        let _ = fs::remove_dir_all(&self.began);
    }
}

fn holder() -> String {
    let lab = Lab::found(LAB).unwrap();
    let lease = lab.machine(1).unwrap().json(&["get", "lease/alarms", "-n", "controller-alarms"]);
    lab.leave();
    let lease: Value = lease.unwrap_or_default();
    lease["spec"]["holder"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_tutorial_holds_as_it_is_printed() {
    let began = beside_every_workspace().unwrap();
    std::os::unix::fs::symlink(workspace(), began.join("apply")).unwrap();
    let mut reader = Reader { folder: began.clone(), began, said: String::new(), background: Vec::new() };
    let page = fs::read_to_string(workspace().join("docs/tutorial-controller.md")).unwrap();
    let blocks = blocks(&page);
    for (index, block) in blocks.iter().enumerate() {
        let (language, rest) = block.info.split_once(' ').unwrap_or((block.info.as_str(), ""));
        match (language, rest) {
            ("sh", "") => {
                if block.text.contains("controller revoke") {
                    two_copies_of_which_one_acts(&mut reader);
                }
                reader.types(block, false);
                if block.text.contains("cargo new") {
                    as_the_workspace_builds(&reader.folder);
                }
                if block.text.contains("controller grant") {
                    let mode = fs::metadata(reader.folder.join("alarms.yaml")).unwrap().permissions().mode();
                    assert_eq!(mode & 0o777, 0o600);
                }
            }
            ("sh", "fails") => reader.types(block, true),
            ("sh", "background") => reader.leaves_running(block),
            ("text", "") => {
                let typed = index.checked_sub(1).map(|before| &blocks[before]).filter(|before| before.info == "sh");
                reader.was_told(block, typed);
            }
            (_, file) => {
                assert!(!file.is_empty(), "a block without a name: {}", block.text);
                fs::write(reader.folder.join(file), &block.text).unwrap();
            }
        }
    }
}

/// Columns are as wide as what is in them.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Cargo takes what lies below a workspace for a part of it, and a machine of the lab has a `/tmp` of its own. By its name the
/// next run finds what a killed one left.
fn beside_every_workspace() -> std::io::Result<PathBuf> {
    let folder =
        Path::new("/var/tmp").join(format!("apply-tutorial{}", workspace().to_string_lossy().replace('/', "-")));
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(&folder)?,
    }
    Ok(folder)
}

/// The versions that are here, and a folder for what is built that the next run finds again.
fn as_the_workspace_builds(folder: &Path) {
    fs::copy(workspace().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let target = workspace().join("target/tutorial");
    fs::create_dir_all(&target).unwrap();
    std::os::unix::fs::symlink(target, folder.join("target")).unwrap();
}

fn two_copies_of_which_one_acts(reader: &mut Reader) {
    let first = holder();
    assert!(!first.is_empty(), "somebody leads");
    assert!(reader.log(0).contains("web: 0 of 1 run"), "{}", reader.log(0));
    assert_eq!(reader.log(1), "", "the second copy only watches");
    let ring = |reader: &mut Reader, least: u32| {
        let text = format!(
            "conformance lab exec 1 applyctl get alarm/web -o json | sed 's/\"least\": [0-9]*/\"least\": {least}/' \
             | conformance lab exec 1 applyctl apply -f -"
        );
        reader.types(&Block { info: "sh".into(), text }, false);
    };
    ring(reader, 3);
    wait_until("the first copy to act", PATIENCE, || reader.log(0).contains("web: 0 of 3 run")).unwrap();
    assert_eq!(reader.log(1), "", "and nobody else");
    reader.stops(0);
    wait_until("another to lead", PATIENCE, || ![String::new(), first.clone()].contains(&holder())).unwrap();
    ring(reader, 0);
    wait_until("the second copy to act", PATIENCE, || reader.log(1).contains("web: 0 of 0 run")).unwrap();
    // What was not granted is refused to whoever has the file, whatever they are.
    let may_not = [
        "get secrets",
        "get services",
        "get users",
        "get leases -A",
        "user rm alarms --yes",
        "get resourcedefinitions",
        "token create",
        "user credentials alarms -",
    ];
    for words in may_not {
        let text = format!("conformance lab exec 1 env -u APPLY_HOST APPLY_CONFIG=alarms.yaml applyctl {words}");
        reader.types(&Block { info: "sh fails".into(), text }, true);
        assert!(
            reader.said.contains("may not") || reader.said.contains("no administrator"),
            "{words}: {}",
            reader.said
        );
    }
}
