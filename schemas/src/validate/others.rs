//! Every kind but Service.

use std::collections::BTreeMap;

use base64::Engine as _;
use reconciler_api::{Fault, Resource};

use super::{Faults, service};
use crate::defaults;
use crate::image::ImageRef;
use crate::kinds::bundle::Bundle;
use crate::kinds::cluster::{CLUSTER_NAME, Cluster};
use crate::kinds::config::Config;
use crate::kinds::grant::Grant;
use crate::kinds::join_token::JoinToken;
use crate::kinds::lease::Lease;
use crate::kinds::namespace::Namespace;
use crate::kinds::network::Network;
use crate::kinds::registry_login::RegistryLogin;
use crate::kinds::resource_definition::ResourceDefinition;
use crate::kinds::revision::Revision;
use crate::kinds::secret::Secret;
use crate::kinds::service::PublishMode;
use crate::kinds::volume::Volume;
use crate::names;
use crate::quantity::Period;

fn label_name(faults: &mut Faults, name: &str) {
    if let Some(message) = names::label_fault(name) {
        faults.add("metadata.name", message);
    }
}

pub(crate) fn bundle(bundle: &Bundle, _previous: Option<&Bundle>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    label_name(&mut faults, bundle.name());
    for (field, names) in [
        ("services", bundle.spec.services.keys().collect::<Vec<_>>()),
        ("networks", bundle.spec.networks.keys().collect::<Vec<_>>()),
    ] {
        made_names(&mut faults, bundle.name(), field, &names);
    }
    let mut taken = BTreeMap::new();
    for (name, fragment) in &bundle.spec.services {
        let path = format!("spec.services.{name}");
        let spec = match fragment.to_spec() {
            Ok(spec) => spec,
            Err(error) => {
                faults.add(&path, error.to_string());
                continue;
            }
        };
        faults.extend(service::spec_faults(&spec, &path));
        for (index, port) in spec.endpoint.ports.iter().enumerate() {
            let Some(published) = port.published.filter(|_| port.mode == PublishMode::Ingress) else { continue };
            if let Some(other) = taken.insert((published, port.protocol), name).filter(|other| *other != name) {
                let message = format!("{published}/{} is published by services.{other} already", port.protocol);
                faults.add(&format!("{path}.endpoint.ports[{index}].published"), message);
            }
        }
    }
    for (name, spec) in &bundle.spec.networks {
        faults.extend(network_spec(spec, &format!("spec.networks.{name}")));
    }
    faults.each("spec.reset", &bundle.spec.reset, |faults, path| {
        let object = path.strip_prefix("networks.").unwrap_or(path).split('.').next().unwrap_or_default();
        let known =
            path == "*" || bundle.spec.services.contains_key(object) || bundle.spec.networks.contains_key(object);
        faults
            .check(known, "", || format!("{path:?} begins with no service of the bundle; write NAME, NAME.FIELD or *"));
    });
    faults.into_vec()
}

/// Two names of a file may not become one name of an object.
fn made_names(faults: &mut Faults, bundle: &str, field: &str, names_in_file: &[&String]) {
    let mut made: BTreeMap<String, &str> = BTreeMap::new();
    for name in names_in_file {
        let path = format!("spec.{field}.{name}");
        match names::bundle_object_name(bundle, name) {
            Err(message) => faults.add(&path, message),
            Ok(object) => {
                if let Some(other) = made.insert(object.clone(), name) {
                    faults.add(&path, format!("becomes {object}, and so does {other}"));
                }
            }
        }
    }
}

pub(crate) fn network(network: &Network, previous: Option<&Network>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    label_name(&mut faults, network.name());
    faults.extend(network_spec(&network.spec, "spec"));
    if let Some(previous) = previous {
        for (field, same) in [
            ("spec.subnets", previous.spec.subnets == network.spec.subnets),
            ("spec.ipv6", previous.spec.ipv6 == network.spec.ipv6),
        ] {
            faults.check(same, field, || "never changes; make another network instead".into());
        }
    }
    faults.into_vec()
}

fn network_spec(spec: &crate::kinds::network::NetworkSpec, path: &str) -> Vec<Fault> {
    let mut faults = Faults::new(path);
    for (index, subnet) in spec.subnets.iter().enumerate() {
        let at = format!("subnets[{index}]");
        let address = subnet.address();
        faults.check(!address.is_multicast() && !address.is_loopback(), &at, || format!("{subnet} is not for tasks"));
        faults.check(address.is_ipv4(), &at, || format!("{subnet}: IPv6 is not acted on yet; remove it"));
        let (least, most) = if address.is_ipv4() { (8, 29) } else { (16, 125) };
        faults.check((least..=most).contains(&subnet.prefix()), &at, || {
            format!("{subnet} has a prefix of {} bits; {least} to {most} are possible", subnet.prefix())
        });
        if let Some(other) = spec.subnets[..index].iter().find(|other| other.overlaps(subnet)) {
            faults.add(&at, format!("{subnet} overlaps {other}"));
        }
    }
    faults.into_vec()
}

pub(crate) fn volume(volume: &Volume, previous: Option<&Volume>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    if let Some(before) = previous.and_then(|previous| previous.spec.node.as_deref()) {
        faults.check(volume.spec.node.as_deref() == Some(before), "spec.node", || {
            format!("its data is on {before}; it cannot be moved by naming another node")
        });
    }
    faults.into_vec()
}

fn base64_length(text: &str) -> Option<usize> {
    base64::engine::general_purpose::STANDARD.decode(text).ok().map(|bytes| bytes.len())
}

fn data(faults: &mut Faults, text: &str, most: usize) {
    match base64_length(text) {
        None => faults.add("spec.data", "is not base64"),
        Some(length) => faults.check((1..=most).contains(&length), "spec.data", || {
            format!("has {length} bytes; 1 to {most} are possible")
        }),
    }
}

pub(crate) fn secret(secret: &Secret, _previous: Option<&Secret>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    // A digest written back means "unchanged": the objects layer has put the data in its place before it asks.
    data(&mut faults, secret.spec.data.expose(), defaults::SECRET_BYTES_MAX.value);
    faults.into_vec()
}

pub(crate) fn config(config: &Config, _previous: Option<&Config>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    data(&mut faults, &config.spec.data, defaults::CONFIG_BYTES_MAX.value);
    faults.into_vec()
}

pub(crate) fn registry_login(login: &RegistryLogin, previous: Option<&RegistryLogin>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    // Whoever may not read the password could have it sent to a registry of their own.
    let moved = previous.is_some_and(|before| {
        before.spec.registry != login.spec.registry && before.spec.password == login.spec.password
    });
    faults.check(!moved, "spec.registry", || "never changes without the password; make another login".into());
    let registry = login.spec.registry.as_str();
    // Asked of the one parser of references, so that a login's registry and an image's are compared as they are.
    let probe = format!("{registry}/x").parse::<ImageRef>();
    match probe {
        Ok(image) if image.registry() == registry => {}
        Ok(image) if registry.contains("index.docker.io") => {
            faults.add("spec.registry", format!("write {}", image.registry()))
        }
        _ if registry.contains("://") => {
            let host = registry.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
            let host = if host == "index.docker.io" { "docker.io" } else { host };
            faults.add("spec.registry", format!("is a host and port, without a scheme or path; did you mean {host}?"));
        }
        _ => {
            faults.add("spec.registry", format!("{registry:?} is not a registry (a host name, with :port if need be)"))
        }
    }
    faults.check(!login.spec.username.is_empty() && !login.spec.username.contains(':'), "spec.username", || {
        "is needed, and has no ':'".into()
    });
    faults.check(!login.spec.password.is_empty(), "spec.password", || "is needed".into());
    faults.into_vec()
}

pub(crate) fn namespace(namespace: &Namespace, _previous: Option<&Namespace>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    label_name(&mut faults, namespace.name());
    faults.into_vec()
}

pub(crate) fn cluster(cluster: &Cluster, _previous: Option<&Cluster>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    faults.check(cluster.name() == CLUSTER_NAME, "metadata.name", || {
        format!("there is one, and it is called {CLUSTER_NAME}")
    });
    let pools = &cluster.spec.addresses;
    let named = [("tasks", pools.tasks), ("virtuals", pools.virtuals), ("nodes", pools.nodes)];
    for (index, (name, pool)) in named.iter().enumerate() {
        for (other_name, other) in &named[..index] {
            faults.check(!pool.overlaps(other), &format!("spec.addresses.{name}"), || {
                format!("{pool} overlaps {other_name} ({other})")
            });
        }
    }
    let prefix = pools.node_block_prefix;
    faults.check(prefix > pools.tasks.prefix() && prefix <= 29, "spec.addresses.nodeBlockPrefix", || {
        format!("{prefix} leaves no room; from {} to 29 are possible", pools.tasks.prefix() + 1)
    });
    let ports = &cluster.spec.ports;
    faults.check(ports.allocated_first <= ports.allocated_last, "spec.ports.allocatedFirst", || {
        format!("{} comes after allocatedLast ({})", ports.allocated_first, ports.allocated_last)
    });
    let periods = &cluster.spec.periods;
    for (name, period, least) in [
        ("heartbeat", periods.heartbeat, Period::from_millis(100)),
        ("nodeCertificate", periods.node_certificate, Period::from_secs(300)),
        ("joinToken", periods.join_token, Period::from_secs(60)),
    ] {
        faults.check(period >= least, &format!("spec.periods.{name}"), || {
            format!("{period} is too short, at least {least}")
        });
    }
    faults.check(periods.heartbeats_missed >= 2, "spec.periods.heartbeatsMissed", || {
        "a node would be lost with its first late heartbeat; at least 2".into()
    });
    let history = &cluster.spec.history;
    faults.check(history.revisions >= 2, "spec.history.revisions", || "nothing could be undone; at least 2".into());
    faults.check(history.tasks_per_slot >= 1, "spec.history.tasksPerSlot", || "at least 1, the live one".into());
    faults.into_vec()
}

pub(crate) fn revision(revision: &Revision, previous: Option<&Revision>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    if let Some(previous) = previous {
        faults.check(previous.spec == revision.spec, "spec", || {
            "a revision never changes; make another, named by its own hash".into()
        });
    }
    faults.into_vec()
}

pub(crate) fn lease(lease: &Lease, _previous: Option<&Lease>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    faults.check(lease.spec.ttl >= Period::from_millis(100), "spec.ttl", || {
        format!("{} is too short, at least 100ms", lease.spec.ttl)
    });
    faults.into_vec()
}

pub(crate) fn grant(grant: &Grant, _previous: Option<&Grant>) -> Vec<Fault> {
    const VERBS: [&str; 10] = ["get", "list", "watch", "create", "update", "patch", "delete", "exec", "host", "*"];
    let mut faults = Faults::new("spec");
    for (field, empty) in [
        ("subjects", grant.spec.subjects.is_empty()),
        ("verbs", grant.spec.verbs.is_empty()),
        ("kinds", grant.spec.kinds.is_empty()),
    ] {
        faults.check(!empty, field, || "is empty, so nothing is granted".into());
    }
    faults.each("verbs", &grant.spec.verbs, |faults, verb| {
        faults.check(VERBS.contains(&verb.as_str()), "", || format!("{verb:?} is not one of {}", VERBS.join(", ")));
    });
    faults.into_vec()
}

pub(crate) fn join_token(token: &JoinToken, _previous: Option<&JoinToken>) -> Vec<Fault> {
    let mut faults = Faults::new("spec");
    let digest = &token.spec.digest;
    let good = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    faults.check(good, "digest", || "is not the SHA-256 of a secret, in 64 lower-case hexadecimal digits".into());
    faults.into_vec()
}

pub(crate) fn resource_definition(
    definition: &ResourceDefinition,
    previous: Option<&ResourceDefinition>,
) -> Vec<Fault> {
    let mut faults = Faults::new("");
    let spec = &definition.spec;
    let expected = format!("{}.{}", spec.plural, spec.group);
    faults.check(definition.name() == expected, "metadata.name", || format!("is plural and group, so {expected}"));
    // Without a dot it could be a group of ours, such as `apply`.
    faults.check(spec.group.contains('.') && names::object_name_fault(&spec.group).is_none(), "spec.group", || {
        format!("{:?} is not a DNS name of your own, such as example.dev", spec.group)
    });
    let version_good =
        spec.version.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| ('1'..='9').contains(&c)))
            && names::label_fault(&spec.version).is_none();
    faults
        .check(version_good, "spec.version", || format!("{:?} is not a version, such as v1 or v1beta2", spec.version));
    let camel =
        spec.kind.starts_with(|c: char| c.is_ascii_uppercase()) && spec.kind.bytes().all(|b| b.is_ascii_alphanumeric());
    faults.check(camel, "spec.kind", || format!("{:?} is not in CamelCase, such as WebSite", spec.kind));
    let short = spec.short_names.iter().enumerate();
    let short: Vec<(String, &str)> =
        short.map(|(index, name)| (format!("spec.shortNames[{index}]"), &**name)).collect();
    let singular = spec.singular.as_ref().map(|singular| ("spec.singular".to_owned(), singular.as_str()));
    let words = [("spec.plural".to_owned(), spec.plural.as_str())].into_iter().chain(singular).chain(short);
    for (path, word) in words.clone() {
        faults.extend(names::label_fault(word).map(|message| Fault::new(path, message)));
    }
    // One word means one thing to whoever types it.
    for (path, word) in words.chain([("spec.kind".to_owned(), spec.kind.as_str())]) {
        if let Some(ours) = crate::kinds::find(word) {
            faults.add(&path, format!("{word:?} is what {} are called", (ours.kind)().plural));
        }
    }
    if !spec.schema.is_null() {
        let of_schema = crate::definition::schema_faults(&spec.schema);
        faults.extend(of_schema.into_iter().map(|fault| {
            let path = if fault.path.is_empty() { String::new() } else { format!(".{}", fault.path) };
            Fault::new(format!("spec.schema{path}"), fault.message)
        }));
    }
    for (index, column) in spec.columns.iter().enumerate() {
        let at = format!("spec.columns[{index}]");
        faults.check(!column.name.trim().is_empty(), &format!("{at}.name"), || "is needed, such as STATE".into());
        faults.check(is_pointer(&column.pointer, "/"), &format!("{at}.pointer"), || {
            format!("{:?} is not a JSON pointer, such as /status/state", column.pointer)
        });
    }
    if let Some(scale) = &spec.subresources.scale {
        let selector = scale.label_selector.iter().map(|selector| ("labelSelector", selector, "/status/"));
        let all =
            [("specReplicas", &scale.spec_replicas, "/spec/"), ("statusReplicas", &scale.status_replicas, "/status/")];
        for (field, pointer, within) in all.into_iter().chain(selector) {
            faults.check(is_pointer(pointer, within), &format!("spec.subresources.scale.{field}"), || {
                format!("{pointer:?} is not a JSON pointer to a field there, such as {within}replicas")
            });
        }
        faults.check(spec.subresources.status, "spec.subresources.status", || {
            "is needed: /scale tells of the status how many there are".into()
        });
    }
    if let Some(previous) = previous {
        for (field, same) in [
            ("spec.kind", previous.spec.kind == spec.kind),
            ("spec.scope", previous.spec.scope == spec.scope),
            ("spec.version", previous.spec.version == spec.version),
        ] {
            faults.check(same, field, || "never changes; its objects are stored by it".into());
        }
    }
    faults.into_vec()
}

fn is_pointer(pointer: &str, within: &str) -> bool {
    pointer.starts_with(within) && pointer.len() > within.len() && !pointer.ends_with('/') && !pointer.contains("//")
}
