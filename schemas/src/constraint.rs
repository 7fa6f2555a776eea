//! Placement constraints: `key == value` or `key != value`, all of which a node has to meet.
//!
//! The grammar is Docker's (swarmkit's constraint package). Two things differ, so that no mistake pends in silence: an
//! unknown key is refused with the known ones, and so is a value that the key can never have.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::advice;
use crate::kinds::network::Cidr;

/// One constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// What of a node is compared.
    pub key: Key,
    /// Whether it has to be the value or must not be.
    pub operator: Operator,
    /// What it is compared with, without blanks around it; for addresses an address or a subnet.
    pub value: String,
}

/// What of a node a constraint compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `node.id`: the name of the Node object.
    Id,
    /// `node.hostname`: what the machine calls itself.
    Hostname,
    /// An address or a subnet.
    Ip,
    /// `node.role`: `manager` or `worker`.
    Role,
    /// `node.platform.os`: `linux`.
    Os,
    /// `node.platform.arch`: `amd64` and `x86_64` are one, as are `arm64` and `aarch64`.
    Arch,
    /// `node.labels.X`: of the Node object.
    NodeLabel(String),
    /// `engine.labels.X`: that the machine was started with.
    EngineLabel(String),
}

/// How a node's value and a constraint's are to stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `==`: equal, whatever their case.
    Is,
    /// `!=`: not equal; a label that is missing is not equal to anything.
    IsNot,
}

/// What a node is compared by.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts<'a> {
    /// Name of the Node object.
    pub id: &'a str,
    /// Host name of the machine; empty while it has not described itself, as are the others that it says.
    pub hostname: &'a str,
    /// Addresses that other machines reach it at.
    pub addresses: &'a [IpAddr],
    /// `manager` or `worker`.
    pub role: &'a str,
    /// Operating system, as in image manifests: `linux`.
    pub os: &'a str,
    /// Architecture, as in image manifests or as the kernel has it: `amd64`, `x86_64`.
    pub arch: &'a str,
    /// Labels of the Node object; absent is as good as empty.
    pub node_labels: Option<&'a std::collections::BTreeMap<String, String>>,
    /// Labels that the machine's daemon was started with; absent is as good as empty.
    pub engine_labels: Option<&'a std::collections::BTreeMap<String, String>>,
}

/// Why a text is no constraint; reads after its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConstraint {
    /// There is neither `==` nor `!=` in it, or nothing on one side. Holds the text, its first 100 characters.
    #[error("{0:?} is not a constraint; write KEY == VALUE or KEY != VALUE")]
    Shape(String),
    /// No node has such a key.
    #[error("{key:?} is not a key of constraints{advice}; there are {KNOWN}")]
    Key {
        /// What was written, its first 100 characters.
        key: String,
        /// ` (did you mean node.role?)`, or empty.
        advice: String,
    },
    /// A value with characters that Docker's grammar has not.
    #[error("{0:?} is not a value; it has letters, digits, blanks and any of : - _ . * ( ) ? + [ ] \\ ^ $ | /")]
    Value(String),
    /// A role that no node has.
    #[error("{0:?} is never the role of a node; it is manager or worker")]
    Role(String),
    /// What `node.ip` is compared with is neither an address nor a subnet.
    #[error("{0:?} is neither an address nor a subnet")]
    Ip(String),
}

const KNOWN: &str = "node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.X, \
                     engine.labels.X";
const PLAIN_KEYS: [&str; 6] =
    ["node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch"];

impl Constraint {
    /// Whether a node meets it. Values are compared whole, whatever their case; a label that is missing is not equal
    /// to anything.
    pub fn is_met(&self, node: &NodeFacts<'_>) -> bool {
        let same = |text: &str| text.eq_ignore_ascii_case(&self.value);
        let label = |labels: Option<&std::collections::BTreeMap<String, String>>, name: &str| {
            labels.and_then(|labels| labels.get(name)).is_some_and(|text| same(text))
        };
        let equal = match &self.key {
            Key::Id => same(node.id),
            Key::Hostname => same(node.hostname),
            Key::Ip => node.addresses.iter().any(|address| self.has_address(*address)),
            Key::Role => same(node.role),
            Key::Os => same(node.os),
            Key::Arch => canonical_arch(node.arch).eq_ignore_ascii_case(canonical_arch(&self.value)),
            Key::NodeLabel(name) => label(node.node_labels, name),
            Key::EngineLabel(name) => label(node.engine_labels, name),
        };
        equal == (self.operator == Operator::Is)
    }

    fn has_address(&self, address: IpAddr) -> bool {
        match self.value.split_once('/') {
            Some((network, prefix)) => {
                let subnet = network.parse().ok().zip(prefix.parse().ok());
                subnet
                    .and_then(|(network, prefix)| Cidr::new(network, prefix))
                    .is_some_and(|subnet| subnet.contains(address))
            }
            None => self.value.parse() == Ok(address),
        }
    }
}

/// The kernel's and the images' names of one architecture are one.
pub(crate) fn canonical_arch(arch: &str) -> &str {
    match arch.to_ascii_lowercase().as_str() {
        "x86_64" | "amd64" => "amd64",
        "aarch64" | "arm64" => "arm64",
        _ => arch,
    }
}

impl FromStr for Constraint {
    type Err = BadConstraint;

    fn from_str(text: &str) -> Result<Self, BadConstraint> {
        let shape = || BadConstraint::Shape(text.chars().take(100).collect());
        let (at, operator) = [("==", Operator::Is), ("!=", Operator::IsNot)]
            .into_iter()
            .filter_map(|(sign, operator)| Some((text.find(sign)?, operator)))
            .min_by_key(|(at, _)| *at)
            .ok_or_else(shape)?;
        let (key, value) = (text[..at].trim(), text[at + 2..].trim());
        if key.is_empty() || value.is_empty() || value.starts_with('=') {
            return Err(shape());
        }
        let key = parse_key(key)?;
        check_value(&key, value)?;
        Ok(Self { key, operator, value: value.to_owned() })
    }
}

fn parse_key(key: &str) -> Result<Key, BadConstraint> {
    let lower = key.to_ascii_lowercase();
    let label = |prefix: &str| {
        let name = lower.starts_with(prefix).then(|| &key[prefix.len()..])?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        (!name.is_empty() && name.bytes().all(allowed)).then(|| name.to_owned())
    };
    Ok(match lower.as_str() {
        "node.id" => Key::Id,
        "node.hostname" => Key::Hostname,
        "node.ip" => Key::Ip,
        "node.role" => Key::Role,
        "node.platform.os" => Key::Os,
        "node.platform.arch" => Key::Arch,
        _ => match (label("node.labels."), label("engine.labels.")) {
            (Some(name), _) => Key::NodeLabel(name),
            (_, Some(name)) => Key::EngineLabel(name),
            _ => {
                let near = advice::nearest(key, PLAIN_KEYS);
                let advice = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
                return Err(BadConstraint::Key { key: key.chars().take(100).collect(), advice });
            }
        },
    })
}

fn check_value(key: &Key, value: &str) -> Result<(), BadConstraint> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " :-_.*()?+[]\\^$|/\t".contains(c);
    let shown = || value.chars().take(100).collect::<String>();
    match key {
        _ if !value.chars().all(allowed) => Err(BadConstraint::Value(shown())),
        Key::Role if !["manager", "worker"].iter().any(|role| role.eq_ignore_ascii_case(value)) => {
            Err(BadConstraint::Role(shown()))
        }
        Key::Ip => {
            let subnet = |(network, prefix): (&str, &str)| Cidr::new(network.parse().ok()?, prefix.parse().ok()?);
            let good = value.parse::<IpAddr>().is_ok() || value.split_once('/').and_then(subnet).is_some();
            if good { Ok(()) } else { Err(BadConstraint::Ip(shown())) }
        }
        _ => Ok(()),
    }
}

/// What tasks are spread over: the values of a label, `node.labels.X` or `engine.labels.X`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread(Key);

/// A text that names no label; reads after its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not node.labels.X or engine.labels.X")]
pub struct BadSpread(String);

impl FromStr for Spread {
    type Err = BadSpread;

    fn from_str(text: &str) -> Result<Self, BadSpread> {
        match parse_key(text) {
            Ok(key @ (Key::NodeLabel(_) | Key::EngineLabel(_))) => Ok(Self(key)),
            _ => Err(BadSpread(text.chars().take(100).collect())),
        }
    }
}

impl Spread {
    /// The node's value; those that have not the label are together, as those whose value is empty.
    pub fn of<'a>(&self, node: &NodeFacts<'a>) -> &'a str {
        let (labels, name) = match &self.0 {
            Key::EngineLabel(name) => (node.engine_labels, name),
            Key::NodeLabel(name) => (node.node_labels, name),
            _ => return "",
        };
        labels.and_then(|labels| labels.get(name)).map_or("", String::as_str)
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = if self.operator == Operator::Is { "==" } else { "!=" };
        match &self.key {
            Key::Id => f.write_str("node.id"),
            Key::Hostname => f.write_str("node.hostname"),
            Key::Ip => f.write_str("node.ip"),
            Key::Role => f.write_str("node.role"),
            Key::Os => f.write_str("node.platform.os"),
            Key::Arch => f.write_str("node.platform.arch"),
            Key::NodeLabel(name) => write!(f, "node.labels.{name}"),
            Key::EngineLabel(name) => write!(f, "engine.labels.{name}"),
        }?;
        write!(f, " {operator} {}", self.value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn met(constraint: &str) -> bool {
        let node_labels = BTreeMap::from([("disk".to_owned(), "SSD".to_owned()), ("Zone".to_owned(), "a".to_owned())]);
        let engine_labels = BTreeMap::from([("gpu".to_owned(), "yes".to_owned())]);
        let addresses = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let node = NodeFacts {
            id: "n1",
            hostname: "n1.example.com",
            addresses: &addresses,
            role: "manager",
            os: "linux",
            arch: "x86_64",
            node_labels: Some(&node_labels),
            engine_labels: Some(&engine_labels),
        };
        constraint.parse::<Constraint>().unwrap().is_met(&node)
    }

    #[test]
    fn nodes_are_compared_as_docker_does() {
        for (constraint, expected) in [
            ("node.id==n1", true),
            ("node.id != n1", false),
            (" Node.Hostname == N1.example.com ", true),
            ("node.role==worker", false),
            ("node.role!=worker", true),
            ("node.platform.os==linux", true),
            ("node.platform.arch==amd64", true),
            ("node.platform.arch==x86_64", true),
            ("node.platform.arch!=arm64", true),
            ("node.labels.disk==ssd", true),
            ("node.labels.zone==a", false),
            ("node.labels.Zone==a", true),
            ("node.labels.missing==x", false),
            ("node.labels.missing!=x", true),
            ("engine.labels.gpu==yes", true),
            ("node.ip==10.0.0.1", true),
            ("node.ip==10.0.0.0/24", true),
            ("node.ip==10.0.0.1/24", true),
            ("node.ip!=10.1.0.0/16", true),
            ("node.ip==fd00::/8", true),
        ] {
            assert_eq!(met(constraint), expected, "{constraint}");
        }
    }

    #[test]
    fn mistakes_are_refused_with_what_would_be_right() {
        for (text, said) in [
            ("node.role", "write KEY == VALUE"),
            ("node.role=manager", "write KEY == VALUE"),
            ("node.role===manager", "write KEY == VALUE"),
            ("==x", "write KEY == VALUE"),
            ("node.id==", "write KEY == VALUE"),
            ("node.hostnam==x", "did you mean node.hostname?"),
            ("node.label.disk==x", "there are node.id"),
            ("node.labels.==x", "is not a key"),
            ("node.role==leader", "manager or worker"),
            ("node.ip==10.0.0", "neither an address nor a subnet"),
            ("node.labels.a==b,c", "is not a value"),
        ] {
            let error = text.parse::<Constraint>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}|(node|engine)\\.(labels\\.)?[a-z]{0,8} ?[!=]=.{0,8}") {
            if let Ok(constraint) = text.parse::<Constraint>() {
                prop_assert_eq!(constraint.to_string().parse::<Constraint>().unwrap(), constraint);
            }
        }
    }
}
