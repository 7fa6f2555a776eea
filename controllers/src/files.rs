//! Which Secrets and Configs tasks see as files: one answer for whoever replaces tasks when the data changes, and for
//! whoever tells a machine the data.

use std::collections::BTreeSet;

use reconciler::cache::{Index, Snapshot};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::config::Config;
use schemas::kinds::revision::{FileVersion, Revision};
use schemas::kinds::secret::Secret;
use schemas::kinds::service::Service;
use schemas::kinds::template::{FileKind, TaskTemplate};
use sha2::{Digest, Sha256};

use crate::mounted::revision_of;
use crate::node::tasks::live_on;

/// Services by what their tasks see.
pub(crate) struct Seeing;

impl Index for Seeing {
    type Of = Service;
    type Key = (FileKind, ObjectRef);

    fn keys(service: &Service) -> Vec<(FileKind, ObjectRef)> {
        seen_by(&service.metadata.namespace, &service.spec.template).into_iter().collect()
    }
}

fn seen_by(namespace: &str, template: &TaskTemplate) -> BTreeSet<(FileKind, ObjectRef)> {
    let files = template.container.files();
    files.map(|(kind, file)| (kind, ObjectRef::new(namespace, &file.source))).collect()
}

/// Which data everything has that the tasks of a service see, or in words what is missing.
pub(crate) fn versions(service: &Service, snapshot: &Snapshot) -> Result<Vec<FileVersion>, Vec<String>> {
    let seen = seen_by(&service.metadata.namespace, &service.spec.template);
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (kind, reference) in seen {
        let name = reference.name.clone();
        match digest(kind, &reference, snapshot) {
            Some(digest) => found.push(FileVersion { kind, name, digest }),
            None => missing.push(format!("there is no {} {name}", kind.words().0)),
        }
    }
    if missing.is_empty() { Ok(found) } else { Err(missing) }
}

fn digest(kind: FileKind, reference: &ObjectRef, snapshot: &Snapshot) -> Option<String> {
    match kind {
        FileKind::Secret => {
            snapshot.get::<Secret>(reference).filter(|it| !it.is_deleting()).map(|it| digest_of_secret(it))
        }
        FileKind::Config => {
            snapshot.get::<Config>(reference).filter(|it| !it.is_deleting()).map(|it| digest_of_config(it))
        }
    }
}

/// As a Revision names the data of a Secret that was read: what is read has a keyed digest in the place of the data.
pub fn digest_of_secret(secret: &Secret) -> String {
    secret.spec.data.expose().to_owned()
}

/// As a Revision names the data of a Config.
pub fn digest_of_config(config: &Config) -> String {
    let digest = Sha256::digest(config.spec.data.as_bytes());
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Whether a machine has a live task that sees this.
pub fn sees(snapshot: &Snapshot, node: &str, kind: FileKind, reference: &ObjectRef) -> bool {
    live_on(snapshot, &node.to_owned()).any(|task| {
        let template = snapshot.get::<Revision>(&revision_of(task)).and_then(|it| it.spec.content.template());
        template.is_some_and(|it| {
            seen_by(&task.metadata.namespace, it).iter().any(|(of, seen)| *of == kind && seen == reference)
        })
    })
}
