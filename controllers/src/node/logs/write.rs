//! The files of one log. Bytes go from the pipe to the file inside one system call; this module only says where.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use super::format::{self, RECORD_BYTES, Record, Start, What};
use super::{Log, Stream};

/// Moved in one call. The pipe is locked meanwhile, so a container waits for this much copying at most.
const CHUNK_BYTES: u64 = 64 << 10;
/// A stretch of the same stream within this time of the last record needs none of its own: a busy log has a thousand
/// records a second, not one for each line.
const SAME_TIME_NANOS: u64 = 1_000_000;
/// Below this a file would be all index.
const MIN_SIZE_BYTES: u64 = 512;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Nothing,
    Stored(u64),
    Dropped { bytes: u64, why: Errno },
}

pub(super) struct Writer {
    dir: PathBuf,
    max_size: u64,
    max_files: u64,
    null: File,
    /// None: nothing was ever said, and there is nothing on the disk.
    file: Option<Pair>,
    /// Bytes taken from the pipe that could not be written, and are not yet in the index either.
    unrecorded_gaps: [u64; 2],
}

/// The file being written.
struct Pair {
    seq: u64,
    data: File,
    index: File,
    /// INVARIANT: the length of `data`; kept by `Writer::store`, the only one that writes there.
    size: u64,
    /// Where the next record goes. What stands beyond is half a record that could not be written whole.
    index_size: u64,
    /// Bytes in earlier files.
    base: u64,
    last: Option<Record>,
    /// Where in this file each stream's latest byte ends, and how the stream stood at the file's start.
    end_of: [Option<u64>; 2],
    mid_line: [bool; 2],
}

impl Writer {
    /// Goes on with what is in the log's directory, if there is anything.
    pub fn open(log: &Log) -> io::Result<Self> {
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        let file = match sequence(&log.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            numbers => numbers?.last().map(|&seq| Pair::adopt(&log.dir, seq)).transpose()?,
        };
        let mut writer =
            Writer { dir: log.dir.clone(), max_size: 0, max_files: 0, null, file, unrecorded_gaps: [0; 2] };
        writer.limit(log);
        Ok(writer)
    }

    pub fn limit(&mut self, log: &Log) {
        self.max_size = log.max_size_bytes.max(MIN_SIZE_BYTES);
        self.max_files = u64::from(log.max_files.max(1));
    }

    /// Takes what is in the pipe, up to a chunk: into the file, or away where the file cannot be written. Never leaves
    /// the pipe full because of the disk.
    pub fn take(&mut self, stream: Stream, pipe: BorrowedFd<'_>, now: u64) -> Result<Taken, Errno> {
        match self.store(stream, pipe, now) {
            Ok(0) | Err(Errno::AGAIN) => Ok(Taken::Nothing),
            Ok(bytes) => Ok(Taken::Stored(bytes)),
            Err(Errno::INTR) => Ok(Taken::Nothing),
            Err(why) => match move_bytes(pipe, &self.null, None, CHUNK_BYTES) {
                Ok(0) | Err(Errno::AGAIN) => Ok(Taken::Nothing),
                Ok(bytes) => {
                    self.unrecorded_gaps[stream as usize] += bytes;
                    Ok(Taken::Dropped { bytes, why })
                }
                Err(e) => Err(e),
            },
        }
    }

    /// Writes the end mark, once; what never said anything has none.
    pub fn end(&mut self, now: u64) -> Result<(), Errno> {
        self.record_gaps(now)?;
        match &mut self.file {
            None | Some(Pair { last: Some(Record { what: What::End, .. }), .. }) => Ok(()),
            Some(file) => file.record(What::End, now),
        }
    }

    /// The file being written, begun with the first byte that is there for it.
    fn begun(&mut self, now: u64) -> Result<&mut Pair, Errno> {
        if self.file.is_none() {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(errno)?;
            self.file = Some(Pair::create(&self.dir, 1, now, 0, [false; 2]).map_err(errno)?);
        }
        Ok(self.file.as_mut().expect("begun above"))
    }

    fn store(&mut self, stream: Stream, pipe: BorrowedFd<'_>, now: u64) -> Result<u64, Errno> {
        if self.file.is_none() && rustix::io::ioctl_fionread(pipe)? == 0 {
            return Ok(0);
        }
        self.begun(now)?;
        self.record_gaps(now)?;
        if self.room() == 0 {
            self.rotate(now)?;
        }
        let file = self.begun(now)?;
        let current = file.last.is_some_and(|last| {
            last.what == What::Chunk(stream) && now.saturating_sub(last.time) < SAME_TIME_NANOS && last.time <= now
        });
        if !current {
            file.record(What::Chunk(stream), now)?;
        }
        let room = self.room().clamp(1, CHUNK_BYTES);
        let file = self.begun(now)?;
        let bytes = move_bytes(pipe, &file.data, Some(file.size), room)?;
        file.size += bytes;
        if bytes > 0 {
            file.end_of[stream as usize] = Some(file.size);
        }
        Ok(bytes)
    }

    /// Bytes that still fit once their record is written.
    fn room(&self) -> u64 {
        let used = self.file.as_ref().map_or(0, |file| file.size + file.index_size);
        self.max_size.saturating_sub(used + RECORD_BYTES)
    }

    fn record_gaps(&mut self, now: u64) -> Result<(), Errno> {
        for stream in Stream::BOTH {
            let lost = self.unrecorded_gaps[stream as usize];
            if lost > 0 {
                self.begun(now)?.record(What::Gap(stream, lost), now)?;
                self.unrecorded_gaps[stream as usize] = 0;
            }
        }
        Ok(())
    }

    /// Begins the next file and removes the oldest. In this order, so that there is always one from which the next
    /// start learns how many bytes went before; but a full disk gives up its oldest file first.
    fn rotate(&mut self, now: u64) -> Result<(), Errno> {
        let file = self.begun(now)?;
        let mid_line = file.mid_line()?;
        let (seq, base) = (file.seq + 1, file.base + file.size);
        let create = |dir: &Path| Pair::create(dir, seq, now, base, mid_line).map_err(errno);
        let next = match create(&self.dir) {
            Err(Errno::NOSPC | Errno::DQUOT) if self.max_files > 1 => {
                self.remove_before(seq + 1 - self.max_files)?;
                create(&self.dir)?
            }
            other => other?,
        };
        self.file = Some(next);
        self.remove_before((seq + 1).saturating_sub(self.max_files))
    }

    fn remove_before(&self, seq: u64) -> Result<(), Errno> {
        for old in sequence(&self.dir).map_err(errno)?.into_iter().filter(|&old| old < seq) {
            // The index goes last: while it is there, the next start finds the pair and removes it.
            for extension in ["log", "idx"] {
                match std::fs::remove_file(path(&self.dir, old, extension)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(errno(e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl Pair {
    fn create(dir: &Path, seq: u64, now: u64, base: u64, mid_line: [bool; 2]) -> io::Result<Self> {
        let (data, index) = open(dir, seq, OpenOptions::new().create(true).truncate(true))?;
        let mut pair = Pair { seq, data, index, size: 0, index_size: 0, base, last: None, end_of: [None; 2], mid_line };
        // Only now does the file exist for readers and for the next start.
        pair.write_record(Record { time: now, offset: base, what: What::Start { mid_line } })?;
        Ok(pair)
    }

    fn adopt(dir: &Path, seq: u64) -> io::Result<Self> {
        let (data, index) = open(dir, seq, OpenOptions::new().create(true))?;
        let Start { base, mid_line, .. } = format::start(&index)?;
        let size = data.metadata()?.len();
        let index_size = index.metadata()?.len() / RECORD_BYTES * RECORD_BYTES;
        let mut pair = Pair { seq, data, index, size, index_size, base, last: None, end_of: [None; 2], mid_line };
        let mut at = RECORD_BYTES;
        while at < index_size {
            let (records, next) = format::records(&pair.index, at, 1024)?;
            records.into_iter().for_each(|record| pair.note(record));
            at = next;
        }
        if let Some(Record { what: What::Chunk(stream), offset, .. }) = pair.last
            && offset < size
        {
            pair.end_of[stream as usize] = Some(size);
        }
        Ok(pair)
    }

    fn record(&mut self, what: What, now: u64) -> Result<(), Errno> {
        let time = self.last.map_or(now, |last| now.max(last.time));
        let record = Record { time, offset: self.size, what };
        self.write_record(record).map_err(errno)?;
        self.note(record);
        Ok(())
    }

    fn write_record(&mut self, record: Record) -> io::Result<()> {
        self.index.write_all_at(&record.encode(), self.index_size)?;
        self.index_size += RECORD_BYTES;
        Ok(())
    }

    /// A new record also says where the stretch before it ended.
    fn note(&mut self, record: Record) {
        if let Some(Record { what: What::Chunk(stream), offset, .. }) = self.last
            && offset < record.offset
        {
            self.end_of[stream as usize] = Some(record.offset);
        }
        self.last = Some(record);
    }

    /// For each stream, whether its latest byte, here or in an earlier file, is in the middle of a line.
    fn mid_line(&self) -> Result<[bool; 2], Errno> {
        let mut mid_line = self.mid_line;
        for stream in Stream::BOTH {
            if let Some(end) = self.end_of[stream as usize] {
                let mut byte = [0];
                self.data.read_exact_at(&mut byte, end - 1).map_err(errno)?;
                mid_line[stream as usize] = byte != *b"\n";
            }
        }
        Ok(mid_line)
    }
}

/// The numbers of a log's files that have a whole start record, ascending.
pub(super) fn sequence(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".idx")).and_then(|stem| stem.parse().ok());
        match (number, entry.metadata()) {
            (Some(number), Ok(metadata)) if metadata.len() >= RECORD_BYTES => numbers.push(number),
            // Removed by a rotation since the directory was read, or not one of ours.
            _ => {}
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn path(dir: &Path, seq: u64, extension: &str) -> PathBuf {
    dir.join(format!("{seq:08}.{extension}"))
}

fn open(dir: &Path, seq: u64, options: &mut OpenOptions) -> io::Result<(File, File)> {
    let options = options.read(true).write(true).mode(0o600);
    Ok((options.open(path(dir, seq, "log"))?, options.open(path(dir, seq, "idx"))?))
}

fn move_bytes(pipe: BorrowedFd<'_>, to: &File, at: Option<u64>, max: u64) -> Result<u64, Errno> {
    let mut at = at;
    let max = usize::try_from(max).expect("a chunk");
    rustix::pipe::splice(pipe, None, to, at.as_mut(), max, SpliceFlags::NONBLOCK).map(|bytes| bytes as u64)
}

fn errno(e: io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}
