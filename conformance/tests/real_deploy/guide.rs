//! `docs/guide-deploy.md`, typed as it stands: its files are made, its commands run one after another.

use std::fs;
use std::process::Command;

use conformance::images::workspace;
use conformance::parts::installation::program;
use conformance::parts::machine::Machine;

/// What a page says that can be done.
#[derive(Default)]
struct Page {
    /// Name and text of each file.
    files: Vec<(String, String)>,
    commands: Vec<String>,
}

/// A fenced block behind `<!-- file: NAME -->`, indented lines behind `<!-- run -->`.
fn read(text: &str) -> Page {
    let mut page = Page::default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->")) {
            let body: Vec<&str> = lines.by_ref().skip(1).take_while(|line| *line != "```").collect();
            page.files.push((name.to_owned(), body.join("\n") + "\n"));
        } else if line == "<!-- run -->" {
            page.commands.extend(lines.by_ref().map_while(|line| line.strip_prefix("    ").map(str::to_owned)));
        }
    }
    page
}

#[test]
fn the_guide_for_whoever_deploys_does_what_it_says() {
    let page = read(&fs::read_to_string(workspace().join("docs/guide-deploy.md")).unwrap());
    assert!(page.files.len() == 2 && page.commands.len() > 15, "the page is read as it is meant: {:?}", page.commands);
    let machine = Machine::start("guide").unwrap();
    machine.load("test").unwrap();
    let folder = machine.folder().join("guide");
    fs::create_dir(&folder).unwrap();
    for (name, text) in page.files {
        fs::write(folder.join(name), text).unwrap();
    }
    let programs = program("applyctl").unwrap().parent().unwrap().to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    for command in &page.commands {
        let output = Command::new("sh")
            .args(["-c", command])
            .current_dir(&folder)
            .env("PATH", &path)
            .env("APPLY_HOST", format!("unix://{}", machine.person().socket.display()))
            .output()
            .unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{command}: {}\n{}",
            output.status,
            said(&output.stderr) + &said(&output.stdout)
        );
        println!("$ {command}\n{}{}", said(&output.stdout), said(&output.stderr));
    }
    // The page ends with nothing of it left, but what it says is left.
    assert_eq!(machine.person().list("task").unwrap().len(), 0);
    assert!(folder.join("shop.backup").exists());
}
