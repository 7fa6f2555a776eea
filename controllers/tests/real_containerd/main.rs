//! Execution on a real containerd, runc and crun. Run as root; every test has a containerd of its own.
#![allow(clippy::disallowed_methods, reason = "tests of the real world wait in real time")]

#[path = "../../../conformance/src/parts/containerd.rs"]
#[allow(dead_code, reason = "shared with other suites, which need other parts of it")]
mod containerd;
mod crashes;
mod execs;
mod image;
mod life;
mod scene;
