//! A file of credentials: a kubeconfig, of which the current context is meant.

use std::fmt;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Where managers are, what to show them, and whom to believe.
#[derive(Clone)]
pub struct Credentials {
    /// The managers, the preferred one first.
    pub managers: Vec<SocketAddr>,
    /// The User that the certificate names.
    pub user: String,
    /// The namespace that the context names.
    pub namespace: Option<String>,
    /// The certificate, then that of who signed it, in PEM.
    pub(crate) chain: String,
    /// Its key, in PEM.
    pub(crate) key: String,
    /// The authorities of the cluster, in PEM.
    pub(crate) authorities: String,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Unread {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It says something else, or not enough. What it says is not repeated: keys are among it.
    #[error("{path} is no file of credentials: {why}; applyctl controller grant writes one")]
    None {
        /// Which file.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
}

impl Error {
    pub(crate) fn none(path: &Path, why: impl Into<String>) -> Self {
        Self::None { path: path.to_owned(), why: why.into() }
    }
}

/// Of a whole file; one with a certificate has some 5 KiB.
const BYTES_MAX: u64 = 1 << 20;
/// The other managers, of which Kubernetes' clients do not know.
const EXTENSION: &str = "apply";

impl Credentials {
    /// The current context of the file.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes));
        file.map_err(|source| Error::Unread { path: path.to_owned(), source })?;
        let (documents, faults) = schemas::source::documents(&bytes);
        if let Some(fault) = faults.first() {
            return Err(Error::none(path, format!("it cannot be read at {}", fault.at)));
        }
        let document = documents.first().map(schemas::source::Node::to_value).unwrap_or_default();
        Self::of(&document).map_err(|why| Error::none(path, why))
    }

    fn of(config: &Value) -> Result<Self, String> {
        let context = named(config, "contexts", "context", text(config, "current-context"))?;
        let cluster = named(config, "clusters", "cluster", text(context, "cluster"))?;
        let user = named(config, "users", "user", text(context, "user"))?;
        let pem = |of: &Value, field: &str| {
            let decoded = STANDARD.decode(text(of, field)).ok().filter(|bytes| !bytes.is_empty());
            let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            decoded.ok_or_else(|| format!("{field} is missing, or not base64"))
        };
        let extensions = cluster["extensions"].as_array().into_iter().flatten();
        let ours = extensions.filter(|extension| extension["name"] == EXTENSION);
        let all = ours.filter_map(|extension| extension["extension"]["servers"].as_array()).flatten();
        let mut servers: Vec<&str> = all.filter_map(Value::as_str).collect();
        if servers.is_empty() {
            servers.push(text(cluster, "server"));
        }
        let address = |server: &&str| {
            let host = server.strip_prefix("https://").unwrap_or(server).trim_end_matches('/');
            host.parse::<SocketAddr>().map_err(|_| format!("{server:?} is no https://ADDRESS:PORT of a manager"))
        };
        let name = text(context, "user");
        Ok(Self {
            managers: servers.iter().map(address).collect::<Result<_, _>>()?,
            user: name.split_once('@').map_or(name, |(user, _)| user).to_owned(),
            namespace: Some(text(context, "namespace")).filter(|it| !it.is_empty()).map(str::to_owned),
            chain: pem(user, "client-certificate-data")?,
            key: pem(user, "client-key-data")?,
            authorities: pem(cluster, "certificate-authority-data")?,
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .field("managers", &self.managers)
            .finish_non_exhaustive()
    }
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

fn named<'a>(config: &'a Value, list: &str, what: &str, name: &str) -> Result<&'a Value, String> {
    let mut entries = config[list].as_array().into_iter().flatten();
    let found = entries.find(|entry| entry["name"] == name && !name.is_empty()).map(|entry| &entry[what]);
    found.filter(|found| found.is_object()).ok_or_else(|| format!("there is no {what} {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Value {
        let data = |word: &str| STANDARD.encode(word);
        serde_json::json!({
            "current-context": "otter",
            "contexts": [{"name": "otter", "context": {"cluster": "otter", "user": "w@otter", "namespace": "shop"}}],
            "clusters": [{"name": "otter", "cluster": {
                "server": "https://10.0.0.1:7677", "certificate-authority-data": data("authority"),
                "extensions": [{"name": "apply", "extension": {"servers": ["https://10.0.0.1:7677", "https://[fd00::2]:7677"]}}],
            }}],
            "users": [{"name": "w@otter", "user": {"client-certificate-data": data("chain"), "client-key-data": data("key")}}],
        })
    }

    #[test]
    fn the_current_context_is_meant_with_all_managers() {
        let read = Credentials::of(&config()).unwrap();
        assert_eq!((read.user.as_str(), read.namespace.as_deref()), ("w", Some("shop")));
        assert_eq!(read.managers, ["10.0.0.1:7677".parse().unwrap(), "[fd00::2]:7677".parse().unwrap()]);
        assert_eq!([&*read.chain, &*read.key, &*read.authorities], ["chain", "key", "authority"]);
        assert!(!format!("{read:?}").contains("key"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = |pointer: &str| {
            let mut config = config();
            *config.pointer_mut(pointer).unwrap() = Value::Null;
            Credentials::of(&config).unwrap_err()
        };
        assert_eq!(without("/current-context"), "there is no context \"\"");
        assert_eq!(without("/clusters"), "there is no cluster \"otter\"");
        assert_eq!(without("/users/0/user/client-key-data"), "client-key-data is missing, or not base64");
        let mut elsewhere = config();
        elsewhere["clusters"][0]["cluster"]["extensions"] = Value::Null;
        elsewhere["clusters"][0]["cluster"]["server"] = "https://host.example".into();
        assert!(Credentials::of(&elsewhere).unwrap_err().contains("https://ADDRESS:PORT"));
    }

    #[test]
    fn a_file_that_is_none_is_told_without_what_is_in_it() {
        let path = std::env::temp_dir().join(format!("client-{}.yaml", std::process::id()));
        for text in ["client-key-data: SECRET", "{SECRET", ""] {
            std::fs::write(&path, text).unwrap();
            let error = Credentials::read(&path).unwrap_err();
            assert!(matches!(error, Error::None { .. }) && !error.to_string().contains("SECRET"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Credentials::read(&path), Err(Error::Unread { .. })));
    }
}
