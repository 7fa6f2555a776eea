//! The `.dab` file: Docker's distributed application bundle, version 0.1, as `docker-compose bundle` wrote it and
//! `docker deploy` read it.
//!
//! What differs from Docker's reader, and why: unknown keys are faults (it dropped them in silence), `Version` is looked
//! at, every fault is told at once with its line, and nothing may follow the object. What is kept: keys in any case
//! (files of the first release candidates have lower-case ones), `null` for nothing, `Command` and `Args` beside each
//! other, a variable without a value.
//!
//! What each field becomes:
//!
//! | in the file | in the service's spec |
//! | --- | --- |
//! | `Image` | `template.container.image`, as it stands |
//! | `Command`, `Args` | `template.container.command` (the entrypoint), `.args` |
//! | `Env` | `template.container.env`; `K=` is the empty value, `K` alone removes what the image sets |
//! | `WorkingDir`, `User` | `template.container.dir`, `.user`; empty is nothing |
//! | `Labels` | `labels`: of the service, not of its containers |
//! | `Ports` | `endpoint.ports`: published, on a port that is allocated |
//! | `Networks` | `template.networks`, and the bundle's `networks`; none: the network of the namespace |

use std::collections::BTreeMap;

use reconciler_api::Resource;
use serde_json::{Map, Value, json};

use crate::advice;
use crate::image::ImageRef;
use crate::kinds::bundle::{Bundle, BundleSpec, ServiceFragment};
use crate::names;
use crate::read::{self, Valid};
use crate::source::{self, Content, Entry, Located, Node, Position, json};
use crate::walk;

/// The one version of the format that exists.
const VERSION: &str = "0.1";

const BUNDLE_KEYS: [&str; 2] = ["Version", "Services"];
const SERVICE_KEYS: [&str; 9] =
    ["Image", "Command", "Args", "Env", "Labels", "Ports", "WorkingDir", "User", "Networks"];
const PORT_KEYS: [&str; 2] = ["Protocol", "Port"];

/// Reads a `.dab` file as the bundle `name`. Takes memory in proportion to the file, which may have
/// [`source::FILE_BYTES_MAX`] bytes.
///
/// # Errors
/// Every fault, in the order of the file, with line, column, path in the file and what would be right.
pub fn read(name: &str, bytes: &[u8]) -> Result<Valid<Bundle>, Vec<Located>> {
    let (spec, faults) = read_spec(name, bytes);
    if !faults.is_empty() {
        return Err(faults);
    }
    let name = names::object_name(name).map_err(|message| vec![Located::new(Position::START, "", message)])?;
    let bundle = serde_json::to_value(Bundle::new(name, spec)).unwrap_or_default();
    read::read_object::<Bundle>(bundle).map_err(|faults| {
        // Everything that can be wrong is found above; this is for what is not thought of, and has at least its path.
        faults.into_iter().map(|fault| Located { at: Position::START, fault }).collect()
    })
}

/// The spec as far as it could be read, and every fault.
pub(crate) fn read_spec(name: &str, bytes: &[u8]) -> (BundleSpec, Vec<Located>) {
    if source::text(bytes).is_ok_and(is_no_json) {
        let message = "a bundle file is JSON and begins with {; this one does not (YAML goes to `applyctl apply -f`, or beside a bundle file to `--with`)";
        return (BundleSpec::default(), vec![Located::new(Position::START, "", message)]);
    }
    let (tree, faults) = json::parse(bytes);
    let mut reader = Reader { bundle: name, faults, spec: BundleSpec::default() };
    reader.bundle(&tree);
    (reader.spec, source::tidy(reader.faults))
}

/// Whether it begins like something else altogether: of that, one fault says more than each of JSON's.
fn is_no_json(text: &str) -> bool {
    let mut words = text.split_ascii_whitespace();
    words.next().is_some_and(|word| {
        word.starts_with(|first: char| matches!(first, '#' | '<' | '%') || first.is_alphabetic())
            && !matches!(word, "true" | "false" | "null")
            || word.starts_with("---")
    })
}

struct Reader<'a> {
    bundle: &'a str,
    faults: Vec<Located>,
    spec: BundleSpec,
}

/// Keys of one object by their names in the format; what was given as nothing is left out.
struct Fields<'a> {
    path: String,
    by_name: BTreeMap<&'static str, &'a Entry>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<(&'a Node, String)> {
        self.by_name.get(name).map(|entry| (&entry.node, join(&self.path, &entry.key)))
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl Reader<'_> {
    fn fault(&mut self, at: Position, path: &str, message: impl Into<String>) {
        // Looked at again and again: a hostile file may not make a list of all that is wrong with it.
        if self.faults.len() < 4 * source::FAULTS_MAX {
            self.faults.push(Located::new(at, path, message));
        }
    }

    fn wrong_type(&mut self, node: &Node, path: &str, expected: &str) {
        if !matches!(node.content, Content::Broken) {
            let found = walk::show(&node.to_value());
            self.fault(node.at, path, format!("expected {expected}, not {found}"));
        }
    }

    fn fields<'n>(&mut self, node: &'n Node, path: &str, known: &'static [&'static str]) -> Option<Fields<'n>> {
        let Content::Object(entries) = &node.content else {
            self.wrong_type(node, path, "an object");
            return None;
        };
        let mut by_name: BTreeMap<&'static str, &Entry> = BTreeMap::new();
        for entry in entries {
            let at_key = join(path, &entry.key);
            let Some(name) = known.iter().find(|name| name.eq_ignore_ascii_case(&entry.key)) else {
                let message = match advice::nearest(&entry.key, known.iter().copied()) {
                    Some(near) => format!("unknown key; did you mean {near}?"),
                    None => format!(
                        "unknown key; a version {VERSION} bundle has {} here{}",
                        known.join(", "),
                        hint(&entry.key)
                    ),
                };
                self.fault(entry.key_at, &at_key, message);
                continue;
            };
            match by_name.get(name) {
                Some(first) => {
                    let message = format!("is given twice; the first is {} at {}", first.key, first.key_at);
                    self.fault(entry.key_at, &at_key, message);
                }
                None => drop(by_name.insert(name, entry)),
            }
        }
        by_name.retain(|_, entry| !matches!(entry.node.content, Content::Null));
        Some(Fields { path: path.to_owned(), by_name })
    }

    fn bundle(&mut self, tree: &Node) {
        let Some(fields) = self.fields(tree, "", &BUNDLE_KEYS) else { return };
        if let Some((node, path)) = fields.get("Version") {
            match &node.content {
                Content::Text(version) if version == VERSION => {}
                Content::Text(version) => {
                    self.fault(
                        node.at,
                        &path,
                        format!(
                            "{} is not a version that exists; it is \"{VERSION}\"",
                            walk::show_plain(&version.as_str().into())
                        ),
                    );
                }
                Content::Number(number) => {
                    self.fault(
                        node.at,
                        &path,
                        format!("expected the string \"{VERSION}\", not the number {number}; put it in quotes"),
                    );
                }
                _ => self.wrong_type(node, &path, &format!("the string \"{VERSION}\"")),
            }
        }
        let Some((node, path)) = fields.get("Services") else {
            if tree.entries().iter().all(|entry| !entry.key.eq_ignore_ascii_case("Services")) {
                self.fault(tree.at, "Services", "is needed");
            }
            return;
        };
        let Content::Object(entries) = &node.content else {
            self.wrong_type(node, &path, "an object with the services by their names");
            return;
        };
        let mut made: BTreeMap<String, String> = BTreeMap::new();
        for entry in entries {
            let path = join(&path, &entry.key);
            match names::bundle_object_name(self.bundle, &entry.key) {
                Err(message) => self.fault(entry.key_at, &path, message),
                Ok(object) => {
                    if let Some(other) = made.insert(object.clone(), entry.key.clone()) {
                        self.fault(entry.key_at, &path, format!("becomes {object}, and so does {other}"));
                    }
                }
            }
            let fragment = self.service(&entry.node, &path);
            self.spec.services.insert(entry.key.clone(), ServiceFragment(fragment));
        }
    }

    fn service(&mut self, node: &Node, path: &str) -> Map<String, Value> {
        let Some(fields) = self.fields(node, path, &SERVICE_KEYS) else { return Map::new() };
        let mut container = Map::new();
        match fields.get("Image") {
            Some((node, path)) => {
                if let Some(image) = self.image(node, &path) {
                    container.insert("image".into(), image.into());
                }
            }
            // A key that is there and broken is told already.
            None if node
                .entries()
                .iter()
                .any(|entry| entry.key.eq_ignore_ascii_case("Image") && entry.node.content == Content::Broken) => {}
            None => self.fault(node.at, &join(path, "Image"), "is needed"),
        }
        for (key, field) in [("Command", "command"), ("Args", "args")] {
            let Some((node, path)) = fields.get(key) else { continue };
            let words: Vec<Value> = self.strings(node, &path).into_iter().map(|(text, _, _)| text.into()).collect();
            if !words.is_empty() {
                container.insert(field.into(), words.into());
            }
        }
        if let Some((node, path)) = fields.get("Env") {
            let env = self.env(node, &path);
            if !env.is_empty() {
                container.insert("env".into(), env.into());
            }
        }
        for (key, field) in [("WorkingDir", "dir"), ("User", "user")] {
            let Some((node, path)) = fields.get(key) else { continue };
            if let Some(text) = self.string(node, &path).filter(|text| !text.is_empty()) {
                container.insert(field.into(), text.into());
            }
        }
        let mut template = Map::from_iter([("container".to_owned(), Value::Object(container))]);
        if let Some((node, path)) = fields.get("Networks") {
            let networks = self.networks(node, &path);
            if !networks.is_empty() {
                template.insert("networks".into(), networks.into());
            }
        }
        let mut spec = Map::from_iter([("template".to_owned(), Value::Object(template))]);
        if let Some((node, path)) = fields.get("Labels") {
            let labels = self.labels(node, &path);
            if !labels.is_empty() {
                spec.insert("labels".into(), labels.into());
            }
        }
        if let Some((node, path)) = fields.get("Ports") {
            let ports = self.ports(node, &path);
            if !ports.is_empty() {
                spec.insert("endpoint".into(), json!({"ports": ports}));
            }
        }
        self.meaning(node, path, &fields, &spec);
        spec
    }

    /// What a service's spec refuses, told where the file says it.
    fn meaning(&mut self, node: &Node, path: &str, fields: &Fields<'_>, spec: &Map<String, Value>) {
        let told: Vec<String> = self.faults.iter().map(|fault| fault.fault.path.clone()).collect();
        let Ok(typed) = ServiceFragment(spec.clone()).to_spec() else { return };
        for fault in crate::validate::service::spec_faults(&typed, "") {
            let below = |prefix: &str| fault.path.strip_prefix(prefix).map(str::to_owned);
            let found = [
                ("template.container.env", "Env"),
                ("template.container.command", "Command"),
                ("template.container.args", "Args"),
                ("template.container.dir", "WorkingDir"),
                ("template.container.user", "User"),
                ("template.networks", "Networks"),
                ("endpoint.ports", "Ports"),
            ]
            .into_iter()
            .find_map(|(ours, theirs)| Some((below(ours)?, fields.get(theirs)?)));
            match found {
                Some((rest, (at, theirs))) => {
                    let entry =
                        rest.split_inclusive(']').next().filter(|entry| entry.starts_with('[')).unwrap_or_default();
                    let theirs = format!("{theirs}{entry}");
                    if !told.contains(&theirs) {
                        self.fault(at.locate(entry, source::Shown::Value), &theirs, fault.message);
                    }
                }
                // An image that is missing or faulty is told already.
                None if fault.path == "template.container.image" => {}
                None => self.fault(node.at, path, fault.message),
            }
        }
    }

    fn string(&mut self, node: &Node, path: &str) -> Option<String> {
        match &node.content {
            Content::Text(text) => Some(text.clone()),
            Content::Number(_) | Content::Bool(_) => {
                let found = walk::show(&node.to_value());
                self.fault(node.at, path, format!("expected a string, not {found}; put it in quotes"));
                None
            }
            _ => {
                self.wrong_type(node, path, "a string");
                None
            }
        }
    }

    fn list<'n>(&mut self, node: &'n Node, path: &str, advice: &str) -> &'n [Node] {
        match &node.content {
            Content::List(items) => items,
            _ => {
                self.wrong_type(node, path, &format!("a list{advice}"));
                &[]
            }
        }
    }

    /// The strings of a list, each with its place and path; an empty one stands for what is no string, so that indices
    /// stay what they are in the file.
    fn strings(&mut self, node: &Node, path: &str) -> Vec<(String, Position, String)> {
        let mut found = Vec::new();
        for (index, item) in self.list(node, path, " of strings").iter().enumerate() {
            let path = format!("{path}[{index}]");
            let text = self.string(item, &path).unwrap_or_default();
            found.push((text, item.at, path));
        }
        found
    }

    fn image(&mut self, node: &Node, path: &str) -> Option<String> {
        let text = self.string(node, path)?;
        match text.parse::<ImageRef>() {
            Ok(_) => Some(text),
            Err(error) if text.is_empty() => {
                self.fault(node.at, path, error.to_string());
                None
            }
            Err(error) => {
                self.fault(node.at, path, format!("{}: {error}", walk::show_plain(&text.into())));
                None
            }
        }
    }

    fn env(&mut self, node: &Node, path: &str) -> Vec<Value> {
        let mut env = Vec::new();
        let mut seen: BTreeMap<String, Position> = BTreeMap::new();
        for (text, at, path) in self.strings(node, path) {
            let (name, value) = text.split_once('=').map_or((text.as_str(), None), |(name, value)| (name, Some(value)));
            if let Some(first) = seen.get(name) {
                let message = format!("{} is given twice; the first is at {first}", walk::show_plain(&name.into()));
                self.fault(at, &path, message);
            } else if !name.is_empty() {
                seen.insert(name.to_owned(), at);
            }
            env.push(match value {
                Some(value) => json!({"name": name, "value": value}),
                None => json!({"name": name}),
            });
        }
        env
    }

    fn labels(&mut self, node: &Node, path: &str) -> Map<String, Value> {
        let Content::Object(entries) = &node.content else {
            self.wrong_type(node, path, "an object");
            return Map::new();
        };
        let mut labels = Map::new();
        for entry in entries {
            if let Some(text) = self.string(&entry.node, &join(path, &entry.key)) {
                labels.insert(entry.key.clone(), text.into());
            }
        }
        labels
    }

    fn ports(&mut self, node: &Node, path: &str) -> Vec<Value> {
        let mut ports = Vec::new();
        let mut seen: BTreeMap<(String, u64), Position> = BTreeMap::new();
        for (index, item) in self.list(node, path, " of objects with Protocol and Port").iter().enumerate() {
            let path = format!("{path}[{index}]");
            let Some(fields) = self.fields(item, &path, &PORT_KEYS) else { continue };
            let protocol = match fields.get("Protocol") {
                Some((node, path)) => self.protocol(node, &path),
                None => Some("tcp".to_owned()),
            };
            let number =
                match fields.get("Port") {
                    Some((node, path)) => self.port(node, &path),
                    None => {
                        if !item.entries().iter().any(|entry| {
                            entry.key.eq_ignore_ascii_case("Port") && entry.node.content == Content::Broken
                        }) {
                            self.fault(item.at, &join(&path, "Port"), "is needed");
                        }
                        None
                    }
                };
            let (Some(protocol), Some(number)) = (protocol, number) else { continue };
            if let Some(first) = seen.insert((protocol.clone(), number), item.at) {
                self.fault(item.at, &path, format!("{number}/{protocol} is given twice; the first is at {first}"));
                continue;
            }
            ports.push(match protocol.as_str() {
                "tcp" => json!({"target": number}),
                _ => json!({"protocol": protocol, "target": number}),
            });
        }
        ports
    }

    fn protocol(&mut self, node: &Node, path: &str) -> Option<String> {
        let text = self.string(node, path)?;
        match text.to_ascii_lowercase().as_str() {
            "" | "tcp" => Some("tcp".into()),
            "udp" => Some("udp".into()),
            "sctp" => {
                self.fault(node.at, path, "sctp is not acted on yet; there are tcp and udp");
                None
            }
            _ => {
                self.fault(node.at, path, format!("{} is not one of tcp, udp", walk::show_plain(&text.into())));
                None
            }
        }
    }

    fn port(&mut self, node: &Node, path: &str) -> Option<u64> {
        match &node.content {
            Content::Number(number) => {
                let port = number.as_u64().filter(|port| (1..=65535).contains(port));
                if port.is_none() {
                    self.fault(node.at, path, format!("{number} is not a port (1-65535)"));
                }
                port
            }
            Content::Text(text) if text.parse::<u16>().is_ok() => {
                self.fault(node.at, path, format!("expected a number, not the string {text:?}; take the quotes away"));
                None
            }
            _ => {
                self.wrong_type(node, path, "a number");
                None
            }
        }
    }

    fn networks(&mut self, node: &Node, path: &str) -> Vec<Value> {
        let mut networks: Vec<Value> = Vec::new();
        let mut seen: BTreeMap<String, Position> = BTreeMap::new();
        for (text, at, path) in self.strings(node, path) {
            let name = match names::bundle_object_name(self.bundle, &text).and_then(|_| names::object_name(&text)) {
                Ok(name) => name,
                Err(message) => {
                    if !self.faults.iter().any(|fault| fault.fault.path == path) {
                        self.fault(at, &path, message);
                    }
                    continue;
                }
            };
            if let Some(first) = seen.insert(name.clone(), at) {
                self.fault(
                    at,
                    &path,
                    format!("{} is given twice; the first is at {first}", walk::show_plain(&text.into())),
                );
                continue;
            }
            self.spec.networks.entry(name.clone()).or_default();
            networks.push(json!({"name": name}));
        }
        networks
    }
}

/// What to do about something that the format cannot say.
fn hint(key: &str) -> &'static str {
    const BESIDE: [&str; 10] = [
        "replicas",
        "volumes",
        "mounts",
        "healthcheck",
        "deploy",
        "restart",
        "secrets",
        "configs",
        "entrypoint",
        "depends_on",
    ];
    if BESIDE.iter().any(|known| known.eq_ignore_ascii_case(key)) {
        "; what it cannot say goes into an overlay (deploy --with FILE)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests;
