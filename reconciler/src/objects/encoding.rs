//! How an object stands in the store: a header of 7 bytes, then its JSON, sealed for some kinds.
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 1 | format, now 1 |
//! | 4 | id of the key that seals the rest, big endian; 0 for not sealed |
//! | 2 | storage version of the kind, big endian |
//! | rest | JSON, without `metadata.resourceVersion`, or the sealed form of it |

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

const FORMAT: u8 = 1;
const HEADER: usize = 7;

/// Seals values at rest. Implemented by whoever has keys; this crate brings no cryptography.
///
/// *Guarantees*: `open(seal(x)) == x` for every key id that `seal` ever answered; anything else is an error.
pub trait Sealer: fmt::Debug + Send + Sync {
    /// The key id (never 0) and the sealed bytes. `context` is bound to the value: it opens under the same one only.
    fn seal(&self, context: &str, plain: &[u8]) -> (u32, Vec<u8>);
    /// What was sealed. Fails for a key that is not held, and for what was changed or moved to another `context`.
    fn open(&self, context: &str, key: u32, sealed: &[u8]) -> Result<Vec<u8>, SealError>;
    /// A keyed digest that stands for a secret wherever it may be read, such as `hmac-sha256:…`.
    fn digest(&self, secret: &[u8]) -> String;
}

/// A sealed value that does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The key that sealed it is not among those that are held.
    #[error("no key with id {key}")]
    NoKey {
        /// Its id.
        key: u32,
    },
    /// The key is there and does not open it.
    #[error("it was changed, moved, or sealed by another key of the same id ({key})")]
    Forged {
        /// Its id.
        key: u32,
    },
}

/// A value that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It is too short to be a value of this layer.
    #[error("{len} bytes are too short for a header")]
    Short {
        /// Bytes that there are.
        len: usize,
    },
    /// A later version wrote it.
    #[error("format {format} is not known to this version")]
    Format {
        /// The format that it names.
        format: u8,
    },
    /// It is sealed, and this process has no keys at all.
    #[error("it is sealed, and there is no sealer")]
    Sealed,
    /// It is sealed and does not open.
    #[error("it does not open")]
    Seal {
        /// Why not.
        source: SealError,
    },
}

/// The stored form of `json`; sealed when `sealer` is given.
pub(super) fn encode(json: &[u8], context: &str, sealer: Option<&Arc<dyn Sealer>>) -> Bytes {
    let (key, body) = match sealer {
        Some(sealer) => sealer.seal(context, json),
        None => (0, json.to_vec()),
    };
    let mut value = Vec::with_capacity(HEADER + body.len());
    value.push(FORMAT);
    value.extend_from_slice(&key.to_be_bytes());
    value.extend_from_slice(&1_u16.to_be_bytes());
    value.extend_from_slice(&body);
    value.into()
}

/// The JSON of a stored value; shares its memory when it is not sealed.
pub(super) fn decode(value: &Bytes, context: &str, sealer: Option<&Arc<dyn Sealer>>) -> Result<Bytes, DecodeError> {
    let header: &[u8; HEADER] = value.first_chunk().ok_or(DecodeError::Short { len: value.len() })?;
    let [format, k0, k1, k2, k3, _, _] = *header;
    if format != FORMAT {
        return Err(DecodeError::Format { format });
    }
    match (u32::from_be_bytes([k0, k1, k2, k3]), sealer) {
        (0, _) => Ok(value.slice(HEADER..)),
        (_, None) => Err(DecodeError::Sealed),
        (key, Some(sealer)) => {
            let plain = sealer.open(context, key, &value[HEADER..]).map_err(|source| DecodeError::Seal { source })?;
            Ok(plain.into())
        }
    }
}

/// Whether the value that stands under `key` is a sealed one, and opens: for who has to know before anything is served,
/// as after a restore, whether the keys are the right ones.
///
/// # Errors
/// It is sealed and does not open, or is no value.
pub fn opens(value: &Bytes, key: &str, sealer: &Arc<dyn Sealer>) -> Result<bool, DecodeError> {
    let sealed = value.get(1..5).is_some_and(|id| id != [0; 4]);
    if sealed {
        decode(value, key, Some(sealer))?;
    }
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let stored = encode(b"{}", "k", None);
        assert_eq!(decode(&stored, "k", None).unwrap(), Bytes::from_static(b"{}"));
    }

    #[test]
    fn what_is_no_value_is_refused() {
        assert!(matches!(decode(&Bytes::from_static(b"{}"), "k", None), Err(DecodeError::Short { len: 2 })));
        assert!(matches!(
            decode(&Bytes::from_static(b"\x09......{}"), "k", None),
            Err(DecodeError::Format { format: 9 })
        ));
        assert!(matches!(decode(&Bytes::from_static(b"\x01\0\0\0\x01\0\x01x"), "k", None), Err(DecodeError::Sealed)));
    }
}
