//! What a deployed field becomes when both the file and somebody's hand had a say: a three-way merge of what the bundle
//! controller last applied, what the file says now, and what is live.
//!
//! Maps are merged key by key. A list is one value here: if the file changed it, the file's list is taken whole.

use serde_json::{Map, Value};

/// A field that was changed by hand and that the file says nothing new about.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    pub path: String,
    pub file: Option<Value>,
    pub live: Option<Value>,
}

/// `None` stands for "not said".
pub(super) fn merge(
    base: Option<&Value>,
    file: Option<&Value>,
    live: Option<&Value>,
    path: &str,
    kept: &mut Vec<Kept>,
) -> Option<Value> {
    let maps = |value: Option<&Value>| value.is_none_or(Value::is_object);
    if maps(base)
        && maps(file)
        && maps(live)
        && (file.is_some() || live.is_some())
        && !(file.is_none() && base.is_some())
    {
        let empty = Map::new();
        let fields = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
        let (base, file, live) = (fields(base), fields(file), fields(live));
        let names: std::collections::BTreeSet<&String> = base.keys().chain(file.keys()).chain(live.keys()).collect();
        let mut merged = empty;
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if let Some(value) = merge(base.get(name), file.get(name), live.get(name), &path, kept) {
                merged.insert(name.clone(), value);
            }
        }
        return Some(Value::Object(merged));
    }
    if base != file {
        return file.cloned();
    }
    if live != file {
        kept.push(Kept { path: path.to_owned(), file: file.cloned(), live: live.cloned() });
    }
    live.cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(base: Value, file: Value, live: Value, expected: Value, expected_kept: &[&str]) {
        let mut kept = Vec::new();
        let merged = merge(Some(&base), Some(&file), Some(&live), "", &mut kept).unwrap();
        assert_eq!(merged, expected);
        assert_eq!(kept.iter().map(|kept| kept.path.as_str()).collect::<Vec<_>>(), expected_kept);
        let mut again = Vec::new();
        assert_eq!(merge(Some(&file), Some(&file), Some(&merged), "", &mut again), Some(merged), "the same file twice");
    }

    #[test]
    fn what_the_file_changed_wins_and_what_it_did_not_stays_live() {
        check(
            json!({"image": "a:1", "user": "x"}),
            json!({"image": "a:2", "user": "x"}),
            json!({"image": "hand", "user": "hand", "replicas": 3}),
            json!({"image": "a:2", "user": "hand", "replicas": 3}),
            &["replicas", "user"],
        );
    }

    #[test]
    fn what_left_the_file_goes_and_what_is_new_comes() {
        check(
            json!({"a": {"x": 1, "y": 2}, "gone": 1}),
            json!({"a": {"x": 1, "z": 3}}),
            json!({"a": {"x": 1, "y": 2}, "gone": 1}),
            json!({"a": {"x": 1, "z": 3}}),
            &[],
        );
    }

    #[test]
    fn lists_are_taken_whole() {
        check(json!({"l": [1]}), json!({"l": [1, 2]}), json!({"l": [9]}), json!({"l": [1, 2]}), &[]);
        check(json!({"l": [1]}), json!({"l": [1]}), json!({"l": [9]}), json!({"l": [9]}), &["l"]);
    }
}
