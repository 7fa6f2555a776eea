//! The companion process as it is: real pipes, sockets, signals, network namespaces and a full disk. Needs root.

mod life;
mod network;
mod output;
mod scene;

use std::path::PathBuf;

use controllers::node::keep::{Options, run};

use scene::{BUILD, CGROUP, DIR, REPLACE};

#[test]
fn without_a_place_for_its_directory_it_says_so() {
    let Some(dir) = std::env::var_os(DIR) else {
        let dir = PathBuf::from("/dev/null/keep");
        let error = run(&Options { dir, build: "1".into(), replace: false, cgroup: None }).unwrap_err();
        assert_eq!(error.to_string(), "could not make the directory in /dev/null/keep");
        return;
    };
    run(&Options {
        dir: dir.into(),
        build: std::env::var(BUILD).unwrap(),
        replace: std::env::var_os(REPLACE).is_some(),
        cgroup: std::env::var(CGROUP).ok(),
    })
    .unwrap();
}
