//! Curve25519 keys, as WireGuard's tools write them: 32 bytes in base64.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use defguard_boringtun::x25519;
use serde::{Deserialize, Serialize};

/// Bytes of either half of a key.
const BYTES: usize = 32;

/// What a machine proves itself by. It is in no log: `Debug` does not say it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PrivateKey([u8; BYTES]);

/// What its peers know it by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey([u8; BYTES]);

/// It is not 32 bytes in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: 32 bytes in base64, as `wg pubkey` prints it")]
pub struct NotAKey;

impl PrivateKey {
    /// From 32 bytes of good randomness.
    pub fn new(random: [u8; BYTES]) -> Self {
        PrivateKey(random)
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.secret()).to_bytes())
    }

    pub(super) fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(self.0)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PrivateKey(of {})", self.public())
    }
}

impl PublicKey {
    pub(super) fn point(self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.0)
    }

    pub(super) fn of(bytes: [u8; BYTES]) -> Self {
        PublicKey(bytes)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&BASE64.encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        read(text).map(PublicKey)
    }
}

fn read(text: &str) -> Result<[u8; BYTES], NotAKey> {
    BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(NotAKey)
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

impl TryFrom<String> for PublicKey {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        text.parse()
    }
}

impl From<PrivateKey> for String {
    fn from(key: PrivateKey) -> String {
        BASE64.encode(key.0)
    }
}

impl TryFrom<String> for PrivateKey {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        read(&text).map(PrivateKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_wireguard_writes_them_and_the_private_half_is_not_told() {
        // RFC 7748, section 6.1: Alice's.
        let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        let key = PrivateKey::try_from(private.to_owned()).unwrap();
        assert_eq!(key.public().to_string(), public);
        assert_eq!(public.parse(), Ok(key.public()));
        assert!(!format!("{key:?}").contains(private), "{key:?}");
        assert_eq!(serde_json::to_value(&key).unwrap(), private);
        for wrong in ["", "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTg==", "not a key"] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(NotAKey));
        }
    }
}
