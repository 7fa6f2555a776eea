//! What applyd and its companion process use of the machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::parts::machine::{Machine, Part};

fn ours(machine: &Machine) -> Vec<u32> {
    [Part::Applyd, Part::Keep].into_iter().flat_map(|part| machine.pids(part)).collect()
}

/// Megabytes of 10^6 bytes, pages that are shared counted by share.
pub(super) fn memory(machine: &Machine) -> Result<f64> {
    memory_of(&ours(machine))
}

/// The same, of some processes.
pub(super) fn memory_of(pids: &[u32]) -> Result<f64> {
    let mut kilobytes = 0.0;
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("a Pss")?;
        kilobytes += pss.split_whitespace().next().unwrap_or_default().parse::<f64>()?;
    }
    Ok(kilobytes * 1024.0 / 1e6)
}

/// Per cent of one core while nothing happens.
pub(super) fn processor(machine: &Machine, how_long: Duration) -> Result<f64> {
    processor_of(&ours(machine), how_long)
}

/// The same, of some processes.
pub(super) fn processor_of(pids: &[u32], how_long: Duration) -> Result<f64> {
    let used = || -> Result<f64> {
        let mut seconds = 0.0;
        for pid in pids {
            // Nanoseconds on a processor, of each thread: finer than the clock ticks of `stat`.
            for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                seconds += text.split(' ').next().unwrap_or_default().parse::<f64>().unwrap_or_default() / 1e9;
            }
        }
        Ok(seconds)
    };
    let before = used()?;
    std::thread::sleep(how_long);
    Ok((used()? - before) / how_long.as_secs_f64() * 100.0)
}

/// Of this process.
pub fn resident() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a VmRSS")?;
    Ok(kilobytes.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
