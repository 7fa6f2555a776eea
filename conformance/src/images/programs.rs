//! Programs of this workspace, linked statically: an image needs no other file to run one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::workspace;

/// A program: the package and its binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    pub package: &'static str,
    pub binary: &'static str,
}

/// The contents of each program.
pub type Programs = BTreeMap<Program, Vec<u8>>;

/// Builds programs with the profile `image`, in a target folder of their own: their flags would otherwise make cargo
/// build the rest of the workspace anew, back and forth.
pub fn build(wanted: impl Iterator<Item = Program>) -> Result<Programs> {
    let wanted: Vec<Program> = wanted.collect();
    if wanted.is_empty() {
        return Ok(Programs::new());
    }
    // Naming the target, even the host's own, keeps the flags away from build scripts and macros.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = workspace().join("target/static");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).env("RUSTFLAGS", "-C target-feature=+crt-static");
    // It would outrank the other, where somebody has set it.
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo
        .args(["build", "--quiet", "--locked", "--profile", "image", "--target", &triple, "--target-dir"])
        .arg(&folder);
    let mut packages: Vec<_> = wanted.iter().map(|program| program.package).collect();
    packages.sort_unstable();
    packages.dedup();
    cargo.args(packages.iter().flat_map(|package| ["-p", package]));
    let status = cargo.status().context("could not run cargo")?;
    ensure!(status.success(), "cargo could not build {}", packages.join(", "));

    let folder: PathBuf = folder.join(triple).join("image");
    let read = |program: Program| {
        let path = folder.join(program.binary);
        Ok((program, std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?))
    };
    wanted.into_iter().map(read).collect()
}
