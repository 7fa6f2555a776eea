//! `make demo` and `make demo-down`, on an empty machine: namespaces of network, mounts and processes, with `/run` and
//! `/tmp` in memory. Needs root.

use std::process::{Command, Stdio};

use conformance::demo::Demo;
use conformance::images::{self, workspace};
use conformance::parts::installation::program;

#[test]
fn the_demo_keeps_its_promises_and_leaves_nothing() {
    let set = images::set("voting-app").unwrap();
    images::build(set, &workspace().join("target/images")).unwrap();
    // Of one that was killed.
    let name = "demo-test";
    let inside = "set -e; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp; ip link set lo up; \"$@\"";
    let proved = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside, "sh"])
        .arg(program("conformance").unwrap())
        .args(["demo", "--name", name, "prove"])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    // What is outside of the namespaces: files, and control groups.
    Demo::named(name).down().unwrap();
    assert!(proved.success(), "{proved}");
}
