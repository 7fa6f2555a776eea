//! The two examples run as printed, and the README prints them as they run.

#![expect(clippy::disallowed_methods, reason = "processes and files are waited for in real time")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Built beside this test, as cargo builds a package's examples with its tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    Command::new(test.parent().unwrap().parent().unwrap().join("examples").join(name))
}

#[test]
fn the_controller_of_sixty_lines_keeps_its_promise() {
    let ran = example("fleet").output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "3 boats are afloat\none sank, and 3 are afloat again\n");
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fleet.rs")).unwrap();
    let controller = source.lines().take_while(|line| !line.contains("tokio::main")).count();
    assert!(controller <= 60, "the controller has {controller} lines");
}

struct Tidy {
    home: PathBuf,
    process: Child,
}

impl Tidy {
    fn start(home: &Path) -> Tidy {
        let mut command = example("tidy");
        command.arg(home.join("store.redb")).arg(home.join("folder"));
        let process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        Tidy { home: home.to_owned(), process }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.join("folder").join(name)
    }

    fn becomes(&self, name: &str, text: Option<&str>) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while fs::read_to_string(self.at(name)).ok().as_deref() != text {
            assert!(Instant::now() < deadline, "{name} did not become {text:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn the_tool_keeps_its_folder_in_line_also_after_it_was_killed() {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tidy-{}", std::process::id()));
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(&home).unwrap();

    let mut tidy = Tidy::start(&home);
    tidy.say("put a.txt one two");
    tidy.say("put b.txt three");
    tidy.becomes("a.txt", Some("one two"));
    tidy.becomes("b.txt", Some("three"));

    fs::create_dir(tidy.at("below")).unwrap();
    fs::write(tidy.at("below/kept"), "not ours").unwrap();
    fs::write(tidy.at("a.txt"), "something else").unwrap();
    fs::remove_file(tidy.at("b.txt")).unwrap();
    fs::write(tidy.at("stray"), "x").unwrap();
    tidy.becomes("a.txt", Some("one two"));
    tidy.becomes("b.txt", Some("three"));
    tidy.becomes("stray", None);
    tidy.becomes("below/kept", Some("not ours"));

    tidy.say("rm b.txt");
    tidy.becomes("b.txt", None);
    tidy.say("put a.txt four");
    tidy.becomes("a.txt", Some("four"));

    // Killed, it forgets nothing; what happened meanwhile is mended at its next start.
    tidy.kill();
    fs::remove_file(home.join("folder/a.txt")).unwrap();
    fs::write(home.join("folder/b.txt"), "back again").unwrap();
    let mut tidy = Tidy::start(&home);
    tidy.becomes("a.txt", Some("four"));
    tidy.becomes("b.txt", None);

    // The end of its input is its end.
    drop(tidy.process.stdin.take());
    assert!(tidy.process.wait().unwrap().success());
    fs::remove_dir_all(&home).unwrap();
}

#[test]
fn the_readme_prints_the_examples_as_they_are() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(package.join("README.md")).unwrap();
    let fleet = fs::read_to_string(package.join("examples/fleet.rs")).unwrap();
    assert!(readme.contains(&format!("```rust\n{fleet}```")), "README.md does not print examples/fleet.rs as it is");
    let tidy = fs::read_to_string(package.join("examples/tidy.rs")).unwrap();
    let begin = tidy.find("/// The folder as it is.").unwrap();
    let end = tidy.find("#[tokio::main]").unwrap();
    assert!(
        readme.contains(tidy[begin..end].trim_end()),
        "README.md does not print the heart of examples/tidy.rs as it is"
    );
}

/// A guide shows code that is compiled, tested and run elsewhere, word for word, on a page and a half.
#[test]
fn the_guides_print_the_examples_as_they_are() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(package.join(path)).unwrap();
    let of_rota = ["controller.rs", "main.rs", "tests.rs"].map(|name| format!("examples/rota/{name}"));
    for (guide, sources, least) in [
        ("../docs/guide-controller.md", of_rota.map(|path| read(&path)).to_vec(), 5),
        ("../docs/guide-embed.md", vec![read("examples/tidy.rs")], 3),
    ] {
        let text = read(guide);
        assert!(text.lines().count() <= 150, "{guide} has {} lines", text.lines().count());
        let blocks: Vec<&str> = text.split("```rust\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
        assert!(blocks.len() >= least, "{guide} has {} blocks", blocks.len());
        for block in blocks {
            assert!(
                sources.iter().any(|source| source.contains(block)),
                "{guide} prints what no example says:\n{block}"
            );
        }
    }
}
