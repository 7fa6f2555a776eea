//! YAML with places. The one module that knows which parser reads it (serde-saphyr), and how it is set: YAML 1.2's words
//! (`yes` is a string), `0444` a string and not a number, anchors and merge keys expanded within a budget.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_saphyr::{DuplicateKeyPolicy, Location, Options, Spanned};

use super::{Content, DEPTH_MAX, Entry, Located, NODES_MAX, Node, Position, text};

/// The documents of a file, empty ones left out, and every fault of its syntax. After the first fault of the scanner
/// nothing more is known of the file. Duplicate keys are faults; the first one stands.
pub fn parse(bytes: &[u8]) -> (Vec<Node>, Vec<Located>) {
    let text = match text(bytes) {
        Ok(text) => text,
        Err(fault) => return (Vec::new(), vec![fault]),
    };
    match serde_saphyr::from_multiple_with_options::<Spanned<Tree>>(text, options()) {
        Ok(documents) => {
            let mut faults = Vec::new();
            let nodes = documents.into_iter().map(|document| document.into_node("", &mut faults)).collect();
            (nodes, faults)
        }
        Err(error) => {
            let plain = error.without_snippet();
            let at = plain.location().map_or(Position::START, position);
            (Vec::new(), vec![Located::new(at, "", message(plain))])
        }
    }
}

fn options() -> Options {
    let budget = serde_saphyr::budget! {
        max_depth: DEPTH_MAX,
        max_nodes: NODES_MAX,
        max_events: NODES_MAX * 2,
        max_aliases: 10_000,
        max_anchors: 1_000,
    };
    let mut options = serde_saphyr::options! {
        budget: budget,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
    };
    options.alias_limits.max_total_replayed_events = NODES_MAX * 2;
    options.with_snippet = false;
    options
}

fn position(location: Location) -> Position {
    let from_one = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).max(1);
    Position { line: from_one(location.line()), column: from_one(location.column()) }
}

/// The parser's words without the place, which is told beside them.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    // "line 3 column 5: …" in front, or "… at line 3, column 5" behind.
    let text = match text.split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") => rest,
        _ => text,
    };
    let text = text.split(" at line ").next().unwrap_or(text);
    // By its words: inside an alias the variant is wrapped in another.
    if text.starts_with("budget breached") {
        return format!(
            "the file has more than {NODES_MAX} values, counting each use of an alias, or is nested more than {DEPTH_MAX} deep"
        );
    }
    if text.starts_with("expected string scalar") {
        return "a key is a string".into();
    }
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// A value without its place, whose parts have theirs.
enum Tree {
    Scalar(Content),
    List(Vec<Spanned<Tree>>),
    Object(Vec<(Spanned<String>, Spanned<Tree>)>),
}

trait IntoNode {
    fn into_node(self, path: &str, faults: &mut Vec<Located>) -> Node;
}

impl IntoNode for Spanned<Tree> {
    fn into_node(self, path: &str, faults: &mut Vec<Located>) -> Node {
        let at = position(self.referenced);
        let content = match self.value {
            Tree::Scalar(content) => content,
            Tree::List(items) => Content::List(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| item.into_node(&format!("{path}[{index}]"), faults))
                    .collect(),
            ),
            Tree::Object(fields) => Content::Object(entries(fields, path, faults)),
        };
        Node { at, content }
    }
}

fn entries(fields: Vec<(Spanned<String>, Spanned<Tree>)>, path: &str, faults: &mut Vec<Located>) -> Vec<Entry> {
    let mut seen: BTreeMap<String, Position> = BTreeMap::new();
    let mut entries = Vec::new();
    for (key, value) in fields {
        let key_at = position(key.referenced);
        let inner = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
        if let Some(first) = seen.get(&key.value) {
            faults.push(Located::new(key_at, inner, format!("is given twice; the first is at {first}")));
            continue;
        }
        seen.insert(key.value.clone(), key_at);
        let node = value.into_node(&inner, faults);
        entries.push(Entry { key: key.value, key_at, node });
    }
    entries
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TreeVisitor;

        impl<'de> Visitor<'de> for TreeVisitor {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E>(self, yes: bool) -> Result<Tree, E> {
                Ok(Tree::Scalar(Content::Bool(yes)))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
                Ok(Tree::Scalar(Content::Number(number.into())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
                Ok(Tree::Scalar(Content::Number(number.into())))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Tree, E> {
                let number = Number::from_f64(number).ok_or_else(|| E::custom("is not a finite number"))?;
                Ok(Tree::Scalar(Content::Number(number)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
                Ok(Tree::Scalar(Content::Text(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<Tree, E> {
                Ok(Tree::Scalar(Content::Text(text)))
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Scalar(Content::Null))
            }

            fn visit_none<E>(self) -> Result<Tree, E> {
                Ok(Tree::Scalar(Content::Null))
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
                Tree::deserialize(deserializer)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(Tree::Object(fields))
            }
        }

        deserializer.deserialize_any(TreeVisitor)
    }
}

/// An object as people read it.
///
/// # Errors
/// None for values that came from JSON; the writer's word otherwise.
pub fn to_string<T: serde::Serialize>(value: &T) -> Result<String, serde_yaml::Error> {
    let text = serde_yaml::to_string(value)?;
    if !text.contains(BREAKS) {
        return Ok(text);
    }
    // JSON is YAML too, and can say them in other letters.
    let json = serde_json::to_string_pretty(value).map_err(<serde_yaml::Error as serde::ser::Error>::custom)?;
    Ok(BREAKS.iter().fold(json, |json, c| json.replace(*c, &format!("\\u{:04x}", u32::from(*c)))) + "\n")
}

/// Line breaks of YAML 1.1, which the writer indents after; letters like others in YAML 1.2, as which it is read.
const BREAKS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::Shown;
    use super::*;

    fn one(text: &str) -> Node {
        let (documents, faults) = parse(text.as_bytes());
        assert_eq!(faults, []);
        documents.into_iter().next().unwrap()
    }

    fn faults(text: &str) -> Vec<String> {
        parse(text.as_bytes()).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_know_where_they_stand() {
        let tree = one("a:\n  - 1\n  - b: true\n    é: x\nc: |\n  two\n  lines\n");
        assert_eq!(tree.to_value(), json!({"a": [1, {"b": true, "é": "x"}], "c": "two\nlines\n"}));
        let at = |path: &str| tree.locate(path, Shown::Value).to_string();
        assert_eq!(at("a[0]"), "2:5");
        assert_eq!(at("a[1].b"), "3:8");
        assert_eq!(at("a[1].é"), "4:8");
        assert_eq!(tree.locate("a[1].é", Shown::Key).to_string(), "4:5");
    }

    #[test]
    fn words_mean_what_yaml_1_2_says() {
        let tree = one("{a: yes, b: 0444, c: 22:22, d: ~, e: 1_000, f: 1.50, g: 0x1f, h: 'true', i: true, j: }");
        assert_eq!(
            tree.to_value(),
            json!({"a": "yes", "b": "0444", "c": "22:22", "d": null, "e": "1_000", "f": 1.5, "g": 31, "h": "true", "i": true, "j": null})
        );
    }

    #[test]
    fn several_documents_are_read_and_empty_ones_left_out() {
        let (documents, faults) = parse(b"a: 1\n---\n---\n# nothing\n---\nb: 2\n...\n");
        assert_eq!(faults, []);
        assert_eq!(documents.iter().map(Node::to_value).collect::<Vec<_>>(), [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(documents[1].locate("b", Shown::Value).to_string(), "6:4");
        assert_eq!(parse(b"").0, []);
    }

    #[test]
    fn anchors_and_merge_keys_are_expanded() {
        let tree = one("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n");
        assert_eq!(tree.to_value(), json!({"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}));
    }

    #[test]
    fn faults_have_their_place() {
        assert_eq!(
            faults("a: 1\nb: {c: 1,\n  c: 2}\na: 3\n"),
            ["3:3  b.c: is given twice; the first is at 2:5", "4:1  a: is given twice; the first is at 1:1"]
        );
        for (text, at) in [
            ("a: [1, 2\nb: 3\n", "2:"),
            ("a: 'x\n", ""),
            ("a: b: c\n", "1:"),
            ("a:\n\tb: 1\n", ""),
            ("? [a]\n: b\n", "1:"),
            ("a: !!binary x\n", ""),
            ("a: *b\n", "1:"),
        ] {
            let found = faults(text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with(at), "{text}: {found:?}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let inner = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
        }
        assert_eq!(
            faults(&bomb),
            [
                "5:45  the file has more than 100000 values, counting each use of an alias, or is nested more than 64 deep"
            ]
        );
        assert_eq!(faults(&"[".repeat(100_000)).len(), 1);
        assert_eq!(faults("a:\n ").len(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_text_of_yamls_characters_is_read_or_refused(text in "[-a0:{}\\[\\],&*!|>'\"%@`#?~ \n\t<]{0,80}") {
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn what_is_written_is_read_back(map in prop::collection::btree_map("[a-z]{1,4}", "\\PC{0,12}|[0-9:._-]{0,6}|yes|null|~|[a-z\n ]{0,8}", 0..5)) {
            let value = serde_json::to_value(&map).unwrap();
            let text = to_string(&value).unwrap();
            let read = one(&text).to_value();
            prop_assert_eq!(read, value, "{}", text);
        }
    }

    #[test]
    fn values_of_every_type_are_written_and_read_back() {
        let value: Value =
            json!({"a": [1, -1, 1.5, true, null, "x"], "b": {"c": {}}, "d": [], "e": "0444", "f": "1e3", "g": ""});
        assert_eq!(one(&to_string(&value).unwrap()).to_value(), value);
        let breaks = json!({"a": "\u{2028}", "b": ["x\u{2029} y\u{85}"], "\u{2028}c": "\\u2028", "d": "\n "});
        assert_eq!(one(&to_string(&breaks).unwrap()).to_value(), breaks);
    }
}
