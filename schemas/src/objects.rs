//! Files with objects as people write them (`applyctl apply -f`): YAML, several documents, or JSON, one object or a
//! `List` of them.

use std::collections::BTreeMap;

use reconciler_api::Fault;
use serde_json::Value;

use crate::kinds;
use crate::read::{self, AnyObject, Valid};
use crate::source::{self, Content, Located, Node, Position};
use crate::walk;

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct FromFile {
    /// Where it begins.
    pub at: Position,
    /// What stands there, without a fault.
    pub object: Valid<AnyObject>,
}

/// Reads every object of a file, in its order. Takes memory in proportion to the file, which may have
/// [`source::FILE_BYTES_MAX`] bytes.
///
/// # Errors
/// Every fault of every object, in the order of the file, with line, column, path in the object and what would be right.
pub fn read(bytes: &[u8]) -> Result<Vec<FromFile>, Vec<Located>> {
    let (documents, mut faults) = source::documents(bytes);
    let unread: Vec<Position> = faults.iter().map(|fault| fault.at).collect();
    let mut found = Vec::new();
    let mut seen: BTreeMap<(String, String, String), Position> = BTreeMap::new();
    let nodes: Vec<&Node> = documents.iter().flat_map(|document| items(document, &mut faults)).collect();
    for node in nodes {
        match read::read_any(node.to_value()) {
            // What could not be read is told already, and not also missing.
            Err(wrong) => {
                faults.extend(node.located(wrong).into_iter().filter(|wrong| !unread.contains(&wrong.at)));
            }
            Ok(object) => {
                if let Some(first) = seen.insert(identity(&object.value), node.at) {
                    let said = object.value.pointer("/metadata/name").map(walk::show_plain).unwrap_or_default();
                    let fault = Fault::new("metadata.name", format!("{said} is given twice; the first is at {first}"));
                    faults.extend(node.located([fault]));
                }
                found.push(FromFile { at: node.at, object });
            }
        }
    }
    if found.is_empty() && faults.is_empty() {
        faults.push(Located::new(Position::START, "", "the file has no object in it"));
    }
    if faults.is_empty() { Ok(found) } else { Err(source::tidy(faults)) }
}

/// The objects of a document: itself, or what it lists, which is how whole answers of the API are written back.
fn items<'n>(document: &'n Node, faults: &mut Vec<Located>) -> Vec<&'n Node> {
    let is_list = document.entry("kind").is_some_and(|entry| entry.node.content == Content::Text("List".into()));
    match document.entry("items").map(|entry| &entry.node) {
        Some(Node { content: Content::List(items), .. }) if is_list => items.iter().collect(),
        Some(other) if is_list => {
            let found = walk::show(&other.to_value());
            faults.push(Located::new(other.at, "items", format!("expected a list of objects, not {found}")));
            Vec::new()
        }
        None if is_list => {
            faults.push(Located::new(document.at, "items", "is needed"));
            Vec::new()
        }
        // What could not be read is told already.
        _ if document.content == Content::Broken => Vec::new(),
        _ => vec![document],
    }
}

/// Kind, namespace and name: what two objects of one file may not share.
fn identity(object: &Value) -> (String, String, String) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let group = text("/apiVersion").split('/').next().unwrap_or_default().to_owned();
    let namespace = match text("/metadata/namespace") {
        empty if empty.is_empty() => kinds::DEFAULT_NAMESPACE.to_owned(),
        namespace => namespace,
    };
    (format!("{group}/{}", text("/kind")), namespace, text("/metadata/name"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn faults(text: &str) -> Vec<String> {
        match read(text.as_bytes()) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.iter().map(ToString::to_string).collect(),
        }
    }

    fn names(text: &str) -> Vec<String> {
        let plain = |found: &FromFile| {
            let name = found.object.value.pointer("/metadata/name").and_then(Value::as_str).unwrap();
            format!("{} {name}", found.at)
        };
        read(text.as_bytes()).unwrap().iter().map(plain).collect()
    }

    const SERVICE: &str =
        "apiVersion: apply/v1\nkind: Service\nmetadata: {name: web}\nspec: {template: {container: {image: x}}}\n";

    #[test]
    fn several_documents_a_list_and_json_are_all_read() {
        let network = "apiVersion: apply/v1\nkind: Network\nmetadata: {name: web}\n";
        assert_eq!(names(&format!("---\n{SERVICE}---\n# nothing\n---\n{network}")), ["2:1 web", "9:1 web"]);
        let json = r#"{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "apply/v1", "kind": "Network", "metadata": {"name": "a"}},
  {"apiVersion": "apply/v1", "kind": "Network", "metadata": {"name": "b"}}]}"#;
        assert_eq!(names(json), ["2:3 a", "3:3 b"]);
        assert_eq!(names("{apiVersion: apply/v1, kind: Network, metadata: {name: flow}}"), ["1:1 flow"]);
        assert_eq!(
            names("apiVersion: example.dev/v1\nkind: Page\nmetadata: {name: theirs}\nanything: [1]\n"),
            ["1:1 theirs"]
        );
    }

    #[test]
    fn every_fault_of_every_document_has_its_line() {
        let text = format!(
            "{SERVICE}---\napiVersion: apply/v1\nkind: Service\nmetadata:\n  name: Web_1\nspec:\n  replicas: many\n  template:\n    container:\n      imge: x\n---\nkind: Service\n---\napiVersion: apply/v1\nkind: Servce\nmetadata: {{name: x}}\n---\n{SERVICE}"
        );
        assert_eq!(
            faults(&text),
            [
                "9:9  metadata.name: \"Web_1\" is not a name (lower case letters, digits and '-', 63 at most, a letter or digit at both ends); did you mean web-1?",
                "11:13  spec.replicas: expected a number, not the string \"many\"",
                "14:7  spec.template.container.image: is needed",
                "14:7  spec.template.container.imge: unknown field; did you mean image?",
                "16:1  apiVersion: is needed: apply/v1",
                "19:7  kind: \"Servce\" is not a kind; did you mean Service?",
                "24:18  metadata.name: \"web\" is given twice; the first is at 1:1",
            ]
        );
    }

    #[test]
    fn files_without_an_object_are_refused() {
        assert_eq!(faults("# nothing\n"), ["1:1  the file has no object in it"]);
        assert_eq!(faults("- a\n"), ["1:1  expected an object, not a list"]);
        assert_eq!(
            faults("{\"kind\": \"List\", \"items\": {}}"),
            ["1:27  items: expected a list of objects, not an object"]
        );
        assert_eq!(
            faults("{\"apiVersion\": \"apply/v1\", \"kind\": \"Network\"\n \"metadata\": x}"),
            ["2:2  expected , or }", "2:14  metadata: expected a value, found x; strings stand in double quotes"]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(apiVersion: apply/v1\nkind: (Service|Bundle|Network|Volume)\n)?(metadata: ?[{]?name: [a-z_]{0,3}[}]?\n)?(spec:\n? [a-z{}: \n\\[\\]-]{0,20}\n)?(---\n)?[-a:{}\\[\\]\",& \n]{0,30}") {
            let _ = read(text.as_bytes());
        }
    }
}
