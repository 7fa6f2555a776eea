//! What of an object is nobody's to read: readers get digests, and write them back for "as it was".

use std::sync::Arc;

use reconciler_api::{Fault, Kind};
use serde_json::Value;

use super::encoding::Sealer;

const DIGEST_PREFIX: &str = "hmac-sha256:";

/// How sensitive fields are sealed, and what is told of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets {
    sealer: Option<Arc<dyn Sealer>>,
}

impl Secrets {
    pub fn sealed_by(sealer: Arc<dyn Sealer>) -> Self {
        Self { sealer: Some(sealer) }
    }

    pub fn sealer(&self) -> Option<&Arc<dyn Sealer>> {
        self.sealer.as_ref()
    }

    /// Digests in place of what is sensitive.
    pub fn redact(&self, kind: &Kind, value: &mut Value) {
        for pointer in &kind.sensitive {
            if let Some(secret) = value.pointer_mut(pointer) {
                *secret = Value::String(self.digest(secret));
            }
        }
    }

    /// Tools keep what they were given in an annotation (kubectl's `last-applied-configuration`), secrets included, where
    /// every reader would find them.
    pub fn redact_copies(&self, kind: &Kind, desired: &mut Value) {
        if kind.sensitive.is_empty() {
            return;
        }
        let annotations = desired.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
        for text in annotations.into_iter().flat_map(|all| all.values_mut()) {
            let Some(Ok(mut copy)) = text.as_str().map(serde_json::from_str::<Value>) else { continue };
            if kind.sensitive.iter().any(|pointer| copy.pointer(pointer).is_some()) {
                self.redact(kind, &mut copy);
                *text = copy.to_string().into();
            }
        }
    }

    /// A digest written back means "as it was"; any other digest is nobody's secret.
    pub fn restore(&self, kind: &Kind, current: Option<&Value>, desired: &mut Value) -> Result<(), Vec<Fault>> {
        let mut faults = Vec::new();
        for pointer in &kind.sensitive {
            let Some(said) = desired.pointer_mut(pointer) else { continue };
            let Some(text) = said.as_str().filter(|text| text.starts_with(DIGEST_PREFIX)) else { continue };
            match current.and_then(|current| current.pointer(pointer)) {
                Some(secret) if self.digest(secret) == text => *said = secret.clone(),
                _ => faults.push(Fault::new(
                    pointer.trim_start_matches('/').replace('/', "."),
                    "is a digest that does not stand for the stored value; give the value itself, or leave the field as it was read",
                )),
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn digest(&self, secret: &Value) -> String {
        let plain = secret.as_str().map_or_else(|| secret.to_string(), str::to_owned);
        match &self.sealer {
            Some(sealer) => sealer.digest(plain.as_bytes()),
            // Without a key there is no digest that could not be guessed.
            None => DIGEST_PREFIX.to_owned(),
        }
    }
}

/// A secret that is said again looks like another than its digest, and so like a change: whether nothing differs but how
/// often the spec has changed.
pub(super) fn is_said_again(kind: &Kind, current: &Value, desired: &Value) -> bool {
    if kind.sensitive.is_empty() {
        return false;
    }
    let mut uncounted = desired.clone();
    uncounted["metadata"]["generation"] = current["metadata"]["generation"].clone();
    uncounted == *current
}
