//! The volumes of one task: what its mounts ask for becomes mounts of directories, and its own volumes go with it.
//!
//! A volume without a name is the task's own. It lies in a namespace that only that task has (`task.<uid>`, which no
//! user's namespace can be called), so that it outlives attempts and is found again by the task's uid alone.

use std::path::{Path, PathBuf};

use reconciler::api::Uid;
use sha2::{Digest as _, Sha256};

use super::{BadName, Error, Fill, VolumeId, Volumes, Wanted};
use crate::node::containerd::container_spec::{Access, Mount, MountKind, Propagation};
use crate::node::tasks::{Place, PrepareError, VolumeMount};

const OWN_NAMESPACE: &str = "task.";

impl VolumeId {
    /// The task's own volume that is mounted at `target`.
    pub fn of_task(task: &Uid, target: &Path) -> Result<VolumeId, BadName> {
        // However it is written, as the runtime sees it.
        let target: PathBuf = target.components().collect();
        let digest = Sha256::digest(target.as_os_str().as_encoded_bytes());
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        VolumeId::new(&format!("{OWN_NAMESPACE}{}", task.as_str()), &name)
    }

    /// The task whose own volume this is; none for one with a name.
    pub fn task(&self) -> Option<Uid> {
        self.namespace().strip_prefix(OWN_NAMESPACE).map(Uid::new)
    }
}

/// Has every volume that the task wants, filled where that is wanted, and returns the mounts for its container.
pub async fn mounts(volumes: &dyn Volumes, place: &Place) -> Result<Vec<Mount>, PrepareError> {
    let mut mounts = Vec::with_capacity(place.volumes.len());
    for wanted in &place.volumes {
        mounts.push(mount(volumes, place, wanted).await?);
    }
    Ok(mounts)
}

/// Removes the task's own volumes. To be called when no container of it is left and none will come.
pub async fn remove_own(volumes: &dyn Volumes, task: &Uid) -> Result<(), PrepareError> {
    for id in volumes.list().await.map_err(outcome)?.iter().filter(|id| id.task().as_ref() == Some(task)) {
        volumes.remove(id).await.map_err(outcome)?;
    }
    Ok(())
}

async fn mount(volumes: &dyn Volumes, place: &Place, wanted: &VolumeMount) -> Result<Mount, PrepareError> {
    let target = PathBuf::from(&wanted.target);
    let id = match &wanted.name {
        Some(name) => VolumeId::new(&place.namespace, name),
        None => VolumeId::of_task(&place.uid, &target),
    };
    let id = id.map_err(|bad| PrepareError::Refused(format!("mount {}: {bad}", wanted.target)))?;
    let fill = match place.image_layers.as_str() {
        // An image without layers has no directories.
        "" => None,
        chain_id => {
            let chain_id = chain_id.parse().map_err(|bad| PrepareError::failed("read the image's chain id", bad))?;
            wanted.copy.then(|| Fill { chain_id, path: target.clone() })
        }
    };
    let mut source = volumes.ensure(&Wanted { id: id.clone(), fill }).await.map_err(outcome)?;
    if let Some(subpath) = &wanted.subpath {
        source = volumes.inside(&id, Path::new(subpath)).await.map_err(outcome)?;
    }
    Ok(Mount {
        target,
        // Whatever a person mounted inside of the volume is a part of it.
        kind: MountKind::Bind { source, recursive: true, propagation: Propagation::Private },
        access: if wanted.read_only { Access::ReadOnly } else { Access::ReadWrite },
    })
}

fn outcome(error: Error) -> PrepareError {
    match error.is_temporary() {
        true => PrepareError::failed("make the volumes ready", error),
        false => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            PrepareError::Refused(format!("{error}{source}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tasks_own_volume_is_known_by_the_task_and_its_target() {
        let task = Uid::new("0b2f5c1e-7a51-4d0e-9d35-0f3c8a6f1a77");
        let of = |target: &str| VolumeId::of_task(&task, Path::new(target)).unwrap();
        assert_eq!(of("/data"), of("//data/./"));
        assert_ne!(of("/data"), of("/data2"));
        assert_eq!(of("/data").task(), Some(task.clone()));
        assert_eq!(VolumeId::new("default", "data").unwrap().task(), None);
        // No namespace of a user's can be called so.
        assert!(schemas::names::label_fault(of("/data").namespace()).is_some());
        assert!(VolumeId::of_task(&Uid::new("../x"), Path::new("/data")).is_err());
    }
}
