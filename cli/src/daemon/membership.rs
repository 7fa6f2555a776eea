//! What this machine is in its cluster, as its disk has it: `<data>/identity`. Absent: it is in no cluster yet.
//!
//! The folder appears whole, by a rename, and `node.pem` (certificate and key in one file, 0600) is replaced whole, so that
//! whoever is killed at any instruction finds either the old or the new.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use controllers::identity::{Authority, Request, Subject, Who, authorities_in};
use reconciler::api::Uid;
use reconciler::objects::encoding::Sealer;
use reconciler::seams::Seams;
use schemas::kinds::node::Role;
use serde::{Deserialize, Serialize};

use super::durable::write;
use crate::tls::Credentials;

const FOLDER: &str = "identity";
/// The key of a machine that has asked to be taken in and has no answer yet.
const PENDING: &str = "joining.pem";
const MEMBER: &str = "member.json";
const NODE: &str = "node.pem";
const AUTHORITIES: &str = "authorities.pem";
pub(super) const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";
/// The authority that is to sign next, in a folder of its own.
const NEXT: &str = "next";
/// What the authority's key is sealed for: nothing else that is sealed with the same key opens as one.
const CONTEXT: &str = "identity/authority";

/// What a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Member {
    /// Identity of the cluster.
    pub cluster: String,
    /// This machine's Node.
    pub node: String,
    /// That Node's uid.
    pub uid: Uid,
    pub role: Role,
    /// Where the managers were when they were last heard of; empty on the first one.
    #[serde(default)]
    pub managers: Vec<SocketAddr>,
}

impl Member {
    /// As certificates name it.
    pub fn subject(&self) -> Subject {
        let who = Who::Node { name: self.node.clone(), uid: self.uid.clone(), role: self.role };
        Subject { cluster: self.cluster.clone(), who }
    }
}

/// Where it is kept.
#[derive(Clone, Debug)]
pub struct Membership {
    data: PathBuf,
}

impl Membership {
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.data.join(FOLDER).join(name)
    }

    /// What this machine is; `None`: in no cluster yet.
    ///
    /// # Errors
    /// In words, when what is there cannot be read.
    pub fn read(&self) -> Result<Option<Member>> {
        let path = self.path(MEMBER);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let member = serde_json::from_slice(&text);
        member.map(Some).with_context(|| format!("{} is not what applyd has written", path.display()))
    }

    /// What this machine shows and whom it believes.
    ///
    /// # Errors
    /// In words, when it cannot be read.
    pub fn credentials(&self) -> Result<Credentials> {
        let read = |name| {
            let path = self.path(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (node, authorities) = (read(NODE)?, read(AUTHORITIES)?);
        Ok(Credentials { chain: node.clone(), key: node, authorities })
    }

    /// Whether an authority's key lies here, sealed.
    pub fn has_authority(&self) -> bool {
        self.path(AUTHORITY_KEY).exists()
    }

    /// The authority, on a manager.
    ///
    /// # Errors
    /// In words, when it is not there or another key sealed it.
    pub fn authority(&self, sealer: &dyn Sealer) -> Result<Authority> {
        let kept = || kept_authority(&self.data.join(FOLDER), CONTEXT, sealer);
        let kept = match (kept(), self.next_authority(sealer)?) {
            // Killed while the next one took its place: its certificate is there, and the key is of the one before.
            (Err(_), Some(next)) => {
                self.take_next(&next, sealer)?;
                kept()
            }
            (kept, _) => kept,
        };
        kept.with_context(|| {
            format!(
                "cannot open {}, the authority's key; bring back the key that it was sealed with. To begin with another \
                 authority, which machines would have to join anew: rm -r {}",
                self.key_of_authority().display(),
                self.data.join(FOLDER).display()
            )
        })
    }

    /// Holds the authority of a cluster that this machine is a member of, as one more of its managers.
    ///
    /// # Errors
    /// In words, when it cannot be written.
    pub fn hold(&self, authority: &Authority, sealer: &dyn Sealer) -> Result<()> {
        keep_authority(&self.data.join(FOLDER), CONTEXT, authority, sealer)
    }

    /// The authority that is to sign next, if there is one.
    ///
    /// # Errors
    /// In words, when another key sealed it.
    pub fn next_authority(&self, sealer: &dyn Sealer) -> Result<Option<Authority>> {
        let folder = self.path(NEXT);
        match folder.join(AUTHORITY_KEY).exists() {
            true => kept_authority(&folder, CONTEXT, sealer).map(Some),
            false => Ok(None),
        }
    }

    /// Holds the authority that is to sign next, in the place of one that was to.
    ///
    /// # Errors
    /// In words, when it cannot be written.
    pub fn hold_next(&self, authority: &Authority, sealer: &dyn Sealer) -> Result<()> {
        self.let_go_of_next()?;
        let folder = self.path(NEXT);
        let made = DirBuilder::new().mode(0o700).create(&folder);
        made.with_context(|| format!("cannot make {}", folder.display()))?;
        keep_authority(&folder, CONTEXT, authority, sealer)
    }

    /// The next one signs from here on.
    ///
    /// # Errors
    /// In words, when it cannot be written; then it is to be called again.
    pub fn take_next(&self, next: &Authority, sealer: &dyn Sealer) -> Result<()> {
        self.hold(next, sealer)?;
        self.let_go_of_next()
    }

    fn let_go_of_next(&self) -> Result<()> {
        let folder = self.path(NEXT);
        // First what says that it is there.
        match fs::remove_file(folder.join(AUTHORITY_KEY)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the key in {}", folder.display()));
            }
            _ => {}
        }
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", folder.display()))
            }
            _ => Ok(()),
        }
    }

    /// Where the authority's key lies on a manager, sealed.
    pub fn key_of_authority(&self) -> PathBuf {
        self.path(AUTHORITY_KEY)
    }

    /// Has no authority any more.
    ///
    /// # Errors
    /// In words, when it cannot be removed.
    pub fn let_go(&self) -> Result<()> {
        for path in [self.path(AUTHORITY_KEY), self.path(AUTHORITY)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        self.let_go_of_next()
    }

    /// Founds a cluster: its authority, and this machine's certificate as its first manager.
    ///
    /// # Errors
    /// In words, when it cannot be written. Nothing is half there.
    pub fn found(&self, member: &Member, life: Duration, sealer: &dyn Sealer, seams: &Seams) -> Result<()> {
        let authority = Authority::make(&member.cluster, seams.now())?;
        let request = Request::make()?;
        let issued = authority.issue(&member.subject(), &request.request, seams.now(), life)?;
        let credentials = Credentials {
            chain: issued.pem + authority.certificate(),
            key: request.key,
            authorities: authority.certificate().to_owned(),
        };
        let key = sealed(sealer, CONTEXT, authority.key().as_bytes());
        self.put(member, &credentials, &[(AUTHORITY, authority.certificate().as_bytes()), (AUTHORITY_KEY, &key)])
    }

    /// The key that this machine asks with: the same each time until it has joined, so that the manager knows it again when
    /// its first answer was lost.
    ///
    /// # Errors
    /// In words, when it cannot be written.
    pub fn request(&self) -> Result<Request> {
        let path = self.data.join(PENDING);
        match fs::read_to_string(&path) {
            Ok(key) => Ok(Request::of(key)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let request = Request::make()?;
                write(&path, request.key.as_bytes())?;
                Ok(request)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Becomes a member of a cluster that has taken this machine in.
    ///
    /// # Errors
    /// In words, when it cannot be written. Nothing is half there.
    pub fn join(&self, member: &Member, credentials: &Credentials) -> Result<()> {
        self.put(member, credentials, &[])?;
        let _ = fs::remove_file(self.data.join(PENDING));
        Ok(())
    }

    /// The next certificate, with its key.
    ///
    /// # Errors
    /// In words, when it cannot be written; the old one stands.
    pub fn renew(&self, credentials: &Credentials) -> Result<()> {
        write(&self.path(NODE), pair(credentials).as_bytes())?;
        Ok(write(&self.path(AUTHORITIES), credentials.authorities.as_bytes())?)
    }

    /// Where the managers are now.
    ///
    /// # Errors
    /// In words, when it cannot be written.
    pub fn remember(&self, member: &Member) -> Result<()> {
        Ok(write(&self.path(MEMBER), &serde_json::to_vec_pretty(member)?)?)
    }

    /// Remembers where the other managers are; it is no more than where to ask first.
    pub fn managers_are(&self, managers: Vec<SocketAddr>) {
        let kept = self.read().and_then(|member| match member {
            Some(member) if member.managers != managers && !managers.is_empty() => {
                self.remember(&Member { managers, ..member })
            }
            _ => Ok(()),
        });
        if let Err(error) = kept {
            tracing::warn!(error = format!("{error:#}"), "cannot note where the managers are");
        }
    }

    fn put(&self, member: &Member, credentials: &Credentials, more: &[(&str, &[u8])]) -> Result<()> {
        let (whole, half) = (self.data.join(FOLDER), self.data.join("identity.new"));
        match fs::remove_dir_all(&half) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context("cannot begin anew"),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&half).with_context(|| format!("cannot make {}", half.display()))?;
        write(&half.join(MEMBER), &serde_json::to_vec_pretty(member)?)?;
        write(&half.join(NODE), pair(credentials).as_bytes())?;
        write(&half.join(AUTHORITIES), credentials.authorities.as_bytes())?;
        more.iter().try_for_each(|(name, bytes)| write(&half.join(name), bytes))?;
        fs::rename(&half, &whole).with_context(|| format!("cannot make {}", whole.display()))?;
        File::open(&self.data).and_then(|folder| folder.sync_all()).context("cannot sync the data directory")
    }
}

/// What nobody opens without the sealer, and not as anything else than what `context` says.
fn sealed(sealer: &dyn Sealer, context: &str, plain: &[u8]) -> Vec<u8> {
    let (id, sealed) = sealer.seal(context, plain);
    [&id.to_be_bytes()[..], &sealed].concat()
}

/// Has an authority in a folder, its key sealed for `context`, and last: where that is, all of it is.
pub(super) fn keep_authority(folder: &Path, context: &str, authority: &Authority, sealer: &dyn Sealer) -> Result<()> {
    write(&folder.join(AUTHORITY), authority.certificate().as_bytes())?;
    Ok(write(&folder.join(AUTHORITY_KEY), &sealed(sealer, context, authority.key().as_bytes()))?)
}

/// The authority in a folder.
pub(super) fn kept_authority(folder: &Path, context: &str, sealer: &dyn Sealer) -> Result<Authority> {
    let certificate = folder.join(AUTHORITY);
    let pem = fs::read_to_string(&certificate).with_context(|| format!("cannot read {}", certificate.display()))?;
    let authority = Authority::open(&pem, &open_sealed(sealer, context, &folder.join(AUTHORITY_KEY))?)?;
    let of_certificate = authorities_in(&pem)?.first().map(|known| known.fingerprint);
    ensure!(of_certificate == Some(authority.fingerprint()), "{} is of another key", certificate.display());
    Ok(authority)
}

/// The text that lies sealed in a file.
fn open_sealed(sealer: &dyn Sealer, context: &str, path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let opened = bytes.split_first_chunk::<4>().context("it is cut short").and_then(|(id, sealed)| {
        let plain = sealer.open(context, u32::from_be_bytes(*id), sealed);
        plain.map_err(|error| anyhow!("{error}"))
    });
    let plain = opened.with_context(|| format!("{} does not open", path.display()))?;
    String::from_utf8(plain).with_context(|| format!("{} holds no text", path.display()))
}

fn pair(credentials: &Credentials) -> String {
    format!("{}{}", credentials.chain, credentials.key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::daemon::seal::KeyFile;
    use crate::tls::Keyring;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_founded_cluster_is_found_again_with_its_key_only() {
        let folder = std::env::temp_dir().join(format!("apply-membership-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let (membership, seams) = (Membership::new(&folder), Seams::real());
        assert_eq!(membership.read().unwrap(), None);
        let member = Member {
            cluster: "c1".into(),
            node: "n1".into(),
            uid: Uid::new("u-1"),
            role: Role::Manager,
            managers: Vec::new(),
        };
        let sealer = KeyFile::open(&folder.join("key")).unwrap();
        membership.found(&member, DAY, &sealer, &seams).unwrap();
        assert_eq!(membership.read().unwrap().as_ref(), Some(&member));
        let ring = Keyring::new(membership.credentials().unwrap(), &seams).unwrap();
        assert_eq!(ring.says().subject, member.subject());
        let authority = membership.authority(&sealer).unwrap();
        // Nothing of any key lies there in the clear but the machine's own, and nothing is for others to read.
        for entry in fs::read_dir(folder.join(FOLDER)).unwrap().flatten() {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
            let text = fs::read(entry.path()).unwrap();
            let is_clear = text.windows(11).any(|window| window == b"PRIVATE KEY");
            assert_eq!(is_clear, entry.file_name() == NODE, "{:?}", entry.path());
        }
        // The next certificate is of another key.
        let request = Request::make().unwrap();
        let issued = authority.issue(&member.subject(), &request.request, seams.now(), DAY).unwrap();
        let next = Credentials {
            chain: issued.pem.clone() + authority.certificate(),
            key: request.key,
            authorities: authority.certificate().to_owned(),
        };
        membership.renew(&next).unwrap();
        let renewed = Keyring::new(membership.credentials().unwrap(), &seams).unwrap();
        assert_eq!(renewed.says(), issued.says);
        let other = KeyFile::open(&folder.join("other")).unwrap();
        assert!(membership.authority(&other).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
