//! What `applyctl` and `applyd` say to each other beside objects: a task's output, and commands run in it.
//!
//! | call | query | answer |
//! | --- | --- | --- |
//! | `GET …/namespaces/NS/tasks/NAME/log` | [`LogQuery`] | 200, a body of frames: stdout, stderr and notices, until what there is is told, or without end when following |
//! | `POST …/namespaces/NS/tasks/NAME/exec` | [`ExecQuery`], headers `connection: upgrade`, `upgrade:` [`EXEC_PROTOCOL`] | 101, then frames both ways |
//!
//! A frame is eight bytes and its payload: the kind, three zero bytes, the payload's length as a big-endian number. Its
//! kinds are Docker's where Docker has them (stdin 0, stdout 1, stderr 2), so that its tools can be fed with them. JSON
//! lines would not do: what programs print need not be text.
//!
//! In a log a frame is a line with its newline, or a piece of one; with `timestamps` each line begins with its time
//! (RFC 3339, UTC) and a space. An exec ends with exactly one exit frame, behind all output, and the connection closes;
//! a program that could not be run is a notice and, as in a shell, 127 (it is not there) or 126.
//! Whoever asked may close at any time: applyd then kills the command. Stdin ends with a close frame.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What both sides agree to speak after the upgrade.
pub const EXEC_PROTOCOL: &str = "apply-exec/1";

/// Longest payload of a frame; a longer one is no frame of ours.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

const HEADER_BYTES: usize = 8;

/// What a frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// To the command.
    Stdin(Vec<u8>),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// The size of the asker's terminal.
    Resize {
        columns: u16,
        rows: u16,
    },
    /// How the command ended: its exit code, 128 + n for signal n.
    Exit(i32),
    /// A sentence for people: what is missing here, or why it could not be.
    Notice(String),
    /// There is no more stdin.
    Close,
}

/// Bytes that are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    #[error("there is no frame of kind {0}")]
    Kind(u8),
    #[error("a frame of {0} bytes is longer than any ({PAYLOAD_BYTES_MAX})")]
    Long(usize),
    #[error("a frame of kind {kind} has {bytes} bytes, which it cannot have")]
    Size { kind: u8, bytes: usize },
    #[error("it broke off in the middle of a frame")]
    Short,
}

impl Frame {
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Stdin(bytes) => (0, bytes),
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::Resize { columns, rows } => {
                let [a, b] = columns.to_be_bytes();
                let [c, d] = rows.to_be_bytes();
                return frame(3, &[a, b, c, d]);
            }
            Self::Exit(code) => return frame(4, &code.to_be_bytes()),
            Self::Notice(text) => (5, text.as_bytes()),
            Self::Close => (6, &[]),
        };
        frame(kind, payload)
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, BadFrame> {
        let size = BadFrame::Size { kind, bytes: payload.len() };
        Ok(match (kind, payload) {
            (0, bytes) => Self::Stdin(bytes.to_vec()),
            (1, bytes) => Self::Stdout(bytes.to_vec()),
            (2, bytes) => Self::Stderr(bytes.to_vec()),
            (3, &[a, b, c, d]) => {
                Self::Resize { columns: u16::from_be_bytes([a, b]), rows: u16::from_be_bytes([c, d]) }
            }
            (4, &[a, b, c, d]) => Self::Exit(i32::from_be_bytes([a, b, c, d])),
            (5, bytes) => Self::Notice(String::from_utf8_lossy(bytes).into_owned()),
            (6, &[]) => Self::Close,
            (3 | 4 | 6, _) => return Err(size),
            (other, _) => return Err(BadFrame::Kind(other)),
        })
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("whoever makes frames makes short ones");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend([kind, 0, 0, 0]);
    bytes.extend(length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Bytes as they come, frames as they are whole. Holds at most one frame more than was pushed last.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Of `bytes`, so many are told already.
    told: usize,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.told);
        self.told = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// Whatever comes is no frame; nothing after it can be understood either.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, BadFrame> {
        let rest = &self.bytes[self.told..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [kind, _, _, _, a, b, c, d] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(BadFrame::Long(length));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = Frame::decode(kind, payload)?;
        self.told += HEADER_BYTES + length;
        Ok(Some(frame))
    }

    /// Called when no more comes.
    ///
    /// # Errors
    /// A frame has only begun.
    pub fn end(&self) -> Result<(), BadFrame> {
        if self.told == self.bytes.len() { Ok(()) } else { Err(BadFrame::Short) }
    }
}

/// What of a task's output is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on with what comes, also of later attempts, until the task is gone.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only what was printed then or later: RFC 3339.
    pub since_time: Option<schemas::Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
}

/// A command to run in a task's container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecQuery {
    /// The program and its arguments; at least the program.
    pub command: Vec<String>,
    /// Stdin will come.
    pub stdin: bool,
    /// On a terminal; everything is stdout then.
    pub tty: bool,
}

/// A query that does not say what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadQuery(String);

impl fmt::Display for BadQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadQuery {}

/// Letters, digits and what never means anything in a URL.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// One step of a path, or one value of a query, as it may stand in a URL.
pub fn escape(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

fn pairs(query: &str) -> Result<Vec<(String, String)>, BadQuery> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text)
            .decode_utf8()
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| BadQuery(format!("{text:?} is not UTF-8")))
    };
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(key)?, decode(value)?))
        })
        .collect()
}

fn flag(key: &str, value: &str) -> Result<bool, BadQuery> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(BadQuery(format!("{key}: {other:?} is neither true nor false"))),
    }
}

impl LogQuery {
    pub fn to_query(&self) -> String {
        let mut parts = vec![format!("follow={}&timestamps={}", self.follow, self.timestamps)];
        parts.extend(self.tail_lines.map(|lines| format!("tailLines={lines}")));
        parts.extend(self.since_time.map(|time| format!("sinceTime={}", escape(&time.to_string()))));
        parts.join("&")
    }

    /// # Errors
    /// The first part that cannot be read. What is not known is passed over, as HTTP APIs do.
    pub fn from_query(query: &str) -> Result<Self, BadQuery> {
        let mut found = Self::default();
        for (key, value) in pairs(query)? {
            match key.as_str() {
                "follow" => found.follow = flag(&key, &value)?,
                "timestamps" => found.timestamps = flag(&key, &value)?,
                "tailLines" => {
                    let number =
                        value.parse().map_err(|_| BadQuery(format!("tailLines: {value:?} is not a number")))?;
                    found.tail_lines = Some(number);
                }
                "sinceTime" => {
                    let time = value.parse().map_err(|error| BadQuery(format!("sinceTime: {error}")))?;
                    found.since_time = Some(time);
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

impl ExecQuery {
    pub fn to_query(&self) -> String {
        let mut parts = vec![format!("stdin={}&tty={}", self.stdin, self.tty)];
        parts.extend(self.command.iter().map(|word| format!("command={}", escape(word))));
        parts.join("&")
    }

    /// # Errors
    /// The first part that cannot be read, or that there is no command.
    pub fn from_query(query: &str) -> Result<Self, BadQuery> {
        let mut found = Self::default();
        for (key, value) in pairs(query)? {
            match key.as_str() {
                "stdin" => found.stdin = flag(&key, &value)?,
                "tty" => found.tty = flag(&key, &value)?,
                "command" => found.command.push(value),
                _ => {}
            }
        }
        if found.command.is_empty() { Err(BadQuery("command: is needed".into())) } else { Ok(found) }
    }
}

/// The path of something below a task.
pub fn task_path(namespace: &str, task: &str, below: &str) -> String {
    format!("/apis/apply/v1/namespaces/{}/tasks/{}/{below}", escape(namespace), escape(task))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Stdin(b"in\0".to_vec()),
            Frame::Stdout(vec![0xff; 70_000]),
            Frame::Stderr(Vec::new()),
            Frame::Resize { columns: 132, rows: 43 },
            Frame::Exit(-1),
            Frame::Notice("3 lines are gone".into()),
            Frame::Close,
        ]
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let bytes: Vec<u8> = all().iter().flat_map(Frame::encode).collect();
        for size in [1, 7, 8, 9, 1000, bytes.len()] {
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for piece in bytes.chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(decoder.end(), Ok(()));
            assert!(found == all(), "cut into {size}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_before_it_takes_memory() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            decoder.next_frame()
        };
        assert_eq!(refused(&[9, 0, 0, 0, 0, 0, 0, 0]), Err(BadFrame::Kind(9)));
        assert_eq!(refused(&[1, 0, 0, 0, 255, 0, 0, 0]), Err(BadFrame::Long(255 << 24)));
        assert_eq!(refused(&[4, 0, 0, 0, 0, 0, 0, 1, 7]), Err(BadFrame::Size { kind: 4, bytes: 1 }));
        let mut decoder = Decoder::default();
        decoder.push(&[1, 0, 0]);
        assert_eq!((decoder.next_frame(), decoder.end()), (Ok(None), Err(BadFrame::Short)));
    }

    #[test]
    fn queries_come_back_as_they_were() {
        let log = LogQuery {
            follow: true,
            tail_lines: Some(20),
            since_time: Some(schemas::Timestamp::from_seconds(1_790_000_000)),
            timestamps: false,
        };
        assert_eq!(LogQuery::from_query(&log.to_query()), Ok(log));
        let exec =
            ExecQuery { command: vec!["sh".into(), "-c".into(), "echo 'a&b=c' +%ü".into()], stdin: true, tty: false };
        assert_eq!(ExecQuery::from_query(&exec.to_query()), Ok(exec));
        assert!(LogQuery::from_query("follow&unknown=1").unwrap().follow);
        assert!(LogQuery::from_query("tailLines=many").is_err());
        assert!(ExecQuery::from_query("tty=true").is_err());
    }
}
