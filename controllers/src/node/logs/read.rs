//! Reading a task's logs: all attempts in order, across rotation, and on while they are written.
//!
//! A [`Cursor`] is a position that moves on by blocking reads of a bounded size; [`read`] runs it beside the runtime and
//! makes a stream of it. It needs nothing from the writer but the files: what it has open stays readable after a
//! rotation has removed it, and where the writer laps it, the totals in the index say how many bytes were missed.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::stream::{self, Stream as AsyncStream};
use tokio_util::sync::CancellationToken;

use super::format::{self, RECORD_BYTES, Record, Start, What};
use super::{Stream, attempt_dir, nanos, time_of, write};

#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Which streams; both by default.
    pub stdout: bool,
    pub stderr: bool,
    /// Lines that began at this time or later.
    pub since: Option<SystemTime>,
    /// Lines that began at this time or earlier; the stream ends at the first later one, also when following.
    pub until: Option<SystemTime>,
    /// Only the last so many lines (an unfinished one counts), chosen before `since` is applied.
    pub tail: Option<u64>,
    pub follow: Follow,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions { stdout: true, stderr: true, since: None, until: None, tail: None, follow: Follow::No }
    }
}

/// Whether to wait for more at the end of what is there.
#[derive(Clone, Debug, Default)]
pub enum Follow {
    #[default]
    No,
    /// Until the token is cancelled (what is there by then is still returned), or the logs are removed. New attempts
    /// follow on the old ones; logs that do not exist yet are waited for.
    Until(CancellationToken),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A line with its newline, or a piece of one: of at most 16 KiB, or what there is of a line that is not yet
    /// complete. The texts of a stream put together are exactly what was printed.
    Text {
        attempt: u32,
        stream: Stream,
        /// When the beginning of the line came, to the millisecond.
        time: SystemTime,
        text: Bytes,
        /// False if the same line goes on in the next text of this attempt and stream (or was never finished).
        ends: bool,
    },
    /// Something that was printed is missing here.
    Gap {
        attempt: u32,
        time: SystemTime,
        /// None: removed by rotation, from both streams. Otherwise it could not be written.
        stream: Option<Stream>,
        /// Of a line that lost its beginning to rotation the rest is left out too, and not counted.
        lost_bytes: u64,
    },
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    #[error("could not read the logs in {dir}", dir = dir.display())]
    Io { dir: PathBuf, source: io::Error },
}

/// Reads the logs below a task's directory, from the first attempt that is kept.
///
/// Without `follow` it ends at what is there when it gets there; a directory that does not exist is an empty log. Holds
/// some 100 KiB. Dropping it at any point is fine.
pub fn read(task_dir: PathBuf, options: ReadOptions) -> impl AsyncStream<Item = Result<Entry, ReadError>> + Send {
    let follow = options.follow.clone();
    let reading = Reading { cursor: Some(Cursor::new(task_dir, &options)), ready: VecDeque::new(), idle: IDLE_MIN };
    stream::unfold((reading, follow), |(mut reading, follow)| async move {
        let entry = reading.next(&follow).await?;
        Some((entry, (reading, follow)))
    })
}

/// A follower looks this often when something has just come, and seldom when nothing does for long. (An inotify
/// instance for each would be prompter; there are 128 of them a user.)
const IDLE_MIN: Duration = Duration::from_millis(10);
const IDLE_MAX: Duration = Duration::from_millis(200);
/// The longest text; Docker's, and what a line-wise reader of ours has to hold.
const PIECE_BYTES: usize = 16 << 10;
/// Read from a file at once.
const BLOCK_BYTES: u64 = 64 << 10;
const RECORDS_AT_ONCE: usize = 256;

struct Reading {
    /// None once the stream has ended.
    cursor: Option<Cursor>,
    ready: VecDeque<Entry>,
    idle: Duration,
}

impl Reading {
    async fn next(&mut self, follow: &Follow) -> Option<Result<Entry, ReadError>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Some(Ok(entry));
            }
            let mut cursor = self.cursor.take()?;
            // Asked before the files are: what was printed before the caller called it off is returned.
            let last = matches!(follow, Follow::Until(token) if token.is_cancelled());
            let moved = tokio::task::spawn_blocking(move || {
                let moved = cursor.advance();
                (cursor, moved)
            });
            let (mut cursor, moved) = match moved.await {
                Ok(done) => done,
                Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                Err(_shutdown) => return None,
            };
            let moved = match moved {
                Ok(moved) => moved,
                Err(source) => return Some(Err(ReadError::Io { dir: cursor.task_dir, source })),
            };
            self.ready.extend(cursor.lines.out.drain(..));
            match moved {
                Moved::On => self.idle = IDLE_MIN,
                Moved::Removed | Moved::PastUntil => continue,
                Moved::AtEnd => match follow {
                    Follow::No => continue,
                    Follow::Until(_) if last => continue,
                    Follow::Until(token) => {
                        if self.ready.is_empty() {
                            wait(self.idle, token).await;
                            self.idle = (self.idle * 2).min(IDLE_MAX);
                        }
                    }
                },
            }
            self.cursor = Some(cursor);
        }
    }
}

async fn wait(time: Duration, token: &CancellationToken) {
    let _ = tokio::time::timeout(time, token.cancelled()).await;
}

#[derive(Debug, PartialEq, Eq)]
enum Moved {
    /// There may be more at once.
    On,
    AtEnd,
    /// The task's directory was there and is gone.
    Removed,
    PastUntil,
}

type Place = (u32, u64);

struct Cursor {
    task_dir: PathBuf,
    tail: Option<u64>,
    file: Option<Reader>,
    /// The file after `file`, once it was seen: from then on nothing is added to `file`.
    next: Option<Place>,
    lines: Lines,
}

impl Cursor {
    fn new(task_dir: PathBuf, options: &ReadOptions) -> Self {
        Cursor { task_dir, tail: options.tail, file: None, next: None, lines: Lines::new(options) }
    }

    /// One bounded step. Entries are in `lines.out` afterwards.
    fn advance(&mut self) -> io::Result<Moved> {
        if let Some(tail) = self.tail {
            self.go_to_tail(tail)?;
            self.tail = None;
        }
        let Some(file) = &mut self.file else {
            let Some(&first) = places(&self.task_dir)?.first() else { return Ok(Moved::AtEnd) };
            self.open(first)?;
            return Ok(Moved::On);
        };
        if file.step(&mut self.lines)? {
            if self.lines.past_until {
                self.lines.flush();
                return Ok(Moved::PastUntil);
            }
            return Ok(Moved::On);
        }
        let here = (file.attempt, file.seq);
        if let Some(next) = self.next.take() {
            if next.0 != here.0 {
                self.lines.flush();
            }
            self.open(next)?;
            return Ok(Moved::On);
        }
        self.next = places(&self.task_dir)?.into_iter().find(|&place| place > here);
        if self.next.is_some() {
            return Ok(Moved::On);
        }
        self.lines.flush();
        Ok(if self.task_dir.exists() { Moved::AtEnd } else { Moved::Removed })
    }

    /// False if a rotation has taken the file meanwhile: look again.
    fn open(&mut self, place: Place) -> io::Result<bool> {
        let Some(file) = Reader::open(&self.task_dir, place)? else { return Ok(false) };
        let before = self.file.as_ref().filter(|before| before.attempt == file.attempt);
        self.lines.begin(&file, before.map(|before| before.base + before.at));
        self.file = Some(file);
        Ok(true)
    }

    /// Opens the file in which the wanted lines begin, and lets `lines` skip those before them.
    ///
    /// Whole files are counted from the newest backwards, so that the cost follows what was asked for.
    fn go_to_tail(&mut self, tail: u64) -> io::Result<()> {
        let mut first = None;
        let mut ended = 0;
        for place in places(&self.task_dir)?.into_iter().rev() {
            let mut counted = self.lines.counting();
            if !count(&self.task_dir, place, &mut counted)? {
                break;
            }
            first = Some(place);
            ended += counted.ended;
            // Each stream may have one line that ends here and began before.
            if ended >= tail.saturating_add(2) {
                break;
            }
        }
        let Some(first) = first else { return Ok(()) };
        let mut counted = self.lines.counting();
        for place in places(&self.task_dir)?.into_iter().filter(|&place| place >= first) {
            count(&self.task_dir, place, &mut counted)?;
        }
        if self.open(first)? {
            // That there was something before what was asked for is no news.
            self.lines.out.clear();
            self.lines.skip = counted.began.saturating_sub(tail);
        }
        Ok(())
    }
}

/// False if the file is gone.
fn count(task_dir: &Path, place: Place, counted: &mut Lines) -> io::Result<bool> {
    let Some(mut file) = Reader::open(task_dir, place)? else { return Ok(false) };
    counted.begin(&file, None);
    while file.step(counted)? {}
    Ok(true)
}

/// All files of a task, oldest first.
fn places(task_dir: &Path) -> io::Result<Vec<Place>> {
    let mut places = Vec::new();
    let entries = match std::fs::read_dir(task_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(places),
        entries => entries?,
    };
    for entry in entries {
        let Some(attempt) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match write::sequence(&attempt_dir(task_dir, attempt)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            sequence => places.extend(sequence?.into_iter().map(|seq| (attempt, seq))),
        }
    }
    // A rotation that was killed half-way leaves the index for the next one to find.
    places.retain(|&(attempt, seq)| write::path(&attempt_dir(task_dir, attempt), seq, "log").exists());
    places.sort_unstable();
    Ok(places)
}

/// One file being read.
struct Reader {
    attempt: u32,
    seq: u64,
    data: File,
    index: File,
    begun: u64,
    base: u64,
    mid_line: [bool; 2],
    at: u64,
    index_at: u64,
    records: VecDeque<Record>,
    /// Where what is at `at` came from.
    chunk: (Stream, u64),
}

impl Reader {
    fn open(task_dir: &Path, (attempt, seq): Place) -> io::Result<Option<Self>> {
        let dir = attempt_dir(task_dir, attempt);
        let open = |extension| match File::open(write::path(&dir, seq, extension)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        let (Some(data), Some(index)) = (open("log")?, open("idx")?) else { return Ok(None) };
        let Start { begun, base, mid_line } = format::start(&index)?;
        let (records, chunk) = (VecDeque::new(), (Stream::Stdout, begun));
        let (at, index_at) = (0, RECORD_BYTES);
        Ok(Some(Reader { attempt, seq, data, index, begun, base, mid_line, at, index_at, records, chunk }))
    }

    /// Passes on up to a block of what comes next. False at the end.
    fn step(&mut self, lines: &mut Lines) -> io::Result<bool> {
        // Before the index is read: each byte counted here has its record there.
        let size = self.data.metadata()?.len();
        let until = loop {
            if self.records.is_empty() {
                let (records, next) = format::records(&self.index, self.index_at, RECORDS_AT_ONCE)?;
                if next == self.index_at {
                    break size;
                }
                self.index_at = next;
                self.records = records.into();
                continue;
            }
            match self.records.front() {
                Some(record) if record.offset > self.at => break size.min(record.offset),
                _ => {}
            }
            match self.records.pop_front().map(|record| (record.time, record.what)) {
                Some((time, What::Chunk(stream))) => self.chunk = (stream, time),
                Some((time, What::Gap(stream, lost))) => lines.gap(Some(stream), time, lost),
                Some((_, What::Start { .. } | What::End)) | None => {}
            }
        };
        let bytes = until.saturating_sub(self.at).min(BLOCK_BYTES);
        if bytes == 0 {
            return Ok(false);
        }
        let mut block = vec![0; usize::try_from(bytes).expect("a block")];
        self.data.read_exact_at(&mut block, self.at)?;
        self.at += bytes;
        let (stream, time) = self.chunk;
        lines.text(stream, time, &block);
        Ok(true)
    }
}

/// Cuts into lines, and leaves out those that are not wanted.
struct Lines {
    wanted: [bool; 2],
    since: u64,
    until: u64,
    /// So many lines from the beginning are left out. `u64::MAX`: only count.
    skip: u64,
    attempt: u32,
    open: [Line; 2],
    began: u64,
    ended: u64,
    past_until: bool,
    out: Vec<Entry>,
}

/// The line that a stream is in the middle of, if it is.
#[derive(Default)]
enum Line {
    #[default]
    None,
    Skipped,
    Kept {
        time: u64,
        text: Vec<u8>,
    },
}

impl Lines {
    fn new(options: &ReadOptions) -> Self {
        Lines {
            wanted: [options.stdout, options.stderr],
            since: options.since.map_or(0, nanos),
            until: options.until.map_or(u64::MAX, nanos),
            skip: 0,
            attempt: 0,
            open: Default::default(),
            began: 0,
            ended: 0,
            past_until: false,
            out: Vec::new(),
        }
    }

    /// A second one that only counts.
    fn counting(&self) -> Self {
        Lines {
            wanted: self.wanted,
            since: 0,
            until: u64::MAX,
            skip: u64::MAX,
            attempt: 0,
            open: Default::default(),
            began: 0,
            ended: 0,
            past_until: false,
            out: Vec::new(),
        }
    }

    /// The next file begins. `before`: up to where this attempt was read so far.
    fn begin(&mut self, file: &Reader, before: Option<u64>) {
        self.attempt = file.attempt;
        if before == Some(file.base) {
            return;
        }
        self.flush();
        self.open = file.mid_line.map(|fragment| if fragment { Line::Skipped } else { Line::None });
        let missing = file.base.saturating_sub(before.unwrap_or(0));
        if missing > 0 && self.skip != u64::MAX {
            // Lines were to be skipped that are gone by themselves: rather show too many than too few.
            self.skip = 0;
            self.gap(None, file.begun, missing);
        }
    }

    fn text(&mut self, stream: Stream, time: u64, bytes: &[u8]) {
        if time > self.until {
            self.past_until = true;
        }
        if self.past_until || !self.wanted[stream as usize] {
            return;
        }
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.part(stream, time, part);
        }
    }

    /// `part` has a newline at its end or nowhere.
    fn part(&mut self, stream: Stream, time: u64, part: &[u8]) {
        let Lines { open, began, skip, since, out, attempt, .. } = self;
        let line = &mut open[stream as usize];
        if let Line::None = line {
            *began += 1;
            *line = match *began > *skip && time >= *since {
                true => Line::Kept { time, text: Vec::new() },
                false => Line::Skipped,
            };
        }
        let ends = part.ends_with(b"\n");
        if let Line::Kept { time, text } = line {
            let mut rest = part;
            loop {
                let (now, later) = rest.split_at(rest.len().min(PIECE_BYTES - text.len()));
                text.extend_from_slice(now);
                rest = later;
                let ends = ends && rest.is_empty();
                if ends || text.len() == PIECE_BYTES {
                    let text = Bytes::from(std::mem::take(text));
                    out.push(Entry::Text { attempt: *attempt, stream, time: time_of(*time), text, ends });
                }
                if rest.is_empty() {
                    break;
                }
            }
        }
        if ends {
            *line = Line::None;
            self.ended += 1;
        }
    }

    fn gap(&mut self, stream: Option<Stream>, time: u64, lost_bytes: u64) {
        if stream.is_some_and(|stream| !self.wanted[stream as usize]) {
            return;
        }
        self.flush();
        if self.skip != u64::MAX && time >= self.since && time <= self.until {
            self.out.push(Entry::Gap { attempt: self.attempt, time: time_of(time), stream, lost_bytes });
        }
    }

    /// Hands out what there is of unfinished lines; they may go on.
    fn flush(&mut self) {
        for stream in Stream::BOTH {
            if let Line::Kept { time, text } = &mut self.open[stream as usize]
                && !text.is_empty()
            {
                let text = Bytes::from(std::mem::take(text));
                let (attempt, time) = (self.attempt, time_of(*time));
                self.out.push(Entry::Text { attempt, stream, time, text, ends: false });
            }
        }
    }
}
