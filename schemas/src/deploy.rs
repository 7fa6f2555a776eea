//! What `applyctl deploy` is given, as one bundle: a `.dab` file, overlays that say what its format cannot (`--with`), and
//! the flags of the command, each laid over what came before.
//!
//! An overlay is YAML or JSON with the fields of a Bundle's spec, all of them optional:
//!
//! ```yaml
//! services:
//!   vote:                          # a service of the bundle; its fields are those of a Service's spec
//!     replicas: 2
//!     endpoint: {ports: [{target: 80, published: 5000}]}
//! networks:
//!   back-tier: {subnets: [10.7.0.0/24]}
//! ```
//!
//! What it says wins, `null` takes away, lists whose entries have keys are laid over each other entry by entry. A
//! published port takes the place of what was said before about the same port of the container: the format has no word
//! for the outer port, so `80` there and `80` here are one wish and not two.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use reconciler_api::Fault;
use serde_json::{Map, Value, json};

use crate::acting;
use crate::advice;
use crate::dab;
use crate::kinds::bundle::{Bundle, BundleSpec};
use crate::kinds::service::Protocol;
use crate::merge;
use crate::names;
use crate::read::{self, Valid};
use crate::shape::{Form, ListKind, Shape};
use crate::source::{self, Content, Node, Position, Shown};
use crate::walk::{self, Strictness};

/// Everything that the command is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deployment<'a> {
    /// What the bundle shall be called.
    pub name: &'a str,
    /// The `.dab` file itself.
    pub bundle: Text<'a>,
    /// In the order of the flags; later ones win.
    pub overlays: &'a [Text<'a>],
    /// `--replicas`, in the order of the flags; they win over the overlays.
    pub replicas: &'a [Replicas],
    /// `--publish`, in the order of the flags; they win over the overlays.
    pub publish: &'a [Publish],
    /// `--no-prune`.
    pub keep_dropped: bool,
    /// `--reset`: paths as in [`BundleSpec::reset`].
    pub reset: &'a [String],
}

/// A file's content under the name that people gave it by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Text<'a> {
    /// Path or name of the file, as faults shall show it.
    pub name: &'a str,
    /// The whole content, as it is on disk.
    pub bytes: &'a [u8],
}

/// One fault and where it was written. Reads `voting-app.dab:14:13  Services.vote.Ports[1].Port: 70000 is not a port
/// (1-65535)`, or `--replicas vot=2: is no service of voting-app.dab; did you mean vote?`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// Which file or flag is at fault.
    pub place: Place,
    /// What is wrong, with its path in that file, or in the bundle's spec for a flag.
    pub fault: Fault,
}

/// Where a fault was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the `.dab` or an overlay.
    File {
        /// The name of the [`Text`].
        name: String,
        /// Line and column in it.
        at: Position,
    },
    /// As it was typed.
    Flag(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { name, at } => write!(f, "{name}:{at}  {}", self.fault),
            Place::Flag(flag) => write!(f, "{flag}: {}", self.fault.message),
        }
    }
}

/// How many tasks a service has: `vote=2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// The service's name in the file.
    pub service: String,
    /// Tasks that it shall have; what is too many is refused with the rest.
    pub count: u32,
}

impl FromStr for Replicas {
    type Err = BadFlag;

    fn from_str(text: &str) -> Result<Self, BadFlag> {
        let (service, count) = text.split_once('=').ok_or_else(|| BadFlag::Replicas(text.to_owned()))?;
        match count.parse() {
            Ok(count) if !service.is_empty() => Ok(Self { service: service.to_owned(), count }),
            _ => Err(BadFlag::Replicas(text.to_owned())),
        }
    }
}

impl fmt::Display for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.service, self.count)
    }
}

/// A port of a service that is open on the machines: `vote:5000:80`, `dns:53:53/udp`; `vote:80` lets a port be allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The service's name in the file.
    pub service: String,
    /// Port on the machines, 1 to 65535; absent: one is allocated.
    pub published: Option<u16>,
    /// Port that the container listens on, 1 to 65535.
    pub target: u16,
    /// `tcp` or `udp`; the flag has no way to say more.
    pub protocol: Protocol,
}

impl FromStr for Publish {
    type Err = BadFlag;

    fn from_str(text: &str) -> Result<Self, BadFlag> {
        let bad = || BadFlag::Publish(text.to_owned());
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or_else(bad);
        let (ports, protocol) = match text.rsplit_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(bad()),
        };
        let parts: Vec<&str> = ports.split(':').collect();
        let (service, published, target) = match parts.as_slice() {
            [service, target] => (service, None, port(target)?),
            [service, published, target] => (service, Some(port(published)?), port(target)?),
            _ => return Err(bad()),
        };
        if service.is_empty() {
            return Err(bad());
        }
        Ok(Self { service: (*service).to_owned(), published, target, protocol })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.service)?;
        if let Some(published) = self.published {
            write!(f, ":{published}")?;
        }
        write!(f, ":{}", self.target)?;
        if self.protocol != Protocol::Tcp { write!(f, "/{}", self.protocol) } else { Ok(()) }
    }
}

/// Why a flag cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFlag {
    /// What `--replicas` was given is not `SERVICE=NUMBER`.
    #[error("{0:?} is not SERVICE=NUMBER, such as vote=2")]
    Replicas(String),
    /// What `--publish` was given is not `SERVICE:PUBLISHED:PORT` or `SERVICE:PORT`, with `/udp` if need be.
    #[error("{0:?} is not SERVICE:PUBLISHED:PORT or SERVICE:PORT, such as vote:5000:80 or dns:53:53/udp")]
    Publish(String),
}

/// Reads everything as one bundle.
///
/// # Errors
/// Every fault of every file and flag, each with its place and what would be right.
pub fn read(deployment: &Deployment<'_>) -> Result<Valid<Bundle>, Vec<Refusal>> {
    let (spec, faults) = dab::read_spec(deployment.name, deployment.bundle.bytes);
    let bundle_is_good = faults.is_empty();
    let mut refusals: Vec<Refusal> = faults.into_iter().map(|fault| in_file(deployment.bundle.name, fault)).collect();

    let mut layers: Vec<Layer> = Vec::new();
    for overlay in deployment.overlays {
        match overlay_layer(overlay) {
            Ok(layer) => layers.push(layer),
            Err(more) => refusals.extend(more),
        }
    }
    layers.extend(flag_layers(deployment));
    if bundle_is_good {
        for layer in &layers {
            refusals.extend(strangers(deployment, &spec, layer));
        }
    }

    let mut merged = json!({"services": spec.services, "networks": spec.networks});
    for layer in &layers {
        merged = lay(&merged, &layer.value);
    }
    let object = json!({"metadata": {"name": names::object_name(deployment.name).unwrap_or_default()}, "spec": merged});
    match read::read_object::<Bundle>(object.clone()) {
        Ok(bundle) if refusals.is_empty() => return Ok(bundle),
        Ok(_) => {}
        Err(faults) => {
            let told = !refusals.is_empty();
            refusals.extend(faults.into_iter().filter_map(|fault| {
                // What is at fault already has consequences further down, which are not told beside it.
                let (refusal, exact) = blame(deployment, &layers, &object, fault);
                (exact || !told).then_some(refusal)
            }));
        }
    }
    refusals.sort();
    refusals.dedup();
    refusals.truncate(source::FAULTS_MAX);
    Err(refusals)
}

fn in_file(name: &str, located: source::Located) -> Refusal {
    Refusal { place: Place::File { name: name.to_owned(), at: located.at }, fault: located.fault }
}

/// What one overlay or flag says: a part of a Bundle's spec.
struct Layer {
    origin: Origin,
    value: Value,
}

enum Origin {
    Overlay { name: String, tree: Node },
    Flag(String),
}

impl Layer {
    fn refusal(&self, path: &str, shown: Shown, fault: Fault) -> Refusal {
        let place = match &self.origin {
            Origin::Overlay { name, tree } => Place::File { name: name.clone(), at: tree.locate(path, shown) },
            Origin::Flag(flag) => Place::Flag(flag.clone()),
        };
        Refusal { place, fault }
    }
}

fn overlay_layer(overlay: &Text<'_>) -> Result<Layer, Vec<Refusal>> {
    let refused = |faults: Vec<source::Located>| faults.into_iter().map(|fault| in_file(overlay.name, fault)).collect();
    let (documents, faults) = source::documents(overlay.bytes);
    if !faults.is_empty() {
        return Err(refused(source::tidy(faults)));
    }
    let mut documents = documents.into_iter();
    let tree = documents.next().unwrap_or(Node { at: Position::START, content: Content::Object(Vec::new()) });
    if let Some(second) = documents.next() {
        let fault =
            source::Located::new(second.at, "", "an overlay is one document; give another file with another --with");
        return Err(refused(vec![fault]));
    }
    let value = tree.to_value();
    let mut work = value.clone();
    let mut faults = walk::walk(spec_shape(), &mut work, Strictness::Fragment);
    for (name, fragment) in work.get("services").and_then(Value::as_object).into_iter().flatten() {
        let found = acting::fragment_faults(service_shape(), fragment);
        faults.extend(found.into_iter().map(|fault| fault.under(&format!("services.{name}"))));
    }
    if !faults.is_empty() {
        return Err(refused(source::tidy(tree.located(faults))));
    }
    let origin = Origin::Overlay { name: overlay.name.to_owned(), tree };
    Ok(Layer { origin, value: networks_by_object_name(value) })
}

/// The readers of bundles call networks by the names of their objects, so that `front_tier` here is `front_tier` there.
fn networks_by_object_name(mut value: Value) -> Value {
    let renamed = |name: &str| names::object_name(name).unwrap_or_else(|_| name.to_owned());
    if let Some(Value::Object(networks)) = value.get_mut("networks") {
        *networks = std::mem::take(networks).into_iter().map(|(name, network)| (renamed(&name), network)).collect();
    }
    for (_, service) in value.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten() {
        let attachments = service.pointer_mut("/template/networks").and_then(Value::as_array_mut);
        for attachment in attachments.into_iter().flatten() {
            if let Some(Value::String(name)) = attachment.get_mut("name") {
                *name = renamed(name);
            }
        }
    }
    value
}

fn flag_layers(deployment: &Deployment<'_>) -> Vec<Layer> {
    let service = |name: &str, fragment: Value| json!({"services": Map::from_iter([(name.to_owned(), fragment)])});
    let mut layers = Vec::new();
    for flag in deployment.replicas {
        let value = service(&flag.service, json!({"replicas": flag.count}));
        layers.push(Layer { origin: Origin::Flag(format!("--replicas {flag}")), value });
    }
    for flag in deployment.publish {
        let mut port = json!({"target": flag.target});
        if flag.protocol != Protocol::Tcp {
            port["protocol"] = flag.protocol.as_str().into();
        }
        if let Some(published) = flag.published {
            port["published"] = published.into();
        }
        let value = service(&flag.service, json!({"endpoint": {"ports": [port]}}));
        layers.push(Layer { origin: Origin::Flag(format!("--publish {flag}")), value });
    }
    for path in deployment.reset {
        layers.push(Layer { origin: Origin::Flag(format!("--reset={path}")), value: json!({"reset": [path]}) });
    }
    if deployment.keep_dropped {
        layers.push(Layer { origin: Origin::Flag("--no-prune".into()), value: json!({"keepDropped": true}) });
    }
    layers
}

/// Services that a layer speaks of and the bundle has not: a slip of the pen, since what an overlay adds could as well
/// stand in the bundle.
fn strangers(deployment: &Deployment<'_>, spec: &BundleSpec, layer: &Layer) -> Vec<Refusal> {
    let services = layer.value.get("services").and_then(Value::as_object);
    let unknown = services.into_iter().flatten().filter(|(name, _)| !spec.services.contains_key(*name));
    unknown
        .map(|(name, _)| {
            let known = || spec.services.keys().map(String::as_str);
            let advice = match advice::nearest(name, known()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there are {}", known().collect::<Vec<_>>().join(", ")),
            };
            let path = format!("services.{name}");
            let message = format!("is no service of {}; {advice}", deployment.bundle.name);
            layer.refusal(&path, Shown::Key, Fault::new(path.clone(), message))
        })
        .collect()
}

fn lay(under: &Value, over: &Value) -> Value {
    let mut under = under.clone();
    for (name, over) in over.get("services").and_then(Value::as_object).into_iter().flatten() {
        let said = over.pointer("/endpoint/ports").and_then(Value::as_array);
        let below = under
            .get_mut("services")
            .and_then(|services| services.get_mut(name))
            .and_then(|service| service.pointer_mut("/endpoint/ports"))
            .and_then(Value::as_array_mut);
        if let (Some(said), Some(below)) = (said, below) {
            let said: BTreeSet<String> = said.iter().map(inner_port).collect();
            below.retain(|port| !said.contains(&inner_port(port)));
        }
    }
    merge::overlay(spec_shape(), &under, over)
}

fn inner_port(port: &Value) -> String {
    let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("tcp");
    format!("{}/{protocol}", port.get("target").unwrap_or(&Value::Null))
}

/// Who is to blame for a fault of the whole: the last layer that says what is at fault, and whether one does.
fn blame(deployment: &Deployment<'_>, layers: &[Layer], object: &Value, fault: Fault) -> (Refusal, bool) {
    let path = fault.path.strip_prefix("spec.").unwrap_or(&fault.path).to_owned();
    let merged = &object["spec"];
    let mut best: Option<(&Layer, Traced)> = None;
    for layer in layers {
        let mut traced = Traced::default();
        trace(spec_shape(), merged, &layer.value, &path, &mut traced);
        if best.as_ref().is_none_or(|(_, known)| traced.steps >= known.steps) && traced.steps > 0 {
            best = Some((layer, traced));
        }
    }
    match best {
        Some((layer, traced)) => {
            let exact = traced.complete;
            (layer.refusal(&traced.path, Shown::Value, Fault::new(path, fault.message)), exact)
        }
        None if fault.path == "metadata.name" => {
            (Refusal { place: Place::Flag(format!("name {:?}", deployment.name)), fault }, false)
        }
        None => {
            let place = Place::File { name: deployment.bundle.name.to_owned(), at: Position::START };
            (Refusal { place, fault: Fault::new(path, fault.message) }, false)
        }
    }
}

/// How far a path of the whole can be followed in one of its layers, where lists have other indices.
#[derive(Default)]
struct Traced {
    path: String,
    steps: usize,
    complete: bool,
}

fn trace(shape: &Shape, merged: &Value, layer: &Value, path: &str, traced: &mut Traced) {
    let rest = path.strip_prefix('.').unwrap_or(path);
    if rest.is_empty() {
        traced.complete = true;
        return;
    }
    if let Some((index, tail)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let (Form::List(items, kind), Value::Array(whole), Value::Array(part)) = (&shape.form, merged, layer) else {
            return;
        };
        let Some((index, item)) = index.parse::<usize>().ok().and_then(|index| Some((index, whole.get(index)?))) else {
            return;
        };
        let here = match kind {
            ListKind::Atomic => Some(index).filter(|index| *index < part.len()),
            _ => part.iter().position(|other| walk::list_key(items, kind, other) == walk::list_key(items, kind, item)),
        };
        let Some(here) = here else { return };
        traced.path.push_str(&format!("[{here}]"));
        traced.steps += 1;
        return trace(items, item, &part[here], tail, traced);
    }
    // Keys may have dots in them: the longest that fits is meant.
    let fits = |key: &&String| {
        rest.strip_prefix(key.as_str()).is_some_and(|tail| tail.is_empty() || tail.starts_with(['.', '[']))
    };
    let Some(key) = layer.as_object().and_then(|part| part.keys().filter(fits).max_by_key(|key| key.len())) else {
        return;
    };
    let inner = match &shape.form {
        Form::Map(values) => values,
        _ => match shape.field(key) {
            Some(field) => &field.shape,
            None => return,
        },
    };
    if !traced.path.is_empty() {
        traced.path.push('.');
    }
    traced.path.push_str(key);
    traced.steps += 1;
    trace(inner, merged.get(key).unwrap_or(&Value::Null), &layer[key.as_str()], &rest[key.len()..], traced);
}

fn spec_shape() -> &'static Shape {
    let shape = Shape::of_kind("bundle").and_then(|shape| shape.field("spec"));
    &shape.expect("a bundle is a kind, and kinds have a spec").shape
}

fn service_shape() -> &'static Shape {
    match &spec_shape().field("services").expect("a bundle has services").shape.form {
        Form::Map(service) => service,
        _ => unreachable!("the services of a bundle go by their names"),
    }
}

#[cfg(test)]
mod tests;
