//! The two files by which applyd and its companion talk.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use schemas::kinds::service::Protocol;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::{logs, names, wireguard};

/// All that the companion process shall do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Table {
    /// Logs to collect. One that is taken out of the table is let go as it is; to get the rest of the output, say
    /// `finished` first and wait for that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<logs::Log>,
    pub names: names::Table,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
    /// What encrypts the way to other machines; none while there are none, or it is not to be encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<wireguard::Table>,
}

/// An address to listen at, and where to relay to. Two with the same protocol and address are one: the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    pub protocol: Protocol,
    pub listen: SocketAddr,
    /// Connections that exist stay with the target that they were opened to.
    pub target: SocketAddr,
}

/// The file of the table: with a number that grows whenever the contents change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Versioned {
    pub version: u64,
    #[serde(flatten)]
    pub table: Table,
}

/// What the companion process has done. Written by it only, whenever it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub pid: u32,
    pub build: String,
    /// Of the table that was read last. One that cannot be read is not, and is a fault.
    pub loaded: u64,
    /// Of the table in effect; 0 before the first.
    pub version: u64,
    pub faults: Faults,
    /// With which machines there is an encrypted session now.
    pub sessions: wireguard::Sessions,
}

/// What does not work now, in words, by what it concerns. All of it is tried again by itself every second or so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Faults {
    /// The table as a whole: the one before stays in effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// By the log's id: it cannot be opened, or its output is being dropped because it cannot be written.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<SocketAddr, String>,
    /// By protocol and address, such as `tcp [::1]:80`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub listeners: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
}

impl Faults {
    pub fn is_empty(&self) -> bool {
        *self == Faults::default()
    }
}

pub(super) fn table_path(dir: &Path) -> PathBuf {
    dir.join("table.json")
}

pub(super) fn status_path(dir: &Path) -> PathBuf {
    dir.join("status.json")
}

/// None: there is no such file.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Readers see the file before or the file after. Not synced: neither outlives the machine's run, nor needs to.
pub(super) fn replace<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    std::fs::rename(&fresh, path)
}
