//! What containers print: kept exactly, in order, bounded, and never in a container's way.
//!
//! A container writes into two named pipes (`pipes`). The companion process moves what is in them into files with
//! splice(2) (`collect`, one thread for all logs; `write`, the files of one log): the kernel takes bytes out of the pipe
//! and puts them into the file in one call, so a collector killed at any instruction loses nothing and repeats nothing.
//! Beside the bytes stands an index of when each stretch came and from which stream (`format`). Whoever wants to read,
//! also while it is written and across rotation, uses [`read()`].
//!
//! The directory of a task holds one directory for each attempt, named by its number, and in it for each file a pair
//! `NNNNNNNN.log` (the bytes that the container printed, nothing else: `grep` it) and `NNNNNNNN.idx`.
//! docs/decisions/output-of-containers-is-spliced.md has the reasons and what is given up.
//!
//! - **Owns**: the files under a task's log directory, until [`remove`] takes them away.
//! - **Relies on**: one collector at a time (the lock of the companion process); pipes that outlive a container because
//!   applyd holds them ([`hold`]).
//! - **Promises**: what `read` returns is what was printed, byte for byte, but for stretches that it names as lost.

mod collect;
mod format;
mod pipes;
mod read;
mod write;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use collect::Collector;
pub use pipes::{Hold, Pipes, ensure_pipes, hold, remove_pipes};
pub use read::{Entry, Follow, ReadError, ReadOptions, read};

/// Where a container's output went: `stdout` and `stderr` are never mixed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];
}

/// One attempt's log, as applyd asks the companion process to keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Names the pipes inside `pipes`; unique on this machine.
    pub id: String,
    /// The directory that [`ensure_pipes`] was given.
    pub pipes: PathBuf,
    /// The directory of the attempt: [`attempt_dir`].
    pub dir: PathBuf,
    /// A file is closed and the next one begun once its bytes and index reach this size. Bytes; 512 at least, default
    /// 10 MiB (json-file's recommended setting; Docker's own default is without bound).
    #[serde(default = "default_max_size_bytes")]
    pub max_size_bytes: u64,
    /// How many files are kept, the one being written included. 1 at least, default 3.
    #[serde(default = "default_max_files")]
    pub max_files: u32,
    /// True once the container's task is deleted: what is left in the pipes is taken, an end mark is written, and the
    /// pipes are let go. Never goes back to false.
    #[serde(default)]
    pub finished: bool,
}

pub const DEFAULT_MAX_SIZE_BYTES: u64 = 10 << 20;
pub const DEFAULT_MAX_FILES: u32 = 3;

fn default_max_size_bytes() -> u64 {
    DEFAULT_MAX_SIZE_BYTES
}

fn default_max_files() -> u32 {
    DEFAULT_MAX_FILES
}

/// The directory of one attempt below the task's log directory.
pub fn attempt_dir(task_dir: &Path, attempt: u32) -> PathBuf {
    task_dir.join(attempt.to_string())
}

/// Removes the logs of a task, all attempts. What is already gone is a success. Whoever follows them meets their end.
pub fn remove(task_dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(task_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Wall clock in nanoseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the outer edge: log lines carry the machine's wall clock")]
fn now_nanos() -> u64 {
    nanos(SystemTime::now())
}

/// Times before 1970 count as 1970; the year 2554 is the last.
fn nanos(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

fn time_of(nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}
