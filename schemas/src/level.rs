//! What the machines of a cluster can do together while they run different versions.
//!
//! Machines of one cluster differ by one version. What a machine does not know it ignores, so a field that came with the
//! newest version is refused until every machine runs it.

use std::fmt;

use reconciler_api::Kind;
use serde_json::Value;

use crate::acting::{each, says_something};
use crate::kinds::GROUP;
use crate::shape::Shape;

/// The version of this build. Feature `previous`: the one before, which knows no field of [`NEW`].
pub const VERSION: &str = if cfg!(feature = "previous") { "0.1.0" } else { env!("CARGO_PKG_VERSION") };

/// Fields that came with this build's version, by kind and path (`[]` for each entry of a list). The next version begins with
/// none: by then every machine knows these.
const NEW: &[(&str, &str)] = if cfg!(feature = "previous") { &[] } else { &[("Service", "spec.onDisconnect")] };

/// What a version can do: all versions that differ in nothing but their last number can do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level {
    major: u32,
    minor: u32,
}

impl Level {
    /// Of this build.
    pub fn own() -> Self {
        Self::of(VERSION).expect("this build's own version is one")
    }

    /// Of a version such as `0.2.0`; absent where that is none.
    pub fn of(version: &str) -> Option<Self> {
        let mut parts = version.split('.');
        let mut next = || parts.next()?.parse().ok();
        Some(Self { major: next()?, minor: next()? })
    }

    /// Whether machines of both can be in one cluster.
    pub fn is_beside(self, other: Self) -> bool {
        let (older, newer) = if self <= other { (self, other) } else { (other, self) };
        match newer.major - older.major {
            0 => newer.minor - older.minor <= 1,
            // Which one was the last before is not known.
            1 => newer.minor == 0,
            _ => false,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The places where an object says something that versions before this one do not know, and did not say it before.
pub fn says_anew(kind: &Kind, current: Option<&Value>, desired: &Value) -> Vec<String> {
    let Some(shape) = Shape::of_kind(&kind.plural).filter(|_| kind.group == GROUP) else { return Vec::new() };
    let said = |object: &Value| {
        let mut found = Vec::new();
        for meant in NEW {
            each(*meant, kind, shape, object, &mut |at, field, value| {
                if says_something(field, value) {
                    found.push((at, value.clone()));
                }
            });
        }
        found
    };
    let before = current.map(said).unwrap_or_default();
    said(desired).into_iter().filter(|place| !before.contains(place)).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use reconciler_api::Resource;
    use serde_json::json;

    use super::*;
    use crate::kinds::{Bundle, Service};

    fn level(version: &str) -> Level {
        Level::of(version).unwrap()
    }

    #[test]
    fn versions_of_one_cluster_differ_by_one() {
        assert_eq!(level("0.2.0"), level("0.2.7"));
        assert!(level("0.2.0") < level("0.10.0") && level("0.10.0") < level("1.0.0"));
        for (one, other, fit) in [
            ("0.2.0", "0.2.9", true),
            ("0.2.0", "0.3.0", true),
            ("0.2.0", "0.4.0", false),
            ("0.9.0", "1.0.3", true),
            ("0.9.0", "1.1.0", false),
            ("0.9.0", "2.0.0", false),
        ] {
            assert_eq!(level(one).is_beside(level(other)), fit, "{one} {other}");
            assert_eq!(level(other).is_beside(level(one)), fit, "{other} {one}");
        }
        for none in ["", "dev", "1", "a.b", "-1.0"] {
            assert_eq!(Level::of(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_new_is_found_in_services_and_in_the_services_of_bundles() {
        let plain = json!({"spec": {"replicas": 2, "onDisconnect": "replace"}});
        let keeps = json!({"spec": {"replicas": 2, "onDisconnect": "keep"}});
        let later = json!({"spec": {"replicas": 3, "onDisconnect": "keep"}});
        let kind = Service::kind();
        assert!(says_anew(kind, None, &plain).is_empty(), "the default is what the version before does");
        assert_eq!(says_anew(kind, None, &keeps), ["spec.onDisconnect"]);
        assert_eq!(says_anew(kind, Some(&plain), &keeps), ["spec.onDisconnect"]);
        assert!(says_anew(kind, Some(&keeps), &later).is_empty(), "it was said before");
        let bundle = json!({"spec": {"services": {"web": keeps["spec"], "db": plain["spec"]}}});
        assert_eq!(says_anew(Bundle::kind(), None, &bundle), ["spec.services.web.onDisconnect"]);
    }

    #[test]
    fn every_new_field_is_there() {
        for (kind, path) in NEW {
            let mut shape = Shape::of_kind(&kind.to_lowercase()).unwrap();
            for step in path.split('.') {
                let field = shape.field(step.trim_end_matches("[]")).unwrap_or_else(|| panic!("{kind} has no {path}"));
                shape = match &field.shape.form {
                    crate::shape::Form::List(items, _) => items,
                    _ => &field.shape,
                };
            }
        }
    }
}
