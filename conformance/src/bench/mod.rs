//! Benchmarks: each makes rows, which are printed as a table and written to `target/bench/<name>.json`.

#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub mod agents;
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
mod bare;
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub mod cluster;
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub mod deploy;
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub mod library;
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub mod mesh;
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub mod scheduler;
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub mod store;
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub mod tunnel;
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
mod usage;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::images::workspace;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    pub value: f64,
    /// `ms`, `MB`, `1/s`, `ratio`, …
    pub unit: &'static str,
}

impl Row {
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Row {
        Row { name: name.into(), value, unit }
    }
}

/// Prints the rows of a benchmark and writes them down; says where.
pub fn report(bench: &str, rows: &[Row]) -> Result<PathBuf> {
    let folder = workspace().join("target/bench");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{bench}.json"));
    fs::write(&path, serde_json::to_vec_pretty(rows)?)
        .with_context(|| format!("could not write {}", path.display()))?;
    let widest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or_default();
    for Row { name, value, unit } in rows {
        println!("{name:<widest$}  {value:>12.3} {unit}");
    }
    println!("{}", path.display());
    Ok(path)
}
