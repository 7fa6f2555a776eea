//! The kinds of `apply/v1`, one module each. A type's documentation is what `applyctl explain` prints.
//!
//! Fields whose absence means a default are `Option`s with an accessor of the same name (`spec.replicas()`): JSON stays
//! as short as what was said, and a default added later changes no hash of a stored template.

pub mod bundle;
pub mod cluster;
pub mod config;
pub mod endpoints;
pub mod event;
pub mod grant;
pub mod join_token;
pub mod lease;
pub mod namespace;
pub mod network;
pub mod node;
pub mod registry_login;
pub mod resource_definition;
pub mod revision;
pub mod secret;
pub mod service;
pub mod task;
pub mod template;
pub mod user;
pub mod volume;

use reconciler_api::{Fault, Kind, Resource};
use serde_json::Value;

use crate::read;

pub use bundle::Bundle;
pub use cluster::Cluster;
pub use config::Config;
pub use endpoints::Endpoints;
pub use event::Event;
pub use grant::Grant;
pub use join_token::JoinToken;
pub use lease::Lease;
pub use namespace::Namespace;
pub use network::Network;
pub use node::Node;
pub use registry_login::RegistryLogin;
pub use resource_definition::ResourceDefinition;
pub use revision::Revision;
pub use secret::Secret;
pub use service::Service;
pub use task::Task;
pub use user::User;
pub use volume::Volume;

/// The group of every kind of this crate.
pub const GROUP: &str = "apply";
/// The one version of every kind of this crate.
pub const VERSION: &str = "v1";
/// Where objects go that name no namespace.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Labels and annotations that the project itself reads.
pub mod labels {
    /// On everything that a Bundle makes: its name.
    pub const BUNDLE: &str = "apply/bundle";
    /// On everything that a Service makes: its name.
    pub const SERVICE: &str = "apply/service";
    /// What the bundle controller last applied to this object: the base of the three-way merge, as JSON.
    pub const LAST_APPLIED: &str = "apply/last-applied";
    /// On Bundles and Services: whose change of the spec was the last, an identity such as `user:ann`. Noted when it is
    /// written; what a writer claims itself does not count.
    pub const AUTHOR: &str = "apply/author";
    /// The same: why, in the author's words; absent where nothing was said.
    pub const MESSAGE: &str = "apply/message";
    /// On Services: a wish to have the tasks spread evenly over the nodes that there are now. Any text; another one is
    /// another wish.
    pub const REBALANCE: &str = "apply/rebalance";
}

/// A kind of this crate as the rest of the system handles it without its Rust type.
#[derive(Clone, Copy)]
pub struct Registered {
    /// Names, scope and columns of the kind.
    pub kind: fn() -> &'static Kind,
    /// JSON Schema (draft 2020-12) of a whole object; made anew by each call.
    pub schema: fn() -> schemars::Schema,
    /// Every fault of a whole object, `previous` being what is stored: what the objects layer asks before each write.
    pub check: fn(&Value, Option<&Value>) -> Vec<Fault>,
    /// The same for an object that a person wrote, where `null` is nothing.
    pub(crate) check_file: fn(&Value) -> Vec<Fault>,
    /// The object as its type writes it: the shortest form that means the same. Fails where the shape is wrong.
    pub canonical: fn(&Value) -> Result<Value, serde_json::Error>,
}

/// Every kind of this crate, in the order of the design's table.
pub const ALL: &[Registered] = &[
    registered::<Bundle>(),
    registered::<Service>(),
    registered::<Revision>(),
    registered::<Task>(),
    registered::<Node>(),
    registered::<Network>(),
    registered::<Endpoints>(),
    registered::<Secret>(),
    registered::<Config>(),
    registered::<RegistryLogin>(),
    registered::<Volume>(),
    registered::<Event>(),
    registered::<Lease>(),
    registered::<Namespace>(),
    registered::<Cluster>(),
    registered::<User>(),
    registered::<Grant>(),
    registered::<JoinToken>(),
    registered::<ResourceDefinition>(),
];

const fn registered<T: Resource>() -> Registered {
    Registered {
        kind: T::kind,
        schema: T::schema,
        check: read::check::<T>,
        check_file: read::check_file::<T>,
        canonical: canonical::<T>,
    }
}

fn canonical<T: Resource>(object: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(T::deserialize(object)?)
}

/// The kind that people mean by `word`: its kind, plural, singular or a short name, in any case.
pub fn find(word: &str) -> Option<&'static Registered> {
    position(word).map(|index| &ALL[index])
}

pub(crate) fn position(word: &str) -> Option<usize> {
    ALL.iter().position(|registered| {
        let kind = (registered.kind)();
        let named = |name: &str| name.eq_ignore_ascii_case(word);
        named(&kind.kind)
            || named(&kind.plural)
            || named(&kind.singular)
            || kind.short_names.iter().any(|name| named(name))
    })
}

/// For the schemas of structs whose fields all have a Rust default, so that a faulty object can still be looked at, and
/// some of which nobody may leave out all the same: those say `x-required`.
pub(crate) fn require(schema: &mut schemars::Schema) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    let mut names = Vec::new();
    for (name, property) in properties.iter_mut().filter_map(|(name, property)| Some((name, property.as_object_mut()?)))
    {
        if property.remove("x-required").is_some() {
            property.remove("default");
            names.push(Value::from(name.clone()));
        }
    }
    schema.insert("required".into(), names.into());
}

/// For `skip_serializing_if`: a value that its type's default says already.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_of_kinds_are_unique() {
        let mut seen = BTreeSet::new();
        for registered in ALL {
            let kind = (registered.kind)();
            assert_eq!((kind.group.as_ref(), kind.version.as_ref()), (GROUP, VERSION));
            let names: BTreeSet<_> = [&kind.plural, &kind.singular]
                .into_iter()
                .chain(&kind.short_names)
                .map(|name| name.to_string())
                .collect();
            for name in names {
                assert!(seen.insert(name.clone()), "{name} is taken twice");
                assert!(find(&name.to_uppercase()).is_some());
            }
        }
    }

    #[test]
    fn columns_point_at_fields_that_exist() {
        for registered in ALL {
            let kind = (registered.kind)();
            let schema = (registered.schema)().to_value();
            for column in &kind.columns {
                assert!(
                    column_exists(&schema, &schema, column.pointer.trim_start_matches('/')),
                    "{}: column {} points at {}, which the schema has not",
                    kind.kind,
                    column.name,
                    column.pointer
                );
            }
        }
    }

    fn column_exists(root: &serde_json::Value, at: &serde_json::Value, rest: &str) -> bool {
        if let Some(reference) = at["$ref"].as_str() {
            return column_exists(root, &root["$defs"][reference.trim_start_matches("#/$defs/")], rest);
        }
        if let Some(any) = at["anyOf"].as_array() {
            return any.iter().any(|option| column_exists(root, option, rest));
        }
        let (field, rest) = match rest.split_once('/') {
            Some((field, rest)) => (field, Some(rest)),
            None => (rest, None),
        };
        let next = match field.parse::<usize>() {
            // An entry of a list.
            Ok(_) if at["items"].is_object() => &at["items"],
            _ if at["properties"][field].is_object() => &at["properties"][field],
            _ => &at["additionalProperties"],
        };
        next.is_object() && rest.is_none_or(|rest| column_exists(root, next, rest))
    }
}
