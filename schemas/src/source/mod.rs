//! Files as trees that know where each value stands, so that every fault has a line and a column.

pub mod json;
pub mod yaml;

use std::fmt;

use reconciler_api::Fault;
use serde_json::{Map, Number, Value};

/// Largest file that is read. An object has at most 1.25 MiB, and so many blanks are not meant.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// Most values in a file: a bound on memory (each costs some 100 bytes), ten times what a full object has.
pub const NODES_MAX: usize = 100_000;

/// Deepest nesting of a file; our objects are twelve deep.
pub const DEPTH_MAX: usize = 64;

/// Most faults that one file is told about.
pub const FAULTS_MAX: usize = 100;

/// A place in a text: both from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// From 1.
    pub line: u32,
    /// In characters, from 1; a tab is one.
    pub column: u32,
}

impl Position {
    /// The beginning of a text.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A fault of a file. Reads `14:13  services.web.ports[1]: 70000 is not a port (1-65535)`; whoever prints it puts the
/// file's name and a colon before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// Where the value that is at fault begins, or its key where the key is.
    pub at: Position,
    /// What is wrong, with its path; the path is empty where the syntax is at fault.
    pub fault: Fault,
}

impl Located {
    /// A fault of the syntax, or of a value whose place is known without looking for it.
    pub fn new(at: Position, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { at, fault: Fault::new(path, message) }
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}", self.at, self.fault)
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where the value begins.
    pub at: Position,
    /// The value itself.
    pub content: Content,
}

/// A value of JSON or YAML, its parts each with their place.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// `null`, or nothing at all in YAML.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// As exact as it was written.
    Number(Number),
    /// A string, escapes resolved.
    Text(String),
    /// A list, in the order of the file.
    List(Vec<Node>),
    /// An object, in the order of the file; keys that stand twice are a fault and kept once.
    Object(Vec<Entry>),
    /// Something that could not be read; its fault is told already.
    Broken,
}

/// One key of an object with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key, escapes resolved.
    pub key: String,
    /// Where the key begins.
    pub key_at: Position,
    /// The value.
    pub node: Node,
}

impl Node {
    /// The value alone; what could not be read is null.
    pub fn to_value(&self) -> Value {
        match &self.content {
            Content::Null | Content::Broken => Value::Null,
            Content::Bool(yes) => Value::Bool(*yes),
            Content::Number(number) => Value::Number(number.clone()),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(list) => Value::Array(list.iter().map(Node::to_value).collect()),
            Content::Object(entries) => {
                let fields = entries.iter().map(|entry| (entry.key.clone(), entry.node.to_value()));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }

    /// What an object holds; empty for every other value.
    pub fn entries(&self) -> &[Entry] {
        match &self.content {
            Content::Object(entries) => entries,
            _ => &[],
        }
    }

    /// What an object holds under `key`.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// Where the value at `path` (`spec.ports[1].target`) stands; where the nearest value around it does, if there is
    /// none. A field that is there and not wanted is shown by its key.
    pub fn locate(&self, path: &str, shown: Shown) -> Position {
        self.find(path, self.at, shown)
    }

    fn find(&self, path: &str, here: Position, shown: Shown) -> Position {
        let rest = path.strip_prefix('.').unwrap_or(path);
        if rest.is_empty() {
            return here;
        }
        if let Some((index, rest)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let item = match &self.content {
                Content::List(list) => index.parse::<usize>().ok().and_then(|index| list.get(index)),
                _ => None,
            };
            return item.map_or(here, |item| item.find(rest, item.at, shown));
        }
        // Keys may have dots in them: the longest that fits is meant.
        let fits = |entry: &&Entry| {
            rest.strip_prefix(entry.key.as_str()).is_some_and(|tail| tail.is_empty() || tail.starts_with(['.', '[']))
        };
        match self.entries().iter().filter(fits).max_by_key(|entry| entry.key.len()) {
            Some(entry) => {
                let tail = &rest[entry.key.len()..];
                let at = if tail.is_empty() && shown == Shown::Key { entry.key_at } else { entry.node.at };
                entry.node.find(tail, at, shown)
            }
            None => here,
        }
    }

    /// Faults of the tree's value, each with its place in the file.
    pub fn located(&self, faults: impl IntoIterator<Item = Fault>) -> Vec<Located> {
        let place = |fault: Fault| {
            let by_key =
                ["unknown field", "not acted on", "becomes"].iter().any(|word| fault.message.starts_with(word));
            let at = self.locate(&fault.path, if by_key { Shown::Key } else { Shown::Value });
            Located { at, fault }
        };
        faults.into_iter().map(place).collect()
    }
}

/// What of a field is pointed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Its key: the field should not be there.
    Key,
    /// Its value: it should be another.
    Value,
}

/// The documents of a file in YAML or JSON, empty ones left out, and every fault of its syntax. What begins like JSON is
/// read as JSON first, whose reader goes on after a fault; only where YAML makes sense of it and JSON does not is it YAML.
pub fn documents(bytes: &[u8]) -> (Vec<Node>, Vec<Located>) {
    let content = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let is_flow = content.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| matches!(b, b'{' | b'['));
    if !is_flow {
        return yaml::parse(bytes);
    }
    let (node, json_faults) = json::parse(bytes);
    if json_faults.is_empty() {
        return (vec![node], Vec::new());
    }
    match yaml::parse(bytes) {
        (documents, faults) if faults.is_empty() => (documents, faults),
        _ => (vec![node], json_faults),
    }
}

/// In the order of the file, each once, and no more than anybody reads.
pub(crate) fn tidy(mut faults: Vec<Located>) -> Vec<Located> {
    faults.sort();
    faults.dedup();
    if faults.len() > FAULTS_MAX {
        faults.truncate(FAULTS_MAX);
        let at = faults.last().map_or(Position::START, |last| last.at);
        faults.push(Located::new(at, "", "and more faults"));
    }
    faults
}

/// The text of a file.
///
/// # Errors
/// Why it is none that is read: too large, or in another encoding than UTF-8.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Located> {
    let refused = |at, message: String| Err(Located::new(at, "", message));
    if bytes.len() > FILE_BYTES_MAX {
        return refused(Position::START, format!("the file has {} bytes, {FILE_BYTES_MAX} at most", bytes.len()));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return refused(Position::START, "the file is UTF-16; save it as UTF-8".into());
    }
    if bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(b"PK\x03\x04") {
        return refused(Position::START, "the file is compressed; unpack it first".into());
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).or_else(|error| {
        let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        refused(end_of(&good), "is not UTF-8 from here on".into())
    })
}

/// The place behind a text.
fn end_of(text: &str) -> Position {
    let line = text.bytes().filter(|b| *b == b'\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Position { line: u32::try_from(line).unwrap_or(u32::MAX), column: u32::try_from(column).unwrap_or(u32::MAX) }
}
