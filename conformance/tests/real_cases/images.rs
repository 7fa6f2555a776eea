//! What an image says of how it is started, and volumes over its folders.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::Stage;

/// Roblox/nomad-driver-containerd#124: with another entrypoint it ran as root, and without the image's variables.
#[test]
fn another_entrypoint_keeps_the_rest_of_the_image() {
    let stage = Stage::open("entrypoint");
    let ask = "id -u; id -g; pwd; echo $FROM_IMAGE; echo args $#; sleep 1000000";
    stage.service("own", &format!("image: 'test/manners:1', command: [sh, -c, '{ask}'], health: {{disabled: true}}"));
    stage.running("own");
    stage.until("it to say who it is", || stage.logs("own").contains("args"));
    let said = stage.logs("own");
    let words: Vec<&str> = said.lines().map(|line| line.rsplit('|').next().unwrap_or(line).trim()).collect();
    assert_eq!(words, ["1000", "100", "/home/guest", "yes", "args 0"], "{said}");
}

/// docker/cli#4615: a folder that is not there is made; users are looked up in the image; one who is not in it is no
/// crash that is tried for ever.
#[test]
fn users_and_folders_are_those_of_the_image() {
    let stage = Stage::open("users");
    let wait = "command: [sleep], args: ['1000000']";
    for (name, more) in [
        ("folder", "dir: /no/such/dir"),
        ("name", "user: nobody"),
        ("number", "user: '1234'"),
        ("group", "user: 'nobody:users'"),
        ("ghost", "user: ghost"),
    ] {
        stage.service(name, &format!("image: 'test/shell:1', {wait}, {more}"));
    }
    let told = |service: &str, words: &[&str]| {
        stage.running(service);
        stage.exec(service, words).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(told("folder", &["pwd"]), "/no/such/dir");
    assert_eq!(told("name", &["sh", "-c", "id -u; id -g"]), "65534 65534");
    assert_eq!(told("number", &["sh", "-c", "id -u; id -g"]), "1234 0");
    assert_eq!(told("group", &["sh", "-c", "id -u; id -g"]), "65534 100");
    let ghost = stage.task_that("ghost", "is refused", |task| task["status"]["state"] == "Rejected");
    let message = ghost["status"]["message"].as_str().unwrap();
    assert!(message.contains("ghost"), "{message}");
    assert_eq!(ghost["status"]["restarts"].as_u64().unwrap_or(0), 0, "{ghost}");
}

/// socktainer/socktainer#380, moby/moby#25854: an empty volume takes what the image has there, with its owner; one with
/// contents is not touched.
#[test]
fn an_empty_volume_takes_the_images_contents_and_no_other_is_touched() {
    let stage = Stage::open("volumes");
    let mount = |extra: &str| format!("mounts: [{{type: volume, source: data, target: /home/guest/data{extra}}}]");
    let sleep = "command: [sleep], args: ['1000000'], health: {disabled: true}";
    stage.service("first", &format!("image: 'test/manners:1', {sleep}, {}", mount("")));
    stage.running("first");
    let said = stage.exec("first", &["sh", "-c", "touch data/x && cat data/seed && stat -c %u:%g:%a data"]);
    assert_eq!(said, "put here by the image\n1000:100:750\n");
    stage.machine.ctl(&["service", "rm", "first", "--yes"]).unwrap();

    // By hand it becomes another's.
    let mut volume = None;
    stage.until("the volume to be found", || {
        volume = find(stage.machine.folder(), "seed");
        volume.is_some()
    });
    let volume = volume.unwrap();
    std::os::unix::fs::chown(&volume, Some(4321), Some(8765)).unwrap();
    stage.service("second", &format!("image: 'test/manners:1', {sleep}, user: '0', {}", mount(", readOnly: true")));
    stage.running("second");
    let said = stage.exec("second", &["sh", "-c", "ls data; touch data/y 2>&1 || true"]);
    assert!(said.starts_with("seed\nx\n") && said.contains("Read-only"), "{said}");
    let owner = fs::metadata(&volume).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (4321, 8765));
}

/// The folder below applyd's data that holds a file of this name.
fn find(folder: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    let volumes = folder.join("apply");
    let mut open = vec![volumes];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name() == name {
                return Some(folder);
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    None
}
