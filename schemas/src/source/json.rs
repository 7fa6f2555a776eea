//! JSON with places, and with every fault: after one it goes on where the next value begins.
//!
//! Own, because parsers of JSON stop at the first fault and know bytes, not lines (docker/cli's messages about bundles
//! were `JSON syntax error at byte 37`).

use std::collections::BTreeMap;

use serde_json::Number;

use super::{Content, DEPTH_MAX, Entry, FAULTS_MAX, Located, NODES_MAX, Node, Position, text};

/// A tree as far as it could be read, and every fault of its syntax. Duplicate keys are faults; the first one stands.
pub fn parse(bytes: &[u8]) -> (Node, Vec<Located>) {
    let broken = Node { at: Position::START, content: Content::Broken };
    let text = match text(bytes) {
        Ok(text) => text,
        Err(fault) => return (broken, vec![fault]),
    };
    let mut parser =
        Parser { text, offset: 0, at: Position::START, path: String::new(), faults: Vec::new(), nodes: 0, over: false };
    parser.blanks();
    if parser.peek().is_none() {
        return (broken, vec![Located::new(Position::START, "", "the file is empty")]);
    }
    let node = parser.value(0);
    parser.blanks();
    if parser.peek().is_some() && !parser.over {
        parser.fault("nothing may follow the end of the object");
    }
    (node, parser.faults)
}

struct Parser<'a> {
    text: &'a str,
    offset: usize,
    at: Position,
    path: String,
    faults: Vec<Located>,
    nodes: usize,
    /// Nothing more can be read: the text has ended, or a bound is reached.
    over: bool,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.offset..].chars().next()
    }

    fn rest(&self) -> &str {
        &self.text[self.offset..]
    }

    fn advance(&mut self, bytes: usize) {
        for c in self.text[self.offset..self.offset + bytes].chars() {
            if c == '\n' {
                self.at = Position { line: self.at.line.saturating_add(1), column: 1 };
            } else {
                self.at.column = self.at.column.saturating_add(1);
            }
        }
        self.offset += bytes;
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.advance(wanted.len_utf8());
        }
        found
    }

    fn fault(&mut self, message: impl Into<String>) {
        self.fault_at(self.at, message);
    }

    fn fault_at(&mut self, at: Position, message: impl Into<String>) {
        if self.over {
            return;
        }
        self.faults.push(Located::new(at, self.path.clone(), message));
        if self.faults.len() >= FAULTS_MAX {
            self.over = true;
        }
    }

    /// Blanks, and comments, which are no JSON: one fault for each.
    fn blanks(&mut self) {
        loop {
            let blank = self.rest().find(|c: char| !matches!(c, ' ' | '\t' | '\n' | '\r')).unwrap_or(self.rest().len());
            self.advance(blank);
            let rest = self.rest();
            let length = if rest.starts_with("//") || rest.starts_with('#') {
                rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                rest.find("*/").map_or(rest.len(), |end| end + 2)
            } else {
                return;
            };
            self.fault("JSON has no comments; remove it");
            self.advance(length);
            if self.over {
                return;
            }
        }
    }

    fn value(&mut self, depth: usize) -> Node {
        let at = self.at;
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            self.fault(format!("the file has more than {NODES_MAX} values"));
            self.over = true;
        }
        if self.over {
            return Node { at, content: Content::Broken };
        }
        let content = match self.peek() {
            Some('{') if depth < DEPTH_MAX => self.object(depth),
            Some('[') if depth < DEPTH_MAX => self.list(depth),
            Some('{' | '[') => {
                self.fault(format!("is nested more than {DEPTH_MAX} deep"));
                self.skip();
                Content::Broken
            }
            Some('"') => self.string().map_or(Content::Broken, Content::Text),
            Some(c) if c == '-' || c == '+' || c == '.' || c.is_ascii_digit() => self.number(),
            Some(_) => self.word(),
            None => {
                self.ended(at, "a value");
                Content::Broken
            }
        };
        Node { at, content }
    }

    /// The text ended where something was still to come.
    fn ended(&mut self, opened: Position, expected: &str) {
        let inside = if opened == self.at { String::new() } else { format!("; what it is in opened at {opened}") };
        self.fault(format!("the file ends here, and {expected} is still to come{inside}"));
        self.over = true;
    }

    fn object(&mut self, depth: usize) -> Content {
        let opened = self.at;
        self.advance(1);
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: BTreeMap<String, Position> = BTreeMap::new();
        let mut comma: Option<Position> = None;
        loop {
            self.blanks();
            if self.over {
                break;
            }
            match self.peek() {
                None => self.ended(opened, "}"),
                Some('}') => {
                    self.stray(comma);
                    self.advance(1);
                    break;
                }
                Some(']') => {
                    self.fault(format!("expected }} for the {{ at {opened}, found ]"));
                    self.advance(1);
                    break;
                }
                Some(',') => {
                    self.fault("expected a key, found a comma");
                    self.advance(1);
                }
                Some(_) => {
                    if let Some(entry) = self.member(depth) {
                        match seen.get(&entry.key) {
                            Some(first) => {
                                let (first, at) = (*first, entry.key_at);
                                self.within(&entry.key, |p| {
                                    p.fault_at(at, format!("is given twice; the first is at {first}"))
                                });
                            }
                            None => {
                                seen.insert(entry.key.clone(), entry.key_at);
                                entries.push(entry);
                            }
                        }
                    }
                    comma = self.separator('}');
                }
            }
        }
        Content::Object(entries)
    }

    fn within<T>(&mut self, step: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if !self.path.is_empty() && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let result = work(self);
        self.path.truncate(length);
        result
    }

    fn stray(&mut self, comma: Option<Position>) {
        if let Some(at) = comma {
            self.fault_at(at, "nothing follows this comma; remove it");
        }
    }

    /// Behind an element: the place of the comma, if there is one.
    fn separator(&mut self, close: char) -> Option<Position> {
        self.blanks();
        let at = self.at;
        match self.peek() {
            Some(',') => {
                self.advance(1);
                return Some(at);
            }
            Some('}' | ']') => {}
            Some(_) if !self.over => self.fault(format!("expected , or {close}")),
            _ => {}
        }
        None
    }

    fn member(&mut self, depth: usize) -> Option<Entry> {
        let key_at = self.at;
        let key = match self.peek() {
            Some('"') => self.string(),
            Some('\'') => {
                self.fault("keys stand in double quotes");
                self.single_quoted()
            }
            _ => {
                let bare = self.bare();
                self.fault_at(
                    key_at,
                    match bare.as_str() {
                        "" => "expected a key in double quotes".into(),
                        word => format!("keys stand in double quotes: \"{word}\""),
                    },
                );
                (!bare.is_empty()).then_some(bare)
            }
        };
        if key.is_none() && self.at == key_at {
            self.skip();
            return None;
        }
        self.blanks();
        let named = key.clone().unwrap_or_default();
        if !self.take(':') {
            match self.peek() {
                None => self.ended(key_at, "a colon and a value"),
                _ if self.over => {}
                Some(_) => self.within(&named, |p| p.fault("expected a colon and a value")),
            }
            if matches!(self.peek(), Some(',' | '}' | ']') | None) {
                let node = Node { at: self.at, content: Content::Broken };
                return key.map(|key| Entry { key, key_at, node });
            }
        }
        self.blanks();
        let node = self.within(&named, |p| p.value(depth + 1));
        key.map(|key| Entry { key, key_at, node })
    }

    fn list(&mut self, depth: usize) -> Content {
        let opened = self.at;
        self.advance(1);
        let mut items = Vec::new();
        let mut comma: Option<Position> = None;
        loop {
            self.blanks();
            if self.over {
                break;
            }
            match self.peek() {
                None => self.ended(opened, "]"),
                Some(']') => {
                    self.stray(comma);
                    self.advance(1);
                    break;
                }
                Some('}') => {
                    self.fault(format!("expected ] for the [ at {opened}, found }}"));
                    self.advance(1);
                    break;
                }
                Some(',') => {
                    self.fault("expected a value, found a comma");
                    self.advance(1);
                }
                Some(_) => {
                    let item = self.within(&format!("[{}]", items.len()), |p| p.value(depth + 1));
                    items.push(item);
                    comma = self.separator(']');
                }
            }
        }
        Content::List(items)
    }

    fn string(&mut self) -> Option<String> {
        let opened = self.at;
        self.advance(1);
        let mut text = String::new();
        let mut good = true;
        loop {
            let plain = self.rest().find(|c: char| c == '"' || c == '\\' || c < ' ').unwrap_or(self.rest().len());
            text.push_str(&self.rest()[..plain]);
            self.advance(plain);
            match self.peek() {
                Some('"') => {
                    self.advance(1);
                    return good.then_some(text);
                }
                Some('\\') => match self.escape() {
                    Some(c) => text.push(c),
                    None => good = false,
                },
                // A string that is not closed takes the rest of its line, not of the file.
                Some('\n' | '\r') => {
                    self.fault_at(opened, "this string does not end on its line; a closing quote is missing, or a line break is not written as \\n");
                    return None;
                }
                Some(control) => {
                    self.fault(format!("a string has no such character; write \\u{:04x}", u32::from(control)));
                    self.advance(control.len_utf8());
                    good = false;
                }
                None => {
                    self.ended(opened, "the closing quote of a string");
                    return None;
                }
            }
            if self.over {
                return None;
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        let at = self.at;
        let simple = match self.rest()[1..].chars().next() {
            Some('"') => '"',
            Some('\\') => '\\',
            Some('/') => '/',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => return self.unicode(),
            _ => {
                self.fault_at(at, "there is no such escape; a backslash is written \\\\");
                self.advance(1);
                return None;
            }
        };
        self.advance(2);
        Some(simple)
    }

    fn unicode(&mut self) -> Option<char> {
        let at = self.at;
        let unit = |text: &str| {
            text.get(..4)
                .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|hex| u32::from_str_radix(hex, 16).ok())
        };
        let Some(high) = self.rest().get(2..).and_then(unit) else {
            self.fault_at(at, "\\u is followed by four hexadecimal digits");
            self.advance(2);
            return None;
        };
        self.advance(6);
        let low = self.rest().strip_prefix("\\u").and_then(unit).filter(|low| (0xdc00..0xe000).contains(low));
        let code = match (high, low) {
            (0xd800..0xdc00, Some(low)) => {
                self.advance(6);
                0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)
            }
            _ => high,
        };
        let found = char::from_u32(code);
        if found.is_none() {
            self.fault_at(at, "is half of a character; both halves are needed");
        }
        found
    }

    fn number(&mut self) -> Content {
        let at = self.at;
        let length = self
            .rest()
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.')))
            .unwrap_or(self.rest().len());
        let text = self.rest()[..length].to_owned();
        self.advance(length);
        let finite = serde_json::from_str::<Number>(&text).ok();
        finite.map_or_else(
            || {
                self.fault_at(at, format!("{} is not a number of JSON", shortened(&text)));
                Content::Broken
            },
            Content::Number,
        )
    }

    fn word(&mut self) -> Content {
        let at = self.at;
        if self.peek() == Some('\'') {
            self.fault("strings stand in double quotes");
            let text = self.single_quoted();
            return text.map_or(Content::Broken, Content::Text);
        }
        let word = self.bare();
        match word.as_str() {
            "true" => return Content::Bool(true),
            "false" => return Content::Bool(false),
            "null" => return Content::Null,
            "" => {
                let found = self.peek().map(String::from).unwrap_or_default();
                self.fault(format!("expected a value, found {found}"));
            }
            "True" | "TRUE" | "False" | "FALSE" | "None" | "nil" | "NULL" | "Null" => {
                let meant = match word.to_ascii_lowercase().as_str() {
                    "true" => "true",
                    "false" => "false",
                    _ => "null",
                };
                self.fault_at(at, format!("expected a value, found {word}; did you mean {meant}?"));
            }
            _ => self
                .fault_at(at, format!("expected a value, found {}; strings stand in double quotes", shortened(&word))),
        }
        self.skip();
        Content::Broken
    }

    fn single_quoted(&mut self) -> Option<String> {
        let rest = &self.rest()[1..];
        let end = rest.find(['\'', '\n'])?;
        let text = rest[..end].to_owned();
        let closed = rest[end..].starts_with('\'');
        self.advance(1 + end + usize::from(closed));
        closed.then_some(text)
    }

    /// A word without quotes.
    fn bare(&mut self) -> String {
        let ends = |c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$' | '/' | '@'));
        let length = self.rest().find(ends).unwrap_or(self.rest().len());
        let word = self.rest()[..length].to_owned();
        self.advance(length);
        word
    }

    /// To where the value that could not be read ends: a comma, a closing bracket that was opened before it, or the end
    /// of its line outside of brackets.
    fn skip(&mut self) {
        let mut open = 0usize;
        let mut in_string = false;
        let mut escaped = false;
        let mut length = self.rest().len();
        for (offset, c) in self.rest().char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if in_string => escaped = true,
                '"' => in_string = !in_string,
                '\n' if in_string => in_string = false,
                _ if in_string => {}
                '{' | '[' => open += 1,
                '}' | ']' if open == 0 => {
                    length = offset;
                    break;
                }
                '}' | ']' => open -= 1,
                ',' | '\n' if open == 0 => {
                    length = offset;
                    break;
                }
                _ => {}
            }
        }
        self.advance(length);
    }
}

/// A piece of the input for a message.
fn shortened(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn faults(text: &str) -> Vec<String> {
        parse(text.as_bytes()).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_know_where_they_stand() {
        let (tree, faults) =
            parse("\u{feff}{\n  \"é\": [1, {\"b\": true}],\n  \"c\": \"\\u00e9\\n\\ud83d\\ude00\"\n}".as_bytes());
        assert_eq!(faults, []);
        assert_eq!(tree.to_value(), json!({"é": [1, {"b": true}], "c": "é\n😀"}));
        let at = |path: &str| tree.locate(path, super::super::Shown::Value).to_string();
        assert_eq!(at("é"), "2:8");
        assert_eq!(at("é[1].b"), "2:18");
        assert_eq!(at("é[1].missing"), "2:12");
        assert_eq!(at("c"), "3:8");
        assert_eq!(tree.locate("c", super::super::Shown::Key).to_string(), "3:3");
    }

    #[test]
    fn one_fault_does_not_hide_the_next() {
        assert_eq!(
            faults(
                "{\n  \"a\": unquoted string,\n  \"b\" 1,\n  'c': 'x',\n  d: True,\n  \"e\": [1,, 2 3],\n  \"f\": 01,\n  \"a\": 1, // no\n}\nmore"
            ),
            [
                "2:8  a: expected a value, found unquoted; strings stand in double quotes",
                "3:7  b: expected a colon and a value",
                "4:3  keys stand in double quotes",
                "4:8  c: strings stand in double quotes",
                "5:3  keys stand in double quotes: \"d\"",
                "5:6  d: expected a value, found True; did you mean true?",
                "6:11  e: expected a value, found a comma",
                "6:15  e: expected , or ]",
                "7:8  f: 01 is not a number of JSON",
                "8:3  a: is given twice; the first is at 2:3",
                "8:11  JSON has no comments; remove it",
                "8:9  nothing follows this comma; remove it",
                "10:1  nothing may follow the end of the object",
            ]
        );
    }

    #[test]
    fn a_text_that_ends_too_soon_says_what_was_open() {
        for (text, said) in [
            ("", "1:1  the file is empty"),
            (" \n", "1:1  the file is empty"),
            ("{\"a\": [1", "1:9  a: the file ends here, and ] is still to come; what it is in opened at 1:7"),
            (
                "{\"a\": \"x",
                "1:9  a: the file ends here, and the closing quote of a string is still to come; what it is in opened at 1:7",
            ),
            (
                "{\"a\"",
                "1:5  the file ends here, and a colon and a value is still to come; what it is in opened at 1:2",
            ),
            ("{\"a\":", "1:6  a: the file ends here, and a value is still to come"),
        ] {
            assert_eq!(faults(text), [said], "{text}");
        }
    }

    #[test]
    fn strings_are_held_to_their_line_and_escapes() {
        assert_eq!(
            faults("{\"a\": \"x\n, \"b\": \"\\x\", \"c\": \"\\u12\", \"d\": \"\\ud800\", \"e\": \"\t\"}"),
            [
                "1:7  a: this string does not end on its line; a closing quote is missing, or a line break is not written as \\n",
                "2:9  b: there is no such escape; a backslash is written \\\\",
                "2:20  c: \\u is followed by four hexadecimal digits",
                "2:33  d: is half of a character; both halves are needed",
                "2:48  e: a string has no such character; write \\u0009",
            ]
        );
    }

    #[test]
    fn bounds_are_held() {
        let deep = "[".repeat(100_000);
        assert_eq!(faults(&deep).len(), 2);
        assert!(faults(&deep)[0].ends_with("is nested more than 64 deep"));
        let wide = format!("[{}1]", "1,".repeat(NODES_MAX));
        assert!(faults(&wide)[0].ends_with("the file has more than 100000 values"));
        let large = vec![b' '; super::super::FILE_BYTES_MAX + 1];
        assert_eq!(parse(&large).1[0].to_string(), "1:1  the file has 4194305 bytes, 4194304 at most");
        let faulty = "x,".repeat(1_000_000);
        assert!(parse(format!("[{faulty}").as_bytes()).1.len() <= FAULTS_MAX);
        assert_eq!(parse(b"{\"a\": \"\xff\"}").1[0].to_string(), "1:8  is not UTF-8 from here on");
        assert_eq!(parse(b"\xff\xfe{\0").1[0].to_string(), "1:1  the file is UTF-16; save it as UTF-8");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,8}|[\\x00-\\x20\"\\\\]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
                prop::collection::btree_map("\\PC{0,4}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_serde_writes_is_read_without_a_fault(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let (tree, faults) = parse(text.as_bytes());
            prop_assert_eq!(faults, vec![]);
            // Not `value` itself: serde_json reads the last digit of some floats differently than it wrote it.
            prop_assert_eq!(tree.to_value(), serde_json::from_str::<Value>(&text).unwrap());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        /// What serde refuses, this refuses; the other way round only where it is stricter by intention (duplicates).
        #[test]
        fn damaged_json_is_refused_as_serde_does(value in any_json(), at: prop::sample::Index, with in "[\\[\\]{}:,\"\\\\a0 .\n-]{0,2}", drop in 0..3usize) {
            let text = serde_json::to_string(&value).unwrap();
            let mut start = at.index(text.len() + 1);
            while !text.is_char_boundary(start) { start -= 1; }
            let mut end = (start + drop).min(text.len());
            while !text.is_char_boundary(end) { end += 1; }
            let damaged = format!("{}{with}{}", &text[..start], &text[end..]);
            let (tree, faults) = parse(damaged.as_bytes());
            match serde_json::from_str::<Value>(&damaged) {
                Ok(read) if faults.is_empty() => prop_assert_eq!(tree.to_value(), read),
                Ok(_) => prop_assert!(faults.iter().all(|f| f.fault.message.contains("twice")), "{damaged} {faults:?}"),
                Err(_) => prop_assert!(!faults.is_empty(), "{}", damaged),
            }
        }
    }
}
