//! Whom a certificate names.
//!
//! The name is one URI among the certificate's alternative names: `apply://CLUSTER/manager/n1/UID`,
//! `apply://CLUSTER/worker/n2/UID`, `apply://CLUSTER/user/ann/UID`. A machine that was removed and joins again under its old
//! name has another uid, so that its old certificate names nobody; so has a person.

use std::fmt;
use std::sync::Arc;

use reconciler_api::{Timestamp, Uid};
use schemas::kinds::node::Role;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Fingerprint, IdentityError};

const SCHEME: &str = "apply://";

/// Whom a certificate names, and of which cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Identity of the cluster, as in the Cluster object's status.
    pub cluster: String,
    /// Who it is there.
    pub who: Who,
}

/// One that the cluster knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A machine.
    Node {
        /// Its Node's name.
        name: String,
        /// Its Node's uid.
        uid: Uid,
        /// What it may do for the cluster.
        role: Role,
    },
    /// A person or program.
    User {
        /// The name of its User object.
        name: String,
        /// The uid of that.
        uid: Uid,
    },
}

/// What a certificate says, its signature not yet looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// Whom it names.
    pub subject: Subject,
    /// From when on.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// Of the named one's public key.
    pub key: Fingerprint,
}

impl Who {
    /// As the API and the audit log name it: `node:n1`, `user:ann`.
    pub fn identity(&self) -> Arc<str> {
        match self {
            Who::Node { name, .. } => format!("node:{name}").into(),
            Who::User { name, .. } => format!("user:{name}").into(),
        }
    }
}

impl Who {
    /// The uid of the object that stands for it.
    pub fn uid(&self) -> &Uid {
        match self {
            Who::Node { uid, .. } | Who::User { uid, .. } => uid,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = &self.cluster;
        match &self.who {
            Who::Node { name, uid, role: Role::Manager } => write!(f, "{SCHEME}{cluster}/manager/{name}/{uid}"),
            Who::Node { name, uid, role: Role::Worker } => write!(f, "{SCHEME}{cluster}/worker/{name}/{uid}"),
            Who::User { name, uid } => write!(f, "{SCHEME}{cluster}/user/{name}/{uid}"),
        }
    }
}

impl Subject {
    fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(SCHEME)?.split('/');
        let (cluster, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        let uid = Uid::new(parts.next()?);
        let role = match kind {
            "manager" => Some(Role::Manager),
            "worker" => Some(Role::Worker),
            "user" => None,
            _ => return None,
        };
        let who = match role {
            Some(role) => Who::Node { name: name.to_owned(), uid, role },
            None => Who::User { name: name.to_owned(), uid },
        };
        let whole = parts.next().is_none() && !cluster.is_empty() && !name.is_empty();
        whole.then(|| Subject { cluster: cluster.to_owned(), who })
    }
}

/// Of the public key in a certificate in DER, whoever it names.
///
/// # Errors
/// [`IdentityError::Unreadable`] when it is no X.509 certificate.
pub fn key_of(der: &[u8]) -> Result<Fingerprint, IdentityError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| IdentityError::Unreadable { why: error.to_string() })?;
    Ok(Fingerprint::of(certificate.public_key().raw))
}

/// A certificate, and whose key it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPem {
    /// Of the public key in it.
    pub fingerprint: Fingerprint,
    /// The certificate alone.
    pub pem: String,
}

/// The certificates in a text, in order; what else is in it is passed over.
///
/// # Errors
/// [`IdentityError::Unreadable`] when one is no X.509 certificate.
pub fn authorities_in(text: &str) -> Result<Vec<InPem>, IdentityError> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let blocks = text.split(BEGIN).skip(1).filter_map(|rest| Some(rest.split_once(END)?.0));
    let read = blocks.map(|body| {
        let pem = format!("{BEGIN}{body}{END}\n");
        let parsed = x509_parser::pem::parse_x509_pem(pem.as_bytes());
        let (_, parsed) = parsed.map_err(|error| IdentityError::Unreadable { why: error.to_string() })?;
        Ok(InPem { fingerprint: key_of(&parsed.contents)?, pem })
    });
    read.collect()
}

impl Certified {
    /// Reads a certificate in DER. Whether to believe it is not asked here.
    ///
    /// # Errors
    /// [`IdentityError::Unreadable`] when it is none of ours: not X.509, or without exactly one name of our kind.
    pub fn read(der: &[u8]) -> Result<Self, IdentityError> {
        let unreadable = |why: String| IdentityError::Unreadable { why };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
        let names = certificate.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
        let names = names.map(|found| found.value.general_names.as_slice()).unwrap_or_default();
        let mut subjects = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Subject::parse(uri),
            _ => None,
        });
        let (Some(subject), None) = (subjects.next(), subjects.next()) else {
            return Err(unreadable("it does not name a member of a cluster".to_owned()));
        };
        let validity = certificate.validity();
        Ok(Self {
            subject,
            from: Timestamp::from_seconds(validity.not_before.timestamp()),
            until: Timestamp::from_seconds(validity.not_after.timestamp()),
            key: Fingerprint::of(certificate.public_key().raw),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_others_are_nobodys() {
        let node = |role| Who::Node { name: "n1".into(), uid: Uid::new("u-1"), role };
        for who in [node(Role::Manager), node(Role::Worker), Who::User { name: "ann".into(), uid: Uid::new("u-2") }] {
            let subject = Subject { cluster: "c1".into(), who };
            assert_eq!(Subject::parse(&subject.to_string()), Some(subject));
        }
        for other in [
            "apply://c1/manager/n1",
            "apply://c1/manager/n1/u/more",
            "apply://c1/user/ann",
            "apply://c1/user/ann/u/more",
            "apply:///user/ann/u",
            "apply://c1/user//u",
            "apply://c1/root/ann/u",
            "https://c1/user/ann/u",
        ] {
            assert_eq!(Subject::parse(other), None, "{other}");
        }
    }
}
