//! How a version of a key, and the state of the whole file, are written as bytes.
//!
//! A record stands under (revision, key) and begins with a checksum over all three, so that a flipped byte, and also a
//! record in another one's place, is noticed. [`Head`] sums the checksums of all records, so that one that is missing
//! or one too many is noticed as well.

use bytes::Bytes;

use crate::store::history::Version;
use crate::store::{Key, Revision};

/// What is wrong with a record.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("does not match its checksum")]
    Checksum,
    /// The checksum holds: another version of this program wrote it.
    #[error("has a form that this version does not know")]
    Form,
}

/// The first or the last thing in the file, by their place in the order of revisions.
pub(super) const FORMAT: (u64, &str) = (0, "format");
pub(super) const IDENTITY: (u64, &str) = (0, "identity");
pub(super) const HEAD: (u64, &str) = (u64::MAX, "head");

/// Raised when what is below changes; a file of a higher format is refused.
pub(super) const FORMAT_NOW: u32 = 1;

const CHECKSUM_BYTES: usize = 4;
const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// `payload` with its checksum before it.
pub(super) fn seal(place: (u64, &str), payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(CHECKSUM_BYTES + payload.len());
    record.extend(checksum(place, &[payload]).to_le_bytes());
    record.extend(payload);
    record
}

/// The payload, once the checksum has been found to hold.
pub(super) fn open<'a>(place: (u64, &str), record: &'a [u8]) -> Result<&'a [u8], RecordError> {
    let (sum, payload) = record.split_first_chunk().ok_or(RecordError::Checksum)?;
    if u32::from_le_bytes(*sum) == checksum(place, &[payload]) { Ok(payload) } else { Err(RecordError::Checksum) }
}

fn checksum((revision, key): (u64, &str), payload: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&revision.to_le_bytes());
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key.as_bytes());
    payload.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

pub(super) fn encode(key: &Key, version: &Version) -> Vec<u8> {
    let value = version.value.as_deref().unwrap_or_default();
    let head = [&version.created.0.to_le_bytes()[..], &[if version.value.is_some() { PRESENT } else { ABSENT }]];
    let sum = checksum((version.modified.0, key.as_str()), &[head[0], head[1], value]);
    [&sum.to_le_bytes()[..], head[0], head[1], value].concat()
}

pub(super) fn decode(revision: u64, key: &str, record: &[u8]) -> Result<Version, RecordError> {
    let payload = open((revision, key), record)?;
    let (created, rest) = payload.split_first_chunk().ok_or(RecordError::Form)?;
    let value = match rest.split_first() {
        Some((&PRESENT, value)) => Some(Bytes::copy_from_slice(value)),
        Some((&ABSENT, [])) => None,
        _ => return Err(RecordError::Form),
    };
    Ok(Version { created: Revision(u64::from_le_bytes(*created)), modified: Revision(revision), value })
}

/// What must be true of all records together; written by every transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub revision: Revision,
    pub oldest: Revision,
    pub records: u64,
    /// The sum of all checksums.
    pub sum: u64,
}

impl Head {
    pub fn add(&mut self, record: &[u8]) {
        self.records += 1;
        self.sum = self.sum.wrapping_add(sum_of(record));
    }

    pub fn remove(&mut self, record: &[u8]) {
        self.records = self.records.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(sum_of(record));
    }

    pub fn encode(self) -> Vec<u8> {
        let fields = [self.revision.0, self.oldest.0, self.records, self.sum];
        seal(HEAD, &fields.map(u64::to_le_bytes).concat())
    }

    pub fn decode(record: &[u8]) -> Result<Self, RecordError> {
        let payload: &[u8; 32] = open(HEAD, record)?.try_into().map_err(|_| RecordError::Form)?;
        let field = |at: usize| u64::from_le_bytes(payload[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
        Ok(Self { revision: Revision(field(0)), oldest: Revision(field(1)), records: field(2), sum: field(3) })
    }
}

fn sum_of(record: &[u8]) -> u64 {
    record.first_chunk().map_or(0, |sum| u64::from(u32::from_le_bytes(*sum)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let key = Key::new("/a");
        for value in [None, Some(Bytes::from_static(b"")), Some(Bytes::from_static(b"value"))] {
            let version = Version { created: Revision(3), modified: Revision(7), value };
            let record = encode(&key, &version);
            assert_eq!(decode(7, "/a", &record).unwrap(), version);
            for bit in 0..record.len() * 8 {
                let mut flipped = record.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(7, "/a", &flipped).is_err(), "bit {bit}");
            }
            assert!(decode(8, "/a", &record).is_err(), "a record in another one's place");
            assert!(decode(7, "/b", &record).is_err(), "a record in another one's place");
        }
    }
}
