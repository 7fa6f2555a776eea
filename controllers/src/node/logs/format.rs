//! The index beside the bytes: records of 24 bytes, little-endian: time (nanoseconds since 1970), offset, tag.
//!
//! A record says "from this offset of the `.log` file on, bytes are of this stream and came at this time", and holds
//! until the next record's offset or the end of the file. It is written *before* the bytes are moved. Hence, killed in
//! between: bytes without a record of their own cannot exist, and a record without bytes is overruled by the next one,
//! which has the same offset. A reader must take the size of the `.log` file first and read the index after.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Stream;

pub(super) const RECORD_BYTES: u64 = 24;
const VERSION: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub time: u64,
    pub offset: u64,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// First of each index. Its `offset` is how many bytes this log's earlier files held (not an offset in this one).
    /// For each stream, whether its last byte there was in the middle of a line.
    Start {
        mid_line: [bool; 2],
    },
    Chunk(Stream),
    /// So many bytes of the stream were taken from the pipe here and could not be written.
    Gap(Stream, u64),
    /// The container is gone and its pipes were empty.
    End,
}

impl Record {
    pub fn encode(&self) -> [u8; RECORD_BYTES as usize] {
        let (kind, value) = match self.what {
            What::Start { mid_line: [out, err] } => (1, VERSION | u64::from(out) << 8 | u64::from(err) << 9),
            What::Chunk(Stream::Stdout) => (2, 0),
            What::Chunk(Stream::Stderr) => (3, 0),
            What::Gap(Stream::Stdout, lost) => (4, lost),
            What::Gap(Stream::Stderr, lost) => (5, lost),
            What::End => (6, 0),
        };
        let mut bytes = [0; RECORD_BYTES as usize];
        bytes[..8].copy_from_slice(&self.time.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..].copy_from_slice(&(kind | value << 8).to_le_bytes());
        bytes
    }

    /// None for what no version of ours wrote: after a power cut a page of zeros may stand where records were.
    pub fn decode(bytes: &[u8; RECORD_BYTES as usize]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let (time, offset, tag) = (word(0), word(8), word(16));
        let value = tag >> 8;
        let what = match tag & 0xff {
            1 if value & 0xff == VERSION => What::Start { mid_line: [value & 0x100 != 0, value & 0x200 != 0] },
            2 => What::Chunk(Stream::Stdout),
            3 => What::Chunk(Stream::Stderr),
            4 => What::Gap(Stream::Stdout, value),
            5 => What::Gap(Stream::Stderr, value),
            6 => What::End,
            _ => return None,
        };
        Some(Record { time, offset, what })
    }
}

/// The records of an index from byte `from` on, at most `max` of them, and where the next one begins. Half a record at
/// the end is not there yet; one that makes no sense is passed over.
pub(super) fn records(index: &File, from: u64, max: usize) -> io::Result<(Vec<Record>, u64)> {
    let end = index.metadata()?.len() / RECORD_BYTES * RECORD_BYTES;
    let wanted = end.saturating_sub(from).min(max as u64 * RECORD_BYTES);
    let mut bytes = vec![0; usize::try_from(wanted).expect("at most `max` records")];
    index.read_exact_at(&mut bytes, from)?;
    let (whole, _) = bytes.as_chunks();
    Ok((whole.iter().filter_map(Record::decode).collect(), from + wanted))
}

/// What the first record of an index says. After a power cut it may be missing: then as if nothing went before.
#[derive(Default)]
pub(super) struct Start {
    pub begun: u64,
    pub base: u64,
    pub mid_line: [bool; 2],
}

pub(super) fn start(index: &File) -> io::Result<Start> {
    Ok(match records(index, 0, 1)?.0.first() {
        Some(&Record { time: begun, offset: base, what: What::Start { mid_line } }) => Start { begun, base, mid_line },
        _ => Start::default(),
    })
}
