//! What shapes cannot say: names, clashes, bounds and grammars, a module for each group of kinds. Each answers every
//! fault of an object whose shape is right.

mod container;
mod others;
pub(crate) mod service;

pub use container::ULIMITS;
pub(crate) use others::{
    bundle, cluster, config, grant, join_token, lease, namespace, network, registry_login, resource_definition,
    revision, secret, volume,
};
pub(crate) use service::service;

use reconciler_api::Fault;

use crate::quantity::Period;

/// Collects faults below one path.
pub(crate) struct Faults {
    path: String,
    found: Vec<Fault>,
}

impl Faults {
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), found: Vec::new() }
    }

    /// A fault at `field` below the current path; an empty one is the path itself.
    pub fn add(&mut self, field: &str, message: impl Into<String>) {
        self.found.push(Fault::new(field, message).under(&self.path));
    }

    pub fn check(&mut self, good: bool, field: &str, message: impl FnOnce() -> String) {
        if !good {
            self.add(field, message());
        }
    }

    /// What `inspect` finds, one level down.
    pub fn below(&mut self, field: &str, inspect: impl FnOnce(&mut Faults)) {
        let path = Fault::new(field, "").under(&self.path).path;
        let mut inner = Faults::new(path);
        inspect(&mut inner);
        self.found.extend(inner.found);
    }

    pub fn each<T>(&mut self, field: &str, list: &[T], mut inspect: impl FnMut(&mut Faults, &T)) {
        for (index, item) in list.iter().enumerate() {
            self.below(&format!("{field}[{index}]"), |faults| inspect(faults, item));
        }
    }

    pub fn at_most(&mut self, field: &str, period: Option<Period>, most: Period) {
        self.check(period.is_none_or(|period| period <= most), field, || {
            format!("{} is too long, {most} at most", period.unwrap_or_default())
        });
    }

    pub fn extend(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.found.extend(faults);
    }

    pub fn into_vec(self) -> Vec<Fault> {
        self.found
    }
}

/// Why a text cannot be handed to the kernel as an argument, a variable or a path.
pub(crate) fn nul_fault(text: &str) -> Option<String> {
    text.contains('\0').then(|| "has a NUL character, which no argument of a process can have".into())
}
