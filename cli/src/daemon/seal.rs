//! The key that secrets are sealed with in the store, and what it does.

use std::fs;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reconciler::objects::encoding::{SealError, Sealer};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use super::durable::write;

const KEY_BYTES: usize = 32;
/// There is one key so far; a rotation makes the next.
const KEY_ID: u32 = 1;

/// Seals by AES-256-GCM; digests are HMAC-SHA256 with a key of their own.
pub struct KeyFile {
    seal: LessSafeKey,
    digest: hmac::Key,
    random: SystemRandom,
    bytes: Vec<u8>,
}

impl KeyFile {
    /// As long as each is.
    pub const BYTES: usize = 2 * KEY_BYTES;

    /// All of it, to be kept where it is kept now or better.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads the key at `path`, or makes one (mode 0600) when there is none and the store is new as well.
    ///
    /// # Errors
    /// It cannot be read or made, or is no key.
    pub fn open(path: &Path) -> io::Result<Self> {
        let random = SystemRandom::new();
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path, &random)?,
            read => read?,
        };
        Self::of(bytes, path, random)
    }

    /// Reads the key at `path`, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or is no key.
    pub fn existing(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Self::of(read?, path, SystemRandom::new()).map(Some),
        }
    }

    /// Writes it to another file (mode 0600), whole or not at all.
    pub fn copy_to(&self, path: &Path) -> io::Result<()> {
        write(path, &self.bytes)
    }

    fn of(bytes: Vec<u8>, path: &Path, random: SystemRandom) -> io::Result<Self> {
        let (seal, digest) = match bytes.split_at_checked(KEY_BYTES) {
            Some((seal, digest)) if digest.len() == KEY_BYTES => (seal, digest),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is no key file", path.display()))),
        };
        let seal = UnboundKey::new(&AES_256_GCM, seal).map_err(|_| io::ErrorKind::InvalidData)?;
        let (seal, digest) = (LessSafeKey::new(seal), hmac::Key::new(hmac::HMAC_SHA256, digest));
        Ok(KeyFile { seal, digest, random, bytes })
    }
}

/// A key that is in the file before anything is sealed with it.
fn make(path: &Path, random: &SystemRandom) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 2 * KEY_BYTES];
    random.fill(&mut bytes).map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
    write(path, &bytes)?;
    Ok(bytes)
}

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyFile")
    }
}

impl Sealer for KeyFile {
    fn seal(&self, context: &str, plain: &[u8]) -> (u32, Vec<u8>) {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).expect("the kernel gave random numbers before");
        let mut sealed = plain.to_vec();
        let nonced = Nonce::assume_unique_for_key(nonce);
        self.seal.seal_in_place_append_tag(nonced, Aad::from(context), &mut sealed).expect("values are short");
        (KEY_ID, nonce.into_iter().chain(sealed).collect())
    }

    fn open(&self, context: &str, key: u32, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        if key != KEY_ID {
            return Err(SealError::NoKey { key });
        }
        let forged = || SealError::Forged { key };
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(forged)?;
        let mut plain = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.seal.open_in_place(nonce, Aad::from(context), &mut plain).map_err(|_| forged())?.len();
        plain.truncate(length);
        Ok(plain)
    }

    fn digest(&self, secret: &[u8]) -> String {
        format!("hmac-sha256:{}", STANDARD.encode(hmac::sign(&self.digest, secret)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_sealed_opens_under_its_own_context_only() {
        let folder = std::env::temp_dir().join(format!("apply-seal-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("key");
        let key = KeyFile::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (id, sealed) = key.seal("a", b"secret");
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        let again = KeyFile::open(&path).unwrap();
        assert_eq!(again.open("a", id, &sealed).unwrap(), b"secret");
        assert!(matches!(again.open("b", id, &sealed), Err(SealError::Forged { .. })));
        assert!(matches!(again.open("a", 7, &sealed), Err(SealError::NoKey { key: 7 })));
        assert_eq!(key.digest(b"secret"), again.digest(b"secret"));
        fs::write(&path, b"short").unwrap();
        assert!(KeyFile::open(&path).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
